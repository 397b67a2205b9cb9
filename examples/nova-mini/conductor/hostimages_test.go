package conductor_test

import (
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

// removalOf returns the operation that removes an image. The result is nil if no such operation exists.
func (b *bench) removalOf(image string) *operation.Operation {
	b.Helper()
	list, err := b.store.Operations().List(b.Context(), operation.Filter{Resource: image, Kind: store.DiscardImage.Name})
	switch {
	case err != nil || len(list) > 1:
		b.Fatalf("%d removals of the image %s, %v", len(list), image, err)
	case len(list) == 0:
		return nil
	}
	return &list[0]
}

// removes returns the host from which the open operation on an image removes the image. It is empty if the image service removes it.
func (b *bench) removes(image string) string {
	b.Helper()
	op, err := b.store.Operations().Current(b.Context(), image)
	if err != nil {
		b.Fatal(err)
	}
	data, err := operation.DataOf[store.DiscardData](op)
	if err != nil {
		b.Fatal(err)
	}
	return data.Host
}

// awaitRemoval waits for the request to remove an image from its host. It skips requests of earlier attempts, and for other images.
func (b *bench) awaitRemoval(image string) removal {
	b.Helper()
	b.svc.Runner.NotifyResource(image)
	for {
		if r := get(b, b.removals); r.ImageRef == image {
			return r
		}
	}
}

// TestHostImages: without an image service, the driver of a host stores the image of a shelve. The host removes the image when the server runs again or is deleted, or if the shelve fails or
// is preempted. The removal goes to the host that has made the image, also if the server has left that host.
func TestHostImages(t *testing.T) {
	t.Parallel()
	offload := func(b *bench, id string, _ compute.ActRequest) {
		b.Helper()
		b.endWith(b.act(id, compute.ShelveOffload, store.ActData{}), "", false)
	}
	// deleteOffloaded deletes a server that is on no host.
	deleteOffloaded := func(b *bench, id string, _ compute.ActRequest) {
		b.Helper()
		if err := b.store.BeginDelete(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.notify(id)
		waittest.Until(b, "the deletion", func() bool { _, err := b.store.Server(b.Context(), id); return err != nil })
	}
	// moves unshelves the server on the host h2.
	moves := func(b *bench, id string, _ compute.ActRequest) {
		b.Helper()
		r := b.act(id, compute.Unshelve, store.ActData{OnlyHost: "h2"})
		if _, err := b.svc.EndStep(b.Context(), &compute.EndStepRequest{StepRequest: step("h2", r.Token)}); err != nil {
			b.Error(err)
		}
	}
	// early makes the database look as if an earlier release has shelved the server.
	early := func(b *bench, id string, _ compute.ActRequest) {
		b.Helper()
		b.exec(`UPDATE servers SET shelved_upload = NULL, shelved_host = NULL WHERE id = ?`, id)
	}
	type end func(*bench, string, compute.ActRequest)
	cases := map[string]struct {
		action compute.Action
		end    []end
		want   bool
	}{
		"shelved":                       {compute.Shelve, []end{succeeds}, false},
		"offloaded":                     {compute.Shelve, []end{succeeds, offload}, false},
		"unshelved":                     {compute.Shelve, []end{succeeds, unshelves}, true},
		"unshelved after the offload":   {compute.Shelve, []end{succeeds, offload, unshelves}, true},
		"unshelved on another host":     {compute.Shelve, []end{succeeds, offload, moves}, true},
		"failed unshelve":               {compute.Shelve, []end{succeeds, acts(compute.Unshelve, "no")}, false},
		"deleted":                       {compute.Shelve, []end{succeeds, deletes}, true},
		"deleted after the offload":     {compute.Shelve, []end{succeeds, offload, deleteOffloaded}, true},
		"reset and rebuilt":             {compute.Shelve, []end{succeeds, resets, rebuilds}, true},
		"failed shelve":                 {compute.Shelve, []end{fails}, true},
		"late shelve":                   {compute.Shelve, []end{expires}, true},
		"deleted during the shelve":     {compute.Shelve, []end{deletes}, true},
		"reset during the shelve":       {compute.Shelve, []end{resets}, true},
		"shelved by an earlier release": {compute.Shelve, []end{succeeds, early, deletes}, true},
		"host not known":                {compute.Shelve, []end{succeeds, early, offload, deleteOffloaded}, false},
		"failed createImage":            {compute.CreateImage, []end{fails}, false},
		"deleted during createImage":    {compute.CreateImage, []end{deletes}, false},
		"deleted during a rescue":       {compute.Rescue, []end{deletes}, false},
	}
	each(t, conductor.Config{BuildTimeout: time.Minute, ShelvedOffload: -1}, func(b *bench) {
		b.addHost("h2")
		if _, err := b.svc.ReportHost(b.Context(), &compute.HostReport{Host: "h1", Resources: compute.Resources{VCPUs: 100, MemoryMiB: 100, DiskGiB: 100}}); err != nil {
			b.Fatal(err)
		}
		b.start()
		for name, tt := range cases {
			srv := &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "p", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1, OnlyHost: "h1"}
			if err := b.store.CreateServer(b.Context(), srv); err != nil {
				b.Fatal(err)
			}
			b.notify(srv.ID)
			r, host := b.awaitBuild(srv.ID)
			if err := b.report(host, r.Token, ""); err != nil {
				b.Fatal(err)
			}
			act := b.act(srv.ID, tt.action, uploads(tt.action, name, false))
			for _, end := range tt.end {
				end(b, srv.ID, act)
			}
			if !tt.want {
				if op := b.removalOf(name); op != nil {
					b.Errorf("%s: the image is removed: %+v", name, op)
				}
				continue
			}
			got := b.awaitRemoval(name)
			if got.host != "h1" || got.ServerID != srv.ID {
				b.Errorf("%s: %+v, want a removal from h1 for server %s", name, got, srv.ID)
			}
			if err := b.report("h1", got.Token, ""); err != nil {
				b.Errorf("%s: report: %v", name, err)
			}
			if op := b.removalOf(name); op.State != operation.Succeeded {
				b.Errorf("%s: after the report the removal is %s, want %s", name, op.State, operation.Succeeded)
			}
		}
	})
}

// TestHostImageWaits: the request to remove an image is repeated until its host reports, also by another conductor. If the driver cannot remove images, the removal fails, and says so. If an
// operator repeats a failed shelve, and it succeeds, the image stays.
func TestHostImageWaits(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{BuildTimeout: time.Minute, ShelvedOffload: -1}, func(b *bench) {
		b.start()
		id := b.build()
		succeeds(b, id, b.act(id, compute.Shelve, uploads(compute.Shelve, "one", false)))
		unshelves(b, id, compute.ActRequest{})
		b.awaitRemoval("one")
		if err := b.svc.Runner.Stop(b.Context()); err != nil { // the conductor dies, and the host does not answer
			b.Fatal(err)
		}
		b.svc = conductor.New(b.cfg)
		b.start()
		b.expireDiscard("one")
		again := b.awaitRemoval("one")
		if err := b.report("h1", again.Token, "the driver does not have the capability remove-image"); err != nil {
			b.Fatal(err)
		}
		if op := b.removalOf("one"); op.State != operation.Failed || op.Error != "the driver does not have the capability remove-image" {
			b.Errorf("the removal is %s, %q", op.State, op.Error)
		}

		refuses(b, id, b.act(id, compute.Shelve, uploads(compute.Shelve, "two", false)))
		late := b.awaitRemoval("two")
		if err := b.store.Operations().Retry(b.Context(), b.ended(id, compute.Shelve)); err != nil {
			b.Fatal(err)
		}
		succeeds(b, id, b.awaitAct(id))
		if err := b.wanted(late.Token); err == nil {
			b.Error("the removal of an image is still wanted after a repeated shelve has made the image anew")
		}
		if s := b.server(id); s.VMState != compute.VMShelved || s.ShelvedImage != "two" || s.ShelvedHost == nil || *s.ShelvedHost != "h1" {
			b.Errorf("after the repeated shelve: %s, image %q of host %v", s.VMState, s.ShelvedImage, s.ShelvedHost)
		}
		waittest.Until(b, "the cancellation of the removal", func() bool { return b.removalOf("two").State == operation.Canceled })
	})
}

