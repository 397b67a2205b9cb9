package conductor_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
)

// TestInterruptedResize: a resize, its confirmation or its revert may time out, fail on the host, or be ended by a reset of the state or by a failed deletion. Then the claim covers both sizes, because the size on the host is not
// known. The next action that stops or removes the server tells the compute service which size the server gets. After this action the database has this size, and the claim and the
// quota cover nothing else.
func TestInterruptedResize(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{ShelvedOffload: -1}, func(b *bench) {
		b.start()
		large := store.ActData{Resize: store.SizeOf(&store.Flavor{ID: "2", VCPUs: 2, MemoryMiB: 2, DiskGiB: 2})}
		wantCores := func(when string, want int) {
			b.Helper()
			if used, err := b.store.Usage(b.Context(), "p"); err != nil || used[store.Cores] != int64(want) {
				b.Errorf("%s the project uses %d cores, %v; want %d", when, used[store.Cores], err, want)
			}
			if found, err := b.store.Audit(b.Context(), false, 0); err != nil || len(found) > 0 {
				b.Errorf("%s the audit finds %+v, %v", when, found, err)
			}
		}
		resize := func(id string) { b.endWith(b.act(id, compute.Resize, large), "", false) }
		expire := func(id string) { b.awaitPeer(id); b.expireStep(id) }
		reset := func(id string) {
			b.Helper()
			if err := b.store.ResetState(b.Context(), id, store.Active); err != nil {
				b.Fatal(err)
			}
		}
		settling := []compute.Action{compute.HardReboot, compute.Stop, compute.Rebuild, compute.Shelve}
		if testing.Short() {
			settling = settling[:1]
		}
		for name, tt := range map[string]struct {
			interrupt func(id string)
			vcpus     int
		}{
			"timed out":               {func(id string) { b.act(id, compute.Resize, large); expire(id) }, 1},
			"reset":                   {func(id string) { b.act(id, compute.Resize, large); reset(id) }, 1},
			"revert timed out":        {func(id string) { resize(id); b.act(id, compute.RevertResize, store.ActData{}); expire(id) }, 1},
			"reset during the revert": {func(id string) { resize(id); b.act(id, compute.RevertResize, store.ActData{}); reset(id) }, 1},
			"reset before confirmed":  {func(id string) { resize(id); reset(id) }, 2},
			"confirmation timed out":  {func(id string) { resize(id); b.act(id, compute.ConfirmResize, store.ActData{}); expire(id) }, 2},
			"confirmation failed": {func(id string) {
				resize(id)
				b.endWith(b.act(id, compute.ConfirmResize, store.ActData{}), "no answer", false)
			}, 2},
			"revert failed": {func(id string) {
				resize(id)
				b.endWith(b.act(id, compute.RevertResize, store.ActData{}), "no answer", false)
			}, 1},
			"soft deletion failed": {func(id string) {
				resize(id)
				if err := b.store.BeginSoftDelete(b.Context(), id); err != nil {
					b.Fatal(err)
				}
				b.endWith(b.awaitAct(id), "no answer", false)
			}, 2},
			"deletion canceled": {func(id string) {
				b.act(id, compute.Resize, large)
				if err := b.store.BeginDelete(b.Context(), id); err != nil {
					b.Fatal(err)
				}
				if err := b.store.Operations().Cancel(b.Context(), b.operation(id).ID, "keep it"); err != nil {
					b.Fatal(err)
				}
				b.notify(id)
				b.awaitNoTask(id)
			}, 1},
		} {
			for _, a := range settling {
				when := name + ", " + string(a) + ":"
				id := b.build()
				tt.interrupt(id)
				wantCores(when+" before", 2)
				if s := b.server(id); s.VMState != store.Error && !strings.HasPrefix(name, "reset") {
					b.Errorf("%s before: %s, want ERROR, because the size is not known", when, s.VMState)
				}
				reset(id)
				if err := b.store.BeginAction(b.Context(), id, compute.Resize, store.ActData{Resize: store.SizeOf(&store.Flavor{ID: "3", VCPUs: 2, MemoryMiB: 1, DiskGiB: 2})}); fault.CodeOf(err) != fault.Conflict || !strings.Contains(err.Error(), "hard reboot") {
					b.Errorf("%s another resize: %v", when, err)
				}
				data := store.ActData{}
				if a == compute.Rebuild {
					data.Rebuild = func(*store.Server) {}
				}
				for _, failed := range []string{"no power", ""} {
					r := b.act(id, a, data)
					if r.Resources.VCPUs != tt.vcpus || !r.Settle || r.Spec != nil && r.Spec.Resources.VCPUs != tt.vcpus {
						b.Errorf("%s the compute service gives the server %+v, spec %+v; want %d vCPUs", when, r.Resources, r.Spec, tt.vcpus)
					}
					b.endWith(r, failed, false)
					if failed != "" {
						wantCores(when+" after a failure", 2)
						reset(id)
					}
				}
				b.awaitNoTask(id)
				flavor := map[int]string{1: "", 2: "2"}[tt.vcpus]
				if s := b.server(id); s.Resize.V != nil || s.VCPUs != tt.vcpus || s.FlavorID != flavor {
					b.Errorf("%s the server has %d vCPUs, flavor %q, resize %+v; want %d vCPUs, flavor %q", when, s.VCPUs, s.FlavorID, s.Resize.V, tt.vcpus, flavor)
				}
				wantCores(when+" after", tt.vcpus)
				b.delete(id)
			}
		}
		b.wantNoClaims()
	})
}

