package conductor_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/scheduler"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
	"github.com/armature-go/armature/scheduler/placement"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a conductor with a real scheduler and a real database; the workers
// are the test.
type bench struct {
	*testing.T

	store *store.Store
	db    *sqlx.DB
	svc   *conductor.Service

	builds   chan compute.BuildRequest
	destroys chan compute.DestroyRequest
}

// each runs f on every database. Host h1 has room for two servers.
func each(t *testing.T, cfg conductor.Config, f func(b *bench)) {
	t.Helper()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		t.Helper()
		cfg := cfg // each database has its own
		b := &bench{T: t, store: store.New(d), db: d, builds: make(chan compute.BuildRequest, 10), destroys: make(chan compute.DestroyRequest, 10)}
		bus := rpctest.NewBus(t)
		quiet := slog.New(slog.DiscardHandler)
		client := rpc.NewClient(bus, rpc.ClientConfig{Timeout: 10 * time.Second})
		t.Cleanup(func() { client.Close() })
		sched, err := scheduler.New(scheduler.Config{Store: b.store, DownAfter: time.Minute, Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		cfg.Store, cfg.Client, cfg.Ratios, cfg.Logger = b.store, client, store.Ratios{CPU: 1, RAM: 1, Disk: 1}, quiet
		b.svc = conductor.New(cfg)
		for _, s := range []struct {
			iface *rpc.Interface
			host  string
			add   func(*rpc.Server)
		}{
			{compute.Conductor, "c", b.svc.Register},
			{compute.Scheduler, "s", sched.Register},
			{compute.Worker, "h1", b.work},
			{compute.Worker, "h2", b.work},
		} {
			srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: s.iface, Host: s.host, Logger: quiet})
			s.add(srv)
			if err := srv.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := srv.Stop(context.Background()); err != nil {
					t.Error(err)
				}
			})
		}
		b.addHost("h1")
		f(b)
	})
}

func (b *bench) work(srv *rpc.Server) {
	rpc.Handle(srv, compute.Build, func(_ context.Context, r *compute.BuildRequest) (*rpc.None, error) {
		b.builds <- *r
		return &rpc.None{}, nil
	})
	rpc.Handle(srv, compute.Destroy, func(_ context.Context, r *compute.DestroyRequest) (*rpc.None, error) {
		b.destroys <- *r
		return &rpc.None{}, nil
	})
}

func (b *bench) addHost(name string) {
	b.Helper()
	_, err := b.svc.ReportHost(b.Context(), &compute.HostReport{Host: name, Driver: "d", DriverVersion: "1", Resources: compute.Resources{VCPUs: 2, MemoryMiB: 2, DiskGiB: 2}})
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bench) add() string {
	b.Helper()
	srv := &store.Server{ID: uuid.NewString(), Name: "s", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}
	if err := b.store.CreateServer(b.Context(), srv); err != nil {
		b.Fatal(err)
	}
	return srv.ID
}

func (b *bench) wake(id string) {
	b.Helper()
	if _, err := b.svc.Wake(b.Context(), &compute.WakeRequest{ServerID: id}); err != nil {
		b.Fatal(err)
	}
}

// get waits for a message to a worker.
func get[T any](b *bench, ch <-chan T) T {
	b.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(20 * time.Second):
		b.Fatal("no message came")
		panic("unreachable")
	}
}

