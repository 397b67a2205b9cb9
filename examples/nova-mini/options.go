package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/scheduler"
	"github.com/armature-go/armature/examples/nova-mini/session"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/urlcheck"
	"github.com/armature-go/armature/tlsfile"
)

// options has a field for each option of nova.conf that nova-mini supports. An option that Nova also has keeps Nova's name and
// section, and usually Nova's default.
type options struct {
	component.Options
	component.AccessOptions

	ComputeDriver   string                       `ini:"compute_driver" default:"fake" help:"driver of the compute service: fake, NAME for the program armature-compute-NAME in plugin_dir, the absolute path of a driver program, or Nova's name, such as libvirt.LibvirtDriver for libvirt"`
	PluginDir       string                       `ini:"plugin_dir" default:"/usr/lib/armature/plugins" help:"directory of the driver programs"`
	Listen          string                       `ini:"osapi_compute_listen" default:"127.0.0.1" help:"address of the API"`
	Port            int                          `ini:"osapi_compute_listen_port" default:"8774" min:"0" max:"65535" help:"port of the API; 0: any free port"`
	BuildTimeout    time.Duration                `ini:"instance_build_timeout" default:"600" min:"1ms" help:"seconds that a build or an action may take on one host"`
	ShelvedOffload  time.Duration                `ini:"shelved_offload_time" default:"0" min:"-1s" help:"seconds that a shelved server stays on its host; 0: it is removed at once, -1: it stays until a client removes it"`
	RetryInterval   time.Duration                `ini:"task_retry_interval" default:"15" min:"1ms" help:"seconds without a report after which a request to a compute service is repeated, and seconds without a renewed lease after which another conductor continues an operation"`
	CPURatio        float64                      `ini:"cpu_allocation_ratio" default:"4.0" min:"0.01" max:"10000" help:"virtual CPUs that servers can claim for each real CPU"`
	RAMRatio        float64                      `ini:"ram_allocation_ratio" default:"1.0" min:"0.01" max:"10000" help:"memory that servers can claim, as a multiple of the real memory"`
	DiskRatio       float64                      `ini:"disk_allocation_ratio" default:"1.0" min:"0.01" max:"10000" help:"disk that servers can claim, as a multiple of the real disk"`
	ReclaimInterval time.Duration                `ini:"reclaim_instance_interval" default:"0" min:"0s" help:"seconds for which a deleted server can be restored; 0: a server is deleted at once, and cannot be restored"`
	SyncPower       time.Duration                `ini:"sync_power_state_interval" default:"600" help:"seconds between two comparisons of the power states of all guests of a host with the database; 0: 60 seconds, as in Nova; negative: all guests are never compared, and only events of the driver count"`
	DeletedKept     time.Duration                `ini:"deleted_server_retention" default:"86400" min:"0s" help:"seconds for which administrators can list a deleted server"`
	UsageKept       time.Duration                `ini:"usage_retention" default:"34560000" min:"0s" help:"seconds for which reports of usage have a deleted server; a report about a longer time lacks servers"`
	InstanceNames   string                       `ini:"instance_name_template" default:"instance-%(uuid)s" help:"name of a server on its host; with %(uuid)s, and if needed %(hostname)s, %(project_id)s, %(user_id)s, %(reservation_id)s and %(launch_index)d (Nova's default, instance-%08x, has a number that servers do not have here)"`
	AuditPeriod     string                       `ini:"instance_usage_audit_period" default:"month" help:"period of the log of the audits of usage: hour, day, month or year, and @ with the minute, hour, day or month of its begin, such as month@15; nova-mini runs no audits"`
	UsageAudit      bool                         `ini:"instance_usage_audit" default:"false" unsupported:"nova-mini runs no audits of usage: leave this option out" help:"run audits of usage, which send notifications"`
	Zone            string                       `ini:"default_availability_zone" default:"nova" regex:"^[^:]{1,255}$" help:"availability zone of the host of a compute service; hosts with different values are in different zones"`
	MyIP            string                       `ini:"my_ip" help:"IPv4 address of the host of a compute service, which administrators see as host_ip (default: the address with which the host reaches other networks)"`
	InternalZone    string                       `ini:"internal_service_availability_zone" default:"internal" regex:"^[^:]{1,255}$" help:"availability zone of the services that are not on compute hosts, which must not be that of a host"`
	ScheduleZone    string                       `ini:"default_schedule_zone" regex:"^[^:]{0,255}$" help:"availability zone of servers whose clients name none (default: any)"`
	SSLAPIs         []string                     `ini:"enabled_ssl_apis" protects:"true" unsupported:"set ssl_cert_file and ssl_key_file in [wsgi], which make the API HTTPS" help:"APIs that use HTTPS"`
	SSLOnly         bool                         `ini:"ssl_only" default:"false" protects:"true" unsupported:"set ssl_cert_file and ssl_key_file in [consoleproxy], which make the proxy for consoles accept TLS only" help:"consoles accept TLS only"`
	Scheduler       schedulerOptions             `section:"scheduler"`
	FilterScheduler filterOptions                `section:"filter_scheduler"`
	Quota           quotaOptions                 `section:"quota"`
	Image           imageOptions                 `section:"image"`
	Neutron         neutronOptions               `section:"neutron"`
	Glance          glanceOptions                `section:"glance"`
	VNC             vncOptions                   `section:"vnc"`
	SerialConsole   serialOptions                `section:"serial_console"`
	Console         consoleOptions               `section:"console"`
	ConsoleAuth     consoleAuthOptions           `section:"consoleauth"`
	ConsoleProxy    consoleProxyOptions          `section:"consoleproxy"`
	Links           linkOptions                  `section:"api"`
	Proxy           proxyOptions                 `section:"wsgi"`
	SSL             sslOptions                   `section:"ssl"`
	Drivers         map[string]map[string]string `sections:"driver_" protects:"true" reloadable:"true"`
}

