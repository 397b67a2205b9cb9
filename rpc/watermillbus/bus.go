// Package watermillbus makes a bus.Bus from watermill publishers and subscribers,
// such as those of stock watermill-amqp. It is for brokers for which Armature has no
// bus of its own.
//
//	bus, err := watermillbus.New(watermillbus.Config{
//		Publisher: queues,   // publishes to one subscriber of a topic
//		Fanout:    fanouts,  // publishes to all subscribers
//		Subscriber: func(s bus.Subscription) (message.Subscriber, error) { ... },
//		FanoutSubscriber: func(s bus.Subscription) (message.Subscriber, error) { ... },
//	})
//	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: backup.Interface, Host: "node-1"})
//
// The bus adds what the contract of bus.Bus requires and watermill lacks:
//
//   - many messages at once, and deadlines
//   - repeated sending of persistent messages until they arrive
//   - renewal of subscriptions
//   - typed errors, and a Close that ends in bounded time
//
// The bus breaks these rules of rpctest.TestBus:
//
//   - noconsumer: a call to a server that never existed waits until its deadline, and
//     a cast waits in the topic; neither fails with ErrNoConsumer. A watermill
//     publisher does not report that a topic has no consumer.
//   - gone: for the same reason, a call to a server that has stopped waits until its
//     deadline.
//   - busy: a call that was sent to a busy server waits there, although another server
//     is idle. A server cannot tell a subscriber that all slots are in use.
//   - restarts: a subscriber requeues its prefetched messages by itself. So if a server stops after it has received a
//     message and before the handler has begun, this counts as the loss of a server that had the message. After 20 such
//     losses the message is dead-lettered.
//
// Four more limits have no rule in rpctest:
//
//   - A call to a server whose process was killed ends with the heartbeat timeout, not
//     with rpc.ErrServerLost.
//   - A publisher's error does not say whether the message was sent. So the error of Publish is Unknown, unless
//     Config.NotSent reports that the message was not sent.
//   - A subscriber does not report whether an acknowledgement was sent: Ack never fails.
//   - When a connection is cut, a publisher or subscriber of watermill may lose or duplicate messages, or hang. The bus
//     does not repair that. For example, watermill-amqp v3.0.2 with a channel pool publishes nothing after a lost
//     connection.
//
// Over RabbitMQ use amqpbus instead: it is faster, survives lost connections, and has
// none of these gaps. Over NATS use natsbus.
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
	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/rpc/bus"
)

// Config configures a Bus. The Bus owns the publishers, and the subscribers that it opens. Close closes
// both.
type Config struct {
	// Publisher publishes to one subscriber of a topic. Its Publish returns when the
	// broker has confirmed the message. Required.
	Publisher message.Publisher
	// Fanout publishes the messages of kind bus.Fanout, to all subscribers that FanoutSubscriber has opened. Nil:
	// Publisher publishes these messages, too.
	Fanout message.Publisher
	// Subscriber opens a subscriber for the topic s.Topic, with a queue that lasts as long as s.Mode requires, see
	// [bus.Mode]. The bus calls the subscriber's Subscribe once for each of s.Slots, but at most Lanes times. Each
	// message must reach exactly one of these subscriptions. If s.Mode is Shared or Live, each message must reach exactly
	// one of the subscriptions of all processes. Required.
	Subscriber func(s bus.Subscription) (message.Subscriber, error)
	// FanoutSubscriber opens a subscriber for the topic s.Fanout. The subscriptions of one subscriber share one copy of
	// each message; every other subscriber gets its own copy. Required.
	FanoutSubscriber func(s bus.Subscription) (message.Subscriber, error)
	// NotSent reports whether an error of a publisher means that the message was
	// certainly not sent, for example because the connection is lost. Then the bus
	// sends the message again until the context of Publish ends, even if the message is
	// not persistent. Nil: only persistent messages are sent again.
	NotSent func(error) bool
	// Redelivered is a key of the metadata. The subscribers set it, to any value that is not empty, on a message that was
	// delivered before. Empty: redeliveries cannot be detected, so a message that crashes each of its servers is never
	// dead-lettered.
	Redelivered string
	// Lanes is the maximum number of watermill subscriptions that one subscriber has. A watermill subscription delivers
	// one message at a time, so Lanes limits how many messages of one subscription are handled at once. Default 64.
	Lanes int
	// Sends is how many calls of the publishers may run at once. Further calls wait until one returns or their context
	// ends. A call that never returns is counted forever. Default 256.
	Sends int
	// MaxMessage is the size of the largest message that Publish accepts, in bytes, see [bus.Message.Size]. It must not
	// be greater than the broker's limit. Default [bus.DefaultMaxMessage].
	MaxMessage int
	// CloseTimeout bounds how long Close waits for the publishers and subscribers. Default 10 s.
	CloseTimeout time.Duration
	// Logger gets the failures that no error reports. Default slog.Default().
	Logger *slog.Logger
}

