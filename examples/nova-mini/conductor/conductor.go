// Package conductor is nova-mini's conductor: it runs the operations on servers, so that
// each ends, whichever process dies on the way. All it knows is in the database; messages are
// hints. Any number of conductors may run.
//
//	server.create   ask the scheduler for a host; then tell the worker to build, and after
//	                a failure another one. Active, or error
//	server.delete   tell the worker to destroy. Gone
//	server.stop, server.start, server.reboot, server.hard_reboot,
//	server.resize, server.confirm_resize, server.revert_resize
//	                tell the worker to do it. What it leads to, or as before with a fault
//
// A step that needs the worker tells it, again and again while there is no news, and ends
// with the worker's report, in the transaction that changes the server.
package conductor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/operation"
)

// Config configures a Service. All durations have defaults.
type Config struct {
	Store  *store.Store
	Client *rpc.Client
	// Host is this process's name, which stands in the events of operations.
	Host string
	// Ratios are how far resources may be over-committed.
	Ratios store.Ratios
	// MaxAttempts is on how many hosts a build is tried. Default 3.
	MaxAttempts int
	// BuildTimeout is how long a build or an action may take on one host, or the search
	// for a host, before it is given up. Default 10 minutes.
	BuildTimeout time.Duration
	// DownAfter is how long a worker may be silent and still keep its host from another process.
	// Default 60 s.
	DownAfter time.Duration
	// Patience is how long a worker may be silent before it is told again, or a conductor
	// that runs an operation before another one goes on with it. Default 15 s.
	Patience time.Duration
	// Poll is how often operations are looked for without a notification. Default 1 s.
	Poll     time.Duration
	Inflight *service.Inflight
	Logger   *slog.Logger
}

// Service answers the conductor's RPC interface, and runs operations once its Runner is
// started. It is safe for concurrent use.
type Service struct {
	cfg Config
	// Runner is a part of package service.
	Runner *operation.Runner
}

// The steps that a worker ends.
const (
	stepBuild   = "build"
	stepAct     = "act"
	stepDestroy = "destroy"
)

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
	if cfg.DownAfter <= 0 {
		cfg.DownAfter = time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Service{cfg: cfg, Runner: operation.NewRunner(operation.RunnerConfig{
		Store: cfg.Store.Operations(), Host: cfg.Host, Lease: cfg.Patience, Poll: cfg.Poll, Inflight: cfg.Inflight, Logger: cfg.Logger,
	})}
	operation.Handle(s.Runner, store.Create,
		operation.Step[struct{}]{Name: "schedule", Do: s.schedule, UndoTx: s.failBuild, Timeout: cfg.Patience},
		operation.Step[struct{}]{Name: stepBuild, Do: s.build, Timeout: cfg.Patience})
	operation.Handle(s.Runner, store.Delete,
		operation.Step[struct{}]{Name: stepDestroy, Do: s.destroy, UndoTx: s.failDelete, Timeout: cfg.Patience},
		operation.Step[struct{}]{Name: "remove", DoTx: s.remove})
	for a, k := range store.Kinds {
		act := actor{s, a}
		operation.Handle(s.Runner, k, operation.Step[store.ActInput]{Name: stepAct, Do: act.do, UndoTx: act.fail, Timeout: cfg.Patience})
	}
	return s
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
	rpc.Handle(srv, compute.ClaimHost, s.ClaimHost)
	rpc.Handle(srv, compute.LeaveHost, s.LeaveHost)
}

// Wake goes on with a server's operation now.
func (s *Service) Wake(ctx context.Context, req *compute.WakeRequest) (*rpc.None, error) {
	return &rpc.None{}, s.Runner.WakeResource(ctx, req.ServerID)
}

// schedule finds a host.
func (s *Service) schedule(ctx context.Context, op *operation.Op, _ *struct{}) error {
	srv, age, err := s.cfg.Store.Look(ctx, op.Resource)
	if err == nil && srv.Task() == "" { // it is done again, see operation.Store.Retry
		if err := s.cfg.Store.Repeat(ctx, op.Resource, "", nil); err != nil {
			return err
		}
		srv, age, err = s.cfg.Store.Look(ctx, op.Resource)
	}
	if err != nil || srv.Task() != store.Scheduling {
		return err
	}
	return s.place(ctx, srv, age)
}

