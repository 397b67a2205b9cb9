package operation_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// waiting is a step that waits for news.
func (b *bench) waiting(name string) operation.Step[input] {
	return b.step(name, func(*operation.Op) error { return operation.Again(time.Hour) }, nil)
}

// waits waits until an operation waits, having done a step more than n times, and returns
// how often that was: a wake-up that comes late makes it look again.
func (b *bench) waits(id, step string, n int) int {
	b.Helper()
	for end := time.Now().Add(30 * time.Second); ; {
		o, err := b.ops.Show(b.Context(), id)
		if err != nil {
			b.Fatal(err)
		}
		if did := strings.Count(b.j.String(), step+"("); did > n && o.Owner == "" {
			return did
		}
		if o.State.Over() || time.Now().After(end) {
			b.Fatalf("it does not wait at %s, but did %s: %+v", step, &b.j, o)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// TestComplete: a step that waits for another process ends as that process reports, together with
// what else is written in the same transaction, or not at all.
func TestComplete(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		t.Run("done", func(t *testing.T) {
			b := newBench(t, d, operation.RunnerConfig{Poll: time.Hour})
			operation.Handle(b.runner, create, b.waiting("a"), b.waiting("b"))
			b.start()
			id := b.begin(create, "done")
			b.runner.Wake(id)
			b.waits(id, "a", 0)
			if err := b.runner.Complete(t.Context(), "done", "b", nil); !errors.Is(err, fault.Precondition) {
				t.Errorf("a step that is not reached: %v", err)
			}
			if err := b.runner.Complete(t.Context(), "another", "a", nil); !errors.Is(err, fault.NotFound) {
				t.Errorf("a resource without an operation: %v", err)
			}
			sorry := errors.New("sorry")
			err := db.Tx(t.Context(), d, func(ctx context.Context, _ *sqlx.Tx) error {
				if err := b.runner.Complete(ctx, "done", "a", nil); err != nil {
					return err
				}
				return sorry
			})
			if o, showErr := b.ops.Show(t.Context(), id); !errors.Is(err, sorry) || showErr != nil || o.Step != 0 || len(o.Events) != 0 {
				t.Errorf("a transaction that is rolled back: %v, %+v, %v", err, o, showErr)
			}
			if err := b.runner.Complete(t.Context(), "done", "a", nil); err != nil {
				t.Fatal(err)
			}
			if err := b.runner.Complete(t.Context(), "done", "a", nil); !errors.Is(err, fault.Precondition) {
				t.Errorf("twice: %v", err)
			}
			if err := b.runner.WakeResource(t.Context(), "done"); err != nil {
				t.Fatal(err)
			}
			b.waits(id, "b", 0)
			if err := b.runner.Complete(t.Context(), "done", "b", nil); err != nil {
				t.Fatal(err)
			}
			if o, err := b.ops.Show(t.Context(), id); err != nil || o.State != operation.Succeeded || events(o) != "a:done b:done" || o.Events[0].Host != "h1" {
				t.Errorf("the operation after its last step: %+v, %v", o, err)
			}
			if err := b.runner.Complete(t.Context(), "done", "b", nil); !errors.Is(err, fault.NotFound) {
				t.Errorf("after the end: %v", err)
			}
		})
		t.Run("failed", func(t *testing.T) {
			b := newBench(t, d, operation.RunnerConfig{})
			operation.Handle(b.runner, create, b.step("a", nil, func(op *operation.Op) error {
				b.j.add("%v/%s", op.Err, fault.CodeOf(op.Err))
				return nil
			}), b.waiting("b"))
			b.start()
			id := b.begin(create, "failed")
			n := b.waits(id, "b", 0)
			if err := b.runner.Complete(t.Context(), "failed", "b", fault.New(fault.Unavailable, "not now")); err != nil {
				t.Fatal(err)
			}
			b.runner.Wake(id)
			b.waits(id, "b", n)
			if err := b.runner.Complete(t.Context(), "failed", "b", fault.New(fault.Exhausted, "no room")); err != nil {
				t.Fatal(err)
			}
			if o := b.ends(id, operation.Failed); o.Error != "no room" || o.ErrorCode != "Exhausted" || events(o) != "a:done b:retry b:failed b:undone a:undone" {
				t.Errorf("%+v; events %s", o, events(o))
			}
			if !strings.HasSuffix(b.j.String(), "b(7) -b -a no room/Exhausted") {
				t.Errorf("it did %s", &b.j)
			}
		})
		t.Run("while it runs", func(t *testing.T) {
			b := newBench(t, d, operation.RunnerConfig{Poll: time.Hour})
			entered, leave := make(chan struct{}), make(chan struct{})
			operation.Handle(b.runner, create, b.step("a", func(*operation.Op) error {
				close(entered)
				<-leave
				return operation.Again(time.Hour)
			}, nil), b.step("b", nil, nil))
			b.start()
			id := b.begin(create, "runs")
			b.runner.Wake(id)
			<-entered
			if err := b.runner.Complete(t.Context(), "runs", "a", nil); err != nil {
				t.Fatal(err)
			}
			b.runner.Wake(id)
			close(leave)
			if o := b.ends(id, operation.Succeeded); events(o) != "a:done b:done" {
				t.Errorf("events %s", events(o))
			}
		})
		t.Run("undone", func(t *testing.T) {
			b := newBench(t, d, operation.RunnerConfig{Poll: time.Hour})
			operation.Handle(b.runner, create, b.waiting("a"))
			b.start()
			id := b.begin(create, "canceled")
			b.runner.Wake(id)
			b.waits(id, "a", 0)
			if err := b.ops.Cancel(t.Context(), id, "no longer wanted"); err != nil {
				t.Fatal(err)
			}
			if err := b.runner.Complete(t.Context(), "canceled", "a", nil); !errors.Is(err, fault.Precondition) {
				t.Errorf("an operation that is undone: %v", err)
			}
		})
	})
}

// TestUndoTx: what is undone in the transaction of its note is undone exactly once, also
// when there is no time, and the end of the operation is in the same transaction.
func TestUndoTx(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		tries := 0
		first := b.step("a", nil, nil)
		first.Undo, first.UndoTx = nil, func(ctx context.Context, tx *sqlx.Tx, op *operation.Op, in *input) error {
			tries++
			b.j.add("%s", fault.CodeOf(op.Err))
			if _, err := tx.ExecContext(ctx, `INSERT INTO effects (operation_id, step, n) VALUES (?, 'undo', ?)`, op.ID, in.Size); err != nil {
				return db.Error(err)
			}
			if tries < 3 {
				return fault.New(fault.Unavailable, "away")
			}
			return nil
		}
		short := create
		short.Name, short.Timeout = "short", time.Second // for the first step, on a loaded machine, too
		operation.Handle(b.runner, short, first, b.step("b", func(*operation.Op) error { return operation.Again(50 * time.Millisecond) }, func(*operation.Op) error {
			return operation.Again(50 * time.Millisecond)
		}))
		b.start()
		id := b.begin(short, "")
		seen := make(chan struct{})
		go func() { // whoever sees the effect sees the end
			defer close(seen)
			for n := 0; n == 0 && t.Context().Err() == nil; {
				if err := d.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM effects`); err != nil {
					t.Error(err)
					return
				}
			}
			if o, err := b.ops.Show(t.Context(), id); err != nil || !o.State.Over() {
				t.Errorf("the effect is there, the end is not: %+v, %v", o, err)
			}
		}()
		o := b.ends(id, operation.TimedOut)
		<-seen
		var n int
		if err := d.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM effects`); err != nil || n != 1 {
			t.Errorf("%d effects, %v", n, err)
		}
		if events(o) != "a:done b:not undone a:retry a:retry a:undone" {
			t.Errorf("%s; events %s", &b.j, events(o))
		}
	})
}

