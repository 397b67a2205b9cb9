package component

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/component/internal/inject"
	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/tempdir"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/urlbus"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/membershipprom"
	"github.com/armature-go/armature/service/membership/rpccaps"
	"github.com/armature-go/armature/service/operation"
)

// packageMigrations are those of the packages that a process uses.
var packageMigrations = []db.Migrations{membership.Migrations, operation.Migrations}

// Process is one process of a component, while its services are wired. Its methods are for Wire, from one goroutine, unless they say
// otherwise. The process adds its parts to App in the right order: the database, drivers, the bus, the client, the announcement of versions,
// RPC servers, members, runners, other parts, and last the API.
type Process[O any] struct {
	// Options are the options at the start of the process. The caller must not change them. Host and StatePath are set.
	Options *O
	// Name is that of the service, or [AllInOne].
	Name string
	// Host is the name of this host.
	Host string
	// StatePath is the directory for data of this host. It is empty if a service of its own has no option state_path.
	StatePath string
	// Log is the log of the process.
	Log *slog.Logger
	// App is for reports and for the list of running work. Add parts with [Process.Add], which keeps the order.
	App *service.App
	// Metrics takes further metrics. The page /metrics of the admin listener has them.
	Metrics prometheus.Registerer
	// Bus is the bus, not started.
	Bus bus.Bus
	// Client is the RPC client. It sends only what all running servers know.
	Client *rpc.Client
	// DB is the database, Members its registry of members and Operations its store of operations. They are nil in a process without a
	// database.
	DB         *sqlx.DB
	Members    *membership.Registry
	Operations *operation.Store

	c      *Component[O]
	base   *Options
	read   *loadedOptions[O]
	tell   *telemetry
	runner *operation.Runner
	mux    *api.Mux
	http   *service.HTTPPart
	parts  [phases][]part
	probes []probe
	close  []func() error // called at the end, the last one first
}

// part is a part with its name and its label.
type part struct {
	name, label string
	service.Part
}

// The phases of the start, in their order.
const (
	phaseDatabase = iota
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

// probe is a question to a service on the network that an option names, for "config validate --online".
type probe struct {
	section, option string
	ask             func(ctx context.Context) error
}

// Current returns the options as of the last reload. It is safe for concurrent use.
func (p *Process[O]) Current() *O { return p.read.config.Current() }

// Add adds a part, which is started after the RPC servers and the runner, and before the API. It panics as service.App.Add does.
func (p *Process[O]) Add(name string, part service.Part) { p.addPart(phaseOther, name, "", part) }

func (p *Process[O]) addPart(phase int, name, label string, s service.Part) {
	p.parts[phase] = append(p.parts[phase], part{name, label, s})
}

// Addr returns the address on which the API listens, after the start: "" without an API. It is safe for concurrent use after the start.
func (p *Process[O]) Addr() string {
	if p.http == nil {
		return ""
	}
	return p.http.Addr()
}

// openProcess returns the process of services, without their parts. The caller closes it. If dry is set, the process is not meant to be
// started: then openProcess writes no file and exports no traces.
func (r *runtime[O]) openProcess(ctx context.Context, read *loadedOptions[O], name string, services []Service[O], log *slog.Logger, dry bool) (_ *Process[O], err error) {
	p := &Process[O]{Options: read.opts, Name: name, Log: log, c: r.c, base: read.base, read: read, Host: read.base.Host}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.closeAll())
		}
	}()
	p.App = service.New(service.Config{
		Name: name, DrainDelay: p.base.DrainDelay, DrainTimeout: p.base.ShutdownTimeout, ReportTo: r.err, Logger: log,
	})
	if p.tell, err = newTelemetry(ctx, p.App, r.c.Name, p.base, log, dry); err != nil {
		return nil, optionError("opentelemetry.otlp_endpoint", err)
	}
	p.Metrics = p.tell.registry
	if name == AllInOne && !dry {
		if err := p.makeStatePath(ctx); err != nil {
			return nil, optionError("state_path", err)
		}
	}
	p.StatePath = p.base.StatePath
	if err := p.openBus(inject.From(ctx).Bus); err != nil {
		return nil, optionError("transport_url", err)
	}
	if needsDatabase(r.c, name, services) {
		if err := p.openDatabase(); err != nil {
			return nil, optionError("database.connection", err)
		}
	}
	p.openClient(services)
	return p, nil
}

