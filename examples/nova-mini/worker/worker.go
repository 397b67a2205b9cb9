// Package worker is nova-mini's compute service. On its host it builds, changes and destroys servers through the driver,
// as the conductor requests. The compute service has no access to the database: the requests and the conductor's answers
// have all that it needs.
package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/driver"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/internal/keylock"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/rpccaps"
)

// Config configures a Service.
type Config struct {
	// Host is the name of the host. It must be the same after every restart.
	Host string
	// Driver returns the present driver. From Start on, the service calls Driver before each use of the driver, because the driver may be replaced.
	Driver func() compute.Driver
	Client *rpc.Client
	// Images downloads images to the host, and uploads snapshots to the image service. Nil: there is no image service, and the driver gets the references of images.
	Images Images
	// UploadRetry is the time for which an upload is repeated while the image service is away. 0: no upload is repeated.
	UploadRetry time.Duration
	// ConsoleHost has, by type of console, the address at which the console proxy reaches the consoles of this host. Default: the address that the driver names.
	ConsoleHost map[compute.ConsoleType]string
	// Zone is the availability zone of the host. Empty: the default one.
	Zone string
	// IP is the IPv4 address of the host, which administrators see. Empty: not known.
	IP string
	// Process returns the identity of this start of the process. Start claims the host with this identity. The service calls Process
	// from Start on.
	Process func() compute.Process
	// GuestInterval is the time between two comparisons of all guests with the database, see Guests. Default 10 minutes, as in Nova. Negative: all guests are never compared, and only the
	// events of the driver count.
	GuestInterval time.Duration
	// ShutdownTimeout is the time that a guest has to shut down before its power is cut. Default 60 s, as in Nova.
	ShutdownTimeout time.Duration
	Logger          *slog.Logger
}

// Images connects a host with the image service. image.Files implements it.
type Images interface {
	// Fetch returns the path of the file of an image.
	Fetch(ctx context.Context, id string) (path string, err error)
	// Put calls the function write, which writes the file of an image, and uploads the file. After an error Put keeps the file for the next Put of this image.
	Put(ctx context.Context, id string, write func(path string) error) error
	// Drop removes the file that a Put has kept.
	Drop(id string) error
	// Rotate removes the older backups of a server.
	Rotate(ctx context.Context, server string, r compute.Rotation) error
}

// Service implements the RPC interface compute.Worker. It is safe for concurrent use.
type Service struct {
	cfg    Config
	guests *Guests
	locks  keylock.Locks // the key is the server id; the job on the server holds the lock

	mu   sync.Mutex
	jobs map[string]*job // the key is the server id

	interfaces map[string][]string // versions that the RPC server with the handlers serves, by interface; set by Register
	instance   string              // id of this process; set by Start, before the first message
	held       context.Context     //nolint:containedctx // canceled when another process owns the host
	cancelHeld context.CancelFunc  // called by loseHost
	lost       chan error
	once       sync.Once             // runs loseHost once
	inspectErr atomic.Pointer[error] // error of the last inspectHost; nil after success
}

// New returns a service. The caller still owns the driver and closes it.
func New(cfg Config) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.ShutdownTimeout <= 0 {
		cfg.ShutdownTimeout = time.Minute
	}
	if cfg.GuestInterval == 0 {
		cfg.GuestInterval = 10 * time.Minute
	}
	cfg.Logger = cfg.Logger.With("host", cfg.Host)
	s := &Service{cfg: cfg, lost: make(chan error, 1), jobs: make(map[string]*job)}
	s.guests = newGuests(s)
	s.held, s.cancelHeld = context.WithCancel(context.Background())
	return s
}

// Register adds the service's handlers to an RPC server. Call Register before Start, because Start tells a conductor which versions srv serves.
func (s *Service) Register(srv *rpc.Server) {
	s.interfaces = rpccaps.Of(srv)
	rpc.Handle(srv, compute.Build, s.Build)
	rpc.Handle(srv, compute.Destroy, s.Destroy)
	rpc.Handle(srv, compute.Act, s.Act)
	rpc.Handle(srv, compute.RemoveImage, s.RemoveImage)
	rpc.Handle(srv, compute.ReadConsole, s.ReadConsole)
	rpc.Handle(srv, compute.Diagnose, s.Diagnose)
	rpc.Handle(srv, compute.ChangeInterface, s.ChangeInterface)
	rpc.Handle(srv, compute.OpenConsole, s.OpenConsole)
}

