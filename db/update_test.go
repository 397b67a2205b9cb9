package db_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"math"
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
)

var volumes = fstest.MapFS{"0001_volumes.sql": {Data: []byte(`-- +goose Up
CREATE TABLE volumes (id VARCHAR(36) NOT NULL, site INTEGER NOT NULL, status VARCHAR(20), host VARCHAR(50),
	version BIGINT NOT NULL, at DATETIME(6), PRIMARY KEY (id, site));
`)}}

// isDone means success, in place of a code.
const isDone = 255

// TestUpdateIf: UpdateIf checks conditions of each kind, and its errors have the full texts.
func TestUpdateIf(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 23, 12, 0, 0, 123456000, time.UTC)
	dbtest.Each(t, only(volumes), func(t *testing.T, d *sqlx.DB) {
		d.MustExecContext(t.Context(), "INSERT INTO volumes (id, site, status, version, at) VALUES ('v', 1, 'in-use', 7, ?), ('v', 2, 'error', 7, NULL)", at)
		key := db.Values{"id": "v", "site": 1}
		set := db.Values{"version": db.Expr("version + 1"), "status": "deleting"}
		tests := []struct {
			name string
			u    db.Update
			want fault.Code
			msg  string
			meta map[string]string
		}{
			{
				"another value",
				db.Update{Key: key, If: db.Values{"status": "available"}},
				fault.Conflict,
				"volumes id=v site=1: status is in-use, want available",
				map[string]string{"status": "in-use"},
			},
			{
				"none of several allowed values",
				db.Update{Key: key, If: db.Values{"status": []string{"available", "error"}, "version": 7}},
				fault.Conflict,
				"volumes id=v site=1: status is in-use, want one of available, error",
				map[string]string{"status": "in-use"},
			},
			{
				"NULL",
				db.Update{Key: key, If: db.Values{"host": "h", "version": 8}},
				fault.Conflict,
				"volumes id=v site=1: host is NULL, want h; version is 7, want 8",
				map[string]string{"host": "NULL", "version": "7"},
			},
			{
				"not NULL",
				db.Update{Key: key, If: db.Values{"at": nil}},
				fault.Conflict,
				"volumes id=v site=1: at is 2026-11-23T12:00:00.123456Z, want NULL",
				map[string]string{"at": "2026-11-23T12:00:00.123456Z"},
			},
			{
				"no value",
				db.Update{Key: key, If: db.Values{"host": db.NotNull, "at": db.NotNull}},
				fault.Conflict,
				"volumes id=v site=1: host is NULL, want any value but NULL",
				map[string]string{"host": "NULL"},
			},
			{"a value", db.Update{Key: key, If: db.Values{"at": db.NotNull, "status": db.NotNull}}, isDone, "", nil},
			{"no allowed value", db.Update{Key: key, If: db.Values{"status": []string{}}}, fault.Conflict, "", map[string]string{"status": "in-use"}},
			{
				"no row",
				db.Update{Key: db.Values{"id": "w", "site": 1}, If: db.Values{"status": "in-use"}},
				fault.NotFound,
				"volumes id=w site=1 does not exist", nil,
			},
			{"several rows", db.Update{Key: db.Values{"id": "v"}}, fault.Internal, "update volumes id=v: the key matches 2 rows, want one: use a unique key", nil},
			{"no key", db.Update{}, fault.Invalid, "", nil},
			{"an injection", db.Update{Key: key, If: db.Values{`id" = "id" OR "id`: 1}}, fault.Invalid, "", nil},
			{"no such column", db.Update{Key: key, If: db.Values{"size": 1}}, fault.Internal, "", nil},
			{"all kinds", db.Update{Key: key, If: db.Values{
				"status": []any{nil, "in-use"}, "host": (*string)(nil), "version": int64(7), "at": at,
			}}, isDone, "", nil},
			{"valuers", db.Update{Key: key, If: db.Values{
				"host": sql.NullString{}, "status": sql.NullString{String: "in-use", Valid: true}, "version": []int{6, 7},
			}}, isDone, "", nil},
			{"no condition", db.Update{Key: key}, isDone, "", nil},
		}
		for _, tt := range tests {
			tt.u.Table = "volumes"
			tt.u.Set = set
			undo := errors.New("undo")
			err := db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
				err := db.UpdateIf(ctx, tx, tt.u)
				if err != nil {
					return err
				}
				var got string
				if err := tx.GetContext(ctx, &got, "SELECT status FROM volumes WHERE id = 'v' AND site = 1 AND version = 8"); err != nil || got != "deleting" {
					t.Errorf("%s: the row has status %q, %v", tt.name, got, err)
				}
				return undo
			})
			if done := errors.Is(err, undo); done || tt.want == isDone {
				if !done || tt.want != isDone {
					t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
				}
				continue
			}
			if fault.CodeOf(err) != tt.want || tt.msg != "" && err.Error() != tt.msg {
				t.Errorf("%s: %v %q, want %v %q", tt.name, fault.CodeOf(err), err, tt.want, tt.msg)
			}
			if diff := cmp.Diff(tt.meta, fault.From(err).Meta); tt.meta != nil && diff != "" {
				t.Errorf("%s: Meta (-want +got):\n%s", tt.name, diff)
			}
			if tt.want == fault.Conflict && fault.From(err).Reason != "Changed" {
				t.Errorf("%s: reason %q, want Changed", tt.name, fault.From(err).Reason)
			}
		}
	})
}

