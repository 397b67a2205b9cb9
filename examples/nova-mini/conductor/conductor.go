// Package conductor is nova-mini's conductor: it brings every task of a server
// to its end, whoever dies on the way. All it knows is in the database; messages
// are hints. Any number of conductors may run.
//
// A server with a task is leased, its next step is done, and the outcome is
// written in one transaction together with the time at which somebody is to look
// again if no news comes:
//
//	scheduling  ask the scheduler for a host; then spawning
//	spawning    tell the worker to build; it reports the end. Active, or scheduling again, or error
//	deleting    tell the worker to destroy; it reports the end. Gone
//	powering-off, powering-on, rebooting, rebooting_hard
//	            tell the worker to do it; it reports the end. Active, or stopped
//	resize_prep, resize_confirming, resize_reverting
//	            the same. Resized; after that active, or stopped
package conductor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler"
)

// Config configures a Service. All durations have defaults.
type Config struct {
	Store  *store.Store
	Client *rpc.Client
	// Ratios are how far resources may be over-committed.
	Ratios store.Ratios
	// MaxAttempts is on how many hosts a build is tried. Default 3.
	MaxAttempts int
	// BuildTimeout is how long a build may take on one host, or the search for
	// a host, before the server is in ERROR. Default 10 minutes.
	BuildTimeout time.Duration
	// Patience is how long a worker, or a conductor that leased a task, may be
	// silent before the step is done again. Default 15 s.
	Patience time.Duration
	Logger   *slog.Logger
}

// Service answers the conductor's RPC interface. It is safe for concurrent use.
type Service struct {
	cfg   Config
	slots chan struct{} // a token for each step that Resume runs
}

// steps is how many tasks Resume works on at once.
const steps = 16

