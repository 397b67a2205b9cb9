package component

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/urlcheck"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/urlbus"
	"github.com/armature-go/armature/rpc/watermillbus/amqp"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/auth"
	"github.com/armature-go/armature/service/policy"
	"github.com/armature-go/armature/tlsfile"
)

// Options are the options of every process. The struct of options of a component embeds them. Names and defaults are those of OpenStack's
// services, where these have the option. The default of control_exchange is the name of the component.
type Options struct {
	Host             string        `ini:"host" help:"name of this host; it must stay the same after every restart (default: the machine's name)"`
	StatePath        string        `ini:"state_path" help:"directory for the data of the services of a host; it must be kept when a service ends (default for all services in one process: a temporary directory)"`
	Debug            bool          `ini:"debug" default:"false" help:"log at debug level" reloadable:"true"`
	UseJSON          bool          `ini:"use_json" default:"false" help:"write each line of the log as a JSON object"`
	ReportInterval   time.Duration `ini:"report_interval" default:"10" min:"1ms" help:"seconds between heartbeats"`
	ServiceDownTime  time.Duration `ini:"service_down_time" default:"60" min:"1ms" help:"seconds without a heartbeat after which a service is down"`
	OperationHistory time.Duration `ini:"operation_history" default:"2592000" min:"0" help:"seconds after which operations that have ended are deleted"`
	ShutdownTimeout  time.Duration `ini:"graceful_shutdown_timeout" default:"60" min:"1ms" help:"seconds that running requests may take after SIGTERM"`
	DrainDelay       time.Duration `ini:"drain_delay" default:"0" min:"0" help:"seconds after SIGTERM in which new requests are still accepted while /readyz fails, so that load balancers choose another process"`
	Strict           bool          `ini:"strict" default:"true" strict:"true" help:"refuse unknown options and sections; false: accept a file that was written for a program with more options"`
	Admin            string        `ini:"admin_listen" help:"address of the pages for operators, only of this machine: 127.0.0.1:9774 or unix:/run/NAME/{service}.sock, where {service} stands for the service's name, so that all services of a host can use one file; the socket's directory is created if it does not exist (default: no pages)"`
	AdminHosts       []string      `ini:"admin_hosts" help:"names and addresses by which other machines may reach admin_listen; its pages do not authenticate clients; without admin_hosts, only this machine may be able to reach admin_listen"`
	urlbus.Options
	Database  db.Options       `section:"database"`
	Telemetry TelemetryOptions `section:"opentelemetry"`
}

// optionError returns err with the name of the wrong option, for package config. It returns nil if err is nil.
func optionError(name string, err error) error {
	return fault.WithReason(err, "", map[string]string{"option": name})
}

// Validate returns an error if options contradict each other, or if an address is malformed.
func (o *Options) Validate() error {
	var errs []error
	if o.Host != "" {
		errs = append(errs, optionError("host", checkHost(o.Host)))
	}
	if o.ServiceDownTime <= o.ReportInterval {
		errs = append(errs, optionError("service_down_time report_interval", fmt.Errorf("service_down_time (%v) must be longer than report_interval (%v): use at least three times report_interval", o.ServiceDownTime, o.ReportInterval)))
	}
	if o.DrainDelay >= o.ShutdownTimeout {
		errs = append(errs, optionError("drain_delay graceful_shutdown_timeout", fmt.Errorf("drain_delay (%v) must be shorter than graceful_shutdown_timeout (%v)", o.DrainDelay, o.ShutdownTimeout)))
	}
	if o.Admin != "" {
		errs = append(errs, optionError("admin_listen", o.checkAdmin()))
	}
	return errors.Join(errs...)
}

// servicePlaceholder stands for the service's name in admin_listen.
const servicePlaceholder = "{service}"

// placeholder matches a text that looks like a placeholder or a part of one.
var placeholder = regexp.MustCompile(`\{[^}]*\}?|\}`)

// checkAdmin checks the form of admin_listen.
func (o *Options) checkAdmin() error {
	if found := placeholder.FindString(strings.ReplaceAll(o.Admin, servicePlaceholder, "")); found != "" {
		return fmt.Errorf("placeholder %s does not exist; use %s, which stands for the service's name", found, servicePlaceholder)
	}
	if path, ok := strings.CutPrefix(o.Admin, "unix:"); ok && !filepath.IsAbs(path) {
		return fmt.Errorf("%q is not an absolute path: write unix:/run/NAME/%s.sock", path, servicePlaceholder)
	}
	err := service.AdminConfig{Addr: o.Admin, Hosts: o.AdminHosts}.Validate()
	if err != nil && (service.HTTPConfig{Addr: o.Admin}).Validate() == nil { // the address is well-formed, and other machines can reach it
		return fmt.Errorf("%w, with the names in the option admin_hosts", err)
	}
	return err
}