const (
	// minBackoff and maxBackoff bound the back-off, with jitter, before a failed publish or
	// subscribe is repeated.
	minBackoff = 20 * time.Millisecond
	maxBackoff = time.Second
	// ackNoticeDelay is the time in which a subscriber notices that a message was
	// acknowledged or rejected.
	ackNoticeDelay = 50 * time.Millisecond
	// publishTimeout bounds Publish if its context has no deadline.
	publishTimeout = time.Minute
)

// Bus is a [bus.Bus] over watermill publishers and subscribers. It is safe for concurrent use.
type Bus struct {
	cfg   Config
	sends chan struct{} // holds a token for each running call of a publisher

	life      context.Context    //nolint:containedctx // the bus's own life, ended by Close
	cancel    context.CancelFunc // ends life
	mu        sync.Mutex         // guards the start of goroutines against Close
	wg        sync.WaitGroup
	closeOnce func() error
}

// New returns a bus, ready for use. The error has code Invalid and names the required field that is missing.
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
	b.life, b.cancel = context.WithCancel(context.Background())
	b.closeOnce = sync.OnceValue(b.closeParts)
	return b, nil
}

// Capabilities implements [bus.Bus]. Only MaxMessage is declared: a watermill publisher reports neither that a topic has
// no consumer, nor whether its broker keeps messages over a restart.
func (b *Bus) Capabilities() bus.Capabilities {
	return bus.Capabilities{MaxMessage: b.cfg.MaxMessage}
}

// Publish sends the message, see [bus.Bus]. Watermill publishers have no context, so each call of a publisher has its own
// goroutine. If ctx ends while the publisher runs, Publish returns Unknown, and the goroutine runs on until the publisher
// returns. If the sending of a persistent message fails, the message is sent again until ctx ends.
//
// Errors: Unknown if the message may have been sent; Timeout or Canceled if it was certainly not sent before the end of
// ctx; Invalid if the topic or the message is not valid; bus.ErrClosed after Close; bus.ErrNoConsumer if the publisher
// reports it.
func (b *Bus) Publish(ctx context.Context, topic string, m *bus.Message) error {
	if err := b.publish(ctx, topic, m); err != nil {
		return fmt.Errorf("publish to %s: %w", topic, err)
	}
	return nil
}

// Send calls Publish in a separate goroutine, see [bus.Bus]. It never blocks. If the bus is closed, Send calls done
// before it returns.
func (b *Bus) Send(ctx context.Context, topic string, m *bus.Message, done func(error)) {
	if !b.spawn(func() { done(b.Publish(ctx, topic, m)) }) {
		done(fmt.Errorf("publish to %s: %w", topic, bus.ErrClosed))
	}
}

