package conductor_test

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/internal/waittest"
)

// TestOtherHost: a compute service can end only the steps of its own host, even if it knows a token of another host. From an earlier token
// of an operation, it cannot guess the next token.
func TestOtherHost(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.addServer()
		b.notify(id)
		r := get(b, b.builds)
		waittest.Until(b, "an operation that waits for h1", func() bool { return b.operation(id).WaitsFor == "h1" })
		if err := b.svc.Runner.Stop(b.Context()); err != nil { // otherwise a late notification would make the runner repeat the step
			b.Fatal(err)
		}
		if peer := b.operation(id).WaitsFor; peer != "h1" {
			b.Fatalf("the operation waits for %q", peer)
		}
		if _, err := b.svc.BeginStep(b.Context(), new(step("h2", r.Token))); !errors.Is(err, compute.ErrStale) {
			b.Errorf("host h2 asks for a step of h1: %v, want ErrStale", err)
		}
		for _, failed := range []string{"", "h2 does not like it"} {
			if err := b.report("h2", r.Token, failed); !errors.Is(err, compute.ErrStale) {
				b.Errorf("host h2 reports %q for a step of h1: %v, want ErrStale", failed, err)
			}
		}
		if s := b.server(id); s.VMState != store.Building {
			b.Fatalf("server %s after reports of another host", s.VMState)
		}
		if err := b.report("h1", r.Token, "no luck"); err != nil {
			b.Fatal(err)
		}
		op, n, _ := strings.Cut(r.Token, "/")
		last, err := strconv.Atoi(n)
		if err != nil {
			b.Fatal(err)
		}
		for i := 1; i < 20; i++ { // the next steps are schedule and build
			if err := b.report("h1", fmt.Sprintf("%s/%d", op, last+i), ""); !errors.Is(err, compute.ErrStale) {
				b.Errorf("host h1 guesses the token of a later step by adding %d: %v, want ErrStale", i, err)
			}
		}
	})
}
