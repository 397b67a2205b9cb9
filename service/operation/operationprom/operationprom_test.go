package operationprom_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/promtest"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/operation"
	"github.com/armature-go/armature/service/operation/operationprom"
)

// TestMetrics: the metrics are right while one operation runs, a second one has a version that the runner does not know, and a
// step of a third one cannot be undone. Without the database, only the metrics of the database are missing.
func TestMetrics(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, []db.Migrations{operation.Migrations}, func(t *testing.T, d *sqlx.DB) {
		ops := operation.NewStore(d)
		r := operation.NewRunner(operation.RunnerConfig{Store: ops, Host: "h", Lease: 300 * time.Millisecond, Poll: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
		runs := operation.Kind[struct{}]{Name: "runs"}
		stuck := operation.Kind[struct{}]{Name: "stuck", Timeout: 2 * time.Second} // time for one retry of undoing, also on a busy machine
		no := func(context.Context, *operation.Op, *struct{}) error { return errors.New("no") }
		operation.Handle(r, runs, operation.Step[struct{}]{Name: "a", Do: func(ctx context.Context, _ *operation.Op, _ *struct{}) error {
			<-ctx.Done()
			return ctx.Err()
		}})
		operation.Handle(r, stuck, operation.Step[struct{}]{Name: "a", Do: no, Undo: no})
		later := runs
		later.Version = 1
		for _, k := range []operation.Kind[struct{}]{runs, stuck, later} {
			if _, err := operation.Begin(t.Context(), ops, k, "", &struct{}{}); err != nil {
				t.Fatal(err)
			}
		}
		m := operationprom.New()
		gather := func() map[string]float64 { return promtest.Gather(t, "armature_operation_", m) }
		if got := gather(); len(got) > 0 {
			t.Errorf("without a runner: %v", got)
		}
		m.Add("h", r)
		if err := r.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			now, cancel := context.WithCancel(context.Background())
			cancel()
			if err := r.Drain(now); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		want := map[string]float64{
			"running{host=h}": 1, "unknown{host=h}": 1, "not_undone_total{host=h}": 1,
			"ended_total{host=h,kind=stuck,state=failed}": 1, "retries_total{host=h,kind=stuck}": 1,
		}
		var got map[string]float64
		if err := waittest.Poll(30*time.Second, func() error {
			got = gather()
			if got["retries_total{host=h,kind=stuck}"] > 1 { // the number depends on the clock
				got["retries_total{host=h,kind=stuck}"] = 1
			}
			if diff := cmp.Diff(want, got); diff != "" {
				return errors.New(diff)
			}
			return nil
		}); err != nil {
			t.Errorf("-want +got:\n%v", err)
		}

		m.AddStore(ops)
		got = gather()
		for _, name := range []string{"open{kind=runs,state=running}", "oldest_seconds{kind=runs,state=running}"} {
			if _, ok := got[name]; !ok {
				t.Errorf("no %s in %v", name, got)
			}
		}
		if got["open{kind=runs,state=running}"] != 2 || len(got) != len(want)+2 {
			t.Errorf("two operations have not ended: %v", got)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		m.AddStore(ops) // the earlier counts are dropped
		if diff := cmp.Diff(want["running{host=h}"], gather()["running{host=h}"]); diff != "" {
			t.Errorf("without the database: %s", diff)
		}
	})
}

// TestAge: the database is read at most once in 30 s, and the age of the oldest operation grows meanwhile.
func TestAge(t *testing.T) {
	t.Parallel()
	url := dbtest.SQLite(t)
	synctest.Test(t, func(t *testing.T) {
		d, err := db.Open(t.Context(), db.Config{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := db.Migrate(t.Context(), d, operation.Migrations); err != nil {
			t.Fatal(err)
		}
		ops := operation.NewStore(d)
		m := operationprom.New()
		m.AddStore(ops)
		gather := func() (n, age float64) {
			got := promtest.Gather(t, "armature_operation_", m)
			return got["open{kind=k,state=running}"], got["oldest_seconds{kind=k,state=running}"]
		}
		for range 2 {
			if _, err := operation.Begin(t.Context(), ops, operation.Kind[struct{}]{Name: "k"}, "", &struct{}{}); err != nil {
				t.Fatal(err)
			}
			if n, age := gather(); n != 1 || age > 1 {
				t.Errorf("%v operations, %v s old; want 1, 0 s old", n, age)
			}
		}
		<-time.After(29 * time.Second)
		if n, age := gather(); n != 1 || age < 29 || age > 30 {
			t.Errorf("after 29 s: %v operations, %v s old", n, age)
		}
		<-time.After(time.Second)
		if n, age := gather(); n != 2 || age < 30 || age > 31 {
			t.Errorf("after 30 s: %v operations, %v s old", n, age)
		}
	})
}
