package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// BeginAction begins the operation of an action on a server. Errors: NotFound; Conflict, with Nova's text, if the
// server's state does not allow the action or the server has a task; Unimplemented, if the driver of the server's host cannot do it.
//
// A resize gives the server another size on its host, and claims the resources for both sizes. Its errors are also Invalid, with Nova's text, if
// the server already has the flavor or its disk would shrink; [placement.ErrNoRoom], if the host has too little. The text of ErrNoRoom names
// the host and amounts, which the server's project must not see.
func (s *Store) BeginAction(ctx context.Context, id string, a compute.Action, data ActData) error {
	for {
		err := s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
			// The operation is locked before the server, in the same order as a runner locks them.
			if _, err := operation.Begin(ctx, s.ops, Kinds[a], id, &data); err != nil {
				return err
			}
			return s.prepareAction(ctx, tx, id, a, &data, now)
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
		if srv.Task() != "" { // without a task the other operation has ended meanwhile: begin again
			return hasTask(srv, a.Info())
		}
	}
}

// PrepareAction checks that a server's state allows the action of its operation. For a resize it claims the resources if
// they are not claimed yet, as after operation.Store.Retry, and for a restore it counts the server in the quota, before the first request to the compute service. It returns
// the server. Errors: those of BeginAction; operation.ErrStale, if there was something to claim or to count and the step of op is no longer the current step.
func (s *Store) PrepareAction(ctx context.Context, op *operation.Op, a compute.Action, data *ActData) (*Server, error) {
	id := op.Resource
	srv, err := s.Server(ctx, id)
	if err != nil {
		return nil, err
	}
	if begun := a == compute.Resize && srv.Resize.V != nil || a == compute.Restore && op.Waits > 0; begun || a != compute.Resize && a != compute.Restore {
		return srv, checkState(srv, a.Info())
	}
	err = s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		switch current, err := s.ops.Lock(ctx, tx, id); {
		case errors.Is(err, fault.NotFound), err == nil && current.Token != op.Token:
			return operation.ErrStale
		case err != nil:
			return err
		}
		return s.prepareAction(ctx, tx, id, a, data, now)
	})
	if err != nil {
		return nil, err
	}
	return s.Server(ctx, id)
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

// CheckAction returns Conflict, with Nova's text, if a server's state does not allow an action without an operation, or the server has a task.
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

// prepareAction checks that a server's state and the driver of its host allow an action, and writes what the action changes before it begins.
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
		err := s.checkCapability(ctx, tx, *srv.Host, info.Capability)
		if err == nil && data.Backup != nil && data.Backup.ByDriver {
			err = s.checkCapability(ctx, tx, *srv.Host, compute.CapRemoveImage)
		}
		if err != nil {
			return err
		}
	}
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

// touchServer sets the time of a server's last change if the server's state allows the action, which the database checks in the same
// statement. Its errors are those of checkState, and NotFound.
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

// checkCapability returns Unimplemented, with Nova's text, if the driver of a host does not have a capability. If the capabilities of the
// driver are not known, the compute service will say so.
func (s *Store) checkCapability(ctx context.Context, tx *sqlx.Tx, host string, need driver.Capability) error {
	if need == "" {
		return nil
	}
	var raw *string
	err := db.Error(tx.GetContext(ctx, &raw, `SELECT capabilities FROM hosts WHERE name = ?`, host))
	if errors.Is(err, fault.NotFound) || err == nil && raw == nil {
		return nil
	}
	var has []driver.Capability
	if err == nil {
		err = json.Unmarshal([]byte(*raw), &has)
	}
	if err != nil || slices.Contains(has, need) {
		return err
	}
	return ErrNotSupported
}

// ErrNotSupported is the error for an action that the driver of a server's host cannot do. The text is Nova's.
var ErrNotSupported = fault.Sentinel(fault.Unimplemented, "NotSupported", "The requested functionality is not supported.")

// failedAction returns the message of a server's fault after an action has failed.
func failedAction(a compute.Action, id string) string {
	return fmt.Sprintf("Failed to %s instance %s.", a.Info().Name, id)
}

