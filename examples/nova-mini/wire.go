package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/drivers/fake"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/console"
	"github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/scheduler"
	"github.com/armature-go/armature/examples/nova-mini/session"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/examples/nova-mini/worker"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler/placement/placementprom"
	"github.com/armature-go/armature/service"
	restapi "github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/membership"
)

type process = component.Process[options]

// wireConsoleProxy adds the console proxy. In the process with all services it adds nothing: there wireAPI adds the proxy, because the API tells
// clients the proxy's address.
func wireConsoleProxy(_ context.Context, p *process) error {
	if p.Name == component.AllInOne {
		return nil
	}
	if !p.Options.consoles() {
		p.Log.Warn("no type of console is enabled, so the console proxy refuses all clients (options vnc.enabled and serial_console.enabled)")
	}
	_, err := addConsoleProxy(p) //nolint:contextcheck // the check of an address needs no context
	return err
}

// addConsoleProxy adds the console proxy and returns its server.
func addConsoleProxy(p *process) (*service.HTTPPart, error) {
	o := p.Options
	s := store.New(p.DB)
	proxy := console.New(console.Config{
		Find: func(ctx context.Context, token string) (*console.Target, error) { return findConsole(ctx, p, s, token) },
		Present: func(ctx context.Context, t *console.Target) (bool, error) {
			return s.OnHost(ctx, t.ServerID, t.Host)
		},
		AllowedOrigins: o.Console.Origins, MaxSessions: o.ConsoleProxy.MaxSessions, MaxServerSessions: o.ConsoleProxy.MaxServer, Idle: o.ConsoleProxy.Idle, EndWithToken: o.ConsoleAuth.Enforce, Logger: p.Log,
	})
	cfg := service.HTTPConfig{
		Addr: net.JoinHostPort(o.ConsoleProxy.Listen, strconv.Itoa(o.ConsoleProxy.Port)), Handler: proxy, CertFile: o.ConsoleProxy.CertFile, KeyFile: o.ConsoleProxy.KeyFile,
	}
	names := []string{"consoleproxy.listen", "consoleproxy.port"}
	if err := (service.HTTPConfig{Addr: cfg.Addr}).Validate(); err != nil {
		return nil, nameOptions(strings.Join(names, " "), err)
	}
	if err := cfg.Validate(); err != nil {
		return nil, nameOptions("consoleproxy.ssl_cert_file consoleproxy.ssl_key_file", err)
	}
	part := service.NewHTTP(cfg)
	p.Add("console proxy", part, names...)
	p.Add("console sessions", service.Funcs{OnDrain: proxy.Close}) // drained before the console proxy
	return part, nil
}

// findConsole returns the console of a token.
func findConsole(ctx context.Context, p *process, s *store.Store, token string) (*console.Target, error) {
	t, err := api.FindConsole(ctx, s, p.Client, token)
	if err != nil {
		return nil, err
	}
	return &console.Target{Addr: console.Addr(t.Host, t.Port), URL: t.URLBase, ServerID: t.ServerID, Host: t.ComputeHost, Local: isLocal(p, t.ComputeHost), ExpiresAt: t.ExpiresAt}, nil
}

// isLocal reports whether a compute host is the machine that the console proxy runs on. In the process with all services all hosts are simulated on
// this machine.
func isLocal(p *process, host string) bool {
	if p.Name == component.AllInOne {
		return true
	}
	if names := p.Options.ConsoleProxy.LocalHosts; len(names) > 0 {
		return slices.Contains(names, host)
	}
	return host == p.Host
}

