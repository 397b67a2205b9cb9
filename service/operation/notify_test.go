package operation_test

import (
	"context"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/operation"
)

// TestReportInTransaction: a report in a transaction of the caller continues the operation when that transaction is committed, and not
// at the next poll.
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
			waittest.Spend(500 * time.Millisecond) // the runner must not look at the operation yet
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
