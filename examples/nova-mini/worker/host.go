package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/text"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/membership"
)

// leaveTime limits the time that Stop takes to free the host. It is short because the conductors may have stopped, too.
const leaveTime = 2 * time.Second

// Start asks the driver for the resources of the host, and then claims the host, because only one process may own a host. Start
// must succeed before the RPC server with the service's handlers is started. Start blocks until the RPC clients know the versions of
// this process, see awaitClients. Errors: membership.ErrHeld if another process owns
// the host (the text names that process); Unavailable if the driver or the conductors do not answer, or if all conductors are of
// a release without claims of hosts.
func (s *Service) Start(ctx context.Context) error {
	if _, err := s.inspectHost(ctx); err != nil {
		return err
	}
	p := s.cfg.Process()
	_, err := askConductor(ctx, s, compute.ClaimHost, &compute.ClaimHostRequest{Host: s.cfg.Host, Instance: p, Interfaces: s.interfaces})
	if errors.Is(err, compute.ErrVersionsNotKnown) {
		err = s.awaitClients(ctx, p, err)
	}
	switch {
	case err == nil:
		s.instance = p.ID
		return nil
	case errors.Is(err, membership.ErrHeld):
		return fmt.Errorf("%w: stop that process, or set another host for this process; if that process no longer exists, "+
			"run \"nova-mini member remove --force nova-compute %s\", or wait until its service is down (service_down_time)", err, text.ShellWord(s.cfg.Host))
	case errors.Is(err, fault.Invalid), ctx.Err() != nil:
		return err
	case errors.Is(err, rpc.ErrUnsupportedVersion), errors.Is(err, rpc.ErrNoSuchMethod), errors.Is(err, rpc.ErrVersionCap):
		return fault.New(fault.Unavailable, "claim host %s: no conductor has answered yet, or the conductors are of an earlier release that has no claims of hosts; upgrade the conductors first: %w", s.cfg.Host, err)
	default:
		return fault.New(fault.Unavailable, "claim host %s from a conductor: %w", s.cfg.Host, err)
	}
}

// claimEvery is the time between two claims while the process waits until the RPC clients know its versions.
const claimEvery = time.Second

// awaitClients repeats the claim until the RPC clients know the versions of the process. If ctx ends first, awaitClients frees the host.
// Without this, the versions that the claim has announced would keep the clients' version caps low, although the process does not run.
func (s *Service) awaitClients(ctx context.Context, p compute.Process, err error) error {
	s.cfg.Logger.WarnContext(ctx, "waiting before serving: RPC clients must learn the lower versions of this process", "error", err)
	for errors.Is(err, compute.ErrVersionsNotKnown) {
		t := time.NewTimer(claimEvery)
		select {
		case <-t.C:
			_, err = askConductor(ctx, s, compute.ClaimHost, &compute.ClaimHostRequest{Host: s.cfg.Host, Instance: p, Interfaces: s.interfaces})
		case <-ctx.Done():
			t.Stop()
		}
		if ctx.Err() != nil {
			s.freeHost(context.WithoutCancel(ctx), p.ID)
			return fault.New(fault.CodeOf(ctx.Err()), "claim host %s: %w", s.cfg.Host, ctx.Err())
		}
	}
	return err
}

// Stop frees the host, so that another process can claim it at once. It waits up to 2 s for a conductor. If no conductor
// answers, the host is free when service_down_time has passed since the last heartbeat. Stop does not fail.
func (s *Service) Stop(ctx context.Context) error {
	if s.instance != "" && s.held.Err() == nil {
		s.freeHost(ctx, s.instance)
	}
	return nil
}

func (s *Service) freeHost(ctx context.Context, instance string) {
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	if _, err := rpc.Call(ctx, s.cfg.Client, compute.LeaveHost, rpc.Any, &compute.LeaveHostRequest{Host: s.cfg.Host, Instance: instance}); err != nil {
		s.cfg.Logger.InfoContext(ctx, "host not freed, no conductor answered", "error", err)
	}
}

// loseHost stops all work, because another process owns the host.
func (s *Service) loseHost(err error) {
	s.once.Do(func() {
		s.cfg.Logger.Error("host lost to another process", "error", err)
		s.cancelHeld()
		s.lost <- fmt.Errorf("host %s lost: another process owns the host, because this process sent no heartbeat for too long or was removed: %w", s.cfg.Host, err)
	})
}

// Failed implements service.Failer. The service fails when another process has become the owner of the host.
func (s *Service) Failed() <-chan error { return s.lost }

// Check reports whether the service is ready. Errors: Unavailable if another process owns the host, or if the driver did not
// report the resources of the host when it was last asked. Check does not block.
func (s *Service) Check(context.Context) error {
	if err := s.checkHeld(); err != nil {
		return err
	}
	if err := s.inspectErr.Load(); err != nil {
		return *err
	}
	return nil
}

func (s *Service) checkHeld() error {
	if s.held.Err() != nil {
		return fault.New(fault.Unavailable, "another process owns host %s", s.cfg.Host)
	}
	return nil
}

// Guard is an interceptor of the RPC server with the service's handlers. When another process has become the owner of
// the host, Guard cancels the running handlers and refuses new messages with Unavailable. The messages return to the
// queue, and the other process gets them.
func (s *Service) Guard(ctx context.Context, _ rpc.Info, req any, next func(context.Context, any) (any, error)) (any, error) {
	if err := s.checkHeld(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.held, cancel)() //nolint:contextcheck // held ends when the host is lost
	return next(ctx, req)
}
