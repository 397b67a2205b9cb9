package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// good is a correct configuration file. Tests add lines to this text, or replace lines.
const good = `[DEFAULT]
transport_url = rabbit://u:hush@127.0.0.1:1/
state_path = DIR/state
[database]
connection = mysql://u:hush@127.0.0.1:1/nova
[api]
auth_strategy = noauth2
`

const withKeystone = `[DEFAULT]
transport_url = nats://u:hush@127.0.0.1:1
state_path = DIR/state
[database]
connection = mysql://u:hush@127.0.0.1:1/nova
[keystone_authtoken]
auth_url = http://127.0.0.1:1/
username = nova
password = hush
`

// withGlance is the beginning of the section for the image service.
const withGlance = `[glance]
username = nova
password = hush
`

// TestBadFiles: config validate refuses each of these files without using the network. The error says where the mistake is
// and what to do. A service with this file does not start, and has the same error.
func TestBadFiles(t *testing.T) { //nolint:paralleltest // services set the default logger
	for _, tt := range []struct {
		name, service, text string
		where, says         string // parts of the error; FILE stands for the path of the file
	}{
		{"bus, no scheme", "conductor", strings.Replace(good, "rabbit://", "", 1), "FILE:2: [DEFAULT] transport_url", "has no known scheme: want one of amqp, amqps, memory, nats, rabbit, tls, watermill-amqp"},
		{"bus, another scheme", "conductor", strings.Replace(good, "rabbit://", "kafka://", 1), "FILE:2: [DEFAULT] transport_url", "has no known scheme: want one of amqp, amqps, memory, nats, rabbit, tls, watermill-amqp"},
		{"bus, an invalid port", "conductor", strings.Replace(good, "127.0.0.1:1/\n", "127.0.0.1:x/\n", 1), "FILE:2: [DEFAULT] transport_url", ""},
		{"bus, missing", "conductor", strings.Replace(good, "transport_url = rabbit://u:hush@127.0.0.1:1/\n", "", 1), "[DEFAULT] transport_url", "is not set; use rabbit://"},
		{"bus, a queue's name", "conductor", good + "[DEFAULT]\ncontrol_exchange = a b\n", "FILE:9: [DEFAULT] control_exchange", "does not match"},
		{"database, another scheme", "api", strings.Replace(good, "mysql://", "postgresql://", 1), "FILE:5: [database] connection", "want mysql://"},
		{"database, no name", "api", strings.Replace(good, ":1/nova", ":1", 1), "FILE:5: [database] connection", "no database name"},
		{"database, no user", "api", strings.Replace(good, "mysql://u:hush@", "mysql://", 1), "FILE:5: [database] connection", "no user"},
		{"database, missing", "scheduler", strings.Replace(good, "connection = mysql://u:hush@127.0.0.1:1/nova\n", "", 1), "[database] connection", "is not set; use mysql://"},
		{"database, no connections", "scheduler", good + "[database]\nmax_pool_size = 0\n", "FILE:9: [database] max_pool_size", "less than 1"},
		{"database, no time to answer", "scheduler", good + "[database]\nresponse_timeout = 0\n", "FILE:9: [database] response_timeout", "less than 1"},
		{"port too high", "api", good + "[DEFAULT]\nosapi_compute_listen_port = 65536\n", "FILE:9: [DEFAULT] osapi_compute_listen_port", "more than 65535"},
		{"port negative", "api", good + "[DEFAULT]\nosapi_compute_listen_port = -1\n", "FILE:9: [DEFAULT] osapi_compute_listen_port", "less than 0"},
		{"port, not a number", "api", good + "[DEFAULT]\nosapi_compute_listen_port = http\n", "FILE:9: [DEFAULT] osapi_compute_listen_port", "not an integer"},
		{"address with a port", "api", good + "[DEFAULT]\nosapi_compute_listen = 127.0.0.1:8774\n", "FILE:9: [DEFAULT] osapi_compute_listen", "the port is osapi_compute_listen_port"},
		{"invalid address", "api", good + "[DEFAULT]\nosapi_compute_listen = 10.0.0.300\n", "FILE:9: [DEFAULT] osapi_compute_listen", "neither an address"},
		{"ratio -1", "scheduler", good + "[DEFAULT]\ncpu_allocation_ratio = -1\n", "FILE:9: [DEFAULT] cpu_allocation_ratio", "less than 0.01"},
		{"ratio 0", "scheduler", good + "[DEFAULT]\nram_allocation_ratio = 0\n", "FILE:9: [DEFAULT] ram_allocation_ratio", "less than 0.01"},
		{"ratio 1e300", "scheduler", good + "[DEFAULT]\ndisk_allocation_ratio = 1e300\n", "FILE:9: [DEFAULT] disk_allocation_ratio", "more than 10000"},
		{"multiplier 1e300", "scheduler", good + "[filter_scheduler]\nram_weight_multiplier = 1e300\n", "FILE:9: [filter_scheduler] ram_weight_multiplier", "more than 1000000"},
		{"subset 0", "scheduler", good + "[filter_scheduler]\nhost_subset_size = 0\n", "FILE:9: [filter_scheduler] host_subset_size", "less than 1"},
		{"no servers on a host", "scheduler", good + "[filter_scheduler]\nmax_instances_per_host = 0\n", "FILE:9: [filter_scheduler] max_instances_per_host", "less than 1"},
		{"no attempts", "conductor", good + "[scheduler]\nmax_attempts = 0\n", "FILE:9: [scheduler] max_attempts", "less than 1"},
		{"down time shorter than the report interval", "conductor", good + "[DEFAULT]\nreport_interval = 60\n", "FILE:9: [DEFAULT] report_interval", "must be longer than report_interval"},
		{"report interval 0", "conductor", good + "[DEFAULT]\nreport_interval = 0\n", "FILE:9: [DEFAULT] report_interval", "less than 1ms"},
		{"build timeout shorter than the retry interval", "conductor", good + "[DEFAULT]\ninstance_build_timeout = 10\n", "FILE:9: [DEFAULT] instance_build_timeout", "must be longer than task_retry_interval"},
		{"negative drain delay", "conductor", good + "[DEFAULT]\ndrain_delay = -1\n", "FILE:9: [DEFAULT] drain_delay", "less than 0"},
		{"a misspelled driver", "compute", good + "[DEFAULT]\ncompute_driver = fyne\nplugin_dir = DIR\n", "FILE:9: [DEFAULT] compute_driver", "built in: fake; the nearest is fine"},
		{"a misspelled strategy", "api", strings.Replace(good, "noauth2", "keyston", 1), "FILE:7: [api] auth_strategy", `"keyston" is not one of keystone, token, noauth2; the nearest is keystone`},
		{"a misspelled filter", "scheduler", good + "[filter_scheduler]\nenabled_filters = ComputeFiltr\n", "FILE:9: [filter_scheduler] enabled_filters", "; the nearest is ComputeFilter"},
		{"a filter that Nova has removed", "scheduler", good + "[filter_scheduler]\nenabled_filters = RamFilter\n", "FILE:9: [filter_scheduler] enabled_filters", "MEMORY_MB does the same"},
		{"an unknown filter", "scheduler", good + "[filter_scheduler]\nenabled_filters = ComputeFilter, RamFilter\n", "FILE:9: [filter_scheduler] enabled_filters", `"RamFilter" does not exist: the known names are`},
		{"policy file missing", "api", good + "[oslo_policy]\npolicy_file = none.yaml\n", "FILE:9: [oslo_policy] policy_file", "none.yaml does not exist"},
		{"policy file wrong", "api", good + "[oslo_policy]\npolicy_file = bad.yaml\n", "bad.yaml:1", "the nearest is os_compute_api:servers:start"},
		{"address, only a number", "api", good + "[DEFAULT]\nosapi_compute_listen = 127001\n", "FILE:9: [DEFAULT] osapi_compute_listen", "neither an address"},
		{"certificate missing", "api", good + "[wsgi]\nssl_cert_file = DIR/none.pem\nssl_key_file = DIR/none.pem\n", "FILE:9: [wsgi] ssl_cert_file", "no such file"},
		{"certificate, not PEM", "api", good + "[wsgi]\nssl_cert_file = FILE\nssl_key_file = FILE\n", "FILE:9: [wsgi] ssl_cert_file", "certificate"},
		{"certificate without a key", "api", good + "[wsgi]\nssl_cert_file = FILE\n", "FILE:9: [wsgi] ssl_cert_file", "HTTPS needs both"},
		{"authorities without a certificate", "api", good + "[wsgi]\nssl_ca_file = FILE\n", "FILE:9: [wsgi] ssl_ca_file", "HTTPS needs both"},
		{"keystone, no URL", "api", strings.Replace(withKeystone, "auth_url = http://127.0.0.1:1/\n", "", 1), "[keystone_authtoken] auth_url", "is not set"},
		{"keystone, wrong URL", "api", strings.Replace(withKeystone, "http://127.0.0.1:1/", "127.0.0.1:1", 1), "[keystone_authtoken] auth_url", "not of the form https://host:5000/v3"},
		{"keystone, a wrong URL", "api", strings.Replace(withKeystone, "http://127.0.0.1:1/", "127.0.0.1:5000", 1), "FILE:7: [keystone_authtoken] auth_url", "not of the form"},
		{"keystone, no user", "api", strings.Replace(withKeystone, "username = nova\n", "", 1), "[keystone_authtoken] username", "is not set"},
		{"keystone, no password", "api", strings.Replace(withKeystone, "password = hush\n", "", 1), "[keystone_authtoken] password", "is not set"},
		{"open to other machines", "api", good + "[DEFAULT]\nosapi_compute_listen = 0.0.0.0\n", "FILE:7: [api] auth_strategy", "noauth2_remote = true"},
		{"admin for other machines", "conductor", good + "[DEFAULT]\nadmin_listen = 0.0.0.0:9774\n", "FILE:9: [DEFAULT] admin_listen", "with the names in the option admin_hosts"},
		{"admin with an unknown placeholder", "conductor", good + "[DEFAULT]\nadmin_listen = unix:run/{servce}.sock\n", "FILE:9: [DEFAULT] admin_listen", "placeholder {servce} does not exist; use {service}"},
		{"admin with half a placeholder", "conductor", good + "[DEFAULT]\nadmin_listen = unix:/run/{service.sock\n", "FILE:9: [DEFAULT] admin_listen", "placeholder {service.sock"},
		{"admin with a relative path", "conductor", good + "[DEFAULT]\nadmin_listen = unix:run/{service}.sock\n", "FILE:9: [DEFAULT] admin_listen", "is not an absolute path"},
		{"admin socket below a file", "conductor", good + "[DEFAULT]\nadmin_listen = unix:FILE/run/{service}.sock\n", "FILE:9: [DEFAULT] admin_listen", "not a directory"},
		{"admin with a long path", "conductor", good + "[DEFAULT]\nadmin_listen = unix:/run/" + strings.Repeat("x", 100) + "/{service}.sock\n", "FILE:9: [DEFAULT] admin_listen", "choose a shorter one"},
		{"admin without a port", "conductor", good + "[DEFAULT]\nadmin_listen = 127.0.0.1\n", "FILE:9: [DEFAULT] admin_listen", "127.0.0.1:9774"},
		{"admin without a port, for other machines", "conductor", good + "[DEFAULT]\nadmin_listen = 0.0.0.0\nadmin_hosts = node1\n", "FILE:9: [DEFAULT] admin_listen", "missing port in address; write 127.0.0.1:9774 or unix:/run/admin.sock"},
		{"admin with a port above 65535", "conductor", good + "[DEFAULT]\nadmin_listen = 127.0.0.1:97740\n", "FILE:9: [DEFAULT] admin_listen", "port \"97740\" is neither"},
		{"admin at the API's address", "api", good + "[DEFAULT]\nadmin_listen = 127.0.0.1:8774\n", "FILE:9: [DEFAULT] admin_listen", "another port"},
		{"link prefix", "api", good + "[api]\ncompute_link_prefix = nova.example.org\n", "FILE:9: [api] compute_link_prefix", "does not match"},
		{"origin", "api", good + "[cors]\nallowed_origin = dashboard.example.org\n", "FILE:9: [cors] allowed_origin", "does not match"},
		{"collector of traces", "conductor", good + "[opentelemetry]\notlp_endpoint = 127.0.0.1:4318\n", "FILE:9: [opentelemetry] otlp_endpoint", "http://host:4318"},
		{"host", "conductor", good + "[DEFAULT]\nhost = a/../b\n", "FILE:9: [DEFAULT] host", "not the name of a host"},
		{"no state path", "compute", strings.Replace(good, "state_path = DIR/state\n", "", 1), "[DEFAULT] state_path", "such as /var/lib/nova"},
		{"state path is a file", "compute", strings.Replace(good, "DIR/state", "FILE", 1), "FILE:3: [DEFAULT] state_path", "is not a directory"},
		{"no such driver", "compute", good + "[DEFAULT]\ncompute_driver = acme\nplugin_dir = DIR\n", "FILE:9: [DEFAULT] compute_driver", "armature-compute-acme"},
		{"driver that every user can write", "compute", good + "[DEFAULT]\ncompute_driver = open\nplugin_dir = DIR\n", "FILE:9: [DEFAULT] compute_driver", "chmod go-w"},
		{"another checksum", "compute", good + "[DEFAULT]\ncompute_driver = fine\nplugin_dir = DIR\n[driver_fine]\nplugin_sha256 = " + strings.Repeat("0", 64) + "\n", "FILE:12: [driver_fine] plugin_sha256", "the configuration requires 000"},
		{"misspelled checksum", "compute", good + "[driver_fake]\nplugin_sha265 = 0\n", "FILE:9: [driver_fake] plugin_sha265", "the nearest is plugin_sha256"},
		{"checksum of a built-in driver", "compute", good + "[driver_fake]\nplugin_sha256 = " + strings.Repeat("0", 64) + "\n", "FILE:9: [driver_fake] plugin_sha256", "built in"},
		{"option of the driver", "compute", good + "[driver_fake]\nvcpu = 4\n", "FILE:9: [driver_fake] vcpu", "the nearest is vcpus"},
		{"host of the driver", "compute", good + "[driver_fake]\nhost = other\n", "FILE:9: [driver_fake] host", "cannot be set here"},
		{"dir of the driver", "compute", good + "[driver_fake]\ndir = /tmp\n", "FILE:9: [driver_fake] dir", "cannot be set here"},
		{"TLS of oslo.service, lenient", "api", good + "[DEFAULT]\nstrict = false\n[ssl]\ncert_file = /x\n", "FILE:11: [ssl] cert_file", "ssl_cert_file in [wsgi]"},
		{"scope of tokens, lenient", "api", good + "[DEFAULT]\nstrict = false\n[oslo_policy]\nenforce_scope = false\n", "FILE:11: [oslo_policy] enforce_scope", "always counts"},
		{"default rule, lenient", "api", good + "[DEFAULT]\nstrict = false\n[oslo_policy]\npolicy_default_rule = open\n", "FILE:11: [oslo_policy] policy_default_rule", "denies"},
		{"token bind, lenient", "api", good + "[DEFAULT]\nstrict = false\n[keystone_authtoken]\nenforce_token_bind = strict\n", "FILE:11: [keystone_authtoken] enforce_token_bind", "bound"},
		{"fault of the driver", "compute", good + "[driver_fake]\nfault_spwan = fail\n", "FILE:9: [driver_fake] fault_spwan", "the method does not exist"},
		{"value of a fault", "compute", good + "[driver_fake]\nfault_spawn = fall\n", "FILE:9: [driver_fake] fault_spawn", "option fault_spawn: "},
		{"neutron without tokens", "api", good + "[neutron]\nauth_url = http://127.0.0.1:1/\nusername = nova\npassword = hush\n", "FILE:7: [api] auth_strategy", "noauth2 and auth_url of [neutron] exclude each other"},
		{"value of the driver", "compute", good + "[driver_fake]\nvcpus = many\n", "FILE:9: [driver_fake] vcpus", "not an integer"},
		{"negative processors of the driver", "compute", good + "[driver_fake]\nvcpus = -1\n", "FILE:9: [driver_fake] vcpus", "option vcpus: -1 is less than 0"},
		{"negative memory of the driver", "compute", good + "[driver_fake]\nmemory_mib = -1\n", "FILE:9: [driver_fake] memory_mib", "-1 is less than 0"},
		{"negative disk of the driver", "compute", good + "[driver_fake]\ndisk_gib = -1\n", "FILE:9: [driver_fake] disk_gib", "-1 is less than 0"},
		{"negative events of the driver", "compute", good + "[driver_fake]\nevent_storm = -3\n", "FILE:9: [driver_fake] event_storm", "-3 is less than 0"},
		{"hosts of the driver, not an integer", "compute", good + "[driver_fake]\nhosts = 1e3\n", "FILE:9: [driver_fake] hosts", "is not an integer"},
		{"a port of consoles above 65535", "api", good + "[vnc]\nnovncproxy_base_url = http://consoles.example.org:99999/vnc_lite.html\n", "FILE:9: [vnc] novncproxy_base_url", "the port 99999 is not between 1 and 65535"},
		{"a port of serial consoles above 65535", "api", good + "[serial_console]\nbase_url = wss://consoles.example.org:65536/\n", "FILE:9: [serial_console] base_url", "the port 65536 is not between 1 and 65535"},
		{"a URL of consoles without a host", "api", good + "[serial_console]\nbase_url = wss:///x\n", "FILE:9: [serial_console] base_url", "has no host"},
		{"a port of links above 65535", "api", good + "[api]\ncompute_link_prefix = https://nova.example.org:70000\n", "FILE:9: [api] compute_link_prefix", "the port 70000 is not between 1 and 65535"},
		{"a port of Keystone above 65535", "api", strings.Replace(withKeystone, "http://127.0.0.1:1/", "http://127.0.0.1:65536/v3", 1), "FILE:7: [keystone_authtoken] auth_url", "the port 65536 is not between 1 and 65535"},
		{"a port of an origin above 65535", "api", good + "[cors]\nallowed_origin = https://a.example.org, https://b.example.org:70000\n", "FILE:9: [cors] allowed_origin", "the port 70000 is not between 1 and 65535"},
		{"an origin without a host", "api", good + "[cors]\nallowed_origin = https://:443\n", "FILE:9: [cors] allowed_origin", "has no host"},
		{"a port of the collector above 65535", "conductor", good + "[opentelemetry]\notlp_endpoint = http://127.0.0.1:431800\n", "FILE:9: [opentelemetry] otlp_endpoint", "the port 431800 is not between 1 and 65535"},
		{"a port of the bus above 65535", "conductor", strings.Replace(good, "127.0.0.1:1/\n", "127.0.0.1:65536/\n", 1), "FILE:2: [DEFAULT] transport_url", "the port 65536 is not between 1 and 65535"},
		{"a port of NATS above 65535", "conductor", strings.Replace(good, "rabbit://u:hush@127.0.0.1:1/", "nats://u:hush@127.0.0.1:1,127.0.0.2:65536", 1), "FILE:2: [DEFAULT] transport_url", "the port 65536 is not between 1 and 65535"},
		{"a port of the bus of watermill above 65535", "conductor", strings.Replace(good, "rabbit://u:hush@127.0.0.1:1/", "watermill-amqp://u:hush@127.0.0.1:65536/", 1), "FILE:2: [DEFAULT] transport_url", "the port 65536 is not between 1 and 65535"},
		{"a port of the database above 65535", "conductor", strings.Replace(good, "127.0.0.1:1/nova", "127.0.0.1:65536/nova", 1), "FILE:5: [database] connection", "the port 65536 is not between 1 and 65535"},
		{"a port 0", "api", strings.Replace(withKeystone, "http://127.0.0.1:1/", "http://127.0.0.1:0/v3", 1), "FILE:7: [keystone_authtoken] auth_url", "the port 0 is not between 1 and 65535: correct the port, or leave it out"},
		{"a port of Keystone for images above 65535", "api", good + withGlance + "auth_url = http://127.0.0.1:70000/v3\n", "FILE:11: [glance] auth_url", "the port 70000 is not between 1 and 65535"},
		{"a port of the image service above 65535", "compute", good + withGlance + "auth_url = http://127.0.0.1:1/v3\nendpoint_override = http://127.0.0.1:70000\n", "FILE:12: [glance] endpoint_override", "the port 70000 is not between 1 and 65535"},
		{"an address of the console proxy with a port", "consoleproxy", good + "[consoleproxy]\nlisten = 127.0.0.1:6080\n", "FILE:9: [consoleproxy] listen", "the port is port of [consoleproxy]"},
		{"an address of VNC consoles with a port", "compute", good + "[vnc]\nserver_proxyclient_address = 192.0.2.1:70000\n", "FILE:9: [vnc] server_proxyclient_address", "is neither an address"},
		{"an address of VNC consoles that is another option", "compute", good + "[vnc]\nserver_proxyclient_address = $my_ip\n", "FILE:9: [vnc] server_proxyclient_address", "write the address itself"},
		{"an address of serial consoles with a port", "compute", good + "[serial_console]\nproxyclient_address = 192.0.2.1:70000\n", "FILE:9: [serial_console] proxyclient_address", "is neither an address"},
		{"an origin of consoles with a scheme", "consoleproxy", good + "[console]\nallowed_origins = a.example.org, https://b.example.org\n", "FILE:9: [console] allowed_origins", `"https://b.example.org" is not the name of a host`},
		{"an origin of consoles with a port", "consoleproxy", good + "[console]\nallowed_origins = a.example.org:8080\n", "FILE:9: [console] allowed_origins", "without a scheme, a port and a path"},
		{"an origin of consoles with a wildcard", "consoleproxy", good + "[console]\nallowed_origins = *.example.org\n", "FILE:9: [console] allowed_origins", "is not the name of a host"},
		{"an origin of consoles in brackets", "consoleproxy", good + "[console]\nallowed_origins = [::1]\n", "FILE:9: [console] allowed_origins", "is not the name of a host"},
		{"only commas", "scheduler", good + "[filter_scheduler]\nenabled_filters = ,,\n", "FILE:9: [filter_scheduler] enabled_filters", "has only commas"},
		{"a NUL byte", "api", good + "[DEFAULT]\nhost = a\x00b\n", "FILE:9: [DEFAULT] host", "has a NUL byte"},
		{"not UTF-8", "api", good + "[DEFAULT]\nmy_ip = 192.0.2.\xff\n", "FILE:9: [DEFAULT] my_ip", "is not UTF-8"},
		{"a NUL byte for the driver", "compute", good + "[driver_fake]\narch = a\x00b\n", "FILE:9: [driver_fake] arch", "has a NUL byte"},
		{"half a second on the host", "conductor", good + "[DEFAULT]\nshelved_offload_time = -0.5\n", "FILE:9: [DEFAULT] shelved_offload_time", "is neither -1 nor 0 or more"},
		{"section of another driver", "conductor", good + "[driver_dirdrw]\nplugin_sha256 = 0\n", "FILE:8: [driver_dirdrw]", "has the section [driver_fake]"},
		{"section of another driver, lenient", "api", good + "[DEFAULT]\nstrict = false\n[driver_dirdrw]\nplugin_sha256 = 0\n", "FILE:10: [driver_dirdrw]", "has the section [driver_fake]"},
		{"unknown option", "conductor", good + "[DEFAULT]\nreport_intervall = 5\n", "FILE:9: [DEFAULT] report_intervall", "the nearest is report_interval"},
		{"unknown section", "conductor", good + "[databas]\n", "FILE:8: [databas]", "the nearest is database"},
		{"no option", "conductor", good + "this is not an option\n", "FILE:8:", "name = value"},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "nova.conf")
			fill := strings.NewReplacer("DIR", dir, "FILE", file)
			for path, text := range map[string]string{
				file: fill.Replace(tt.text), filepath.Join(dir, "bad.yaml"): "os_compute_api:servers:stort: '!'\n",
				filepath.Join(dir, "armature-compute-open"): "#!/bin/sh\n", filepath.Join(dir, "armature-compute-fine"): "#!/bin/sh\n",
			} {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := errors.Join(os.Chmod(filepath.Join(dir, "armature-compute-open"), 0o777), os.Chmod(filepath.Join(dir, "armature-compute-fine"), 0o755))
			if err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"config", "validate"}, {tt.service}} {
				var out bytes.Buffer
				err := runRefused(t.Context(), &out, append(args, "--config-file", file)...)
				text := fmt.Sprint(err)
				if err == nil || !strings.Contains(text, fill.Replace(tt.where)) || !strings.Contains(text, fill.Replace(tt.says)) {
					t.Errorf("%v: %v\nwant %s with %q", args, err, fill.Replace(tt.where), tt.says)
				}
				if n := strings.Count(text, "\n"); n != 0 {
					t.Errorf("%v: %d errors, want exactly one:\n%v", args, n+1, err)
				}
				if strings.Contains(text, "admin_hosts") && !strings.Contains(tt.says, "admin_hosts") {
					t.Errorf("%v: admin_hosts would not help: %v", args, err)
				}
				if strings.Contains(text, "hush") {
					t.Errorf("%v: the error has a password: %v", args, err)
				}
				if args[0] == "config" && !strings.Contains(out.String(), "read "+file+"\n") {
					t.Errorf("the output does not say that %s was read: %s", file, &out)
				}
			}
		})
	}
}

