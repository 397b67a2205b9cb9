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

// Size is a flavor's id, the resources of a server of that flavor, and what the server keeps of the flavor. Boot is nil for an earlier release.
type Size struct {
	FlavorID string            `json:"flavor"`
	Has      compute.Resources `json:"has"`
	Boot     *BootFlavor       `json:"boot,omitempty"`
}

// Resize is a resize that is neither confirmed nor reverted. Until then the server's claim covers both sizes.
type Resize struct {
	From Size `json:"from"`
	To   Size `json:"to"`
	// Running reports whether the server ran before the resize, and so must run after the resize.
	Running bool `json:"running"`
}

// SizeOf returns the size of the servers of a flavor.
func SizeOf(f *Flavor) *Size { return &Size{f.ID, f.Resources(), f.Boot()} }

func (s *Server) size() Size { return Size{s.FlavorID, s.Need(), s.BootFlavor.V} }

func (s *Server) setSize(z Size) {
	s.FlavorID, s.VCPUs, s.MemoryMiB, s.DiskGiB = z.FlavorID, z.Has.VCPUs, z.Has.MemoryMiB, z.Has.DiskGiB
	s.BootFlavor.V = z.Boot
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
		Consumer: srv.ID, Generation: placement.Any, Group: srv.group(),
		Allocations: []placement.Allocation{{Provider: *srv.Host, Resources: Need(srv.Holds())}},
	})
}

// prepareResize claims the resources for both sizes, and writes the resize into the server's row. The server is locked.
func (s *Store) prepareResize(ctx context.Context, tx *sqlx.Tx, srv *Server, to Size, now time.Time) error {
	switch {
	case to.FlavorID == srv.FlavorID:
		return fault.New(fault.Invalid, "When resizing, instances must change flavor!")
	case to.Has.DiskGiB < srv.DiskGiB:
		return fault.New(fault.Invalid, "Server disk was unable to be resized because: Unable to resize disk down.")
	}
	srv.Resize.V = &Resize{From: srv.size(), To: to, Running: srv.VMState == Active}
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

// endResize sets the state and the size that the server has after an action of a resize.
func (s *Server) endResize(a compute.Action, failed bool, now time.Time) {
	switch {
	case a == compute.Resize && failed:
		s.Resize.V = nil
	case failed:
	case a == compute.Resize:
		s.setSize(s.Resize.V.To)
		s.LaunchedAt = &now
	default:
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

// resizes reports whether an action is a part of a resize.
func resizes(a compute.Action) bool {
	return a == compute.Resize || a == compute.ConfirmResize || a == compute.RevertResize
}
