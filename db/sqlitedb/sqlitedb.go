// Package sqlitedb lets package db open SQLite. A program has a blank import of this package, as for a driver of
// database/sql:
//
//	import _ "github.com/armature-go/armature/db/sqlitedb"
package sqlitedb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"modernc.org/sqlite"

	"github.com/armature-go/armature/db/internal/engine"
	"github.com/armature-go/armature/fault"
)

func init() { //nolint:gochecknoinits // a driver registers itself, as the drivers of database/sql do
	engine.Register(&engine.Engine{Scheme: "sqlite", Driver: engine.SQLite, Parse: parseURL, Explain: explainError})
}

// busyTimeout is how long a writer waits for another writer. Writers of this process
// wait in a queue. For a writer of another process SQLite polls.
const busyTimeout = engine.BusyTimeout

// sqliteOptions are the driver's options with which SQLite behaves as the comment of package db says.
const sqliteOptions = "?_txlock=immediate&_dqs=0&_error_rc=1" +
	"&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)" +
	"&_pragma=foreign_keys(1)&_pragma=case_sensitive_like(1)&_pragma=secure_delete(1)"

// timeLayout is the form of times in SQLite. It has a fixed width, so that times sort
// as texts, and is MySQL's form.
const timeLayout = "2006-01-02 15:04:05.000000"

// sqliteDriver returns a driver with MySQL's function UTC_TIMESTAMP. It is not the
// driver that is registered with database/sql, because the registered driver belongs to the whole program.
var sqliteDriver = sync.OnceValue(func() *sqlite.Driver {
	d := new(sqlite.Driver)
	d.MustRegisterScalarFunction("utc_timestamp", 1,
		func(*sqlite.FunctionContext, []driver.Value) (driver.Value, error) {
			return time.Now().UTC().Format(timeLayout), nil
		})
	return d
})

// sqliteDB is a connector. Only one of its connections writes at a time, and the others may read meanwhile. Waiting
// connections get the writer's lock in the order of their requests. SQLite itself lets waiting writers poll, so that some
// starve and fail. The connections also give times and FOR UPDATE the meaning that they have on MySQL.
type sqliteDB struct {
	dsn      string
	path     string // "": in memory
	created  sync.Once
	writer   chan struct{} // the lock of the writer: full while a connection writes
	observer *engine.Observer
}

// newConnector returns a connector for a file in the form of a URL. The parameter path is the file, or "" for a database in memory.
func newConnector(file, path string, o *engine.Observer) *sqliteDB {
	return &sqliteDB{dsn: file + sqliteOptions, path: path, writer: make(chan struct{}, 1), observer: o}
}

// createFile creates the file, unless it exists, with access for its owner only, because a database may have secrets. SQLite gives its other files the
// same mode, and reports a file that cannot be created.
func (s *sqliteDB) createFile() {
	if s.path == "" {
		return
	}
	if f, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o600); err == nil {
		_ = f.Close() // nothing was written
	}
}

// Driver returns the driver with the observer of this handle.
func (s *sqliteDB) Driver() driver.Driver { return engine.NewDriver(sqliteDriver(), s.observer) }

// Connect opens a connection and records a failure for Health.
func (s *sqliteDB) Connect(ctx context.Context) (driver.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.created.Do(s.createFile)
	c, err := sqliteDriver().Open(s.dsn)
	if err != nil {
		s.observer.Failed(err)
		return nil, s.explainOpen(err)
	}
	raw := c.(rawConn)
	return &sqliteConn{rawConn: raw, db: s, statements: statements{conn: raw}}, nil
}

// explainOpen adds the missing directory to the error of a database that cannot be opened. SQLite names neither the file nor the reason.
func (s *sqliteDB) explainOpen(err error) error {
	if s.path == "" {
		return err
	}
	dir := filepath.Dir(s.path)
	if _, missing := os.Stat(dir); errors.Is(missing, fs.ErrNotExist) {
		return fmt.Errorf("the directory %s does not exist: make it, or correct the path in the URL: %w", dir, err)
	}
	return err
}

