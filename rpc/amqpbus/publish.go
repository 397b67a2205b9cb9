package amqpbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/singleflight"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/backoff"
)

// The connection was lost before anything was written, or before the broker
// said what became of it.
var (
	errNotSent = fault.New(fault.Unavailable, "the connection to RabbitMQ was lost before the message was sent")
	errRefused = fault.New(fault.Unavailable, "RabbitMQ refused the message")
	errLost    = fault.New(fault.Unknown, "the connection to RabbitMQ was lost before the message was confirmed")
)

// outgoing is a message on its way to the broker.
type outgoing struct {
	m             *bus.Message
	exchange, key string
	awaited       bool        // a goroutine waits for settled
	settled       func(error) // called once when the message was written
	confirm       *amqp.DeferredConfirmation
}

// publisher keeps a channel in confirm mode open. Those who publish write to it
// themselves.
type publisher struct {
	link  *connector
	learn func(limit int)            // is told the broker's limit of a message's size
	cur   atomic.Pointer[outChannel] // nil while the channel is closed
}

// run keeps the channel open until life ends.
func (p *publisher) run(life context.Context) {
	for {
		conn, err := p.link.get(life)
		if err != nil {
			return
		}
		c, err := openOut(conn, p.learn)
		if err != nil {
			backoff.Sleep(life, minRetry)
			continue
		}
		p.cur.Store(c)
		p.link.Notify()
		<-c.lost // at the latest when the connection is closed: Close of the channel could come between the frames of a message
		p.cur.Store(nil)
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
			return nil, bus.ErrClosed
		}
	}
	return c, nil
}

// open returns the channel if it may be written to. Else it returns what is
// closed when that may have changed.
func (p *publisher) open() (c *outChannel, changed, full <-chan struct{}) {
	s := p.link.State()
	if s.Epoch != nil && s.Conn.out != nil {
		full = s.Conn.out.Full()
	}
	if full != nil || s.Blocked != "" {
		return nil, s.Changed, full
	}
	return p.cur.Load(), s.Changed, nil
}

// lazy is how often the outcome of messages of Send is looked up.
const lazy = 20 * time.Millisecond

// outChannel is one channel in confirm mode. A goroutine takes what comes back.
// It wakes up for a confirmation only if Publish waits for it.
//
// Only messages are sent on it. amqp091 does not lock a channel's other methods against the three frames of a message, and
// RabbitMQ closes a connection on which they mix.
type outChannel struct {
	conn   *amqp.Connection
	ch     *amqp.Channel
	learn  func(limit int)
	closed <-chan *amqp.Error // why the channel was closed
	lost   chan struct{}      // closed when the channel is gone and all is settled
	wake   chan struct{}      // has a token if awaited is not empty any more
	tick   *time.Timer        // runs if others is not empty

	mu      sync.Mutex
	awaited []*outgoing     // sent and not settled, in their order
	others  []*outgoing     // the same, of messages of Send
	back    map[string]bool // returned before it was noted as sent
	gone    error           // of what is sent when the channel is gone; nil while it is there

	declared  sync.Map // the fanout exchanges that were declared on this channel
	declaring singleflight.Group
}

func openOut(conn *amqp.Connection, learn func(int)) (*outChannel, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	// Without a buffer: the connection's reader hands a return over before it
	// goes on to the confirmation that follows it.
	returns := ch.NotifyReturn(make(chan amqp.Return))
	if err := ch.Confirm(false); err != nil {
		_ = ch.Close() // it is unusable either way
		return nil, err
	}
	c := &outChannel{
		conn: conn, ch: ch, learn: learn, closed: closed, lost: make(chan struct{}), wake: make(chan struct{}, 1), tick: time.NewTimer(lazy),
		back: make(map[string]bool),
	}
	go c.collect(returns) // ends with the channel, and closes c.lost
	return c, nil
}

// declare makes sure that a fanout exchange exists. It is declared once for each outChannel, on a channel of its own; all that ask
// meanwhile wait until that is done, or ctx ends.
func (c *outChannel) declare(ctx context.Context, exchange string) error {
	if _, ok := c.declared.Load(exchange); ok {
		return nil
	}
	done := c.declaring.DoChan(exchange, func() (any, error) {
		ch, err := c.conn.Channel()
		if err != nil {
			return nil, err
		}
		defer func() { _ = ch.Close() }() // a refusal has closed it
		if err = ch.ExchangeDeclare(exchange, amqp.ExchangeFanout, true, false, false, false, nil); err == nil {
			c.declared.Store(exchange, true)
		}
		return nil, err
	})
	select {
	case r := <-done:
		if e, ok := errors.AsType[*amqp.Error](r.Err); ok && (e.Code == amqp.AccessRefused || e.Code == amqp.PreconditionFailed) {
			return refused(e, "the exchange "+exchange)
		}
		if r.Err != nil { // the connection is gone
			return errNotSent
		}
		return nil
	case <-c.lost:
		return errNotSent
	case <-ctx.Done():
		return notSent(ctx.Err())
	}
}

