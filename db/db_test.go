package db_test

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
)

// only returns the migrations of a component without libraries.
func only(files fs.FS) []db.Migrations { return []db.Migrations{{Files: files}} }

// schema returns migrations with one file for each statement.
func schema(statements ...string) fstest.MapFS {
	dir := fstest.MapFS{}
	for i, st := range statements {
		dir[fmt.Sprintf("%04d_step.sql", i+1)] = &fstest.MapFile{Data: []byte("-- +goose Up\n" + st + ";\n")}
	}
	return dir
}

var things = schema(`CREATE TABLE things (
	id VARCHAR(36) NOT NULL PRIMARY KEY, name VARCHAR(20) NOT NULL, n BIGINT NOT NULL DEFAULT 0,
	made_at DATETIME(6), CONSTRAINT things_name UNIQUE (name), CHECK (n < 1000000))`,
	`CREATE TABLE parts (id INTEGER NOT NULL PRIMARY KEY, thing_id VARCHAR(36) NOT NULL,
	CONSTRAINT parts_thing FOREIGN KEY (thing_id) REFERENCES things (id))`)

// exec runs a statement. An error ends the test.
func exec(t *testing.T, e sqlx.ExecerContext, query string, args ...any) sql.Result {
	t.Helper()
	res, err := e.ExecContext(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return res
}

// get returns the value of a query with one row and one column. An error ends the test.
func get[T any](t *testing.T, q sqlx.QueryerContext, query string, args ...any) (out T) {
	t.Helper()
	if err := sqlx.GetContext(t.Context(), q, &out, query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return out
}

// TestWrongURLs: Open rejects each wrong URL with Invalid, and no error contains the password.
func TestWrongURLs(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	tests := []struct{ name, url, want string }{
		{"empty", "", "the database URL is empty"},
		{"no scheme", "nova:hunter2@tcp(db1)/nova", "no scheme"},
		{"other scheme", "postgres://nova:hunter2@db1/nova", `scheme "postgres"`},
		{"another dialect of SQLite", "sqlite+aiosqlite:///nova.db", `scheme "sqlite+aiosqlite"`},
		{"no user", "mysql://db1/nova", "no user"},
		{"no host", "mysql://nova:hunter2@/nova", "no host"},
		{"no database", "mysql://nova:hunter2@db1/", "no database name"},
		{"deep path", "mysql://nova:hunter2@db1/a/b", "database name with a /"},
		{"at and slash in password", "mysql://nova:hunter2@ss/wo:rd@db1:3306/nova", "write %40 for @, %2F for /, %3A for :"},
		{"slash in password", "mysql://nova:12/hunter2@db1/nova", "no user"},
		{"slash in password, a port", "mysql://nova:12/hunter2@db1/nova", "write %40 for @, %2F for /"},
		{"slash in password, not a port", "mysql://nova:x/hunter2@db1/nova", "write %40 for @, %2F for /"},
		{"hash in password", "mysql://nova:12#hunter2@db1/nova", "%23 for #"},
		{"question in password", "mysql://nova:12?hunter2@db1/nova", "no user"},
		{"percent in password", "mysql://nova:hunter2%@db1/nova", "%25 for %"},
		{"port above 65535", "mysql://nova:hunter2@db1:65536/nova", "the port 65536 is not between 1 and 65535"},
		{"long port", "mysql://nova:hunter2@db1:33060000000000000000/nova", "port 33060000000000000000"},
		{"port 0", "mysql://nova:hunter2@db1:0/nova", "port 0"},
		{"bad option", "mysql://nova:hunter2@db1/nova?timeout=soon", "timeout"},
		{"no file", "sqlite:///", "has no file"},
		{"sqlite options", "sqlite:///tmp/x.db?mode=ro", "no options"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := db.Open(t.Context(), db.Config{URL: tt.url})
			if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v (%v), want Invalid with %q", err, fault.CodeOf(err), tt.want)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error contains the password: %v", err)
			}
		})
	}
}

