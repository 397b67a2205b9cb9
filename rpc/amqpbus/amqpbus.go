// Package amqpbus is the bus over RabbitMQ, for services that run as separate
// processes.
//
//	bus, err := amqpbus.New(amqpbus.Config{URLs: []string{"amqp://user:pw@rabbit:5672/"}})
//	err = bus.Start(ctx)
//	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: backup.Interface, Host: "node-1"})
//
// The bus has one connection to publish and one to consume. The first message above 64 KiB opens a third connection, for large
// messages. The bus dials a lost connection again, and declares its queues and exchanges again before it uses them.
//
// The broker confirms every message. If no queue accepts a message, the broker returns it, and Publish fails with
// bus.ErrNoConsumer. The broker does not return a fanout. In the first 5 s after a connection was restored, the bus sends a
// returned message again instead, because other processes may still be restoring the connections of their consumers.
//
// The names and properties of the queues and exchanges are fixed:
//
//	Shared   <exchange>.<topic>   durable; a quorum queue with Config.Quorum
//	Live     <exchange>.<topic>   durable, x-expires 10 s
//	Private  <exchange>.<topic>   exclusive
//	fanout   <exchange>.<topic>   a durable fanout exchange
//
// When the subscription of a Shared topic ends, the bus publishes the prefetched messages again instead of requeuing them.
// RabbitMQ would mark a requeued message as redelivered, and the next server would count the mark as an attempt whose server was
// lost. With Config.Quorum, a few messages are still marked: those that RabbitMQ sends while the subscription ends.
//
// The id and the metadata of a message are AMQP headers in the format of watermill-amqp, or AMQP properties. docs/wire.md has
// the details.
package amqpbus

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/internal/outage"
	"github.com/armature-go/armature/internal/text"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/broker"
	"github.com/armature-go/armature/rpc/internal/life"
	"github.com/armature-go/armature/rpc/internal/names"
)

// Config configures a Bus.
type Config struct {
	// URLs are the URLs of the cluster's brokers: amqp:// or amqps:// with user, password, host, port and virtual host. The bus
	// tries them in random order. At least one is required. Logs and errors never contain the passwords.
	URLs []string
	// Exchange is the first part of the name of every queue and exchange, so
	// that several components can share a virtual host. Processes that exchange
	// messages need the same value. Default "armature".
	Exchange string
	// TLS is used for amqps URLs, see package tlsfile. Default: the system's certificate authorities. The broker's certificate
	// must have the host name of the URL, or TLS.ServerName if it is set.
	TLS *tls.Config
	// Channels is the number of channels that publish concurrently. Default 4.
	Channels int
	// Quorum declares the queues of Shared topics as quorum queues, which survive the
	// loss of one broker of the cluster. It does not change existing queues: an operator
	// must delete them first.
	Quorum bool
	// ConsumerTimeout is the consumer_timeout of the broker's configuration. The broker
	// requeues a message that is unacknowledged for this time. A server refuses
	// AtLeastOnce methods that may take longer. Default 30 min, the default of RabbitMQ.
	ConsumerTimeout time.Duration
	// ProbeEvery is the average time between two checks of a consumed queue. A check
	// declares the queue again. Default 10 s.
	ProbeEvery time.Duration
	// MaxMessage is the size of the largest message that Publish accepts, in bytes, see [bus.Message.Size]. A larger message
	// fails with bus.ErrTooLarge. A message above max_message_size of the broker's configuration also fails in this way; RabbitMQ
	// does not announce that limit. Default [bus.DefaultMaxMessage].
	MaxMessage int
	// MaxInFlight limits the unacknowledged messages of one subscription, in bytes. A delivered message counts with its
	// size. Each slot of the prefetch without a message counts as MaxMessage, because RabbitMQ may fill the slot at any time.
	// One message is always allowed. A server has four subscriptions. Default 128 MiB.
	MaxInFlight int
	// ConnectTimeout bounds Start, which tries each broker once. It also bounds how long Subscribe and
	// CreateTopic wait for a broker that cannot be reached. Default 10 s.
	ConnectTimeout time.Duration
	// Heartbeat is the timeout of the AMQP heartbeats, in whole seconds; New refuses other values. The bus uses the lower of this
	// value and RabbitMQ's value. Each side sends a heartbeat after half of the timeout without other traffic. The bus closes a
	// connection on which nothing arrives for one and a half times the timeout. A heartbeat parameter in a URL replaces
	// Heartbeat. Zero or negative: 10 s.
	Heartbeat time.Duration
	// Logger gets the events of the connections and queues. Default slog.Default().
	Logger *slog.Logger
}

