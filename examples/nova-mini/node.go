package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/drivers/fake"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/scheduler"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/examples/nova-mini/worker"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/tempdir"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/urlbus"
	"github.com/armature-go/armature/rpc/watermillbus/amqp"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/scheduler/placement/placementprom"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/auth"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/rpccaps"
	"github.com/armature-go/armature/service/operation"
	"github.com/armature-go/armature/service/policy"
)

// node is one process: its options and its parts.
type node struct {
	*options

	app    *service.App
	log    *slog.Logger
	out    io.Writer
	bus    rpcbus.Bus
	reach  func(context.Context) error // returns nil while the bus works
	client *rpc.Client
	store  *store.Store
	tell   *telemetry
	close  []func() error // called at the end, the last one first

	draining atomic.Bool // while it is true, heartbeats are expected to fail
}

// noteDrain sets draining. It is for the OnDrain of a part.
func (n *node) noteDrain(context.Context) error {
	n.draining.Store(true)
	return nil
}

// run wires a service and runs it until ctx ends or a signal comes.
func (f *flags) run(ctx context.Context, name string, wire func(context.Context, *node) error) (err error) {
	service.CatchSignals()
	o, err := f.load(name)
	if err != nil {
		return err
	}
	n := &node{options: o, log: o.logger(), out: f.out}
	slog.SetDefault(n.log)
	n.app = service.New(service.Config{Name: o.service, DrainDelay: o.DrainDelay, DrainTimeout: o.ShutdownTimeout, Logger: n.log})
	n.app.Add("configuration", o.config)
	if n.tell, err = newTelemetry(ctx, n.app, o, n.log); err != nil {
		return err
	}
	if o.Admin != "" {
		admin := o.admin()
		admin.Metrics = n.tell.metrics()
		n.app.AddLabeled("admin", o.label("DEFAULT", "admin_listen"), n.app.Admin(admin))
	}
	defer func() {
		for _, end := range slices.Backward(n.close) {
			err = errors.Join(err, end())
		}
	}()
	if err := wire(ctx, n); err != nil {
		return err
	}
	return n.app.Run(ctx)
}

// databaseConfig returns the configuration of the database at a URL.
func (o *options) databaseConfig(url string) (db.Config, error) {
	if url == "" {
		return db.Config{}, errors.New("is not set; use mysql://user:password@host:port/name")
	}
	cfg := o.Database.Config()
	cfg.URL = url
	return cfg, nil
}

// schemes are the kinds of buses besides those of package urlbus.
var schemes = map[string]urlbus.Opener{"watermill-amqp": func(at urlbus.Broker, cfg urlbus.Config) (urlbus.Bus, error) {
	return amqp.New(amqp.Config{URLs: at.URLs, TLS: at.TLS, Exchange: cfg.Exchange, Quorum: cfg.Quorum, MaxMessage: cfg.MaxMessage, Logger: cfg.Logger})
}}

// openBus returns the bus of transport_url. The bus is not started.
func (o *options) openBus(log *slog.Logger) (urlbus.Bus, error) {
	if o.TransportURL == "" {
		return nil, fault.New(fault.Invalid, "is not set; use rabbit://user:password@host:port/vhost or nats://user:password@host:port")
	}
	cfg := o.Config()
	cfg.Schemes, cfg.Logger = schemes, log
	bus, err := urlbus.Open(o.TransportURL, cfg)
	if err != nil {
		return nil, err
	}
	return bus, nil
}

// wireBus adds the bus. addClient must follow.
func (n *node) wireBus() error {
	bus, err := n.openBus(n.log)
	if err != nil {
		return err
	}
	n.bus, n.reach = bus, bus.Check
	n.app.AddLabeled("bus", n.label("DEFAULT", "transport_url"), bus)
	n.tell.rpc.AddBus(n.bus)
	return nil
}

// addClient adds the RPC client, which takes its version caps from autoCaps.
func (n *node) addClient(autoCaps func(context.Context, *rpc.Client) (rpc.Versions, error)) {
	n.client = rpc.NewClient(n.bus, rpc.ClientConfig{AutoCaps: autoCaps, Interceptors: n.tell.client(), Logger: n.log})
	n.tell.rpc.AddClient(n.client)
	n.app.Add("rpc client", n.client)
}

