package operation_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"
	"unicode/utf8"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/operation"
)

func TestMain(m *testing.M) {
	if os.Getenv("OPERATION_TEST_CHILD") == "deadline" {
		os.Exit(blocked())
	}
	if os.Getenv("OPERATION_TEST_CHILD") != "" {
		os.Exit(child())
	}
	goleak.VerifyTestMain(m)
}

var migrations = fstest.MapFS{
	"00001_operations.sql": {Data: []byte(operation.Schema)},
	"00003_requests.sql":   {Data: []byte(operation.Schema2)},
	"00004_steps.sql":      {Data: []byte(operation.Schema3)},
	"00002_effects.sql": {Data: []byte(`-- +goose Up
CREATE TABLE effects (operation_id VARCHAR(36) NOT NULL, step VARCHAR(64) NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (operation_id, step));`)},
}

type input struct {
	Size int    `json:"size"`
	Kept int    `json:"kept,omitempty"`
	Text string `json:"text,omitempty"`
}

var (
	create = operation.Kind[input]{Name: "disk.create", Timeout: time.Minute}
	remove = operation.Kind[input]{Name: "disk.delete", Timeout: time.Minute, Priority: 10, Preempts: true}
)

// journal records the calls of steps, in order.
type journal struct {
	mu   sync.Mutex
	list []string
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.list = append(j.list, fmt.Sprintf(format, args...))
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.list, " ")
}

// bench is a runner with its own database.
type bench struct {
	*testing.T
	db     *sqlx.DB
	ops    *operation.Store
	runner *operation.Runner
	j      journal
}

func newBench(t *testing.T, d *sqlx.DB, cfg operation.RunnerConfig) *bench {
	t.Helper()
	b := &bench{T: t, db: d, ops: operation.NewStore(d)}
	cfg.Store, cfg.Host, cfg.Logger = b.ops, "h1", slog.New(slog.DiscardHandler)
	if cfg.Poll == 0 {
		cfg.Poll = 20 * time.Millisecond
	}
	b.runner = operation.NewRunner(cfg)
	return b
}

// start starts the runner until the test ends.
func (b *bench) start() {
	b.Helper()
	if err := b.runner.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := b.runner.Stop(context.Background()); err != nil {
			b.Error(err)
		}
	})
}

// step returns a step that records its calls in the journal, and returns the results of do and undo.
func (b *bench) step(name string, do, undo func(op *operation.Op) error) operation.Step[input] {
	if do == nil {
		return b.stepIn(name, nil, undo)
	}
	return b.stepIn(name, func(op *operation.Op, _ *input) error { return do(op) }, undo)
}

// stepIn is like step, with a Do that gets the input.
func (b *bench) stepIn(name string, do func(op *operation.Op, in *input) error, undo func(op *operation.Op) error) operation.Step[input] {
	s := operation.Step[input]{Name: name, Do: func(ctx context.Context, op *operation.Op, in *input) error {
		b.j.add("%s(%d)", name, in.Size)
		if got := reqctx.From(ctx); !gocmp.Equal(got, asker) {
			b.Errorf("step %s is done for %+v, want %+v", name, got, asker)
		}
		if do != nil {
			return do(op, in)
		}
		return nil
	}}
	s.Undo = func(_ context.Context, op *operation.Op, in *input) error {
		b.j.add("-%s", name)
		if in.Kept > 0 {
			in.Kept += 5
		}
		if undo != nil {
			return undo(op)
		}
		return nil
	}
	return s
}

// asker is the request that has begun the operations.
var asker = reqctx.Request{ID: "req-1", GlobalID: "req-0", Traceparent: "00-1-2-01", UserID: "u", ProjectID: "p"}

func (b *bench) begin(k operation.Kind[input], resource string) string {
	b.Helper()
	ctx := reqctx.With(b.Context(), asker)
	id, err := operation.Begin(ctx, b.ops, k, resource, &input{Size: 7})
	if err != nil {
		b.Fatal(err)
	}
	return id
}

func (b *bench) ends(id string, want operation.State) *operation.Operation {
	b.Helper()
	end := time.After(30 * time.Second)
	for {
		o, err := b.ops.Show(b.Context(), id)
		if err != nil {
			b.Fatal(err)
		}
		if o.State.Ended() {
			if o.State != want {
				b.Errorf("it ended as %s: %s; want %s", o.State, o.Error, want)
			}
			return o
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-end:
			b.Fatalf("it does not end: %+v", o)
		}
	}
}