// TestUnshelveHost: without an image service, an offloaded server is unshelved on the host whose driver stores its image, although another host has more room, or not at all. A client may
// choose another host. If the image service has the image, any host may get the server.
func TestUnshelveHost(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{BuildTimeout: time.Minute, ShelvedOffload: -1}, func(b *bench) {
		b.useImages()
		b.start()
		if _, err := b.svc.ReportHost(b.Context(), &compute.HostReport{Host: "h2", Driver: "d", Resources: compute.Resources{VCPUs: 100, MemoryMiB: 100, DiskGiB: 100}}); err != nil {
			b.Fatal(err)
		}
		build := func(host string) string {
			srv := &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "p", VCPUs: 1, MemoryMiB: 1, DiskGiB: 1, OnlyHost: host}
			if err := b.store.CreateServer(b.Context(), srv); err != nil {
				b.Fatal(err)
			}
			b.notify(srv.ID)
			r, on := b.awaitBuild(srv.ID)
			if err := b.report(on, r.Token, ""); err != nil {
				b.Fatal(err)
			}
			return srv.ID
		}
		shelve := func(id, image string, upload bool) {
			b.endWith(b.act(id, compute.Shelve, uploads(compute.Shelve, image, upload)), "", false)
			b.endWith(b.act(id, compute.ShelveOffload, store.ActData{}), "", false)
		}
		unshelve := func(id string, data store.ActData) string {
			r := b.act(id, compute.Unshelve, data)
			host := *b.server(id).Host
			if _, err := b.svc.EndStep(b.Context(), &compute.EndStepRequest{StepRequest: step(host, r.Token)}); err != nil {
				b.Fatal(err)
			}
			return host
		}
		id := build("h1")
		for range 2 {
			shelve(id, uuid.NewString(), false)
			if got := unshelve(id, store.ActData{}); got != "h1" {
				b.Fatalf("unshelved on %s, want h1, which has the image", got)
			}
		}
		shelve(id, uuid.NewString(), true)
		if got := unshelve(id, store.ActData{}); got != "h2" {
			b.Errorf("with the image in the image service: unshelved on %s, want h2, which has more room", got)
		}
		id = build("h1")
		shelve(id, uuid.NewString(), false)
		build("h1")
		build("h1") // now h1 is full
		if err := b.store.BeginAction(b.Context(), id, compute.Unshelve, store.ActData{}); err != nil {
			b.Fatal(err)
		}
		b.notify(id)
		b.awaitNoTask(id)
		s, err := b.store.ServerToBuild(b.Context(), id)
		if err != nil || s.VMState != compute.VMOffloaded || s.Host != nil || !strings.Contains(s.FaultDetails, "0 of 2 hosts") || !strings.Contains(s.FaultDetails, "only host h1 has the image of the server") {
			b.Errorf("while h1 is full: %s on %v, %q, %v", s.VMState, s.Host, s.FaultDetails, err)
		}
		if got := unshelve(id, store.ActData{OnlyHost: "h2"}); got != "h2" {
			b.Errorf("unshelved on %s, want h2, which the client has chosen", got)
		}
	})
}
