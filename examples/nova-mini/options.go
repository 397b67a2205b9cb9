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
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/config"
	"github.com/armature-go/armature/service/policy"
	"github.com/armature-go/armature/tlsfile"
)

// settings are those of nova.conf that nova-mini knows. Names, sections and
// defaults are Nova's, where Nova has them.
type settings struct {
	Host             string                       `ini:"host" help:"name of this host, the same after every restart (default: the machine's); one compute service has it at a time"`
	ComputeDriver    string                       `ini:"compute_driver" default:"fake" help:"driver of the compute service: fake, NAME for the program armature-compute-NAME in plugin_dir, the absolute path of one, or Nova's name, such as libvirt.LibvirtDriver for libvirt"`
	PluginDir        string                       `ini:"plugin_dir" default:"/usr/lib/armature/plugins" help:"directory of drivers' programs"`
	TransportURL     string                       `ini:"transport_url" secret:"true" help:"message bus: rabbit://user:password@host:port[,user:password@host:port]/vhost, amqps:// alike, nats://user:password@host:port[,...], tls:// alike"`
	ControlExchange  string                       `ini:"control_exchange" default:"nova" regex:"^[A-Za-z0-9_.-]{1,100}$" help:"first part of the names of all queues"`
	MaxMessage       int                          `ini:"max_message_size" default:"4194304" min:"65536" help:"bytes of the largest message on the bus, the same for all services, and not above the broker's own max_message_size"`
	Listen           string                       `ini:"osapi_compute_listen" default:"127.0.0.1" help:"address of the API"`
	Port             int                          `ini:"osapi_compute_listen_port" default:"8774" min:"0" max:"65535" help:"port of the API, 0 for any free one"`
	StatePath        string                       `ini:"state_path" help:"directory that outlives the services of this host, which may share it: for the data of the fake driver, the locks of hosts and the embedded database"`
	ReportInterval   time.Duration                `ini:"report_interval" default:"10" min:"1ms" help:"seconds between heartbeats"`
	ServiceDownTime  time.Duration                `ini:"service_down_time" default:"60" min:"1ms" help:"seconds of silence after which a service is down"`
	BuildTimeout     time.Duration                `ini:"instance_build_timeout" default:"600" min:"1ms" help:"seconds that a build, or an action, may take on one host"`
	RetryInterval    time.Duration                `ini:"task_retry_interval" default:"15" min:"1ms" help:"seconds of silence after which a worker is told again, and another conductor goes on with what one has begun"`
	OperationHistory time.Duration                `ini:"operation_history" default:"2592000" min:"0" help:"seconds after which operations that have ended are forgotten"`
	ShutdownTimeout  time.Duration                `ini:"graceful_shutdown_timeout" default:"60" min:"1ms" help:"seconds that running work may take after SIGTERM"`
	DrainDelay       time.Duration                `ini:"drain_delay" default:"0" min:"0" help:"seconds after SIGTERM in which work is still taken, while /readyz fails and load balancers look elsewhere"`
	CPURatio         float64                      `ini:"cpu_allocation_ratio" default:"4.0" min:"0.01" max:"10000" help:"virtual CPUs per real one"`
	RAMRatio         float64                      `ini:"ram_allocation_ratio" default:"1.0" min:"0.01" max:"10000" help:"memory of servers per real memory"`
	DiskRatio        float64                      `ini:"disk_allocation_ratio" default:"1.0" min:"0.01" max:"10000" help:"disk of servers per real disk"`
	Debug            bool                         `ini:"debug" default:"false" help:"log at debug level" reloadable:"true"`
	Strict           bool                         `ini:"strict" default:"true" strict:"true" help:"refuse options and sections that nova-mini does not know; false: take a file that was written for Nova"`
	Admin            string                       `ini:"admin_listen" help:"address for operators, of this machine only: 127.0.0.1:9774 or unix:/run/nova/{service}.sock, where {service} stands for the service's name, so that all of a host can have one file; the socket's directory is made if it does not exist (default: none)"`
	AdminHosts       []string                     `ini:"admin_hosts" help:"names and addresses by which other machines may reach admin_listen, which asks for no identity; without them it must be of this machine only"`
	SSLAPIs          []string                     `ini:"enabled_ssl_apis" protects:"true" unsupported:"set ssl_cert_file and ssl_key_file in [wsgi], which make the API HTTPS" help:"APIs that are HTTPS"`
	SSLOnly          bool                         `ini:"ssl_only" default:"false" protects:"true" unsupported:"there are no consoles; set ssl_cert_file and ssl_key_file in [wsgi], which make the API HTTPS" help:"consoles accept TLS only"`
	Database         databaseOptions              `section:"database"`
	Scheduler        schedulerOptions             `section:"scheduler"`
	FilterScheduler  filterOptions                `section:"filter_scheduler"`
	Rabbit           rabbitOptions                `section:"oslo_messaging_rabbit"`
	API              apiOptions                   `section:"api"`
	WSGI             wsgiOptions                  `section:"wsgi"`
	CORS             corsOptions                  `section:"cors"`
	Keystone         keystoneOptions              `section:"keystone_authtoken"`
	Policy           policyOptions                `section:"oslo_policy"`
	SSL              sslOptions                   `section:"ssl"`
	Telemetry        telemetryOptions             `section:"opentelemetry"`
	Drivers          map[string]map[string]string `sections:"driver_" protects:"true"`
}

