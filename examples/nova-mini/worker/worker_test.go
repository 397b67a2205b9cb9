package worker_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/drivers/fake"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/worker"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
)

// TestBuild: the report has the token of the step.
func TestBuild(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.cast(t)
	want := compute.EndStepRequest{StepRequest: compute.StepRequest{Token: "op/3", Host: "h1"}}
	if got := get(t, b.ended); got != want {
		t.Errorf("reported %+v, want %+v", got, want)
	}
}

// TestOtherRelease: most conductors refuse a report, because a conductor of another release has begun the operation. The compute service repeats the
// report until a conductor accepts it, without a redelivery of the message.
func TestOtherRelease(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.other = 9
	b.cast(t)
	get(t, b.ended)
	if did := b.driver.did(); len(did) != 1 {
		t.Errorf("the driver did %v", did)
	}
}

// TestImagePath: a client cannot name a file of the host as its image.
func TestImagePath(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for i, ref := range []string{"/srv/backup/db.img", "../x", `a\b`} {
		req := compute.BuildRequest{Spec: compute.Spec{ID: "s" + strconv.Itoa(i), ImageRef: ref}, Token: "op/" + strconv.Itoa(i)}
		if err := rpc.Cast(t.Context(), b.client, compute.Build, "h1", &req); err != nil {
			t.Fatal(err)
		}
		if got := get(t, b.ended); !strings.Contains(got.Error, "is not the name of an image: it is a path") {
			t.Errorf("%s: %q", ref, got.Error)
		}
	}
	if did := b.driver.did(); slices.ContainsFunc(did, func(s string) bool { return strings.HasPrefix(s, "spawn") }) {
		t.Errorf("the driver did %v", did)
	}
}

// TestGuestData: only a driver with the capability for guest data builds a server with user data or a config drive. Another driver would
// ignore these data.
func TestGuestData(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for i, tt := range []struct {
		spec  compute.Spec
		caps  []driver.Capability
		wants string
	}{
		{compute.Spec{UserData: "QQ=="}, nil, "server s has user data, a key pair or a config drive, and the driver d does not have the capability guest-data"},
		{compute.Spec{ConfigDrive: true}, nil, "does not have the capability guest-data"},
		{compute.Spec{PublicKey: "ssh-rsa A"}, nil, "does not have the capability guest-data"},
		{compute.Spec{AdminPass: "x", Hostname: "h"}, nil, ""},
		{compute.Spec{SwapMiB: 1}, []driver.Capability{compute.CapGuestData}, "server s has an ephemeral or a swap disk, and the driver d does not have the capability extra-disks"},
		{compute.Spec{EphemeralGiB: 1, SwapMiB: 1}, []driver.Capability{compute.CapExtraDisks}, ""},
		{compute.Spec{UserData: "QQ==", ConfigDrive: true}, []driver.Capability{compute.CapGuestData}, ""},
	} {
		b.driver.caps = tt.caps
		tt.spec.ID = "s"
		if err := rpc.Cast(t.Context(), b.client, compute.Build, "h1", &compute.BuildRequest{Spec: tt.spec, Token: "t" + strconv.Itoa(i)}); err != nil {
			t.Fatal(err)
		}
		if end := get(t, b.ended); !strings.Contains(end.Error, tt.wants) || (end.Error == "") != (tt.wants == "") {
			t.Errorf("%+v with %v: %q; want %q", tt.spec, tt.caps, end.Error, tt.wants)
		}
	}
}

// TestFailedBuild: the remains of a failed build are removed before the failure is reported.
func TestFailedBuild(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.driver.spawn = func() error { return errors.New("disk on fire") }
	b.cast(t)
	if got := get(t, b.ended); got.Error != "disk on fire" {
		t.Errorf("reported %+v", got)
	}
	if did := b.driver.did(); !slices.Equal(did, []string{"spawn s1", "destroy s1"}) {
		t.Errorf("the driver did %q", did)
	}
}

// TestUncleanBuild: while the remains of a failed build cannot be removed, the compute service does not report the failure, because
// another host must not get the server yet. The message is redelivered.
func TestUncleanBuild(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.driver.spawn = func() error { return errors.New("disk on fire") }
	tries := 0
	b.driver.destroy = func() error {
		if tries++; tries < 3 {
			return errors.New("busy")
		}
		return nil
	}
	b.cast(t)
	get(t, b.ended)
	if tries != 3 {
		t.Errorf("reported after %d attempts to clean up, want 3", tries)
	}
}

// TestStaleBuild: a server is not built if the step is no longer wanted.
func TestStaleBuild(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.begin = compute.ErrStale
	if _, err := b.svc.Build(t.Context(), &build); err != nil {
		t.Errorf("build: %v, want nil, so that the message is not redelivered", err)
	}
	if did := b.driver.did(); len(did) != 0 {
		t.Errorf("the driver did %q", did)
	}
}