func events(o *operation.Operation) string {
	var out []string
	for _, e := range o.Events {
		out = append(out, e.Step+":"+e.Result)
	}
	return strings.Join(out, " ")
}

// once replaces a run of equal attempts by one attempt, if many is set: their number depends on time.
func once(list string, many bool) string {
	if !many {
		return list
	}
	out := slices.Compact(strings.Fields(strings.ReplaceAll(list, "c:not undone", "c:not_undone")))
	out = slices.DeleteFunc(out, func(s string) bool { return strings.HasSuffix(s, ":retry") })
	return strings.ReplaceAll(strings.Join(out, " "), "c:not_undone", "c:not undone")
}

// TestRuns: operations that succeed, fail, are retried, wait, panic, and cannot be undone, with the final row of each.
func TestRuns(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		steps  func(b *bench) []operation.Step[input]
		state  operation.State
		did    string
		events string
		says   string

		timeout time.Duration
	}{
		{
			name: "all is well", state: operation.Succeeded, did: "a(7) b(7) c(7)", events: "a:done b:done c:done",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{b.step("a", nil, nil), b.step("b", nil, nil), b.step("c", nil, nil)}
			},
		},
		{
			name: "what is kept", state: operation.Failed, did: "a(7) a(7) b(7) kept-42 -b -a", events: "a:retry a:done b:failed b:undone a:undone", says: "gone",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{
					b.stepIn("a", func(op *operation.Op, in *input) error {
						in.Kept += 42
						if op.Attempt == 0 { // a change that is dropped
							return fault.New(fault.Unavailable, "away")
						}
						return nil
					}, nil),
					b.stepIn("b", func(_ *operation.Op, in *input) error {
						b.j.add("kept-%d", in.Kept)
						in.Kept++
						return fault.New(fault.NotFound, "gone")
					}, nil),
				}
			},
		},
		{
			name: "a step fails", state: operation.Failed, did: "a(7) b(7) -b -a", events: "a:done b:failed b:undone a:undone", says: "no such pool",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{
					b.step("a", nil, nil), b.step("b", func(*operation.Op) error { return fault.New(fault.NotFound, "no such pool") }, nil), b.step("c", nil, nil),
				}
			},
		},
		{
			name: "what passes is tried again", state: operation.Succeeded, did: "a(7) a(7) a(7) b(7)", events: "a:retry a:retry a:done b:done",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{b.step("a", func(op *operation.Op) error {
					if op.Attempt < 2 {
						return fault.New(fault.Unavailable, "away")
					}
					return nil
				}, nil), b.step("b", nil, nil)}
			},
		},
		{
			name: "a step that waits", state: operation.Succeeded, did: "a(7) a(7) a(7)", events: "a:done",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{b.stepIn("a", func(_ *operation.Op, in *input) error {
					if in.Kept < 2 {
						in.Kept++
						return operation.WaitFor("", time.Millisecond)
					}
					return nil
				}, nil)}
			},
		},
		{
			name: "a panic", state: operation.Failed, did: "a(7) -a", events: "a:failed a:undone", says: "panic: argh",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{b.step("a", func(*operation.Op) error { panic("argh") }, nil)}
			},
		},
		{
			name: "a step that takes too long", state: operation.Succeeded, did: "a(7) a(7)", events: "a:retry a:done",
			steps: func(b *bench) []operation.Step[input] {
				s := b.step("a", nil, nil)
				inner := s.Do
				s.Timeout = 10 * time.Millisecond
				s.Do = func(ctx context.Context, op *operation.Op, in *input) error {
					if err := inner(ctx, op, in); err != nil || op.Attempt > 0 {
						return err
					}
					<-ctx.Done()
					return ctx.Err()
				}
				return []operation.Step[input]{s}
			},
		},
		{
			name: "what cannot be undone", state: operation.Failed, did: "a(7) b(7) c(7) -c -b -a", events: "a:done b:done c:failed c:not undone b:undone a:undone",
			says: "no; step c was not undone: stuck", timeout: time.Second,
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{
					b.step("a", nil, nil),
					b.step("b", nil, nil),
					b.step("c", func(*operation.Op) error { return errors.New("no") }, func(*operation.Op) error { return errors.New("stuck") }),
				}
			},
		},
		{
			name: "undoing is tried again, whatever the error", state: operation.Failed, did: "a(7) -a -a -a -a", events: "a:failed a:retry a:retry a:retry a:undone", says: "no",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{b.step("a", func(*operation.Op) error { return errors.New("no") }, func(op *operation.Op) error {
					return []error{errors.New("stuck"), fault.New(fault.Invalid, "wrong"), fault.New(fault.Unknown, "lost"), nil}[op.Attempt]
				})}
			},
		},
		{
			name: "back to an earlier step", state: operation.Succeeded, did: "a(7) b(7) c(7) kept-1 b(7) c(7) kept-2 b(7) c(7) kept-3 d(7)",
			events: "a:done b:done c:back b:done c:back b:done c:done d:done",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{b.step("a", nil, nil), b.step("b", nil, nil), b.stepIn("c", func(_ *operation.Op, in *input) error {
					in.Kept++
					if b.j.add("kept-%d", in.Kept); in.Kept < 3 {
						return operation.GoTo("b", 2, fault.New(fault.Unavailable, "the host is gone"))
					}
					return nil
				}, nil), b.step("d", nil, nil)}
			},
		},
		{
			name: "back too often", state: operation.Failed, did: "a(7) b(7) a(7) b(7) a(7) b(7) -b -a", events: "a:done b:back a:done b:back a:done b:failed b:undone a:undone",
			says: "back to step a 2 times: the host is gone",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{b.step("a", nil, nil), b.step("b", func(*operation.Op) error {
					return fmt.Errorf("speak: %w", operation.GoTo("a", 2, fault.New(fault.Unavailable, "the host is gone")))
				}, nil)}
			},
		},
		{
			name: "back to no step", state: operation.Failed, did: "a(7) b(7) -b -a", events: "a:done b:failed b:undone a:undone", says: `step b goes back to "c", which is not a step before it`,
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{b.step("a", nil, nil), b.step("b", func(*operation.Op) error { return operation.GoTo("c", 2, errors.New("x")) }, nil), b.step("c", nil, nil)}
			},
		},
		{
			name: "a step that only undoes", state: operation.Failed, did: "b(7) -b -a", events: "a:done b:failed b:undone a:undone", says: "no",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{
					{Name: "a", UndoTx: func(context.Context, *sqlx.Tx, *operation.Op, *input) error { b.j.add("-a"); return nil }},
					b.step("b", func(*operation.Op) error { return errors.New("no") }, nil),
				}
			},
		},
		{
			name: "an error that does not fit", state: operation.Failed, did: "a(7) -a", events: "a:failed a:undone", says: "x\uFFFDx",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{b.step("a", func(*operation.Op) error { return errors.New(strings.Repeat("x\xff\xed\xa0\x80x", 20_000)) }, nil)}
			},
		},
		{
			name: "an input that does not fit", state: operation.Failed, did: "a(7) -a", events: "a:failed a:undone", says: "at most 65535 fit",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{b.stepIn("a", func(_ *operation.Op, in *input) error { in.Text = strings.Repeat("x", 70_000); return nil }, nil)}
			},
		},
		{
			name: "an input that just fits", state: operation.Succeeded, did: "a(7) b(7)", events: "a:done b:done",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{b.stepIn("a", func(_ *operation.Op, in *input) error { in.Text = strings.Repeat("x", 65_000) + "\xff"; return nil }, nil), b.step("b", nil, nil)}
			},
		},
		{
			name: "nothing to undo", state: operation.Failed, did: "a(7) b(7)", events: "a:done b:failed", says: "no",
			steps: func(b *bench) []operation.Step[input] {
				x, y := b.step("a", nil, nil), b.step("b", func(*operation.Op) error { return errors.New("no") }, nil)
				x.Undo, y.Undo = nil, nil
				return []operation.Step[input]{x, y}
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
				b := newBench(t, d, operation.RunnerConfig{})
				k := create
				k.Timeout = cmp.Or(tt.timeout, k.Timeout)
				operation.Handle(b.runner, k, tt.steps(b)...)
				b.start()
				id := b.begin(k, "disk-1")
				b.runner.Notify(id)
				o := b.ends(id, tt.state)
				if got := once(b.j.String(), tt.timeout > 0); got != tt.did || once(events(o), tt.timeout > 0) != tt.events || !strings.Contains(o.Error, tt.says) {
					t.Errorf("did %s, want %s\nevents %s, want %s\nerror %q, want %q", got, tt.did, events(o), tt.events, o.Error, tt.says)
				}
				if n := b.runner.Stats().NotUndone; (n > 0) != strings.Contains(tt.events, "not undone") {
					t.Errorf("%d steps count as not undone", n)
				}
				for _, text := range append([]string{o.Error}, o.Events[len(o.Events)-1].Error) {
					if len(text) > 8<<10 || !utf8.ValidString(text) {
						t.Errorf("a text of %d bytes, valid %t", len(text), utf8.ValidString(text))
					}
				}
				if tt.name == "what is kept" && string(o.Data) != `{"size":7,"kept":52}` { // with the changes of undoing
					t.Errorf("data %s", o.Data)
				}
				if o.RequestID != "req-1" || o.GlobalRequestID != "req-0" || o.UserID != "u" || o.ProjectID != "p" || o.Ended == nil || string(o.Input) != `{"size":7}` {
					t.Errorf("it is %+v", o)
				}
				for _, e := range o.Events {
					if e.Host != "h1" || e.Ended.Before(e.Began) || e.Began.Before(o.Created.Add(-time.Second)) {
						t.Errorf("event %+v of %v", e, o.Created)
					}
				}
			})
		})
	}
}

