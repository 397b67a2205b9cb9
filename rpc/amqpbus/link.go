package amqpbus

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/internal/backoff"
	"github.com/armature-go/armature/rpc/internal/broker"
	"github.com/armature-go/armature/rpc/internal/gather"
	"github.com/armature-go/armature/tlsfile"
)

// The back-off between two attempts to connect is an eighth of the time since the connection was lost, between
// minRedial and maxRedial, with full jitter, so that a cluster that comes back is not stormed, and a server that
// was away for a second is back before its callers take it for lost (ADR 21).
const (
	minRedial = 20 * time.Millisecond
	maxRedial = time.Second
	// dialTime bounds one attempt on one broker, the handshakes included.
	dialTime = 5 * time.Second
	// grace is how long after a restored connection a queue that does not exist may
	// only be late.
	grace = 5 * time.Second
)

// link keeps one connection up. amqp091's own recovery stays off: after it, a
// late Ack of an old delivery acknowledges another message.
type link struct {
	use   string // what the connection is for
	cfg   Config
	plain bool // writes are not gathered

	blocked atomic.Bool   // the broker takes nothing
	dials   atomic.Uint64 // how often a connection was made

	mu      sync.Mutex
	conn    *amqp.Connection // nil while it is lost
	out     *gather.Conn     // what conn writes to
	changed chan struct{}    // closed, and replaced, when conn or reason changes
	reason  string           // why the broker takes nothing; empty if it does
	last    error            // of the last attempt
	back    time.Time        // when a connection replaced another
}

func newLink(use string, cfg Config) *link {
	return &link{use: use, cfg: cfg, changed: make(chan struct{}), last: errors.New("no attempt was made")}
}

// run serves the connection, which may be nil, and dials again when it is lost, until life ends. It
// owns the connection.
func (l *link) run(life context.Context, conn *amqp.Connection, out *gather.Conn) {
	if conn != nil {
		l.hold(life, conn, out)
	}
	for lost := time.Now(); life.Err() == nil; {
		conn, out, err := l.dial(life)
		if err != nil {
			l.set(nil, nil, "", err)
			backoff.Sleep(life, backoff.Redial(lost, minRedial, maxRedial))
			continue
		}
		l.hold(life, conn, out)
		lost = time.Now()
	}
}

// hold serves the connection until it is lost or life ends.
func (l *link) hold(life context.Context, conn *amqp.Connection, out *gather.Conn) {
	log := l.cfg.Logger.With("use", l.use, "broker", conn.RemoteAddr().String())
	lost := conn.NotifyClose(make(chan *amqp.Error, 1))
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	if l.dials.Add(1) > 1 {
		l.mu.Lock()
		l.back = time.Now()
		l.mu.Unlock()
	}
	l.set(conn, out, "", nil)
	log.Debug("connected to RabbitMQ")
	for {
		select {
		case b, ok := <-blocked:
			if !ok {
				blocked = nil
				continue
			}
			reason := ""
			if b.Active {
				reason = b.Reason
				log.Warn("RabbitMQ takes no messages", "reason", reason)
			}
			l.set(conn, out, reason, nil)
		case e := <-lost:
			err := errors.New("the connection was closed")
			if e != nil {
				err = e
			}
			l.set(nil, nil, "", err)
			if life.Err() == nil {
				log.Warn("lost the connection to RabbitMQ, dialing again", "error", err)
			}
			return
		case <-life.Done():
			l.set(nil, nil, "", errors.New("the bus was closed"))
			_ = conn.CloseDeadline(time.Now().Add(dialTime)) // it ends either way
			return
		}
	}
}

// dial tries each broker once, in random order, until ctx ends. Of several errors it returns the one
// that no wait mends.
func (l *link) dial(ctx context.Context) (conn *amqp.Connection, out *gather.Conn, err error) {
	var failure error
	for _, i := range rand.Perm(len(l.cfg.URLs)) {
		conn, out, err = l.dialOne(ctx, l.cfg.URLs[i])
		if err == nil {
			return conn, out, nil
		}
		l.cfg.Logger.Debug("cannot connect to RabbitMQ", "use", l.use, "broker", broker.Redacted(l.cfg.URLs[i]), "error", err)
		if failure == nil || dialCode(failure) == fault.Unavailable {
			failure = err
		}
	}
	return nil, nil, failure
}

