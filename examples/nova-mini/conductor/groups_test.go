package conductor_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/scheduler/placement"
)

// TestServerGroup: the policy of a group holds for new servers and for unshelved servers. After a resize, a server is still in its group. The audit finds
// no differences, even after the deletion of the group.
func TestServerGroup(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{BuildTimeout: time.Minute, ShelvedOffload: -1}, func(b *bench) {
		b.start()
		b.addHost("h2")
		group := &store.ServerGroup{ID: uuid.NewString(), Name: "g", ProjectID: "p", Policy: placement.AntiAffinity}
		if err := b.store.CreateServerGroup(b.Context(), group); err != nil {
			b.Fatal(err)
		}
		create := func() string {
			srv := &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "p", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1, GroupID: &group.ID}
			if err := b.store.CreateServer(b.Context(), srv); err != nil {
				b.Fatal(err)
			}
			b.notify(srv.ID)
			return srv.ID
		}
		hosts := map[string]string{}
		var ids []string
		for range 2 {
			id := create()
			r, _ := b.awaitBuild(id)
			host := *b.server(id).Host
			if err := b.report(host, r.Token, ""); err != nil {
				b.Fatal(err)
			}
			hosts[host] = id
			ids = append(ids, id)
		}
		if len(hosts) != 2 {
			b.Fatalf("two servers are on %v", hosts)
		}
		third := create()
		waittest.Until(b, "the error of the third server, for which the policy allows no host", func() bool { return b.server(third).VMState == store.Error })

		act := func(id string, a compute.Action, data store.ActData) {
			b.Helper()
			if err := b.store.BeginAction(b.Context(), id, a, data); err != nil {
				b.Fatalf("%s: %v", a, err)
			}
			b.notify(id)
			for {
				if r := get(b, b.acts); r.Action == a && r.Token == b.token(id) {
					if err := b.report(*b.server(id).Host, r.Token, ""); err != nil {
						b.Fatalf("%s: %v", a, err)
					}
					break
				}
			}
			b.awaitNoTask(id)
		}
		audit := func(when string) {
			b.Helper()
			if found, err := b.store.Audit(b.Context(), false, 0); err != nil || len(found) > 0 {
				b.Errorf("%s: the audit finds %+v, %v", when, found, err)
			}
			claims, err := b.store.Claims().Claims(b.Context(), ids...)
			if err != nil {
				b.Fatal(err)
			}
			for _, c := range claims {
				if len(c.Allocations) > 0 && (c.Group == nil || c.Group.ID != group.ID) {
					b.Errorf("%s: the claim of %s has the group %+v", when, c.Consumer, c.Group)
				}
			}
		}
		small := compute.Resources{VCPUs: 1, MemoryMiB: 2, DiskGiB: 1}
		act(ids[0], compute.Resize, store.ActData{Resize: &store.Size{FlavorID: "big", Has: small}})
		audit("resized")
		act(ids[0], compute.ConfirmResize, store.ActData{})
		audit("confirmed")

		was := *b.server(ids[0]).Host
		act(ids[0], compute.Shelve, store.ActData{ImageRef: "copy"})
		act(ids[0], compute.ShelveOffload, store.ActData{})
		audit("shelved")
		act(ids[0], compute.Unshelve, store.ActData{}) // the other host has room, too
		if got := *b.server(ids[0]).Host; got != was {
			b.Errorf("unshelved on %s, where another server of the group is", got)
		}
		audit("unshelved")
		if err := b.store.DeleteServerGroup(b.Context(), group.ID); err != nil {
			b.Fatal(err)
		}
		audit("the group is deleted")
	})
}
