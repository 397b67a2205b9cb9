package store

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/listing"
)

// ServerUsage is a server that ran in a period, for reports of usage.
type ServerUsage struct {
	ID         string               `db:"id"`
	ProjectID  string               `db:"project_id"`
	Name       string               `db:"name"`
	FlavorID   string               `db:"flavor_id"`
	BootFlavor db.JSON[*BootFlavor] `db:"boot_flavor"`
	VCPUs      int                  `db:"vcpus"`
	MemoryMiB  int                  `db:"memory_mib"`
	DiskGiB    int                  `db:"disk_gib"`
	VMState    string               `db:"vm_state"` // Deleted for a server that is deleted
	LaunchedAt time.Time            `db:"launched_at"`
	// TerminatedAt is nil unless the server is deleted.
	TerminatedAt *time.Time `db:"terminated_at"`
}

// Flavor is Server.Flavor.
func (u *ServerUsage) Flavor() BootFlavor {
	return (&Server{FlavorID: u.FlavorID, DiskGiB: u.DiskGiB, BootFlavor: u.BootFlavor}).Flavor()
}

// usageColumns are the columns that past_usage has of a server. The others are of its end.
const usageColumns = `id, project_id, name, flavor_id, boot_flavor, vcpus, memory_mib, disk_gib, launched_at`

// usages is SQL for a FROM clause: the servers that have been built, also deleted ones.
const usages = `(SELECT ` + usageColumns + `, vm_state, NULL AS terminated_at FROM servers WHERE launched_at IS NOT NULL
	UNION ALL SELECT ` + usageColumns + `, '` + Deleted + `', terminated_at FROM past_usage) usages`

// keepUsage copies what reports of usage need of a server.
const keepUsage = `INSERT INTO past_usage (` + usageColumns + `, terminated_at) SELECT ` + usageColumns + `, UTC_TIMESTAMP(6) FROM servers
	WHERE id = ? AND launched_at IS NOT NULL`

// Usages returns a page of the servers of projects that were built before the end of a period and not deleted before its start, sorted by
// project and ID unless the query has another order. Deleted servers are among them until PruneUsage. Errors: Invalid, with Nova's text, if the
// marker is not a server that was built in one of the projects.
func (s *Store) Usages(ctx context.Context, in Projects, from, to time.Time, q listing.Query) ([]ServerUsage, error) {
	p := db.Page{From: usages, Key: "id"}.Select(q)
	p.Within, p.WithinArgs = in.where()
	p.Where, p.Args = `launched_at < ? AND (terminated_at IS NULL OR terminated_at > ?)`, []any{to, from}
	out, _, err := db.List[ServerUsage](ctx, s.db, p)
	return out, noMarker(err, q.Marker)
}

// PruneUsage forgets the usage of servers that were deleted at least this long ago.
func (s *Store) PruneUsage(ctx context.Context, age time.Duration) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		_, err := db.Exec(ctx, tx, `DELETE FROM past_usage WHERE terminated_at <= ?`, now.Add(-age))
		return err
	})
}

// Now returns the time of the database.
func (s *Store) Now(ctx context.Context) (time.Time, error) { return db.Now(ctx, s.db) }
