package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/policy"
)

// allInOneService is the name of the process that runs all services. It needs neither a bus nor a database server.
const allInOneService = "all-in-one"

// services are the services that can run in a process of their own.
var services = []string{"api", "conductor", "scheduler", "compute"}

// check is one check of the options. It needs no network and changes nothing.
type check struct {
	// of lists the services to which the check applies, separated by spaces. "" means all services and all commands.
	of string
	// options lists the checked options as SECTION.NAME, separated by spaces. The error names the first of these options that is
	// set, or the first option if none is set. The check is skipped if the value of one of them is already known to be wrong.
	options string
	judge   func(o *options) error
}

// checks are the checks at the start, in addition to the bounds in the options' tags.
var checks = []check{
	{"", "DEFAULT.host", func(o *options) error {
		if strings.ContainsAny(o.Host, "/\\ ") || o.Host == "." || o.Host == ".." {
			return fmt.Errorf("%q is not the name of a host: use letters, digits, dots and hyphens", o.Host)
		}
		return rpc.CheckHost(o.Host)
	}},
	{"", "DEFAULT.service_down_time DEFAULT.report_interval", func(o *options) error {
		if o.ServiceDownTime <= o.ReportInterval {
			return fmt.Errorf("service_down_time (%v) must be longer than report_interval (%v): use at least three times report_interval", o.ServiceDownTime, o.ReportInterval)
		}
		return nil
	}},
	{"", "DEFAULT.instance_build_timeout DEFAULT.task_retry_interval", func(o *options) error {
		if o.BuildTimeout <= o.RetryInterval {
			return fmt.Errorf("instance_build_timeout (%v) must be longer than task_retry_interval (%v), otherwise no request to build is ever repeated", o.BuildTimeout, o.RetryInterval)
		}
		return nil
	}},
	{"api conductor scheduler compute", "DEFAULT.transport_url DEFAULT.control_exchange DEFAULT.max_message_size oslo_messaging_rabbit.rabbit_quorum_queue", (*options).checkBus},
	{allInOneService, "DEFAULT.transport_url DEFAULT.control_exchange DEFAULT.max_message_size", func(o *options) error {
		if o.TransportURL == "" {
			return nil
		}
		return o.checkBus()
	}},
	{"api conductor scheduler", "database.connection", func(o *options) error { return o.checkDatabase(o.Database.Connection) }},
	{allInOneService, "database.connection", func(o *options) error {
		if o.Database.Connection == "" {
			return nil
		}
		return o.checkDatabase(o.Database.Connection)
	}},
	{"scheduler all-in-one", "filter_scheduler.enabled_filters", func(o *options) error { return o.schedulerConfig().Validate() }},
	{"api all-in-one", "DEFAULT.osapi_compute_listen", func(o *options) error {
		host := strings.TrimSuffix(strings.TrimPrefix(o.Listen, "["), "]")
		if net.ParseIP(host) == nil && !isHostName(host) {
			return fmt.Errorf("%q is neither an address such as 127.0.0.1, 0.0.0.0 or ::1 nor the name of a host; the port is osapi_compute_listen_port", o.Listen)
		}
		return nil
	}},
	{"api all-in-one", "wsgi.ssl_cert_file wsgi.ssl_key_file wsgi.ssl_ca_file", func(o *options) error {
		return o.WSGI.Config(o.address(), nil).Validate()
	}},
	{"api all-in-one", "api.auth_strategy DEFAULT.osapi_compute_listen api.noauth2_remote", (*options).checkOpenAccess},
	{"api all-in-one", "keystone_authtoken.auth_url", func(o *options) error {
		if o.API.AuthStrategy != "keystone" {
			return nil
		}
		if o.Keystone.AuthURL == "" {
			return o.keystoneNeeds("")
		}
		return nil
	}},
	{"api all-in-one", "keystone_authtoken.username", func(o *options) error { return o.keystoneNeeds(o.Keystone.Username) }},
	{"api all-in-one", "keystone_authtoken.password", func(o *options) error { return o.keystoneNeeds(o.Keystone.Password) }},
	{"api all-in-one", "keystone_authtoken.project_name", func(o *options) error { return o.keystoneNeeds(o.Keystone.Project) }},
	{"api all-in-one", "keystone_authtoken.cafile keystone_authtoken.certfile keystone_authtoken.keyfile keystone_authtoken.ssl_server_name", func(o *options) error {
		_, err := o.Keystone.Config()
		return err
	}},
	{"api all-in-one", "oslo_policy.policy_file oslo_policy.policy_dirs", func(o *options) error {
		_, err := policy.New(api.Rules(), o.policy(slog.New(slog.DiscardHandler)))
		return err
	}},
	{"api conductor scheduler compute all-in-one", "DEFAULT.admin_listen DEFAULT.admin_hosts", (*options).checkAdmin},
	{"api conductor scheduler compute all-in-one", "opentelemetry.otlp_endpoint", func(o *options) error {
		if o.Telemetry.Endpoint == "" {
			return nil
		}
		_, err := o.Telemetry.Collector()
		return err
	}},
	{"compute", "DEFAULT.state_path", func(o *options) error {
		if o.StatePath == "" {
			return errors.New("is not set: the driver needs a directory that is kept when the process ends, such as /var/lib/nova-mini")
		}
		return nil
	}},
	{"compute all-in-one", "DEFAULT.state_path", func(o *options) error {
		info, err := os.Stat(o.StatePath)
		switch {
		case o.StatePath == "" || errors.Is(err, fs.ErrNotExist): // created at the start
			return nil
		case err != nil:
			return err
		case !info.IsDir():
			return fmt.Errorf("%s is not a directory", o.StatePath)
		}
		return nil
	}},
	{"compute all-in-one", "DEFAULT.compute_driver DEFAULT.plugin_dir", (*options).checkDriver},
}

