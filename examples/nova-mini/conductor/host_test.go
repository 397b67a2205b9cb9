package conductor_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/membership"
)

// TestHostOfOneProcess: requests and reports of a process that does not own its host are refused and have no effect; the
// error names the owner. The report of the owner ends the step.
func TestHostOfOneProcess(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{DownAfter: time.Minute}, func(b *bench) {
		b.start()
		ctx := b.Context()
		must := func(_ *rpc.None, err error) {
			b.Helper()
			if err != nil {
				b.Error(err)
			}
		}
		claim := func(host, id string) *compute.ClaimHostRequest {
			return &compute.ClaimHostRequest{Host: host, Instance: compute.Process{ID: id, Process: "process of " + id}}
		}
		// h1 has reported as a compute service of an earlier release does: it has no instance, and may still run.
		if _, err := b.svc.ClaimHost(ctx, claim("h1", "i-1")); !errors.Is(err, membership.ErrHeld) {
			b.Errorf("claim of a host that reports: %v", err)
		}
		must(b.svc.LeaveHost(ctx, &compute.LeaveHostRequest{Host: "h1"}))
		must(b.svc.ClaimHost(ctx, claim("h1", "i-1")))

		id := b.addServer()
		b.notify(id)
		r := get(b, b.builds)
		for _, other := range []string{"i-2", ""} {
			at := compute.StepRequest{Token: r.Token, Host: "h1", Instance: other}
			report := compute.HostReport{Host: "h1", Driver: "stolen", Instance: other, Resources: compute.Resources{VCPUs: 999, MemoryMiB: 1, DiskGiB: 1}}
			for what, do := range map[string]func() error{
				"claim_host": func() error {
					if other == "" {
						return membership.ErrHeld // the claim without an id is tested below
					}
					_, err := b.svc.ClaimHost(ctx, claim("h1", other))
					return err
				},
				"begin_step":  func() error { _, err := b.svc.BeginStep(ctx, &at); return err },
				"end_step":    func() error { _, err := b.svc.EndStep(ctx, &compute.EndStepRequest{StepRequest: at}); return err },
				"report_host": func() error { _, err := b.svc.ReportHost(ctx, &report); return err },
				"strangers": func() error {
					_, err := b.svc.Orphans(ctx, &compute.OrphansRequest{Host: "h1", Servers: []string{"x"}, Instance: other})
					return err
				},
			} {
				err := do()
				if !errors.Is(err, membership.ErrHeld) || what != "claim_host" && !strings.Contains(err.Error(), "process of i-1") {
					b.Errorf("%s of the instance %q: %v, want ErrHeld that names the process", what, other, err)
				}
			}
			must(b.svc.LeaveHost(ctx, &compute.LeaveHostRequest{Host: "h1", Instance: other}))
		}
		if _, err := b.svc.ClaimHost(ctx, claim("h1", "")); !errors.Is(err, fault.Invalid) {
			b.Errorf("claim without an id: %v", err)
		}
		if srv, err := b.store.Server(ctx, id); err != nil || srv.TaskState == nil {
			b.Errorf("the server is %+v, %v; the report of another process has ended its build", srv, err)
		}
		hosts, err := b.store.Hosts(ctx, time.Minute)
		if err != nil || len(hosts) != 1 || hosts[0].Driver != "d" || !hosts[0].Service.Up || hosts[0].Inventories[compute.VCPU].Total != 2 {
			b.Errorf("the report of another process has changed the host: %+v, %v", hosts[0], err)
		}
		at := compute.StepRequest{Token: r.Token, Host: "h1", Instance: "i-1"}
		must(b.svc.BeginStep(ctx, &at))
		must(b.svc.EndStep(ctx, &compute.EndStepRequest{StepRequest: at}))
		must(b.svc.EndStep(ctx, &compute.EndStepRequest{StepRequest: at})) // the report is repeated, because its reply was lost
	})
}

// TestRemovedHost: after an operator has removed a host, the next report of its compute service claims the host again for the
// same process. A later start on the same machine gets the host at once. Another process is refused, and the error names the
// owner.
func TestRemovedHost(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{DownAfter: time.Minute}, func(b *bench) {
		b.start()
		ctx := b.Context()
		first := compute.Process{ID: "i-1", Lock: "machine/1", Start: 1, Process: "process of i-1"}
		if _, err := b.svc.ClaimHost(ctx, &compute.ClaimHostRequest{Host: "h9", Instance: first}); err != nil {
			b.Fatal(err)
		}
		members := b.store.Members(time.Minute)
		if err := errors.Join(members.ForceDown(ctx, "nova-compute", "h9", true), members.Remove(ctx, "nova-compute", "h9")); err != nil {
			b.Fatal(err)
		}
		report := compute.HostReport{Host: "h9", Driver: "d", Instance: "i-1", Claim: &first, Resources: compute.Resources{VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}}
		if _, err := b.svc.ReportHost(ctx, &report); err != nil {
			b.Fatal(err)
		}
		other := compute.Process{ID: "i-2", Process: "another"}
		if _, err := b.svc.ClaimHost(ctx, &compute.ClaimHostRequest{Host: "h9", Instance: other}); !errors.Is(err, membership.ErrHeld) || !strings.Contains(err.Error(), "process of i-1") {
			b.Errorf("another process: %v", err)
		}
		next := compute.Process{ID: "i-3", Lock: "machine/1", Start: 2, Process: "its next start"}
		if _, err := b.svc.ClaimHost(ctx, &compute.ClaimHostRequest{Host: "h9", Instance: next}); err != nil {
			b.Errorf("the next start of the same machine: %v", err)
		}
	})
}
