package natsbus

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/broker"
)

const (
	// minResend is the delay before a message that was not accepted is sent again. The delay doubles after each further attempt, up
	// to maxResend, with jitter.
	minResend = 5 * time.Millisecond
	maxResend = 200 * time.Millisecond
	// publishTimeout bounds the sending of a message if the caller's context has no deadline.
	publishTimeout = time.Minute
	// attemptTimeout is how long a stored message waits for JetStream's answer before it is sent again. JetStream
	// recognizes the second message as a duplicate.
	attemptTimeout = 5 * time.Second
	// grace is the time after a connection was restored in which a missing subscriber counts as late: the subscriber may still be
	// restoring its connection.
	grace = 3 * time.Second
)

// outgoing is a message to be sent.
type outgoing struct {
	topic  string
	m      *bus.Message
	msg    *nats.Msg
	by     confirmation
	stored bool // JetStream stores the message, and recognizes duplicates of it

	sent    int       // number of attempts
	unknown bool      // an attempt has ended with Unknown: NATS may have the message
	began   time.Time // the start of the first attempt that ended with Unknown; while unknown is false, the start of the last attempt
}

// Publish sends the message and waits for its confirmation, see [bus.Bus]. If ctx has no deadline, Publish waits at most 60 s. A
// message above Config.MaxMessage or the server's max_payload fails with bus.ErrTooLarge, which has the code Invalid.
func (b *Bus) Publish(ctx context.Context, topic string, m *bus.Message) error {
	ctx, cancel := b.boundedContext(ctx)
	defer cancel()
	outcome := make(chan error, 1)
	b.send(ctx, topic, m, true, func(err error) { outcome <- err })
	return <-outcome
}

// Send sends the message and does not wait for its confirmation, see [bus.Bus].
func (b *Bus) Send(ctx context.Context, topic string, m *bus.Message, done func(error)) {
	b.send(ctx, topic, m, false, done)
}

func (b *Bus) send(ctx context.Context, topic string, m *bus.Message, waits bool, done func(error)) {
	end := func(err error) {
		if err != nil {
			err = fmt.Errorf("publish to %s.%s: %w", b.cfg.Exchange, topic, err)
		}
		done(err)
	}
	subject := b.subject(topic)
	if err := cmp.Or(b.life.Usable(), bus.CheckTopic(subject), bus.CheckMessage(m, b.maxMessage())); err != nil {
		end(err)
		return
	}
	o := &outgoing{topic: topic, m: m, msg: encodeMessage(subject, m), stored: m.Dead != nil || m.Durable && m.Kind != bus.Call}
	o.by = confirmedBy(o, waits)
	if o.stored { // each Publish has an id of its own: a message that is published again on purpose is not a duplicate
		o.msg.Header[jetstream.MsgIDHeader] = []string{m.ID + "/" + rand.Text()}
	}
	b.publishOnce(ctx, o, func(err error) {
		switch {
		case err == nil:
			end(nil)
		case b.life.Go(func() { end(b.resend(ctx, o, err)) }):
		case errors.Is(err, errRetry):
			end(bus.ErrClosed)
		default:
			end(err)
		}
	})
}

// confirmedBy returns the confirmation of a message. The parameter waits reports whether the sender waits for the outcome.
func confirmedBy(o *outgoing, waits bool) confirmation {
	switch k := o.m.Kind; {
	case o.stored:
		return byAnswer
	case k == bus.Fanout, k == bus.Reply, k == bus.Heartbeat, k == bus.Probe:
		if waits {
			return byBarrierNow
		}
		return byBarrier
	case k == bus.Call && !waits:
		return byReply
	default:
		return byAnswer
	}
}

// boundedContext returns a context that ends when ctx ends, when the bus is closed, or, if ctx has no deadline, after
// publishTimeout. At the end of the context, the attempts that use it end.
func (b *Bus) boundedContext(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := publishTimeout
	if end, ok := ctx.Deadline(); ok {
		limit = time.Until(end)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	stop := context.AfterFunc(b.life, cancel)
	expire := context.AfterFunc(ctx, func() {
		if s := b.link.State(); s.Epoch != nil {
			s.Conn.attempts.endExpired()
		}
	})
	return ctx, func() { expire(); stop(); cancel() }
}

// publishOnce makes one attempt to send a message. It calls done with the outcome.
func (b *Bus) publishOnce(ctx context.Context, o *outgoing, done func(error)) {
	o.sent++
	if !o.unknown {
		o.began = time.Now()
	}
	s := b.link.State()
	if s.Epoch == nil {
		done(errNoConnection)
		return
	}
	if !o.stored {
		s.Conn.attempts.start(ctx, o, done)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	s.Conn.attempts.start(ctx, o, func(err error) { cancel(); done(err) })
}

// resend sends a message with back-off until an attempt succeeds, mayResend forbids another attempt, or ctx ends. The parameter err
// is the outcome of the first attempt.
func (b *Bus) resend(ctx context.Context, o *outgoing, err error) error {
	ctx, cancel := b.boundedContext(ctx)
	defer cancel()
	outcome := make(chan error, 1)
	return broker.Attempts{
		Message: o.m, Backoff: backoff.Backoff{Min: minResend, Max: maxResend},
		MayRepeat: func(err error) bool { return b.mayResend(ctx, o, err) },
		Send: func(last error) error {
			_, _, _ = b.link.Get(ctx) // the error says only that ctx has ended, which is checked below
			switch {
			case b.life.Err() != nil:
				return bus.ErrClosed
			case ctx.Err() != nil:
				return fault.New(fault.CodeOf(ctx.Err()), "not sent: %v: %w", last, ctx.Err())
			}
			b.publishOnce(ctx, o, func(err error) { outcome <- err })
			return <-outcome
		},
	}.Resend(ctx, err)
}

// mayResend reports whether a message may be sent again after an attempt that ended with err. This is so in four cases:
//
//   - The message was certainly not accepted.
//   - The outcome is unknown, and JetStream still recognizes a duplicate of the message.
//   - The topic had no subscriber, and the connection was restored within grace.
//   - The stream of the topic exists and does not answer, because a cluster elects its leader.
func (b *Bus) mayResend(ctx context.Context, o *outgoing, err error) bool {
	switch bus.OutcomeOf(err) {
	case bus.Unknown:
		o.unknown = true
		return o.stored && time.Since(o.began) < dedupWindow-attemptTimeout // later, JetStream would store the message a second time
	case bus.Unroutable:
		if o.stored && !b.link.Restored(grace) {
			return b.electsLeader(ctx, o.topic)
		}
		return b.link.Restored(grace)
	default:
		return errors.Is(err, errRetry)
	}
}

// electsLeader reports whether the stream of a topic exists, or may exist. It is called when the stream does not answer.
func (b *Bus) electsLeader(ctx context.Context, topic string) bool {
	c, _, err := b.link.Get(ctx)
	if err == nil {
		if err = b.findOlder(ctx, c.js, b.subject(topic)); err == nil {
			_, err = c.js.Stream(ctx, b.streamName(b.subject(topic)))
		}
	}
	return !errors.Is(err, jetstream.ErrStreamNotFound)
}