// TestReportFails: if the report fails, the message is redelivered until the result is reported. The compute service does not repeat the
// build by itself.
func TestReportFails(t *testing.T) {
	t.Parallel()
	for _, code := range []fault.Code{fault.Unavailable, fault.NotFound, fault.Internal} {
		b := newBench(t)
		b.set(func() { b.end = fault.New(code, "no") })
		b.cast(t)
		get(t, b.ended)
		b.set(func() { b.end = nil })
		get(t, b.ended)
	}
}

// TestStaleReport: a build may no longer be wanted when it ends. The server then stays only if the database places the server on this host, because
// another build attempt is on this host.
func TestStaleReport(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.end = compute.ErrStale
	for mine, want := range map[bool]string{true: "spawn s1", false: "spawn s1 destroy s1"} {
		b.set(func() { b.mine["s1"] = mine })
		b.driver.log = nil
		if _, err := b.svc.Build(t.Context(), &build); err != nil {
			t.Errorf("build: %v", err)
		}
		if did := strings.Join(b.driver.did(), " "); did != want {
			t.Errorf("placed here %t: the driver did %q, want %q", mine, did, want)
		}
	}
}

// TestLateRestore: when the driver has started the server, the restore may no longer be wanted, for example because the operation has timed out. The server is then stopped,
// because it is still soft-deleted.
func TestLateRestore(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.end = compute.ErrStale
	if _, err := b.svc.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: compute.Restore, Token: "t"}); err != nil {
		t.Error(err)
	}
	if did := strings.Join(b.driver.did(), " "); did != "on s1 off s1" {
		t.Errorf("the driver did %q", did)
	}
}

// TestNoToken: a request of an earlier release is dropped, because a conductor of this release repeats it with a token.
func TestNoToken(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, err := b.svc.Build(t.Context(), &compute.BuildRequest{Spec: compute.Spec{ID: "s1"}, Generation: 3})
	_, err2 := b.svc.Destroy(t.Context(), &compute.DestroyRequest{ServerID: "s1", Generation: 3})
	_, err3 := b.svc.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: compute.Stop, Generation: 3})
	if err := errors.Join(err, err2, err3); err != nil || len(b.driver.did()) > 0 {
		t.Errorf("%v; the driver did %q", err, b.driver.did())
	}
}