// TestUpdateIfRefused: a value that has no meaning in its field is refused, and the row does not change.
func TestUpdateIfRefused(t *testing.T) {
	t.Parallel()
	nan, inf := math.NaN(), math.Inf(-1)
	dbtest.Each(t, only(volumes), func(t *testing.T, d *sqlx.DB) {
		key, set := db.Values{"id": "v", "site": 1}, db.Values{"status": "deleting"}
		d.MustExecContext(t.Context(), "INSERT INTO volumes (id, site, status, version) VALUES ('v', 1, 'in-use', 7), ('IS NOT NULL', 1, 'in-use', 7)")
		for _, tt := range []struct {
			name string
			u    db.Update
			msg  string // after "update volumes: "
		}{
			{"NotNull in Set", db.Update{Key: key, Set: db.Values{"status": db.NotNull}}, "Set status: NotNull is a condition, use it in If"},
			{"NotNull in Key", db.Update{Key: db.Values{"id": db.NotNull, "site": 1}, Set: set}, "Key id: NotNull is a condition, use it in If"},
			{"NotNull in a list", db.Update{Key: key, If: db.Values{"status": []any{"x", db.NotNull}}, Set: set}, "If status: NotNull cannot be in a list"},
			{"Expr in If", db.Update{Key: key, If: db.Values{"version": db.Expr("7")}, Set: set}, "If version: Expr is a new value, use it in Set"},
			{"Expr in a list", db.Update{Key: key, If: db.Values{"version": []db.Expr{"7"}}, Set: set}, "If version: Expr is a new value, use it in Set"},
			{"Expr in Key", db.Update{Key: db.Values{"id": db.Expr("'v'"), "site": 1}, Set: set}, "Key id: Expr is a new value, use it in Set"},
			{"an empty Expr", db.Update{Key: key, Set: db.Values{"version": db.Expr("")}}, "Set version: Expr is empty"},
			{"a list in Set", db.Update{Key: key, Set: db.Values{"status": []string{"x"}}}, "Set status: a column cannot be set to a list"},
			{"NaN in Set", db.Update{Key: key, Set: db.Values{"version": nan}}, "Set version: NaN is not a value of a column"},
			{"NaN in If", db.Update{Key: key, If: db.Values{"version": float32(nan)}, Set: set}, "If version: NaN is not a value of a column"},
			{"an infinite number in Key", db.Update{Key: db.Values{"id": "v", "site": &inf}, Set: set}, "Key site: -Inf is not a value of a column"},
			{"an infinite number of a valuer", db.Update{Key: key, If: db.Values{"version": sql.NullFloat64{Float64: inf, Valid: true}}, Set: set}, "If version: -Inf is not a value of a column"},
			{"NaN in a list", db.Update{Key: key, If: db.Values{"version": []*float64{nil, &nan}}, Set: set}, "If version: NaN is not a value of a column"},
		} {
			tt.u.Table = "volumes"
			if err := db.UpdateIf(t.Context(), d, tt.u); fault.CodeOf(err) != fault.Invalid || err.Error() != "update volumes: "+tt.msg {
				t.Errorf("%s: %v, want Invalid: %s", tt.name, err, tt.msg)
			}
		}
		var changed int
		if err := d.GetContext(t.Context(), &changed, "SELECT COUNT(*) FROM volumes WHERE status <> 'in-use' OR version <> 7"); err != nil || changed != 0 {
			t.Errorf("%d rows were changed, %v", changed, err)
		}
	})
}

