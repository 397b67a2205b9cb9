package worker_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/armature-go/armature/examples/drivers/fake"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/worker"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
)

// hangBench is a compute service whose driver does not return from some calls.
type hangBench struct {
	*bench

	svc    *worker.Service
	driver *fake.Driver
	hung   chan string // the calls of the driver that have begun to hang
}

// watched is a driver that reports a call before the call hangs.
type watched struct {
	*fake.Driver

	hung chan string
}

func (w *watched) Spawn(ctx context.Context, s compute.Spec) error {
	if s.Metadata["fake:spawn"] == "hang" {
		w.hung <- "spawn"
	}
	return w.Driver.Spawn(ctx, s)
}

func (w *watched) Pause(ctx context.Context, id string) error {
	w.hung <- "pause"
	return w.Driver.Pause(ctx, id)
}

func (w *watched) AttachInterface(ctx context.Context, id string, i compute.Interface) error {
	w.hung <- "attach"
	return w.Driver.AttachInterface(ctx, id, i)
}

func newHangBench(t *testing.T) *hangBench {
	t.Helper()
	b := newBench(t)
	d, err := fake.New(fake.Config{Host: "h1", Faults: map[string]string{"pause": "hang", "attach_interface": "hang"}})
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{d, make(chan string, 10)}
	return &hangBench{bench: b, driver: d, hung: w.hung, svc: worker.New(worker.Config{
		Host: "h1", Driver: func() compute.Driver { return w }, Client: b.client, Logger: slog.New(slog.DiscardHandler),
	})}
}

// start runs a handler, and returns its result when it ends.
func start(f func() (*rpc.None, error)) chan error {
	done := make(chan error, 1)
	go func() {
		_, err := f()
		done <- err
	}()
	return done
}

// attachment is a request to attach an interface.
func attachment(token string) *compute.ActRequest {
	return &compute.ActRequest{ServerID: "s1", Action: compute.AttachInterface, Interface: &compute.Interface{ID: "i", MAC: "52:54:00:00:00:01"}, Token: token}
}

// TestHungDriver: a driver that never returns from a call does not block another operation on the server, such as its deletion. The call is canceled, and
// the message that has caused the call is not redelivered.
func TestHungDriver(t *testing.T) {
	t.Parallel()
	spawn := func(b *hangBench, ctx context.Context) (*rpc.None, error) {
		return b.svc.Build(ctx, &compute.BuildRequest{Spec: compute.Spec{ID: "s1", Metadata: map[string]string{"fake:spawn": "hang"}}, Token: "op/1"})
	}
	pause := func(b *hangBench, ctx context.Context) (*rpc.None, error) {
		return b.svc.Act(ctx, &compute.ActRequest{ServerID: "s1", Action: compute.Pause, Token: "op/1"})
	}
	attach := func(b *hangBench, ctx context.Context) (*rpc.None, error) {
		return b.svc.Act(ctx, attachment("op/1"))
	}
	destroy := func(b *hangBench, ctx context.Context) (*rpc.None, error) {
		return b.svc.Destroy(ctx, &compute.DestroyRequest{ServerID: "s1", Token: "op/2"})
	}
	act := func(a compute.Action) func(b *hangBench, ctx context.Context) (*rpc.None, error) {
		return func(b *hangBench, ctx context.Context) (*rpc.None, error) {
			return b.svc.Act(ctx, &compute.ActRequest{ServerID: "s1", Action: a, Token: "op/2", Running: true})
		}
	}
	for _, tt := range []struct {
		name       string
		hung, next func(*hangBench, context.Context) (*rpc.None, error)
		want       compute.PowerState // 0: the host does not have the server
	}{
		{"deletion of a server that is built", spawn, destroy, 0},
		{"deletion during an action", pause, destroy, 0},
		{"soft deletion during an action", pause, act(compute.SoftDelete), compute.Shutdown},
		{"another action after one that has timed out", pause, act(compute.HardReboot), compute.Running},
		{"deletion during a change of interfaces", attach, destroy, 0},
		{"another action after a change of interfaces that has timed out", attach, act(compute.HardReboot), compute.Running},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newHangBench(t)
			if err := b.driver.Spawn(t.Context(), compute.Spec{ID: "s1"}); err != nil {
				t.Fatal(err)
			}
			done := start(func() (*rpc.None, error) { return tt.hung(b, t.Context()) })
			get(t, b.hung)
			if _, err := tt.next(b, t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := get(t, b.ended); got.Token != "op/2" || got.Error != "" {
				t.Errorf("reported %+v", got)
			}
			if err := get(t, done); err != nil {
				t.Errorf("the work that was stopped: %v", err)
			}
			is, err := b.driver.Get(t.Context(), "s1")
			if tt.want == 0 && !errors.Is(err, fault.NotFound) || tt.want != 0 && is.Power != tt.want {
				t.Errorf("the server: %v, %v; want %v", is.Power, err, tt.want)
			}
		})
	}
}

