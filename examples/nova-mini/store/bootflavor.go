package store

import (
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
)

// BootFlavor has those values of a flavor that are stored with each server of the flavor, besides the server's resources.
type BootFlavor struct {
	Name         string            `json:"name"`
	DiskGiB      int               `json:"disk_gib"`
	EphemeralGiB int               `json:"ephemeral_gib,omitempty"`
	SwapMiB      int               `json:"swap_mib,omitempty"`
	ExtraSpecs   map[string]string `json:"extra_specs,omitempty"`
	// ExtraDisks reports whether the server has the ephemeral and the swap disk of the flavor. A server of an earlier release has one larger disk instead.
	ExtraDisks bool `json:"extra_disks,omitempty"`
	// CreatedAt is the time of the creation of the flavor, which tells flavors with the same id apart. Nil: it is not known, because an earlier release has created the flavor or the server.
	CreatedAt *time.Time `json:"created_at,omitempty"`
	// OwnDisks are the sizes that the client has asked for, at most those of the flavor. Nil: the sizes of the flavor. A resize keeps them.
	OwnDisks *ExtraDisks `json:"own_disks,omitempty"`
}

// ExtraDisks are the sizes of the ephemeral and the swap disk of a server. 0: the server does not have the disk.
type ExtraDisks struct {
	EphemeralGiB int `json:"ephemeral_gib,omitempty"`
	SwapMiB      int `json:"swap_mib,omitempty"`
}

// GiB returns the part of the resources of a server that the disks have.
func (e ExtraDisks) GiB() int { return compute.ExtraGiB(e.EphemeralGiB, e.SwapMiB) }

// FlavorExtra returns the extra disks that the server has if its client has not asked for smaller ones. The claim and the quota cover them, as in Nova.
func (b *BootFlavor) FlavorExtra() ExtraDisks {
	if !b.ExtraDisks {
		return ExtraDisks{}
	}
	return ExtraDisks{b.EphemeralGiB, b.SwapMiB}
}

// Extra returns the extra disks of the server.
func (b *BootFlavor) Extra() ExtraDisks {
	if b.OwnDisks != nil {
		return *b.OwnDisks
	}
	return b.FlavorExtra()
}

// OnHost returns the resources that a server has on its host. The parameter claimed has the resources that the claim covers.
func (b *BootFlavor) OnHost(claimed compute.Resources) compute.Resources {
	claimed.DiskGiB -= b.FlavorExtra().GiB() - b.Extra().GiB()
	return claimed
}

// Boot returns the values of the flavor that are stored with each server of the flavor.
func (f *Flavor) Boot() *BootFlavor {
	return &BootFlavor{Name: f.Name, DiskGiB: f.DiskGiB, EphemeralGiB: f.EphemeralGiB, SwapMiB: f.SwapMiB, ExtraSpecs: f.ExtraSpecs.V, ExtraDisks: f.EphemeralGiB > 0 || f.SwapMiB > 0, CreatedAt: f.CreatedAt}
}

// Flavor returns the values of the flavor at the time of the server's creation or last resize. For a server that an earlier release
// has created, only the sum of the flavor's disks is stored: then Name is the flavor's id, and DiskGiB is the sum.
func (s *Server) Flavor() BootFlavor {
	if s.BootFlavor.V == nil {
		return BootFlavor{Name: s.FlavorID, DiskGiB: s.DiskGiB}
	}
	return *s.BootFlavor.V
}
