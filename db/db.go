// Package db opens a component's database, MySQL or embedded SQLite, brings its
// schema up to date and runs transactions that are retried.
package db

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/url"
	"path"
	"strings"
	"testing/fstest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"

	"github.com/armature-go/armature/fault"
)

// Config says which database.
type Config struct {
	URL            string
	MaxOpen        int
	ConnectTimeout time.Duration
}

// Open connects.
func Open(ctx context.Context, cfg Config) (*sqlx.DB, error) {
	if cfg.MaxOpen <= 0 {
		cfg.MaxOpen = 10
	}
	if cfg.ConnectTimeout <= 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the database URL cannot be read")
	}
	var d *sqlx.DB
	switch u.Scheme {
	case "mysql":
		m := mysql.NewConfig()
		m.User = u.User.Username()
		m.Passwd, _ = u.User.Password()
		m.Net, m.Addr, m.DBName = "tcp", u.Host, strings.TrimPrefix(u.Path, "/")
		if u.Port() == "" {
			m.Addr = net.JoinHostPort(u.Hostname(), "3306")
		}
		m.ParseTime, m.Loc, m.ClientFoundRows, m.InterpolateParams = true, time.UTC, true, true
		m.Timeout = 5 * time.Second
		m.Params = map[string]string{"time_zone": "'+00:00'"}
		m.Logger = &mysql.NopLogger{}
		c, err := mysql.NewConnector(m)
		if err != nil {
			return nil, fault.New(fault.Invalid, "database %s: %w", u.Redacted(), err)
		}
		d = sqlx.NewDb(sql.OpenDB(c), "mysql")
		d.SetMaxOpenConns(cfg.MaxOpen)
		d.SetMaxIdleConns(cfg.MaxOpen)
		d.SetConnMaxLifetime(4 * time.Minute)
	case "sqlite":
		dsn := "file:" + u.Path + "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=foreign_keys(1)&_txlock=immediate&_time_format=sqlite&_timezone=UTC"
		s, err := sql.Open("sqlite", dsn)
		if err != nil {
			return nil, err
		}
		d = sqlx.NewDb(s, "sqlite")
		d.SetMaxOpenConns(1)
	default:
		return nil, fault.New(fault.Invalid, "database URL: scheme %q is neither mysql nor sqlite", u.Scheme)
	}
	start := time.Now()
	wait, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
	defer cancel()
	for {
		err := d.PingContext(wait)
		if err == nil {
			return d, nil
		}
		final := false
		code := fault.Unavailable
		if me, ok := errors.AsType[*mysql.MySQLError](err); ok {
			switch me.Number {
			case 1044, 1045:
				final, code = true, fault.Denied
			case 1049:
				final, code = true, fault.Precondition
			}
		}
		t := time.NewTimer(20*time.Millisecond + rand.N(200*time.Millisecond))
		select {
		case <-t.C:
		case <-wait.Done():
			final = true
		}
		if final {
			_ = d.Close()
			return nil, fault.New(code, "connect to the database at %s: gave up after %v: %w", u.Redacted(), time.Since(start).Round(time.Millisecond), err)
		}
	}
}

func dialect(d *sqlx.DB) goose.Dialect {
	if d.DriverName() == "mysql" {
		return goose.DialectMySQL
	}
	return goose.DialectSQLite3
}

func provider(d *sqlx.DB, dir fs.FS) (*goose.Provider, error) {
	if d.DriverName() != "mysql" {
		out := fstest.MapFS{}
		names, err := fs.Glob(dir, "*.sql")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			b, err := fs.ReadFile(dir, n)
			if err != nil {
				return nil, err
			}
			out[path.Base(n)] = &fstest.MapFile{Data: []byte(strings.ReplaceAll(string(b), "DATETIME(6)", "DATETIME"))}
		}
		dir = out
	}
	return goose.NewProvider(dialect(d), d.DB, dir, goose.WithDisableGlobalRegistry(true))
}

// Migrate brings the schema up to date.
func Migrate(ctx context.Context, d *sqlx.DB, dir fs.FS) error {
	p, err := provider(d, dir)
	if err != nil {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

// Check compares the schema.
func Check(ctx context.Context, d *sqlx.DB, dir fs.FS) error {
	p, err := provider(d, dir)
	if err != nil {
		return err
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return Error(err)
	}
	if have != want {
		return fault.New(fault.Precondition, "the schema has version %d, the program needs %d: run db sync", have, want)
	}
	return nil
}

var _ = sha256.Sum256
var _ = hex.EncodeToString

// Tx runs f in a transaction.
func Tx(ctx context.Context, d *sqlx.DB, f func(*sqlx.Tx) error) error {
	for try := 0; ; try++ {
		err := once(ctx, d, f)
		if err == nil || !retriable(err) || try > 50 || ctx.Err() != nil {
			return Error(err)
		}
		t := time.NewTimer(rand.N(min(time.Millisecond<<min(try, 8), 200*time.Millisecond)))
		select {
		case <-t.C:
		case <-ctx.Done():
			return Error(err)
		}
	}
}

func once(ctx context.Context, d *sqlx.DB, f func(*sqlx.Tx) error) error {
	tx, err := d.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

func retriable(err error) bool {
	if me, ok := errors.AsType[*mysql.MySQLError](err); ok {
		switch me.Number {
		case 1213, 1205, 1020:
			return true
		}
	}
	if se, ok := errors.AsType[*sqlite.Error](err); ok {
		return se.Code()&0xff == 5 || se.Code()&0xff == 6
	}
	return false
}

// Error classes an error.
func Error(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	if errors.Is(err, sql.ErrNoRows) {
		return fault.New(fault.NotFound, "%w", err)
	}
	if me, ok := errors.AsType[*mysql.MySQLError](err); ok {
		switch me.Number {
		case 1062:
			return fault.New(fault.Conflict, "%w", err)
		case 1213, 1205, 1020, 1040, 1053, 1927:
			return fault.New(fault.Unavailable, "%w", err)
		}
		return err
	}
	if se, ok := errors.AsType[*sqlite.Error](err); ok {
		switch se.Code() {
		case 1555, 2067:
			return fault.New(fault.Conflict, "%w", err)
		}
		return err
	}
	_, isNet := errors.AsType[net.Error](err)
	if errors.Is(err, driver.ErrBadConn) || errors.Is(err, mysql.ErrInvalidConn) || isNet {
		return fault.New(fault.Unavailable, "%w", err)
	}
	return err
}

// Now returns the database's clock.
func Now(ctx context.Context, q interface {
	sqlx.QueryerContext
	DriverName() string
},
) (time.Time, error) {
	if q.DriverName() == "mysql" {
		var t time.Time
		err := sqlx.GetContext(ctx, q, &t, `SELECT UTC_TIMESTAMP(6)`)
		return t, Error(err)
	}
	var s string
	if err := sqlx.GetContext(ctx, q, &s, `SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')`); err != nil {
		return time.Time{}, Error(err)
	}
	t, err := time.Parse("2006-01-02 15:04:05.999", s)
	if err != nil {
		return t, fmt.Errorf("the database's clock: %w", err)
	}
	return t, nil
}
