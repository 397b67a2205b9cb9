package operation_test

import (
	"context"
	"errors"
	"fmt"
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

// releaseLease is the lease of each runner in the tests with two releases.
const releaseLease = 500 * time.Millisecond

// release returns the runner of a release. In this release, the kind create has the given version and steps. If the name of a step ends
// with ?, the step waits until something continues it. If the name ends with !, the step fails.
func release(t *testing.T, d *sqlx.DB, version int, steps ...string) (*bench, operation.Kind[input]) {
	t.Helper()
	b := newBench(t, d, operation.RunnerConfig{Lease: releaseLease})
	kind := create
	kind.Version = version
	var list []operation.Step[input]
	for _, name := range steps {
		do := func(*operation.Op) error { return nil }
		switch name[len(name)-1] {
		case '?':
			do = func(*operation.Op) error { return operation.WaitFor("peer", time.Hour) }
		case '!':
			do = func(*operation.Op) error { return errors.New("no") }
		}
		list = append(list, b.step(strings.TrimRight(name, "?!"), do, nil))
	}
	operation.Handle(b.runner, kind, list...)
	return b, kind
}

func (b *bench) stop() {
	b.Helper()
	if err := b.runner.Stop(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// untouched fails the test if the started runner changes the operation. It waits for several polls, which take longer than a lease.
func (b *bench) untouched(id string) {
	b.Helper()
	show := func() string {
		o, err := b.ops.Show(b.Context(), id)
		if err != nil {
			b.Fatal(err)
		}
		return fmt.Sprint(o.State, o.StepsDone, o.StepName, o.Owner, events(o), string(o.Data), b.j.String())
	}
	before := show()
	b.runner.Notify(id)
	waittest.Pass(b.T, 2*releaseLease, "polls of a runner that does not know the operation")
	if after := show(); after != before {
		b.Fatalf("the operation was %s and is %s", before, after)
	}
}

// TestReleases: runners of two releases share one table, and each runs only operations that it knows.
func TestReleases(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func(t *testing.T, d *sqlx.DB){
		"begun by the next release": func(t *testing.T, d *sqlx.DB) {
			this, _ := release(t, d, 0, "a", "b")
			next, kind := release(t, d, 1, "a", "new", "b")
			this.start()
			id := this.begin(kind, "r")
			this.untouched(id)
			next.start()
			if o := next.ends(id, operation.Succeeded); this.j.String() != "" || events(o) != "a:done new:done b:done" || fmt.Sprint(o.KindVersion, o.Steps) != "1 [a new b]" {
				t.Errorf("this release did %q, events %s, %d %s", &this.j, events(o), o.KindVersion, o.Steps)
			}
		},
		"begun by this release, run by the next one": func(t *testing.T, d *sqlx.DB) {
			this, kind := release(t, d, 0, "a", "b")
			next, _ := release(t, d, 1, "a", "new?", "b")
			id := this.begin(kind, "r")
			next.start()
			next.waitsForStep(id, "new")
			next.stop()
			this.start()
			this.untouched(id)
		},
		"a rollback, without a new version of the kind": func(t *testing.T, d *sqlx.DB) {
			this, kind := release(t, d, 0, "a", "b")
			next, _ := release(t, d, 0, "a", "new?", "b")
			next.start()
			id := this.begin(kind, "r")
			next.waitsForStep(id, "new")
			next.stop()
			this.start()
			if err := this.runner.Signal(t.Context(), "peer"); err != nil { // the operation is due now
				t.Fatal(err)
			}
			this.untouched(id)
			back, _ := release(t, d, 0, "a", "new", "b")
			back.start()
			if o := back.ends(id, operation.Succeeded); back.j.String() != "new(7) b(7)" || events(o) != "a:done new:done b:done" {
				t.Errorf("the next release did %s, events %s", &back.j, events(o))
			}
		},
		"the next release has a new step and another order": func(t *testing.T, d *sqlx.DB) {
			this, kind := release(t, d, 0, "a", "b?", "c")
			next, _ := release(t, d, 1, "new", "c", "b", "a")
			this.start()
			id := this.begin(kind, "r")
			this.waitsForStep(id, "b")
			this.stop()
			next.start()
			next.runner.Notify(id)
			if o := next.ends(id, operation.Succeeded); next.j.String() != "b(7) c(7)" || events(o) != "a:done b:done c:done" || o.KindVersion != 0 {
				t.Errorf("the next release did %s, events %s, version %d", &next.j, events(o), o.KindVersion)
			}
		},
		"undone by the next release": func(t *testing.T, d *sqlx.DB) {
			this, kind := release(t, d, 0, "a", "b?", "c")
			next, _ := release(t, d, 1, "new", "b!", "other", "a", "c")
			this.start()
			id := this.begin(kind, "r")
			this.waitsForStep(id, "b")
			this.stop()
			next.start()
			next.runner.Notify(id)
			if o := next.ends(id, operation.Failed); next.j.String() != "b(7) -b -a" || events(o) != "a:done b:failed b:undone a:undone" {
				t.Errorf("the next release did %s, events %s", &next.j, events(o))
			}
		},
		"continued by this release after the next one": func(t *testing.T, d *sqlx.DB) {
			this, kind := release(t, d, 0, "a", "b", "c")
			first, _ := release(t, d, 0, "a?", "b", "c")
			next, _ := release(t, d, 1, "a", "new", "b?", "c")
			first.start()
			id := this.begin(kind, "r")
			first.waitsForStep(id, "a")
			first.stop()
			next.start()
			next.runner.Notify(id)
			next.waitsForStep(id, "b")
			next.stop()
			this.start()
			this.runner.Notify(id)
			if o := this.ends(id, operation.Succeeded); this.j.String() != "b(7) c(7)" || events(o) != "a:done b:done c:done" {
				t.Errorf("this release did %s, events %s", &this.j, events(o))
			}
		},
		"the next release has removed a step": func(t *testing.T, d *sqlx.DB) {
			this, kind := release(t, d, 0, "a", "b?", "c")
			next, _ := release(t, d, 1, "a", "c")
			this.start()
			id := this.begin(kind, "r")
			this.waitsForStep(id, "b")
			this.stop()
			next.start()
			next.untouched(id)
			if err := next.ops.Cancel(t.Context(), id, "no"); err != nil { // undoing must also wait for a runner that knows the step
				t.Fatal(err)
			}
			next.untouched(id)
			back, _ := release(t, d, 0, "a", "b", "c")
			back.start()
			if o := back.ends(id, operation.Canceled); back.j.String() != "-b -a" || next.j.String() != "" {
				t.Errorf("this release did %s, the next one %s: %s", &back.j, &next.j, events(o))
			}
		},
		"rerun with other steps": func(t *testing.T, d *sqlx.DB) {
			this, kind := release(t, d, 0, "a", "b!")
			next, _ := release(t, d, 1, "a", "c")
			this.start()
			id := this.begin(kind, "r")
			this.ends(id, operation.Failed)
			this.stop()
			next.start()
			if err := next.ops.Retry(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if o := next.ends(id, operation.Succeeded); fmt.Sprint(o.KindVersion, o.Steps) != "1 [a c]" {
				t.Errorf("version %d, steps %s, events %s", o.KindVersion, o.Steps, events(o))
			}
		},
		"a report to this release is refused": func(t *testing.T, d *sqlx.DB) {
			this, _ := release(t, d, 0, "a", "b")
			next, kind := release(t, d, 1, "a?", "new?", "b")
			next.start()
			id := this.begin(kind, "r")
			next.waitsForStep(id, "a")
			before := next.token("r")
			err := this.runner.EndStep(t.Context(), before, "peer", nil)
			if fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "does not know kind disk.create version 1 with the steps a, new, b") {
				t.Errorf("a report to this release: %v", err)
			}
			if next.token("r") != before {
				t.Error("the report to this release has changed the operation")
			}
			for _, step := range []string{"a", "new"} {
				next.waitsForStep(id, step)
				if err := next.runner.EndStep(t.Context(), next.token("r"), "peer", nil); err != nil {
					t.Errorf("a report to the next release: %v", err)
				}
			}
			next.ends(id, operation.Succeeded)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.EachInBubble(t, migrations, f)
		})
	}
}

// TestRowsByPosition: an older release stored only the position of the step. The statements of that release work with the newer tables,
// and its operations continue if the steps before the current step are the same in this release.
func TestRowsByPosition(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		var now time.Time
		if err := db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) (err error) {
			now, err = db.Now(ctx, tx)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		insert := func(id string, state operation.State, step int, name string) {
			if _, err := d.ExecContext(t.Context(), `INSERT INTO operations (id, kind, resource, active, priority, state, outcome, step, step_name, entry, reported, attempts, waits,
				events, input, data, error_code, error, fence, owner, due_at, deadline_at, timeout_ms, request_id, global_request_id, traceparent, project_id, user_id, created_at, updated_at)
				VALUES (?, 'disk.create', ?, ?, 0, ?, 'failed', ?, ?, 0, -1, 0, 0, 0, '{"size":7}', 'null', '', '', 0, '', ?, ?, 60000, 'req-1', 'req-0', '00-1-2-01', 'p', 'u', ?, ?)`,
				id, id, id, state, step, name, now, now.Add(time.Minute), now, now); err != nil {
				t.Fatal(err)
			}
		}
		insert("fresh", operation.Running, 0, "")
		insert("runs", operation.Running, 1, "b")
		insert("undoes", operation.Undoing, 1, "b")
		insert("ends", operation.Undoing, -1, "")
		insert("inserted", operation.Running, 1, "c") // this release has another step before c
		insert("later", operation.Running, 3, "d")
		insert("moved", operation.Running, 0, "c") // the name of the step decides, not the position
		if _, err := d.ExecContext(t.Context(), `UPDATE operations SET steps = '["a","b","c"]' WHERE id = 'moved'`); err != nil {
			t.Fatal(err)
		}
		b, _ := release(t, d, 0, "a", "b", "c")
		b.start()
		for id, want := range map[string]string{
			"fresh": "succeeded a:done b:done c:done", "runs": "succeeded b:done c:done", "undoes": "failed b:undone a:undone", "ends": "failed ", "moved": "succeeded c:done",
		} {
			o := b.ends(id, operation.State(strings.Fields(want)[0]))
			if got := string(o.State) + " " + events(o); got != want {
				t.Errorf("%s: %s, want %s", id, got, want)
			}
		}
		b.untouched("inserted")
		b.untouched("later")
	})
}

