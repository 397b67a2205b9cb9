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

// actions maps each action of compute.Actions with a Since to the function that does the work of the compute service. The functions are
// idempotent. They return errPartial if the action is done in part, or its result is not known.
var actions = map[compute.Action]func(*Service, context.Context, *compute.ActRequest) error{
	compute.Start: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.PowerOn(ctx, r.ServerID)
	}),
	compute.Stop:       (*Service).stop,
	compute.SoftReboot: driverCall(softReboot),
	compute.HardReboot: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		if err := settleResize(ctx, d, r); err != nil {
			return err
		}
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
	compute.CrashDump: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.InjectNMI(ctx, r.ServerID)
	}),
	compute.SoftDelete: (*Service).softDelete,
	compute.Restore: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.PowerOn(ctx, r.ServerID)
	}),
	compute.Rebuild:       (*Service).rebuild,
	compute.CreateImage:   (*Service).snapshot,
	compute.CreateBackup:  (*Service).backup,
	compute.Shelve:        (*Service).shelve,
	compute.ShelveOffload: (*Service).offload,
	compute.Unshelve:      (*Service).unshelve,
	compute.Resize:        (*Service).resize,
	compute.ConfirmResize: driverCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.ConfirmResize(ctx, r.ServerID)
	}),
	compute.RevertResize: (*Service).revert,
	compute.AttachInterface: interfaceCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.AttachInterface(ctx, r.ServerID, *r.Interface)
	}),
	compute.DetachInterface: interfaceCall(func(ctx context.Context, d compute.Driver, r *compute.ActRequest) error {
		return d.DetachInterface(ctx, r.ServerID, r.Interface.ID)
	}),
}

// driverCall returns the function of an action that needs only one call to the driver. retryDriver repeats the call.
func driverCall(call func(context.Context, compute.Driver, *compute.ActRequest) error) func(*Service, context.Context, *compute.ActRequest) error {
	return func(s *Service, ctx context.Context, req *compute.ActRequest) error {
		return retryDriver(ctx, func() error { return call(ctx, s.cfg.Driver(), req) })
	}
}

// interfaceCall returns the function of an action that changes an interface by one call to the driver. The errors of the function are errPartial if the driver does not say whether it has changed the
// interface, and unsupported.
func interfaceCall(call func(context.Context, compute.Driver, *compute.ActRequest) error) func(*Service, context.Context, *compute.ActRequest) error {
	do := driverCall(call)
	return func(s *Service, ctx context.Context, req *compute.ActRequest) error {
		if req.Interface == nil {
			return refusal{fault.New(fault.Invalid, "%s server %s: the request has no interface", req.Action, req.ServerID)}
		}
		err := do(s, ctx, req)
		switch code := fault.CodeOf(err); {
		case err == nil, req.IfPossible && (code == fault.NotFound || code == fault.Unimplemented):
			return nil
		case code == fault.Unimplemented:
			return unsupported{err}
		case code == fault.Unavailable || code == fault.Unknown || code == fault.Timeout:
			return fmt.Errorf("%w: %w", errPartial, err)
		}
		return err
	}
}

// refusal is the error of an action that was refused before it changed the server.
type refusal struct{ error }

// unsupported is the error of the change of an interface if the driver cannot change interfaces.
type unsupported struct{ error }

// missing is the error of a soft deletion if the host does not have the server.
type missing struct{ error }

// runAction does an action. Errors: errPartial; refusal; missing; unsupported.
func (s *Service) runAction(ctx context.Context, req *compute.ActRequest) error {
	if err := s.checkUpload(ctx, req); err != nil {
		return err
	}
	if do := actions[req.Action]; do != nil {
		return do(s, ctx, req)
	}
	return refusal{fault.New(fault.Unimplemented, "server %s: this compute service does not know the action %q", req.ServerID, req.Action)}
}

// stop shuts the server down, and ends an interrupted resize. It is not an error if the server is off already.
func (s *Service) stop(ctx context.Context, req *compute.ActRequest) error {
	return retryDriver(ctx, func() error {
		d := s.cfg.Driver()
		if err := d.PowerOff(ctx, req.ServerID, s.cfg.ShutdownTimeout); err != nil {
			return err
		}
		return settleResize(ctx, d, req)
	})
}

// settleResize ends an interrupted resize: it ends a rescue, cuts the power of the server, and gives the server the size of the request. settleResize does nothing if the request does not ask for this
// (ActRequest.Settle). Unimplemented is not an error, because a driver that cannot resize has not changed the size.
func settleResize(ctx context.Context, d compute.Driver, req *compute.ActRequest) error {
	if !req.Settle {
		return nil
	}
	is, err := readServer(ctx, d, req.ServerID)
	if err == nil && is.Rescued {
		err = d.Unrescue(ctx, req.ServerID)
	}
	if err == nil {
		err = d.PowerOff(ctx, req.ServerID, 0)
	}
	switch {
	case err != nil:
		return err
	case is.Resources != req.Resources:
		err = resizeBack(ctx, d, req)
	default:
		err = d.ConfirmResize(ctx, req.ServerID)
	}
	if errors.Is(err, fault.Unimplemented) {
		return nil
	}
	return err
}

