package store

import (
	"context"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// DiscardImage is the operation that removes an image of the image service. Its resource is the id of the image. It is an operation, because the image service may be
// away for longer than a process lives.
var DiscardImage = operation.Kind[DiscardData]{Name: "image.discard", Timeout: 7 * maxOperationTime}

// DiscardData are the data of the removal of an image.
type DiscardData struct {
	// Server is the server from whose disk the image was made.
	Server string `json:"server,omitempty"`
	// KeepActive means that an image with content stays.
	KeepActive bool `json:"keep_active,omitempty"`
}

// DiscardImage begins to remove an image that no server needs. In the transaction of ctx, if ctx has one, it is begun only with the changes of the caller. An image that is being
// removed is not an error.
func (s *Store) DiscardImage(ctx context.Context, id string, data DiscardData) error {
	err := s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		// An error of Begin would end the transaction of the caller.
		if _, err := s.ops.Lock(ctx, tx, id); !errors.Is(err, fault.NotFound) {
			return err
		}
		_, err := operation.Begin(ctx, s.ops, DiscardImage, id, &data)
		return err
	})
	if errors.Is(err, operation.ErrBusy) {
		return nil
	}
	return err
}

// discardPreempted calls begin, which begins an operation on a server. If that operation preempts another one, and the other one uploads an image, the image is removed. As in
// Nova, the image of a createImage stays if its content is complete.
func (s *Store) discardPreempted(ctx context.Context, tx *sqlx.Tx, id string, preempts bool, begin func() error) error {
	if !preempts {
		return begin()
	}
	data := new(ActData)
	op, err := s.ops.Lock(ctx, tx, id)
	if err == nil {
		data, err = operation.DataOf[ActData](op)
	}
	if err != nil && !errors.Is(err, fault.NotFound) {
		return err
	}
	if err := begin(); err != nil || !data.Upload {
		return err
	}
	return s.DiscardImage(ctx, data.ImageRef, DiscardData{Server: id, KeepActive: op.Kind != kindName(compute.Shelve)})
}

// KeepImage ends the removal of an image that is good now: an action that had failed was repeated. It runs in the transaction that ends the action's step.
func (s *Store) KeepImage(ctx context.Context, tx *sqlx.Tx, image string) error {
	op, err := s.ops.Lock(ctx, tx, image)
	if err == nil && op.State == operation.Running {
		err = s.ops.Cancel(ctx, op.ID, "the image is complete now")
	}
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// The uses of an image that is to be removed.
var (
	errImageInWork = fault.Sentinel(fault.Conflict, "ImageInWork", "an operation on the server works with the image")
	// ErrImageNeeded means that the image is the disk of a shelved server.
	ErrImageNeeded = fault.Sentinel(fault.Precondition, "ImageNeeded", "the image is the disk of a shelved server")
)

// CheckUnneeded returns an error if a server needs an image: Conflict, while an operation on the server works with the image; ErrImageNeeded. A server that does not exist
// needs none.
func (s *Store) CheckUnneeded(ctx context.Context, server, image string) error {
	op, err := s.ops.Current(ctx, server) // first: the transaction that ends a shelve also writes shelved_image
	if err == nil {
		var data *ActData
		if data, err = operation.DataOf[ActData](op); err == nil && data.ImageRef == image {
			return errImageInWork
		}
	}
	if err != nil && !errors.Is(err, fault.NotFound) {
		return err
	}
	shelved, _, err := s.ShelvedImage(ctx, s.db, server)
	if err == nil && shelved == image {
		err = ErrImageNeeded
	}
	return err
}

// ShelvedImage returns the image of a server that is shelved, or "", also if the server does not exist. uploaded reports whether it is one of the image service; nil: an earlier
// release has shelved the server.
func (s *Store) ShelvedImage(ctx context.Context, q sqlx.QueryerContext, id string) (image string, uploaded *bool, err error) {
	var row struct {
		Image    string `db:"shelved_image"`
		Uploaded *bool  `db:"shelved_upload"`
	}
	err = db.Error(sqlx.GetContext(ctx, q, &row, `SELECT shelved_image, shelved_upload FROM servers WHERE id = ?`, id))
	if errors.Is(err, fault.NotFound) {
		err = nil
	}
	return row.Image, row.Uploaded, err
}
