package store

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
)

// Flavor is a named size of a server. A flavor that is not public is visible only to administrators and to the
// projects that have access to the flavor.
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
	// Description is nil if the flavor has none.
	Description *string                    `db:"description"`
	ExtraSpecs  db.JSON[map[string]string] `db:"extra_specs"`
	// CreatedAt is nil if an earlier release has created the flavor. UpdatedAt is the time of the last change of the description, or nil.
	CreatedAt *time.Time `db:"created_at"`
	UpdatedAt *time.Time `db:"updated_at"`
}

// Specs returns the extra specs of the flavor. The map is never nil.
func (f *Flavor) Specs() map[string]string {
	if f.ExtraSpecs.V == nil {
		return map[string]string{}
	}
	return f.ExtraSpecs.V
}

// Resources returns what a server of the flavor needs of a host. Swap counts as disk, rounded up to a GiB, as in Nova.
func (f *Flavor) Resources() compute.Resources {
	return compute.Resources{
		VCPUs: f.VCPUs, MemoryMiB: f.MemoryMiB,
		DiskGiB: f.DiskGiB + compute.ExtraGiB(f.EphemeralGiB, f.SwapMiB),
	}
}

// FlavorViewer is a client that sees the public flavors, and the private flavors to which the client's project has
// access. The zero value sees only the public flavors.
type FlavorViewer struct {
	Project string
	// All makes every flavor visible. It is for administrators.
	All bool
}

// hasAccess returns the SQL condition for flavors that are public or accessible for the viewer's project.
func (v FlavorViewer) hasAccess() (text string, args []any) {
	if v.Project == "" {
		return "is_public", nil
	}
	return "is_public OR EXISTS (SELECT 1 FROM flavor_projects WHERE flavor_id = flavors.id AND project_id = ?)", []any{v.Project}
}

// where returns the SQL condition for flavors that the viewer sees.
func (v FlavorViewer) where() (text string, args []any) {
	if v.All {
		return "1 = 1", nil
	}
	return v.hasAccess()
}

// FlavorQuery selects and sorts the flavors of a list.
type FlavorQuery struct {
	// Query has the conditions on columns, the order and the page. Flavors with equal sort keys are sorted by id, in the
	// direction of the last key.
	listing.Query

	// For is the client that gets the list. The marker must be a flavor that this client sees.
	For FlavorViewer
	// Public selects flavors by access, among those that the client sees. True: flavors that are public or accessible
	// for the client's project. False: flavors that are not public. Nil: all flavors.
	Public *bool
}

// sortedFlavors is SQL for a FROM clause: the flavors with two further columns, which Nova's API allows as sort keys. Each of
// these columns has the same value for all flavors.
const sortedFlavors = "(SELECT flavors.*, 0 AS disabled, 0 AS vcpu_weight FROM flavors) flavors"

// Flavors returns a page of flavors. Errors: Invalid, reason MarkerNotFound, if the marker is not a flavor that the
// client sees.
func (s *Store) Flavors(ctx context.Context, q FlavorQuery) ([]Flavor, error) {
	p := db.Page{From: sortedFlavors, Key: "id"}.Select(q.Query)
	p.Within, p.WithinArgs = q.For.where()
	switch {
	case q.Public == nil:
	case *q.Public:
		p.Where, p.Args = q.For.hasAccess()
	default:
		p.Where = "NOT is_public"
	}
	out, _, err := db.List[Flavor](ctx, s.db, p)
	return out, err
}

func noFlavor(id string) error { return fault.New(fault.NotFound, "Flavor %s could not be found.", id) }

// Flavor returns one flavor. Errors: NotFound if the flavor does not exist or the viewer does not see it.
func (s *Store) Flavor(ctx context.Context, viewer FlavorViewer, id string) (*Flavor, error) {
	f := new(Flavor)
	visible, args := viewer.where()
	err := s.get(ctx, s.db, f, noFlavor(id), `SELECT `+db.Columns[Flavor]()+` FROM flavors WHERE id = ? AND (`+visible+`)`, append([]any{id}, args...)...)
	return f, err
}

// FlavorProjects returns the ids of the projects that have access to a flavor.
func (s *Store) FlavorProjects(ctx context.Context, id string) ([]string, error) {
	out := []string{}
	err := s.db.SelectContext(ctx, &out, `SELECT project_id FROM flavor_projects WHERE flavor_id = ? ORDER BY project_id`, id)
	return out, db.Error(err)
}

// AllowFlavor gives a project access to a flavor. Errors: NotFound if the flavor does not exist; Conflict if the
// project already has access.
func (s *Store) AllowFlavor(ctx context.Context, id, project string) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		// The row stays locked until the end of the transaction, so that the flavor is not deleted meanwhile.
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

