package amqpbus

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/singleflight"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/rpc/bus"
)

// Errors of an attempt to send. After errNotSent and errRefused, the message certainly has no effect. After errLost, the
// broker may have accepted the message.
var (
	errNotSent = fault.New(fault.Unavailable, "the connection to RabbitMQ was lost before the message was sent")
	errRefused = fault.New(fault.Unavailable, "RabbitMQ refused the message")
	errLost    = fault.New(fault.Unknown, "the connection to RabbitMQ was lost before the message was confirmed")
)

// outgoing is a message on its way to the broker.
type outgoing struct {
	m             *bus.Message
	exchange, key string
	awaited       bool        // a goroutine waits until done is called
	done          func(error) // is called once with the outcome, unless send returned an error
	confirm       *amqp.DeferredConfirmation
}

// publisher keeps one AMQP channel in confirm mode open. The goroutines that publish write to the channel directly.
type publisher struct {
	link  *connector
	learn func(limit int)                // is called with the broker's size limit, in bytes
	cur   atomic.Pointer[publishChannel] // nil while the channel is closed
}

// keepChannelOpen keeps the channel open until life ends.
func (p *publisher) keepChannelOpen(life context.Context) {
	for {
		conn, err := p.link.get(life)
		if err != nil {
			return
		}
		c, err := openPublishChannel(conn, p.learn)
		if err != nil {
			backoff.Sleep(life, minRetry)
			continue
		}
		p.cur.Store(c)
		p.link.Notify()
		<-c.lost // the channel ends with its connection; it is not closed here, because Close could write between the frames of a message
		p.cur.Store(nil)
	}
}

// maxWait is how long the bus itself waits for RabbitMQ: always in Send, and in Publish if the caller has set no deadline.
const maxWait = time.Minute

// errMaxWait is the cause with which a context from withMaxWait ends after maxWait.
var errMaxWait = fault.New(fault.Timeout, "the bus's own limit of %v has passed", maxWait)

// withMaxWait returns a context that also ends after maxWait.
func withMaxWait(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, maxWait, errMaxWait)
}

// endOf returns why a context has ended: errMaxWait if maxWait has passed, otherwise the error of the context.
func endOf(ctx context.Context) error {
	if cause := context.Cause(ctx); errors.Is(cause, errMaxWait) {
		return cause
	}
	return ctx.Err()
}

// awaitChannel waits for an open AMQP channel. Errors: errNotSent after maxWait; notSent(...) when ctx ends;
// bus.ErrClosed when the bus is closed.
func (b *Bus) awaitChannel(ctx context.Context) (*publishChannel, error) {
	p := b.publishers[b.next.Add(1)%uint64(len(b.publishers))]
	c, changed, notFull := p.openChannel()
	if c != nil {
		return c, nil
	}
	limit := time.NewTimer(maxWait)
	defer limit.Stop()
	for ; c == nil; c, changed, notFull = p.openChannel() {
		select {
		case <-notFull: // blocks for ever if notFull is nil
		case <-changed:
		case <-limit.C:
			return nil, errNotSent
		case <-ctx.Done():
			return nil, notSent(endOf(ctx))
		case <-b.life.Done():
			return nil, bus.ErrClosed
		}
	}
	return c, nil
}

// openChannel returns the AMQP channel if messages can be written to it. Otherwise c is nil; the caller then waits for one of the
// other two channels and calls openChannel again. The channel changed is closed when the state of the connection changes. The
// channel notFull is closed when the write buffer has room again; it is nil if the buffer has room already.
func (p *publisher) openChannel() (c *publishChannel, changed, notFull <-chan struct{}) {
	s := p.link.State()
	if s.Epoch != nil && s.Conn.out != nil {
		notFull = s.Conn.out.Full()
	}
	if notFull != nil || s.Blocked != "" {
		return nil, s.Changed, notFull
	}
	return p.cur.Load(), s.Changed, nil
}

// confirmInterval is how often the bus checks whether messages of Send are confirmed. No goroutine waits for these messages.
const confirmInterval = 20 * time.Millisecond