// TestOpenFails: each reason why a database cannot be opened has its own code. Open retries only if the
// database may become available.
func TestOpenFails(t *testing.T) {
	t.Parallel()
	server := dbtest.MySQL(t)
	with := func(change func(*url.URL)) string {
		u, err := url.Parse(server)
		if err != nil {
			t.Fatal("bad URL")
		}
		change(u)
		return u.String()
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // a server that never answers
	dead := envtest.FreeAddr(t)
	exec(t, mustOpen(t, server), "CREATE OR REPLACE USER poor@'127.0.0.1' IDENTIFIED BY 'hunter2'")

	const timeout = 300 * time.Millisecond
	tests := []struct {
		name  string
		url   string
		code  fault.Code
		want  string
		waits bool // Open retries until the timeout
	}{
		{"wrong password", with(func(u *url.URL) { u.User = url.UserPassword("poor", "hunter22") }), fault.Unauthenticated, "Access denied", false},
		{"no right", with(func(u *url.URL) { u.User = url.UserPassword("poor", "hunter2") }), fault.Denied, "Access denied", false},
		{"no database", with(func(u *url.URL) { u.Path = "/nonesuch" }), fault.Precondition, "nonesuch'; create it with CREATE DATABASE", false},
		{"down", "mysql://nova:hunter2@" + dead + "/nova", fault.Unavailable, "attempts in", true},
		{"hangs", "mysql://nova:hunter2@" + l.Addr().String() + "/nova", fault.Unavailable, "1 attempts in", true},
		{"no directory", "sqlite:///nonesuch/x.db", fault.Precondition, "the directory /nonesuch does not exist: make it", false},
		{"not a database", "sqlite:///proc/self/status", fault.Precondition, "/proc/self/status", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			_, err := db.Open(t.Context(), db.Config{URL: tt.url, ConnectTimeout: timeout})
			took := time.Since(begin)
			if fault.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v (%v), want %v with %q", err, fault.CodeOf(err), tt.code, tt.want)
			}
			if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), "hunter2") {
				t.Errorf("the error contains the password: %#v", err)
			}
			if took > 10*time.Second || tt.waits && took < timeout/3 { // Open does not wait for the last delay, which would pass the timeout
				t.Errorf("Open took %v, waits: %v", took, tt.waits)
			}
		})
	}
	t.Run("canceled", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		_, err := db.Open(ctx, db.Config{URL: "mysql://nova:hunter2@" + dead + "/nova", ConnectTimeout: time.Hour})
		if fault.CodeOf(err) != fault.Timeout || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Open = %v (%v), want Timeout", err, fault.CodeOf(err))
		}
	})
}

// mustOpen opens a database that is closed when the test ends. An error ends the test.
func mustOpen(t *testing.T, rawURL string) *sqlx.DB {
	t.Helper()
	d, err := db.Open(t.Context(), db.Config{URL: rawURL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// TestTimes: the database returns a stored time as the same instant in UTC, with
// microseconds. Times compare and sort in SQL.
func TestTimes(t *testing.T) {
	t.Parallel()
	zone := time.FixedZone("UTC+5", 5*3600)
	base := time.Date(2026, 3, 4, 1, 2, 3, 0, zone)
	times := []time.Time{ // in order
		base.Add(-24 * time.Hour),
		base,
		base.Add(time.Microsecond),
		base.Add(10*time.Microsecond + 999), // the 999 ns are cut off
		base.Add(100 * time.Millisecond).UTC(),
		base.Add(123456 * time.Microsecond),
		base.Add(time.Second),
	}
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		for i := range times {
			i = (i*5 + 3) % len(times) // not in the order of the times
			exec(t, d, "INSERT INTO things (id, name, made_at) VALUES (?, ?, ?)", i, i, times[i])
		}
		var want []time.Time
		for _, tm := range times {
			want = append(want, tm.UTC().Truncate(time.Microsecond))
		}
		var got []time.Time
		if err := d.SelectContext(t.Context(), &got, "SELECT made_at FROM things ORDER BY made_at"); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" { // cmp uses Equal; the zone is checked below
			t.Errorf("times (-want +got):\n%s", diff)
		}
		for i, tm := range times {
			if got[i].Location() != time.UTC {
				t.Errorf("time %v is not in UTC", got[i])
			}
			for query, n := range map[string]int{
				"SELECT COUNT(*) FROM things WHERE made_at < ?":  i,
				"SELECT COUNT(*) FROM things WHERE made_at = ?":  1,
				"SELECT COUNT(*) FROM things WHERE made_at >= ?": len(times) - i,
			} {
				if count := get[int](t, d, query, tm); count != n {
					t.Errorf("%s with %v: %d, want %d", query, tm, count, n)
				}
			}
		}
		if tm := get[time.Time](t, d, "SELECT MAX(made_at) FROM things"); !tm.Equal(times[len(times)-1]) {
			t.Errorf("MAX = %v", tm)
		}
		exec(t, d, "UPDATE things SET made_at = NULL WHERE id = '0'")
		if null := get[*time.Time](t, d, "SELECT made_at FROM things WHERE id = '0'"); null != nil {
			t.Errorf("NULL = %v", null)
		}
		st, err := d.PreparexContext(t.Context(), "SELECT made_at FROM things WHERE made_at = ?")
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		var tm time.Time
		if err := st.GetContext(t.Context(), &tm, sql.NullTime{Time: times[1], Valid: true}); err != nil || !tm.Equal(times[1]) {
			t.Errorf("prepared: %v, %v", tm, err)
		}
	})
}

