package db_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
)

// insert adds a thing in a transaction of its own, or in that of ctx.
func insert(ctx context.Context, d *sqlx.DB, id string) error {
	return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO things (id, name) VALUES (?, ?)", id, id)
		return err
	})
}

// count returns the number of things.
func count(t *testing.T, d *sqlx.DB) int {
	t.Helper()
	return get[int](t, d, "SELECT COUNT(*) FROM things")
}

// TestTxJoins: a Tx inside another one is a part of it. A Tx on another handle is a
// separate transaction.
func TestTxJoins(t *testing.T) {
	t.Parallel()
	undone := errors.New("undone")
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		other := mustOpen(t, dbtest.SQLite(t))
		if err := db.Migrate(t.Context(), other, only(things)...); err != nil {
			t.Fatal(err)
		}
		both := func(end error) error {
			return db.Tx(t.Context(), d, func(ctx context.Context, outer *sqlx.Tx) error {
				if err := insert(ctx, d, "a"); err != nil {
					return err
				}
				if err := db.Tx(ctx, other, func(ctx context.Context, _ *sqlx.Tx) error { // a Tx on another handle, and inside it a Tx on d
					return errors.Join(insert(ctx, other, "o"), db.Tx(ctx, d, func(_ context.Context, inner *sqlx.Tx) error {
						if inner != outer {
							t.Error("the inner Tx has another transaction")
						}
						return nil
					}))
				}); err != nil {
					return err
				}
				return errors.Join(insert(ctx, d, "b"), end)
			})
		}
		if err := both(undone); !errors.Is(err, undone) || count(t, d) != 0 || count(t, other) != 1 {
			t.Errorf("rolled back: %v; %d and %d rows, want 0, and 1 on the other handle", err, count(t, d), count(t, other))
		}
		exec(t, other, "DELETE FROM things")
		if err := both(nil); err != nil || count(t, d) != 2 {
			t.Errorf("committed: %v; %d rows, want 2", err, count(t, d))
		}
	})
}

// TestTxInnerFails: the error of an inner Tx makes the whole transaction fail, even if
// the outer function ignores the error, because a part may be done.
func TestTxInnerFails(t *testing.T) {
	t.Parallel()
	half := errors.New("half")
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		fail := func(ctx context.Context) error {
			return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
				if _, err := tx.ExecContext(ctx, "INSERT INTO things (id, name) VALUES ('a', 'x')"); err != nil {
					return err
				}
				return half
			})
		}
		var late context.Context
		err := db.Tx(t.Context(), d, func(ctx context.Context, _ *sqlx.Tx) error {
			late = ctx    //nolint:fatcontext // the test uses the context after the transaction
			_ = fail(ctx) // ignored on purpose
			if err := insert(ctx, d, "b"); !errors.Is(err, half) {
				t.Errorf("the next inner Tx: %v, want the first error", err)
			}
			return nil
		})
		if !errors.Is(err, half) || count(t, d) != 0 {
			t.Errorf("an ignored error: %v, %d rows; want the error and no row", err, count(t, d))
		}
		if err := insert(late, d, "c"); !errors.Is(err, fault.Precondition) || count(t, d) != 0 {
			t.Errorf("after the transaction: %v, %d rows; want Precondition", err, count(t, d))
		}
		own := errors.New("own")
		err = db.Tx(t.Context(), d, func(ctx context.Context, _ *sqlx.Tx) error {
			_ = fail(ctx)
			return own
		})
		if !errors.Is(err, own) {
			t.Errorf("the outer function's own error: %v, want %v", err, own)
		}
		err = db.Tx(t.Context(), d, func(ctx context.Context, _ *sqlx.Tx) error {
			func() {
				defer func() { _ = recover() }()
				_ = db.Tx(ctx, d, func(context.Context, *sqlx.Tx) error { panic("inner") })
			}()
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), "panic in a part of the transaction") {
			t.Errorf("a recovered panic: %v", err)
		}
	})
}

// TestTxInnerContention: if an inner Tx fails because of another transaction, the
// outermost Tx runs again as a whole, even if the outer function changes or ignores
// the error.
func TestTxInnerContention(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		lost := &mysql.MySQLError{Number: 1213, SQLState: [5]byte{'4', '0', '0', '0', '1'}, Message: "deadlock"}
		for name, hide := range map[string]func(error) error{
			"returned": func(err error) error { return err },
			"wrapped": func(err error) error {
				if err != nil {
					err = fmt.Errorf("the inner part: %w", err)
				}
				return err
			},
			"replaced": func(err error) error {
				if err != nil {
					err = errors.New("something went wrong")
				}
				return err
			},
			"ignored": func(error) error { return nil },
		} {
			exec(t, d, "DELETE FROM things")
			outer, inner := 0, 0
			err := db.Tx(t.Context(), d, func(ctx context.Context, _ *sqlx.Tx) error {
				outer++
				if err := insert(ctx, d, "a"); err != nil {
					return err
				}
				return hide(db.Tx(ctx, d, func(context.Context, *sqlx.Tx) error {
					if inner++; inner < 3 {
						return lost
					}
					return nil
				}))
			})
			if err != nil || outer != 3 || inner != 3 || count(t, d) != 1 {
				t.Errorf("error %s: %v; the outer function ran %d times, the inner %d, %d rows; want 3, 3, 1", name, err, outer, inner, count(t, d))
			}
		}
	})
}

