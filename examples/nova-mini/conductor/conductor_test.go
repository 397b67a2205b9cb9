package conductor_test

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
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
	"github.com/armature-go/armature/service/operation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a conductor with a real scheduler and a real database. The test plays the compute services.
type bench struct {
	*testing.T

	store *store.Store
	db    *sqlx.DB
	svc   *conductor.Service

	builds   chan compute.BuildRequest
	destroys chan compute.DestroyRequest
	acts     chan compute.ActRequest
	cfg      conductor.Config
}

// each runs f on every database. Host h1 has room for two servers.
func each(t *testing.T, cfg conductor.Config, f func(b *bench)) {
	t.Helper()
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		t.Helper()
		cfg := cfg // each database has its own
		b := &bench{T: t, store: store.New(d), db: d, builds: make(chan compute.BuildRequest, 10), destroys: make(chan compute.DestroyRequest, 10), acts: make(chan compute.ActRequest, 100)}
		bus := rpctest.NewBus(t)
		quiet := slog.New(slog.DiscardHandler)
		client := rpc.NewClient(bus, rpc.ClientConfig{Timeout: 10 * time.Second})
		t.Cleanup(func() { client.Close() })
		sched, err := scheduler.New(scheduler.Config{Store: b.store, DownAfter: time.Minute, Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		cfg.Store, cfg.Client, cfg.Ratios, cfg.Logger = b.store, client, store.Ratios{CPU: 1, RAM: 1, Disk: 1}, quiet
		cfg.Host, cfg.Poll = "c", 20*time.Millisecond
		b.cfg = cfg
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
			srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: s.iface, Host: s.host, Partial: true, Logger: quiet})
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
	rpc.Handle(srv, compute.Act, func(_ context.Context, r *compute.ActRequest) (*rpc.None, error) {
		b.acts <- *r
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
	srv := &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "p", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}
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

// get waits for a message to a compute service.
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

// start runs operations until the test ends.
func (b *bench) start() {
	b.Helper()
	if err := b.svc.Runner.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := b.svc.Runner.Stop(context.Background()); err != nil {
			b.Error(err)
		}
	})
}

// past sets a column of all rows of a table to the time two hours ago.
func (b *bench) past(table, column string) {
	b.Helper()
	if _, err := b.db.ExecContext(b.Context(), `UPDATE `+table+` SET `+column+` = ? WHERE `+column+` IS NOT NULL`, time.Now().UTC().Add(-2*time.Hour)); err != nil {
		b.Fatal(err)
	}
}

// expire ends all leases and delays of operations.
func (b *bench) expire() { b.Helper(); b.past("operations", "due_at") }

// operation returns the last operation on a server.
func (b *bench) operation(id string) *operation.Operation {
	b.Helper()
	list, err := b.store.Operations().List(b.Context(), operation.Filter{Resource: id, Limit: 1})
	if err != nil || len(list) == 0 {
		b.Fatalf("operations of %s: %v, %v", id, list, err)
	}
	o, err := b.store.Operations().Show(b.Context(), list[0].ID)
	if err != nil {
		b.Fatal(err)
	}
	return o
}

// waits waits until a server's operation waits for a report or a delay, and returns it.
func (b *bench) waits(id string) *operation.Operation {
	b.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		o := b.operation(id)
		if o.Owner == "" && len(o.Events) > 0 {
			return o
		}
		if time.Now().After(end) {
			b.Fatalf("it does not wait: %+v", o)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func events(o *operation.Operation) string {
	var out []string
	for _, e := range o.Events {
		out = append(out, e.Step+":"+e.Result)
	}
	return strings.Join(out, " ")
}

func step(host, token string) compute.StepRequest {
	return compute.StepRequest{Token: token, Host: host}
}

// report reports the result of a step, as the compute service of a host. failed is the error of the step, or "".
func (b *bench) report(host, token, failed string) error {
	_, err := b.svc.EndStep(b.Context(), &compute.EndStepRequest{StepRequest: step(host, token), Error: failed})
	return err
}

// wanted asks whether a step is wanted, as the compute service of h1.
func (b *bench) wanted(token string) error {
	_, err := b.svc.BeginStep(b.Context(), new(step("h1", token)))
	return err
}

// TestLostMessages: the notification is lost, then the message to the compute service, then the report is sent twice. The
// server is built once.
func TestLostMessages(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.add() // the conductor is not notified
		first := get(b, b.builds)
		b.waits(id)
		<-time.After(100 * time.Millisecond) // a few polls
		if len(b.builds) != 0 {
			b.Error("the worker was told again before its time")
		}
		b.expire() // the worker is silent
		if second := get(b, b.builds); second.Token != first.Token || second.Spec.ID != id {
			b.Errorf("told %+v at first and %+v then, want the same attempt", first, second)
		}
		for range 2 {
			if err := b.report("h1", first.Token, ""); err != nil {
				b.Errorf("report: %v", err)
			}
		}
		if s := b.server(id); s.VMState != store.Active || s.TaskState != nil {
			b.Errorf("server %s, task %q; want active", s.VMState, s.Task())
		}
		if o := b.operation(id); o.State != operation.Succeeded || events(o) != "schedule:done build:done" || o.Events[1].Host != "c" {
			b.Errorf("operation %+v", o)
		}
	})
}