// New returns a service.
func New(cfg Config) *Service {
	if cfg.MaxAttempts <= 0 {
		cfg.MaxAttempts = 3
	}
	if cfg.BuildTimeout <= 0 {
		cfg.BuildTimeout = 10 * time.Minute
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 15 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Service{cfg: cfg, slots: make(chan struct{}, steps)}
}

// Register adds the service's handlers to a server.
func (s *Service) Register(srv *rpc.Server) {
	rpc.Handle(srv, compute.Wake, s.Wake)
	rpc.Handle(srv, compute.BeginBuild, s.BeginBuild)
	rpc.Handle(srv, compute.EndBuild, s.EndBuild)
	rpc.Handle(srv, compute.EndAct, s.EndAct)
	rpc.Handle(srv, compute.EndDestroy, s.EndDestroy)
	rpc.Handle(srv, compute.ReportHost, s.ReportHost)
	rpc.Handle(srv, compute.Strangers, s.Strangers)
}

// Wake does the next step of a server's task now.
func (s *Service) Wake(ctx context.Context, req *compute.WakeRequest) (*rpc.None, error) {
	return &rpc.None{}, s.step(ctx, req.ServerID)
}

// Resume does the next step of every task that is due: those whose hint was
// lost, whose conductor died, or whose worker is silent. It is for a loop.
func (s *Service) Resume(ctx context.Context) error {
	ids, err := s.cfg.Store.Due(ctx, 100)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, id := range ids {
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		wg.Go(func() {
			defer func() { <-s.slots }()
			if err := s.step(ctx, id); err != nil && ctx.Err() == nil {
				s.cfg.Logger.WarnContext(ctx, "a step failed and is tried again", "server", id, "error", err)
			}
		})
	}
	return nil
}

// step leases the server and does what its task needs next.
func (s *Service) step(ctx context.Context, id string) error {
	lease := rand.Text()
	srv, err := s.cfg.Store.Lease(ctx, id, lease, s.cfg.Patience)
	if err != nil || srv == nil {
		return err
	}
	who := reqctx.From(ctx)
	who.ID, who.UserID, who.ProjectID = srv.RequestID, srv.UserID, srv.ProjectID
	ctx, cancel := context.WithTimeout(reqctx.With(ctx, who), s.cfg.Patience)
	defer cancel()
	switch srv.Task() {
	case store.Scheduling:
		err = s.place(ctx, srv, lease)
	case store.Spawning:
		err = s.build(ctx, srv)
	case store.Deleting:
		err = s.destroy(ctx, srv)
	default:
		err = s.act(ctx, srv)
	}
	if err == nil || errors.Is(err, compute.ErrStale) {
		return nil // what is no longer wanted needs no second try
	}
	// The lease is given back early: Patience is for those that died.
	again, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return errors.Join(fmt.Errorf("%s server %s: %w", srv.Task(), id, err), s.cfg.Store.Postpone(again, id, lease, time.Second))
}

// place finds a host and has the server built there.
func (s *Service) place(ctx context.Context, srv *store.Server, lease string) error {
	if srv.Attempts >= s.cfg.MaxAttempts {
		return s.cfg.Store.Fail(ctx, srv.ID, store.Scheduling, fmt.Sprintf(
			"Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures for instance %s: tried %v, last: %s",
			srv.ID, srv.Tried, srv.FaultMessage))
	}
	got, err := rpc.Call(ctx, s.cfg.Client, compute.Select, rpc.Any, &compute.SelectRequest{ServerID: srv.ID, Need: srv.Need(), Exclude: srv.Tried})
	if errors.Is(err, scheduler.ErrNoValidHost) {
		text := err.Error()
		if f, ok := errors.AsType[*fault.Error](err); ok {
			text = f.Msg // without the path it came
		}
		if srv.FaultMessage != "" {
			text += "; the last build failed: " + srv.FaultMessage
		}
		return s.cfg.Store.Fail(ctx, srv.ID, store.Scheduling, text)
	}
	if age := srv.DueAt.Sub(srv.TaskSince); err != nil && age > s.cfg.BuildTimeout {
		return s.cfg.Store.Fail(ctx, srv.ID, store.Scheduling, fmt.Sprintf("no host was chosen within %v: %v", s.cfg.BuildTimeout, err))
	}
	if err != nil {
		return err
	}
	generation, err := s.cfg.Store.Place(ctx, srv.ID, lease, got.Host, s.cfg.Patience)
	if err != nil {
		return err
	}
	srv.Host, srv.Generation = &got.Host, generation
	return s.cast(ctx, srv)
}

// build tells the worker again: the first message was lost, or the worker is
// busy or away.
func (s *Service) build(ctx context.Context, srv *store.Server) error {
	if age := srv.DueAt.Sub(srv.TaskSince); age > s.cfg.BuildTimeout {
		return s.cfg.Store.Fail(ctx, srv.ID, store.Spawning, fmt.Sprintf("host %s did not build the server within %v", *srv.Host, s.cfg.BuildTimeout))
	}
	return s.cast(ctx, srv)
}

func (s *Service) cast(ctx context.Context, srv *store.Server) error {
	return rpc.Cast(ctx, s.cfg.Client, compute.Build, *srv.Host, &compute.BuildRequest{Spec: srv.Spec(), Generation: srv.Generation})
}

// act tells the worker to do the action of the server's task, again if there is no
// news.
func (s *Service) act(ctx context.Context, srv *store.Server) error {
	if age := srv.DueAt.Sub(srv.TaskSince); age > s.cfg.BuildTimeout {
		why := fmt.Sprintf("host %s did not end %s within %v", *srv.Host, srv.Task(), s.cfg.BuildTimeout)
		if srv.Resize != nil { // nobody knows which size it has; it keeps the room for both
			return s.cfg.Store.Fail(ctx, srv.ID, srv.Task(), why)
		}
		a := compute.AttemptRequest{ServerID: srv.ID, Host: *srv.Host, Generation: srv.Generation, Task: srv.Task()}
		return s.cfg.Store.EndAct(ctx, a, why)
	}
	req := &compute.ActRequest{ServerID: srv.ID, Action: store.ActionOf(srv.Task()), Task: srv.Task(), Generation: srv.Generation}
	if srv.Resize != nil {
		req.Resources, req.Running = srv.Resize.To.Has, srv.Resize.Running
	}
	return rpc.Cast(ctx, s.cfg.Client, compute.Act, *srv.Host, req)
}

func (s *Service) destroy(ctx context.Context, srv *store.Server) error {
	if srv.Host == nil {
		return s.cfg.Store.Remove(ctx, srv.ID)
	}
	return rpc.Cast(ctx, s.cfg.Client, compute.Destroy, *srv.Host, &compute.DestroyRequest{ServerID: srv.ID})
}

// BeginBuild answers a worker, see compute.BeginBuild.
func (s *Service) BeginBuild(ctx context.Context, req *compute.AttemptRequest) (*rpc.None, error) {
	return &rpc.None{}, s.cfg.Store.Current(ctx, *req)
}

// EndBuild notes how an attempt ended, see compute.EndBuild. After a failure the
// next host is tried at once.
func (s *Service) EndBuild(ctx context.Context, req *compute.EndBuildRequest) (*rpc.None, error) {
	if req.Error == "" {
		return &rpc.None{}, s.cfg.Store.Activate(ctx, req.AttemptRequest)
	}
	s.cfg.Logger.WarnContext(ctx, "a build failed", "server", req.ServerID, "host", req.Host, "error", req.Error)
	if _, err := s.cfg.Store.Reschedule(ctx, req.AttemptRequest, fmt.Sprintf("host %s: %s", req.Host, req.Error)); err != nil {
		return nil, err
	}
	if err := rpc.Cast(ctx, s.cfg.Client, compute.Wake, rpc.Any, &compute.WakeRequest{ServerID: req.ServerID}); err != nil {
		s.cfg.Logger.DebugContext(ctx, "nobody was woken; the task is found by polling", "server", req.ServerID, "error", err)
	}
	return &rpc.None{}, nil
}

// EndAct notes how an action ended, see compute.EndAct.
func (s *Service) EndAct(ctx context.Context, req *compute.EndBuildRequest) (*rpc.None, error) {
	if req.Error != "" {
		s.cfg.Logger.WarnContext(ctx, "an action failed", "server", req.ServerID, "host", req.Host, "task", req.Task, "error", req.Error)
	}
	return &rpc.None{}, s.cfg.Store.EndAct(ctx, req.AttemptRequest, req.Error)
}

// EndDestroy ends a deletion, see compute.EndDestroy.
func (s *Service) EndDestroy(ctx context.Context, req *compute.AttemptRequest) (*rpc.None, error) {
	return &rpc.None{}, s.cfg.Store.Remove(ctx, req.ServerID)
}

// ReportHost notes what a worker has, see compute.ReportHost.
func (s *Service) ReportHost(ctx context.Context, req *compute.HostReport) (*rpc.None, error) {
	return &rpc.None{}, s.cfg.Store.ReportHost(ctx, req, s.cfg.Ratios)
}

// Strangers compares a worker's servers with the database, see
// compute.Strangers.
func (s *Service) Strangers(ctx context.Context, req *compute.StrangersRequest) (*compute.StrangersReply, error) {
	ids, err := s.cfg.Store.Strangers(ctx, req.Host, req.Servers)
	return &compute.StrangersReply{Servers: ids}, err
}
