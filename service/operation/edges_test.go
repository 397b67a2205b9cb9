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
	"github.com/armature-go/armature/service/operation"
)

// TestWaitForPast: an operation ends as TimedOut even if its step returns WaitFor with a delay of zero or less, or returns WaitFor after the
// step's Limit has passed. The step is called at most every 10 ms.
func TestWaitForPast(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		const lease, limit = time.Second, 600 * time.Millisecond
		for name, tt := range map[string]struct {
			delay, works time.Duration
			calls        int64
		}{
			"negative":     {delay: -time.Hour, calls: int64(limit/(10*time.Millisecond)) + 1},
			"zero":         {calls: int64(limit/(10*time.Millisecond)) + 1},
			"too long ago": {delay: time.Hour, works: limit + 2*lease, calls: 3}, // a busy machine may lose the lease once or twice
		} {
			b := newBench(t, d, operation.RunnerConfig{Lease: lease})
			kind := operation.Kind[input]{Name: name, Timeout: time.Minute}
			var calls atomic.Int64
			operation.Handle(b.runner, kind, operation.Step[input]{Name: "a", Limit: limit, Do: func(context.Context, *operation.Op, *input) error {
				calls.Add(1)
				<-time.After(tt.works) // the function ignores its context
				return operation.WaitFor("x", tt.delay)
			}})
			b.start()
			id := b.begin(kind, "r")
			b.runner.Notify(id)
			o := b.ends(id, operation.TimedOut)
			if took := o.Ended.Sub(o.Created); took > 3*tt.works+5*limit || calls.Load() > tt.calls {
				t.Errorf("%s: %d calls, at most %d expected; ended after %v: %s", name, calls.Load(), tt.calls, took, o.Error)
			}
		}
	})
}

// brokenError is an error type. A nil *brokenError in an error is not a nil error, and its Error panics.
type brokenError struct{ text string }

func (e *brokenError) Error() string { return e.text }

// TestBrokenError: if a function of an operation returns an error whose method Error panics, the operation fails with Internal, as after a
// panic of the function itself.
func TestBrokenError(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		broken := error((*brokenError)(nil))
		for _, where := range []string{"Do", "DoTx", "GoTo", "Undo", "UndoTx", "Reported", "reported GoTo", "report", "OnEnd"} {
			errorIn := func(here string, err error) error {
				if here == where {
					return err
				}
				return nil
			}
			b := newBench(t, d, operation.RunnerConfig{Poll: 200 * time.Millisecond})
			kind := operation.Kind[input]{Name: where, Timeout: time.Second}
			waits := strings.Contains(strings.ToLower(where), "report")
			undoes := strings.HasPrefix(where, "Undo")
			operation.Handle(b.runner, kind, operation.Step[input]{Name: "first", DoTx: func(context.Context, *sqlx.Tx, *operation.Op, *input) error { return nil }}, operation.Step[input]{
				Name: "a",
				Do: func(context.Context, *operation.Op, *input) error {
					switch {
					case waits:
						return operation.WaitFor("x", time.Hour)
					case undoes:
						return errors.New("no")
					}
					return errors.Join(errorIn("Do", broken), errorIn("GoTo", operation.GoTo("first", 3, broken)))
				},
				DoTx:   func(context.Context, *sqlx.Tx, *operation.Op, *input) error { return errorIn("DoTx", broken) },
				Undo:   func(context.Context, *operation.Op, *input) error { return errorIn("Undo", broken) },
				UndoTx: func(context.Context, *sqlx.Tx, *operation.Op, *input) error { return errorIn("UndoTx", broken) },
				Reported: func(context.Context, *sqlx.Tx, *operation.Op, *input, error) error {
					if where == "reported GoTo" {
						return operation.GoTo("first", 3, broken)
					}
					return errorIn("Reported", broken)
				},
			})
			operation.OnEnd(b.runner, kind, func(_ context.Context, _ *sqlx.Tx, op *operation.Op, _ *input) error {
				if op.State == operation.Succeeded {
					return errorIn("OnEnd", broken)
				}
				return nil
			})
			b.start()
			id := b.begin(kind, where)
			b.runner.Notify(id)
			if waits {
				b.waitsFor(id, "x")
				token := b.token(where)
				err := b.runner.EndStep(t.Context(), token, "x", errorIn("report", broken))
				if where == "report" {
					if err != nil {
						t.Errorf("%s: %v", where, err)
					}
				} else if fault.CodeOf(err) != fault.Internal || !strings.Contains(err.Error(), "panic") {
					t.Errorf("%s: %v", where, err)
				} else {
					continue // nothing has changed, and the step still waits
				}
			}
			o := b.ends(id, operation.Failed)
			got := []string{o.ErrorCode, o.Error}
			if undoes { // the operation keeps the error of the failed step; the events have the errors of undoing
				got = []string{"", ""}
				for _, e := range o.Events {
					if e.Result == "retry" {
						got = []string{e.ErrorCode, e.Error}
					}
				}
			}
			if got[0] != "Internal" || !strings.Contains(got[1], "panic") {
				t.Errorf("%s: %s; events %s", where, got, events(o))
			}
		}
	})
}

