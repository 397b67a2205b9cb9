package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
)

// TestResize checks the size, the claim and the state of a server after each step of a resize, for each way in which
// a resize can end.
func TestResize(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		ctx := t.Context()
		addHost(t, s, "h1", 4)
		id := addActiveServer(t, s, d)
		size := func(name string, n, disk int) *store.Flavor {
			return &store.Flavor{ID: name, Name: name, VCPUs: n, MemoryMiB: 512 * n, DiskGiB: disk}
		}
		check := func(what, state, flavor string, memory int64) *store.Server {
			t.Helper()
			srv, err := s.Server(t.Context(), id)
			if got := used(t, d, "h1"); err != nil || srv.VMState != state || srv.FlavorID != flavor || got != memory {
				t.Fatalf("%s: %s, flavor %s, %d MiB in use, %v; want %s, %s, %d", what, srv.VMState, srv.FlavorID, got, err, state, flavor, memory)
			}
			if found, err := s.Audit(t.Context(), false, 0); err != nil || len(found) > 0 {
				t.Errorf("%s: the audit finds %+v, %v", what, found, err)
			}
			return srv
		}
		end := func(a compute.Action, failed error) {
			t.Helper()
			inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error { //nolint:contextcheck // the test's
				return s.EndAction(ctx, tx, id, a, new(store.ActData), failed)
			})
			endOperations(ctx, t, d)
		}
		begin := func(f *store.Flavor) {
			t.Helper()
			if err := s.BeginAction(ctx, id, compute.Resize, store.ActData{Resize: store.SizeOf(f)}); err != nil {
				t.Fatal(err)
			}
		}
		act := func(a compute.Action) {
			t.Helper()
			if err := s.BeginAction(ctx, id, a, store.ActData{}); err != nil {
				t.Fatal(err)
			}
		}
		for _, bad := range []struct {
			f    *store.Flavor
			says string
		}{
			{size("1", 1, 1), "When resizing, instances must change flavor!"},
			{size("flat", 1, 0), "Unable to resize disk down"},
			{size("huge", 5, 1), "No valid host was found"},
		} {
			if err := s.BeginAction(ctx, id, compute.Resize, store.ActData{Resize: store.SizeOf(bad.f)}); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), bad.says) {
				t.Errorf("resize to %s: %v", bad.f.ID, err)
			}
			if srv := check("after a refused resize", store.Active, "1", 512); srv.TaskState != nil || srv.Resize.V != nil {
				t.Errorf("a refused resize changed the server: %+v", srv)
			}
		}
		for _, a := range []compute.Action{compute.ConfirmResize, compute.RevertResize} {
			if err := s.BeginAction(ctx, id, a, store.ActData{}); fault.CodeOf(err) != fault.Conflict {
				t.Errorf("%s without a resize: %v", a, err)
			}
		}

		begin(size("3", 3, 2))
		check("begun", store.Active, "1", 3*512)
		if err := s.BeginAction(ctx, id, compute.Resize, store.ActData{Resize: store.SizeOf(size("2", 2, 2))}); fault.CodeOf(err) != fault.Conflict {
			t.Errorf("a second resize during the first: %v", err)
		}
		end(compute.Resize, errors.New("the driver cannot"))
		if srv := check("failed", store.Active, "1", 512); srv.FaultDetails != "the driver cannot" || srv.Resize.V != nil {
			t.Errorf("after a failed resize: %+v", srv)
		}

		begin(size("3", 3, 2))
		end(compute.Resize, nil)
		if srv := check("resized", store.Resized, "3", 3*512); srv.Resize.V == nil || !srv.Resize.V.Running {
			t.Errorf("resized: %+v", srv.Resize.V)
		}
		if err := s.BeginAction(ctx, id, compute.Stop, store.ActData{}); fault.CodeOf(err) != fault.Conflict {
			t.Errorf("stop before the resize is confirmed: %v", err)
		}
		act(compute.RevertResize)
		end(compute.RevertResize, fault.New(fault.Precondition, "refused"))
		check("not reverted", store.Resized, "3", 3*512)
		act(compute.RevertResize)
		end(compute.RevertResize, nil)
		check("reverted", store.Active, "1", 512)

		act(compute.Stop)
		end(compute.Stop, nil)
		begin(size("2", 2, 1))
		end(compute.Resize, nil)
		act(compute.ConfirmResize)
		end(compute.ConfirmResize, fault.New(fault.Precondition, "refused"))
		check("not confirmed", store.Resized, "2", 2*512)
		act(compute.ConfirmResize)
		end(compute.ConfirmResize, nil)
		check("confirmed", store.Stopped, "2", 2*512)
		begin(size("1", 1, 1)) // the claim of a smaller size covers the larger size until the resize is confirmed
		end(compute.Resize, nil)
		check("smaller", store.Resized, "1", 2*512)
		act(compute.ConfirmResize)
		end(compute.ConfirmResize, nil)
		check("smaller, confirmed", store.Stopped, "1", 512)

		// After a resize with an unknown result, the claim covers both sizes.
		begin(size("3", 3, 1))
		end(compute.Resize, fault.New(fault.Timeout, "the host does not answer"))
		check("result not known", store.Error, "1", 3*512)
		if err := s.BeginDelete(ctx, id); err != nil {
			t.Error(err)
		}
		if remove(t, s, d, id); used(t, d, "h1") != 0 {
			t.Errorf("deleted: %d MiB in use", used(t, d, "h1"))
		}
	})
}