type schedulerOptions struct {
	MaxAttempts int `ini:"max_attempts" default:"3" deprecated:"DEFAULT.scheduler_max_attempts" min:"1" help:"maximum number of build attempts of a server, each on another host"`
}

type filterOptions struct {
	EnabledFilters    []string `ini:"enabled_filters" deprecated:"DEFAULT.scheduler_default_filters" help:"filters in the order of their use, by their own names or Nova's (default: disabled, down, capabilities, VCPU, MEMORY_MB, DISK_GB; tried, extra_specs, forced, zone, platform, traits, affinity and anti_affinity are always used)"`
	HostSubsetSize    int      `ini:"host_subset_size" default:"3" deprecated:"DEFAULT.scheduler_host_subset_size" min:"1" help:"number of best hosts from which one is chosen at random"`
	MaxServers        int64    `ini:"max_instances_per_host" default:"50" deprecated:"DEFAULT.max_instances_per_host" min:"1" help:"maximum number of servers on a host, if the filter NumInstancesFilter is enabled"`
	RAMMultiplier     float64  `ini:"ram_weight_multiplier" default:"1.0" deprecated:"DEFAULT.ram_weight_multiplier" min:"-1000000" max:"1000000" help:"weight of free memory; negative: fill hosts up"`
	CPUMultiplier     float64  `ini:"cpu_weight_multiplier" default:"1.0" deprecated:"DEFAULT.cpu_weight_multiplier" min:"-1000000" max:"1000000" help:"weight of free virtual CPUs"`
	DiskMultiplier    float64  `ini:"disk_weight_multiplier" default:"1.0" deprecated:"DEFAULT.disk_weight_multiplier" min:"-1000000" max:"1000000" help:"weight of free disk"`
	ServersMultiplier float64  `ini:"num_instances_weight_multiplier" default:"0.0" min:"-1000000" max:"1000000" help:"weight of the number of servers"`
	NearMultiplier    float64  `ini:"soft_affinity_weight_multiplier" default:"1.0" deprecated:"DEFAULT.soft_affinity_weight_multiplier" min:"0" max:"1000000" help:"weight for preferring hosts with servers of the same group, with the policy soft-affinity"`
	FarMultiplier     float64  `ini:"soft_anti_affinity_weight_multiplier" default:"1.0" deprecated:"DEFAULT.soft_anti_affinity_weight_multiplier" min:"0" max:"1000000" help:"weight for avoiding hosts with servers of the same group, with the policy soft-anti-affinity"`
}

