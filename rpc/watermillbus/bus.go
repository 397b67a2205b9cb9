// Package watermillbus makes a bus.Bus of any watermill publishers and
// subscribers, such as those of watermill-amqp as it comes, for a broker that
// Armature has no bus of its own for.
//
//	bus, err := watermillbus.New(watermillbus.Config{
//		Publisher: queues,   // to one subscriber of a topic
//		Fanout:    fanouts,  // to all of them
//		Subscriber: func(s bus.Subscription) (message.Subscriber, error) { ... },
//		FanoutSubscriber: func(s bus.Subscription) (message.Subscriber, error) { ... },
//	})
//	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: backup.Interface, Host: "node-1"})
//
// It adds what the contract of bus.Bus asks for and watermill's does not: many
// messages at once, deadlines, durable messages sent until they arrive,
// subscriptions that are renewed, typed errors, and a Close that ends.
//
// What it cannot add are these rules of rpctest.TestBus, named as there, because
// a watermill publisher does not report that a topic has no consumer, a server cannot tell a
// subscriber that all slots are in use, and a subscriber gives back the messages that it has prefetched:
//
//   - noconsumer: a call or cast to a server that never was ends by its deadline,
//     or waits, instead of failing at once with ErrNoConsumer.
//   - gone: so does a call to a server that has left.
//   - busy: a call that a busy server has been sent waits for that one.
//   - restarts: what a stopping server had been sent and not begun counts as lost with a server.
//
// Four more limits have no rule there. For the same reason a call to a server whose process was killed ends by the
// heartbeat timeout, not with rpc.ErrServerLost. A publisher's error does not say
// whether the message was sent: it is Unknown unless Config.NotSent knows better.
// A subscriber does not say whether an acknowledgement went out: Ack
// never fails. What a publisher or subscriber loses, doubles or hangs on when
// its connection is cut stays so: watermill-amqp v3.0.2 with a channel pool
// publishes nothing more after a lost connection.
//
// Over RabbitMQ take amqpbus instead: it is faster, survives lost connections,
// and has none of these gaps; over NATS, natsbus.
package watermillbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/backoff"
)

// Config configures a Bus, which owns all it is given and opens, and closes it.
type Config struct {
	// Publisher publishes to one subscriber of a topic, and returns when the
	// broker has the message. Required.
	Publisher message.Publisher
	// Fanout publishes to everybody who has subscribed through
	// FanoutSubscriber. Nil: the Publisher.
	Fanout message.Publisher
	// Subscriber opens a subscriber of one topic, s.Topic, in the way that
	// s.Mode says. Its Subscribe is called up to s.Slots times for that topic;
	// each message must reach only one of them, and of all other processes'
	// subscribers of a Shared or Live topic. Required.
	Subscriber func(s bus.Subscription) (message.Subscriber, error)
	// FanoutSubscriber does the same for s.Fanout: those that one call of it
	// opened share a copy of each message, others get their own. Required.
	FanoutSubscriber func(s bus.Subscription) (message.Subscriber, error)
	// NotSent reports that an error of a publisher means that the message was
	// certainly not sent, such as that there is no connection: then it is tried
	// again until its deadline, not only if it is durable. Optional.
	NotSent func(error) bool
	// Redelivered is the metadata that the subscribers set on a message that
	// was delivered before. Empty: they tell nothing, and a message that kills
	// its servers is never given up.
	Redelivered string
	// Lanes bounds how often one subscriber's Subscribe is called, and so how
	// many messages of a topic are handled at once. Default 64.
	Lanes int
	// Sends is how many messages may be on their way at once. One that a
	// publisher never returns from counts for ever. Default 256.
	Sends int
	// MaxMessage is the largest message that Publish takes, in bytes, see [bus.Message.Size]. It must not be above what
	// the broker takes. Default [bus.DefaultMaxMessage].
	MaxMessage int
	// CloseTimeout bounds how long Close waits for parts that hang. Default 10 s.
	CloseTimeout time.Duration
	// Logger gets what goes wrong beneath. Default slog.Default().
	Logger *slog.Logger
}

