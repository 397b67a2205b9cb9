// Package amqpbus is the bus over RabbitMQ, for services that run as separate
// processes.
//
//	bus, err := amqpbus.New(amqpbus.Config{URLs: []string{"amqp://user:pw@rabbit:5672/"}})
//	err = bus.Start(ctx)
//	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: backup.Interface, Host: "node-1"})
//
// It keeps two connections, one to publish and one to consume, and a third from the
// first message of more than 64 KiB. It dials them again when they are lost, and declares all it needs again before it goes on. Every
// message is confirmed by the broker and, unless it is a fanout, returned when
// no queue takes it: then the topic has no consumer. The message is sent again only in the 5 s
// after a connection was restored, in which the other processes restore theirs.
//
// The queues, whose properties are fixed:
//
//	Shared   <exchange>.<topic>   durable; a quorum queue with Config.Quorum
//	Live     <exchange>.<topic>   durable, x-expires 10 s
//	Private  <exchange>.<topic>   exclusive
//	fanout   <exchange>.<topic>   a durable fanout exchange
//
// When a subscription ends, messages of a Shared topic that RabbitMQ had sent ahead are published anew, so that they are not
// marked as redelivered and do not count as lost with a server. With Config.Quorum, RabbitMQ marks the few that
// it was just sending.
//
// A message's id and metadata are AMQP headers in the format of
// watermill-amqp; docs/wire.md has the details.
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
	"github.com/armature-go/armature/internal/outage"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/backoff"
	"github.com/armature-go/armature/rpc/internal/broker"
	"github.com/armature-go/armature/rpc/internal/life"
	"github.com/armature-go/armature/rpc/internal/names"
)

// Config configures a Bus.
type Config struct {
	// URLs are those of the cluster's brokers, amqp:// or amqps:// with user,
	// password, host, port and virtual host. They are tried in random order.
	// At least one is required. Passwords appear in no log and no error.
	URLs []string
	// Exchange is the first part of the name of every queue and exchange, so
	// that several components can share a virtual host. Default "armature".
	// Processes that talk to each other have the same.
	Exchange string
	// TLS is for amqps URLs, see package tlsfile. Default: the system's authorities. The server's
	// certificate must have the URL's host name, or TLS.ServerName if that is set.
	TLS *tls.Config
	// Channels is how many channels publish side by side. Default 4.
	Channels int
	// Quorum makes the queues of Shared topics quorum queues, which survive the
	// loss of a broker of the cluster. Queues that exist keep their type: they
	// must be deleted first.
	Quorum bool
	// ConsumerTimeout is the broker's consumer_timeout, after which it takes a
	// message that was not acknowledged away from its consumer. A server refuses
	// AtLeastOnce methods that may take longer. Default 30 min, as the broker's.
	ConsumerTimeout time.Duration
	// ProbeEvery is how often each queue is looked after, on average. Default
	// 10 s.
	ProbeEvery time.Duration
	// MaxMessage is the largest message that Publish takes, in bytes, see [bus.Message.Size]. A message above the
	// broker's own max_message_size, which RabbitMQ does not announce, fails with bus.ErrTooLarge, too.
	// Default [bus.DefaultMaxMessage].
	MaxMessage int
	// MaxInFlight is how many bytes of messages, each counted as it is and those that RabbitMQ may still send
	// as MaxMessage, one subscription may have unsettled. A server has four subscriptions. One message is always
	// allowed. Default 128 MiB.
	MaxInFlight int
	// ConnectTimeout bounds Start, which tries each broker once, and how long Subscribe waits for a
	// broker that is away. Default 10 s.
	ConnectTimeout time.Duration
	// Heartbeat is the interval at which a connection must show life; it is
	// taken for lost after twice that. Default 10 s.
	Heartbeat time.Duration
	// Logger gets what happens to the connections. Default slog.Default().
	Logger *slog.Logger
}

// Bus is a [bus.Bus] over RabbitMQ, and a service part. It is safe for
// concurrent use.
type Bus struct {
	cfg  Config
	pub  *connector
	sub  *connector
	bulk *connector // for large messages, see largeMessage; dialed by the first
	outs []*publisher
	next atomic.Uint64

	largeFrom atomic.Int64 // the payload above which a message is large
	largeOnce sync.Once    // starts bulk
	turns     chan struct{}

	life *life.Life

	mu        sync.Mutex
	consumers map[*consumer]bool

	consuming outage.Group // logs which of the consumers fail
}

