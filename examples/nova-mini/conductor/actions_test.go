package conductor_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/operation"
)

// TestActions: after an action has failed or timed out, the server keeps its state and gets a fault. After a resize has
// timed out, the server is in ERROR. A compute service does not begin a canceled action. A client that sees the server
// without a task can begin the next action.
func TestActions(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{BuildTimeout: time.Minute}, func(b *bench) {
		b.start()
		id := b.addServer()
		b.notify(id)
		if err := b.report("h1", get(b, b.builds).Token, ""); err != nil {
			b.Fatal(err)
		}
		begin := func(a compute.Action) compute.ActRequest {
			b.Helper()
			var err error
			if a == compute.Resize {
				err = b.store.BeginAction(b.Context(), id, compute.Resize, store.ActData{Resize: store.SizeOf(&store.Flavor{ID: "2", VCPUs: 2, MemoryMiB: 2, DiskGiB: 2})})
			} else {
				err = b.store.BeginAction(b.Context(), id, a, store.ActData{})
			}
			if err != nil {
				b.Fatalf("%s: %v", a, err)
			}
			b.notify(id)
			r := get(b, b.acts)
			for want := b.token(id); r.Token != want; { // a repeated request of the previous action
				r = get(b, b.acts)
			}
			if err := b.wanted(r.Token); err != nil {
				b.Errorf("%s is not wanted: %v", a, err)
			}
			return r
		}
		end := func(r compute.ActRequest, failed string, want error) {
			b.Helper()
			if err := b.report("h1", r.Token, failed); !errors.Is(err, want) {
				b.Errorf("report: %v, want %v", err, want)
			}
		}
		for range 20 { // each action begins as soon as the previous one has ended
			for _, a := range []compute.Action{compute.Stop, compute.Start} {
				end(begin(a), "", nil)
			}
		}
		for range 20 {
			r := begin(compute.Stop)
			end(r, "no power", nil)
			b.awaitNoTask(id)
			end(r, "no power", nil)
			if s := b.server(id); s.VMState != store.Active || s.FaultDetails != "no power" || s.FaultMessage != "Failed to stop instance "+id+"." {
				b.Fatalf("after a stop that failed: %s, %q", s.VMState, s.FaultDetails)
			}
		}

		r := begin(compute.Stop)
		b.awaitPeer(id)
		b.expireStep(id)
		end(r, "", compute.ErrStale)
		if s := b.server(id); s.VMState != store.Active || s.FaultDetails != "step act not done within 1m0s" {
			b.Errorf("after a stop that never ended: %s, %q", s.VMState, s.FaultDetails)
		}

		r = begin(compute.Stop)
		b.awaitPeer(id)
		stop := b.operation(id).ID
		if err := b.store.Operations().Cancel(b.Context(), stop, "no"); err != nil {
			b.Fatal(err)
		}
		if err := b.wanted(r.Token); !errors.Is(err, compute.ErrStale) {
			b.Errorf("a canceled action: %v, want ErrStale", err)
		}
		b.awaitNoTask(id)
		if s := b.server(id); s.VMState != store.Active || s.FaultDetails != "no" {
			b.Errorf("after a stop that was canceled: %s, %q", s.VMState, s.FaultDetails)
		}
		if err := b.store.Operations().Retry(b.Context(), stop); err != nil {
			b.Fatal(err)
		}
		for before := r.Token; r.Token == before; {
			r = get(b, b.acts)
		}
		end(r, "", nil)
		if s := b.server(id); s.VMState != store.Stopped {
			b.Errorf("after the retry of the stop: %s", s.VMState)
		}

		begin(compute.Resize)
		b.awaitPeer(id)
		b.expireStep(id)
		if s := b.server(id); s.VMState != store.Error || s.Resize.V == nil || s.Holds().VCPUs != 2 {
			b.Errorf("after a resize that never ended: %s, %+v", s.VMState, s.Resize.V)
		}
		if err := b.store.BeginDelete(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.notify(id)
		get(b, b.destroys)
		deletion := b.operation(id).ID
		if err := b.store.Operations().Cancel(b.Context(), deletion, "keep it"); err != nil {
			b.Fatal(err)
		}
		b.awaitNoTask(id)
		if s := b.server(id); s.VMState != store.Error || s.FaultDetails != "keep it" || s.FaultMessage != "Failed to delete instance "+id+"." {
			b.Errorf("after a deletion that was canceled: %s, %q", s.VMState, s.FaultDetails)
		}
		if err := b.store.Operations().Retry(b.Context(), deletion); err != nil {
			b.Fatal(err)
		}
		for d := get(b, b.destroys); ; d = get(b, b.destroys) {
			if err := b.report("h1", d.Token, ""); err == nil {
				break
			} else if !errors.Is(err, compute.ErrStale) {
				b.Fatal(err)
			}
		}
		b.wantNoClaims()
	})
}

