package store

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

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