// TestReportedBackOff: if a report sends an operation back to an earlier step, the operation continues after the back-off of the reported
// step's Retry.
func TestReportedBackOff(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		const first = 400 * time.Millisecond
		reportedStep := b.waiting("b")
		reportedStep.Retry.MinDelay = first
		reportedStep.Reported = func(_ context.Context, _ *sqlx.Tx, _ *operation.Op, in *input, err error) error {
			if err != nil {
				in.Kept++
				return operation.GoTo("a", 3, err)
			}
			return nil
		}
		operation.Handle(b.runner, create, b.step("a", nil, nil), reportedStep)
		b.start()
		id := b.begin(create, "r")
		for n := range 2 {
			b.waitsAtStep("r", "b", n)
			begin := time.Now()
			if err := b.runner.EndStep(t.Context(), b.token("r"), "", errors.New("fire")); err != nil {
				t.Fatal(err)
			}
			b.waitsAtStep("r", "b", n+1)
			if took, least := time.Since(begin), first<<n*3/4; took < least {
				t.Errorf("back %d: the step was entered after %v, want at least %v", n+1, took, least)
			}
		}
		if err := b.runner.EndStep(t.Context(), b.token("r"), "", nil); err != nil {
			t.Fatal(err)
		}
		b.ends(id, operation.Succeeded)
	})
}

// TestReportedTx: DoTx and UndoTx run in the transaction of the report that ends the step, exactly once and with the data that Reported
// has left. If they fail, nothing is changed.
func TestReportedTx(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		var refuses bool
		effect := func(name string) func(ctx context.Context, tx *sqlx.Tx, op *operation.Op, in *input) error {
			return func(ctx context.Context, tx *sqlx.Tx, op *operation.Op, in *input) error {
				in.Kept++
				if _, err := tx.ExecContext(ctx, `INSERT INTO effects (operation_id, step, n) VALUES (?, ?, ?)`, op.ID, name, in.Kept); err != nil {
					return db.Error(err)
				}
				if refuses {
					return fault.New(fault.Unavailable, "no")
				}
				return nil
			}
		}
		wait := func(context.Context, *operation.Op, *input) error { return operation.WaitFor("host", time.Hour) }
		operation.Handle(b.runner, create, operation.Step[input]{
			Name: "a", Do: wait, DoTx: effect("done"), Undo: wait, UndoTx: effect("undone"),
			Reported: func(_ context.Context, _ *sqlx.Tx, _ *operation.Op, in *input, _ error) error {
				in.Kept += 10
				return nil
			},
		}, operation.Step[input]{Name: "b", Do: wait})
		b.start()
		id := b.begin(create, "r")
		endStep := func(step string, report error) {
			t.Helper()
			b.waitsForStep(id, step)
			token := b.token("r")
			if refuses = step == "a"; refuses {
				if err := b.runner.EndStep(t.Context(), token, "host", report); !errors.Is(err, fault.Unavailable) {
					t.Errorf("the error of a transaction that fails: %v", err)
				}
			}
			refuses = false
			for range 2 { // the second report repeats the first
				if err := b.runner.EndStep(t.Context(), token, "host", report); err != nil {
					t.Errorf("report of %s: %v", step, err)
				}
			}
		}
		endStep("a", nil)
		endStep("b", errors.New("fire"))
		endStep("a", nil)
		o := b.ends(id, operation.Failed)
		var got []string
		if err := d.SelectContext(t.Context(), &got, `SELECT step FROM effects WHERE operation_id = ? AND (step = 'done' AND n = 11 OR step = 'undone' AND n = 12) ORDER BY step`, id); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != "[done undone]" || events(o) != "a:done b:failed a:undone" || !strings.Contains(string(o.Data), `"kept":12`) {
			t.Errorf("effects %s, events %s, data %s", got, events(o), o.Data)
		}
	})
}