// awaitPeer waits until a server's operation waits for the compute service.
func (b *bench) awaitPeer(id string) {
	b.Helper()
	waittest.Until(b, "an operation that waits for a report", func() bool { return b.operation(id).Owner == "" })
}

// TestShelve: a shelved server leaves its host at once, after a time, or on the request of an administrator. Then it has no claim. An unshelve
// places the server on a host; if no host can build the server, it stays shelved, with a fault.
func TestShelve(t *testing.T) {
	t.Parallel()
	for _, offload := range []time.Duration{0, time.Hour, -1} {
		t.Run(offload.String(), func(t *testing.T) {
			t.Parallel()
			each(t, conductor.Config{BuildTimeout: time.Minute, ShelvedOffload: offload}, func(b *bench) {
				b.start()
				id := b.addServer()
				b.notify(id)
				r, _ := b.awaitBuild(id)
				if err := b.report("h1", r.Token, ""); err != nil {
					b.Fatal(err)
				}
				act := func(a compute.Action, data store.ActData) {
					b.Helper()
					if err := b.store.BeginAction(b.Context(), id, a, data); err != nil {
						b.Fatalf("%s: %v", a, err)
					}
					b.notify(id)
				}
				next := func(a compute.Action) compute.ActRequest {
					b.Helper()
					for {
						if r := get(b, b.acts); r.Action == a && r.Token == b.token(id) {
							return r
						}
					}
				}
				end := func(a compute.Action, failed string) compute.ActRequest {
					b.Helper()
					r := next(a)
					if err := b.report("h1", r.Token, failed); err != nil {
						b.Fatalf("%s: %v", a, err)
					}
					return r
				}
				act(compute.Shelve, store.ActData{ImageRef: "copy"})
				if r := end(compute.Shelve, ""); r.ImageRef != "copy" || !r.Running {
					b.Errorf("shelve: %+v", r)
				}
				if offload != 0 {
					b.awaitNoTask(id)
					if s := b.server(id); s.VMState != compute.VMShelved || s.Host == nil || s.ShelvedAt == nil {
						b.Errorf("shelved: %+v", s)
					}
					if err := b.svc.OffloadShelved(b.Context()); err != nil {
						b.Fatal(err)
					}
					if s := b.server(id); s.Task() != "" {
						b.Errorf("offloaded too early: %+v", s)
					}
					b.setPast("servers", "shelved_at")
					if err := b.svc.OffloadShelved(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
				if offload < 0 {
					if s := b.server(id); s.Task() != "" {
						b.Errorf("offloaded although the time has no end: %+v", s)
					}
					act(compute.ShelveOffload, store.ActData{})
				}
				end(compute.ShelveOffload, "")
				b.awaitNoTask(id)
				if s := b.server(id); s.VMState != compute.VMOffloaded || s.Host != nil || s.Status() != "SHELVED_OFFLOADED" {
					b.Errorf("offloaded: %+v", s)
				}
				b.wantNoClaims()

				for _, failed := range []string{"no memory", ""} {
					act(compute.Unshelve, store.ActData{})
					if r := end(compute.Unshelve, failed); !r.Placed || r.Spec == nil || r.Spec.ImageRef != "copy" {
						b.Errorf("unshelve: %+v", r)
					}
					b.awaitNoTask(id)
					s := b.server(id)
					if failed != "" {
						b.wantNoClaims()
						if s.VMState != compute.VMOffloaded || s.Host != nil || s.FaultDetails != failed {
							b.Errorf("unshelve failed: %+v", s)
						}
					} else if s.VMState != store.Active || s.Host == nil || s.ShelvedImage != "" {
						b.Errorf("unshelved: %+v", s)
					}
				}
				if found, err := b.store.Audit(b.Context(), false, 0); err != nil || len(found) > 0 {
					b.Errorf("the audit finds %+v, %v", found, err)
				}
			})
		})
	}
}

// TestNoHostToUnshelve: if no host has room, an unshelve leaves the server shelved, and the fault has the reasons.
func TestNoHostToUnshelve(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{BuildTimeout: time.Minute}, func(b *bench) {
		b.start()
		id := b.addServer()
		b.notify(id)
		r, _ := b.awaitBuild(id)
		if err := b.report("h1", r.Token, ""); err != nil {
			b.Fatal(err)
		}
		b.exec(`UPDATE servers SET vm_state = ?, host = NULL, vcpus = 99, shelved_image = 'copy'`, compute.VMOffloaded)
		if err := b.store.ReleaseClaim(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		if err := b.store.BeginAction(b.Context(), id, compute.Unshelve, store.ActData{}); err != nil {
			b.Fatal(err)
		}
		b.notify(id)
		b.awaitNoTask(id)
		if s := b.server(id); s.VMState != compute.VMOffloaded || !strings.Contains(s.FaultDetails, "No valid host was found") {
			b.Errorf("%+v", s)
		}
	})
}

// TestNeedsOfUnshelved: a server with user data is unshelved on a host whose driver gives the data to the guest.
func TestNeedsOfUnshelved(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{BuildTimeout: time.Minute}, func(b *bench) {
		b.addHost("h2")
		b.exec(`UPDATE hosts SET capabilities = CASE WHEN name = 'h2' THEN '["guest-data"]' ELSE '[]' END`)
		b.start()
		for range 2 { // the two places on h2, and not by chance
			srv := &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "p", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1, UserData: new("QQ==")}
			if err := b.store.CreateServer(b.Context(), srv); err != nil {
				b.Fatal(err)
			}
			b.notify(srv.ID)
			r, host := b.awaitBuild(srv.ID)
			if err := b.report(host, r.Token, ""); host != "h2" || err != nil {
				b.Fatalf("built on %s: %v", host, err)
			}
			b.exec(`UPDATE servers SET vm_state = ?, host = NULL, shelved_image = 'copy' WHERE id = ?`, compute.VMOffloaded, srv.ID)
			if err := b.store.ReleaseClaim(b.Context(), srv.ID); err != nil {
				b.Fatal(err)
			}
			if err := b.store.BeginAction(b.Context(), srv.ID, compute.Unshelve, store.ActData{}); err != nil {
				b.Fatal(err)
			}
			b.awaitAct(srv.ID)
			if s := b.server(srv.ID); s.Host == nil || *s.Host != "h2" {
				b.Errorf("unshelved: %+v", s)
			}
		}
	})
}

