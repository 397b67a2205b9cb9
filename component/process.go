package component

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/component/internal/inject"
	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/tempdir"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/urlbus"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/rpccaps"
	"github.com/armature-go/armature/service/operation"
)

// packageMigrations are the migrations of the packages that a process uses.
var packageMigrations = []db.Migrations{membership.Migrations, operation.Migrations}

// Process is one process of a component, while its services are wired. Call its methods only in [Service].Wire and from one goroutine,
// unless the comment of a method allows more. The process adds its parts to App in the right order: the database, drivers, the bus, the
// client, the announcement of versions, RPC servers, members, runners, other parts, and last the API.
type Process[O any] struct {
	// Options are the options at the start of the process. The caller must not change them. Their Host is set even
	// if the option host is not, and their StatePath is the field StatePath.
	Options *O
	// Name is the name of the service, or [AllInOne].
	Name string
	// Host is the name of this host: the option host, or else the machine's name. In a result of On it is the argument of On.
	Host string
	// StatePath is the directory for data of this host. If the option state_path is not set, StatePath is a
	// temporary directory in a process with all services, and empty in a process of one service.
	StatePath string
	// Log is the log of the process, and Out its standard output.
	Log *slog.Logger
	Out io.Writer
	// App is for reports and for the list of running work. Add parts with [Process.Add], which keeps the order.
	App *service.App
	// Metrics is for registering further metrics. The page /metrics of the admin listener shows
	// them.
	Metrics prometheus.Registerer
	// Bus is the bus, not started. Its Check fails while the broker cannot be reached, and does not block.
	Bus urlbus.Bus
	// Client is the RPC client. In a component with a database it sends only message versions that
	// all running servers support.
	Client *rpc.Client
	// DB is the database, Members the registry of members and Operations the store of operations in it. All three are nil in a
	// process without a database.
	DB         *sqlx.DB
	Members    *membership.Registry
	Operations *operation.Store

	c    *Component[O]
	base *Options
	read *loadedOptions[O]
	tell *telemetry
	home string // the name of this host, even in the result of On
	*wiring
}

// wiring is what a process collects while its services are wired. The results of On share it.
type wiring struct {
	runner  *operation.Runner
	mux     *api.Mux
	http    *service.HTTPPart
	parts   [phases][]part
	probes  []probe
	reports map[string]bool // the hosts whose resources are reported
	errs    []error         // wrong options; a process with an error does not start
	close   []func() error  // called at the end, the last one first

	draining atomic.Bool // while it is true, heartbeats are expected to fail
}

// part is a service.Part with its name and its label, see [service.App.AddLabeled].
type part struct {
	name, label string
	service.Part
}

// The phases of the start, in their order.
const (
	phaseAddress = iota // the checks that the addresses are free
	phaseDatabase
	phaseFirst
	phaseDriver
	phaseBus
	phaseAnnounce
	phaseServe
	phaseMember
	phaseRunner
	phaseOther
	phaseAPI
	phases
)

// probe checks the server that an option names, such as the database server, for "config validate --online".
type probe struct {
	option string                          // NAME or SECTION.NAME
	ask    func(ctx context.Context) error // an error may name another option
}

// Current returns the options as of the last reload. It is safe for concurrent use.
func (p *Process[O]) Current() *O { return p.read.config.Current() }

// On returns the process with another value of Host. It is for a process that serves several hosts, such as a process that simulates hosts.
// RPC servers, members, drivers and leaders that are added through the result belong to that host. All results are one process: they
// share the App, the runner and the API.
func (p *Process[O]) On(host string) *Process[O] {
	q := *p
	q.Host = host
	return &q
}

// Add adds a part, which is started after the RPC servers and the runner, and before the API. If the start of the part fails, the
// error names the given options, which an operator should check. An option has the form NAME or SECTION.NAME. Add panics as
// service.App.Add does.
func (p *Process[O]) Add(name string, part service.Part, options ...string) {
	p.addPart(phaseOther, name, p.read.label(options...), part)
}

// AddFirst is [Process.Add] for a part that is started after the database and before all others, such as a lock that a driver needs.
func (p *Process[O]) AddFirst(name string, part service.Part, options ...string) {
	p.addPart(phaseFirst, name, p.read.label(options...), part)
}

// named returns the name of a part. After On, the name of the host is added.
func (p *Process[O]) named(name string) string {
	if p.Host == p.home {
		return name
	}
	return name + " " + p.Host
}

