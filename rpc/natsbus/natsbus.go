// Package natsbus is the bus over NATS, for services that run as separate
// processes.
//
//	bus, err := natsbus.New(natsbus.Config{URLs: []string{"nats://user:pw@nats:4222"}})
//	err = bus.Start(ctx)
//	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: backup.Interface, Host: "node-1"})
//
// The bus needs NATS 2.10 or newer with JetStream. JetStream stores the casts. Calls and replies are only in memory. The
// names and properties of the subjects and streams are fixed:
//
//	Shared   <exchange>.<topic>   a stream of that name with "~" for ".", and "~~t", "~~s" and
//	                              "~~b" for "~", "/" and "\": a work queue on file, with one
//	                              durable pull consumer, "work"
//	Live     <exchange>.<topic>   a queue group, "live"
//	Private  <exchange>.<topic>   a subscription
//	fanout   <exchange>.<topic>   a subscription for each subscriber
//
// The bus uses an existing stream as it is, so an operator can set its limits and replicas. A stored message survives the
// death of the NATS process. The message survives the death of the machine only if NATS has written it to the disk, or the
// stream has several replicas.
//
// A call is a request with a reply. A server without a free slot rejects a call after 50 ms, and the client sends the call
// again, to another server or to the same one. NATS reports at once that a topic has no subscriber. Differences from amqpbus:
//
//   - A Live topic ends with its last subscriber, even if that subscriber has only lost its connection.
//   - A call that waits at a server for a slot is lost when that server's process dies.
//   - Waiting calls are not handled in the order of their arrival.
//   - A message of a Shared topic that a dead process had received is redelivered after 10 s.
//
// ADR 24 has the reasons.
package natsbus

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

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/outage"
	"github.com/armature-go/armature/internal/text"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/broker"
	"github.com/armature-go/armature/rpc/internal/life"
	"github.com/armature-go/armature/rpc/internal/link"
	"github.com/armature-go/armature/rpc/internal/names"
)

// Config configures a Bus.
type Config struct {
	// URLs are the URLs of the cluster's servers: nats:// or tls:// with user, password, host and port. The bus tries them in
	// random order. At least one is required. Logs and errors never contain the passwords.
	URLs []string
	// Exchange is the first part of every subject, so that several components can share an account. Processes that exchange
	// messages need the same value. Default "armature".
	Exchange string
	// TLS is used for tls URLs, and for servers that require TLS, see package tlsfile. Default: the system's certificate
	// authorities. The server's certificate must have the host name of the URL, or TLS.ServerName if it is set.
	TLS *tls.Config
	// Replicas is the number of servers in a cluster that store a new Shared topic. It does not
	// change existing topics. Default 1.
	Replicas int
	// MaxMessage is the size of the largest message that Publish accepts, in bytes, see [bus.Message.Size]. If the server
	// announces a lower max_payload, the lower value is the limit. The max_payload of NATS is 1 MiB by default and includes
	// the headers. Default [bus.DefaultMaxMessage].
	MaxMessage int
	// MaxInFlight limits the messages of one subscription that are unacknowledged or wait for a handler, in bytes. A message
	// that JetStream may still send counts with the maximum size. One message is always allowed. At the limit, publishers
	// wait, and fanouts are dropped. A server has four subscriptions. Default 128 MiB.
	MaxInFlight int
	// ConnectTimeout bounds Start, which tries each server once. It also bounds how long Subscribe and
	// CreateTopic wait for a server that is down. Default 10 s.
	ConnectTimeout time.Duration
	// Logger gets the events of the connection and the streams. Default slog.Default().
	Logger *slog.Logger
}

// Bus is a [bus.Bus] over NATS. It can be a part of a service.App: it has Start, Stop and Check. It is safe for concurrent
// use.
type Bus struct {
	cfg  Config
	life *life.Life
	link *link.Link[*conn]

	olderStreams sync.Map // the names of streams that an older release has created, by subject

	maxPayload atomic.Int64 // the max_payload that the server announced, in bytes

	mu      sync.Mutex
	endLink func()   // closes the connection and waits for its end; nil before Start
	streams sync.Map // each *stream that is consumed

	consuming             outage.Group   // logs which of the streams fail
	dropLines, errorLines outage.Limiter // limit the lines of logAsyncError
}

