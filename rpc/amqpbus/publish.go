package amqpbus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
)

// errNotSent: the connection was lost before anything was written.
var errNotSent = fault.New(fault.Unavailable, "the connection to RabbitMQ was lost before the message was sent")

// outgoing is a message on its way to the broker. Whoever moves its state away
// from waiting decides whether it is sent.
type outgoing struct {
	ctx           context.Context //nolint:containedctx // the message's
	id            string
	exchange, key string
	body          amqp.Publishing
	settled       func(error) // called once, unless the message was abandoned
	state         atomic.Uint32
}

const (
	waiting uint32 = iota
	sending
	abandoned
)

// abandon reports whether the message is certainly not sent, now and later.
func (o *outgoing) abandon() bool { return o.state.CompareAndSwap(waiting, abandoned) }

// publisher writes messages to one channel in confirm mode after the other.
type publisher struct {
	link *link
	in   <-chan *outgoing // shared by all publishers
}

// run publishes until life ends.
func (p *publisher) run(life context.Context) {
	for {
		conn, err := p.link.get(life)
		if err != nil {
			return
		}
		c, err := openOut(conn)
		if err != nil {
			pause(life, minRedial)
			continue
		}
		p.serve(life, c)
		_ = c.ch.Close() // it may be closed already
		<-c.lost
	}
}

// serve takes messages while the channel lives and the broker takes them.
func (p *publisher) serve(life context.Context, c *outChannel) {
	for {
		if p.link.blocked.Load() {
			if _, err := p.link.get(life); err != nil {
				return
			}
		}
		select {
		case o := <-p.in:
			c.send(o)
		case <-c.lost:
			return
		case <-life.Done():
			return
		}
	}
}

// outChannel is one channel in confirm mode. One goroutine writes to it, another
// one takes what comes back.
type outChannel struct {
	ch     *amqp.Channel
	fanout map[string]bool // exchanges declared on this channel
	lost   chan struct{}   // closed when the channel is gone and all is settled

	mu      sync.Mutex
	pending []*outgoing // sent and not confirmed, in the order of their delivery tags
	gone    bool
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
	c := &outChannel{ch: ch, fanout: make(map[string]bool), lost: make(chan struct{})}
	go c.collect(returns, confirms) // ends with the channel, and closes c.lost
	return c, nil
}

// send writes one message.
func (c *outChannel) send(o *outgoing) {
	if err := o.ctx.Err(); err != nil {
		if o.abandon() {
			o.settled(notSent(err))
		}
		return
	}
	if !o.state.CompareAndSwap(waiting, sending) {
		return
	}
	if o.exchange != "" && !c.fanout[o.exchange] {
		if err := c.ch.ExchangeDeclare(o.exchange, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
			o.settled(refused(err, "exchange "+o.exchange))
			return
		}
		c.fanout[o.exchange] = true
	}
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		o.settled(errNotSent)
		return
	}
	c.pending = append(c.pending, o)
	c.mu.Unlock()
	err := c.ch.Publish(o.exchange, o.key, o.exchange == "", false, o.body)
	if err == nil {
		return
	}
	// Nothing was written if the channel was closed before; else it may have been.
	c.mu.Lock()
	mine := !c.gone
	if mine {
		c.pending = c.pending[:len(c.pending)-1]
	}
	c.mu.Unlock()
	switch {
	case !mine: // collect has settled it
	case errors.Is(err, amqp.ErrClosed):
		o.settled(errNotSent)
	default:
		o.settled(fault.New(fault.Unknown, "the connection to RabbitMQ was lost while the message was sent: %w", err))
	}
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
