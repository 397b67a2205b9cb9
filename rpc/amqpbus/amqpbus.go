// Package amqpbus is the bus over RabbitMQ, for services that run as separate
// processes.
//
//	bus, err := amqpbus.New(amqpbus.Config{URLs: []string{"amqp://user:pw@rabbit:5672/"}})
//	err = bus.Start(ctx)
//	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: backup.Interface, Host: "node-1"})
//
// It keeps two connections, one to publish and one to consume, dials them again
// when they are lost, and declares all it needs again before it goes on. Every
// message is confirmed by the broker and, unless it is a fanout, returned when
// no queue takes it.
//
// A Shared topic is a durable queue "<exchange>.<topic>", a Private one an
// exclusive queue of that name, an Each one a durable fanout exchange of that
// name with an exclusive queue for each subscriber. A message's UUID and
// metadata are AMQP headers in the format of watermill-amqp.
package amqpbus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
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
	// TLS is for amqps URLs. Default: the system's roots and the URL's host
	// name.
	TLS *tls.Config
	// Channels is how many channels publish side by side. Default 4.
	Channels int
	// ConnectTimeout bounds how long Start and Subscribe wait for a broker
	// that is away. Default 10 s.
	ConnectTimeout time.Duration
	// Heartbeat is the interval at which a connection must show life; it is
	// taken for lost after twice that. Default 10 s.
	Heartbeat time.Duration
	// Logger gets what happens to the connections. Default slog.Default().
	Logger *slog.Logger
}

// Bus is an [rpc.Bus] over RabbitMQ, and a service part. It is safe for
// concurrent use.
type Bus struct {
	cfg  Config
	pub  *link
	sub  *link
	outs []*publisher
	next atomic.Uint64

	life context.Context //nolint:containedctx // the bus's own life, ended by Close
	end  context.CancelFunc
	mu   sync.Mutex // guards started and the start of goroutines
	up   bool
	wg   sync.WaitGroup
}

// New returns a bus that is not connected. The error, with code Invalid, names
// the URL that is wrong.
func New(cfg Config) (*Bus, error) {
	if len(cfg.URLs) == 0 {
		return nil, fault.New(fault.Invalid, "amqpbus: no URL of a broker is given")
	}
	for i, u := range cfg.URLs {
		if err := check(u); err != nil {
			return nil, fault.New(fault.Invalid, "amqpbus: URL %d of %d: %w", i+1, len(cfg.URLs), err)
		}
	}
	if cfg.Exchange == "" {
		cfg.Exchange = "armature"
	}
	if cfg.Channels <= 0 {
		cfg.Channels = 4
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
	b := &Bus{cfg: cfg}
	b.life, b.end = context.WithCancel(context.Background())
	b.pub, b.sub = newLink("publish", cfg), newLink("consume", cfg)
	for range cfg.Channels {
		b.outs = append(b.outs, &publisher{link: b.pub})
	}
	return b, nil
}

// check says what is wrong with a URL, without its password.
func check(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return errors.New("it cannot be read; does the password have characters that must be percent-encoded?")
	}
	if u.Scheme != "amqp" && u.Scheme != "amqps" {
		return fmt.Errorf("scheme %q is neither amqp nor amqps in %s", u.Scheme, u.Redacted())
	}
	if u.Hostname() == "" {
		return fmt.Errorf("no host in %s", u.Redacted())
	}
	if _, err := amqp.ParseURI(raw); err != nil {
		return fmt.Errorf("%s is not an AMQP URI", u.Redacted())
	}
	return nil
}

// Start connects. If no broker answers within ConnectTimeout or before ctx ends
// it fails with Unavailable, and with Denied if the broker refuses the user;
// the error says what was tried and for how long.
func (b *Bus) Start(ctx context.Context) error {
	b.mu.Lock()
	if b.life.Err() != nil {
		b.mu.Unlock()
		return rpc.ErrClosed
	}
	if b.up {
		b.mu.Unlock()
		return fault.New(fault.Precondition, "amqpbus: started twice")
	}
	b.up = true
	for _, l := range []*link{b.pub, b.sub} {
		b.wg.Go(func() { l.run(b.life) })
	}
	b.mu.Unlock()

	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()
	for _, l := range []*link{b.pub, b.sub} {
		if err := l.first(ctx); err != nil {
			code, last := l.lastError()
			_ = b.Close() // never fails
			return fault.New(code, "connect to RabbitMQ at %s: gave up after %v: %v",
				redacted(b.cfg.URLs), time.Since(start).Round(time.Millisecond), last)
		}
	}
	return nil
}

// Stop is Close, for use as a service part.
func (b *Bus) Stop(context.Context) error { return b.Close() }

// Close ends the subscriptions and the connections and waits for the bus's
// goroutines. What was not acknowledged goes back to its queue. It is
// idempotent and never fails.
func (b *Bus) Close() error {
	b.mu.Lock()
	b.end()
	b.mu.Unlock()
	b.wg.Wait()
	return nil
}

// Check returns nil if the bus is connected, and Unavailable with what is wrong
// if not. It does not block.
func (b *Bus) Check(context.Context) error {
	for _, l := range []*link{b.pub, b.sub} {
		if err := l.check(); err != nil {
			return err
		}
	}
	return nil
}

// Publish sends the messages one after another and waits for each one's
// confirmation, see [rpc.Bus]. A message whose context has no deadline is tried
// for 60 s.
func (b *Bus) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		if err := b.publish(topic, m); err != nil {
			return fmt.Errorf("publish to %s: %w", b.name(topic), err)
		}
	}
	return nil
}

func (b *Bus) publish(topic string, m *message.Message) error {
	if b.life.Err() != nil {
		return rpc.ErrClosed
	}
	ctx := m.Context()
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Minute)
		defer cancel()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.life, cancel)()

	out := outgoing{id: m.UUID, key: b.name(topic), body: marshal(m)}
	if m.Metadata.Get(rpc.MetaKind) == rpc.KindFanout {
		out.exchange, out.key = out.key, ""
	}
	var unknown error // an attempt that may have arrived
	for wait := minRedial; ; wait = min(2*wait, maxRedial) {
		p := b.outs[b.next.Add(1)%uint64(len(b.outs))]
		err := p.send(ctx, out)
		switch {
		case err == nil:
			return nil
		case b.life.Err() != nil:
			return rpc.ErrClosed
		case errors.Is(err, errNotSent):
			// The connection was gone before: waiting is safe.
		case errors.Is(err, fault.Unknown) && out.body.DeliveryMode == amqp.Persistent:
			unknown = err // it may arrive twice, which at-least-once allows
		default:
			return err
		}
		t := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			if unknown != nil {
				return unknown
			}
			return fault.New(fault.CodeOf(ctx.Err()), "not sent, RabbitMQ was away for too long: %w", ctx.Err())
		}
	}
}

func (b *Bus) name(topic string) string { return b.cfg.Exchange + "." + topic }

func redacted(urls []string) string {
	out := make([]string, len(urls))
	for i, raw := range urls {
		if u, err := url.Parse(raw); err == nil {
			out[i] = u.Redacted()
		}
	}
	return strings.Join(out, ", ")
}
