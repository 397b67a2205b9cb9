package conductor_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
)

// softDelete soft-deletes a server.
func (b *bench) softDelete(id string) {
	b.Helper()
	if err := b.store.BeginSoftDelete(b.Context(), id); err != nil {
		b.Fatal(err)
	}
	r := b.awaitAct(id)
	if r.Action != compute.SoftDelete {
		b.Fatalf("the request is %+v", r)
	}
	if err := b.report("h1", r.Token, ""); err != nil {
		b.Fatal(err)
	}
	b.awaitNoTask(id)
	if s := b.server(id); s.VMState != compute.VMSoftDeleted || s.Host == nil || s.SoftDeletedAt == nil {
		b.Fatalf("a soft-deleted server: %+v", s)
	}
}

// wantUsage fails the test unless the project uses this number of servers.
func (b *bench) wantUsage(when string, want int64) {
	b.Helper()
	if used, err := b.store.Usage(b.Context(), "p"); err != nil || used[store.Instances] != want {
		b.Errorf("%s the project uses %d servers, %v; want %d", when, used[store.Instances], err, want)
	}
}

// TestSoftDelete: a soft-deleted server keeps its host, does not count in the quota, and is restored or deleted later.
func TestSoftDelete(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		b.store = store.NewLimited(b.db, store.Limits{store.Instances: 1})
		id := b.build()
		b.act(id, compute.Stop, store.ActData{}) // the deletion preempts this action
		b.softDelete(id)
		b.wantUsage("after the soft deletion", 0)
		if err := b.store.BeginSoftDelete(b.Context(), id); err != nil || b.server(id).Task() != "" {
			b.Errorf("the second soft deletion: %v, task %q", err, b.server(id).Task())
		}
		if changed, _, err := b.store.RepairQuotas(b.Context()); err != nil || changed != 0 {
			b.Errorf("repaired %d quotas, %v", changed, err)
		}
		other := b.build()
		if err := b.store.BeginAction(b.Context(), id, compute.Restore, store.ActData{}); fault.CodeOf(err) != fault.Denied || !strings.Contains(err.Error(), "Quota exceeded for instances") {
			b.Errorf("a restore beyond the quota: %v", err)
		}
		b.delete(other)
		for _, failed := range []string{"no power", ""} {
			r := b.act(id, compute.Restore, store.ActData{})
			b.wantUsage("while the server is restored", 1)
			if changed, _, err := b.store.RepairQuotas(b.Context()); err != nil || changed != 0 {
				b.Errorf("repaired %d quotas, %v", changed, err)
			}
			if err := b.report("h1", r.Token, failed); err != nil {
				b.Fatal(err)
			}
			want, used := store.Active, int64(1)
			if failed != "" {
				want, used = compute.VMSoftDeleted, 0
			}
			b.wantUsage("after a restore with the error "+failed, used)
			if s := b.server(id); s.VMState != want || s.FaultDetails != "no power" {
				b.Errorf("after a restore with the error %q: %s, %q", failed, s.VMState, s.FaultDetails)
			}
		}
		b.softDelete(id)
		if err := b.report("h1", b.act(id, compute.Restore, store.ActData{}).Token, "no power"); err != nil {
			b.Fatal(err)
		}
		b.wantUsage("after a restore that has failed", 0)
		if err := b.store.Operations().Retry(b.Context(), b.ended(id, compute.Restore)); err != nil {
			b.Fatal(err)
		}
		b.notify(id)
		r := b.awaitAct(id)
		b.wantUsage("while a restore is repeated", 1)
		if err := b.report("h1", r.Token, ""); err != nil {
			b.Fatal(err)
		}
		b.wantUsage("after a restore that was repeated", 1)
		b.softDelete(id)
		if err := b.store.ResetState(b.Context(), id, store.Active); err != nil {
			b.Fatal(err)
		}
		b.wantUsage("after a reset of the state", 1)
		b.delete(id)
		b.wantUsage("after the deletion", 0)
		b.wantNoClaims()
	})
}

// delete deletes a server at once.
func (b *bench) delete(id string) {
	b.Helper()
	if err := b.store.BeginDelete(b.Context(), id); err != nil {
		b.Fatal(err)
	}
	b.notify(id)
	b.awaitDestroy(id)
}

// awaitDestroy waits for the request to destroy a server, and reports that the server is destroyed.
func (b *bench) awaitDestroy(id string) {
	b.Helper()
	for {
		if r := get(b, b.destroys); r.ServerID == id && r.Token == b.token(id) { // not a request of an earlier deletion
			if err := b.report("h1", r.Token, ""); err != nil {
				b.Fatal(err)
			}
			return
		}
	}
}