// consoleConfig returns the API's configuration of consoles. In the process with all services it also adds the console proxy.
func consoleConfig(p *process) (out api.Consoles, err error) {
	o := p.Options
	out.TTL, out.URL = o.ConsoleAuth.TTL, map[compute.ConsoleType]func() string{}
	if !o.consoles() {
		return out, nil
	}
	var proxy *service.HTTPPart
	if p.Name == component.AllInOne {
		if proxy, err = addConsoleProxy(p); err != nil {
			return out, err
		}
	}
	tls := ""
	if o.ConsoleProxy.CertFile != "" {
		tls = "s"
	}
	for _, c := range []struct {
		t                         compute.ConsoleType
		enabled                   bool
		url, option, scheme, path string
	}{
		{compute.VNC, o.VNC.Enabled, o.VNC.URL, "vnc.novncproxy_base_url", "http", "/vnc_lite.html"},
		{compute.Serial, o.SerialConsole.Enabled, o.SerialConsole.URL, "serial_console.base_url", "ws", "/"},
	} {
		switch {
		case !c.enabled:
		case c.url != "":
			out.URL[c.t] = func() string { return c.url }
		case proxy != nil && net.ParseIP(o.ConsoleProxy.Listen).IsUnspecified():
			return out, nameOptions(c.option, errors.New("is not set: set the URL at which clients reach the console proxy, because the proxy listens on all addresses"))
		case proxy == nil:
			return out, nameOptions(c.option, errors.New("is not set: set the URL at which clients reach the console proxy, because the proxy is another process"))
		default:
			out.URL[c.t] = func() string { return c.scheme + tls + "://" + proxy.Addr() + c.path }
		}
	}
	return out, nil
}

func wireAPI(ctx context.Context, p *process) error {
	consoles, err := consoleConfig(p) //nolint:contextcheck // the check of an address needs no context
	if err != nil {
		return err
	}
	images, err := imageSource(ctx, p)
	networks, wrong := neutronClient(p)
	if err := errors.Join(err, wrong); err != nil {
		return err
	}
	names, err := api.ParseNameTemplate(p.Options.InstanceNames)
	if err != nil {
		return nameOptions("instance_name_template", err)
	}
	audits, err := api.ParseAuditPeriod(p.Options.AuditPeriod)
	if err != nil {
		return nameOptions("instance_usage_audit_period", err)
	}
	if err := p.Options.schedulerConfig().Validate(); err != nil {
		return nameOptions("filter_scheduler.enabled_filters", err)
	}
	p.Add("missing services", service.Loop(p.Options.ReportInterval, newMissingServices(p.Members, p.Operations, p.Log).check))
	return p.API(api.HTTP(restapi.Config{PublicURL: p.Options.Links.Prefix}), func(m *restapi.Mux) {
		api.Register(m, api.Config{Store: store.NewLimited(p.DB, p.Options.Quota.limits()), Images: images, Network: networks, HasProject: hasProject(p.Options), Consoles: consoles, Client: p.Client, Bus: p.Bus.Check, InstanceNames: names, Filters: p.Options.FilterScheduler.EnabledFilters, InternalZone: p.Options.InternalZone, ScheduleZone: p.Options.ScheduleZone, AuditPeriod: audits, SoftDelete: p.Options.ReclaimInterval > 0, DownAfter: p.Options.ServiceDownTime, Logger: p.Log})
	})
}

// hasProject returns the function that asks Keystone whether a project exists, or nil if clients do not use Keystone.
func hasProject(o *options) func(ctx context.Context, token, id string) (bool, error) {
	if o.API.AuthStrategy != "keystone" {
		return nil
	}
	open := sync.OnceValues(func() (*session.Projects, error) {
		cfg, err := o.Auth.Config()
		if err != nil {
			return nil, err
		}
		return session.NewProjects(session.Config{
			AuthURL: cfg.URL, Username: cfg.Username, Password: cfg.Password, UserDomain: cfg.UserDomain, Project: cfg.ProjectName, ProjectDomain: cfg.ProjectDomain, TLS: cfg.TLS, Timeout: projectTimeout,
		})
	})
	return func(ctx context.Context, token, id string) (bool, error) {
		projects, err := open()
		if err != nil {
			return false, err
		}
		return projects.Exists(ctx, token, id)
	}
}