// TestUnknown: operations that no running process knows are counted and listed, even if one poll does not read all of them. The runner
// still finds the operations that it knows. When a runner continues an operation, the mark of the operation is removed.
func TestUnknown(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		const many = 30
		this := newBench(t, d, operation.RunnerConfig{Lease: releaseLease, MaxInFlight: 2})
		operation.Handle(this.runner, create, this.step("a", nil, nil))
		next, kind := release(t, d, 1, "a", "b")
		kind.Priority = 5
		for range many {
			this.begin(kind, "")
		}
		known := this.begin(create, "known")
		other := create
		other.Name = "other"
		this.begin(other, "")
		this.start()
		this.ends(known, operation.Succeeded)
		list := func() (n int) {
			t.Helper()
			found, err := this.ops.List(t.Context(), operation.Filter{Unknown: true})
			if err != nil {
				t.Fatal(err)
			}
			for i := range found {
				if o := &found[i]; o.State == operation.Running && o.UnknownSince.After(o.Created.Add(releaseLease-time.Millisecond)) && !o.NotCompensated {
					n++
				}
			}
			return n
		}
		waittest.Until(t, "the count", func() bool { return this.runner.Stats().Unknown == many+1 })
		if n := list(); n != many+1 {
			t.Errorf("%d of %d operations are listed as waiting for a runner", n, many+1)
		}
		next.start()
		waittest.Until(t, "the count after the next release has come", func() bool { return this.runner.Stats().Unknown == 1 && list() == 1 })
		waittest.Until(t, "the count of the next release", func() bool { return next.runner.Stats().Unknown == 1 })
	})
}