// place finds a host for a server that waits for one.
func (s *Service) place(ctx context.Context, srv *store.Server, age time.Duration) error {
	if srv.Attempts >= s.cfg.MaxAttempts {
		return fault.New(fault.Exhausted, "Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures for instance %s: tried %v, last: %s",
			srv.ID, srv.Tried.V, srv.FaultDetails)
	}
	got, err := rpc.Call(ctx, s.cfg.Client, compute.Select, rpc.Any, &compute.SelectRequest{ServerID: srv.ID, Need: srv.Need(), Exclude: srv.Tried.V})
	switch {
	case errors.Is(err, scheduler.ErrNoValidHost):
		text := err.Error()
		if f, ok := errors.AsType[*fault.Error](err); ok {
			text = f.Msg // without the path it came
		}
		if srv.FaultDetails != "" {
			text += "; the last build failed: " + srv.FaultDetails
		}
		return fault.New(fault.CodeOf(err), "%s", text)
	case err != nil && age > s.cfg.BuildTimeout:
		return fault.New(fault.Canceled, "no host was chosen within %v: %v", s.cfg.BuildTimeout, err)
	case err != nil:
		return err
	}
	_, err = s.cfg.Store.Place(ctx, srv, got.Host)
	return err
}

// build tells the worker, again and again: it is busy or away, or the message was lost.
// After a failure it finds the next host first.
func (s *Service) build(ctx context.Context, op *operation.Op, _ *struct{}) error {
	srv, age, err := s.cfg.Store.Look(ctx, op.Resource)
	if err == nil && srv.Task() == store.Scheduling {
		if err := s.place(ctx, srv, age); err != nil {
			return err
		}
		srv, age, err = s.cfg.Store.Look(ctx, op.Resource)
	}
	switch {
	case err != nil:
		return err
	case srv.Task() != store.Spawning:
		return compute.ErrStale
	case age > s.cfg.BuildTimeout:
		return fault.New(fault.Canceled, "host %s did not build the server within %v", *srv.Host, s.cfg.BuildTimeout)
	}
	return s.tell(rpc.Cast(ctx, s.cfg.Client, compute.Build, *srv.Host, &compute.BuildRequest{Spec: srv.Spec(), Generation: srv.Generation}))
}

// tell is what a step returns after it has told a worker, with the error of that.
func (s *Service) tell(err error) error {
	if err != nil {
		return err
	}
	return operation.Again(s.cfg.Patience)
}

// failBuild ends the building of a server in an error. The message is Nova's.
func (s *Service) failBuild(ctx context.Context, _ *sqlx.Tx, op *operation.Op, _ *struct{}) error {
	srv, err := s.cfg.Store.Server(ctx, op.Resource)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	message := fmt.Sprintf("Build of instance %s aborted.", srv.ID)
	switch exhausted := fault.CodeOf(op.Err) == fault.Exhausted; {
	case exhausted && srv.Attempts == 0:
		message = "No valid host was found. There are not enough hosts available."
	case exhausted:
		message = fmt.Sprintf("Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures for instance %s.", srv.ID)
	}
	return s.cfg.Store.Fail(ctx, srv.ID, message, op.Err.Error())
}

// failDelete ends the deletion of a server in an error.
func (s *Service) failDelete(ctx context.Context, _ *sqlx.Tx, op *operation.Op, _ *struct{}) error {
	return s.cfg.Store.Fail(ctx, op.Resource, fmt.Sprintf("Failed to delete instance %s.", op.Resource), op.Err.Error())
}

func (s *Service) destroy(ctx context.Context, op *operation.Op, _ *struct{}) error {
	srv, err := s.cfg.Store.Server(ctx, op.Resource)
	switch {
	case errors.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	case srv.Task() != store.Deleting: // it is done again
		if err := s.cfg.Store.RepeatDelete(ctx, op.Resource); err != nil {
			return err
		}
		if srv, err = s.cfg.Store.Server(ctx, op.Resource); err != nil {
			return err
		}
	}
	if srv.Host == nil {
		return nil
	}
	return s.tell(rpc.Cast(ctx, s.cfg.Client, compute.Destroy, *srv.Host, &compute.DestroyRequest{ServerID: srv.ID, Generation: srv.Generation}))
}