// TestPurge: what ended long enough ago is forgotten with its events, and nothing else.
func TestPurge(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		operation.Handle(b.runner, create, b.step("a", nil, nil), b.step("b", func(op *operation.Op) error {
			if op.Resource == "stays" {
				return operation.Again(time.Hour)
			}
			return nil
		}, nil))
		b.start()
		old := b.begin(create, "old")
		b.ends(old, operation.Succeeded)
		stays := b.begin(create, "stays")
		b.waits(stays, "b", 1)
		if n, err := b.ops.Purge(t.Context(), time.Hour); err != nil || n != 0 {
			t.Errorf("Purge of what is an hour old: %d, %v", n, err)
		}
		if n, err := b.ops.Purge(t.Context(), 0); err != nil || n != 1 {
			t.Errorf("Purge of all: %d, %v", n, err)
		}
		if _, err := b.ops.Show(t.Context(), old); !errors.Is(err, fault.NotFound) {
			t.Errorf("Show of one that is gone: %v", err)
		}
		var n int
		if err := d.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM operation_events WHERE operation_id <> ?`, stays); err != nil || n != 0 {
			t.Errorf("%d events are left, %v", n, err)
		}
		if _, err := b.ops.Show(t.Context(), stays); err != nil {
			t.Error(err)
		}
	})
}
