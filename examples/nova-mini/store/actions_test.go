package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
)

// TestActions: each action in each state, what it leads to, and reports that come
// twice or too late.
func TestActions(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		ctx := t.Context()
		addHost(t, s, "h1", 8)
		id := addServer(t, s).ID
		if err := s.Act(ctx, id, compute.Stop); fault.CodeOf(err) != fault.Conflict || err.Error() != "Cannot 'stop' instance "+id+" while it is in task_state scheduling" {
			t.Errorf("stop of one that is not built: %v", err)
		}
		if err := s.Activate(ctx, place(t, s, id, "h1")); err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			from   string
			action compute.Action
			task   string // "": it is refused
			to     string
		}{
			{store.Active, compute.Start, "", ""},
			{store.Active, compute.Stop, store.PoweringOff, store.Stopped},
			{store.Stopped, compute.Stop, "", ""},
			{store.Stopped, compute.SoftReboot, "", ""},
			{store.Stopped, compute.HardReboot, store.RebootingHard, store.Active},
			{store.Active, compute.SoftReboot, store.Rebooting, store.Active},
			{store.Error, compute.Start, "", ""},
			{store.Error, compute.Stop, store.PoweringOff, store.Stopped},
			{store.Stopped, compute.Start, store.PoweringOn, store.Active},
			{store.Active, "explode", "", ""},
		} {
			if _, err := d.ExecContext(ctx, `UPDATE servers SET vm_state = ?`, tt.from); err != nil {
				t.Fatal(err)
			}
			err := s.Act(ctx, id, tt.action)
			if tt.task == "" {
				if fault.CodeOf(err) != fault.Conflict && fault.CodeOf(err) != fault.Unimplemented {
					t.Errorf("%s in %s: %v", tt.action, tt.from, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s in %s: %v", tt.action, tt.from, err)
				continue
			}
			srv, err := s.Lease(ctx, id, "L", time.Minute)
			if err != nil || srv == nil || srv.Task() != tt.task || store.ActionOf(srv.Task()) != tt.action {
				t.Fatalf("%s: leased %+v, %v", tt.action, srv, err)
			}
			a := compute.AttemptRequest{ServerID: id, Host: "h1", Generation: srv.Generation, Task: tt.task}
			late := a
			late.Generation--
			if err := s.Current(ctx, a); err != nil {
				t.Errorf("%s: %v", tt.action, err)
			}
			if err := s.Current(ctx, late); !errors.Is(err, compute.ErrStale) {
				t.Errorf("an old %s: %v", tt.action, err)
			}
			if err := s.EndAct(ctx, late, ""); !errors.Is(err, compute.ErrStale) {
				t.Errorf("the report of an old %s: %v", tt.action, err)
			}
			for range 2 {
				if err := s.EndAct(ctx, a, ""); err != nil {
					t.Errorf("the report of %s: %v", tt.action, err)
				}
			}
			if srv, err = s.Server(ctx, id); err != nil || srv.VMState != tt.to || srv.TaskState != nil {
				t.Errorf("after %s it is %s, %v; want %s", tt.action, srv.VMState, err, tt.to)
			}
		}
		if err := s.Act(ctx, id, compute.Stop); err != nil {
			t.Fatal(err)
		}
		srv, err := s.Lease(ctx, id, "L", time.Minute)
		if err != nil || srv == nil {
			t.Fatal(srv, err)
		}
		if err := s.EndAct(ctx, compute.AttemptRequest{ServerID: id, Host: "h1", Generation: srv.Generation, Task: store.PoweringOff}, "no power"); err != nil {
			t.Error(err)
		}
		if srv, err = s.Server(ctx, id); err != nil || srv.VMState != store.Active || srv.FaultMessage != "no power" {
			t.Errorf("after a stop that failed: %+v, %v", srv, err)
		}
		if err := s.Act(ctx, "none", compute.Stop); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("stop of nothing: %v", err)
		}
	})
}
