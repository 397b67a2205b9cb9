package store_test

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/operation"
)

// endOperations ends all operations, as the conductor does in the transaction that records their result.
func endOperations(ctx context.Context, t *testing.T, d *sqlx.DB) {
	t.Helper()
	if _, err := d.ExecContext(ctx, `UPDATE operations SET state = ?, active = NULL, due_at = NULL`, operation.Succeeded); err != nil {
		t.Fatal(err)
	}
}

// TestActions tests in which states an action is refused, the operation and the state of each action, and the fault after a failed action.
func TestActions(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		ctx := t.Context()
		addHost(t, s, "h1", 8)
		id := addServer(t, s).ID
		if err := s.BeginAction(ctx, id, compute.Stop, store.ActData{}); fault.CodeOf(err) != fault.Conflict || err.Error() != "Cannot 'stop' instance "+id+" while it is in vm_state building" {
			t.Errorf("stop of a server that is not built: %v", err)
		}
		place(t, s, d, id, "h1")
		inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error { return s.Activate(ctx, tx, id) })
		endOperations(ctx, t, d)
		for _, tt := range []struct{ host, vmState, id, want string }{
			{"", store.Error, id, "Instance " + id + " is not ready"},
			{"", store.Stopped, id, "Cannot 'stop' instance " + id + " while it is in vm_state stopped"},
			{"h1", store.Stopped, id, "Cannot 'stop' instance " + id + " while it is in vm_state stopped"},
			{"h1", store.Active, "none", "Instance none could not be found."},
		} {
			if _, err := d.ExecContext(ctx, `UPDATE servers SET host = ?, vm_state = ?`, sql.NullString{String: tt.host, Valid: tt.host != ""}, tt.vmState); err != nil {
				t.Fatal(err)
			}
			if err := s.BeginAction(ctx, tt.id, compute.Stop, store.ActData{}); err == nil || err.Error() != tt.want {
				t.Errorf("stop of a server on %q in %s: %v, want %s", tt.host, tt.vmState, err, tt.want)
			}
		}
		for _, tt := range []struct {
			from   string
			action compute.Action
			task   string // "": the action is refused
			to     string
		}{
			{store.Active, compute.Start, "", ""},
			{store.Active, compute.Stop, compute.Stop.Info().Task, store.Stopped},
			{store.Stopped, compute.Stop, "", ""},
			{store.Stopped, compute.SoftReboot, "", ""},
			{store.Stopped, compute.HardReboot, compute.HardReboot.Info().Task, store.Active},
			{store.Active, compute.SoftReboot, compute.SoftReboot.Info().Task, store.Active},
			{store.Error, compute.Start, "", ""},
			{store.Error, compute.Stop, compute.Stop.Info().Task, store.Stopped},
			{store.Stopped, compute.Start, compute.Start.Info().Task, store.Active},
			{store.Active, "explode", "", ""},
		} {
			if _, err := d.ExecContext(ctx, `UPDATE servers SET vm_state = ?`, tt.from); err != nil {
				t.Fatal(err)
			}
			err := s.BeginAction(ctx, id, tt.action, store.ActData{})
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
			srv, err := s.Server(ctx, id)
			if err != nil || srv.Task() != tt.task {
				t.Fatalf("%s: %+v, %v", tt.action, srv, err)
			}
			if open, err := s.Operations().List(ctx, operation.Filter{Resource: id, Open: true}); err != nil || len(open) != 1 || open[0].Kind != "server."+string(tt.action) {
				t.Errorf("operations of %s: %+v, %v", tt.action, open, err)
			}
			inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error {
				return s.EndAction(ctx, tx, id, tt.action, new(store.ActData), nil)
			})
			endOperations(ctx, t, d)
			if srv, err = s.Server(ctx, id); err != nil || srv.VMState != tt.to || srv.TaskState != nil {
				t.Errorf("after %s the server is %s, %v; want %s", tt.action, srv.VMState, err, tt.to)
			}
		}
		if err := s.BeginAction(ctx, id, compute.Stop, store.ActData{}); err != nil {
			t.Fatal(err)
		}
		inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error {
			return s.EndAction(ctx, tx, id, compute.Stop, new(store.ActData), errors.New("no power"))
		})
		if srv, err := s.Server(ctx, id); err != nil || srv.VMState != store.Active || srv.FaultDetails != "no power" {
			t.Errorf("after a failed stop: %+v, %v", srv, err)
		}
		if err := s.BeginAction(ctx, "none", compute.Stop, store.ActData{}); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("stop of a server that does not exist: %v", err)
		}
	})
}

