package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// actions has what the compute service does for each action of compute.Actions with a task. The functions are idempotent. Errors:
// errPartial, if the action is done in part.
var actions = map[compute.Action]func(*Service, context.Context, *compute.ActRequest) error{
	compute.Start: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.PowerOn(ctx, r.ServerID)
	}),
	compute.Stop:       (*Service).stop,
	compute.SoftReboot: driverCall(softReboot),
	compute.HardReboot: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.Reboot(ctx, r.ServerID, true)
	}),
	compute.Pause: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.Pause(ctx, r.ServerID)
	}),
	compute.Unpause: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.Unpause(ctx, r.ServerID)
	}),
	compute.Suspend: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.Suspend(ctx, r.ServerID)
	}),
	compute.Resume: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.Resume(ctx, r.ServerID)
	}),
	compute.Rescue: (*Service).rescue,
	compute.Unrescue: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.Unrescue(ctx, r.ServerID)
	}),
	compute.ChangePassword: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.SetPassword(ctx, r.ServerID, r.AdminPass)
	}),
	compute.SoftDelete: (*Service).softDelete,
	compute.Restore: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.PowerOn(ctx, r.ServerID)
	}),
	compute.Rebuild:      (*Service).rebuild,
	compute.CreateImage:  (*Service).snapshot,
	compute.CreateBackup: (*Service).backup,
	compute.Shelve:       (*Service).shelve,
	compute.ShelveOffload: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.Destroy(ctx, r.ServerID)
	}),
	compute.Unshelve: (*Service).unshelve,
	compute.Resize:   (*Service).resize,
	compute.ConfirmResize: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.ConfirmResize(ctx, r.ServerID)
	}),
	compute.RevertResize: (*Service).revert,
}

// driverCall returns the function of an action that repeats a call to the driver, see retryDriver.
func driverCall(call func(context.Context, compute.Driver, *compute.ActRequest) error) func(*Service, context.Context, *compute.ActRequest) error {
	return func(s *Service, ctx context.Context, req *compute.ActRequest) error {
		return retryDriver(ctx, func() error { return call(ctx, s.cfg.Driver(), req) })
	}
}

// refusal is the error of an action that was refused before it has changed the server.
type refusal struct{ error }

// missing is the error of an action on a server that the host does not have.
type missing struct{ error }

// runAction does an action. Errors: errPartial, if the action is done in part; refusal.
func (s *Service) runAction(ctx context.Context, req *compute.ActRequest) error {
	if err := s.checkUpload(ctx, req); err != nil {
		return err
	}
	if do := actions[req.Action]; do != nil {
		return do(s, ctx, req)
	}
	return refusal{fault.New(fault.Unimplemented, "server %s: this compute service does not know the action %q", req.ServerID, req.Action)}
}

// stop shuts the server down. It is not an error if the server is off already.
func (s *Service) stop(ctx context.Context, req *compute.ActRequest) error {
	return retryDriver(ctx, func() error { return s.cfg.Driver().PowerOff(ctx, req.ServerID, s.cfg.ShutdownTimeout) })
}

// softDelete cuts the power of a server. It ends a rescue and confirms a resize, because a server that is restored runs from its own disk, with its size. Errors: missing.
func (s *Service) softDelete(ctx context.Context, req *compute.ActRequest) error {
	err := retryDriver(ctx, func() error {
		d := s.cfg.Driver()
		is, err := d.Get(ctx, req.ServerID)
		if err == nil && is.Rescued {
			err = d.Unrescue(ctx, req.ServerID)
		}
		if err == nil {
			err = d.PowerOff(ctx, req.ServerID, 0)
		}
		if err == nil && req.Resources != (compute.Resources{}) {
			err = d.ConfirmResize(ctx, req.ServerID)
		}
		return err
	})
	if errors.Is(err, fault.NotFound) {
		return missing{err}
	}
	return err
}

// rebuild destroys the server and builds it again. A repeated delivery of the message does so once more.
func (s *Service) rebuild(ctx context.Context, req *compute.ActRequest) error {
	spec := *req.Spec
	err := retryDriver(ctx, func() (err error) { // before the server is destroyed
		if err = checkGuestData(ctx, s.cfg.Driver(), spec); err == nil {
			spec.ImageRef, err = s.fetchImage(ctx, s.cfg.Driver(), req.Spec.ImageRef)
		}
		return err
	})
	if err == nil {
		err = retryDriver(ctx, func() error { return s.cfg.Driver().Destroy(ctx, req.ServerID) })
	}
	if err == nil {
		err = retryDriver(ctx, func() error { return spawnWithInterfaces(ctx, s.cfg.Driver(), spec) })
	}
	if err == nil && !req.Running {
		err = s.stop(ctx, req)
	}
	return err
}

