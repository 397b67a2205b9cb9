package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/driver"
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

// checkCapability returns ErrNotSupported if the driver of a host does not have a capability. If the database does not have the driver's
// capabilities, checkCapability returns nil: the compute service checks the capability later.
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

// HasCapability reports whether the driver of at least one host has a capability.
func (s *Store) HasCapability(ctx context.Context, c driver.Capability) (bool, error) {
	var lists []db.JSON[[]driver.Capability]
	if err := s.db.SelectContext(ctx, &lists, `SELECT DISTINCT capabilities FROM hosts WHERE capabilities IS NOT NULL`); err != nil {
		return false, db.Error(err)
	}
	return slices.ContainsFunc(lists, func(l db.JSON[[]driver.Capability]) bool { return slices.Contains(l.V, c) }), nil
}

// ErrNotSupported means that the driver of the server's host does not support an action. The text is Nova's.
var ErrNotSupported = fault.Sentinel(fault.Unimplemented, "NotSupported", "The requested functionality is not supported.")

// failedAction returns the message of the fault of a server after a failed action.
func failedAction(a compute.Action, id string) string {
	return fmt.Sprintf("Failed to %s instance %s.", a.Info().Name, id)
}

// EndAction writes the result of an action. After success the server and its guest are in the states that the action leads to. After an error the
// server gets a fault, and its state becomes ActionInfo.Fails. If Fails is empty, the server keeps its state. After an error with the
// code Precondition the server always keeps its state, because the compute service has changed nothing. After some errors the size of
// the server on its host is not known, for example after a confirmation of a resize that has failed, see losesSize. Then the server is in
// ERROR, as in Nova, and keeps its [Resize]. EndAction runs in the transaction in which the operation ends. A server that does not exist is not an error.
func (s *Store) EndAction(ctx context.Context, tx *sqlx.Tx, id string, a compute.Action, data *ActData, failed error) error {
	if failed == nil {
		if done, err := s.changeState(ctx, tx, id, a.Info()); err != nil || done {
			return err
		}
	}
	srv, err := s.lockServer(ctx, tx, id)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if failed != nil && srv.losesSize(a, failed) {
		return s.failResize(ctx, tx, srv, a, failed)
	}
	now, err := db.Now(ctx, tx)
	if err != nil {
		return err
	}
	resizing := srv.Resize.V != nil
	srv.endAction(a.Info(), data, failed, now)
	_, err = tx.NamedExecContext(ctx, `UPDATE servers SET vm_state = :vm_state, power_state = :power_state, host = :host, flavor_id = :flavor_id, boot_flavor = :boot_flavor, vcpus = :vcpus, memory_mib = :memory_mib,
		disk_gib = :disk_gib, resize = :resize, launched_at = :launched_at, shelved_image = :shelved_image, shelved_upload = :shelved_upload, shelved_host = :shelved_host, shelved_at = :shelved_at, soft_deleted_at = :soft_deleted_at, admin_pass = NULL, networks = :networks,
		fault_code = :fault_code, fault_for_users = :fault_for_users, fault_message = :fault_message, fault_at = :fault_at, updated_at = :updated_at
		WHERE id = :id`, srv)
	if err != nil {
		return db.Error(err)
	}
	if srv.Host == nil { // it was offloaded, or could not be unshelved
		err = s.release(ctx, tx, id)
	} else if resizing {
		err = s.updateClaim(ctx, tx, srv)
	}
	if err == nil && (resizing || srv.VMState == compute.VMSoftDeleted) { // the server was soft-deleted, or could not be restored
		err = s.recount(ctx, tx, srv)
	}
	return err
}

// failResize sets a server to ERROR after an action that has failed, and keeps its [Resize],
// because the size of the server on its host is not known.
func (s *Store) failResize(ctx context.Context, tx *sqlx.Tx, srv *Server, a compute.Action, failed error) error {
	srv.Resize.V.interrupted(a)
	if err := s.writeResize(ctx, tx, srv); err != nil {
		return err
	}
	_, err := s.fail(ctx, tx, srv.ID, failedAction(a, srv.ID), failed.Error())
	return err
}

// changeState writes the vm_state after the success of an action that changes nothing else. The result done is false if the action may change more.
func (s *Store) changeState(ctx context.Context, tx *sqlx.Tx, id string, info compute.ActionInfo) (done bool, err error) {
	if !changesOnlyState(info) {
		return false, nil
	}
	query := `UPDATE servers SET vm_state = ?, power_state = ?, updated_at = UTC_TIMESTAMP(6) WHERE id = ?`
	if info.Settles {
		query += ` AND resize IS NULL`
	}
	n, err := db.Exec(ctx, tx, query, info.To, (&Server{VMState: info.To}).impliedPower(), id)
	return n > 0, err
}