// TestReaders: after its first write a session reads from the primary. Other sessions read from
// a healthy replica. A read in a transaction uses the transaction.
func TestReaders(t *testing.T) {
	t.Parallel()
	primary := mustOpen(t, dbtest.SQLite(t))
	server := envtest.MariaDB(t)
	replicas := []*sqlx.DB{mustOpen(t, dbtest.SQLite(t)), mustOpen(t, dbtest.On(t, server.URL))}
	for i, d := range append([]*sqlx.DB{primary}, replicas...) { // the rows differ and so show which database was read
		if err := db.Migrate(t.Context(), d, only(things)...); err != nil {
			t.Fatal(err)
		}
		exec(t, d, fmt.Sprintf("INSERT INTO things (id, name) VALUES ('%d', '%d')", i, i))
	}
	r := db.NewReaders(primary, replicas...)
	read := func(ctx context.Context) string {
		var name string
		if err := sqlx.GetContext(ctx, r.For(ctx), &name, "SELECT name FROM things ORDER BY id LIMIT 1"); err != nil {
			t.Errorf("read: %v", err)
		}
		return name
	}
	readSome := func(ctx context.Context, n int) string { // the databases that n reads used
		seen := map[string]bool{}
		for range n {
			seen[read(ctx)] = true
		}
		return strings.Join(slices.Sorted(maps.Keys(seen)), "")
	}
	ctx := t.Context()
	if err := r.Check(ctx); err != nil || readSome(ctx, 4) != "12" {
		t.Errorf("Check: %v; reads used %s, want both replicas", err, readSome(ctx, 4))
	}
	mine, others := db.WithSession(ctx), db.WithSession(ctx)
	if readSome(mine, 4) != "12" {
		t.Error("session without writes does not read from replicas")
	}
	if err := db.Tx(mine, primary, func(ctx context.Context, tx *sqlx.Tx) error {
		if read(ctx) != "0" {
			t.Error("read in a transaction does not use the primary")
		}
		_, err := tx.ExecContext(ctx, "UPDATE things SET n = 7")
		if r.For(ctx) != sqlx.ExtContext(tx) {
			t.Error("read in a transaction does not use the transaction")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if readSome(mine, 4) != "0" || readSome(others, 4) != "12" {
		t.Errorf("the session that wrote reads from %s, another one from %s; want 0 and 12", readSome(mine, 4), readSome(others, 4))
	}
	failed := db.WithSession(ctx)
	if err := db.Tx(failed, primary, func(context.Context, *sqlx.Tx) error { return errors.New("no") }); err == nil || readSome(failed, 4) != "12" {
		t.Error("session whose transaction failed reads from the primary")
	}
	// The second replica is made read-only, as replicas are, and is then killed. Then the handle of the first replica is
	// closed.
	exec(t, replicas[1], "SET GLOBAL read_only = 1")
	if err := r.Check(ctx); err != nil || readSome(ctx, 4) != "12" {
		t.Errorf("read-only: %v; reads used %s, want both replicas", err, readSome(ctx, 4))
	}
	server.Kill()
	if err := r.Check(ctx); !errors.Is(err, fault.Unavailable) || !strings.HasPrefix(err.Error(), "replica 2: the database does not answer") || readSome(ctx, 4) != "1" {
		t.Errorf("killed: %v; reads used %s, want the other replica", err, readSome(ctx, 4))
	}
	if err := replicas[0].Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(ctx); err == nil || readSome(ctx, 4) != "0" {
		t.Errorf("no healthy replica: %v; reads used %s, want the primary", err, readSome(ctx, 4))
	}
	if err := server.Restart(ctx); err != nil { // the cleanup drops the test's database
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := db.NewReaders(primary).Check(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Check with a context that has ended: %v, want Canceled", err)
	}
}

// TestHealth: Health returns nil for a healthy database, and the right error for databases that are read-only, hang or
// are down.
func TestHealth(t *testing.T) {
	t.Parallel()
	server := envtest.MariaDB(t)
	url := dbtest.On(t, server.URL)
	d := mustOpen(t, url)
	for _, d := range []*sqlx.DB{d, mustOpen(t, dbtest.SQLite(t))} {
		if err := db.Health(t.Context(), d); err != nil {
			t.Errorf("%s: %v", d.DriverName(), err)
		}
	}
	if err := db.Migrate(t.Context(), d, only(things)...); err != nil {
		t.Fatal(err)
	}
	// A user without the privilege to write on a read-only server.
	for _, q := range []string{"CREATE USER 'plain'@'%' IDENTIFIED BY 'secret'", "GRANT SELECT, INSERT ON *.* TO 'plain'@'%'", "SET GLOBAL read_only = 1"} {
		exec(t, d, q)
	}
	at := url[strings.Index(url, "@"):]
	plain := mustOpen(t, "mysql://plain:secret"+at)
	err := insert(t.Context(), plain, "a")
	if !errors.Is(err, fault.Unavailable) || fault.From(err).Reason != "ReadOnly" || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("write on a read-only server: %v", err)
	}
	if err := db.Health(t.Context(), plain); !errors.Is(err, fault.Unavailable) || fault.From(err).Reason != "ReadOnly" || err.Error() != "the database is read-only" {
		t.Errorf("Health of a read-only server: %v", err)
	}
	exec(t, d, "SET GLOBAL read_only = 0")
	if err := db.Health(t.Context(), plain); err != nil {
		t.Errorf("Health after the server is writable: %v", err)
	}
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := db.Health(ctx, d); !errors.Is(err, fault.Unavailable) {
		t.Errorf("Health of a server that hangs: %v, want Unavailable", err)
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	if err := db.Health(t.Context(), d); !errors.Is(err, fault.Unavailable) {
		t.Errorf("Health of a server that is down: %v, want Unavailable", err)
	}
	if err := server.Restart(t.Context()); err != nil { // the cleanup drops the test's database
		t.Fatal(err)
	}
}

// TestFull: a write to a full database fails with Exhausted.
func TestFull(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, nil, func(t *testing.T, d *sqlx.DB) {
		d.SetMaxOpenConns(1) // the limits belong to the connection
		if d.DriverName() == "mysql" {
			exec(t, d, "SET SESSION max_heap_table_size = 16384")
			exec(t, d, "CREATE TABLE blobs (id INTEGER NOT NULL PRIMARY KEY, data CHAR(250) NOT NULL) ENGINE = MEMORY")
		} else {
			exec(t, d, "CREATE TABLE blobs (id INTEGER NOT NULL PRIMARY KEY, data CHAR(250) NOT NULL)")
			exec(t, d, "PRAGMA max_page_count = 10")
		}
		var err error
		for i := 0; err == nil && i < 10_000; i++ {
			err = db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
				_, err := tx.ExecContext(ctx, "INSERT INTO blobs (id, data) VALUES (?, ?)", i, strings.Repeat("x", 250))
				return err
			})
		}
		if !errors.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "full") {
			t.Errorf("write to a full database: %v (%v), want Exhausted", err, fault.CodeOf(err))
		}
		if get[int](t, d, "SELECT COUNT(*) FROM blobs") == 0 {
			t.Error("the database was full from the start")
		}
	})
}