// DenyFlavor removes a project's access to a flavor. Errors: NotFound if the project has no access.
func (s *Store) DenyFlavor(ctx context.Context, id, project string) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		missing := fault.New(fault.NotFound, "Flavor access not found for %s / %s combination.", id, project)
		return db.ExecOne(ctx, tx, missing, `DELETE FROM flavor_projects WHERE flavor_id = ? AND project_id = ?`, id, project)
	})
}

// CreateFlavor adds a flavor. Errors: Conflict if another flavor has the same id or the same name.
func (s *Store) CreateFlavor(ctx context.Context, f *Flavor) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		f.CreatedAt = &now
		var n int
		if err := tx.GetContext(ctx, &n, `SELECT COUNT(*) FROM flavors WHERE id = ?`, f.ID); err != nil {
			return db.Error(err)
		}
		if n > 0 {
			return fault.New(fault.Conflict, "Flavor with ID %s already exists.", f.ID)
		}
		_, err := tx.NamedExecContext(ctx, `INSERT INTO flavors (id, name, vcpus, memory_mib, disk_gib, ephemeral_gib, swap_mib, rxtx_factor, is_public, description, created_at) VALUES
			(:id, :name, :vcpus, :memory_mib, :disk_gib, :ephemeral_gib, :swap_mib, :rxtx_factor, :is_public, :description, :created_at)`, f)
		if err = db.Error(err); err != nil && fault.CodeOf(err) == fault.Conflict {
			return fault.New(fault.Conflict, "Flavor with name %s already exists.", f.Name)
		}
		return err
	})
}

// DescribeFlavor changes the description of a flavor; nil removes it. It returns the flavor. Errors: NotFound if the flavor does not exist.
func (s *Store) DescribeFlavor(ctx context.Context, id string, text *string) (*Flavor, error) {
	return s.changeFlavor(ctx, id, func(f *Flavor, now time.Time) error {
		f.Description, f.UpdatedAt = text, &now
		return nil
	})
}

// SetSpecs adds extra specs to a flavor. Existing extra specs with the same keys get the new values. Errors: NotFound if the flavor does not exist;
// Invalid if the extra specs of the flavor would have more than 65,535 bytes in total, as JSON.
func (s *Store) SetSpecs(ctx context.Context, id string, specs map[string]string) error {
	_, err := s.changeFlavor(ctx, id, func(f *Flavor, _ time.Time) error {
		all := maps.Clone(f.Specs())
		maps.Copy(all, specs)
		f.ExtraSpecs.V = all
		return nil
	})
	return err
}

// DeleteSpec removes an extra spec of a flavor. Errors: NotFound if the flavor does not exist or does not have the extra spec.
func (s *Store) DeleteSpec(ctx context.Context, id, key string) error {
	_, err := s.changeFlavor(ctx, id, func(f *Flavor, _ time.Time) error {
		if _, ok := f.ExtraSpecs.V[key]; !ok {
			return NoSpec(id, key)
		}
		f.ExtraSpecs.V = maps.Clone(f.ExtraSpecs.V)
		delete(f.ExtraSpecs.V, key)
		return nil
	})
	return err
}

// NoSpec returns the error NotFound for an extra spec that a flavor does not have.
func NoSpec(id, key string) error {
	return fault.New(fault.NotFound, "Flavor %s has no extra specs with key %s.", id, key)
}

// changeFlavor calls the function change with a locked flavor and the time of the database, writes
// Description, ExtraSpecs and UpdatedAt, and returns the flavor.
func (s *Store) changeFlavor(ctx context.Context, id string, change func(*Flavor, time.Time) error) (*Flavor, error) {
	f := new(Flavor)
	err := s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		err := s.get(ctx, tx, f, noFlavor(id), `SELECT `+db.Columns[Flavor]()+` FROM flavors WHERE id = ? FOR UPDATE`, id)
		if err == nil {
			err = change(f, now)
		}
		if err != nil {
			return err
		}
		raw, err := f.ExtraSpecs.Value()
		if err != nil {
			return err
		}
		if len(fmt.Sprint(raw)) > maxMetadata {
			return fault.New(fault.Invalid, "Invalid extra specs: as JSON they must have at most %d bytes", maxMetadata)
		}
		_, err = tx.NamedExecContext(ctx, `UPDATE flavors SET description = :description, extra_specs = :extra_specs, updated_at = :updated_at WHERE id = :id`, f)
		return db.Error(err)
	})
	return f, err
}

// DeleteFlavor removes a flavor. Servers of the flavor keep their size. Errors: NotFound if the flavor does not exist.
func (s *Store) DeleteFlavor(ctx context.Context, id string) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		if err := db.ExecOne(ctx, tx, noFlavor(id), `DELETE FROM flavors WHERE id = ?`, id); err != nil {
			return err
		}
		_, err := db.Exec(ctx, tx, `DELETE FROM flavor_projects WHERE flavor_id = ?`, id)
		return err
	})
}