// options are the settings as a process uses them.
type options struct {
	settings

	config  *config.Config[settings]
	service string        // that the process is
	level   slog.LevelVar // of the log, which an operator can set
}

type databaseOptions struct {
	Connection  string `ini:"connection" secret:"true" deprecated:"sql_connection, sql.connection, DEFAULT.sql_connection" help:"mysql://user:password@host:port/name or sqlite:///path/nova.db"`
	MaxPoolSize int    `ini:"max_pool_size" default:"10" deprecated:"sql_max_pool_size, DEFAULT.sql_max_pool_size" min:"1" max:"10000" help:"connections to the database"`
}

type schedulerOptions struct {
	MaxAttempts int `ini:"max_attempts" default:"3" deprecated:"DEFAULT.scheduler_max_attempts" min:"1" help:"hosts on which a build is tried"`
}

type filterOptions struct {
	EnabledFilters    []string `ini:"enabled_filters" deprecated:"DEFAULT.scheduler_default_filters" help:"filters in the order in which they are asked, by their own names or Nova's (default: tried, disabled, down, VCPU, MEMORY_MB, DISK_GB)"`
	HostSubsetSize    int      `ini:"host_subset_size" default:"3" deprecated:"DEFAULT.scheduler_host_subset_size" min:"1" help:"one of so many best hosts is drawn"`
	RAMMultiplier     float64  `ini:"ram_weight_multiplier" default:"1.0" deprecated:"DEFAULT.ram_weight_multiplier" min:"-1000000" max:"1000000" help:"how much free memory counts, negative to fill hosts up"`
	CPUMultiplier     float64  `ini:"cpu_weight_multiplier" default:"1.0" deprecated:"DEFAULT.cpu_weight_multiplier" min:"-1000000" max:"1000000" help:"how much free virtual CPUs count"`
	DiskMultiplier    float64  `ini:"disk_weight_multiplier" default:"1.0" deprecated:"DEFAULT.disk_weight_multiplier" min:"-1000000" max:"1000000" help:"how much free disk counts"`
	ServersMultiplier float64  `ini:"num_instances_weight_multiplier" default:"0.0" min:"-1000000" max:"1000000" help:"how much the number of servers counts"`
}

type apiOptions struct {
	AuthStrategy string `ini:"auth_strategy" default:"keystone" choices:"keystone, noauth2" protects:"true" deprecated:"DEFAULT.auth_strategy" help:"who is let in: keystone, the users whom Keystone knows, or noauth2, every client as the administrator, which is the default of all services in one process only"`
	OpenRemote   bool   `ini:"noauth2_remote" default:"false" protects:"true" help:"let noauth2 be used on an address that other machines can reach"`
	LinkPrefix   string `ini:"compute_link_prefix" regex:"^(https?://[^/?#@ ]+(/[^?# ]*)?)?$" deprecated:"DEFAULT.osapi_compute_link_prefix" help:"URL that begins the links of replies, such as https://nova.example.org: that of the proxy in front of the API (default: the address that the client has reached)"`
}

