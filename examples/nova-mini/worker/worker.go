// Package worker is nova-mini's compute service: it does on its host, through
// the driver, what the conductor asks for. It has no database: all it knows it
// is told, or asks the conductor.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/keylock"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/membership"
)

// Config configures a Service.
type Config struct {
	// Host is the name of the host, the same after every restart.
	Host string
	// Driver returns the driver once it is started, and always the same one: it is asked for each time.
	Driver func() compute.Driver
	Client *rpc.Client
	// Process returns this start of the process, once Start is called: only one process does the host's
	// work. Nil: the conductor is not asked whose the host is, as in tests.
	Process func() compute.Process
	// ShutdownTimeout is how long a guest has to shut down before its power is cut.
	// Default 60 s, as in Nova.
	ShutdownTimeout time.Duration
	Logger          *slog.Logger
}

// Service answers the worker's RPC interface. It is safe for concurrent use.
type Service struct {
	cfg   Config
	locks keylock.Locks // of the servers that are worked on

	instance string             // of this process; set by Start, before the first message
	held     context.Context    //nolint:containedctx // the time in which the host is this process's
	lose     context.CancelFunc // ends it
	lost     chan error
	once     sync.Once             // of loseHost
	blind    atomic.Pointer[error] // why the driver did not say what the host has, the last time
}

// New returns a service. The driver stays the caller's.
func New(cfg Config) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.ShutdownTimeout <= 0 {
		cfg.ShutdownTimeout = time.Minute
	}
	cfg.Logger = cfg.Logger.With("host", cfg.Host)
	s := &Service{cfg: cfg, lost: make(chan error, 1)}
	s.held, s.lose = context.WithCancel(context.Background())
	return s
}

// Register adds the service's handlers to a server.
func (s *Service) Register(srv *rpc.Server) {
	rpc.Handle(srv, compute.Build, s.Build)
	rpc.Handle(srv, compute.Destroy, s.Destroy)
	rpc.Handle(srv, compute.Act, s.Act)
	rpc.Handle(srv, compute.ReadConsole, s.ReadConsole)
}

// Build makes one attempt to build a server, and reports how it ended. It
// returns an error only when it could not report, and is then called again.
func (s *Service) Build(ctx context.Context, req *compute.BuildRequest) (*rpc.None, error) {
	id := req.Spec.ID
	if !s.locks.TryLock(id) {
		return s.drop(ctx, "build", id)
	}
	defer s.locks.Unlock(id)
	wanted, err := s.beginStep(ctx, "build", id, req.Token)
	if err != nil || !wanted {
		return &rpc.None{}, err
	}
	failed := retry(ctx, func() error { return s.cfg.Driver().Spawn(ctx, req.Spec) })
	if failed != nil {
		if ctx.Err() != nil { // the service stops; the message comes again
			return nil, again(fmt.Errorf("spawn server %s: %w", id, failed))
		}
		s.cfg.Logger.ErrorContext(ctx, "spawn failed", "server", id, "error", failed)
		// Nothing may be left here before another host has it.
		if err := retry(ctx, func() error { return s.cfg.Driver().Destroy(ctx, id) }); err != nil {
			return nil, again(fmt.Errorf("clean up after server %s: %w", id, err))
		}
	}
	stale, err := s.endStep(ctx, "build", id, req.Token, failed)
	if stale { // it was given up meanwhile: here it stays only if the database still places it here
		err = s.evictLocked(ctx, id)
	}
	return &rpc.None{}, err
}

// drop drops a request while other work on the server goes on: it is being built, or destroyed. While the step is
// wanted the conductor asks again; a slot is too dear to wait in.
func (s *Service) drop(ctx context.Context, work, id string) (*rpc.None, error) {
	s.cfg.Logger.DebugContext(ctx, "request dropped, other work on the server goes on", "work", work, "server", id)
	return &rpc.None{}, nil
}

