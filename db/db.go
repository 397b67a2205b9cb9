// Package db opens a component's database: MySQL or MariaDB in production, SQLite
// for one process. The same store code runs on both. The handle is a plain
// [*sqlx.DB], and everything else is a function that takes the handle. A program has a blank import for each kind of
// database that it uses, as for drivers of database/sql:
//
//	import _ "github.com/armature-go/armature/db/mysqldb"  // mysql://
//	import _ "github.com/armature-go/armature/db/sqlitedb" // sqlite://
//
//	d, err := db.Open(ctx, db.Config{URL: "mysql://nova:secret@db1:3306/nova"})
//	warning, err := db.Check(ctx, d, migrations) // db.Migrate made the schema
//	err = db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
//		_, err := tx.ExecContext(ctx, "UPDATE hosts SET free = free - ? WHERE id = ?", n, id)
//		return err
//	})
//	err = db.Error(d.GetContext(ctx, &host, "SELECT "+db.Columns[Host]()+" FROM hosts WHERE id = ?", id))
//	errors.Is(err, fault.NotFound)
//
// # SQL that runs on both
//
//   - A parameter is ?. Identifiers are in ", texts in '. || joins texts. Texts
//     compare and sort byte by byte, and LIKE is case-sensitive.
//   - The column of a time has the type DATETIME(6). A [time.Time] is stored in UTC with
//     microseconds (smaller units are cut off) and read in UTC. Times compare and
//     sort in SQL. In a statement UTC_TIMESTAMP(6) is the time of the database's clock;
//     outside of a statement [Now] returns this time.
//   - A transaction that reads a row and then writes the row locks it with SELECT
//     ... FOR UPDATE, at the end of the statement. SQLite ignores FOR UPDATE: its
//     write transactions run one at a time.
//   - RowsAffected counts the rows that match, whether they change or not.
//
// The package is not a query builder and not an object mapper.
package db

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/internal/engine"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
)

const (
	defaultMaxOpen        = 20
	defaultConnectTimeout = 10 * time.Second
	// defaultResponseTimeout is less than the timeouts of most proxies and clients of REST requests, and less than the time after which a process without
	// heartbeats counts as down.
	defaultResponseTimeout = 20 * time.Second
	// connLifetime is shorter than the time after which load balancers and servers
	// drop an idle connection. It also lets a pool find a new primary by itself.
	connLifetime = 4 * time.Minute

	minConnectDelay, maxConnectDelay = 40 * time.Millisecond, time.Second // between attempts to connect
)

// Config names the database and its settings. URL is required.
type Config struct {
	// URL has one of these forms:
	//
	//   - mysql://user:password@host:port/database?options, with the options of
	//     go-sql-driver/mysql such as readTimeout. Default port 3306. Special characters in the
	//     password are percent-encoded. Options cannot change what correctness needs: times in UTC,
	//     RowsAffected, sql_mode, one statement at a time.
	//   - sqlite:///absolute/path or sqlite://path/relative/to/the/process.
	//   - sqlite:///:memory:, a database that exists as long as the handle.
	//
	// TLS to MySQL is on with tls=true, which trusts the system's authorities, or with the options of
	// SQLAlchemy: ssl_ca, ssl_cert and ssl_key, see package tlsfile. The server's certificate must
	// have the name of the URL's host, or the name in ssl_server_name. With ssl_check_hostname=false only the
	// certificate's authority is verified, and with tls=skip-verify nothing. A handle whose connections go to
	// another machine without TLS logs one warning.
	URL string
	// MaxOpen bounds the open connections of the handle. Idle connections stay open. Default 20. A database in memory
	// always has one connection: while a transaction runs, all other uses of the handle wait.
	MaxOpen int
	// ConnectTimeout is how long [Open] waits for a database that is down. Default 10 s. Negative:
	// Open makes one attempt, which takes at most 5 s.
	ConnectTimeout time.Duration
	// ResponseTimeout bounds how long MySQL may be silent, so that a server that hangs, or a proxy whose server is gone, does not
	// block the users of the handle for ever. A statement may take as long as it needs: when it has no answer for half of
	// ResponseTimeout, the handle asks the server with a new connection. Only if the server does not answer this connection within
	// the other half, the statement fails: with Unavailable if it is a query, or in [Tx] before COMMIT, and with Unknown
	// otherwise. A new connection fails with Unavailable after the option timeout of the URL (default 5 s). The handle
	// recovers by itself, within a second. If a load balancer is between the process and several servers, it must close
	// the connections to a server that it takes out of service, because a new connection may go to another server. SQLite
	// ignores ResponseTimeout: it is in this process, and waits at most 10 s for other writers.
	// Default 20 s. Negative: no limit.
	ResponseTimeout time.Duration
	// SlowQuery is a threshold: a statement that takes at least so long is logged, with its text and its
	// duration, at level Warn. The duration includes the time that the statement waits for other writers of
	// an SQLite file, but not the time that it waits for a connection. Parameters are not logged.
	// Default 0: no statement is logged.
	SlowQuery time.Duration
	// Observe, unless nil, is called at the start of each statement, with the statement's context and text. The function end is
	// called once, when the database has answered, with the statement's error. On MySQL COMMIT and ROLLBACK
	// are also statements. Both functions may be called from several goroutines at once. The statement waits for both. Observe
	// is for metrics and traces, see package dbprom.
	Observe func(ctx context.Context, query string) (end func(error))
	// Logger gets warnings. Default [slog.Default].
	Logger *slog.Logger
}

