package conductor_test

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/operation"
)

// TestLostMessages: the notification is lost, then the message to the compute service, then the report is sent twice. The
// server is built once.
func TestLostMessages(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.add() // the conductor is not notified
		first := get(b, b.builds)
		b.waits(id)
		b.polls()
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
		b.polls()
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
		waittest.Until(b, "a server without a host that is deleted", func() bool {
			_, err := b.store.Server(b.Context(), id)
			return errors.Is(err, fault.NotFound)
		})
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
					if _, err := other.Notify(b.Context(), &compute.NotifyRequest{ServerID: id}); err != nil {
						b.Errorf("wake: %v", err)
					}
				})
			}
		}
		wg.Wait()
		r := get(b, b.builds)
		b.waits(id)
		b.polls()
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