// needsDatabase reports whether a process needs the database.
func needsDatabase[O any](c *Component[O], name string, services []Service[O]) bool {
	return c.Migrations != nil && (name == AllInOne || slices.ContainsFunc(services, func(s Service[O]) bool { return !s.NoDatabase }))
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

// openBus opens the bus that the options name. Without the option it is injected, if it is not nil.
func (p *Process[O]) openBus(injected urlbus.Bus) error {
	url, b := p.base.TransportURL, injected
	if url == "" && b == nil {
		if p.Name != AllInOne {
			return fault.New(fault.Invalid, "is not set; use rabbit://user:password@host:port/vhost or nats://user:password@host:port")
		}
		url = "memory://"
	}
	if url != "" {
		var err error
		if b, err = openBus(&p.base.Options, url, p.Log); err != nil {
			return err
		}
	}
	p.Bus = b
	p.tell.rpc.AddBus(b)
	p.addPart(phaseBus, "bus", p.read.label("DEFAULT", "transport_url"), b)
	p.probes = append(p.probes, probe{"DEFAULT", "transport_url", func(ctx context.Context) error {
		if err := b.Start(ctx); err != nil {
			return err
		}
		return errors.Join(b.Check(ctx), b.Stop(ctx))
	}})
	return nil
}

// embeddedDatabase returns the URL and the file of the SQLite database that a process with all services uses by default.
func embeddedDatabase(name, statePath string) (connection, path string, err error) {
	path, err = filepath.Abs(filepath.Join(statePath, name+".db"))
	return (&url.URL{Scheme: "sqlite", Path: path}).String(), path, err
}

func (p *Process[O]) openDatabase() (err error) {
	cfg := p.base.Database.Config()
	if cfg.URL == "" {
		if p.Name != AllInOne {
			return errNoDatabase
		}
		if cfg.URL, _, err = embeddedDatabase(p.c.Name, p.base.StatePath); err != nil {
			return err
		}
	}
	cfg.Observe, cfg.Logger = p.tell.database.Observe, p.Log
	d, err := db.New(cfg)
	if err != nil {
		return err
	}
	p.close = append(p.close, d.Close) // the App closes it, too, but not if the App does not start
	p.DB = d
	p.Members = membership.New(membership.Config{DB: d, DownAfter: p.base.ServiceDownTime})
	p.Operations = operation.NewStore(d)
	p.addPart(phaseDatabase, "database", p.read.label("database", "connection"),
		&db.Service{DB: d, Migrations: p.c.migrations(), Migrate: p.Name == AllInOne, Logger: p.Log})
	p.probes = append(p.probes, probe{"database", "connection", func(ctx context.Context) error {
		one, err := db.Open(ctx, cfg)
		if err != nil {
			return err
		}
		_, err = db.Check(ctx, one, p.c.migrations()...)
		return errors.Join(err, one.Close())
	}})
	return nil
}

// errNoDatabase is the error of a process that needs a database.
var errNoDatabase = errors.New("is not set; use mysql://user:password@host:port/name")

// openClient adds the RPC client. It follows the bus.
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

// Serve serves an RPC interface on this host. register gives the handlers to the server. The process announces the versions of the server
// before it serves, and is a member of the interface's name while it serves, so that other processes find the host and know what it
// understands. The interceptors run around each handler, after those of the process.
func (p *Process[O]) Serve(i *rpc.Interface, register func(s *rpc.Server), around ...rpc.Interceptor) {
	srv := p.newServer(i, p.Host, register, around...)
	member := p.newMember(membership.Self{Kind: i.Name, Host: p.Host, Interfaces: rpccaps.Of(srv)})
	label := p.read.label("DEFAULT", "host")
	if member != nil {
		p.addPart(phaseAnnounce, i.Name+" versions", label, member.Announcement())
		p.addPart(phaseMember, i.Name+" member", label, member)
	}
	p.addPart(phaseServe, i.Name+" rpc", label, srv)
}

// newServer returns an RPC server that is not added.
func (p *Process[O]) newServer(i *rpc.Interface, host string, register func(s *rpc.Server), around ...rpc.Interceptor) *rpc.Server {
	interceptors := slices.Concat(p.tell.server(), []rpc.Interceptor{p.track}, around)
	srv := rpc.NewServer(p.Bus, rpc.ServerConfig{Interface: i, Host: host, Interceptors: interceptors, Logger: p.Log})
	register(srv)
	p.tell.rpc.AddServer(srv)
	return srv
}

// track is an interceptor that adds each running handler to the list of running work.
func (p *Process[O]) track(ctx context.Context, info rpc.Info, req any, next func(context.Context, any) (any, error)) (any, error) {
	defer p.App.Inflight().Begin(ctx, service.Work{Kind: "rpc", Name: info.Interface + "." + info.Method})()
	return next(ctx, req)
}

// memberPart is a member with its announcement.
type memberPart interface {
	service.Part
	Announcement() service.Part
}

// newMember returns the member of a server. It is nil if the component has no database, and so no members.
func (p *Process[O]) newMember(self membership.Self) memberPart {
	switch {
	case p.Members != nil:
		return p.Members.Member(membership.MemberConfig{Self: self, Every: p.base.ReportInterval, Logger: p.Log})
	case p.c.Migrations != nil:
		return newRemoteMember(p.Client, self, p.base.ReportInterval, p.Log)
	}
	return nil
}

// Runner returns the process's runner of operations. The first call makes it, with the settings of [Component.Runner], and deletes operations
// that have ended after the option operation_history. It panics in a process without a database.
func (p *Process[O]) Runner() *operation.Runner {
	if p.runner != nil {
		return p.runner
	}
	p.needDatabase("Runner")
	cfg := p.c.Runner
	cfg.Store, cfg.Host, cfg.Inflight, cfg.Logger = p.Operations, p.Host, p.App.Inflight(), p.Log
	p.runner = operation.NewRunner(cfg)
	p.tell.runners.Add(p.Host, p.runner)
	p.tell.runners.AddStore(p.Operations)
	p.tell.registry.MustRegister(membershipprom.New(p.Members))
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

// needDatabase panics in a process without a database.
func (p *Process[O]) needDatabase(method string) {
	if p.DB == nil {
		panic("component: " + method + ": the service " + p.Name + " has no database: remove NoDatabase, or set Migrations of the component")
	}
}

// Notify makes a runner look at an operation now: the runner of this process, or, over RPC, that of another process. It is for operations
// that [operation.Begin] has begun in a transaction that is committed. A notification that is lost only delays the operation until the next
// poll, so errors are only logged. Notify blocks for at most 2 s. It is safe for concurrent use.
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

// Leader calls f periodically in one of the processes that have the loop, by a lease of the database with the name. The first call comes
// within the interval. The context of f ends when the lease is lost. Errors are logged, see service.Loop. It panics in a process
// without a database.
func (p *Process[O]) Leader(name string, every time.Duration, f func(ctx context.Context) error) {
	p.needDatabase("Leader")
	leader := operation.NewLeader(operation.LeaderConfig{Store: p.Operations, Name: name, Host: p.Host})
	p.Add(name, service.Loop(every, leader.Only(func(ctx context.Context, _ int64) error { return f(ctx) })))
}

// finish adds the parts to the App, in their order.
func (p *Process[O]) finish() {
	p.addInternal()
	p.App.Add("configuration", p.read.config)
	p.tell.addParts(p.App)
	if p.base.Admin != "" {
		p.App.AddLabeled("admin", p.read.label("DEFAULT", "admin_listen"), p.App.Admin(service.AdminConfig{
			Addr: strings.ReplaceAll(p.base.Admin, servicePlaceholder, p.Name), Hosts: p.base.AdminHosts, Metrics: p.tell.metrics(),
			Level: p.read.level, Config: func() any { return p.read.config.Values() },
		}))
	}
	for _, list := range p.parts {
		for _, one := range list {
			p.App.AddLabeled(one.name, one.label, one.Part)
		}
	}
	if p.c.Started != nil {
		p.App.Add("started", service.Funcs{OnStart: func(context.Context) error { return p.c.Started(p) }})
	}
}

// servicePlaceholder stands for the service's name in admin_listen.
const servicePlaceholder = "{service}"

// closeAll closes what is open, the last one first.
func (p *Process[O]) closeAll() error {
	var errs []error
	for _, end := range slices.Backward(p.close) {
		errs = append(errs, end())
	}
	p.close = nil
	return errors.Join(errs...)
}

// wire opens a process and wires its services, see openProcess. An error has the place of the option that it names.
func (r *runtime[O]) wire(ctx context.Context, read *loadedOptions[O], name string, log *slog.Logger, dry bool) (*Process[O], error) {
	services := r.c.Services
	if name != AllInOne {
		services = slices.DeleteFunc(slices.Clone(services), func(s Service[O]) bool { return s.Name != name })
	}
	p, err := r.openProcess(ctx, read, name, services, log, dry)
	if err != nil {
		return nil, read.place(err)
	}
	for _, s := range services {
		if err := s.Wire(ctx, p); err != nil {
			return nil, errors.Join(read.place(err), p.closeAll())
		}
	}
	p.finish()
	return p, nil
}

// run runs a service until ctx ends or a signal comes.
func (r *runtime[O]) run(ctx context.Context, f *flags, name string) (err error) {
	read, err := r.load(f, name)
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

// label returns the names and places of options of one section, for the errors of a part that does not start.
func (l *loadedOptions[O]) label(section string, names ...string) string {
	var out []string
	for _, name := range names {
		text := "option " + name
		if section != "DEFAULT" {
			text += " of [" + section + "]"
		}
		if where := l.config.Where(section, name); where != "" && where != "default" {
			text += ", " + where
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

// place adds the place of the option that an error names in its Meta.
func (l *loadedOptions[O]) place(err error) error {
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Meta["option"] == "" {
		return err
	}
	section, name, qualified := strings.Cut(f.Meta["option"], ".")
	if !qualified {
		section, name = "DEFAULT", section
	}
	if where := l.config.Where(section, name); where != "" && where != "default" {
		return fault.New(fault.Invalid, "%s: [%s] %s: %w", where, section, name, err)
	}
	return fault.New(fault.Invalid, "[%s] %s: %w", section, name, err)
}

// hostName returns the option host, or the machine's name.
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