// resizeBack reverts a resize. If an earlier confirmation or revert was done and not reported, the server then still does not have the size of the request, and resizeBack resizes the
// server. Errors: those of the driver, such as Invalid if the disk would shrink.
func resizeBack(ctx context.Context, d compute.Driver, req *compute.ActRequest) error {
	if err := d.RevertResize(ctx, req.ServerID); err != nil {
		return err
	}
	is, err := d.Get(ctx, req.ServerID)
	if err != nil || is.Resources == req.Resources {
		return err
	}
	if err := d.Resize(ctx, req.ServerID, req.Resources); err != nil {
		return err
	}
	return d.ConfirmResize(ctx, req.ServerID)
}

// undoLate undoes an action that was done and is no longer wanted, for example after a timeout. It does so only for actions after which the server on the host would contradict the
// database.
func (s *Service) undoLate(ctx context.Context, req *compute.ActRequest) error {
	switch {
	case req.Placed: // as after a build that is no longer wanted
		return s.evictOrphan(ctx, req.ServerID)
	case req.Action == compute.Restore: // the server is still soft-deleted, and must not run
		return retryDriver(ctx, func() error { return s.cfg.Driver().PowerOff(ctx, req.ServerID, 0) })
	}
	return nil
}

// softDelete cuts the power of a server. It ends a rescue, and confirms or undoes a resize, because a restored server runs from its own disk, with its own size. Errors:
// errPartial; missing if the host does not have the server.
func (s *Service) softDelete(ctx context.Context, req *compute.ActRequest) error {
	err := retryDriver(ctx, func() error {
		d := s.cfg.Driver()
		is, err := readServer(ctx, d, req.ServerID)
		if err == nil && is.Rescued {
			err = d.Unrescue(ctx, req.ServerID)
		}
		if err == nil {
			err = d.PowerOff(ctx, req.ServerID, 0)
		}
		if err == nil {
			err = settleResize(ctx, d, req)
		}
		return err
	})
	if errors.Is(err, fault.NotFound) {
		return missing{err}
	}
	return err
}

// rebuild destroys the server and builds it again. A redelivered message rebuilds it once more.
func (s *Service) rebuild(ctx context.Context, req *compute.ActRequest) error {
	spec := *req.Spec
	err := retryDriver(ctx, func() (err error) { // before the server is destroyed
		if err = checkNeeds(ctx, s.cfg.Driver(), spec); err == nil {
			spec.ImageRef, err = s.fetchImage(ctx, s.cfg.Driver(), req.Spec.ImageRef)
		}
		return err
	})
	if err == nil {
		err = s.destroy(ctx, req.ServerID)
	}
	if err == nil {
		err = retryDriver(ctx, func() error { return spawnWithInterfaces(ctx, s.cfg.Driver(), spec) })
	}
	if err == nil && !req.Running {
		err = s.stop(ctx, req)
	}
	return err
}

// offload removes a shelved server from the host.
func (s *Service) offload(ctx context.Context, req *compute.ActRequest) error {
	return s.destroy(ctx, req.ServerID)
}

// shelve stops the server and makes an image of its disk. If either fails, a server that ran is started again.
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

// unshelve starts the server. If the host does not have the server, the driver builds it. If this fails on a host that was chosen for this
// action, unshelve removes the server from the host. Errors: errPartial if the remains of the server cannot be removed.
func (s *Service) unshelve(ctx context.Context, req *compute.ActRequest) error {
	err := retryDriver(ctx, func() error { return s.spawn(ctx, *req.Spec) })
	if err == nil || ctx.Err() != nil || !req.Placed {
		return err
	}
	// The remains are removed before the report, because another host may get the server after the report.
	if undo := s.destroy(ctx, req.ServerID); undo != nil {
		return fmt.Errorf("%w, and its remains cannot be removed: %w, %w", err, undo, errPartial)
	}
	return fault.New(fault.CodeOf(err), "%s", err) // not errPartial: the host does not have the server
}

func softReboot(ctx context.Context, d compute.Driver, req *compute.ActRequest) error {
	err := d.Reboot(ctx, req.ServerID, false)
	if errors.Is(err, fault.Precondition) { // an earlier reboot was interrupted, or the guest has stopped meanwhile
		err = d.Reboot(ctx, req.ServerID, true)
	}
	return err
}

// errPartial means that the server is neither in its state before the action nor in its state after the action, or that its state is not known.
var errPartial = errors.New("done in part, or not known")

// readServer returns what the driver knows of a server before an action changes the server. Errors: those of the driver, as markPartial returns them.
func readServer(ctx context.Context, d compute.Driver, id string) (compute.Instance, error) {
	is, err := d.Get(ctx, id)
	return is, markPartial(err)
}

// markPartial adds errPartial to the error of a driver that was asked before an action changes the server, unless the error is a definite answer: an earlier delivery of the message may have
// done the action.
func markPartial(err error) error {
	definite := []fault.Code{fault.NotFound, fault.Invalid, fault.Precondition, fault.Unimplemented}
	if err == nil || slices.Contains(definite, fault.CodeOf(err)) {
		return err
	}
	return fmt.Errorf("%w: %w", errPartial, err)
}

// resize gives the server its new size. If that fails, resize gives the server its old size back. Errors: errPartial.
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
		return markPartial(err)
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

// revert gives the server its old size back. Every error is errPartial.
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
