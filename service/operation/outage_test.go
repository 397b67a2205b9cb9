package operation_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/operation"
)

// TestOutage: the database is killed while operations run, and is back after 10 s, which is longer than their leases. All
// operations succeed. The steps that must be done once are done once.
func TestOutage(t *testing.T) {
	t.Parallel()
	server := envtest.MariaDB(t)
	d, err := db.Open(t.Context(), db.Config{URL: dbtest.On(t, server.URL)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := db.Migrate(t.Context(), d, migrations...); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, d, operation.RunnerConfig{Lease: 3 * time.Second})
	var done atomic.Int64
	work := func(name string) operation.Step[input] {
		return operation.Step[input]{Name: name, Do: func(ctx context.Context, _ *operation.Op, _ *input) error {
			done.Add(1)
			select {
			case <-time.After(100 * time.Millisecond):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
	}
	once := operation.Step[input]{Name: "once", DoTx: func(ctx context.Context, tx *sqlx.Tx, op *operation.Op, _ *input) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO effects (operation_id, step, n) VALUES (?, 'once', 1)`, op.ID)
		return db.Error(err)
	}}
	operation.Handle(b.runner, create, work("a"), once, work("b"))
	b.start()
	const total = 60 // about as many operations as run at once
	var ids []string
	for i := range total {
		ids = append(ids, b.begin(create, fmt.Sprintf("disk-%d", i)))
	}
	waittest.Until(t, "half of the operations", func() bool { return done.Load() >= total/2 })
	server.Kill()
	waittest.Pass(t, 10*time.Second, "the database cannot be reached")
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	for _, id := range ids {
		o := b.ends(id, operation.Succeeded)
		var n int
		if err := d.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM effects WHERE operation_id = ?`, id); err != nil || n != 1 {
			t.Errorf("operation %s has %d effects, %v", id, n, err)
		}
		if got := events(o); got != "a:done once:done b:done" {
			t.Errorf("events %s", got)
		}
	}
	took := time.Since(back)
	t.Logf("all operations had ended %v after the database was back", took)
	if took > 5*time.Second {
		t.Errorf("all operations had ended %v after the database was back, want at most 5 s", took)
	}
}
