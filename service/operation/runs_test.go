package operation_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// TestRuns: operations succeed, fail, are retried, wait, panic, or cannot be undone. The final row of each
// operation is right.
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
			name: "changes of the data are kept", state: operation.Failed, did: "a(7) a(7) b(7) kept-42 -b -a", events: "a:retry a:done b:failed b:undone a:undone", says: "gone",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{
					b.stepIn("a", func(op *operation.Op, in *input) error {
						in.Kept += 42
						if op.Attempt == 0 { // this change is dropped, because the attempt fails
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
			name: "a transient error is retried", state: operation.Succeeded, did: "a(7) a(7) a(7) b(7)", events: "a:retry a:retry a:done b:done",
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
			name: "a step cannot be undone", state: operation.Failed, did: "a(7) b(7) c(7) -c -b -a", events: "a:done b:done c:failed c:not undone b:undone a:undone",
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
			name: "undoing is retried after any error", state: operation.Failed, did: "a(7) -a -a -a -a", events: "a:failed a:retry a:retry a:retry a:undone", says: "no",
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
			name: "an error that is too long for its column", state: operation.Failed, did: "a(7) -a", events: "a:failed a:undone", says: "x\uFFFDx",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{b.step("a", func(*operation.Op) error { return errors.New(strings.Repeat("x\xff\xed\xa0\x80x", 20_000)) }, nil)}
			},
		},
		{
			name: "data that are too long for their column", state: operation.Failed, did: "a(7) -a", events: "a:failed a:undone", says: "at most 65535 fit",
			steps: func(b *bench) []operation.Step[input] {
				return []operation.Step[input]{b.stepIn("a", func(_ *operation.Op, in *input) error { in.Text = strings.Repeat("x", 70_000); return nil }, nil)}
			},
		},
		{
			name: "data of nearly the maximum length", state: operation.Succeeded, did: "a(7) b(7)", events: "a:done b:done",
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
					t.Errorf("%d steps were counted as not undone", n)
				}
				for _, text := range append([]string{o.Error}, o.Events[len(o.Events)-1].Error) {
					if len(text) > 8<<10 || !utf8.ValidString(text) {
						t.Errorf("a text of %d bytes, valid %t", len(text), utf8.ValidString(text))
					}
				}
				if tt.name == "changes of the data are kept" && string(o.Data) != `{"size":7,"kept":52}` { // the undo of each step adds 5 to kept
					t.Errorf("data %s", o.Data)
				}
				if o.RequestID != "req-1" || o.GlobalRequestID != "req-0" || o.UserID != "u" || o.ProjectID != "p" || o.Ended == nil || string(o.Input) != `{"size":7}` {
					t.Errorf("the operation is %+v", o)
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
