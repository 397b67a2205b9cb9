package natsbus

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/internal/gather"
	"github.com/armature-go/armature/tlsfile"
)

const (
	// dialTimeout is the timeout of one attempt to connect to one server, including the handshakes.
	dialTimeout = 5 * time.Second
	// pingInterval is the time between two pings over a quiet connection. The connection counts as lost when two answers are
	// missing.
	pingInterval = 5 * time.Second
	// flushTimeout is how long the bus waits for NATS at the end of a subscription or a connection.
	flushTimeout = time.Second
)

// conn is one connection. The bus opens a new conn after a loss. The reconnection of nats.go is off, because it does not report
// which messages and requests were lost.
type conn struct {
	*nats.Conn

	js       jetstream.JetStream
	attempts *attempts
	closed   chan struct{}
}

// dial connects to one of the servers. It tries each server once, in random order, until ctx ends.
func (b *Bus) dial(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &dialer{ctx: ctx}
	c := &conn{closed: make(chan struct{})}
	opts := nats.GetDefaultOptions()
	opts.Servers, opts.Name, opts.Timeout, opts.CustomDialer = b.cfg.URLs, b.cfg.Exchange, dialTimeout, d
	opts.AllowReconnect, opts.IgnoreAuthErrorAbort = false, true
	opts.PingInterval, opts.MaxPingsOut = pingInterval, 2
	opts.ClosedCB = func(*nats.Conn) { close(c.closed) }
	opts.AsyncErrorCB = b.logAsyncError
	opts.TLSConfig = cmp.Or(b.cfg.TLS, &tls.Config{MinVersion: tls.VersionTLS12}).Clone()
	opts.Secure = slices.ContainsFunc(b.cfg.URLs, func(u string) bool { return strings.HasPrefix(u, "tls:") })
	var err error
	c.Conn, err = opts.Connect()
	d.connected.Store(err == nil)
	if errors.Is(err, nats.ErrSecureConnWanted) {
		return nil, fault.New(fault.Precondition, "the URL or the configuration requires TLS, and the server does not offer it: %w", err)
	}
	if err != nil {
		return nil, cmp.Or(tlsfile.Failure(err), err)
	}
	b.maxPayload.Store(c.MaxPayload())
	if c.js, err = jetstream.New(c.Conn); err == nil {
		c.attempts, err = newAttempts(c.Conn)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// logAsyncError logs an error that no call of nats.go returns. It logs at most one WARN a minute for dropped messages, and one for
// all other errors. Further lines are DEBUG, because a slow subscriber may drop many messages.
func (b *Bus) logAsyncError(_ *nats.Conn, s *nats.Subscription, err error) {
	subject, text, lines := "", "NATS client reported an error", &b.errorLines
	if s != nil {
		subject = s.Subject
	}
	if errors.Is(err, nats.ErrSlowConsumer) {
		text, lines = "NATS client dropped messages of a slow subscriber", &b.dropLines
	}
	b.cfg.Logger.Log(context.Background(), lines.Level(slog.LevelWarn), text, "subject", subject, "error", err)
}

// close waits until NATS has received all written messages, closes the connection, and waits until nats.go has ended.
func (c *conn) close() {
	_ = c.FlushTimeout(flushTimeout) // after an error the connection is lost
	c.Close()
	<-c.closed
}

// watchConnection returns when the connection is lost. When ctx ends, it closes the connection and returns. Until then it ends
// expired attempts.
func (b *Bus) watchConnection(ctx context.Context, c *conn) error {
	b.cfg.Logger.Debug("connected to NATS", "server", c.ConnectedUrlRedacted())
	defer c.attempts.failAll()
	expire := time.NewTicker(expireInterval)
	defer expire.Stop()
	for {
		select {
		case <-expire.C:
			c.attempts.endExpired()
		case <-c.closed:
			err := cmp.Or(c.LastError(), errors.New("the connection was closed"))
			if ctx.Err() == nil {
				b.cfg.Logger.Warn("lost the connection to NATS, dialing again", "error", err)
			}
			return err
		case <-ctx.Done():
			c.close()
			return errors.New("the bus was closed")
		}
	}
}

// publishRaw publishes a text over the current connection: an answer to a sender, or an acknowledgement for JetStream. It
// returns errNoConnection if the connection is lost.
func (b *Bus) publishRaw(subject, text string) error {
	s := b.link.State()
	if s.Epoch == nil {
		return errNoConnection
	}
	return s.Conn.Publish(subject, []byte(text))
}

// dialer is the nats.CustomDialer of one connection. The interface of nats.go has no context, so the dialer has ctx as a field: the
// dialing and the handshakes end with ctx.
type dialer struct {
	ctx       context.Context //nolint:containedctx // as above
	connected atomic.Bool     // the handshakes have ended
}

func (d *dialer) Dial(network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(d.ctx, network, address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(d.ctx, func() {
		if !d.connected.Load() {
			_ = c.Close()
		}
	})
	return &gather.Conn{Conn: c, Block: true}, nil
}
