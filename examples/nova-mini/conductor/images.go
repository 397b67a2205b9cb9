package conductor

import (
	"context"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// Images are the images of an image service. The method is that of image.Glance.
type Images interface {
	// Discard removes an image. With keepActive an image with content stays. An image that does not exist is not an error.
	Discard(ctx context.Context, id string, keepActive bool) error
}

// discardRetry is the retry policy for the removal of an image. The image may also be in use for a time, such as by a copy of it.
var discardRetry = operation.Retry{Codes: []fault.Code{fault.Unavailable, fault.Unknown, fault.Timeout, fault.Conflict}, MaxDelay: time.Minute}

// discardImage removes an image that no server needs. It waits while an operation on the server works with the image, and keeps the disk of a shelved server: an action
// that had failed was repeated.
func (s *Service) discardImage(ctx context.Context, op *operation.Op, data *store.DiscardData) error {
	err := s.cfg.Store.CheckUnneeded(ctx, data.Server, op.Resource)
	if errors.Is(err, store.ErrImageNeeded) {
		return nil // when it is no longer needed, another removal begins
	}
	if err != nil {
		return err
	}
	if s.cfg.Images == nil {
		return fault.New(fault.Unavailable, "image %s is no longer needed, and this conductor has no section [glance]", op.Resource)
	}
	return s.cfg.Images.Discard(ctx, op.Resource, data.KeepActive)
}

// discard begins to remove an image that no server needs.
func (s *Service) discard(ctx context.Context, id string, data store.DiscardData) error {
	if err := s.cfg.Store.DiscardImage(ctx, id, data); err != nil {
		return err
	}
	s.cfg.Store.AfterCommit(ctx, func() { s.Runner.NotifyResource(id) })
	return nil
}

// discardShelved begins to remove the image of a shelved server, which is built or deleted in the same transaction. An image that the driver has stays.
func (s *Service) discardShelved(ctx context.Context, tx *sqlx.Tx, server string) error {
	id, uploaded, err := s.cfg.Store.ShelvedImage(ctx, tx, server)
	if uploaded == nil { // an earlier release has shelved the server
		uploaded = new(s.cfg.Images != nil)
	}
	if err != nil || id == "" || !*uploaded {
		return err
	}
	return s.discard(ctx, id, store.DiscardData{Server: server})
}

// endUpload decides about the image that an action has uploaded, or has failed to upload. After an error that its host has reported the image may have other content.
// Otherwise an image with content stays, such as one of an earlier attempt, with the exception of that of a shelve, which no client has asked for.
func (s actor) endUpload(ctx context.Context, tx *sqlx.Tx, op *operation.Op, data *store.ActData) error {
	if !data.Upload || data.Backup != nil && data.Backup.Made {
		return nil
	}
	if op.Err == nil {
		return s.cfg.Store.KeepImage(ctx, tx, data.ImageRef)
	}
	c := fault.CodeOf(op.Err)
	unknown := c == fault.Timeout || c == fault.Canceled || c == fault.Precondition // refused, see EndStep
	return s.discard(ctx, data.ImageRef, store.DiscardData{Server: op.Resource, KeepActive: unknown && s.action != compute.Shelve})
}
