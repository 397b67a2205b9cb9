package conductor_test

import (
	"errors"
	"testing"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
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
