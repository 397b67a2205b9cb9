package worker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
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

// TestGuestDies: the conductor learns of a guest that stops by itself: by an event, after a stream of events was lost, and at the start of the compute service.
func TestGuestDies(t *testing.T) {
	t.Parallel()
	b := newGuestBench(t, time.Hour, rpc.ClientConfig{})
	b.build("before")
	b.dies("before")
	b.watch()
	b.learns("before", compute.Shutdown)

	b.build("event")
	waittest.Until(t, "a stream of events", func() bool { return b.driver.streams.Load() > 0 })
	b.failed.Store(2) // the report is repeated
	b.driver.gets.Store(1)
	b.dies("event")
	b.learns("event", compute.Shutdown)

	b.build("lost")
	b.driver.silent.Store(true)
	b.driver.lose <- struct{}{}
	waittest.Until(t, "the end of the stream", func() bool { return b.driver.over.Load() > 0 })
	b.dies("lost")
	b.driver.silent.Store(false)
	b.learns("lost", compute.Shutdown)
	if n := b.driver.streams.Load(); n < 2 {
		t.Errorf("%d streams of events, want a second one", n)
	}
}

// TestGuestWithoutEvents: with a driver without events, the periodic comparison finds guests that stop by themselves, and those that the host has lost.
func TestGuestWithoutEvents(t *testing.T) {
	t.Parallel()
	b := newGuestBench(t, 50*time.Millisecond, rpc.ClientConfig{})
	b.driver.silent.Store(true)
	b.build("s1")
	b.build("s2")
	b.watch()
	waittest.Until(t, "a comparison", func() bool { return len(b.reports) > 0 })
	b.dies("s1")
	if err := b.driver.Destroy(t.Context(), "s2"); err != nil {
		t.Fatal(err)
	}
	b.learns("s1", compute.Shutdown)
	b.learns("s2", compute.NoState)
}

// TestGuestsNever: with a negative interval, all guests are never compared, and events still count.
func TestGuestsNever(t *testing.T) {
	t.Parallel()
	b := newGuestBench(t, -1, rpc.ClientConfig{})
	b.build("old")
	b.dies("old")
	b.watch()
	waittest.Until(t, "a stream of events", func() bool { return b.driver.streams.Load() > 0 })
	b.build("s1")
	b.dies("s1")
	b.learns("s1", compute.Shutdown)
	if b.has("old") != compute.Running {
		t.Error("all guests were compared")
	}
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

// TestOwnChanges: changes that the compute service itself makes need no reports. A change from outside during an action is reported after the action.
func TestOwnChanges(t *testing.T) {
	t.Parallel()
	b := newGuestBench(t, -1, rpc.ClientConfig{})
	b.watch()
	waittest.Until(t, "a stream of events", func() bool { return b.driver.streams.Load() > 0 })
	act := func(a compute.Action) {
		t.Helper()
		r := &compute.ActRequest{ServerID: "s1", Action: a, Token: "op/" + string(a), Running: true, Spec: &compute.Spec{ID: "s1"}, Resources: compute.Resources{VCPUs: 1}}
		if _, err := b.svc.Act(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if is, ok := r.PowerAfter(); ok {
			b.put("s1", is)
		}
		got, err := b.driver.Driver.Get(t.Context(), "s1")
		if err != nil || got.Power != b.has("s1") {
			t.Errorf("after %s the guest is %v, %v; PowerAfter says %v", a, got.Power, err, b.has("s1"))
		}
	}
	b.build("s1")
	for _, a := range []compute.Action{
		compute.Stop, compute.Start, compute.Pause, compute.Unpause, compute.Suspend, compute.Resume, compute.SoftReboot, compute.HardReboot, compute.Rescue, compute.Unrescue, compute.Rebuild,
		compute.Resize, compute.ConfirmResize, compute.SoftDelete, compute.Restore,
	} {
		act(a)
	}
	b.wantNoReport()
	b.driver.meanwhile = func(id string) error { return b.driver.PowerOn(t.Context(), id) }
	if _, err := b.svc.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: compute.Stop, Token: "op/1"}); err != nil {
		t.Fatal(err)
	}
	b.put("s1", compute.Shutdown)
	b.learns("s1", compute.Running)
}

// TestOwnChangeWhileRead: a change that the compute service makes while it reads the guest because of an older event needs no report.
func TestOwnChangeWhileRead(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"the read has the old state", "the read has the new state"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newGuestBench(t, -1, rpc.ClientConfig{})
			b.build("s1")
			b.watch()
			waittest.Until(t, "a stream of events", func() bool { return b.driver.streams.Load() > 0 })
			stop := func() {
				if _, err := b.svc.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: compute.Stop, Token: "op/1"}); err != nil {
					t.Error(err)
				}
				b.put("s1", compute.Shutdown)
			}
			read, stopped := make(chan struct{}), make(chan struct{})
			if name == "the read has the old state" {
				b.driver.afterGet.Store(new(func() {
					stop()
					close(stopped)
				}))
			} else {
				off := make(chan struct{})
				b.driver.meanwhile = func(string) error {
					close(off)
					<-read
					return nil
				}
				b.driver.beforeGet.Store(new(func() {
					go func() {
						stop()
						close(stopped)
					}()
					<-off
				}))
				b.driver.afterGet.Store(new(func() { close(read) }))
			}
			if err := b.driver.Reboot(t.Context(), "s1", false); err != nil { // an event without another state
				t.Fatal(err)
			}
			get(t, stopped)
			b.wantNoReport()
		})
	}
}

