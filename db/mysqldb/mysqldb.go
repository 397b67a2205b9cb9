// Package mysqldb lets package db open MySQL and MariaDB. A program has a blank import of this package, as for a driver
// of database/sql:
//
//	import _ "github.com/armature-go/armature/db/mysqldb"
package mysqldb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/armature-go/armature/db/internal/engine"
)

func init() { //nolint:gochecknoinits // a driver registers itself, as the drivers of database/sql do
	engine.Register(&engine.Engine{Scheme: "mysql", Driver: engine.MySQL, Parse: parseURL, Explain: explainError})
}

// rollbackTimeout bounds a ROLLBACK. A ROLLBACK is also sent after its context has
// ended.
const rollbackTimeout = time.Second

// mysqlDB is a connector that bounds the end of transactions. database/sql gives
// COMMIT and ROLLBACK no context. So without a bound they, and the caller of Tx,
// would block as long as a server hangs.
type mysqlDB struct {
	driver.Connector

	observer *engine.Observer
	addr     net.Addr        // of the server, for errors
	timeout  time.Duration   // of an attempt to connect
	life     context.Context //nolint:containedctx // of the probes: it ends with the handle
	end      context.CancelFunc
	probes   sync.WaitGroup

	mu      sync.Mutex
	stopped bool      // after Close
	probe   *probe    // the one that runs, or nil
	failure error     // of the last attempt to connect, if it had no answer
	failed  time.Time // when the attempt ended
}

// newDB returns a connector for a configuration.
func newDB(cfg *mysql.Config, timeout time.Duration) (*mysqlDB, error) {
	m := &mysqlDB{addr: serverAddr(cfg.Addr), timeout: timeout}
	m.life, m.end = context.WithCancel(context.Background())
	cfg.DialFunc = m.dialServer
	var err error
	if m.Connector, err = mysql.NewConnector(cfg); err != nil {
		m.end()
		return nil, err
	}
	return m, nil
}

// serverAddr is the address of a server as in the URL.
type serverAddr string

func (serverAddr) Network() string  { return "tcp" }
func (a serverAddr) String() string { return string(a) }

// Driver returns the driver with the observer of this handle.
func (m *mysqlDB) Driver() driver.Driver {
	return engine.NewDriver(m.Connector.Driver(), m.observer)
}

// Connect opens a connection and records a failure for Health. The attempt is bounded, also after the server has accepted the connection: a server
// that hangs still accepts connections.
func (m *mysqlDB) Connect(ctx context.Context) (driver.Conn, error) {
	if err := m.recentFailure(); err != nil {
		return nil, err
	}
	d, begin := new(dialed), time.Now()
	bounded, cancel := context.WithTimeout(context.WithValue(ctx, dialKey{}, d), m.timeout)
	defer cancel()
	c, err := m.Connector.Connect(bounded)
	if err == nil {
		m.setFailure(nil)
		if d.conn != nil {
			d.conn.connected.Store(true)
		}
		return &mysqlConn{rawMySQL: c.(rawMySQL), observer: m.observer, net: d.conn}, nil
	}
	failed := &noAnswerError{addr: m.addr, accepted: d.accepted, waited: time.Since(begin)}
	end, hasEnd := ctx.Deadline()
	late := hasEnd && !time.Now().Before(end) // the dialer has its own timer for the deadline, which may fire before the context ends
	switch {
	case late && d.accepted && !errors.Is(ctx.Err(), context.Canceled):
		failed.cause = context.DeadlineExceeded
		err = failed
	case ctx.Err() != nil:
	case late:
		err = fmt.Errorf("connect: %w (%w)", context.DeadlineExceeded, err)
	case bounded.Err() != nil || isTimeout(err):
		err = failed
		m.setFailure(err)
	case d.accepted && (errors.Is(err, mysql.ErrInvalidConn) || errors.Is(err, driver.ErrBadConn)):
		failed.closed, failed.cause = true, err
		err = failed
	}
	m.observer.Failed(err)
	return nil, err
}

// isTimeout reports whether a network operation had no answer in time.
func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// rawMySQL has the interfaces of the driver's connection that database/sql uses.
type rawMySQL interface {
	rawConn
	driver.NamedValueChecker
}