// losesSize reports whether the size of a server on its host is not known after an action has failed. A resize that fails on its host has been undone. A confirmation, a revert or a soft deletion
// that fails may still have been done.
func (s *Server) losesSize(a compute.Action, failed error) bool {
	c := fault.CodeOf(failed)
	switch {
	case s.Resize.V == nil || !changesSize(a) && a != compute.SoftDelete:
		return false
	case a == compute.Resize && s.hasResized(): // another resize, which is done
		return false
	case a == compute.SoftDelete && s.Resize.V.Back: // it has preempted a resize or a revert
		return true
	case a == compute.Resize && !s.Resize.V.Back:
		return c == fault.Canceled || c == fault.Timeout
	}
	return c != fault.Precondition
}

// changesOnlyState reports whether the success of an action changes only the vm_state, except that an action with Settles also ends an interrupted resize.
func changesOnlyState(info compute.ActionInfo) bool {
	return info.To != "" && info.To != compute.VMShelved && info.To != compute.VMOffloaded && info.To != compute.VMSoftDeleted && !info.Launches && !changesSize(info.Action)
}

// endAction sets the state of a server after an action. The parameter failed is the error of the action, or nil after success.
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
	if size := s.Goal(info.Action); failed == nil && size != nil && info.Settles {
		s.setSize(*size)
		s.Resize.V = nil
	}
	switch {
	case changesSize(info.Action):
		s.endResize(info.Action, failed != nil, now)
	case failed != nil && before == compute.VMOffloaded && info.Schedules:
		s.Host = nil
	case failed != nil:
	case s.VMState == compute.VMSoftDeleted:
		s.SoftDeletedAt = &now
		s.forgetShelved()
	case s.VMState == compute.VMShelved:
		s.ShelvedImage, s.ShelvedUpload, s.ShelvedHost, s.ShelvedAt = data.ImageRef, &data.Upload, nil, &now
		if !data.Upload {
			s.ShelvedHost = s.Host
		}
	case s.VMState == compute.VMOffloaded:
		s.Host, s.ShelvedAt = nil, nil
	default:
		s.forgetShelved()
	}
	s.endPower(info, failed)
	if s.Host == nil {
		s.Networks.V.Unbind()
	}
}

// forgetShelved removes what is stored about the image of a shelved server.
func (s *Server) forgetShelved() {
	s.ShelvedImage, s.ShelvedUpload, s.ShelvedHost, s.ShelvedAt = "", nil, nil, nil
}

// endPower sets the power state of a server after an action, as endAction does.
func (s *Server) endPower(info compute.ActionInfo, failed error) {
	if failed == nil && (info.To != "" || info.Action == compute.RevertResize) {
		s.Power = new(s.impliedPower())
	}
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

// The values of Server.LockedBy for a locked server.
const (
	LockedByOwner = "owner"
	LockedByAdmin = "admin"
)

// LockServer locks a server. The parameter by is LockedByOwner or LockedByAdmin. An empty reason
// leaves the stored reason as it is. Errors: NotFound.
func (s *Store) LockServer(ctx context.Context, id, by, reason string) error {
	return s.record(ctx, id, compute.Lock, nil, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		return db.ExecOne(ctx, tx, NoServer(id), `UPDATE servers SET locked_by = ?, locked_reason = CASE WHEN ? = '' THEN locked_reason ELSE ? END, updated_at = ? WHERE id = ?`,
			by, reason, reason, now, id)
	})
}

// UnlockServer unlocks a server. Errors: NotFound.
func (s *Store) UnlockServer(ctx context.Context, id string) error {
	return s.record(ctx, id, compute.Unlock, nil, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		return db.ExecOne(ctx, tx, NoServer(id), `UPDATE servers SET locked_by = '', locked_reason = '', updated_at = ? WHERE id = ?`, now, id)
	})
}

// ResetState sets the vm_state of a server to Active or Error, and keeps the power state. If the server has an operation, ResetState ends the operation without undoing it.
// Active does not end a creation: as in Nova, the server then is what the creation leaves, because an active server without a guest is of no use. Errors: NotFound.
func (s *Store) ResetState(ctx context.Context, id, vmState string) error {
	created := false // whether the creation continues
	preempts := func(open *operation.Op) bool {
		created = open != nil && open.Kind == Create.Name && vmState == Active
		return !created && (open == nil || !changesInterfaces(open.Kind)) // the change of an interface goes on
	}
	return s.record(ctx, id, compute.ResetState, preempts, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		if created {
			return db.ExecOne(ctx, tx, NoServer(id), `UPDATE servers SET vm_state = ?, updated_at = ? WHERE id = ?`, vmState, now, id)
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
