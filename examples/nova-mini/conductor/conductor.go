// Package conductor is nova-mini's conductor service. It runs the operations on servers. Each operation ends, even if
// processes die meanwhile. The whole state is in the database; a message only starts work earlier than the next poll. Any
// number of conductors may run.
//
//	server.create   schedule: the scheduler chooses a host; build: the compute service builds the server. After a
//	                failed build the operation goes back to schedule. In the end the server is active, or in error
//	                and on no host
//	server.delete   destroy: the compute service destroys the server. In the end the server does not exist, or is in error
//	image.discard   discard: the image service, or the compute service of the host whose driver stores it, removes an image that no server needs
//	server.ACTION   act: the compute service does the action, one of compute.Actions. In the end the server is in the state
//	                that the action leads to, or in its old state with a fault. An action with ActionInfo.Schedules begins
//	                with the step schedule. An action with ActionInfo.Rotates also has the steps choose and rotate, in which
//	                the compute service removes older backups
//
//	server.attach_interface
//	                reserve: the server is about to have another interface; port: the network service makes and binds the port;
//	                attach: the compute service gives the interface to the guest
//	server.detach_interface
//	                detach: the compute service takes the interface from the guest; port: the network service releases the port
//
// The conductor casts the request for a step to a compute service, and repeats the cast until a report comes. The report ends the
// step in the transaction that changes the server.
package conductor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/outage"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/operation"
)

// Config configures a Service. All durations have defaults.
type Config struct {
	Store  *store.Store
	Client *rpc.Client
	// Network is the network service. Nil: a server with ports waits for a conductor that has a network service.
	Network Networks
	// Images removes images of the image service that no server needs. Nil: such images wait for a conductor that has an image service.
	Images Images
	// Runner runs the operations. Default: a runner with Host, Resend, Poll, Inflight and Logger. Host is the name of the process in the events of
	// operations.
	Runner *operation.Runner
	Host   string
	// Ratios are the allocation ratios of the hosts' resources.
	Ratios store.Ratios
	// MaxAttempts is the number of build attempts of a server, each on another host. Default 3.
	MaxAttempts int
	// BuildTimeout limits the time of one step: the search for a host, or a build or an action on one host. A deletion and a
	// soft deletion have no limit. Default 10 minutes.
	BuildTimeout time.Duration
	// DownAfter is the time without heartbeats after which a compute service no longer owns its host, so that another
	// process can claim the host. Default 60 s.
	DownAfter time.Duration
	// ShelvedOffload is the time for which a shelved server stays on its host. 0: the server leaves the host at once; negative: the server
	// stays until a client offloads it.
	ShelvedOffload time.Duration
	// Resend is the first delay after which the request to a compute service is repeated if no report has come. Each further
	// delay is twice as long, up to 5 minutes, or up to a tenth of BuildTimeout for a step that BuildTimeout limits. The default Runner
	// also uses Resend as the length of an operation's lease. Default 15 s.
	Resend time.Duration
	// Poll is the interval at which the database is polled for operations. Default 1 s.
	Poll     time.Duration
	Inflight *service.Inflight
	Logger   *slog.Logger
}

