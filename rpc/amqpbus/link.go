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
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/internal/broker"
	"github.com/armature-go/armature/rpc/internal/gather"
	"github.com/armature-go/armature/rpc/internal/link"
	"github.com/armature-go/armature/tlsfile"
)

const (
	// dialTime bounds one attempt on one broker, the handshakes included.
	dialTime = 5 * time.Second
	// The delay before a message is sent again, or a queue consumed, is minRetry after the first failure, doubled after
	// each further one up to maxRetry, with jitter.
	minRetry = 20 * time.Millisecond
	maxRetry = time.Second
	// grace is how long after a restored connection a queue that does not exist may
	// only be late.
	grace = 5 * time.Second
)

// connection is a connection to RabbitMQ.
type connection struct {
	*amqp.Connection

	out *gather.Conn // what it writes to; nil if its writes are not gathered
}

// connector keeps one connection up. amqp091's own recovery stays off: after it, a
// late Ack of an old delivery acknowledges another message.
type connector struct {
	*link.Link[connection]

	use   string // what the connection is for
	cfg   Config
	plain bool // writes are not gathered
}

func newConnector(use string, cfg Config) *connector {
	c := &connector{use: use, cfg: cfg}
	c.Link = link.New(link.Config[connection]{Dial: c.dial, Hold: c.hold})
	return c
}

// hold returns when the connection is lost, or closes it when life ends.
func (l *connector) hold(life context.Context, conn connection) error {
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
				log.Warn("RabbitMQ takes no messages", "reason", reason)
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
			_ = conn.CloseDeadline(time.Now().Add(dialTime)) // it ends either way
			return errors.New("the bus was closed")
		}
	}
}

// dial tries each broker once, in random order, until ctx ends. Of several errors it returns the one
// that no wait mends.
func (l *connector) dial(ctx context.Context) (connection, error) {
	var failure error
	for _, i := range rand.Perm(len(l.cfg.URLs)) {
		conn, out, err := l.dialOne(ctx, l.cfg.URLs[i])
		if err == nil {
			return connection{conn, out}, nil
		}
		l.cfg.Logger.Debug("cannot connect to RabbitMQ", "use", l.use, "broker", broker.Redacted(l.cfg.URLs[i]), "error", err)
		if failure == nil || dialCode(failure) == fault.Unavailable {
			failure = err
		}
	}
	return connection{}, failure
}

func (l *connector) dialOne(ctx context.Context, raw string) (conn *amqp.Connection, out *gather.Conn, err error) {
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
	cfg.TLSClientConfig = l.tlsConfig(raw)
	conn, err = amqp.DialConfig(raw, cfg)
	if !ended() { // ctx has closed the connection
		if err == nil {
			_ = conn.CloseDeadline(time.Now()) // it is closed
		}
		err = fmt.Errorf("no connection in time: %w", cmp.Or(err, context.Cause(ctx)))
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

// tlsError returns err, or what it says about TLS. refused: the broker's answer was that of a TLS server to a client
// without TLS.
func tlsError(err error, refused bool) error {
	if failure := tlsfile.Failure(err); failure != nil {
		return failure
	}
	if e, ok := errors.AsType[*amqp.Error](err); ok && strings.HasPrefix(e.Reason, "remote error: tls:") { // amqp091 keeps the text alone
		return fault.New(fault.Denied, "the broker refuses the TLS connection, perhaps for want of a client certificate that it trusts: %w", err)
	}
	if refused {
		return fault.New(fault.Precondition, "the broker speaks TLS on this port, and the URL does not ask for it: use amqps://")
	}
	return err
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

// get returns the connection, waiting for it until ctx ends.
func (l *connector) get(ctx context.Context) (*amqp.Connection, error) {
	for {
		conn, epoch, err := l.Get(ctx)
		if err != nil || !conn.IsClosed() {
			return conn.Connection, err
		}
		select { // its loss is about to be noticed
		case <-epoch.Done():
		case <-ctx.Done():
		}
	}
}

func (l *connector) check() error {
	switch s := l.State(); {
	case s.Epoch == nil:
		return fault.New(fault.Unavailable, "the connection to RabbitMQ to %s is lost: %v", l.use, s.Err)
	case s.Blocked != "":
		return fault.New(fault.Unavailable, "RabbitMQ takes no messages: %s", s.Blocked)
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