// beginStep asks the conductor whether a step is still wanted. The message may be old: the server may have been deleted, or built, or
// moved to the next host while it waited.
func (s *Service) beginStep(ctx context.Context, work, id, token string) (wanted bool, err error) {
	if token == "" { // the conductor sends it once more, with a token, when it is of this release
		s.cfg.Logger.InfoContext(ctx, "request of an earlier release dropped", "work", work, "server", id)
		return false, nil
	}
	_, err = ask(ctx, s, compute.BeginStep, &compute.StepRequest{Token: token, Host: s.cfg.Host, Instance: s.instance})
	switch {
	case errors.Is(err, compute.ErrStale):
		s.cfg.Logger.InfoContext(ctx, "request dropped, no longer wanted", "work", work, "server", id)
		return false, nil
	case err != nil:
		return false, again(fmt.Errorf("ask whether %s of server %s is still wanted: %w", work, id, err))
	}
	return true, nil
}

// endStep reports how a step has ended. stale says that it was not wanted any more.
func (s *Service) endStep(ctx context.Context, work, id, token string, failed error) (stale bool, err error) {
	end := compute.EndStepRequest{StepRequest: compute.StepRequest{Token: token, Host: s.cfg.Host, Instance: s.instance}}
	if failed != nil {
		end.Error = failed.Error()
	}
	_, err = ask(ctx, s, compute.EndStep, &end)
	switch {
	case errors.Is(err, compute.ErrStale):
		s.cfg.Logger.InfoContext(ctx, "step done that is no longer wanted", "work", work, "server", id)
		return true, nil
	case err != nil:
		return false, again(fmt.Errorf("report %s of server %s: %w", work, id, err))
	case failed == nil:
		s.cfg.Logger.InfoContext(ctx, "step done", "work", work, "server", id)
	}
	return false, nil
}

// Destroy removes a server, if the conductor says that it is to be deleted here, and reports it.
// Errors as Build.
func (s *Service) Destroy(ctx context.Context, req *compute.DestroyRequest) (*rpc.None, error) {
	id := req.ServerID
	if err := s.lock(ctx, id); err != nil {
		return nil, err
	}
	defer s.locks.Unlock(id)
	// A message is only a hint, which another service, or an old one, may have sent.
	wanted, err := s.beginStep(ctx, "destroy", id, req.Token)
	if err != nil || !wanted {
		return &rpc.None{}, err
	}
	if err := retry(ctx, func() error { return s.cfg.Driver().Destroy(ctx, id) }); err != nil {
		return nil, again(fmt.Errorf("destroy server %s: %w", id, err))
	}
	_, err = s.endStep(ctx, "destroy", id, req.Token, nil)
	return &rpc.None{}, err
}

// Act does an action to a server, and reports how it ended. Errors as Build.
func (s *Service) Act(ctx context.Context, req *compute.ActRequest) (*rpc.None, error) {
	id, work := req.ServerID, string(req.Action)
	if !s.locks.TryLock(id) {
		return s.drop(ctx, work, id)
	}
	defer s.locks.Unlock(id)
	wanted, err := s.beginStep(ctx, work, id, req.Token)
	if err != nil || !wanted {
		return &rpc.None{}, err
	}
	failed := s.drive(ctx, req)
	if failed != nil {
		if ctx.Err() != nil || errors.Is(failed, errHalf) {
			return nil, again(fmt.Errorf("%s server %s: %w", work, id, failed))
		}
		s.cfg.Logger.ErrorContext(ctx, "action failed", "server", id, "action", work, "error", failed)
	}
	_, err = s.endStep(ctx, work, id, req.Token, failed)
	return &rpc.None{}, err
}

