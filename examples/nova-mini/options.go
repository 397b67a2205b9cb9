package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc/urlbus"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/auth"
	"github.com/armature-go/armature/service/config"
	"github.com/armature-go/armature/service/policy"
)

// proxyOptions are the options of Nova about a proxy in front of the API.
type proxyOptions struct {
	Header string `ini:"secure_proxy_ssl_header" unsupported:"set compute_link_prefix in [api] to the URL of the proxy" help:"header in which a proxy sends the scheme that its client used"`
}

// settings are the options of nova.conf that nova-mini has. If Nova has an option, its name, section and default are
// Nova's.
type settings struct {
	urlbus.Options

	Host             string                       `ini:"host" help:"name of this host; it must stay the same after every restart, and only one compute service at a time can use it (default: the machine's name)"`
	ComputeDriver    string                       `ini:"compute_driver" default:"fake" help:"driver of the compute service: fake, NAME for the program armature-compute-NAME in plugin_dir, the absolute path of a driver program, or Nova's name, such as libvirt.LibvirtDriver for libvirt"`
	PluginDir        string                       `ini:"plugin_dir" default:"/usr/lib/armature/plugins" help:"directory of the driver programs"`
	Listen           string                       `ini:"osapi_compute_listen" default:"127.0.0.1" help:"address of the API"`
	Port             int                          `ini:"osapi_compute_listen_port" default:"8774" min:"0" max:"65535" help:"port of the API; 0: any free port"`
	StatePath        string                       `ini:"state_path" help:"directory for the data of the fake driver, the locks of hosts and the embedded database; it must be kept when a service ends, and the services of a host may share it"`
	ReportInterval   time.Duration                `ini:"report_interval" default:"10" min:"1ms" help:"seconds between heartbeats"`
	ServiceDownTime  time.Duration                `ini:"service_down_time" default:"60" min:"1ms" help:"seconds without a heartbeat after which a service is down"`
	BuildTimeout     time.Duration                `ini:"instance_build_timeout" default:"600" min:"1ms" help:"seconds that a build or an action may take on one host"`
	RetryInterval    time.Duration                `ini:"task_retry_interval" default:"15" min:"1ms" help:"seconds without a report after which a request to a compute service is repeated, and seconds without a renewed lease after which another conductor continues an operation"`
	OperationHistory time.Duration                `ini:"operation_history" default:"2592000" min:"0" help:"seconds after which operations that have ended are deleted"`
	ShutdownTimeout  time.Duration                `ini:"graceful_shutdown_timeout" default:"60" min:"1ms" help:"seconds that running requests may take after SIGTERM"`
	DrainDelay       time.Duration                `ini:"drain_delay" default:"0" min:"0" help:"seconds after SIGTERM in which new requests are still accepted while /readyz fails, so that load balancers choose another process"`
	CPURatio         float64                      `ini:"cpu_allocation_ratio" default:"4.0" min:"0.01" max:"10000" help:"virtual CPUs that servers can claim for each real CPU"`
	RAMRatio         float64                      `ini:"ram_allocation_ratio" default:"1.0" min:"0.01" max:"10000" help:"memory that servers can claim, as a multiple of the real memory"`
	DiskRatio        float64                      `ini:"disk_allocation_ratio" default:"1.0" min:"0.01" max:"10000" help:"disk that servers can claim, as a multiple of the real disk"`
	Debug            bool                         `ini:"debug" default:"false" help:"log at debug level" reloadable:"true"`
	Strict           bool                         `ini:"strict" default:"true" strict:"true" help:"refuse options and sections that nova-mini does not know; false: accept a file that was written for Nova"`
	Admin            string                       `ini:"admin_listen" help:"address of the pages for operators, only of this machine: 127.0.0.1:9774 or unix:/run/nova/{service}.sock, where {service} stands for the service's name, so that all services of a host can use one file; the socket's directory is created if it does not exist (default: no pages)"`
	AdminHosts       []string                     `ini:"admin_hosts" help:"names and addresses by which other machines may reach admin_listen, which does not authenticate clients; without them admin_listen must be an address only of this machine"`
	SSLAPIs          []string                     `ini:"enabled_ssl_apis" protects:"true" unsupported:"set ssl_cert_file and ssl_key_file in [wsgi], which make the API HTTPS" help:"APIs that use HTTPS"`
	SSLOnly          bool                         `ini:"ssl_only" default:"false" protects:"true" unsupported:"there are no consoles; set ssl_cert_file and ssl_key_file in [wsgi], which make the API HTTPS" help:"consoles accept TLS only"`
	Database         db.Options                   `section:"database"`
	Scheduler        schedulerOptions             `section:"scheduler"`
	FilterScheduler  filterOptions                `section:"filter_scheduler"`
	API              apiOptions                   `section:"api"`
	WSGI             service.HTTPOptions          `section:"wsgi"`
	Proxy            proxyOptions                 `section:"wsgi"`
	CORS             corsOptions                  `section:"cors"`
	Keystone         auth.Options                 `section:"keystone_authtoken"`
	Policy           policy.Options               `section:"oslo_policy"`
	SSL              sslOptions                   `section:"ssl"`
	Telemetry        component.TelemetryOptions   `section:"opentelemetry"`
	Drivers          map[string]map[string]string `sections:"driver_" protects:"true" reloadable:"true"`
}