// lines collects a log. It is safe for concurrent use.
type lines struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(b)
}

// drain returns the log and clears it.
func (l *lines) drain() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.Reset()
	return l.String()
}

// TestSlowQuery: each kind of slow statement is logged, without its parameters.
func TestSlowQuery(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		var log lines
		logger := slog.New(slog.NewTextHandler(&log, nil))
		open := func(slowAfter time.Duration) *sqlx.DB {
			d, err := db.Open(t.Context(), db.Config{URL: url, SlowQuery: slowAfter, Logger: logger})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = d.Close() })
			return d
		}
		d := open(time.Nanosecond)
		exec(t, d, "CREATE TABLE s (v VARCHAR(255) NOT NULL)")
		log.drain()
		for name, f := range map[string]func() error{
			"exec": func() error {
				_, err := d.ExecContext(t.Context(), "INSERT INTO s\n (v)  VALUES (?)", "secret")
				return err
			},
			"query": func() error {
				var n int
				return d.GetContext(t.Context(), &n, "SELECT COUNT(*) FROM s\n WHERE  v = ?", "secret")
			},
			"prepared": func() error {
				st, err := d.PreparexContext(t.Context(), "SELECT COUNT(*) FROM s WHERE v <> ?")
				if err != nil {
					return err
				}
				defer func() { _ = st.Close() }()
				var n int
				_, err = d.ExecContext(t.Context(), "DELETE FROM s WHERE v = ?", "secret")
				return errors.Join(err, st.GetContext(t.Context(), &n, "secret"))
			},
			"in a transaction": func() error {
				return db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
					_, err := tx.ExecContext(ctx, "UPDATE s SET v = ?", "secret")
					return err
				})
			},
		} {
			if err := f(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			got := log.drain()
			want := map[string]string{
				"exec": `query="INSERT INTO s (v) VALUES (?)"`, "query": `query="SELECT COUNT(*) FROM s WHERE v = ?"`,
				"prepared": `query="SELECT COUNT(*) FROM s WHERE v <> ?"`, "in a transaction": `query="UPDATE s SET v = ?"`,
			}[name]
			if !strings.Contains(got, want) || !strings.Contains(got, `level=WARN msg="slow query" took=`) || strings.Contains(got, "secret") {
				t.Errorf("%s: the log is %s, want %s", name, got, want)
			}
		}
		fast := open(time.Hour)
		exec(t, fast, "INSERT INTO s (v) VALUES ('x')")
		if got := log.drain(); got != "" {
			t.Errorf("a fast statement was logged: %s", got)
		}
	})
}