func (b *bench) server(id string) *store.Server {
	b.Helper()
	s, err := b.store.Server(b.Context(), id)
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// expire ends all leases and waits, as if their time had passed.
func (b *bench) expire(column string) {
	b.Helper()
	past := time.Now().UTC().Add(-2 * time.Hour)
	if _, err := b.db.ExecContext(b.Context(), `UPDATE servers SET `+column+` = ?`, past); err != nil {
		b.Fatal(err)
	}
}

func attempt(host string, r compute.BuildRequest) compute.AttemptRequest {
	return compute.AttemptRequest{ServerID: r.Spec.ID, Host: host, Generation: r.Generation}
}

// TestLostMessages: the hint is lost, then the message to the worker, then the
// worker's report is sent twice. The server is built once.
func TestLostMessages(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		id := b.add() // nobody is woken
		if err := b.svc.Resume(b.Context()); err != nil {
			b.Fatal(err)
		}
		first := get(b, b.builds)
		if err := b.svc.Resume(b.Context()); err != nil || len(b.builds) != 0 {
			b.Errorf("the worker was told again before its time: %v", err)
		}
		b.expire("due_at") // the worker is silent
		if err := b.svc.Resume(b.Context()); err != nil {
			b.Fatal(err)
		}
		if second := get(b, b.builds); second.Generation != first.Generation || second.Spec.ID != id {
			b.Errorf("told %+v at first and %+v then, want the same attempt", first, second)
		}
		for range 2 {
			if _, err := b.svc.EndBuild(b.Context(), &compute.EndBuildRequest{AttemptRequest: attempt("h1", first)}); err != nil {
				b.Errorf("report: %v", err)
			}
		}
		if s := b.server(id); s.VMState != store.Active || s.TaskState != nil {
			b.Errorf("server %s, task %q; want active", s.VMState, s.Task())
		}
	})
}

// TestDeadConductor: a conductor died after the scheduler had claimed a host.
// The next one goes on with that host.
func TestDeadConductor(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		id := b.add()
		if _, err := b.store.Lease(b.Context(), id, "dead", time.Hour); err != nil {
			b.Fatal(err)
		}
		if err := b.store.Claims().Claim(b.Context(), placement.Claim{Consumer: id, Allocations: []placement.Allocation{
			{Provider: "h1", Resources: placement.Resources{compute.VCPU: 1, compute.MemoryMB: 1, compute.DiskGB: 1}},
		}}); err != nil {
			b.Fatal(err)
		}
		b.addHost("h2") // empty, and so the better one
		b.wake(id)
		if len(b.builds) != 0 {
			b.Error("a leased server was touched")
		}
		b.expire("due_at")
		b.wake(id)
		get(b, b.builds)
		if s := b.server(id); *s.Host != "h1" {
			b.Errorf("host %s, want h1, which was claimed", *s.Host)
		}
	})
}

// TestNextHost: after a failed build comes the next host; after the last one,
// an error that says what happened.
func TestNextHost(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{MaxAttempts: 2}, func(b *bench) {
		b.addHost("h2")
		id := b.add()
		b.wake(id)
		for range 2 {
			r := get(b, b.builds)
			host := *b.server(id).Host
			if _, err := b.svc.BeginBuild(b.Context(), new(attempt(host, r))); err != nil {
				b.Errorf("begin: %v", err)
			}
			if _, err := b.svc.EndBuild(b.Context(), &compute.EndBuildRequest{AttemptRequest: attempt(host, r), Error: "disk on fire"}); err != nil {
				b.Errorf("report: %v", err)
			}
			if _, err := b.svc.BeginBuild(b.Context(), new(attempt(host, r))); !errors.Is(err, compute.ErrStale) {
				b.Errorf("begin after the end: %v, want ErrStale", err)
			}
		}
		b.settle(id)
		s := b.server(id)
		if s.VMState != store.Error || !strings.Contains(s.FaultMessage, "retries") || !strings.Contains(s.FaultMessage, "disk on fire") || len(s.Tried) != 2 {
			b.Errorf("server %s, tried %v, fault %q; want an error after two hosts", s.VMState, s.Tried, s.FaultMessage)
		}
		b.unclaimed()
	})
}

// settle waits until a server has no task.
func (b *bench) settle(id string) {
	b.Helper()
	for end := time.Now().Add(20 * time.Second); b.server(id).TaskState != nil; {
		if time.Now().After(end) {
			b.Fatalf("the server still has the task %s", b.server(id).Task())
		}
		if err := b.svc.Resume(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func (b *bench) unclaimed() {
	b.Helper()
	var n int
	if err := b.db.GetContext(b.Context(), &n, `SELECT COUNT(*) FROM placement_allocations`); err != nil || n != 0 {
		b.Errorf("%d claims are left, %v", n, err)
	}
}

// TestNoRoom: the fault counts the reasons.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.addHost("h2")
		if err := b.store.SetDisabled(b.Context(), store.ComputeBinary, "h2", true, "broken fan"); err != nil {
			b.Fatal(err)
		}
		var ids []string
		for range 3 {
			ids = append(ids, b.add())
			b.wake(ids[len(ids)-1])
		}
		b.settle(ids[2])
		if s := b.server(ids[2]); s.VMState != store.Error || s.FaultCode != 500 || s.FaultMessage != "No valid host was found. 0 of 2 hosts: 1 VCPU, 1 disabled" {
			b.Errorf("server %s, fault %d %q", s.VMState, s.FaultCode, s.FaultMessage)
		}
	})
}

