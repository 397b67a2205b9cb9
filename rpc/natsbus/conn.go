package natsbus

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/internal/gather"
	"github.com/armature-go/armature/tlsfile"
)

const (
	// dialTime bounds one attempt on one server, the handshakes included.
	dialTime = 5 * time.Second
	// pingEvery is how often a quiet connection is tried; it is lost when two answers are missing.
	pingEvery = 5 * time.Second
)

// conn is one connection. The bus replaces it when it is lost: nats.go's own reconnection is off, because it hides which
// messages and requests were lost.
type conn struct {
	*nats.Conn

	js     jetstream.JetStream
	sends  *sends
	closed chan struct{}
}

// dial tries each server once, in random order, until ctx ends.
func (b *Bus) dial(ctx context.Context) (*conn, error) {
	d := &dialer{ctx: ctx}
	c := &conn{closed: make(chan struct{})}
	opts := nats.GetDefaultOptions()
	opts.Servers, opts.Name, opts.Timeout = b.cfg.URLs, b.cfg.Exchange, dialTime
	opts.CustomDialer = d
	opts.AllowReconnect = false
	opts.IgnoreAuthErrorAbort = true
	opts.PingInterval, opts.MaxPingsOut = pingEvery, 2
	opts.ClosedCB = func(*nats.Conn) { close(c.closed) }
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
	var err error
	c.Conn, err = opts.Connect()
	d.release()
	if errors.Is(err, nats.ErrSecureConnWanted) {
		return nil, fault.New(fault.Precondition, "TLS is asked for, and the server has none: %w", err)
	}
	if err != nil {
		return nil, cmp.Or(tlsfile.Failure(err), err)
	}
	b.maxPayload.Store(c.MaxPayload())
	c.js, err = jetstream.New(c.Conn)
	if err == nil {
		c.sends, err = newSends(c.Conn)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// close closes the connection when what was written has arrived, and waits until nats.go has said so.
func (c *conn) close() {
	_ = c.FlushTimeout(leaveTime) // else it is lost
	c.Close()
	<-c.closed
}

// hold returns when the connection is lost, or closes it when ctx ends.
func (b *Bus) hold(ctx context.Context, c *conn) error {
	b.cfg.Logger.Debug("connected to NATS", "server", c.ConnectedUrlRedacted())
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	defer c.sends.lose()
	for {
		select {
		case <-sweep.C:
			c.sends.sweep()
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

// dialer dials for nats.go, whose interface has no context. The handshakes end with ctx, too.
type dialer struct {
	ctx context.Context //nolint:containedctx // nats.go's interface has none

	mu   sync.Mutex
	stop []func() bool // ends the watch over connections
}

func (d *dialer) Dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.ctx, dialTime)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil {
		d.mu.Lock()
		d.stop = append(d.stop, context.AfterFunc(d.ctx, func() { _ = c.Close() }))
		d.mu.Unlock()
	}
	if err != nil {
		return nil, err
	}
	return &gather.Conn{Conn: c, Block: true}, nil
}

// release ends the time in which ctx counts.
func (d *dialer) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, stop := range d.stop {
		stop()
	}
}
