package conductor_test

import (
	"context"
	"fmt"
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
	log  []string
}

func (f *fakeImages) Discard(_ context.Context, id string, keepActive bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away > 0 {
		f.away--
		return fault.New(fault.Unavailable, "away")
	}
	f.log = append(f.log, fmt.Sprint(id, " ", keepActive))
	return nil
}

func (f *fakeImages) did() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprint(f.log)
}

// TestDiscardImages: the image that an action uploads is removed if the action fails or another operation preempts it, and that of a shelved server when the server runs again or is
// deleted. The removal waits for an image service that is away. Without an upload nothing is removed.
func TestDiscardImages(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		action compute.Action
		plain  bool // no upload
		end    func(b *bench, id string, r compute.ActRequest)
		want   string
	}{
		"failed createImage":    {action: compute.CreateImage, end: fails, want: "[image false]"},
		"failed shelve":         {action: compute.Shelve, end: fails, want: "[image false]"},
		"failed without upload": {action: compute.Shelve, plain: true, end: fails, want: "[]"},
		"late": {action: compute.CreateImage, end: func(b *bench, id string, _ compute.ActRequest) {
			b.Helper()
			b.awaitPeer(id)
			b.expireStep(id)
		}, want: "[image false]"},
		"deleted during createImage":  {action: compute.CreateImage, end: deletes, want: "[image true]"},
		"deleted during shelve":       {action: compute.Shelve, end: deletes, want: "[image false]"},
		"deleted without upload":      {action: compute.Shelve, plain: true, end: deletes, want: "[]"},
		"deleted during a rescue":     {action: compute.Rescue, plain: true, end: deletes, want: "[]"},
		"reset during createImage":    {action: compute.CreateImage, end: resets, want: "[image true]"},
		"reset during shelve":         {action: compute.Shelve, end: resets, want: "[image false]"},
		"createImage":                 {action: compute.CreateImage, end: succeeds, want: "[]"},
		"deleted after createImage":   {action: compute.CreateImage, end: both(succeeds, deletes), want: "[]"},
		"shelved":                     {action: compute.Shelve, end: succeeds, want: "[]"},
		"deleted after shelve":        {action: compute.Shelve, end: both(succeeds, deletes), want: "[image false]"},
		"unshelved":                   {action: compute.Shelve, end: both(succeeds, unshelves), want: "[image false]"},
		"reset and rebuilt":           {action: compute.Shelve, end: both(succeeds, both(resets, rebuilds)), want: "[image false]"},
		"deleted after its unshelve":  {action: compute.Shelve, end: both(succeeds, both(unshelves, deletes)), want: "[image false]"},
		"a failed unshelve needs it":  {action: compute.Shelve, end: both(succeeds, acts(compute.Unshelve, "no")), want: "[]"},
		"refused, as on another host": {action: compute.Shelve, end: refuses, want: "[image false]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			images := &fakeImages{}
			each(t, conductor.Config{BuildTimeout: time.Minute, ShelvedOffload: -1, Images: images}, func(b *bench) {
				images.mu.Lock()
				images.away, images.log = 2, nil // for each database
				images.mu.Unlock()
				b.start()
				id := b.addServer()
				b.notify(id)
				if err := b.report("h1", get(b, b.builds).Token, ""); err != nil {
					b.Fatal(err)
				}
				r := b.act(id, tt.action, store.ActData{ImageRef: "image", Upload: !tt.plain})
				if r.Upload == tt.plain || r.ImageRef != "image" {
					b.Errorf("request %+v", r)
				}
				tt.end(b, id, r)
				waittest.Until(b, "the removal of images", func() bool {
					b.expire()
					return images.did() == tt.want
				})
				b.awaitPolls()
				if got := images.did(); got != tt.want {
					b.Errorf("removed %s, want %s", got, tt.want)
				}
			})
		})
	}
}

// act begins an action on a server and returns the request to the compute service.
func (b *bench) act(id string, a compute.Action, data store.ActData) compute.ActRequest {
	b.Helper()
	if err := b.store.BeginAction(b.Context(), id, a, data); err != nil {
		b.Fatal(err)
	}
	b.notify(id)
	for {
		if r := get(b, b.acts); r.Action == a {
			return r
		}
	}
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
	b.endDestroy()
}

func (b *bench) endDestroy() {
	b.Helper()
	if err := b.report("h1", get(b, b.destroys).Token, ""); err != nil {
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