// lockWriter blocks until no other connection of the handle writes, until ctx ends,
// or for busyTimeout.
func (s *sqliteDB) lockWriter(ctx context.Context) error {
	select {
	case s.writer <- struct{}{}:
		return nil
	default:
	}
	t := time.NewTimer(busyTimeout)
	defer t.Stop()
	select {
	case s.writer <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return fault.New(fault.Unavailable, "the database is locked: another transaction of this process has had the lock for %v", busyTimeout)
	}
}

// unlockWriter releases the writer's lock.
func (s *sqliteDB) unlockWriter() { <-s.writer }

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

// sqliteConn is a connection that takes the writer's lock for each write.
type sqliteConn struct {
	rawConn
	db         *sqliteDB
	inTx       bool // in a transaction, which has the writer's lock unless it is read-only
	statements statements
}

// Close closes the connection and its statements.
func (c *sqliteConn) Close() error {
	c.statements.close()
	return c.rawConn.Close()
}

// BeginTx begins a transaction. Unless it is read-only, BeginTx first takes the writer's lock.
func (c *sqliteConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if opts.ReadOnly {
		tx, err := c.rawConn.BeginTx(ctx, opts)
		if err != nil {
			return nil, err
		}
		c.inTx = true
		return &sqliteTx{tx, c, func() {}}, nil
	}
	tx, err := c.beginWrite(ctx, opts)
	if err != nil {
		return nil, err
	}
	return tx, nil
}

// beginWrite takes the writer's lock and begins a transaction.
func (c *sqliteConn) beginWrite(ctx context.Context, opts driver.TxOptions) (*sqliteTx, error) {
	if err := c.db.lockWriter(ctx); err != nil {
		return nil, err
	}
	tx, err := c.rawConn.BeginTx(ctx, opts)
	if err != nil {
		c.db.unlockWriter()
		return nil, err
	}
	c.inTx = true
	return &sqliteTx{tx, c, sync.OnceFunc(c.db.unlockWriter)}, nil
}

// LockWrite implements [engine.WriteLocker].
func (c *sqliteConn) LockWrite(ctx context.Context) (engine.WriteTx, error) {
	tx, err := c.beginWrite(ctx, driver.TxOptions{})
	if err != nil {
		return nil, err
	}
	return tx, nil
}

// sqliteTx is a transaction that releases the writer's lock at its end.
type sqliteTx struct {
	driver.Tx
	c      *sqliteConn
	unlock func()
}

// Commit commits, records a failure for Health, and releases the lock.
func (t *sqliteTx) Commit() error {
	defer t.endTx()
	err := t.Tx.Commit()
	t.c.db.observer.Failed(err)
	return err
}

// Rollback rolls back and releases the lock.
func (t *sqliteTx) Rollback() error { defer t.endTx(); return t.Tx.Rollback() }

// Unlock implements [engine.WriteTx].
func (t *sqliteTx) Unlock() { t.unlock() }

func (t *sqliteTx) endTx() {
	t.c.inTx = false
	t.unlock()
}

// execWrite runs a statement that may write, with the writer's lock.
func (c *sqliteConn) execWrite(ctx context.Context, f func() (driver.Result, error)) (driver.Result, error) {
	if !c.inTx {
		if err := c.db.lockWriter(ctx); err != nil {
			return nil, err
		}
		defer c.db.unlockWriter()
	}
	return f()
}