// Build makes one attempt to build a server, if the build is still wanted, and reports the result to the conductor. Build returns
// Unavailable, so that the message is redelivered, in three cases: a call to the conductor fails, the remains of a failed build
// cannot be removed, or the service stops.
func (s *Service) Build(ctx context.Context, req *compute.BuildRequest) (*rpc.None, error) {
	id := req.Spec.ID
	return s.runStep(ctx, step{work: "build", id: id, token: req.Token}, func(ctx context.Context) error {
		failed := retryDriver(ctx, func() error { return s.spawn(ctx, req.Spec) })
		if failed != nil {
			if ctx.Err() != nil { // the service stops, and the message is redelivered
				return askRedelivery(fmt.Errorf("spawn server %s: %w", id, failed))
			}
			s.cfg.Logger.ErrorContext(ctx, "spawn failed", "server", id, "error", failed)
			// The remains are removed before the report, because another host gets the server after the report.
			if err := s.destroy(ctx, id); err != nil {
				return askRedelivery(fmt.Errorf("clean up after server %s: %w", id, err))
			}
		}
		stale, err := s.endStep(ctx, "build", id, req.Token, failed)
		if stale { // the build is no longer wanted: the server stays only if the database still places it on this host
			err = s.evictOrphan(ctx, id)
		} else if err == nil && failed == nil {
			s.guests.acted(id, compute.Running)
		}
		return err
	})
}

// spawn makes the driver build a server with its network interfaces. Errors: those of the driver
// and of Config.Images; Unimplemented if the server needs a capability that the driver does not have.
func (s *Service) spawn(ctx context.Context, spec compute.Spec) error {
	d := s.cfg.Driver()
	if err := checkNeeds(ctx, d, spec); err != nil {
		return err
	}
	var err error
	if spec.ImageRef, err = s.imageToBuild(ctx, d, spec); err != nil {
		return err
	}
	return spawnWithInterfaces(ctx, d, spec)
}

// spawnWithInterfaces builds a server and attaches its network interfaces.
func spawnWithInterfaces(ctx context.Context, d compute.Driver, spec compute.Spec) error {
	err := d.Spawn(ctx, spec)
	for i := 0; i < len(spec.Interfaces) && err == nil; i++ {
		err = d.AttachInterface(ctx, spec.ID, spec.Interfaces[i])
	}
	return err
}

// checkNeeds returns Unimplemented if a server has a part that the driver would ignore.
func checkNeeds(ctx context.Context, d compute.Driver, spec compute.Spec) error {
	needs := spec.Needs()
	if len(needs) == 0 {
		return nil
	}
	info, err := d.Info(ctx)
	if err != nil {
		return err
	}
	for _, n := range needs {
		if !info.Has(n.Capability) {
			return fault.New(fault.Unimplemented, "server %s has %s, and the driver %s does not have the capability %s", spec.ID, n.Part, info.Name, n.Capability)
		}
	}
	return nil
}

// beginStep asks the conductor whether a step is still wanted. While the message waited in the queue, the server may have
// been deleted, built, or placed on another host.
func (s *Service) beginStep(ctx context.Context, work, id, token string) (wanted bool, err error) {
	if token == "" { // the conductors of this release repeat the request with a token
		s.cfg.Logger.InfoContext(ctx, "request of an earlier release dropped", "work", work, "server", id)
		return false, nil
	}
	_, err = askConductor(ctx, s, compute.BeginStep, &compute.StepRequest{Token: token, Host: s.cfg.Host, Instance: s.instance})
	switch {
	case errors.Is(err, compute.ErrStale):
		s.cfg.Logger.InfoContext(ctx, "request dropped, no longer wanted", "work", work, "server", id)
		return false, nil
	case err != nil:
		return false, askRedelivery(fmt.Errorf("ask whether %s of server %s is still wanted: %w", work, id, err))
	}
	return true, nil
}

