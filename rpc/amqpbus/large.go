package amqpbus

import (
	"cmp"
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
)

// A message that is too large for RabbitMQ costs the channel that it is sent on, with all that is not
// confirmed there, and RabbitMQ does not announce its limit. So a large message has a channel of its own, on a
// connection for large messages: nothing else fails, or waits behind it, and it is written from the
// caller's memory, without a copy.
const (
	// largeMessage is the payload, in bytes, from which a message is large, until a refusal shows
	// that RabbitMQ's limit is lower.
	largeMessage = 64 << 10
	// largeTurns is how many large messages are on their way at once.
	largeTurns = 4
)

// isLarge reports whether the message has a channel of its own.
func (b *Bus) isLarge(o *outgoing) bool { return int64(len(o.m.Payload)) > b.largeFrom.Load() }

// attemptLarge sends a large message once and waits for the outcome.
func (b *Bus) attemptLarge(ctx context.Context, o *outgoing) error {
	select {
	case b.turns <- struct{}{}:
	case <-ctx.Done():
		return notSent(ctx.Err())
	case <-b.life.Done():
		return bus.ErrClosed
	}
	b.largeOnce.Do(func() { b.life.Go(func() { b.bulk.Run(b.life, nil) }) }) //nolint:contextcheck // the bus's own life
	done := make(chan error, 1)
	if !b.life.Go(func() {
		defer func() { <-b.turns }()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
		conn, err := b.bulk.get(ctx)
		if err != nil {
			done <- notSent(err)
			return
		}
		done <- b.publishAlone(conn, o)
	}) {
		<-b.turns
		return bus.ErrClosed
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fault.New(fault.Unknown, "RabbitMQ did not confirm the message before the end: %w", ctx.Err())
	}
}

// publishAlone sends one message on a channel of its own.
func (b *Bus) publishAlone(conn *amqp.Connection, o *outgoing) error {
	ch, err := conn.Channel()
	if err != nil {
		return errNotSent
	}
	defer ch.Close() //nolint:errcheck // it may be closed already
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	returned := ch.NotifyReturn(make(chan amqp.Return, 1))
	if err := ch.Confirm(false); err != nil {
		return errNotSent
	}
	if o.exchange != "" {
		if err := ch.ExchangeDeclare(o.exchange, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
			return refused(err, "exchange "+o.exchange)
		}
	}
	confirm, err := ch.PublishWithDeferredConfirm(o.exchange, o.key, o.exchange == "", false, b.marshal(o.m))
	if err != nil {
		if errors.Is(err, amqp.ErrClosed) {
			return errNotSent
		}
		return errLost
	}
	<-confirm.Done()
	if confirm.Acked() {
		select {
		case <-returned: // RabbitMQ sends it before the confirmation
			return unroutable(o)
		default:
			return nil
		}
	}
	if !ch.IsClosed() {
		return errRefused
	}
	if size, limit, ok := sizeRefusal(<-closed); ok {
		return bus.TooLarge(size, limit)
	}
	return errLost
}

// sizeText is how RabbitMQ refuses a message for its size.
var sizeText = regexp.MustCompile(`message size (\d+)( is)? larger than (configured )?max size (\d+)`)

// sizeRefusal reports whether a channel was closed because a message was too large, with the bytes of its
// payload and RabbitMQ's limit.
func sizeRefusal(e *amqp.Error) (size, limit int, ok bool) {
	if e == nil || e.Code != amqp.PreconditionFailed {
		return 0, 0, false
	}
	m := sizeText.FindStringSubmatch(e.Reason)
	if m == nil {
		return 0, 0, false
	}
	size, err1 := strconv.Atoi(m[1])
	limit, err2 := strconv.Atoi(m[4])
	return size, limit, err1 == nil && err2 == nil
}

// blame finds out which of the messages that a lost channel has left was too large. RabbitMQ has
// taken none of those that were sent after it. It returns why each failed that did.
func (c *outChannel) blame(left []*outgoing) map[*outgoing]error {
	size, limit, ok := sizeRefusal(<-c.closed)
	if !ok {
		return nil
	}
	c.learn(limit)
	slices.SortFunc(left, func(a, b *outgoing) int { return cmp.Compare(a.confirm.DeliveryTag, b.confirm.DeliveryTag) })
	why := map[*outgoing]error{}
	found := false
	for _, o := range left {
		switch {
		case o.confirm.Acked():
		case found:
			why[o] = errNotSent
		case len(o.m.Payload) == size:
			found = true
			why[o] = bus.TooLarge(size, limit)
		}
	}
	return why
}

// learnLimit makes messages large that may be above RabbitMQ's limit.
func (b *Bus) learnLimit(limit int) {
	for {
		old := b.largeFrom.Load()
		if int64(limit) >= old || b.largeFrom.CompareAndSwap(old, int64(limit)) {
			return
		}
	}
}
