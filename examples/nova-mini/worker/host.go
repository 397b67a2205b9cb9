package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/membership"
)

// leaveTime is how long Stop tries to free the host: the conductor may have stopped, too.
const leaveTime = 2 * time.Second

// Start asks the driver what the host has, and makes this process the one that does the host's work. It must succeed
// before the server that has the service's handlers is started. It fails with membership.ErrHeld, which names the
// process, while another process has the host, and with Unavailable while the driver does not answer or no conductor
// that knows of hosts does.
func (s *Service) Start(ctx context.Context) error {
	if _, err := s.look(ctx); err != nil {
		return err
	}
	if s.cfg.Process == nil {
		return nil
	}
	p := s.cfg.Process()
	_, err := ask(ctx, s, compute.ClaimHost, &compute.ClaimHostRequest{Host: s.cfg.Host, Instance: p})
	switch {
	case err == nil:
		s.instance = p.ID
		return nil
	case errors.Is(err, membership.ErrHeld):
		return fmt.Errorf("%w: stop that process, or set another host for this one; if it is gone for good, "+
			"run \"nova-mini member remove --force nova-compute %s\", or wait until it is down (service_down_time)", err, s.cfg.Host)
	case errors.Is(err, fault.Invalid), ctx.Err() != nil:
		return err
	case errors.Is(err, rpc.ErrUnsupportedVersion), errors.Is(err, rpc.ErrNoSuchMethod), errors.Is(err, rpc.ErrVersionCap):
		return fault.New(fault.Unavailable, "the conductor is of an earlier release, which does not know whose a host is: upgrade the conductors first: %w", err)
	default:
		return fault.New(fault.Unavailable, "ask a conductor for host %s: %w", s.cfg.Host, err)
	}
}

// Stop frees the host, if a conductor answers soon: another process may have it at once. Without an answer
// it is free when the process counts as down. It does not fail.
func (s *Service) Stop(ctx context.Context) error {
	if s.instance == "" || s.held.Err() != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	if _, err := rpc.Call(ctx, s.cfg.Client, compute.LeaveHost, rpc.Any, &compute.LeaveHostRequest{Host: s.cfg.Host, Instance: s.instance}); err != nil {
		s.cfg.Logger.InfoContext(ctx, "no conductor was told that the service stops", "error", err)
	}
	return nil
}

// loseHost stops all work, as another process has the host.
func (s *Service) loseHost(err error) {
	s.once.Do(func() {
		s.cfg.Logger.Error("host lost to another process", "error", err)
		s.lose()
		s.lost <- fmt.Errorf("another process has host %s, as this one was silent for too long, or was removed: %w", s.cfg.Host, err)
	})
}

// Failed implements service.Failer: the service fails when another process has become the one that does
// the host's work.
func (s *Service) Failed() <-chan error { return s.lost }

// Check fails with Unavailable when another process does the host's work, and while the driver does not say what
// the host has. It does not block.
func (s *Service) Check(context.Context) error {
	if err := s.checkHeld(); err != nil {
		return err
	}
	if blind := s.blind.Load(); blind != nil {
		return *blind
	}
	return nil
}

func (s *Service) checkHeld() error {
	if s.held.Err() != nil {
		return fault.New(fault.Unavailable, "another process has host %s", s.cfg.Host)
	}
	return nil
}

// Guard is an interceptor of the server that has the service's handlers. It ends what runs when another
// process does the host's work, and lets nothing begin from then on. Messages go back to the queue, from
// which the other process takes them.
func (s *Service) Guard(ctx context.Context, _ rpc.Info, req any, next func(context.Context, any) (any, error)) (any, error) {
	if err := s.checkHeld(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.held, cancel)() //nolint:contextcheck // it is the time in which the host is held
	return next(ctx, req)
}
