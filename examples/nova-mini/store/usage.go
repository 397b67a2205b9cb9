package store

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/listing"
)

// ServerUsage is a server that existed in a period, for reports of usage.
type ServerUsage struct {
	ID         string               `db:"id"`
	ProjectID  string               `db:"project_id"`
	Name       string               `db:"name"`
	FlavorID   string               `db:"flavor_id"`
	BootFlavor db.JSON[*BootFlavor] `db:"boot_flavor"`
	VCPUs      int                  `db:"vcpus"`
	MemoryMiB  int                  `db:"memory_mib"`
	DiskGiB    int                  `db:"disk_gib"`
	VMState    string               `db:"vm_state"` // Deleted for a deleted server
	LaunchedAt time.Time            `db:"launched_at"`
	// TerminatedAt is the time of the deletion. Only deleted servers have it.
	TerminatedAt *time.Time `db:"terminated_at"`
}

// Flavor is like Server.Flavor.
func (u *ServerUsage) Flavor() BootFlavor {
	return (&Server{FlavorID: u.FlavorID, DiskGiB: u.DiskGiB, BootFlavor: u.BootFlavor}).Flavor()
}

// usageColumns are the columns of the table servers that the table past_usage has, too.
const usageColumns = `id, project_id, name, flavor_id, boot_flavor, vcpus, memory_mib, disk_gib, launched_at`

// usages is SQL for a FROM clause: the servers that have been built, including deleted servers.
const usages = `(SELECT ` + usageColumns + `, vm_state, NULL AS terminated_at FROM servers WHERE launched_at IS NOT NULL
	UNION ALL SELECT ` + usageColumns + `, '` + Deleted + `', terminated_at FROM past_usage) usages`

// keepUsage is SQL that copies a server to the table past_usage, for reports of usage.
const keepUsage = `INSERT INTO past_usage (` + usageColumns + `, terminated_at) SELECT ` + usageColumns + `, UTC_TIMESTAMP(6) FROM servers
	WHERE id = ? AND launched_at IS NOT NULL`

// Usages returns a page of the servers that existed in a period. The parameters from and to are the start and the end of the period.
// The servers were built before the end, and were not deleted before the start. The result includes deleted servers until PruneUsage.
// Errors: Invalid, with Nova's text, if the marker is not a server of the selected projects that has been built.
func (s *Store) Usages(ctx context.Context, in Projects, from, to time.Time, q listing.Query) ([]ServerUsage, error) {
	p := db.Page{From: usages, Key: "id"}.Select(q)
	p.Within, p.WithinArgs = in.where()
	p.Where, p.Args = `launched_at < ? AND (terminated_at IS NULL OR terminated_at > ?)`, []any{to, from}
	out, _, err := db.List[ServerUsage](ctx, s.db, p)
	return out, noMarker(err, q.Marker)
}

// PruneUsage removes the usage of deleted servers. The parameter age is the least time since the deletion.
func (s *Store) PruneUsage(ctx context.Context, age time.Duration) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		_, err := db.Exec(ctx, tx, `DELETE FROM past_usage WHERE terminated_at <= ?`, now.Add(-age))
		return err
	})
}

// Now returns the time by the database's clock.
func (s *Store) Now(ctx context.Context) (time.Time, error) { return db.Now(ctx, s.db) }