// TestDeadConductor: a conductor dies after the scheduler has claimed a host. The next conductor continues with that host.
func TestDeadConductor(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		id := b.add()
		if _, err := b.db.ExecContext(b.Context(), `UPDATE operations SET owner = 'dead', fence = fence + 1, due_at = ?`, time.Now().UTC().Add(time.Hour)); err != nil {
			b.Fatal(err)
		}
		if err := b.store.Claims().Claim(b.Context(), placement.Claim{Consumer: id, Allocations: []placement.Allocation{
			{Provider: "h1", Resources: placement.Resources{compute.VCPU: 1, compute.MemoryMB: 1, compute.DiskGB: 1}},
		}}); err != nil {
			b.Fatal(err)
		}
		b.addHost("h2") // empty, and so the better one
		b.start()
		b.wake(id)
		<-time.After(100 * time.Millisecond) // a few polls
		if len(b.builds) != 0 {
			b.Error("a leased operation was touched")
		}
		b.expire()
		get(b, b.builds)
		if s := b.server(id); *s.Host != "h1" {
			b.Errorf("host %s, want h1, which was claimed", *s.Host)
		}
	})
}

// TestNextHost: after a failed build the next host is chosen. After the last host the server gets a fault that says what
// happened.
func TestNextHost(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{MaxAttempts: 2}, func(b *bench) {
		b.addHost("h2")
		b.start()
		id := b.add()
		b.wake(id)
		for range 2 {
			r, host := b.build(id)
			if _, err := b.svc.BeginStep(b.Context(), new(step(host, r.Token))); err != nil {
				b.Errorf("begin: %v", err)
			}
			if err := b.report(host, r.Token, "disk on fire"); err != nil {
				b.Errorf("report: %v", err)
			}
			if _, err := b.svc.BeginStep(b.Context(), new(step(host, r.Token))); !errors.Is(err, compute.ErrStale) {
				b.Errorf("begin after the end: %v, want ErrStale", err)
			}
		}
		b.settle(id)
		s := b.server(id)
		if s.VMState != store.Error || !strings.Contains(s.FaultDetails, "retries") || !strings.Contains(s.FaultDetails, "disk on fire") || !strings.Contains(s.FaultDetails, "tried [h1 h2]") && !strings.Contains(s.FaultDetails, "tried [h2 h1]") ||
			s.FaultMessage != "Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures for instance "+id+"." {
			b.Errorf("server %s, fault %q; want an error after two hosts", s.VMState, s.FaultDetails)
		}
		b.unclaimed()
		o := b.operation(id)
		if events(o) != "schedule:done build:back schedule:done build:back schedule:failed" || o.State != operation.Failed || o.Error != s.FaultDetails || !strings.Contains(o.Events[1].Error, "disk on fire") {
			b.Errorf("operation %+v", o)
		}

		// An operator has put the fire out.
		if err := b.store.Operations().Retry(b.Context(), o.ID); err != nil {
			b.Fatal(err)
		}
		r, host := b.build(id)
		if err := b.report(host, r.Token, "disk on fire"); err != nil { // the hosts count anew
			b.Errorf("report: %v", err)
		}
		r, host = b.build(id)
		if err := b.report(host, r.Token, ""); err != nil {
			b.Errorf("report: %v", err)
		}
		if s := b.server(id); s.VMState != store.Active || s.FaultDetails != "" || b.operation(id).State != operation.Succeeded {
			b.Errorf("done again it is %s, fault %q", s.VMState, s.FaultDetails)
		}
		if err := b.store.Operations().Retry(b.Context(), o.ID); !errors.Is(err, fault.Precondition) {
			b.Errorf("retry of what has succeeded: %v", err)
		}
	})
}

