package worker_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
)

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
