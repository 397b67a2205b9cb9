package store

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// Flavor is a named size of server. One that is not public exists only for administrators
// and for the projects that have access to it.
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

// FlavorViewer says which flavors exist for a client: the public ones, and the private
// ones to which the project has access. The zero value sees the public ones.
type FlavorViewer struct {
	Project string
	// All makes every flavor visible, for administrators.
	All bool
}

// hasAccess returns the condition of being public or accessible for the viewer's project.
func (v FlavorViewer) hasAccess() (text string, args []any) {
	if v.Project == "" {
		return "is_public", nil
	}
	return "is_public OR EXISTS (SELECT 1 FROM flavor_projects WHERE flavor_id = flavors.id AND project_id = ?)", []any{v.Project}
}

// where returns the condition of being visible.
func (v FlavorViewer) where() (text string, args []any) {
	if v.All {
		return "1 = 1", nil
	}
	return v.hasAccess()
}

// FlavorQuery says which flavors a list has, and in which order.
type FlavorQuery struct {
	// For is the client. The marker must be a flavor that is visible.
	For FlavorViewer
	// Public says whether the flavors are those that are public or accessible for the
	// viewer's project, or those that are not public; nil: all.
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
// flavor that is visible.
func (s *Store) Flavors(ctx context.Context, q FlavorQuery) ([]Flavor, error) {
	p := db.Page{Columns: flavorColumns, From: "flavors", Sort: q.Sort, Key: "id", Marker: q.Marker, Limit: q.Limit}
	p.Within, p.WithinArgs = q.For.where()
	p.Where, p.Args = "memory_mib >= ? AND disk_gib >= ?", []any{q.MinMemoryMiB, q.MinDiskGiB}
	switch {
	case q.Public == nil:
	case *q.Public:
		access, args := q.For.hasAccess()
		p.Where, p.Args = p.Where+" AND ("+access+")", append(p.Args, args...)
	default:
		p.Where += " AND NOT is_public"
	}
	out, _, err := db.List[Flavor](ctx, s.db, p)
	return out, err
}

func noFlavor(id string) error { return fault.New(fault.NotFound, "Flavor %s could not be found.", id) }

// Flavor returns one flavor. NotFound: it does not exist, or is not visible.
func (s *Store) Flavor(ctx context.Context, viewer FlavorViewer, id string) (*Flavor, error) {
	f := new(Flavor)
	visible, args := viewer.where()
	err := s.get(ctx, s.db, f, noFlavor(id), `SELECT `+flavorColumns+` FROM flavors WHERE id = ? AND (`+visible+`)`, append([]any{id}, args...)...)
	return f, err
}

// FlavorProjects returns the ids of the projects that have access to a flavor.
func (s *Store) FlavorProjects(ctx context.Context, id string) ([]string, error) {
	out := []string{}
	err := s.db.SelectContext(ctx, &out, `SELECT project_id FROM flavor_projects WHERE flavor_id = ? ORDER BY project_id`, id)
	return out, db.Error(err)
}

// AllowFlavor gives a project access to a flavor. NotFound: there is no such flavor.
// Conflict: the project has access.
func (s *Store) AllowFlavor(ctx context.Context, id, project string) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		// The flavor stays until the end of the transaction.
		if err := db.ExecOne(ctx, tx, noFlavor(id), `UPDATE flavors SET id = id WHERE id = ?`, id); err != nil {
			return err
		}
		_, err := db.Exec(ctx, tx, `INSERT INTO flavor_projects (flavor_id, project_id) VALUES (?, ?)`, id, project)
		if err != nil && fault.CodeOf(err) == fault.Conflict {
			return fault.New(fault.Conflict, "Flavor access already exists for flavor %s and project %s combination.", id, project)
		}
		return err
	})
}

// DenyFlavor takes a project's access to a flavor. NotFound: it has none.
func (s *Store) DenyFlavor(ctx context.Context, id, project string) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		missing := fault.New(fault.NotFound, "Flavor access not found for %s / %s combination.", id, project)
		return db.ExecOne(ctx, tx, missing, `DELETE FROM flavor_projects WHERE flavor_id = ? AND project_id = ?`, id, project)
	})
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
		if err := db.ExecOne(ctx, tx, noFlavor(id), `DELETE FROM flavors WHERE id = ?`, id); err != nil {
			return err
		}
		_, err := db.Exec(ctx, tx, `DELETE FROM flavor_projects WHERE flavor_id = ?`, id)
		return err
	})
}
