package operation_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/operation"
)

// TestRetry: a step defines which errors are retried, how often, and how soon. A mark on an error overrides its code.
func TestRetry(t *testing.T) {
	t.Parallel()
	away, gone := fault.New(fault.Unavailable, "away"), fault.New(fault.NotFound, "gone")
	for _, tt := range []struct {
		name   string
		retry  operation.Retry
		limit  time.Duration
		errs   []error // the errors of the attempts; after them the step is done
		state  operation.State
		events string
		says   string
		took   time.Duration // the minimum duration
	}{
		{"the step's Codes make NotFound transient", operation.Retry{Codes: []fault.Code{fault.NotFound}}, 0, []error{gone, gone}, operation.Succeeded, "a:retry a:retry a:done", "", 0},
		{"the step's Codes lack Unavailable", operation.Retry{Codes: []fault.Code{fault.NotFound}}, 0, []error{away}, operation.Failed, "a:failed", "away", 0},
		{"empty Codes make no code transient", operation.Retry{Codes: []fault.Code{}}, 0, []error{away}, operation.Failed, "a:failed", "away", 0},
		{"marked as transient", operation.Retry{}, 0, []error{operation.Transient(gone)}, operation.Succeeded, "a:retry a:done", "", 0},
		{"marked as permanent", operation.Retry{}, 0, []error{operation.Permanent(away)}, operation.Failed, "a:failed", "away", 0},
		{"the outermost mark counts", operation.Retry{}, 0, []error{fmt.Errorf("x: %w", operation.Transient(operation.Permanent(gone)))}, operation.Succeeded, "a:retry a:done", "", 0},
		{"as many errors as Max allows retries", operation.Retry{Max: 2}, 0, []error{away, away}, operation.Succeeded, "a:retry a:retry a:done", "", 0},
		{"more errors than Max allows retries", operation.Retry{Max: 2}, 0, []error{away, away, away}, operation.Failed, "a:retry a:retry a:failed", "away", 0},
		{"MinDelay is the delay before the first retry", operation.Retry{MinDelay: 400 * time.Millisecond}, 0, []error{away}, operation.Succeeded, "a:retry a:done", "", 300 * time.Millisecond},
		{"a MaxDelay below MinDelay is the delay", operation.Retry{MinDelay: time.Hour, MaxDelay: 10 * time.Millisecond}, 0, []error{away}, operation.Succeeded, "a:retry a:done", "", 0},
		{"retries end at the step's Limit", operation.Retry{MinDelay: 50 * time.Millisecond, MaxDelay: 50 * time.Millisecond}, time.Second, slicesOf(away, 1000), operation.TimedOut, "", "step a not done within 1s: away", time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
				b := newBench(t, d, operation.RunnerConfig{})
				calls := 0
				operation.Handle(b.runner, create, operation.Step[input]{Name: "a", Retry: tt.retry, Limit: tt.limit, Do: func(context.Context, *operation.Op, *input) error {
					if calls++; calls <= len(tt.errs) {
						return tt.errs[calls-1]
					}
					return nil
				}})
				b.start()
				o := b.ends(b.begin(create, ""), tt.state)
				if tt.events != "" && events(o) != tt.events || o.Error != tt.says {
					t.Errorf("events %s, error %q; want %s, %q", events(o), o.Error, tt.events, tt.says)
				}
				if took := o.Ended.Sub(o.Created); took < tt.took {
					t.Errorf("the operation took %v, want at least %v", took, tt.took)
				}
			})
		})
	}
	if operation.Permanent(nil) != nil || operation.Transient(nil) != nil {
		t.Error("a mark turns nil into an error")
	}
	if err := operation.Permanent(away); !errors.Is(err, fault.Unavailable) || err.Error() != "away" {
		t.Errorf("a marked error is %v", err)
	}
}

func slicesOf(err error, n int) (out []error) {
	for range n {
		out = append(out, err)
	}
	return out
}