// options are the settings in the form in which a process uses them.
type options struct {
	settings

	config  *config.Config[settings]
	service string        // name of the process's service
	level   slog.LevelVar // of the log; an operator can change it
}

type schedulerOptions struct {
	MaxAttempts int `ini:"max_attempts" default:"3" deprecated:"DEFAULT.scheduler_max_attempts" min:"1" help:"build attempts of a server, each on another host"`
}

type filterOptions struct {
	EnabledFilters    []string `ini:"enabled_filters" deprecated:"DEFAULT.scheduler_default_filters" help:"filters in the order of their use, by their own names or Nova's (default: tried, disabled, down, VCPU, MEMORY_MB, DISK_GB)"`
	HostSubsetSize    int      `ini:"host_subset_size" default:"3" deprecated:"DEFAULT.scheduler_host_subset_size" min:"1" help:"number of best hosts of which one is chosen at random"`
	RAMMultiplier     float64  `ini:"ram_weight_multiplier" default:"1.0" deprecated:"DEFAULT.ram_weight_multiplier" min:"-1000000" max:"1000000" help:"weight of free memory; negative: fill hosts up"`
	CPUMultiplier     float64  `ini:"cpu_weight_multiplier" default:"1.0" deprecated:"DEFAULT.cpu_weight_multiplier" min:"-1000000" max:"1000000" help:"weight of free virtual CPUs"`
	DiskMultiplier    float64  `ini:"disk_weight_multiplier" default:"1.0" deprecated:"DEFAULT.disk_weight_multiplier" min:"-1000000" max:"1000000" help:"weight of free disk"`
	ServersMultiplier float64  `ini:"num_instances_weight_multiplier" default:"0.0" min:"-1000000" max:"1000000" help:"weight of the number of servers"`
}

type apiOptions struct {
	AuthStrategy string `ini:"auth_strategy" default:"keystone" choices:"keystone, noauth2" protects:"true" deprecated:"DEFAULT.auth_strategy" help:"how clients are authenticated: keystone: by a token of Keystone; noauth2: not at all, so that every client is the administrator; noauth2 is the default only for all services in one process"`
	OpenRemote   bool   `ini:"noauth2_remote" default:"false" protects:"true" help:"allow noauth2 on an address that other machines can reach"`
	LinkPrefix   string `ini:"compute_link_prefix" regex:"^(https?://[^/?#@ ]+(/[^?# ]*)?)?$" deprecated:"DEFAULT.osapi_compute_link_prefix" help:"start of the links in replies: the URL of the proxy in front of the API, such as https://nova.example.org (default: the address that the client has used)"`
}

type corsOptions struct {
	Origins []string `ini:"allowed_origin" regex:"^([*]|https?://[^/?#@ ]+)$" help:"origins of web pages that may use the API, such as https://dashboard.example.org"`
}

// sslOptions are the options of oslo.service with which services in Python use HTTPS.
type sslOptions struct {
	CAFile   string `ini:"ca_file" protects:"true" unsupported:"set ssl_ca_file in [wsgi]" help:"authorities of clients' certificates"`
	CertFile string `ini:"cert_file" protects:"true" unsupported:"set ssl_cert_file in [wsgi], which makes the API HTTPS" help:"certificate of the API"`
	KeyFile  string `ini:"key_file" protects:"true" unsupported:"set ssl_key_file in [wsgi]" help:"private key of the certificate"`
}

// flags are the flags of the command line.
type flags struct {
	out       io.Writer
	config    config.Source
	statePath string
	port      string
}

// openByDefault makes noauth2 the default of the process with all services. If an option of [keystone_authtoken] is set, the
// default stays keystone.
func (f *flags) openByDefault() error {
	const strategy = "api.auth_strategy"
	f.config.Defaults = map[string]string{strategy: "noauth2"}
	src := f.source()
	src.Logger = slog.New(slog.DiscardHandler) // load reads the options again and logs their warnings
	c, err := config.Inspect[settings](src)
	if c == nil {
		return err
	}
	for _, v := range c.Values() {
		if v.Section == "keystone_authtoken" && v.Where != "default" {
			f.config.Defaults = nil
			return nil
		}
	}
	return nil
}

// defaults are nova-mini's own defaults of options of packages, and those of the process with all services.
func (f *flags) defaults() map[string]string {
	out := map[string]string{"control_exchange": "nova"}
	maps.Copy(out, f.config.Defaults)
	return out
}

