package amqpbus

import (
	"context"
	"crypto/rand"
	"fmt"
	mrand "math/rand/v2"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
)

// Subscribe consumes the topic's queue until ctx ends, see [rpc.Bus]. It waits
// up to Config.ConnectTimeout for a broker that is away.
func (b *Bus) Subscribe(ctx context.Context, topic string, mode rpc.Mode, slots int) (<-chan *message.Message, error) {
	ctx, cancel := context.WithCancel(ctx)
	c := &consumer{
		bus: b, name: b.name(topic), mode: mode, slots: max(slots, 1),
		out: make(chan *message.Message), ready: make(chan error, 1),
	}
	b.mu.Lock()
	if b.life.Err() != nil || !b.up {
		b.mu.Unlock()
		cancel()
		return nil, fmt.Errorf("subscribe to %s: %w", c.name, rpc.ErrClosed)
	}
	b.wg.Go(func() {
		defer cancel()
		defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
		c.run(ctx)
	})
	b.mu.Unlock()
	wait, stop := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer stop()
	select {
	case err := <-c.ready:
		if err != nil {
			return nil, fmt.Errorf("subscribe to %s: %w", c.name, err)
		}
		return c.out, nil
	case <-wait.Done():
		cancel()
		return nil, fault.New(fault.Unavailable, "subscribe to %s: RabbitMQ did not answer in time: %w", c.name, wait.Err())
	}
}

// consumer is one subscription, over all the channels of its life.
type consumer struct {
	bus   *Bus
	name  string
	mode  rpc.Mode
	slots int
	out   chan *message.Message
	ready chan error // gets the outcome of the first attempt
	held  sync.WaitGroup
}

// run consumes until ctx ends. The first attempt decides whether Subscribe
// fails; later ones are repeated.
func (c *consumer) run(ctx context.Context) {
	defer c.held.Wait()
	defer close(c.out)
	first := true
	for wait := minRedial; ctx.Err() == nil; wait = min(2*wait, maxRedial) {
		conn, err := c.bus.sub.get(ctx)
		if err != nil {
			return
		}
		ch, deliveries, err := c.consume(conn)
		if err == nil {
			wait = minRedial
			if first {
				c.ready <- nil
			}
			first = false
			c.pump(ctx, ch, deliveries)
			continue
		}
		if first && !conn.IsClosed() {
			c.ready <- fault.New(fault.Precondition, "RabbitMQ refuses the queue: %w", err)
			return
		}
		c.bus.cfg.Logger.Warn("cannot consume, trying again", "queue", c.name, "error", err)
		pause(ctx, mrand.N(wait))
	}
}

// consume declares what the topic needs and starts to consume it.
func (c *consumer) consume(conn *amqp.Connection) (*amqp.Channel, <-chan amqp.Delivery, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, nil, err
	}
	queue, err := c.declare(ch)
	if err == nil {
		err = ch.Qos(c.slots, 0, false)
	}
	var deliveries <-chan amqp.Delivery
	if err == nil {
		deliveries, err = ch.Consume(queue, consumerTag, false, false, false, false, nil)
	}
	if err != nil {
		_ = ch.Close() // it is unusable either way
		return nil, nil, err
	}
	return ch, deliveries, nil
}

// declare makes sure that the topic exists, and returns the queue to consume.
func (c *consumer) declare(ch *amqp.Channel) (queue string, err error) {
	queue = c.name
	switch c.mode {
	case rpc.Shared:
		_, err = ch.QueueDeclare(queue, true, false, false, false, nil)
	case rpc.Private:
		_, err = ch.QueueDeclare(queue, false, true, true, false, nil)
	case rpc.Each:
		queue += "." + rand.Text()
		if err = ch.ExchangeDeclare(c.name, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
			return "", err
		}
		if _, err = ch.QueueDeclare(queue, false, true, true, false, nil); err == nil {
			err = ch.QueueBind(queue, "", c.name, false, nil)
		}
	}
	return queue, err
}

// consumerTag names the one consumer of a channel.
const consumerTag = "c"

// pump hands deliveries out until the channel is lost or ctx ends.
func (c *consumer) pump(ctx context.Context, ch *amqp.Channel, deliveries <-chan amqp.Delivery) {
	lost := make(chan struct{})
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	canceled := ch.NotifyCancel(make(chan string, 1))
	c.held.Go(func() {
		<-closed //nolint:errcheck // why does not matter: what is not settled comes again
		close(lost)
	})
	var held sync.WaitGroup // deliveries of this channel that are not settled
	for {
		select {
		case d, ok := <-deliveries:
			if !ok {
				c.retire(ch, &held)
				return
			}
			m := unmarshal(&d)
			select {
			case c.out <- m:
				held.Go(func() { c.settle(d, m, lost) })
			case <-lost: // it is delivered again
				return
			case <-ctx.Done():
				_ = d.Nack(false, true) // else the loss of the channel does it
			}
		case tag, ok := <-canceled:
			if ok && tag != "" {
				c.bus.cfg.Logger.Warn("RabbitMQ cancelled the consumer, declaring the queue again", "queue", c.name)
				c.retire(ch, &held)
				return
			}
			canceled = nil
		case <-lost:
			return
		case <-ctx.Done():
			c.finish(ch, deliveries, &held)
			return
		}
	}
}

// finish stops the consumer, gives back what nobody has received and leaves the
// channel open until what was received is settled.
func (c *consumer) finish(ch *amqp.Channel, deliveries <-chan amqp.Delivery, held *sync.WaitGroup) {
	c.held.Go(func() {
		for d := range deliveries { // closed by Cancel, or with the channel
			_ = d.Nack(false, true) // else the loss of the channel does it
		}
	})
	_ = ch.Cancel(consumerTag, false) // else the channel is lost already
	c.retire(ch, held)
}

// retire closes the channel when all its deliveries are settled.
func (c *consumer) retire(ch *amqp.Channel, held *sync.WaitGroup) {
	c.held.Go(func() {
		held.Wait()
		_ = ch.Close() // it may be closed already
	})
}

// settle tells the broker how a delivery ended.
func (c *consumer) settle(d amqp.Delivery, m *message.Message, lost <-chan struct{}) {
	var err error
	select {
	case <-m.Acked():
		err = d.Ack(false)
	case <-m.Nacked():
		err = d.Nack(false, true)
	case <-lost: // the broker delivers it again, to whom it likes
		return
	case <-c.bus.life.Done():
		return
	}
	if err != nil {
		c.bus.cfg.Logger.Debug("a message could not be settled and is delivered again", "queue", c.name, "id", m.UUID, "error", err)
	}
}