// New returns a bus that is not connected. The error, with code Invalid, names
// the URL that is wrong.
func New(cfg Config) (*Bus, error) {
	if err := broker.CheckURLs(cfg.URLs, "amqp", "amqps"); err != nil {
		return nil, fmt.Errorf("amqpbus: %w", err)
	}
	for _, u := range cfg.URLs {
		if _, err := amqp.ParseURI(u); err != nil {
			return nil, fault.New(fault.Invalid, "amqpbus: %s is not an AMQP URI", broker.Redacted(u))
		}
	}
	if cfg.Exchange == "" {
		cfg.Exchange = "armature"
	}
	if err := bus.CheckTopic(cfg.Exchange); err != nil {
		return nil, fmt.Errorf("amqpbus: exchange: %w", err)
	}
	if cfg.MaxMessage <= 0 {
		cfg.MaxMessage = bus.DefaultMaxMessage
	}
	if cfg.MaxInFlight <= 0 {
		cfg.MaxInFlight = 128 << 20
	}
	if cfg.Channels <= 0 {
		cfg.Channels = 4
	}
	if cfg.ConsumerTimeout <= 0 {
		cfg.ConsumerTimeout = 30 * time.Minute
	}
	if cfg.ProbeEvery <= 0 {
		cfg.ProbeEvery = 10 * time.Second
	}
	if cfg.ConnectTimeout <= 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	if cfg.Heartbeat <= 0 {
		cfg.Heartbeat = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	b := &Bus{cfg: cfg, life: life.New(), consumers: make(map[*consumer]bool), turns: make(chan struct{}, largeTurns)}
	b.largeFrom.Store(largeMessage)
	b.pub, b.sub, b.bulk = newConnector("publish", cfg), newConnector("consume", cfg), newConnector("publish large messages", cfg)
	b.bulk.plain = true
	for range cfg.Channels {
		b.outs = append(b.outs, &publisher{link: b.pub, learn: b.learnLimit})
	}
	return b, nil
}

// Start connects: it tries each broker once, for at most ConnectTimeout in all. It may be called
// again after an error. Errors: Unavailable if no broker answers; Unauthenticated if the broker
// refuses the login; Denied if it refuses the virtual host, or its certificate is not trusted, or
// it does not take the bus's; Precondition if one side speaks TLS and the other does not, or if the
// bus is started already; bus.ErrClosed. The error names the brokers, without passwords.
func (b *Bus) Start(ctx context.Context) error {
	begin := time.Now()
	return b.life.Start(ctx, b.cfg.ConnectTimeout, func(ctx context.Context) error {
		err := b.connect(ctx)
		if err == nil {
			return nil
		}
		return fault.New(dialCode(err), "connect to RabbitMQ at %s: gave up after %v: %v",
			broker.Redacted(b.cfg.URLs...), time.Since(begin).Round(time.Millisecond), err)
	})
}

// connect makes both connections and starts what uses them, or leaves nothing.
func (b *Bus) connect(ctx context.Context) error {
	links, made := []*connector{b.pub, b.sub}, []connection{}
	end := func() {
		for _, conn := range made {
			_ = conn.CloseDeadline(time.Now().Add(time.Second)) // it ends either way
		}
	}
	for _, l := range links {
		conn, err := l.dial(ctx)
		if err != nil {
			end()
			return err
		}
		made = append(made, conn)
	}
	for i, l := range links {
		up := l.State().Changed
		if !b.life.Go(func() { l.Run(b.life, &made[i]) }) { //nolint:contextcheck // the bus's own life
			end()
			return bus.ErrClosed
		}
		<-up
	}
	for _, p := range b.outs {
		b.life.Go(func() { p.run(b.life) }) //nolint:contextcheck // as above
	}
	return nil
}

// Stop is Close, for use as a service part.
func (b *Bus) Stop(context.Context) error { return b.Close() }

// Close ends the subscriptions and the connections and waits for the bus's
// goroutines. What was not acknowledged goes back to its queue. It is
// idempotent and never fails.
func (b *Bus) Close() error {
	b.life.End()
	return nil
}

// Capabilities is that of [bus.Bus]. Stats reports RabbitMQ as blocked when it lacks memory or disk.
func (b *Bus) Capabilities() bus.Capabilities {
	return bus.Capabilities{
		MaxMessage: b.cfg.MaxMessage, MaxTopic: names.Max - len(b.name("")), ConsumerTimeout: b.cfg.ConsumerTimeout,
		NoConsumer: true, LiveTopics: true, Persistent: true, Stats: b.stats,
	}
}

func (b *Bus) stats() (s bus.Stats) {
	s.Blocked = b.pub.State().Blocked != ""
	s.Reconnects = b.pub.Reconnects() + b.sub.Reconnects()
	return s
}

func (b *Bus) drop(c *consumer) {
	b.mu.Lock()
	delete(b.consumers, c)
	b.mu.Unlock()
	b.consuming.Forget(c)
}

// Check returns nil if the bus is connected and all its queues are consumed, and
// Unavailable with what is wrong if not. It does not block.
func (b *Bus) Check(context.Context) error {
	if err := b.life.Usable(); err != nil {
		return err
	}
	for _, l := range []*connector{b.pub, b.sub} {
		if err := l.check(); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.consumers {
		if err := c.check(); err != nil {
			return err
		}
	}
	return nil
}

// checkTopic returns Invalid if the topic's queue cannot have its name.
func (b *Bus) checkTopic(topic string) error { return bus.CheckTopic(b.name(topic)) }

// checkMessage returns ErrClosed or ErrNotStarted if the bus cannot be used, and Invalid if RabbitMQ could not carry
// the message.
func (b *Bus) checkMessage(topic string, m *bus.Message) error {
	err := cmp.Or(b.life.Usable(), b.checkTopic(topic), bus.CheckMessage(m, b.cfg.MaxMessage))
	if err == nil && m.ReplyTo != "" {
		err = b.checkTopic(m.ReplyTo)
	}
	return err
}

// Publish sends the message and waits for its
// confirmation, see [bus.Bus].
func (b *Bus) Publish(ctx context.Context, topic string, m *bus.Message) error {
	return b.wrap(topic, b.publish(ctx, topic, m))
}

func (b *Bus) publish(ctx context.Context, topic string, m *bus.Message) error {
	if err := b.checkMessage(topic, m); err != nil {
		return err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Minute)
		defer cancel()
	}
	return b.persist(ctx, b.outgoing(topic, m), nil)
}

// Send publishes one message without waiting for its confirmation, see
// [bus.Bus]. A message whose context has no deadline waits 60 s for a broker
// that is away.
func (b *Bus) Send(ctx context.Context, topic string, m *bus.Message, done func(error)) {
	o := b.outgoing(topic, m)
	if err := b.checkMessage(topic, m); err != nil {
		done(b.wrap(topic, err))
		return
	}
	if b.isLarge(o) {
		if !b.life.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			done(b.wrap(topic, b.persist(ctx, o, nil)))
		}) {
			done(b.wrap(topic, bus.ErrClosed))
		}
		return
	}
	o.settled = func(err error) {
		if err == nil {
			done(nil)
			return
		}
		b.sendAgain(ctx, topic, o, err, done)
	}
	if err := b.write(ctx, o); err != nil {
		b.sendAgain(ctx, topic, o, err, done)
	}
}