// source returns the places from which the options are read.
func (f *flags) source() config.Source {
	src := f.config
	src.Defaults = f.defaults()
	src.Flags = map[string]string{}
	if f.statePath != "" {
		src.Flags["state_path"] = f.statePath
	}
	if f.port != "" {
		src.Flags["osapi_compute_listen_port"] = f.port
	}
	return src
}

// load reads the options and validates them for the services that will use them. An operator's command names no service. The
// error has a line for each wrong option.
func (f *flags) load(of ...string) (*options, error) {
	c, err := config.Inspect[settings](f.source())
	if c == nil {
		return nil, err
	}
	o, herr := f.options(c)
	if len(of) == 1 {
		o.service = of[0]
	}
	if err := errors.Join(err, herr, o.validate(of...)); err != nil {
		return nil, err
	}
	return o, nil
}

// options returns the read settings in the form in which a process uses them.
func (f *flags) options(c *config.Config[settings]) (*options, error) {
	o := &options{settings: *c.Current(), config: c, service: "nova-mini"} // a copy: the changes below do not affect c
	var err error
	if o.Host == "" {
		if o.Host, err = os.Hostname(); err != nil {
			err = fmt.Errorf("option host is not set, and the machine's name cannot be read: %w", err)
		}
	}
	if m := novaDriver.FindStringSubmatch(o.ComputeDriver); m != nil {
		o.ComputeDriver = m[1]
	}
	return o, err
}

// novaDriver matches a driver's name in Nova's form, such as libvirt.LibvirtDriver.
var novaDriver = regexp.MustCompile(`^([a-z]+)\.[A-Za-z]+Driver$`)

// logger returns a logger that writes to standard error, with the ids of the request. Its level follows the option debug.
func (o *options) logger() *slog.Logger {
	level := func(s *settings) {
		o.level.Set(slog.LevelInfo)
		if s.Debug {
			o.level.Set(slog.LevelDebug)
		}
	}
	level(&o.settings)
	o.config.OnChange(nil, func(_, next *settings) { level(next) })
	return slog.New(reqctx.LogHandler(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: &o.level})))
}

func (o *options) address() string {
	return net.JoinHostPort(strings.TrimSuffix(strings.TrimPrefix(o.Listen, "["), "]"), strconv.Itoa(o.Port))
}

// loopback reports whether only this machine can reach the API.
func (o *options) loopback() bool {
	host, _, err := net.SplitHostPort(o.address())
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// servicePlaceholder stands for the service's name in admin_listen.
const servicePlaceholder = "{service}"

// admin returns the configuration of the admin listener.
func (o *options) admin() service.AdminConfig {
	return service.AdminConfig{Addr: strings.ReplaceAll(o.Admin, servicePlaceholder, o.service), Hosts: o.AdminHosts, Level: &o.level, Config: func() any { return o.config.Values() }}
}

// policy returns the configuration of the policy, with the files of the operator's rules. A file or directory that an option
// names must exist.
func (o *options) policy(log *slog.Logger) policy.Config {
	dir := ""
	if files := o.config.Files(); len(files) > 0 {
		dir = filepath.Dir(files[0])
	}
	cfg := o.Policy.Config(dir, func(option string) bool { return !isDefault(o.config.Where("oslo_policy", option)) })
	cfg.Logger = log
	return cfg
}

// driverConfig returns the configuration of a host's driver: the options of the driver's section, the host's name, and a
// directory for the driver's data. Options of the section that begin with plugin_ are about the driver's program.
func (o *options) driverConfig(host string) (driver.PluginConfig, error) {
	return o.driverConfigFrom(o.Drivers[o.driverSection()], host)
}

// driverConfigFrom is driverConfig with the options of a section, which a reload may have changed.
func (o *options) driverConfigFrom(section map[string]string, host string) (driver.PluginConfig, error) {
	for _, given := range []string{"host", "dir"} { // refused: the driver would use the name or the data of another host
		if _, ok := section[given]; ok {
			return driver.PluginConfig{}, fault.WithReason(
				fault.New(fault.Invalid, "option %s: cannot be set here: host comes from host of [DEFAULT], and dir is instances/HOST in state_path", given),
				"", map[string]string{"option": given})
		}
	}
	options, err := json.Marshal(map[string]string{"host": host, "dir": filepath.Join(o.StatePath, "instances", host)})
	if err != nil {
		return driver.PluginConfig{}, err
	}
	cfg := driver.PluginConfig{Dir: o.PluginDir, Options: options}
	if err := cfg.Configure(section); err != nil {
		return cfg, err
	}
	return cfg, nil
}

// driverSection returns the rest of the name of the section of compute_driver, after driver_.
func (o *options) driverSection() string {
	return (&driver.Options{Driver: o.ComputeDriver, Drivers: o.Drivers}).Section()
}

// driverName returns the exact name, after driver_, that the section of compute_driver has.
func (o *options) driverName() string {
	return strings.TrimPrefix(filepath.Base(o.ComputeDriver), "armature-compute-")
}
