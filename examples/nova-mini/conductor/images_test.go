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
)

// fakeImages is an image service that is away for the first requests.
type fakeImages struct {
	mu   sync.Mutex
	away int
	log  map[string]string
}

func (f *fakeImages) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away, f.log = 5, map[string]string{}
}

func (f *fakeImages) Discard(_ context.Context, id string, keepActive bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away > 0 {
		f.away--
		return fault.New(fault.Unavailable, "away")
	}
	f.log[id] = strconv.FormatBool(keepActive) // a removal may be repeated
	return nil
}

// did returns with what an image was removed.
func (f *fakeImages) did(id string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log[id]
}

// TestDiscardImages: the image that an action uploads is removed if the action fails or another operation preempts it, and that of a shelved server when the server runs again or is
// deleted. The removal waits for an image service that is away. Without an upload nothing is removed.
func TestDiscardImages(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		action compute.Action
		plain  bool // no upload
		end    func(b *bench, id string, r compute.ActRequest)
		want   string // keepActive of the removal, or nothing
	}{
		"failed createImage":    {action: compute.CreateImage, end: fails, want: "false"},
		"failed shelve":         {action: compute.Shelve, end: fails, want: "false"},
		"failed without upload": {action: compute.Shelve, plain: true, end: fails, want: ""},
		"late": {action: compute.CreateImage, end: func(b *bench, id string, _ compute.ActRequest) {
			b.Helper()
			b.awaitPeer(id)
			b.expireStep(id)
		}, want: "false"},
		"deleted during createImage":  {action: compute.CreateImage, end: deletes, want: "true"},
		"deleted during shelve":       {action: compute.Shelve, end: deletes, want: "false"},
		"deleted without upload":      {action: compute.Shelve, plain: true, end: deletes, want: ""},
		"deleted during a rescue":     {action: compute.Rescue, plain: true, end: deletes, want: ""},
		"reset during createImage":    {action: compute.CreateImage, end: resets, want: "true"},
		"reset during shelve":         {action: compute.Shelve, end: resets, want: "false"},
		"createImage":                 {action: compute.CreateImage, end: succeeds, want: ""},
		"deleted after createImage":   {action: compute.CreateImage, end: both(succeeds, deletes), want: ""},
		"shelved":                     {action: compute.Shelve, end: succeeds, want: ""},
		"deleted after shelve":        {action: compute.Shelve, end: both(succeeds, deletes), want: "false"},
		"unshelved":                   {action: compute.Shelve, end: both(succeeds, unshelves), want: "false"},
		"reset and rebuilt":           {action: compute.Shelve, end: both(succeeds, both(resets, rebuilds)), want: "false"},
		"deleted after its unshelve":  {action: compute.Shelve, end: both(succeeds, both(unshelves, deletes)), want: "false"},
		"a failed unshelve needs it":  {action: compute.Shelve, end: both(succeeds, acts(compute.Unshelve, "no")), want: ""},
		"refused, as on another host": {action: compute.Shelve, end: refuses, want: "false"},
	}
	images := &fakeImages{}
	each(t, conductor.Config{BuildTimeout: time.Minute, ShelvedOffload: -1, Images: images}, func(b *bench) {
		images.reset()
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
			act := b.act(id, tt.action, store.ActData{ImageRef: name, Upload: !tt.plain})
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

// endWith reports the end of an action.
func (b *bench) endWith(r compute.ActRequest, failed string, refused bool) {
	b.Helper()
	if _, err := b.svc.EndStep(b.Context(), &compute.EndStepRequest{StepRequest: step("h1", r.Token), Error: failed, Refused: refused}); err != nil {
		b.Errorf("report: %v", err)
	}
}

func succeeds(b *bench, _ string, r compute.ActRequest) { b.Helper(); b.endWith(r, "", false) }
func fails(b *bench, id string, r compute.ActRequest) {
	b.Helper()
	b.endWith(r, "broken", false)
	if s := b.server(id); r.Action == compute.Shelve && s.VMState != store.Error {
		b.Errorf("after a failed shelve: %s", s.VMState)
	}
}

// refuses reports that the compute service has not begun: the server keeps its state.
func refuses(b *bench, id string, r compute.ActRequest) {
	b.Helper()
	b.endWith(r, "no image service", true)
	if s := b.server(id); s.VMState != store.Active || s.FaultDetails != "no image service" || s.Task() != "" {
		b.Errorf("after an action that was refused: %s %s, %q", s.VMState, s.Task(), s.FaultDetails)
	}
}

func deletes(b *bench, id string, _ compute.ActRequest) {
	b.Helper()
	if err := b.store.BeginDelete(b.Context(), id); err != nil {
		b.Fatal(err)
	}
	b.notify(id)
	r := get(b, b.destroys)
	for r.ServerID != id { // a request that is repeated
		r = get(b, b.destroys)
	}
	if err := b.report("h1", r.Token, ""); err != nil {
		b.Error(err)
	}
}

func resets(b *bench, id string, _ compute.ActRequest) {
	b.Helper()
	if err := b.store.ResetState(b.Context(), id, store.Active); err != nil {
		b.Fatal(err)
	}
}

func unshelves(b *bench, id string, r compute.ActRequest) { acts(compute.Unshelve, "")(b, id, r) }
func rebuilds(b *bench, id string, r compute.ActRequest)  { acts(compute.Rebuild, "")(b, id, r) }

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
