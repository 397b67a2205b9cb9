package conductor

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"

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

// discardImage removes an image that no server needs.
func (s *Service) discardImage(ctx context.Context, op *operation.Op, data *store.DiscardData) error {
	if s.cfg.Images == nil {
		return fault.New(fault.Unavailable, "image %s is no longer needed, and this conductor has no section [glance]", op.Resource)
	}
	return s.cfg.Images.Discard(ctx, op.Resource, data.KeepActive)
}

// discard begins to remove an image that no server needs.
func (s *Service) discard(ctx context.Context, id string) error {
	if err := s.cfg.Store.DiscardImage(ctx, id, store.DiscardData{}); err != nil {
		return err
	}
	s.cfg.Store.AfterCommit(ctx, func() { s.Runner.NotifyResource(id) })
	return nil
}

// discardShelved begins to remove the image of a shelved server, which is built or deleted in the same transaction. Without an image service the driver has the image, and keeps it.
func (s *Service) discardShelved(ctx context.Context, tx *sqlx.Tx, server string) error {
	if s.cfg.Images == nil {
		return nil
	}
	id, err := s.cfg.Store.ShelvedImage(ctx, tx, server)
	if err != nil || id == "" {
		return err
	}
	return s.discard(ctx, id)
}