// TestTimeouts: nothing stays in BUILD for ever.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{BuildTimeout: time.Minute}, func(b *bench) {
		id := b.add()
		b.wake(id)
		r := get(b, b.builds)
		b.expire("due_at")
		b.expire("task_since")
		b.wake(id)
		if s := b.server(id); s.VMState != store.Error || !strings.Contains(s.FaultMessage, "h1 did not build") || s.Host == nil {
			b.Errorf("server %s, fault %q, host %v; want an error that names the host, which still has to be cleaned", s.VMState, s.FaultMessage, s.Host)
		}
		if _, err := b.svc.EndBuild(b.Context(), &compute.EndBuildRequest{AttemptRequest: attempt("h1", r)}); !errors.Is(err, compute.ErrStale) {
			b.Errorf("a report after the end: %v, want ErrStale", err)
		}
		if err := b.store.MarkDeleting(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.wake(id)
		if d := get(b, b.destroys); d.ServerID != id {
			b.Errorf("told to destroy %s", d.ServerID)
		}
		if _, err := b.svc.EndDestroy(b.Context(), &compute.AttemptRequest{ServerID: id, Host: "h1"}); err != nil {
			b.Errorf("end: %v", err)
		}
		b.unclaimed()
	})
}

// TestNoHostUp: while no host is up a server waits, because that says nothing
// about room; but not for ever.
func TestNoHostUp(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{BuildTimeout: time.Minute}, func(b *bench) {
		b.down("h1")
		id, late := b.add(), b.add()
		for _, id := range []string{id, late} {
			if _, err := b.svc.Wake(b.Context(), &compute.WakeRequest{ServerID: id}); !errors.Is(err, fault.Unavailable) {
				b.Errorf("wake: %v, want Unavailable, to be tried again", err)
			}
			if s := b.server(id); s.Task() != store.Scheduling {
				b.Errorf("server %s, task %q; want it to wait for a host", s.VMState, s.Task())
			}
		}
		if _, err := b.db.ExecContext(b.Context(), `UPDATE servers SET due_at = ?, task_since = ? WHERE id = ?`,
			time.Now().UTC().Add(-time.Hour), time.Now().UTC().Add(-2*time.Hour), late); err != nil {
			b.Fatal(err)
		}
		b.settle(late)
		if s := b.server(late); s.VMState != store.Error || !strings.Contains(s.FaultMessage, "none of the 1 compute hosts is up") {
			b.Errorf("server %s, fault %q", s.VMState, s.FaultMessage)
		}
		b.addHost("h1")
		b.expire("due_at")
		b.wake(id)
		if r := get(b, b.builds); r.Spec.ID != id {
			b.Errorf("built %s", r.Spec.ID)
		}
	})
}

// down makes a host silent for an hour.
func (b *bench) down(host string) {
	b.Helper()
	if _, err := b.db.ExecContext(b.Context(), `UPDATE services SET seen_at = ? WHERE host = ?`, time.Now().UTC().Add(-time.Hour), host); err != nil {
		b.Fatal(err)
	}
}

// TestManyConductors: however many wake up for the same servers, each server
// gets one attempt.
func TestManyConductors(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		id := b.add()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := b.svc.Wake(b.Context(), &compute.WakeRequest{ServerID: id}); err != nil && !errors.Is(err, fault.Unavailable) {
					b.Errorf("wake: %v", err)
				}
			})
		}
		wg.Wait()
		if r := get(b, b.builds); r.Generation != 1 || len(b.builds) != 0 {
			b.Errorf("generation %d, %d more messages; want one attempt", r.Generation, len(b.builds))
		}
	})
}
