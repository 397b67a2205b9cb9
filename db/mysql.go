package db

import (
	"context"
	"database/sql/driver"
	"errors"
	"time"

	"github.com/go-sql-driver/mysql"
)

// rollbackWait bounds a ROLLBACK, which goes out although its context may have
// ended.
const rollbackWait = time.Second

// mysqlDB is a connector whose transactions end in time: database/sql gives
// COMMIT and ROLLBACK no context, so that on a server that hangs they would,
// too, and with them whoever waits for the transaction.
type mysqlDB struct{ driver.Connector }

func (m mysqlDB) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := m.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &mysqlConn{c.(rawMySQL)}, nil
}

type rawMySQL interface {
	rawConn
	driver.NamedValueChecker
}

type mysqlConn struct{ rawMySQL }

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