// quotaOptions are the limits of projects, users and servers. The names and defaults are Nova's.
type quotaOptions struct {
	Instances    int64 `ini:"instances" default:"10" min:"-1" deprecated:"DEFAULT.quota_instances" help:"servers of a project; -1: no limit"`
	Cores        int64 `ini:"cores" default:"20" min:"-1" deprecated:"DEFAULT.quota_cores" help:"virtual CPUs of the servers of a project; -1: no limit"`
	RAM          int64 `ini:"ram" default:"51200" min:"-1" deprecated:"DEFAULT.quota_ram" help:"MiB of memory of the servers of a project; -1: no limit"`
	Metadata     int64 `ini:"metadata_items" default:"128" min:"-1" deprecated:"DEFAULT.quota_metadata_items" help:"metadata items of a server; -1: no limit"`
	KeyPairs     int64 `ini:"key_pairs" default:"100" min:"-1" deprecated:"DEFAULT.quota_key_pairs" help:"key pairs of a user; -1: no limit"`
	ServerGroups int64 `ini:"server_groups" default:"10" min:"-1" deprecated:"DEFAULT.quota_server_groups" help:"server groups of a project; -1: no limit"`
	Files        int64 `ini:"injected_files" default:"5" min:"-1" deprecated:"DEFAULT.quota_injected_files" help:"files for the guest of a server; -1: no limit"`
	FileContent  int64 `ini:"injected_file_content_bytes" default:"10240" min:"-1" max:"1048576" deprecated:"DEFAULT.quota_injected_file_content_bytes" help:"bytes of a file for a guest; -1: no limit"`
	FilePath     int64 `ini:"injected_file_path_length" default:"255" min:"-1" deprecated:"DEFAULT.quota_injected_file_path_length" help:"bytes of the path of a file for a guest; -1: no limit"`
	GroupMembers int64 `ini:"server_group_members" default:"10" min:"-1" deprecated:"DEFAULT.quota_server_group_members" help:"servers of a user in a server group; -1: no limit"`
}

// limits returns the limits in the form that the store needs.
func (q *quotaOptions) limits() store.Limits {
	return store.Limits{
		store.Instances: q.Instances, store.Cores: q.Cores, store.RAM: q.RAM, store.Metadata: q.Metadata,
		store.KeyPairs: q.KeyPairs, store.ServerGroups: q.ServerGroups, store.GroupMembers: q.GroupMembers,
		store.InjectedFiles: q.Files, store.FileContentBytes: q.FileContent, store.FilePathLength: q.FilePath,
	}
}

// imageOptions name a directory of images, for a nova-mini without an image service. Nova has no such section, because it always has an image service.
type imageOptions struct {
	Directory string `ini:"directory" help:"directory of the images from which servers boot, as NAME.qcow2, NAME.img or NAME.raw; the file images.json there may describe them (default: the fake driver has the image cirros; another driver accepts the names that it knows)"`
}

// glanceOptions configure the use of the image service. nova-mini logs in with its own user. Unlike Nova, it sends no tokens of users to hosts.
type glanceOptions struct {
	sessionOptions

	UploadRetry     time.Duration `ini:"upload_retry_time" default:"120" min:"0s" help:"seconds for which a compute service repeats the upload of a snapshot while the image service is away"`
	TransferTimeout time.Duration `ini:"transfer_timeout" default:"60" min:"1s" help:"seconds without a byte after which the transfer of an image is aborted"`
	Signatures      bool          `ini:"verify_glance_signatures" default:"false" protects:"true" unsupported:"signatures of images are not verified, only checksums: leave this option out" help:"verify the signatures of images"`
}

// neutronOptions configure the use of the network service.
type neutronOptions struct {
	sessionOptions
}

// vncOptions configure VNC consoles. Unlike in Nova, they are disabled by default, because their URLs do not work without a console proxy.
type vncOptions struct {
	Enabled     bool   `ini:"enabled" default:"false" help:"clients can open VNC consoles"`
	URL         string `ini:"novncproxy_base_url" regex:"^(https?://[^ ]+)?$" help:"URL of noVNC's page for clients, such as https://consoles.example.org/vnc_lite.html, whose WebSocket reaches the console proxy (default: the console proxy, if it is in the same process)"`
	ProxyClient string `ini:"server_proxyclient_address" help:"address of this host at which the console proxy reaches VNC consoles (default: the address at which the driver says that they listen; Nova's default is 127.0.0.1)"`
}