// maxReports limits how often endStep repeats a report, without a pause, to find a conductor that knows the operation. During an upgrade
// few of many conductors may be of the release that has begun the operation, and a redelivery of the message would come late.
const maxReports = 10

// endStep reports the result of a step to the conductor. The parameter failed is the error of the step, or nil. The result stale
// reports whether the step was no longer wanted.
func (s *Service) endStep(ctx context.Context, work, id, token string, failed error) (stale bool, err error) {
	end := compute.EndStepRequest{StepRequest: compute.StepRequest{Token: token, Host: s.cfg.Host, Instance: s.instance}}
	if failed != nil {
		end.Error = failed.Error()
		_, end.Refused = errors.AsType[refusal](failed)
		_, end.Missing = errors.AsType[missing](failed)
		_, end.Unsupported = errors.AsType[unsupported](failed)
	}
	for range maxReports {
		if _, err = askConductor(ctx, s, compute.EndStep, &end); !errors.Is(err, compute.ErrOtherRelease) {
			break
		}
	}
	switch {
	case errors.Is(err, compute.ErrStale):
		s.cfg.Logger.InfoContext(ctx, "step done, but no longer wanted", "work", work, "server", id)
		return true, nil
	case err != nil:
		return false, askRedelivery(fmt.Errorf("report %s of server %s: %w", work, id, err))
	case failed == nil:
		s.cfg.Logger.InfoContext(ctx, "step done", "work", work, "server", id)
	}
	return false, nil
}

// Destroy destroys a server and reports this to the conductor. Before that, Destroy asks the conductor whether the server is to be deleted on this host,
// because the message may be old, or come from a service that must not delete servers. Destroy stops other work on the server. Destroy returns
// Unavailable, so that the message is redelivered, if the server cannot be destroyed or a call to the conductor fails.
func (s *Service) Destroy(ctx context.Context, req *compute.DestroyRequest) (*rpc.None, error) {
	id := req.ServerID
	return s.runStep(ctx, step{work: "destroy", id: id, token: req.Token, preempts: true}, func(ctx context.Context) error {
		if err := s.destroy(ctx, id); err != nil {
			return askRedelivery(fmt.Errorf("destroy server %s: %w", id, err))
		}
		s.guests.removed(id)
		_, err := s.endStep(ctx, "destroy", id, req.Token, nil)
		return err
	})
}

// Act does an action on a server, if the action is still wanted, and reports the result to the conductor. Act returns Unavailable, so
// that the message is redelivered, in three cases: a call to the conductor fails, the action is done in part or its result is not
// known, or the service stops.
func (s *Service) Act(ctx context.Context, req *compute.ActRequest) (*rpc.None, error) {
	id, work := req.ServerID, string(req.Action)
	r := step{work: work, id: id, token: req.Token, preempts: req.Action.Info().Preempts, drop: func() error { return s.dropSnapshot(req) }}
	return s.runStep(ctx, r, func(ctx context.Context) error {
		failed := s.runAction(ctx, req)
		if failed != nil {
			if ctx.Err() != nil || errors.Is(failed, errPartial) {
				return askRedelivery(fmt.Errorf("%s server %s: %w", work, id, failed))
			}
			s.cfg.Logger.ErrorContext(ctx, "action failed", "server", id, "action", work, "error", failed)
		}
		stale, err := s.endStep(ctx, work, id, req.Token, failed)
		if stale {
			err = s.undoLate(ctx, req)
		} else if is, ok := req.PowerAfter(); ok && err == nil && failed == nil {
			s.guests.acted(id, is)
		}
		return err
	})
}

// maxConsole is the maximum size of a returned console log, in bytes: Nova's MAX_CONSOLE_BYTES.
const maxConsole = 100 << 10

// ReadConsole returns the end of a server's console log, see compute.ReadConsole.
func (s *Service) ReadConsole(ctx context.Context, req *compute.ConsoleRequest) (*compute.ConsoleReply, error) {
	var end tailBuffer
	if err := s.cfg.Driver().ConsoleLog(ctx, req.ServerID, req.Lines, &end); err != nil {
		return nil, err
	}
	return &compute.ConsoleReply{Output: strings.ToValidUTF8(string(end[max(0, len(end)-maxConsole):]), "\uFFFD")}, nil
}