// EndAction writes the result of an action. After success the server is in the state that the action leads to. After an
// error the server keeps its state, or is in the state in which the action fails, and gets a fault. After an error with the code
// Precondition the server keeps its state, because the compute service has changed nothing. After a resize that timed out or was
// canceled the size of the server is not known: the server is in ERROR, and its claim covers both sizes. EndAction runs in the transaction
// in which the operation ends. A server that does not exist is not an error.
func (s *Store) EndAction(ctx context.Context, tx *sqlx.Tx, id string, a compute.Action, data *ActData, failed error) error {
	if info := a.Info(); failed == nil && changesOnlyState(info) {
		_, err := db.Exec(ctx, tx, `UPDATE servers SET vm_state = ?, updated_at = UTC_TIMESTAMP(6) WHERE id = ?`, info.To, id)
		return err
	}
	srv, err := s.lockServer(ctx, tx, id)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if c := fault.CodeOf(failed); failed != nil && srv.Resize.V != nil && (c == fault.Canceled || c == fault.Timeout) {
		_, err := s.fail(ctx, tx, id, failedAction(a, id), failed.Error())
		return err
	}
	now, err := db.Now(ctx, tx)
	if err != nil {
		return err
	}
	resizing := srv.Resize.V != nil
	srv.endAction(a.Info(), data, failed, now)
	_, err = tx.NamedExecContext(ctx, `UPDATE servers SET vm_state = :vm_state, host = :host, flavor_id = :flavor_id, boot_flavor = :boot_flavor, vcpus = :vcpus, memory_mib = :memory_mib,
		disk_gib = :disk_gib, resize = :resize, launched_at = :launched_at, shelved_image = :shelved_image, shelved_upload = :shelved_upload, shelved_at = :shelved_at, soft_deleted_at = :soft_deleted_at, admin_pass = NULL,
		fault_code = :fault_code, fault_for_users = :fault_for_users, fault_message = :fault_message, fault_at = :fault_at, updated_at = :updated_at
		WHERE id = :id`, srv)
	switch {
	case err != nil:
		return db.Error(err)
	case srv.Host == nil: // it was offloaded, or could not be unshelved
		return s.release(ctx, tx, id)
	case resizing:
		if err := s.updateClaim(ctx, tx, srv); err != nil {
			return err
		}
		return s.recount(ctx, tx, srv)
	case srv.VMState == compute.VMSoftDeleted: // it was soft-deleted, or could not be restored
		return s.recount(ctx, tx, srv)
	}
	return nil
}

// changesOnlyState reports whether an action that succeeds changes nothing but the vm_state.
func changesOnlyState(info compute.ActionInfo) bool {
	return info.To != "" && info.To != compute.VMShelved && info.To != compute.VMOffloaded && info.To != compute.VMSoftDeleted && !info.Launches && !resizes(info.Action)
}

// endAction sets the state of a server after an action. failed is the error of an action that failed, or nil.
func (s *Server) endAction(info compute.ActionInfo, data *ActData, failed error, now time.Time) {
	s.UpdatedAt = now
	before, state := s.VMState, info.To
	if failed != nil {
		s.FaultCode, s.FaultMessage, s.FaultDetails, s.FaultAt = http.StatusInternalServerError, failedAction(info.Action, s.ID), db.Cut(failed.Error(), maxFault), &now
		if state = info.Fails; fault.CodeOf(failed) == fault.Precondition {
			state = ""
		}
	}
	if state != "" && (failed != nil || !info.KeepsOff || before != Stopped) {
		s.VMState = state
	}
	if failed == nil && info.Launches {
		s.LaunchedAt = &now
	}
	switch {
	case resizes(info.Action):
		s.endResize(info.Action, failed != nil, now)
	case failed != nil && before == compute.VMOffloaded && info.Schedules:
		s.Host = nil
	case failed != nil:
	case s.VMState == compute.VMSoftDeleted: // the compute service has confirmed a resize
		s.SoftDeletedAt, s.ShelvedImage, s.ShelvedUpload, s.ShelvedAt, s.Resize.V = &now, "", nil, nil, nil
	case s.VMState == compute.VMShelved:
		s.ShelvedImage, s.ShelvedUpload, s.ShelvedAt = data.ImageRef, &data.Upload, &now
	case s.VMState == compute.VMOffloaded:
		s.Host, s.ShelvedAt = nil, nil
	default:
		s.ShelvedImage, s.ShelvedUpload, s.ShelvedAt = "", nil, nil
	}
}