// build adds an active server on the host h1, and returns the server's ID.
func (b *bench) build() string {
	b.Helper()
	id := b.addServer()
	b.notify(id)
	r, host := b.awaitBuild(id)
	if err := b.report(host, r.Token, ""); err != nil {
		b.Fatal(err)
	}
	return id
}

// act begins an action and returns the request to the compute service.
func (b *bench) act(id string, a compute.Action, data store.ActData) compute.ActRequest {
	b.Helper()
	if err := b.store.BeginAction(b.Context(), id, a, data); err != nil {
		b.Fatal(err)
	}
	return b.awaitAct(id)
}

// awaitAct waits for the request of a server's current step. It skips repeated requests of earlier steps.
func (b *bench) awaitAct(id string) compute.ActRequest {
	b.Helper()
	b.notify(id)
	for {
		if r := get(b, b.acts); r.ServerID == id && r.Token == b.token(id) {
			return r
		}
	}
}

// TestChangePassword: the compute service gets the new password. The database keeps the password only until the action ends, even if the action fails
// or a reset of the state ends it. A retry of the operation fails, because it would set an empty password.
func TestChangePassword(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.build()
		kept := func(after string) {
			b.Helper()
			var n int
			if err := b.db.GetContext(b.Context(), &n, `SELECT COUNT(*) FROM servers WHERE admin_pass IS NOT NULL`); err != nil || n != 0 {
				b.Errorf("after %s the database has the password, %v", after, err)
			}
			var data []string
			if err := b.db.SelectContext(b.Context(), &data, `SELECT data FROM operations`); err != nil || strings.Contains(strings.Join(data, ""), "secret") {
				b.Errorf("after %s an operation has the password: %q, %v", after, data, err)
			}
		}
		for _, failed := range []string{"", "no agent"} {
			r := b.act(id, compute.ChangePassword, store.ActData{AdminPass: new("secret")})
			if r.AdminPass != "secret" {
				b.Errorf("the request has the password %q", r.AdminPass)
			}
			if err := b.report("h1", r.Token, failed); err != nil {
				b.Fatal(err)
			}
			kept("the end with the error " + failed)
		}
		last := b.ended(id, compute.ChangePassword)
		if err := b.store.Operations().Retry(b.Context(), last); err != nil {
			b.Fatal(err)
		}
		b.notify(id)
		b.awaitNoTask(id)
		if s := b.server(id); !strings.Contains(s.FaultDetails, "the password is not kept") {
			b.Errorf("a retry without the password: %q", s.FaultDetails)
		}
		b.act(id, compute.ChangePassword, store.ActData{AdminPass: new("secret")})
		if err := b.store.ResetState(b.Context(), id, store.Active); err != nil {
			b.Fatal(err)
		}
		kept("a reset of the state")
	})
}

