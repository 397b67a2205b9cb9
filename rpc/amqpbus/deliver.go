package amqpbus

import (
	"context"
	"errors"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/rpc/bus"
)

// deliverUntilEnd delivers messages until the AMQP channel is closed, RabbitMQ cancels the consumer, a probe fails, or ctx ends. It
// returns the reason.
func (c *consumer) deliverUntilEnd(ctx context.Context, in *consumeChannel) error {
	probeErr := make(chan error, 1)
	c.helpers.Go(func() {
		c.probeQueue(in, probeErr)
		close(in.lost)
	})
	c.helpers.Go(func() {
		in.endReason = in.awaitEnd(ctx, probeErr)
		close(in.ended)
	})
	for {
		select {
		case d, ok := <-in.deliveries:
			switch {
			case ok:
				c.deliver(in, &d) //nolint:contextcheck // republish has a timeout of its own
			case !c.reopenWider(in):
				c.closeAfterAcks(in, false)
				return errChannel
			}
		case <-in.widenAt.C:
			if c.mayWiden(in) {
				c.cancelToWiden(in)
			}
		case <-in.ended:
			switch {
			case errors.Is(in.endReason, errEnded):
				c.endConsumer(in) //nolint:contextcheck // as above
			case !errors.Is(in.endReason, errChannel):
				c.bus.cfg.Logger.Warn("queue lost or changed, declaring it again", "queue", c.name, "error", in.endReason)
				c.closeAfterAcks(in, false)
			}
			return in.endReason
		}
	}
}

// deliver delivers one message to the subscriber, and waits until the subscriber has received it, or until the message is requeued
// or republished.
func (c *consumer) deliver(in *consumeChannel, d *amqp.Delivery) {
	in.last = d.DeliveryTag
	var ack bus.Acknowledger // stays nil for a Private queue, which needs no acknowledgements
	if c.mode != bus.Private {
		ack = in.acks.add(d.DeliveryTag, len(d.Body))
	}
	m := bus.NewDelivery(c.bus.unmarshal(d), d.Redelivered, ack)
	if c.receive != nil {
		c.receive(m)
	} else {
		c.deliverOrRequeue(in, m)
	}
	if c.mayWiden(in) && in.windowFull() {
		in.widenAt.Reset(widenSoon)
	}
}

// mayWiden reports whether the consumer may get a larger prefetch.
func (c *consumer) mayWiden(in *consumeChannel) bool {
	return c.mode == bus.Shared && in.prefetch < c.slots
}

// awaitEnd waits until the channel is closed, RabbitMQ cancels the consumer, a probe fails, or ctx ends. It returns the reason.
func (in *consumeChannel) awaitEnd(ctx context.Context, probeErr <-chan error) error {
	canceled := in.canceled
	for {
		select {
		case tag, ok := <-canceled:
			if ok && tag != "" {
				return errCanceled
			}
			canceled = nil
		case err := <-probeErr:
			return err
		case <-in.lost:
			return errChannel
		case <-ctx.Done():
			return errEnded
		}
	}
}

// deliverOrRequeue delivers a message. If the subscription ends first, deliverOrRequeue republishes a message of a Shared topic
// that is not marked as redelivered, and requeues every other message. It also requeues a message of a Live topic that gets no
// slot within slotWait.
func (c *consumer) deliverOrRequeue(in *consumeChannel, m *bus.Delivery) {
	select {
	case c.out <- m: // a slot is free
		in.requeued = 0
		return
	default:
	}
	var late <-chan time.Time
	if c.mode == bus.Live {
		in.timer.Reset(c.slotWait(in.requeued))
		late = in.timer.C
	}
	select {
	case c.out <- m:
		in.requeued = 0
		return
	case <-late:
		in.requeued++
	case <-in.ended:
		if c.mode == bus.Shared && errors.Is(in.endReason, errEnded) && !m.Redelivered && c.republish(m.Message) {
			_ = m.Ack() // after an error the message is redelivered, although it was republished
			return
		}
	}
	_ = m.Nack() // after an error the channel is lost, and RabbitMQ requeues the message
}

// endConsumer cancels the consumer at the end of the subscription. It republishes or requeues the messages that the subscriber has
// not received. The AMQP channel stays open until the received messages are acknowledged.
func (c *consumer) endConsumer(in *consumeChannel) {
	var rest []*amqp.Delivery
	collected := make(chan struct{})
	c.helpers.Go(func() {
		defer close(collected)
		for d := range in.deliveries { // closed by Cancel, or with the channel
			rest = append(rest, &d)
		}
	})
	in.callMu.Lock()
	_ = in.ch.Cancel(consumerTag, false) // after an error the channel is lost
	in.callMu.Unlock()
	<-collected
	var wg sync.WaitGroup
	for _, d := range rest {
		switch {
		case c.mode == bus.Private:
		case c.mode == bus.Shared && !d.Redelivered && !in.ch.IsClosed():
			wg.Go(func() {
				if c.republish(c.bus.unmarshal(d)) {
					_ = d.Ack(false) // after an error the message is redelivered, although it was republished
				} else {
					_ = d.Nack(false, true) // after an error the channel is lost, and RabbitMQ requeues the message
				}
			})
		default:
			_ = d.Nack(false, true) // as above
		}
	}
	wg.Wait()
	c.closeAfterAcks(in, true)
}

// republishTimeout is the timeout of republish.
const republishTimeout = 5 * time.Second

// republish publishes a message once more if no handler of this process has received it. It reports whether the caller should
// acknowledge the old delivery. The bus does not requeue such a message, because RabbitMQ would mark it as redelivered, and the
// next server would count the mark as the loss of this server. A message that already has the mark is requeued by the callers, so
// that the mark stays.
func (c *consumer) republish(m *bus.Message) bool {
	ctx, cancel := context.WithTimeout(c.bus.life, republishTimeout)
	defer cancel()
	err := c.bus.publishRetrying(ctx, &outgoing{m: m, key: c.name}, nil)
	return err == nil || bus.OutcomeOf(err) == bus.Unknown && !m.Persistent() // an at-most-once message may be lost, but must not be handled twice
}

// closeAfterAcks starts a goroutine that closes the channel when all its deliveries are acknowledged or requeued. If deleteLive is
// true, the goroutine also deletes the queue of a Live topic, unless the queue has another consumer or messages.
func (c *consumer) closeAfterAcks(in *consumeChannel, deleteLive bool) {
	in.acks.drain()
	c.helpers.Go(func() {
		select {
		case <-in.acks.drained:
			if c.mode == bus.Live && deleteLive {
				in.callMu.Lock()
				_, _ = in.ch.QueueDelete(c.name, true, true, false) // after an error the queue expires
				in.callMu.Unlock()
			}
		case <-in.lost:
		case <-c.bus.life.Done():
		}
		_ = in.ch.Close() // it may be closed already
	})
}