// Bus is a [bus.Bus] over RabbitMQ. It can be a part of a service.App: it has Start, Stop and Check. It is safe for concurrent
// use.
type Bus struct {
	cfg        Config
	pub        *connector // to publish
	sub        *connector // to consume
	large      *connector // to publish large messages, see largeMessage; dialed for the first large message
	publishers []*publisher
	next       atomic.Uint64 // counts publications, so that the publishers are used in turn

	largeFrom  atomic.Int64  // the size of a payload, in bytes, above which a message is large
	largeOnce  sync.Once     // starts the connector large
	largeSlots chan struct{} // has a token for each large message that is being sent

	life *life.Life

	mu        sync.Mutex
	consumers map[*consumer]bool

	consuming outage.Group // logs which of the consumers fail
}

// New returns a bus that is not connected. Errors: Invalid, with the name of the wrong URL or option.
func New(cfg Config) (*Bus, error) {
	if err := broker.CheckURLs(cfg.URLs, "amqp", "amqps"); err != nil {
		return nil, fmt.Errorf("amqpbus: %w", err)
	}
	for _, u := range cfg.URLs {
		if _, err := amqp.ParseURI(u); err != nil {
			return nil, fault.New(fault.Invalid, "amqpbus: %s is not an AMQP URI", broker.Redacted(u))
		}
	}
	cfg.Exchange = cmp.Or(cfg.Exchange, "armature")
	if err := bus.CheckTopic(cfg.Exchange); err != nil {
		return nil, fmt.Errorf("amqpbus: exchange: %w", err)
	}
	cfg.MaxMessage = cmp.Or(max(cfg.MaxMessage, 0), bus.DefaultMaxMessage)
	cfg.MaxInFlight = cmp.Or(max(cfg.MaxInFlight, 0), 128<<20)
	cfg.Channels = cmp.Or(max(cfg.Channels, 0), 4)
	cfg.ConsumerTimeout = cmp.Or(max(cfg.ConsumerTimeout, 0), 30*time.Minute)
	cfg.ProbeEvery = cmp.Or(max(cfg.ProbeEvery, 0), 10*time.Second)
	cfg.ConnectTimeout = cmp.Or(max(cfg.ConnectTimeout, 0), 10*time.Second)
	cfg.Heartbeat = cmp.Or(max(cfg.Heartbeat, 0), 10*time.Second)
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	if cfg.Heartbeat%time.Second != 0 { // AMQP has no fractions, and amqp091 would use RabbitMQ's value instead of a value below a second
		return nil, fault.New(fault.Invalid, "amqpbus: heartbeat %v: AMQP has only whole seconds, use at least 1s", cfg.Heartbeat)
	}
	b := &Bus{cfg: cfg, life: life.New(), consumers: make(map[*consumer]bool), largeSlots: make(chan struct{}, maxLargeInFlight)}
	b.largeFrom.Store(largeMessage)
	b.pub, b.sub, b.large = newConnector("publish", cfg), newConnector("consume", cfg), newConnector("publish large messages", cfg)
	b.large.direct = true
	for range cfg.Channels {
		b.publishers = append(b.publishers, &publisher{link: b.pub, learn: b.learnLimit})
	}
	return b, nil
}

// Start connects to a broker. It tries each broker once, for at most ConnectTimeout in total. After an error Start may be called
// again. The error names the brokers, without passwords. Errors:
//
//   - Unavailable: no broker answers.
//   - Unauthenticated: the broker refuses user and password.
//   - Denied: the broker refuses the virtual host or the bus's certificate, or the bus does not trust
//     the broker's certificate.
//   - Precondition: only one side uses TLS, or the bus is started already.
//   - bus.ErrClosed: Close was called.
func (b *Bus) Start(ctx context.Context) error {
	begin := time.Now()
	return b.life.Start(ctx, b.cfg.ConnectTimeout, func(ctx context.Context) error {
		err := b.connect(ctx)
		if err == nil {
			return nil
		}
		return fault.New(dialCode(err), "connect to RabbitMQ at %s: gave up%s: %v",
			broker.Redacted(b.cfg.URLs...), text.After(time.Since(begin)), err)
	})
}