// TestOnEnd: the function of OnEnd runs in the transaction of the end, for every kind of end, and is not skipped after an error.
func TestOnEnd(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		var failures atomic.Int64
		kinds := map[string]operation.Kind[input]{}
		handle := func(name string, steps ...operation.Step[input]) {
			k := create
			k.Name, k.Timeout = name, 2*time.Second
			kinds[name] = k
			operation.Handle(b.runner, k, steps...)
			operation.OnEnd(b.runner, k, func(ctx context.Context, tx *sqlx.Tx, op *operation.Op, in *input) error {
				text := ""
				if op.Err != nil {
					text = fault.CodeOf(op.Err).String() + " " + op.Err.Error()
				}
				in.Text = string(op.State)
				if _, err := tx.ExecContext(ctx, `INSERT INTO effects (operation_id, step, n) VALUES (?, ?, 1)`, op.ID, db.Cut("end "+text, 64)); err != nil {
					return db.Error(err)
				}
				if failures.Add(-1) >= 0 {
					return errors.New("stuck")
				}
				return nil
			})
		}
		no := func(*operation.Op) error { return errors.New("no") }
		plain := b.step("a", nil, nil)
		plain.Undo = nil
		failing := b.step("b", no, nil)
		failing.Undo = nil
		handle("works", plain)
		handle("fails", plain, failing)
		handle("undoes", b.step("a", nil, nil), failing)
		handle("waits", b.waiting("a"))
		handle("reports", b.waiting("a"))
		b.start()
		for _, tt := range []struct {
			name, kind string
			failures   int64 // the number of calls of OnEnd that fail
			state      operation.State
			end        string // the effect of OnEnd; "": no effect
			events     string
			says       string
		}{
			{"succeeded", "works", 0, operation.Succeeded, "end ", "a:done", ""},
			{"failed", "fails", 0, operation.Failed, "end Internal no", "a:done b:failed", "no"},
			{"undone", "undoes", 0, operation.Failed, "end Internal no", "a:done b:failed a:undone", "no"},
			{"timed out", "waits", 0, operation.TimedOut, "end Timeout operation not done within 2s", "a:undone", "operation not done within 2s"},
			{"an error of OnEnd counts as one of the last step", "works", 1, operation.Failed, "end Internal stuck", "a:failed", "stuck"},
			{"OnEnd is retried after a failure", "fails", 3, operation.Failed, "end Internal no", "a:done b:failed end:retry end:retry", "no"},
			{"OnEnd is retried after undoing", "undoes", 2, operation.Failed, "end Internal no", "a:done b:failed a:undone end:retry", "no"},
			{"OnEnd never succeeds", "fails", 1 << 40, operation.Failed, "", "", "no; the end failed: stuck"},
		} {
			failures.Store(tt.failures)
			id := b.begin(kinds[tt.kind], "")
			o := b.ends(id, tt.state)
			var got []string
			if err := d.SelectContext(t.Context(), &got, `SELECT step FROM effects WHERE operation_id = ?`, id); err != nil {
				t.Fatal(err)
			}
			if tt.end == "" && len(got) > 0 || tt.end != "" && (len(got) != 1 || got[0] != tt.end) {
				t.Errorf("%s: effects %q, want %q", tt.name, got, tt.end)
			}
			if tt.events != "" && events(o) != tt.events || o.Error != tt.says {
				t.Errorf("%s: events %s, error %q; want %s, %q", tt.name, events(o), o.Error, tt.events, tt.says)
			}
			if tt.end != "" && !strings.Contains(string(o.Data), `"text":"`+string(tt.state)) {
				t.Errorf("%s: data %s", tt.name, o.Data)
			}
		}
		if n := b.runner.Stats().NotUndone; n != 1 {
			t.Errorf("%d ends were counted as not done, want 1", n)
		}
		failures.Store(1)
		id := b.begin(kinds["reports"], "r")
		b.waits(id, "a", 0)
		token := b.token("r")
		if err := b.runner.EndStep(t.Context(), token, "", nil); err == nil || err.Error() != "stuck" {
			t.Errorf("a report whose end fails: %v", err)
		}
		if err := b.ops.Wanted(t.Context(), token, ""); err != nil {
			t.Errorf("after that the step is no longer wanted: %v", err)
		}
		if err := b.runner.EndStep(t.Context(), token, "", nil); err != nil {
			t.Error(err)
		}
		b.ends(id, operation.Succeeded)
	})
}