func (p *Process[O]) addPart(phase int, name, label string, s service.Part) {
	if l, ok := s.(interface {
		TryListen(ctx context.Context) error
	}); ok { // otherwise an address in use is an error only after the other parts have started
		p.parts[phaseAddress] = append(p.parts[phaseAddress], part{name + " address", label, service.Funcs{OnStart: l.TryListen}})
	}
	p.parts[phase] = append(p.parts[phase], part{name, label, s})
}

// Addr returns the address on which the API listens, or "" in a process without an API. Call it after the start. From then on it is safe for
// concurrent use.
func (p *Process[O]) Addr() string {
	if p.http == nil {
		return ""
	}
	return p.http.Addr()
}

// openProcess returns the process of services, without their parts. The caller closes it. openProcess collects the errors of options. Instead
// of a bus or a database that cannot be opened, it opens one that needs no options, so that the caller finds all errors. If dry is set, the
// process will not be started: openProcess writes no file and exports no traces.
func (r *runtime[O]) openProcess(ctx context.Context, read *loadedOptions[O], name string, services []Service[O], log *slog.Logger, dry bool) *Process[O] {
	p := &Process[O]{
		Options: read.opts, Name: name, Log: log, Out: r.out, Host: read.base.Host,
		c: r.c, base: read.base, read: read, home: read.base.Host, wiring: new(wiring),
	}
	p.App = service.New(service.Config{
		Name: name, DrainDelay: p.base.DrainDelay, DrainTimeout: p.base.ShutdownTimeout, ReportTo: r.err, Logger: log,
	})
	var err error
	p.tell, err = newTelemetry(ctx, p.App, r.c.Name, name, p.base, log, dry)
	p.collect(optionError("opentelemetry.otlp_endpoint", err))
	p.Metrics = p.tell.registry
	p.collect(optionError("admin_listen admin_hosts", p.checkAdmin()))
	if err = checkStatePath(p.base.StatePath); err == nil && name == AllInOne && !dry {
		err = p.makeStatePath(ctx)
	}
	p.collect(optionError("state_path", err))
	p.StatePath = p.base.StatePath
	if err := p.openBus(p.base.TransportURL, inject.From(ctx).Bus); err != nil {
		p.collect(optionError("transport_url", err))
		b, _ := openBus(&p.base.Options, memoryURL, p.Log) // cannot fail: this bus needs no options
		p.addBus(b)
	}
	if needsDatabase(r.c, name, services) {
		if err := p.openDatabase(p.base.Database.Connection); err != nil {
			p.collect(optionError("database.connection", err))
			_ = p.openDatabase("sqlite:///:memory:") // cannot fail: this database needs no options
		}
	}
	p.openClient(services)
	return p
}

// collect adds the errors that err joins to p.errs, each with the place of its option, see
// placeAll.
func (p *Process[O]) collect(err error) { p.errs = append(p.errs, p.read.placeAll(err)...) }

// checkAdmin checks admin_listen. The directory of a socket is made at the start.
func (p *Process[O]) checkAdmin() error {
	if p.base.Admin == "" {
		return nil
	}
	addr := p.base.adminAddr(p.Name)
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return checkSocket(path)
	}
	if api, _ := p.c.address(p.Options); addr == api {
		return fmt.Errorf("%s is also the address of the API: give one of them another port", addr)
	}
	return nil
}

// maxSocketPath is the highest number of bytes in the path of a Unix socket on Linux.
const maxSocketPath = 107

// checkSocket checks the path of a Unix socket.
func checkSocket(path string) error {
	if len(path) > maxSocketPath {
		return fmt.Errorf("the path of the socket has %d bytes, more than %d: choose a shorter one", len(path), maxSocketPath)
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist) && dir != "/": // made at the start
		case err != nil:
			return err
		case !info.IsDir():
			return fmt.Errorf("%s is not a directory", dir)
		default:
			return nil
		}
	}
}

// checkStatePath refuses a path that is not a directory. The directory is made at the start.
func checkStatePath(path string) error {
	info, err := os.Stat(path)
	switch {
	case path == "" || errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory", path)
	}
	return nil
}