type wsgiOptions struct {
	CertFile    string        `ini:"ssl_cert_file" protects:"true" deprecated:"DEFAULT.ssl_cert_file" help:"certificate of the API, in PEM form, which makes it HTTPS; it is read again when it changes"`
	KeyFile     string        `ini:"ssl_key_file" protects:"true" deprecated:"DEFAULT.ssl_key_file" help:"its private key"`
	CAFile      string        `ini:"ssl_ca_file" protects:"true" deprecated:"DEFAULT.ssl_ca_file" help:"authorities whose certificates clients must show (default: none is asked for)"`
	ProxyHeader string        `ini:"secure_proxy_ssl_header" unsupported:"set compute_link_prefix in [api] to the URL of the proxy" help:"header with the scheme that the client of a proxy uses"`
	BodyTimeout time.Duration `ini:"client_body_timeout" default:"30" min:"1ms" help:"seconds that a client may take to send the body of a request"`
}

type corsOptions struct {
	Origins []string `ini:"allowed_origin" regex:"^([*]|https?://[^/?#@ ]+)$" help:"origins of web pages that may use the API, such as https://dashboard.example.org"`
}

type keystoneOptions struct {
	AuthURL       string        `ini:"auth_url" protects:"true" deprecated:"identity_uri" help:"Keystone's endpoint, https://host:5000/v3"`
	Username      string        `ini:"username" deprecated:"user_name, admin_user" help:"the service's own user, who may validate tokens"`
	Password      string        `ini:"password" secret:"true" deprecated:"admin_password" help:"and its password"`
	UserDomain    string        `ini:"user_domain_name" default:"Default" help:"domain of the user"`
	Project       string        `ini:"project_name" default:"service" deprecated:"tenant_name, admin_tenant_name" help:"project of the user"`
	ProjectDomain string        `ini:"project_domain_name" default:"Default" help:"domain of the project"`
	ServiceRoles  []string      `ini:"service_token_roles" default:"service" help:"roles, one of them, of a service that may ask for a user whose token has expired"`
	CAFile        string        `ini:"cafile" protects:"true" help:"authorities that are trusted with Keystone's certificate (default: the system's)"`
	CertFile      string        `ini:"certfile" protects:"true" help:"certificate to show to Keystone"`
	KeyFile       string        `ini:"keyfile" protects:"true" help:"its private key, of mode 0600, or 0640 if it belongs to root"`
	ServerName    string        `ini:"ssl_server_name" protects:"true" help:"name that Keystone's certificate must have (default: the host of auth_url)"`
	Insecure      bool          `ini:"insecure" default:"false" protects:"true" unsupported:"Keystone's certificate is always verified: name its authority in cafile" help:"verify no certificate"`
	TokenBind     string        `ini:"enforce_token_bind" default:"permissive" protects:"true" unsupported:"tokens that are bound to a client are not checked for it: leave it out" help:"check what a token is bound to"`
	CacheTime     time.Duration `ini:"token_cache_time" default:"300" min:"1ms" help:"seconds for which a token is believed, so also for which one may live that was revoked"`
}

// files are those for TLS to Keystone.
func (k *keystoneOptions) files() tlsfile.Client {
	return tlsfile.Client{CAFile: k.CAFile, CertFile: k.CertFile, KeyFile: k.KeyFile, ServerName: k.ServerName}
}

type policyOptions struct {
	File string   `ini:"policy_file" default:"policy.yaml" protects:"true" deprecated:"DEFAULT.policy_file" help:"rules that are not the defaults, beside the first configuration file unless the path is absolute"`
	Dirs []string `ini:"policy_dirs" default:"policy.d" protects:"true" deprecated:"DEFAULT.policy_dirs" help:"directories with more such files, which win"`
	// What these protect is always so, or cannot be.
	Scope       bool   `ini:"enforce_scope" default:"true" protects:"true" unsupported:"the scope of a token always counts: leave it out" help:"judge the scope of tokens"`
	NewDefaults bool   `ini:"enforce_new_defaults" default:"true" protects:"true" unsupported:"older defaults are never let in: leave it out" help:"the newer defaults of rules count alone"`
	DefaultRule string `ini:"policy_default_rule" default:"default" protects:"true" unsupported:"a rule that is not defined denies: leave it out" help:"rule for rules that are not defined"`
}