// New returns a bus that is not connected. Errors: Invalid, with the name of the wrong URL or option.
func New(cfg Config) (*Bus, error) {
	if err := broker.CheckURLs(cfg.URLs, "nats", "tls"); err != nil {
		return nil, fmt.Errorf("natsbus: %w", err)
	}
	cfg.Exchange = cmp.Or(cfg.Exchange, "armature")
	if err := bus.CheckTopic(cfg.Exchange); err != nil {
		return nil, fmt.Errorf("natsbus: exchange: %w", err)
	}
	cfg.MaxMessage = cmp.Or(max(cfg.MaxMessage, 0), bus.DefaultMaxMessage)
	cfg.MaxInFlight = cmp.Or(max(cfg.MaxInFlight, 0), 128<<20)
	cfg.Replicas = max(cfg.Replicas, 1)
	cfg.ConnectTimeout = cmp.Or(max(cfg.ConnectTimeout, 0), 10*time.Second)
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	b := &Bus{cfg: cfg, life: life.New()}
	b.link = link.New(link.Config[*conn]{Dial: b.dial, Hold: b.watchConnection})
	return b, nil
}

// Start connects to a server. It tries each server once, for at most ConnectTimeout in total. After an error Start may be
// called again. The error names the servers, without passwords. Errors:
//
//   - Unavailable: no server answers.
//   - Unauthenticated: the server refuses user and password.
//   - Denied: the server refuses the bus's certificate, or the bus does not trust the server's
//     certificate.
//   - Precondition: TLS is required and the server does not offer it, the server has no JetStream, or
//     the bus is started already.
//   - bus.ErrClosed: Close was called.
func (b *Bus) Start(ctx context.Context) error {
	begin := time.Now()
	return b.life.Start(ctx, b.cfg.ConnectTimeout, func(ctx context.Context) error {
		c, err := b.dial(ctx)
		if err == nil {
			if _, err = c.js.AccountInfo(ctx); err == nil {
				b.warnOldServer(c.ConnectedServerVersion())
				b.runLink(c) //nolint:contextcheck // the connection outlives Start
				return nil
			}
			c.close()
		}
		return fault.New(startErrorCode(err), "connect to NATS at %s: gave up%s: %v",
			broker.Redacted(b.cfg.URLs...), text.After(time.Since(begin)), err)
	})
}

// runLink keeps the connection open until endLink is called. Close calls endLink after the subscriptions have ended, because
// the subscriptions still have to requeue their unacknowledged messages.
func (b *Bus) runLink(c *conn) {
	ctx, end := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	up := b.link.State().Changed
	wg.Go(func() { b.link.Run(ctx, &c) })
	<-up
	b.mu.Lock()
	defer b.mu.Unlock()
	b.endLink = func() { end(); wg.Wait() }
}

// warnOldServer logs a WARN if the server is older than NATS 2.10.
func (b *Bus) warnOldServer(version string) {
	var major, minor int
	if n, _ := fmt.Sscanf(version, "%d.%d", &major, &minor); n == 2 && (major < 2 || major == 2 && minor < 10) {
		b.cfg.Logger.Warn("NATS is older than 2.10, a deleted stream may not come back", "version", version, "minimum", "2.10")
	}
}

// startErrorCodes are the fault codes for errors of Start. All other errors are Unavailable.
var startErrorCodes = []struct {
	err  error
	code fault.Code
}{
	{nats.ErrAuthorization, fault.Unauthenticated},
	{nats.ErrAuthExpired, fault.Unauthenticated},
	{nats.ErrAuthRevoked, fault.Unauthenticated},
	{jetstream.ErrJetStreamNotEnabled, fault.Precondition},
	{jetstream.ErrJetStreamNotEnabledForAccount, fault.Precondition},
	{fault.Precondition, fault.Precondition},
	{fault.Denied, fault.Denied},
}

func startErrorCode(err error) fault.Code {
	for _, c := range startErrorCodes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return fault.Unavailable
}

