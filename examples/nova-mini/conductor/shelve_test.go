package conductor_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// TestShelve: a shelved server leaves its host at once, after a time, or on the request of an administrator. Then it has no claim. An unshelve
// places the server on a host; if no host can build the server, it stays shelved, with a fault. A reset of the state to active does not end an unshelve.
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
					r := next(compute.Unshelve)
					if !r.Placed || r.Spec == nil || r.Spec.ImageRef != "copy" {
						b.Errorf("unshelve: %+v", r)
					}
					// Without the unshelve, an active server would have no guest.
					if err := b.store.ResetState(b.Context(), id, store.Active); err != nil || b.server(id).Task() == "" {
						b.Errorf("a reset to active has ended the unshelve, or failed: %v", err)
					}
					if err := b.report("h1", r.Token, failed); err != nil {
						b.Fatalf("unshelve: %v", err)
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