// TestOneTime: a method that begins an operation reads the database's clock once, so the updated_at of the server is the
// created_at of its operation.
func TestOneTime(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		ctx := t.Context()
		addHost(t, s, "h1", 8)
		id := addServer(t, s).ID
		check := func(what string) {
			t.Helper()
			var same bool
			if err := d.GetContext(ctx, &same, `SELECT s.updated_at = o.created_at FROM servers s JOIN operations o ON o.active = s.id WHERE s.id = ?`, id); err != nil || !same {
				t.Errorf("%s: server's updated_at = operation's created_at: %v, %v; want true", what, same, err)
			}
		}
		check("create")
		place(t, s, d, id, "h1")
		inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error { return s.Activate(ctx, tx, id) })
		endOperations(ctx, t, d)
		for _, tt := range []struct {
			what  string
			begin func() error
		}{
			{"stop", func() error { return s.BeginAction(ctx, id, compute.Stop, store.ActData{}) }},
			{"resize", func() error {
				return s.BeginAction(ctx, id, compute.Resize, store.ActData{Resize: store.SizeOf(&store.Flavor{ID: "2", VCPUs: 2, MemoryMiB: 2, DiskGiB: 2})})
			}},
			{"delete", func() error { return s.BeginDelete(ctx, id) }},
		} {
			if err := tt.begin(); err != nil {
				t.Fatalf("%s: %v", tt.what, err)
			}
			check(tt.what)
			endOperations(ctx, t, d)
		}
	})
}

// TestPrepareAction: a conductor whose step is no longer the current step claims nothing. Otherwise the conductor of an ended operation
// could make a claim that no operation releases.
func TestPrepareAction(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		ctx := t.Context()
		addHost(t, s, "h1", 4)
		id := addActiveServer(t, s, d)
		before := used(t, d, "h1")
		if err := s.BeginAction(ctx, id, compute.Resize, store.ActData{Resize: store.SizeOf(&store.Flavor{ID: "large", Name: "large", VCPUs: 2, MemoryMiB: 1024, DiskGiB: 2})}); err != nil {
			t.Fatal(err)
		}
		data := &store.ActData{Resize: &store.Size{FlavorID: "large", Has: compute.Resources{VCPUs: 2, MemoryMiB: 1024, DiskGiB: 2}}}
		failed, err := s.Operations().Current(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error {
			return s.EndAction(ctx, tx, id, compute.Resize, new(store.ActData), errors.New("no luck"))
		})
		endOperations(ctx, t, d)
		stale := func(what string) {
			t.Helper()
			if _, err := s.PrepareAction(ctx, failed, compute.Resize, data); !errors.Is(err, operation.ErrStale) {
				t.Errorf("%s: %v, want ErrStale", what, err)
			}
			if got := used(t, d, "h1"); got != before { //nolint:contextcheck // the test's
				t.Errorf("%s: %d MiB in use, want %d", what, got, before)
			}
		}
		stale("after the end of the operation")
		if err := s.BeginAction(ctx, id, compute.HardReboot, store.ActData{}); err != nil {
			t.Fatal(err)
		}
		stale("during another operation")
		endOperations(ctx, t, d)
		// An operator retries the failed operation.
		if _, err := d.ExecContext(ctx, `UPDATE operations SET state = ? WHERE id = ?`, operation.Failed, failed.ID); err != nil {
			t.Fatal(err)
		}
		if err := s.Operations().Retry(ctx, failed.ID); err != nil {
			t.Fatal(err)
		}
		stale("with the token from before the retry")
		again, err := s.Operations().Current(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			srv, err := s.PrepareAction(ctx, again, compute.Resize, data)
			if err != nil || srv.Resize.V == nil || used(t, d, "h1") != 1024 {
				t.Errorf("the current step: %+v, %d MiB in use, %v", srv, used(t, d, "h1"), err)
			}
		}
	})
}

