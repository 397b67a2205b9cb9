package membership_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/membership"
)

func of(host string, i membership.Instance) membership.Self {
	return membership.Self{Kind: "worker", Host: host, Version: 1, Instance: i}
}

// TestInstances: a member belongs to one process. While that process is up, any other process is refused, with an error that names the
// owner. Another process may join when the owner is down, has left, was removed, or has lost its lock.
func TestInstances(t *testing.T) {
	t.Parallel()
	first := membership.Instance{ID: "i-1", Lock: "boot-1/1/1", Start: 5, Process: "process 1 on machine m1"}
	other := membership.Instance{ID: "i-2", Process: "process 2 on machine m2"}
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx := t.Context()
		r := membership.New(membership.Config{DB: d, DownAfter: 30 * time.Second})
		for i, tt := range []struct {
			name   string
			next   membership.Instance
			before func(host string) error
			in     bool
		}{
			{"another process", other, nil, false},
			{"a process without an instance", membership.Instance{}, nil, false},
			{"a clone, which has another lock", membership.Instance{ID: "i-2", Lock: "boot-2/1/1", Start: 6}, nil, false},
			{"a later start with the same lock", membership.Instance{ID: "i-2", Lock: first.Lock, Start: 6}, nil, true},
			{"an earlier start with the same lock, whose message was late", membership.Instance{ID: "i-2", Lock: first.Lock, Start: 4}, nil, false},
			{"the same instance", first, nil, true},
			{"another instance after 29 s", other, func(host string) error { age(t, d, host, 29*time.Second); return nil }, false},
			{"another instance after 40 s", other, func(host string) error { age(t, d, host, 40*time.Second); return nil }, true},
			{"another instance after the first has left", other, func(host string) error { return r.Leave(ctx, "worker", host, first.ID) }, true},
			{"another instance after a third has left", other, func(host string) error { return r.Leave(ctx, "worker", host, "i-3") }, false},
			{"another instance after an operator has forced the member down", other, func(host string) error { return r.ForceDown(ctx, "worker", host, true) }, true},
			{"another instance after the member was removed", other, func(host string) error {
				return errors.Join(r.ForceDown(ctx, "worker", host, true), r.Remove(ctx, "worker", host))
			}, true},
		} {
			host := fmt.Sprintf("h%d", i)
			if err := r.Join(ctx, of(host, first)); err != nil {
				t.Fatal(err)
			}
			if tt.before != nil {
				if err := tt.before(host); err != nil {
					t.Fatal(err)
				}
			}
			err := r.Join(ctx, of(host, tt.next))
			if tt.in && err != nil || !tt.in && (!errors.Is(err, membership.ErrHeld) || fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), first.Process)) {
				t.Errorf("%s: join: %v, want it accepted: %v", tt.name, err, tt.in)
				continue
			}
			holder, loser := first, tt.next
			if tt.in {
				holder, loser = tt.next, first
			}
			if m, err := r.Get(ctx, "worker", host); err != nil || m.Instance != holder {
				t.Errorf("%s: the member belongs to %+v, %v; want %+v", tt.name, m, err, holder)
			}
			if err := errors.Join(r.Heartbeat(ctx, "worker", host, holder.ID), r.Holds(ctx, "worker", host, holder.ID)); err != nil {
				t.Errorf("%s: the holder: %v", tt.name, err)
			}
			if holder == loser {
				continue
			}
			for what, err := range map[string]error{"heartbeat": r.Heartbeat(ctx, "worker", host, loser.ID), "holds": r.Holds(ctx, "worker", host, loser.ID)} {
				if !errors.Is(err, membership.ErrHeld) || !strings.Contains(err.Error(), holder.Process) {
					t.Errorf("%s: %s of the other process: %v, want ErrHeld with %q", tt.name, what, err, holder.Process)
				}
			}
		}
		if err := r.Holds(ctx, "worker", "unknown", "i-1"); err != nil {
			t.Errorf("Holds for an unknown member: %v", err)
		}
		if err := r.Join(ctx, of("h", membership.Instance{ID: "i", Process: strings.Repeat("x", 2000)})); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("an instance that is too long: %v", err)
		}
	})
}

// TestJoinRace: several processes join at the same time, and exactly one of them becomes the member. This holds for a new member, and for
// a member whose process has died.
func TestJoinRace(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		r := membership.New(membership.Config{DB: d, DownAfter: 30 * time.Second})
		for round := range 20 {
			host := fmt.Sprintf("h%d", round/2)
			if round%2 == 1 {
				age(t, d, host, time.Hour)
			}
			var in atomic.Int64
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					switch err := r.Join(t.Context(), of(host, membership.Instance{ID: fmt.Sprintf("i-%d-%d", round, i)})); {
					case err == nil:
						in.Add(1)
					case !errors.Is(err, membership.ErrHeld):
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if in.Load() != 1 {
				t.Errorf("round %d: %d processes are the member, want 1", round, in.Load())
			}
		}
	})
}

