package conductor

import (
	"context"
	"errors"
	"slices"
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

// chooseHost asks the scheduler for a host if the server has none. If the driver of a host stores the image of the shelved server, chooseHost asks for this host,
// because another host cannot read the image. The choice of the client comes first: the directory of the images may be shared by hosts.
func (s actor) chooseHost(ctx context.Context, op *operation.Op, data *store.ActData) error {
	srv, err := s.cfg.Store.ServerToBuild(ctx, op.Resource) // with the user data and the key, which need a capability of the driver
	if err != nil || srv.Host != nil {
		return err
	}
	req := &compute.SelectRequest{ServerID: srv.ID, Need: srv.Need(), Host: data.OnlyHost, Group: srv.GroupID, Guest: srv.GuestNeeds(), Specs: srv.Flavor().ExtraSpecs, Driver: srv.DriverNeeds()}
	if srv.PinnedZone != nil {
		req.Zone = *srv.PinnedZone
	}
	why := ""
	if req.Host == "" && srv.ShelvedHost != nil {
		req.Host = *srv.ShelvedHost
		why = "without an image service, only host " + req.Host + " has the image of the server"
	}
	got, err := s.selectHost(ctx, req, why)
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

// castAct casts the request for the action to the compute service of the server's host.
func (s actor) castAct(ctx context.Context, op *operation.Op, data *store.ActData) error {
	srv, err := s.cfg.Store.PrepareAction(ctx, op, s.action, data)
	if err != nil {
		return s.refused(op, err)
	}
	if srv.Host == nil {
		return fault.New(fault.Internal, "%s server %s: the server has no host", s.action, srv.ID)
	}
	info := s.action.Info()
	req := &compute.ActRequest{
		ServerID: srv.ID, Action: s.action, ImageRef: data.ImageRef, Upload: data.Upload, Placed: data.Host != "", Running: srv.VMState != store.Stopped,
		Task: srv.Task(), Token: op.Token, Generation: generationOf(op.Token),
	}
	if info.Builds || s.action == compute.ChangePassword || s.action == compute.Rescue {
		if err := s.addSecrets(ctx, req); err != nil {
			return err
		}
	}
	if size := srv.Goal(s.action); size != nil {
		if err := s.addSize(req, srv, size); err != nil {
			return err
		}
	}
	return s.waitForReport(op, *srv.Host, rpc.Cast(ctx, s.cfg.Client, info.Method(), *srv.Host, req))
}

// refused gives an error the code Precondition if no request of the operation has been cast, so that the server keeps its state, see Store.EndAction. The code of a transient error stays. So does
// that of a soft deletion, see afterFailure.
func (s actor) refused(op *operation.Op, err error) error {
	transient := []fault.Code{fault.Unavailable, fault.Unknown, fault.Timeout}
	if op.Waits > 0 || s.action == compute.SoftDelete || slices.Contains(transient, fault.CodeOf(err)) {
		return err
	}
	return operation.Permanent(fault.New(fault.Precondition, "%w", err))
}

// addSize adds to a request the size that the server gets by a resize, or by an action that ends an interrupted resize.
func (s actor) addSize(req *compute.ActRequest, srv *store.Server, size *store.Size) error {
	req.Resources = size.OnHost()
	if !s.action.Info().Settles {
		req.Running = srv.Resize.V.Running
		return nil
	}
	if !s.cfg.Client.Allows(compute.Worker, compute.SettlesSince) { // an older compute service would not change the size
		return operation.Transient(fault.New(fault.Unavailable, "an interrupted resize cannot be ended before all compute services have version %v", compute.SettlesSince))
	}
	req.Settle = true
	if req.Spec != nil {
		req.Spec.Resources = size.OnHost()
	}
	return nil
}

// addSecrets adds to a request the values that most queries of the database do not read: the Spec from which the server is built, or the new password.
func (s actor) addSecrets(ctx context.Context, req *compute.ActRequest) error {
	srv, err := s.cfg.Store.ServerToBuild(ctx, req.ServerID)
	switch {
	case err != nil:
		return err
	case s.action == compute.ChangePassword && srv.AdminPass == nil:
		return operation.Permanent(fault.New(fault.Precondition, "the password is not kept after the end of an action: the client must set it again"))
	case !s.action.Info().Builds:
		if srv.AdminPass != nil {
			req.AdminPass = *srv.AdminPass
		}
		return nil
	}
	if err := s.allocate(ctx, srv); err != nil {
		return err
	}
	req.Spec = new(srv.Spec())
	return nil
}

// backedUp handles the report of a backup. After success backedUp records that the backup is complete. A backup that the driver keeps becomes one of the
// server's backups in the database. An uploaded backup is kept in the image service.
func (s actor) backedUp(ctx context.Context, tx *sqlx.Tx, op *operation.Op, data *store.ActData, failed error) (err error) {
	data.Backup.Made = failed == nil
	if data.Backup.Made && data.Backup.ByDriver {
		err = s.cfg.Store.AddBackup(ctx, tx, op.Resource, data.ImageRef, data.Backup.Type)
	} else if data.Backup.Made && data.Upload {
		err = s.cfg.Store.KeepImage(ctx, tx, data.ImageRef)
	}
	return err
}

// chooseExcess chooses the older backups that the driver must remove. With an image service it does nothing, because Images.Rotate of the compute service
// chooses the backups.
func (s actor) chooseExcess(ctx context.Context, op *operation.Op, data *store.ActData) (err error) {
	if data.Backup.ByDriver {
		data.Backup.Remove, err = s.cfg.Store.ExcessBackups(ctx, op.Resource, data.Backup)
	}
	return err
}

// castRotation casts the request to remove older backups to the compute service of the server's host.
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
	if op.Err == nil && (info.Launches || info.Capability == compute.CapSnapshot || info.To == compute.VMSoftDeleted) { // before EndAction, which clears the image of a shelved server
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
	alone := reqctx.With(ctx, reqctx.Request{}) // without the client's request, because os-instance-actions already lists an action of that request
	if err := s.cfg.Store.BeginAction(alone, op.Resource, compute.ShelveOffload, store.ActData{}); err != nil && !errors.Is(err, fault.NotFound) {
		return err
	}
	s.cfg.Store.AfterCommit(ctx, func() { s.Runner.NotifyResource(op.Resource) })
	return nil
}

// afterFailure handles the failure of an action: if a server cannot be soft-deleted, afterFailure begins its deletion.
func (s *Service) afterFailure(ctx context.Context, op *operation.Op, info compute.ActionInfo) error {
	if c := fault.CodeOf(op.Err); info.To == compute.VMSoftDeleted && (c == fault.NotFound || c == fault.Conflict) {
		return s.deleteInstead(ctx, op.Resource)
	}
	return nil
}

// deleteInstead begins the deletion of a server that cannot be soft-deleted, because the server's host does not have the server, or the server's state does not allow a soft deletion.
// It runs in the transaction in which the operation ends.
func (s *Service) deleteInstead(ctx context.Context, id string) error {
	alone := reqctx.With(ctx, reqctx.Request{}) // without the client's request, because os-instance-actions already lists an action of that request
	if err := s.cfg.Store.BeginDelete(alone, id); err != nil && !errors.Is(err, fault.NotFound) {
		return err
	}
	s.cfg.Logger.WarnContext(ctx, "server cannot be soft-deleted, deleting it at once", "server", id)
	s.cfg.Store.AfterCommit(ctx, func() { s.Runner.NotifyResource(id) })
	return nil
}

// OffloadShelved begins to offload servers that have been shelved for longer than Config.ShelvedOffload. Call it in a loop.
func (s *Service) OffloadShelved(ctx context.Context) error {
	if s.cfg.ShelvedOffload < 0 {
		return nil
	}
	ids, err := s.cfg.Store.Shelved(ctx, s.cfg.ShelvedOffload)
	for _, id := range ids {
		beginErr := s.cfg.Store.BeginAction(ctx, id, compute.ShelveOffload, store.ActData{})
		if c := fault.CodeOf(beginErr); beginErr != nil && c != fault.Conflict && c != fault.NotFound { // after Conflict or NotFound, the server has another operation or another state, or does not exist
			err = errors.Join(err, beginErr)
		}
		s.Runner.NotifyResource(id)
	}
	return err
}

// ReclaimDeleted begins the deletion of servers whose soft deletion is longer ago than a given time. Call it in a loop. Any number of conductors may call it.
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
