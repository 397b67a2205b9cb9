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
	"sync/atomic"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/internal/broker"
	"github.com/armature-go/armature/rpc/internal/gather"
	"github.com/armature-go/armature/rpc/internal/link"
	"github.com/armature-go/armature/tlsfile"
)

const (
	// dialTimeout is the timeout of one attempt on one broker, the handshakes included.
	dialTimeout = 5 * time.Second
	// minRetry and maxRetry bound the back-off before a message is sent again, and before a queue is consumed again. The delay is
	// minRetry after the first failure and doubles after each further failure, up to maxRetry, with jitter.
	minRetry = 20 * time.Millisecond
	maxRetry = time.Second
	// grace is the time after a connection was restored in which a missing queue counts as late: its consumer may still be
	// restoring the connection of its own process.
	grace = 5 * time.Second
)

// connection is a connection to RabbitMQ.
type connection struct {
	*amqp.Connection

	out    *gather.Conn // gathers the writes; nil if they are not gathered
	recent *recent
}

// recent records how the last messages were published over a connection.
type recent struct {
	last    atomic.Pointer[amqp.DeferredConfirmation] // the confirmation of the last message
	inOrder atomic.Int32                              // how many messages in a row were published after the previous message was confirmed, at most aloneAfter
}

// aloneAfter is the value of inOrder at which the sender counts as alone. A smaller value would be wrong: one of 16 concurrent
// callers often finds all earlier messages confirmed, although its message should be written together with the messages of the
// other callers.
const aloneAfter = 16

// senderIsAlone reports whether the last messages were published one after another. The function send calls it once for each
// message.
func (r *recent) senderIsAlone() bool {
	if last := r.last.Load(); last != nil {
		select {
		case <-last.Done():
		default:
			r.inOrder.Store(0)
			return false
		}
	}
	return r.inOrder.Load() >= aloneAfter || r.inOrder.Add(1) >= aloneAfter
}

// connector keeps one connection open, and dials it again when it is lost. The recovery of amqp091 stays off: after such a
// recovery, a late acknowledgement of an old delivery would acknowledge another message.
type connector struct {
	*link.Link[connection]

	use    string // the purpose of the connection, such as "publish", in logs and errors
	cfg    Config
	direct bool // writes are not gathered
}

func newConnector(use string, cfg Config) *connector {
	c := &connector{use: use, cfg: cfg}
	c.Link = link.New(link.Config[connection]{Dial: c.dial, Hold: c.watchConnection})
	return c
}

// watchConnection returns when the connection is lost. When life ends, it closes the connection and returns. It logs RabbitMQ's
// reports about the connection.
func (l *connector) watchConnection(life context.Context, conn connection) error {
	log := l.cfg.Logger.With("use", l.use, "broker", conn.RemoteAddr().String())
	lost := conn.NotifyClose(make(chan *amqp.Error, 1))
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
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
				log.Warn("RabbitMQ accepts no messages", "reason", reason)
			}
			l.Block(reason)
		case e := <-lost:
			err := errors.New("the connection was closed")
			if e != nil {
				err = e
			}
			if life.Err() == nil {
				log.Warn("lost the connection to RabbitMQ, dialing again", "error", err)
			}
			return err
		case <-life.Done():
			_ = conn.CloseDeadline(time.Now().Add(dialTimeout)) // an error has no effect: the connection is closed anyway
			return errors.New("the bus was closed")
		}
	}
}

// dial tries each broker once, in random order, until ctx ends. If all attempts fail, dial returns the first error that another
// attempt cannot fix, such as a refused password. If there is no such error, dial returns the last error.
func (l *connector) dial(ctx context.Context) (connection, error) {
	var failure error
	for _, i := range rand.Perm(len(l.cfg.URLs)) {
		conn, out, err := l.dialBroker(ctx, l.cfg.URLs[i])
		if err == nil {
			return connection{conn, out, new(recent)}, nil
		}
		l.cfg.Logger.Debug("cannot connect to RabbitMQ", "use", l.use, "broker", broker.Redacted(l.cfg.URLs[i]), "error", err)
		if failure == nil || dialCode(failure) == fault.Unavailable {
			failure = err
		}
	}
	return connection{}, failure
}

