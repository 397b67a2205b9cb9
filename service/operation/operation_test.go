package operation_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/operation"
)

// TestOneAtATime: a resource has one operation at a time. An operation that preempts replaces the other operation, even while a step
// runs.
func TestOneAtATime(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{Lease: 300 * time.Millisecond})
		entered := make(chan struct{})
		enter := sync.OnceFunc(func() { close(entered) }) // the runner may also find the other operation below before it is canceled
		s := b.step("slow", nil, nil)
		s.Do = func(ctx context.Context, _ *operation.Op, _ *input) error {
			enter()
			<-ctx.Done()
			b.j.add("stopped")
			return ctx.Err()
		}
		operation.Handle(b.runner, create, s)
		operation.Handle(b.runner, remove, b.step("remove", nil, nil))
		b.start()
		first := b.begin(create, "disk-1")
		<-entered
		if _, err := operation.Begin(t.Context(), b.ops, create, "disk-1", &input{}); !errors.Is(err, operation.ErrBusy) || !strings.Contains(err.Error(), first) {
			t.Errorf("a second operation: %v", err)
		}
		other := b.begin(create, "")
		if err := b.ops.Cancel(t.Context(), other, "not this one"); err != nil {
			t.Error(err)
		}
		second := b.begin(remove, "disk-1")
		b.ends(second, operation.Succeeded)
		if o := b.ends(first, operation.Canceled); !strings.Contains(o.Error, "disk.delete "+second) || len(o.Events) > 0 {
			t.Errorf("the preempted operation: %+v", o)
		}
		b.ends(other, operation.Canceled)
		waittest.Until(t, "the end of the step", func() bool { return strings.Contains(b.j.String(), "stopped") })
	})
}

// TestCancelAndRetry: Cancel undoes the completed steps. Retry runs the operation again from its first step.
func TestCancelAndRetry(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx := t.Context()
		b := newBench(t, d, operation.RunnerConfig{})
		wait := true
		operation.Handle(b.runner, create, b.step("a", nil, nil), b.step("b", func(*operation.Op) error {
			if wait {
				return operation.WaitFor("", time.Hour)
			}
			return nil
		}, nil))
		b.start()
		id := b.begin(create, "disk-1")
		b.waits(id, "b", 0)
		if err := b.ops.Retry(ctx, id); fault.CodeOf(err) != fault.Precondition {
			t.Errorf("retry of an operation that has not ended: %v", err)
		}
		if err := b.ops.Cancel(ctx, id, "the user has changed their mind"); err != nil {
			t.Fatal(err)
		}
		if o := b.ends(id, operation.Canceled); o.Error != "the user has changed their mind" || o.ErrorCode != "Canceled" || b.j.String() != "a(7) b(7) -b -a" {
			t.Errorf("canceled: %+v after %s", o, &b.j)
		}
		if err := b.ops.Cancel(ctx, id, ""); fault.CodeOf(err) != fault.Precondition {
			t.Errorf("cancel of an operation that has ended: %v", err)
		}
		wait = false
		if err := b.ops.Retry(ctx, id); err != nil {
			t.Fatal(err)
		}
		if o := b.ends(id, operation.Succeeded); o.Error != "" || o.StepsDone != 2 {
			t.Errorf("after Retry: %+v", o)
		}
		if err := b.ops.Retry(ctx, id); fault.CodeOf(err) != fault.Precondition {
			t.Errorf("retry of an operation that has succeeded: %v", err)
		}
		for _, err := range []error{b.ops.Retry(ctx, "none"), b.ops.Cancel(ctx, "none", "")} {
			if fault.CodeOf(err) != fault.NotFound {
				t.Errorf("retry or cancel of an operation that does not exist: %v", err)
			}
		}
		if _, err := b.ops.Show(ctx, "none"); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("show of an operation that does not exist: %v", err)
		}
	})
}

// TestTimeout: an operation that does not end is undone after its timeout, and ends at the latest after the timeout for undoing. An
// operation whose kind no runner knows ends after its timeout.
func TestTimeout(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{Lease: time.Second})
		short, stuck, strange := create, create, create
		short.Name, stuck.Name, strange.Name = "short", "stuck", "strange"
		short.Timeout, stuck.Timeout, strange.Timeout = 2*time.Second, 2*time.Second, 200*time.Millisecond // enough time for the first steps, even on a loaded machine
		away := func(*operation.Op) error { return fault.New(fault.Unavailable, "away") }
		operation.Handle(b.runner, short, b.step("a", nil, nil), b.step("b", away, nil))
		operation.Handle(b.runner, stuck, b.step("c", nil, away), b.step("d", away, nil))
		b.start()
		ids := []string{b.begin(short, ""), b.begin(stuck, ""), b.begin(strange, "")}
		if o := b.ends(ids[0], operation.TimedOut); !strings.HasSuffix(events(o), "b:undone a:undone") || o.ErrorCode != "Timeout" || o.Error != "operation not done within 2s: away" {
			t.Errorf("short: %s, %+v", events(o), o)
		}
		if o := b.ends(ids[1], operation.TimedOut); !strings.HasSuffix(events(o), "c:not undone") || !strings.Contains(o.Error, "step c was not undone") {
			t.Errorf("stuck: %s, %+v", events(o), o)
		}
		if o := b.ends(ids[2], operation.TimedOut); !strings.HasPrefix(o.Error, "operation not done within 200ms; not compensated: no running process knows kind strange version 0: start") || !o.NotCompensated {
			t.Errorf("strange: %+v", o)
		}
	})
}

// TestManyUnknown: many operations of unknown kinds with time left do not hide an operation whose time is over.
func TestManyUnknown(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{Lease: time.Second})
		operation.Handle(b.runner, create, b.step("a", nil, nil))
		long, short := create, create
		long.Name, short.Name, long.Timeout, short.Timeout = "long", "short", 24*time.Hour, time.Second
		var kept []string
		for range 120 {
			kept = append(kept, b.begin(long, ""))
		}
		over := []string{b.begin(short, ""), b.begin(short, "")}
		past := func(ago time.Duration) time.Time { return time.Now().UTC().Add(-ago) }
		for kind, ago := range map[string]time.Duration{"long": -time.Hour, "short": time.Hour} {
			if _, err := d.ExecContext(t.Context(), `UPDATE operations SET due_at = ?, deadline_at = ? WHERE kind = ?`, past(2*time.Hour+ago), past(ago), kind); err != nil {
				t.Fatal(err)
			}
		}
		b.start()
		for _, id := range over {
			b.ends(id, operation.TimedOut)
		}
		for _, id := range kept {
			if o, err := b.ops.Show(t.Context(), id); err != nil || o.State != operation.Running {
				t.Fatalf("an operation with time left: %+v, %v", o, err)
			}
		}
	})
}

// TestOrder: operations with a higher priority run first, and have slots that other operations cannot use.
func TestOrder(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{MaxInFlight: 4})
		release := make(chan struct{})
		operation.Handle(b.runner, create, b.step("many", func(*operation.Op) error { <-release; return nil }, nil))
		operation.Handle(b.runner, remove, b.step("remove", nil, nil))
		var ids []string
		for range 5 {
			ids = append(ids, b.begin(create, ""))
		}
		b.start()
		urgent := b.begin(remove, "")
		b.ends(urgent, operation.Succeeded)
		close(release)
		for _, id := range ids {
			b.ends(id, operation.Succeeded)
		}
	})
}