func (l *link) dialOne(ctx context.Context, raw string) (conn *amqp.Connection, out *gather.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	ended := func() bool { return true }
	var first *firstByte
	cfg := amqp.Config{
		Heartbeat:  l.cfg.Heartbeat,
		Properties: amqp.NewConnectionProperties(),
		Dial: func(network, addr string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			ended = context.AfterFunc(ctx, func() { _ = c.Close() }) // the handshakes end with ctx, too
			first = &firstByte{Conn: c}
			if l.plain {
				return first, nil
			}
			out = &gather.Conn{Conn: first}
			return out, nil
		},
	}
	cfg.Properties.SetClientConnectionName(l.cfg.Exchange + " " + l.use)
	if u, uerr := url.Parse(raw); uerr == nil && u.Scheme == "amqps" {
		cfg.TLSClientConfig = &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12}
		if l.cfg.TLS != nil {
			cfg.TLSClientConfig = l.cfg.TLS.Clone()
			if cfg.TLSClientConfig.ServerName == "" {
				cfg.TLSClientConfig.ServerName = u.Hostname()
			}
		}
	}
	conn, err = amqp.DialConfig(raw, cfg)
	if !ended() { // ctx has closed the connection
		if err == nil {
			_ = conn.CloseDeadline(time.Now()) // it is closed
		}
		err = fmt.Errorf("no connection in time: %w", cmp.Or(err, context.Cause(ctx)))
	}
	if err == nil {
		return conn, out, nil
	}
	if failure := tlsfile.Failure(err); failure != nil {
		err = failure
	} else if e, ok := errors.AsType[*amqp.Error](err); ok && strings.HasPrefix(e.Reason, "remote error: tls:") { // amqp091 keeps the text alone
		err = fault.New(fault.Denied, "the broker refuses the TLS connection, perhaps for want of a client certificate that it trusts: %w", err)
	} else if cfg.TLSClientConfig == nil && first != nil && first.is(tlsAlert) {
		err = fault.New(fault.Precondition, "the broker speaks TLS on this port, and the URL does not ask for it: use amqps://")
	}
	return nil, nil, err
}

// tlsAlert is how the answer of a TLS server begins that does not understand its client.
const tlsAlert = 21

// firstByte notes the first byte that the other side sends.
type firstByte struct {
	net.Conn

	seen atomic.Int32 // the byte plus 1; 0: none yet
}

func (c *firstByte) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.seen.Load() == 0 {
		c.seen.CompareAndSwap(0, int32(p[0])+1)
	}
	return n, err
}

func (c *firstByte) is(b byte) bool { return c.seen.Load() == int32(b)+1 }

func (l *link) set(conn *amqp.Connection, out *gather.Conn, blocked string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn, l.out, l.reason = conn, out, blocked
	l.blocked.Store(blocked != "")
	if err != nil {
		l.last = err
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// get returns the connection, waiting for it until ctx ends.
func (l *link) get(ctx context.Context) (*amqp.Connection, error) {
	for {
		l.mu.Lock()
		conn, blocked, changed := l.conn, l.reason, l.changed
		l.mu.Unlock()
		if conn != nil && blocked == "" && !conn.IsClosed() {
			return conn, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// state returns a channel that is closed when something changes, and one that is
// closed when the connection has room again, nil if it has.
func (l *link) state() (changed, full <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.out != nil {
		full = l.out.Full()
	}
	return l.changed, full
}

// restored reports whether a connection replaced another less than d ago.
func (l *link) restored(d time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.back) < d
}

// wake tells those who wait that something changed.
func (l *link) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *link) check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.conn == nil:
		return fault.New(fault.Unavailable, "the connection to RabbitMQ to %s is lost: %v", l.use, l.last)
	case l.reason != "":
		return fault.New(fault.Unavailable, "RabbitMQ takes no messages: %s", l.reason)
	}
	return nil
}

// dialCode returns the code of an error of dial.
func dialCode(err error) fault.Code {
	e, ok := errors.AsType[*amqp.Error](err)
	switch {
	case ok && e.Code == amqp.AccessRefused:
		return fault.Unauthenticated
	case ok && e.Code == amqp.NotAllowed:
		return fault.Denied
	}
	if code := fault.CodeOf(err); code == fault.Denied || code == fault.Precondition {
		return code
	}
	return fault.Unavailable
}
