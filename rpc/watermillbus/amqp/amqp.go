// Package amqp is a bus over RabbitMQ made of stock watermill-amqp (v3.0.2) alone, for programs that must reach
// RabbitMQ only through watermill-amqp. All other programs use rpc/amqpbus, which is faster and follows more rules
// of the bus contract.
//
//	bus, err := amqp.New(amqp.Config{URLs: []string{"amqp://user:pw@rabbit:5672/"}})
//	err = bus.Start(ctx)
//
// Package urlbus opens this bus for watermill-amqp:// URLs if the program registers the bus as below. Other programs do
// not link this package:
//
//	cfg.Schemes = map[string]urlbus.Opener{"watermill-amqp": func(at urlbus.Broker, cfg urlbus.Config) (urlbus.Bus, error) {
//		return amqp.New(amqp.Config{URLs: at.URLs, TLS: at.TLS, Exchange: cfg.Exchange, Quorum: cfg.Quorum, MaxMessage: cfg.MaxMessage, Logger: cfg.Logger})
//	}}
//
// The bus breaks the same rules of the bus contract as watermillbus does over RabbitMQ:
//
//   - A call to a server that is down waits instead of failing.
//   - A call stays with a busy server, although another server is idle.
//   - If a server stops before the handler of a message has begun, the message is treated as if its handler had begun and the server had died.
//
// The queues have the names and properties of amqpbus's queues, so both buses may use the same queues.
//
// The bus does not survive a lost connection, because watermill-amqp v3.0.2 publishes nothing after that. When a
// connection is lost, the bus ends: later calls fail at once with [ErrConnectionLost], Check fails, and Failed reports the
// loss. Then package service ends the process, and the supervisor starts the process again.
//
// Start logs a warning: calls to servers that are down or die get no error before their timeout, calls stay with busy servers, and a lost
// connection ends the bus.
package amqp

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/broker"
	"github.com/armature-go/armature/rpc/internal/names"
	"github.com/armature-go/armature/rpc/watermillbus"
)

// ErrConnectionLost means that the bus has lost its connection and does not connect again: restart the process. The
// message was not sent, unless the error has the code Unknown.
var ErrConnectionLost = fault.Sentinel(fault.Unavailable, "BusConnectionLost", "the connection of watermill-amqp was lost, restart the process")

// Config configures a Bus.
type Config struct {
	// URLs has the broker's URL: amqp:// or amqps://, with user, password, host, port and virtual host. Required. The
	// password does not appear in logs and errors. watermill-amqp connects to one broker, so New refuses several
	// URLs.
	URLs []string
	// Exchange is the first part of the name of every queue and exchange. Processes that exchange messages need the same
	// value. Default "armature".
	Exchange string
	// TLS is the configuration for amqps URLs. Nil: the system's certificate authorities.
	TLS *tls.Config
	// Quorum declares the queues of Shared topics as quorum queues, as amqpbus.Config.Quorum does.
	Quorum bool
	// MaxMessage is the size of the largest message that Publish accepts, in bytes. Default bus.DefaultMaxMessage.
	MaxMessage int
	// Lanes limits how many messages of a topic are handled at once. Each lane needs a channel. Default 16.
	Lanes int
	// Logger gets the events of the connections. Default slog.Default().
	Logger *slog.Logger
}

// Bus is a [bus.Bus]. It can be a part of a service.App: it has Start, Stop, Check and Failed. It is safe for concurrent
// use.
type Bus struct {
	cfg    Config
	failed chan error

	alive context.Context //nolint:containedctx // ends when a connection is lost or the bus is closed
	end   context.CancelCauseFunc

	mu     sync.Mutex
	inner  *watermillbus.Bus // nil before Start and after Close
	conns  []*amqp.ConnectionWrapper
	closed bool
}