// drive does an action. An error with errHalf: it is done in part.
func (s *Service) drive(ctx context.Context, req *compute.ActRequest) error {
	d, id := s.cfg.Driver(), req.ServerID
	switch req.Action {
	case compute.Stop:
		return retry(ctx, func() error { return d.PowerOff(ctx, id, s.cfg.ShutdownTimeout) })
	case compute.Start:
		return retry(ctx, func() error { return d.PowerOn(ctx, id) })
	case compute.SoftReboot:
		return retry(ctx, func() error {
			err := d.Reboot(ctx, id, false)
			if errors.Is(err, fault.Precondition) { // it was cut off in the middle of a reboot, or the guest died meanwhile
				err = d.Reboot(ctx, id, true)
			}
			return err
		})
	case compute.HardReboot:
		return retry(ctx, func() error { return d.Reboot(ctx, id, true) })
	case compute.Resize:
		return s.resize(ctx, req)
	case compute.ConfirmResize:
		return retry(ctx, func() error { return d.ConfirmResize(ctx, id) })
	case compute.RevertResize:
		return s.revert(ctx, req)
	default:
		return fault.New(fault.Unimplemented, "this worker does not know the action %q", req.Action)
	}
}

// errHalf says that a server was left neither as it was nor as it was to be.
var errHalf = errors.New("done in part")

