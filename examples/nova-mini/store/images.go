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

// DiscardImage is the kind of operation that removes an image from the image service, or from the host whose driver stores it. The resource of the operation is the id of the
// image. The removal is an operation, because the image service or the host may be unavailable for longer than a process lives.
var DiscardImage = operation.Kind[DiscardData]{Name: "image.discard", Timeout: 7 * maxOperationTime}

// DiscardData are the data of the removal of an image.
type DiscardData struct {
	// Server is the server from whose disk the image was made.
	Server string `json:"server,omitempty"`
	// KeepActive means that the image stays if it has content.
	KeepActive bool `json:"keep_active,omitempty"`
	// Host is the host whose driver stores the image. Empty: the image is in the image service.
	Host string `json:"host,omitempty"`
}

// DiscardImage begins the operation that removes an image. If ctx has a transaction, the operation begins only if that transaction commits. It is not an error if the image is being
// removed already.
func (s *Store) DiscardImage(ctx context.Context, id string, data DiscardData) error {
	err := s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		// The lock avoids ErrBusy of Begin, which would roll the caller's transaction back.
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

// preempt calls the function begin, and cleans up after the operation that this call preempts. The function begin begins a new
// operation on the server that preempts the open operation, or returns an error. Its argument is the open operation, which is locked,
// or nil. If the open operation is a shelve, or uploads an image, preempt begins the removal of the image. As in Nova, the image of a
// createImage stays if its content is complete. If the open operation is a resize, it is interrupted, see [Resize].
func (s *Store) preempt(ctx context.Context, tx *sqlx.Tx, id string, begin func(open *operation.Op) error) error {
	data := new(ActData)
	op, err := s.ops.Lock(ctx, tx, id)
	if err == nil {
		data, err = operation.DataOf[ActData](op)
	}
	if err != nil && !errors.Is(err, fault.NotFound) {
		return err
	}
	if err := begin(op); err != nil || op == nil {
		return err
	}
	if err := s.interruptResize(ctx, tx, id, actionOf(op.Kind)); err != nil {
		return err
	}
	shelve := op.Kind == kindName(compute.Shelve)
	if data.Upload {
		return s.DiscardImage(ctx, data.ImageRef, DiscardData{Server: id, KeepActive: !shelve})
	}
	if shelve {
		return s.DiscardOnHost(ctx, tx, id, data.ImageRef)
	}
	return nil
}

// DiscardOnHost begins the operation that removes the image of a shelve from the server's host, whose driver stores the image. It does nothing if the server does not exist, or has no host.
func (s *Store) DiscardOnHost(ctx context.Context, tx *sqlx.Tx, server, image string) error {
	srv, err := s.lockServer(ctx, tx, server)
	if errors.Is(err, fault.NotFound) || err == nil && (srv.Host == nil || image == "") {
		return nil
	}
	if err != nil {
		return err
	}
	return s.DiscardImage(ctx, image, DiscardData{Server: server, Host: *srv.Host})
}

// KeepImage cancels the removal of an image whose content is complete now. Such a removal exists if the action that makes the image had failed, and was then repeated. KeepImage runs in
// the transaction that ends the action's step.
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

// Errors of CheckUnneeded: the image is in use.
var (
	errImageInWork = fault.Sentinel(fault.Conflict, "ImageInWork", "an operation on the server works with the image")
	// ErrImageNeeded means that the image is the disk of a shelved server.
	ErrImageNeeded = fault.Sentinel(fault.Precondition, "ImageNeeded", "the image is the disk of a shelved server")
)

// CheckUnneeded returns an error if a server needs an image: Conflict while an operation on the server works with the image;
// ErrImageNeeded if the image is the disk of the shelved server. A server that does not exist needs no image.
func (s *Store) CheckUnneeded(ctx context.Context, server, image string) error {
	op, err := s.ops.Current(ctx, server) // read before shelved_image, because the transaction that ends a shelve writes shelved_image
	if err == nil {
		var data *ActData
		if data, err = operation.DataOf[ActData](op); err == nil && data.ImageRef == image {
			return errImageInWork
		}
	}
	if err != nil && !errors.Is(err, fault.NotFound) {
		return err
	}
	shelved, err := s.ShelvedImage(ctx, s.db, server)
	if err == nil && shelved.ID == image {
		err = ErrImageNeeded
	}
	return err
}

// ShelvedImage is the image of a shelved server.
type ShelvedImage struct {
	// ID is empty if the server is not shelved, or does not exist.
	ID string `db:"shelved_image"`
	// Uploaded reports whether the image is in the image service. Nil: an earlier release has shelved the server.
	Uploaded *bool `db:"shelved_upload"`
	// Host is the host whose driver stores an image that is not in the image service. Nil: it is not known, because an earlier release has shelved the server, and the server has left
	// the host.
	Host *string `db:"shelved_host"`
}

// ShelvedImage returns the image of a shelved server.
func (s *Store) ShelvedImage(ctx context.Context, q sqlx.QueryerContext, id string) (out ShelvedImage, err error) {
	err = db.Error(sqlx.GetContext(ctx, q, &out, `SELECT shelved_image, shelved_upload, COALESCE(shelved_host, CASE WHEN shelved_at IS NOT NULL THEN host END) AS shelved_host
		FROM servers WHERE id = ?`, id))
	if errors.Is(err, fault.NotFound) {
		err = nil
	}
	return out, err
}
