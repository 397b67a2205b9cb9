package store

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// BeginAction begins the operation of an action on a server. Errors: NotFound; Conflict, with Nova's text, if the
// server's state does not allow the action, or the server has a task that the action does not interrupt; Unimplemented if the driver of the server's host does not support the action.
//
// BeginAction of a resize or of a restore also counts the server in the quota. Further error: Denied if the quota is exceeded. For a
// resize, BeginAction also claims the resources for both sizes on the server's host. Further errors of a resize: Invalid, with Nova's
// text, if the server already has the flavor or its disk would shrink; [placement.ErrNoRoom] if the host does not have enough
// resources. The text of ErrNoRoom names the host and amounts, which the server's project must not see.
func (s *Store) BeginAction(ctx context.Context, id string, a compute.Action, data ActData) error {
	for attempt := 1; ; attempt++ {
		err := s.whenFree(ctx, id, a, func() error {
			return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
				// The operation is locked before the server, in the same order as a runner locks them.
				if err := s.beginOperation(ctx, tx, id, a, &data); err != nil {
					return err
				}
				return s.prepareAction(ctx, tx, id, a, &data, now)
			})
		})
		if !errors.Is(err, operation.ErrBusy) {
			return err
		}
		srv, readErr := s.Server(ctx, id)
		if readErr != nil {
			return readErr
		}
		if err := checkState(srv, a.Info()); err != nil { // Nova checks the vm_state first
			return err
		}
		// Without a task, the other operation has ended meanwhile. A task that the action interrupts has begun meanwhile. Then begin again.
		if task := srv.Task(); attempt == maxBegins || task != "" && !interruptsTask(a, task) {
			return hasTask(srv, a.Info())
		}
	}
}

// interruptsTask reports whether an action ends the action that has a task.
func interruptsTask(a compute.Action, task string) bool {
	return slices.ContainsFunc(a.Info().Interrupts, func(other compute.Action) bool { return other.Info().Task == task })
}

// maxBegins limits the attempts to begin an action while other actions begin and end.
const maxBegins = 20

// beginOperation begins the operation of an action. If the action interrupts the open operation of the server, beginOperation ends
// that operation. Errors: operation.ErrBusy.
func (s *Store) beginOperation(ctx context.Context, tx *sqlx.Tx, id string, a compute.Action, data *ActData) error {
	kind, interrupts := data.kind(a), a.Info().Interrupts
	begin := func(open *operation.Op) error {
		if open != nil && slices.Contains(interrupts, actionOf(open.Kind)) {
			kind.Preempts, kind.PreemptsSame = true, true
		}
		_, err := operation.Begin(ctx, s.ops, kind, id, data)
		return err
	}
	if interrupts == nil {
		return begin(nil)
	}
	return s.preempt(ctx, tx, id, begin)
}

// PrepareAction checks that a server's state still allows the action of an operation, and returns the server. The conductor calls
// PrepareAction before it casts a request to the compute service. An operation that operation.Store.Retry has started anew has lost
// what BeginAction reserved. So PrepareAction claims the resources of a resize if they are not claimed, and counts the server in the
// quota before the first request of a restore. A resize, its confirmation or its revert that was interrupted continues, see [Resize].
// Errors: those of BeginAction; operation.ErrStale if PrepareAction must prepare
// something, but the step of the operation op is no longer the current step.
func (s *Store) PrepareAction(ctx context.Context, op *operation.Op, a compute.Action, data *ActData) (*Server, error) {
	id := op.Resource
	srv, err := s.Server(ctx, id)
	if err != nil {
		return nil, err
	}
	resumes := srv.interruptedBy(a, data)
	if begun := op.Waits > 0 || a == compute.Resize && srv.resizing(); begun || a != compute.Resize && a != compute.Restore && !resumes {
		return srv, checkState(srv, data.info(a))
	}
	err = s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		switch current, err := s.ops.Lock(ctx, tx, id); {
		case errors.Is(err, fault.NotFound), err == nil && current.Token != op.Token:
			return operation.ErrStale
		case err != nil:
			return err
		case resumes:
			return s.resumeResize(ctx, tx, id, a, now)
		}
		return s.prepareAction(ctx, tx, id, a, data, now)
	})
	if err != nil {
		return nil, err
	}
	return s.Server(ctx, id)
}

// info returns the row of an action, with the states in which an action with these data is allowed.
func (d *ActData) info(a compute.Action) compute.ActionInfo {
	info := a.Info()
	if d.Force {
		info.From = append(slices.Clone(info.From), Stopped, compute.VMPaused)
	}
	return info
}

// checkState returns Conflict, with Nova's text, if a server's state does not allow an action.
func checkState(srv *Server, info compute.ActionInfo) error {
	switch {
	case !slices.Contains(info.From, srv.VMState):
		return fault.New(fault.Conflict, "Cannot '%s' instance %s while it is in vm_state %s", info.Name, srv.ID, srv.VMState)
	case srv.Host == nil && srv.VMState != compute.VMOffloaded: // a server in ERROR whose creation has failed
		return NotReady(srv.ID)
	}
	return nil
}