// TestOneAtATime: a resource has one operation at a time. An operation that preempts replaces it, even while a step runs.
func TestOneAtATime(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{Lease: 300 * time.Millisecond})
		entered := make(chan struct{})
		s := b.step("slow", nil, nil)
		s.Do = func(ctx context.Context, _ *operation.Op, _ *input) error {
			close(entered)
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
			t.Errorf("a second one: %v", err)
		}
		other := b.begin(create, "")
		if err := b.ops.Cancel(t.Context(), other, "not this one"); err != nil {
			t.Error(err)
		}
		second := b.begin(remove, "disk-1")
		b.ends(second, operation.Succeeded)
		if o := b.ends(first, operation.Canceled); !strings.Contains(o.Error, "disk.delete "+second) || len(o.Events) > 0 {
			t.Errorf("the one whose place was taken: %+v", o)
		}
		b.ends(other, operation.Canceled)
		waittest.Until(t, "the end of the step", func() bool { return strings.Contains(b.j.String(), "stopped") })
	})
}

// TestCancelAndRetry: Cancel undoes the steps that are done; Retry runs the operation again from its first step.
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
		for o := (&operation.Operation{}); o.Step == 0 || o.Owner != ""; { // until it waits
			var err error
			if o, err = b.ops.Show(ctx, id); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.ops.Retry(ctx, id); fault.CodeOf(err) != fault.Precondition {
			t.Errorf("retry of one that is not over: %v", err)
		}
		if err := b.ops.Cancel(ctx, id, "the user has changed their mind"); err != nil {
			t.Fatal(err)
		}
		if o := b.ends(id, operation.Canceled); o.Error != "the user has changed their mind" || o.ErrorCode != "Canceled" || b.j.String() != "a(7) b(7) -b -a" {
			t.Errorf("canceled: %+v after %s", o, &b.j)
		}
		if err := b.ops.Cancel(ctx, id, ""); fault.CodeOf(err) != fault.Precondition {
			t.Errorf("cancel of one that is over: %v", err)
		}
		wait = false
		if err := b.ops.Retry(ctx, id); err != nil {
			t.Fatal(err)
		}
		if o := b.ends(id, operation.Succeeded); o.Error != "" || o.Step != 2 {
			t.Errorf("after Retry: %+v", o)
		}
		if err := b.ops.Retry(ctx, id); fault.CodeOf(err) != fault.Precondition {
			t.Errorf("retry of one that has succeeded: %v", err)
		}
		for _, err := range []error{b.ops.Retry(ctx, "none"), b.ops.Cancel(ctx, "none", "")} {
			if fault.CodeOf(err) != fault.NotFound {
				t.Errorf("of nothing: %v", err)
			}
		}
		if _, err := b.ops.Show(ctx, "none"); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("show of nothing: %v", err)
		}
	})
}

// TestTimeout: an operation that does not end is undone after its timeout, and ends after the timeout for undoing. So does an
// operation whose kind no runner knows.
func TestTimeout(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		short, stuck, strange := create, create, create
		short.Name, stuck.Name, strange.Name = "short", "stuck", "strange"
		short.Timeout, stuck.Timeout, strange.Timeout = 2*time.Second, 2*time.Second, 200*time.Millisecond // time for the first steps, on a loaded machine, too
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
		if o := b.ends(ids[2], operation.TimedOut); o.Error != "no process knows the kind strange" {
			t.Errorf("strange: %+v", o)
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
