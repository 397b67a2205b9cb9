package amqpbus

import (
	"cmp"
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"sync/atomic"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
)

// RabbitMQ does not announce its size limit. It closes the channel on which a larger message is sent, and the unconfirmed
// messages of that channel are lost. So each large message has a channel of its own, on the connection for large messages: no
// other message fails with the large message or waits behind it. The large message is written from the memory of the caller,
// without a copy.
const (
	// largeMessage is the size of a payload, in bytes, above which a message is large. The bus lowers this size when a
	// refusal shows that RabbitMQ's limit is lower, see learnLimit.
	largeMessage = 64 << 10
	// maxLargeInFlight is the maximum number of large messages that are sent concurrently.
	maxLargeInFlight = 4
)

// isLarge reports whether the message has a channel of its own.
func (b *Bus) isLarge(o *outgoing) bool { return int64(len(o.m.Payload)) > b.largeFrom.Load() }

// publishLargeOnce makes one attempt to send a large message, and waits for the outcome.
func (b *Bus) publishLargeOnce(ctx context.Context, o *outgoing) error {
	select {
	case b.largeSlots <- struct{}{}:
	case <-ctx.Done():
		return notSent(endOf(ctx))
	case <-b.life.Done():
		return bus.ErrClosed
	}
	b.largeOnce.Do(func() { b.life.Go(func() { b.large.Run(b.life, nil) }) }) //nolint:contextcheck // the bus's own life
	done := make(chan error, 1)
	var decided atomic.Bool // set when the message is written, or certainly not sent
	if !b.life.Go(func() {
		defer func() { <-b.largeSlots }()
		waiting, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
		conn, err := b.large.get(waiting)
		switch {
		case err != nil:
			done <- cmp.Or(b.life.Usable(), notSent(cmp.Or(endOf(ctx), err)))
		case decided.CompareAndSwap(false, true):
			done <- b.publishAlone(conn.Connection, o)
		}
	}) {
		<-b.largeSlots
		return bus.ErrClosed
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		if decided.CompareAndSwap(false, true) {
			return notSent(endOf(ctx))
		}
		return fault.New(fault.Unknown, "RabbitMQ did not confirm the message in time: %w", endOf(ctx))
	}
}

// publishAlone sends one message on a separate channel, and waits for the outcome.
func (b *Bus) publishAlone(conn *amqp.Connection, o *outgoing) error {
	ch, err := conn.Channel()
	if err != nil {
		return channelError(err)
	}
	defer ch.Close() //nolint:errcheck // it may be closed already
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	returned := ch.NotifyReturn(make(chan amqp.Return, 1))
	if err := ch.Confirm(false); err != nil {
		return errNotSent
	}
	if o.exchange != "" {
		if err := ch.ExchangeDeclare(o.exchange, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
			return refusalError(err, "the exchange "+o.exchange)
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
			return bus.ErrNoConsumer
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

// sizeText is the text with which RabbitMQ refuses a message that is too large.
var sizeText = regexp.MustCompile(`message size (\d+)( is)? larger than (configured )?max size (\d+)`)

// sizeRefusal reports whether RabbitMQ closed a channel because a message was too large. The result size is the size of the
// payload, and limit is RabbitMQ's limit, both in bytes.
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

// findTooLarge finds the message that was too large among the unconfirmed messages of a lost channel. RabbitMQ has accepted
// none of the messages after it. The returned map has the errors of this message and of the messages after it. The map is nil
// if the channel was lost for another reason.
func (c *publishChannel) findTooLarge(unconfirmed []*outgoing) map[*outgoing]error {
	size, limit, ok := sizeRefusal(<-c.closed)
	if !ok {
		return nil
	}
	c.learn(limit)
	slices.SortFunc(unconfirmed, func(a, b *outgoing) int { return cmp.Compare(a.confirm.DeliveryTag, b.confirm.DeliveryTag) })
	failed := map[*outgoing]error{}
	found := false
	for _, o := range unconfirmed {
		switch {
		case o.confirm.Acked():
		case found:
			failed[o] = errNotSent
		case len(o.m.Payload) == size:
			found = true
			failed[o] = bus.TooLarge(size, limit)
		}
	}
	return failed
}

// learnLimit stores RabbitMQ's limit, so that messages above the limit count as large.
func (b *Bus) learnLimit(limit int) {
	for {
		old := b.largeFrom.Load()
		if int64(limit) >= old || b.largeFrom.CompareAndSwap(old, int64(limit)) {
			return
		}
	}
}