// CheckAction is for actions that the API service does without an operation. It returns Conflict, with Nova's text, if the server's state does not allow the action, or the
// server has a task.
func CheckAction(srv *Server, a compute.Action) error {
	info := a.Info()
	if len(info.From) == 0 {
		return nil
	}
	err := checkState(srv, info)
	if err == nil && srv.Task() != "" {
		err = hasTask(srv, info)
	}
	return err
}

func hasTask(srv *Server, info compute.ActionInfo) error {
	return fault.New(fault.Conflict, "Cannot '%s' instance %s while it is in task_state %s", info.Name, srv.ID, srv.Task())
}

// NotReady returns the error Conflict for a server without a host.
func NotReady(id string) error { return fault.New(fault.Conflict, "Instance %s is not ready", id) }

// prepareAction checks that the server's state and the driver of its host allow an action. Then it calls applyAction.
func (s *Store) prepareAction(ctx context.Context, tx *sqlx.Tx, id string, a compute.Action, data *ActData, now time.Time) error {
	info := a.Info()
	if info.Capability == "" && !info.Builds && data.Resize == nil && a != compute.Restore {
		return s.touchServer(ctx, tx, id, info, now)
	}
	srv, err := s.lockServer(ctx, tx, id)
	if err != nil {
		return err
	}
	if err := checkState(srv, info); err != nil {
		return err
	}
	if srv.Host != nil {
		err = s.checkCapability(ctx, tx, *srv.Host, info.Capability)
		if err == nil && data.Backup != nil && data.Backup.ByDriver {
			err = s.checkCapability(ctx, tx, *srv.Host, compute.CapRemoveImage)
		}
	}
	if err != nil {
		return err
	}
	return s.applyAction(ctx, tx, srv, a, data, now)
}

// applyAction makes the changes in the database that precede the work of the compute service.
func (s *Store) applyAction(ctx context.Context, tx *sqlx.Tx, srv *Server, a compute.Action, data *ActData, now time.Time) (err error) {
	id := srv.ID
	switch {
	case a == compute.Restore:
		if err := s.quotas.Reserve(ctx, tx, srv.quotaClaim(srv.Holds())); err != nil {
			return overQuota(err)
		}
	case data.Resize != nil:
		if data.AutoDisk != nil {
			if _, err := db.Exec(ctx, tx, `UPDATE servers SET auto_disk_config = ? WHERE id = ?`, *data.AutoDisk, id); err != nil {
				return err
			}
		}
		return s.prepareResize(ctx, tx, srv, *data.Resize, now)
	case data.Rebuild != nil:
		return s.rebuildServer(ctx, tx, id, data.Rebuild, now)
	case data.AdminPass != nil:
		_, err = db.Exec(ctx, tx, `UPDATE servers SET admin_pass = ?, updated_at = ? WHERE id = ?`, *data.AdminPass, now, id)
		return err
	case data.Pin != nil:
		_, err = db.Exec(ctx, tx, `UPDATE servers SET pinned_zone = ?, updated_at = ? WHERE id = ?`, data.Pin.Zone, now, id)
		return err
	}
	_, err = db.Exec(ctx, tx, `UPDATE servers SET updated_at = ? WHERE id = ?`, now, id)
	return err
}

// touchServer sets the updated_at of a server if the server's state allows the action. The database checks the state in the same
// statement. Errors: those of checkState; NotFound.
func (s *Store) touchServer(ctx context.Context, tx *sqlx.Tx, id string, info compute.ActionInfo, now time.Time) error {
	err := db.UpdateIf(ctx, tx, db.Update{
		Table: "servers", Key: db.Values{"id": id},
		If:  db.Values{"vm_state": info.From, "host": db.NotNull},
		Set: db.Values{"updated_at": now},
	})
	switch {
	case errors.Is(err, fault.NotFound):
		return NoServer(id)
	case errors.Is(err, fault.Conflict):
		srv, readErr := s.lockServer(ctx, tx, id)
		if readErr == nil {
			readErr = checkState(srv, info)
		}
		return readErr
	}
	return err
}

// rebuildServer calls the function change with a server, and writes all columns of the server. It may
// write all columns because it has locked the row.
func (s *Store) rebuildServer(ctx context.Context, tx *sqlx.Tx, id string, change func(*Server), now time.Time) error {
	srv := new(Server)
	err := s.get(ctx, tx, srv, NoServer(id), `SELECT `+strings.Join(tableColumns(), ", ")+` FROM servers WHERE id = ? FOR UPDATE`, id)
	if err != nil {
		return err
	}
	change(srv)
	if err := checkMetadata(srv.Metadata); err != nil {
		return err
	}
	srv.UpdatedAt = now
	_, err = tx.NamedExecContext(ctx, updateServer, srv)
	return db.Error(err)
}

// Shelved returns the IDs of at most 100 servers that have been shelved on their hosts for longer than the given time, the longest first. It leaves out servers with an operation.
func (s *Store) Shelved(ctx context.Context, longer time.Duration) (ids []string, err error) {
	now, err := db.Now(ctx, s.db)
	if err == nil {
		err = db.Error(s.db.SelectContext(ctx, &ids, `SELECT s.id FROM `+withOperation+` WHERE s.vm_state = ? AND s.shelved_at <= ? AND o.id IS NULL ORDER BY s.shelved_at, s.id LIMIT 100`, compute.VMShelved, now.Add(-longer)))
	}
	return ids, err
}
