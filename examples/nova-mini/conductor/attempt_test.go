package conductor_test

import (
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/rpc"
)

// TestEarlierWorker: a compute service of an earlier release, which identifies attempts by generations instead of tokens, can build, act and destroy.
func TestEarlierWorker(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.addServer()
		b.notify(id)
		earlier, conductor := rpc.Version{Major: 1, Minor: 2}, &rpc.Interface{Name: "conductor", Version: rpc.Version{Major: 1, Minor: 2}}
		type none = rpc.None
		begin := rpc.Method[compute.AttemptRequest, none]{Interface: conductor, Name: "begin_build", Since: earlier}
		end := map[string]rpc.Method[compute.EndBuildRequest, none]{}
		for _, name := range []string{"end_build", "end_act", "end_destroy"} {
			end[name] = rpc.Method[compute.EndBuildRequest, none]{Interface: conductor, Name: name, Since: earlier}
		}
		work := func(what, task string, generation int64) {
			b.Helper()
			at := compute.AttemptRequest{ServerID: id, Host: "h1", Generation: generation, Task: task}
			for _, stale := range []compute.AttemptRequest{
				{ServerID: id, Host: "h1", Generation: generation + 1, Task: task}, {ServerID: uuid.NewString(), Host: "h1", Generation: generation, Task: task}, {ServerID: id, Host: "h2", Task: task},
			} {
				if _, err := rpc.Call(b.Context(), b.cfg.Client, begin, rpc.Any, &stale); !errors.Is(err, compute.ErrStale) {
					b.Errorf("the question %+v: %v, want ErrStale", stale, err)
				}
				if _, err := rpc.Call(b.Context(), b.cfg.Client, end[what], rpc.Any, &compute.EndBuildRequest{AttemptRequest: stale}); !errors.Is(err, compute.ErrStale) {
					b.Errorf("the report %+v: %v, want ErrStale", stale, err)
				}
			}
			if _, err := rpc.Call(b.Context(), b.cfg.Client, begin, rpc.Any, &at); err != nil {
				b.Errorf("%s: begin: %v", what, err)
			}
			if what == "end_destroy" { // generation 0 means any attempt
				at.Generation = 0
			}
			if _, err := rpc.Call(b.Context(), b.cfg.Client, end[what], rpc.Any, &compute.EndBuildRequest{AttemptRequest: at}); err != nil {
				b.Errorf("%s: %v", what, err)
			}
		}
		work("end_build", "", get(b, b.builds).Generation)
		if s := b.server(id); s.VMState != store.Active || s.TaskState != nil {
			b.Fatalf("server %s, task %q; want active", s.VMState, s.Task())
		}
		if err := b.store.BeginAction(b.Context(), id, compute.Stop, store.ActData{}); err != nil {
			b.Fatal(err)
		}
		b.notify(id)
		act := get(b, b.acts)
		work("end_act", act.Task, act.Generation)
		if s := b.server(id); s.VMState != store.Stopped || act.Task != compute.Stop.Info().Task {
			b.Fatalf("server %s after the task %q; want stopped", s.VMState, act.Task)
		}
		if err := b.store.BeginDelete(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.notify(id)
		work("end_destroy", store.Deleting, get(b, b.destroys).Generation)
		b.wantNoClaims()
	})
}