// Diagnose returns the state of a server, see compute.Diagnose.
func (s *Service) Diagnose(ctx context.Context, req *compute.DiagnoseRequest) (*compute.DiagnoseReply, error) {
	d := s.cfg.Driver()
	info, err := d.Info(ctx)
	if err != nil {
		return nil, err
	}
	out := &compute.DiagnoseReply{Driver: info.Name}
	if out.Instance, err = d.Get(ctx, req.ServerID); err != nil {
		return nil, err
	}
	if out.Diagnostics, err = d.Diagnostics(ctx, req.ServerID); err != nil {
		return nil, err
	}
	m, err := d.Metrics(ctx, req.ServerID)
	switch {
	case err == nil:
		out.Metrics = &m
	case !errors.Is(err, fault.Unimplemented) && !errors.Is(err, fault.Precondition):
		return nil, err
	}
	return out, nil
}

// OpenConsole returns the address of a console, see compute.OpenConsole.
func (s *Service) OpenConsole(ctx context.Context, req *compute.OpenConsoleRequest) (*compute.OpenConsoleReply, error) {
	d := s.cfg.Driver()
	info, err := d.Info(ctx)
	if err != nil {
		return nil, err
	}
	if need := driver.Capability(req.Type + "-console"); !info.Has(need) {
		return nil, fault.New(fault.Unimplemented, "the driver %s does not have the capability %s", info.Name, need)
	}
	at, err := d.Console(ctx, req.ServerID, req.Type)
	switch {
	case err != nil:
		return nil, err
	case at.Port <= 0:
		return nil, fault.New(fault.Unimplemented, "the %s console of server %s has no TCP port", req.Type, req.ServerID)
	}
	return &compute.OpenConsoleReply{Host: cmp.Or(s.cfg.ConsoleHost[req.Type], at.Host), Port: at.Port}, nil
}

// interfaceWait is how long a change of a server's interfaces waits for other work on the server. The caller usually has a shorter deadline.
const interfaceWait = time.Minute

// ChangeInterface attaches a network interface to a server, or detaches the interface, for services of earlier versions, see compute.ChangeInterface.
func (s *Service) ChangeInterface(ctx context.Context, req *compute.InterfaceRequest) (*rpc.None, error) {
	ctx, end := s.beginJob(ctx, req.ServerID, "", interfaceWait)
	if end == nil {
		return nil, fault.New(fault.Unavailable, "wait for other work on server %s: it still runs", req.ServerID)
	}
	defer end()
	if req.Detach {
		return &rpc.None{}, s.cfg.Driver().DetachInterface(ctx, req.ServerID, req.Interface.ID)
	}
	return &rpc.None{}, s.cfg.Driver().AttachInterface(ctx, req.ServerID, req.Interface)
}

// tailBuffer is a writer that keeps at least the last maxConsole bytes.
type tailBuffer []byte

func (t *tailBuffer) Write(b []byte) (int, error) {
	if *t = append(*t, b...); len(*t) > 4*maxConsole {
		*t = append((*t)[:0], (*t)[len(*t)-maxConsole:]...)
	}
	return len(b), nil
}

// askTimeout is the time that a conductor has to answer. It is much shorter than the time for a drain: when all services of a
// cloud stop at once, a compute service must return its message to the queue instead of waiting for a stopped conductor.
const askTimeout = 8 * time.Second

// askConductor calls a conductor. If the conductor answers that another process owns the host, all work stops, see loseHost. The answer to a
// claim is an exception: Start returns it.
func askConductor[Req, Resp any](ctx context.Context, s *Service, m rpc.Method[Req, Resp], req *Req) (*Resp, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := rpc.Call(ctx, s.cfg.Client, m, rpc.Any, req)
	if errors.Is(err, membership.ErrHeld) && m.Name != compute.ClaimHost.Name {
		s.loseHost(err)
	}
	return resp, err
}

// askRedelivery wraps an error of the conductor or the driver in an error with the code Unavailable, so that the message is
// redelivered.
func askRedelivery(err error) error { return fault.New(fault.Unavailable, "%w", err) }