// TestSignal: operations that wait for a peer continue at once when the peer is back. Operations that wait for another peer do not.
func TestSignal(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{Poll: 50 * time.Millisecond})
		operation.Handle(b.runner, create, b.stepIn("a", func(op *operation.Op, in *input) error {
			b.j.add("%s-%d", op.Resource, op.Waits)
			if op.Waits > 0 {
				return nil
			}
			return operation.WaitFor(map[int]string{7: "host-1", 8: "host-2"}[in.Size], time.Hour)
		}, nil))
		b.start()
		ids := map[string]string{}
		for _, resource := range []string{"x", "y"} {
			ids[resource] = b.begin(create, resource)
		}
		other, err := operation.Begin(reqctx.With(t.Context(), asker), b.ops, create, "z", &input{Size: 8})
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			b.waitsFor(id, "host-1")
		}
		b.waitsFor(other, "host-2")
		if err := b.runner.Signal(t.Context(), "host-1"); err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			b.ends(id, operation.Succeeded)
		}
		b.waitsFor(other, "host-2")
		if strings.Contains(b.j.String(), "z-1") {
			t.Errorf("an operation that waits for another peer continued: %s", &b.j)
		}
	})
}

// TestNotifyWithoutSlot: an operation waits, and is notified while all slots are busy. It continues when a slot is free, and not only
// at the end of its delay.
func TestNotifyWithoutSlot(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{MaxInFlight: 1})
		busy, release := make(chan struct{}), make(chan struct{})
		operation.Handle(b.runner, create, b.stepIn("a", func(op *operation.Op, _ *input) error {
			switch {
			case op.Resource == "busy":
				close(busy)
				<-release
				return nil
			case op.Waits > 0:
				return nil
			}
			return operation.WaitFor("host-1", time.Hour)
		}, nil))
		operation.Handle(b.runner, remove, b.step("b", nil, nil)) // because of its priority, it has an additional slot
		b.start()
		waiting := b.begin(create, "waiting")
		b.waitsFor(waiting, "host-1")
		occupies := b.begin(create, "busy")
		<-busy
		b.runner.Notify(waiting)
		b.runner.NotifyResource("waiting")
		next := b.begin(remove, "next")
		b.runner.Notify(next)
		b.ends(next, operation.Succeeded) // when it has ended, the earlier notifications are handled
		close(release)
		b.ends(occupies, operation.Succeeded)
		b.ends(waiting, operation.Succeeded)
	})
}

// waitsFor waits until an operation waits for a peer.
func (b *bench) waitsFor(id, peer string) {
	b.Helper()
	waittest.Succeeds(b, "the operation to wait for "+peer, func() error {
		o, err := b.ops.Show(b.Context(), id)
		if err != nil {
			b.Fatal(err)
		}
		if o.State.Ended() {
			b.Fatalf("the operation does not wait for %s: %+v", peer, o)
		}
		if o.WaitsFor != peer || o.Owner != "" {
			return fmt.Errorf("%+v", o)
		}
		return nil
	})
}

// TestDeadlines: the deadlines of a step and of an operation run only while a runner could have received a report. A report also counts
// after the deadline.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		const lease, limit = 300 * time.Millisecond, 1500 * time.Millisecond
		var told atomic.Int64
		runner := func() *bench {
			b := newBench(t, d, operation.RunnerConfig{Lease: lease})
			operation.Handle(b.runner, create, operation.Step[input]{Name: "a", Limit: limit, Do: func(context.Context, *operation.Op, *input) error {
				told.Add(1)
				return operation.WaitFor("host", lease)
			}})
			if err := b.runner.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			return b
		}
		first := runner()
		ids := []string{first.begin(create, "reported"), first.begin(create, "lost")}
		for _, id := range ids {
			first.waitsFor(id, "host")
		}
		if err := first.runner.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
		waittest.Pass(t, 2*limit, "no runner is started, by the database's clock")
		before := told.Load()
		// If a host comes back at the same time as the first runner, the step still has time left.
		if err := newBench(t, d, operation.RunnerConfig{}).runner.Signal(t.Context(), "host"); err != nil {
			t.Fatal(err)
		}
		second := runner()
		defer second.runner.Stop(context.WithoutCancel(t.Context()))
		waittest.Until(t, "two calls of steps after the runners are back", func() bool { return told.Load() >= before+2 })
		if err := second.runner.EndStep(t.Context(), second.token("reported"), "host", nil); err != nil {
			t.Errorf("a report after the runners are back: %v", err)
		}
		second.ends(ids[0], operation.Succeeded)
		if o := second.ends(ids[1], operation.TimedOut); o.Error != "step a not done within 1.5s" {
			t.Errorf("without a report: %q", o.Error)
		}

		// Even a runner that is not started accepts a report after the deadline.
		idle := newBench(t, d, operation.RunnerConfig{})
		operation.Handle(idle.runner, remove, idle.waiting("a"))
		id := idle.begin(remove, "late")
		if _, err := d.ExecContext(t.Context(), `UPDATE operations SET deadline_at = ?, step_deadline_at = ? WHERE id = ?`, time.Now().UTC().Add(-time.Second), time.Now().UTC().Add(-time.Second), id); err != nil {
			t.Fatal(err)
		}
		if err := idle.runner.EndStep(t.Context(), idle.token("late"), "host", nil); err != nil {
			t.Errorf("a report after the deadline: %v", err)
		}
		idle.ends(id, operation.Succeeded)
	})
}

