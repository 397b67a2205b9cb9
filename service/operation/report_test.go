package operation_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/operation"
)

// waiting returns a step that waits for a report.
func (b *bench) waiting(name string) operation.Step[input] {
	return b.step(name, func(*operation.Op) error { return operation.WaitFor("", time.Hour) }, nil)
}

// waits blocks until an operation waits for a report and has called a step more than n times. It returns the number of calls. A late
// notification can increase this number.
func (b *bench) waits(id, step string, n int) int {
	b.Helper()
	did := 0
	waittest.Succeeds(b, "the operation to wait at "+step, func() error {
		o, err := b.ops.Show(b.Context(), id)
		if err != nil {
			b.Fatal(err)
		}
		if did = strings.Count(b.j.String(), step+"("); did > n && o.Owner == "" {
			return nil
		}
		if o.State.Ended() {
			b.Fatalf("the operation does not wait at %s, but did %s: %+v", step, &b.j, o)
		}
		return fmt.Errorf("it did %s: %+v", &b.j, o)
	})
	return did
}

// token returns the token of the current step of an operation.
func (b *bench) token(resource string) string {
	b.Helper()
	op, err := b.ops.Current(b.Context(), resource)
	if err != nil {
		b.Fatal(err)
	}
	return op.Token
}

// TestReport: if another process does the work of a step, the step ends with the result that the other process reports. The report and other
// changes of the same transaction are written together, or not at all.
func TestReport(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{Poll: time.Hour})
		operation.Handle(b.runner, create, b.waiting("a"), b.waiting("b"))
		b.start()
		id := b.begin(create, "done")
		b.runner.Notify(id)
		b.waits(id, "a", 0)
		for _, token := range []string{"", id, id + "/", id + "/-1", id + "/1", id + "/00", "x/0", id + "/0x"} {
			if err := b.runner.EndStep(t.Context(), token, "", nil); !errors.Is(err, operation.ErrStale) {
				t.Errorf("a report with the token %q: %v", token, err)
			}
			if err := b.ops.Wanted(t.Context(), token, ""); !errors.Is(err, operation.ErrStale) {
				t.Errorf("the question with the token %q: %v", token, err)
			}
		}
		if _, err := b.ops.Current(t.Context(), "another"); !errors.Is(err, fault.NotFound) {
			t.Errorf("a resource without an operation: %v", err)
		}
		first := b.token("done")
		sorry := errors.New("sorry")
		err := db.Tx(t.Context(), d, func(ctx context.Context, _ *sqlx.Tx) error {
			if err := b.runner.EndStep(ctx, first, "", nil); err != nil {
				return err
			}
			return sorry
		})
		if o, showErr := b.ops.Show(t.Context(), id); !errors.Is(err, sorry) || showErr != nil || o.StepsDone != 0 || len(o.Events) != 0 {
			t.Errorf("a transaction that is rolled back: %v, %+v, %v", err, o, showErr)
		}
		if err := b.ops.Wanted(t.Context(), first, ""); err != nil {
			t.Errorf("the current step is not wanted: %v", err)
		}
		for range 2 { // the answer to the first report was lost
			if err := b.runner.EndStep(t.Context(), first, "", nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.ops.Wanted(t.Context(), first, ""); !errors.Is(err, operation.ErrStale) {
			t.Errorf("a step that has ended is wanted: %v", err)
		}
		b.runner.NotifyResource("done")
		b.waits(id, "b", 0)
		second := b.token("done")
		for range 2 {
			if err := b.runner.EndStep(t.Context(), second, "", nil); err != nil {
				t.Fatal(err)
			}
		}
		if o, err := b.ops.Show(t.Context(), id); err != nil || o.State != operation.Succeeded || events(o) != "a:done b:done" || o.Events[0].Host != "h1" {
			t.Errorf("the operation after its last step: %+v, %v", o, err)
		}
		if err := b.runner.EndStep(t.Context(), first, "", nil); !errors.Is(err, operation.ErrStale) {
			t.Errorf("an older report after the end: %v", err)
		}
	})
}

