// Package natsbus is the bus over NATS, for services that run as separate
// processes.
//
//	bus, err := natsbus.New(natsbus.Config{URLs: []string{"nats://user:pw@nats:4222"}})
//	err = bus.Start(ctx)
//	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: backup.Interface, Host: "node-1"})
//
// What waits and must survive is kept by JetStream, which the server has to have
// switched on; calls and their replies go through memory alone. The subjects and
// streams, whose properties are fixed:
//
//	Shared   <exchange>.<topic>   a stream of that name with "~" for ".": a work
//	                              queue on file, with one durable pull consumer, "work"
//	Live     <exchange>.<topic>   a queue group, "live"
//	Private  <exchange>.<topic>   a subscription
//	fanout   <exchange>.<topic>   a subscription for each subscriber
//
// A stream that exists is used as it is, so that an operator may set its limits
// and replicas. A stored message survives the death of a server; that of the
// machine too, but for what it has not yet written to its disk, unless there are
// several replicas.
//
// Every message but a fanout is a request: JetStream answers it, or the
// subscriber's bus does, or NATS says at once that nobody is there. Differences
// to amqpbus: a Live topic is gone as soon as its last subscriber is, also when
// that one has only lost its connection. A Live message is in the memory of a
// subscriber's process from the moment that it is published; it is passed on to
// a sibling that has time, and lost with the process. A Shared message that a
// dead process had is delivered again after 10 s.
package natsbus

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/internal/backoff"
	"github.com/armature-go/armature/rpc/internal/broker"
	"github.com/armature-go/armature/rpc/internal/names"
	"github.com/armature-go/armature/tlsfile"
)

// Config configures a Bus.
type Config struct {
	// URLs are those of the cluster's servers, nats:// or tls:// with user,
	// password, host and port. They are tried in random order. At least one is
	// required. Passwords appear in no log and no error.
	URLs []string
	// Exchange is the first part of every subject, so that several components
	// can share an account. Default "armature". Processes that talk to each
	// other have the same.
	Exchange string
	// TLS is for tls URLs, and for servers that demand it, see package tlsfile. Default: the system's
	// authorities. The server's certificate must have the URL's host name, or TLS.ServerName if
	// that is set.
	TLS *tls.Config
	// Replicas is how many servers of a cluster keep each Shared topic that
	// does not exist yet. Default 1.
	Replicas int
	// MaxMessage is the largest message that Publish takes, in bytes, see [bus.Message.Size]. What the server announces
	// as max_payload counts if it is less: 1 MiB, headers included, unless it is configured otherwise.
	// Default [bus.DefaultMaxMessage].
	MaxMessage int
	// MaxInFlight is how many bytes of messages one subscription may hold, unsettled or waiting for a handler. Of
	// what JetStream may still send, each message counts as the largest. A server has four subscriptions. One message
	// is always allowed. A publisher waits, and a fanout is dropped, while there is no room. Default 128 MiB.
	MaxInFlight int
	// ConnectTimeout bounds Start, which tries each server once, and how long Subscribe waits for a
	// server that is away. Default 10 s.
	ConnectTimeout time.Duration
	// Logger gets what happens to the connection. Default slog.Default().
	Logger *slog.Logger
}

const (
	// The back-off between two attempts to publish is doubled from minPause to maxPause, that between two
	// attempts to connect is an eighth of the time since the connection was lost, with full jitter, so that a
	// cluster that comes back is not stormed.
	minPause = 20 * time.Millisecond
	maxPause = time.Second
	// dialTime bounds one attempt on one server, the handshakes included.
	dialTime = 5 * time.Second
	// pingEvery is how often a silent connection is tried; it is taken for lost
	// when two answers are missing.
	pingEvery = 5 * time.Second
	// grace is how long after a restored connection a topic without anybody may
	// only be late: the others have to restore theirs.
	grace = 3 * time.Second
	// publishTime bounds the sending of a message without a deadline.
	publishTime = time.Minute
	// maxSends bounds how many messages are on their way that nobody waits for.
	maxSends = 1024
)

