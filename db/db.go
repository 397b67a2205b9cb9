// Package db opens a component's database, MySQL or MariaDB in production and
// SQLite for one process, so that the same store code runs on both. The handle
// is a plain [*sqlx.DB]; everything else is a function on it.
//
//	d, err := db.Open(ctx, db.Config{URL: "mysql://nova:secret@db1:3306/nova"})
//	err = db.Check(ctx, d, migrations) // made by db.Migrate
//	err = db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
//		_, err := tx.ExecContext(ctx, "UPDATE hosts SET free = free - ? WHERE id = ?", n, id)
//		return err
//	})
//	err = db.Error(d.GetContext(ctx, &host, "SELECT * FROM hosts WHERE id = ?", id))
//	errors.Is(err, fault.NotFound)
//
// # SQL that runs on both
//
//   - Parameters are ?, identifiers are quoted with ", texts with ', || joins
//     texts. Texts compare and sort byte by byte, LIKE minds case.
//   - Times are columns of type DATETIME(6). A [time.Time] is kept in UTC with
//     microseconds (the rest is cut off), read back in UTC, and compares and
//     sorts in SQL. UTC_TIMESTAMP(6) is the database's clock in a statement,
//     [Now] outside.
//   - A transaction locks what it reads and will write with SELECT ... FOR
//     UPDATE at the end of the statement. SQLite ignores it: there a
//     transaction is alone from its beginning.
//   - RowsAffected counts the rows that matched, changed or not.
//
// It is not a query builder and not an object mapper.
package db

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/fault"
)

const (
	defaultMaxOpen        = 20
	defaultConnectTimeout = 10 * time.Second
	// connLifetime is below the time after which load balancers and servers
	// drop what is idle, and lets a pool find a new primary by itself.
	connLifetime = 4 * time.Minute
	pingTimeout  = 5 * time.Second // of one attempt to connect
)

// Config says which database to open, and how. URL is required.
type Config struct {
	// URL is mysql://user:password@host:port/database?options with the options
	// of go-sql-driver/mysql (readTimeout, ...), sqlite:///absolute/path,
	// sqlite://path/relative/to/the/process, or sqlite:///:memory: for a database that lives
	// as long as the handle.
	// Special characters in the password are percent-encoded. The port
	// defaults to 3306. What correctness needs cannot be changed by options:
	// times in UTC, RowsAffected, sql_mode, one statement at a time.
	//
	// TLS is asked for by tls=true, which trusts the system's authorities, or by the names of
	// SQLAlchemy: ssl_ca, ssl_cert and ssl_key, see package tlsfile. The server's certificate must
	// have the name of the URL's host, or ssl_server_name; with ssl_check_hostname=false only its
	// authority counts, with tls=skip-verify nothing. Without TLS to another machine there is one
	// warning.
	URL string
	// MaxOpen is the most connections that are open at once, all of which stay
	// open while idle. Default 20. A database in memory has one: inside a
	// transaction, every other use of the handle waits.
	MaxOpen int
	// ConnectTimeout is how long Open waits for a database that is down.
	// Default 10 s; negative for one attempt.
	ConnectTimeout time.Duration
	// SlowQuery is how long a statement may take until it is logged, at level
	// Warn, with its text and its time, which includes the time that it waited for
	// other writers of an SQLite file, but not that for a connection. Values of
	// parameters are not logged. Default 0: none.
	SlowQuery time.Duration
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// New returns a handle on a database without connecting to it: the first statement does, or
// [Service].Start, which waits for it. The caller closes it, or a [Service] that has it. The handle
// recovers from lost connections by itself and is safe for concurrent use. Invalid: the URL is
// wrong; the error does not contain it, as it has a password. ConnectTimeout is not used.
func New(cfg Config) (*sqlx.DB, error) {
	t, err := parse(cfg.URL)
	if err != nil {
		return nil, err
	}
	return t.open(cfg), nil
}

// Open is [New] that waits until the database answers, for a tool or a test: a service gives the
// handle of New to a [Service].
//
// Errors: Invalid if the URL is wrong; Unauthenticated or Denied, at once, if
// the database refuses the user, or its certificate is not trusted; Precondition, at once, if it has no such
// database or no TLS, or the file cannot be one; Unavailable if it did not answer in time;
// the context's. None contains the password.
func Open(ctx context.Context, cfg Config) (*sqlx.DB, error) {
	t, err := parse(cfg.URL)
	if err != nil {
		return nil, err
	}
	d := t.open(cfg)
	if err := connect(ctx, d, t.shown, cfg.ConnectTimeout); err != nil {
		_ = d.Close() // it has no connection
		return nil, err
	}
	return d, nil
}

// open makes the handle.
func (t *target) open(cfg Config) *sqlx.DB {
	log := cmp.Or(cfg.Logger, slog.Default())
	if t.plain != "" {
		log.Warn("the connections to the database are not encrypted: add tls=true, or ssl_ca with the file of its authority, to the URL", "host", t.plain)
	}
	t.watch(&watch{shown: t.shown, limit: max(cfg.SlowQuery, 0), log: log})
	d := sqlx.NewDb(sql.OpenDB(t.connector), t.driver)
	n := cfg.MaxOpen
	if n <= 0 {
		n = defaultMaxOpen
	}
	d.SetMaxOpenConns(n)
	d.SetMaxIdleConns(n)
	d.SetConnMaxLifetime(connLifetime)
	if t.memory {
		d.SetMaxOpenConns(1)
		d.SetConnMaxLifetime(0) // the data goes with the connection
	}
	return d
}

// connect pings until the database answers, or refuses for good.
func connect(ctx context.Context, d *sqlx.DB, shown string, limit time.Duration) error {
	if limit == 0 {
		limit = defaultConnectTimeout
	}
	begin := time.Now()
	wait := 20 * time.Millisecond
	for try := 1; ; try++ {
		ping, cancel := context.WithTimeout(ctx, min(pingTimeout, max(limit, time.Second)))
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
		if !mayComeBack(err) {
			e := Error(err)
			return fault.New(fault.CodeOf(e), "connect to %s: %w", shown, e)
		}
		wait = min(2*wait, time.Second)
		pause := wait/2 + rand.N(wait/2)
		if spent := time.Since(begin); spent+pause > limit {
			return fault.New(fault.Unavailable, "connect to %s: %d attempts in %v: %w",
				shown, try, spent.Round(10*time.Millisecond), err)
		}
		if err := sleep(ctx, pause); err != nil {
			return fmt.Errorf("connect to %s: %w", shown, err)
		}
	}
}

// mayComeBack tells a database that is down, or busy starting, from one that
// answered no.
func mayComeBack(err error) bool {
	if my, ok := errors.AsType[*mysql.MySQLError](err); ok {
		c, _ := classMySQL(my)
		return c == fault.Unavailable
	}
	if code, ok := sqliteCode(err); ok {
		return code&0xff == sqliteBusy || code&0xff == sqliteLocked
	}
	return true
}

// Now returns the database's clock in UTC, to the microsecond (SQLite's is this
// machine's). Leases and heartbeats compare by it, because the clocks of the
// hosts differ. Errors are those of [Error].
func Now(ctx context.Context, q sqlx.QueryerContext) (time.Time, error) {
	var now time.Time
	if err := q.QueryRowxContext(ctx, "SELECT UTC_TIMESTAMP(6)").Scan(&now); err != nil {
		return time.Time{}, fmt.Errorf("database's clock: %w", Error(err))
	}
	return now, nil
}

// sleep waits for d, or returns the cause of the context's end.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