// TestReportFailed: a report with an error fails the step: it is retried if the error is transient, otherwise the steps are undone.
func TestReportFailed(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		operation.Handle(b.runner, create, b.step("a", nil, func(op *operation.Op) error {
			b.j.add("%v/%s", op.Err, fault.CodeOf(op.Err))
			return nil
		}), b.waiting("b"))
		b.start()
		id := b.begin(create, "failed")
		n := b.waits(id, "b", 0)
		first := b.token("failed")
		if err := b.runner.EndStep(t.Context(), first, "", fault.New(fault.Unavailable, "not now")); err != nil {
			t.Fatal(err)
		}
		b.runner.Notify(id)
		b.waits(id, "b", n)
		if err := b.ops.Wanted(t.Context(), first, ""); !errors.Is(err, operation.ErrStale) {
			t.Errorf("an attempt that has failed is wanted: %v", err)
		}
		if err := b.runner.EndStep(t.Context(), b.token("failed"), "", fault.New(fault.Exhausted, "no room")); err != nil {
			t.Fatal(err)
		}
		if o := b.ends(id, operation.Failed); o.Error != "no room" || o.ErrorCode != "Exhausted" || events(o) != "a:done b:retry b:failed b:undone a:undone" {
			t.Errorf("%+v; events %s", o, events(o))
		}
		if !strings.HasSuffix(b.j.String(), "b(7) -b -a no room/Exhausted") {
			t.Errorf("the operation did %s", &b.j)
		}
	})
}

// TestReportWhileItRuns: a report that comes while the step still runs on its runner ends the step.
func TestReportWhileItRuns(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{Poll: time.Hour})
		entered, leave := make(chan struct{}), make(chan struct{})
		operation.Handle(b.runner, create, b.step("a", func(*operation.Op) error {
			close(entered)
			<-leave
			return operation.WaitFor("", time.Hour)
		}, nil), b.step("b", nil, nil))
		b.start()
		id := b.begin(create, "runs")
		b.runner.Notify(id)
		<-entered
		if err := b.runner.EndStep(t.Context(), b.token("runs"), "", nil); err != nil {
			t.Fatal(err)
		}
		close(leave)
		if o := b.ends(id, operation.Succeeded); events(o) != "a:done b:done" {
			t.Errorf("events %s", events(o))
		}
	})
}

// TestReportOfCanceled: a report for an operation that is being undone is stale.
func TestReportOfCanceled(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{Poll: time.Hour})
		operation.Handle(b.runner, create, b.waiting("a"))
		b.start()
		id := b.begin(create, "canceled")
		b.runner.Notify(id)
		b.waits(id, "a", 0)
		token := b.token("canceled")
		if err := b.ops.Cancel(t.Context(), id, "no longer wanted"); err != nil {
			t.Fatal(err)
		}
		if err := b.runner.EndStep(t.Context(), token, "", nil); !errors.Is(err, operation.ErrStale) {
			t.Errorf("an operation that is undone: %v", err)
		}
	})
}