func (s *Service) remove(ctx context.Context, _ *sqlx.Tx, op *operation.Op, _ *struct{}) error {
	return s.cfg.Store.Remove(ctx, op.Resource)
}

// actor runs the operations of an action.
type actor struct {
	*Service
	action compute.Action
}

func (s actor) do(ctx context.Context, op *operation.Op, in *store.ActInput) error {
	srv, age, err := s.cfg.Store.Look(ctx, op.Resource)
	if err == nil && srv.Task() == "" { // it is done again
		if err := s.cfg.Store.Repeat(ctx, op.Resource, s.action, in); err != nil {
			return err
		}
		srv, age, err = s.cfg.Store.Look(ctx, op.Resource)
	}
	switch {
	case err != nil:
		return err
	case store.ActionOf(srv.Task()) != s.action:
		return compute.ErrStale
	case age > s.cfg.BuildTimeout:
		return fault.New(fault.Canceled, "host %s did not end %s within %v", *srv.Host, srv.Task(), s.cfg.BuildTimeout)
	}
	req := &compute.ActRequest{ServerID: srv.ID, Action: s.action, Task: srv.Task(), Generation: srv.Generation}
	if srv.Resize.V != nil {
		req.Resources, req.Running = srv.Resize.V.To.Has, srv.Resize.V.Running
	}
	return s.tell(rpc.Cast(ctx, s.cfg.Client, compute.Act, *srv.Host, req))
}

// fail makes a server what it was, with a fault. After a resize that was given up or
// canceled its size is not known: it keeps the room for both.
func (s actor) fail(ctx context.Context, _ *sqlx.Tx, op *operation.Op, _ *store.ActInput) error {
	srv, err := s.cfg.Store.Server(ctx, op.Resource)
	if errors.Is(err, fault.NotFound) || err == nil && store.ActionOf(srv.Task()) != s.action {
		return nil
	}
	if err != nil {
		return err
	}
	if c := fault.CodeOf(op.Err); srv.Resize.V != nil && (c == fault.Canceled || c == fault.Timeout) {
		return s.cfg.Store.Fail(ctx, op.Resource, store.FailedAction(s.action, srv.ID), op.Err.Error())
	}
	a := compute.AttemptRequest{ServerID: srv.ID, Host: *srv.Host, Generation: srv.Generation, Task: srv.Task()}
	return s.cfg.Store.EndAct(ctx, a, op.Err.Error())
}

// BeginBuild answers a worker, see compute.BeginBuild.
func (s *Service) BeginBuild(ctx context.Context, req *compute.AttemptRequest) (*rpc.None, error) {
	if err := s.cfg.Store.HoldsHost(ctx, req.Host, req.Instance); err != nil {
		return nil, err
	}
	return &rpc.None{}, s.cfg.Store.Current(ctx, *req)
}

// EndBuild notes how an attempt ended, see compute.EndBuild. After a failure the
// next host is tried at once.
func (s *Service) EndBuild(ctx context.Context, req *compute.EndBuildRequest) (*rpc.None, error) {
	var failed error
	if req.Error != "" {
		s.cfg.Logger.WarnContext(ctx, "build failed", "server", req.ServerID, "host", req.Host, "error", req.Error)
		failed = fault.New(fault.Unavailable, "host %s: %s", req.Host, req.Error)
	}
	err := s.complete(ctx, &req.AttemptRequest, stepBuild, failed, func(ctx context.Context) error {
		if failed == nil {
			return s.cfg.Store.Activate(ctx, req.AttemptRequest)
		}
		_, err := s.cfg.Store.Reschedule(ctx, req.AttemptRequest, failed.Error())
		return err
	})
	return &rpc.None{}, err
}

