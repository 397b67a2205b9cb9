package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/operation"
)

// Size is what a flavor gives a server.
type Size struct {
	FlavorID string            `json:"flavor"`
	Has      compute.Resources `json:"has"`
}

// Resize is a resize that is neither confirmed nor reverted. Until then the server
// holds the room for both sizes.
type Resize struct {
	From Size `json:"from"`
	To   Size `json:"to"`
	// Running says that the server runs, but for the stops of the resize.
	Running bool `json:"running"`
}

func (s *Server) size() Size { return Size{s.FlavorID, s.Need()} }

func (s *Server) become(z Size) {
	s.FlavorID, s.VCPUs, s.MemoryMiB, s.DiskGiB = z.FlavorID, z.Has.VCPUs, z.Has.MemoryMiB, z.Has.DiskGiB
}

// Holds returns what the server has claimed of its host.
func (s *Server) Holds() compute.Resources {
	if s.Resize.V == nil {
		return s.Need()
	}
	a, b := s.Resize.V.From.Has, s.Resize.V.To.Has
	return compute.Resources{VCPUs: max(a.VCPUs, b.VCPUs), MemoryMiB: max(a.MemoryMiB, b.MemoryMiB), DiskGiB: max(a.DiskGiB, b.DiskGiB)}
}

// hold makes the server's claim what it holds.
func (s *Store) hold(ctx context.Context, tx *sqlx.Tx, srv *Server) error {
	return s.claims.ClaimTx(ctx, tx, placement.Claim{
		Consumer: srv.ID, Generation: placement.Any,
		Allocations: []placement.Allocation{{Provider: *srv.Host, Resources: Need(srv.Holds())}},
	})
}

// BeginResize gives a server the task to become another size on its host, where the
// room for it is claimed at once. Errors as Act; Invalid, with Nova's words: it is the
// flavor that it has, or its disk would shrink; [placement.ErrNoRoom], with the host and
// amounts, which are not for the server's project.
func (s *Store) BeginResize(ctx context.Context, id string, f *Flavor) error {
	to := Size{f.ID, f.Resources()}
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		if err := s.beginResize(ctx, tx, now, id, to); err != nil {
			return err
		}
		_, err := operation.Begin(ctx, s.ops, Kinds[compute.Resize], id, &ActInput{Resize: &to})
		return err
	})
}

func (s *Store) beginResize(ctx context.Context, tx *sqlx.Tx, now time.Time, id string, to Size) error {
	srv, err := s.begin(ctx, tx, now, id, compute.Resize)
	if err != nil {
		return err
	}
	switch {
	case to.FlavorID == srv.FlavorID:
		return fault.New(fault.Invalid, "When resizing, instances must change flavor!")
	case to.Has.DiskGiB < srv.DiskGiB:
		return fault.New(fault.Invalid, "Server disk was unable to be resized because: Unable to resize disk down.")
	}
	srv.Resize.V = &Resize{From: srv.size(), To: to, Running: srv.VMState == Active}
	if _, err := db.Exec(ctx, tx, `UPDATE servers SET resize = ? WHERE id = ?`, srv.Resize, id); err != nil {
		return err
	}
	err = s.hold(ctx, tx, srv)
	if errors.Is(err, placement.ErrNoRoom) {
		return fault.New(fault.Invalid, "No valid host was found. A resize stays on its host: %w", err)
	}
	return err
}

// end makes the server what it is after an action, or after why it failed.
func (s *Server) end(a compute.Action, why string, now time.Time) {
	failed := why != ""
	if failed {
		s.FaultCode, s.FaultMessage, s.FaultDetails, s.FaultAt = 500, FailedAction(a, s.ID), db.Cut(why, maxFault), &now
	}
	switch {
	case a == compute.Resize && failed:
		s.Resize.V = nil
	case failed:
	case a == compute.Resize:
		s.become(s.Resize.V.To)
		s.VMState, s.LaunchedAt = Resized, &now
	case a == compute.ConfirmResize, a == compute.RevertResize:
		if a == compute.RevertResize {
			s.become(s.Resize.V.From)
		}
		s.VMState = Stopped
		if s.Resize.V.Running {
			s.VMState = Active
		}
		s.Resize.V = nil
	default:
		s.VMState = actions[a].to
	}
}

// FailedAction is the message of the fault of a server whose action has failed.
func FailedAction(a compute.Action, id string) string {
	return fmt.Sprintf("Failed to %s instance %s.", actions[a].name, id)
}

// EndAct ends an action: the server is in the state that the action leads to, or,
// with why it failed, in the one that it was in. ErrStale.
func (s *Store) EndAct(ctx context.Context, a compute.AttemptRequest, why string) error {
	action := ActionOf(a.Task)
	if action == "" {
		return fault.New(fault.Invalid, "%q is not the task of an action", a.Task)
	}
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		err := db.ExecOne(ctx, tx, compute.ErrStale, `UPDATE servers SET task_state = NULL, updated_at = ? WHERE id = ? AND host = ? AND generation = ? AND task_state = ?`,
			now, a.ServerID, a.Host, a.Generation, a.Task)
		if err != nil {
			return err
		}
		srv := new(Server)
		if err := tx.GetContext(ctx, srv, `SELECT * FROM servers WHERE id = ?`, a.ServerID); err != nil {
			return db.Error(err)
		}
		held := srv.Resize.V != nil
		srv.end(action, why, now)
		_, err = tx.NamedExecContext(ctx, `UPDATE servers SET vm_state = :vm_state, flavor_id = :flavor_id, vcpus = :vcpus, memory_mib = :memory_mib,
			disk_gib = :disk_gib, resize = :resize, launched_at = :launched_at, fault_code = :fault_code, fault_for_users = :fault_for_users,
			fault_message = :fault_message, fault_at = :fault_at
			WHERE id = :id`, srv)
		if err != nil || !held {
			return db.Error(err)
		}
		return s.hold(ctx, tx, srv)
	})
}
