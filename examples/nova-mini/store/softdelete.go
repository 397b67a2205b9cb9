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

// As in Nova, a soft-deleted server keeps its host and its claim there, but does not count in the quotas of its project.

// errNotRestorable means that the server could not be restored after a soft deletion, so it is deleted at once. errUnchanged means that nothing must be changed.
var (
	errNotRestorable = errors.New("the server cannot be restored")
	errUnchanged     = errors.New("the server is being deleted, or is soft-deleted")
)

// BeginSoftDelete begins the soft deletion of a server, which preempts other operations. A resize that is neither done nor reverted is
// undone. A server that could not be restored later is deleted at once: a server that has never run, has no host or is offloaded. If
// the server is being deleted or is soft-deleted already, BeginSoftDelete does nothing. It waits while an interface of the server is changed. Errors: NotFound; Conflict if that takes longer than 30 s.
func (s *Store) BeginSoftDelete(ctx context.Context, id string) error {
	err := s.repeatBusy(id, compute.SoftDelete, func() error {
		return s.whenFree(ctx, id, compute.SoftDelete, func() error {
			return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
				return s.beginSoftDelete(ctx, tx, id, now)
			})
		})
	})
	switch {
	case errors.Is(err, errNotRestorable):
		return s.BeginDelete(ctx, id)
	case errors.Is(err, errUnchanged):
		return nil
	}
	return err
}

// repeatBusy calls a function that begins the deletion of a server until it does not return operation.ErrBusy: then another operation has begun or ended at the same moment. Errors: Conflict after
// maxBegins calls.
func (s *Store) repeatBusy(id string, a compute.Action, begin func() error) error {
	for range maxBegins {
		if err := begin(); !errors.Is(err, operation.ErrBusy) {
			return err
		}
	}
	return interfacesBusy(id, a)
}

func (s *Store) beginSoftDelete(ctx context.Context, tx *sqlx.Tx, id string, now time.Time) error {
	// The operation is locked before the server, in the same order as a runner locks them.
	open, err := s.preemptBySoftDelete(ctx, tx, id)
	if err != nil {
		return err
	}
	srv, err := s.lockServer(ctx, tx, id)
	switch {
	case err != nil:
		return err
	case srv.VMState == compute.VMSoftDeleted && open != kindName(compute.Restore):
		return errUnchanged
	case srv.LaunchedAt == nil, srv.Host == nil, !slices.Contains(compute.SoftDelete.Info().From, srv.VMState):
		return errNotRestorable
	}
	_, err = db.Exec(ctx, tx, `UPDATE servers SET updated_at = ? WHERE id = ?`, now, id)
	return err
}

// preemptBySoftDelete begins the operation of a soft deletion. It returns the kind of the operation that the deletion preempts, or "". Errors: errUnchanged; operation.ErrBusy while an interface of the server is changed.
func (s *Store) preemptBySoftDelete(ctx context.Context, tx *sqlx.Tx, id string) (preempted string, err error) {
	err = s.preempt(ctx, tx, id, func(open *operation.Op) error {
		if open != nil {
			switch {
			case open.Kind == Delete.Name, open.Kind == kindName(compute.SoftDelete):
				return errUnchanged
			case changesInterfaces(open.Kind): // it would leave a port behind
				return operation.ErrBusy
			}
			preempted = open.Kind
		}
		_, err := operation.Begin(ctx, s.ops, Kinds[compute.SoftDelete], id, &ActData{})
		return err
	})
	return preempted, err
}

// SoftDeleted returns the IDs of servers that have been soft-deleted for longer than the given time: at most 100, the oldest first. It
// leaves out servers with an operation.
func (s *Store) SoftDeleted(ctx context.Context, longer time.Duration) (ids []string, err error) {
	now, err := db.Now(ctx, s.db)
	if err == nil {
		err = db.Error(s.db.SelectContext(ctx, &ids, `SELECT s.id FROM `+withOperation+` WHERE s.vm_state = ? AND s.soft_deleted_at <= ? AND o.id IS NULL ORDER BY s.soft_deleted_at, s.id LIMIT 100`,
			compute.VMSoftDeleted, now.Add(-longer)))
	}
	return ids, err
}

// Reclaim begins the deletion of a server that has been soft-deleted for longer than the given time. It does nothing if the server has an operation, such
// as a restore, or is no longer soft-deleted. The result begun reports whether the deletion has begun.
func (s *Store) Reclaim(ctx context.Context, id string, longer time.Duration) (begun bool, err error) {
	err = s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		switch _, err := s.ops.Lock(ctx, tx, id); {
		case err == nil:
			return errUnchanged
		case !errors.Is(err, fault.NotFound):
			return err
		}
		k := Delete
		k.Preempts = false // an operation that has begun meanwhile continues
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

// recount corrects the server's use of its project's quota after a change of its state or size. A soft-deleted server does not count.
func (s *Store) recount(ctx context.Context, tx *sqlx.Tx, srv *Server) error {
	if srv.VMState == compute.VMSoftDeleted {
		return s.quotas.Release(ctx, tx, srv.ID)
	}
	return s.counted.Reserve(ctx, tx, srv.quotaClaim(srv.Holds()))
}