// Bus is a [bus.Bus] over NATS, and a service part. It is safe for concurrent
// use.
type Bus struct {
	cfg   Config
	sends chan struct{} // holds a token for each message of Send

	life  context.Context //nolint:containedctx // the bus's own life, ended by Close
	end   context.CancelFunc
	wg    sync.WaitGroup
	close func()

	mu      sync.Mutex // guards all below, and the start of goroutines
	state   int        // idle, starting or started
	conn    *nats.Conn
	js      jetstream.JetStream
	epoch   context.Context    //nolint:containedctx // the life of one connection; nil while there is none
	lose    context.CancelFunc // ends epoch
	changed chan struct{}      // closed, and replaced, when epoch changes
	back    time.Time          // when the connection was last restored
	last    error              // why there is none
	queues  map[*queue]bool
}

// The states of a Bus that is not closed.
const (
	idle = iota
	starting
	started
)

// New returns a bus that is not connected. The error, with code Invalid, names
// the URL that is wrong.
func New(cfg Config) (*Bus, error) {
	if err := broker.CheckURLs(cfg.URLs, "nats", "tls"); err != nil {
		return nil, fmt.Errorf("natsbus: %w", err)
	}
	if cfg.Exchange == "" {
		cfg.Exchange = "armature"
	}
	if err := bus.CheckTopic(cfg.Exchange); err != nil {
		return nil, fmt.Errorf("natsbus: exchange: %w", err)
	}
	if cfg.MaxMessage <= 0 {
		cfg.MaxMessage = bus.DefaultMaxMessage
	}
	if cfg.MaxInFlight <= 0 {
		cfg.MaxInFlight = 128 << 20
	}
	if cfg.Replicas <= 0 {
		cfg.Replicas = 1
	}
	if cfg.ConnectTimeout <= 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	b := &Bus{
		cfg: cfg, sends: make(chan struct{}, maxSends), changed: make(chan struct{}),
		queues: make(map[*queue]bool), last: errors.New("it was never made"),
	}
	b.life, b.end = context.WithCancel(context.Background())
	b.close = sync.OnceFunc(b.shut)
	return b, nil
}