// TestNow: the database's clock goes forward, even inside a transaction. UTC_TIMESTAMP(6) in a statement uses the same
// clock.
func TestNow(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		last := time.Now().Add(-time.Minute)
		now := func(q sqlx.QueryerContext) {
			t.Helper()
			tm, err := db.Now(t.Context(), q)
			if err != nil || tm.Before(last) || tm.Location() != time.UTC || time.Since(tm).Abs() > time.Minute {
				t.Fatalf("Now = %v, %v, before: %v", tm, err, last)
			}
			last = tm
		}
		for range 20 {
			now(d)
		}
		exec(t, d, "INSERT INTO things (id, name, made_at) VALUES ('x', 'x', UTC_TIMESTAMP(6))")
		stored := get[time.Time](t, d, "SELECT made_at FROM things")
		if stored.Before(last) {
			t.Errorf("UTC_TIMESTAMP(6) stored %v, before %v", stored, last)
		}
		last = stored
		tx, err := d.BeginTxx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		now(tx)
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		if n := get[int](t, d, "SELECT COUNT(*) FROM things WHERE made_at <= UTC_TIMESTAMP(6)"); n != 1 {
			t.Errorf("%d rows have a time before the clock's, want 1", n)
		}
		c, err := d.Connx(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		now(c)
	})
}

// TestNowInTx: each attempt to run a transaction reads the clock once.
func TestNowInTx(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		var asked atomic.Int64
		d, err := db.Open(t.Context(), db.Config{URL: url, Observe: func(_ context.Context, query string) func(error) {
			if query == "SELECT UTC_TIMESTAMP(6)" {
				asked.Add(1)
			}
			return func(error) {}
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		asked.Store(0)
		var last time.Time
		for range 2 {
			err = db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
				first, err := db.Now(ctx, tx)
				if err != nil {
					return err
				}
				return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
					second, err := db.Now(ctx, tx)
					if err == nil && (!first.Equal(second) || !first.After(last)) {
						t.Errorf("the times are %v and %v, after %v", first, second, last)
					}
					last = second
					return err
				})
			})
			if err != nil {
				t.Error(err)
			}
		}
		if n := asked.Load(); n != 2 {
			t.Errorf("two transactions have read the clock %d times", n)
		}
	})
}

// TestSameSQL: SQL that the two databases interpret differently by default has one meaning.
func TestSameSQL(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		exec(t, d, `INSERT INTO things (id, name) VALUES ('1', 'a'), ('2', 'B')`)
		for query, want := range map[string]int{
			`SELECT COUNT(*) FROM things WHERE name = 'A'`:               0, // texts are case-sensitive
			`SELECT COUNT(*) FROM things WHERE name LIKE 'A%'`:           0,
			`SELECT COUNT(*) FROM things WHERE "name" = 'a'`:             1, // quoted identifiers
			`SELECT COUNT(*) FROM things WHERE name || 'x' = 'ax'`:       1,
			`SELECT COUNT(*) FROM things WHERE name = 'a' FOR UPDATE`:    1,
			"SELECT COUNT(*) FROM things WHERE 'B' < 'a'\n for update ;": 2,
		} {
			if got := get[int](t, d, query); got != want {
				t.Errorf("%s: %d, want %d", query, got, want)
			}
		}
		if diff := cmp.Diff("B", get[string](t, d, "SELECT MIN(name) FROM things")); diff != "" {
			t.Error(diff)
		}
		n, err := exec(t, d, "UPDATE things SET n = n WHERE name = 'a'").RowsAffected()
		if err != nil || n != 1 {
			t.Errorf("RowsAffected of an update that changes nothing = %d, %v; want 1", n, err)
		}
		for _, wrong := range []string{
			`SELECT COUNT(*) FROM things WHERE name = "a"`, // a column, not a text
			"UPDATE things SET n = 'x'",
			"INSERT INTO things (id) VALUES ('3')",
		} {
			if _, err := d.ExecContext(t.Context(), wrong); err == nil {
				t.Errorf("%s: no error", wrong)
			}
		}
	})
}

