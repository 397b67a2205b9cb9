package conductor_test

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/operation"
)

// fakeImages is an image service that can be down for a number of requests.
type fakeImages struct {
	mu     sync.Mutex
	away   int               // the number of further requests that fail
	log    map[string]string // the parameter keepActive of each removal, by image
	failed map[string]bool   // the images of the requests that have failed
}

// setAway makes the next n requests fail, as if the image service were down.
func (f *fakeImages) setAway(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = n
}

// tried reports whether a request for an image has failed.
func (f *fakeImages) tried(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed[id]
}

// useImages gives the conductor a new image service, because tests of other databases run at the same time. The conductor must not be started yet.
func (b *bench) useImages() *fakeImages {
	f := &fakeImages{away: 5, log: map[string]string{}, failed: map[string]bool{}}
	b.cfg.Images = f
	b.svc = conductor.New(b.cfg)
	return f
}

func (f *fakeImages) Discard(_ context.Context, id string, keepActive bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away > 0 {
		f.away--
		f.failed[id] = true
		return fault.New(fault.Unavailable, "away")
	}
	f.log[id] = strconv.FormatBool(keepActive) // in a map, because a removal may be repeated
	return nil
}

// did returns the parameter keepActive with which an image was removed, as a text. "" means that the image was not removed.
func (f *fakeImages) did(id string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log[id]
}

// TestDiscardImages: if an action that uploads an image fails, or another operation preempts the action, the image is removed. The image of a shelved server is removed when the server
// runs again or is deleted. While the image service is down, the removal waits. Without an upload no image is removed.
func TestDiscardImages(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		action compute.Action
		plain  bool // the action uploads nothing
		end    func(b *bench, id string, r compute.ActRequest)
		want   string // keepActive of the removal, or nothing
	}{
		"failed createImage":              {action: compute.CreateImage, end: fails, want: "false"},
		"failed shelve":                   {action: compute.Shelve, end: fails, want: "false"},
		"failed without upload":           {action: compute.Shelve, plain: true, end: fails, want: ""},
		"late createImage":                {action: compute.CreateImage, end: expires, want: "true"},
		"late shelve":                     {action: compute.Shelve, end: expires, want: "false"},
		"failed createBackup":             {action: compute.CreateBackup, end: fails, want: "false"},
		"refused createBackup":            {action: compute.CreateBackup, end: refuses, want: "true"},
		"late createBackup":               {action: compute.CreateBackup, end: expires, want: "true"},
		"createBackup":                    {action: compute.CreateBackup, end: both(succeeds, rotates("")), want: ""},
		"createBackup that cannot rotate": {action: compute.CreateBackup, end: both(succeeds, rotates("no")), want: ""},
		"deleted during createBackup":     {action: compute.CreateBackup, end: deletes, want: "true"},
		"deleted during the rotation":     {action: compute.CreateBackup, end: both(succeeds, deletes), want: "true"},
		"deleted during createImage":      {action: compute.CreateImage, end: deletes, want: "true"},
		"deleted during shelve":           {action: compute.Shelve, end: deletes, want: "false"},
		"deleted without upload":          {action: compute.Shelve, plain: true, end: deletes, want: ""},
		"deleted during a rescue":         {action: compute.Rescue, plain: true, end: deletes, want: ""},
		"reset during createImage":        {action: compute.CreateImage, end: resets, want: "true"},
		"reset during shelve":             {action: compute.Shelve, end: resets, want: "false"},
		"createImage":                     {action: compute.CreateImage, end: succeeds, want: ""},
		"deleted after createImage":       {action: compute.CreateImage, end: both(succeeds, deletes), want: ""},
		"shelved":                         {action: compute.Shelve, end: succeeds, want: ""},
		"deleted after shelve":            {action: compute.Shelve, end: both(succeeds, deletes), want: "false"},
		"unshelved":                       {action: compute.Shelve, end: both(succeeds, unshelves), want: "false"},
		"reset and rebuilt":               {action: compute.Shelve, end: both(succeeds, both(resets, rebuilds)), want: "false"},
		"deleted after its unshelve":      {action: compute.Shelve, end: both(succeeds, both(unshelves, deletes)), want: "false"},
		"failed unshelve":                 {action: compute.Shelve, end: both(succeeds, acts(compute.Unshelve, "no")), want: ""},
		"refused shelve":                  {action: compute.Shelve, end: refuses, want: "false"},
	}
	each(t, conductor.Config{BuildTimeout: time.Minute, ShelvedOffload: -1}, func(b *bench) {
		images := b.useImages()
		if _, err := b.svc.ReportHost(b.Context(), &compute.HostReport{Host: "h1", Resources: compute.Resources{VCPUs: 100, MemoryMiB: 100, DiskGiB: 100}}); err != nil {
			b.Fatal(err)
		}
		b.start()
		for name, tt := range cases {
			id := b.addServer()
			b.notify(id)
			r, _ := b.awaitBuild(id)
			if err := b.report("h1", r.Token, ""); err != nil {
				b.Fatal(err)
			}
			act := b.act(id, tt.action, uploads(tt.action, name, !tt.plain))
			if act.Upload == tt.plain || act.ImageRef != name {
				b.Errorf("%s: request %+v", name, act)
			}
			tt.end(b, id, act)
		}
		for name, tt := range cases {
			waittest.Until(b, "the removal of the image of "+name, func() bool {
				b.expire()
				return images.did(name) == tt.want
			})
		}
		b.awaitPolls()
		for name, tt := range cases {
			if got := images.did(name); got != tt.want {
				b.Errorf("%s: removed with %q, want %q", name, got, tt.want)
			}
		}
	})
}