// sslOptions are those of oslo.service, which make Python's services HTTPS.
type sslOptions struct {
	CAFile   string `ini:"ca_file" protects:"true" unsupported:"set ssl_ca_file in [wsgi]" help:"authorities of clients' certificates"`
	CertFile string `ini:"cert_file" protects:"true" unsupported:"set ssl_cert_file in [wsgi], which makes the API HTTPS" help:"certificate of the API"`
	KeyFile  string `ini:"key_file" protects:"true" unsupported:"set ssl_key_file in [wsgi]" help:"its private key"`
}

type rabbitOptions struct {
	QuorumQueue bool   `ini:"rabbit_quorum_queue" default:"false" help:"keep casts in quorum queues; queues that exist keep their type"`
	SSL         bool   `ini:"ssl" default:"false" protects:"true" deprecated:"rabbit_use_ssl" help:"connect to the bus by TLS, also if it is NATS, as amqps://, tls:// and ?ssl=1 do; the port of RabbitMQ is then 5671 unless it is set"`
	SSLCAFile   string `ini:"ssl_ca_file" protects:"true" deprecated:"kombu_ssl_ca_certs" help:"authorities that are trusted with the certificates of the bus (default: the system's)"`
	SSLCertFile string `ini:"ssl_cert_file" protects:"true" deprecated:"kombu_ssl_certfile" help:"certificate to show to the bus"`
	SSLKeyFile  string `ini:"ssl_key_file" protects:"true" deprecated:"kombu_ssl_keyfile" help:"its private key, of mode 0600, or 0640 if it belongs to root"`
	SSLVersion  string `ini:"ssl_version" protects:"true" deprecated:"kombu_ssl_version" unsupported:"TLS is 1.2 or later: leave it out" help:"version of TLS"`
	SSLFIPS     bool   `ini:"ssl_enforce_fips_mode" default:"false" protects:"true" unsupported:"use a build for FIPS 140 with GODEBUG=fips140=only" help:"FIPS 140"`
}

// files are those for TLS to the bus.
func (r *rabbitOptions) files() tlsfile.Client {
	return tlsfile.Client{CAFile: r.SSLCAFile, CertFile: r.SSLCertFile, KeyFile: r.SSLKeyFile}
}

// flags are those of the command line.
type flags struct {
	out       io.Writer
	config    config.Source
	statePath string
	port      string
}