// shelve stops the server and makes an image of its disk. If that fails, a server that ran is started again.
func (s *Service) shelve(ctx context.Context, req *compute.ActRequest) error {
	err := s.stop(ctx, req)
	if err == nil {
		err = s.snapshot(ctx, req)
	}
	if err == nil || ctx.Err() != nil || !req.Running {
		return err
	}
	if undo := retryDriver(ctx, func() error { return s.cfg.Driver().PowerOn(ctx, req.ServerID) }); undo != nil {
		err = fmt.Errorf("%w, and the server cannot be started again: %w", err, undo)
	}
	return err
}

// unshelve starts the server, which the driver builds if the host does not have it. If that fails on a host that was chosen for it, unshelve
// removes the server. Errors: errPartial.
func (s *Service) unshelve(ctx context.Context, req *compute.ActRequest) error {
	err := retryDriver(ctx, func() error { return s.spawn(ctx, *req.Spec) })
	if err == nil || ctx.Err() != nil || !req.Placed {
		return err
	}
	// The remains are removed before the report, because another host may get the server after the report.
	if undo := retryDriver(ctx, func() error { return s.cfg.Driver().Destroy(ctx, req.ServerID) }); undo != nil {
		return fmt.Errorf("%w, and its remains cannot be removed: %w, %w", err, undo, errPartial)
	}
	return err
}

func softReboot(ctx context.Context, d compute.Driver, req *compute.ActRequest) error {
	err := d.Reboot(ctx, req.ServerID, false)
	if errors.Is(err, fault.Precondition) { // an earlier reboot was interrupted, or the guest has stopped meanwhile
		err = d.Reboot(ctx, req.ServerID, true)
	}
	return err
}

// errPartial means that a server has neither its state before the action nor its state after it.
var errPartial = errors.New("done in part")

// resize gives the server its new size. If that fails, resize gives the server its old size back.
func (s *Service) resize(ctx context.Context, req *compute.ActRequest) error {
	id := req.ServerID
	var info driver.Info
	var is compute.Instance
	err := retryDriver(ctx, func() (err error) {
		if info, err = s.cfg.Driver().Info(ctx); err == nil {
			is, err = s.cfg.Driver().Get(ctx, id)
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case !slices.Contains(info.Capabilities, compute.CapResize): // checked before the server is stopped
		return fault.New(fault.Unimplemented, "driver %s cannot resize servers", info.Name)
	case is.Resources == req.Resources && (is.Power == compute.Running || !req.Running):
		return nil // an earlier delivery of the message has resized the server, and the report was lost
	}
	if is.Resources != req.Resources {
		err = s.stop(ctx, req)
		if err == nil {
			err = retryDriver(ctx, func() error { return s.cfg.Driver().Resize(ctx, id, req.Resources) })
		}
	}
	if err == nil && req.Running {
		err = retryDriver(ctx, func() error { return s.cfg.Driver().PowerOn(ctx, id) })
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	if undo := s.revert(ctx, req); undo != nil {
		return fmt.Errorf("%w, and cannot be undone: %w, %w", err, undo, errPartial)
	}
	return err
}

// revert gives the server its old size back. Errors: errPartial.
func (s *Service) revert(ctx context.Context, req *compute.ActRequest) error {
	id := req.ServerID
	err := retryDriver(ctx, func() error {
		err := s.cfg.Driver().RevertResize(ctx, id)
		if errors.Is(err, fault.Precondition) { // the server runs, and has a resize to revert; without one it need not be stopped
			if err = s.cfg.Driver().PowerOff(ctx, id, s.cfg.ShutdownTimeout); err == nil {
				err = s.cfg.Driver().RevertResize(ctx, id)
			}
		}
		return err
	})
	if err == nil && req.Running {
		err = retryDriver(ctx, func() error { return s.cfg.Driver().PowerOn(ctx, id) })
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", errPartial, err)
	}
	return err
}
