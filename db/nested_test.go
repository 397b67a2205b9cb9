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

func insert(ctx context.Context, d *sqlx.DB, id string) error {
	return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO things (id, name) VALUES (?, ?)", id, id)
		return err
	})
}

func count(t *testing.T, d *sqlx.DB) int {
	t.Helper()
	return get[int](t, d, "SELECT COUNT(*) FROM things")
}

// TestTxJoins: a transaction inside another one is part of it, and one on another
// handle is not.
func TestTxJoins(t *testing.T) {
	t.Parallel()
	undone := errors.New("undone")
	dbtest.Each(t, things, func(t *testing.T, d *sqlx.DB) {
		other := mustOpen(t, dbtest.SQLite(t))
		if err := db.Migrate(t.Context(), other, things); err != nil {
			t.Fatal(err)
		}
		both := func(end error) error {
			return db.Tx(t.Context(), d, func(ctx context.Context, outer *sqlx.Tx) error {
				if err := insert(ctx, d, "a"); err != nil {
					return err
				}
				if err := db.Tx(ctx, other, func(ctx context.Context, _ *sqlx.Tx) error { // and through it
					return errors.Join(insert(ctx, other, "o"), db.Tx(ctx, d, func(_ context.Context, inner *sqlx.Tx) error {
						if inner != outer {
							t.Error("the inner transaction is another one")
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
			t.Errorf("%v; %d and %d rows, want 0 and the other handle's own", err, count(t, d), count(t, other))
		}
		exec(t, other, "DELETE FROM things")
		if err := both(nil); err != nil || count(t, d) != 2 {
			t.Errorf("%v; %d rows, want 2", err, count(t, d))
		}
	})
}

// TestTxDoomed: what an inner part failed with cannot be hidden, for half of it
// may be done.
func TestTxDoomed(t *testing.T) {
	t.Parallel()
	half := errors.New("half")
	dbtest.Each(t, things, func(t *testing.T, d *sqlx.DB) {
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
			late = ctx    //nolint:fatcontext // it is what the test is about
			_ = fail(ctx) // hidden
			if err := insert(ctx, d, "b"); !errors.Is(err, half) {
				t.Errorf("the next part: %v, want the first error", err)
			}
			return nil
		})
		if !errors.Is(err, half) || count(t, d) != 0 {
			t.Errorf("hidden: %v, %d rows", err, count(t, d))
		}
		if err := insert(late, d, "c"); !errors.Is(err, fault.Precondition) || count(t, d) != 0 {
			t.Errorf("after its end: %v, %d rows; want Precondition", err, count(t, d))
		}
		own := errors.New("own")
		err = db.Tx(t.Context(), d, func(ctx context.Context, _ *sqlx.Tx) error {
			_ = fail(ctx)
			return own
		})
		if !errors.Is(err, own) {
			t.Errorf("the function's own error: %v", err)
		}
		err = db.Tx(t.Context(), d, func(ctx context.Context, _ *sqlx.Tx) error {
			func() {
				defer func() { _ = recover() }()
				_ = db.Tx(ctx, d, func(context.Context, *sqlx.Tx) error { panic("inner") })
			}()
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), "panic in a part of the transaction") {
			t.Errorf("a panic that was hidden: %v", err)
		}
	})
}

// TestTxInnerLost: what an inner part lost against others runs the outermost
// again, as a whole, also if the functions between hide it.
func TestTxInnerLost(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, things, func(t *testing.T, d *sqlx.DB) {
		lost := &mysql.MySQLError{Number: 1213, SQLState: [5]byte{'4', '0', '0', '0', '1'}, Message: "deadlock"}
		for name, hide := range map[string]func(error) error{
			"as it is": func(err error) error { return err },
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
			"dropped": func(error) error { return nil },
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
				t.Errorf("%s: %v; outer ran %d times, inner %d, %d rows", name, err, outer, inner, count(t, d))
			}
		}
	})
}

// TestReaders: who has written reads the primary, others a replica that is well,
// and a transaction itself.
func TestReaders(t *testing.T) {
	t.Parallel()
	primary := mustOpen(t, dbtest.SQLite(t))
	server := envtest.MariaDB(t)
	replicas := []*sqlx.DB{mustOpen(t, dbtest.SQLite(t)), mustOpen(t, dbtest.On(t, server.URL))}
	for i, d := range append([]*sqlx.DB{primary}, replicas...) { // they differ, so that one sees which was read
		if err := db.Migrate(t.Context(), d, things); err != nil {
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
	some := func(ctx context.Context, n int) string {
		seen := map[string]bool{}
		for range n {
			seen[read(ctx)] = true
		}
		return strings.Join(slices.Sorted(maps.Keys(seen)), "")
	}
	ctx := t.Context()
	if err := r.Check(ctx); err != nil || some(ctx, 4) != "12" {
		t.Errorf("%v; read %s, want each replica in turn", err, some(ctx, 4))
	}
	mine, others := db.WithSession(ctx), db.WithSession(ctx)
	if some(mine, 4) != "12" {
		t.Error("a session that has written nothing does not read replicas")
	}
	if err := db.Tx(mine, primary, func(ctx context.Context, tx *sqlx.Tx) error {
		if read(ctx) != "0" {
			t.Error("a transaction does not read itself")
		}
		_, err := tx.ExecContext(ctx, "UPDATE things SET n = 7")
		if r.For(ctx) != sqlx.ExtContext(tx) {
			t.Error("a transaction does not read what it wrote")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if some(mine, 4) != "0" || some(others, 4) != "12" {
		t.Errorf("who wrote reads %s, others %s", some(mine, 4), some(others, 4))
	}
	failed := db.WithSession(ctx)
	if err := db.Tx(failed, primary, func(context.Context, *sqlx.Tx) error { return errors.New("no") }); err == nil || some(failed, 4) != "12" {
		t.Error("who has written nothing reads the primary")
	}
	// A replica that hangs, one that is read-only, as replicas are, one that is
	// gone.
	exec(t, replicas[1], "SET GLOBAL read_only = 1")
	if err := r.Check(ctx); err != nil || some(ctx, 4) != "12" {
		t.Errorf("read-only: %v; read %s", err, some(ctx, 4))
	}
	server.Kill()
	if err := r.Check(ctx); !errors.Is(err, fault.Unavailable) || !strings.HasPrefix(err.Error(), "replica 2: the database does not answer") || some(ctx, 4) != "1" {
		t.Errorf("killed: %v; read %s", err, some(ctx, 4))
	}
	if err := replicas[0].Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(ctx); err == nil || some(ctx, 4) != "0" {
		t.Errorf("no replica is well: %v; read %s", err, some(ctx, 4))
	}
	if err := server.Restart(ctx); err != nil { // the end of the test drops its database
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := db.NewReaders(primary).Check(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestHealth: a database that answers, one that can only be read, one that hangs
// and one that is down.
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
	if err := db.Migrate(t.Context(), d, things); err != nil {
		t.Fatal(err)
	}
	// A writer without the right to write nevertheless.
	for _, q := range []string{"CREATE USER 'plain'@'%' IDENTIFIED BY 'secret'", "GRANT SELECT, INSERT ON *.* TO 'plain'@'%'", "SET GLOBAL read_only = 1"} {
		exec(t, d, q)
	}
	at := url[strings.Index(url, "@"):]
	plain := mustOpen(t, "mysql://plain:secret"+at)
	err := insert(t.Context(), plain, "a")
	if !errors.Is(err, fault.Unavailable) || fault.From(err).Reason != "ReadOnly" || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("write: %v", err)
	}
	if err := db.Health(t.Context(), plain); !errors.Is(err, fault.Unavailable) || fault.From(err).Reason != "ReadOnly" || err.Error() != "the database is read-only" {
		t.Errorf("read-only: %v", err)
	}
	exec(t, d, "SET GLOBAL read_only = 0")
	if err := db.Health(t.Context(), plain); err != nil {
		t.Errorf("no longer read-only: %v", err)
	}
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := db.Health(ctx, d); !errors.Is(err, fault.Unavailable) {
		t.Errorf("it hangs: %v", err)
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	if err := db.Health(t.Context(), d); !errors.Is(err, fault.Unavailable) {
		t.Errorf("it is down: %v", err)
	}
	if err := server.Restart(t.Context()); err != nil { // the end of the test drops its database
		t.Fatal(err)
	}
}

// TestFull: no room is Exhausted, and nothing of the transaction is done.
func TestFull(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, nil, func(t *testing.T, d *sqlx.DB) {
		d.SetMaxOpenConns(1) // the limits are the connection's
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
			t.Errorf("%v (%v), want Exhausted", err, fault.CodeOf(err))
		}
		if get[int](t, d, "SELECT COUNT(*) FROM blobs") == 0 {
			t.Error("nothing was written before")
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

func (l *lines) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.Reset()
	return l.String()
}

// TestSlowQuery: statements that take long are logged, however they are run, and
// never what is in them.
func TestSlowQuery(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		var log lines
		logger := slog.New(slog.NewTextHandler(&log, nil))
		open := func(limit time.Duration) *sqlx.DB {
			d, err := db.Open(t.Context(), db.Config{URL: url, SlowQuery: limit, Logger: logger})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = d.Close() })
			return d
		}
		d := open(time.Nanosecond)
		exec(t, d, "CREATE TABLE s (v VARCHAR(255) NOT NULL)")
		log.take()
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
			got := log.take()
			want := map[string]string{
				"exec": `query="INSERT INTO s (v) VALUES (?)"`, "query": `query="SELECT COUNT(*) FROM s WHERE v = ?"`,
				"prepared": `query="SELECT COUNT(*) FROM s WHERE v <> ?"`, "in a transaction": `query="UPDATE s SET v = ?"`,
			}[name]
			if !strings.Contains(got, want) || !strings.Contains(got, `level=WARN msg="slow query" took=`) || strings.Contains(got, "secret") {
				t.Errorf("%s: logged %s", name, got)
			}
		}
		fast := open(time.Hour)
		exec(t, fast, "INSERT INTO s (v) VALUES ('x')")
		if got := log.take(); got != "" {
			t.Errorf("logged %s", got)
		}
	})
}