// TestReported: the function Reported of a step decides in the transaction of the report. It sends the operation back to an earlier step,
// refuses the report, or lets the step end as the report says. Its own changes are in the same transaction.
func TestReported(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		refuse := true
		told := b.waiting("b")
		told.Undo = nil
		told.Reported = func(ctx context.Context, tx *sqlx.Tx, op *operation.Op, in *input, err error) error {
			if _, dbErr := tx.ExecContext(ctx, `INSERT INTO effects (operation_id, step, n) VALUES (?, ?, ?)`, op.ID, fmt.Sprintf("report-%d", in.Kept), in.Size); dbErr != nil {
				return db.Error(dbErr)
			}
			switch {
			case refuse:
				return fault.New(fault.Unavailable, "no")
			case err != nil:
				in.Kept++
				return operation.GoTo("a", 2, err)
			}
			return nil
		}
		operation.Handle(b.runner, create, b.step("a", nil, nil), told, b.step("c", nil, nil))
		b.start()
		for _, tt := range []struct {
			resource string
			reports  []string // the errors of the reports; "": done
			state    operation.State
			events   string
			effects  int
			says     string
		}{
			{"back", []string{"fire", "water", ""}, operation.Succeeded, "a:done b:back a:done b:back a:done b:done c:done", 3, ""},
			{"too often", []string{"fire", "water", "earth"}, operation.Failed, "a:done b:back a:done b:back a:done b:failed a:undone", 3, "back to step a 2 times: earth"},
		} {
			id := b.begin(create, tt.resource)
			tokens := map[string]bool{}
			for i, report := range tt.reports {
				var err error
				if report != "" {
					err = errors.New(report)
				}
				b.waitsAtStep(tt.resource, "b", i)
				token := b.token(tt.resource)
				if refuse = true; !errors.Is(b.runner.EndStep(t.Context(), token, "", err), fault.Unavailable) {
					t.Error("the refusal is not returned")
				}
				refuse = false
				if err := b.runner.EndStep(t.Context(), token, "", err); err != nil {
					t.Fatal(err)
				}
				if tokens[token] {
					t.Errorf("the token %s was given twice", token)
				}
				tokens[token] = true
			}
			o := b.ends(id, tt.state)
			var n int
			if err := d.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM effects WHERE operation_id = ?`, id); err != nil || n != tt.effects || events(o) != tt.events || o.Error != tt.says {
				t.Errorf("%s: %d effects, %v, want %d; error %q; events %s, want %s", tt.resource, n, err, tt.effects, o.Error, events(o), tt.events)
			}
		}
	})
}

// data returns the data of an operation after the changes of its steps.
func (b *bench) data(id string) (in input) {
	b.Helper()
	op, err := b.ops.Show(b.Context(), id)
	if err == nil && op.Data != nil {
		err = json.Unmarshal(op.Data, &in)
	}
	if err != nil {
		b.Fatal(err)
	}
	return in
}

// TestReporter: only the peer for which a step waits can ask about the step and end it. A process with the token of one step cannot guess
// the token of the next step.
func TestReporter(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{Poll: time.Hour})
		waitsFor := func(name, peer string) operation.Step[input] {
			return b.step(name, func(*operation.Op) error { return operation.WaitFor(peer, time.Hour) }, nil)
		}
		operation.Handle(b.runner, create, waitsFor("a", "h1"), waitsFor("b", "h2"))
		b.start()
		id := b.begin(create, "r")
		b.runner.Notify(id)
		b.waitsFor(id, "h1")
		first := b.token("r")
		for _, other := range []string{"h2", ""} {
			if err := b.runner.EndStep(t.Context(), first, other, nil); !errors.Is(err, operation.ErrStale) {
				t.Errorf("a report of %q for a step that waits for h1: %v, want ErrStale", other, err)
			}
			if err := b.ops.Wanted(t.Context(), first, other); !errors.Is(err, operation.ErrStale) {
				t.Errorf("a question of %q: %v, want ErrStale", other, err)
			}
		}
		if err := b.ops.Wanted(t.Context(), first, "h1"); err != nil {
			t.Error(err)
		}
		if err := b.runner.EndStep(t.Context(), first, "h1", nil); err != nil {
			t.Fatal(err)
		}
		b.runner.NotifyResource("r")
		b.waitsFor(id, "h2")
		n, err := strconv.Atoi(first[strings.LastIndex(first, "/")+1:])
		if err != nil {
			t.Fatal(err)
		}
		for guess := n - 2; guess < n+20; guess++ {
			if err := b.ops.Wanted(t.Context(), fmt.Sprintf("%s/%d", id, guess), "h2"); !errors.Is(err, operation.ErrStale) {
				t.Errorf("the token after %s is guessed with %d: %v", first, guess, err)
			}
		}
		if err := b.runner.EndStep(t.Context(), b.token("r"), "h2", nil); err != nil {
			t.Error(err)
		}
		if o, err := b.ops.Show(t.Context(), id); err != nil || len(o.Events) != 2 || o.Events[0].Reporter != "h1" || o.Events[1].Reporter != "h2" {
			t.Errorf("the events do not have the processes that reported: %+v, %v", o, err)
		}
	})
}

// waitsAtStep waits until the operation of a resource waits at a step. The parameter entries is the number of earlier entries into the step,
// which the step's Reported counts in the field Kept.
func (b *bench) waitsAtStep(resource, step string, entries int) {
	b.Helper()
	waittest.Succeeds(b, "the operation to wait at "+step, func() error {
		op, err := b.ops.Current(b.Context(), resource)
		if err != nil {
			b.Fatal(err)
		}
		if op.StepName == step && op.Waits > 0 && b.data(op.ID).Kept == entries {
			return nil
		}
		return fmt.Errorf("%+v", op)
	})
}

// TestReportedUndo: another process can also undo a step, and report the result.
func TestReportedUndo(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		tokens := make(chan string, 100)
		operation.Handle(b.runner, create, b.step("a", nil, func(op *operation.Op) error {
			tokens <- op.Token
			return operation.WaitFor("host", time.Hour)
		}), b.step("b", func(*operation.Op) error { return errors.New("no") }, nil))
		b.start()
		id := b.begin(create, "disk-1")
		token := <-tokens
		if err := b.runner.EndStep(t.Context(), token, "host", errors.New("not yet")); err != nil {
			t.Fatal(err)
		}
		if next := <-tokens; next != token {
			t.Errorf("the next attempt to undo has the token %s, the first one %s", next, token)
		}
		if err := b.ops.Wanted(t.Context(), token, "host"); err != nil {
			t.Errorf("the compensation is not wanted: %v", err)
		}
		if err := b.runner.EndStep(t.Context(), token, "host", nil); err != nil {
			t.Fatal(err)
		}
		if o := b.ends(id, operation.Failed); events(o) != "a:done b:failed b:undone a:retry a:undone" || o.Error != "no" {
			t.Errorf("events %s, error %q", events(o), o.Error)
		}
	})
}

// TestReportedRetries: a reported error counts for Retry.Max, and the step is repeated after a back-off. The same holds while the step is
// being undone.
func TestReportedRetries(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{Poll: 2 * time.Millisecond}) // polls come often, even while a back-off lasts
		tokens := make(chan string, 100)
		operation.Handle(b.runner, create, operation.Step[input]{
			Name: "a", Retry: operation.Retry{Max: 2},
			Do: func(_ context.Context, op *operation.Op, _ *input) error {
				tokens <- op.Token
				return operation.WaitFor("", time.Hour)
			},
			Undo: func(_ context.Context, op *operation.Op, _ *input) error {
				tokens <- op.Token
				return operation.WaitFor("", time.Hour)
			},
		})
		b.start()
		id := b.begin(create, "r")
		began := time.Now()
		for range 7 { // three failures of doing, and four of undoing
			if err := b.runner.EndStep(t.Context(), <-tokens, "", fault.New(fault.Unavailable, "away")); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.runner.EndStep(t.Context(), <-tokens, "", nil); err != nil {
			t.Fatal(err)
		}
		// The delays are 100 and 200 ms, then 100, 200, 400 and 800 ms, each shortened by at most a quarter.
		if took := time.Since(began); took < 1300*time.Millisecond {
			t.Errorf("seven failures took %v: there was no back-off", took)
		}
		if o := b.ends(id, operation.Failed); events(o) != "a:retry a:retry a:failed a:retry a:retry a:retry a:retry a:undone" {
			t.Errorf("events %s", events(o))
		}
	})
}

// TestCancelOfLaterStep: if an operation is canceled at a step that this release does not know, it is undone only by a runner of the release
// that knows the step.
func TestCancelOfLaterStep(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{Lease: 600 * time.Millisecond})
		next := newBench(t, d, operation.RunnerConfig{})
		operation.Handle(b.runner, create, b.step("a", nil, nil))
		operation.Handle(next.runner, create, next.step("a", nil, nil), next.step("new", nil, nil))
		id := b.begin(create, "r")
		if _, err := d.ExecContext(t.Context(), `UPDATE operations SET step = 1, step_name = 'new'`); err != nil {
			t.Fatal(err)
		}
		if err := b.ops.Cancel(t.Context(), id, "no"); err != nil {
			t.Fatal(err)
		}
		b.start()
		waittest.Until(t, "the runner to find the operation and to leave it", func() bool { return b.runner.Stats().Unknown == 1 })
		next.start()
		if o := b.ends(id, operation.Canceled); b.j.String() != "" || next.j.String() != "-new -a" || events(o) != "new:undone a:undone" {
			t.Errorf("this release did %s, the next one %s, events %s", &b.j, &next.j, events(o))
		}
	})
}

// TestUndoTx: an UndoTx that fails twice takes effect exactly once, even after the time for undoing. The end of the operation is in the same
// transaction.
func TestUndoTx(t *testing.T) {
	t.Parallel()
	// This test is not in a bubble, because the bubble's clock would stand still while the reader below reads without a pause.
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
		short.Name, short.Timeout = "short", time.Second // enough for the first step, even on a loaded machine
		operation.Handle(b.runner, short, first, b.step("b", func(*operation.Op) error { return operation.WaitFor("", 50*time.Millisecond) }, func(*operation.Op) error {
			return operation.WaitFor("", 50*time.Millisecond)
		}))
		b.start()
		id := b.begin(short, "")
		seen := make(chan struct{})
		go func() { // if the reader sees the effect, it must also see the end
			defer close(seen)
			for n := 0; n == 0 && t.Context().Err() == nil; {
				if err := d.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM effects`); err != nil {
					t.Error(err)
					return
				}
			}
			if o, err := b.ops.Show(t.Context(), id); err != nil || !o.State.Ended() {
				t.Errorf("the effect exists, but the operation has not ended: %+v, %v", o, err)
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

// TestPurge: operations that ended long enough ago are deleted with their events. Other operations stay.
func TestPurge(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		operation.Handle(b.runner, create, b.step("a", nil, nil), b.step("b", func(op *operation.Op) error {
			if op.Resource == "stays" {
				return operation.WaitFor("", time.Hour)
			}
			return nil
		}, nil))
		b.start()
		old := b.begin(create, "old")
		b.ends(old, operation.Succeeded)
		stays := b.begin(create, "stays")
		b.waits(stays, "b", 1)
		if n, err := b.ops.Purge(t.Context(), time.Hour); err != nil || n != 0 {
			t.Errorf("Purge of operations that ended more than an hour ago: %d, %v", n, err)
		}
		if n, err := b.ops.Purge(t.Context(), 0); err != nil || n != 1 {
			t.Errorf("Purge of all ended operations: %d, %v", n, err)
		}
		if _, err := b.ops.Show(t.Context(), old); !errors.Is(err, fault.NotFound) {
			t.Errorf("Show of a deleted operation: %v", err)
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