// TestGuestOfBusyServer: a change of a guest whose server has a task is reported again until the task has ended.
func TestGuestOfBusyServer(t *testing.T) {
	t.Parallel()
	b := newGuestBench(t, time.Hour, rpc.ClientConfig{})
	b.watch()
	waittest.Until(t, "a stream of events", func() bool { return b.driver.streams.Load() > 0 })
	b.build("s1")
	b.busy.Store(true)
	b.dies("s1")
	for range 2 {
		if r := get(t, b.reports); len(r.Guests) > 0 && r.Guests[0].Version != "" {
			t.Errorf("the server has a task, and the report was %+v", r)
		}
	}
	b.busy.Store(false)
	b.learns("s1", compute.Shutdown)
}

// TestGuestRunsOn: a guest that runs on after each stop is stopped again with growing delays, and not in a loop.
func TestGuestRunsOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newGuestBench(t, time.Hour, rpc.ClientConfig{})
		b.build("s1")
		b.put("s1", compute.Shutdown)
		stops := make(chan string, 1000)
		b.stop = func(id string) { stops <- id }
		b.driver.meanwhile = func(id string) error { return b.driver.PowerOn(t.Context(), id) }
		go func() {
			for n := 0; ; n++ {
				select {
				case id := <-stops:
					if _, err := b.svc.Act(t.Context(), &compute.ActRequest{ServerID: id, Action: compute.Stop, Token: fmt.Sprint("op/", n)}); err != nil {
						t.Error(err)
					}
				case <-t.Context().Done():
					return
				}
			}
		}()
		b.watch()
		time.Sleep(time.Minute) //nolint:forbidigo // in a synctest bubble
		n := 0
		for len(b.reports) > 0 {
			if r := <-b.reports; len(r.Guests) > 0 && r.Guests[0].Version != "" {
				n++
			}
		}
		if n < 4 || n > 10 {
			t.Errorf("the server was stopped %d times in a minute, want about 7", n)
		}
	})
}

// TestBrokenStream: a stream of events that ends at once, again and again, does not make the compute service compare all guests in a loop.
func TestBrokenStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newGuestBench(t, time.Hour, rpc.ClientConfig{})
		b.driver.broken.Store(true)
		b.watch()
		time.Sleep(time.Minute) //nolint:forbidigo // in a synctest bubble
		if n := b.driver.lists.Load(); n < 4 || n > 15 {
			t.Errorf("all guests were listed %d times in a minute, want about 10", n)
		}
	})
}

// TestHungGuests: guests of which the driver does not tell the state do not delay the others one after another.
func TestHungGuests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newGuestBench(t, time.Hour, rpc.ClientConfig{})
		b.watch()
		synctest.Wait()
		all := []string{"hung1", "hung2", "hung3", "hung4", "s1", "s2"}
		for _, id := range all {
			b.build(id)
		}
		began := time.Now()
		for _, id := range all {
			b.dies(id)
		}
		b.learns("s1", compute.Shutdown)
		b.learns("s2", compute.Shutdown)
		if took := time.Since(began); took > 25*time.Second { // two comparisons, each with one timeout of the driver
			t.Errorf("the conductor learnt of the other guests after %v", took)
		}
	})
}

// TestOldConductors: nothing is sent to conductors of the previous release. After their upgrade all guests are compared.
func TestOldConductors(t *testing.T) {
	t.Parallel()
	var minor atomic.Int32
	minor.Store(3)
	b := newGuestBench(t, time.Hour, rpc.ClientConfig{CapsEvery: 50 * time.Millisecond, AutoCaps: func(context.Context, *rpc.Client) (rpc.Versions, error) {
		return rpc.Versions{compute.Conductor.Name: {{Major: 1, Minor: int(minor.Load())}}}, nil
	}})
	b.build("s1")
	b.watch()
	waittest.Until(t, "a stream of events", func() bool { return b.driver.streams.Load() > 0 })
	b.dies("s1")
	waittest.Pass(t, time.Second, "reports would be sent")
	if len(b.reports) > 0 {
		t.Errorf("a report was sent: %+v", <-b.reports)
	}
	minor.Store(5)
	b.learns("s1", compute.Shutdown)
}

// TestGuestsStop: the part ends while a report is repeated, and the compute service of a host that is lost reports nothing.
func TestGuestsStop(t *testing.T) {
	t.Parallel()
	b := newGuestBench(t, time.Hour, rpc.ClientConfig{})
	b.failed.Store(1 << 20)
	b.build("s1")
	g := b.svc.Guests()
	if err := errors.Join(g.Start(t.Context()), g.Stop(t.Context())); err != nil {
		t.Error(err)
	}
}
