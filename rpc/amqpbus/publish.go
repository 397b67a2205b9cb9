package amqpbus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
)

// uuidHeader is the header in which watermill-amqp keeps a message's UUID.
const uuidHeader = "_watermill_message_uuid"

// errNotSent: the connection was lost before anything was written.
var errNotSent = fault.New(fault.Unavailable, "the connection to RabbitMQ was lost before the message was sent")

type outgoing struct {
	id            string
	exchange, key string
	body          amqp.Publishing
}

// marshal puts a message into watermill-amqp's format, and what the metadata
// ask for into the properties that the broker acts on.
func marshal(m *message.Message) amqp.Publishing {
	headers := make(amqp.Table, len(m.Metadata)+1)
	for k, v := range m.Metadata {
		headers[k] = v
	}
	headers[uuidHeader] = m.UUID
	p := amqp.Publishing{Body: m.Payload, Headers: headers, MessageId: m.UUID, ContentType: "application/json"}
	if m.Metadata.Get(rpc.MetaDelivery) == rpc.AtLeastOnce.String() {
		p.DeliveryMode = amqp.Persistent
	}
	if t, ok := rpc.Deadline(m); ok {
		p.Expiration = strconv.FormatInt(max(time.Until(t).Milliseconds(), 1), 10)
	}
	return p
}

// unmarshal reads a delivery. Headers that are not text, such as x-death and
// x-delivery-count, are the broker's and left out.
func unmarshal(d *amqp.Delivery) *message.Message {
	id, _ := d.Headers[uuidHeader].(string)
	if id == "" {
		id = d.MessageId
	}
	m := message.NewMessage(id, d.Body)
	for k, v := range d.Headers {
		if s, ok := v.(string); ok && k != uuidHeader {
			m.Metadata[k] = s
		}
	}
	return m
}

// publisher is one channel in confirm mode, opened when it is first needed and
// again when it was lost.
type publisher struct {
	link *link
	mu   sync.Mutex
	cur  *outChannel
}

// outChannel is the life of one channel.
type outChannel struct {
	ch     *amqp.Channel
	asked  chan returned // asks the goroutine below whether a message came back
	ended  chan struct{} // closed when the channel is gone
	mu     sync.Mutex
	fanout map[string]bool // exchanges declared on this channel
}

type returned struct {
	id  string
	was chan<- bool
}

// send publishes and waits for the confirmation. Errors: errNotSent;
// ErrNoConsumer; Unknown if it may have been sent; Timeout and Canceled when the
// connection did not come back in time, or no confirmation came.
func (p *publisher) send(ctx context.Context, out outgoing) error {
	c, err := p.channel(ctx)
	if err != nil {
		return err
	}
	mandatory := out.exchange == ""
	if !mandatory {
		if err := c.declareFanout(out.exchange); err != nil {
			return errNotSent
		}
	}
	confirm, err := c.ch.PublishWithDeferredConfirm(out.exchange, out.key, mandatory, false, out.body)
	switch {
	case errors.Is(err, amqp.ErrClosed):
		return errNotSent
	case err != nil:
		return fault.New(fault.Unknown, "the connection to RabbitMQ was lost while the message was sent: %w", err)
	}
	select {
	case <-confirm.Done():
	case <-ctx.Done():
		return fault.New(fault.Unknown, "RabbitMQ did not confirm the message before the end: %w", ctx.Err())
	}
	switch {
	case confirm.Acked():
		if mandatory && c.cameBack(out.id) {
			return fmt.Errorf("queue %q: %w", out.key, rpc.ErrNoConsumer)
		}
		return nil
	case c.ch.IsClosed():
		return fault.New(fault.Unknown, "the connection to RabbitMQ was lost before the message was confirmed")
	default:
		return fault.New(fault.Unavailable, "RabbitMQ refused the message")
	}
}

// channel returns the open channel, or opens one, waiting for the connection
// until ctx ends.
func (p *publisher) channel(ctx context.Context) (*outChannel, error) {
	conn, err := p.link.get(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotSent, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cur != nil && !p.cur.ch.IsClosed() {
		return p.cur, nil
	}
	ch, err := conn.Channel()
	if err != nil {
		return nil, errNotSent
	}
	// Without a buffer: the connection's reader hands a return over before it
	// goes on to the confirmation that follows it.
	returns := ch.NotifyReturn(make(chan amqp.Return))
	if err := ch.Confirm(false); err != nil {
		_ = ch.Close() // it is unusable either way
		return nil, errNotSent
	}
	c := &outChannel{ch: ch, asked: make(chan returned), ended: make(chan struct{}), fanout: make(map[string]bool)}
	go c.collect(returns) // ends when the channel is closed, at the latest with the connection
	p.cur = c
	return c, nil
}

// collect remembers what came back until it is asked for.
func (c *outChannel) collect(returns <-chan amqp.Return) {
	defer close(c.ended)
	back := make(map[string]bool)
	for {
		select {
		case r, ok := <-returns:
			if !ok {
				return
			}
			back[r.MessageId] = true
		case q := <-c.asked:
			q.was <- back[q.id]
			delete(back, q.id)
		}
	}
}

// cameBack reports whether a confirmed message had been returned. The answer is
// certain: collect has taken the return before the confirmation was read.
func (c *outChannel) cameBack(id string) bool {
	was := make(chan bool, 1)
	select {
	case c.asked <- returned{id, was}:
		return <-was
	case <-c.ended:
		return false
	}
}

func (c *outChannel) declareFanout(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fanout[name] {
		return nil
	}
	if err := c.ch.ExchangeDeclare(name, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
		return err
	}
	c.fanout[name] = true
	return nil
}