// checkShared returns an error if several services have the same socket in admin_listen. Then only the first one of a host would start. A shared port is no error,
// because each service may have its own network.
func (o *Options) checkShared(services []string) error {
	services = slices.DeleteFunc(slices.Clone(services), func(s string) bool { return s == AllInOne })
	if !strings.HasPrefix(o.Admin, "unix:") || strings.Contains(o.Admin, servicePlaceholder) || len(services) < 2 {
		return nil
	}
	return fmt.Errorf("%s is the socket of several services (%s): write %s into the path, or name the only service of this host with --service", o.Admin, strings.Join(services, ", "), servicePlaceholder)
}

// adminAddr returns the address of the pages for operators of a service.
func (o *Options) adminAddr(service string) string {
	return strings.ReplaceAll(o.Admin, servicePlaceholder, service)
}

// checkHost refuses a host name that cannot be a part of the name of a queue or a file.
func checkHost(host string) error {
	if strings.ContainsAny(host, "/\\ ") || host == "." || host == ".." {
		return fmt.Errorf("%q is not the name of a host: use letters, digits, dots and hyphens", host)
	}
	return rpc.CheckHost(host)
}

// schemes are the openers of buses for URL schemes that package urlbus itself does not have.
var schemes = map[string]urlbus.Opener{"watermill-amqp": func(at urlbus.Broker, cfg urlbus.Config) (urlbus.Bus, error) {
	return amqp.New(amqp.Config{URLs: at.URLs, TLS: at.TLS, Exchange: cfg.Exchange, Quorum: cfg.Quorum, MaxMessage: cfg.MaxMessage, Logger: cfg.Logger})
}}

// openBus returns the bus at a URL. The bus is not started.
func openBus(o *urlbus.Options, url string, log *slog.Logger) (urlbus.Bus, error) {
	cfg := o.Config()
	cfg.Schemes, cfg.Logger = schemes, log
	return urlbus.Open(url, cfg)
}

// TelemetryOptions are the options of traces.
type TelemetryOptions struct {
	Endpoint string  `ini:"otlp_endpoint" help:"URL of a collector of traces with OTLP over HTTP, such as http://127.0.0.1:4318 (default: no traces)"`
	CAFile   string  `ini:"otlp_cafile" protects:"true" help:"authorities that are trusted for the collector's certificate (default: the system's)"`
	CertFile string  `ini:"otlp_certfile" protects:"true" help:"client certificate for the collector"`
	Server   string  `ini:"otlp_server_name" protects:"true" help:"name that the collector's certificate must have (default: the host of otlp_endpoint)"`
	KeyFile  string  `ini:"otlp_keyfile" protects:"true" help:"private key of otlp_certfile, with mode 0600, or 0640 if the file belongs to root"`
	Ratio    float64 `ini:"sample_ratio" default:"1.0" min:"0" max:"1" help:"sampling ratio: the share of new traces that this process exports"`
}

// Validate returns an error if the collector's URL is malformed. It reads no file, because a command may run on a machine without the files
// for TLS.
func (o *TelemetryOptions) Validate() error {
	if o.Endpoint == "" {
		return nil
	}
	_, err := o.endpoint()
	return optionError("otlp_endpoint", err)
}

// endpoint returns the URL of the collector.
func (o *TelemetryOptions) endpoint() (*url.URL, error) {
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fault.New(fault.Invalid, "%q is not of the form http://host:4318", o.Endpoint)
	}
	if err := urlcheck.CheckText(o.Endpoint); err != nil {
		return nil, err
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return nil, fault.New(fault.Invalid, "unknown parameters %q: remove them", u.RawQuery+u.Fragment)
	}
	return u, nil
}

// Collector returns the options of the exporter of traces. It reads the files for TLS.
func (o *TelemetryOptions) Collector() ([]otlptracehttp.Option, error) {
	u, err := o.endpoint()
	if err != nil {
		return nil, err
	}
	out := []otlptracehttp.Option{otlptracehttp.WithEndpointURL(u.JoinPath("v1", "traces").String())}
	files := tlsfile.Client{CAFile: o.CAFile, CertFile: o.CertFile, KeyFile: o.KeyFile, ServerName: o.Server}
	if files == (tlsfile.Client{}) {
		return out, nil
	}
	secure, err := files.Config()
	if err != nil {
		return nil, fmt.Errorf("read otlp_cafile, otlp_certfile and otlp_keyfile: %w", err)
	}
	if u.Scheme != "https" {
		return nil, fault.New(fault.Invalid, "the URL begins with http://, but files for TLS are set: use https://")
	}
	return append(out, otlptracehttp.WithTLSClientConfig(secure)), nil
}

// APIOptions are the options of a REST API. The struct of options of a component whose services call [Process.API] embeds them.
type APIOptions struct {
	Listen string       `ini:"listen" default:"127.0.0.1:8080" help:"address of the API, host:port or unix:/path"`
	Links  LinkOptions  `section:"api"`
	Proxy  ProxyOptions `section:"wsgi"`
	AccessOptions
}

