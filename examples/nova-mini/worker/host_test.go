package worker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/worker"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
	"github.com/armature-go/armature/service/membership"
)

// TestLoseHost: a compute service claims its host before it works, and releases the host when it stops. If a conductor answers
// that another process owns the host, running handlers are canceled and new messages are requeued.
func TestLoseHost(t *testing.T) {
	t.Parallel()
	bus, quiet := rpctest.NewBus(t), slog.New(slog.DiscardHandler)
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	t.Cleanup(func() { client.Close() })
	var held atomic.Bool
	left := make(chan string, 1)
	refuse := func(what string) error {
		if held.Load() {
			return errors.Join(membership.ErrHeld, errors.New(what+" belongs to process 7"))
		}
		return nil
	}
	conductor := rpc.NewServer(bus, rpc.ServerConfig{Interface: compute.Conductor, Logger: quiet})
	rpc.Handle(conductor, compute.ClaimHost, func(_ context.Context, r *compute.ClaimHostRequest) (*rpc.None, error) {
		return &rpc.None{}, refuse("host " + r.Host)
	})
	rpc.Handle(conductor, compute.LeaveHost, func(_ context.Context, r *compute.LeaveHostRequest) (*rpc.None, error) {
		left <- r.Instance
		return &rpc.None{}, nil
	})
	rpc.Handle(conductor, compute.BeginStep, func(_ context.Context, r *compute.StepRequest) (*rpc.None, error) {
		if r.Instance == "" {
			return nil, fault.New(fault.Invalid, "no instance")
		}
		return &rpc.None{}, refuse(r.Host)
	})
	rpc.Handle(conductor, compute.ReportHost, func(_ context.Context, r *compute.HostReport) (*rpc.None, error) {
		return &rpc.None{}, refuse(r.Host + r.Instance)
	})
	if err := conductor.Start(rpctest.Partial(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conductor.Stop(context.WithoutCancel(t.Context())) }) // at the end
	started, ended := make(chan struct{}), make(chan error, 1)
	d := &fakeDriver{servers: map[string]bool{}}
	svc := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return d }, Client: client, Logger: quiet, Process: func() compute.Process { return compute.Process{ID: "i-1"} }})

	held.Store(true)
	err := svc.Start(t.Context())
	for _, want := range []string{"process 7", "member remove --force nova-compute h1", "service_down_time"} {
		if !errors.Is(err, membership.ErrHeld) || !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), want) {
			t.Errorf("start beside another process: %v, want ErrHeld with %q", err, want)
		}
	}
	select {
	case err := <-svc.Failed():
		t.Errorf("a waiting process fails: %v", err)
	default:
	}
	held.Store(false)
	if err := svc.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(svc.Stop(t.Context()), svc.Check(t.Context())); err != nil {
		t.Error(err)
	}
	if id := <-left; id != "i-1" {
		t.Errorf("the instance %q has released the host", id)
	}

	go func() {
		_, err := svc.Guard(t.Context(), rpc.Info{}, nil, func(ctx context.Context, _ any) (any, error) {
			close(started)
			<-ctx.Done()
			return nil, ctx.Err()
		})
		ended <- err
	}()
	<-started
	held.Store(true)
	if _, err := svc.Build(t.Context(), &build); !errors.Is(err, fault.Unavailable) {
		t.Errorf("a refused build: %v, want Unavailable, so that the message is requeued", err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the running handler has ended without an error")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the running handler was not canceled within 10 s")
	}
	if err := svc.Report(t.Context()); !errors.Is(err, membership.ErrHeld) {
		t.Errorf("the report: %v", err)
	}
	if err := <-svc.Failed(); !errors.Is(err, membership.ErrHeld) || !strings.Contains(err.Error(), "process 7") {
		t.Errorf("the service fails with %v", err)
	}
	if _, err := svc.Guard(t.Context(), rpc.Info{}, nil, func(context.Context, any) (any, error) { t.Error("a message is handled"); return nil, nil }); !errors.Is(err, fault.Unavailable) {
		t.Errorf("a later message: %v, want Unavailable", err)
	}
	if err := svc.Check(t.Context()); !errors.Is(err, fault.Unavailable) {
		t.Errorf("the service is ready: %v", err)
	}
	if err := svc.Stop(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("stop: %v, or the stop has released the host of another process", err)
	}
	if len(d.log) > 0 {
		t.Errorf("the driver was called: %v", d.log)
	}
}

