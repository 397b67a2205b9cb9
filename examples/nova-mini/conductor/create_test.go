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

// TestLostMessages: although the notification and the message to the compute service are lost, and the report is sent twice, the server
// is built once.
func TestLostMessages(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.addServer() // the conductor is not notified
		first := get(b, b.builds)
		b.awaitWait(id)
		b.awaitPolls()
		if len(b.builds) != 0 {
			b.Error("the request was repeated before the delay had passed")
		}
		b.expire() // the delay has passed without a report
		if second := get(b, b.builds); second.Token != first.Token || second.Spec.ID != id {
			b.Errorf("the first request is %+v and the second %+v, want the same attempt", first, second)
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
		id := b.addServer()
		b.exec(`UPDATE operations SET owner = 'dead', fence = fence + 1, due_at = ?`, time.Now().UTC().Add(time.Hour))
		if err := b.store.Claims().Claim(b.Context(), placement.Claim{Consumer: id, Allocations: []placement.Allocation{
			{Provider: "h1", Resources: placement.Resources{compute.VCPU: 1, compute.MemoryMB: 1, compute.DiskGB: 1}},
		}}); err != nil {
			b.Fatal(err)
		}
		b.addHost("h2") // the better host, because it is empty
		b.start()
		b.notify(id)
		b.awaitPolls()
		if len(b.builds) != 0 {
			b.Error("an operation that another conductor has leased was continued")
		}
		b.expire()
		get(b, b.builds)
		if s := b.server(id); *s.Host != "h1" {
			b.Errorf("host %s, want h1, which was claimed", *s.Host)
		}
	})
}

// TestNextHost: after a failed build, the scheduler chooses another host. After the last host, the server gets a fault with the tried
// hosts and the last error.
func TestNextHost(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{MaxAttempts: 2}, func(b *bench) {
		b.addHost("h2")
		b.start()
		id := b.addServer()
		b.notify(id)
		for range 2 {
			r, host := b.awaitBuild(id)
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
		b.awaitNoTask(id)
		s := b.server(id)
		if s.VMState != store.Error || !strings.Contains(s.FaultDetails, "retries") || !strings.Contains(s.FaultDetails, "disk on fire") || !strings.Contains(s.FaultDetails, "tried [h1 h2]") && !strings.Contains(s.FaultDetails, "tried [h2 h1]") ||
			s.FaultMessage != "Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures for instance "+id+"." {
			b.Errorf("server %s, fault %q; want an error after two hosts", s.VMState, s.FaultDetails)
		}
		b.wantNoClaims()
		o := b.operation(id)
		if events(o) != "schedule:done build:back schedule:done build:back schedule:failed" || o.State != operation.Failed || o.Error != s.FaultDetails || !strings.Contains(o.Events[1].Error, "disk on fire") {
			b.Errorf("operation %+v", o)
		}

		// An operator retries the operation.
		if err := b.store.Operations().Retry(b.Context(), o.ID); err != nil {
			b.Fatal(err)
		}
		r, host := b.awaitBuild(id)
		if err := b.report(host, r.Token, "disk on fire"); err != nil { // after the retry, the number of attempts begins at zero
			b.Errorf("report: %v", err)
		}
		r, host = b.awaitBuild(id)
		if err := b.report(host, r.Token, ""); err != nil {
			b.Errorf("report: %v", err)
		}
		if s := b.server(id); s.VMState != store.Active || s.FaultDetails != "" || b.operation(id).State != operation.Succeeded {
			b.Errorf("after the retry the server is %s, fault %q", s.VMState, s.FaultDetails)
		}
		if err := b.store.Operations().Retry(b.Context(), o.ID); !errors.Is(err, fault.Precondition) {
			b.Errorf("retry of an operation that has succeeded: %v", err)
		}
	})
}