// TestRetryInterruptedResize: an operator can retry a resize, its confirmation or its revert that was interrupted, while the server is in ERROR because of it. Then the action is done and ends as
// usual.
func TestRetryInterruptedResize(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		large := store.ActData{Resize: store.SizeOf(&store.Flavor{ID: "2", VCPUs: 2, MemoryMiB: 2, DiskGiB: 2})}
		for _, tt := range []struct {
			action compute.Action
			data   store.ActData
			fail   func(id string, r compute.ActRequest)
			state  string
			vcpus  int
		}{
			{compute.Resize, large, func(id string, _ compute.ActRequest) { b.awaitPeer(id); b.expireStep(id) }, store.Resized, 2},
			{compute.RevertResize, store.ActData{}, func(id string, _ compute.ActRequest) { b.awaitPeer(id); b.expireStep(id) }, store.Active, 1},
			{compute.ConfirmResize, store.ActData{}, func(_ string, r compute.ActRequest) { b.endWith(r, "no answer", false) }, store.Active, 2},
		} {
			id := b.build()
			if tt.action != compute.Resize {
				b.endWith(b.act(id, compute.Resize, large), "", false)
			}
			r := b.act(id, tt.action, tt.data)
			op := b.operation(id).ID
			tt.fail(id, r)
			if s := b.server(id); s.VMState != store.Error {
				b.Fatalf("%s, interrupted: %s", tt.action, s.VMState)
			}
			for _, failed := range []bool{true, false} {
				if err := b.store.Operations().Retry(b.Context(), op); err != nil {
					b.Fatal(err)
				}
				b.notify(id)
				waittest.Until(b, "a retry that waits for a report, or is refused", func() bool { return b.server(id).TaskState == nil || b.operation(id).WaitsFor != "" })
				if b.server(id).TaskState == nil {
					b.Fatalf("%s, retried: %s", tt.action, b.server(id).FaultDetails)
				}
				if r = b.awaitAct(id); r.Action != tt.action || r.Resources.VCPUs != 2 || !r.Running {
					b.Errorf("%s, retried: %+v", tt.action, r)
				}
				if !failed {
					b.endWith(r, "", false)
				} else if b.expireStep(id); b.server(id).VMState != store.Error || b.server(id).Holds().VCPUs != 2 {
					b.Errorf("%s, interrupted again: %+v", tt.action, b.server(id))
				}
			}
			if s := b.server(id); s.VMState != tt.state || s.VCPUs != tt.vcpus || (s.Resize.V != nil) != (tt.state == store.Resized) {
				b.Errorf("%s, retried: %s, %d vCPUs, resize %+v", tt.action, s.VMState, s.VCPUs, s.Resize.V)
			}
			if found, err := b.store.Audit(b.Context(), false, 0); err != nil || len(found) > 0 {
				b.Errorf("%s, retried: the audit finds %+v, %v", tt.action, found, err)
			}
			b.delete(id)
		}
		b.wantNoClaims()
	})
}

// TestRefusedRetry: a retry of an action that the server's state does not allow any more fails, and leaves the server as it is. Nothing has reached the host.
func TestRefusedRetry(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		size := func(flavor string) store.ActData {
			return store.ActData{Resize: store.SizeOf(&store.Flavor{ID: flavor, VCPUs: 2, MemoryMiB: 2, DiskGiB: 2})}
		}
		expire := func(id string) { b.awaitPeer(id); b.expireStep(id) }
		reset := func(id string) {
			b.Helper()
			if err := b.store.ResetState(b.Context(), id, store.Active); err != nil {
				b.Fatal(err)
			}
		}
		for name, tt := range map[string]struct {
			action compute.Action
			before func(id string) // begins the action last, or the action before the next one
			after  func(id string)
			state  string
			says   string
		}{
			"a resize after a reset": {
				compute.Resize, func(id string) { b.act(id, compute.Resize, size("2")) }, func(id string) { expire(id); reset(id) }, store.Active, "A hard reboot gives",
			},
			"a revert after a reset": {
				compute.RevertResize, func(id string) {
					b.endWith(b.act(id, compute.Resize, size("2")), "", false)
					b.act(id, compute.RevertResize, store.ActData{})
				}, func(id string) { expire(id); reset(id) }, store.Active, "vm_state active",
			},
			"a resize after another one": {
				compute.Resize, func(id string) { b.act(id, compute.Resize, size("2")) }, func(id string) {
					if err := b.report("h1", b.token(id), "no room"); err != nil {
						b.Error(err)
					}
					b.endWith(b.act(id, compute.Resize, size("3")), "", false)
				}, store.Resized, "vm_state resized",
			},
			"a rescue": {
				compute.Rescue, func(id string) { b.act(id, compute.Rescue, store.ActData{}) }, func(id string) {
					if err := b.report("h1", b.token(id), "no image"); err != nil {
						b.Error(err)
					}
					b.endWith(b.act(id, compute.HardReboot, store.ActData{}), "", false)
					b.endWith(b.act(id, compute.Pause, store.ActData{}), "", false)
				}, compute.VMPaused, "vm_state paused",
			},
		} {
			id := b.build()
			tt.before(id)
			op := b.operation(id).ID
			tt.after(id)
			before := b.server(id)
			if before.VMState != tt.state {
				b.Fatalf("%s: the server is %s before the retry", name, before.VMState)
			}
			if err := b.store.Operations().Retry(b.Context(), op); err != nil {
				b.Fatal(err)
			}
			b.notify(id)
			b.awaitNoTask(id)
			s := b.server(id)
			if diff := cmp.Diff(before.Resize, s.Resize); s.VMState != tt.state || diff != "" || s.FlavorID != before.FlavorID || !strings.Contains(s.FaultDetails, tt.says) {
				b.Errorf("%s: %s with the flavor %s, fault %q, resize (-before +after):\n%s", name, s.VMState, s.FlavorID, s.FaultDetails, diff)
			}
			b.delete(id)
		}
		b.wantNoClaims()
	})
}