// Service implements the RPC interface compute.Conductor. It runs operations after its Runner has been started. It is safe
// for concurrent use.
type Service struct {
	cfg Config
	// Runner runs the operations. It implements service.Part; the program starts and stops it.
	Runner *operation.Runner

	schedulers outage.Group // the calls of schedulers
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
	if cfg.Runner == nil {
		cfg.Runner = operation.NewRunner(operation.RunnerConfig{
			Store: cfg.Store.Operations(), Host: cfg.Host, Lease: cfg.Resend, Poll: cfg.Poll, Inflight: cfg.Inflight, Logger: cfg.Logger,
		})
	}
	s := &Service{cfg: cfg, Runner: cfg.Runner}
	operation.Handle(s.Runner, store.Create,
		operation.Step[store.CreateData]{Name: store.StepSchedule, Do: s.chooseHost, DoTx: s.placeServer, Timeout: cfg.Resend, Limit: cfg.BuildTimeout},
		operation.Step[store.CreateData]{Name: store.StepBuild, Do: s.castBuild, Reported: s.buildReported, Timeout: cfg.Resend, Limit: cfg.BuildTimeout})
	operation.OnEnd(s.Runner, store.Create, s.endCreate)
	operation.Handle(s.Runner, store.Delete, operation.Step[struct{}]{Name: "destroy", Do: s.castDestroy, Timeout: cfg.Resend})
	operation.OnEnd(s.Runner, store.Delete, s.endDelete)
	operation.Handle(s.Runner, store.DiscardImage, operation.Step[store.DiscardData]{Name: "discard", Do: s.discardImage, Retry: discardRetry})
	s.handleInterfaces()
	for a, k := range store.Kinds {
		act := actor{s, a}
		var steps []operation.Step[store.ActData]
		if a.Info().Schedules {
			steps = append(steps, operation.Step[store.ActData]{Name: store.StepSchedule, Do: act.chooseHost, DoTx: act.placeServer, Timeout: cfg.Resend, Limit: cfg.BuildTimeout})
		}
		step := operation.Step[store.ActData]{Name: "act", Do: act.castAct, Timeout: cfg.Resend, Limit: cfg.BuildTimeout}
		if a.Info().Preempts {
			step.Limit = 0
		}
		if a.Info().Rotates {
			step.Reported = act.backedUp
		}
		steps = append(steps, step)
		if a.Info().Rotates {
			// The images are chosen in a separate step, because the report of the step rotate may come before the data of that step are written.
			steps = append(steps, operation.Step[store.ActData]{Name: "choose", Do: act.chooseExcess, Timeout: cfg.Resend, Limit: cfg.BuildTimeout},
				operation.Step[store.ActData]{Name: "rotate", Do: act.castRotation, Timeout: cfg.Resend, Limit: cfg.BuildTimeout})
		}
		operation.Handle(s.Runner, k, steps...)
		operation.OnEnd(s.Runner, k, act.endAction)
	}
	return s
}

// Register adds the service's handlers to a server.
func (s *Service) Register(srv *rpc.Server) {
	rpc.Handle(srv, compute.Notify, s.Notify)
	rpc.Handle(srv, compute.BeginStep, s.BeginStep)
	rpc.Handle(srv, compute.EndStep, s.EndStep)
	rpc.Handle(srv, compute.BeginBuild, s.beginAttempt)
	rpc.Handle(srv, compute.EndBuild, s.endAttempt)
	rpc.Handle(srv, compute.EndAct, s.endAttempt)
	rpc.Handle(srv, compute.EndDestroy, s.endDestroyAttempt)
	rpc.Handle(srv, compute.ReportHost, s.ReportHost)
	rpc.Handle(srv, compute.VersionCaps, s.cfg.Store.VersionCaps().Answer)
	rpc.Handle(srv, compute.Orphans, s.Orphans)
	rpc.Handle(srv, compute.ReportPower, s.ReportPower)
	rpc.Handle(srv, compute.ClaimHost, s.ClaimHost)
	rpc.Handle(srv, compute.LeaveHost, s.LeaveHost)
}

// Notify notifies the runner, so that the server's operation continues at once instead of at the next poll.
func (s *Service) Notify(_ context.Context, req *compute.NotifyRequest) (*rpc.None, error) {
	s.Runner.NotifyResource(req.ServerID)
	return &rpc.None{}, nil
}

// chooseHost asks the scheduler for a host. The scheduler claims the server's resources on the host.
func (s *Service) chooseHost(ctx context.Context, op *operation.Op, data *store.CreateData) error {
	if len(data.Tried) >= s.cfg.MaxAttempts {
		return fault.New(fault.Exhausted, "Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures for instance %s: tried %v, last: %s",
			op.Resource, data.Tried, data.LastError)
	}
	if data.Need == (compute.Resources{}) { // an earlier release has begun the operation
		srv, err := s.cfg.Store.Server(ctx, op.Resource)
		if err != nil {
			return err
		}
		data.Need = srv.Need()
	}
	got, err := s.selectHost(ctx, &compute.SelectRequest{ServerID: op.Resource, Need: data.Need, Exclude: data.Tried, Host: data.OnlyHost, Zone: data.Zone, Group: data.GroupID, Guest: data.Guest, Specs: data.Specs, Driver: data.Driver}, lastBuild(data))
	if err != nil {
		return err
	}
	if slices.Contains(data.Tried, got.Host) { // an earlier Select had timed out at its caller, and claimed the host later
		if err := s.cfg.Store.ReleaseClaim(ctx, op.Resource); err != nil {
			return err
		}
		return operation.Transient(fault.New(fault.Conflict, "host %s was claimed although a build has failed there", got.Host))
	}
	data.Host = got.Host
	return nil
}

// lastBuild says why the last build of a server has failed. It returns "" before the first one.
func lastBuild(data *store.CreateData) string {
	if data.LastError == "" {
		return ""
	}
	return "the last build failed: " + data.LastError
}

