package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/operation"
)

// Size is a flavor's id and the resources of a server of that flavor.
type Size struct {
	FlavorID string            `json:"flavor"`
	Has      compute.Resources `json:"has"`
}

// Resize is a resize that is neither confirmed nor reverted. Until then the server's claim covers both sizes.
type Resize struct {
	From Size `json:"from"`
	To   Size `json:"to"`
	// Running reports whether the server ran before the resize, and so must run after the resize.
	Running bool `json:"running"`
}

func (s *Server) size() Size { return Size{s.FlavorID, s.Need()} }

func (s *Server) setSize(z Size) {
	s.FlavorID, s.VCPUs, s.MemoryMiB, s.DiskGiB = z.FlavorID, z.Has.VCPUs, z.Has.MemoryMiB, z.Has.DiskGiB
}

// Holds returns the resources that the server's claim covers: of two sizes during a resize, the larger amount of each
// resource.
func (s *Server) Holds() compute.Resources {
	if s.Resize.V == nil {
		return s.Need()
	}
	a, b := s.Resize.V.From.Has, s.Resize.V.To.Has
	return compute.Resources{VCPUs: max(a.VCPUs, b.VCPUs), MemoryMiB: max(a.MemoryMiB, b.MemoryMiB), DiskGiB: max(a.DiskGiB, b.DiskGiB)}
}

// updateClaim sets the server's claim to the resources of [Server.Holds].
func (s *Store) updateClaim(ctx context.Context, tx *sqlx.Tx, srv *Server) error {
	return s.claims.ClaimTx(ctx, tx, placement.Claim{
		Consumer: srv.ID, Generation: placement.Any,
		Allocations: []placement.Allocation{{Provider: *srv.Host, Resources: Need(srv.Holds())}},
	})
}

// BeginAction begins the operation of an action on a server. Errors: NotFound; Conflict, with Nova's text, if the
// server's state does not allow the action or the server has a task.
func (s *Store) BeginAction(ctx context.Context, id string, a compute.Action) error {
	return s.beginAction(ctx, id, a, &ActData{})
}

// BeginResize begins to give a server another size on its host, and claims the resources for both sizes. Errors:
// those of BeginAction; Invalid, with Nova's text, if the server already has the flavor or its disk would shrink;
// [placement.ErrNoRoom], if the host has too little. The text of ErrNoRoom names the host and amounts, which the server's
// project must not see.
func (s *Store) BeginResize(ctx context.Context, id string, f *Flavor) error {
	return s.beginAction(ctx, id, compute.Resize, &ActData{Resize: &Size{f.ID, f.Resources()}})
}

func (s *Store) beginAction(ctx context.Context, id string, a compute.Action, data *ActData) error {
	for {
		err := s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
			// The operation is locked before the server, in the same order as a runner locks them.
			if _, err := operation.Begin(ctx, s.ops, Kinds[a], id, data); err != nil {
				return err
			}
			return s.prepareAction(ctx, tx, id, a, data, now)
		})
		if !errors.Is(err, operation.ErrBusy) {
			return err
		}
		srv, readErr := s.Server(ctx, id)
		if readErr != nil {
			return readErr
		}
		if task := srv.Task(); task != "" { // without a task the other operation has ended meanwhile: begin again
			return fault.New(fault.Conflict, "Cannot '%s' instance %s while it is in task_state %s", a.Info().Name, id, task)
		}
	}
}

// PrepareAction checks that a server's state allows the action of its operation. For a resize it claims the resources if
// they are not claimed yet, as after operation.Store.Retry. It returns the server. Errors: those of BeginResize; operation.ErrStale,
// if the resources are not claimed yet and the step of op is no longer the current step.
func (s *Store) PrepareAction(ctx context.Context, op *operation.Op, a compute.Action, data *ActData) (*Server, error) {
	id := op.Resource
	srv, err := s.Server(ctx, id)
	if err != nil {
		return nil, err
	}
	if a != compute.Resize || srv.Resize.V != nil {
		return srv, checkAction(srv, a)
	}
	err = s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		switch current, err := s.ops.Lock(ctx, tx, id); {
		case errors.Is(err, fault.NotFound), err == nil && current.Token != op.Token:
			return operation.ErrStale
		case err != nil:
			return err
		}
		return s.prepareAction(ctx, tx, id, a, data, now)
	})
	if err != nil {
		return nil, err
	}
	return s.Server(ctx, id)
}

// checkAction returns Conflict, with Nova's text, if a server's state does not allow an action.
func checkAction(srv *Server, a compute.Action) error {
	if srv.Host == nil || !slices.Contains(a.Info().From, srv.VMState) {
		return wrongState(srv.ID, a, srv.VMState)
	}
	return nil
}

func wrongState(id string, a compute.Action, vmState string) error {
	return fault.New(fault.Conflict, "Cannot '%s' instance %s while it is in vm_state %s", a.Info().Name, id, vmState)
}