// TestRescuePassword: the compute service gets the password of a rescue, and the database keeps it only until the rescue ends. A rescue that is repeated later has no password.
func TestRescuePassword(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.build()
		r := b.act(id, compute.Rescue, store.ActData{AdminPass: new("secret")})
		if r.AdminPass != "secret" || r.Spec != nil {
			b.Errorf("the request: %+v", r)
		}
		b.endWith(r, "no image", false)
		var n int
		if err := b.db.GetContext(b.Context(), &n, `SELECT COUNT(*) FROM servers WHERE admin_pass IS NOT NULL`); err != nil || n != 0 {
			b.Errorf("after the end the database has the password, %v", err)
		}
		if err := b.store.Operations().Retry(b.Context(), b.ended(id, compute.Rescue)); err != nil {
			b.Fatal(err)
		}
		b.notify(id)
		if r = b.awaitAct(id); r.AdminPass != "" {
			b.Errorf("the repeated request: %+v", r)
		}
		b.endWith(r, "", false)
		if s := b.server(id); s.VMState != compute.VMRescued {
			b.Errorf("the rescued server: %+v", s)
		}
	})
}

// ended returns the ID of the operation of a failed action.
func (b *bench) ended(id string, a compute.Action) string {
	b.Helper()
	list, err := b.store.Operations().List(b.Context(), operation.Filter{Resource: id, Kind: store.Kinds[a].Name, State: operation.Failed})
	if err != nil || len(list) == 0 {
		b.Fatalf("no %s has failed: %v", a, err)
	}
	return list[0].ID
}

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