// projectTimeout limits the time of a question whether a project exists.
const projectTimeout = 10 * time.Second

// imageSource returns the source of images for the API: the image service, a directory, or the built-in image of the fake driver. It returns nil
// if the API does not know the images. Then the API accepts every name.
func imageSource(ctx context.Context, p *process) (image.Source, error) {
	o := p.Options
	if g, err := glanceClient(p); err != nil {
		return nil, err
	} else if g != nil {
		return g, nil
	}
	if dir := o.Image.Directory; dir != "" {
		s, err := image.Directory(ctx, dir)
		return s, nameOptions("image.directory", err)
	}
	if o.driver().Driver == "fake" {
		return image.BuiltIn(), nil
	}
	return nil, nil
}

// glanceClient returns the client of the image service, or nil if none is configured.
func glanceClient(p *process) (*image.Glance, error) {
	return openServiceClient(p, "glance", &p.Options.Glance.sessionOptions, func(cfg session.Config) (*image.Glance, error) {
		return image.NewGlance(image.GlanceConfig{Config: cfg, TransferTimeout: p.Options.Glance.TransferTimeout, Logger: p.Log})
	})
}

// neutronClient returns the client of the network service, or nil if none is configured.
func neutronClient(p *process) (*network.Neutron, error) {
	return openServiceClient(p, "neutron", &p.Options.Neutron.sessionOptions, network.New)
}

// openServiceClient returns the client of another OpenStack service, or nil if the section of this service has no auth_url.
func openServiceClient[S any](p *process, section string, o *sessionOptions, open func(session.Config) (*S, error)) (*S, error) {
	if o.AuthURL == "" {
		return nil, nil
	}
	cfg, err := o.config(p.Options.API.AuthStrategy == "keystone")
	files := nameOptions(section+".cafile "+section+".certfile "+section+".keyfile", err)
	out, err := open(cfg)
	if errs := append(sectionErrors(section, err), files); errors.Join(errs...) != nil {
		return nil, errors.Join(errs...)
	}
	return out, nil
}

// sectionErrors returns the errors that err joins. Each error that names an option gets the option's section.
func sectionErrors(section string, err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, one := range joined.Unwrap() {
			errs = append(errs, sectionErrors(section, one)...)
		}
		return errs
	}
	if f, ok := errors.AsType[*fault.Error](err); ok {
		err = nameOptions(section+"."+f.Meta["option"], err)
	}
	return []error{err}
}

func wireConductor(_ context.Context, p *process) error {
	o, s := p.Options, store.New(p.DB)
	networks, err := neutronClient(p)
	images, wrong := glanceClient(p)
	if err := errors.Join(err, wrong); err != nil {
		return err
	}
	cfg := conductor.Config{
		Store: s, Client: p.Client, Runner: p.Runner(), Ratios: store.Ratios{CPU: o.CPURatio, RAM: o.RAMRatio, Disk: o.DiskRatio},
		MaxAttempts: o.Scheduler.MaxAttempts, DownAfter: o.ServiceDownTime, BuildTimeout: o.BuildTimeout, ShelvedOffload: o.ShelvedOffload, Resend: o.RetryInterval, Logger: p.Log,
	}
	if networks != nil {
		cfg.Network = networks
	}
	if images != nil {
		cfg.Images = images
	}
	c := conductor.New(cfg)
	serveMember(p, s, compute.Conductor, store.ConductorBinary, c.Register)
	p.Add("shelved servers", service.Loop(time.Minute, c.OffloadShelved))
	if o.ReclaimInterval > 0 {
		p.Leader("soft-deleted servers", min(time.Minute, o.ReclaimInterval), func(ctx context.Context) error { return c.ReclaimDeleted(ctx, o.ReclaimInterval) })
	}
	p.Add("deleted servers", service.Loop(10*time.Minute, func(ctx context.Context) error { return s.PruneDeleted(ctx, o.DeletedKept) }))
	p.Add("usage", service.Loop(time.Hour, func(ctx context.Context) error { return s.PruneUsage(ctx, o.UsageKept) }))
	p.Add("quotas", service.Loop(time.Hour, func(ctx context.Context) error {
		changed, sums, err := s.RepairQuotas(ctx)
		for _, r := range sums {
			p.Log.WarnContext(ctx, "quota usage repaired, it did not match the claims", "project", r.Project, "class", r.Class, "was", r.Was, "is", r.Is)
		}
		if changed > 0 {
			p.Log.InfoContext(ctx, "quota usage repaired, processes of an earlier release had created or removed servers", "servers", changed)
		}
		return err
	}))
	p.Add("console tokens", service.Loop(10*time.Minute, s.PruneConsoleTokens))
	p.Add("idempotency keys", service.Loop(time.Hour, s.Replies().Prune))
	return nil
}

