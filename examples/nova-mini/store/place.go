package store

import (
	"context"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
)

// Place sets the host on which a server will be built. It runs in the transaction that ends the operation's step. Errors:
// [compute.ErrStale] if the server does not exist or has been built already.
func (s *Store) Place(ctx context.Context, tx *sqlx.Tx, id, host string) error {
	return db.ExecOne(ctx, tx, compute.ErrStale, `UPDATE servers SET host = ?, vm_state = ?, fault_for_users = '', fault_message = '', fault_at = NULL, updated_at = UTC_TIMESTAMP(6)
		WHERE id = ? AND launched_at IS NULL`, host, Building, id)
}

// PlaceAgain sets the host of a server that was offloaded. It runs in the transaction that ends the operation's step. Errors:
// [compute.ErrStale] if the server does not exist or has a host.
func (s *Store) PlaceAgain(ctx context.Context, tx *sqlx.Tx, id, host string) error {
	return db.ExecOne(ctx, tx, compute.ErrStale, `UPDATE servers SET host = ?, updated_at = UTC_TIMESTAMP(6) WHERE id = ? AND host IS NULL`, host, id)
}

// Unplace clears the host of a server after a build has failed there, and releases the server's claim. The parameter details
// is the error of the build, for administrators. Unplace runs in the transaction that ends the operation's step.
func (s *Store) Unplace(ctx context.Context, tx *sqlx.Tx, id, details string) error {
	if _, err := db.Exec(ctx, tx, `UPDATE servers SET host = NULL, fault_message = ?, updated_at = UTC_TIMESTAMP(6) WHERE id = ?`, db.Cut(details, maxFault), id); err != nil {
		return err
	}
	return s.release(ctx, tx, id)
}

// Orphans returns the ids of those servers that the database does not place on the host: such a server is on another host, has
// no host, or does not exist. The result has the order of the parameter ids.
func (s *Store) Orphans(ctx context.Context, host string, ids []string) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	query, args, err := sqlx.In(`SELECT id FROM servers WHERE host = ? AND id IN (?)`, host, ids)
	if err != nil {
		return nil, err
	}
	var known []string
	if err := s.db.SelectContext(ctx, &known, query, args...); err != nil {
		return nil, db.Error(err)
	}
	placed := make(map[string]bool, len(known))
	for _, id := range known {
		placed[id] = true
	}
	var out []string
	for _, id := range ids {
		if !placed[id] {
			out = append(out, id)
		}
	}
	return out, nil
}
