package worker_test

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/worker"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeDriver records the calls, in order.
type fakeDriver struct {
	compute.Driver // nil: the tests call only the overridden methods

	mu      sync.Mutex
	log     []string
	servers map[string]bool
	caps    []driver.Capability
	spawn   func() error // returns the error of Spawn; nil: Spawn succeeds
	destroy func() error
}

func (d *fakeDriver) note(s string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, s)
}

func (d *fakeDriver) did() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.log)
}

func (d *fakeDriver) Info(context.Context) (driver.Info, error) {
	return driver.Info{Name: "d", Version: "7", Capabilities: d.caps}, nil
}
func (d *fakeDriver) Close() error { return nil }
func (d *fakeDriver) Resources(context.Context) (compute.Resources, error) {
	return compute.Resources{VCPUs: 1}, nil
}

func (d *fakeDriver) Spawn(_ context.Context, s compute.Spec) error {
	d.note("spawn " + s.ID)
	if d.spawn != nil {
		if err := d.spawn(); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.servers[s.ID] = true
	return nil
}

func (d *fakeDriver) PowerOn(_ context.Context, id string) error {
	d.note("on " + id)
	return nil
}

func (d *fakeDriver) PowerOff(_ context.Context, id string, _ time.Duration) error {
	d.note("off " + id)
	return nil
}

func (d *fakeDriver) Destroy(_ context.Context, id string) error {
	d.note("destroy " + id)
	if d.destroy != nil {
		if err := d.destroy(); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.servers, id)
	return nil
}

func (d *fakeDriver) List(context.Context) (out []compute.Instance, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := range d.servers {
		out = append(out, compute.Instance{ID: id})
	}
	return out, nil
}

// bench is a compute service with a driver and a conductor that the test controls.
type bench struct {
	driver *fakeDriver
	svc    *worker.Service
	client *rpc.Client

	mu    sync.Mutex
	begin error                       // the conductor's answer to begin_step
	end   error                       // the conductor's answer to end_step
	other int                         // the number of reports that are refused, because the conductor does not know the operation
	mine  map[string]bool             // the servers that the database places on the host
	ended chan compute.EndStepRequest // receives the reports that end steps
	seen  chan compute.HostReport     // receives the reports about the host
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{
		driver: &fakeDriver{servers: map[string]bool{}}, mine: map[string]bool{},
		ended: make(chan compute.EndStepRequest, 10), seen: make(chan compute.HostReport, 10),
	}
	bus := rpctest.NewBus(t)
	quiet := slog.New(slog.DiscardHandler)
	b.client = rpc.NewClient(bus, rpc.ClientConfig{})
	t.Cleanup(func() { b.client.Close() })
	b.svc = worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return b.driver }, Client: b.client, Logger: quiet})
	// answer reads the error before it calls tell, because the test then continues and may change the error.
	answer := func(err *error, tell func()) (*rpc.None, error) {
		b.mu.Lock()
		is := *err
		b.mu.Unlock()
		tell()
		return &rpc.None{}, is
	}
	for _, s := range []struct {
		cfg rpc.ServerConfig
		add func(*rpc.Server)
	}{
		{rpc.ServerConfig{Interface: compute.Conductor, Logger: quiet}, func(s *rpc.Server) {
			rpc.Handle(s, compute.BeginStep, func(context.Context, *compute.StepRequest) (*rpc.None, error) { return answer(&b.begin, func() {}) })
			rpc.Handle(s, compute.EndStep, func(_ context.Context, r *compute.EndStepRequest) (*rpc.None, error) {
				b.mu.Lock()
				other := b.other > 0
				b.other--
				b.mu.Unlock()
				if other {
					return nil, compute.ErrOtherRelease
				}
				return answer(&b.end, func() { b.ended <- *r })
			})
			rpc.Handle(s, compute.ReportHost, func(_ context.Context, r *compute.HostReport) (*rpc.None, error) {
				b.seen <- *r
				return &rpc.None{}, nil
			})
			rpc.Handle(s, compute.Orphans, func(_ context.Context, r *compute.OrphansRequest) (*compute.OrphansReply, error) {
				b.mu.Lock()
				defer b.mu.Unlock()
				return &compute.OrphansReply{Servers: slices.DeleteFunc(r.Servers, func(id string) bool { return b.mine[id] })}, nil
			})
		}},
		{rpc.ServerConfig{Interface: compute.Worker, Host: "h1", Logger: quiet}, b.svc.Register},
	} {
		srv := rpc.NewServer(bus, s.cfg)
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
	return b
}

func (b *bench) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func get[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was reported")
		panic("unreachable")
	}
}

var build = compute.BuildRequest{Spec: compute.Spec{ID: "s1"}, Token: "op/3"}

// cast casts the request build to the compute service.
func (b *bench) cast(t *testing.T) {
	t.Helper()
	if err := rpc.Cast(t.Context(), b.client, compute.Build, "h1", &build); err != nil {
		t.Fatal(err)
	}
}