// retryDriver repeats a call to the driver while the driver's program is down or its connection is lost (Unavailable or
// Unknown). Calls are idempotent, and a program that has crashed is restarted soon. The back-off begins with 50 ms and
// doubles up to 3.2 s. retryDriver gives up after driverRetries repetitions, which take about 6 s.
func retryDriver(ctx context.Context, call func() error) error {
	for failed := 1; ; failed++ {
		err := call()
		if c := fault.CodeOf(err); err == nil || c != fault.Unavailable && c != fault.Unknown || failed > driverRetries {
			return err
		}
		if !backoff.Sleep(ctx, backoff.Exponential(failed, minDriverDelay, maxDriverDelay)) {
			return err
		}
	}
}

// The back-off of retryDriver.
const (
	driverRetries  = 7
	minDriverDelay = 50 * time.Millisecond
	maxDriverDelay = 3200 * time.Millisecond
)

// Report sends the host's heartbeat and resources to a conductor. If the driver does not answer, no report is sent and
// the service is not ready, see [Service.Check]. Report is called periodically.
func (s *Service) Report(ctx context.Context) error {
	r, err := s.inspectHost(ctx)
	if err != nil {
		return err
	}
	_, err = askConductor(ctx, s, compute.ReportHost, r)
	return err
}

// inspectTimeout is how long the driver may take to report the resources of the host, or its servers.
const inspectTimeout = 10 * time.Second

// inspectHost asks the driver for the resources of the host. Errors: Unavailable if the driver does not report them.
func (s *Service) inspectHost(ctx context.Context) (*compute.HostReport, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	d := s.cfg.Driver()
	info, err := d.Info(ctx)
	var have compute.Resources
	if err == nil {
		have, err = d.Resources(ctx)
	}
	var platforms []compute.Platform
	if err == nil && info.Has(compute.CapPlatforms) {
		platforms, err = d.Platforms(ctx)
	}
	if err != nil {
		err = fault.New(fault.Unavailable, "read the resources of host %s from the driver: %w", s.cfg.Host, err)
	}
	if err != nil {
		s.inspectErr.Store(&err)
		return nil, err
	}
	s.inspectErr.Store(nil)
	out := &compute.HostReport{Host: s.cfg.Host, Driver: info.Name, DriverVersion: info.Version, Resources: have, Capabilities: append([]driver.Capability{}, info.Capabilities...), Platforms: platforms, Zone: s.cfg.Zone, IP: s.cfg.IP, Instance: s.instance, Interfaces: s.interfaces}
	if s.instance != "" {
		p := s.cfg.Process()
		out.Claim = &p
	}
	return out, nil
}

// Audit destroys orphans: servers that the driver has and the database does not place on this host, such as those that
// were deleted or moved while the host was away. It does nothing while the service is not ready. Audit is called
// periodically.
func (s *Service) Audit(ctx context.Context) error {
	if ready := s.Check(ctx) == nil; !ready {
		return nil
	}
	list, cancel := context.WithTimeout(ctx, inspectTimeout)
	found, err := s.cfg.Driver().List(list)
	cancel()
	if err != nil {
		return err
	}
	ids := make([]string, len(found))
	for i, f := range found {
		ids[i] = f.ID
	}
	orphans, err := s.orphans(ctx, ids)
	for _, id := range orphans {
		err = errors.Join(err, s.evict(ctx, id))
	}
	return err
}

// orphans asks a conductor which of the given servers the database does not place on this host, and returns their ids.
func (s *Service) orphans(ctx context.Context, ids []string) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	got, err := askConductor(ctx, s, compute.Orphans, &compute.OrphansRequest{Host: s.cfg.Host, Servers: ids, Instance: s.instance})
	if err != nil {
		return nil, err
	}
	return got.Servers, nil
}

// evictOrphan destroys a server if the database does not place the server on this host. The caller must be the job on the server.
func (s *Service) evictOrphan(ctx context.Context, id string) error {
	orphans, err := s.orphans(ctx, []string{id})
	if err != nil || len(orphans) == 0 {
		return err
	}
	s.cfg.Logger.WarnContext(ctx, "destroying orphan, the database does not place it on this host", "server", id)
	return s.destroy(ctx, id)
}
