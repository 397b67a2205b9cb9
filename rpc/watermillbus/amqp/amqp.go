// Package amqp is a bus over RabbitMQ that is made of stock watermill-amqp (v3.0.2) alone, for those who must not
// link another client of RabbitMQ. All others take rpc/amqpbus, which is faster and keeps more.
//
//	bus, err := amqp.New(amqp.Config{URL: "amqp://user:pw@rabbit:5672/"})
//	err = bus.Start(ctx)
//
// Package urlbus opens it for watermill-amqp:// if the program says so, and only such a program links it:
//
//	cfg.Schemes = map[string]urlbus.Opener{"watermill-amqp": func(url string, cfg urlbus.Config) (urlbus.Bus, error) {
//		return amqp.New(amqp.Config{URL: url, Exchange: cfg.Exchange, MaxMessage: cfg.MaxMessage, Logger: cfg.Logger})
//	}}
//
// It keeps the rules that watermillbus keeps, and has its gaps, of which Start warns in the log: a server that is away is
// not an error but a wait, a call does not leave a busy server, and a message that a stopping server had not begun counts as
// lost with a server. The queues have the names and properties of those of amqpbus, so both may share them.
//
// It does not survive a lost connection: watermill-amqp v3.0.2 publishes nothing after it. So the bus ends with the first
// connection that is lost: all that is called afterwards fails with [ErrConnectionLost] at once, Check fails, and
// Failed reports it, so that package service ends the process and its supervisor starts it again.
package amqp

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

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

// ErrConnectionLost means that the bus has lost its connection and does not get another one: start the process again. The message was
// not sent, unless the error has the code Unknown.
var ErrConnectionLost = fault.Sentinel(fault.Unavailable, "BusConnectionLost", "the connection of watermill-amqp was lost, which needs a new process")

// Config configures a Bus.
type Config struct {
	// URL is that of the broker, amqp://, amqps:// or watermill-amqp:// (which is amqp://) with user, password, host,
	// port and virtual host. Required. The password appears in no log and no error.
	URL string
	// Exchange is the first part of the name of every queue and exchange. Default "armature". Processes that talk to
	// each other have the same.
	Exchange string
	// TLS is for amqps URLs. Default: the system's authorities.
	TLS *tls.Config
	// MaxMessage is the largest message that Publish takes, in bytes. Default bus.DefaultMaxMessage.
	MaxMessage int
	// Lanes bounds how many messages of a topic are handled at once: each needs a channel. Default 16.
	Lanes int
	// Logger gets what happens to the connections. Default slog.Default().
	Logger *slog.Logger
}

// Bus is a [bus.Bus], and a service part that reports its failure. It is safe for concurrent use.
type Bus struct {
	cfg    Config
	failed chan error

	alive context.Context //nolint:containedctx // ends when a connection is lost or the bus is closed
	end   context.CancelCauseFunc

	mu     sync.Mutex
	on     *watermillbus.Bus // nil before Start
	conns  []*amqp.ConnectionWrapper
	closed bool
}

