// Package worker is nova-mini's compute service. On its host it builds, changes and destroys servers through the driver,
// as the conductor requests. The compute service has no access to the database: all that it needs is in the requests, or
// in the conductor's answers.
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
	"github.com/armature-go/armature/internal/keylock"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/rpccaps"
)

// Config configures a Service.
type Config struct {
	// Host is the name of the host. It stays the same after every restart.
	Host string
	// Driver returns the driver. It is called for each use, from Start on, because the driver may be replaced.
	Driver func() compute.Driver
	Client *rpc.Client
	// Images brings images to the host, and snapshots to the image service. Nil: the driver knows images by their references.
	Images Images
	// UploadRetry is how long an upload is repeated while the image service is away. 0: not at all.
	UploadRetry time.Duration
	// ConsoleHost is the address of the host for the console proxy, by the type of the console. Default: the address that the driver names.
	ConsoleHost map[compute.ConsoleType]string
	// Process returns the identity of this start of the process, with which the service claims the host. It is called
	// from Start on. Nil, for tests: the host is not claimed.
	Process func() compute.Process
	// ShutdownTimeout is how long a guest may take to shut down before its power is cut. Default 60 s, as in Nova.
	ShutdownTimeout time.Duration
	Logger          *slog.Logger
}

// Images are the images of an image service that a host uses. The methods are those of image.Files.
type Images interface {
	// Fetch returns the path of the file of an image.
	Fetch(ctx context.Context, id string) (path string, err error)
	// Put fills an image with the file that write writes. After an error it keeps the file for another call.
	Put(ctx context.Context, id string, write func(path string) error) error
	// Drop removes the file that write has written.
	Drop(id string) error
	// Rotate removes the older backups of a server.
	Rotate(ctx context.Context, server string, r compute.Rotation) error
}

// Service answers the worker's RPC interface. It is safe for concurrent use.
type Service struct {
	cfg   Config
	locks keylock.Locks // by server id, held during work on the server

	interfaces map[string][]string // what the RPC server with the handlers serves; set by Register
	instance   string              // id of this process; set by Start, before the first message
	held       context.Context     //nolint:containedctx // canceled when another process owns the host
	cancelHeld context.CancelFunc  // called by loseHost
	lost       chan error
	once       sync.Once             // of loseHost
	inspectErr atomic.Pointer[error] // result of the last inspectHost; nil: it succeeded
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
	s.held, s.cancelHeld = context.WithCancel(context.Background())
	return s
}

// Register adds the service's handlers to a server. The conductors store the versions that the server serves, so call it before Start.
func (s *Service) Register(srv *rpc.Server) {
	s.interfaces = rpccaps.Of(srv)
	rpc.Handle(srv, compute.Build, s.Build)
	rpc.Handle(srv, compute.Destroy, s.Destroy)
	rpc.Handle(srv, compute.Act, s.Act)
	rpc.Handle(srv, compute.ReadConsole, s.ReadConsole)
	rpc.Handle(srv, compute.Diagnose, s.Diagnose)
	rpc.Handle(srv, compute.ChangeInterface, s.ChangeInterface)
	rpc.Handle(srv, compute.OpenConsole, s.OpenConsole)
}

// Build makes one attempt to build a server and reports the result to the conductor. Build returns Unavailable, so that the
// message is redelivered, in three cases: the result could not be reported, the remains of a failed build could not be
// removed, or the service stops.
func (s *Service) Build(ctx context.Context, req *compute.BuildRequest) (*rpc.None, error) {
	id := req.Spec.ID
	if !s.lockSoon(ctx, id) {
		return s.dropRequest(ctx, "build", id)
	}
	defer s.locks.Unlock(id)
	wanted, err := s.beginStep(ctx, "build", id, req.Token)
	if err != nil || !wanted {
		return &rpc.None{}, err
	}
	failed := retryDriver(ctx, func() error { return s.spawn(ctx, req.Spec) })
	if failed != nil {
		if ctx.Err() != nil { // the service stops, and the message is redelivered
			return nil, askRedelivery(fmt.Errorf("spawn server %s: %w", id, failed))
		}
		s.cfg.Logger.ErrorContext(ctx, "spawn failed", "server", id, "error", failed)
		// The remains are removed before the report, because another host gets the server after the report.
		if err := retryDriver(ctx, func() error { return s.cfg.Driver().Destroy(ctx, id) }); err != nil {
			return nil, askRedelivery(fmt.Errorf("clean up after server %s: %w", id, err))
		}
	}
	stale, err := s.endStep(ctx, "build", id, req.Token, failed)
	if stale { // the build is no longer wanted: the server stays only if the database still places it on this host
		err = s.evictLocked(ctx, id)
	}
	return &rpc.None{}, err
}

