package conductor

import (
	"context"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/operation"
)

// actor runs the operations of one action.
type actor struct {
	*Service

	action compute.Action
}

// chooseHost asks the scheduler for a host if the server has none.
func (s actor) chooseHost(ctx context.Context, op *operation.Op, data *store.ActData) error {
	srv, err := s.cfg.Store.Server(ctx, op.Resource)
	if err != nil || srv.Host != nil {
		return err
	}
	got, err := s.selectHost(ctx, &compute.SelectRequest{ServerID: srv.ID, Need: srv.Need(), Host: data.OnlyHost, Group: srv.GroupID}, "")
	if err == nil {
		data.Host = got.Host
	}
	return err
}

func (s actor) placeServer(ctx context.Context, tx *sqlx.Tx, op *operation.Op, data *store.ActData) error {
	if data.Host == "" {
		return nil
	}
	return s.cfg.Store.PlaceAgain(ctx, tx, op.Resource, data.Host)
}

// castAct casts the request to do the action to the compute service.
func (s actor) castAct(ctx context.Context, op *operation.Op, data *store.ActData) error {
	srv, err := s.cfg.Store.PrepareAction(ctx, op, s.action, data)
	if err != nil {
		return err
	}
	if srv.Host == nil {
		return fault.New(fault.Internal, "%s server %s: the server has no host", s.action, srv.ID)
	}
	info := s.action.Info()
	req := &compute.ActRequest{
		ServerID: srv.ID, Action: s.action, ImageRef: data.ImageRef, Upload: data.Upload, Placed: data.Host != "", Running: srv.VMState != store.Stopped,
		Task: srv.Task(), Token: op.Token, Generation: generationOf(op.Token),
	}
	if info.Builds || s.action == compute.ChangePassword {
		if err := s.addSecrets(ctx, req); err != nil {
			return err
		}
	}
	if srv.Resize.V != nil {
		req.Resources, req.Running = srv.Resize.V.To.Has, srv.Resize.V.Running
	}
	return s.waitForReport(op, *srv.Host, rpc.Cast(ctx, s.cfg.Client, info.Method(), *srv.Host, req))
}

// addSecrets adds to a request what most queries do not read: what is needed to build the server, or its new password.
func (s actor) addSecrets(ctx context.Context, req *compute.ActRequest) error {
	srv, err := s.cfg.Store.ServerToBuild(ctx, req.ServerID)
	switch {
	case err != nil:
		return err
	case !s.action.Info().Builds && srv.AdminPass == nil:
		return operation.Permanent(fault.New(fault.Precondition, "the password is not kept after the end of the action: the client has to set it again"))
	case !s.action.Info().Builds:
		req.AdminPass = *srv.AdminPass
		return nil
	}
	if err := s.allocate(ctx, srv); err != nil {
		return err
	}
	req.Spec = new(srv.Spec())
	return nil
}

// backedUp notes that a backup is complete, and remembers one that the driver keeps.
func (s actor) backedUp(ctx context.Context, tx *sqlx.Tx, op *operation.Op, data *store.ActData, failed error) (err error) {
	data.Backup.Made = failed == nil
	if data.Backup.Made && data.Backup.ByDriver {
		err = s.cfg.Store.AddBackup(ctx, tx, op.Resource, data.ImageRef, data.Backup.Type)
	} else if data.Backup.Made && data.Upload {
		err = s.cfg.Store.KeepImage(ctx, tx, data.ImageRef)
	}
	return err
}

// chooseExcess chooses the older backups that the driver removes.
func (s actor) chooseExcess(ctx context.Context, op *operation.Op, data *store.ActData) (err error) {
	if data.Backup.ByDriver {
		data.Backup.Remove, err = s.cfg.Store.ExcessBackups(ctx, op.Resource, data.Backup)
	}
	return err
}

// castRotation casts the request to remove older backups to the compute service.
func (s actor) castRotation(ctx context.Context, op *operation.Op, data *store.ActData) error {
	srv, err := s.cfg.Store.Server(ctx, op.Resource)
	if err != nil {
		return err
	}
	if data.Backup.ByDriver && len(data.Backup.Remove) == 0 {
		return nil
	}
	if srv.Host == nil {
		return fault.New(fault.Internal, "%s server %s: the server has no host", s.action, srv.ID)
	}
	b := data.Backup
	return s.waitForReport(op, *srv.Host, rpc.Cast(ctx, s.cfg.Client, s.action.Info().Method(), *srv.Host, &compute.ActRequest{
		ServerID: srv.ID, Action: s.action, Rotation: &compute.Rotation{Type: b.Type, Keep: b.Keep, ProjectID: b.ProjectID, Images: b.Remove},
		Task: srv.Task(), Token: op.Token, Generation: generationOf(op.Token),
	}))
}