// TestGoodFiles: config validate accepts a correct file without using the network, also with strict = false. It reports several errors at
// once. It checks only the options that a service uses.
func TestGoodFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "nova.conf")
	validate := func(text string, args ...string) (string, error) {
		t.Helper()
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err := run(t.Context(), &out, append([]string{"config", "validate", "--config-file", file}, args...)...)
		return out.String(), err
	}
	for _, text := range []string{
		good, withKeystone, good + "[driver_fake]\nvcpus = 4\nfault_spawn = slow 1s\n",
		good + "[filter_scheduler]\nenabled_filters = RetryFilter, AvailabilityZoneFilter, ComputeFilter\n",
		good + "[driver_fake]\nvcpus = 0\nevent_storm = 0\n[console]\nallowed_origins = dashboard.example.org, 192.0.2.7, ::1, a_b.example\n[filter_scheduler]\nenabled_filters =\n",
		good + "[DEFAULT]\nshelved_offload_time = -1\n[vnc]\nnovncproxy_base_url = https://[::1]:65535/vnc_lite.html\n[serial_console]\nbase_url = ws://consoles.example.org/\n",
		good + "[DEFAULT]\nosapi_compute_listen = api.1.example.org\n[api]\nnoauth2_remote = true\n",
		good + "[DEFAULT]\nosapi_compute_listen = db.3com.com\n[api]\nnoauth2_remote = true\n",
		good + "[DEFAULT]\nosapi_compute_listen = 1.example.org.\n[api]\nnoauth2_remote = true\n",
		good + "[DEFAULT]\nosapi_compute_listen = [::1]\nadmin_listen = unix:/run/nova/{service}.sock\n",
		strings.Replace(good, "mysql://u:hush@127.0.0.1:1/nova", "sqlite:////DIR/a%3Fb.db", 1),
	} {
		if out, err := validate(text); err != nil || !strings.Contains(out, "read "+file) {
			t.Errorf("%v\n%s", err, text)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("validate has created files: %v, %v", left, err)
	}
	if _, err := validate("[DEFAULT]\n", "--service", "all-in-one"); err != nil {
		t.Errorf("all in one process: %v", err)
	}
	for _, text := range []string{"[DEFAULT]\n", "[DEFAULT]\nstate_path = DIR/new/state\n"} { // the first start makes the directory and the database
		out, err := validate(text, "--service", "all-in-one", "--online")
		if err != nil || !strings.Contains(out, "works: [database] connection") {
			t.Errorf("all in one process, online, before the first start: %v: %s", err, out)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "new", "state", "nova.db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("validate --online has created a database: %v", err)
	}
	if _, err := validate("[keystone_authtoken]\nusername = nova\n", "--service", "all-in-one"); err == nil || strings.Contains(err.Error(), "transport_url") || !strings.Contains(err.Error(), "auth_url") {
		t.Errorf("all in one process, keystone: %v", err)
	}
	blocked := filepath.Join(dir, "blocked", "instances", "node-1")
	if err := errors.Join(os.MkdirAll(filepath.Dir(blocked), 0o750), os.WriteFile(blocked, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := validate("[DEFAULT]\nstate_path = DIR/blocked\n", "--service", "all-in-one", "--online"); err == nil || !strings.Contains(err.Error(), file+":2: [DEFAULT] state_path: ") {
		t.Errorf("a state_path in which the driver cannot work: %v", err)
	}
	if _, err := validate("[DEFAULT]\ntransport_url = nats://h\nstate_path = DIR\n", "--service", "compute"); err != nil {
		t.Errorf("a host needs no database: %v", err)
	}
	_, err := validate("[DEFAULT]\nworkes = 1\ncpu_allocation_ratio = 0\ncompute_driver = none\nplugin_dir = DIR\ntransport_url = x\n[driver_fake]\n")
	if n := strings.Count(fmt.Sprint(err), "\n") + 1; n != 10 { // the wrong options of the file, and the missing options: database, state_path, three of Keystone's
		t.Errorf("%d errors, want 10:\n%v", n, err)
	}
	_, err = validate(withKeystone + "[neutron]\nauth_url = keystone\n[glance]\nauth_url = http://127.0.0.1:1/\nvalid_interfaces = x\n")
	for _, option := range []string{":11: [neutron] auth_url: ", "[neutron] username: is not set", "[neutron] password: is not set", "[glance] username: is not set", "[glance] password: is not set", ":14: [glance] valid_interfaces: "} {
		if strings.Count(fmt.Sprint(err), option) != 1 {
			t.Errorf("other services: want one error %q:\n%v", option, err)
		}
	}
	if n := strings.Count(fmt.Sprint(err), "\n") + 1; n != 6 {
		t.Errorf("other services: %d errors, want 6:\n%v", n, err)
	}
	if _, err := validate(good + "[glance]\nauth_url = http://127.0.0.1:1/\nusername = nova\npassword = hush\n"); err != nil { // nova-mini's own user asks
		t.Errorf("images without users: %v", err)
	}
	if _, err := validate(good, "--service", "compte"); err == nil || !strings.Contains(err.Error(), "the nearest is compute") {
		t.Errorf("%v", err)
	}
	if out, err := validate(good, "--online"); !strings.Contains(out, "works: [DEFAULT] compute_driver") || err == nil || strings.Count(err.Error(), "\n") != 1 ||
		!strings.Contains(err.Error(), file+":2: [DEFAULT] transport_url: ") || !strings.Contains(err.Error(), file+":5: [database] connection: ") {
		t.Errorf("online, without a bus and a database: %v", err)
	}
}

// TestFlagErrors: the error about the value of a flag names the flag as the user has written it.
func TestFlagErrors(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{"--port abc": "flag --port: [DEFAULT] osapi_compute_listen_port: \"abc\" is not an integer", "--port 70000 api": "flag --port: [DEFAULT] osapi_compute_listen_port: \"70000\" is more than 65535"} {
		if err := run(t.Context(), new(bytes.Buffer), append(strings.Fields(args), "--state-path", t.TempDir())...); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", args, err, want)
		}
	}
}

// TestCommandLine: a wrong command line ends with exit code 2. The error of an unknown name has the nearest name, if there is a similar one.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for args, want := range map[string]string{
		"conducter":                          `command "conducter" does not exist; the nearest is conductor`,
		"operation lst":                      `command "operation lst" does not exist; the nearest is list`,
		"db snyc":                            `command "db snyc" does not exist; the nearest is sync`,
		"operation list --state bogus":       `state "bogus" does not exist; use one of: running, undoing, succeeded, failed, timed_out, canceled`,
		"operation list --state runnig":      `state "runnig" does not exist; the nearest is running`,
		"operation list --limit -1":          "flag --limit: -1 is less than 0",
		"operation list --stat x":            "unknown flag: --stat; the nearest is --state",
		"operation show":                     "requires at least 1 arg",
		"api now":                            `nova-mini api has no arguments: remove "now"`,
		"config validate --service bogus":    `service "bogus" does not exist`,
		"policy explain --rule servers:star": `rule "servers:star" does not exist; the nearest is os_compute_api:servers:start`,
		"dlq list X":                         `nova-mini dlq list has no arguments: remove "X"`,
	} {
		err := run(t.Context(), new(bytes.Buffer), append(strings.Fields(args), "--state-path", dir)...)
		if exitCode(err) != 2 || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: exit code %d, %v; want 2 with %s", args, exitCode(err), err, want)
		}
	}
}

