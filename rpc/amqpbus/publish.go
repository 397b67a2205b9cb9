package amqpbus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/internal/broker"
)

// errNotSent: the connection was lost before anything was written.
var errNotSent = fault.New(fault.Unavailable, "the connection to RabbitMQ was lost before the message was sent")

// outgoing is a message on its way to the broker.
type outgoing struct {
	id            string
	exchange, key string
	body          amqp.Publishing
	settled       func(error) // called once when the message was written
}

// publisher keeps a channel in confirm mode open. Those who publish write to it
// themselves.
type publisher struct {
	link *link
	cur  atomic.Pointer[outChannel] // nil while there is none
}

// run keeps the channel open until life ends.
func (p *publisher) run(life context.Context) {
	for {
		conn, err := p.link.get(life)
		if err != nil {
			return
		}
		c, err := openOut(conn)
		if err != nil {
			broker.Pause(life, minRedial)
			continue
		}
		p.cur.Store(c)
		p.link.wake()
		select {
		case <-c.lost:
		case <-life.Done():
		}
		p.cur.Store(nil)
		_ = c.ch.Close() // it may be closed already
		<-c.lost
	}
}

// channel returns an open channel, waiting for one until ctx ends, or for a
// minute.
func (b *Bus) channel(ctx context.Context) (*outChannel, error) {
	p := b.outs[b.next.Add(1)%uint64(len(b.outs))]
	c, changed, full := p.open()
	if c != nil {
		return c, nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for ; c == nil; c, changed, full = p.open() {
		select {
		case <-full: // never ready if it is nil
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-b.life.Done():
			return nil, rpc.ErrClosed
		}
	}
	return c, nil
}

// open returns the channel if it may be written to. Else it returns what is
// closed when that may have changed.
func (p *publisher) open() (c *outChannel, changed, full <-chan struct{}) {
	changed, full = p.link.state()
	if full != nil || p.link.blocked.Load() {
		return nil, changed, full
	}
	return p.cur.Load(), changed, nil
}

// outChannel is one channel in confirm mode. A goroutine takes what comes back.
type outChannel struct {
	ch   *amqp.Channel
	lost chan struct{} // closed when the channel is gone and all is settled

	// sending makes the order of pending that of the delivery tags. collect must
	// not need it: amqp091 has senders wait while it hands confirmations over.
	sending sync.Mutex
	mu      sync.Mutex
	pending []*outgoing // sent and not confirmed
	gone    bool

	fanoutMu sync.Mutex
	fanout   map[string]chan struct{} // exchanges: closed when declared on this channel
}

func openOut(conn *amqp.Connection) (*outChannel, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	// Without a buffer: the connection's reader hands a return over before it
	// goes on to the confirmation that follows it.
	returns := ch.NotifyReturn(make(chan amqp.Return))
	confirms := ch.NotifyPublish(make(chan amqp.Confirmation, 256))
	if err := ch.Confirm(false); err != nil {
		_ = ch.Close() // it is unusable either way
		return nil, err
	}
	c := &outChannel{ch: ch, fanout: make(map[string]chan struct{}), lost: make(chan struct{})}
	go c.collect(returns, confirms) // ends with the channel, and closes c.lost
	return c, nil
}

// declare makes sure that a fanout exchange exists. The first to ask has it
// declared; it and all others wait until that is done, or ctx ends.
func (c *outChannel) declare(ctx context.Context, exchange string) error {
	c.fanoutMu.Lock()
	done, asked := c.fanout[exchange]
	if !asked {
		done = make(chan struct{})
		c.fanout[exchange] = done
		go func() { // ends with the channel
			if c.ch.ExchangeDeclare(exchange, amqp.ExchangeFanout, true, false, false, false, nil) == nil {
				close(done)
			}
		}()
	}
	c.fanoutMu.Unlock()
	select {
	case <-done:
		return nil
	case <-c.lost:
		return errNotSent
	case <-ctx.Done():
		return notSent(ctx.Err())
	}
}

// send writes one message. It does not block. If it fails, o.settled is not
// called.
func (c *outChannel) send(o *outgoing) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		return errNotSent
	}
	c.pending = append(c.pending, o)
	c.mu.Unlock()
	err := c.ch.Publish(o.exchange, o.key, o.exchange == "", false, o.body)
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return nil // collect has settled it
	}
	c.pending = c.pending[:len(c.pending)-1]
	if errors.Is(err, amqp.ErrClosed) {
		return errNotSent
	}
	return fault.New(fault.Unknown, "the connection to RabbitMQ was lost while the message was sent: %w", err)
}

// collect settles messages as they are confirmed.
func (c *outChannel) collect(returns <-chan amqp.Return, confirms <-chan amqp.Confirmation) {
	defer close(c.lost)
	back := make(map[string]bool) // returned and not yet confirmed
	for confirms != nil {
		select {
		case r, ok := <-returns:
			if !ok {
				returns = nil
				continue
			}
			back[r.MessageId] = true
		case cf, ok := <-confirms:
			if !ok {
				confirms = nil
				continue
			}
			c.mu.Lock()
			if len(c.pending) == 0 { // a broker that confirms what was never sent
				c.mu.Unlock()
				continue
			}
			o := c.pending[0]
			c.pending[0] = nil
			c.pending = c.pending[1:]
			c.mu.Unlock()
			switch {
			case !cf.Ack:
				o.settled(fault.New(fault.Unavailable, "RabbitMQ refused the message"))
			case len(back) > 0 && back[o.id]:
				delete(back, o.id)
				o.settled(fmt.Errorf("queue %q: %w", o.key, rpc.ErrNoConsumer))
			default:
				o.settled(nil)
			}
		}
	}
	c.mu.Lock()
	left := c.pending
	c.pending, c.gone = nil, true
	c.mu.Unlock()
	for _, o := range left {
		o.settled(fault.New(fault.Unknown, "the connection to RabbitMQ was lost before the message was confirmed"))
	}
}

func notSent(err error) error {
	return fault.New(fault.CodeOf(err), "not sent, RabbitMQ was away or busy for too long: %w", err)
}

// refused gives what the broker says about a queue or an exchange a code.
func refused(err error, what string) error {
	e, ok := errors.AsType[*amqp.Error](err)
	switch {
	case ok && e.Code == amqp.AccessRefused:
		return fault.New(fault.Denied, "RabbitMQ denies %s: %w", what, err)
	case ok && e.Code == amqp.PreconditionFailed:
		return fault.New(fault.Precondition, "RabbitMQ has %s with other properties: %w", what, err)
	case ok && e.Server:
		return fault.New(fault.Precondition, "RabbitMQ refuses %s: %w", what, err)
	}
	return errNotSent
}