// rebuildServer changes the attributes of a server that a rebuild may change. The server is locked.
func (s *Store) rebuildServer(ctx context.Context, tx *sqlx.Tx, id string, change func(*Server), now time.Time) error {
	srv := new(Server)
	err := s.get(ctx, tx, srv, NoServer(id), `SELECT `+serverColumns(derived)+` FROM servers WHERE id = ?`, id)
	if err != nil {
		return err
	}
	change(srv)
	if err := checkMetadata(srv.Metadata); err != nil {
		return err
	}
	srv.UpdatedAt = now
	_, err = tx.NamedExecContext(ctx, `UPDATE servers SET image_ref = :image_ref, name = :name, metadata = :metadata, auto_disk_config = :auto_disk_config,
		access_ip_v4 = :access_ip_v4, access_ip_v6 = :access_ip_v6, description = :description, hostname = :hostname, key_name = :key_name, public_key = :public_key,
		user_data = :user_data, files = :files, admin_pass = :admin_pass, updated_at = :updated_at WHERE id = :id`, srv)
	return db.Error(err)
}

// Shelved returns the IDs of servers without an operation that are shelved on their hosts for longer than a time, at most 100, the oldest first.
func (s *Store) Shelved(ctx context.Context, longer time.Duration) (ids []string, err error) {
	now, err := db.Now(ctx, s.db)
	if err == nil {
		err = db.Error(s.db.SelectContext(ctx, &ids, `SELECT s.id FROM `+withOperation+` WHERE s.vm_state = ? AND s.shelved_at <= ? AND o.id IS NULL ORDER BY s.shelved_at, s.id LIMIT 100`, compute.VMShelved, now.Add(-longer)))
	}
	return ids, err
}

// Who has locked a server, see Server.LockedBy.
const (
	LockedByOwner = "owner"
	LockedByAdmin = "admin"
)

// LockServer locks a server. by is LockedByOwner or LockedByAdmin. Errors: NotFound.
func (s *Store) LockServer(ctx context.Context, id, by, reason string) error {
	return s.record(ctx, id, compute.Lock, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		return db.ExecOne(ctx, tx, NoServer(id), `UPDATE servers SET locked_by = ?, locked_reason = CASE WHEN ? = '' THEN locked_reason ELSE ? END, updated_at = ? WHERE id = ?`,
			by, reason, reason, now, id)
	})
}

// UnlockServer unlocks a server. Errors: NotFound.
func (s *Store) UnlockServer(ctx context.Context, id string) error {
	return s.record(ctx, id, compute.Unlock, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		return db.ExecOne(ctx, tx, NoServer(id), `UPDATE servers SET locked_by = '', locked_reason = '', updated_at = ? WHERE id = ?`, now, id)
	})
}

// ResetState sets the vm_state of a server to Active or Error, and ends its operation, if it has one, without undoing the operation. Errors:
// NotFound.
func (s *Store) ResetState(ctx context.Context, id, vmState string) error {
	return s.record(ctx, id, compute.ResetState, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		srv, err := s.lockServer(ctx, tx, id)
		if err == nil && srv.Host == nil { // a creation that has been ended may have claimed a host
			err = s.release(ctx, tx, id)
		}
		if err != nil {
			return err
		}
		if _, err = db.Exec(ctx, tx, `UPDATE servers SET vm_state = ?, admin_pass = NULL, updated_at = ? WHERE id = ?`, vmState, now, id); err != nil || srv.VMState != compute.VMSoftDeleted {
			return err
		}
		srv.VMState = vmState
		return s.recount(ctx, tx, srv)
	})
}

// record makes a change of a server at once, and lists it among the operations on the server as one that has succeeded.
func (s *Store) record(ctx context.Context, id string, a compute.Action, change func(context.Context, *sqlx.Tx, time.Time) error) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		// The operation is written before the server, in the same order as a runner locks them.
		k := operation.Kind[struct{}]{Name: kindName(a), Preempts: a == compute.ResetState}
		err := s.discardPreempted(ctx, tx, id, k.Preempts, func() error {
			_, err := operation.Record(ctx, s.ops, k, id, &struct{}{}, nil)
			return err
		})
		if err != nil {
			return err
		}
		return change(ctx, tx, now)
	})
}
