package db

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/go-sql-driver/mysql"
)

// rollbackWait bounds a ROLLBACK, which goes out although its context may have
// ended.
const rollbackWait = time.Second

// mysqlDB is a connector whose transactions end in time: database/sql gives
// COMMIT and ROLLBACK no context, so that on a server that hangs they would,
// too, and with them whoever waits for the transaction.
type mysqlDB struct {
	driver.Connector

	watch *watch
}

// Driver returns the driver, with the trouble of this handle.
func (m *mysqlDB) Driver() driver.Driver {
	return &watchedDriver{m.Connector.Driver(), m.watch}
}

func (m *mysqlDB) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := m.Connector.Connect(ctx)
	if err != nil {
		m.watch.trouble.note(err, false)
		// The dialer minds the deadline by a clock of its own, which may be early.
		if d, ok := ctx.Deadline(); ok && ctx.Err() == nil && !time.Now().Before(d) {
			err = fmt.Errorf("connect: %w (%w)", context.DeadlineExceeded, err)
		}
		return nil, err
	}
	return &mysqlConn{c.(rawMySQL), m.watch}, nil
}

type rawMySQL interface {
	rawConn
	driver.NamedValueChecker
}

type mysqlConn struct {
	rawMySQL

	watch *watch
}

func (c *mysqlConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (res driver.Result, err error) {
	end := c.watch.begin(ctx, query)
	defer func() { end(res, err) }()
	return c.rawMySQL.ExecContext(ctx, query, args)
}

func (c *mysqlConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (rows driver.Rows, err error) {
	end := c.watch.begin(ctx, query)
	defer func() { end(nil, err) }()
	return c.rawMySQL.QueryContext(ctx, query, args)
}

func (c *mysqlConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	st, err := c.rawMySQL.PrepareContext(ctx, query)
	if err != nil {
		return st, err
	}
	return &watchedStmt{st.(rawMySQLStmt), c.watch, query}, nil
}

type rawMySQLStmt interface {
	rawStmt
	driver.NamedValueChecker
}

// watchedStmt is a prepared statement that is seen, too.
type watchedStmt struct {
	rawMySQLStmt

	watch *watch
	query string
}

func (s *watchedStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (res driver.Result, err error) {
	end := s.watch.begin(ctx, s.query)
	defer func() { end(res, err) }()
	return s.rawMySQLStmt.ExecContext(ctx, args)
}

func (s *watchedStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (rows driver.Rows, err error) {
	end := s.watch.begin(ctx, s.query)
	defer func() { end(nil, err) }()
	return s.rawMySQLStmt.QueryContext(ctx, args)
}

func (c *mysqlConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if _, err := c.rawMySQL.BeginTx(ctx, opts); err != nil {
		return nil, err
	}
	return &mysqlTx{ctx, c}, nil
}

type mysqlTx struct {
	ctx context.Context //nolint:containedctx // driver.Tx has no other way to it
	c   *mysqlConn
}

// Commit ends with the context. Then the driver has closed the connection,
// unless it did not send anything.
func (t *mysqlTx) Commit() error {
	_, err := t.c.ExecContext(t.ctx, "COMMIT", nil)
	if _, answered := errors.AsType[*mysql.MySQLError](err); err != nil && !answered && t.c.IsValid() {
		_ = t.Rollback() // or the pool would get a connection with an open transaction
	}
	return err
}

func (t *mysqlTx) Rollback() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.ctx), rollbackWait)
	defer cancel()
	_, err := t.c.ExecContext(ctx, "ROLLBACK", nil)
	return err
}