// build waits for the request of a server's current attempt. A request may come twice, the second time after the attempt
// has ended, and such a request is skipped.
func (b *bench) build(id string) (compute.BuildRequest, string) {
	b.Helper()
	for {
		r := get(b, b.builds)
		if s := b.server(id); r.Spec.ID == id && s.Host != nil && b.token(id) == r.Token {
			return r, *s.Host
		}
	}
}

// token returns the token of the current step of a server's operation.
func (b *bench) token(id string) string {
	b.Helper()
	op, err := b.store.Operations().Current(b.Context(), id)
	if err != nil {
		b.Fatal(err)
	}
	return op.Token
}

// settle waits until a server has no task.
func (b *bench) settle(id string) {
	b.Helper()
	for end := time.Now().Add(20 * time.Second); b.server(id).TaskState != nil; {
		if time.Now().After(end) {
			b.Fatalf("the server still has the task %s", b.server(id).Task())
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (b *bench) unclaimed() {
	b.Helper()
	var n int
	if err := b.db.GetContext(b.Context(), &n, `SELECT COUNT(*) FROM placement_allocations`); err != nil || n != 0 {
		b.Errorf("%d claims are left, %v", n, err)
	}
}

// TestNoRoom: the details of the fault count the rejection reasons.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.addHost("h2")
		if err := b.store.SetDisabled(b.Context(), store.ComputeBinary, "h2", true, "broken fan"); err != nil {
			b.Fatal(err)
		}
		b.start()
		for range 2 {
			id := b.add()
			b.wake(id)
			b.build(id) // it has its place
		}
		id := b.add()
		b.wake(id)
		b.settle(id)
		if s := b.server(id); s.VMState != store.Error || s.FaultCode != 500 || s.FaultDetails != "No valid host was found. 0 of 2 hosts: 1 VCPU, 1 disabled" ||
			s.FaultMessage != "No valid host was found. There are not enough hosts available." {
			b.Errorf("server %s, fault %d %q: %q", s.VMState, s.FaultCode, s.FaultMessage, s.FaultDetails)
		}
	})
}

// TestTimeouts: no server stays in BUILD for ever.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{BuildTimeout: time.Minute}, func(b *bench) {
		b.start()
		id := b.add()
		b.wake(id)
		r := get(b, b.builds)
		b.waits(id)
		b.expireStep(id)
		if s := b.server(id); s.VMState != store.Error || s.FaultDetails != "host h1: step build not done within 1m0s" || s.Host != nil || s.FaultMessage != "Build of instance "+id+" aborted." {
			b.Errorf("server %s, fault %q, host %v; want an error that names the host, and no host, so that h1 destroys what it has", s.VMState, s.FaultDetails, s.Host)
		}
		b.unclaimed()
		if err := b.report("h1", r.Token, ""); !errors.Is(err, compute.ErrStale) {
			b.Errorf("a report after the end: %v, want ErrStale", err)
		}
		if err := b.store.BeginDelete(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.wake(id)
		for end := time.Now().Add(20 * time.Second); ; {
			if _, err := b.store.Server(b.Context(), id); errors.Is(err, fault.NotFound) {
				break
			}
			if time.Now().After(end) {
				b.Fatal("a server without a host is not deleted")
			}
			<-time.After(5 * time.Millisecond)
		}
	})
}

