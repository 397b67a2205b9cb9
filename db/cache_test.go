package db_test

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/waittest"
)

// filler makes a query long. A connection to MariaDB prepares a query of 400 bytes or more.
var filler = " /* " + strings.Repeat("long ", 80) + "*/ "

// TestPreparedValues: a long query that a connection has prepared has the same results, errors and argument types as a
// short one, also after a column was added to the table.
func TestPreparedValues(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, rawURL string) {
		d, err := db.Open(t.Context(), db.Config{URL: rawURL, MaxOpen: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		type row struct {
			ID     int64
			Text   string
			Small  int
			Real   float64
			Flag   bool
			Raw    []byte
			At     *time.Time
			None   *string
			Parts  db.JSON[[]string]
			Sum    float64
			Longer string
		}
		exec(t, d, `CREATE TABLE many (id BIGINT PRIMARY KEY, text VARCHAR(255) NOT NULL, small INTEGER NOT NULL, "real" DOUBLE NOT NULL, flag BOOLEAN NOT NULL, raw BLOB NOT NULL, at DATETIME(6), none VARCHAR(10), parts TEXT NOT NULL, longer TEXT NOT NULL)`)
		at := time.Date(2026, 11, 28, 1, 2, 3, 456789000, time.UTC)
		insert := `INSERT INTO many` + "%s" + `(id, text, small, "real", flag, raw, at, none, parts, longer) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
		query := `SELECT id, text, small, "real", flag, raw, at, none, parts, longer, (SELECT SUM(small) FROM many` + "%s" + `) AS sum FROM many WHERE id = ? AND flag = ? AND at = ? AND text = ?`
		text := "ä'\\\"? \u2713"
		for i := range 4 {
			if i == 3 {
				exec(t, d, "ALTER TABLE many ADD COLUMN more INTEGER")
			}
			var got [2]row
			for n, fill := range []string{"", filler} {
				id := int64(10*i + n)
				exec(t, d, fmt.Sprintf(insert, fill), id, text, -5, 1.25, true, []byte{0, 255, '\''}, at, nil, db.JSONOf([]string{"a", "b"}), strings.Repeat("x", 60_000))
				if err := d.GetContext(t.Context(), &got[n], fmt.Sprintf(query, fill), id, true, at, text); err != nil {
					t.Fatal(err)
				}
				if r := got[n]; r.ID != id || r.Text != text || r.Small != -5 || r.Real != 1.25 || !r.Flag || string(r.Raw) != "\x00\xff'" || r.At == nil || !r.At.Equal(at) || r.None != nil ||
					strings.Join(r.Parts.V, "") != "ab" || len(r.Longer) != 60_000 || r.Sum != float64(-5*(2*i+n+1)) {
					t.Errorf("run %d with %d bytes of filler: %+v", i, len(fill), r)
				}
				if n, err := db.Exec(t.Context(), d, "UPDATE many SET small = small"+fill+" WHERE id <= ?", id); err != nil || n != int64(2*i+1+min(len(fill), 1)) {
					t.Errorf("an UPDATE that changes nothing matches %d rows, %v", n, err)
				}
				if _, err := db.Exec(t.Context(), d, fmt.Sprintf(insert, fill), id, text, 0, 0, true, "", at, nil, "[]", ""); !errors.Is(err, fault.Conflict) {
					t.Errorf("a second row: %v, want Conflict", err)
				}
				var none row
				if err := d.GetContext(t.Context(), &none, fmt.Sprintf(query, fill), -1, true, at, text); !errors.Is(err, sql.ErrNoRows) {
					t.Errorf("no row: %v", err)
				}
			}
		}
	})
}

// statementsOf returns how many statements the only connection of a handle has prepared, and closed.
func statementsOf(t *testing.T, d *sqlx.DB) (prepared, closed int) {
	t.Helper()
	var rows []struct {
		Name  string `db:"Variable_name"`
		Value string `db:"Value"`
	}
	if err := d.SelectContext(t.Context(), &rows, "SHOW SESSION STATUS WHERE Variable_name IN ('Com_stmt_prepare', 'Com_stmt_close')"); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		n, err := strconv.Atoi(r.Value)
		if err != nil {
			t.Fatal(err)
		}
		if r.Name == "Com_stmt_prepare" {
			prepared = n
		} else {
			closed = n
		}
	}
	return prepared, closed
}

// TestPreparedCount: a connection prepares a long query at its second run, once. Short queries and queries that run once
// are not prepared. The connection closes the statements that it has not used for the longest time.
func TestPreparedCount(t *testing.T) {
	t.Parallel()
	d, err := db.Open(t.Context(), db.Config{URL: dbtest.MySQL(t), MaxOpen: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	run := func(query string) {
		t.Helper()
		var n int
		if err := d.GetContext(t.Context(), &n, query, 7); err != nil || n != 7 {
			t.Fatal(n, err)
		}
	}
	want := func(what string, prepared, closed int) {
		t.Helper()
		if p, c := statementsOf(t, d); p != prepared || c != closed {
			t.Errorf("%s: %d statements were prepared and %d closed, want %d and %d", what, p, c, prepared, closed)
		}
	}
	for range 10 {
		run("SELECT ?")
	}
	long := func(i int) string { return "SELECT ?" + filler + "/* " + strconv.Itoa(i) + " */" }
	for i := range 50 {
		run(long(i))
	}
	want("short queries, and long queries that run once", 0, 0)
	for range 3 {
		for i := range 8 {
			run(long(i))
		}
	}
	want("3 runs of 8 long queries", 8, 0)
	run(long(0)) // then query 1 is the oldest
	for range 3 {
		run(long(100))
	}
	want("a ninth query", 9, 1)
	run(long(0))
	want("a query that is still prepared", 9, 1)
	for range 2 {
		run(long(1))
	}
	want("the query that made room", 10, 2)
}

// TestUnknownStatement: a statement that the server does not know, as after a proxy has changed the connection, is sent as
// text, and is prepared again.
func TestUnknownStatement(t *testing.T) {
	t.Parallel()
	var wrong atomic.Int64 // of the next executions, so many have a wrong statement id
	_, proxied := startProxy(t, dbtest.MySQL(t), func(packet []byte) {
		const execute = 0x17 // COM_STMT_EXECUTE, followed by the id of the statement
		if len(packet) > 9 && packet[4] == execute && wrong.Load() > 0 {
			wrong.Add(-1)
			binary.LittleEndian.PutUint32(packet[5:], 1<<20)
		}
	})
	d, err := db.Open(t.Context(), db.Config{URL: proxied, MaxOpen: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for i := range 10 {
		if i == 4 {
			wrong.Store(1)
		}
		var n int
		if err := d.GetContext(t.Context(), &n, "SELECT ?"+filler, i); err != nil || n != i {
			t.Errorf("run %d: %d, %v", i, n, err)
		}
	}
	if p, _ := statementsOf(t, d); p != 2 || wrong.Load() != 0 {
		t.Errorf("%d statements were prepared, want 2; %d wrong executions are left", p, wrong.Load())
	}
}

// TestPrepareDeadlock: when the preparation of a statement is the victim of a deadlock with a change of the schema, the server rolls the transaction back.
// Then the transaction runs again, and no statement runs outside of it.
func TestPrepareDeadlock(t *testing.T) {
	t.Parallel()
	u := dbtest.MySQL(t)
	d, err := db.Open(t.Context(), db.Config{URL: u, MaxOpen: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	other, err := db.Open(t.Context(), db.Config{URL: u})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	exec(t, d, "CREATE TABLE first (id INTEGER)")
	exec(t, d, "CREATE TABLE second (id INTEGER)")
	long := "INSERT INTO first" + filler + "(id) VALUES (?)"
	exec(t, d, long, 0)
	var change sync.WaitGroup
	runs := 0
	err = db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, "INSERT INTO second (id) VALUES (1)"); err != nil {
			return err
		}
		if runs++; runs == 1 {
			change.Go(func() { //nolint:contextcheck // not in the transaction; locks the table first, and waits for the table second
				if _, err := db.Exec(t.Context(), other, "RENAME TABLE first TO f, second TO s, f TO first, s TO second"); err != nil {
					t.Error(err)
				}
			})
			waittest.Until(t, "the change of the schema waits", func() bool { //nolint:contextcheck // not in the transaction
				return get[int](t, other, "SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE() AND state LIKE 'Waiting for table metadata%'") == 1
			})
		}
		_, err := tx.ExecContext(ctx, long, 1)
		return err
	})
	change.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if first, second := get[int](t, d, "SELECT COUNT(*) FROM first"), get[int](t, d, "SELECT COUNT(*) FROM second"); first != 2 || second != 1 || runs != 2 {
		t.Errorf("after %d runs of the transaction the tables have %d and %d rows, want 2 and 1 after 2 runs", runs, first, second)
	}
}

// TestPreparedLimit: when the server prepares no more statements, statements are sent as text, and the statements that a connection has prepared remain in
// use.
func TestPreparedLimit(t *testing.T) {
	t.Parallel()
	server := envtest.MariaDB(t)
	d, err := db.Open(t.Context(), db.Config{URL: dbtest.On(t, server.URL), MaxOpen: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	run := func(i int) {
		t.Helper()
		if n := get[int](t, d, "SELECT ?"+filler+"/* "+strconv.Itoa(i)+" */", i); n != i {
			t.Errorf("query %d: %d", i, n)
		}
	}
	for range 2 {
		run(0)
	}
	exec(t, d, "SET GLOBAL max_prepared_stmt_count = 1")
	for range 3 {
		for i := range 5 {
			run(i)
		}
	}
	executed := func() int {
		return get[int](t, d, "SELECT CAST(variable_value AS INTEGER) FROM information_schema.session_status WHERE variable_name = 'Com_stmt_execute'")
	}
	before := executed()
	run(0)
	run(1)
	if n := executed() - before; n != 1 {
		t.Errorf("a prepared query and another one: %d executions of prepared statements, want 1", n)
	}
}

// BenchmarkPrepared compares a query of 40 columns as text with the same query as a prepared statement, on MariaDB.
func BenchmarkPrepared(b *testing.B) {
	d, err := db.Open(b.Context(), db.Config{URL: dbtest.MySQL(b), MaxOpen: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	columns := make([]string, 40)
	for i := range columns {
		columns[i] = "column_" + strconv.Itoa(i)
	}
	d.MustExecContext(b.Context(), "CREATE TABLE wide (id INTEGER PRIMARY KEY, "+strings.Join(columns, " VARCHAR(36) NOT NULL DEFAULT 'text', ")+" VARCHAR(36) NOT NULL DEFAULT 'text')")
	d.MustExecContext(b.Context(), "INSERT INTO wide (id) VALUES (1)")
	type row struct {
		First string `db:"column_0"`
	}
	all := d.Unsafe() // row has only one of the columns
	query := "SELECT " + strings.Join(columns, ", ") + " FROM wide WHERE id = ?"
	for name, text := range map[string]func() string{
		"text":     func() string { return "/* " + strconv.Itoa(time.Now().Nanosecond()) + " */ " + query }, // a new query each time
		"prepared": func() string { return query },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				var r row
				if err := all.GetContext(b.Context(), &r, text(), 1); err != nil || r.First != "text" {
					b.Fatal(r, err)
				}
			}
		})
	}
}