// waitsForStep waits until an operation waits at a step for a report.
func (b *bench) waitsForStep(id, step string) {
	b.Helper()
	waittest.Until(b, "an operation that waits at step "+step, func() bool {
		o, err := b.ops.Show(b.Context(), id)
		return err == nil && o.StepName == step && o.WaitsFor != "" && o.Owner == ""
	})
}

// TestRepeatedReport: a repeated report is recognized until a later step is reported. After that it is stale.
func TestRepeatedReport(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		wait := func(context.Context, *operation.Op, *input) error { return operation.WaitFor("host", time.Hour) }
		operation.Handle(b.runner, create, operation.Step[input]{Name: "a", Do: wait}, b.step("own", nil, nil), operation.Step[input]{Name: "b", Do: wait}, operation.Step[input]{Name: "c", Do: wait})
		b.start()
		id := b.begin(create, "r")
		b.waitsForStep(id, "a")
		first := b.token("r")
		if err := b.runner.EndStep(t.Context(), first, "host", nil); err != nil {
			t.Fatal(err)
		}
		b.waitsForStep(id, "b") // a runner has done the step in between
		if err := b.runner.EndStep(t.Context(), first, "host", errors.New("repeated")); err != nil {
			t.Errorf("the report of the step that was reported last: %v", err)
		}
		if err := b.runner.EndStep(t.Context(), b.token("r"), "host", nil); err != nil {
			t.Fatal(err)
		}
		b.waitsForStep(id, "c")
		if err := b.runner.EndStep(t.Context(), first, "host", nil); !errors.Is(err, operation.ErrStale) {
			t.Errorf("the report of an earlier step: %v, want ErrStale", err)
		}
	})
}

// TestRetryMinDelay: if MinDelay is above the default MaxDelay (3 s), MinDelay is the delay. A negative time is a programmer's error.
func TestRetryMinDelay(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{Poll: 200 * time.Millisecond})
		var at []time.Time
		operation.Handle(b.runner, create, operation.Step[input]{Name: "a", Retry: operation.Retry{Max: 1, MinDelay: 5 * time.Second}, Do: func(context.Context, *operation.Op, *input) error {
			at = append(at, time.Now())
			return fault.New(fault.Unavailable, "no")
		}})
		b.start()
		id := b.begin(create, "r")
		waittest.Pass(t, 3*time.Second, "the back-off")
		b.ends(id, operation.Failed)
		if took := at[1].Sub(at[0]); took < 5*time.Second*3/4 {
			t.Errorf("the first retry came after %v, want at least 3.75s", took)
		}
		for name, bad := range map[string]operation.Step[input]{
			"MinDelay": {Retry: operation.Retry{MinDelay: -1}}, "MaxDelay": {Retry: operation.Retry{MaxDelay: -1}}, "Timeout": {Timeout: -1}, "Limit": {Limit: -1},
		} {
			bad.Name, bad.Do = "a", func(context.Context, *operation.Op, *input) error { return nil }
			func() {
				defer func() {
					if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "negative") {
						t.Errorf("%s is negative: %v, want a panic that says so", name, p)
					}
				}()
				operation.Handle(b.runner, operation.Kind[input]{Name: name}, bad)
			}()
		}
	})
}