// TestResetWhileBuilding: an administrator sets the state of a server that is being created. As in Nova, active does not end the creation: the server becomes what
// the creation leaves. The state error ends it.
func TestResetWhileBuilding(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{MaxAttempts: 1}, func(b *bench) {
		b.start()
		for _, tt := range []struct{ state, failed, ends string }{
			{store.Active, "", store.Active}, {store.Active, "disk on fire", store.Error}, {store.Error, "", store.Error},
		} {
			id := b.addServer()
			b.notify(id)
			r, host := b.awaitBuild(id)
			if err := b.store.ResetState(b.Context(), id, tt.state); err != nil {
				b.Fatal(err)
			}
			if s := b.server(id); s.VMState != tt.state || (s.Task() == store.Spawning) != (tt.state == store.Active) {
				b.Errorf("%+v: after the reset the server is %s with the task %q", tt, s.VMState, s.Task())
			}
			if err := b.report(host, r.Token, tt.failed); err != nil && (tt.state == store.Active || !errors.Is(err, compute.ErrStale)) {
				b.Errorf("%+v: report: %v", tt, err)
			}
			b.awaitNoTask(id)
			if s := b.server(id); s.VMState != tt.ends || (s.LaunchedAt != nil) != (tt.ends == store.Active) || (s.FaultAt != nil) != (tt.failed != "") {
				b.Errorf("%+v: the server is %s, launched %v, fault %q", tt, s.VMState, s.LaunchedAt, s.FaultDetails)
			}
		}
	})
}

// TestNoRoom: if no host has room, the details of the fault have the rejection reasons, with the number of hosts for each.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.addHost("h2")
		if err := b.store.SetDisabled(b.Context(), store.ComputeBinary, "h2", true, "broken fan"); err != nil {
			b.Fatal(err)
		}
		b.start()
		for range 2 {
			id := b.addServer()
			b.notify(id)
			b.awaitBuild(id) // now the server has a host
		}
		id := b.addServer()
		b.notify(id)
		b.awaitNoTask(id)
		if s := b.server(id); s.VMState != store.Error || s.FaultCode != 500 || s.FaultDetails != "No valid host was found. 0 of 2 hosts: 1 VCPU (too few VCPUs are free), 1 disabled (an operator has disabled the compute service)" ||
			s.FaultMessage != "No valid host was found. There are not enough hosts available." {
			b.Errorf("server %s, fault %d %q: %q", s.VMState, s.FaultCode, s.FaultMessage, s.FaultDetails)
		}
	})
}

// TestTimeouts: a server whose host does not report in time is in ERROR and on no host.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{BuildTimeout: time.Minute}, func(b *bench) {
		b.start()
		id := b.addServer()
		b.notify(id)
		r := get(b, b.builds)
		b.awaitWait(id)
		b.expireStep(id)
		if s := b.server(id); s.VMState != store.Error || s.FaultDetails != "host h1: step build not done within 1m0s" || s.Host != nil || s.FaultMessage != "Build of instance "+id+" aborted." {
			b.Errorf("server %s, fault %q, host %v; want an error that names the host, and no host, so that h1 destroys the server", s.VMState, s.FaultDetails, s.Host)
		}
		b.wantNoClaims()
		if err := b.report("h1", r.Token, ""); !errors.Is(err, compute.ErrStale) {
			b.Errorf("a report after the end: %v, want ErrStale", err)
		}
		if err := b.store.BeginDelete(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.notify(id)
		waittest.Until(b, "the deletion of a server without a host", func() bool {
			_, err := b.store.Server(b.Context(), id)
			return errors.Is(err, fault.NotFound)
		})
	})
}

// TestNoHostUp: while no host is up, the creation of a server waits, because the free resources of the hosts are not known. The wait ends
// with the build timeout.
func TestNoHostUp(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{BuildTimeout: time.Minute}, func(b *bench) {
		b.setDown("h1")
		b.start()
		id, late := b.addServer(), b.addServer()
		for _, id := range []string{id, late} {
			b.notify(id)
			if o := b.awaitWait(id); events(o)[:len("schedule:retry")] != "schedule:retry" || o.Events[0].ErrorCode != "Unavailable" {
				b.Errorf("operation %+v, want one that is retried", o)
			}
			if s := b.server(id); s.Task() != store.Scheduling {
				b.Errorf("server %s, task %q; want a server that waits for a host", s.VMState, s.Task())
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

// TestManyConductors: if many conductors are notified of one server, they make only one build attempt together.
func TestManyConductors(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		id := b.addServer()
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
						b.Errorf("notify: %v", err)
					}
				})
			}
		}
		wg.Wait()
		r := get(b, b.builds)
		b.awaitWait(id)
		b.awaitPolls()
		// If a conductor is notified while it runs the step, it runs the step once more, and repeats the request of the same attempt.
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