// serialOptions configure serial consoles.
type serialOptions struct {
	Enabled     bool   `ini:"enabled" default:"false" help:"clients can open serial consoles"`
	URL         string `ini:"base_url" regex:"^(wss?://[^ ]+)?$" help:"URL of the console proxy for clients, such as wss://consoles.example.org/ (default: the console proxy, if it is in the same process)"`
	ProxyClient string `ini:"proxyclient_address" help:"address of this host at which the console proxy reaches serial consoles (default: the address at which the driver says that they listen; Nova's default is 127.0.0.1)"`
}

// consoleOptions configure which web pages may open consoles.
type consoleOptions struct {
	Origins []string `ini:"allowed_origins" deprecated:"DEFAULT.console_allowed_origins" help:"host names that the header Origin of a browser may have, besides the name of the console proxy"`
}

// consoleAuthOptions configure the tokens with which clients open consoles.
type consoleAuthOptions struct {
	TTL     time.Duration `ini:"token_ttl" default:"600" min:"1s" deprecated:"DEFAULT.console_token_ttl" help:"seconds for which a client can open a console with a token"`
	Enforce bool          `ini:"enforce_session_timeout" default:"false" protects:"true" help:"sessions end when their tokens expire"`
}

// consoleProxyOptions configure the console proxy. Nova has no such section, because it has one proxy for each type of console.
type consoleProxyOptions struct {
	Listen      string        `ini:"listen" default:"127.0.0.1" help:"address of the console proxy"`
	Port        int           `ini:"port" default:"6080" min:"0" max:"65535" help:"port of the console proxy; 0: any free port"`
	CertFile    string        `ini:"ssl_cert_file" protects:"true" help:"certificate chain of the console proxy, which makes it accept TLS only"`
	KeyFile     string        `ini:"ssl_key_file" protects:"true" help:"private key of ssl_cert_file, with mode 0600, or 0640 if the file belongs to root"`
	LocalHosts  []string      `ini:"local_hosts" help:"names of the compute hosts on the machine of the console proxy; only consoles of these hosts may have loopback addresses (default: the name in the option host)"`
	MaxSessions int           `ini:"max_sessions" default:"1000" min:"1" help:"maximum number of open consoles"`
	MaxServer   int           `ini:"max_sessions_per_server" default:"10" min:"1" help:"maximum number of open consoles of one server"`
	Idle        time.Duration `ini:"idle_timeout" default:"3600" min:"1s" help:"seconds without data after which a session ends"`
}

// consoles reports whether clients can open consoles.
func (o *options) consoles() bool { return o.VNC.Enabled || o.SerialConsole.Enabled }

// sessionOptions configure how nova-mini logs in at Keystone to use another service. The names are Nova's.
type sessionOptions struct {
	AuthURL       string        `ini:"auth_url" protects:"true" help:"Keystone's endpoint, https://host:5000/v3, at which nova-mini logs in to use the service (default: the service is not used)"`
	Username      string        `ini:"username" help:"user that nova-mini logs in as, with the role admin, because nova-mini acts for all projects"`
	Password      string        `ini:"password" secret:"true" help:"password of the user"`
	UserDomain    string        `ini:"user_domain_name" default:"Default" help:"domain of the user"`
	Project       string        `ini:"project_name" default:"service" help:"project of the user"`
	ProjectDomain string        `ini:"project_domain_name" default:"Default" help:"domain of the project"`
	Region        string        `ini:"region_name" help:"region of the service in Keystone's catalog (default: any)"`
	Interfaces    []string      `ini:"valid_interfaces" default:"internal, public" help:"kinds of endpoints in Keystone's catalog, in the order of preference"`
	Endpoint      string        `ini:"endpoint_override" protects:"true" help:"URL of the service (default: the URL in Keystone's catalog)"`
	CAFile        string        `ini:"cafile" protects:"true" help:"authorities that are trusted for the certificates of Keystone and the service (default: the system's)"`
	CertFile      string        `ini:"certfile" protects:"true" help:"client certificate for Keystone and the service"`
	KeyFile       string        `ini:"keyfile" protects:"true" help:"private key of certfile, with mode 0600, or 0640 if the file belongs to root"`
	Timeout       time.Duration `ini:"timeout" default:"30" min:"1ms" help:"seconds that a request may take, without the transfer of an image"`
	Insecure      bool          `ini:"insecure" default:"false" protects:"true" unsupported:"certificates are always verified: name their authority in cafile" help:"verify no certificate"`
}