// openByDefault makes noauth2 the default, for all services in one process. A file that says how
// to reach Keystone wants it, also if it does not name the strategy.
func (f *flags) openByDefault() error {
	const strategy = "api.auth_strategy"
	f.config.Defaults = map[string]string{strategy: "noauth2"}
	src := f.source()
	src.Logger = slog.New(slog.DiscardHandler) // load says it
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

// source says where the options come from.
func (f *flags) source() config.Source {
	src := f.config
	src.Flags = map[string]string{}
	if f.statePath != "" {
		src.Flags["state_path"] = f.statePath
	}
	if f.port != "" {
		src.Flags["osapi_compute_listen_port"] = f.port
	}
	return src
}

// load reads the options, and judges them for the services that are to use them: the error has all that is
// wrong, a line each. A command of an operator names no service.
func (f *flags) load(of ...string) (*options, error) {
	c, err := config.Inspect[settings](f.source())
	if c == nil {
		return nil, err
	}
	o, herr := f.options(c)
	if len(of) == 1 {
		o.service = of[0]
	}
	if err := errors.Join(err, herr, o.judge(of...)); err != nil {
		return nil, err
	}
	return o, nil
}

// options returns what is read as a process uses it.
func (f *flags) options(c *config.Config[settings]) (*options, error) {
	o := &options{settings: *c.Current(), config: c, service: "nova-mini"} // those that it adds itself are its own
	var err error
	if o.Host == "" {
		if o.Host, err = os.Hostname(); err != nil {
			err = fmt.Errorf("option host is not set, and the machine has no name: %w", err)
		}
	}
	if m := novaDriver.FindStringSubmatch(o.ComputeDriver); m != nil {
		o.ComputeDriver = m[1]
	}
	beside := func(path string) string {
		if path == "" || filepath.IsAbs(path) || len(f.config.Files) == 0 {
			return path
		}
		return filepath.Join(filepath.Dir(f.config.Files[0]), path)
	}
	o.Policy.File = beside(o.Policy.File)
	o.Policy.Dirs = slices.Clone(o.Policy.Dirs) // those of c do not change: a reload compares them
	for i := range o.Policy.Dirs {
		o.Policy.Dirs[i] = beside(o.Policy.Dirs[i])
	}
	return o, err
}

// novaDriver is a driver's name in Nova's form, such as libvirt.LibvirtDriver.
var novaDriver = regexp.MustCompile(`^([a-z]+)\.[A-Za-z]+Driver$`)

// logger writes to standard error, with the ids of the request.
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

// loopback reports whether the API can be reached from this machine only.
func (o *options) loopback() bool {
	host, _, err := net.SplitHostPort(o.address())
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// servicePlaceholder stands for the service's name in admin_listen.
const servicePlaceholder = "{service}"

// admin is the configuration of the admin listener.
func (o *options) admin() service.AdminConfig {
	return service.AdminConfig{Addr: strings.ReplaceAll(o.Admin, servicePlaceholder, o.service), Hosts: o.AdminHosts, Level: &o.level, Config: func() any { return o.config.Values() }}
}

// policy is where the operator's rules are. A file that an option names must exist.
func (o *options) policy(log *slog.Logger) policy.Config {
	cfg := policy.Config{File: o.Policy.File, Dirs: o.Policy.Dirs, Logger: log}
	for _, v := range o.config.Values() {
		switch {
		case v.Section != "oslo_policy" || v.Where == "default":
		case v.Name == "policy_file":
			cfg.Required = append(cfg.Required, o.Policy.File)
		case v.Name == "policy_dirs":
			cfg.Required = append(cfg.Required, o.Policy.Dirs...)
		}
	}
	return cfg
}

// driverConfig returns the configuration of a host's driver: its section, to which
// the worker adds the host's name and a directory that is the driver's own. The
// section's options that begin with plugin_ are about the program.
func (o *options) driverConfig(host string) (driver.PluginConfig, error) {
	name := o.driverSection()
	for _, given := range []string{"host", "dir"} { // that of another host, or of another driver, in silence
		if _, ok := o.Drivers[name][given]; ok {
			return driver.PluginConfig{}, fault.WithReason(
				fault.New(fault.Invalid, "option %s: cannot be set here: host is that of [DEFAULT], and dir is instances/HOST in state_path", given),
				"", map[string]string{"option": given})
		}
	}
	options, err := json.Marshal(map[string]string{"host": host, "dir": filepath.Join(o.StatePath, "instances", host)})
	if err != nil {
		return driver.PluginConfig{}, err
	}
	cfg := driver.PluginConfig{Dir: o.PluginDir, Options: options}
	if err := cfg.Configure(o.Drivers[name]); err != nil {
		return cfg, err
	}
	return cfg, nil
}

// driverSection is the name, after driver_, of the section of compute_driver. Upper and lower case are the same,
// and so are - and _ unless there are both: the environment has neither lower case nor -.
func (o *options) driverSection() string {
	name := o.driverName()
	if _, ok := o.Drivers[name]; ok {
		return name
	}
	plain := strings.NewReplacer("-", "_")
	for _, known := range slices.Sorted(maps.Keys(o.Drivers)) {
		if strings.EqualFold(plain.Replace(known), plain.Replace(name)) {
			return known
		}
	}
	return name
}

// driverName is what the section of compute_driver is called after driver_.
func (o *options) driverName() string {
	return strings.TrimPrefix(filepath.Base(o.ComputeDriver), "armature-compute-")
}
