package store

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// The values of Server.LockedBy for a locked server.
const (
	LockedByOwner = "owner"
	LockedByAdmin = "admin"
)

// LockServer locks a server. The parameter by is LockedByOwner or LockedByAdmin. A lock by the owner has no effect on a locked server. An empty reason
// leaves the stored reason as it is. Errors: NotFound.
func (s *Store) LockServer(ctx context.Context, id, by, reason string) error {
	return s.record(ctx, id, compute.Lock, nil, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		if srv, err := s.lockServer(ctx, tx, id); err != nil || srv.LockedBy != "" && by == LockedByOwner {
			return err
		}
		return db.ExecOne(ctx, tx, NoServer(id), `UPDATE servers SET locked_by = ?, locked_reason = CASE WHEN ? = '' THEN locked_reason ELSE ? END, updated_at = ? WHERE id = ?`,
			by, reason, reason, now, id)
	})
}

// UnlockServer unlocks a server. The parameter by is the Server.LockedBy for which the client may unlock it. Errors: NotFound; Conflict if the lock has changed meanwhile.
func (s *Store) UnlockServer(ctx context.Context, id, by string) error {
	return s.record(ctx, id, compute.Unlock, nil, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		srv, err := s.lockServer(ctx, tx, id)
		if err == nil && srv.LockedBy != by {
			err = fault.New(fault.Conflict, "The lock of instance %s has changed since the request began. Try again.", id)
		}
		if err != nil {
			return err
		}
		return db.ExecOne(ctx, tx, NoServer(id), `UPDATE servers SET locked_by = '', locked_reason = '', updated_at = ? WHERE id = ?`, now, id)
	})
}

// ResetState sets the vm_state of a server to Active or Error, and keeps the power state. If the server has an operation, ResetState ends the operation without undoing it.
// Active does not end a creation or an unshelve: as in Nova, the server then is what the operation leaves, because an active server without a guest is of no use. During an unshelve
// the vm_state stays, too: it is what the server is after a failure. No reset ends a deletion, as in Nova: the client that has asked for the deletion has its reply, and the host
// may have destroyed the guest already. Errors: NotFound.
func (s *Store) ResetState(ctx context.Context, id, vmState string) error {
	made := "" // the kind of the operation that makes the guest, and continues
	preempts := func(open *operation.Op) bool {
		made = ""
		switch {
		case open == nil:
			return true
		case vmState == Active && (open.Kind == Create.Name || open.Kind == kindName(compute.Unshelve)):
			made = open.Kind
			return false
		}
		return open.Kind != Delete.Name && !changesInterfaces(open.Kind) // a deletion and the change of an interface go on
	}
	return s.record(ctx, id, compute.ResetState, preempts, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		switch made {
		case Create.Name:
			return db.ExecOne(ctx, tx, NoServer(id), `UPDATE servers SET vm_state = ?, updated_at = ? WHERE id = ?`, vmState, now, id)
		case kindName(compute.Unshelve):
			return nil
		}
		srv, err := s.lockServer(ctx, tx, id)
		if err == nil && srv.Host == nil { // the ended operation may be a creation that has claimed a host
			err = s.release(ctx, tx, id)
		}
		if err != nil {
			return err
		}
		if _, err = db.Exec(ctx, tx, `UPDATE servers SET vm_state = ?, power_state = ?, admin_pass = NULL, updated_at = ? WHERE id = ?`, vmState, srv.PowerState(), now, id); err != nil || srv.VMState != compute.VMSoftDeleted {
			return err
		}
		srv.VMState = vmState
		return s.recount(ctx, tx, srv)
	})
}

// RecordAction records an action that the API service has done without an operation, and that has just ended. The parameter began is the time of its start, and failed is its error, or nil
// after success.
func (s *Store) RecordAction(ctx context.Context, id string, a compute.Action, began time.Time, failed error) error {
	_, err := operation.Record(ctx, s.ops, operation.Kind[struct{}]{Name: kindName(a)}, id, &struct{}{}, time.Since(began), failed)
	return err
}

// record changes a server at once, and records the change as an operation that has succeeded. If preempts is not nil, the change ends the current operation of the server for which preempts
// returns true.
func (s *Store) record(ctx context.Context, id string, a compute.Action, preempts func(*operation.Op) bool, change func(context.Context, *sqlx.Tx, time.Time) error) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		// The operation is written before the server, in the same order as a runner locks them.
		begin := func(open *operation.Op) error {
			k := operation.Kind[struct{}]{Name: kindName(a), Preempts: preempts != nil && preempts(open)}
			_, err := operation.Record(ctx, s.ops, k, id, &struct{}{}, 0, nil)
			return err
		}
		var err error
		if preempts != nil {
			err = s.preempt(ctx, tx, id, begin)
		} else {
			err = begin(nil)
		}
		if err != nil {
			return err
		}
		return change(ctx, tx, now)
	})
}