func wireScheduler(_ context.Context, p *process) error {
	st := store.New(p.DB)
	cfg := p.Options.schedulerConfig()
	claims := placementprom.New()
	cfg.Store, cfg.Logger, cfg.Observe, cfg.ObserveClaim = st, p.Log, p.ObserveDecision, claims.Observe
	s, err := scheduler.New(cfg)
	if err != nil {
		return nameOptions("filter_scheduler.enabled_filters", err)
	}
	claims.AddProviders(s.Providers)
	p.Metrics.MustRegister(claims)
	p.Add("scheduler fleet", service.Loop(scheduler.RefreshInterval, s.Refresh))
	p.App.AddReport("scheduler fleet", s.WriteReport)
	serveMember(p, st, compute.Scheduler, store.SchedulerBinary, s.Register)
	return nil
}

// serveMember serves an RPC interface and makes the process a member of the given kind. At the start the member gets a number, which is the
// id of the service in the API.
func serveMember(p *process, s *store.Store, iface *rpc.Interface, kind string, register func(*rpc.Server)) {
	p.AddFirst(kind+" number", service.Funcs{OnStart: func(ctx context.Context) error { return s.Number(ctx, kind, p.Host) }})
	p.ServeWith(component.ServerConfig{Interface: iface, Register: register, Kind: kind, Version: 1})
}

// wireCompute adds the compute service of this host. In the process with all services it adds a compute service for each simulated host. A compute
// service has no database, so it sends its heartbeats to the conductor.
func wireCompute(_ context.Context, p *process) error {
	var errs []error
	hosts := []string{p.Host}
	if p.Name != component.AllInOne && p.StatePath == "" {
		errs = append(errs, nameOptions("state_path", errors.New("is not set: the driver needs a directory that is kept when the process ends, such as /var/lib/nova-mini")))
	}
	if p.Name == component.AllInOne {
		o := p.Options.driver()
		n, err := fake.Hosts(o.Drivers[o.Section()]["hosts"])
		if err != nil {
			return driverError(p.Options, err)
		}
		hosts = make([]string, n)
		for i := range hosts {
			hosts[i] = fmt.Sprintf("node-%d", i+1)
		}
	}
	var first []func(context.Context) // all hosts send their first heartbeats at the same time
	p.Add("first reports of hosts", service.Funcs{OnStart: func(ctx context.Context) error {
		var wg sync.WaitGroup
		for _, report := range first {
			wg.Go(func() { report(ctx) })
		}
		wg.Wait()
		return nil
	}})
	for _, host := range hosts {
		w, err := addWorker(p.On(host))
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		report := p.Heartbeat(store.ComputeBinary+" on "+host, w.Report)
		first = append(first, func(ctx context.Context) {
			firstAudit(ctx, p, host, w)
			_ = report(ctx) // logs a failure; the loop repeats it
		})
		p.Add("compute "+host+" report", service.Loop(min(time.Second, p.Options.ReportInterval), report))
		p.Add("compute "+host+" audit", service.Loop(time.Minute, w.Audit))
		p.Add("compute "+host+" guests", w.Guests())
	}
	return errors.Join(errs...)
}

