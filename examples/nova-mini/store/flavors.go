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

// Flavors returns up to limit flavors by id, beginning after marker if that is
// not empty. Invalid: there is no such marker.
func (s *Store) Flavors(ctx context.Context, marker string, limit int) ([]Flavor, error) {
	out, _, err := db.List[Flavor](ctx, s.db, db.Page{Columns: flavorColumns, From: "flavors", Key: "id", Marker: marker, Limit: limit})
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