// connect opens both connections and starts the publishers. After an error no connection stays open.
func (b *Bus) connect(ctx context.Context) error {
	links, made := []*connector{b.pub, b.sub}, []connection{}
	closeAll := func() {
		for _, conn := range made {
			_ = conn.CloseDeadline(time.Now().Add(time.Second)) // an error has no effect: the connection is closed anyway
		}
	}
	for _, l := range links {
		conn, err := l.dial(ctx)
		if err != nil {
			closeAll()
			return err
		}
		made = append(made, conn)
	}
	for i, l := range links {
		up := l.State().Changed
		if !b.life.Go(func() { l.Run(b.life, &made[i]) }) { //nolint:contextcheck // the bus's own life
			closeAll()
			return bus.ErrClosed
		}
		<-up
	}
	for _, p := range b.publishers {
		b.life.Go(func() { p.keepChannelOpen(b.life) }) //nolint:contextcheck // as above
	}
	return nil
}

// Stop calls Close, and ignores the context.
func (b *Bus) Stop(context.Context) error { return b.Close() }

// Close ends the subscriptions and the connections, and waits for the goroutines of the bus. RabbitMQ
// requeues the unacknowledged messages. Close is idempotent and never fails.
func (b *Bus) Close() error {
	b.life.End()
	return nil
}

// Capabilities implements [bus.Bus]. Stats().Blocked is true while RabbitMQ accepts no messages because it lacks memory or disk
// space.
func (b *Bus) Capabilities() bus.Capabilities {
	return bus.Capabilities{
		MaxMessage: b.cfg.MaxMessage, MaxTopic: names.Max - len(b.queueName("")), ConsumerTimeout: b.cfg.ConsumerTimeout,
		NoConsumer: true, LiveTopics: true, Persistent: true, Stats: b.stats,
	}
}

// stats returns the value for Capabilities.Stats.
func (b *Bus) stats() (s bus.Stats) {
	s.Blocked = b.pub.State().Blocked != ""
	s.Reconnects = b.pub.Reconnects() + b.sub.Reconnects() + b.large.Reconnects()
	return s
}

// removeConsumer removes a consumer whose subscription has ended.
func (b *Bus) removeConsumer(c *consumer) {
	b.mu.Lock()
	delete(b.consumers, c)
	b.mu.Unlock()
	b.consuming.Forget(c)
}

