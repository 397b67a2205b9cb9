package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/service/operation"
)

// BeginDelete begins the deletion of a server. A deletion preempts every other operation on the server. If the server is
// already being deleted, BeginDelete does nothing. Errors: NotFound.
func (s *Store) BeginDelete(ctx context.Context, id string) error {
	err := s.repeatBusy(id, compute.ForceDelete, func() error {
		return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
			// The operation is locked before the server, in the same order as a runner locks them.
			err := s.preempt(ctx, tx, id, func(open *operation.Op) error {
				if open != nil && open.Kind == Delete.Name {
					return errUnchanged
				}
				_, err := operation.Begin(ctx, s.ops, Delete, id, &struct{}{})
				return err
			})
			if err != nil {
				return err
			}
			return db.ExecOne(ctx, tx, NoServer(id), `UPDATE servers SET updated_at = ? WHERE id = ?`, now, id)
		})
	})
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return err
}

// FailDelete records that the deletion of a server has failed: the server is in ERROR, with a fault, and keeps its host and
// its claim. It runs in the transaction in which the operation ends. It is not an error if the server does not exist.
func (s *Store) FailDelete(ctx context.Context, tx *sqlx.Tx, id, details string) error {
	_, err := s.fail(ctx, tx, id, fmt.Sprintf("Failed to delete instance %s.", id), details)
	return err
}

// keepDeleted is SQL that copies the shown columns of a server to the table of deleted servers.
var keepDeleted = func() string {
	columns := shownColumns()
	values := slices.Clone(columns)
	for i, name := range columns {
		switch name {
		case `"vm_state"`:
			values[i] = "'" + Deleted + "'"
		case `"power_state"`:
			values[i] = strconv.Itoa(int(compute.NoState)) // as in Nova
		case `"networks"`: // the deletion has removed the ports, or has given them back
			values[i] = "NULL"
		case `"updated_at"`:
			values[i] = "UTC_TIMESTAMP(6)"
		}
	}
	return `INSERT INTO deleted_servers (` + strings.Join(columns, ", ") + `, deleted_at) SELECT ` + strings.Join(values, ", ") + `, UTC_TIMESTAMP(6) FROM servers WHERE id = ?`
}()

// PruneDeleted removes the rows of deleted servers. The parameter age is the least time since the deletion.
func (s *Store) PruneDeleted(ctx context.Context, age time.Duration) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		_, err := db.Exec(ctx, tx, `DELETE FROM deleted_servers WHERE deleted_at <= ?`, now.Add(-age))
		return err
	})
}

// Remove deletes a server, and releases its claim and its use of the quota. Lists of deleted servers have the server until PruneDeleted, and reports of usage have it until PruneUsage. Remove
// runs in the transaction in which the operation ends. It is not an error if the server does not exist.
func (s *Store) Remove(ctx context.Context, tx *sqlx.Tx, id string) error {
	_, err := db.Exec(ctx, tx, keepDeleted, id)
	if err == nil {
		_, err = db.Exec(ctx, tx, keepUsage, id)
	}
	if err == nil {
		_, err = db.Exec(ctx, tx, `DELETE FROM backups WHERE server_id = ?`, id) // the images stay, as in Nova
	}
	if err == nil {
		_, err = db.Exec(ctx, tx, `DELETE FROM console_tokens WHERE server_id = ?`, id)
	}
	if err == nil {
		_, err = db.Exec(ctx, tx, `DELETE FROM servers WHERE id = ?`, id)
	}
	if err == nil {
		err = s.quotas.Release(ctx, tx, id)
	}
	if err != nil {
		return err
	}
	return s.release(ctx, tx, id)
}