// wireStore adds the database. If migrate is true, the start creates or upgrades the tables. Otherwise an operator does so with
// "db sync".
func (n *node) wireStore(url string, migrate bool) error {
	cfg, err := n.databaseConfig(url)
	if err != nil {
		return err
	}
	cfg.Observe = n.tell.database.Observe
	d, err := db.New(cfg)
	if err != nil {
		return n.optionError("database", "connection", err)
	}
	n.close = append(n.close, d.Close) // the App closes it, too, but not if the App does not start
	n.store = store.New(d)
	n.tell.addDatabase(d, n.store.Members(n.ServiceDownTime), n.store.Operations())
	n.app.AddLabeled("database", n.label("database", "connection"), &db.Service{DB: d, Migrations: store.Migrations(), Migrate: migrate})
	return nil
}

func (n *node) wireShared() error {
	if err := n.wireBus(); err != nil {
		return err
	}
	if err := n.wireStore(n.Database.Connection, false); err != nil {
		return err
	}
	n.addClient(n.store.VersionCaps().Read)
	return nil
}

// newServer returns an RPC server, which the caller adds.
func (n *node) newServer(iface *rpc.Interface, host string, register func(*rpc.Server), around ...rpc.Interceptor) *rpc.Server {
	srv := rpc.NewServer(n.bus, rpc.ServerConfig{Interface: iface, Host: host, Interceptors: slices.Concat(n.tell.server(), []rpc.Interceptor{n.track}, around), Logger: n.log})
	register(srv)
	n.tell.rpc.AddServer(srv)
	return srv
}

// track is an interceptor that registers each running handler in the App's Inflight.
func (n *node) track(ctx context.Context, info rpc.Info, req any, next func(context.Context, any) (any, error)) (any, error) {
	defer n.app.Inflight().Begin(ctx, service.Work{Kind: "rpc", Name: info.Interface + "." + info.Method})()
	return next(ctx, req)
}

// heartbeat returns a function that a loop calls often. The function calls f when a heartbeat is due: every report_interval,
// and after failures with a back-off that begins with a second and doubles up to report_interval. Of several failures in a
// row, the log has a line for the first failure and a line for the next success. While the process stops, failures are
// expected, because the call is canceled or the conductor in the same process has drained. They are logged at DEBUG.
func (n *node) heartbeat(name string, f func(context.Context) error) func(context.Context) error {
	var next time.Time
	gap, failed := time.Second, 0
	return func(life context.Context) error {
		if time.Now().Before(next) {
			return nil
		}
		ctx, cancel := context.WithTimeout(life, max(n.ReportInterval, time.Second))
		defer cancel()
		err := f(ctx)
		switch {
		case err != nil && (life.Err() != nil || n.draining.Load()):
			n.log.DebugContext(ctx, "heartbeat failed while the process stops", "service", name, "error", err)
		case err == nil:
			if failed > 0 {
				n.log.InfoContext(ctx, "heartbeat succeeded after failures", "service", name, "failed", failed)
			}
			gap, failed = time.Second, 0
			next = time.Now().Add(n.ReportInterval)
			return nil
		case failed == 0:
			n.log.WarnContext(ctx, "heartbeat failed, will be retried", "service", name, "error", err)
		}
		failed++
		next = time.Now().Add(min(gap, n.ReportInterval))
		gap *= 2
		return nil
	}
}

func wireAPI(_ context.Context, n *node) error {
	if err := n.wireShared(); err != nil {
		return err
	}
	return n.addAPI()
}

func (n *node) addAPI() error {
	rules, err := policy.New(api.Rules(), n.policy(n.log))
	if err != nil {
		return err
	}
	n.app.Add("policy", rules)
	n.app.Add("policy files", service.Loop(10*time.Second, rules.Watch))
	who, err := n.identity(n.log, n.tell.tokens.Observe)
	if err != nil {
		return err
	}
	if who.part != nil {
		n.app.AddLabeled("keystone", n.label("keystone_authtoken", "auth_url"), who.part)
	} else {
		n.log.Warn("clients not authenticated, every client is the administrator (option auth_strategy of [api] is noauth2)", "listen", n.Listen)
	}
	handler := n.tell.around(api.New(api.Config{
		Authenticate: who.authenticate, Challenge: who.challenge, Policy: rules,
		Store: n.store, Client: n.client, Ready: n.app.Ready, Bus: n.reach, DownAfter: n.ServiceDownTime, Inflight: n.app.Inflight(), Observe: n.tell.observe,
		CORS: n.CORS.Origins, PublicURL: n.API.LinkPrefix, BodyTimeout: n.WSGI.BodyTimeout, Logger: n.log,
	}))
	server := service.NewHTTP(n.WSGI.Config(n.address(), handler))
	n.app.AddLabeled("api", n.label("DEFAULT", "osapi_compute_listen", "osapi_compute_listen_port"), server)
	n.app.Add("greeting", service.Funcs{OnStart: func(context.Context) error { return n.greet(n.out, n.scheme()+"://"+server.Addr()) }})
	return nil
}