// spawn makes the driver build a server. Errors: Unimplemented, if the server needs data for the guest, and the driver would ignore them.
func (s *Service) spawn(ctx context.Context, spec compute.Spec) error {
	d := s.cfg.Driver()
	if err := checkGuestData(ctx, d, spec); err != nil {
		return err
	}
	var err error
	if spec.ImageRef, err = s.imageToBuild(ctx, d, spec); err != nil {
		return err
	}
	return spawnWithInterfaces(ctx, d, spec)
}

// spawnWithInterfaces builds a server and gives it its network interfaces.
func spawnWithInterfaces(ctx context.Context, d compute.Driver, spec compute.Spec) error {
	err := d.Spawn(ctx, spec)
	for i := 0; i < len(spec.Interfaces) && err == nil; i++ {
		err = d.AttachInterface(ctx, spec.ID, spec.Interfaces[i])
	}
	return err
}

// checkGuestData returns Unimplemented if a server needs data for the guest or network interfaces, and the driver would ignore them.
func checkGuestData(ctx context.Context, d compute.Driver, spec compute.Spec) error {
	if !spec.NeedsGuestData() && len(spec.Interfaces) == 0 {
		return nil
	}
	info, err := d.Info(ctx)
	switch {
	case err != nil:
		return err
	case spec.NeedsGuestData() && !info.Has(compute.CapGuestData):
		return fault.New(fault.Unimplemented, "server %s has user data, a key pair or a config drive, and the driver %s does not have the capability %s", spec.ID, info.Name, compute.CapGuestData)
	case len(spec.Interfaces) > 0 && !info.Has(compute.CapAttachInterface):
		return fault.New(fault.Unimplemented, "server %s has network interfaces, and the driver %s does not have the capability %s", spec.ID, info.Name, compute.CapAttachInterface)
	}
	return nil
}