// TestReclaim: several conductors delete a soft-deleted server only once, after the interval. A server that is restored, or is being restored, stays.
func TestReclaim(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		ids := []string{b.build(), b.build()}
		for _, id := range ids {
			b.softDelete(id)
		}
		reclaim := func(longer time.Duration) {
			b.Helper()
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					if err := b.svc.ReclaimDeleted(b.Context(), longer); err != nil {
						b.Error(err)
					}
				})
			}
			wg.Wait()
		}
		reclaim(time.Hour)
		r := b.act(ids[0], compute.Restore, store.ActData{})
		b.exec(`UPDATE servers SET soft_deleted_at = ?`, time.Now().UTC().Add(-2*time.Hour))
		reclaim(time.Hour)
		if err := b.report("h1", r.Token, ""); err != nil {
			b.Errorf("the restore was ended: %v", err)
		}
		reclaim(time.Hour)
		b.awaitDestroy(ids[1])
		if _, err := b.store.Server(b.Context(), ids[1]); fault.CodeOf(err) != fault.NotFound {
			b.Errorf("the reclaimed server: %v", err)
		}
		if s := b.server(ids[0]); s.VMState != store.Active || s.Task() != "" {
			b.Errorf("the restored server: %s, task %q", s.VMState, s.Task())
		}
		past, err := b.store.PastActions(b.Context(), ids[1], store.PastQuery{Limit: 100})
		if err != nil || len(past) != 0 { // an operation without a request is not an instance action
			b.Errorf("the actions of the reclaimed server: %+v, %v", past, err)
		}
	})
}

// TestNotRestorable: a server that could not be restored is deleted at once. A server whose resize is complete can be restored, with its new size.
func TestNotRestorable(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		building := b.addServer()
		if err := b.store.BeginSoftDelete(b.Context(), building); err != nil || b.server(building).Task() != store.Deleting {
			b.Errorf("a server that has never run: %v, task %q", err, b.server(building).Task())
		}
		b.start()
		b.notify(building)
		waittest.Until(b, "the end of the deletion", func() bool {
			_, err := b.store.Server(b.Context(), building)
			return fault.CodeOf(err) == fault.NotFound
		})
		id := b.build()
		size := store.ActData{Resize: store.SizeOf(&store.Flavor{ID: "2", VCPUs: 2, MemoryMiB: 2, DiskGiB: 2})}
		r := b.act(id, compute.Resize, size)
		if err := b.report("h1", r.Token, ""); err != nil {
			b.Fatal(err)
		}
		if err := b.store.BeginSoftDelete(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		if r = b.awaitAct(id); r.Resources.VCPUs != 2 {
			b.Errorf("the compute service is not told to confirm the resize: %+v", r)
		}
		if err := b.report("h1", r.Token, ""); err != nil {
			b.Fatal(err)
		}
		if s := b.server(id); s.VMState != compute.VMSoftDeleted || s.Resize.V != nil || s.VCPUs != 2 {
			b.Errorf("a soft-deleted server after a resize: %+v", s)
		}
		b.wantUsage("after the soft deletion of a resized server", 0)
		b.delete(id)
		b.wantNoClaims()
	})
}

// TestSoftDeletedResize: a soft deletion undoes a resize that is not complete or is being reverted, and confirms a complete resize. Then the server has the size in the request, and a restore
// keeps this size. If the soft deletion fails, the claim still covers both sizes, and after an incomplete resize the server is in ERROR.
func TestSoftDeletedResize(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		size := store.ActData{Resize: store.SizeOf(&store.Flavor{ID: "2", VCPUs: 2, MemoryMiB: 2, DiskGiB: 2})}
		resize := func(id string) { b.endWith(b.act(id, compute.Resize, size), "", false) }
		for name, tt := range map[string]struct {
			before func(id string)
			larger bool
		}{
			"resizing":   {func(id string) { b.act(id, compute.Resize, size) }, false},
			"resized":    {resize, true},
			"reverting":  {func(id string) { resize(id); b.act(id, compute.RevertResize, store.ActData{}) }, false},
			"confirming": {func(id string) { resize(id); b.act(id, compute.ConfirmResize, store.ActData{}) }, true},
		} {
			id := b.build()
			want, flavor := b.server(id).Need(), b.server(id).FlavorID
			if tt.larger {
				want, flavor = size.Resize.Has, "2"
			}
			tt.before(id)
			for _, failed := range []string{"no power", ""} {
				if err := b.store.BeginSoftDelete(b.Context(), id); err != nil || b.server(id).Task() != "soft-deleting" {
					b.Fatalf("%s: %v, task %q", name, err, b.server(id).Task())
				}
				b.notify(id)
				r := b.awaitAct(id)
				for r.Action != compute.SoftDelete { // the operation that was preempted
					r = b.awaitAct(id)
				}
				if r.Resources != want {
					b.Errorf("%s: the compute service gives the server %+v, want %+v", name, r.Resources, want)
				}
				b.endWith(r, failed, false)
				s := b.server(id)
				if failed != "" && (s.Holds() != size.Resize.Has || s.Resize.V == nil || s.VMState != store.Error) {
					b.Errorf("%s, after a failure: %s, holds %+v, resize %+v", name, s.VMState, s.Holds(), s.Resize.V)
				} else if failed == "" && (s.VMState != compute.VMSoftDeleted || s.Resize.V != nil || s.Need() != want || s.FlavorID != flavor) {
					b.Errorf("%s: %s with the size %+v, flavor %s, resize %+v", name, s.VMState, s.Need(), s.FlavorID, s.Resize.V)
				}
			}
			b.wantUsage(name, 0)
			b.endWith(b.act(id, compute.Restore, store.ActData{}), "", false)
			if used, err := b.store.Usage(b.Context(), "p"); err != nil || used[store.Cores] != int64(want.VCPUs) {
				b.Errorf("%s, restored: %v, %v; want %+v", name, used, err, want)
			}
			b.delete(id)
			b.wantNoClaims()
		}
	})
}