// New returns a bus that is not connected. The error, with code Invalid, says what is wrong with the URL.
func New(cfg Config) (*Bus, error) {
	if rest, ok := strings.CutPrefix(cfg.URL, "watermill-"); ok {
		cfg.URL = rest
	}
	if err := broker.CheckURLs([]string{cfg.URL}, "amqp", "amqps"); err != nil {
		return nil, fmt.Errorf("watermill-amqp: %w", err)
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

// Start connects, and warns of what the bus does not keep. It may be called again after an error: Unavailable if
// the broker does not answer, Precondition if the bus is started already, bus.ErrClosed. watermill-amqp takes no context, so
// Start blocks for as long as it does.
func (b *Bus) Start(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return bus.ErrClosed
	case b.on != nil:
		return fault.New(fault.Precondition, "watermill-amqp: started twice")
	}
	var made []*amqp.ConnectionWrapper
	for range 2 { // to publish and to consume
		c, err := amqp.NewConnection(amqp.ConnectionConfig{AmqpURI: b.cfg.URL, TLSConfig: b.cfg.TLS}, watermill.NopLogger{})
		if err != nil {
			closeAll(made)
			return fault.New(fault.Unavailable, "connect to RabbitMQ at %s: %v", broker.Redacted(b.cfg.URL), err)
		}
		lost := c.Connection().NotifyClose(make(chan *amqp091.Error, 1))
		go b.watch(lost) // ends with the connection
		made = append(made, c)
	}
	on, err := b.assemble(made[0], made[1])
	if err != nil {
		closeAll(made)
		return err
	}
	b.on, b.conns = on, made
	b.cfg.Logger.Warn("the bus is stock watermill-amqp: it does not report servers that are away, waiting calls stay with busy servers, and it ends with its connection")
	return nil
}

func closeAll(list []*amqp.ConnectionWrapper) {
	for _, c := range list {
		_ = c.Close() // never fails
	}
}

// assemble makes the bus of watermill-amqp's parts.
func (b *Bus) assemble(publish, consume *amqp.ConnectionWrapper) (*watermillbus.Bus, error) {
	log := watermill.NopLogger{}
	queues, fanouts := b.config(amqp.NewDurableQueueConfig(b.cfg.URL)), b.config(amqp.NewDurablePubSubConfig(b.cfg.URL, nil))
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

// config gives queues and exchanges the names of those of amqpbus, and publishers confirmations.
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

// watch ends the bus when a connection is lost.
func (b *Bus) watch(lost <-chan *amqp091.Error) {
	why := <-lost
	if why == nil { // Close has closed it
		return
	}
	err := fmt.Errorf("%w: %w", ErrConnectionLost, why)
	b.end(err)
	b.cfg.Logger.Error("lost the connection to RabbitMQ, the process has to be started again", "error", why)
	select {
	case b.failed <- err:
	default: // it was reported before
	}
}

// Failed gets one error when a connection was lost.
func (b *Bus) Failed() <-chan error { return b.failed }

// Check returns nil while the bus works, and why it does not: bus.ErrNotStarted, bus.ErrClosed or ErrConnectionLost.
func (b *Bus) Check(context.Context) error {
	_, err := b.usable()
	return err
}

func (b *Bus) usable() (*watermillbus.Bus, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return nil, bus.ErrClosed
	case b.alive.Err() != nil:
		return nil, context.Cause(b.alive)
	case b.on == nil:
		return nil, bus.ErrNotStarted
	}
	return b.on, nil
}

// Publish is that of [bus.Bus].
func (b *Bus) Publish(ctx context.Context, topic string, m *bus.Message) error {
	on, err := b.usable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.alive, cancel)() //nolint:contextcheck // the bus's own life
	return b.explain(on.Publish(ctx, topic, m))
}

// explain gives an error that the loss of the connection has caused its reason.
func (b *Bus) explain(err error) error {
	switch {
	case err == nil || b.alive.Err() == nil:
		return err
	case bus.OutcomeOf(err) == bus.Unknown:
		return fault.New(fault.Unknown, "%v: %w", err, context.Cause(b.alive))
	default:
		return fmt.Errorf("%w: %w", context.Cause(b.alive), err)
	}
}

// Send is that of [bus.Bus].
func (b *Bus) Send(ctx context.Context, topic string, m *bus.Message, done func(error)) {
	on, err := b.usable()
	if err != nil {
		done(err)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(b.alive, cancel) //nolint:contextcheck // the bus's own life
	on.Send(ctx, topic, m, func(err error) {
		stop()
		cancel()
		done(b.explain(err))
	})
}

// Subscribe is that of [bus.Bus]. The subscription ends with the connection.
func (b *Bus) Subscribe(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error) {
	on, err := b.usable()
	if err != nil {
		return nil, err
	}
	out, err := on.Subscribe(ctx, s)
	return out, b.explain(err)
}

// CreateTopic is that of [bus.Bus].
func (b *Bus) CreateTopic(ctx context.Context, topic string) error {
	on, err := b.usable()
	if err != nil {
		return err
	}
	return b.explain(on.CreateTopic(ctx, topic))
}

// Capabilities is that of [bus.Bus]. RabbitMQ keeps persistent messages.
func (b *Bus) Capabilities() bus.Capabilities {
	return bus.Capabilities{MaxMessage: cmp.Or(b.cfg.MaxMessage, bus.DefaultMaxMessage), MaxTopic: names.Max - len(b.cfg.Exchange) - len("."), Persistent: true}
}

// Stop is Close, for use as a service part.
func (b *Bus) Stop(context.Context) error { return b.Close() }

// Close ends the subscriptions and the connections. It is idempotent. The error says which part hangs.
func (b *Bus) Close() error {
	b.mu.Lock()
	on, conns := b.on, b.conns
	b.closed, b.on, b.conns = true, nil, nil
	b.mu.Unlock()
	b.end(bus.ErrClosed)
	if on == nil {
		return nil
	}
	if errors.Is(context.Cause(b.alive), ErrConnectionLost) { // parts may hang for ever
		go func() { _ = on.Close(); closeAll(conns) }()
		return nil
	}
	err := on.Close()
	closeAll(conns)
	return err
}