// config returns the configuration of a session. It reads the TLS files that the options name. The parameter userTokens says whether
// clients send Keystone's tokens.
func (o *sessionOptions) config(userTokens bool) (session.Config, error) {
	cfg := session.Config{
		AuthURL: o.AuthURL, Username: o.Username, Password: o.Password, UserDomain: o.UserDomain, Project: o.Project, ProjectDomain: o.ProjectDomain,
		Region: o.Region, Interfaces: o.Interfaces, Endpoint: o.Endpoint, UserTokens: userTokens, Timeout: o.Timeout,
	}
	files := tlsfile.Client{CAFile: o.CAFile, CertFile: o.CertFile, KeyFile: o.KeyFile}
	if files == (tlsfile.Client{}) {
		return cfg, nil
	}
	var err error
	cfg.TLS, err = files.Config()
	return cfg, err
}

// validate returns an error if the section sets username or password without auth_url. Other options without auth_url have no effect. They
// are accepted, because many configuration files of Nova have them.
func (o *sessionOptions) validate(section string) error {
	if o.AuthURL == "" && o.Username+o.Password != "" {
		return nameOptions(section+".auth_url", errors.New("is not set, and username and password of ["+section+"] need it"))
	}
	return nil
}

type linkOptions struct {
	Prefix string `ini:"compute_link_prefix" regex:"^(https?://[^/?#@ ]+(/[^?# ]*)?)?$" deprecated:"DEFAULT.osapi_compute_link_prefix" help:"start of the links in replies: the URL of the proxy in front of the API, such as https://nova.example.org (default: the address that the client has used)"`
}

// proxyOptions are Nova's options for a proxy in front of the API.
type proxyOptions struct {
	Header string `ini:"secure_proxy_ssl_header" unsupported:"set compute_link_prefix in [api] to the URL of the proxy" help:"header in which a proxy sends the scheme that its client used"`
}

// sslOptions are the options of oslo.service with which services in Python use HTTPS.
type sslOptions struct {
	CAFile   string `ini:"ca_file" protects:"true" unsupported:"set ssl_ca_file in [wsgi]" help:"authorities of clients' certificates"`
	CertFile string `ini:"cert_file" protects:"true" unsupported:"set ssl_cert_file in [wsgi], which makes the API HTTPS" help:"certificate of the API"`
	KeyFile  string `ini:"key_file" protects:"true" unsupported:"set ssl_key_file in [wsgi]" help:"private key of the certificate"`
}

// hostAddress returns the IPv4 address of this host: my_ip, or by default the source address of packets to other networks. As in Nova it is 127.0.0.1 if there is
// no route to them. It sends nothing: a UDP socket that connects only chooses its address.
func (o *options) hostAddress() string {
	if o.MyIP != "" {
		return o.MyIP
	}
	c, err := net.Dial("udp4", "192.0.2.1:9") //nolint:noctx // it does not block; the address is one for documents, which no network has
	if err != nil {
		return "127.0.0.1"
	}
	defer func() { _ = c.Close() }()
	local, _ := c.LocalAddr().(*net.UDPAddr)
	return local.IP.String()
}

// Validate returns an error if options contradict each other, if the address of the API is malformed, or if a section configures a driver that is
// not in use. Such a section is refused because its name may be misspelled. Then the driver's checksum in the section would not be checked.
func (o *options) Validate() error {
	return errors.Join(o.validateTimes(), o.validateNames(), o.validateAddresses(), o.validateURLs(), o.validateServices(), o.validateDrivers())
}