// TestStatePath: with the option state_path, a command of an operator finds the database of the process with all services.
// The flag --limit limits the list of operations.
func TestStatePath(t *testing.T) { //nolint:paralleltest // the program sets the default logger
	dir := t.TempDir()
	printed, err := serve(t, "--state-path", dir, "--port", "0")
	if err != nil {
		t.Fatal(err)
	}
	url := regexp.MustCompile(`(?m)^nova-mini listens on (\S+)$`).FindStringSubmatch(printed)[1]
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/v2.1/servers", strings.NewReader(`{"server": {"name": "demo", "flavorRef": "1", "imageRef": "cirros"}}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	res, err := tr.RoundTrip(r)
	if err != nil || res.StatusCode != http.StatusAccepted {
		t.Fatal(res, err)
	}
	_ = res.Body.Close()
	list := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		if err := run(t.Context(), &out, append([]string{"operation", "list", "--state-path", dir}, args...)...); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if got := list(); strings.Count(got, "server.create") != 1 {
		t.Errorf("%s", got)
	}
	if got := list("--limit", "0"); strings.Count(got, "\n") != 1 {
		t.Errorf("--limit 0 lists\n%s", got)
	}
	if err := run(t.Context(), new(bytes.Buffer), "operation", "list", "--state-path", t.TempDir()); err == nil || !strings.Contains(err.Error(), "flag --state-path: [DEFAULT] state_path: ") || !strings.Contains(err.Error(), "does not exist: use the directory of the --state-path") {
		t.Errorf("without a database: %v", err)
	}
}
