package conductor_test

import (
	"slices"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// TestBackups: without an image service, the driver keeps the newest backups of a server and a type, as many as the rotation says, and removes the
// older ones. With rotation 0 it also removes the new backup. If a removal fails, the next createBackup repeats it. Backups of other types, and on
// other hosts, stay.
func TestBackups(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		b.addHost("h2")
		id := b.build()
		backup := func(image, kind string, keep int, failed string, removes ...string) {
			b.Helper()
			r := b.act(id, compute.CreateBackup, store.ActData{ImageRef: image, Backup: &store.Backup{Type: kind, Keep: keep, ProjectID: "p", ByDriver: true}})
			if r.ImageRef != image || r.Rotation != nil {
				b.Errorf("the request for %s: %+v", image, r)
			}
			if err := b.report("h1", r.Token, ""); err != nil {
				b.Fatal(err)
			}
			if len(removes) > 0 {
				r = b.awaitAct(id)
				if r.ImageRef != "" || r.Rotation == nil || !slices.Equal(r.Rotation.Images, removes) {
					b.Errorf("after %s the driver removes %+v, want %v", image, r.Rotation, removes)
				}
				if err := b.report("h1", r.Token, failed); err != nil {
					b.Fatal(err)
				}
			}
			b.awaitNoTask(id)
			if s := b.server(id); s.VMState != store.Active || s.FaultDetails != failed {
				b.Errorf("after %s: %s, %q", image, s.VMState, s.FaultDetails)
			}
			b.awaitPolls() // so that the next backup is newer
		}
		backup("d1", "daily", 2, "")
		backup("w1", "weekly", 1, "")
		backup("D1", "Daily", 1, "")
		backup("d2", "daily", 2, "")
		backup("d3", "daily", 2, "disk full", "d1")
		if err := b.store.Operations().Retry(b.Context(), b.ended(id, compute.CreateBackup)); err != nil { // both the driver and the database have the image d3
			b.Fatal(err)
		}
		b.notify(id)
		if r := b.awaitAct(id); r.ImageRef != "d3" {
			b.Errorf("the request after a retry: %+v", r)
		} else if err := b.report("h1", r.Token, ""); err != nil {
			b.Fatal(err)
		}
		if r := b.awaitAct(id); r.Rotation == nil {
			b.Errorf("the rotation after a retry: %+v", r)
		} else if err := b.report("h1", r.Token, "disk full"); err != nil {
			b.Fatal(err)
		}
		b.awaitNoTask(id)
		b.exec(`UPDATE backups SET host = 'h2' WHERE image_id = 'd2'`)
		b.exec(`UPDATE servers SET fault_message = ''`)
		backup("d4", "daily", 1, "", "d1", "d3")
		backup("d5", "daily", 0, "", "d4", "d5")
		if err := b.report("h1", b.act(id, compute.CreateBackup, store.ActData{ImageRef: "d6", Backup: &store.Backup{Type: "daily", ByDriver: true}}).Token, "no room"); err != nil {
			b.Fatal(err)
		}
		b.awaitNoTask(id)
		left := func() (out []string) {
			b.Helper()
			if err := b.db.SelectContext(b.Context(), &out, `SELECT image_id FROM backups`); err != nil {
				b.Fatal(err)
			}
			slices.Sort(out)
			return out
		}
		if got := left(); !slices.Equal(got, []string{"D1", "d2", "w1"}) {
			b.Errorf("the backups %v are left", got)
		}
		if err := b.store.BeginDelete(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.notify(id)
		if err := b.report("h1", get(b, b.destroys).Token, ""); err != nil {
			b.Fatal(err)
		}
		if got := left(); len(got) != 0 {
			b.Errorf("after the deletion of the server %v are left", got)
		}
	})
}

// TestBackupsOfImageService: with an image service, the compute service gets the rotation, the type and the project, by which it finds the backups.
func TestBackupsOfImageService(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.build()
		r := b.act(id, compute.CreateBackup, store.ActData{ImageRef: "i", Backup: &store.Backup{Type: "daily", Keep: 3, ProjectID: "p"}})
		if err := b.report("h1", r.Token, ""); err != nil {
			b.Fatal(err)
		}
		if r = b.awaitAct(id); r.Rotation == nil || r.Rotation.Type != "daily" || r.Rotation.Keep != 3 || r.Rotation.ProjectID != "p" || r.Rotation.Images != nil {
			b.Errorf("the request: %+v", r.Rotation)
		}
		if err := b.report("h1", r.Token, ""); err != nil {
			b.Fatal(err)
		}
		b.awaitNoTask(id)
	})
}