// TestManyVersions: a runner finds the operations that it knows, even if the other operations have more versions than one query can
// name.
func TestManyVersions(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		this, kind := release(t, d, 0, "a")
		for range 150 {
			kind.Version++
			this.begin(kind, "")
		}
		this.start()
		waittest.Until(t, "the count", func() bool { return this.runner.Stats().Unknown > 0 })
		this.ends(this.begin(create, ""), operation.Succeeded)
	})
}

// TestNotCompensated: an operation that no running process knows ends at its deadline. It is undone when a runner that knows it comes.
// Until then its resource is not free, unless another operation preempts it or it is canceled.
func TestNotCompensated(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx := t.Context()
		kind := create
		kind.Timeout = 2 * time.Second
		handle := func(b *bench, failing bool, steps ...string) {
			var list []operation.Step[input]
			for _, name := range steps {
				list = append(list, b.step(name, func(*operation.Op) error {
					if name == "new" {
						if failing {
							return errors.New("no disk")
						}
						return operation.WaitFor("peer", time.Minute)
					}
					return nil
				}, func(*operation.Op) error {
					if failing && name == "new" {
						return operation.WaitFor("", time.Minute)
					}
					return nil
				}))
			}
			operation.Handle(b.runner, kind, list...)
			operation.OnEnd(b.runner, kind, func(_ context.Context, _ *sqlx.Tx, op *operation.Op, _ *input) error {
				b.j.add("end-%s", op.State)
				return nil
			})
		}
		newRelease := func() *bench { return newBench(t, d, operation.RunnerConfig{Lease: releaseLease}) }
		first, failing := newRelease(), newRelease()
		handle(first, false, "a", "new")
		handle(failing, true, "a", "new")
		ids := map[string]string{}
		failing.start()
		ids["undoing"] = first.begin(kind, "undoing")
		waittest.Until(t, "an operation that is undone", func() bool {
			o, err := first.ops.Show(ctx, ids["undoing"])
			return err == nil && o.State == operation.Undoing && o.Owner == ""
		})
		failing.stop()
		first.start()
		for _, resource := range []string{"back", "preempted", "canceled"} {
			ids[resource] = first.begin(kind, resource)
			first.waitsForStep(ids[resource], "new")
		}
		first.stop()

		this := newRelease()
		handle(this, false, "a")
		operation.Handle(this.runner, remove, this.step("remove", nil, nil))
		this.start()
		for resource, id := range ids {
			o := this.ends(id, operation.TimedOut)
			begin := map[bool]string{true: "no disk", false: "operation not done within 2s"}[resource == "undoing"]
			if !o.NotCompensated || o.UnknownSince == nil || o.Ended == nil || !strings.HasPrefix(o.Error, begin+"; not compensated: no running process knows kind disk.create version 0 with the steps a, new: start") {
				t.Errorf("%s: %+v", resource, o)
			}
			if resource != "undoing" && o.Ended.Before(o.Created.Add(kind.Timeout)) {
				t.Errorf("%s ended %v after its beginning", resource, o.Ended.Sub(o.Created))
			}
			if _, err := operation.Begin(ctx, this.ops, kind, resource, &input{}); !errors.Is(err, operation.ErrBusy) {
				t.Errorf("%s: another operation on the resource: %v", resource, err)
			}
			if err := this.ops.Retry(ctx, id); fault.CodeOf(err) != fault.Precondition {
				t.Errorf("%s: retry: %v", resource, err)
			}
		}
		if n, err := this.ops.Purge(ctx, 0); n != 0 || err != nil {
			t.Errorf("%d purged, %v", n, err)
		}
		waittest.Until(t, "the count", func() bool { return this.runner.Stats().Unknown == len(ids) })

		if err := this.ops.Cancel(ctx, ids["canceled"], "given up"); err != nil {
			t.Error(err)
		}
		if o := this.ends(ids["canceled"], operation.Canceled); o.NotCompensated || o.Error != "given up; not compensated: it was canceled" {
			t.Errorf("canceled: %+v", o)
		}
		this.ends(this.begin(remove, "preempted"), operation.Succeeded)
		if o := this.ends(ids["preempted"], operation.Canceled); o.NotCompensated {
			t.Errorf("preempted: %+v", o)
		}
		if err := this.ops.Cancel(ctx, ids["canceled"], "again"); fault.CodeOf(err) != fault.Precondition {
			t.Errorf("canceled twice: %v", err)
		}

		back := newRelease()
		handle(back, false, "a", "new")
		back.start()
		for resource, want := range map[string]operation.State{"back": operation.TimedOut, "undoing": operation.Failed} {
			waittest.Until(t, "the compensation of "+resource, func() bool {
				o, err := back.ops.Show(ctx, ids[resource])
				return err == nil && o.State.Ended() && !o.NotCompensated
			})
			o := back.ends(ids[resource], want)
			if !strings.HasSuffix(events(o), "new:undone a:undone") || strings.Contains(o.Error, "compensated") || o.UnknownSince != nil {
				t.Errorf("%s: events %s, %+v", resource, events(o), o)
			}
			if _, err := back.ops.Current(ctx, resource); fault.CodeOf(err) != fault.NotFound {
				t.Errorf("%s is not free: %v", resource, err)
			}
		}
		if got := back.j.String(); strings.Count(got, "end-timed_out") != 1 || strings.Count(got, "end-failed") != 1 || strings.Count(got, "-new") != 2 || strings.Count(got, "-a") != 2 {
			t.Errorf("the release that is back did %s", got)
		}
		if strings.Contains(this.j.String(), "-a") {
			t.Errorf("this release did %s", &this.j)
		}
		waittest.Until(t, "the count after all", func() bool { return this.runner.Stats().Unknown == 0 })
	})
}

// TestHandleNames: Handle and Begin refuse wrong versions and wrong names of steps.
func TestHandleNames(t *testing.T) {
	t.Parallel()
	var long []string
	for i := range 70 {
		long = append(long, fmt.Sprintf("%064d", i))
	}
	for name, tt := range map[string]struct {
		version int
		steps   []string
		says    string
	}{
		"twice":    {0, []string{"a", "b", "a"}, `two steps with the name "a"`},
		"too long": {0, long, "at most 4000 fit"},
		"negative": {-1, []string{"a"}, "a version of at least 0"},
	} {
		func() {
			defer func() {
				if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), tt.says) {
					t.Errorf("%s: panic %v, want %q", name, p, tt.says)
				}
			}()
			release(t, nil, tt.version, tt.steps...)
		}()
	}
	kind := create
	kind.Version = -1
	if _, err := operation.Begin(t.Context(), operation.NewStore(nil), kind, "", &input{}); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("Begin with a negative version: %v", err)
	}
}
