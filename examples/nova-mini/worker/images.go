package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/rpc"
)

// imageToBuild returns the reference of the image from which the driver is to build a server, as fetchImage does. If the host has the server already, the image is not needed,
// and is not fetched, because it may have been removed since.
func (s *Service) imageToBuild(ctx context.Context, d compute.Driver, spec compute.Spec) (string, error) {
	if s.cfg.Images == nil {
		return spec.ImageRef, checkName(spec.ImageRef)
	}
	is, err := readServer(ctx, d, spec.ID)
	switch {
	case err == nil && is.Power != compute.NoState:
		return spec.ImageRef, nil
	case err != nil && !errors.Is(err, fault.NotFound):
		return "", err
	}
	return s.fetchImage(ctx, d, spec.ImageRef)
}

// checkName returns Invalid if a client's reference of an image is a path. A driver would open the file at this path, so only the compute service may give paths to a driver.
func checkName(ref string) error {
	if strings.ContainsAny(ref, `/\`) {
		return fault.New(fault.Invalid, "%q is not the name of an image: it is a path", ref)
	}
	return nil
}

// fetchImage returns the reference by which the driver knows an image. With an image service, fetchImage downloads the image and returns the path of the file. Errors: Unimplemented
// if the driver cannot boot from files.
func (s *Service) fetchImage(ctx context.Context, d compute.Driver, ref string) (string, error) {
	if s.cfg.Images == nil || ref == "" {
		return ref, checkName(ref)
	}
	if err := checkImageFiles(ctx, d); err != nil {
		return "", err
	}
	return s.cfg.Images.Fetch(ctx, ref)
}

// checkImageFiles returns Unimplemented if a driver does not accept paths of files as images.
func checkImageFiles(ctx context.Context, d compute.Driver) error {
	info, err := d.Info(ctx)
	if err == nil && !info.Has(compute.CapImageFiles) {
		err = fault.New(fault.Unimplemented, "the driver %s does not have the capability %s, which a host with an image service needs", info.Name, compute.CapImageFiles)
	}
	return err
}

// checkUpload returns a refusal if this host cannot upload the image that an action makes.
func (s *Service) checkUpload(ctx context.Context, req *compute.ActRequest) error {
	if !req.Upload {
		return nil
	}
	if s.cfg.Images == nil {
		return refusal{fault.New(fault.Precondition, "host %s has no image service, so image %s cannot be uploaded: its compute service needs the section [glance]", s.cfg.Host, req.ImageRef)}
	}
	err := retryDriver(ctx, func() error { return checkImageFiles(ctx, s.cfg.Driver()) })
	if errors.Is(err, fault.Unimplemented) {
		err = refusal{err}
	}
	return err
}

// snapshot makes an image of a server's disk, and uploads it if there is an image service.
func (s *Service) snapshot(ctx context.Context, req *compute.ActRequest) error {
	write := func(ref string) error {
		return retryDriver(ctx, func() error { return s.cfg.Driver().Snapshot(ctx, req.ServerID, ref) })
	}
	if s.cfg.Images == nil {
		return write(req.ImageRef)
	}
	err := s.upload(ctx, req.ImageRef, write)
	if err != nil && ctx.Err() == nil { // if ctx has ended, the message is redelivered, and the file is used then
		err = errors.Join(err, s.cfg.Images.Drop(req.ImageRef))
	}
	return err
}

// The back-off between two attempts of an upload.
const (
	minUploadDelay = 100 * time.Millisecond
	maxUploadDelay = 5 * time.Second
)

// upload calls the function write, which writes the file of an image, and uploads the file. If the image service is away (Unavailable), upload repeats the attempt, with a back-off from
// minUploadDelay to maxUploadDelay, until Config.UploadRetry has passed since the first such error. An attempt has made progress if it has written the file, or has taken longer than
// Config.UploadRetry. After such an attempt the time and the back-off begin anew.
func (s *Service) upload(ctx context.Context, id string, write func(path string) error) error {
	var end time.Time // zero: no error yet
	delays, wrote := backoff.Backoff{Min: minUploadDelay, Max: maxUploadDelay}, false
	for {
		began := time.Now()
		wrote = false
		err := s.cfg.Images.Put(ctx, id, func(path string) error {
			wrote = true
			return write(path)
		})
		if err == nil || fault.CodeOf(err) != fault.Unavailable || ctx.Err() != nil {
			return err
		}
		if end.IsZero() || wrote || time.Since(began) > s.cfg.UploadRetry {
			end = time.Now().Add(s.cfg.UploadRetry)
			delays.Reset()
		}
		wait := delays.Next()
		if time.Now().Add(wait).After(end) {
			return err
		}
		s.cfg.Logger.WarnContext(ctx, "upload failed, will be repeated", "image", id, "delay", wait, "error", err)
		if !backoff.Sleep(ctx, wait) {
			return err
		}
	}
}

// backup makes an image of a server's disk. If the request has a Rotation, backup only removes older images.
func (s *Service) backup(ctx context.Context, req *compute.ActRequest) error {
	r := req.Rotation
	switch {
	case r == nil:
		return s.snapshot(ctx, req)
	case s.cfg.Images != nil:
		return s.cfg.Images.Rotate(ctx, req.ServerID, *r)
	case len(r.Images) == 0:
		return fault.New(fault.Precondition, "host %s has no image service, so older backups cannot be removed: its compute service needs the section [glance]", s.cfg.Host)
	}
	for _, ref := range r.Images {
		if err := retryDriver(ctx, func() error { return s.cfg.Driver().RemoveImage(ctx, ref) }); err != nil {
			return fmt.Errorf("remove the backup %s: %w", ref, err)
		}
	}
	return nil
}

// RemoveImage removes an image that the driver stores, see compute.RemoveImage. If the driver is down, RemoveImage reports nothing, because the conductor repeats the request. It returns
// Unavailable, so that the message is redelivered, if a call to the conductor fails or the service stops.
func (s *Service) RemoveImage(ctx context.Context, req *compute.RemoveImageRequest) (*rpc.None, error) {
	const work = "remove image"
	return s.runStep(ctx, step{work: work, id: req.ServerID, token: req.Token, yields: true}, func(ctx context.Context) error {
		failed := checkName(req.ImageRef)
		if failed == nil {
			failed = retryDriver(ctx, func() error { return s.cfg.Driver().RemoveImage(ctx, req.ImageRef) })
		}
		switch c := fault.CodeOf(failed); {
		case failed == nil:
		case ctx.Err() != nil:
			return askRedelivery(fmt.Errorf("remove the image %s: %w", req.ImageRef, failed))
		case c == fault.Unavailable || c == fault.Unknown || c == fault.Timeout:
			s.cfg.Logger.WarnContext(ctx, "image not removed, the removal will be repeated", "image", req.ImageRef, "server", req.ServerID, "error", failed)
			return nil
		default:
			failed = fmt.Errorf("remove the image %s, which stays on host %s: %w", req.ImageRef, s.cfg.Host, failed)
		}
		_, err := s.endStep(ctx, work, req.ServerID, req.Token, failed)
		return err
	})
}

// rescue starts a server from another image. Errors: errPartial.
func (s *Service) rescue(ctx context.Context, req *compute.ActRequest) error {
	return retryDriver(ctx, func() error {
		d := s.cfg.Driver()
		is, err := readServer(ctx, d, req.ServerID)
		ref := req.ImageRef
		if err == nil && (!is.Rescued || is.Power != compute.Running) { // otherwise an earlier delivery of the message has rescued the server
			ref, err = s.fetchImage(ctx, d, ref)
		}
		if err != nil {
			return err
		}
		return d.Rescue(ctx, req.ServerID, ref, req.AdminPass)
	})
}

// dropSnapshot removes the file of a snapshot that is no longer wanted. The conductor removes the image.
func (s *Service) dropSnapshot(req *compute.ActRequest) error {
	if s.cfg.Images == nil || req.ImageRef == "" || req.Action.Info().Capability != compute.CapSnapshot {
		return nil
	}
	if err := s.cfg.Images.Drop(req.ImageRef); err != nil {
		return fmt.Errorf("remove the snapshot of server %s: %w", req.ServerID, err)
	}
	return nil
}