// touchServer sets the time of a server's last change if the server's state allows the action, which the database checks in the
// same statement. now is the database's time. Its errors are those of checkAction, and NotFound.
func (s *Store) touchServer(ctx context.Context, tx *sqlx.Tx, id string, a compute.Action, now time.Time) error {
	err := db.UpdateIf(ctx, tx, db.Update{
		Table: "servers", Key: db.Values{"id": id},
		If:  db.Values{"vm_state": a.Info().From, "host": db.NotNull},
		Set: db.Values{"updated_at": now},
	})
	switch {
	case errors.Is(err, fault.NotFound):
		return NoServer(id)
	case errors.Is(err, fault.Conflict): // Meta has vm_state if that is the reason; otherwise the server has no host, so it is in ERROR
		return wrongState(id, a, cmp.Or(fault.From(err).Meta["vm_state"], Error))
	}
	return err
}

// prepareAction checks that a server's state allows an action. For a resize it also claims the resources for both sizes.
func (s *Store) prepareAction(ctx context.Context, tx *sqlx.Tx, id string, a compute.Action, data *ActData, now time.Time) error {
	if data.Resize == nil {
		return s.touchServer(ctx, tx, id, a, now)
	}
	srv, err := s.lockServer(ctx, tx, id)
	if err == nil {
		err = checkAction(srv, a)
	}
	if err != nil {
		return err
	}
	switch to := *data.Resize; {
	case to.FlavorID == srv.FlavorID:
		return fault.New(fault.Invalid, "When resizing, instances must change flavor!")
	case to.Has.DiskGiB < srv.DiskGiB:
		return fault.New(fault.Invalid, "Server disk was unable to be resized because: Unable to resize disk down.")
	default:
		srv.Resize.V = &Resize{From: srv.size(), To: to, Running: srv.VMState == Active}
	}
	if _, err := db.Exec(ctx, tx, `UPDATE servers SET resize = ?, updated_at = ? WHERE id = ?`, srv.Resize, now, id); err != nil {
		return err
	}
	err = s.updateClaim(ctx, tx, srv)
	if errors.Is(err, placement.ErrNoRoom) {
		return fault.New(fault.Invalid, "No valid host was found. A resize stays on its host: %w", err)
	}
	return err
}

// applyEnd sets the state and the size that the server has after an action. details is the error of an action that
// failed, or "".
func (s *Server) applyEnd(a compute.Action, details string, now time.Time) {
	failed := details != ""
	if failed {
		s.FaultCode, s.FaultMessage, s.FaultDetails, s.FaultAt = 500, failedAction(a, s.ID), db.Cut(details, maxFault), &now
	}
	switch {
	case a == compute.Resize && failed:
		s.Resize.V = nil
	case failed:
	case a == compute.Resize:
		s.setSize(s.Resize.V.To)
		s.VMState, s.LaunchedAt = Resized, &now
	case a == compute.ConfirmResize, a == compute.RevertResize:
		if a == compute.RevertResize {
			s.setSize(s.Resize.V.From)
		}
		s.VMState = Stopped
		if s.Resize.V.Running {
			s.VMState = Active
		}
		s.Resize.V = nil
	}
}

// failedAction returns the message of a server's fault after an action has failed.
func failedAction(a compute.Action, id string) string {
	return fmt.Sprintf("Failed to %s instance %s.", a.Info().Name, id)
}

// resizes reports whether an action is a part of a resize.
func resizes(a compute.Action) bool {
	return a == compute.Resize || a == compute.ConfirmResize || a == compute.RevertResize
}

// EndAction writes the result of an action. After success the server is in the state that the action leads to. After an
// error the server keeps its state and gets a fault. After a resize that timed out or was canceled the size of the server
// is not known: the server is in ERROR, and its claim covers both sizes. EndAction runs in the transaction in which the
// operation ends. A server that does not exist is not an error.
func (s *Store) EndAction(ctx context.Context, tx *sqlx.Tx, id string, a compute.Action, failed error) error {
	if failed == nil && !resizes(a) {
		_, err := db.Exec(ctx, tx, `UPDATE servers SET vm_state = ?, updated_at = UTC_TIMESTAMP(6) WHERE id = ?`, a.Info().To, id)
		return err
	}
	srv, err := s.lockServer(ctx, tx, id)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	details := ""
	if failed != nil {
		details = failed.Error()
		if c := fault.CodeOf(failed); srv.Resize.V != nil && (c == fault.Canceled || c == fault.Timeout) {
			_, err := s.fail(ctx, tx, id, failedAction(a, id), details)
			return err
		}
	}
	now, err := db.Now(ctx, tx)
	if err != nil {
		return err
	}
	resizing := srv.Resize.V != nil
	srv.applyEnd(a, details, now)
	srv.UpdatedAt = now
	_, err = tx.NamedExecContext(ctx, `UPDATE servers SET vm_state = :vm_state, flavor_id = :flavor_id, vcpus = :vcpus, memory_mib = :memory_mib,
		disk_gib = :disk_gib, resize = :resize, launched_at = :launched_at, fault_code = :fault_code, fault_for_users = :fault_for_users,
		fault_message = :fault_message, fault_at = :fault_at, updated_at = :updated_at
		WHERE id = :id`, srv)
	if err != nil || !resizing {
		return db.Error(err)
	}
	return s.updateClaim(ctx, tx, srv)
}
