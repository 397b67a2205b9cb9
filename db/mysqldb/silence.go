package mysqldb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/armature-go/armature/db/internal/engine"
)

// A database that hangs accepts statements and never answers them, and so does a proxy whose server is gone. A timeout for each
// statement would also end what may take long: a migration, the deletion of many rows, the wait for a lock. So a connection that is
// silent for half of the response timeout only makes the handle ask the database with a new connection. If the database answers, the statement may take longer,
// and half a response timeout later the handle asks again. If the database does not answer within the other half, the
// connection is closed and the statement fails.

const (
	failureWindow = time.Second            // after an attempt to connect without an answer; connections that are needed meanwhile fail at once
	probeDelay    = 200 * time.Millisecond // between attempts of one probe
	lateTime      = 10 * time.Millisecond  // to read an answer that has come during a check
)

// silenceError is the error of a statement whose database does not answer. It wraps the driver's error for a lost connection.
type silenceError struct {
	timeout time.Duration
	read    bool // the statement only reads, so it had no effect
}

func (e *silenceError) Error() string {
	return fmt.Sprintf("the database has not answered for %v, not even on a new connection", e.timeout)
}

func (e *silenceError) Unwrap() error { return mysql.ErrInvalidConn }

// noAnswerError is the error of an attempt to connect that gets no answer. Without a cause it is not a context's error, because the caller's context has not ended.
type noAnswerError struct {
	addr     net.Addr
	accepted bool // the server has accepted the connection
	closed   bool // and has closed it
	waited   time.Duration
	cause    error // a context's error if the caller's deadline has ended the attempt, or the driver's error if closed
}

func (e *noAnswerError) Error() string {
	switch {
	case e.closed:
		return fmt.Sprintf("the database at %v accepts connections and closes them without an answer (a proxy has no server, or the server stops)", e.addr)
	case e.accepted:
		return engine.SilentText(e.addr.String(), e.waited)
	}
	return fmt.Sprintf("the database at %v cannot be reached: no answer within %v", e.addr, e.waited.Round(time.Millisecond))
}

func (e *noAnswerError) Unwrap() error { return e.cause }

// probe is one question to the database: does it answer a new connection?
type probe struct {
	done chan struct{} // is closed at the end
	ok   bool          // valid after done is closed
}

// dialKey is the context key for the *dialed of an attempt to connect.
type dialKey struct{}

// dialed tells dialServer how to dial, and gets the watched connection.
type dialed struct {
	conn     *watchedConn
	accepted bool // by the server
}

// dialServer opens the network connection of an attempt to connect. The connection is watched if the context has a *dialed: the connection of a probe
// has its own deadline.
func (m *mysqlDB) dialServer(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	tcp, isTCP := c.(*net.TCPConn)
	d, _ := ctx.Value(dialKey{}).(*dialed)
	if d != nil {
		d.accepted = true
	}
	if !isTCP || d == nil || m.observer.ResponseTimeout <= 0 {
		return c, nil
	}
	d.conn = &watchedConn{TCPConn: tcp, m: m, closed: make(chan struct{})}
	return d.conn, nil
}

// recentFailure returns the error of the last attempt to connect, if it had no answer and ended a moment ago. database/sql opens most connections
// one after the other, so without it many waiting statements would fail only after one timeout each.
func (m *mysqlDB) recentFailure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failure == nil || time.Since(m.failed) > failureWindow {
		return nil
	}
	return m.failure
}

// setFailure records the result of an attempt to connect for recentFailure: an error without an answer, or nil.
func (m *mysqlDB) setFailure(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failure, m.failed = err, time.Now()
}

// answers reports whether the database answers a new connection. Concurrent calls share a probe. It returns false at the latest after half of the response
// timeout, or when the parameter closed is closed.
func (m *mysqlDB) answers(closed <-chan struct{}) bool {
	m.mu.Lock()
	p := m.probe
	if p == nil && m.stopped {
		m.mu.Unlock()
		return false
	}
	if p == nil {
		p = &probe{done: make(chan struct{})}
		m.probe = p
		m.probes.Go(func() { m.runProbe(p) })
	}
	m.mu.Unlock()
	select {
	case <-p.done:
		return p.ok
	case <-closed:
		return false
	}
}

// runProbe connects until the database answers, for at most half of the response timeout. An error that comes from the database is an answer.
func (m *mysqlDB) runProbe(p *probe) {
	ctx, cancel := context.WithTimeout(m.life, m.observer.ResponseTimeout/2)
	defer cancel()
	for {
		c, err := m.Connector.Connect(ctx)
		if err == nil {
			_ = c.Close() // the answer is known
		}
		if _, isAnswer := errors.AsType[*mysql.MySQLError](err); err == nil || isAnswer {
			p.ok = true
			break
		}
		wait := time.NewTimer(probeDelay)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
		}
		if ctx.Err() != nil {
			break
		}
	}
	m.mu.Lock()
	m.probe = nil
	m.mu.Unlock()
	close(p.done)
}

