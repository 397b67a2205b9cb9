package db_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
)

// TestTxNoLostUpdate: 16 writers at the same time read, add to and write the same row.
func TestTxNoLostUpdate(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		exec(t, d, "INSERT INTO things (id, name) VALUES ('1', 'a')")
		const workers, each = 16, 10
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for range each {
					err := db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
						var n int
						if err := tx.GetContext(ctx, &n, "SELECT n FROM things WHERE id = '1' FOR UPDATE"); err != nil {
							return err
						}
						_, err := tx.ExecContext(ctx, "UPDATE things SET n = ? WHERE id = '1'", n+1)
						return err
					})
					if err != nil {
						t.Errorf("Tx: %v", err)
						return
					}
				}
			})
		}
		wg.Wait()
		if n := get[int](t, d, "SELECT n FROM things"); n != workers*each {
			t.Errorf("n = %d, want %d", n, workers*each)
		}
	})
}

// TestTxDeadlock: two transactions lock two rows in opposite order and wait for each
// other in the middle. Both succeed. On MySQL one of them runs again.
func TestTxDeadlock(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		exec(t, d, "INSERT INTO things (id, name) VALUES ('1', 'a'), ('2', 'b')")
		var runs atomic.Int64
		var wg sync.WaitGroup
		met := [2]chan struct{}{make(chan struct{}), make(chan struct{})}
		rows := [2]string{"1", "2"}
		for me := range 2 {
			wg.Go(func() {
				first := true
				err := db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
					runs.Add(1)
					if _, err := tx.ExecContext(ctx, "UPDATE things SET n = n + 1 WHERE id = ?", rows[me]); err != nil {
						return err
					}
					if first && d.DriverName() == "mysql" {
						first = false
						close(met[me])
						<-met[1-me]
					}
					if _, err := tx.ExecContext(ctx, "UPDATE things SET n = n + 1 WHERE id = ?", rows[1-me]); err != nil {
						return fmt.Errorf("wrapped: %w", db.Error(err)) // Tx must find the deadlock in the wrapped error
					}
					return nil
				})
				if err != nil {
					t.Errorf("Tx: %v", err)
				}
			})
		}
		wg.Wait()
		if n := get[int](t, d, "SELECT SUM(n) FROM things"); n != 4 {
			t.Errorf("sum = %d, want 4", n)
		}
		want := int64(2)
		if d.DriverName() == "mysql" {
			want = 3
		}
		if got := runs.Load(); got != want {
			t.Errorf("%d runs, want %d", got, want)
		}
	})
}

// TestTxGivesUp: if another transaction keeps a lock, Tx fails after 20 attempts with
// Unavailable and the reason Contention.
func TestTxGivesUp(t *testing.T) {
	t.Parallel()
	d := mustOpen(t, dbtest.MySQL(t))
	if err := db.Migrate(t.Context(), d, only(things)...); err != nil {
		t.Fatal(err)
	}
	exec(t, d, "INSERT INTO things (id, name) VALUES ('1', 'a')")
	holder, err := d.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Rollback() }()
	exec(t, holder, "UPDATE things SET n = 1")
	runs := 0
	wait := func(ctx context.Context) error {
		return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
			runs++
			if _, err := tx.ExecContext(ctx, "SET innodb_lock_wait_timeout = 0"); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, "UPDATE things SET n = 2")
			return err
		})
	}
	err = wait(t.Context())
	if fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "failed 20 times because of other transactions") || runs != 20 {
		t.Errorf("Tx = %v (%v) after %d runs, want Unavailable after 20", err, fault.CodeOf(err), runs)
	}
	if reason := fault.From(err).Reason; reason != "Contention" {
		t.Errorf("reason %q, want Contention", reason)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	runs = 0
	if err := wait(ctx); !errors.Is(err, context.DeadlineExceeded) || runs >= 20 {
		t.Errorf("Tx = %v after %d runs, want the context's error before 20", err, runs)
	}
}

var errMine = fault.Sentinel(fault.Exhausted, "Mine", "mine")

// TestTxEnds: Tx changes the database only if f succeeds. Otherwise Tx returns the error of f.
func TestTxEnds(t *testing.T) {
	t.Parallel()
	insert := func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO things (id, name) VALUES ('1', 'a')")
		return err
	}
	tests := []struct {
		name string
		run  func(context.Context, *sqlx.DB) error
		want error
		rows int
	}{
		{"success", func(ctx context.Context, d *sqlx.DB) error {
			return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error { return insert(ctx, tx) })
		}, nil, 1},
		{"own error", func(ctx context.Context, d *sqlx.DB) error {
			return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error { return errors.Join(insert(ctx, tx), errMine) })
		}, errMine, 0},
		{"driver's error", func(ctx context.Context, d *sqlx.DB) error {
			return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error { return errors.Join(insert(ctx, tx), insert(ctx, tx)) })
		}, fault.Conflict, 0},
		{"panic", func(ctx context.Context, d *sqlx.DB) (err error) {
			defer func() { err, _ = recover().(error) }()
			return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
				_ = insert(ctx, tx)
				panic(errMine)
			})
		}, errMine, 0},
		{"context ends in f", func(ctx context.Context, d *sqlx.DB) error {
			ctx, cancel := context.WithCancel(ctx)
			return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
				err := insert(ctx, tx)
				cancel()
				return err
			})
		}, context.Canceled, 0},
		{"context has ended", func(ctx context.Context, d *sqlx.DB) error {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error { return insert(ctx, tx) })
		}, context.Canceled, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
				err := tt.run(t.Context(), d)
				if !errors.Is(err, tt.want) {
					t.Errorf("error %v, want %v", err, tt.want)
				}
				// These statements also show that the connection still works and that the
				// writer's lock is free.
				if n := get[int](t, d, "SELECT COUNT(*) FROM things"); n != tt.rows {
					t.Errorf("%d rows, want %d", n, tt.rows)
				}
				exec(t, d, "INSERT INTO things (id, name) VALUES ('9', 'z')")
			})
		})
	}
}
