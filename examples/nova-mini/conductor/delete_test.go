package conductor_test

import (
	"errors"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
)

// TestDelete: only the report of the server's host, with the token of the step, ends a deletion.
func TestDelete(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.add()
		b.wake(id)
		r := get(b, b.builds)
		b.waits(id)
		if err := b.store.BeginDelete(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.wake(id)
		d := get(b, b.destroys)
		if d.ServerID != id || d.Token != b.token(id) {
			b.Errorf("told to destroy %+v", d)
		}
		for _, token := range []string{r.Token, d.Token + "1", ""} {
			if err := b.report("h1", token, ""); !errors.Is(err, compute.ErrStale) {
				b.Errorf("a report with the token %q: %v, want ErrStale", token, err)
			}
			if err := b.wanted(token); !errors.Is(err, compute.ErrStale) {
				b.Errorf("the question with the token %q: %v, want ErrStale", token, err)
			}
		}
		if b.server(id).Task() != store.Deleting {
			b.Error("it is gone by an old report")
		}
		if err := b.wanted(d.Token); err != nil {
			b.Errorf("the question of its host: %v", err)
		}
		for range 2 {
			if err := b.report("h1", d.Token, ""); err != nil {
				b.Errorf("end: %v", err)
			}
		}
		b.unclaimed()
		if _, err := b.store.Server(b.Context(), id); !errors.Is(err, fault.NotFound) {
			b.Errorf("after the end: %v", err)
		}
	})
}
