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
}

// Driver returns the driver with the observer of this handle.
func (m *mysqlDB) Driver() driver.Driver {
	return engine.NewDriver(m.Connector.Driver(), m.observer)
}

// Connect opens a connection and records a failure for Health.
func (m *mysqlDB) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := m.Connector.Connect(ctx)
	if err != nil {
		m.observer.Failed(err)
		// The dialer has its own timer for the deadline, which may fire before the context ends.
		if d, ok := ctx.Deadline(); ok && ctx.Err() == nil && !time.Now().Before(d) {
			err = fmt.Errorf("connect: %w (%w)", context.DeadlineExceeded, err)
		}
		return nil, err
	}
	return &mysqlConn{rawMySQL: c.(rawMySQL), observer: m.observer}, nil
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
	prepared statementCache
}

// ExecContext runs a statement without rows and reports it to the observer.
func (c *mysqlConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (res driver.Result, err error) {
	end := c.observer.Statement(ctx, query)
	defer func() { end(res, err) }()
	if st := c.prepared.get(ctx, c.rawMySQL, query); st != nil {
		if res, err = st.ExecContext(ctx, args); !c.prepared.refused(query, err) {
			return res, err
		}
	}
	return c.rawMySQL.ExecContext(ctx, query, args)
}

// QueryContext runs a query and reports it to the observer.
func (c *mysqlConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (rows driver.Rows, err error) {
	end := c.observer.Statement(ctx, query)
	defer func() { end(nil, err) }()
	if st := c.prepared.get(ctx, c.rawMySQL, query); st != nil {
		if rows, err = st.QueryContext(ctx, args); !c.prepared.refused(query, err) {
			return rows, err
		}
	}
	return c.rawMySQL.QueryContext(ctx, query, args)
}

// PrepareContext returns a prepared statement that reports to the observer.
func (c *mysqlConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	st, err := c.rawMySQL.PrepareContext(ctx, query)
	if err != nil {
		return st, err
	}
	return &observedStmt{st.(rawMySQLStmt), c.observer, query}, nil
}

// rawMySQLStmt has the interfaces of the driver's prepared statement that database/sql uses.
type rawMySQLStmt interface {
	rawStmt
	driver.NamedValueChecker
}

// observedStmt is a prepared statement that reports to an observer.
type observedStmt struct {
	rawMySQLStmt

	observer *engine.Observer
	query    string
}

func (s *observedStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (res driver.Result, err error) {
	end := s.observer.Statement(ctx, s.query)
	defer func() { end(res, err) }()
	return s.rawMySQLStmt.ExecContext(ctx, args)
}

func (s *observedStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (rows driver.Rows, err error) {
	end := s.observer.Statement(ctx, s.query)
	defer func() { end(nil, err) }()
	return s.rawMySQLStmt.QueryContext(ctx, args)
}

// BeginTx begins a transaction. The driver's own Tx is not used: it has no context.
func (c *mysqlConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if _, err := c.rawMySQL.BeginTx(ctx, opts); err != nil {
		return nil, err
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