// selectHost asks the scheduler for a host. The parameter why explains to an administrator why no host may be left, or is "". Errors: those of compute.Select;
// ErrNoValidHost becomes a permanent error, which ends the operation, with the text why.
func (s *Service) selectHost(ctx context.Context, req *compute.SelectRequest, why string) (*compute.SelectReply, error) {
	// An older scheduler would ignore these parts of the request.
	if part := hostRestriction(req); part != "" && !s.cfg.Client.Allows(compute.Scheduler, compute.ChosenHostSince) {
		return nil, operation.Transient(fault.New(fault.Unavailable, "%s cannot be chosen before all schedulers have version %v", part, compute.ChosenHostSince))
	}
	got, err := rpc.Call(ctx, s.cfg.Client, compute.Select, rpc.Any, req)
	s.noteScheduler(ctx, req.ServerID, err)
	if !errors.Is(err, scheduler.ErrNoValidHost) {
		return got, err
	}
	text := err.Error()
	if f, ok := errors.AsType[*fault.Error](err); ok {
		text = f.Msg // without the name of the RPC method
	}
	if why != "" {
		text += "; " + why
	}
	return nil, operation.Permanent(fault.New(fault.CodeOf(err), "%s", text))
}

// noteScheduler logs the beginning and the end of a time in which no scheduler answers. An error such as ErrNoValidHost is an answer.
func (s *Service) noteScheduler(ctx context.Context, server string, err error) {
	if code := fault.CodeOf(err); code != fault.Unavailable && code != fault.Timeout && code != fault.Unknown {
		if code == fault.Canceled {
			return // this conductor ends
		}
		err = nil
	}
	s.schedulers.Note(ctx, s.cfg.Logger, slog.LevelWarn, "call of a scheduler", nil, err, "server", server)
}

// hostRestriction names the part of a request that restricts the choice of a host, and that schedulers know since [compute.ChosenHostSince]. It returns "" if no such part restricts the choice.
func hostRestriction(req *compute.SelectRequest) string {
	needs := compute.NeedsOf(req.Specs, req.Need)
	switch {
	case req.Host != "":
		return "host " + req.Host
	case req.Group != nil:
		return "a host of server group " + *req.Group
	case req.Zone != "":
		return "a host of the availability zone " + req.Zone
	case !req.Guest.IsZero():
		return "a host for the properties of the image"
	case !needs.IsZero():
		return "a host for the extra specs of the flavor"
	}
	return ""
}

func (s *Service) placeServer(ctx context.Context, tx *sqlx.Tx, op *operation.Op, data *store.CreateData) error {
	return s.cfg.Store.Place(ctx, tx, op.Resource, data.Host)
}

// castBuild casts the build request to the compute service of the server's host. The runner repeats castBuild until a report
// comes, because the compute service may be busy or down, or the message may be lost.
func (s *Service) castBuild(ctx context.Context, op *operation.Op, _ *store.CreateData) error {
	srv, err := s.cfg.Store.ServerToBuild(ctx, op.Resource)
	if err != nil {
		return err
	}
	if srv.Host == nil {
		return fault.New(fault.Internal, "build server %s: the server has no host", srv.ID)
	}
	if err := s.allocate(ctx, srv); errors.Is(err, network.ErrBindingFailed) {
		return s.failOnHost(ctx, op, *srv.Host, err)
	} else if err != nil {
		return err
	}
	spec := srv.Spec()
	if (spec.NeedsGuestData() || len(spec.Interfaces) > 0 || spec.HasExtraDisks()) && !s.cfg.Client.Allows(compute.Worker, compute.GuestDataSince) { // an older compute service would build the server without the data
		return operation.Transient(fault.New(fault.Unavailable, "the data for the guest cannot be sent before all compute services have version %v", compute.GuestDataSince))
	}
	return s.waitForReport(op, *srv.Host, rpc.Cast(ctx, s.cfg.Client, compute.Build, *srv.Host, &compute.BuildRequest{
		Spec: spec, Token: op.Token, Generation: generationOf(op.Token),
	}))
}

// failOnHost ends the build step like a report of a failed build, so that another host is chosen. The host has no remains of a build: ports are bound before the request is cast.
func (s *Service) failOnHost(ctx context.Context, op *operation.Op, host string, failed error) error {
	s.cfg.Logger.WarnContext(ctx, "ports not bound on host, another host will be chosen", "server", op.Resource, "host", host, "error", failed)
	if err := s.Runner.EndStep(ctx, op.Token, host, failed); err != nil {
		return operation.Transient(err)
	}
	return operation.WaitFor(host, s.cfg.Resend) // no effect: the report has ended the step
}