// EndAct notes how an action ended, see compute.EndAct.
func (s *Service) EndAct(ctx context.Context, req *compute.EndBuildRequest) (*rpc.None, error) {
	var failed error
	if req.Error != "" {
		s.cfg.Logger.WarnContext(ctx, "action failed", "server", req.ServerID, "host", req.Host, "task", req.Task, "error", req.Error)
		failed = errors.New(req.Error)
	}
	err := s.complete(ctx, &req.AttemptRequest, stepAct, failed, func(ctx context.Context) error {
		if failed == nil {
			return s.cfg.Store.EndAct(ctx, req.AttemptRequest, "")
		}
		return s.cfg.Store.Holds(ctx, req.AttemptRequest) // see actor.fail
	})
	return &rpc.None{}, err
}

// complete ends a step as the worker reports, together with what changes for the server.
// ErrStale: it is not the attempt that the server is to have. The report of one that has
// ended is none again: the reply was lost.
func (s *Service) complete(ctx context.Context, a *compute.AttemptRequest, step string, failed error, change func(context.Context) error) error {
	err := s.cfg.Store.Tx(ctx, func(ctx context.Context) error {
		if err := s.cfg.Store.HoldsHost(ctx, a.Host, a.Instance); err != nil {
			return err
		}
		if err := s.Runner.Complete(ctx, a.ServerID, step, failed); err != nil {
			return err
		}
		return change(ctx)
	})
	if errors.Is(err, fault.NotFound) || errors.Is(err, fault.Precondition) {
		return s.cfg.Store.Ended(ctx, *a)
	}
	if err == nil {
		s.cfg.Logger.InfoContext(ctx, "host reported", "server", a.ServerID, "host", a.Host, "step", step, "done", failed == nil)
		s.wake(ctx, a.ServerID)
	}
	return err
}

// wake makes an operation go on at once if it has more to do.
func (s *Service) wake(ctx context.Context, id string) {
	if err := s.Runner.WakeResource(ctx, id); err != nil {
		s.cfg.Logger.DebugContext(ctx, "operation not notified, polling finds it", "server", id, "error", err)
	}
}

// EndDestroy ends a deletion, see compute.EndDestroy.
func (s *Service) EndDestroy(ctx context.Context, req *compute.AttemptRequest) (*rpc.None, error) {
	err := s.cfg.Store.Tx(ctx, func(ctx context.Context) error {
		if err := s.cfg.Store.HoldsHost(ctx, req.Host, req.Instance); err != nil {
			return err
		}
		if err := s.Runner.Complete(ctx, req.ServerID, stepDestroy, nil); err != nil {
			return err
		}
		return s.cfg.Store.RemoveFrom(ctx, *req)
	})
	if errors.Is(err, fault.NotFound) || errors.Is(err, fault.Precondition) {
		// The reply to the first report was lost, or the deletion is not wanted any more.
		return &rpc.None{}, nil
	}
	if err == nil {
		s.wake(ctx, req.ServerID)
	}
	return &rpc.None{}, err
}

// ClaimHost makes a process the worker of its host, see compute.ClaimHost.
func (s *Service) ClaimHost(ctx context.Context, req *compute.ClaimHostRequest) (*rpc.None, error) {
	err := s.cfg.Store.ClaimHost(ctx, req.Host, req.Instance, s.cfg.DownAfter)
	if err == nil {
		s.cfg.Logger.InfoContext(ctx, "host claimed", "host", req.Host, "process", req.Instance.Process)
	}
	return &rpc.None{}, err
}

// LeaveHost frees a host, see compute.LeaveHost.
func (s *Service) LeaveHost(ctx context.Context, req *compute.LeaveHostRequest) (*rpc.None, error) {
	return &rpc.None{}, s.cfg.Store.LeaveHost(ctx, req.Host, req.Instance)
}

// ReportHost notes what a worker has, see compute.ReportHost.
func (s *Service) ReportHost(ctx context.Context, req *compute.HostReport) (*rpc.None, error) {
	return &rpc.None{}, s.cfg.Store.ReportHost(ctx, req, s.cfg.Ratios)
}

// Strangers compares a worker's servers with the database, see
// compute.Strangers.
func (s *Service) Strangers(ctx context.Context, req *compute.StrangersRequest) (*compute.StrangersReply, error) {
	if err := s.cfg.Store.HoldsHost(ctx, req.Host, req.Instance); err != nil {
		return nil, err
	}
	ids, err := s.cfg.Store.Strangers(ctx, req.Host, req.Servers)
	return &compute.StrangersReply{Servers: ids}, err
}