// publishChannel is one AMQP channel in confirm mode. One goroutine, collectOutcomes, receives confirmations and returned
// messages. It waits for the confirmation of each message of Publish. It checks the messages of Send for confirmations every
// confirmInterval.
//
// The AMQP channel is used for messages only. amqp091 does not lock the other methods of a channel against the three frames
// of a message, and RabbitMQ closes a connection on which these frames mix.
type publishChannel struct {
	conn   connection
	ch     *amqp.Channel
	learn  func(limit int)
	closed <-chan *amqp.Error // has the reason when the AMQP channel is closed
	lost   chan struct{}      // closed when the AMQP channel is closed and each message has its outcome
	notify chan struct{}      // gets a token when a message is added to the empty list awaited
	tick   *time.Timer        // runs while the list others is not empty

	mu        sync.Mutex
	awaited   []*outgoing     // messages of Publish without an outcome yet, roughly in the order of sending
	others    []*outgoing     // messages of Send without an outcome yet, in the same order
	returned  map[string]bool // ids of messages that RabbitMQ returned before send added them to a list
	lostError error           // the error for messages that are sent after the AMQP channel was closed; nil while it is open

	declared  sync.Map // the names of the fanout exchanges that declare has declared
	declaring singleflight.Group
}

func openPublishChannel(conn connection, learn func(int)) (*publishChannel, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	// returns is an unbuffered Go channel, so that the reader of the connection delivers a returned message before it
	// reads the confirmation of that message.
	returns := ch.NotifyReturn(make(chan amqp.Return))
	if err := ch.Confirm(false); err != nil {
		_ = ch.Close() // its error is ignored: the broker may have closed the channel already
		return nil, err
	}
	c := &publishChannel{
		conn: conn, ch: ch, learn: learn, closed: closed, lost: make(chan struct{}), notify: make(chan struct{}, 1), tick: time.NewTimer(confirmInterval),
		returned: make(map[string]bool),
	}
	go c.collectOutcomes(returns) // ends when the AMQP channel is closed, and closes c.lost
	return c, nil
}

// declare creates a fanout exchange unless it exists. Each publishChannel declares an exchange once, on a separate AMQP channel.
// Concurrent calls for the same exchange wait for one declaration, until ctx ends.
func (c *publishChannel) declare(ctx context.Context, exchange string) error {
	if _, ok := c.declared.Load(exchange); ok {
		return nil
	}
	done := c.declaring.DoChan(exchange, func() (any, error) {
		ch, err := c.conn.Channel()
		if err != nil {
			return nil, channelError(err)
		}
		defer func() { _ = ch.Close() }() // after a refusal the broker has closed it already
		if err := ch.ExchangeDeclare(exchange, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
			return nil, refusalError(err, "the exchange "+exchange)
		}
		c.declared.Store(exchange, true)
		return nil, nil
	})
	select {
	case r := <-done:
		return r.Err
	case <-c.lost:
		return errNotSent
	case <-ctx.Done():
		return notSent(endOf(ctx))
	}
}

// send writes one message. It does not wait for an outcome. After an error, o.done is not called.
func (c *publishChannel) send(o *outgoing, p amqp.Publishing) (err error) {
	publish := func() {
		o.confirm, err = c.ch.PublishWithDeferredConfirm(o.exchange, o.key, o.exchange == "", false, p)
	}
	if c.conn.recent.senderIsAlone() {
		c.conn.out.Batch(publish)
	} else { // other goroutines publish at the same time: the connection's flush goroutine collects these messages and writes them together
		publish()
	}
	if errors.Is(err, amqp.ErrClosed) {
		return errNotSent
	}
	if err != nil {
		return fault.New(fault.Unknown, "the connection to RabbitMQ was lost while the message was sent: %w", err)
	}
	c.conn.recent.last.Store(o.confirm)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.returned[o.m.ID] {
		delete(c.returned, o.m.ID)
		return bus.ErrNoConsumer
	}
	switch {
	case c.lostError != nil:
		return c.lostError
	case o.awaited:
		if len(c.awaited) == 0 {
			select {
			case c.notify <- struct{}{}:
			default:
			}
		}
		c.awaited = append(c.awaited, o)
	default:
		if len(c.others) == 0 {
			c.tick.Reset(confirmInterval)
		}
		c.others = append(c.others, o)
	}
	return nil
}

// collectOutcomes calls done for each message that is confirmed or returned, until the AMQP channel is closed.
func (c *publishChannel) collectOutcomes(returns <-chan amqp.Return) {
	defer close(c.lost)
	defer c.tick.Stop()
	for {
		var next <-chan struct{} // blocks for ever if awaited is empty
		c.mu.Lock()
		if len(c.awaited) > 0 {
			next = c.awaited[0].confirm.Done()
		}
		c.mu.Unlock()
		select {
		case r, ok := <-returns:
			if !ok {
				c.failUnconfirmed()
				return
			}
			c.failReturned(&r)
		case <-next:
			c.endConfirmed(&c.awaited)
		case <-c.tick.C:
			c.endConfirmed(&c.others)
		case <-c.notify:
		}
	}
}