// identity is the way in which clients are authenticated.
type identity struct {
	authenticate func(*http.Request) (reqctx.Request, error)
	challenge    string       // for clients without an identity
	part         service.Part // may be nil
}

// identity returns the way in which the options say that clients are authenticated. observe is called for each validation of a token; it may
// be nil.
func (o *options) identity(log *slog.Logger, observe func(context.Context, auth.Observation)) (*identity, error) {
	if o.API.AuthStrategy == "noauth2" {
		if err := o.checkOpenAccess(); err != nil {
			return nil, err
		}
		return &identity{authenticate: auth.None(api.Administrator)}, nil
	}
	cfg, err := o.Keystone.Config()
	if err != nil {
		return nil, fmt.Errorf("options cafile, certfile and keyfile of [keystone_authtoken]: %w", err)
	}
	cfg.Logger, cfg.Observe = log, observe
	k, err := auth.NewKeystone(cfg)
	if err != nil {
		return nil, fmt.Errorf("option auth_strategy of [api] is keystone, and [keystone_authtoken] says: %w; for a test without users set auth_strategy = noauth2 in [api]", err)
	}
	return &identity{k.Authenticate, k.Challenge(), k}, nil
}

// scheme is the scheme of the API's URLs.
func (o *options) scheme() string {
	if o.WSGI.CertFile != "" {
		return "https"
	}
	return "http"
}

// greet prints the URL of the API and commands to try the API.
func (o *options) greet(w io.Writer, url string) error {
	curl, hint := "curl -s", "Paste these to create a server, to list all servers, and to show the new one:"
	if o.API.AuthStrategy != "noauth2" {
		curl = `curl -s -H "X-Auth-Token: $TOKEN"`
		hint = "With OpenStack's command line set up for your Keystone, paste these to get a token, to create a server, to list all servers, and to show the new one:\n\n" +
			"  TOKEN=$(openstack token issue -f value -c id)"
	}
	_, err := fmt.Fprintf(w, `nova-mini listens on %[1]s

%[3]s

  ID=$(%[2]s %[1]s/v2.1/servers -H 'Content-Type: application/json' -d '{"server": {"name": "demo", "flavorRef": "1", "imageRef": "cirros"}}' | sed 's/.*"id":"\([^"]*\)".*/\1/'); echo "$ID"
  %[2]s %[1]s/v2.1/servers/detail
  %[2]s "%[1]s/v2.1/servers/$ID"

`, url, curl, hint)
	return err
}

func wireConductor(_ context.Context, n *node) error {
	if err := n.wireShared(); err != nil {
		return err
	}
	n.addConductor(n.Host)
	return nil
}

func (n *node) addConductor(host string) {
	c := conductor.New(conductor.Config{
		Store: n.store, Client: n.client, Host: host, Ratios: store.Ratios{CPU: n.CPURatio, RAM: n.RAMRatio, Disk: n.DiskRatio},
		MaxAttempts: n.Scheduler.MaxAttempts, DownAfter: n.ServiceDownTime, BuildTimeout: n.BuildTimeout, Resend: n.RetryInterval, Inflight: n.app.Inflight(), Logger: n.log,
	})
	srv := n.newServer(compute.Conductor, host, c.Register)
	member := n.announce(store.ConductorBinary, host, srv)
	n.app.Add("conductor rpc", srv)
	n.app.Add("operations", c.Runner)
	n.tell.runners.Add(host, c.Runner)
	n.app.AddReport("operations", func(w io.Writer) error {
		s := c.Runner.Stats()
		_, err := fmt.Fprintf(w, "%d run here; %d are unknown and wait for another conductor; %d steps were not undone, or ends not written\n", s.Running, s.Unknown, s.NotUndone)
		return err
	})
	n.join(store.ConductorBinary, host, member)
	purge := operation.NewLeader(operation.LeaderConfig{Store: n.store.Operations(), Name: "purge", Host: host})
	n.app.AddLabeled("operations purge", n.label("DEFAULT", "operation_history"), service.Loop(time.Hour, purge.Only(func(ctx context.Context, _ int64) error {
		gone, err := n.store.Operations().Purge(ctx, n.OperationHistory)
		if gone > 0 {
			n.log.InfoContext(ctx, "old operations deleted", "operations", gone)
		}
		return err
	})))
	n.app.Add("idempotency keys", service.Loop(time.Hour, n.store.Replies().Prune))
}

