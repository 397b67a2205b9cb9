package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
)

// TestResizeToRecreatedFlavor: a flavor that was deleted and created again with the same id is another flavor, so a server can be resized to it, and the size of the server is known in each state of
// the resize. A flavor whose extra specs have changed is the same flavor.
func TestResizeToRecreatedFlavor(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		ctx := t.Context()
		addHost(t, s, "h1", 8)
		create := func(vcpus int) *store.Flavor {
			t.Helper()
			err := s.CreateFlavor(ctx, &store.Flavor{ID: "gold", Name: "gold", VCPUs: vcpus, MemoryMiB: 512, DiskGiB: 1, Public: true})
			if err != nil {
				t.Fatal(err)
			}
			return read(ctx, t, s, "gold")
		}
		again := func(vcpus int) *store.Flavor {
			t.Helper()
			if err := s.DeleteFlavor(ctx, "gold"); err != nil {
				t.Fatal(err)
			}
			return create(vcpus)
		}
		build := func(f *store.Flavor) string {
			t.Helper()
			srv := &store.Server{ID: uuid.NewString(), Name: "s", ProjectID: "p", FlavorID: f.ID, VCPUs: f.VCPUs, MemoryMiB: f.MemoryMiB, DiskGiB: f.DiskGiB, BootFlavor: db.JSONOf(f.Boot())}
			if err := s.CreateServer(ctx, srv); err != nil {
				t.Fatal(err)
			}
			place(t, s, d, srv.ID, "h1")                                                                    //nolint:contextcheck // the test's
			inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error { return s.Activate(ctx, tx, srv.ID) }) //nolint:contextcheck // the test's
			endOperations(ctx, t, d)
			return srv.ID
		}
		resize := func(id string, f *store.Flavor) error {
			return s.BeginAction(ctx, id, compute.Resize, store.ActData{Resize: store.SizeOf(f)})
		}
		end := func(id string, a compute.Action, failed error) {
			t.Helper()
			inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error { //nolint:contextcheck // the test's
				return s.EndAction(ctx, tx, id, a, new(store.ActData), failed)
			})
			endOperations(ctx, t, d)
		}
		// check checks the size that the server has, and the size that it gets if its resize is interrupted now. 0: the server has no resize.
		check := func(id, when, state string, vcpus, settled int) {
			t.Helper()
			srv, err := s.Server(ctx, id)
			if err != nil || srv.VMState != state || srv.VCPUs != vcpus {
				t.Errorf("%s: %s, %d vCPUs, %v; want %s, %d", when, srv.VMState, srv.VCPUs, err, state, vcpus)
			}
			if goal := srv.Goal(compute.HardReboot); (goal == nil) != (settled == 0) || goal != nil && goal.Has.VCPUs != settled {
				t.Errorf("%s: a hard reboot gives the server %+v, want %d vCPUs", when, goal, settled)
			}
			if found, err := s.Audit(ctx, false, 0); err != nil || len(found) > 0 {
				t.Errorf("%s: the audit finds %+v, %v", when, found, err)
			}
		}
		refused := func(id, when string, f *store.Flavor) {
			t.Helper()
			if err := resize(id, f); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "When resizing, instances must change flavor!") {
				t.Errorf("%s: %v", when, err)
			}
		}

		first := create(1)
		id := build(first)
		refused(id, "the same flavor", first)
		if err := s.SetSpecs(ctx, "gold", map[string]string{"colour": "red"}); err != nil {
			t.Fatal(err)
		}
		refused(id, "the same flavor with other extra specs", read(ctx, t, s, "gold"))

		if err := resize(id, again(1)); err != nil {
			t.Fatalf("a flavor with the same values: %v", err)
		}
		check(id, "begun", store.Active, 1, 1)
		end(id, compute.Resize, errors.New("the driver cannot"))
		check(id, "failed", store.Active, 1, 0)

		larger := again(2)
		for _, back := range []compute.Action{compute.RevertResize, compute.ConfirmResize} {
			if err := resize(id, larger); err != nil {
				t.Fatalf("a larger flavor: %v", err)
			}
			check(id, "begun", store.Active, 1, 1)
			end(id, compute.Resize, nil)
			check(id, "resized", store.Resized, 2, 2)
			if err := s.BeginAction(ctx, id, back, store.ActData{}); err != nil {
				t.Fatal(err)
			}
			end(id, back, nil)
			check(id, string(back), store.Active, map[compute.Action]int{compute.RevertResize: 1, compute.ConfirmResize: 2}[back], 0)
		}
		refused(id, "the flavor that the server has now", larger)

		// An earlier release has not stored the time of the creation.
		smaller := again(1)
		early := *smaller
		early.CreatedAt = nil
		id = build(&early)
		refused(id, "a flavor with the same values, and an unknown time", smaller)
		if err := resize(id, again(2)); err != nil {
			t.Errorf("a flavor with other values, and an unknown time: %v", err)
		}
	})
}

// read returns a flavor as an administrator reads it.
func read(ctx context.Context, t *testing.T, s *store.Store, id string) *store.Flavor {
	t.Helper()
	f, err := s.Flavor(ctx, store.FlavorViewer{All: true}, id)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
