package conductor

import (
	"context"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/operation"
)

// Images is the image service. image.Glance implements it.
type Images interface {
	// Discard removes an image. If keepActive is set, an image with content stays. It is not an error if the image does not exist.
	Discard(ctx context.Context, id string, keepActive bool) error
}

// discardRetry is the retry policy for the removal of an image. It includes Conflict, because the image may be in use for some time.
var discardRetry = operation.Retry{Codes: []fault.Code{fault.Unavailable, fault.Unknown, fault.Timeout, fault.Conflict}, MaxDelay: time.Minute}

// discardImage removes an image that no server needs. While an operation on the server works with the image, discardImage returns Conflict and is retried. An image that is the disk of a
// shelved server stays: the removal was begun after a failed shelve, and a retry of the shelve has succeeded since then.
func (s *Service) discardImage(ctx context.Context, op *operation.Op, data *store.DiscardData) error {
	err := s.cfg.Store.CheckUnneeded(ctx, data.Server, op.Resource)
	if errors.Is(err, store.ErrImageNeeded) {
		return nil // when the server no longer needs the image, another removal begins
	}
	if err != nil {
		return err
	}
	if data.Host != "" {
		return s.castRemoval(ctx, op, data)
	}
	if s.cfg.Images == nil {
		return fault.New(fault.Unavailable, "remove image %s, which is no longer needed: this conductor has no section [glance]", op.Resource)
	}
	return s.cfg.Images.Discard(ctx, op.Resource, data.KeepActive)
}

// castRemoval casts the request to remove an image to the compute service of the host whose driver stores it.
func (s *Service) castRemoval(ctx context.Context, op *operation.Op, data *store.DiscardData) error {
	if !s.cfg.Client.Allows(compute.Worker, compute.RemoveImage.Since) {
		return operation.Transient(fault.New(fault.Unavailable, "the image %s of host %s cannot be removed before all compute services have version %v", op.Resource, data.Host, compute.RemoveImage.Since))
	}
	return s.waitForReport(op, data.Host, rpc.Cast(ctx, s.cfg.Client, compute.RemoveImage, data.Host, &compute.RemoveImageRequest{
		ServerID: data.Server, ImageRef: op.Resource, Token: op.Token,
	}))
}

// discard begins the operation that removes an image.
func (s *Service) discard(ctx context.Context, id string, data store.DiscardData) error {
	if err := s.cfg.Store.DiscardImage(ctx, id, data); err != nil {
		return err
	}
	s.cfg.Store.AfterCommit(ctx, func() { s.Runner.NotifyResource(id) })
	return nil
}

// discardShelved begins to remove the image of a shelved server that is unshelved or deleted in the same transaction. An image of a driver stays if its host is not known.
func (s *Service) discardShelved(ctx context.Context, tx *sqlx.Tx, server string) error {
	image, err := s.cfg.Store.ShelvedImage(ctx, tx, server)
	if err != nil || image.ID == "" {
		return err
	}
	if image.Uploaded == nil { // an earlier release has shelved the server
		image.Uploaded = new(s.cfg.Images != nil)
	}
	data := store.DiscardData{Server: server}
	if !*image.Uploaded {
		if image.Host == nil {
			s.cfg.Logger.WarnContext(ctx, "image of a shelved server stays, because its host is not known", "image", image.ID, "server", server)
			return nil
		}
		data.Host = *image.Host
	}
	return s.discard(ctx, image.ID, data)
}

// endUpload keeps or removes the image of an action that uploads one, and the image of a shelve. After success the image stays. After a failure that the host has reported, the image is
// removed, because it may have other content. After a timeout, a cancellation or a refusal, an image with content stays, because an earlier attempt may have completed the image. The image
// of a shelve is removed in these cases, too, because no client has asked for the image.
func (s actor) endUpload(ctx context.Context, tx *sqlx.Tx, op *operation.Op, data *store.ActData) error {
	shelve := s.action == compute.Shelve && data.ImageRef != ""
	switch {
	case !data.Upload && !shelve || data.Backup != nil && data.Backup.Made:
		return nil
	case op.Err == nil:
		return s.cfg.Store.KeepImage(ctx, tx, data.ImageRef)
	case !data.Upload:
		s.cfg.Store.AfterCommit(ctx, func() { s.Runner.NotifyResource(data.ImageRef) })
		return s.cfg.Store.DiscardOnHost(ctx, tx, op.Resource, data.ImageRef)
	}
	c := fault.CodeOf(op.Err)
	unknown := c == fault.Timeout || c == fault.Canceled || c == fault.Precondition // refused, see EndStep
	return s.discard(ctx, data.ImageRef, store.DiscardData{Server: op.Resource, KeepActive: unknown && !shelve})
}