// New returns a bus that is not connected. The error has code Invalid and says what is wrong with URLs or Exchange.
func New(cfg Config) (*Bus, error) {
	if err := broker.CheckURLs(cfg.URLs, "amqp", "amqps"); err != nil {
		return nil, fmt.Errorf("watermill-amqp: %w", err)
	}
	if n := len(cfg.URLs); n != 1 {
		return nil, fault.New(fault.Invalid, "watermill-amqp: %d brokers are given, but watermill-amqp connects to one: name one broker, or use rabbit://", n)
	}
	cfg.Exchange = cmp.Or(cfg.Exchange, "armature")
	if err := bus.CheckTopic(cfg.Exchange); err != nil {
		return nil, fmt.Errorf("watermill-amqp: exchange: %w", err)
	}
	if cfg.Lanes <= 0 {
		cfg.Lanes = 16
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	b := &Bus{cfg: cfg, failed: make(chan error, 1)}
	b.alive, b.end = context.WithCancelCause(context.Background())
	return b, nil
}

// Start connects to the broker, and logs a warning about the rules that the bus breaks. Errors: Unavailable if the broker does not
// answer, after which Start may be called again; Precondition if the bus is started already; bus.ErrClosed. Start ignores its context,
// because watermill-amqp connects without one. So Start blocks as long as watermill-amqp does.
func (b *Bus) Start(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return bus.ErrClosed
	case b.inner != nil:
		return fault.New(fault.Precondition, "start watermill-amqp: the bus is started already")
	}
	var made []*amqp.ConnectionWrapper
	var unused atomic.Bool // the start has failed, so the bus does not use the connections
	for range 2 {          // to publish and to consume
		c, err := amqp.NewConnection(amqp.ConnectionConfig{AmqpURI: b.cfg.URLs[0], TLSConfig: b.cfg.TLS}, watermill.NopLogger{})
		if err != nil {
			unused.Store(true)
			closeAll(made)
			return fault.New(fault.Unavailable, "connect to RabbitMQ at %s: %v", broker.Redacted(b.cfg.URLs[0]), err)
		}
		lost := c.Connection().NotifyClose(make(chan *amqp091.Error, 1))
		go b.awaitLoss(lost, &unused) // ends with the connection
		made = append(made, c)
	}
	inner, err := b.assemble(made[0], made[1])
	if err != nil {
		unused.Store(true)
		closeAll(made)
		return err
	}
	b.inner, b.conns = inner, made
	b.cfg.Logger.Warn("watermill-amqp started: no error for servers that are down or die, waiting calls stay with busy servers, a lost connection ends the bus")
	return nil
}

func closeAll(list []*amqp.ConnectionWrapper) {
	for _, c := range list {
		_ = c.Close() // never fails
	}
}

// assemble makes the inner bus from watermill-amqp publishers and subscribers.
func (b *Bus) assemble(publish, consume *amqp.ConnectionWrapper) (*watermillbus.Bus, error) {
	log := watermill.NopLogger{}
	queues, fanouts := b.config(amqp.NewDurableQueueConfig(b.cfg.URLs[0])), b.config(amqp.NewDurablePubSubConfig(b.cfg.URLs[0], nil))
	pub, err := amqp.NewPublisherWithConnection(queues, log, publish)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "open channels of RabbitMQ: %v", err)
	}
	fan, err := amqp.NewPublisherWithConnection(fanouts, log, publish)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "open channels of RabbitMQ: %v", err)
	}
	return watermillbus.New(watermillbus.Config{
		Publisher: pub, Fanout: fan,
		Subscriber: func(s bus.Subscription) (message.Subscriber, error) {
			c := queues
			switch s.Mode {
			case bus.Shared:
				if b.cfg.Quorum {
					c.Queue.Arguments = map[string]any{amqp091.QueueTypeArg: amqp091.QueueTypeQuorum}
				}
			case bus.Live:
				c.Queue.Arguments = map[string]any{"x-expires": int32(10_000)}
			case bus.Private:
				c.Queue.Durable, c.Queue.Exclusive = false, true
			}
			return amqp.NewSubscriberWithConnection(c, log, consume)
		},
		FanoutSubscriber: func(bus.Subscription) (message.Subscriber, error) {
			c := fanouts
			own := b.cfg.Exchange + "." + rand.Text()
			c.Queue.GenerateName = func(string) string { return own }
			c.Queue.Durable, c.Queue.Exclusive = false, true
			return amqp.NewSubscriberWithConnection(c, log, consume)
		},
		Redelivered: amqp.MetadataRedeliveredKey, Lanes: b.cfg.Lanes, MaxMessage: b.cfg.MaxMessage, Logger: b.cfg.Logger,
	})
}

// config sets the names of queues and exchanges, which are the names of amqpbus, and turns on publisher confirms.
func (b *Bus) config(c amqp.Config) amqp.Config {
	name := func(topic string) string { return b.cfg.Exchange + "." + topic }
	if c.Exchange.Type == "fanout" {
		c.Exchange.GenerateName = name
	} else {
		c.Queue.GenerateName, c.Publish.GenerateRoutingKey = name, name
	}
	c.Publish.ConfirmDelivery = true
	return c
}

