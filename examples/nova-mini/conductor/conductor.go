// Package conductor is nova-mini's conductor: it runs the operations on servers, so that
// each ends, whichever process dies on the way. All it knows is in the database; messages are
// hints. Any number of conductors may run.
//
//	server.create   schedule: the scheduler chooses a host; build: the worker builds, and after a failure the
//	                operation goes back to schedule. The server is active, or in error and on no host
//	server.delete   destroy: the worker destroys. The server is gone
//	server.stop, server.start, server.reboot, server.hard_reboot,
//	server.resize, server.confirm_resize, server.revert_resize
//	                act: the worker does the action. The server is in the state that the action leads to, or as before
//	                with a fault
//
// A step that the worker does is begun by a cast, which is repeated while there is no report. It ends with the worker's
// report, in the transaction that changes the server.
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
	// DownAfter is how long a worker may send no heartbeat and still keep its host from another process.
	// Default 60 s.
	DownAfter time.Duration
	// Resend is the first delay after which a worker that has not reported is told again. It doubles each time, up to 5 minutes. It is
	// also the lease of an operation. Default 15 s.
	Resend time.Duration
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

// New returns a service.
func New(cfg Config) *Service {
	if cfg.MaxAttempts <= 0 {
		cfg.MaxAttempts = 3
	}
	if cfg.BuildTimeout <= 0 {
		cfg.BuildTimeout = 10 * time.Minute
	}
	if cfg.Resend <= 0 {
		cfg.Resend = 15 * time.Second
	}
	if cfg.DownAfter <= 0 {
		cfg.DownAfter = time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Service{cfg: cfg, Runner: operation.NewRunner(operation.RunnerConfig{
		Store: cfg.Store.Operations(), Host: cfg.Host, Lease: cfg.Resend, Poll: cfg.Poll, Inflight: cfg.Inflight, Logger: cfg.Logger,
	})}
	operation.Handle(s.Runner, store.Create,
		operation.Step[store.CreateData]{Name: store.StepSchedule, Do: s.chooseHost, DoTx: s.placeServer, Timeout: cfg.Resend, Limit: cfg.BuildTimeout},
		operation.Step[store.CreateData]{Name: store.StepBuild, Do: s.castBuild, Reported: s.buildReported, Timeout: cfg.Resend, Limit: cfg.BuildTimeout})
	operation.OnEnd(s.Runner, store.Create, s.endCreate)
	operation.Handle(s.Runner, store.Delete, operation.Step[struct{}]{Name: "destroy", Do: s.castDestroy, Timeout: cfg.Resend})
	operation.OnEnd(s.Runner, store.Delete, s.endDelete)
	for a, k := range store.Kinds {
		act := actor{s, a}
		operation.Handle(s.Runner, k, operation.Step[store.ActData]{Name: "act", Do: act.castAct, Timeout: cfg.Resend, Limit: cfg.BuildTimeout})
		operation.OnEnd(s.Runner, k, act.endAction)
	}
	return s
}

// Register adds the service's handlers to a server.
func (s *Service) Register(srv *rpc.Server) {
	rpc.Handle(srv, compute.Wake, s.Wake)
	rpc.Handle(srv, compute.BeginStep, s.BeginStep)
	rpc.Handle(srv, compute.EndStep, s.EndStep)
	rpc.Handle(srv, compute.BeginBuild, s.beginAttempt)
	rpc.Handle(srv, compute.EndBuild, s.endAttempt)
	rpc.Handle(srv, compute.EndAct, s.endAttempt)
	rpc.Handle(srv, compute.EndDestroy, s.endDestroyAttempt)
	rpc.Handle(srv, compute.ReportHost, s.ReportHost)
	rpc.Handle(srv, compute.Strangers, s.Strangers)
	rpc.Handle(srv, compute.ClaimHost, s.ClaimHost)
	rpc.Handle(srv, compute.LeaveHost, s.LeaveHost)
}

// Wake goes on with a server's operation now.
func (s *Service) Wake(_ context.Context, req *compute.WakeRequest) (*rpc.None, error) {
	s.Runner.NotifyResource(req.ServerID)
	return &rpc.None{}, nil
}

// chooseHost asks the scheduler for a host, which claims the server's resources there.
func (s *Service) chooseHost(ctx context.Context, op *operation.Op, data *store.CreateData) error {
	if len(data.Tried) >= s.cfg.MaxAttempts {
		return fault.New(fault.Exhausted, "Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures for instance %s: tried %v, last: %s",
			op.Resource, data.Tried, data.LastError)
	}
	if data.Need == (compute.Resources{}) { // it was begun by an earlier release
		srv, err := s.cfg.Store.Server(ctx, op.Resource)
		if err != nil {
			return err
		}
		data.Need = srv.Need()
	}
	got, err := rpc.Call(ctx, s.cfg.Client, compute.Select, rpc.Any, &compute.SelectRequest{ServerID: op.Resource, Need: data.Need, Exclude: data.Tried})
	if errors.Is(err, scheduler.ErrNoValidHost) {
		text := err.Error()
		if f, ok := errors.AsType[*fault.Error](err); ok {
			text = f.Msg // without the path it came
		}
		if data.LastError != "" {
			text += "; the last build failed: " + data.LastError
		}
		return operation.Permanent(fault.New(fault.CodeOf(err), "%s", text))
	}
	if err == nil {
		data.Host = got.Host
	}
	return err
}

func (s *Service) placeServer(ctx context.Context, tx *sqlx.Tx, op *operation.Op, data *store.CreateData) error {
	return s.cfg.Store.Place(ctx, tx, op.Resource, data.Host)
}

// castBuild tells the worker to build. It is called again while there is no report: the worker is busy or away, or the
// message was lost.
func (s *Service) castBuild(ctx context.Context, op *operation.Op, _ *store.CreateData) error {
	srv, err := s.cfg.Store.Server(ctx, op.Resource)
	if err != nil {
		return err
	}
	if srv.Host == nil {
		return fault.New(fault.Internal, "server %s has no host to be built on", srv.ID)
	}
	return s.waitForReport(op, *srv.Host, rpc.Cast(ctx, s.cfg.Client, compute.Build, *srv.Host, &compute.BuildRequest{
		Spec: srv.Spec(), Token: op.Token, Generation: generationOf(op.Token),
	}))
}

// maxResend is the longest delay after which a worker that has not reported is told again. A worker that is back is told
// at once, see ClaimHost.
const maxResend = 5 * time.Minute

// waitForReport is what a step returns that has told a worker, with the error of that.
func (s *Service) waitForReport(op *operation.Op, host string, err error) error {
	if err != nil {
		return err
	}
	return operation.WaitFor(host, min(s.cfg.Resend<<min(op.Waits, 10), maxResend))
}

// buildReported sends a server whose build has failed back to the scheduler. The worker has left nothing of it on its
// host.
func (s *Service) buildReported(ctx context.Context, tx *sqlx.Tx, op *operation.Op, data *store.CreateData, failed error) error {
	if failed == nil {
		return nil
	}
	data.LastError = fmt.Sprintf("host %s: %v", data.Host, failed)
	data.Tried, data.Host = append(data.Tried, data.Host), ""
	if err := s.cfg.Store.Unplace(ctx, tx, op.Resource, data.LastError); err != nil {
		return err
	}
	return operation.GoTo(store.StepSchedule, s.cfg.MaxAttempts, failed) // which counts them
}

// endCreate makes a server active, or gives its building up. The messages are Nova's.
func (s *Service) endCreate(ctx context.Context, tx *sqlx.Tx, op *operation.Op, data *store.CreateData) error {
	if op.Err == nil {
		return s.cfg.Store.Activate(ctx, tx, op.Resource)
	}
	message, details := fmt.Sprintf("Build of instance %s aborted.", op.Resource), op.Err.Error()
	switch exhausted := fault.CodeOf(op.Err) == fault.Exhausted; {
	case exhausted && len(data.Tried) == 0:
		message = "No valid host was found. There are not enough hosts available."
	case exhausted:
		message = fmt.Sprintf("Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures for instance %s.", op.Resource)
	case data.Host != "":
		details = fmt.Sprintf("host %s: %s", data.Host, details)
	}
	return s.cfg.Store.FailCreate(ctx, tx, op.Resource, message, details)
}

// castDestroy tells the worker to destroy the server.
func (s *Service) castDestroy(ctx context.Context, op *operation.Op, _ *struct{}) error {
	srv, err := s.cfg.Store.Server(ctx, op.Resource)
	switch {
	case errors.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	case srv.Host == nil:
		return nil
	}
	return s.waitForReport(op, *srv.Host, rpc.Cast(ctx, s.cfg.Client, compute.Destroy, *srv.Host, &compute.DestroyRequest{
		ServerID: srv.ID, Token: op.Token, Generation: generationOf(op.Token),
	}))
}

// endDelete removes a server whose host has destroyed it.
func (s *Service) endDelete(ctx context.Context, tx *sqlx.Tx, op *operation.Op, _ *struct{}) error {
	if op.Err == nil {
		return s.cfg.Store.Remove(ctx, tx, op.Resource)
	}
	return s.cfg.Store.FailDelete(ctx, tx, op.Resource, op.Err.Error())
}

// actor runs the operations of an action.
type actor struct {
	*Service

	action compute.Action
}

// castAct tells the worker to do the action.
func (s actor) castAct(ctx context.Context, op *operation.Op, data *store.ActData) error {
	srv, err := s.cfg.Store.PrepareAction(ctx, op.Resource, s.action, data)
	if err != nil {
		return err
	}
	req := &compute.ActRequest{ServerID: srv.ID, Action: s.action, Task: srv.Task(), Token: op.Token, Generation: generationOf(op.Token)}
	if srv.Resize.V != nil {
		req.Resources, req.Running = srv.Resize.V.To.Has, srv.Resize.V.Running
	}
	return s.waitForReport(op, *srv.Host, rpc.Cast(ctx, s.cfg.Client, compute.Act, *srv.Host, req))
}

func (s actor) endAction(ctx context.Context, tx *sqlx.Tx, op *operation.Op, _ *store.ActData) error {
	return s.cfg.Store.EndAction(ctx, tx, op.Resource, s.action, op.Err)
}

// BeginStep answers a worker, see compute.BeginStep.
func (s *Service) BeginStep(ctx context.Context, req *compute.StepRequest) (*rpc.None, error) {
	if err := s.cfg.Store.HoldsHost(ctx, req.Host, req.Instance); err != nil {
		return nil, err
	}
	return &rpc.None{}, staleOf(s.cfg.Store.Operations().Wanted(ctx, req.Token))
}

// EndStep ends a step as a worker reports, see compute.EndStep.
func (s *Service) EndStep(ctx context.Context, req *compute.EndStepRequest) (*rpc.None, error) {
	var failed error
	if req.Error != "" {
		s.cfg.Logger.WarnContext(ctx, "step failed on its host", "token", req.Token, "host", req.Host, "error", req.Error)
		failed = operation.Permanent(errors.New(req.Error))
	}
	err := s.cfg.Store.Tx(ctx, func(ctx context.Context) error {
		if err := s.cfg.Store.HoldsHost(ctx, req.Host, req.Instance); err != nil {
			return err
		}
		return s.Runner.End(ctx, req.Token, failed)
	})
	if err == nil {
		s.cfg.Logger.InfoContext(ctx, "host reported", "token", req.Token, "host", req.Host, "done", failed == nil)
	}
	return &rpc.None{}, staleOf(err)
}

// staleOf gives ErrStale of package operation the identity that it has in the interface of the conductor.
func staleOf(err error) error {
	if errors.Is(err, operation.ErrStale) {
		return compute.ErrStale
	}
	return err
}

// ClaimHost makes a process the worker of its host, see compute.ClaimHost. What waits for the host goes on at once.
func (s *Service) ClaimHost(ctx context.Context, req *compute.ClaimHostRequest) (*rpc.None, error) {
	if err := s.cfg.Store.ClaimHost(ctx, req.Host, req.Instance, s.cfg.DownAfter); err != nil {
		return nil, err
	}
	s.cfg.Logger.InfoContext(ctx, "host claimed", "host", req.Host, "process", req.Instance.Process)
	if err := s.Runner.Signal(ctx, req.Host); err != nil { // the delay ends the wait, too
		s.cfg.Logger.DebugContext(ctx, "operations that wait for a host not notified", "host", req.Host, "error", err)
	}
	return &rpc.None{}, nil
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