// TestNotStopped: work on a server is stopped only by a step that is wanted. The same step and a step that is no longer wanted are dropped, and do not wait, because a waiting request occupies a slot.
func TestNotStopped(t *testing.T) {
	t.Parallel()
	b := newHangBench(t)
	if err := b.driver.Spawn(t.Context(), compute.Spec{ID: "s1"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := start(func() (*rpc.None, error) {
		return b.svc.Act(ctx, &compute.ActRequest{ServerID: "s1", Action: compute.Pause, Token: "op/1"})
	})
	get(t, b.hung)
	if _, err := b.svc.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: compute.Pause, Token: "op/1"}); err != nil {
		t.Errorf("the same step: %v", err)
	}
	b.set(func() { b.begin = compute.ErrStale })
	for i := range 2 {
		if _, err := b.svc.Destroy(t.Context(), &compute.DestroyRequest{ServerID: "s1", Token: "op/0"}); err != nil {
			t.Errorf("old deletion %d: %v", i, err)
		}
	}
	b.set(func() { b.begin = nil })
	select {
	case err := <-done:
		t.Fatalf("the work was stopped: %v", err)
	default:
	}
	cancel() // the service stops
	if err := get(t, done); !errors.Is(err, fault.Unavailable) {
		t.Errorf("when the service stops: %v, want Unavailable, so that the message is redelivered", err)
	}
}

// TestOlderChange: a change of interfaces that an earlier conductor has called for is stopped by a deletion, and by no other action.
func TestOlderChange(t *testing.T) {
	t.Parallel()
	b := newHangBench(t)
	if err := b.driver.Spawn(t.Context(), compute.Spec{ID: "s1"}); err != nil {
		t.Fatal(err)
	}
	done := start(func() (*rpc.None, error) {
		return b.svc.ChangeInterface(t.Context(), &compute.InterfaceRequest{ServerID: "s1", Interface: *attachment("").Interface})
	})
	get(t, b.hung)
	if _, err := b.svc.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: compute.HardReboot, Token: "op/3"}); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		t.Fatalf("the change of interfaces was stopped: %v", err)
	default:
	}
	if _, err := b.svc.Destroy(t.Context(), &compute.DestroyRequest{ServerID: "s1", Token: "op/4"}); err != nil || get(t, b.ended).Token != "op/4" || get(t, done) == nil {
		t.Errorf("destroy: %v", err)
	}
}

// TestHungOrphan: a build hangs, and the server is no longer wanted on the host. The audit stops the build and removes the remains.
func TestHungOrphan(t *testing.T) {
	t.Parallel()
	b := newHangBench(t)
	for _, id := range []string{"s1", "other"} {
		if err := b.driver.Spawn(t.Context(), compute.Spec{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	b.mine["s1"] = true
	done := start(func() (*rpc.None, error) {
		return b.svc.Build(t.Context(), &compute.BuildRequest{Spec: compute.Spec{ID: "s1", Metadata: map[string]string{"fake:spawn": "hang"}}, Token: "op/1"})
	})
	get(t, b.hung)
	has := func() int {
		list, err := b.driver.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	if err := b.svc.Audit(t.Context()); err != nil || has() != 1 {
		t.Fatalf("audit while the build is wanted: %v, %d servers; want 1", err, has())
	}
	select {
	case err := <-done:
		t.Fatalf("the build was stopped: %v", err)
	default:
	}
	b.set(func() { b.mine["s1"] = false })
	if err := b.svc.Audit(t.Context()); err != nil || has() != 0 {
		t.Errorf("audit: %v, %d servers; want 0", err, has())
	}
	if err := get(t, done); err != nil {
		t.Errorf("build: %v", err)
	}
}

// TestLateSuccess: a driver may go on with a canceled build, and complete it after the server was destroyed. The server is then an orphan, and an audit removes it.
func TestLateSuccess(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	gate, late := make(chan struct{}), make(chan struct{})
	b.driver.spawn = func() error { // returns at once when it is canceled, as a call of a program does, and the program goes on
		go func() {
			defer close(late)
			<-gate
			b.driver.mu.Lock()
			defer b.driver.mu.Unlock()
			b.driver.servers["s1"] = true
		}()
		return context.Canceled
	}
	b.cast(t)
	get(t, b.ended)
	if _, err := b.svc.Destroy(t.Context(), &compute.DestroyRequest{ServerID: "s1", Token: "op/4"}); err != nil {
		t.Fatal(err)
	}
	close(gate)
	<-late
	if err := b.svc.Audit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if list, err := b.driver.List(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("after the audit: %v, %v", list, err)
	}
}
