package operation_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/operation"
)

// marked reports whether the row of an operation says that no running process knows the operation.
func (b *bench) marked(id string) bool {
	b.Helper()
	var at sql.NullTime
	if err := b.db.GetContext(b.Context(), &at, `SELECT unknown_at FROM operations WHERE id = ?`, id); err != nil {
		b.Fatal(err)
	}
	return at.Valid
}

// TestMarkEnds: when an operation that no running process knows is preempted or canceled, its mark is removed.
func TestMarkEnds(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		this, _ := release(t, d, 0, "a")
		_, kind := release(t, d, 1, "a", "new")
		kind.Timeout = 2 * time.Second
		operation.Handle(this.runner, remove, this.step("remove", nil, nil))
		this.start()
		ids := map[string]string{}
		for _, resource := range []string{"preempted", "preempted late", "canceled late"} {
			ids[resource] = this.begin(kind, resource)
		}
		waittest.Until(t, "the marks", func() bool { return this.marked(ids["preempted"]) })
		this.ends(this.begin(remove, "preempted"), operation.Succeeded)
		for _, resource := range []string{"preempted late", "canceled late"} {
			this.ends(ids[resource], operation.TimedOut)
			if !this.marked(ids[resource]) {
				t.Errorf("%s: not marked after its deadline", resource)
			}
		}
		this.ends(this.begin(remove, "preempted late"), operation.Succeeded)
		if err := this.ops.Cancel(t.Context(), ids["canceled late"], "given up"); err != nil {
			t.Fatal(err)
		}
		for resource, id := range ids {
			if o := this.ends(id, operation.Canceled); this.marked(id) || o.UnknownSince != nil || o.NotCompensated {
				t.Errorf("%s: the operation has ended and is marked: %v, %+v", resource, this.marked(id), o)
			}
		}
		waittest.Until(t, "the count", func() bool { return this.runner.Stats().Unknown == 0 })
	})
}

// TestThreeReleases: runners of three releases run at the same time, and each release begins operations. Each operation ends with the
// steps of one release.
func TestThreeReleases(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		var benches []*bench
		var kinds []operation.Kind[input]
		for version, steps := range []string{"a b", "a new b", "a newer new b"} {
			b, kind := release(t, d, version, strings.Fields(steps)...)
			b.start()
			benches, kinds = append(benches, b), append(kinds, kind)
		}
		ids := map[string]int{}
		for i := range 30 {
			ids[benches[i%3].begin(kinds[i%3], "")] = i % 3
		}
		for id, version := range ids {
			o := benches[2].ends(id, operation.Succeeded)
			want := []string{"a:done b:done", "a:done new:done b:done", "a:done newer:done new:done b:done"}[o.KindVersion]
			if o.KindVersion < version || events(o) != want || o.UnknownSince != nil || benches[2].marked(id) {
				t.Errorf("begun by %d, run by %d: %s, marked: %v", version, o.KindVersion, events(o), benches[2].marked(id))
			}
		}
	})
}

// TestLateReturn: operations of the newest of three releases pass their deadlines while only runners of the two older releases run. Each
// operation ends once. Then several runners of the newest release return at once, and undo each operation once.
func TestLateReturn(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		runner := func(version int, steps ...string) (*bench, operation.Kind[input]) {
			b, kind := release(t, d, version, steps...)
			operation.OnEnd(b.runner, kind, func(_ context.Context, _ *sqlx.Tx, op *operation.Op, _ *input) error {
				b.j.add("end-%s-%s", op.ID, op.State)
				return nil
			})
			return b, kind
		}
		newest, kind := runner(2, "a", "new", "newer?")
		kind.Timeout = 3 * time.Second
		newest.start()
		const many = 12
		var ids []string
		for i := range many {
			ids = append(ids, newest.begin(kind, fmt.Sprint("r", i)))
		}
		for _, id := range ids {
			newest.waitsForStep(id, "newer")
		}
		newest.stop()
		one, _ := runner(0, "a")
		two, _ := runner(1, "a", "new")
		one.start()
		two.start()
		for _, id := range ids {
			if o := one.ends(id, operation.TimedOut); !o.NotCompensated || strings.Count(o.Error, "not compensated") != 1 {
				t.Errorf("after the deadline: %+v", o)
			}
		}
		back, _ := runner(2, "a", "new", "newer")
		again, _ := runner(2, "a", "new", "newer")
		back.start()
		again.start()
		for _, id := range ids {
			waittest.Until(t, "the compensation", func() bool {
				o, err := back.ops.Show(t.Context(), id)
				return err == nil && o.State.Ended() && !o.NotCompensated
			})
			o := back.ends(id, operation.TimedOut)
			ends := strings.Count(back.j.String()+again.j.String(), "end-"+id)
			if !strings.HasSuffix(events(o), "newer:undone new:undone a:undone") || strings.Count(events(o), "undone") != 3 || ends != 1 || back.marked(id) || strings.Contains(o.Error, "compensated") {
				t.Errorf("%d ends, events %s, marked: %v, error %q", ends, events(o), back.marked(id), o.Error)
			}
		}
		if strings.Contains(one.j.String()+two.j.String(), "-") {
			t.Errorf("the older releases did %s and %s", &one.j, &two.j)
		}
	})
}

// TestVersionRetried: if a step needs something that an older process does not have, the step is retried until that process is upgraded.
// The step is not retried if its error is Permanent, or if its Retry has its own Codes.
func TestVersionRetried(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		for _, refused := range []error{fault.ErrUnsupportedVersion, fault.ErrVersionCap} {
			for want, change := range map[operation.State]func(error) error{
				operation.Succeeded: func(err error) error { return fmt.Errorf("call volume.clone: %w", err) },
				operation.Failed:    operation.Permanent,
			} {
				b := newBench(t, d, operation.RunnerConfig{})
				kind, calls := create, 0
				kind.Name = fmt.Sprint(want, ".", fault.CodeOf(refused))
				operation.Handle(b.runner, kind, b.step("clone", func(*operation.Op) error {
					if calls++; calls < 4 {
						return change(refused)
					}
					return nil
				}, nil))
				b.start()
				b.ends(b.begin(kind, ""), want)
				if want == operation.Failed && calls != 1 {
					t.Errorf("%v: %d calls of a step with a permanent error", refused, calls)
				}
				b.stop()
			}
		}
	})
}