// makeStatePath makes the directory of the state. Without the option the directory is temporary.
func (p *Process[O]) makeStatePath(ctx context.Context) error {
	if p.base.StatePath == "" {
		prefix := p.c.Name + "-"
		if _, err := tempdir.Sweep(os.TempDir(), prefix); err != nil { // directories of processes that were killed
			p.Log.WarnContext(ctx, "temporary state of an earlier process not removed", "error", err)
		}
		dir, err := tempdir.Make("", prefix)
		if err != nil {
			return err
		}
		p.base.StatePath = dir.Path
		p.close = append(p.close, dir.Remove)
	}
	return os.MkdirAll(p.base.StatePath, 0o750)
}

// memoryURL is the URL of a bus in the memory of the process.
const memoryURL = "memory://"

// openBus opens the bus with a URL. If the URL is empty, openBus uses the injected bus, or the bus in memory in a process
// with all services. It refuses the bus in memory in a process of one service of several.
func (p *Process[O]) openBus(url string, injected urlbus.Bus) error {
	b := injected
	if url == "" && b == nil {
		if p.Name != AllInOne {
			return fault.New(fault.Invalid, "is not set; use rabbit://user:password@host:port/vhost or nats://user:password@host:port")
		}
		url = memoryURL
	}
	if strings.HasPrefix(url, memoryURL) && p.Name != AllInOne && len(p.c.Services) > 1 {
		return fault.New(fault.Invalid, "%s is a bus in the memory of one process, and the service %s would reach no other service: "+
			"use rabbit://user:password@host:port/vhost or nats://user:password@host:port, or run all services in one process, with the command %s alone", memoryURL, p.Name, p.c.Name)
	}
	if url != "" {
		var err error
		if b, err = openBus(&p.base.Options, url, p.Log); err != nil {
			return err
		}
	}
	p.addBus(b)
	return nil
}

// addBus adds a bus that is not started.
func (p *Process[O]) addBus(b urlbus.Bus) {
	p.Bus = b
	p.tell.rpc.AddBus(b)
	p.addPart(phaseBus, "bus", p.read.label("transport_url"), b)
	p.probes = append(p.probes, probe{"transport_url", func(ctx context.Context) error {
		if err := b.Start(ctx); err != nil {
			return err
		}
		return errors.Join(b.Check(ctx), b.Stop(ctx))
	}})
}

// openClient adds the RPC client, which starts after the bus.
func (p *Process[O]) openClient(services []Service[O]) {
	autoCaps := rpccaps.Ask(memberCaps, p.c.Unreported)
	switch {
	case p.Members != nil:
		autoCaps = rpccaps.New(rpccaps.Config{Members: p.Members, Unreported: p.c.Unreported, Logger: p.Log}).Read
	case p.c.Migrations == nil:
		autoCaps = nil // no process has a database, and so no process knows the members
	case len(services) == 1 && services[0].AutoCaps != nil:
		autoCaps = services[0].AutoCaps
	}
	p.Client = rpc.NewClient(p.Bus, rpc.ClientConfig{AutoCaps: autoCaps, Interceptors: p.tell.client(), Logger: p.Log})
	p.tell.rpc.AddClient(p.Client)
	p.addPart(phaseBus, "rpc client", "", p.Client)
}

// Runner returns the process's runner of operations. The first call makes the runner, with the settings of [Component.Runner], and adds a
// loop that deletes operations after operation_history has passed since their end. Runner panics in a process without a database.
func (p *Process[O]) Runner() *operation.Runner {
	if p.runner != nil {
		return p.runner
	}
	p.needDatabase("Runner")
	var cfg operation.RunnerConfig
	if p.c.Runner != nil {
		cfg = p.c.Runner(p.Options)
	}
	cfg.Store, cfg.Host, cfg.Inflight, cfg.Logger = p.Operations, p.home, p.App.Inflight(), p.Log
	p.runner = operation.NewRunner(cfg)
	p.tell.runners.Add(p.home, p.runner)
	p.App.AddReport("operations", func(w io.Writer) error {
		s := p.runner.Stats()
		_, err := fmt.Fprintf(w, "%d run here; %d are unknown and wait for another process; %d steps were not undone, or their ends were not written\n", s.Running, s.Unknown, s.NotUndone)
		return err
	})
	p.addPart(phaseRunner, "operations", "", p.runner)
	p.Leader("operations-purge", time.Hour, func(ctx context.Context) error {
		n, err := p.Operations.Purge(ctx, p.base.OperationHistory)
		if n > 0 {
			p.Log.InfoContext(ctx, "old operations deleted", "operations", n)
		}
		return err
	})
	return p.runner
}

