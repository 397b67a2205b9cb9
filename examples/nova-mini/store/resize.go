package store

import (
	"context"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler/placement"
)

// Size is a flavor's id, the resources that the claim of a server of that flavor covers, and the other values of the flavor that are stored with the server.
// Boot is nil in a Size that an earlier release has written.
type Size struct {
	FlavorID string            `json:"flavor"`
	Has      compute.Resources `json:"has"`
	Boot     *BootFlavor       `json:"boot,omitempty"`
}

// Resize is a resize that is neither confirmed nor reverted. Meanwhile the server's claim and its use of the quota cover both sizes. A server keeps its Resize from the transaction
// that accepts the resize until its size on the host is known again:
//
//   - Without an interruption: until the resize is confirmed or reverted, or has failed and is undone (endResize).
//   - After an interruption: until the end of the next action with [compute.ActionInfo].Settles. In this action the compute service gives the server the size that
//     settledSize returns. Until then no other resize begins. As long as the server is in ERROR, an operator can also retry the operation.
//
// A resize, its confirmation or its revert is interrupted if it times out or is canceled, if its result on the host is not known, or if a deletion or os-resetState ends it. For a resized
// server, os-resetState is an interruption, too. A crash of a conductor interrupts nothing, because another conductor continues the operation.
type Resize struct {
	From Size `json:"from"`
	To   Size `json:"to"`
	// Running reports whether the server ran before the resize. If so, it must also run after the resize.
	Running bool `json:"running"`
	// Back means that the resize, or its revert, was interrupted: the server gets its old size back.
	Back bool `json:"back,omitempty"`
}

// Goal returns the size that the request of an action has. For a resize, its confirmation and its revert, this is the new size, which
// a compute service reads only for the resize. For an action with [compute.ActionInfo].Settles, this is the size of the server after
// the action. Goal returns nil for other actions, and if the server has no resize.
func (s *Server) Goal(a compute.Action) *Size {
	switch {
	case s.Resize.V == nil:
		return nil
	case changesSize(a):
		return &s.Resize.V.To
	case a.Info().Settles:
		return s.settledSize()
	}
	return nil
}

// settledSize returns the size that a server gets after its resize was interrupted. It is the new size only if the resize was done.
// vm_state does not tell whether the resize was done, because an administrator may have reset vm_state.
func (s *Server) settledSize() *Size {
	if r := s.Resize.V; !r.Back && s.hasResized() {
		return &r.To
	}
	return &s.Resize.V.From
}

// hasResized reports whether the server has the new size of its resize in the database. The server must have a resize.
func (s *Server) hasResized() bool {
	is := s.size()
	return !is.sameFlavor(&s.Resize.V.From)
}

// interrupted records that an action on a server with a resize has ended, and that the result of the action on the host is not known.
func (r *Resize) interrupted(a compute.Action) {
	r.Back = r.Back || a == compute.Resize || a == compute.RevertResize
}

// resizing reports whether the server has a resize that runs.
func (s *Server) resizing() bool {
	r := s.Resize.V
	return r != nil && !r.Back && !s.hasResized()
}

// interruptedBy reports whether a server is in ERROR because this action was interrupted. The parameter data has the data of the action.
func (s *Server) interruptedBy(a compute.Action, data *ActData) bool {
	r := s.Resize.V
	if r == nil || s.VMState != Error {
		return false
	}
	switch done := s.hasResized(); a {
	case compute.Resize:
		return r.Back && !done && data.Resize.sameFlavor(&r.To)
	case compute.RevertResize:
		return r.Back && done
	case compute.ConfirmResize:
		return !r.Back && done
	default:
		return false
	}
}

// resumeResize gives a server the state from before an action was interrupted, so that the action can be done again.
func (s *Store) resumeResize(ctx context.Context, tx *sqlx.Tx, id string, a compute.Action, now time.Time) error {
	srv, err := s.lockServer(ctx, tx, id)
	if err != nil {
		return err
	}
	srv.Resize.V.Back = false
	state := Resized
	if a == compute.Resize {
		state = srv.Resize.V.stateBefore()
	}
	_, err = db.Exec(ctx, tx, `UPDATE servers SET resize = ?, vm_state = ?, updated_at = ? WHERE id = ?`, srv.Resize, state, now, id)
	return err
}

// stateBefore returns the vm_state of the server before the resize.
func (r *Resize) stateBefore() string {
	if r.Running {
		return Active
	}
	return Stopped
}

// interruptResize is [Resize.interrupted] for a preempted operation.
func (s *Store) interruptResize(ctx context.Context, tx *sqlx.Tx, id string, a compute.Action) error {
	if !changesSize(a) {
		return nil
	}
	srv, err := s.lockServer(ctx, tx, id)
	if err != nil || srv.Resize.V == nil {
		return err
	}
	srv.Resize.V.interrupted(a)
	return s.writeResize(ctx, tx, srv)
}