// TestMemberHeld: the part of a member does not start while the member belongs to another process. A started part fails when another
// process becomes the member.
func TestMemberHeld(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx := t.Context()
		r := membership.New(membership.Config{DB: d, DownAfter: 10 * time.Second})
		part := func(id string) *membership.MemberPart {
			return r.Member(membership.MemberConfig{Self: of("h1", membership.Instance{ID: id, Process: "process of " + id}), Every: 20 * time.Millisecond})
		}
		first, second := part("i-1"), part("i-2")
		if err := first.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if err := second.Start(ctx); !errors.Is(err, membership.ErrHeld) || fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "process of i-1") {
			t.Errorf("start of the second process: %v, want ErrHeld", err)
		}
		if err := r.ForceDown(ctx, "worker", "h1", true); err != nil {
			t.Fatal(err)
		}
		if err := second.Start(ctx); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-first.Failed():
			if !errors.Is(err, membership.ErrHeld) || !strings.Contains(err.Error(), "process of i-2") || first.Check(ctx) == nil {
				t.Errorf("the first process fails with %v, and its Check is %v", err, first.Check(ctx))
			}
		case <-time.After(20 * time.Second):
			t.Error("the first process does not fail")
		}
		if err := first.Stop(ctx); err != nil {
			t.Error(err)
		}
		if m, err := r.Get(ctx, "worker", "h1"); err != nil || m.Departed {
			t.Errorf("the stop of the first process has removed the second one: %+v, %v", m, err)
		}
		if err := second.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
}

// TestHeartbeatAfterLeave: a member leaves while one of its heartbeats is being written. This heartbeat does not make the member up again,
// and another process may join on the host at once. A member whose last heartbeat is in the future is down.
func TestHeartbeatAfterLeave(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		t.Helper()
		r := membership.New(membership.Config{DB: d, DownAfter: time.Hour})
		self := membership.Self{Kind: "worker", Host: "h1", Instance: membership.Instance{ID: "first"}}
		if err := r.Join(t.Context(), self); err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		go func() { sent <- r.Heartbeat(t.Context(), "worker", "h1", "first") }() // a heartbeat waits 50 ms for other heartbeats of its transaction
		if err := r.Leave(t.Context(), "worker", "h1", "first"); err != nil {
			t.Fatal(err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
		if err := r.Heartbeat(t.Context(), "worker", "h1", "first"); err != nil {
			t.Error(err)
		}
		if m, err := r.Get(t.Context(), "worker", "h1"); err != nil || m.Up {
			t.Errorf("%+v, %v: the member is up after it has left", m, err)
		}
		self.Instance.ID = "second"
		if err := r.Join(t.Context(), self); err != nil {
			t.Errorf("the next process: %v", err)
		}
		if _, err := d.ExecContext(t.Context(), `UPDATE members SET seen_at = '2100-01-01 00:00:00.000000'`); err != nil {
			t.Fatal(err)
		}
		if m, err := r.Get(t.Context(), "worker", "h1"); err != nil || m.Up || !strings.Contains(m.Why, "in the future") {
			t.Errorf("%+v, %v: the member is up with a heartbeat of 2100", m, err)
		}
	})
}

// TestFileLock: only one process at a time holds the lock. Each start has a new ID and a greater Start. A copy of the directory has
// another lock.
func TestFileLock(t *testing.T) {
	t.Parallel()
	ctx, dir := t.Context(), t.TempDir()
	path := filepath.Join(dir, "state", "h1")
	take := func(path string) (*membership.FileLock, membership.Instance) {
		t.Helper()
		l := membership.NewFileLock("worker", "h1", path)
		if id := l.Instance().ID; id != "" {
			t.Errorf("before Start the ID is %s, want none", id)
		}
		if err := l.Start(ctx); err != nil {
			t.Fatal(err)
		}
		return l, l.Instance()
	}
	l1, first := take(path)
	err := membership.NewFileLock("worker", "h1", path).Start(ctx)
	if want := fmt.Sprintf("process %d on machine", os.Getpid()); !errors.Is(err, membership.ErrHeld) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "stop that process, or give this one another host and another state path") {
		t.Errorf("start of a held lock: %v, want ErrHeld with %q and the file", err, want)
	}
	if err := l1.Stop(ctx); err != nil {
		t.Error(err)
	}
	l2, second := take(path)
	if second.ID == first.ID || second.Lock != first.Lock || second.Start <= first.Start || first.Lock == "" {
		t.Errorf("first %+v, second %+v; want the same lock, another ID and a greater number", first, second)
	}
	if err := os.CopyFS(filepath.Join(dir, "clone"), os.DirFS(filepath.Join(dir, "state"))); err != nil {
		t.Fatal(err)
	}
	l3, clone := take(filepath.Join(dir, "clone", "h1"))
	if clone.Lock == second.Lock {
		t.Errorf("a copy has the lock %s, as the original", clone.Lock)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil { // only a part of the file was written
		t.Fatal(err)
	}
	if err := errors.Join(l2.Stop(ctx), l3.Stop(ctx), l3.Stop(ctx)); err != nil {
		t.Error(err)
	}
	l4, third := take(path)
	if third.Lock != second.Lock || third.Start <= second.Start {
		t.Errorf("after a file that cannot be read: %+v, before %+v", third, second)
	}
	if err := l4.Stop(ctx); err != nil {
		t.Error(err)
	}
	if err := membership.NewFileLock("worker", "h1", filepath.Join(path, "below", "a", "file")).Start(ctx); err == nil || errors.Is(err, membership.ErrHeld) {
		t.Errorf("a directory that cannot be made: %v", err)
	}
}

var _ interface {
	service.Part
	service.Failer
} = (*membership.MemberPart)(nil)

var _ service.Part = (*membership.FileLock)(nil)
