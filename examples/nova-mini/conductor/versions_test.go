package conductor_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
)

// TestVersionsOfHosts: a compute service sends its versions with its claim and with each report, because a conductor of an earlier release may
// have handled the claim. A compute service of an earlier release reports no versions, and counts with the versions of that release.
func TestVersionsOfHosts(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{DownAfter: time.Minute}, func(b *bench) {
		ctx := b.Context()
		newer := map[string][]string{"compute": {"1.9"}}
		claim := func(host string, interfaces map[string][]string) {
			b.Helper()
			if _, err := b.svc.ClaimHost(ctx, &compute.ClaimHostRequest{Host: host, Instance: compute.Process{ID: "i-" + host, Process: "process of " + host}, Interfaces: interfaces}); err != nil {
				b.Fatal(err)
			}
		}
		is := func(what string, host string, want map[string][]string, most rpc.Version) {
			b.Helper()
			m, err := b.store.Members(time.Minute).Get(ctx, store.ComputeBinary, host)
			if diff := cmp.Diff(want, m.Interfaces); err != nil || diff != "" || m.Instance.Process != "process of "+host {
				b.Errorf("%s: %v, of %q (-want +got):\n%s", what, err, m.Instance.Process, diff)
			}
			waittest.Pass(b, 1100*time.Millisecond, "the conductor caches its answer for a second")
			caps, err := rpc.Call(ctx, b.cfg.Client, compute.VersionCaps, rpc.Any, &rpc.None{})
			if err != nil || cmp.Diff([]rpc.Version{most}, (*caps)["compute"]) != "" {
				b.Errorf("%s: the caps are %v, %v; want %s", what, caps, err, most)
			}
		}
		if _, err := b.db.ExecContext(ctx, `UPDATE members SET forced_down = TRUE`); err != nil { // h1 and h2 of the test
			b.Fatal(err)
		}
		claim("h8", newer)
		is("a claim", "h8", newer, rpc.Version{Major: 1, Minor: 9})
		claim("h9", nil)
		is("a claim of an earlier release", "h9", nil, compute.Unreported["compute"][0])
		claim("h9", newer)
		is("after its upgrade", "h9", newer, rpc.Version{Major: 1, Minor: 9})
		// A conductor of the previous release handles the claim of the next process. It does not know the column with the versions.
		if _, err := b.db.ExecContext(ctx, `UPDATE members SET joined_at = UTC_TIMESTAMP(6) WHERE host = 'h9'`); err != nil {
			b.Fatal(err)
		}
		is("a claim by a conductor of the previous release", "h9", nil, compute.Unreported["compute"][0])
		report := &compute.HostReport{
			Host: "h9", Driver: "d", Resources: compute.Resources{VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}, Instance: "i-h9",
			Claim: &compute.Process{ID: "i-h9", Process: "process of h9"}, Interfaces: newer,
		}
		for range 2 {
			if _, err := b.svc.ReportHost(ctx, report); err != nil {
				b.Fatal(err)
			}
		}
		is("a report to an upgraded conductor", "h9", newer, rpc.Version{Major: 1, Minor: 9})
	})
}

// TestVersionsRefused: a compute service must report only versions of its own interface, and at least one that clients can use. Any other
// report is refused and changes nothing, because it would block or lower an interface for all clients.
func TestVersionsRefused(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{DownAfter: time.Minute}, func(b *bench) {
		ctx := b.Context()
		before, err := b.store.VersionCaps().Read(ctx, nil)
		if err != nil {
			b.Fatal(err)
		}
		for says, interfaces := range map[string]map[string][]string{
			`"conductor"`: {"compute": {"1.4"}, "conductor": {"1.0"}},
			`"scheduler"`: {"scheduler": {"9.0"}},
			"0.5":         {"compute": {"0.5"}},
			"+1.+4":       {"compute": {"+1.+4", ""}},
			"[]":          {"compute": {}},
			"99.0":        {"compute": {"99.0"}}, // no process of this release can send it
			"100.1":       {"compute": {"0.9", "100.1"}},
		} {
			process := compute.Process{ID: "i-1", Process: "p"}
			_, claimErr := b.svc.ClaimHost(ctx, &compute.ClaimHostRequest{Host: "h7", Instance: process, Interfaces: interfaces})
			_, reportErr := b.svc.ReportHost(ctx, &compute.HostReport{
				Host: "h7", Driver: "d", Resources: compute.Resources{VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}, Instance: "i-1", Claim: &process, Interfaces: interfaces,
			})
			for what, err := range map[string]error{"claim host h7": claimErr, "report of host h7": reportErr} {
				if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), says) {
					b.Errorf("%s with %v: %v, want Invalid", what, interfaces, err)
				}
			}
		}
		if _, err := b.store.Members(time.Minute).Get(ctx, store.ComputeBinary, "h7"); fault.CodeOf(err) != fault.NotFound {
			b.Errorf("the host of the refused claims: %v, want NotFound", err)
		}
		after, err := b.store.VersionCaps().Read(ctx, nil)
		if diff := cmp.Diff(before, after); err != nil || diff != "" {
			b.Errorf("the caps: %v (-before +after):\n%s", err, diff)
		}
	})
}

// TestVersionsNotKnown: if the release of a process is older than that of another process, its claim is refused, but announces the versions of the process.
// When the process leaves the host, its versions no longer count.
func TestVersionsNotKnown(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{DownAfter: time.Minute}, func(b *bench) {
		ctx := b.Context()
		if _, err := b.db.ExecContext(ctx, `UPDATE members SET forced_down = TRUE`); err != nil { // h1 and h2 of the test
			b.Fatal(err)
		}
		claim := func(host, id, version string) error {
			_, err := b.svc.ClaimHost(ctx, &compute.ClaimHostRequest{Host: host, Instance: compute.Process{ID: id, Process: id}, Interfaces: map[string][]string{"compute": {version}}})
			return err
		}
		caps := func(what string, want rpc.Version) {
			b.Helper()
			got, err := b.store.VersionCaps().Read(ctx, nil)
			if diff := cmp.Diff([]rpc.Version{want}, got["compute"]); err != nil || diff != "" {
				b.Errorf("%s: %v (-want +got):\n%s", what, err, diff)
			}
		}
		for _, host := range []string{"h8", "h9"} {
			if err := claim(host, "new-"+host, "1.9"); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := b.svc.LeaveHost(ctx, &compute.LeaveHostRequest{Host: "h9", Instance: "new-h9"}); err != nil {
			b.Fatal(err)
		}
		newest, older := rpc.Version{Major: 1, Minor: 9}, rpc.Version{Major: 1, Minor: 4}
		for _, host := range []string{"h9", "h10"} { // a host whose process has left, and a new host
			for range 2 {
				if err := claim(host, "old-"+host, "1.4"); !errors.Is(err, compute.ErrVersionsNotKnown) || fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "claim host "+host) {
					b.Errorf("%s: %v, want ErrVersionsNotKnown", host, err)
				}
				caps("announced by "+host, older)
			}
			for _, id := range []string{"another", "old-" + host} {
				if _, err := b.svc.LeaveHost(ctx, &compute.LeaveHostRequest{Host: host, Instance: id}); err != nil {
					b.Fatal(err)
				}
				caps(host+" left by "+id, map[bool]rpc.Version{true: older, false: newest}[id == "another"])
			}
		}
	})
}