// firstAudit destroys the orphans on a host before the host's first heartbeat, so that they no longer use resources of the host.
// It takes at most 10 s.
func firstAudit(ctx context.Context, p *process, host string, w *worker.Service) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := w.Audit(ctx); err != nil {
		p.Log.WarnContext(ctx, "first audit failed, will be repeated within a minute", "host", host, "error", err)
	}
}

// addWorker adds the compute service of a host, without its reports. The parts start in this order: the lock in the state path,
// the driver, the claim of the host at a conductor, and last the RPC server, which receives messages. In this order, a second
// process for the same host fails before it disturbs the first one.
func addWorker(p *process) (*worker.Service, error) {
	lock := membership.NewFileLock(store.ComputeBinary, p.Host, filepath.Join(p.StatePath, "hosts", p.Host+".lock"))
	p.AddFirst("lock of host "+p.Host, lock, "host", "state_path")
	current, err := component.DriverWith(p, component.DriverConfig[compute.Driver, options]{
		Kind: compute.Kind, BuiltIn: builtInDrivers(), Options: (*options).driver, Option: "compute_driver",
		Given: map[string]string{"host": p.Host, "dir": filepath.Join(p.StatePath, "instances", p.Host)}, GivenBy: map[string]string{"host": "host", "dir": "state_path"},
		Probe: func(ctx context.Context, d compute.Driver) error {
			if _, err := d.Resources(ctx); err != nil {
				return fmt.Errorf("read the resources of host %s: %w", p.Host, err)
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	images, err := imageFiles(p)
	if err != nil {
		return nil, err
	}
	w := worker.New(worker.Config{
		Host: p.Host, Zone: p.Options.Zone, IP: p.Options.hostAddress(), Driver: current, Client: p.Client, Images: images, UploadRetry: p.Options.Glance.UploadRetry, GuestInterval: cmp.Or(p.Options.SyncPower, time.Minute), Logger: p.Log,
		ConsoleHost: map[compute.ConsoleType]string{compute.VNC: p.Options.VNC.ProxyClient, compute.Serial: p.Options.SerialConsole.ProxyClient},
		Process:     func() compute.Process { return compute.Process(lock.Instance()) },
	})
	p.ServeWith(component.ServerConfig{Interface: compute.Worker, Register: w.Register, Around: []rpc.Interceptor{w.Guard}, Claim: w, Options: []string{"host", "compute_driver"}})
	return w, nil
}

// imageFiles returns an object that stores images of the image service as files on a host, or nil if no image service is configured. It
// also adds a part that removes, at the start, incomplete files of a killed process.
func imageFiles(p *process) (worker.Images, error) {
	g, err := glanceClient(p)
	if g == nil || err != nil {
		return nil, err
	}
	files := &image.Files{Glance: g, Dir: filepath.Join(p.StatePath, "images", p.Host)}
	p.AddFirst("images of host "+p.Host, service.Funcs{OnStart: func(context.Context) error { return files.Clean() }}, "state_path") // after the lock of the host
	return files, nil
}

// builtInDrivers returns the built-in drivers.
func builtInDrivers() *driver.Registry[compute.Driver] {
	r := new(driver.Registry[compute.Driver])
	r.AddChecked("fake", checkFake, fake.Open)
	return r
}

// checkFake checks the options of the fake driver. It opens the driver without the option dir, so that the driver writes no files.
func checkFake(options json.RawMessage) error {
	var given map[string]any
	if err := json.Unmarshal(options, &given); err != nil {
		return err
	}
	delete(given, "dir")
	raw, err := json.Marshal(given)
	if err != nil {
		return err
	}
	opened, err := fake.Open(context.Background(), raw)
	if err != nil {
		return err
	}
	return opened.Close()
}