// Check returns nil if both connections work and all queues of the subscriptions are consumed. Otherwise it
// returns Unavailable with the reason. It does not block.
func (b *Bus) Check(context.Context) error {
	if err := b.life.Usable(); err != nil {
		return err
	}
	for _, l := range []*connector{b.pub, b.sub} {
		if err := l.checkUp(); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.consumers {
		if err := c.checkUp(); err != nil {
			return err
		}
	}
	return nil
}

// checkTopic returns Invalid if RabbitMQ cannot have a queue for the topic.
func (b *Bus) checkTopic(topic string) error { return bus.CheckTopic(b.queueName(topic)) }

// checkMessage returns ErrClosed or ErrNotStarted if the bus cannot be used, and Invalid if RabbitMQ cannot carry
// the message.
func (b *Bus) checkMessage(topic string, m *bus.Message) error {
	err := cmp.Or(b.life.Usable(), b.checkTopic(topic), bus.CheckMessage(m, b.cfg.MaxMessage))
	if err == nil && m.ReplyTo != "" {
		err = b.checkTopic(m.ReplyTo)
	}
	return err
}

// Publish sends the message and waits for the broker's confirmation, see [bus.Bus]. If ctx has no deadline, Publish waits at
// most 60 s.
func (b *Bus) Publish(ctx context.Context, topic string, m *bus.Message) error {
	return b.publishError(topic, b.publish(ctx, topic, m))
}

func (b *Bus) publish(ctx context.Context, topic string, m *bus.Message) error {
	if err := b.checkMessage(topic, m); err != nil {
		return err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = withMaxWait(ctx)
		defer cancel()
	}
	return b.publishRetrying(ctx, b.newOutgoing(topic, m), nil)
}

// Send publishes the message and does not wait for the broker's confirmation, see [bus.Bus]. Send itself blocks while RabbitMQ
// cannot be reached or accepts no messages, and while the exchange of a fanout is declared: until ctx ends, at most 60 s. A large
// message (above 64 KiB) does not block Send. If the first attempt fails and the message may be sent again, the bus repeats it in
// the background, until ctx ends, at most 60 s more.
func (b *Bus) Send(ctx context.Context, topic string, m *bus.Message, done func(error)) {
	o := b.newOutgoing(topic, m)
	if err := b.checkMessage(topic, m); err != nil {
		done(b.publishError(topic, err))
		return
	}
	if b.isLarge(o) {
		if !b.life.Go(func() {
			ctx, cancel := withMaxWait(ctx)
			defer cancel()
			done(b.publishError(topic, b.publishRetrying(ctx, o, nil)))
		}) {
			done(b.publishError(topic, bus.ErrClosed))
		}
		return
	}
	o.done = func(err error) {
		if err == nil {
			done(nil)
			return
		}
		b.retrySend(ctx, topic, o, err, done)
	}
	if err := b.writeMessage(ctx, o); err != nil {
		b.retrySend(ctx, topic, o, err, done)
	}
}

// retrySend sends a message again, in a goroutine, if mayRetry allows it. The parameter err is the error of the first attempt.
func (b *Bus) retrySend(ctx context.Context, topic string, o *outgoing, err error, done func(error)) {
	if !b.mayRetry(o, err) || !b.life.Go(func() {
		ctx, cancel := withMaxWait(ctx)
		defer cancel()
		done(b.publishError(topic, b.publishRetrying(ctx, o, err)))
	}) {
		done(b.publishError(topic, err))
	}
}

// publishError adds the name of the queue or exchange to an error of a publication; nil stays nil.
func (b *Bus) publishError(topic string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("publish to %s: %w", b.queueName(topic), err)
}

// newOutgoing returns the message with its exchange and routing key.
func (b *Bus) newOutgoing(topic string, m *bus.Message) *outgoing {
	o := &outgoing{m: m, key: b.queueName(topic)}
	if m.Kind == bus.Fanout {
		o.exchange, o.key = o.key, ""
	}
	return o
}

// writeMessage writes a message to an AMQP channel. It first waits for an open channel, and returns the error of awaitChannel if
// that fails. After an error, o.done is not called.
func (b *Bus) writeMessage(ctx context.Context, o *outgoing) error {
	if b.life.Err() != nil {
		return bus.ErrClosed
	}
	if ctx.Err() != nil {
		return notSent(endOf(ctx))
	}
	c, err := b.awaitChannel(ctx)
	if err == nil && o.exchange != "" {
		err = c.declare(ctx, o.exchange)
	}
	if err != nil {
		return err
	}
	return c.send(o, b.marshal(o.m))
}

// mayRetry reports whether a message may be sent again after an attempt that ended with err. This is so in three cases:
//
//   - The message was certainly not sent.
//   - The outcome is unknown, and the message is delivered at least once.
//   - The topic had no consumer, and the connection was restored within grace. The other processes may still be
//     restoring their connections. A broker that was killed has lost the queues that were
//     declared shortly before; their consumers declare them again.
func (b *Bus) mayRetry(o *outgoing, err error) bool {
	return errors.Is(err, errNotSent) ||
		fault.CodeOf(err) == fault.Unknown && o.m.Persistent() ||
		errors.Is(err, bus.ErrNoConsumer) && b.pub.Restored(grace)
}

// publishRetrying sends o with back-off until an attempt succeeds, mayRetry forbids another attempt, or ctx ends. The parameter
// last is the error of an earlier attempt, or nil if there was no attempt.
func (b *Bus) publishRetrying(ctx context.Context, o *outgoing, last error) error {
	if last == nil {
		last = b.publishOnce(ctx, o)
	}
	err := broker.Attempts{
		Message: o.m, Backoff: backoff.Backoff{Min: minRetry, Max: maxRetry},
		MayRepeat: func(err error) bool { return ctx.Err() == nil && b.mayRetry(o, err) },
		Send:      func(error) error { return b.publishOnce(ctx, o) },
	}.Resend(ctx, last)
	if ctx.Err() != nil && errors.Is(err, errNotSent) {
		return notSent(endOf(ctx))
	}
	return err
}

// publishOnce makes one attempt to send a copy of o, and waits for the outcome.
func (b *Bus) publishOnce(ctx context.Context, o *outgoing) error {
	if b.isLarge(o) {
		return b.publishLargeOnce(ctx, o)
	}
	done := make(chan error, 1)
	attempt := &outgoing{m: o.m, exchange: o.exchange, key: o.key, awaited: true, done: func(err error) { done <- err }}
	if err := b.writeMessage(ctx, attempt); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fault.New(fault.Unknown, "RabbitMQ did not confirm the message in time: %w", endOf(ctx))
	}
}

// queueName returns the name of a topic's queue, or of its fanout exchange.
func (b *Bus) queueName(topic string) string { return b.cfg.Exchange + "." + topic }
