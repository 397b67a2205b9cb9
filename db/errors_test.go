package db_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/jmoiron/sqlx"
	"modernc.org/sqlite"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
)

// TestError: real errors of both databases have the right code, reason and key.
func TestError(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 21)
	tests := []struct {
		name, query string
		args        []any
		code        fault.Code
		reason      string
		sqlite      string // Meta["key"] on SQLite
		mysql       string // Meta["key"] on MySQL
		skipSQLite  bool
	}{
		{name: "unique", query: "INSERT INTO things (id, name) VALUES ('2', 'a')", code: fault.Conflict, reason: "DuplicateKey", sqlite: "things.name", mysql: "things_name"},
		{name: "primary", query: "INSERT INTO things (id, name) VALUES ('1', 'b')", code: fault.Conflict, reason: "DuplicateKey", sqlite: "things.id", mysql: "PRIMARY"},
		{name: "no parent", query: "INSERT INTO parts (id, thing_id) VALUES (2, 'none')", code: fault.Precondition, reason: "ForeignKey"},
		{name: "has children", query: "DELETE FROM things", code: fault.Precondition, reason: "ForeignKey"},
		{name: "null", query: "UPDATE things SET name = NULL", code: fault.Invalid},
		{name: "check", query: "UPDATE things SET n = 1000000", code: fault.Invalid},
		{name: "too long", query: "UPDATE things SET name = ?", args: []any{long}, code: fault.Invalid, skipSQLite: true}, // SQLite does not check lengths
		{name: "syntax", query: "SELEKT", code: fault.Internal},
		{name: "no table", query: "SELECT * FROM nonesuch", code: fault.Internal},
	}
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		exec(t, d, "INSERT INTO things (id, name) VALUES ('1', 'a')")
		exec(t, d, "INSERT INTO parts (id, thing_id) VALUES (1, '1')")
		isMySQL := d.DriverName() == "mysql"
		for _, tt := range tests {
			if tt.skipSQLite && !isMySQL {
				continue
			}
			_, cause := d.ExecContext(t.Context(), tt.query, tt.args...)
			if cause == nil {
				t.Errorf("%s: no error", tt.name)
				continue
			}
			err := db.Error(cause)
			e := fault.From(err)
			if e.Code != tt.code || e.Reason != tt.reason {
				t.Errorf("%s: %v is %v with reason %q, want %v, %q", tt.name, cause, e.Code, e.Reason, tt.code, tt.reason)
			}
			want := tt.sqlite
			if isMySQL {
				want = tt.mysql
			}
			if e.Meta["key"] != want {
				t.Errorf("%s: key %q, want %q", tt.name, e.Meta["key"], want)
			}
			if err.Error() != cause.Error() {
				t.Errorf("%s: the text is %q, want the driver's %q", tt.name, err, cause)
			}
			_, my := errors.AsType[*mysql.MySQLError](err)
			_, lite := errors.AsType[*sqlite.Error](err)
			if my != isMySQL || lite == isMySQL {
				t.Errorf("%s: the tree of %#v does not have the cause", tt.name, err)
			}
		}
		var id string
		err := db.Error(d.GetContext(t.Context(), &id, "SELECT id FROM things WHERE id = 'none'"))
		if !errors.Is(err, fault.NotFound) || !errors.Is(err, sql.ErrNoRows) {
			t.Errorf("no rows: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := db.Error(d.GetContext(ctx, &id, "SELECT id FROM things")); fault.CodeOf(err) != fault.Canceled {
			t.Errorf("canceled: %v (%v)", err, fault.CodeOf(err))
		}
	})
}

// TestErrorOfServer: Error gives the right code to errors of MySQL that a test cannot easily provoke on a server.
func TestErrorOfServer(t *testing.T) {
	t.Parallel()
	for number, want := range map[uint16]fault.Code{
		1213: fault.Unavailable, 1205: fault.Unavailable, 1020: fault.Unavailable, 1047: fault.Unavailable,
		1040: fault.Unavailable, 1053: fault.Unavailable, 1290: fault.Unavailable, 1836: fault.Unavailable,
		1114: fault.Exhausted, 1153: fault.Exhausted, 1021: fault.Exhausted,
		1045: fault.Unauthenticated, 1142: fault.Denied, 1049: fault.Precondition,
		1969: fault.Timeout, 3024: fault.Timeout, 1927: fault.Unknown, 9999: fault.Internal,
	} {
		err := db.Error(fmt.Errorf("wrapped: %w", &mysql.MySQLError{Number: number, Message: "m"}))
		if got := fault.CodeOf(err); got != want {
			t.Errorf("error %d has code %v, want %v", number, got, want)
		}
	}
	galera := &mysql.MySQLError{Number: 1180, Message: "Got error 149 \"Lock deadlock; Retry transaction\" during COMMIT"}
	if e := fault.From(db.Error(galera)); e.Code != fault.Unavailable || e.Reason != "Contention" {
		t.Errorf("Galera's conflict: code %v, reason %q; want Unavailable, Contention", e.Code, e.Reason)
	}
}

// TestErrorUnchanged: Error returns an error unchanged if it does not come from a driver, or has a code already.
func TestErrorUnchanged(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		nil,
		errors.New("mine"),
		context.DeadlineExceeded,
		errMine,
		fmt.Errorf("wrapped: %w", fault.New(fault.Denied, "no: %w", sql.ErrNoRows)),
		fmt.Errorf("wrapped: %w", fault.Conflict),
	} {
		if got := db.Error(err); got != err { //nolint:errorlint // the same value
			t.Errorf("Error(%v) = %v, want the same error", err, got)
		}
	}
	if got := db.Error(mysql.ErrInvalidConn); fault.CodeOf(got) != fault.Unknown || !errors.Is(got, mysql.ErrInvalidConn) {
		t.Errorf("a lost connection has code %v, want Unknown", fault.CodeOf(got))
	}
	if got := db.Error(fmt.Errorf("read: %w", io.ErrUnexpectedEOF)); fault.CodeOf(got) != fault.Unknown {
		t.Errorf("a broken read has code %v, want Unknown", fault.CodeOf(got))
	}
}

// TestCut: the result of Cut fits into a column of both databases.
func TestCut(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text string
		most int
		want string
	}{
		{"", 3, ""}, {"abc", 3, "abc"}, {"abcd", 3, "..."}, {"abcdef", 5, "ab..."}, {"äöü", 5, "ä..."}, {"aäöü", 6, "aä..."}, {"a\xffb", 10, "a\uFFFDb"}, {"\xed\xa0\x80", 10, "\uFFFD"},
	} {
		if got := db.Cut(tt.text, tt.most); got != tt.want {
			t.Errorf("Cut(%q, %d) = %q, want %q", tt.text, tt.most, got, tt.want)
		}
	}
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		exec(t, d, "INSERT INTO things (id, name) VALUES ('1', ?)", db.Cut(strings.Repeat("x\xff", 100), 20))
	})
}