// TestReadersWhileWriting: a read does not wait for a transaction and does not see its
// changes. No statement fails because the database is busy.
func TestReadersWhileWriting(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		exec(t, d, "INSERT INTO things (id, name) VALUES ('1', 'a')")
		err := db.Tx(t.Context(), d, func(_ context.Context, tx *sqlx.Tx) error {
			exec(t, tx, "UPDATE things SET n = 1")                   //nolint:contextcheck // exec uses the test's context
			if n := get[int](t, d, "SELECT n FROM things"); n != 0 { //nolint:contextcheck // get uses the test's context
				t.Errorf("a reader sees n = %d, which is not committed", n)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		stop := make(chan struct{})
		reads := 0
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				var n int
				if err := d.GetContext(t.Context(), &n, "SELECT n FROM things"); err != nil {
					t.Errorf("read: %v", err)
					return
				}
				reads++
			}
		})
		var writers sync.WaitGroup
		for range 8 {
			writers.Go(func() {
				for i := range 50 {
					var err error
					if i%2 == 0 {
						_, err = d.ExecContext(t.Context(), "UPDATE things SET n = n + 1")
					} else {
						err = db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
							_, err := tx.ExecContext(ctx, "UPDATE things SET n = n + 1")
							return err
						})
					}
					if err != nil {
						t.Errorf("write: %v", err)
						return
					}
				}
			})
		}
		writers.Wait()
		close(stop)
		wg.Wait()
		if n := get[int](t, d, "SELECT n FROM things"); n != 1+8*50 {
			t.Errorf("n = %d, want %d", n, 1+8*50)
		}
		if reads < 20 {
			t.Errorf("%d reads during 400 writes, want at least 20: readers starve", reads)
		}
	})
}

// TestMemory: all uses of a handle share its database in memory, and two handles have
// different databases.
func TestMemory(t *testing.T) {
	t.Parallel()
	d := mustOpen(t, "sqlite:///:memory:")
	if err := db.Migrate(t.Context(), d, only(things)...); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := d.ExecContext(t.Context(), "INSERT INTO things (id, name) VALUES (?, ?)", i, i); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := get[int](t, d, "SELECT COUNT(*) FROM things"); n != 8 {
		t.Errorf("%d rows, want 8", n)
	}
	if _, err := db.Check(t.Context(), mustOpen(t, "sqlite:///:memory:"), only(things)...); fault.CodeOf(err) != fault.Precondition {
		t.Errorf("a second database in memory has the schema of the first: %v", err)
	}
}

// TestOddFile: the name of a file may have characters with a meaning in URLs.
func TestOddFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a b%41?c#d.db")
	u := url.URL{Scheme: "sqlite", Path: path}
	exec(t, mustOpen(t, u.String()), "CREATE TABLE t (i INTEGER)")
	if files, err := filepath.Glob(filepath.Join(filepath.Dir(path), "a b%41[?]c#d.db")); err != nil || len(files) != 1 {
		t.Errorf("files %q, %v; want %s", files, err, path)
	}
}

// TestSQLitePaths: a path may be absolute or relative, and may have characters with a meaning in URLs.
func TestSQLitePaths(t *testing.T) { //nolint:paralleltest // the test changes the directory
	dir := t.TempDir()
	t.Chdir(dir)
	for raw, file := range map[string]string{
		"sqlite://" + dir + "/a.db":        "a.db",
		"sqlite:///" + dir + "/b.db":       "b.db", // four slashes
		"sqlite://c.db":                    "c.db",
		"sqlite://sub/d.db":                "sub/d.db",
		"sqlite://" + dir + "/e#1.db":      "e#1.db",
		"sqlite://" + dir + "/f%231%3F.db": "f#1?.db",
		"sqlite://" + dir + "/g%.db":       "g%.db",
		"sqlite://" + dir + "/h%25.db":     "h%.db",
		"sqlite://" + dir + "/i j.db":      "i j.db",
	} {
		if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
			t.Fatal(err)
		}
		d, err := db.Open(t.Context(), db.Config{URL: raw})
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		exec(t, d, "CREATE TABLE x (id INTEGER)")
		_ = d.Close()
		if _, err := os.Stat(file); err != nil {
			t.Errorf("%s: %v", raw, err)
		}
	}
}