// expireStep makes the current step of a server's operation time out, and waits until the server has no task.
func (b *bench) expireStep(id string) {
	b.Helper()
	for end := time.Now().Add(20 * time.Second); b.server(id).TaskState != nil; {
		if time.Now().After(end) {
			b.Fatalf("the server still has the task %s", b.server(id).Task())
		}
		// A runner that has the operation writes its own time over this one.
		if _, err := b.db.ExecContext(b.Context(), `UPDATE operations SET step_deadline_at = ? WHERE active = ? AND owner = ''`, time.Now().UTC().Add(-2*time.Hour), id); err != nil {
			b.Fatal(err)
		}
		b.svc.Runner.NotifyResource(id)
		<-time.After(5 * time.Millisecond)
	}
}

// TestDelete: only the report of the server's host, with the token of the step, ends a deletion.
func TestDelete(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.add()
		b.wake(id)
		r := get(b, b.builds)
		b.waits(id)
		if err := b.store.BeginDelete(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.wake(id)
		d := get(b, b.destroys)
		if d.ServerID != id || d.Token != b.token(id) {
			b.Errorf("told to destroy %+v", d)
		}
		for _, token := range []string{r.Token, d.Token + "1", ""} {
			if err := b.report("h1", token, ""); !errors.Is(err, compute.ErrStale) {
				b.Errorf("a report with the token %q: %v, want ErrStale", token, err)
			}
			if err := b.wanted(token); !errors.Is(err, compute.ErrStale) {
				b.Errorf("the question with the token %q: %v, want ErrStale", token, err)
			}
		}
		if b.server(id).Task() != store.Deleting {
			b.Error("it is gone by an old report")
		}
		if err := b.wanted(d.Token); err != nil {
			b.Errorf("the question of its host: %v", err)
		}
		for range 2 {
			if err := b.report("h1", d.Token, ""); err != nil {
				b.Errorf("end: %v", err)
			}
		}
		b.unclaimed()
		if _, err := b.store.Server(b.Context(), id); !errors.Is(err, fault.NotFound) {
			b.Errorf("after the end: %v", err)
		}
	})
}

// TestEarlierWorker: a compute service of a release that names attempts by generations builds, acts and destroys.
func TestEarlierWorker(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.add()
		b.wake(id)
		earlier, conductor := rpc.Version{Major: 1, Minor: 2}, &rpc.Interface{Name: "conductor", Version: rpc.Version{Major: 1, Minor: 2}}
		type none = rpc.None
		begin := rpc.Method[compute.AttemptRequest, none]{Interface: conductor, Name: "begin_build", Since: earlier}
		end := map[string]rpc.Method[compute.EndBuildRequest, none]{}
		for _, name := range []string{"end_build", "end_act", "end_destroy"} {
			end[name] = rpc.Method[compute.EndBuildRequest, none]{Interface: conductor, Name: name, Since: earlier}
		}
		work := func(what, task string, generation int64) {
			b.Helper()
			at := compute.AttemptRequest{ServerID: id, Host: "h1", Generation: generation, Task: task}
			for _, stale := range []compute.AttemptRequest{
				{ServerID: id, Host: "h1", Generation: generation + 1, Task: task}, {ServerID: uuid.NewString(), Host: "h1", Generation: generation, Task: task}, {ServerID: id, Host: "h2", Task: task},
			} {
				if _, err := rpc.Call(b.Context(), b.cfg.Client, begin, rpc.Any, &stale); !errors.Is(err, compute.ErrStale) {
					b.Errorf("the question %+v: %v, want ErrStale", stale, err)
				}
				if _, err := rpc.Call(b.Context(), b.cfg.Client, end[what], rpc.Any, &compute.EndBuildRequest{AttemptRequest: stale}); !errors.Is(err, compute.ErrStale) {
					b.Errorf("the report %+v: %v, want ErrStale", stale, err)
				}
			}
			if _, err := rpc.Call(b.Context(), b.cfg.Client, begin, rpc.Any, &at); err != nil {
				b.Errorf("%s: begin: %v", what, err)
			}
			if what == "end_destroy" { // in whatever generation
				at.Generation = 0
			}
			if _, err := rpc.Call(b.Context(), b.cfg.Client, end[what], rpc.Any, &compute.EndBuildRequest{AttemptRequest: at}); err != nil {
				b.Errorf("%s: %v", what, err)
			}
		}
		work("end_build", "", get(b, b.builds).Generation)
		if s := b.server(id); s.VMState != store.Active || s.TaskState != nil {
			b.Fatalf("server %s, task %q; want active", s.VMState, s.Task())
		}
		if err := b.store.BeginAction(b.Context(), id, compute.Stop); err != nil {
			b.Fatal(err)
		}
		b.wake(id)
		act := get(b, b.acts)
		work("end_act", act.Task, act.Generation)
		if s := b.server(id); s.VMState != store.Stopped || act.Task != store.PoweringOff {
			b.Fatalf("server %s after the task %q; want stopped", s.VMState, act.Task)
		}
		if err := b.store.BeginDelete(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.wake(id)
		work("end_destroy", store.Deleting, get(b, b.destroys).Generation)
		b.unclaimed()
	})
}