// sendAgain sends a message again whose sending failed, if that is allowed.
func (b *Bus) sendAgain(ctx context.Context, topic string, o *outgoing, err error, done func(error)) {
	if !b.mayRepeat(o, err) || !b.life.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		done(b.wrap(topic, b.persist(ctx, o, err)))
	}) {
		done(b.wrap(topic, err))
	}
}

func (b *Bus) wrap(topic string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("publish to %s: %w", b.name(topic), err)
}

func (b *Bus) outgoing(topic string, m *bus.Message) *outgoing {
	o := &outgoing{m: m, key: b.name(topic)}
	if m.Kind == bus.Fanout {
		o.exchange, o.key = o.key, ""
	}
	return o
}

// write hands a message to the connection. It waits for one until ctx ends, or
// for a minute. If it fails, o.settled is not called.
func (b *Bus) write(ctx context.Context, o *outgoing) error {
	if b.life.Err() != nil {
		return bus.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return notSent(err)
	}
	c, err := b.channel(ctx)
	if err == nil && o.exchange != "" {
		err = c.declare(ctx, o.exchange)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return notSent(err)
	}
	if err != nil {
		return err
	}
	return c.send(o, b.marshal(o.m))
}

// mayRepeat reports whether a message whose sending ended with err may be sent
// again: certainly not sent, or to be delivered at least once, or the topic had no consumer
// just after the connection was restored. Then the other processes may still be about to
// restore theirs, and a broker that was killed has forgotten queues that were
// declared a moment before.
func (b *Bus) mayRepeat(o *outgoing, err error) bool {
	return errors.Is(err, errNotSent) ||
		fault.CodeOf(err) == fault.Unknown && o.m.Persistent() ||
		errors.Is(err, bus.ErrNoConsumer) && b.pub.Restored(grace)
}

// persist sends o until that succeeds, fails for good or ctx ends. last is how an
// earlier attempt ended that may be repeated, nil if there was none.
func (b *Bus) persist(ctx context.Context, o *outgoing, last error) error {
	var unknown error // an attempt that may have arrived
	wait := backoff.Backoff{Min: minRetry, Max: maxRetry}
	for {
		if last != nil {
			if fault.CodeOf(last) == fault.Unknown {
				unknown = last
			}
			wait.Wait(ctx)
		}
		last = b.attempt(ctx, o)
		switch {
		case last == nil:
			return nil
		case b.life.Err() != nil:
			return bus.ErrClosed
		case ctx.Err() != nil && unknown == nil && errors.Is(last, errNotSent):
			return notSent(ctx.Err())
		case ctx.Err() == nil && b.mayRepeat(o, last):
		case unknown != nil:
			return unknown
		default:
			return last
		}
	}
}

// attempt sends a copy of o once and waits for the outcome.
func (b *Bus) attempt(ctx context.Context, o *outgoing) error {
	if b.isLarge(o) {
		return b.attemptLarge(ctx, o)
	}
	done := make(chan error, 1)
	again := &outgoing{m: o.m, exchange: o.exchange, key: o.key, awaited: true, settled: func(err error) { done <- err }}
	if err := b.write(ctx, again); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fault.New(fault.Unknown, "RabbitMQ did not confirm the message before the end: %w", ctx.Err())
	}
}

func (b *Bus) name(topic string) string { return b.cfg.Exchange + "." + topic }