// Close ends a running probe. database/sql calls it when the handle is closed.
func (m *mysqlDB) Close() error {
	m.mu.Lock()
	m.stopped = true
	m.mu.Unlock()
	m.end()
	m.probes.Wait()
	return nil
}

// watchedConn is a network connection that fails if the database hangs. A Read or Write that makes no progress for half of the response timeout
// asks whether the database answers a new connection, and goes on if it does.
type watchedConn struct {
	*net.TCPConn

	m           *mysqlDB
	closed      chan struct{}
	closing     sync.Once
	connected   atomic.Bool  // the attempt to connect has ended
	silent      atomic.Bool  // the database does not answer, and a Read or Write has failed for this reason
	read, write atomic.Int64 // the deadlines of the driver in ns since 1970, 0: none
}

// Close closes the connection and ends the wait of a Read or Write.
func (c *watchedConn) Close() error {
	c.closing.Do(func() { close(c.closed) })
	return c.TCPConn.Close()
}

// SyscallConn returns the socket. The driver looks at it before an idle connection is used again, and a deadline that has passed would
// look like a lost connection.
func (c *watchedConn) SyscallConn() (syscall.RawConn, error) {
	if err := c.TCPConn.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return c.TCPConn.SyscallConn()
}

// SetDeadline sets both deadlines of the driver.
func (c *watchedConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline sets the driver's deadline for reads. A Read that runs already keeps its deadline.
func (c *watchedConn) SetReadDeadline(t time.Time) error {
	c.read.Store(unixNano(t))
	return nil
}

// SetWriteDeadline sets the driver's deadline for writes. A Write that runs already keeps its deadline.
func (c *watchedConn) SetWriteDeadline(t time.Time) error {
	c.write.Store(unixNano(t))
	return nil
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// Read reads what the database sends.
func (c *watchedConn) Read(b []byte) (int, error) {
	for {
		own, err := c.arm(&c.read, c.TCPConn.SetReadDeadline)
		if err != nil {
			return 0, err
		}
		n, err := c.TCPConn.Read(b)
		if n > 0 || own || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if err := c.check(); err != nil {
			return c.readLate(b, err)
		}
	}
}

// readLate reads what has come during a check that failed with err: the answer of a statement that the database has executed. Without an answer it returns
// err, and the connection is silent.
func (c *watchedConn) readLate(b []byte, err error) (int, error) {
	if c.TCPConn.SetReadDeadline(time.Now().Add(lateTime)) == nil {
		if n, _ := c.TCPConn.Read(b); n > 0 {
			return n, nil
		}
	}
	return 0, c.markSilent(err)
}

// Write sends b to the database. Progress is an answer, too: a large statement may take long on a slow network.
func (c *watchedConn) Write(b []byte) (n int, err error) {
	for {
		own, err := c.arm(&c.write, c.TCPConn.SetWriteDeadline)
		if err != nil {
			return n, err
		}
		k, err := c.TCPConn.Write(b[n:])
		n += k
		if err == nil || own || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if k > 0 {
			continue
		}
		if err := c.check(); err != nil {
			return n, c.markSilent(err)
		}
	}
}

// arm sets a deadline on the socket: half of the response timeout from now, or the deadline of the driver if it is earlier. The result own reports the latter.
// While the connection is being opened, the attempt has a timeout of its own.
func (c *watchedConn) arm(driver *atomic.Int64, set func(time.Time) error) (own bool, err error) {
	var at time.Time
	if c.connected.Load() {
		at = time.Now().Add(c.m.observer.ResponseTimeout / 2)
	}
	if d := driver.Load(); d != 0 && (at.IsZero() || d <= at.UnixNano()) {
		own, at = true, time.Unix(0, d)
	}
	return own, set(at)
}

// check returns an error if the database does not answer.
func (c *watchedConn) check() error {
	if c.m.answers(c.closed) {
		return nil
	}
	select {
	case <-c.closed: // by the driver
	case <-c.m.life.Done(): // the handle is closed
	default:
		return &silenceError{timeout: c.m.observer.ResponseTimeout}
	}
	return net.ErrClosed
}

// markSilent records for explain that a Read or Write fails with err, an error of check.
func (c *watchedConn) markSilent(err error) error {
	if _, ok := errors.AsType[*silenceError](err); ok {
		c.silent.Store(true)
	}
	return err
}

// explain returns the error of a statement, and a *silenceError for a connection that was closed because the database hangs. The driver replaces the error of the network.
func (c *mysqlConn) explain(query string, err error) error {
	if c.net == nil || !c.net.silent.Load() || !errors.Is(err, mysql.ErrInvalidConn) {
		return err
	}
	return &silenceError{timeout: c.observer.ResponseTimeout, read: isRead(query)}
}

// isRead reports whether a statement only reads.
func isRead(query string) bool {
	words := strings.Fields(strings.TrimLeft(query, "( \t\r\n"))
	return len(words) > 0 && strings.EqualFold(words[0], "select")
}