// TestNoHostUp: while no host is up, a server waits, because nothing is known about the room on the hosts. The wait ends
// with the build timeout.
func TestNoHostUp(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{BuildTimeout: time.Minute}, func(b *bench) {
		b.down("h1")
		b.start()
		id, late := b.add(), b.add()
		for _, id := range []string{id, late} {
			b.wake(id)
			if o := b.waits(id); events(o)[:len("schedule:retry")] != "schedule:retry" || o.Events[0].ErrorCode != "Unavailable" {
				b.Errorf("operation %+v, want one that is retried", o)
			}
			if s := b.server(id); s.Task() != store.Scheduling {
				b.Errorf("server %s, task %q; want it to wait for a host", s.VMState, s.Task())
			}
		}
		b.expireStep(late)
		if s := b.server(late); s.VMState != store.Error || !strings.Contains(s.FaultDetails, "none of the 1 compute hosts is up") {
			b.Errorf("server %s, fault %q", s.VMState, s.FaultDetails)
		}
		b.addHost("h1")
		if r := get(b, b.builds); r.Spec.ID != id {
			b.Errorf("built %s", r.Spec.ID)
		}
	})
}

// down sets a host's last heartbeat to an hour ago.
func (b *bench) down(host string) {
	b.Helper()
	if _, err := b.db.ExecContext(b.Context(), `UPDATE members SET seen_at = ? WHERE host = ?`, time.Now().UTC().Add(-time.Hour), host); err != nil {
		b.Fatal(err)
	}
}

// TestManyConductors: many conductors that are notified of one server make one build attempt in all.
func TestManyConductors(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		id := b.add()
		b.start()
		var wg sync.WaitGroup
		for i := range 4 {
			cfg := b.cfg
			cfg.Host = "c" + strconv.Itoa(i)
			other := conductor.New(cfg)
			if err := other.Runner.Start(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() {
				if err := other.Runner.Stop(context.Background()); err != nil {
					b.Error(err)
				}
			})
			for range 2 {
				wg.Go(func() {
					if _, err := other.Wake(b.Context(), &compute.WakeRequest{ServerID: id}); err != nil {
						b.Errorf("wake: %v", err)
					}
				})
			}
		}
		wg.Wait()
		r := get(b, b.builds)
		b.waits(id)
		<-time.After(100 * time.Millisecond)
		// A conductor that was notified while it ran looks once more. It repeats the request of the same attempt.
		for len(b.builds) > 0 {
			if more := get(b, b.builds); more.Token != r.Token {
				b.Errorf("tokens %s and %s", r.Token, more.Token)
			}
		}
		if o := b.operation(id); events(o) != "schedule:done" || b.token(id) != r.Token {
			b.Errorf("events %s, token %s; want one attempt, %s", events(o), b.token(id), r.Token)
		}
	})
}