func (s *Store) writeResize(ctx context.Context, tx *sqlx.Tx, srv *Server) error {
	_, err := db.Exec(ctx, tx, `UPDATE servers SET resize = ? WHERE id = ?`, srv.Resize, srv.ID)
	return err
}

// OnHost returns the resources that a server of this size has on its host.
func (z *Size) OnHost() compute.Resources {
	if z.Boot == nil {
		return z.Has
	}
	return z.Boot.OnHost(z.Has)
}

// SizeOf returns the size of servers of a flavor.
func SizeOf(f *Flavor) *Size { return &Size{f.ID, f.Resources(), f.Boot()} }

// sameFlavor reports whether two sizes are those of one flavor. As in Nova, a flavor that was deleted and created again with the same id is another flavor. If the time of the
// creation of one of the flavors is not known, sameFlavor compares the values that do not change in the life of a flavor.
func (z *Size) sameFlavor(other *Size) bool {
	a, b := z.Boot, other.Boot
	switch {
	case z.FlavorID != other.FlavorID:
		return false
	case a == nil || b == nil:
		return z.Has == other.Has
	case a.CreatedAt != nil && b.CreatedAt != nil:
		return a.CreatedAt.Equal(*b.CreatedAt)
	}
	return z.Has == other.Has && a.Name == b.Name && a.DiskGiB == b.DiskGiB && a.EphemeralGiB == b.EphemeralGiB && a.SwapMiB == b.SwapMiB
}

func (s *Server) size() Size { return Size{s.FlavorID, s.Need(), s.BootFlavor.V} }

func (s *Server) setSize(z Size) {
	s.FlavorID, s.VCPUs, s.MemoryMiB, s.DiskGiB = z.FlavorID, z.Has.VCPUs, z.Has.MemoryMiB, z.Has.DiskGiB
	s.BootFlavor.V = z.Boot
}

// Holds returns the resources that the server's claim covers. During a resize this is, for each resource, the larger amount
// of the two sizes.
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
		Consumer: srv.ID, Generation: placement.Any, Group: srv.group(),
		Allocations: []placement.Allocation{{Provider: *srv.Host, Resources: Need(srv.Holds())}},
	})
}

// prepareResize claims the resources for both sizes, and writes the resize into the server's row. The caller has locked the server.
func (s *Store) prepareResize(ctx context.Context, tx *sqlx.Tx, srv *Server, to Size, now time.Time) error {
	from := srv.size()
	switch {
	case srv.Resize.V != nil:
		return fault.New(fault.Conflict, "Cannot 'resize' instance %s: an earlier resize is neither confirmed nor reverted. A hard reboot gives the instance a known size.", srv.ID)
	case to.sameFlavor(&from):
		return fault.New(fault.Invalid, "When resizing, instances must change flavor!")
	case to.Has.DiskGiB < srv.DiskGiB:
		return fault.New(fault.Invalid, "Server disk was unable to be resized because: Unable to resize disk down.")
	}
	srv.Resize.V = &Resize{From: from, To: to, Running: srv.VMState == Active}
	if _, err := db.Exec(ctx, tx, `UPDATE servers SET resize = ?, updated_at = ? WHERE id = ?`, srv.Resize, now, srv.ID); err != nil {
		return err
	}
	if err := s.quotas.Reserve(ctx, tx, srv.quotaClaim(srv.Holds())); err != nil { // before the claim, as in Nova
		return overQuota(err)
	}
	err := s.updateClaim(ctx, tx, srv)
	if errors.Is(err, placement.ErrNoRoom) {
		return fault.New(fault.Invalid, "No valid host was found. A resize stays on its host: %w", err)
	}
	return err
}

// endResize sets the state and the size of the server after a resize, its confirmation or its revert.
func (s *Server) endResize(a compute.Action, failed bool, now time.Time) {
	switch {
	case a == compute.Resize && failed && s.resizing():
		s.Resize.V = nil
	case failed:
	case a == compute.Resize:
		s.setSize(s.Resize.V.To)
		s.LaunchedAt = &now
	default:
		if a == compute.RevertResize {
			s.setSize(s.Resize.V.From)
		}
		s.VMState = s.Resize.V.stateBefore()
		if a == compute.ConfirmResize && s.Power != nil { // as in Nova: the guest may have been stopped or started since the resize
			if s.VMState = Active; *s.Power == compute.Shutdown || *s.Power == compute.Crashed {
				s.VMState = Stopped
			}
		}
		s.Resize.V = nil
	}
}

// changesSize reports whether an action is a resize, its confirmation or its revert.
func changesSize(a compute.Action) bool {
	return a == compute.Resize || a == compute.ConfirmResize || a == compute.RevertResize
}
