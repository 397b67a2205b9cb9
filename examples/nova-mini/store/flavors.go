package store

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// Flavor is a named size of server.
type Flavor struct {
	ID           string  `db:"id"`
	Name         string  `db:"name"`
	VCPUs        int     `db:"vcpus"`
	MemoryMiB    int     `db:"memory_mib"`
	DiskGiB      int     `db:"disk_gib"`
	EphemeralGiB int     `db:"ephemeral_gib"`
	SwapMiB      int     `db:"swap_mib"`
	RxTxFactor   float64 `db:"rxtx_factor"`
	Public       bool    `db:"is_public"`
}

// Resources returns what a server of the flavor needs: its swap counts as disk,
// rounded up, as in Nova.
func (f *Flavor) Resources() compute.Resources {
	return compute.Resources{
		VCPUs: f.VCPUs, MemoryMiB: f.MemoryMiB,
		DiskGiB: f.DiskGiB + f.EphemeralGiB + (f.SwapMiB+1023)/1024,
	}
}

const flavorColumns = `id, name, vcpus, memory_mib, disk_gib, ephemeral_gib, swap_mib, rxtx_factor, is_public`

// FlavorQuery says which flavors a list has, and in which order.
type FlavorQuery struct {
	// Public says whether the flavors are those for every project, or the others; nil: all.
	Public *bool
	// MinMemoryMiB and MinDiskGiB are the least that a flavor has.
	MinMemoryMiB, MinDiskGiB int
	// Sort is the order. The id ends it, in the direction of the last key.
	Sort []db.SortKey
	// Marker is the id of the last flavor of the page before; empty: the first page.
	Marker string
	// Limit is how many flavors are returned at most.
	Limit int
}

// Flavors returns a page of flavors. Invalid, reason MarkerNotFound: the marker is not a
// flavor.
func (s *Store) Flavors(ctx context.Context, q FlavorQuery) ([]Flavor, error) {
	where, args := "memory_mib >= ? AND disk_gib >= ?", []any{q.MinMemoryMiB, q.MinDiskGiB}
	if q.Public != nil {
		where, args = where+" AND is_public = ?", append(args, *q.Public)
	}
	out, _, err := db.List[Flavor](ctx, s.db, db.Page{
		Columns: flavorColumns, From: "flavors", Where: where, Args: args, Sort: q.Sort, Key: "id", Marker: q.Marker, Limit: q.Limit,
	})
	return out, err
}

// Flavor returns one flavor, or NotFound.
func (s *Store) Flavor(ctx context.Context, id string) (*Flavor, error) {
	f := new(Flavor)
	err := s.get(ctx, s.db, f, fault.New(fault.NotFound, "Flavor %s could not be found.", id),
		`SELECT `+flavorColumns+` FROM flavors WHERE id = ?`, id)
	return f, err
}

// CreateFlavor adds a flavor. Conflict: its id or its name is taken.
func (s *Store) CreateFlavor(ctx context.Context, f *Flavor) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		var n int
		if err := tx.GetContext(ctx, &n, `SELECT COUNT(*) FROM flavors WHERE id = ?`, f.ID); err != nil {
			return db.Error(err)
		}
		if n > 0 {
			return fault.New(fault.Conflict, "Flavor with ID %s already exists.", f.ID)
		}
		_, err := tx.NamedExecContext(ctx, `INSERT INTO flavors (`+flavorColumns+`) VALUES
			(:id, :name, :vcpus, :memory_mib, :disk_gib, :ephemeral_gib, :swap_mib, :rxtx_factor, :is_public)`, f)
		if err = db.Error(err); err != nil && fault.CodeOf(err) == fault.Conflict {
			return fault.New(fault.Conflict, "Flavor with name %s already exists.", f.Name)
		}
		return err
	})
}

// DeleteFlavor removes a flavor. Its servers keep what they have. NotFound.
func (s *Store) DeleteFlavor(ctx context.Context, id string) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		n, err := exec(ctx, tx, `DELETE FROM flavors WHERE id = ?`, id)
		if err == nil && n == 0 {
			return fault.New(fault.NotFound, "Flavor %s could not be found.", id)
		}
		return err
	})
}