// ExecContext runs a statement without rows. It waits for the writer's lock, unless it is inside a transaction.
func (c *sqliteConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (res driver.Result, err error) {
	end := c.db.observer.Statement(ctx, query)
	defer func() { end(res, err) }()
	return c.execWrite(ctx, func() (driver.Result, error) {
		st, err := c.statements.takeStatement(ctx, query)
		if err != nil {
			return nil, err
		}
		res, err := st.ExecContext(ctx, args)
		if err != nil {
			return nil, st.discard(err)
		}
		return res, c.statements.keepStatement(st)
	})
}

// QueryContext runs a query without FOR UPDATE, which SQLite does not accept. It does not wait for the writer's lock.
func (c *sqliteConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (rows driver.Rows, err error) {
	end := c.db.observer.Statement(ctx, query)
	defer func() { end(nil, err) }()
	st, err := c.statements.takeStatement(ctx, query)
	if err != nil {
		return nil, err
	}
	if rows, err = st.QueryContext(ctx, args); err != nil {
		return nil, st.discard(err)
	}
	return wrapRows(rows, func(err error) error {
		if err != nil {
			return st.discard(err)
		}
		return c.statements.keepStatement(st)
	}), nil
}

// PrepareContext returns a prepared statement, without FOR UPDATE.
func (c *sqliteConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	st, err := c.rawConn.PrepareContext(ctx, forUpdate.ReplaceAllString(query, ""))
	if err != nil {
		return nil, err
	}
	return &sqliteStmt{st.(rawStmt), c, query}, nil
}

// forUpdate matches the FOR UPDATE at the end of a statement.
var forUpdate = regexp.MustCompile(`(?i)\s+FOR\s+UPDATE\s*;?\s*$`)

// CheckNamedValue converts a time to its text.
func (c *sqliteConn) CheckNamedValue(nv *driver.NamedValue) error {
	v, err := driver.DefaultParameterConverter.ConvertValue(nv.Value)
	if t, ok := v.(time.Time); ok {
		v = t.UTC().Format(timeLayout) // cuts off units below a microsecond
	}
	nv.Value = v
	return err
}

// rawStmt has the interfaces of the driver's prepared statement that database/sql uses.
type rawStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// sqliteStmt is a prepared statement that takes the writer's lock if it may write.
type sqliteStmt struct {
	rawStmt
	c     *sqliteConn
	query string
}

func (s *sqliteStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (res driver.Result, err error) {
	end := s.c.db.observer.Statement(ctx, s.query)
	defer func() { end(res, err) }()
	return s.c.execWrite(ctx, func() (driver.Result, error) { return s.rawStmt.ExecContext(ctx, args) })
}

func (s *sqliteStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (rows driver.Rows, err error) {
	end := s.c.db.observer.Statement(ctx, s.query)
	defer func() { end(nil, err) }()
	if rows, err = s.rawStmt.QueryContext(ctx, args); err != nil {
		return nil, err
	}
	return wrapRows(rows, func(err error) error { return err }), nil
}

// rawRows has the interfaces of the driver's rows that this package uses.
type rawRows interface {
	driver.Rows
	driver.RowsColumnTypeDatabaseTypeName
}

// sqliteRows converts texts to times. In a column with the type of a time it converts all texts. In a result without a
// column type, such as MAX(updated_at), it converts texts with the length of timeLayout.
type sqliteRows struct {
	rawRows
	kinds []timeKind
	after func(error) error // is called after Close with the error of Close, and returns the error for the caller
}

// Close ends the query.
func (r *sqliteRows) Close() error { return r.after(r.rawRows.Close()) }

// timeKind says whether a column of a result has times.
type timeKind uint8

const (
	notTime timeKind = iota
	isTime
	mayBeTime // the result has no column type
)

// wrapRows returns rows as sqliteRows.
func wrapRows(rows driver.Rows, after func(error) error) driver.Rows {
	raw := rows.(rawRows)
	r := &sqliteRows{raw, make([]timeKind, len(raw.Columns())), after}
	for i := range r.kinds {
		name, _, _ := strings.Cut(raw.ColumnTypeDatabaseTypeName(i), "(")
		switch name {
		case "DATETIME", "TIMESTAMP", "DATE":
			r.kinds[i] = isTime
		case "":
			r.kinds[i] = mayBeTime
		}
	}
	return r
}

// Next reads a row and converts its times. A text that is not a time stays a text.
func (r *sqliteRows) Next(dest []driver.Value) error {
	if err := r.rawRows.Next(dest); err != nil {
		if errors.Is(err, io.EOF) {
			return io.EOF
		}
		return err
	}
	for i, kind := range r.kinds {
		text, ok := dest[i].(string)
		if !ok || kind == notTime || kind == mayBeTime && len(text) != len(timeLayout) {
			continue
		}
		layout := timeLayout
		if kind == isTime {
			layout = time.DateTime // accepts any fraction of a second
			if len(text) == len(time.DateOnly) {
				layout = time.DateOnly
			}
		}
		if t, err := time.Parse(layout, text); err == nil {
			dest[i] = t
		}
	}
	return nil
}