// hostName matches the name of a host in DNS or in /etc/hosts, and also texts whose last label has only digits.
var hostName = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?\.)*([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)\.?$`)

// isHostName reports whether s is the name of a host. The last label of such a name does not have only digits (RFC 1123), so a
// malformed IP address is not one.
func isHostName(s string) bool {
	m := hostName.FindStringSubmatch(s)
	return m != nil && strings.Trim(m[3], "0123456789") != ""
}

// validate runs the checks of the given services, without the network. The error has one line for each wrong option, with
// the option's place. Without services, validate runs the checks that apply to every command.
func (o *options) validate(of ...string) error {
	var errs []error
	errs = append(errs, o.checkSections()...)
	wrong := map[string]bool{}
	for _, v := range o.config.Values() {
		wrong[v.Section+"."+v.Name] = v.Wrong
	}
	for _, c := range checks {
		applies := c.of == "" || slices.ContainsFunc(strings.Fields(c.of), func(s string) bool { return slices.Contains(of, s) })
		judged := strings.Fields(c.options)
		if !applies || slices.ContainsFunc(judged, func(name string) bool { return wrong[name] }) {
			continue
		}
		if err := c.judge(o); err != nil {
			section, name := o.firstSet(judged)
			errs = append(errs, o.optionError(section, name, err))
			wrong[judged[0]] = true // so that one fault is reported once
		}
	}
	return errors.Join(errs...)
}

// firstSet returns the first of several options that is set, or the first one if none is set.
func (o *options) firstSet(options []string) (section, name string) {
	for _, option := range options {
		if section, name, _ = strings.Cut(option, "."); !isDefault(o.config.Where(section, name)) {
			return section, name
		}
	}
	section, name, _ = strings.Cut(options[0], ".")
	return section, name
}

// isDefault reports whether a place is that of a default.
func isDefault(where string) bool {
	return where == "default" || strings.HasPrefix(where, "program's default ")
}

// optionError adds the place of an option to an error about its value.
func (o *options) optionError(section, name string, err error) error {
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Meta["option"] != "" { // an option of the driver
		section, name = "driver_"+o.driverSection(), f.Meta["option"]
	}
	where := o.config.Where(section, name)
	if where == "default" || where == "" {
		return fault.New(fault.Invalid, "[%s] %s: %w", section, name, err)
	}
	return fault.New(fault.Invalid, "%s: [%s] %s: %w", where, section, name, err)
}

// label returns the names and places of options of one section, for the errors of a part that does not start.
func (o *options) label(section string, names ...string) string {
	var out []string
	for _, name := range names {
		text := "option " + name
		if section != "DEFAULT" {
			text += " of [" + section + "]"
		}
		switch where := o.config.Where(section, name); where {
		case "", "default":
		case "flag osapi_compute_listen_port":
			text += ", flag --port"
		case "flag state_path":
			text += ", flag --state-path"
		default:
			text += ", " + where
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

// checkSections refuses sections of drivers that are not in use. The name of such a section may be misspelled, and then the
// checksum of the driver in use would not be checked.
func (o *options) checkSections() (errs []error) {
	want := "driver_" + o.driverSection()
	for _, name := range slices.Sorted(maps.Keys(o.Drivers)) {
		if section := "driver_" + name; section != want {
			errs = append(errs, fault.New(fault.Invalid, "%s: [%s]: compute_driver = %s has the section [%s], and no other driver is in use; remove this section or correct its name",
				o.config.Where(section, ""), section, o.ComputeDriver, want))
		}
	}
	return errs
}

func (o *options) checkBus() error {
	_, err := o.openBus(slog.New(slog.DiscardHandler))
	return err
}

func (o *options) checkDatabase(connection string) error {
	cfg, err := o.databaseConfig(connection)
	if err != nil {
		return err
	}
	d, err := db.New(cfg)
	if err != nil {
		return err
	}
	return d.Close()
}

// checkOpenAccess refuses noauth2 on an address that other machines can reach, unless noauth2_remote is set.
func (o *options) checkOpenAccess() error {
	if o.API.AuthStrategy == "noauth2" && !o.loopback() && !o.API.OpenRemote {
		return fault.New(fault.Invalid, "noauth2 makes every client the administrator, and osapi_compute_listen = %s can be reached "+
			"from other machines: use auth_strategy = keystone, or listen on 127.0.0.1, or set noauth2_remote = true in [api]", o.Listen)
	}
	return nil
}

func (o *options) keystoneNeeds(value string) error {
	if o.API.AuthStrategy == "keystone" && value == "" {
		return errors.New("is not set, and auth_strategy = keystone of [api] needs it; for a test without users set auth_strategy = noauth2")
	}
	return nil
}

func (o *options) checkAdmin() error {
	if o.Admin == "" {
		return nil
	}
	if found := placeholder.FindString(strings.ReplaceAll(o.Admin, servicePlaceholder, "")); found != "" {
		return fmt.Errorf("placeholder %s does not exist; use %s, which stands for the service's name", found, servicePlaceholder)
	}
	admin := o.admin()
	if err := admin.Validate(); err != nil {
		if (service.HTTPConfig{Addr: admin.Addr}).Validate() == nil { // the address is well-formed, and other machines can reach it
			return fmt.Errorf("%w, with the names in the option admin_hosts", err)
		}
		return err
	}
	if path, ok := strings.CutPrefix(admin.Addr, "unix:"); ok {
		return checkSocket(path)
	}
	if admin.Addr == o.address() {
		return fmt.Errorf("%s is also the address of the API: give one of them another port", admin.Addr)
	}
	return nil
}

// placeholder matches a text that looks like a placeholder or a part of one.
var placeholder = regexp.MustCompile(`\{[^}]*\}?|\}`)

// maxSocketPath is the highest number of bytes in the path of a Unix socket on Linux.
const maxSocketPath = 107

// checkSocket checks the path of a Unix socket. The directory of the socket is created at the start.
func checkSocket(path string) error {
	switch {
	case !filepath.IsAbs(path):
		return fmt.Errorf("%q is not an absolute path: write unix:/run/nova-mini/%s.sock", path, servicePlaceholder)
	case len(path) > maxSocketPath:
		return fmt.Errorf("the path of the socket has %d bytes, more than %d: choose a shorter one", len(path), maxSocketPath)
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist) && dir != "/": // created at the start
		case err != nil:
			return err
		case !info.IsDir():
			return fmt.Errorf("%s is not a directory", dir)
		default:
			return nil
		}
	}
}

// checkDriver checks the driver and its options without starting a driver's program. A built-in driver is opened without
// its directory, so that it changes nothing.
func (o *options) checkDriver() error {
	cfg, err := o.driverConfig(o.Host)
	if err != nil {
		return err
	}
	if err := builtInDrivers().Validate(compute.Kind, o.ComputeDriver, cfg); err != nil {
		return err
	}
	if !slices.Contains(builtInDrivers().Names(), o.ComputeDriver) {
		return nil
	}
	var given map[string]any
	if err := json.Unmarshal(cfg.Options, &given); err != nil {
		return err
	}
	delete(given, "dir")
	raw, err := json.Marshal(given)
	if err != nil {
		return err
	}
	d, err := builtInDrivers().Open(context.Background(), o.ComputeDriver, raw)
	if err != nil {
		return err
	}
	return d.Close()
}