const (
	// A publish or subscribe that failed is tried again after minPause, doubled
	// up to maxPause, with jitter.
	minPause = 20 * time.Millisecond
	maxPause = time.Second
	// settleTime is how long a subscriber may take to see that a message was
	// settled.
	settleTime = 50 * time.Millisecond
	// publishTime bounds the sending of a message without a deadline.
	publishTime = time.Minute
)

// Bus is a [bus.Bus] over watermill's parts. It is safe for concurrent use.
type Bus struct {
	cfg   Config
	sends chan struct{} // holds a token for each message on its way

	life  context.Context //nolint:containedctx // the bus's own life, ended by Close
	end   context.CancelFunc
	mu    sync.Mutex // guards the start of goroutines against Close
	wg    sync.WaitGroup
	close func() error
}

// New returns a bus. The error, with code Invalid, says which part is missing.
func New(cfg Config) (*Bus, error) {
	switch {
	case cfg.Publisher == nil:
		return nil, fault.New(fault.Invalid, "watermillbus: Publisher is required")
	case cfg.Subscriber == nil, cfg.FanoutSubscriber == nil:
		return nil, fault.New(fault.Invalid, "watermillbus: Subscriber and FanoutSubscriber are required")
	}
	if cfg.Lanes <= 0 {
		cfg.Lanes = 64
	}
	if cfg.Sends <= 0 {
		cfg.Sends = 256
	}
	if cfg.MaxMessage <= 0 {
		cfg.MaxMessage = bus.DefaultMaxMessage
	}
	if cfg.CloseTimeout <= 0 {
		cfg.CloseTimeout = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	b := &Bus{cfg: cfg, sends: make(chan struct{}, cfg.Sends)}
	b.life, b.end = context.WithCancel(context.Background())
	b.close = sync.OnceValue(b.shut)
	return b, nil
}

// Capabilities is that of [bus.Bus]. A watermill publisher does not report that a topic has no consumer, and does not
// say whether its broker keeps messages.
func (b *Bus) Capabilities() bus.Capabilities {
	return bus.Capabilities{MaxMessage: b.cfg.MaxMessage}
}

// Publish sends the message, see [bus.Bus]. The publishers
// take no context, so each message is sent by a goroutine of its own, which is left behind at the end of
// ctx, with Unknown. A persistent message that failed is sent again until then.
func (b *Bus) Publish(ctx context.Context, topic string, m *bus.Message) error {
	if err := b.publish(ctx, topic, m); err != nil {
		return fmt.Errorf("publish to %s: %w", topic, err)
	}
	return nil
}

// Send is Publish in a goroutine of its own, see [bus.Bus].
func (b *Bus) Send(ctx context.Context, topic string, m *bus.Message, done func(error)) {
	if !b.run(func() { done(b.Publish(ctx, topic, m)) }) {
		done(fmt.Errorf("publish to %s: %w", topic, bus.ErrClosed))
	}
}

func (b *Bus) publish(ctx context.Context, topic string, m *bus.Message) error {
	if err := cmp.Or(bus.CheckTopic(topic), bus.CheckMessage(m, b.cfg.MaxMessage)); err != nil {
		return err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, publishTime)
		defer cancel()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
	to := b.cfg.Publisher
	if b.cfg.Fanout != nil && m.Kind == bus.Fanout {
		to = b.cfg.Fanout
	}
	var unknown error // of an attempt that may have arrived
	wait := backoff.Backoff{Min: minPause, Max: maxPause}
	for {
		err := b.send(ctx, to, topic, m)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, bus.ErrNoConsumer): // a publisher that can tell
			return err
		case errors.Is(err, fault.Unknown):
			if unknown = err; !m.Persistent() {
				return err
			}
		case errors.Is(err, fault.Unavailable) && b.life.Err() == nil:
			// It was not sent, so that waiting is safe.
		case unknown != nil:
			return unknown
		case b.life.Err() != nil:
			return bus.ErrClosed
		default:
			return err
		}
		wait.Wait(ctx)
	}
}