// TestDeletedAtOnce: DELETE deletes a server at once in two cases: the server is offloaded, even while an unshelve runs, or its host does not have
// the server. The image of a shelved server is removed only at the end. A soft deletion that fails for another reason keeps the server.
func TestDeletedAtOnce(t *testing.T) {
	t.Parallel()
	images := &fakeImages{log: map[string]string{}} // shared by the tests of all databases
	each(t, conductor.Config{Images: images}, func(b *bench) {
		b.start()
		gone := func(id string) {
			b.Helper()
			b.notify(id)
			b.awaitDestroy(id)
			if _, err := b.store.Server(b.Context(), id); fault.CodeOf(err) != fault.NotFound {
				b.Errorf("the server after the deletion: %v", err)
			}
		}
		softDelete := func(id, task string) {
			b.Helper()
			if err := b.store.BeginSoftDelete(b.Context(), id); err != nil || b.server(id).Task() != task {
				b.Fatalf("%v, task %q, want %q", err, b.server(id).Task(), task)
			}
			b.notify(id)
		}
		shelved := b.build()
		disk := "disk of " + shelved
		b.endWith(b.act(shelved, compute.Shelve, store.ActData{ImageRef: disk, Upload: true}), "", false)
		b.endWith(b.awaitAct(shelved), "", false) // the server is offloaded
		b.act(shelved, compute.Unshelve, store.ActData{})
		if s := b.server(shelved); s.VMState != compute.VMOffloaded || s.Host == nil {
			b.Fatalf("a server that is unshelved: %+v", s)
		}
		softDelete(shelved, store.Deleting)
		b.awaitPolls()
		if images.did(disk) != "" {
			b.Error("the image was removed before the server")
		}
		gone(shelved)
		waittest.Until(b, "the removal of the image", func() bool { b.expire(); return images.did(disk) == "false" })

		missing := b.build()
		softDelete(missing, "soft-deleting")
		b.endWith(b.awaitAct(missing), "no power", false)
		if s := b.server(missing); s.VMState != store.Active || s.Task() != "" {
			b.Errorf("after a soft deletion that has failed: %s %s", s.VMState, s.Task())
		}
		softDelete(missing, "soft-deleting")
		r := b.awaitAct(missing)
		if _, err := b.svc.EndStep(b.Context(), &compute.EndStepRequest{StepRequest: step("h1", r.Token), Error: "no such server", Missing: true}); err != nil {
			b.Fatal(err)
		}
		gone(missing)
		b.wantNoClaims()
		b.wantUsage("in the end", 0)
	})
}

// TestSoftDeleteAfterResetState: a soft deletion keeps the size of a resize that is done, also after an administrator has reset the state, because the guest has
// written with this size.
func TestSoftDeleteAfterResetState(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.build()
		r := b.act(id, compute.Resize, store.ActData{Resize: store.SizeOf(&store.Flavor{ID: "2", VCPUs: 2, MemoryMiB: 2, DiskGiB: 2})})
		if err := b.report("h1", r.Token, ""); err != nil {
			b.Fatal(err)
		}
		if err := b.store.ResetState(b.Context(), id, store.Active); err != nil {
			b.Fatal(err)
		}
		b.softDelete(id)
		if srv := b.server(id); srv.FlavorID != "2" || srv.VCPUs != 2 {
			b.Errorf("the size after the soft deletion: flavor %s, %d vCPUs", srv.FlavorID, srv.VCPUs)
		}
	})
}

// TestSoftDeleteDuringRestore: a deletion while a server is restored is not lost.
func TestSoftDeleteDuringRestore(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.build()
		b.softDelete(id)
		restore := b.act(id, compute.Restore, store.ActData{})
		b.softDelete(id)
		b.wantUsage("after the second soft deletion", 0)
		if err := b.report("h1", restore.Token, ""); err == nil {
			b.Error("the report of the preempted restore counts")
		}
		if srv := b.server(id); srv.VMState != compute.VMSoftDeleted {
			b.Errorf("the state is %s", srv.VMState)
		}
	})
}
