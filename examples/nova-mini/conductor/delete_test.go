package conductor_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/operation"
)

// TestDelete: only the report of the server's host, with the token of the step, ends a deletion.
func TestDelete(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		b.start()
		id := b.addServer()
		b.notify(id)
		r := get(b, b.builds)
		b.awaitWait(id)
		if err := b.store.BeginDelete(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.notify(id)
		d := get(b, b.destroys)
		if d.ServerID != id || d.Token != b.token(id) {
			b.Errorf("the request to destroy is %+v", d)
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
			b.Error("an old report has removed the server")
		}
		if err := b.wanted(d.Token); err != nil {
			b.Errorf("the question of the server's host, whether the deletion is wanted: %v", err)
		}
		for range 2 {
			if err := b.report("h1", d.Token, ""); err != nil {
				b.Errorf("end: %v", err)
			}
		}
		b.wantNoClaims()
		if _, err := b.store.Server(b.Context(), id); !errors.Is(err, fault.NotFound) {
			b.Errorf("after the end: %v", err)
		}
	})
}

// TestRetryOfDeleted: if the creation of a deleted server is retried, no claim is left.
func TestRetryOfDeleted(t *testing.T) {
	t.Parallel()
	each(t, conductor.Config{}, func(b *bench) {
		id := b.addServer()
		created := b.operation(id).ID
		if err := b.store.BeginDelete(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.start()
		ended := func(op string) {
			b.Helper()
			waittest.Succeeds(b, "the end of operation "+op, func() error {
				o, err := b.store.Operations().Show(b.Context(), op)
				if err == nil && !o.State.Ended() {
					err = fmt.Errorf("the operation has not ended: %+v", o)
				}
				return err
			})
		}
		list, err := b.store.Operations().List(b.Context(), operation.Filter{Resource: id, Kind: store.Delete.Name})
		if err != nil || len(list) != 1 {
			b.Fatal(list, err)
		}
		ended(list[0].ID)
		if err := b.store.Operations().Retry(b.Context(), created); err != nil {
			b.Fatal(err)
		}
		ended(created)
		b.wantNoClaims()
	})
}