// dropRequest drops a request because other work on the server is running. The request does not wait longer, because it
// occupies a slot. As long as the step is wanted, the conductor repeats the request.
func (s *Service) dropRequest(ctx context.Context, work, id string) (*rpc.None, error) {
	s.cfg.Logger.DebugContext(ctx, "request dropped, other work on the server is running", "work", work, "server", id)
	return &rpc.None{}, nil
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

// maxReports is how often a report is sent at once while conductors do not know the operation. During an upgrade, the conductors of the release that
// has begun it may be few among many, and the next delivery of the message comes late.
const maxReports = 10

// endStep reports the result of a step to the conductor. failed is the error of the step. stale reports that the step was no
// longer wanted.
func (s *Service) endStep(ctx context.Context, work, id, token string, failed error) (stale bool, err error) {
	end := compute.EndStepRequest{StepRequest: compute.StepRequest{Token: token, Host: s.cfg.Host, Instance: s.instance}}
	if failed != nil {
		end.Error = failed.Error()
		_, end.Refused = errors.AsType[refusal](failed)
		_, end.Missing = errors.AsType[missing](failed)
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

// Destroy asks the conductor whether the server is to be deleted on this host. If so, it destroys the server and reports that
// the server is destroyed. It waits for other work on the server. It returns Unavailable, so that the message is redelivered,
// if the server could not be destroyed or the result could not be reported.
func (s *Service) Destroy(ctx context.Context, req *compute.DestroyRequest) (*rpc.None, error) {
	id := req.ServerID
	if err := s.lock(ctx, id); err != nil {
		return nil, err
	}
	defer s.locks.Unlock(id)
	// The message alone is not trusted: it may be old, or from a service that must not delete servers.
	wanted, err := s.beginStep(ctx, "destroy", id, req.Token)
	if err != nil || !wanted {
		return &rpc.None{}, err
	}
	if err := retryDriver(ctx, func() error { return s.cfg.Driver().Destroy(ctx, id) }); err != nil {
		return nil, askRedelivery(fmt.Errorf("destroy server %s: %w", id, err))
	}
	_, err = s.endStep(ctx, "destroy", id, req.Token, nil)
	return &rpc.None{}, err
}

// Act does an action on a server and reports the result. Act returns Unavailable, so that the message is redelivered, in three
// cases: the result could not be reported, the action is done in part, or the service stops.
func (s *Service) Act(ctx context.Context, req *compute.ActRequest) (*rpc.None, error) {
	id, work := req.ServerID, string(req.Action)
	if !s.lockSoon(ctx, id) {
		return s.dropRequest(ctx, work, id)
	}
	defer s.locks.Unlock(id)
	wanted, err := s.beginStep(ctx, work, id, req.Token)
	if err != nil || !wanted {
		if err == nil {
			err = s.dropSnapshot(req)
		}
		return &rpc.None{}, err
	}
	failed := s.runAction(ctx, req)
	if failed != nil {
		if ctx.Err() != nil || errors.Is(failed, errPartial) {
			return nil, askRedelivery(fmt.Errorf("%s server %s: %w", work, id, failed))
		}
		s.cfg.Logger.ErrorContext(ctx, "action failed", "server", id, "action", work, "error", failed)
	}
	stale, err := s.endStep(ctx, work, id, req.Token, failed)
	if stale && req.Placed { // as after a build that is no longer wanted
		err = s.evictLocked(ctx, id)
	}
	return &rpc.None{}, err
}

// maxConsole is the highest number of bytes of a console log that are returned: Nova's MAX_CONSOLE_BYTES.
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

// ChangeInterface gives a server a network interface, or takes it away, see compute.ChangeInterface.
func (s *Service) ChangeInterface(ctx context.Context, req *compute.InterfaceRequest) (*rpc.None, error) {
	if err := s.lock(ctx, req.ServerID); err != nil {
		return nil, err
	}
	defer s.locks.Unlock(req.ServerID)
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

// askTimeout is how long a conductor may take to answer. It is much shorter than a drain: when all services of a cloud
// stop at once, a compute service must return its message to the queue instead of waiting for a stopped conductor.
const askTimeout = 8 * time.Second

// askConductor calls a conductor. If the conductor answers that another process owns the host, all work stops, see loseHost.
func askConductor[Req, Resp any](ctx context.Context, s *Service, m rpc.Method[Req, Resp], req *Req) (*Resp, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := rpc.Call(ctx, s.cfg.Client, m, rpc.Any, req)
	if errors.Is(err, membership.ErrHeld) && m.Name != compute.ClaimHost.Name {
		s.loseHost(err)
	}
	return resp, err
}

// askRedelivery gives an error of the conductor or the driver the code Unavailable, whatever its own code, so that the message is
// redelivered.
func askRedelivery(err error) error { return fault.New(fault.Unavailable, "%w", err) }

// retryDriver repeats a call to the driver while the driver's program is down or its connection is lost (Unavailable or
// Unknown). Calls are idempotent, and a program that has crashed is restarted soon. The back-off begins with 50 ms and
// doubles up to 3.2 s. retryDriver gives up after about 6 s.
func retryDriver(ctx context.Context, call func() error) error {
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

// inspectTimeout is how long the driver may take to report the resources of the host.
const inspectTimeout = 10 * time.Second

// inspectHost asks the driver for the resources of the host. Errors: Unavailable, if the driver does not report them.
func (s *Service) inspectHost(ctx context.Context) (*compute.HostReport, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	d := s.cfg.Driver()
	info, err := d.Info(ctx)
	var have compute.Resources
	if err == nil {
		have, err = d.Resources(ctx)
	}
	if err != nil {
		err = fault.New(fault.Unavailable, "read the resources of host %s from the driver: %w", s.cfg.Host, err)
	}
	if err != nil {
		s.inspectErr.Store(&err)
		return nil, err
	}
	s.inspectErr.Store(nil)
	out := &compute.HostReport{Host: s.cfg.Host, Driver: info.Name, DriverVersion: info.Version, Resources: have, Capabilities: append([]driver.Capability{}, info.Capabilities...), Instance: s.instance, Interfaces: s.interfaces}
	if s.cfg.Process != nil && s.instance != "" {
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
	found, err := s.cfg.Driver().List(ctx)
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

// orphans asks a conductor for the ids whose servers the database does not place on this host.
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

// evict waits for other work on a server, and then destroys the server if it is still an orphan.
func (s *Service) evict(ctx context.Context, id string) error {
	if err := s.lock(ctx, id); err != nil {
		return err
	}
	defer s.locks.Unlock(id)
	return s.evictLocked(ctx, id)
}

// evictLocked destroys a server if the database does not place it on this host. The caller holds the server's lock.
func (s *Service) evictLocked(ctx context.Context, id string) error {
	orphans, err := s.orphans(ctx, []string{id})
	if err != nil || len(orphans) == 0 {
		return err
	}
	s.cfg.Logger.WarnContext(ctx, "destroying orphan, the database does not place it on this host", "server", id)
	return s.cfg.Driver().Destroy(ctx, id)
}

// soon is how long a build or an action waits for other work on its server: for the reply to the report of the work before.
const soon = time.Second

// lockSoon waits for a short time until other work on a server has ended, and locks the server. It returns false if the work has not ended.
func (s *Service) lockSoon(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	return s.locks.Lock(ctx, id) == nil
}

// lock waits until other work on a server has ended, and locks the server. Errors: Unavailable, if ctx ends first.
func (s *Service) lock(ctx context.Context, id string) error {
	if err := s.locks.Lock(ctx, id); err != nil {
		return fault.New(fault.Unavailable, "wait for other work on server %s: %w", id, err)
	}
	return nil
}
