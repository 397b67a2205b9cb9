package db_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
)

var people = fstest.MapFS{
	"0001_people.sql": {Data: []byte("-- +goose Up\nCREATE TABLE people (id BIGINT NOT NULL PRIMARY KEY, full_name VARCHAR(99) NOT NULL);")},
	"0002_names.sql":  {Data: []byte("-- +goose Up\nALTER TABLE people ADD COLUMN given VARCHAR(99);")},
}

// givenNames fills the new column from the old one. It cannot convert a name of one
// word.
var givenNames = db.DataMigration{
	Name: "given names",
	Left: func(ctx context.Context, q sqlx.QueryerContext) (n int64, err error) {
		err = sqlx.GetContext(ctx, q, &n, "SELECT COUNT(*) FROM people WHERE given IS NULL")
		return n, err
	},
	Batch: func(ctx context.Context, tx *sqlx.Tx, n int) (int, error) {
		var rows []struct {
			ID       int64  `db:"id"`
			FullName string `db:"full_name"`
		}
		if err := tx.SelectContext(ctx, &rows, "SELECT id, full_name FROM people WHERE given IS NULL AND full_name LIKE '% %' ORDER BY id LIMIT ? FOR UPDATE", n); err != nil {
			return 0, err
		}
		for _, r := range rows {
			given, _, _ := strings.Cut(r.FullName, " ")
			if _, err := tx.ExecContext(ctx, "UPDATE people SET given = ? WHERE id = ?", given, r.ID); err != nil {
				return 0, err
			}
		}
		return len(rows), nil
	},
}

// TestMigrateData: reports, exit codes and the upgrade check are right for migrations that complete, fail, reach the limit,
// leave rows, or run in several processes.
func TestMigrateData(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(people), func(t *testing.T, d *sqlx.DB) {
		add := func(from, n int, name string) {
			err := db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
				for i := from; i < from+n; i++ {
					if _, err := tx.ExecContext(ctx, "INSERT INTO people (id, full_name) VALUES (?, ?)", i, name); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		broken := db.DataMigration{
			Name:  "broken",
			Left:  func(context.Context, sqlx.QueryerContext) (int64, error) { return 5, nil },
			Batch: func(context.Context, *sqlx.Tx, int) (int, error) { return 0, errors.New("no luck\ntoday") },
		}
		step := func(name string, limit int, done, left int64, code int, list ...db.DataMigration) db.DataReports {
			t.Helper()
			got := db.MigrateData(t.Context(), d, limit, list...)
			last := got[len(got)-1]
			if got.Done() != done || last.Left != left || got.ExitCode() != code {
				t.Errorf("%s: %+v, exit code %d; want %d done, %d left, exit code %d", name, got, got.ExitCode(), done, left, code)
			}
			return got
		}
		check := func(code int, text string) {
			t.Helper()
			got := db.CheckUpgrade(t.Context(), db.SchemaCheck(d, only(people)...), db.DataCheck(d, givenNames))
			if said := fmt.Sprint(got); got.ExitCode() != code || !strings.Contains(said, text) {
				t.Errorf("upgrade check: exit code %d: %s\nwant %d with %q", got.ExitCode(), said, code, text)
			}
		}

		step("no rows", 0, 0, 0, 0, givenNames)
		add(0, 1234, "Ada Lovelace")
		check(2, "given names: 1234 rows")
		step("up to a limit", 700, 700, 534, 1, givenNames)
		step("up to a limit, after a migration that fails", 100, 100, 434, 1, broken, givenNames)
		step("the rest", 0, 434, 0, 0, givenNames)
		check(0, "Data migrations")
		got := step("a migration that fails", 0, 0, 0, 2, broken, givenNames)
		if got[0].Name != "broken" || got[0].Left != 5 || got[0].Err == nil || got[1].Name != "given names" || got[1].Left != 0 || got[1].Err != nil {
			t.Errorf("after a migration that failed: %+v", got)
		}

		add(5000, 3, "Plato")
		add(6000, 7, "Alan Turing")
		step("rows that it cannot convert, and others", 0, 7, 3, 1, givenNames)
		got = step("rows that it cannot convert", 0, 0, 3, 2, givenNames)
		if fault.CodeOf(got[0].Err) != fault.Precondition || !strings.Contains(got[0].Err.Error(), "3 rows were left") {
			t.Errorf("rows that it cannot convert: %v, want Precondition with their number", got[0].Err)
		}

		add(10_000, 2000, "Grace Hopper")
		var wg sync.WaitGroup
		var mu sync.Mutex
		var sum int64
		for range 4 {
			wg.Go(func() {
				got := db.MigrateData(t.Context(), d, 0, givenNames)
				mu.Lock()
				defer mu.Unlock()
				sum += got.Done()
			})
		}
		wg.Wait()
		if sum != 2000 {
			t.Errorf("four runs at the same time converted %d rows, want 2000", sum)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if got := db.MigrateData(ctx, d, 0, givenNames); !errors.Is(got[0].Err, context.Canceled) || got.ExitCode() != 2 {
			t.Errorf("with a context that has ended: %+v", got)
		}
	})
}

// TestCheckUpgrade: exit codes are right for checks that succeed, warn and fail.
func TestCheckUpgrade(t *testing.T) {
	t.Parallel()
	ok := db.UpgradeCheck{Name: "Fine", Run: func(context.Context) (string, error) { return "", nil }}
	warn := db.UpgradeCheck{Name: "Old", Run: func(context.Context) (string, error) { return "three services are old", nil }}
	fail := db.UpgradeCheck{Name: "Bad", Run: func(context.Context) (string, error) { return "", errors.New("no\nway") }}
	for want, list := range [][]db.UpgradeCheck{{ok, ok}, {warn, ok}, {fail, warn, ok}} {
		if got := db.CheckUpgrade(t.Context(), list...).ExitCode(); got != want {
			t.Errorf("%d checks: exit code %d, want %d", len(list), got, want)
		}
	}
	if got := db.CheckUpgrade(t.Context()).ExitCode(); got != 0 {
		t.Errorf("no check: exit code %d, want 0", got)
	}
	dbtest.Each(t, nil, func(t *testing.T, d *sqlx.DB) {
		got := db.CheckUpgrade(t.Context(), db.SchemaCheck(d, only(people)...), db.DataCheck(d, givenNames))
		if got.ExitCode() != 2 || !strings.Contains(got[0].Err.Error(), "older than version") || got[1].Err == nil {
			t.Errorf("without a schema: %+v", got)
		}
	})
}
