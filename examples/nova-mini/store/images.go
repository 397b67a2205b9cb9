package store

import (
	"context"
	"errors"

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
	// KeepActive means that an image with content stays.
	KeepActive bool `json:"keep_active,omitempty"`
}

// DiscardImage begins to remove an image that no server needs. In the transaction of ctx, if ctx has one, it is begun only with the changes of the caller. An image that is being
// removed is not an error.
func (s *Store) DiscardImage(ctx context.Context, id string, data DiscardData) error {
	_, err := operation.Begin(ctx, s.ops, DiscardImage, id, &data)
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
	return s.DiscardImage(ctx, data.ImageRef, DiscardData{KeepActive: op.Kind == kindName(compute.CreateImage)})
}

// ShelvedImage returns the image of a server that is shelved, or "", also if the server does not exist.
func (s *Store) ShelvedImage(ctx context.Context, tx *sqlx.Tx, id string) (image string, err error) {
	err = db.Error(tx.GetContext(ctx, &image, `SELECT shelved_image FROM servers WHERE id = ?`, id))
	if errors.Is(err, fault.NotFound) {
		err = nil
	}
	return image, err
}
