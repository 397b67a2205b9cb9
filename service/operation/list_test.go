package operation_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/operation"
)

// TestList: List returns the right operations for each filter, in order and in pages.
func TestList(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		var ids []string
		for i := range 5 {
			k := create
			if i%2 == 1 {
				k = remove
			}
			ids = append(ids, b.begin(k, fmt.Sprintf("disk-%d", i)))
			<-time.After(time.Millisecond) // so that the database's clock advances
		}
		if err := b.ops.Cancel(t.Context(), ids[0], ""); err != nil {
			t.Fatal(err)
		}
		slices.Reverse(ids)
		for _, tt := range []struct {
			f    operation.Filter
			want []string
		}{
			{operation.Filter{}, ids},
			{operation.Filter{Limit: 2}, ids[:2]},
			{operation.Filter{Limit: 2, Marker: ids[1]}, ids[2:4]},
			{operation.Filter{Resource: "disk-4"}, ids[:1]},
			{operation.Filter{Kind: "disk.delete"}, []string{ids[1], ids[3]}},
			{operation.Filter{State: operation.Undoing}, ids[4:]},
			{operation.Filter{State: operation.Succeeded}, nil},
			{operation.Filter{Open: true, Kind: "disk.create", Limit: 1}, ids[:1]},
		} {
			list, err := b.ops.List(t.Context(), tt.f)
			var got []string
			for _, o := range list {
				got = append(got, o.ID)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("%+v: %v (-want +got):\n%s", tt.f, err, diff)
			}
		}
		for _, f := range []operation.Filter{{Marker: "none"}, {State: "done"}, {Limit: -1}} {
			if list, err := b.ops.List(t.Context(), f); fault.CodeOf(err) != fault.Invalid {
				t.Errorf("%+v: %d operations, error %v, want Invalid", f, len(list), err)
			}
		}
		if raw, err := json.Marshal(operation.Operation{}); err != nil || !strings.Contains(string(raw), `"request_id"`) {
			t.Errorf("%s, %v", raw, err)
		}
	})
}

// TestRecord: a change without steps is in the list as an operation that has ended. It excludes no operation on the same resource. If its kind
// preempts, the open operation on the resource is ended. The recorded operation cannot be retried. The list can be restricted to a request and to the times of the last
// change.
func TestRecord(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		b := newBench(t, d, operation.RunnerConfig{})
		ctx := reqctx.With(t.Context(), reqctx.Request{ID: "req-9", ProjectID: "p", UserID: "u"})
		lock := operation.Kind[input]{Name: "disk.lock"}
		reset := operation.Kind[input]{Name: "disk.reset", Preempts: true}
		running := b.begin(create, "disk")
		<-time.After(time.Second)
		var recorded []string
		for _, failed := range []error{nil, fault.New(fault.Precondition, "no key")} {
			id, err := operation.Record(ctx, b.ops, lock, "disk", &input{Size: 3}, time.Minute, failed)
			if err != nil {
				t.Fatal(err)
			}
			recorded = append(recorded, id)
		}
		for i, want := range []operation.Operation{{State: operation.Succeeded}, {State: operation.Failed, ErrorCode: "Precondition", Error: "no key"}} {
			got, err := b.ops.Show(t.Context(), recorded[i])
			if err != nil || got.State != want.State || got.ErrorCode != want.ErrorCode || got.Error != want.Error || got.RequestID != "req-9" || got.ProjectID != "p" ||
				got.UserID != "u" || got.Ended == nil || got.Ended.Sub(got.Created) != time.Minute || !got.Ended.Equal(got.Updated) || len(got.Steps) > 0 || string(got.Input) != `{"size":3}` {
				t.Errorf("recorded: %+v, %v", got, err)
			}
			if err := b.ops.Retry(t.Context(), recorded[i]); fault.CodeOf(err) != fault.Precondition {
				t.Errorf("retry of a recorded operation: %v, want Precondition", err)
			}
		}
		if op, err := b.ops.Current(t.Context(), "disk"); err != nil || op.ID != running {
			t.Errorf("after a record: %+v, %v; want %s", op, err, running)
		}
		if _, err := operation.Record(t.Context(), b.ops, reset, "disk", &input{}, 0, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := b.ops.Current(t.Context(), "disk"); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("after a record that preempts: %v, want NotFound", err)
		}
		if got, err := b.ops.Show(t.Context(), running); err != nil || got.State != operation.Canceled {
			t.Errorf("the preempted operation: %+v, %v", got, err)
		}
		if list, err := b.ops.List(t.Context(), operation.Filter{Resource: "disk", RequestID: "req-9"}); err != nil || len(list) != 2 {
			t.Errorf("operations of the request: %+v, %v", list, err)
		}
		first, err := b.ops.Show(t.Context(), recorded[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			f    operation.Filter
			want int
		}{
			{operation.Filter{UpdatedSince: first.Updated}, 4},
			{operation.Filter{UpdatedSince: first.Updated.Add(time.Minute)}, 0},
			{operation.Filter{UpdatedUntil: first.Updated.Add(-time.Second)}, 0},
			{operation.Filter{UpdatedUntil: first.Updated.Add(time.Minute)}, 4},
			{operation.Filter{Requested: true}, 3}, // disk.reset belongs to no request
		} {
			if list, err := b.ops.List(t.Context(), tt.f); err != nil || len(list) != tt.want {
				t.Errorf("%+v: %d operations, %v; want %d", tt.f, len(list), err, tt.want)
			}
		}
	})
}