// TestOlderConductor: while all conductors are of a release that does not know claims of hosts, a compute service does not start.
func TestOlderConductor(t *testing.T) {
	t.Parallel()
	bus, quiet := rpctest.NewBus(t), slog.New(slog.DiscardHandler)
	client := rpc.NewClient(bus, rpc.ClientConfig{})
	t.Cleanup(func() { client.Close() })
	older := &rpc.Interface{Name: compute.Conductor.Name, Version: rpc.Version{Major: 1, Minor: 1}}
	conductor := rpc.NewServer(bus, rpc.ServerConfig{Interface: older, Logger: quiet})
	if err := conductor.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conductor.Stop(context.WithoutCancel(t.Context())) }) // at the end
	svc := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return &fakeDriver{} }, Client: client, Logger: quiet, Process: func() compute.Process { return compute.Process{ID: "i-1"} }})
	if err := svc.Start(t.Context()); !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "upgrade the conductors first") {
		t.Errorf("start beside an older conductor: %v", err)
	}
}

// failingDriver is a driver whose Info and Resources fail with the errors in the fields info and resources, if they are set.
type failingDriver struct {
	*fakeDriver

	info, resources atomic.Pointer[error]
}

func (d *failingDriver) Info(ctx context.Context) (driver.Info, error) {
	if err := d.info.Load(); err != nil {
		return driver.Info{}, *err
	}
	return d.fakeDriver.Info(ctx)
}

func (d *failingDriver) Resources(ctx context.Context) (compute.Resources, error) {
	if err := d.resources.Load(); err != nil {
		return compute.Resources{}, *err
	}
	return d.fakeDriver.Resources(ctx)
}

// TestFailingDriver: a compute service whose driver does not report the resources of the host is not ready, and sends no
// heartbeat.
func TestFailingDriver(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	d := &failingDriver{fakeDriver: b.driver}
	svc := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return d }, Client: b.client, Logger: slog.New(slog.DiscardHandler)})
	for name, set := range map[string]*atomic.Pointer[error]{"info": &d.info, "resources": &d.resources} {
		bad := fault.New(fault.Internal, "%s is away", name)
		set.Store(&bad)
		for what, err := range map[string]error{"start": svc.Start(t.Context()), "report": svc.Report(t.Context()), "check": svc.Check(t.Context())} {
			if !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), name+" is away") {
				t.Errorf("%s: %s: %v, want Unavailable with the reason", name, what, err)
			}
		}
		if err := svc.Audit(t.Context()); err != nil || len(b.seen) > 0 {
			t.Errorf("%s: audit: %v, %d heartbeats", name, err, len(b.seen))
		}
		set.Store(nil)
		if err := errors.Join(svc.Report(t.Context()), svc.Check(t.Context())); err != nil {
			t.Errorf("%s: after the driver has answered: %v", name, err)
		}
		get(t, b.seen)
	}
}

// TestStopWhileWaiting: a process of an older release than the process before it waits until the RPC clients know its versions. Then it starts.
// If the process is stopped while it waits, it releases its host, because the claim has announced its versions.
func TestStopWhileWaiting(t *testing.T) {
	t.Parallel()
	for _, stopped := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			bus, quiet := rpctest.NewBus(t), slog.New(slog.DiscardHandler)
			client := rpc.NewClient(bus, rpc.ClientConfig{})
			defer client.Close()
			conductor := rpc.NewServer(bus, rpc.ServerConfig{Interface: compute.Conductor, Logger: quiet})
			claims, left := 0, make(chan string, 1)
			rpc.Handle(conductor, compute.ClaimHost, func(context.Context, *compute.ClaimHostRequest) (*rpc.None, error) {
				if claims++; stopped || claims < 5 {
					return nil, fmt.Errorf("claim host h1: %w, for 9s more", compute.ErrVersionsNotKnown)
				}
				return &rpc.None{}, nil
			})
			rpc.Handle(conductor, compute.LeaveHost, func(_ context.Context, r *compute.LeaveHostRequest) (*rpc.None, error) {
				left <- r.Instance
				return &rpc.None{}, nil
			})
			if err := conductor.Start(rpctest.Partial(t.Context())); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conductor.Stop(context.WithoutCancel(t.Context())) }() // at the end
			svc := worker.New(worker.Config{
				Host: "h1", Driver: func() compute.Driver { return &fakeDriver{servers: map[string]bool{}} }, Client: client, Logger: quiet,
				Process: func() compute.Process { return compute.Process{ID: "i-1"} },
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if stopped {
				time.AfterFunc(2500*time.Millisecond, cancel) // as SIGTERM does
			}
			err := svc.Start(ctx)
			if !stopped {
				if err != nil || claims != 5 {
					t.Errorf("start: %v after %d claims", err, claims)
				}
				return
			}
			if fault.CodeOf(err) != fault.Canceled || len(left) != 1 || <-left != "i-1" {
				t.Errorf("stop of a waiting process: %v, the host was released %d times", err, len(left))
			}
		})
	}
}