// TestActions: after an action that failed or timed out the server keeps its state and gets a fault; after a resize that
// timed out it is in ERROR. An action that is canceled is not begun. A client that sees the server without a task can begin
// the next action.
func TestActions(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{BuildTimeout: time.Minute}, func(b *bench) {
		b.start()
		id := b.add()
		b.wake(id)
		if err := b.report("h1", get(b, b.builds).Token, ""); err != nil {
			b.Fatal(err)
		}
		begin := func(a compute.Action) compute.ActRequest {
			b.Helper()
			var err error
			if a == compute.Resize {
				err = b.store.BeginResize(b.Context(), id, &store.Flavor{ID: "2", VCPUs: 2, MemoryMiB: 2, DiskGiB: 2})
			} else {
				err = b.store.BeginAction(b.Context(), id, a)
			}
			if err != nil {
				b.Fatalf("%s: %v", a, err)
			}
			b.wake(id)
			r := get(b, b.acts)
			for want := b.token(id); r.Token != want; { // told twice, the one before
				r = get(b, b.acts)
			}
			if err := b.wanted(r.Token); err != nil {
				b.Errorf("%s is not wanted: %v", a, err)
			}
			return r
		}
		end := func(r compute.ActRequest, failed string, want error) {
			b.Helper()
			if err := b.report("h1", r.Token, failed); !errors.Is(err, want) {
				b.Errorf("report: %v, want %v", err, want)
			}
		}
		for range 20 { // at once, each time
			for _, a := range []compute.Action{compute.Stop, compute.Start} {
				end(begin(a), "", nil)
			}
		}
		for range 20 {
			r := begin(compute.Stop)
			end(r, "no power", nil)
			b.settle(id)
			end(r, "no power", nil)
			if s := b.server(id); s.VMState != store.Active || s.FaultDetails != "no power" || s.FaultMessage != "Failed to stop instance "+id+"." {
				b.Fatalf("after a stop that failed: %s, %q", s.VMState, s.FaultDetails)
			}
		}

		r := begin(compute.Stop)
		b.waitsFor(id)
		b.expireStep(id)
		end(r, "", compute.ErrStale)
		if s := b.server(id); s.VMState != store.Active || s.FaultDetails != "step act not done within 1m0s" {
			b.Errorf("after a stop that never ended: %s, %q", s.VMState, s.FaultDetails)
		}

		r = begin(compute.Stop)
		b.waitsFor(id)
		if err := b.store.Operations().Cancel(b.Context(), b.operation(id).ID, "no"); err != nil {
			b.Fatal(err)
		}
		if err := b.wanted(r.Token); !errors.Is(err, compute.ErrStale) {
			b.Errorf("what is canceled is wanted: %v", err)
		}
		b.settle(id)
		if s := b.server(id); s.VMState != store.Active || s.FaultDetails != "no" {
			b.Errorf("after a stop that was canceled: %s, %q", s.VMState, s.FaultDetails)
		}
		if err := b.store.Operations().Retry(b.Context(), b.operation(id).ID); err != nil {
			b.Fatal(err)
		}
		for before := r.Token; r.Token == before; {
			r = get(b, b.acts)
		}
		end(r, "", nil)
		if s := b.server(id); s.VMState != store.Stopped {
			b.Errorf("after the retry of the stop: %s", s.VMState)
		}

		begin(compute.Resize)
		b.waitsFor(id)
		b.expireStep(id)
		if s := b.server(id); s.VMState != store.Error || s.Resize.V == nil || s.Holds().VCPUs != 2 {
			b.Errorf("after a resize that never ended: %s, %+v", s.VMState, s.Resize.V)
		}
		if err := b.store.BeginDelete(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.wake(id)
		get(b, b.destroys)
		if err := b.store.Operations().Cancel(b.Context(), b.operation(id).ID, "keep it"); err != nil {
			b.Fatal(err)
		}
		b.settle(id)
		if s := b.server(id); s.VMState != store.Error || s.FaultDetails != "keep it" || s.FaultMessage != "Failed to delete instance "+id+"." {
			b.Errorf("after a deletion that was canceled: %s, %q", s.VMState, s.FaultDetails)
		}
		if err := b.store.Operations().Retry(b.Context(), b.operation(id).ID); err != nil {
			b.Fatal(err)
		}
		for d := get(b, b.destroys); ; d = get(b, b.destroys) {
			if err := b.report("h1", d.Token, ""); err == nil {
				break
			} else if !errors.Is(err, compute.ErrStale) {
				b.Fatal(err)
			}
		}
		b.unclaimed()
	})
}

// waitsFor waits until a server's operation waits for the compute service.
func (b *bench) waitsFor(id string) {
	b.Helper()
	for end := time.Now().Add(20 * time.Second); b.operation(id).Owner != ""; {
		if time.Now().After(end) {
			b.Fatalf("it does not wait: %+v", b.operation(id))
		}
		<-time.After(5 * time.Millisecond)
	}
}