// Stop calls Close, and ignores the context.
func (b *Bus) Stop(context.Context) error { return b.Close() }

// Close ends the subscriptions and the connection, and waits for the goroutines of the bus. Unacknowledged
// messages are requeued. Close is idempotent and never fails.
func (b *Bus) Close() error {
	b.life.End()
	b.mu.Lock()
	end := b.endLink
	b.mu.Unlock()
	if end != nil {
		end()
	}
	return nil
}

// Check returns nil if the bus is connected and consumes the Shared topics of all its subscriptions. Otherwise
// it returns Unavailable with the reason. It does not block.
func (b *Bus) Check(context.Context) error {
	if err := b.life.Usable(); err != nil {
		return err
	}
	if s := b.link.State(); s.Epoch == nil {
		return fault.New(fault.Unavailable, "the connection to NATS is lost: %v", s.Err)
	}
	for k := range b.streams.Range {
		if q, ok := k.(*stream); ok && q.consumeError() != nil {
			return fault.New(fault.Unavailable, "%s is not consumed: %w", q.subject, q.consumeError())
		}
	}
	return nil
}

// Capabilities implements [bus.Bus]. MaxMessage is Config.MaxMessage, or the server's max_payload if that is lower.
func (b *Bus) Capabilities() bus.Capabilities {
	return bus.Capabilities{
		MaxMessage: b.maxMessage(), MaxTopic: names.Max - len(b.cfg.Exchange) - 1, NoConsumer: true, LiveTopics: true, Persistent: true,
		Stats: func() bus.Stats { return bus.Stats{Reconnects: b.link.Reconnects()} },
	}
}

func (b *Bus) maxMessage() int {
	if n := b.maxPayload.Load(); n > 0 && n < int64(b.cfg.MaxMessage) {
		return int(n)
	}
	return b.cfg.MaxMessage
}

// subject returns the NATS subject of a topic.
func (b *Bus) subject(topic string) string { return b.cfg.Exchange + "." + topic }

// subscription is a *live, for a Live or Private topic, or a *stream, for a Shared topic.
type subscription interface {
	// open makes the subscription. Messages that are published after its return are not lost.
	open(ctx context.Context) error
	// consume delivers messages until ctx ends, and then closes the channel.
	consume(ctx context.Context)
}

// Subscribe consumes the topic until ctx ends, see [bus.Bus]. It waits at most
// Config.ConnectTimeout for a server that is down.
func (b *Bus) Subscribe(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error) {
	out, err := b.subscribe(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", b.subject(s.Topic), err)
	}
	return out, nil
}

func (b *Bus) subscribe(ctx context.Context, s bus.Subscription) (<-chan *bus.Delivery, error) {
	fanout := cmp.Or(s.Fanout, s.Topic)
	if err := cmp.Or(b.life.Usable(), bus.CheckTopic(b.subject(s.Topic)), bus.CheckTopic(b.subject(fanout))); err != nil {
		return nil, err
	}
	s.Slots = max(s.Slots, 1)
	sub, out := b.newSubscription(s)
	ctx, end := context.WithCancel(ctx)
	stop := context.AfterFunc(b.life, end) //nolint:contextcheck // the bus's own life
	attempt, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()
	err := sub.open(attempt)
	if err == nil && !b.life.Go(func() {
		defer end()
		defer stop()
		sub.consume(ctx)
	}) {
		err = bus.ErrClosed
	}
	if err != nil {
		end()
		return nil, err
	}
	return out, nil
}

func (b *Bus) newSubscription(s bus.Subscription) (subscription, <-chan *bus.Delivery) {
	if s.Mode != bus.Shared {
		l := &live{bus: b, s: s, out: make(chan *bus.Delivery), ended: make(chan struct{}), timer: time.NewTimer(minSlotWait)}
		return l, l.out
	}
	q := &stream{
		bus: b, subject: b.subject(s.Topic), slots: s.Slots, out: make(chan *bus.Delivery, s.Slots),
		changed: make(chan struct{}, 1), unacked: make(map[string]int),
	}
	return q, q.out
}
