package conductor_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/scheduler"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/examples/nova-mini/worker"
	"github.com/armature-go/armature/internal/logtest"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
	"github.com/armature-go/armature/service/operation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a conductor with a real scheduler and a real database. The test itself plays the compute services.
type bench struct {
	*testing.T

	store *store.Store
	db    *sqlx.DB
	svc   *conductor.Service

	// The requests to the compute services.
	builds   chan compute.BuildRequest
	destroys chan compute.DestroyRequest
	acts     chan compute.ActRequest
	removals chan removal

	// changeInterface is called by the drivers before they change the interfaces of a guest. Nil: the change succeeds.
	changeInterface atomic.Pointer[func(guestChange) error]
	guest           sync.Map // the interfaces of the guests, by port id

	lines *logtest.Lines // the conductor's log
	// refuse is called before each call of the conductor. An error is the result of the call. Nil: all calls are made.
	refuse atomic.Pointer[func(rpc.Info) error]

	cfg conductor.Config
}

// intercept is the interceptor of the conductor's RPC client.
func (b *bench) intercept(ctx context.Context, info rpc.Info, req any, next func(context.Context, any) (any, error)) (any, error) {
	if refuse := b.refuse.Load(); refuse != nil {
		if err := (*refuse)(info); err != nil {
			return nil, err
		}
	}
	return next(ctx, req)
}

// poll is the interval at which a conductor polls the database.
const poll = 20 * time.Millisecond

// each runs the function f on every database. On SQLite, f runs in a bubble of testing/synctest. On MariaDB, f runs in real time, because
// leases, delays and heartbeats use the clock of the database server. Host h1 has room for two servers.
func each(t *testing.T, cfg conductor.Config, f func(b *bench)) {
	t.Helper()
	eachWith(t, cfg, rpc.ClientConfig{}, f)
}