// TestHardReboot: a hard reboot ends those actions that Nova lets it interrupt, and no others. The ended action is shown as failed,
// with a text that says that another action or an operator has ended it. A soft reboot ends no action.
func TestHardReboot(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		ctx := t.Context()
		addHost(t, s, "h1", 8)
		id := addServer(t, s).ID
		place(t, s, d, id, "h1")
		inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error { return s.Activate(ctx, tx, id) })
		interrupted := []compute.Action{compute.SoftReboot, compute.HardReboot, compute.Pause, compute.Unpause, compute.Suspend, compute.Resume}
		tried := 0
		for _, info := range compute.Actions {
			a := info.Action
			from := slices.IndexFunc(info.From, func(state string) bool { return slices.Contains(compute.HardReboot.Info().From, state) })
			if info.Task == "" || info.Preempts || from < 0 {
				continue
			}
			tried++
			endOperations(ctx, t, d)
			if _, err := d.ExecContext(ctx, `UPDATE servers SET vm_state = ?, resize = NULL`, info.From[from]); err != nil {
				t.Fatal(err)
			}
			data := store.ActData{}
			if a == compute.Resize {
				data.Resize = store.SizeOf(&store.Flavor{ID: "2", VCPUs: 2, MemoryMiB: 1024, DiskGiB: 2})
			}
			request := "req-" + string(a)
			if err := s.BeginAction(reqctx.With(ctx, reqctx.Request{ID: request}), id, a, data); err != nil {
				t.Fatalf("%s: %v", a, err)
			}
			refused := func(next compute.Action, task string) {
				t.Helper()
				if err := s.BeginAction(ctx, id, next, store.ActData{}); fault.CodeOf(err) != fault.Conflict || err.Error() != "Cannot 'reboot' instance "+id+" while it is in task_state "+task {
					t.Errorf("%s during %s: %v", next, task, err)
				}
			}
			if info.From[from] == store.Active {
				refused(compute.SoftReboot, info.Task)
			}
			if !slices.Contains(interrupted, a) {
				refused(compute.HardReboot, info.Task)
				continue
			}
			if err := s.BeginAction(ctx, id, compute.HardReboot, store.ActData{}); err != nil {
				t.Errorf("hard reboot during %s: %v", a, err)
				continue
			}
			if srv, err := s.Server(ctx, id); err != nil || srv.Task() != compute.HardReboot.Info().Task {
				t.Errorf("during %s the hard reboot has the task %q, %v", a, srv.Task(), err)
			}
			past, err := s.PastAction(ctx, id, request)
			if err != nil || !past.Failed || len(past.Events) != 1 {
				t.Errorf("%s after it was ended: %+v, %v", a, past, err)
			} else if e := past.Events[0]; e.Finish == nil || !strings.Contains(e.Error, "server.hard_reboot") || !strings.HasSuffix(e.Details, "Another action or an operator has ended it.") {
				t.Errorf("%s after it was ended: %+v", a, e)
			}
		}
		if tried < 2*len(interrupted) {
			t.Errorf("only %d actions tried", tried)
		}
	})
}