func (b *Bus) publish(ctx context.Context, topic string, m *bus.Message) error {
	if err := cmp.Or(bus.CheckTopic(topic), bus.CheckMessage(m, b.cfg.MaxMessage)); err != nil {
		return err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, publishTimeout)
		defer cancel()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
	to := b.cfg.Publisher
	if b.cfg.Fanout != nil && m.Kind == bus.Fanout {
		to = b.cfg.Fanout
	}
	var unknown error // the error of the last attempt whose message may have been sent
	delay := backoff.Backoff{Min: minBackoff, Max: maxBackoff}
	for {
		err := b.send(ctx, to, topic, m)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, bus.ErrNoConsumer): // some publishers report it
			return err
		case errors.Is(err, fault.Unknown):
			if unknown = err; !m.Persistent() {
				return err
			}
		case errors.Is(err, fault.Unavailable) && b.life.Err() == nil:
			// The message was not sent, so it may be sent again.
		case unknown != nil:
			return unknown
		case b.life.Err() != nil:
			return bus.ErrClosed
		default:
			return err
		}
		delay.Wait(ctx)
	}
}

// send calls the publisher once, in a goroutine. Errors: Unknown if the message may have been sent; Unavailable,
// Timeout, Canceled and ErrClosed if it was certainly not sent; ErrNoConsumer if the publisher reports it.
func (b *Bus) send(ctx context.Context, to message.Publisher, topic string, m *bus.Message) error {
	if err := ctx.Err(); err != nil {
		return fault.New(fault.CodeOf(err), "not sent: %w", err)
	}
	select {
	case b.sends <- struct{}{}:
	case <-ctx.Done():
		return fault.New(fault.CodeOf(ctx.Err()), "not sent, too many publishes are unconfirmed: %w", ctx.Err())
	}
	done := make(chan error, 1)
	out := message.NewMessageWithContext(ctx, m.ID, m.Payload)
	out.Metadata = maps.Collect(m.Metadata())
	if !b.spawn(func() {
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
			return fault.New(fault.Unknown, "the message may have been sent: %v", err)
		}
	case <-ctx.Done():
		return fault.New(fault.Unknown, "the message may have been sent, the publisher has not returned: %w", ctx.Err())
	}
}

// spawn runs f in a goroutine that Close waits for. It returns false, and does not run f, if the bus is closed.
func (b *Bus) spawn(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.life.Err() != nil {
		return false
	}
	b.wg.Go(f)
	return true
}

// CreateTopic makes a Shared topic, see [bus.Bus]. If the subscriber has the method SubscribeInitialize, CreateTopic calls
// it, which may block beyond the end of ctx. Otherwise CreateTopic subscribes, and ends the subscription at once. Errors:
// Invalid if the topic's name is not valid; Unavailable if the subscriber fails; bus.ErrClosed.
func (b *Bus) CreateTopic(ctx context.Context, topic string) error {
	if b.life.Err() != nil {
		return fmt.Errorf("create topic %s: %w", topic, bus.ErrClosed)
	}
	if err := bus.CheckTopic(topic); err != nil {
		return fmt.Errorf("create topic: %w", err)
	}
	s, err := b.cfg.Subscriber(bus.Subscription{Topic: topic, Slots: 1})
	if err != nil {
		return fault.New(fault.Unavailable, "create topic %s: %w", topic, err)
	}
	defer func() { _ = s.Close() }() // the error has no effect: the subscriber has received no messages
	i, ok := s.(message.SubscribeInitializer)
	if !ok {
		return b.createBySubscribing(ctx, topic)
	}
	if err := i.SubscribeInitialize(topic); err != nil {
		return fault.New(fault.Unavailable, "create topic %s: %w", topic, err)
	}
	return nil
}

// createBySubscribing makes a Shared topic by a subscription that it ends at once.
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

// Close ends the subscriptions, closes the subscribers, waits for the running calls of the publishers, and closes the
// publishers. Messages that were not acknowledged are delivered again to other subscribers. Close is idempotent. It
// returns the error of a publisher, or Timeout if a publisher or subscriber still hangs after Config.CloseTimeout.
func (b *Bus) Close() error { return b.closeOnce() }

func (b *Bus) closeParts() error {
	b.mu.Lock()
	b.cancel()
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
		return fault.New(fault.Timeout, "close watermillbus: a publisher or subscriber did not end within %v", b.cfg.CloseTimeout)
	}
}
