package worker_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/drivers/fake"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/worker"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// guestBench is a compute service with a fake driver, and a conductor that compares power states as the real one does.
type guestBench struct {
	t       *testing.T
	driver  *guestDriver
	svc     *worker.Service
	reports chan compute.PowerReport

	power  chan map[string]compute.PowerState // has one value: the power states that the conductor has
	busy   atomic.Bool                        // all servers have tasks
	failed atomic.Int32                       // the number of reports that get an error
	stop   func(id string)                    // stops a server whose guest runs; nil: the conductor only stores the power state
}

// guestDriver is a fake driver whose streams of events the test controls.
type guestDriver struct {
	*fake.Driver

	silent  atomic.Bool   // the driver has no events
	lose    chan struct{} // ends a stream of events
	streams atomic.Int32  // the number of streams that have begun
	over    atomic.Int32  // the number of streams that were lost
	gets    atomic.Int32  // the number of calls of Get that return an error
	broken  atomic.Bool   // a stream of events ends when it has begun
	lists   atomic.Int32  // the number of calls of List

	meanwhile func(id string) error // called at the end of PowerOff

	beforeGet, afterGet atomic.Pointer[func()] // called once, before or after the next Get reads the guest
}

func (d *guestDriver) Info(ctx context.Context) (driver.Info, error) {
	info, err := d.Driver.Info(ctx)
	if d.silent.Load() {
		info.Capabilities = slices.DeleteFunc(slices.Clone(info.Capabilities), func(c driver.Capability) bool { return c == compute.CapEvents })
	}
	return info, err
}

func (d *guestDriver) List(ctx context.Context) ([]compute.Instance, error) {
	d.lists.Add(1)
	return d.Driver.List(ctx)
}

func (d *guestDriver) Get(ctx context.Context, id string) (compute.Instance, error) {
	if strings.HasPrefix(id, "hung") {
		<-ctx.Done()
		return compute.Instance{}, ctx.Err()
	}
	if d.gets.Add(-1) >= 0 {
		return compute.Instance{}, fault.New(fault.Unavailable, "the driver is away")
	}
	if f := d.beforeGet.Swap(nil); f != nil {
		(*f)()
	}
	is, err := d.Driver.Get(ctx, id)
	if f := d.afterGet.Swap(nil); f != nil {
		(*f)()
	}
	return is, err
}

func (d *guestDriver) PowerOff(ctx context.Context, id string, grace time.Duration) error {
	err := d.Driver.PowerOff(ctx, id, grace)
	if err == nil && d.meanwhile != nil {
		err = d.meanwhile(id)
	}
	return err
}

func (d *guestDriver) Events(ctx context.Context, f func(compute.Event) error) error {
	if d.silent.Load() {
		return fault.New(fault.Unimplemented, "no events")
	}
	if d.broken.Load() {
		return errors.Join(f(compute.Event{Type: compute.EventBegan}), fault.New(fault.Unavailable, "the stream ends"))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- d.Driver.Events(ctx, func(e compute.Event) error {
			defer func() {
				if e.Type == compute.EventBegan {
					d.streams.Add(1)
				}
			}()
			return f(e)
		})
	}()
	select {
	case err := <-ended:
		return err
	case <-d.lose:
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			return err
		}
		d.over.Add(1)
		return fault.New(fault.Unavailable, "the stream is lost")
	}
}

// newGuestBench returns a bench whose part that watches guests is not started.
func newGuestBench(t *testing.T, every time.Duration, calls rpc.ClientConfig) *guestBench {
	t.Helper()
	d, err := fake.New(fake.Config{Host: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	b := &guestBench{t: t, driver: &guestDriver{Driver: d, lose: make(chan struct{})}, reports: make(chan compute.PowerReport, 100), power: make(chan map[string]compute.PowerState, 1)}
	b.power <- map[string]compute.PowerState{}
	bus, quiet := rpctest.NewBus(t), slog.New(slog.DiscardHandler)
	client := rpc.NewClient(bus, calls)
	t.Cleanup(func() { client.Close() })
	b.svc = worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return b.driver }, Client: client, GuestInterval: every, Logger: quiet})
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: compute.Conductor, Logger: quiet})
	rpc.Handle(srv, compute.BeginStep, func(context.Context, *compute.StepRequest) (*rpc.None, error) { return &rpc.None{}, nil })
	rpc.Handle(srv, compute.EndStep, func(context.Context, *compute.EndStepRequest) (*rpc.None, error) { return &rpc.None{}, nil })
	rpc.Handle(srv, compute.ReportPower, b.answer)
	if err := srv.Start(rpctest.Partial(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Stop(context.WithoutCancel(t.Context())) })
	return b
}

// answer answers a report like a conductor. Every version is "v".
func (b *guestBench) answer(_ context.Context, r *compute.PowerReport) (*compute.PowerReply, error) {
	if b.failed.Add(-1) >= 0 {
		return nil, fault.New(fault.Unavailable, "the database is away")
	}
	power := <-b.power
	defer func() { b.power <- power }()
	defer func() { b.reports <- *r }()
	out := new(compute.PowerReply)
	for id, has := range power {
		at := slices.IndexFunc(r.Guests, func(g compute.GuestPower) bool { return g.ServerID == id })
		is := compute.GuestPower{ServerID: id}
		if at >= 0 {
			is = r.Guests[at]
		}
		switch {
		case at < 0 && !r.All, has == is.Power:
		case b.busy.Load():
			out.Later = append(out.Later, id)
		case is.Version == "":
			out.Differ = append(out.Differ, compute.GuestVersion{ServerID: id, Version: "v"})
		case b.stop != nil:
			b.stop(id)
		default:
			power[id] = is.Power
		}
	}
	return out, nil
}

// has returns the power state that the conductor has.
func (b *guestBench) has(id string) compute.PowerState {
	power := <-b.power
	defer func() { b.power <- power }()
	return power[id]
}

// put sets the power state that the conductor has.
func (b *guestBench) put(id string, is compute.PowerState) {
	power := <-b.power
	power[id] = is
	b.power <- power
}

// watch starts the part that watches guests, until the test ends.
func (b *guestBench) watch() {
	b.t.Helper()
	g := b.svc.Guests()
	if err := g.Start(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if err := g.Stop(context.Background()); err != nil {
			b.t.Error(err)
		}
	})
}

// build builds a server through the compute service.
func (b *guestBench) build(id string) {
	b.t.Helper()
	if _, err := b.svc.Build(b.t.Context(), &compute.BuildRequest{Spec: compute.Spec{ID: id}, Token: "op/" + id}); err != nil {
		b.t.Fatal(err)
	}
	b.put(id, compute.Running)
}

// dies turns off a guest without the compute service.
func (b *guestBench) dies(id string) {
	b.t.Helper()
	if err := b.driver.Driver.PowerOff(b.t.Context(), id, 0); err != nil {
		b.t.Fatal(err)
	}
}

// learns waits until the conductor has a power state.
func (b *guestBench) learns(id string, want compute.PowerState) {
	b.t.Helper()
	waittest.Until(b.t, "the power state "+want.String()+" of "+id, func() bool { return b.has(id) == want })
}

// wantNoReport checks that no guest was reported before another guest, whose death it causes and waits for.
func (b *guestBench) wantNoReport() {
	b.t.Helper()
	b.build("s2")
	b.dies("s2")
	b.learns("s2", compute.Shutdown)
	for len(b.reports) > 0 {
		for _, g := range (<-b.reports).Guests {
			if g.ServerID != "s2" {
				b.t.Errorf("an own change was reported: %+v", g)
			}
		}
	}
}
