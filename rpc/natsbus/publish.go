package natsbus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/backoff"
)

const (
	// A message that was not taken is sent again after minResend, doubled after each further attempt up to
	// maxResend, with jitter.
	minResend = 5 * time.Millisecond
	maxResend = 200 * time.Millisecond
	// publishTime bounds the sending of a message whose context has no deadline.
	publishTime = time.Minute
	// attemptTime bounds how long a persistent message waits for JetStream's answer
	// before it is sent again. JetStream sees that it is the same.
	attemptTime = 5 * time.Second
	// grace is how long after a restored connection a topic without a subscriber may
	// only be late: the other processes have to restore theirs.
	grace = 3 * time.Second
	// sparedHeader is how many bytes are left for headers that the bus adds.
	sparedHeader = 512
)

// outgoing is a message to be sent.
type outgoing struct {
	topic  string
	m      *bus.Message
	msg    *nats.Msg
	by     confirmation
	sent   int  // how often, with the attempt under way
	stored bool // JetStream keeps it, and knows a second sending of it
}

// Publish sends the message and waits for its confirmation, see [bus.Bus]. A message that is larger than
// Config.MaxMessage or than the server takes (1 MiB with its metadata, unless it is configured otherwise) is Invalid.
func (b *Bus) Publish(ctx context.Context, topic string, m *bus.Message) error {
	o, err := b.outgoing(topic, m)
	if err == nil {
		err = b.persist(ctx, o, nil)
	}
	return b.wrap(topic, err)
}

// Send sends the message without waiting, see [bus.Bus].
func (b *Bus) Send(ctx context.Context, topic string, m *bus.Message, done func(error)) {
	o, err := b.outgoing(topic, m)
	if err != nil {
		done(b.wrap(topic, err))
		return
	}
	if o.by == byBarrierNow {
		o.by = byBarrier
	} else if m.Kind == bus.Call && !o.stored {
		o.by = byReply
	}
	again := func(last error) {
		if !b.life.Go(func() { done(b.wrap(topic, b.persist(ctx, o, last))) }) {
			done(b.wrap(topic, bus.ErrClosed))
		}
	}
	s := b.link.State()
	if s.Epoch == nil {
		again(errNoConnection)
		return
	}
	s.Conn.sends.start(ctx, o, func(err error) {
		if err == nil || !b.mayResend(o, err) {
			done(b.wrap(topic, err))
			return
		}
		again(err)
	})
}

func (b *Bus) wrap(topic string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("publish to %s.%s: %w", b.cfg.Exchange, topic, err)
}

// outgoing encodes a message. Errors: Invalid, ErrClosed, ErrNotStarted.
func (b *Bus) outgoing(topic string, m *bus.Message) (*outgoing, error) {
	if err := b.life.Usable(); err != nil {
		return nil, err
	}
	subject, err := b.subject(topic)
	if err != nil {
		return nil, err
	}
	o := &outgoing{topic: topic, m: m, msg: marshal(subject, m), sent: 1}
	if err := b.checkSize(o); err != nil {
		return nil, err
	}
	switch {
	case m.Dead != nil || m.Durable && m.Kind != bus.Call:
		o.stored = true
		// Its own for each Publish: a message that is published again on purpose is not a duplicate.
		o.msg.Header["Nats-Msg-Id"] = []string{m.ID + "/" + rand.Text()}
	case m.Kind == bus.Fanout, m.Kind == bus.Reply, m.Kind == bus.Heartbeat, m.Kind == bus.Probe:
		o.by = byBarrierNow
	}
	return o, nil
}

// checkSize returns Invalid if the message is larger than it may be, or than the server takes with its
// headers.
func (b *Bus) checkSize(o *outgoing) error {
	if err := bus.CheckMessage(o.m, b.maxMessage()); err != nil {
		return err
	}
	size := len("NATS/1.0\r\n\r\n") + len(o.msg.Data) + sparedHeader
	for k, vs := range o.msg.Header {
		for _, v := range vs {
			size += len(k) + len(v) + len(": \r\n")
		}
	}
	if limit := b.maxPayload.Load(); limit > 0 && int64(size) > limit {
		return bus.TooLarge(size, int(limit))
	}
	return nil
}

// mayResend reports whether a message may be sent again whose sending ended with err: certainly not sent, or to be
// stored at least once, or the topic had no subscriber just after the connection was restored.
func (b *Bus) mayResend(o *outgoing, err error) bool {
	return errors.Is(err, errAgain) || bus.OutcomeOf(err) == bus.Unroutable && b.link.Restored(grace) ||
		bus.OutcomeOf(err) == bus.Unknown && o.stored
}

// persist sends a message until that succeeds, fails for good or ctx ends. last is how an earlier attempt ended that may
// be repeated; nil if there was none.
func (b *Bus) persist(ctx context.Context, o *outgoing, last error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if _, ok := ctx.Deadline(); !ok {
		ctx, cancel = context.WithTimeout(ctx, publishTime)
		defer cancel()
	}
	defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
	var unknown error                         // of an attempt that may have arrived
	var since time.Time                       // when that began
	wait := backoff.Backoff{Min: minResend, Max: maxResend}
	for ; ; o.sent++ {
		begin := time.Now()
		if last == nil {
			if last = b.attempt(ctx, o); last == nil {
				return nil
			}
		}
		if bus.OutcomeOf(last) == bus.Unknown {
			if unknown == nil {
				since = begin
			}
			if unknown = last; !o.stored || time.Since(since) > dedupWindow-attemptTime {
				return last // sent again it could be a second message
			}
		}
		if !b.mayResend(o, last) {
			if unknown != nil {
				return unknown
			}
			return last
		}
		wait.Wait(ctx)
		switch {
		case ctx.Err() == nil:
		case unknown != nil:
			return unknown
		case b.life.Err() != nil:
			return bus.ErrClosed
		default:
			return fault.New(fault.CodeOf(ctx.Err()), "not sent: %v: %w", last, ctx.Err())
		}
		last = nil
	}
}

// attempt sends a message once and waits for the outcome. Without a connection it waits for one.
func (b *Bus) attempt(ctx context.Context, o *outgoing) error {
	c, _, err := b.link.Get(ctx)
	if err != nil {
		return errNoConnection
	}
	if o.stored {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, attemptTime)
		defer cancel()
	}
	outcome := make(chan error, 1)
	token := c.sends.start(ctx, o, func(err error) { outcome <- err })
	select {
	case err = <-outcome:
	case <-ctx.Done():
		if c.sends.drop(token) == nil {
			err = <-outcome // it came at the same moment
		} else {
			err = unanswered(ctx.Err())
		}
	}
	// No answer from a stream may mean that a cluster is electing its leader.
	if bus.OutcomeOf(err) == bus.Unroutable && o.stored {
		if _, serr := c.js.Stream(ctx, b.stream(o.topic)); !errors.Is(serr, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("%w: its stream does not answer", errAgain)
		}
	}
	return err
}