// AccessOptions are the options of a REST API about its clients. The struct of options of a component embeds them instead of
// [APIOptions] if the component has its own options for the links and the address of its API, see [Component.Address].
type AccessOptions struct {
	API    ClientOptions       `section:"api"`
	Auth   auth.Options        `section:"keystone_authtoken"`
	WSGI   service.HTTPOptions `section:"wsgi"`
	CORS   CORSOptions         `section:"cors"`
	Policy policy.Options      `section:"oslo_policy"`
}

// ClientOptions say which clients a REST API serves.
type ClientOptions struct {
	AuthStrategy string `ini:"auth_strategy" default:"keystone" choices:"keystone, token, noauth2" protects:"true" deprecated:"DEFAULT.auth_strategy" help:"how clients are authenticated: keystone: by a token of Keystone; token: by the option token; noauth2: not at all, so that every client is the administrator; noauth2 is the default only for all services in one process"`
	Token        string `ini:"token" secret:"true" protects:"true" help:"token that every client must send in the header X-Auth-Token with auth_strategy = token; such a client is the administrator"`
	OpenRemote   bool   `ini:"noauth2_remote" default:"false" protects:"true" help:"allow noauth2 on an address that other machines can reach"`
}

// LinkOptions say how the links in the replies of a REST API begin.
type LinkOptions struct {
	PublicURL string `ini:"public_url" regex:"^(https?://[^/?#@ ]+(/[^?# ]*)?)?$" help:"start of the links in replies: the URL of the proxy in front of the API (default: the address that the client has used)"`
}

// Validate returns an error if the URL has no host, or a port that does not exist.
func (o *LinkOptions) Validate() error {
	if o.PublicURL == "" {
		return nil
	}
	return optionError("public_url", urlcheck.CheckText(o.PublicURL))
}

// ProxyOptions are options that OpenStack's services have for a proxy in front of a REST API.
type ProxyOptions struct {
	Header string `ini:"secure_proxy_ssl_header" unsupported:"set public_url in [api] to the URL of the proxy" help:"header in which a proxy sends the scheme that its client used"`
}

// CORSOptions say which web pages may use a REST API.
type CORSOptions struct {
	Origins []string `ini:"allowed_origin" regex:"^([*]|https?://[^/?#@ ]+)$" help:"origins of web pages that may use the API, such as https://dashboard.example.org"`
}

// Validate returns an error if an origin has no host, or a port that does not exist.
func (o *CORSOptions) Validate() error {
	var errs []error
	for _, origin := range o.Origins {
		if origin != "*" {
			errs = append(errs, optionError("allowed_origin", urlcheck.CheckText(origin)))
		}
	}
	return errors.Join(errs...)
}

// Validate returns an error if the address is malformed, or if the AccessOptions are not valid.
func (o *APIOptions) Validate() error {
	return errors.Join(optionError("listen", service.HTTPConfig{Addr: o.Listen}.Validate()), o.AccessOptions.Validate())
}

// Validate returns an error if the token and the strategy contradict each other. Validate does not check whether other machines can reach an
// API with noauth2, because that depends on the address of a service: [Process.API] checks it.
func (o *AccessOptions) Validate() error {
	switch {
	case o.API.AuthStrategy == "token" && o.API.Token == "":
		return optionError("api.token", errors.New("is not set, and auth_strategy = token of [api] needs it"))
	case o.API.AuthStrategy != "token" && o.API.Token != "":
		return optionError("api.token", fmt.Errorf("has no effect, because auth_strategy of [api] is %s: set auth_strategy = token, or remove the token", o.API.AuthStrategy))
	}
	return nil
}

// checkOpen refuses noauth2 at an address that other machines can reach.
func (o *AccessOptions) checkOpen(addr string) error {
	if o.API.AuthStrategy != "noauth2" || isLocal(addr) || o.API.OpenRemote {
		return nil
	}
	return fmt.Errorf("noauth2 makes every client the administrator, and other machines can reach the API at %s: "+
		"use auth_strategy = keystone or token, or listen on 127.0.0.1, or set noauth2_remote = true in [api]", addr)
}

// isLocal reports whether only this machine can reach an address.
func isLocal(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return strings.HasPrefix(addr, "unix:") || err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// findOptions returns the options of type T within a struct of options, or nil.
func findOptions[T any](o any) *T {
	return findEmbedded[T](reflect.ValueOf(o).Elem())
}

func findEmbedded[T any](v reflect.Value) *T {
	if v.Kind() != reflect.Struct {
		return nil
	}
	if found, ok := reflect.TypeAssert[*T](v.Addr()); ok {
		return found
	}
	for i := range v.NumField() {
		if f := v.Type().Field(i); f.Anonymous && f.IsExported() {
			if found := findEmbedded[T](v.Field(i)); found != nil {
				return found
			}
		}
	}
	return nil
}

// DriverOptions are the options of a driver. The struct of options of a component whose services call [Driver] embeds them.
type DriverOptions struct{ driver.Options }
