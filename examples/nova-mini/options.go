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

// settings are the options of nova.conf that nova-mini has. If Nova has an option, its name, section and default are
// Nova's.
type settings struct {
	Host             string                       `ini:"host" help:"name of this host; it must stay the same after every restart, and only one compute service at a time can use it (default: the machine's name)"`
	ComputeDriver    string                       `ini:"compute_driver" default:"fake" help:"driver of the compute service: fake, NAME for the program armature-compute-NAME in plugin_dir, the absolute path of a driver program, or Nova's name, such as libvirt.LibvirtDriver for libvirt"`
	PluginDir        string                       `ini:"plugin_dir" default:"/usr/lib/armature/plugins" help:"directory of the driver programs"`
	TransportURL     string                       `ini:"transport_url" secret:"true" help:"message bus: rabbit://user:password@host:port[,user:password@host:port]/vhost, nats://user:password@host:port[,...], or watermill-amqp://user:password@host:port/vhost; with TLS amqps:// or tls://, or ?ssl=1"`
	ControlExchange  string                       `ini:"control_exchange" default:"nova" regex:"^[A-Za-z0-9_.-]{1,100}$" help:"first part of the names of all queues"`
	MaxMessage       int                          `ini:"max_message_size" default:"4194304" min:"65536" help:"size of the largest message on the bus, in bytes; it must be the same for all services, and not above the broker's own max_message_size"`
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
	Drivers          map[string]map[string]string `sections:"driver_" protects:"true" reloadable:"true"`
}

// options are the settings in the form in which a process uses them.
type options struct {
	settings

	config  *config.Config[settings]
	service string        // name of the process's service
	level   slog.LevelVar // of the log; an operator can change it
}

