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
		b.act(id, compute.Stop, store.ActData{}) // the deletion preempts it
		b.softDelete(id)
		b.wantUsage("after the soft deletion", 0)
		if err := b.store.BeginSoftDelete(b.Context(), id); err != nil || b.server(id).Task() != "" {
			b.Errorf("the second soft deletion: %v, task %q", err, b.server(id).Task())
		}
		if changed, err := b.store.RepairQuotas(b.Context()); err != nil || changed != 0 {
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
			if changed, err := b.store.RepairQuotas(b.Context()); err != nil || changed != 0 {
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

// awaitDestroy waits for the request to destroy a server, and reports that it is destroyed.
func (b *bench) awaitDestroy(id string) {
	b.Helper()
	for {
		if r := get(b, b.destroys); r.ServerID == id {
			if err := b.report("h1", r.Token, ""); err != nil {
				b.Fatal(err)
			}
			return
		}
	}
}

// TestReclaim: several conductors delete a soft-deleted server once, after its time. One that is restored, or is being restored, stays.
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
		if err != nil || len(past) != 0 { // the test has no requests
			b.Errorf("the actions of the reclaimed server: %+v, %v", past, err)
		}
	})
}

// TestNotRestorable: a server that could not be restored is deleted at once. A server whose resize is done can be restored, with its new size.
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

// TestDeletedAtOnce: DELETE deletes a server at once if it is offloaded, also while it is unshelved, if a resize runs, whose size is not known, or if its host does not have
// it. The image of a shelved server is removed only at the end. A soft deletion that fails for another reason keeps the server.
func TestDeletedAtOnce(t *testing.T) {
	t.Parallel()
	images := &fakeImages{log: map[string]string{}} // of all databases
	each(t, conductor.Config{Images: images}, func(b *bench) {
		b.start()
		gone := func(id string) {
			b.Helper()
			b.notify(id)
			b.awaitDestroy(id)
			if _, err := b.store.Server(b.Context(), id); fault.CodeOf(err) != fault.NotFound {
				b.Errorf("after its deletion: %v", err)
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
		b.endWith(b.awaitAct(shelved), "", false) // it is offloaded
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

		size := store.ActData{Resize: store.SizeOf(&store.Flavor{ID: "2", VCPUs: 2, MemoryMiB: 2, DiskGiB: 2})}
		resizing := b.build()
		b.act(resizing, compute.Resize, size)
		softDelete(resizing, store.Deleting)
		gone(resizing)
		reverting := b.build()
		b.endWith(b.act(reverting, compute.Resize, size), "", false)
		b.act(reverting, compute.RevertResize, store.ActData{})
		softDelete(reverting, store.Deleting)
		gone(reverting)
		confirming := b.build()
		b.endWith(b.act(confirming, compute.Resize, size), "", false)
		b.act(confirming, compute.ConfirmResize, store.ActData{})
		b.softDelete(confirming)
		b.delete(confirming)

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