// TestLeader: one of several processes leads. If it does not renew its lease, the next process leads with a higher fencing token, and the
// context of the old leader ends.
func TestLeader(t *testing.T) {
	t.Parallel()
	dbtest.EachInBubble(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx := t.Context()
		ops := operation.NewStore(d)
		candidate := func(host string) *operation.Leader {
			return operation.NewLeader(operation.LeaderConfig{Store: ops, Name: "audit", Host: host, Lease: time.Second})
		}
		a, b := candidate("a"), candidate("b")
		leads := func(l *operation.Leader) (fence int64) {
			t.Helper()
			err := l.Only(func(_ context.Context, n int64) error { fence = n; return nil })(ctx)
			if err != nil {
				t.Error(err)
			}
			return fence
		}
		if x, y, z := leads(a), leads(b), leads(a); x != 1 || y != 0 || z != 1 {
			t.Errorf("fencing tokens %d, %d, %d; want 1, 0, 1", x, y, z)
		}
		err := a.Only(func(held context.Context, _ int64) error { // the function runs longer than the lease
			waittest.Pass(t, 2200*time.Millisecond, "longer than the lease, by the database's clock")
			if n := leads(b); n != 0 && held.Err() == nil { // on a slow machine the lease may not have been renewed in time
				t.Errorf("two lead: %d", n)
			}
			return nil
		})(ctx)
		if err != nil {
			t.Error(err)
		}
		waittest.Pass(t, 1300*time.Millisecond, "the lease expires, by the database's clock")
		if x, y := leads(b), leads(a); x != 2 || y != 0 {
			t.Errorf("after its lease has expired: %d, %d; want 2, 0", x, y)
		}
		// Another process acquires the lease while b leads, so the context of b's work ends.
		err = b.Only(func(held context.Context, _ int64) error {
			if _, err := d.ExecContext(ctx, `UPDATE operation_leases SET owner = 'thief', fence = 9, until = ?`, time.Now().Add(time.Hour)); err != nil {
				return err
			}
			select {
			case <-held.Done():
				return nil
			case <-time.After(10 * time.Second):
				return errors.New("b still leads")
			}
		})(ctx)
		if err != nil {
			t.Error(err)
		}
		var wg sync.WaitGroup
		var firsts [8]int64
		first := operation.LeaderConfig{Store: ops, Name: "other", Host: "x"}
		for i := range firsts {
			wg.Go(func() {
				err := operation.NewLeader(first).Only(func(_ context.Context, n int64) error { firsts[i] = n; return nil })(ctx)
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if slices.Sort(firsts[:]); firsts[7] != 1 || firsts[6] != 0 {
			t.Errorf("fencing tokens of eight processes that began at the same time: %v", firsts)
		}
	})
}