// send publishes aside. Errors: Unknown; Unavailable and the context's code
// when it was certainly not sent; what the publisher says of the topic.
func (b *Bus) send(ctx context.Context, to message.Publisher, topic string, m *bus.Message) error {
	if err := ctx.Err(); err != nil {
		return fault.New(fault.CodeOf(err), "not sent: %w", err)
	}
	select {
	case b.sends <- struct{}{}:
	case <-ctx.Done():
		return fault.New(fault.CodeOf(ctx.Err()), "not sent, too many are on their way: %w", ctx.Err())
	}
	done := make(chan error, 1)
	out := message.NewMessageWithContext(ctx, m.ID, m.Payload)
	out.Metadata = maps.Collect(m.Metadata())
	if !b.run(func() {
		defer func() { <-b.sends }()
		done <- to.Publish(topic, out)
	}) {
		<-b.sends
		return bus.ErrClosed
	}
	select {
	case err := <-done:
		switch {
		case err == nil, errors.Is(err, bus.ErrNoConsumer):
			return err
		case b.cfg.NotSent != nil && b.cfg.NotSent(err):
			return fault.New(fault.Unavailable, "not sent: %w", err)
		default:
			return fault.New(fault.Unknown, "it may have been sent: %v", err)
		}
	case <-ctx.Done():
		return fault.New(fault.Unknown, "it may have been sent, the publisher has not returned: %w", ctx.Err())
	}
}

// run starts f unless the bus is closed.
func (b *Bus) run(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.life.Err() != nil {
		return false
	}
	b.wg.Go(f)
	return true
}

// CreateTopic makes a Shared topic, see [bus.Bus]: with the SubscribeInitialize of the subscriber, if it has one, else
// with a subscription that ends at once.
func (b *Bus) CreateTopic(ctx context.Context, topic string) error {
	if b.life.Err() != nil {
		return fmt.Errorf("make %s: %w", topic, bus.ErrClosed)
	}
	if err := bus.CheckTopic(topic); err != nil {
		return fmt.Errorf("make topic: %w", err)
	}
	s, err := b.cfg.Subscriber(bus.Subscription{Topic: topic, Slots: 1})
	if err != nil {
		return fault.New(fault.Unavailable, "make %s: %w", topic, err)
	}
	defer func() { _ = s.Close() }() // it has nothing to give back
	i, ok := s.(message.SubscribeInitializer)
	if !ok {
		return b.createBySubscribing(ctx, topic)
	}
	if err := i.SubscribeInitialize(topic); err != nil {
		return fault.New(fault.Unavailable, "make %s: %w", topic, err)
	}
	return nil
}

// createBySubscribing makes a Shared topic with a subscription that ends at once.
func (b *Bus) createBySubscribing(ctx context.Context, topic string) error {
	ctx, cancel := context.WithCancel(ctx)
	in, err := b.Subscribe(ctx, bus.Subscription{Topic: topic, Slots: 1})
	cancel()
	if err != nil {
		return err
	}
	for d := range in {
		_ = d.Nack() // never fails
	}
	return nil
}

// Close ends the subscriptions, closes the subscribers, waits for what is being
// published and closes the publishers. What was not settled is delivered again
// to others. It is idempotent. The error is that of a part, or says that parts
// still hang after CloseTimeout.
func (b *Bus) Close() error { return b.close() }

func (b *Bus) shut() error {
	b.mu.Lock()
	b.end()
	b.mu.Unlock()
	ended := make(chan error, 1)
	go func() {
		b.wg.Wait()
		err := b.cfg.Publisher.Close()
		if b.cfg.Fanout != nil {
			err = errors.Join(err, b.cfg.Fanout.Close())
		}
		ended <- err
	}()
	t := time.NewTimer(b.cfg.CloseTimeout)
	defer t.Stop()
	select {
	case err := <-ended:
		return err
	case <-t.C:
		return fault.New(fault.Timeout, "watermillbus: a publisher or subscriber does not end within %v", b.cfg.CloseTimeout)
	}
}