func (l *connector) dialBroker(ctx context.Context, raw string) (conn *amqp.Connection, out *gather.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	stopClose := func() bool { return true } // returns false if ctx has ended and closed the connection
	var first *firstByte
	cfg := amqp.Config{
		Heartbeat:  l.cfg.Heartbeat,
		Properties: amqp.NewConnectionProperties(),
		Dial: func(network, addr string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			stopClose = context.AfterFunc(ctx, func() { _ = c.Close() }) // the handshakes also end with ctx
			first = &firstByte{Conn: c}
			if l.direct {
				return first, nil
			}
			out = &gather.Conn{Conn: first}
			return out, nil
		},
	}
	cfg.Properties.SetClientConnectionName(l.cfg.Exchange + " " + l.use)
	cfg.TLSClientConfig = l.tlsConfig(raw)
	conn, err = amqp.DialConfig(raw, cfg)
	if !stopClose() {
		if err == nil {
			_ = conn.CloseDeadline(time.Now()) // the socket is closed already
		}
		err = fmt.Errorf("no connection (%s): %w", ctx.Err().Error(), cmp.Or(err, context.Cause(ctx))) // dialTimeout has passed, or the bus was closed
	}
	if err != nil {
		return nil, nil, tlsError(err, cfg.TLSClientConfig == nil && first != nil && first.is(tlsAlert))
	}
	return conn, out, nil
}

// tlsConfig returns the configuration for a broker's URL; nil without TLS.
func (l *connector) tlsConfig(raw string) *tls.Config {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "amqps" {
		return nil
	}
	cfg := cmp.Or(l.cfg.TLS, &tls.Config{MinVersion: tls.VersionTLS12}).Clone()
	cfg.ServerName = cmp.Or(cfg.ServerName, u.Hostname())
	return cfg
}

// tlsError returns err, or a clearer error if TLS is the reason. The parameter alert reports that the bus used no TLS and the
// broker answered with a TLS alert.
func tlsError(err error, alert bool) error {
	if failure := tlsfile.Failure(err); failure != nil {
		return failure
	}
	if e, ok := errors.AsType[*amqp.Error](err); ok && strings.HasPrefix(e.Reason, "remote error: tls:") { // amqp091 keeps only the text of the error
		return fault.New(fault.Denied, "the broker refuses the TLS connection; perhaps it requires a client certificate that it trusts: %w", err)
	}
	if alert {
		return fault.New(fault.Precondition, "the broker expects TLS on this port, but the URL has no TLS: use amqps://")
	}
	return err
}

// tlsAlert is the first byte of a TLS alert, with which a TLS server answers a client that does not use TLS.
const tlsAlert = 21

// firstByte is a network connection that remembers the first byte that it has received.
type firstByte struct {
	net.Conn

	seen atomic.Int32 // the byte plus 1; 0 before the first byte
}

func (c *firstByte) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.seen.Load() == 0 {
		c.seen.CompareAndSwap(0, int32(p[0])+1)
	}
	return n, err
}

// SyscallConn gives package gather the socket, so that gather can write without blocking.
func (c *firstByte) SyscallConn() (syscall.RawConn, error) {
	s, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return s.SyscallConn()
}

func (c *firstByte) is(b byte) bool { return c.seen.Load() == int32(b)+1 }

// get waits for a connection until ctx ends, and returns it.
func (l *connector) get(ctx context.Context) (connection, error) {
	for {
		conn, epoch, err := l.Get(ctx)
		if err != nil || !conn.IsClosed() {
			return conn, err
		}
		select { // watchConnection is about to see the loss
		case <-epoch.Done():
		case <-ctx.Done():
		}
	}
}

func (l *connector) checkUp() error {
	switch s := l.State(); {
	case s.Epoch == nil:
		return fault.New(fault.Unavailable, "the connection to RabbitMQ (to %s) is lost: %v", l.use, s.Err)
	case s.Blocked != "":
		return fault.New(fault.Unavailable, "RabbitMQ accepts no messages: %s", s.Blocked)
	}
	return nil
}

// dialCode returns the fault code for an error of dial.
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