func (o *options) validateTimes() error {
	var errs []error
	if o.BuildTimeout <= o.RetryInterval {
		errs = append(errs, nameOptions("instance_build_timeout task_retry_interval", fmt.Errorf("instance_build_timeout (%v) must be longer than task_retry_interval (%v), "+
			"otherwise requests to build are never repeated", o.BuildTimeout, o.RetryInterval)))
	}
	if d := o.ShelvedOffload; d < 0 && d != -time.Second {
		errs = append(errs, nameOptions("shelved_offload_time", fmt.Errorf("%v is neither -1 nor 0 or more", d)))
	}
	return errors.Join(errs...)
}

// validateNames checks the templates of names and the availability zones.
func (o *options) validateNames() error {
	var errs []error
	if _, err := api.ParseNameTemplate(o.InstanceNames); err != nil {
		errs = append(errs, nameOptions("instance_name_template", err))
	}
	if _, err := api.ParseAuditPeriod(o.AuditPeriod); err != nil {
		errs = append(errs, nameOptions("instance_usage_audit_period", err))
	}
	if o.ScheduleZone == o.InternalZone {
		errs = append(errs, nameOptions("default_schedule_zone internal_service_availability_zone", fmt.Errorf("both are %q: no server without a zone could be built; name different zones", o.ScheduleZone)))
	}
	if o.Zone == o.InternalZone {
		errs = append(errs, nameOptions("default_availability_zone internal_service_availability_zone", fmt.Errorf("both are %q: no server could be built in the zone of the other services; name different zones", o.Zone)))
	}
	return errors.Join(errs...)
}

func (o *options) validateAddresses() error {
	var errs []error
	if host := o.listenHost(); net.ParseIP(host) == nil && !isHostName(host) {
		errs = append(errs, nameOptions("osapi_compute_listen",
			fmt.Errorf("%q is neither an address such as 127.0.0.1, 0.0.0.0 or ::1 nor the name of a host; the port is osapi_compute_listen_port", o.Listen)))
	}
	for _, one := range []struct{ option, text, says string }{
		{"consoleproxy.listen", o.ConsoleProxy.Listen, "; the port is port of [consoleproxy]"},
		{"vnc.server_proxyclient_address", o.VNC.ProxyClient, "; the driver chooses the port"},
		{"serial_console.proxyclient_address", o.SerialConsole.ProxyClient, "; the driver chooses the port"},
	} {
		if strings.HasPrefix(one.text, "$") { // the install guides of OpenStack write $my_ip
			errs = append(errs, nameOptions(one.option, fmt.Errorf("%q refers to another option, which nova-mini does not replace: write the address itself", one.text)))
			continue
		}
		if _, err := netip.ParseAddr(one.text); err != nil && one.text != "" && !isHostName(strings.ReplaceAll(one.text, "_", "-")) { // Compose names hosts with underscores
			errs = append(errs, nameOptions(one.option, fmt.Errorf("%q is neither an address such as 127.0.0.1 or ::1 nor the name of a host%s", one.text, one.says)))
		}
	}
	if o.MyIP != "" && net.ParseIP(o.MyIP).To4() == nil {
		errs = append(errs, nameOptions("my_ip", fmt.Errorf("%q is not an IPv4 address, such as 192.0.2.7", o.MyIP)))
	}
	return errors.Join(errs...)
}

// validateURLs checks the URLs that clients get, and the origins of the pages that may open consoles.
func (o *options) validateURLs() error {
	var errs []error
	for option, text := range map[string]string{"vnc.novncproxy_base_url": o.VNC.URL, "serial_console.base_url": o.SerialConsole.URL, "api.compute_link_prefix": o.Links.Prefix} {
		if text == "" {
			continue
		}
		if err := urlcheck.CheckText(text); err != nil {
			errs = append(errs, nameOptions(option, err))
		}
	}
	for _, name := range o.Console.Origins {
		if net.ParseIP(name) == nil && !originHost.MatchString(name) {
			errs = append(errs, nameOptions("console.allowed_origins", fmt.Errorf("%q is not the name of a host, such as dashboard.example.org, without a scheme, a port and a path", name)))
		}
	}
	return errors.Join(errs...)
}