// TestOneAtATime: while a server is being built, a second message to build it is dropped, and a deletion waits.
func TestOneAtATime(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	entered, gate := make(chan struct{}), make(chan struct{})
	b.driver.spawn = func() error {
		close(entered)
		<-gate
		return nil
	}
	b.cast(t)
	get(t, entered)
	if _, err := b.svc.Build(t.Context(), &build); err != nil {
		t.Errorf("second build: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.svc.Destroy(short, &compute.DestroyRequest{ServerID: "s1", Token: "op/0"}); !errors.Is(err, fault.Unavailable) {
		t.Errorf("destroy during the build: %v, want Unavailable, so that the message is redelivered", err)
	}
	if err := rpc.Cast(t.Context(), b.client, compute.Destroy, "h1", &compute.DestroyRequest{ServerID: "s1", Token: "op/0"}); err != nil {
		t.Fatal(err)
	}
	close(gate)
	get(t, b.ended)
	if got := get(t, b.ended); got.Token != "op/0" || got.Host != "h1" {
		t.Errorf("reported %+v", got)
	}
	if did := b.driver.did(); !slices.Equal(did, []string{"spawn s1", "destroy s1"}) {
		t.Errorf("the driver did %q", did)
	}
}

// TestDestroyNotWanted: a message to destroy a server has no effect if the conductor answers that the deletion on this host is not
// wanted. Such a message may be old, or come from another service.
func TestDestroyNotWanted(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.driver.servers = map[string]bool{"s1": true}
	b.mu.Lock()
	b.begin = compute.ErrStale
	b.mu.Unlock()
	if _, err := b.svc.Destroy(t.Context(), &compute.DestroyRequest{ServerID: "s1", Token: "op/3"}); err != nil {
		t.Error(err)
	}
	if did := b.driver.did(); len(did) > 0 {
		t.Errorf("the driver did %q", did)
	}
	b.mu.Lock()
	b.begin = nil
	b.mu.Unlock()
	if _, err := b.svc.Destroy(t.Context(), &compute.DestroyRequest{ServerID: "s1", Token: "op/4"}); err != nil {
		t.Error(err)
	}
	if got := get(t, b.ended); got.Token != "op/4" {
		t.Errorf("reported %+v", got)
	}
}

// TestAudit: only orphans are destroyed.
func TestAudit(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if err := b.svc.Audit(t.Context()); err != nil {
		t.Errorf("audit without servers: %v", err)
	}
	b.driver.servers = map[string]bool{"mine": true, "ghost": true}
	b.mine = map[string]bool{"mine": true}
	if err := b.svc.Audit(t.Context()); err != nil {
		t.Errorf("audit: %v", err)
	}
	if did := b.driver.did(); !slices.Equal(did, []string{"destroy ghost"}) {
		t.Errorf("the driver did %q", did)
	}
}

// TestReport: a compute service reports the driver, its capabilities, the resources of the host, and the versions that it serves.
func TestReport(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if err := b.svc.Report(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := compute.HostReport{
		Host: "h1", Driver: "d", DriverVersion: "7", Resources: compute.Resources{VCPUs: 1}, Capabilities: []driver.Capability{},
		Interfaces: map[string][]string{compute.Worker.Name: {compute.Worker.Version.String()}}, // the versions that the RPC server serves
	}
	if diff := cmp.Diff(want, get(t, b.seen)); diff != "" {
		t.Errorf("reported (-want +got):\n%s", diff)
	}
	d, err := fake.New(fake.Config{Host: "h2", Arch: "aarch64"})
	if err != nil {
		t.Fatal(err)
	}
	other := worker.New(worker.Config{Host: "h2", Zone: "z", Driver: func() compute.Driver { return d }, Client: b.client, Logger: slog.New(slog.DiscardHandler)})
	if err := other.Report(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := get(t, b.seen); got.Zone != "z" || !slices.Equal(got.Platforms, []compute.Platform{{Arch: "aarch64", Type: "fake", Mode: "hvm"}}) {
		t.Errorf("%+v", got)
	}
}

// TestResize: after a failed resize the server has its old size, and runs if it ran before. A completed resize is not
// repeated. If a resize can be neither done nor undone, nothing is reported, and the message is redelivered.
func TestResize(t *testing.T) {
	b := newBench(t)
	small, large := compute.Resources{VCPUs: 1, MemoryMiB: 64, DiskGiB: 1}, compute.Resources{VCPUs: 2, MemoryMiB: 128, DiskGiB: 2}
	for _, tt := range []struct {
		name   string
		faults map[string]string
		stop   bool // whether the server is stopped before the action
		action compute.Action
		says   string // a part of the reported error
		again  bool   // whether the message is redelivered
		want   compute.Resources
		boots  int // the number of starts of the guest
	}{
		{name: "done", action: compute.Resize, want: large, boots: 2},
		{name: "resize of a stopped server", stop: true, action: compute.Resize, want: large, boots: 1},
		{name: "no room", faults: map[string]string{"resize": "fail exhausted"}, action: compute.Resize, says: "resize is configured to fail", want: small, boots: 2},
		{name: "does not start", faults: map[string]string{"power_on": "fail internal 1"}, action: compute.Resize, says: "power_on is configured to fail", want: small, boots: 2},
		{name: "done, but the answer of the driver was lost", faults: map[string]string{"resize": "fail unknown after 1"}, action: compute.Resize, want: large, boots: 2},
		{name: "cannot be reverted", faults: map[string]string{"power_on": "fail internal 1", "revert_resize": "fail internal"}, action: compute.Resize, again: true, want: large, boots: 1},
		{name: "nothing to revert", action: compute.RevertResize, want: small, boots: 1},
		{name: "unknown", action: "explode", says: "does not know the action", want: small, boots: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := fake.New(fake.Config{Host: "h1", Faults: tt.faults})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			svc := worker.New(worker.Config{Host: "h1", Driver: func() compute.Driver { return d }, Client: b.client, Logger: slog.New(slog.DiscardHandler)})
			if err := d.Spawn(t.Context(), compute.Spec{ID: "s1", Resources: small}); err != nil {
				t.Fatal(err)
			}
			if tt.stop {
				if err := d.PowerOff(t.Context(), "s1", 0); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // as if the message was delivered twice
				_, err = svc.Act(t.Context(), &compute.ActRequest{ServerID: "s1", Action: tt.action, Token: "op/5", Resources: large, Running: !tt.stop})
				if tt.again {
					if fault.CodeOf(err) != fault.Unavailable {
						t.Fatalf("%v, want Unavailable", err)
					}
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if got := get(t, b.ended); got.Token != "op/5" || tt.says == "" && got.Error != "" || !strings.Contains(got.Error, tt.says) {
					t.Errorf("reported %+v, want %q", got, tt.says)
				}
				if tt.says != "" {
					break
				}
			}
			is, err := d.Get(t.Context(), "s1")
			power := compute.Running
			if tt.stop || tt.again {
				power = compute.Shutdown
			}
			if err != nil || is.Resources != tt.want || is.Power != power {
				t.Errorf("the server is %v with %+v, %v; want %v with %+v", is.Power, is.Resources, err, power, tt.want)
			}
			info, err := d.Diagnostics(t.Context(), "s1")
			if err != nil || info["boots"] != strconv.Itoa(tt.boots) {
				t.Errorf("the server was started %s times, %v; want %d", info["boots"], err, tt.boots)
			}
		})
	}
}