// failReturned calls done for a returned message with ErrNoConsumer.
func (c *publishChannel) failReturned(r *amqp.Return) {
	id := cmp.Or(r.MessageId, r.CorrelationId)
	c.mu.Lock()
	for _, list := range []*[]*outgoing{&c.awaited, &c.others} {
		if i := slices.IndexFunc(*list, func(o *outgoing) bool { return o.m.ID == id }); i >= 0 {
			o := (*list)[i]
			*list = slices.Delete(*list, i, i+1)
			c.mu.Unlock()
			o.done(bus.ErrNoConsumer)
			return
		}
	}
	c.returned[id] = true
	c.mu.Unlock()
}

// endConfirmed calls done with the outcome of each message at the start of a list, up to the first unconfirmed message.
func (c *publishChannel) endConfirmed(list *[]*outgoing) {
	c.mu.Lock()
	n := 0
	for n < len(*list) && (*list)[n].confirmed() {
		n++
	}
	ended := (*list)[:n]
	*list = (*list)[n:]
	if list == &c.others && len(*list) > 0 {
		c.tick.Reset(confirmInterval)
	}
	c.mu.Unlock()
	for _, o := range ended {
		o.done(c.outcome(o))
	}
	clear(ended) // frees the messages; no other goroutine uses this part of the list
}

// failUnconfirmed calls done with the outcome of each remaining message after the AMQP channel was closed.
func (c *publishChannel) failUnconfirmed() {
	c.mu.Lock()
	remaining := slices.Concat(c.awaited, c.others)
	failed := c.findTooLarge(remaining)
	c.awaited, c.others, c.lostError = nil, nil, errLost
	if failed != nil {
		c.lostError = errNotSent // RabbitMQ ignores all frames on an AMQP channel after a refused message
	}
	c.mu.Unlock()
	for _, o := range remaining {
		o.done(cmp.Or(failed[o], c.outcome(o)))
	}
}

// outcome returns nil if the broker accepted the message. Otherwise it returns errLost if the AMQP channel is closed, or else
// errRefused. On a closed channel, a refused message cannot be distinguished from an unanswered one.
func (c *publishChannel) outcome(o *outgoing) error {
	switch {
	case o.confirm.Acked():
		return nil
	case c.ch.IsClosed():
		return errLost
	}
	return errRefused
}

// confirmed reports whether the broker has confirmed or refused the message, or the AMQP channel is closed.
func (o *outgoing) confirmed() bool {
	select {
	case <-o.confirm.Done():
		return true
	default:
		return false
	}
}

// notSent returns the error for a message that was not sent before its context ended. The parameter err is the result of endOf.
func notSent(err error) error {
	return fault.New(fault.CodeOf(err), "not sent: RabbitMQ could not be reached or accepted no messages: %w", err)
}

// channelError returns the error for a message whose AMQP channel could not be opened: Exhausted if the connection has as many
// channels as RabbitMQ allows, or errNotSent if the connection was lost.
func channelError(err error) error {
	if errors.Is(err, amqp.ErrChannelMax) {
		return fault.New(fault.Exhausted, "not sent: the connection to RabbitMQ has as many channels as RabbitMQ allows (channel_max): %w", err)
	}
	return errNotSent
}

// refusalError returns the error for a queue or an exchange that the broker refuses: Denied or Precondition, or errNotSent if the
// connection was lost. The parameter what names the queue or exchange.
func refusalError(err error, what string) error {
	e, ok := errors.AsType[*amqp.Error](err)
	switch {
	case ok && e.Code == amqp.AccessRefused:
		return fault.New(fault.Denied, "RabbitMQ denies %s: %w", what, err)
	case ok && e.Code == amqp.PreconditionFailed:
		return fault.New(fault.Precondition, "RabbitMQ has %s with other properties: %w", what, err)
	case ok && e.Server && e.Recover: // without Recover, the error has also ended the connection
		return fault.New(fault.Precondition, "RabbitMQ refuses %s: %w", what, err)
	}
	return errNotSent
}