// Notify makes a runner process an operation now, instead of at its next poll. It notifies the runner of this process. If this process has no
// runner, Notify sends an RPC message to a process with a runner. Call it after the commit of the transaction in which [operation.Begin] has
// begun the operation. A lost notification only delays the operation until the next poll, so errors are only logged. Notify blocks for at most
// 2 s. It is safe for concurrent use.
func (p *Process[O]) Notify(ctx context.Context, id string) {
	if p.runner != nil {
		p.runner.Notify(id)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	if err := rpc.Cast(ctx, p.Client, notifyOperation, rpc.Any, &operationMessage{ID: id}); err != nil {
		p.Log.DebugContext(ctx, "operation not notified, continues at the next poll", "operation", id, "error", err)
	}
}

const notifyTimeout = 2 * time.Second

// Leader adds a loop that calls f once in each interval. The parameter every is the interval. If several processes have a loop of the same name, only
// one of them calls f: the holder of a lease in the database. The first call comes within the first interval. The context of f ends when the lease
// is lost. Errors are logged, see service.Loop. Leader panics in a process without a database.
func (p *Process[O]) Leader(name string, every time.Duration, f func(ctx context.Context) error) {
	p.needDatabase("Leader")
	leader := operation.NewLeader(operation.LeaderConfig{Store: p.Operations, Name: name, Host: p.Host})
	p.Add(p.named(name), service.Loop(every, leader.Only(func(ctx context.Context, _ int64) error { return f(ctx) })))
}

// finish adds the parts to the App, in their order.
func (p *Process[O]) finish() {
	p.addInternal()
	p.App.Add("configuration", p.read.config)
	p.tell.addParts(p.App)
	if p.base.Admin != "" {
		p.App.AddLabeled("admin", p.read.label("admin_listen"), p.App.Admin(service.AdminConfig{
			Addr: p.base.adminAddr(p.Name), Hosts: p.base.AdminHosts, Metrics: p.tell.metrics(),
			Level: p.read.level, Config: func() any { return p.read.config.Values() },
		}))
	}
	for _, list := range p.parts {
		for _, one := range list {
			p.App.AddLabeled(one.name, one.label, one.Part)
		}
	}
	p.App.Add("started", service.Funcs{
		OnStart: func(context.Context) error {
			if p.c.Started == nil {
				return nil
			}
			return p.c.Started(p)
		},
		OnDrain: func(context.Context) error { p.draining.Store(true); return nil }, // first of all parts
	})
}

// closeAll calls the functions in p.close, the last one first, and returns their errors.
func (p *Process[O]) closeAll() error {
	var errs []error
	for _, end := range slices.Backward(p.close) {
		errs = append(errs, end())
	}
	p.close = nil
	return errors.Join(errs...)
}

// wire opens a process and wires its services, see openProcess. The error has a line for each wrong option, with the place of the
// option. Options whose errors were already found while the options were read are left out.
func (r *runtime[O]) wire(ctx context.Context, read *loadedOptions[O], name string, log *slog.Logger, dry bool) (*Process[O], error) {
	services := r.c.Services
	if name != AllInOne {
		services = slices.DeleteFunc(slices.Clone(services), func(s Service[O]) bool { return s.Name != name })
	}
	p := r.openProcess(ctx, read, name, services, log, dry)
	wired := false
	defer func() {
		if !wired { // an error, or a panic
			_ = p.closeAll() // only the first error is reported
		}
	}()
	for _, s := range services {
		p.collect(s.Wire(ctx, p))
	}
	if len(p.errs) > 0 {
		return nil, errors.Join(p.errs...)
	}
	p.finish()
	wired = true
	return p, nil
}

// runService runs a service until ctx ends or a signal comes.
func (r *runtime[O]) runService(ctx context.Context, f *flags, name string) (err error) {
	read, err := r.load(f)
	if err != nil {
		return err
	}
	if r.setDefault {
		slog.SetDefault(read.log)
	}
	p, err := r.wire(ctx, read, name, read.log, false)
	if err != nil {
		return err
	}
	return errors.Join(p.App.Run(ctx), p.closeAll())
}

// hostName returns the option host, or the machine's name if the option is not set.
func hostName(o *Options) (string, error) {
	if o.Host != "" {
		return o.Host, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("option host is not set, and the machine's name cannot be read: %w", err)
	}
	return name, checkHost(cmp.Or(name, "."))
}
