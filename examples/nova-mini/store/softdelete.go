package store

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// A server that is soft-deleted keeps its host and its claim there, but does not count in the quotas of its project, as in Nova.

// errNotRestorable means that a server could not be restored after a soft deletion. errUnchanged means that nothing has to be done.
var (
	errNotRestorable = errors.New("the server cannot be restored")
	errUnchanged     = errors.New("the server is being deleted, or is soft-deleted")
)

// BeginSoftDelete begins the soft deletion of a server, which preempts other operations. A server that could not be restored is deleted at once: it
// has never run, is on no host or offloaded, or its size is not known while it is being resized or after a failed resize. If the server is being deleted or is soft-deleted
// already, BeginSoftDelete does nothing. Errors: NotFound.
func (s *Store) BeginSoftDelete(ctx context.Context, id string) error {
	err := s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		// The operation is locked before the server, in the same order as a runner locks them.
		switch open, err := s.ops.Lock(ctx, tx, id); {
		case errors.Is(err, fault.NotFound):
		case err != nil:
			return err
		case open.Kind == Delete.Name, open.Kind == kindName(compute.SoftDelete):
			return errUnchanged
		case open.Kind == kindName(compute.Resize), open.Kind == kindName(compute.RevertResize): // the confirmation of a resize goes on in the soft deletion
			return errNotRestorable
		}
		if err := s.discardPreempted(ctx, tx, id, true, func() error {
			_, err := operation.Begin(ctx, s.ops, Kinds[compute.SoftDelete], id, &ActData{})
			return err
		}); err != nil {
			return err
		}
		srv, err := s.lockServer(ctx, tx, id)
		switch {
		case err != nil:
			return err
		case srv.VMState == compute.VMSoftDeleted:
			return errUnchanged
		case srv.LaunchedAt == nil, srv.Host == nil, srv.Resize.V != nil && srv.VMState != Resized, !slices.Contains(compute.SoftDelete.Info().From, srv.VMState):
			return errNotRestorable
		}
		_, err = db.Exec(ctx, tx, `UPDATE servers SET updated_at = ? WHERE id = ?`, now, id)
		return err
	})
	switch {
	case errors.Is(err, errNotRestorable):
		return s.BeginDelete(ctx, id)
	case errors.Is(err, errUnchanged), errors.Is(err, operation.ErrBusy):
		return nil
	}
	return err
}

// SoftDeleted returns the IDs of servers without an operation that are soft-deleted for longer than a time, at most 100, the oldest first.
func (s *Store) SoftDeleted(ctx context.Context, longer time.Duration) (ids []string, err error) {
	now, err := db.Now(ctx, s.db)
	if err == nil {
		err = db.Error(s.db.SelectContext(ctx, &ids, `SELECT s.id FROM `+withOperation+` WHERE s.vm_state = ? AND s.soft_deleted_at <= ? AND o.id IS NULL ORDER BY s.soft_deleted_at, s.id LIMIT 100`,
			compute.VMSoftDeleted, now.Add(-longer)))
	}
	return ids, err
}

// Reclaim begins the deletion of a server that is soft-deleted for longer than a time. It does nothing if the server has an operation, such as one
// that restores it, or is not soft-deleted any more. begun reports whether the deletion has begun.
func (s *Store) Reclaim(ctx context.Context, id string, longer time.Duration) (begun bool, err error) {
	err = s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		switch _, err := s.ops.Lock(ctx, tx, id); {
		case err == nil:
			return errUnchanged
		case !errors.Is(err, fault.NotFound):
			return err
		}
		k := Delete
		k.Preempts = false // an operation that has begun meanwhile wins
		if _, err := operation.Begin(ctx, s.ops, k, id, &struct{}{}); err != nil {
			return err
		}
		srv, err := s.lockServer(ctx, tx, id)
		if err == nil && (srv.VMState != compute.VMSoftDeleted || srv.SoftDeletedAt == nil || srv.SoftDeletedAt.After(now.Add(-longer))) {
			err = errUnchanged
		}
		return err
	})
	if errors.Is(err, errUnchanged) || errors.Is(err, operation.ErrBusy) || errors.Is(err, fault.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// recount makes the quota of a server's project count the server, or not, after its state has changed.
func (s *Store) recount(ctx context.Context, tx *sqlx.Tx, srv *Server) error {
	if srv.VMState == compute.VMSoftDeleted {
		return s.quotas.Release(ctx, tx, srv.ID)
	}
	return s.counted.Reserve(ctx, tx, srv.quotaClaim(srv.Holds()))
}
