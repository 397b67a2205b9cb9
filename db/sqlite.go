package db

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"

	"modernc.org/sqlite"

	"github.com/armature-go/armature/fault"
)

// busyWait is how long a writer waits for another one: in this process in line,
// for another process by SQLite's polling.
const busyWait = 10 * time.Second

const sqliteOptions = "?_txlock=immediate&_dqs=0&_error_rc=1" +
	"&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)" +
	"&_pragma=foreign_keys(1)&_pragma=case_sensitive_like(1)"

// Times are text of a fixed width, so that they sort, and the text is MySQL's.
const timeLayout = "2006-01-02 15:04:05.000000"

// sqliteDriver is the driver with what MySQL has and SQLite lacks. It is not
// the one registered with database/sql, which belongs to the whole program.
var sqliteDriver = sync.OnceValue(func() *sqlite.Driver {
	d := new(sqlite.Driver)
	d.MustRegisterScalarFunction("utc_timestamp", 1,
		func(*sqlite.FunctionContext, []driver.Value) (driver.Value, error) {
			return time.Now().UTC().Format(timeLayout), nil
		})
	return d
})

// sqliteDB is a connector. Its connections let one write at a time, in the
// order in which they asked, while all others read: SQLite itself lets waiting
// writers poll, by which some starve and fail. They also give times, and FOR
// UPDATE, the same meaning as on MySQL.
type sqliteDB struct {
	dsn    string
	writer chan struct{} // holds an element while somebody writes
	watch  *watch
}

func newSQLite(file string) *sqliteDB {
	return &sqliteDB{dsn: file + sqliteOptions, writer: make(chan struct{}, 1)}
}

// Driver returns the driver, with the trouble of this handle.
func (s *sqliteDB) Driver() driver.Driver { return &watchedDriver{sqliteDriver(), s.watch} }

func (s *sqliteDB) Connect(ctx context.Context) (driver.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := sqliteDriver().Open(s.dsn)
	if err != nil {
		s.watch.trouble.note(err, false)
		return nil, err
	}
	return &sqliteConn{rawConn: c.(rawConn), db: s}, nil
}

// lock waits until nobody writes.
func (s *sqliteDB) lock(ctx context.Context) error {
	select {
	case s.writer <- struct{}{}:
		return nil
	default:
	}
	t := time.NewTimer(busyWait)
	defer t.Stop()
	select {
	case s.writer <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return fault.New(fault.Unavailable, "database is locked: another transaction of this process has held it for %v", busyWait)
	}
}

func (s *sqliteDB) unlock() { <-s.writer }

// rawConn is what a connection of the driver is.
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

type sqliteConn struct {
	rawConn
	db   *sqliteDB
	inTx bool // holds the lock, if it is not read-only
}

func (c *sqliteConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if opts.ReadOnly {
		tx, err := c.rawConn.BeginTx(ctx, opts)
		if err != nil {
			return nil, err
		}
		c.inTx = true
		return &sqliteTx{tx, c, func() {}}, nil
	}
	if err := c.db.lock(ctx); err != nil {
		return nil, err
	}
	tx, err := c.rawConn.BeginTx(ctx, opts)
	if err != nil {
		c.db.unlock()
		return nil, err
	}
	c.inTx = true
	return &sqliteTx{tx, c, sync.OnceFunc(c.db.unlock)}, nil
}

type sqliteTx struct {
	driver.Tx
	c      *sqliteConn
	unlock func()
}

func (t *sqliteTx) Commit() error {
	defer t.end()
	err := t.Tx.Commit()
	t.c.db.watch.trouble.note(err, false)
	return err
}

func (t *sqliteTx) Rollback() error { defer t.end(); return t.Tx.Rollback() }

func (t *sqliteTx) end() {
	t.c.inTx = false
	t.unlock()
}

// exec runs f, a statement that may write, when it is its turn.
func (c *sqliteConn) exec(ctx context.Context, f func() (driver.Result, error)) (driver.Result, error) {
	if !c.inTx {
		if err := c.db.lock(ctx); err != nil {
			return nil, err
		}
		defer c.db.unlock()
	}
	return f()
}

func (c *sqliteConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (res driver.Result, err error) {
	end := c.db.watch.begin(ctx, query)
	defer func() { end(res, err) }()
	return c.exec(ctx, func() (driver.Result, error) { return c.rawConn.ExecContext(ctx, query, args) })
}

func (c *sqliteConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (rows driver.Rows, err error) {
	end := c.db.watch.begin(ctx, query)
	defer func() { end(nil, err) }()
	rows, err = c.rawConn.QueryContext(ctx, forUpdate.ReplaceAllString(query, ""), args)
	return wrapRows(rows, err)
}

func (c *sqliteConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	st, err := c.rawConn.PrepareContext(ctx, forUpdate.ReplaceAllString(query, ""))
	if err != nil {
		return nil, err
	}
	return &sqliteStmt{st.(rawStmt), c, query}, nil
}

// forUpdate is what ends a statement that locks the rows it reads.
var forUpdate = regexp.MustCompile(`(?i)\s+FOR\s+UPDATE\s*;?\s*$`)

// CheckNamedValue turns times into their text.
func (c *sqliteConn) CheckNamedValue(nv *driver.NamedValue) error {
	v, err := driver.DefaultParameterConverter.ConvertValue(nv.Value)
	if t, ok := v.(time.Time); ok {
		v = t.UTC().Format(timeLayout) // cuts off what is below a microsecond
	}
	nv.Value = v
	return err
}

type rawStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

type sqliteStmt struct {
	rawStmt
	c     *sqliteConn
	query string
}

func (s *sqliteStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (res driver.Result, err error) {
	end := s.c.db.watch.begin(ctx, s.query)
	defer func() { end(res, err) }()
	return s.c.exec(ctx, func() (driver.Result, error) { return s.rawStmt.ExecContext(ctx, args) })
}

func (s *sqliteStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (rows driver.Rows, err error) {
	end := s.c.db.watch.begin(ctx, s.query)
	defer func() { end(nil, err) }()
	rows, err = s.rawStmt.QueryContext(ctx, args)
	return wrapRows(rows, err)
}

type rawRows interface {
	driver.Rows
	driver.RowsColumnTypeDatabaseTypeName
}

// sqliteRows turns texts into times: all in columns that are declared to hold
// times, and those of our layout in results that have no column, such as
// MAX(updated_at).
type sqliteRows struct {
	rawRows
	kinds []timeKind
}

type timeKind uint8

const (
	notTime timeKind = iota
	isTime
	mayBeTime
)

func wrapRows(rows driver.Rows, err error) (driver.Rows, error) {
	if err != nil {
		return nil, err
	}
	raw := rows.(rawRows)
	r := &sqliteRows{raw, make([]timeKind, len(raw.Columns()))}
	for i := range r.kinds {
		name, _, _ := strings.Cut(raw.ColumnTypeDatabaseTypeName(i), "(")
		switch name {
		case "DATETIME", "TIMESTAMP", "DATE":
			r.kinds[i] = isTime
		case "":
			r.kinds[i] = mayBeTime
		}
	}
	return r, nil
}

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
			layout = time.DateTime // which takes any fraction when it parses
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