func (s actor) endAction(ctx context.Context, tx *sqlx.Tx, op *operation.Op, data *store.ActData) error {
	info := s.action.Info()
	if op.Err == nil && (info.Launches || info.Capability == compute.CapSnapshot || info.To == compute.VMSoftDeleted) { // EndAction forgets the image of a server that was shelved before
		if err := s.discardShelved(ctx, tx, op.Resource); err != nil {
			return err
		}
	}
	err := s.cfg.Store.EndAction(ctx, tx, op.Resource, s.action, data, op.Err)
	if err == nil {
		err = s.endUpload(ctx, tx, op, data)
	}
	if err == nil && op.Err != nil {
		return s.afterFailure(ctx, op, info)
	}
	if err == nil && data.Backup != nil {
		err = s.cfg.Store.ForgetBackups(ctx, tx, data.Backup.Remove)
	}
	if err != nil || info.To != compute.VMShelved || s.cfg.ShelvedOffload != 0 {
		return err
	}
	alone := reqctx.With(ctx, reqctx.Request{}) // the request of the client has one action
	if err := s.cfg.Store.BeginAction(alone, op.Resource, compute.ShelveOffload, store.ActData{}); err != nil && !errors.Is(err, fault.NotFound) {
		return err
	}
	s.cfg.Store.AfterCommit(ctx, func() { s.Runner.NotifyResource(op.Resource) })
	return nil
}

// afterFailure begins what follows an action that has failed: the deletion of a server that cannot be soft-deleted.
func (s *Service) afterFailure(ctx context.Context, op *operation.Op, info compute.ActionInfo) error {
	if c := fault.CodeOf(op.Err); info.To == compute.VMSoftDeleted && (c == fault.NotFound || c == fault.Conflict) {
		return s.deleteInstead(ctx, op.Resource)
	}
	return nil
}

// deleteInstead begins the deletion of a server that cannot be soft-deleted, because its host does not have it or its state does not allow that. It runs in the transaction in
// which the operation ends.
func (s *Service) deleteInstead(ctx context.Context, id string) error {
	alone := reqctx.With(ctx, reqctx.Request{}) // the request of the client has one action
	if err := s.cfg.Store.BeginDelete(alone, id); err != nil && !errors.Is(err, fault.NotFound) {
		return err
	}
	s.cfg.Logger.WarnContext(ctx, "server cannot be soft-deleted, it is deleted", "server", id)
	s.cfg.Store.AfterCommit(ctx, func() { s.Runner.NotifyResource(id) })
	return nil
}

// OffloadShelved removes servers from their hosts that are shelved for longer than Config.ShelvedOffload. It is for a loop.
func (s *Service) OffloadShelved(ctx context.Context) error {
	if s.cfg.ShelvedOffload < 0 {
		return nil
	}
	ids, err := s.cfg.Store.Shelved(ctx, s.cfg.ShelvedOffload)
	for _, id := range ids {
		beginErr := s.cfg.Store.BeginAction(ctx, id, compute.ShelveOffload, store.ActData{})
		if c := fault.CodeOf(beginErr); beginErr != nil && c != fault.Conflict && c != fault.NotFound { // otherwise the server has another operation, or another state
			err = errors.Join(err, beginErr)
		}
		s.Runner.NotifyResource(id)
	}
	return err
}

// ReclaimDeleted deletes servers that are soft-deleted for longer than a time. It is for a loop: any number of conductors may run it.
func (s *Service) ReclaimDeleted(ctx context.Context, longer time.Duration) error {
	ids, err := s.cfg.Store.SoftDeleted(ctx, longer)
	for _, id := range ids {
		begun, beginErr := s.cfg.Store.Reclaim(ctx, id, longer)
		err = errors.Join(err, beginErr)
		if begun {
			s.cfg.Logger.InfoContext(ctx, "soft-deleted server reclaimed", "server", id)
			s.Runner.NotifyResource(id)
		}
	}
	return err
}