// TestCurrent: the open operation of a resource can be read with its data, and locked.
func TestCurrent(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		s := b.stepIn("a", func(_ *operation.Op, in *input) error {
			in.Kept = 42
			return operation.WaitFor("host", time.Hour)
		}, nil)
		operation.Handle(b.runner, create, s)
		id := b.begin(create, "disk-1")
		op, err := b.ops.Current(t.Context(), "disk-1")
		if err != nil || op.ID != id || op.StepName != "" || op.State != operation.Running || op.Err != nil {
			t.Errorf("before a runner has seen the operation: %+v, %v", op, err)
		}
		b.start()
		b.waitsFor(id, "host")
		err = db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
			op, err := b.ops.Lock(ctx, tx, "disk-1")
			if err != nil {
				return err
			}
			if op.StepName != "a" || op.Kind != create.Name || op.Waits != 1 {
				t.Errorf("locked: %+v", op)
			}
			if data, err := operation.DataOf[input](op); err != nil || data.Kept != 42 {
				t.Errorf("the data: %+v, %v", data, err)
			}
			if _, err := operation.DataOf[[]string](op); !errors.Is(err, fault.Invalid) {
				t.Errorf("data of another type: %v", err)
			}
			if _, err := b.ops.Lock(ctx, tx, "disk-2"); !errors.Is(err, fault.NotFound) {
				t.Errorf("lock of a resource without an operation: %v", err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if data := b.data(id); data.Kept != 42 {
			t.Errorf("data: %+v", data)
		}
		var current []struct{ Resource, ID, Kind, State, Step string }
		if err := d.SelectContext(t.Context(), &current, `SELECT * FROM operation_current`); err != nil || len(current) != 1 ||
			current[0] != (struct{ Resource, ID, Kind, State, Step string }{"disk-1", id, "disk.create", "running", "a"}) {
			t.Errorf("the view has %+v, %v", current, err)
		}
		if _, err := operation.Begin(t.Context(), b.ops, remove, "disk-3", &input{}); err != nil {
			t.Fatal(err)
		}
		if _, err := operation.Begin(t.Context(), b.ops, remove, "disk-3", &input{}); !errors.Is(err, operation.ErrBusy) {
			t.Errorf("an operation that would preempt one of its own kind: %v", err)
		}
		again := remove
		again.PreemptsSame = true
		for _, k := range []operation.Kind[input]{again, {Name: remove.Name, PreemptsSame: true}} {
			before, err := b.ops.Current(t.Context(), "disk-3")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := operation.Begin(t.Context(), b.ops, k, "disk-3", &input{}); err != nil {
				t.Errorf("an operation that preempts one of its own kind: %v", err)
			}
			if o, err := b.ops.Show(t.Context(), before.ID); err != nil || o.State != operation.Canceled {
				t.Errorf("the preempted operation: %+v, %v", o, err)
			}
		}
		if _, err := operation.Begin(t.Context(), b.ops, operation.Kind[input]{Name: create.Name, PreemptsSame: true}, "disk-3", &input{}); !errors.Is(err, operation.ErrBusy) {
			t.Errorf("an operation that preempts only its own kind: %v", err)
		}
	})
}