// TestUpdateIfNilBytes: a nil slice of bytes is NULL in each place.
func TestUpdateIfNilBytes(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(volumes), func(t *testing.T, d *sqlx.DB) {
		d.MustExecContext(t.Context(), "INSERT INTO volumes (id, site, status, host, version) VALUES ('v', 1, 'in-use', 'h', 7)")
		for _, v := range []any{[]byte(nil), json.RawMessage(nil)} {
			key := db.Values{"id": "v", "site": 1}
			for _, u := range []db.Update{
				{Key: key, If: db.Values{"host": "h"}, Set: db.Values{"host": v}},
				{Key: key, If: db.Values{"host": v}, Set: db.Values{"version": 8}},
				{Key: key, If: db.Values{"host": [][]byte{[]byte("x"), nil}}, Set: db.Values{"version": 9}},
				{Key: key, If: db.Values{"host": nil}, Set: db.Values{"host": "h"}},
			} {
				u.Table = "volumes"
				if err := db.UpdateIf(t.Context(), d, u); err != nil {
					t.Errorf("%T: If %v, Set %v: %v", v, u.If, u.Set, err)
				}
			}
		}
	})
}

// TestUpdateIfReadsCurrent: in a transaction with an older snapshot, the error has the
// row's current value.
func TestUpdateIfReadsCurrent(t *testing.T) {
	t.Parallel()
	d, err := db.Open(t.Context(), db.Config{URL: dbtest.MySQL(t)}) // on SQLite a transaction is the only writer
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := db.Migrate(t.Context(), d, only(volumes)...); err != nil {
		t.Fatal(err)
	}
	d.MustExecContext(t.Context(), "INSERT INTO volumes (id, site, status, version) VALUES ('v', 1, 'available', 1)")
	attempts := 0
	err = db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
		attempts++
		var status string
		if err := tx.GetContext(ctx, &status, "SELECT status FROM volumes"); err != nil {
			return err
		}
		if attempts == 1 {
			if _, err := d.ExecContext(ctx, "UPDATE volumes SET status = 'in-use'"); err != nil { // another writer
				return err
			}
		}
		return db.UpdateIf(ctx, tx, db.Update{
			Table: "volumes", Key: db.Values{"id": "v", "site": 1},
			If: db.Values{"status": "available"}, Set: db.Values{"status": "deleting"},
		})
	})
	if err == nil || fault.CodeOf(err) != fault.Conflict || !strings.Contains(err.Error(), "status is in-use, want available") {
		t.Errorf("%v, want Conflict: status is in-use", err)
	}
}

// TestUpdateIfOneWins: of several writers with the same expectation exactly one
// succeeds, with and without a transaction.
func TestUpdateIfOneWins(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(volumes), func(t *testing.T, d *sqlx.DB) {
		d.MustExecContext(t.Context(), "INSERT INTO volumes (id, site, status, version) VALUES ('v', 1, 'available', 0)")
		const writers, rounds = 8, 25
		var won, lost atomic.Int64
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for v := 0; v < rounds; {
					u := db.Update{
						Table: "volumes", Key: db.Values{"id": "v", "site": 1},
						If: db.Values{"version": v}, Set: db.Values{"version": v + 1},
					}
					var err error
					if w%2 == 0 {
						err = db.UpdateIf(t.Context(), d, u)
					} else {
						err = db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error { return db.UpdateIf(ctx, tx, u) })
					}
					switch {
					case err == nil:
						won.Add(1)
					case errors.Is(err, fault.Conflict):
						lost.Add(1)
					default:
						t.Error(err)
						return
					}
					v++
				}
			})
		}
		wg.Wait()
		t.Logf("%d won, %d lost", won.Load(), lost.Load())
		if won.Load() != rounds {
			t.Errorf("%d updates succeeded in %d rounds, want one in each", won.Load(), rounds)
		}
	})
}