// uploads returns the data of an action that makes an image.
func uploads(a compute.Action, image string, upload bool) store.ActData {
	data := store.ActData{ImageRef: image, Upload: upload}
	if a.Info().Rotates {
		data.Backup = &store.Backup{Type: "daily", Keep: 1, ProjectID: "p"}
	}
	return data
}

// TestKeptImages: while the removal of an image waits for the image service, the server may become shelved, or an action may fill the image. Then the image is not removed.
func TestKeptImages(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{BuildTimeout: time.Minute, ShelvedOffload: -1}, func(b *bench) {
		images := b.useImages()
		images.setAway(1 << 30)
		b.addHost("h1")
		b.start()
		for _, a := range []compute.Action{compute.Shelve, compute.CreateImage, compute.CreateBackup} {
			for _, again := range []string{"", "broken again"} {
				images.setAway(1 << 30)
				id, name := b.build(), string(a)+again
				refuses(b, id, b.act(id, a, uploads(a, name, true)))
				failed := b.ended(id, a)
				b.awaitAway(images, name)
				if err := b.store.Operations().Retry(b.Context(), failed); err != nil {
					b.Fatal(err)
				}
				r := b.awaitAct(id)
				images.setAway(0)
				b.expireDiscard(name)
				b.awaitPolls()
				if got := images.did(name); got != "" {
					b.Errorf("%s: the image was removed with %q while the action fills it", name, got)
				}
				b.endWith(r, again, false)
				if again == "" && a.Info().Rotates {
					b.endWith(b.awaitAct(id), "", false)
				}
				b.awaitNoTask(id)
				if again != "" {
					waittest.Until(b, "the removal of the image of "+name, func() bool { b.expireDiscard(name); return images.did(name) != "" })
				} else {
					b.expireDiscard(name)
					b.awaitPolls()
					if got := images.did(name); got != "" {
						b.Errorf("%s: the image was removed with %q after the action has filled it", name, got)
					}
				}
				if again == "" && a == compute.Shelve { // the removal has begun, but has no effect
					if err := b.store.DiscardImage(b.Context(), name, store.DiscardData{Server: id}); err != nil {
						b.Fatal(err)
					}
					b.svc.Runner.NotifyResource(name)
					b.awaitPolls()
					if got := images.did(name); got != "" {
						b.Errorf("the image of a shelved server was removed with %q", got)
					}
				}
				deletes(b, id, r)
			}
		}
	})
}

// TestBackupNotChosen: if the operation fails in the step that chooses the older backups, the new backup is kept.
func TestBackupNotChosen(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		images := b.useImages()
		images.setAway(0)
		b.start()
		id := b.build()
		r := b.act(id, compute.CreateBackup, uploads(compute.CreateBackup, "backup", true))
		if err := b.svc.Runner.Stop(context.Background()); err != nil {
			b.Fatal(err)
		}
		succeeds(b, id, r)
		if o := b.operationOf(id, compute.CreateBackup); o.StepName != "choose" {
			b.Fatalf("the operation has the step %q", o.StepName)
		} else if err := b.store.Operations().Cancel(b.Context(), o.ID, "no"); err != nil {
			b.Fatal(err)
		}
		b.svc = conductor.New(b.cfg)
		b.start()
		b.awaitNoTask(id)
		b.awaitPolls()
		if got := images.did("backup"); got != "" {
			b.Errorf("the backup was removed with %q", got)
		}
	})
}

// operationOf returns the open operation of an action.
func (b *bench) operationOf(id string, a compute.Action) *operation.Operation {
	b.Helper()
	list, err := b.store.Operations().List(b.Context(), operation.Filter{Resource: id, Kind: store.Kinds[a].Name, Open: true})
	if err != nil || len(list) != 1 {
		b.Fatalf("%d open operations, %v", len(list), err)
	}
	return &list[0]
}

