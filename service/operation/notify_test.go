package operation_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/operation"
)

// TestReportInTransaction: if a report is part of a transaction of the caller, the operation continues when that transaction is
// committed, and not only at the next poll.
func TestReportInTransaction(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{Poll: time.Hour})
		operation.Handle(b.runner, create, b.waiting("a"), b.step("b", nil, nil))
		b.start()
		id := b.begin(create, "r")
		b.runner.Notify(id)
		b.waitsAtStep("r", "a", 0)
		token := b.token("r")
		began := time.Now()
		err := db.Tx(t.Context(), d, func(ctx context.Context, _ *sqlx.Tx) error {
			if err := b.runner.EndStep(ctx, token, "", nil); err != nil {
				return err
			}
			waittest.Spend(500*time.Millisecond, "the life of the transaction") // in which the runner must not look at the operation
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		b.ends(id, operation.Succeeded)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the operation ended %v after the report, want it at once", took)
		}
	})
}

// TestMoreThanSlots: operations that found no free slot, and operations whose notification was lost because the queue was full, begin when
// slots are free, and not at the next poll.
func TestMoreThanSlots(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{Poll: time.Hour, MaxInFlight: 4})
		operation.Handle(b.runner, create, b.step("a", func(*operation.Op) error {
			<-time.After(10 * time.Millisecond)
			return nil
		}, nil))
		b.start()
		var ids []string
		for i := range 300 { // more than the queue has places
			ids = append(ids, b.begin(create, strconv.Itoa(i)))
		}
		began := time.Now()
		for _, id := range ids {
			b.runner.Notify(id)
		}
		for _, id := range ids {
			b.ends(id, operation.Succeeded)
		}
		if took := time.Since(began); took > 5*time.Minute {
			t.Errorf("%d operations ended after %v, want them before the next poll, which is in an hour", len(ids), took)
		}
	})
}