// Start connects: it tries each server once, for at most ConnectTimeout in all. It may be called
// again after an error. Errors: Unavailable if no server answers; Unauthenticated if the server
// refuses the login; Denied if its certificate is not trusted, or it does not take the bus's;
// Precondition if TLS is asked for and the server has none, if the server has no JetStream, or if
// the bus is started already; bus.ErrClosed. The error names the servers, without passwords.
func (b *Bus) Start(ctx context.Context) error {
	b.mu.Lock()
	state := b.state
	if b.life.Err() == nil && state == idle {
		b.state = starting
		b.wg.Add(1) // Close waits for the end of Start
		defer b.wg.Done()
	}
	b.mu.Unlock()
	switch {
	case b.life.Err() != nil:
		return bus.ErrClosed
	case state != idle:
		return fault.New(fault.Precondition, "natsbus: started twice")
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()
	defer context.AfterFunc(b.life, cancel)() //nolint:contextcheck // the bus's own life
	err := b.connect(ctx)
	if err == nil {
		err = b.jetstream(ctx)
	}
	b.mu.Lock()
	switch {
	case b.life.Err() != nil: // Close closes the connection
		err = bus.ErrClosed
	case err == nil:
		b.state = started
	}
	b.mu.Unlock()
	if err == nil || errors.Is(err, bus.ErrClosed) {
		return err
	}
	b.disconnect()
	b.mu.Lock()
	b.state, b.conn, b.js = idle, nil, nil
	b.mu.Unlock()
	return fault.New(startCode(err), "connect to NATS at %s: gave up after %v: %v",
		broker.Redacted(b.cfg.URLs...), time.Since(begin).Round(time.Millisecond), err)
}

// connect tries each server once.
func (b *Bus) connect(ctx context.Context) error {
	dial := &dialer{life: b.life, first: ctx}
	defer dial.connected()
	opts := nats.GetDefaultOptions()
	opts.Servers = b.cfg.URLs
	opts.Name = b.cfg.Exchange
	opts.Timeout = dialTime
	opts.CustomDialer = dial
	opts.MaxReconnect = -1
	opts.IgnoreAuthErrorAbort = true
	var lost time.Time
	opts.CustomReconnectDelayCB = func(n int) time.Duration { // called by one goroutine
		if n <= 1 {
			lost = time.Now()
		}
		return backoff.Redial(lost, minPause, maxPause)
	}
	opts.ReconnectBufSize = -1 // what cannot be sent now fails now
	opts.PingInterval, opts.MaxPingsOut = pingEvery, 2
	opts.DisconnectedErrCB = func(_ *nats.Conn, err error) { b.lost(err) }
	opts.ReconnectedCB = func(*nats.Conn) { b.restored() }
	opts.AsyncErrorCB = func(_ *nats.Conn, s *nats.Subscription, err error) {
		subject := ""
		if s != nil {
			subject = s.Subject
		}
		b.cfg.Logger.Warn("NATS reports an error", "subject", subject, "error", err)
	}
	opts.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if b.cfg.TLS != nil {
		opts.TLSConfig = b.cfg.TLS.Clone()
	}
	opts.Secure = slices.ContainsFunc(b.cfg.URLs, func(u string) bool { return strings.HasPrefix(u, "tls:") })
	conn, err := opts.Connect()
	if errors.Is(err, nats.ErrSecureConnWanted) {
		return fault.New(fault.Precondition, "TLS is asked for, and the server has none: %w", err)
	}
	if err != nil {
		return cmp.Or(tlsfile.Failure(err), err)
	}
	js, err := jetstream.New(conn)
	b.mu.Lock()
	b.conn, b.js = conn, js
	b.mu.Unlock()
	if err != nil {
		return err
	}
	b.restored()
	b.mu.Lock()
	b.back = time.Time{} // no other connection was lost
	b.mu.Unlock()
	return nil
}

// startCode returns the code of an error of Start.
func startCode(err error) fault.Code {
	for _, refused := range []error{nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked} {
		if errors.Is(err, refused) {
			return fault.Unauthenticated
		}
	}
	if code := fault.CodeOf(err); code == fault.Denied || code == fault.Precondition {
		return code
	}
	return fault.Unavailable
}

// jetstream asks whether there is JetStream.
func (b *Bus) jetstream(ctx context.Context) error {
	_, err := b.js.AccountInfo(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fault.New(fault.Precondition, "%w: natsbus needs it", err)
	default:
		return fault.New(fault.Unavailable, "ask for JetStream: %w", err)
	}
}

// dialer dials for nats.go, whose interface has no context: while the bus starts until first ends, later
// until life ends.
type dialer struct {
	life, first context.Context //nolint:containedctx // nats.go's interface has none

	mu   sync.Mutex
	done bool          // the bus has connected, or will not
	stop []func() bool // ends the watch over connections
}

func (d *dialer) Dial(network, address string) (net.Conn, error) {
	d.mu.Lock()
	parent, starts := d.life, !d.done
	d.mu.Unlock()
	if starts {
		parent = d.first
	}
	ctx, cancel := context.WithTimeout(parent, dialTime)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil && starts {
		d.mu.Lock()
		d.stop = append(d.stop, context.AfterFunc(d.first, func() { _ = c.Close() })) // the handshakes end, too
		d.mu.Unlock()
	}
	return c, err
}

// connected ends the time in which the first context counts.
func (d *dialer) connected() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.done = true
	for _, stop := range d.stop {
		stop()
	}
	d.stop = nil
}