// New returns a handle on a database. It does not connect: the first statement does, or [Service.Start].
// The caller closes the handle, or gives it to a [Service]. The handle replaces lost connections by
// itself and is safe for concurrent use. ConnectTimeout has no effect. New fails with Invalid if the URL, or a file named in
// the URL, is wrong, and with Denied if other users can read or change the key in ssl_key. The error does not contain
// the URL, because a URL has a password.
func New(cfg Config) (*sqlx.DB, error) {
	d, _, err := openHandle(cfg)
	return d, err
}

// Open does what [New] does, and then blocks until the database answers. It is for tools and tests. A service gives the
// handle of New to a [Service] instead. These are the errors. None of them contains the password:
//
//   - Invalid, and Denied for the key in ssl_key, at once: as for New.
//   - Unauthenticated or Denied, at once: the database rejects the user, or its certificate is not trusted.
//   - Precondition, at once: the server does not have the database or does not use TLS, or the file cannot be
//     opened or is not a database.
//   - Unavailable: the database did not answer within ConnectTimeout.
//   - The context's error.
func Open(ctx context.Context, cfg Config) (*sqlx.DB, error) {
	d, shown, err := openHandle(cfg)
	if err != nil {
		return nil, err
	}
	if err := connectDatabase(ctx, d, shown, cfg.ConnectTimeout); err != nil {
		_ = d.Close() // the handle has no connection
		return nil, err
	}
	return d, nil
}

// openHandle makes a handle, and logs a warning if its connections are not encrypted. The result shown is the URL without the password.
func openHandle(cfg Config) (d *sqlx.DB, shown string, err error) {
	e, t, err := parseURL(cfg.URL)
	if err != nil {
		return nil, "", err
	}
	log := cmp.Or(cfg.Logger, slog.Default())
	if t.Plain != "" {
		log.Warn("database connections are not encrypted: add tls=true to the URL, or ssl_ca with the file of the server's authority", "host", t.Plain)
	}
	o := &engine.Observer{Shown: t.Shown, Addr: t.Addr, SlowAfter: max(cfg.SlowQuery, 0), Log: log, Observe: cfg.Observe, ResponseTimeout: cmp.Or(cfg.ResponseTimeout, defaultResponseTimeout)}
	d = sqlx.NewDb(sql.OpenDB(t.Connector(o)), e.Driver)
	n := cfg.MaxOpen
	if n <= 0 {
		n = defaultMaxOpen
	}
	d.SetMaxOpenConns(n)
	d.SetMaxIdleConns(n)
	d.SetConnMaxLifetime(connLifetime)
	if t.Memory {
		d.SetMaxOpenConns(1)
		d.SetConnMaxLifetime(0) // the data ends with the connection
	}
	return d, t.Shown, nil
}

// connectDatabase sends pings, with a back-off of up to 1 s, until the database answers or fails with an error
// that is not transient, or until the timeout has passed. A timeout of 0 means the default. With a negative timeout
// it makes one attempt. An attempt takes at most engine.DialTimeout.
func connectDatabase(ctx context.Context, d *sqlx.DB, shown string, timeout time.Duration) error { //nolint:gocognit // see CONTRIBUTING.md
	if timeout == 0 {
		timeout = defaultConnectTimeout
	}
	begin := time.Now()
	attemptTimeout := engine.DialTimeout
	if timeout > 0 {
		attemptTimeout = min(engine.DialTimeout, max(timeout, time.Second))
	}
	for attempt := 1; ; attempt++ {
		ping, cancel := context.WithTimeout(ctx, attemptTimeout)
		err := d.PingContext(ping)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("connect to %s: %w (last error: %w)", shown, context.Cause(ctx), err)
		}
		if failure := tlsFailure(err); failure != nil {
			return fault.New(fault.CodeOf(failure), "connect to %s: %w", shown, failure)
		}
		if !isTransient(err) {
			e, advice := Error(err), ""
			if engine.Explain(err).NoDatabase {
				advice = "; create it with CREATE DATABASE, or correct the name at the end of the URL"
			}
			return fault.New(fault.CodeOf(e), "connect to %s: %w%s", shown, e, advice)
		}
		delay := backoff.Delay(attempt, minConnectDelay, maxConnectDelay)
		if spent := time.Since(begin); spent+delay > timeout {
			return fault.New(fault.Unavailable, "connect to %s: %d attempts in %v: %w",
				shown, attempt, spent.Round(10*time.Millisecond), err)
		}
		if !backoff.Sleep(ctx, delay) {
			return fmt.Errorf("connect to %s: %w", shown, context.Cause(ctx))
		}
	}
}

// isTransient reports whether an error means that the database is down, starting
// or busy, so that another attempt may succeed.
func isTransient(err error) bool {
	m := engine.Explain(err)
	return !m.Answered || m.Transient
}

// Now returns the time of the database's clock in UTC, with microseconds. SQLite's
// clock is the machine's. Leases and heartbeats use the database's clock, because
// the clocks of hosts differ. In a transaction of [Tx], with the context that Tx gives, the clock is read once: every
// Now returns the same time, so that all rows of a change have one time. Errors are those of [Error].
func Now(ctx context.Context, q sqlx.QueryerContext) (time.Time, error) {
	o := txOf(ctx, q)
	if o != nil {
		if now := o.now.Load(); now != nil {
			return *now, nil
		}
	}
	var now time.Time
	if err := q.QueryRowxContext(ctx, "SELECT UTC_TIMESTAMP(6)").Scan(&now); err != nil {
		return time.Time{}, fmt.Errorf("read the database's clock: %w", Error(err))
	}
	if o != nil {
		o.now.Store(&now)
	}
	return now, nil
}