// send writes one message. It does not block. If it fails, o.settled is not
// called.
func (c *outChannel) send(o *outgoing, p amqp.Publishing) (err error) {
	o.confirm, err = c.ch.PublishWithDeferredConfirm(o.exchange, o.key, o.exchange == "", false, p)
	if errors.Is(err, amqp.ErrClosed) {
		return errNotSent
	}
	if err != nil {
		return fault.New(fault.Unknown, "the connection to RabbitMQ was lost while the message was sent: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.back[o.m.ID] {
		delete(c.back, o.m.ID)
		return unroutable(o)
	}
	switch {
	case c.gone != nil:
		return c.gone
	case o.awaited:
		if len(c.awaited) == 0 {
			select {
			case c.wake <- struct{}{}:
			default:
			}
		}
		c.awaited = append(c.awaited, o)
	default:
		if len(c.others) == 0 {
			c.tick.Reset(lazy)
		}
		c.others = append(c.others, o)
	}
	return nil
}

// collect settles messages as they are confirmed and returned.
func (c *outChannel) collect(returns <-chan amqp.Return) {
	defer close(c.lost)
	defer c.tick.Stop()
	for {
		var next <-chan struct{} // never ready if awaited is empty
		c.mu.Lock()
		if len(c.awaited) > 0 {
			next = c.awaited[0].confirm.Done()
		}
		c.mu.Unlock()
		select {
		case r, ok := <-returns:
			if !ok {
				c.settleLost()
				return
			}
			c.settleReturned(&r)
		case <-next:
			c.settle(&c.awaited)
		case <-c.tick.C:
			c.settle(&c.others)
		case <-c.wake:
		}
	}
}

// settleReturned settles a message that was returned.
func (c *outChannel) settleReturned(r *amqp.Return) {
	id := cmp.Or(r.MessageId, r.CorrelationId)
	c.mu.Lock()
	for _, list := range []*[]*outgoing{&c.awaited, &c.others} {
		if i := slices.IndexFunc(*list, func(o *outgoing) bool { return o.m.ID == id }); i >= 0 {
			o := (*list)[i]
			*list = slices.Delete(*list, i, i+1)
			c.mu.Unlock()
			o.settled(unroutable(o))
			return
		}
	}
	c.back[id] = true
	c.mu.Unlock()
}

// settle settles the first messages of a list, up to one that is not confirmed.
func (c *outChannel) settle(list *[]*outgoing) {
	c.mu.Lock()
	n := 0
	for n < len(*list) && (*list)[n].confirmed() {
		n++
	}
	ended := (*list)[:n]
	*list = (*list)[n:]
	if list == &c.others && len(*list) > 0 {
		c.tick.Reset(lazy)
	}
	c.mu.Unlock()
	for _, o := range ended {
		o.settled(c.outcome(o))
	}
	clear(ended) // no other goroutine has it
}

// settleLost settles what is left when the channel is gone.
func (c *outChannel) settleLost() {
	c.mu.Lock()
	left := slices.Concat(c.awaited, c.others)
	why := c.blame(left)
	c.awaited, c.others, c.gone = nil, nil, errLost
	if why != nil {
		c.gone = errNotSent // RabbitMQ reads no more of a channel after it has refused a message
	}
	c.mu.Unlock()
	for _, o := range left {
		o.settled(cmp.Or(why[o], c.outcome(o)))
	}
}

// outcome returns how the broker has confirmed a message.
func (c *outChannel) outcome(o *outgoing) error {
	switch {
	case o.confirm.Acked():
		return nil
	case c.ch.IsClosed():
		return errLost
	}
	return errRefused
}

// confirmed reports whether the broker has said something.
func (o *outgoing) confirmed() bool {
	select {
	case <-o.confirm.Done():
		return true
	default:
		return false
	}
}

// unroutable is the error of a message that was returned.
func unroutable(o *outgoing) error { return fmt.Errorf("queue %q: %w", o.key, bus.ErrNoConsumer) }

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
