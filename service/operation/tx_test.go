package operation_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/operation"
)

// TestInTransaction: an operation is begun together with the change in its transaction, or not at all.
func TestInTransaction(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		boom := errors.New("boom")
		var id string
		err := db.Tx(t.Context(), d, func(ctx context.Context, _ *sqlx.Tx) error {
			var err error
			if id, err = operation.Begin(ctx, b.ops, create, "disk-1", &input{}); err != nil {
				return err
			}
			return boom
		})
		if !errors.Is(err, boom) {
			t.Fatal(err)
		}
		if _, err := b.ops.Show(t.Context(), id); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("an operation whose transaction was rolled back exists: %v", err)
		}
		if list, err := b.ops.List(t.Context(), operation.Filter{}); err != nil || len(list) > 0 {
			t.Errorf("list: %+v, %v", list, err)
		}
		if _, err := operation.Begin(t.Context(), b.ops, operation.Kind[func()]{Name: "x"}, "", new(func())); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("an input that cannot be JSON: %v", err)
		}
	})
}

// TestDoTx: a DoTx takes effect exactly once, and its changes of the data are stored. After an error none of its effects
// remains.
func TestDoTx(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		tries := 0
		once := operation.Step[input]{Name: "once", DoTx: func(ctx context.Context, tx *sqlx.Tx, op *operation.Op, in *input) error {
			tries++
			if _, err := tx.ExecContext(ctx, `INSERT INTO effects (operation_id, step, n) VALUES (?, 'once', ?)`, op.ID, in.Size); err != nil {
				return db.Error(err)
			}
			in.Kept += tries
			if tries < 3 {
				return fault.New(fault.Unavailable, "away")
			}
			return nil
		}}
		operation.Handle(b.runner, create, once, b.stepIn("after", func(_ *operation.Op, in *input) error {
			b.j.add("kept-%d", in.Kept)
			return nil
		}, nil))
		b.start()
		o := b.ends(b.begin(create, ""), operation.Succeeded)
		var n int
		if err := d.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM effects`); err != nil || n != 1 {
			t.Errorf("%d effects, %v", n, err)
		}
		if b.j.String() != "after(7) kept-3" || events(o) != "once:retry once:retry once:done after:done" {
			t.Errorf("%s; events %s", &b.j, events(o))
		}
	})
}

// TestDrain: a draining process releases an operation between two steps, and another process continues it at once.
func TestDrain(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		var f service.Inflight
		b := newBench(t, d, operation.RunnerConfig{Lease: time.Hour, Inflight: &f})
		entered := make(chan struct{}, 1)
		first := b.step("a", nil, nil)
		first.Do = func(ctx context.Context, _ *operation.Op, _ *input) error {
			entered <- struct{}{}
			<-ctx.Done() // the context ends when the drain's own context has ended
			return nil   // the step is done
		}
		operation.Handle(b.runner, create, first, b.step("b", nil, nil))
		if err := b.runner.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		id := b.begin(create, "disk-1")
		<-entered
		if list := f.List(); len(list) != 1 || list[0].Name != "disk.create" || list[0].Resource != "disk-1" || list[0].RequestID != "req-1" {
			t.Errorf("in flight: %+v", list)
		}
		hurry, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.runner.Drain(hurry); !errors.Is(err, context.Canceled) {
			t.Errorf("Drain = %v", err)
		}
		if o, err := b.ops.Show(t.Context(), id); err != nil || o.StepsDone != 1 || o.Owner != "" {
			t.Errorf("the released operation: %+v, %v", o, err)
		}
		second := newBench(t, d, operation.RunnerConfig{Lease: time.Hour})
		operation.Handle(second.runner, create, second.step("a", nil, nil), second.step("b", nil, nil))
		second.start()
		second.ends(id, operation.Succeeded)
		if second.j.String() != "b(7)" {
			t.Errorf("the other process did %s", &second.j)
		}
	})
}