type databaseOptions struct {
	Connection  string `ini:"connection" secret:"true" deprecated:"sql_connection, sql.connection, DEFAULT.sql_connection" help:"mysql://user:password@host:port/name or sqlite:///path/nova.db"`
	MaxPoolSize int    `ini:"max_pool_size" default:"10" deprecated:"sql_max_pool_size, DEFAULT.sql_max_pool_size" min:"1" max:"10000" help:"connections to the database"`
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

type wsgiOptions struct {
	CertFile    string        `ini:"ssl_cert_file" protects:"true" deprecated:"DEFAULT.ssl_cert_file" help:"certificate of the API, in PEM form, with which the API uses HTTPS; a changed file is read again"`
	KeyFile     string        `ini:"ssl_key_file" protects:"true" deprecated:"DEFAULT.ssl_key_file" help:"private key of the API's certificate"`
	CAFile      string        `ini:"ssl_ca_file" protects:"true" deprecated:"DEFAULT.ssl_ca_file" help:"authorities of the certificates that clients must show (default: clients need no certificate)"`
	ProxyHeader string        `ini:"secure_proxy_ssl_header" unsupported:"set compute_link_prefix in [api] to the URL of the proxy" help:"header in which a proxy sends the scheme that its client used"`
	BodyTimeout time.Duration `ini:"client_body_timeout" default:"30" min:"1ms" help:"seconds that a client may take to send a request's body"`
}

type corsOptions struct {
	Origins []string `ini:"allowed_origin" regex:"^([*]|https?://[^/?#@ ]+)$" help:"origins of web pages that may use the API, such as https://dashboard.example.org"`
}

type keystoneOptions struct {
	AuthURL       string        `ini:"auth_url" protects:"true" deprecated:"identity_uri" help:"Keystone's endpoint, https://host:5000/v3"`
	Username      string        `ini:"username" deprecated:"user_name, admin_user" help:"user of this service, which must be allowed to validate tokens"`
	Password      string        `ini:"password" secret:"true" deprecated:"admin_password" help:"password of the user"`
	UserDomain    string        `ini:"user_domain_name" default:"Default" help:"domain of the user"`
	Project       string        `ini:"project_name" default:"service" deprecated:"tenant_name, admin_tenant_name" help:"project of the user"`
	ProjectDomain string        `ini:"project_domain_name" default:"Default" help:"domain of the project"`
	ServiceRoles  []string      `ini:"service_token_roles" default:"service" help:"roles of services; a service with one of them may act for a user whose token has expired"`
	CAFile        string        `ini:"cafile" protects:"true" help:"authorities that are trusted for Keystone's certificate (default: the system's)"`
	CertFile      string        `ini:"certfile" protects:"true" help:"client certificate for Keystone"`
	KeyFile       string        `ini:"keyfile" protects:"true" help:"private key of certfile, with mode 0600, or 0640 if the file belongs to root"`
	ServerName    string        `ini:"ssl_server_name" protects:"true" help:"name that Keystone's certificate must have (default: the host of auth_url)"`
	Insecure      bool          `ini:"insecure" default:"false" protects:"true" unsupported:"Keystone's certificate is always verified: name its authority in cafile" help:"verify no certificate"`
	TokenBind     string        `ini:"enforce_token_bind" default:"permissive" protects:"true" unsupported:"nova-mini does not check the client to which a token is bound: leave it out" help:"check the client to which a token is bound"`
	CacheTime     time.Duration `ini:"token_cache_time" default:"300" min:"1ms" help:"seconds for which a checked token is cached; within this time a revoked token is still accepted"`
}

// files are the files for TLS to Keystone.
func (k *keystoneOptions) files() tlsfile.Client {
	return tlsfile.Client{CAFile: k.CAFile, CertFile: k.CertFile, KeyFile: k.KeyFile, ServerName: k.ServerName}
}

type policyOptions struct {
	File string   `ini:"policy_file" default:"policy.yaml" protects:"true" deprecated:"DEFAULT.policy_file" help:"file of rules that replace the defaults; a relative path is relative to the first configuration file"`
	Dirs []string `ini:"policy_dirs" default:"policy.d" protects:"true" deprecated:"DEFAULT.policy_dirs" help:"directories with more files of rules, which replace those of policy_file"`
	// The protection of these options is always on, or does not exist.
	Scope       bool   `ini:"enforce_scope" default:"true" protects:"true" unsupported:"the scope of a token always counts: leave it out" help:"check the scope of tokens"`
	NewDefaults bool   `ini:"enforce_new_defaults" default:"true" protects:"true" unsupported:"the older defaults of rules never count: leave it out" help:"only the newer defaults of rules count"`
	DefaultRule string `ini:"policy_default_rule" default:"default" protects:"true" unsupported:"a rule that is not defined denies: leave it out" help:"rule for rules that are not defined"`
}

// sslOptions are the options of oslo.service with which services in Python use HTTPS.
type sslOptions struct {
	CAFile   string `ini:"ca_file" protects:"true" unsupported:"set ssl_ca_file in [wsgi]" help:"authorities of clients' certificates"`
	CertFile string `ini:"cert_file" protects:"true" unsupported:"set ssl_cert_file in [wsgi], which makes the API HTTPS" help:"certificate of the API"`
	KeyFile  string `ini:"key_file" protects:"true" unsupported:"set ssl_key_file in [wsgi]" help:"private key of the certificate"`
}

type rabbitOptions struct {
	QuorumQueue bool   `ini:"rabbit_quorum_queue" default:"false" help:"store casts in quorum queues; existing queues keep their type"`
	SSL         bool   `ini:"ssl" default:"false" protects:"true" deprecated:"rabbit_use_ssl" help:"connect to the bus with TLS, as with amqps://, tls:// and ?ssl=1; it also applies to NATS; the default port of RabbitMQ is then 5671"`
	SSLCAFile   string `ini:"ssl_ca_file" protects:"true" deprecated:"kombu_ssl_ca_certs" help:"authorities that are trusted for the certificates of the bus (default: the system's)"`
	SSLCertFile string `ini:"ssl_cert_file" protects:"true" deprecated:"kombu_ssl_certfile" help:"client certificate for the bus"`
	SSLKeyFile  string `ini:"ssl_key_file" protects:"true" deprecated:"kombu_ssl_keyfile" help:"private key of ssl_cert_file, with mode 0600, or 0640 if the file belongs to root"`
	SSLVersion  string `ini:"ssl_version" protects:"true" deprecated:"kombu_ssl_version" unsupported:"TLS is 1.2 or later: leave it out" help:"version of TLS for the bus"`
	SSLFIPS     bool   `ini:"ssl_enforce_fips_mode" default:"false" protects:"true" unsupported:"use a build for FIPS 140 with GODEBUG=fips140=only" help:"FIPS 140"`
}

// files are the files for TLS to the bus.
func (r *rabbitOptions) files() tlsfile.Client {
	return tlsfile.Client{CAFile: r.SSLCAFile, CertFile: r.SSLCertFile, KeyFile: r.SSLKeyFile}
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

// source returns the places from which the options are read.
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
	beside := func(path string) string {
		if path == "" || filepath.IsAbs(path) || len(f.config.Files) == 0 {
			return path
		}
		return filepath.Join(filepath.Dir(f.config.Files[0]), path)
	}
	o.Policy.File = beside(o.Policy.File)
	o.Policy.Dirs = slices.Clone(o.Policy.Dirs) // the slice of c must not change, because a reload compares it
	for i := range o.Policy.Dirs {
		o.Policy.Dirs[i] = beside(o.Policy.Dirs[i])
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

// driverSection returns the name, after driver_, of the section of compute_driver. If no section has the exact name, it finds a
// section without regard to case, with - and _ as equal: names in the environment have neither lower case nor -.
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

// driverName returns the exact name, after driver_, that the section of compute_driver has.
func (o *options) driverName() string {
	return strings.TrimPrefix(filepath.Base(o.ComputeDriver), "armature-compute-")
}