func (b *Bus) lost(err error) {
	if err == nil {
		err = errors.New("the connection was closed")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lose != nil {
		b.lose()
	}
	b.epoch, b.lose, b.last = nil, nil, err
	close(b.changed)
	b.changed = make(chan struct{})
	if b.life.Err() == nil {
		b.cfg.Logger.Warn("lost the connection to NATS, dialing again", "error", err)
	}
}

func (b *Bus) restored() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lose != nil {
		b.lose() // the loss of the old one is still to be reported
	}
	b.epoch, b.lose = context.WithCancel(context.Background())
	b.back = time.Now()
	close(b.changed)
	b.changed = make(chan struct{})
	b.cfg.Logger.Debug("connected to NATS", "server", b.conn.ConnectedUrlRedacted())
}

// connected waits until there is a connection, or ctx ends. It returns its life
// and the connection.
func (b *Bus) connected(ctx context.Context) (context.Context, *nats.Conn, error) {
	for {
		b.mu.Lock()
		epoch, conn, changed, state := b.epoch, b.conn, b.changed, b.state
		b.mu.Unlock()
		switch {
		case b.life.Err() != nil:
			return nil, nil, bus.ErrClosed
		case state != started:
			return nil, nil, bus.ErrNotStarted
		}
		if epoch != nil {
			return epoch, conn, nil
		}
		select {
		case <-changed:
		case <-b.life.Done():
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// run starts f unless the bus is closed or not started.
func (b *Bus) run(f func()) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.usableLocked(); err != nil {
		return err
	}
	b.wg.Go(f)
	return nil
}

// usableLocked returns an error unless the bus is started and not closed.
func (b *Bus) usableLocked() error {
	switch {
	case b.life.Err() != nil:
		return bus.ErrClosed
	case b.state != started:
		return bus.ErrNotStarted
	}
	return nil
}

// Stop is Close, for use as a service part.
func (b *Bus) Stop(context.Context) error { return b.Close() }

// Close ends the subscriptions and the connection and waits for the bus's
// goroutines. What was not acknowledged goes back to its topic. It is idempotent
// and never fails.
func (b *Bus) Close() error {
	b.close()
	return nil
}

func (b *Bus) shut() {
	b.mu.Lock()
	b.end()
	b.mu.Unlock()
	b.wg.Wait()
	b.disconnect()
}

// disconnect closes the connection, if there is one, and waits until it has said so.
func (b *Bus) disconnect() {
	b.mu.Lock()
	conn := b.conn
	b.mu.Unlock()
	if conn == nil {
		return
	}
	closed := make(chan struct{})
	conn.SetClosedHandler(func(*nats.Conn) { close(closed) })
	conn.Close()
	<-closed
}

// Check returns nil if the bus is connected and consumes all its Shared topics,
// and Unavailable with what is wrong if not. It does not block.
func (b *Bus) Check(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.usableLocked(); err != nil {
		return err
	}
	if b.epoch == nil {
		return fault.New(fault.Unavailable, "the connection to NATS is lost: %v", b.last)
	}
	for q := range b.queues {
		if err := q.state(); err != nil {
			return fault.New(fault.Unavailable, "%s is not consumed: %w", q.subject, err)
		}
	}
	return nil
}

// subject is what a topic is called in NATS.
func (b *Bus) subject(topic string) (string, error) {
	name := b.cfg.Exchange + "." + topic
	return name, bus.CheckTopic(name)
}

// Capabilities is that of [bus.Bus]. MaxMessage is Config.MaxMessage, or the limit that the server has announced if
// that is less.
func (b *Bus) Capabilities() bus.Capabilities {
	return bus.Capabilities{
		MaxMessage: b.maxMessage(), MaxTopic: names.Max - len(b.cfg.Exchange) - 1, NoConsumer: true, LiveTopics: true, Persistent: true,
	}
}

func (b *Bus) maxMessage() int {
	b.mu.Lock()
	conn := b.conn
	b.mu.Unlock()
	if conn != nil {
		if n := conn.MaxPayload(); n > 0 && n < int64(b.cfg.MaxMessage) {
			return int(n)
		}
	}
	return b.cfg.MaxMessage
}
