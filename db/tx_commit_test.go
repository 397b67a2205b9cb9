package db_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
)

// TestAfterCommit: each function is called once, when other connections can read the rows that the transaction has written. After a
// rollback no function is called.
func TestAfterCommit(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		no := errors.New("no")
		for _, end := range []error{nil, no} {
			var seen []int
			err := db.Tx(t.Context(), d, func(ctx context.Context, _ *sqlx.Tx) error {
				return db.Tx(ctx, d, func(ctx context.Context, _ *sqlx.Tx) error { // joins
					for range 2 {
						db.AfterCommit(ctx, d, func() { seen = append(seen, count(t, d)) }) //nolint:contextcheck // after the transaction of ctx
					}
					return errors.Join(insert(ctx, d, "a"), end)
				})
			})
			want := []int{1, 1}
			if end != nil {
				want = nil
			}
			if len(seen) != len(want) || len(want) > 0 && (seen[0] != 1 || seen[1] != 1) || end == nil && err != nil {
				t.Errorf("after %v: the functions have counted %v, %v; want %v", end, seen, err, want)
			}
			exec(t, d, "DELETE FROM things")
		}
		called := false
		if db.AfterCommit(t.Context(), d, func() { called = true }); !called {
			t.Error("without a transaction, the function was not called")
		}
	})
}

// TestAfterCommitLater: a function is called even if it is added after COMMIT, for example by another function.
func TestAfterCommitLater(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		called := 0
		err := db.Tx(t.Context(), d, func(ctx context.Context, _ *sqlx.Tx) error {
			db.AfterCommit(ctx, d, func() {
				db.AfterCommit(ctx, d, func() { called++ })
			})
			return nil
		})
		if err != nil || called != 1 {
			t.Errorf("called %d times, %v", called, err)
		}
	})
}