// eachWith is like each, with a configuration of the conductor's RPC client.
func eachWith(t *testing.T, cfg conductor.Config, calls rpc.ClientConfig, f func(b *bench)) {
	t.Helper()
	calls.Timeout = 10 * time.Second
	dbtest.EachInBubble(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		t.Helper()
		cfg := cfg // a copy for each database
		b := &bench{T: t, store: store.New(d), db: d, builds: make(chan compute.BuildRequest, 10), destroys: make(chan compute.DestroyRequest, 10), acts: make(chan compute.ActRequest, 100), removals: make(chan removal, 1000)}
		bus := rpctest.NewBus(t)
		quiet := slog.New(slog.DiscardHandler)
		cfg.Logger, b.lines = logtest.New()
		calls := calls // a copy for each database
		calls.Interceptors = []rpc.Interceptor{b.intercept}
		client := rpc.NewClient(bus, calls)
		t.Cleanup(func() { client.Close() })
		sched, err := scheduler.New(scheduler.Config{Store: b.store, DownAfter: time.Minute, Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		cfg.Store, cfg.Client, cfg.Ratios = b.store, client, store.Ratios{CPU: 1, RAM: 1, Disk: 1}
		cfg.Host, cfg.Poll = "c", poll
		b.cfg = cfg
		b.svc = conductor.New(cfg)
		for _, s := range []struct {
			iface *rpc.Interface
			host  string
			add   func(*rpc.Server)
		}{
			{compute.Conductor, "c", b.svc.Register},
			{compute.Scheduler, "s", sched.Register},
			{compute.Worker, "h1", b.registerWorker("h1", client)},
			{compute.Worker, "h2", b.registerWorker("h2", client)},
		} {
			srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: s.iface, Host: s.host, Logger: quiet})
			s.add(srv)
			if err := srv.Start(rpctest.Partial(t.Context())); err != nil {
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

// removal is a request to remove an image from a host.
type removal struct {
	host string
	compute.RemoveImageRequest
}

// guestChange is a change of the interfaces of a guest.
type guestChange struct {
	server, port string
	detach       bool
}

// guestDriver is the driver of a host. It only changes interfaces.
type guestDriver struct {
	compute.Driver

	b *bench
}

func (d guestDriver) AttachInterface(_ context.Context, id string, i compute.Interface) error {
	return d.b.changeGuest(guestChange{server: id, port: i.ID})
}

func (d guestDriver) DetachInterface(_ context.Context, id, port string) error {
	return d.b.changeGuest(guestChange{server: id, port: port, detach: true})
}

func (b *bench) changeGuest(c guestChange) error {
	if f := b.changeInterface.Load(); f != nil {
		if err := (*f)(c); err != nil {
			return err
		}
	}
	if c.detach {
		b.guest.Delete(c.port)
	} else {
		b.guest.Store(c.port, c.server)
	}
	return nil
}

// registerWorker returns a function that registers the handlers of the compute service of a host. They pass the requests to the test, except those for interfaces, which a real compute service handles.
func (b *bench) registerWorker(host string, client *rpc.Client) func(*rpc.Server) {
	svc := worker.New(worker.Config{Host: host, Driver: func() compute.Driver { return guestDriver{b: b} }, Client: client, Logger: slog.New(slog.DiscardHandler)})
	return func(srv *rpc.Server) {
		rpc.Handle(srv, compute.Build, func(_ context.Context, r *compute.BuildRequest) (*rpc.None, error) {
			b.builds <- *r
			return &rpc.None{}, nil
		})
		rpc.Handle(srv, compute.Act, func(ctx context.Context, r *compute.ActRequest) (*rpc.None, error) {
			if r.Interface != nil {
				return svc.Act(ctx, r)
			}
			b.acts <- *r
			return &rpc.None{}, nil
		})
		rpc.Handle(srv, compute.Destroy, func(_ context.Context, r *compute.DestroyRequest) (*rpc.None, error) {
			b.destroys <- *r
			return &rpc.None{}, nil
		})
		rpc.Handle(srv, compute.RemoveImage, func(_ context.Context, r *compute.RemoveImageRequest) (*rpc.None, error) {
			b.removals <- removal{host, *r}
			return &rpc.None{}, nil
		})
	}
}

// addHost adds a host with room for two servers of addServer.
func (b *bench) addHost(name string) {
	b.Helper()
	_, err := b.svc.ReportHost(b.Context(), &compute.HostReport{Host: name, Driver: "d", DriverVersion: "1", Resources: compute.Resources{VCPUs: 2, MemoryMiB: 2, DiskGiB: 2}})
	if err != nil {
		b.Fatal(err)
	}
}

// addServer writes a new server and the operation that creates it, and returns the server's ID. It does not notify the conductor.
func (b *bench) addServer() string {
	b.Helper()
	srv := &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "p", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}
	if err := b.store.CreateServer(b.Context(), srv); err != nil {
		b.Fatal(err)
	}
	return srv.ID
}

func (b *bench) notify(id string) {
	b.Helper()
	if _, err := b.svc.Notify(b.Context(), &compute.NotifyRequest{ServerID: id}); err != nil {
		b.Fatal(err)
	}
}

// get waits for a message to a compute service.
func get[T any](b *bench, ch <-chan T) T {
	b.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(waittest.Timeout):
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

// start starts the conductor's runner of operations, which runs until the test ends.
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

// setPast sets a column of all rows of a table to the time two hours ago.
func (b *bench) setPast(table, column string) {
	b.Helper()
	b.exec(`UPDATE `+table+` SET `+column+` = ? WHERE `+column+` IS NOT NULL`, time.Now().UTC().Add(-2*time.Hour))
}

// exec runs a statement. If it deadlocks with a conductor, exec repeats it.
func (b *bench) exec(query string, args ...any) {
	b.Helper()
	err := db.Tx(b.Context(), b.db, func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, query, args...)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
}

// expire ends all leases and delays of operations.
func (b *bench) expire() { b.Helper(); b.setPast("operations", "due_at") }

// operation returns the open operation on a server. If no operation is open, it returns the only ended operation. If several operations
// have ended, it fails the test, because it cannot find the newest: in a bubble, where no time passes, all have the same created_at.
func (b *bench) operation(id string) *operation.Operation {
	b.Helper()
	list, err := b.store.Operations().List(b.Context(), operation.Filter{Resource: id, Open: true})
	if err == nil && len(list) == 0 {
		list, err = b.store.Operations().List(b.Context(), operation.Filter{Resource: id})
	}
	if err != nil || len(list) != 1 {
		b.Fatalf("server %s has %d operations, want one, or one that has not ended: %+v, %v", id, len(list), list, err)
	}
	o, err := b.store.Operations().Show(b.Context(), list[0].ID)
	if err != nil {
		b.Fatal(err)
	}
	return o
}

// awaitWait waits until a server's operation waits for a report or a delay, and returns the operation.
func (b *bench) awaitWait(id string) *operation.Operation {
	b.Helper()
	var o *operation.Operation
	waittest.Until(b, "an operation that waits for a report or a delay", func() bool {
		o = b.operation(id)
		return o.Owner == "" && len(o.Events) > 0
	})
	return o
}

// awaitPolls waits until the conductor has polled the database a few times. In a bubble this takes no real time, and afterwards the
// conductor has no work left. With a database server it takes real time.
func (b *bench) awaitPolls() {
	b.Helper()
	waittest.Pass(b, 5*poll, "the conductor polls the database")
}

// events returns the events of an operation as a text STEP:RESULT STEP:RESULT ...
func events(o *operation.Operation) string {
	var out []string
	for _, e := range o.Events {
		out = append(out, e.StepName+":"+e.Result)
	}
	return strings.Join(out, " ")
}

func step(host, token string) compute.StepRequest {
	return compute.StepRequest{Token: token, Host: host}
}

// report reports the result of a step, as the compute service of a host. The parameter failed is the error of the step, or "".
func (b *bench) report(host, token, failed string) error {
	_, err := b.svc.EndStep(b.Context(), &compute.EndStepRequest{StepRequest: step(host, token), Error: failed})
	return err
}

// wanted asks whether a step is wanted, as the compute service of h1.
func (b *bench) wanted(token string) error {
	_, err := b.svc.BeginStep(b.Context(), new(step("h1", token)))
	return err
}

// awaitBuild waits for the request of a server's current build attempt, and returns the request and the host. It skips requests of ended
// attempts, because a request may come twice.
func (b *bench) awaitBuild(id string) (compute.BuildRequest, string) {
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

// awaitNoTask waits until a server has no task.
func (b *bench) awaitNoTask(id string) {
	b.Helper()
	waittest.Until(b, "a server without a task", func() bool { return b.server(id).TaskState == nil })
}

func (b *bench) wantNoClaims() {
	b.Helper()
	var n int
	if err := b.db.GetContext(b.Context(), &n, `SELECT COUNT(*) FROM placement_allocations`); err != nil || n != 0 {
		b.Errorf("%d claims are left, %v", n, err)
	}
}

// expireStep makes the current step of a server's operation time out, and waits until the server has no task.
func (b *bench) expireStep(id string) {
	b.Helper()
	waittest.Until(b, "a server without a task", func() bool {
		// A runner that executes the operation overwrites this time, so the update is repeated.
		b.exec(`UPDATE operations SET step_deadline_at = ? WHERE active = ? AND owner = ''`, time.Now().UTC().Add(-2*time.Hour), id)
		b.svc.Runner.NotifyResource(id)
		return b.server(id).TaskState == nil
	})
}

// setDown sets a host's last heartbeat to an hour ago.
func (b *bench) setDown(host string) {
	b.Helper()
	b.exec(`UPDATE members SET seen_at = ? WHERE host = ?`, time.Now().UTC().Add(-time.Hour), host)
}

// awaitPeer waits until a server's operation waits for the compute service.
func (b *bench) awaitPeer(id string) {
	b.Helper()
	waittest.Until(b, "an operation that waits for a report", func() bool { return b.operation(id).Owner == "" })
}

// build adds an active server on the host h1, and returns the server's ID.
func (b *bench) build() string {
	b.Helper()
	id := b.addServer()
	b.notify(id)
	r, host := b.awaitBuild(id)
	if err := b.report(host, r.Token, ""); err != nil {
		b.Fatal(err)
	}
	return id
}

// act begins an action and returns the request to the compute service.
func (b *bench) act(id string, a compute.Action, data store.ActData) compute.ActRequest {
	b.Helper()
	if err := b.store.BeginAction(b.Context(), id, a, data); err != nil {
		b.Fatal(err)
	}
	return b.awaitAct(id)
}

// awaitAct waits for the request of a server's current step. It skips repeated requests of earlier steps.
func (b *bench) awaitAct(id string) compute.ActRequest {
	b.Helper()
	b.notify(id)
	for {
		if r := get(b, b.acts); r.ServerID == id && r.Token == b.token(id) {
			return r
		}
	}
}

// ended returns the ID of the operation of a failed action.
func (b *bench) ended(id string, a compute.Action) string {
	b.Helper()
	list, err := b.store.Operations().List(b.Context(), operation.Filter{Resource: id, Kind: store.Kinds[a].Name, State: operation.Failed})
	if err != nil || len(list) == 0 {
		b.Fatalf("no %s has failed: %v", a, err)
	}
	return list[0].ID
}