// TestActionStates: each row of compute.Actions describes an action. An action begins only in the values of vm_state in its row.
// During the action, the server has the task and the status of the row. After success, it has the vm_state of the row. After a
// failure, it has its old state, or the failure state of the row, and a fault.
func TestActionStates(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		ctx := t.Context()
		addHost(t, s, "h1", 8)
		id := addActiveServer(t, s, d)
		states := map[string]bool{}
		for _, info := range compute.Actions {
			for _, state := range append(info.From, info.To, info.Fails) {
				states[state] = true
			}
		}
		delete(states, "")
		try := func(info compute.ActionInfo, state string, failed error) {
			if _, err := d.ExecContext(ctx, `UPDATE servers SET vm_state = ?, host = 'h1'`, state); err != nil {
				t.Fatal(err)
			}
			err := s.BeginAction(ctx, id, info.Action, store.ActData{})
			if !slices.Contains(info.From, state) {
				if want := "Cannot '" + info.Name + "' instance " + id + " while it is in vm_state " + state; fault.CodeOf(err) != fault.Conflict || err.Error() != want {
					t.Errorf("%s in %s: %v, want %s", info.Action, state, err, want)
				}
				return
			}
			if err != nil {
				t.Errorf("%s in %s: %v", info.Action, state, err)
				return
			}
			if srv, err := s.Server(ctx, id); err != nil || srv.Task() != info.Task || info.Shown[state] != "" && srv.Status() != info.Shown[state] {
				t.Errorf("during %s in %s: task %q, status %s, %v", info.Action, state, srv.Task(), srv.Status(), err)
			}
			inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error { //nolint:contextcheck // the test's
				return s.EndAction(ctx, tx, id, info.Action, new(store.ActData), failed)
			})
			endOperations(ctx, t, d)
			want := cmp.Or(info.To, state)
			if info.KeepsOff && state == store.Stopped {
				want = state
			}
			if failed != nil {
				want = cmp.Or(info.Fails, state)
			}
			srv, err := s.Server(ctx, id)
			if err != nil || srv.VMState != want || failed != nil && (srv.FaultDetails != "no" || srv.FaultMessage != "Failed to "+info.Name+" instance "+id+".") {
				t.Errorf("after %s in %s, error %v: %+v, %v; want %s", info.Action, state, failed, srv, err, want)
			}
			if srv.Status() == "UNKNOWN" {
				t.Errorf("the state %s has no status", srv.VMState)
			}
		}
		for _, info := range compute.Actions {
			for state := range states {
				if info.Task == "" || strings.Contains(string(info.Action), "resize") { // see TestResize
					continue
				}
				try(info, state, nil)
				try(info, state, errors.New("no"))
			}
		}
	})
}

// TestHardRebootRace: other actions begin and end while a hard reboot begins. The hard reboot is refused only because of an action that it does not interrupt.
func TestHardRebootRace(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *store.Store, d *sqlx.DB) {
		ctx := t.Context()
		addHost(t, s, "h1", 8)
		id := addActiveServer(t, s, d)
		end := func(where string) {
			inTx(t, d, func(ctx context.Context, tx *sqlx.Tx) error {
				_, err := tx.ExecContext(ctx, `UPDATE operations SET state = ?, active = NULL, due_at = NULL WHERE active = ? AND `+where, operation.Succeeded, id)
				return err
			})
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				a := []compute.Action{compute.CreateImage, compute.SoftReboot}[i%2]
				if err := s.BeginAction(ctx, id, a, store.ActData{}); err != nil && fault.CodeOf(err) != fault.Conflict {
					t.Error(err)
					return
				}
				if a == compute.CreateImage { // its end; a soft reboot is interrupted, or ends when the next image is made
					end(`kind <> 'server.hard_reboot'`)
				}
			}
		})
		begun := 0
		for start := time.Now(); time.Since(start) < 2*time.Second; {
			err := s.BeginAction(ctx, id, compute.HardReboot, store.ActData{})
			if err == nil {
				begun++
				end(`kind = 'server.hard_reboot'`)
			} else if !strings.HasSuffix(err.Error(), "while it is in task_state image_snapshot") {
				t.Error(err)
				break
			}
		}
		close(stop)
		wg.Wait()
		if begun == 0 {
			t.Error("no hard reboot has begun")
		}
	})
}