// validateServices checks the options of the image service and of Neutron.
func (o *options) validateServices() error {
	var errs []error
	for section, of := range map[string]*sessionOptions{"glance": &o.Glance.sessionOptions, "neutron": &o.Neutron.sessionOptions} {
		if err := of.validate(section); err != nil {
			errs = append(errs, err)
		}
	}
	if o.Glance.AuthURL != "" && o.Image.Directory != "" {
		errs = append(errs, nameOptions("image.directory glance.auth_url", errors.New("the images are in the image service, or in a directory: set one of the two options")))
	}
	if s := o.API.AuthStrategy; o.Neutron.AuthURL != "" && s != "keystone" {
		errs = append(errs, nameOptions("api.auth_strategy neutron.auth_url", fmt.Errorf("auth_strategy = %s and auth_url of [neutron] exclude each other: the requests to Neutron need the tokens of clients; "+
			"set auth_strategy = keystone, or remove auth_url of [neutron]", s)))
	}
	return errors.Join(errs...)
}

func (o *options) validateDrivers() error {
	var errs []error
	d := o.driver()
	for _, name := range slices.Sorted(maps.Keys(o.Drivers)) {
		if name != d.Section() {
			errs = append(errs, nameOptions("driver_"+name+".", fmt.Errorf("compute_driver = %s has the section [driver_%s], and no other driver is in use; remove this section or correct its name",
				d.Driver, d.Section())))
		}
	}
	return errors.Join(errs...)
}

// originHost matches the name of a host as browsers send it in the header Origin. Browsers also send names with an underscore, and the ASCII form of other names.
var originHost = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// nameOptions returns err with the names of the options that caused it, separated by spaces. Package config shows where these options are set.
func nameOptions(options string, err error) error {
	return fault.WithReason(err, "", map[string]string{"option": options})
}

// driverError returns an error of the driver with the name of the option that caused it: the option that the driver names, or compute_driver.
func driverError(o *options, err error) error {
	d := o.driver()
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Meta["option"] != "" {
		return nameOptions("driver_"+d.Section()+"."+f.Meta["option"], err)
	}
	return nameOptions("compute_driver", err)
}

// hostName matches the name of a host in DNS or in /etc/hosts. It also matches texts whose last label has only digits, which isHostName excludes.
var hostName = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?\.)*([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)\.?$`)

// isHostName reports whether s is the name of a host. The last label of such a name has a character that is not a digit (RFC 1123), so
// a malformed IP address is not a name.
func isHostName(s string) bool {
	m := hostName.FindStringSubmatch(s)
	return m != nil && strings.Trim(m[3], "0123456789") != ""
}

// listenHost returns osapi_compute_listen without the brackets of an IPv6 address.
func (o *options) listenHost() string {
	return strings.TrimSuffix(strings.TrimPrefix(o.Listen, "["), "]")
}

// address returns the address that the API listens on, and the names of the options that set it.
func (o *options) address() (addr string, options []string) {
	return net.JoinHostPort(o.listenHost(), strconv.Itoa(o.Port)), []string{"osapi_compute_listen", "osapi_compute_listen_port"}
}

// novaDriver matches a driver's name in Nova's form, such as libvirt.LibvirtDriver.
var novaDriver = regexp.MustCompile(`^([a-z]+)\.[A-Za-z]+Driver$`)

// driver returns the options of the driver.
func (o *options) driver() driver.Options {
	name := o.ComputeDriver
	if m := novaDriver.FindStringSubmatch(name); m != nil {
		name = m[1]
	}
	return driver.Options{Driver: name, PluginDir: o.PluginDir, Drivers: o.Drivers}
}

// schedulerConfig returns the configuration of the scheduler.
func (o *options) schedulerConfig() scheduler.Config {
	f := o.FilterScheduler
	return scheduler.Config{
		DownAfter: o.ServiceDownTime, Filters: f.EnabledFilters, SubsetSize: f.HostSubsetSize, MaxServers: f.MaxServers,
		Multipliers: map[string]float64{
			"ram": f.RAMMultiplier, "cpu": f.CPUMultiplier, "disk": f.DiskMultiplier, "num_instances": f.ServersMultiplier,
			"soft_affinity": f.NearMultiplier, "soft_anti_affinity": -f.FarMultiplier,
		},
	}
}
