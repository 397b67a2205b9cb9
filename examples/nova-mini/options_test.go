package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/service/config"
)

// TestNovaConf: with strict = false, nova-mini accepts a file that was written for Nova. It uses the options that it knows, and the log
// names each other option once. With strict = true the file is refused.
func TestNovaConf(t *testing.T) {
	t.Parallel()
	const file = "testdata/nova.conf"
	var out bytes.Buffer
	src := config.Source{Files: []string{file}, Env: []string{"OS_DEFAULT__STRICT=false"}, Logger: slog.New(slog.NewTextHandler(&out, nil))}
	c, err := config.Open[options](src)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Reload(t.Context()); err != nil {
			t.Error(err)
		}
	}
	o := c.Current()
	for _, tt := range []struct{ got, want any }{
		{o.driver().Driver, "libvirt"},
		{o.Listen, "10.0.0.11"},
		{o.StatePath, "/var/lib/nova"},
		{o.TransportURL, "rabbit://openstack:RABBIT_PASS@controller:5672/"},
		{o.Database.Connection, "mysql+pymysql://nova:NOVA_DBPASS@controller/nova?charset=utf8"},
		{o.Database.MaxPoolSize, 20},
		{o.CPURatio, 8.0},
		{o.ServiceDownTime, 75 * time.Second},
		{o.API.AuthStrategy, "keystone"},
		{o.Auth.Password, "NOVA$PASS"},
		{strings.Join(o.Auth.ServiceRoles, " "), "service admin"},
		{strings.Join(o.FilterScheduler.EnabledFilters, " "), "ComputeFilter ComputeCapabilitiesFilter ImagePropertiesFilter"},
		{o.FilterScheduler.RAMMultiplier, -1.0},
		{o.Rabbit.QuorumQueue, true},
		{o.Scheduler.MaxAttempts, 5},
	} {
		if tt.got != tt.want {
			t.Errorf("%v, want %v", tt.got, tt.want)
		}
	}
	// The log names every unknown option once. An unknown section has one line for all its options.
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	ignored := 0
	for i, line := range strings.Split(string(raw), "\n") {
		ignored += strings.Count(out.String(), `ignored" detail="`+file+":"+strconv.Itoa(i+1)+":")
		if strings.HasPrefix(line, "log_dir") && !strings.Contains(out.String(), "log_dir") {
			t.Errorf("%s is not named", line)
		}
	}
	if n := strings.Count(out.String(), "\n"); n != ignored || n < 20 {
		t.Errorf("%d warnings, of which %d name a line:\n%s", n, ignored, &out)
	}
	for _, secret := range []string{"RABBIT_PASS", "NOVA_DBPASS", "METADATA_SECRET"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("a secret was logged:\n%s", &out)
		}
	}

	src.Env = nil
	if _, err := config.Open[options](src); err == nil || !strings.Contains(err.Error(), file+":5: [DEFAULT] enabled_apis: no such option") {
		t.Errorf("strict: %v", err)
	}
}

// TestTLSOptions: an option that requires TLS is never ignored, not even with strict = false. It enables TLS, or it is an error that
// names the option.
func TestTLSOptions(t *testing.T) {
	t.Parallel()
	_, pem := certificate(t)
	raw, err := os.ReadFile(pem)
	if err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(t.TempDir(), "open.pem")
	if err := os.WriteFile(open, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	const keystone = "[keystone_authtoken]\nusername = nova\npassword = x\nauth_url = https://keystone:5000\n"
	const rabbit = "transport_url = rabbit://u:p@h/\n[oslo_messaging_rabbit]\n"
	for _, tt := range []struct{ name, file, says string }{
		{"ssl", rabbit + "ssl = true\nssl_ca_file = " + pem, ""},
		{"older names", rabbit + "rabbit_use_ssl = true\nkombu_ssl_ca_certs = " + pem + "\nkombu_ssl_certfile = " + pem + "\nkombu_ssl_keyfile = " + pem, ""},
		{"files without ssl", rabbit + "ssl_ca_file = " + pem, "set ssl"},
		{"missing authorities", rabbit + "ssl = true\nssl_ca_file = /nonexistent", "/nonexistent"},
		{"open key", rabbit + "ssl = true\nssl_cert_file = " + pem + "\nssl_key_file = " + open, open},
		{"version", rabbit + "ssl = true\nssl_version = TLSv1", "ssl_version"},
		{"parameter", "transport_url = rabbit://u:p@h/?sll=1", "sll"},
		{"keystone", keystone + "cafile = " + pem + "\ncertfile = " + pem + "\nkeyfile = " + pem, ""},
		{"keystone, missing authorities", keystone + "cafile = /nonexistent", "cafile"},
		{"keystone, open key", keystone + "certfile = " + pem + "\nkeyfile = " + open, open},
		{"keystone, insecure", keystone + "insecure = true", "insecure"},
		{"traces", "[opentelemetry]\notlp_endpoint = https://h:4318\notlp_cafile = " + pem, ""},
		{"traces, no TLS", "[opentelemetry]\notlp_endpoint = http://h:4318\notlp_cafile = " + pem, "use https://"},
		{"traces, parameter", "[opentelemetry]\notlp_endpoint = https://h:4318?insecure=1", "insecure"},
		{"traces, open key", "[opentelemetry]\notlp_endpoint = https://h:4318\notlp_certfile = " + pem + "\notlp_keyfile = " + open, open},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conf := filepath.Join(t.TempDir(), "nova.conf")
			if err := os.WriteFile(conf, []byte("[DEFAULT]\nstrict = false\n"+tt.file+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			err := run(t.Context(), new(bytes.Buffer), "config", "validate", "--service", "all-in-one", "--config-file", conf)
			if tt.says == "" && err != nil || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("%v, want %q", err, tt.says)
			}
		})
	}
}

// TestOptionsOfServers: a zone has no colon, because clients write ZONE:HOST. The zone of the hosts differs from the zone of the other
// services. The template of the servers' names on hosts makes unique names.
func TestOptionsOfServers(t *testing.T) {
	t.Parallel()
	for text, says := range map[string]string{
		"":                                            "",
		"default_availability_zone = a":               "",
		"default_availability_zone = a:b":             "default_availability_zone",
		"default_availability_zone = ":                "default_availability_zone",
		"instance_name_template = %(uuid)s":           "",
		"instance_name_template = vm-%08x":            "has %08x, which servers do not have",
		"instance_usage_audit_period = month@15":      "",
		"instance_usage_audit_period = week":          "is not hour, day, month or year",
		"instance_usage_audit_period = month@31":      "instance_usage_audit_period",
		"instance_usage_audit = true":                 "nova-mini runs no audits of usage",
		"instance_usage_audit = false":                "",
		"default_schedule_zone = a:b":                 "default_schedule_zone",
		"my_ip = 192.0.2.7":                           "",
		"my_ip = ::1":                                 `"::1" is not an IPv4 address`,
		"my_ip = node":                                `"node" is not an IPv4 address`,
		"default_availability_zone = internal":        "name different zones",
		"internal_service_availability_zone = nova\n": "name different zones",
	} {
		file := filepath.Join(t.TempDir(), "nova.conf")
		if err := os.WriteFile(file, []byte("[DEFAULT]\n"+text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := config.Open[options](config.Source{Files: []string{file}, Logger: slog.New(slog.DiscardHandler)})
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}