// maxResend is the maximum delay after which the request to a compute service is repeated. After a compute service has
// started, its requests are repeated at once, see ClaimHost. For a step with a time limit, the delay is at most a tenth of the
// limit, because an outage of all conductors moves the deadline of the step only if the outage is longer than the delay.
const maxResend = 5 * time.Minute

// waitForReport returns the result of a step that has cast a request to a compute service. The parameter err is the error of the
// cast. If err is nil, the step waits for a report of the host.
func (s *Service) waitForReport(op *operation.Op, host string, err error) error {
	if err != nil {
		return err
	}
	longest, unlimited := maxResend, []string{store.Delete.Name, store.Kinds[compute.SoftDelete].Name, store.DiscardImage.Name}
	switch {
	case op.Kind == store.AttachInterface.Name || op.Kind == store.DetachInterface.Name:
		longest = max(s.cfg.Resend, interfaceLimit/10)
	case !slices.Contains(unlimited, op.Kind):
		longest = min(longest, max(s.cfg.Resend, s.cfg.BuildTimeout/10))
	}
	return operation.WaitFor(host, min(s.cfg.Resend<<min(op.Waits, 10), longest))
}

// buildReported handles the report of a build. After a failed build the operation goes back to the step schedule. The compute
// service has removed the remains of the build before it reported.
func (s *Service) buildReported(ctx context.Context, tx *sqlx.Tx, op *operation.Op, data *store.CreateData, failed error) error {
	if failed == nil {
		return nil
	}
	data.LastError = fmt.Sprintf("host %s: %v", data.Host, failed)
	data.Tried, data.Host = append(data.Tried, data.Host), ""
	if err := s.cfg.Store.Unplace(ctx, tx, op.Resource, data.LastError); err != nil {
		return err
	}
	return operation.GoTo(store.StepSchedule, s.cfg.MaxAttempts, failed) // GoTo counts the attempts
}

// endCreate makes a server active, or sets it to ERROR if the creation has failed. The messages of faults are Nova's.
func (s *Service) endCreate(ctx context.Context, tx *sqlx.Tx, op *operation.Op, data *store.CreateData) error {
	if op.Err == nil {
		return s.cfg.Store.Activate(ctx, tx, op.Resource)
	}
	message, details := createFault(op, data)
	return s.cfg.Store.FailCreate(ctx, tx, op.Resource, message, details)
}

// createFault returns the message and the details of the fault of a server whose creation has failed.
func createFault(op *operation.Op, data *store.CreateData) (message, details string) {
	message, details = fmt.Sprintf("Build of instance %s aborted.", op.Resource), op.Err.Error()
	if data.Host == "" { // no host was chosen
		switch exhausted := fault.CodeOf(op.Err) == fault.Exhausted; {
		case exhausted && len(data.Tried) == 0:
			message = "No valid host was found. There are not enough hosts available."
		case exhausted:
			message = fmt.Sprintf("Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures for instance %s.", op.Resource)
		}
		return message, details
	}
	code := fault.CodeOf(op.Err) // here only errors of the network service have the codes below: after a failure on a host, data.Host is empty
	if code == fault.Exhausted {
		message = fmt.Sprintf("Build of instance %s aborted: Failed to allocate the network(s) with error %s, not rescheduling.", op.Resource, details)
	} else if slices.Contains([]fault.Code{fault.Denied, fault.NotFound, fault.Conflict, fault.Invalid}, code) {
		message = fmt.Sprintf("Build of instance %s aborted: Failed to allocate the network(s), not rescheduling.", op.Resource)
	}
	return message, fmt.Sprintf("host %s: %s", data.Host, details)
}

// castDestroy releases the ports of the server, and casts the request to destroy the server to the compute service of its host. If the
// server has no host, nothing is cast, and the step ends.
func (s *Service) castDestroy(ctx context.Context, op *operation.Op, _ *struct{}) error {
	srv, err := s.cfg.Store.Server(ctx, op.Resource)
	switch {
	case errors.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	}
	if err := s.release(ctx, srv); err != nil {
		return err
	}
	if srv.Host == nil {
		return nil
	}
	return s.waitForReport(op, *srv.Host, rpc.Cast(ctx, s.cfg.Client, compute.Destroy, *srv.Host, &compute.DestroyRequest{
		ServerID: srv.ID, Token: op.Token, Generation: generationOf(op.Token),
	}))
}

