package conductor_test

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler/placement"
)

// TestChosenHost: if a client chooses the host of a server, the server is built on this host, with its password and user data, or not at all. After
// the build, the password is no longer in the database.
func TestChosenHost(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		b.addHost("h2")
		create := func(host string) string {
			data, password := "QQ==", "secret"
			srv := &store.Server{
				ID: uuid.NewString(), Name: "s", ProjectID: "p", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1, OnlyHost: host, Hostname: "guest", UserData: &data, AdminPass: &password,
			}
			if err := b.store.CreateServer(b.Context(), srv); err != nil {
				b.Fatal(err)
			}
			return srv.ID
		}
		for _, host := range []string{"h2", "h2", "h1"} {
			id := create(host)
			got := get(b, b.builds)
			if s := b.server(id); s.Host == nil || *s.Host != host || got.Spec.ID != id || got.Spec.UserData != "QQ==" || got.Spec.AdminPass != "secret" || got.Spec.Hostname != "guest" {
				b.Errorf("want a build on %s: %+v, %+v", host, s, got)
			}
			if err := b.report(host, got.Token, ""); err != nil {
				b.Error(err)
			}
			if s, err := b.store.ServerToBuild(b.Context(), id); err != nil || s.AdminPass != nil || s.UserData == nil {
				b.Errorf("after the build: %+v, %v", s, err)
			}
		}
		id := create("h2") // h2 is full, and h1 is not
		waittest.Until(b, "the server is in error", func() bool { return b.server(id).VMState == store.Error })
		s, err := b.store.ServerToBuild(b.Context(), id)
		if err != nil || s.AdminPass != nil || !strings.Contains(s.FaultDetails, "0 of 2 hosts") {
			b.Errorf("%+v, %v", s, err)
		}
	})
}

// TestReleases: a process of the previous release knows neither chosen hosts nor zones nor groups nor needs of images. It does not run the creation of a server that has one
// of them.
func TestReleases(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		group := &store.ServerGroup{ID: uuid.NewString(), Name: "g", ProjectID: "p", Policy: placement.Affinity}
		if err := b.store.CreateServerGroup(b.Context(), group); err != nil {
			b.Fatal(err)
		}
		for _, tt := range []struct {
			host        string
			group, zone *string
			image       map[string]string
			version     int
		}{{}, {host: "h1", version: 1}, {group: &group.ID, version: 1}, {zone: new("nova"), version: 1}, {image: map[string]string{"hw_vm_mode": "hvm"}, version: 1}} {
			srv := &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "p", OnlyHost: tt.host, GroupID: tt.group, PinnedZone: tt.zone, ImageProperties: db.JSONOf(tt.image)}
			if err := b.store.CreateServer(b.Context(), srv); err != nil {
				b.Fatal(err)
			}
			if o := b.operation(srv.ID); o.KindVersion != tt.version {
				b.Errorf("%+v: the operation has the version %d", tt, o.KindVersion)
			}
		}
	})
}

// TestOlderServices: an older scheduler or compute service would ignore the chosen host, the group or the user data. So the operation
// waits while such a service may get the request.
func TestOlderServices(t *testing.T) {
	t.Parallel()
	const wait = "cannot be"
	for name, caps := range map[string]rpc.Versions{
		"scheduler": {compute.Scheduler.Name: {{Major: 1}}}, "scheduler and group": {compute.Scheduler.Name: {{Major: 1}}}, "scheduler and zone": {compute.Scheduler.Name: {{Major: 1}}}, "scheduler and image": {compute.Scheduler.Name: {{Major: 1}}}, "compute": {compute.Worker.Name: {{Major: 1, Minor: 4}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachWith(t, conductor.Config{}, rpc.ClientConfig{Caps: caps}, func(b *bench) {
				b.start()
				data := "QQ=="
				srv := &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "p", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1, OnlyHost: "h1", UserData: &data}
				if strings.Contains(name, "group") {
					group := &store.ServerGroup{ID: uuid.NewString(), Name: "g", ProjectID: "p", Policy: placement.Affinity}
					if err := b.store.CreateServerGroup(b.Context(), group); err != nil {
						b.Fatal(err)
					}
					srv.OnlyHost, srv.GroupID = "", &group.ID
				}
				if strings.Contains(name, "zone") {
					srv.OnlyHost, srv.PinnedZone = "", new("nova")
				}
				if strings.Contains(name, "image") {
					srv.OnlyHost, srv.ImageProperties.V = "", map[string]string{"hw_architecture": "x86_64"}
				}
				if err := b.store.CreateServer(b.Context(), srv); err != nil {
					b.Fatal(err)
				}
				waittest.Until(b, "the step has failed", func() bool { return strings.Contains(b.operation(srv.ID).Error, wait) })
				if len(b.builds) != 0 || b.server(srv.ID).VMState != store.Building {
					b.Errorf("%d builds, %+v", len(b.builds), b.server(srv.ID))
				}
			})
		})
	}
}