// announce registers the versions that a service will serve in the database. join must follow, after the server has been added.
func (n *node) announce(kind, host string, srv *rpc.Server) *membership.MemberPart {
	m := n.store.Members(n.ServiceDownTime).Member(membership.MemberConfig{
		Self: membership.Self{Kind: kind, Host: host, Version: 1, Interfaces: rpccaps.Of(srv)}, Every: n.ReportInterval, Logger: n.log,
	})
	n.app.Add(kind+" versions", m.Announcement())
	return m
}

// join registers a service in the database.
func (n *node) join(kind, host string, member *membership.MemberPart) {
	n.app.Add(kind+" number", service.Funcs{OnStart: func(ctx context.Context) error { return n.store.Number(ctx, kind, host) }})
	n.app.Add(kind+" member", member)
}

func wireScheduler(_ context.Context, n *node) error {
	if err := n.wireShared(); err != nil {
		return err
	}
	return n.addScheduler(n.Host)
}

func (n *node) addScheduler(host string) error {
	cfg := n.schedulerConfig()
	var s *scheduler.Service
	claims := placementprom.New(func(ctx context.Context) ([]*placement.Provider, error) { return s.Providers(ctx) })
	cfg.Store, cfg.Logger, cfg.Observe, cfg.ObserveClaim = n.store, n.log, n.tell.decided.Observe, claims.Observe
	var err error
	if s, err = scheduler.New(cfg); err != nil {
		return err
	}
	n.tell.registry.MustRegister(claims)
	n.app.Add("scheduler fleet", service.Loop(scheduler.RefreshInterval, s.Refresh))
	n.app.AddReport("scheduler fleet", s.WriteReport)
	srv := n.newServer(compute.Scheduler, host, s.Register)
	member := n.announce(store.SchedulerBinary, host, srv)
	n.app.Add("scheduler rpc", srv)
	n.join(store.SchedulerBinary, host, member)
	return nil
}

// schedulerConfig returns the configuration of the scheduler.
func (o *options) schedulerConfig() scheduler.Config {
	f := o.FilterScheduler
	return scheduler.Config{
		DownAfter: o.ServiceDownTime, Filters: f.EnabledFilters, SubsetSize: f.HostSubsetSize,
		Multipliers: map[string]float64{"ram": f.RAMMultiplier, "cpu": f.CPUMultiplier, "disk": f.DiskMultiplier, "num_instances": f.ServersMultiplier},
	}
}

// wireCompute adds no database: a compute service calls the conductor instead.
func wireCompute(_ context.Context, n *node) error {
	if err := n.wireBus(); err != nil {
		return err
	}
	n.addClient(rpccaps.Ask(compute.VersionCaps, compute.Unreported))
	return n.addCompute(n.Host)
}

// builtInDrivers returns the built-in drivers.
func builtInDrivers() *driver.Registry[compute.Driver] {
	r := new(driver.Registry[compute.Driver])
	r.Add("fake", fake.Open)
	return r
}

// addCompute adds the compute services of hosts. All hosts send their first heartbeats at the same time.
func (n *node) addCompute(hosts ...string) error {
	var workers []*worker.Service
	var heartbeats []func(context.Context) error
	for _, host := range hosts {
		w, err := n.addWorker(host)
		if err != nil {
			return err
		}
		workers, heartbeats = append(workers, w), append(heartbeats, n.heartbeat("compute "+host, w.Report))
	}
	n.app.Add("first reports of hosts", service.Funcs{OnDrain: n.noteDrain, OnStart: func(ctx context.Context) error {
		var wg sync.WaitGroup
		for i, sendHeartbeat := range heartbeats {
			wg.Go(func() {
				n.firstAudit(ctx, hosts[i], workers[i])
				_ = sendHeartbeat(ctx) // logs a failure; the loop repeats it
			})
		}
		wg.Wait()
		return nil
	}})
	for i, host := range hosts {
		n.app.Add("compute "+host+" report", service.Loop(min(time.Second, n.ReportInterval), heartbeats[i]))
		n.app.Add("compute "+host+" audit", service.Loop(time.Minute, workers[i].Audit))
	}
	return nil
}

// firstAudit destroys the orphans on a host before the host's first heartbeat, so that they no longer use resources of the host.
// It takes at most 10 s.
func (n *node) firstAudit(ctx context.Context, host string, w *worker.Service) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := w.Audit(ctx); err != nil {
		n.log.WarnContext(ctx, "first audit failed, will be repeated within a minute", "host", host, "error", err)
	}
}