// endDelete removes the server from the database after its host has destroyed it, or sets it to ERROR if the deletion has
// failed.
func (s *Service) endDelete(ctx context.Context, tx *sqlx.Tx, op *operation.Op, _ *struct{}) error {
	if op.Err == nil {
		if err := s.discardShelved(ctx, tx, op.Resource); err != nil {
			return err
		}
		return s.cfg.Store.Remove(ctx, tx, op.Resource)
	}
	return s.cfg.Store.FailDelete(ctx, tx, op.Resource, op.Err.Error())
}

// BeginStep tells a compute service whether a step is still wanted, see compute.BeginStep.
func (s *Service) BeginStep(ctx context.Context, req *compute.StepRequest) (*rpc.None, error) {
	if err := s.cfg.Store.HoldsHost(ctx, req.Host, req.Instance); err != nil {
		return nil, err
	}
	return &rpc.None{}, staleOf(s.cfg.Store.Operations().Wanted(ctx, req.Token, req.Host))
}

// EndStep ends a step with the result that a compute service reports, see compute.EndStep.
func (s *Service) EndStep(ctx context.Context, req *compute.EndStepRequest) (*rpc.None, error) {
	var failed error
	if req.Error != "" {
		s.cfg.Logger.WarnContext(ctx, "step failed on its host", "token", req.Token, "host", req.Host, "error", req.Error)
		code := fault.Internal
		switch {
		case req.Refused:
			code = fault.Precondition // see Store.EndAction
		case req.Missing:
			code = fault.NotFound // see endAction
		case req.Unsupported:
			code = fault.Unimplemented
		}
		failed = operation.Permanent(fault.New(code, "%s", req.Error))
	}
	err := s.cfg.Store.Tx(ctx, func(ctx context.Context) error {
		if err := s.cfg.Store.HoldsHost(ctx, req.Host, req.Instance); err != nil {
			return err
		}
		return s.Runner.EndStep(ctx, req.Token, req.Host, failed)
	})
	if err == nil {
		s.cfg.Logger.InfoContext(ctx, "host reported", "token", req.Token, "host", req.Host, "done", failed == nil)
	}
	return &rpc.None{}, staleOf(err)
}

// staleOf translates errors of package operation to errors of the conductor's RPC interface.
func staleOf(err error) error {
	switch {
	case errors.Is(err, operation.ErrStale):
		return compute.ErrStale
	case errors.Is(err, operation.ErrUnknownKind):
		return fmt.Errorf("%w: %w", compute.ErrOtherRelease, err)
	}
	return err
}

// ClaimHost makes a process the owner of its host, see compute.ClaimHost. Steps that wait for the host continue at once.
func (s *Service) ClaimHost(ctx context.Context, req *compute.ClaimHostRequest) (*rpc.None, error) {
	if err := s.cfg.Store.ClaimHost(ctx, req, s.cfg.DownAfter); err != nil {
		return nil, err
	}
	s.cfg.Logger.InfoContext(ctx, "host claimed", "host", req.Host, "process", req.Instance.Process)
	if err := s.Runner.Signal(ctx, req.Host); err != nil { // not fatal: the steps continue after their delays
		s.cfg.Logger.WarnContext(ctx, "operations of a host not notified, they continue after their delay", "host", req.Host, "error", err)
	}
	return &rpc.None{}, nil
}

// LeaveHost frees a host, see compute.LeaveHost.
func (s *Service) LeaveHost(ctx context.Context, req *compute.LeaveHostRequest) (*rpc.None, error) {
	return &rpc.None{}, s.cfg.Store.LeaveHost(ctx, req.Host, req.Instance)
}

// ReportHost records the heartbeat and the resources of a host, see compute.ReportHost.
func (s *Service) ReportHost(ctx context.Context, req *compute.HostReport) (*rpc.None, error) {
	return &rpc.None{}, s.cfg.Store.ReportHost(ctx, req, s.cfg.Ratios)
}

// Orphans returns the orphans among a host's servers, see compute.Orphans.
func (s *Service) Orphans(ctx context.Context, req *compute.OrphansRequest) (*compute.OrphansReply, error) {
	if err := s.cfg.Store.HoldsHost(ctx, req.Host, req.Instance); err != nil {
		return nil, err
	}
	ids, err := s.cfg.Store.Orphans(ctx, req.Host, req.Servers)
	return &compute.OrphansReply{Servers: ids}, err
}