// awaitLoss waits until a connection is lost, and then ends the bus. It does nothing if the bus itself has closed the connection.
func (b *Bus) awaitLoss(lost <-chan *amqp091.Error, unused *atomic.Bool) {
	reason := <-lost
	if unused.Load() || errors.Is(context.Cause(b.alive), bus.ErrClosed) {
		return
	}
	if reason == nil { // the connection was lost before NotifyClose was called
		reason = amqp091.ErrClosed
	}
	err := fmt.Errorf("%w: %w", ErrConnectionLost, reason)
	b.end(err)
	b.cfg.Logger.Error("connection to RabbitMQ lost, the process must be restarted", "error", reason)
	select {
	case b.failed <- err:
	default: // the other connection was lost before
	}
}

// Failed returns a channel that gets one error when a connection is lost. It is never closed.
func (b *Bus) Failed() <-chan error { return b.failed }

// Check returns nil while the bus works. Otherwise it returns bus.ErrNotStarted, bus.ErrClosed or ErrConnectionLost. It
// does not block.
func (b *Bus) Check(context.Context) error {
	_, err := b.usable()
	return err
}

// usable returns the inner bus, or the error that Check returns.
func (b *Bus) usable() (*watermillbus.Bus, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return nil, bus.ErrClosed
	case b.alive.Err() != nil:
		return nil, context.Cause(b.alive)
	case b.inner == nil:
		return nil, bus.ErrNotStarted
	}
	return b.inner, nil
}

// Publish implements [bus.Bus]. When the connection is lost, it fails with ErrConnectionLost.
func (b *Bus) Publish(ctx context.Context, topic string, m *bus.Message) error {
	inner, err := b.usable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.alive, cancel)() //nolint:contextcheck // the bus's own life
	return b.wrapLoss(inner.Publish(ctx, topic, m))
}

// wrapLoss adds ErrConnectionLost to err if the connection is lost. The code Unknown of a message that may have been sent
// stays.
func (b *Bus) wrapLoss(err error) error {
	switch {
	case err == nil || b.alive.Err() == nil:
		return err
	case bus.OutcomeOf(err) == bus.Unknown:
		return fault.New(fault.Unknown, "%v: %w", err, context.Cause(b.alive))
	default:
		return fmt.Errorf("%w: %w", context.Cause(b.alive), err)
	}
}

// Send implements [bus.Bus]. Errors: those of Publish.
func (b *Bus) Send(ctx context.Context, topic string, m *bus.Message, done func(error)) {
	inner, err := b.usable()
	if err != nil {
		done(err)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(b.alive, cancel) //nolint:contextcheck // the bus's own life
	inner.Send(ctx, topic, m, func(err error) {
		stop()
		cancel()
		done(b.wrapLoss(err))
	})
}

// Subscribe implements [bus.Bus]. The loss of the connection ends the subscription.
func (b *Bus) Subscribe(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error) {
	inner, err := b.usable()
	if err != nil {
		return nil, err
	}
	out, err := inner.Subscribe(ctx, s)
	return out, b.wrapLoss(err)
}

// CreateTopic implements [bus.Bus].
func (b *Bus) CreateTopic(ctx context.Context, topic string) error {
	inner, err := b.usable()
	if err != nil {
		return err
	}
	return b.wrapLoss(inner.CreateTopic(ctx, topic))
}

// Capabilities implements [bus.Bus]. Persistent is true, because the queues are durable.
func (b *Bus) Capabilities() bus.Capabilities {
	return bus.Capabilities{MaxMessage: cmp.Or(b.cfg.MaxMessage, bus.DefaultMaxMessage), MaxTopic: names.Max - len(b.cfg.Exchange) - len("."), Persistent: true}
}

// Stop calls Close, and ignores the context.
func (b *Bus) Stop(context.Context) error { return b.Close() }

// Close ends the subscriptions and the connections. It is idempotent. Its errors are those of [watermillbus.Bus.Close].
// After a lost connection Close returns nil at once, and closes in the background, because watermill-amqp may hang.
func (b *Bus) Close() error {
	b.mu.Lock()
	inner, conns := b.inner, b.conns
	b.closed, b.inner, b.conns = true, nil, nil
	b.mu.Unlock()
	b.end(bus.ErrClosed)
	if inner == nil {
		return nil
	}
	if errors.Is(context.Cause(b.alive), ErrConnectionLost) { // publishers and subscribers may hang forever
		go func() { _ = inner.Close(); closeAll(conns) }()
		return nil
	}
	err := inner.Close()
	closeAll(conns)
	return err
}