// addWorker adds the compute service of a host, without its reports. The order of its parts ensures that a second process for
// the same host does not disturb the first one: the lock in the state path, the driver, the claim of the host at a conductor,
// and last the RPC server, which receives messages.
func (n *node) addWorker(host string) (*worker.Service, error) {
	lock := membership.NewFileLock(store.ComputeBinary, host, filepath.Join(n.StatePath, "hosts", host+".lock"))
	n.app.AddLabeled("lock of host "+host, n.label("DEFAULT", "host", "state_path"), lock)
	cfg, err := n.driverConfig(host)
	if err != nil {
		return nil, err
	}
	cfg.Logger, cfg.Observe = n.log.With("host", host), n.tell.drivers.Observe(n.driverName(), host)
	p, err := builtInDrivers().New(compute.Kind, n.ComputeDriver, cfg)
	if err != nil {
		return nil, n.optionError("DEFAULT", "compute_driver", err)
	}
	n.tell.drivers.Add(n.driverName(), host, p)
	n.app.Add("driver "+host, &driverPart{p, n.options, n.log, host}) // without a label: its errors already name the option
	w := worker.New(worker.Config{
		Host: host, Driver: p.Driver, Client: n.client, Logger: n.log,
		Process: func() compute.Process { return compute.Process(lock.Instance()) },
	})
	n.app.AddLabeled("host "+host, n.label("DEFAULT", "host", "compute_driver"), w)
	n.app.Add("compute "+host+" rpc", n.newServer(compute.Worker, host, w.Register, w.Guard)) // after the claim, which has the server's versions
	return w, nil
}

// driverPart is a driver. If its start fails, the error names the wrong option, which may be an option of the driver.
type driverPart struct {
	*driver.Plugin[compute.Driver]

	options *options
	log     *slog.Logger
	host    string
}

// Reload replaces the driver's program if the program or its options have changed. The new program must report the resources of
// the host. A built-in driver keeps its options, and a change is logged.
func (p *driverPart) Reload(ctx context.Context) error {
	cfg, err := p.options.driverConfigFrom(p.options.config.Current().Drivers[p.options.driverSection()], p.host)
	if err == nil {
		cfg.Program = p.options.ComputeDriver
		err = p.Replace(ctx, cfg, func(ctx context.Context, d compute.Driver) error {
			if _, err := d.Resources(ctx); err != nil {
				return fmt.Errorf("read the resources of host %s: %w", p.host, err)
			}
			return nil
		})
	}
	switch {
	case err == nil:
		return nil
	case slices.Contains(builtInDrivers().Names(), p.options.ComputeDriver):
		p.log.WarnContext(ctx, "changed options of the driver require a restart", "driver", p.options.ComputeDriver, "host", p.host, "error", err)
		return nil
	default:
		return p.options.optionError("DEFAULT", "compute_driver", err)
	}
}

// Start starts the driver.
func (p *driverPart) Start(ctx context.Context) error {
	err := p.Plugin.Start(ctx)
	if err == nil || errors.Is(err, fault.Unavailable) { // the App waits for a part with the code Unavailable
		return err
	}
	return p.options.optionError("DEFAULT", "compute_driver", err)
}

// makeStatePath creates the directory of the state. Without the option the directory is temporary.
func (n *node) makeStatePath(ctx context.Context) error {
	if n.StatePath == "" {
		if _, err := tempdir.Sweep(os.TempDir(), "nova-mini-"); err != nil { // directories of processes that were killed
			n.log.WarnContext(ctx, "temporary state of an earlier process not removed", "error", err)
		}
		dir, err := tempdir.Make("", "nova-mini-")
		if err != nil {
			return err
		}
		n.StatePath = dir.Path
		n.close = append(n.close, dir.Remove)
	}
	return os.MkdirAll(n.StatePath, 0o750)
}

// allInOne wires all services in one process, with the in-memory bus and an SQLite database.
func allInOne(ctx context.Context, n *node) error {
	if err := n.makeStatePath(ctx); err != nil {
		return err
	}
	if n.TransportURL == "" {
		n.TransportURL = "memory://"
	}
	if err := n.wireBus(); err != nil {
		return err
	}
	connection := n.Database.Connection
	if connection == "" {
		var err error
		if connection, _, err = n.embedded(); err != nil {
			return err
		}
	}
	if err := n.wireStore(connection, true); err != nil {
		return err
	}
	n.addClient(n.store.VersionCaps().Read)
	n.addConductor(n.Host)
	if err := n.addScheduler(n.Host); err != nil {
		return err
	}
	hosts, err := fake.Hosts(n.Drivers[n.driverSection()]["hosts"])
	if err != nil {
		return n.optionError("DEFAULT", "compute_driver", err)
	}
	names := make([]string, hosts)
	for i := range names {
		names[i] = fmt.Sprintf("node-%d", i+1)
	}
	if err := n.addCompute(names...); err != nil {
		return err
	}
	return n.addAPI()
}