// TestDiscardElsewhere: if the conductor that gets the report has no image service, another conductor removes the image of the shelved server. The image service does not remove an image
// that the driver stores. If an earlier release has shelved the server, the image is removed only if the conductor that gets the report has an image service.
func TestDiscardElsewhere(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{ShelvedOffload: -1}, func(b *bench) {
		b.start()
		for _, upload := range []bool{true, false} {
			id, name := b.build(), "uploaded"
			if !upload {
				name = "stored by the driver"
			}
			succeeds(b, id, b.act(id, compute.Shelve, uploads(compute.Shelve, name, upload)))
			unshelves(b, id, compute.ActRequest{})
			list, err := b.store.Operations().List(b.Context(), operation.Filter{Resource: name, Open: true})
			if err != nil || len(list) != 1 {
				b.Fatalf("%s: %d open operations, %v", name, len(list), err)
			}
			if got := b.removes(name); (got == "") != upload {
				b.Errorf("%s: the image is removed from host %q", name, got)
			}
			deletes(b, id, compute.ActRequest{})
		}
	})
}

// endWith reports the end of an action.
func (b *bench) endWith(r compute.ActRequest, failed string, refused bool) {
	b.Helper()
	if _, err := b.svc.EndStep(b.Context(), &compute.EndStepRequest{StepRequest: step("h1", r.Token), Error: failed, Refused: refused}); err != nil {
		b.Errorf("report: %v", err)
	}
}

// succeeds reports that an action has succeeded. Like the functions below, it is a value of the field end in TestDiscardImages.
func succeeds(b *bench, _ string, r compute.ActRequest) { b.Helper(); b.endWith(r, "", false) }

// fails reports that an action has failed.
func fails(b *bench, id string, r compute.ActRequest) {
	b.Helper()
	b.endWith(r, "broken", false)
	if s := b.server(id); r.Action == compute.Shelve && s.VMState != store.Error {
		b.Errorf("after a failed shelve: %s", s.VMState)
	}
}

// expires makes the step of an action time out.
func expires(b *bench, id string, _ compute.ActRequest) {
	b.Helper()
	b.awaitPeer(id)
	b.expireStep(id)
}

// rotates reports that the removal of older backups has ended. The parameter failed is the error, or "".
func rotates(failed string) func(*bench, string, compute.ActRequest) {
	return func(b *bench, id string, _ compute.ActRequest) {
		b.Helper()
		b.endWith(b.awaitAct(id), failed, false)
		b.awaitNoTask(id)
	}
}

// awaitAway waits until the removal of an image has failed, because the image service is down.
func (b *bench) awaitAway(f *fakeImages, id string) {
	b.Helper()
	waittest.Until(b, "an attempt to remove the image "+id, func() bool { return f.tried(id) })
}

// expireDiscard ends the delay before the next attempt to remove an image.
func (b *bench) expireDiscard(id string) {
	b.Helper()
	b.exec(`UPDATE operations SET due_at = ? WHERE active = ? AND due_at IS NOT NULL`, time.Now().UTC().Add(-2*time.Hour), id)
}

// refuses reports that the compute service has refused the action. It checks that the server keeps its state.
func refuses(b *bench, id string, r compute.ActRequest) {
	b.Helper()
	b.endWith(r, "no image service", true)
	if s := b.server(id); s.VMState != store.Active || s.FaultDetails != "no image service" || s.Task() != "" {
		b.Errorf("after a refused action: %s %s, %q", s.VMState, s.Task(), s.FaultDetails)
	}
}

// deletes deletes the server.
func deletes(b *bench, id string, _ compute.ActRequest) {
	b.Helper()
	if err := b.store.BeginDelete(b.Context(), id); err != nil {
		b.Fatal(err)
	}
	b.notify(id)
	r := get(b, b.destroys)
	for r.ServerID != id { // skips repeated requests for other servers
		r = get(b, b.destroys)
	}
	if err := b.report("h1", r.Token, ""); err != nil {
		b.Error(err)
	}
}

// resets resets the state of the server.
func resets(b *bench, id string, _ compute.ActRequest) {
	b.Helper()
	if err := b.store.ResetState(b.Context(), id, store.Active); err != nil {
		b.Fatal(err)
	}
}

func unshelves(b *bench, id string, r compute.ActRequest) { acts(compute.Unshelve, "")(b, id, r) }
func rebuilds(b *bench, id string, r compute.ActRequest)  { acts(compute.Rebuild, "")(b, id, r) }

// acts begins another action on the server, and reports the end of this action. The parameter failed is the error, or "".
func acts(a compute.Action, failed string) func(*bench, string, compute.ActRequest) {
	return func(b *bench, id string, _ compute.ActRequest) {
		b.Helper()
		b.endWith(b.act(id, a, store.ActData{}), failed, false)
	}
}

func both(one, two func(*bench, string, compute.ActRequest)) func(*bench, string, compute.ActRequest) {
	return func(b *bench, id string, r compute.ActRequest) {
		b.Helper()
		one(b, id, r)
		two(b, id, r)
	}
}