// mysqlConn is a connection that reports its statements to an observer.
type mysqlConn struct {
	rawMySQL

	observer *engine.Observer
	net      *watchedConn // nil if the connection is not watched
	prepared statementCache
}

// ExecContext runs a statement without rows and reports it to the observer.
func (c *mysqlConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (res driver.Result, err error) {
	end := c.observer.Statement(ctx, query)
	defer func() { end(res, err) }()
	st, err := c.prepared.get(ctx, c.rawMySQL, query)
	if err != nil {
		return nil, err
	}
	if st != nil {
		if res, err = st.ExecContext(ctx, args); !c.prepared.refused(query, err) {
			return res, c.explain(query, err)
		}
	}
	res, err = c.rawMySQL.ExecContext(ctx, query, args)
	return res, c.explain(query, err)
}

// QueryContext runs a query and reports it to the observer.
func (c *mysqlConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (rows driver.Rows, err error) {
	end := c.observer.Statement(ctx, query)
	defer func() { end(nil, err) }()
	st, err := c.prepared.get(ctx, c.rawMySQL, query)
	if err != nil {
		return nil, err
	}
	if st != nil {
		if rows, err = st.QueryContext(ctx, args); !c.prepared.refused(query, err) {
			return rows, c.explain(query, err)
		}
	}
	rows, err = c.rawMySQL.QueryContext(ctx, query, args)
	return rows, c.explain(query, err)
}

// PrepareContext returns a prepared statement that reports to the observer.
func (c *mysqlConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	st, err := c.rawMySQL.PrepareContext(ctx, query)
	if err != nil {
		return st, c.explain(query, err)
	}
	return &observedStmt{st.(rawMySQLStmt), c, query}, nil
}

// rawMySQLStmt has the interfaces of the driver's prepared statement that database/sql uses.
type rawMySQLStmt interface {
	rawStmt
	driver.NamedValueChecker
}

// observedStmt is a prepared statement that reports to an observer.
type observedStmt struct {
	rawMySQLStmt

	conn  *mysqlConn
	query string
}

func (s *observedStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (res driver.Result, err error) {
	end := s.conn.observer.Statement(ctx, s.query)
	defer func() { end(res, err) }()
	res, err = s.rawMySQLStmt.ExecContext(ctx, args)
	return res, s.conn.explain(s.query, err)
}

func (s *observedStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (rows driver.Rows, err error) {
	end := s.conn.observer.Statement(ctx, s.query)
	defer func() { end(nil, err) }()
	rows, err = s.rawMySQLStmt.QueryContext(ctx, args)
	return rows, s.conn.explain(s.query, err)
}

// BeginTx begins a transaction. The driver's own Tx is not used: it has no context.
func (c *mysqlConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if _, err := c.rawMySQL.BeginTx(ctx, opts); err != nil {
		return nil, c.explain("", err)
	}
	return &mysqlTx{ctx, c}, nil
}

// mysqlTx is a transaction whose COMMIT and ROLLBACK are bounded.
type mysqlTx struct {
	ctx context.Context //nolint:containedctx // driver.Tx.Commit has no parameter for it
	c   *mysqlConn
}

// Commit sends COMMIT and returns at the latest when the context ends. If the context ends after
// COMMIT was sent, the driver closes the connection.
func (t *mysqlTx) Commit() error {
	_, err := t.c.ExecContext(t.ctx, "COMMIT", nil)
	if _, answered := errors.AsType[*mysql.MySQLError](err); err != nil && !answered && t.c.IsValid() {
		_ = t.Rollback() // otherwise the pool gets a connection with an open transaction
	}
	return err
}

// Rollback sends ROLLBACK, even after the context has ended, and returns within rollbackTimeout.
func (t *mysqlTx) Rollback() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.ctx), rollbackTimeout)
	defer cancel()
	_, err := t.c.ExecContext(ctx, "ROLLBACK", nil)
	return err
}

// rawConn has the interfaces of the driver's connection that database/sql uses.
type rawConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// rawStmt has the interfaces of the driver's prepared statement that database/sql uses.
type rawStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}