// resize gives the server its new size, or leaves it with the old one.
func (s *Service) resize(ctx context.Context, req *compute.ActRequest) error {
	d, id := s.cfg.Driver(), req.ServerID
	var info driver.Info
	var is compute.Instance
	err := retry(ctx, func() (err error) {
		if info, err = d.Info(ctx); err == nil {
			is, err = d.Get(ctx, id)
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case !slices.Contains(info.Capabilities, compute.CapResize): // before it is stopped in vain
		return fault.New(fault.Unimplemented, "driver %s cannot resize servers", info.Name)
	case is.Resources == req.Resources && (is.Power == compute.Running || !req.Running):
		return nil // it was done, and the report lost
	}
	if is.Resources != req.Resources {
		err = retry(ctx, func() error { return d.PowerOff(ctx, id, s.cfg.ShutdownTimeout) })
		if err == nil {
			err = retry(ctx, func() error { return d.Resize(ctx, id, req.Resources) })
		}
	}
	if err == nil && req.Running {
		err = retry(ctx, func() error { return d.PowerOn(ctx, id) })
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	if undo := s.revert(ctx, req); undo != nil {
		return fmt.Errorf("%w, and cannot be undone: %w, %w", err, undo, errHalf)
	}
	return err
}

// revert gives the server its old size back. It fails with errHalf.
func (s *Service) revert(ctx context.Context, req *compute.ActRequest) error {
	d, id := s.cfg.Driver(), req.ServerID
	err := retry(ctx, func() error {
		err := d.RevertResize(ctx, id)
		if errors.Is(err, fault.Precondition) { // it runs; if there is nothing to revert it is not stopped
			if err = d.PowerOff(ctx, id, s.cfg.ShutdownTimeout); err == nil {
				err = d.RevertResize(ctx, id)
			}
		}
		return err
	})
	if err == nil && req.Running {
		err = retry(ctx, func() error { return d.PowerOn(ctx, id) })
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", errHalf, err)
	}
	return err
}

// maxConsole is how much of a console log is returned, in bytes: Nova's
// MAX_CONSOLE_BYTES.
const maxConsole = 100 << 10

// ReadConsole returns a server's console log, see compute.ReadConsole.
func (s *Service) ReadConsole(ctx context.Context, req *compute.ConsoleRequest) (*compute.ConsoleReply, error) {
	var end ending
	if err := s.cfg.Driver().ConsoleLog(ctx, req.ServerID, req.Lines, &end); err != nil {
		return nil, err
	}
	return &compute.ConsoleReply{Output: strings.ToValidUTF8(string(end[max(0, len(end)-maxConsole):]), "\uFFFD")}, nil
}

// ending keeps the end of what is written to it.
type ending []byte

func (e *ending) Write(b []byte) (int, error) {
	if *e = append(*e, b...); len(*e) > 4*maxConsole {
		*e = append((*e)[:0], (*e)[len(*e)-maxConsole:]...)
	}
	return len(b), nil
}

// askTime is how long a conductor may take to answer. It is much shorter than a
// drain: when all services of a cloud stop at once, a worker must not wait for a
// conductor that is gone, but give its message back.
const askTime = 8 * time.Second

// ask calls a conductor.
func ask[Req, Resp any](ctx context.Context, s *Service, m rpc.Method[Req, Resp], req *Req) (*Resp, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	resp, err := rpc.Call(ctx, s.cfg.Client, m, rpc.Any, req)
	if errors.Is(err, membership.ErrHeld) && m.Name != compute.ClaimHost.Name {
		s.loseHost(err)
	}
	return resp, err
}

// again classes an error such that the message is delivered again, whatever the
// peer's or the driver's code was.
func again(err error) error { return fault.New(fault.Unavailable, "%w", err) }

// retry makes a call to the driver again when its program was down or was lost in
// the middle: calls are idempotent, and a program that crashed is back soon. It
// gives up after about 10 s.
func retry(ctx context.Context, call func() error) error {
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		err := call()
		if c := fault.CodeOf(err); err == nil || c != fault.Unavailable && c != fault.Unknown || wait > 5*time.Second {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}

// Report is a heartbeat of the host, with what it has. If the driver does not answer, no report is sent and
// the service is not ready, see [Service.Check]. It is for a loop.
func (s *Service) Report(ctx context.Context) error {
	r, err := s.look(ctx)
	if err != nil {
		return err
	}
	_, err = ask(ctx, s, compute.ReportHost, r)
	return err
}

// lookTime is how long the driver may take to say what the host has.
const lookTime = 10 * time.Second

// look asks the driver what the host has. Unavailable: it does not say so.
func (s *Service) look(ctx context.Context) (*compute.HostReport, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	d := s.cfg.Driver()
	info, err := d.Info(ctx)
	var have compute.Resources
	if err == nil {
		have, err = d.Resources(ctx)
	}
	if err != nil {
		err = fault.New(fault.Unavailable, "the driver does not say what host %s has: %w", s.cfg.Host, err)
	}
	s.blind.Store(&err)
	if err != nil {
		return nil, err
	}
	out := &compute.HostReport{Host: s.cfg.Host, Driver: info.Name, DriverVersion: info.Version, Resources: have, Instance: s.instance}
	if s.cfg.Process != nil && s.instance != "" {
		p := s.cfg.Process()
		out.Claim = &p
	}
	return out, nil
}

// Audit destroys what the driver has and the database does not place here: what
// is left of servers that were deleted or moved while the host was away. It does nothing while the
// service is not ready. It is for a loop.
func (s *Service) Audit(ctx context.Context) error {
	if ready := s.Check(ctx) == nil; !ready {
		return nil
	}
	found, err := s.cfg.Driver().List(ctx)
	if err != nil {
		return err
	}
	ids := make([]string, len(found))
	for i, f := range found {
		ids[i] = f.ID
	}
	strangers, err := s.strangers(ctx, ids)
	for _, id := range strangers {
		err = errors.Join(err, s.evict(ctx, id))
	}
	return err
}

func (s *Service) strangers(ctx context.Context, ids []string) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	got, err := ask(ctx, s, compute.Strangers, &compute.StrangersRequest{Host: s.cfg.Host, Servers: ids, Instance: s.instance})
	if err != nil {
		return nil, err
	}
	return got.Servers, nil
}

// evict destroys an orphan if it still is one when no other work on it goes on.
func (s *Service) evict(ctx context.Context, id string) error {
	if err := s.lock(ctx, id); err != nil {
		return err
	}
	defer s.locks.Unlock(id)
	return s.evictLocked(ctx, id)
}

// evictLocked destroys a server if the database does not place it here. The caller has its lock.
func (s *Service) evictLocked(ctx context.Context, id string) error {
	orphans, err := s.strangers(ctx, []string{id})
	if err != nil || len(orphans) == 0 {
		return err
	}
	s.cfg.Logger.WarnContext(ctx, "destroying a server that does not belong here", "server", id)
	return s.cfg.Driver().Destroy(ctx, id)
}

// lock waits for other work on a server. Unavailable: it did not end before ctx.
func (s *Service) lock(ctx context.Context, id string) error {
	if err := s.locks.Lock(ctx, id); err != nil {
		return fault.New(fault.Unavailable, "wait for other work on server %s: %w", id, err)
	}
	return nil
}
