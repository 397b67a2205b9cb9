package config_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/service/config"
)

// pinned has a family of sections with options that protect, and older names of such options.
type pinned struct {
	Debug   bool                         `ini:"debug"`
	SSLOnly bool                         `ini:"ssl_only" default:"false" protects:"true" unsupported:"name a certificate"`
	Drivers map[string]map[string]string `sections:"driver_" protects:"true"`
	API     struct {
		Strategy string `ini:"auth_strategy" protects:"true" deprecated:"DEFAULT.auth_strategy"`
	} `section:"api"`
	Database struct {
		URL string `ini:"connection" deprecated:"sql.connection"`
	} `section:"database"`
}

// TestFamiliesInEnvironment: a section of a family takes values from the environment, over those of files.
// The names of sections are case-insensitive in all sources.
func TestFamiliesInEnvironment(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, text string
		env        []string
		want       map[string]map[string]string
		section    string
		where      string // the origin of [section] plugin_sha256; FILE stands for the file
	}{
		{"no section", "", []string{"OS_DRIVER_ACME__PLUGIN_SHA256=w"}, map[string]map[string]string{"acme": {"plugin_sha256": "w"}}, "driver_acme", "environment OS_DRIVER_ACME__PLUGIN_SHA256"},
		{"empty section", "[driver_acme]", []string{"OS_DRIVER_ACME__PLUGIN_SHA256=w"}, map[string]map[string]string{"acme": {"plugin_sha256": "w"}}, "driver_acme", "environment OS_DRIVER_ACME__PLUGIN_SHA256"},
		{"over a file", "[driver_acme]\nplugin_sha256 = r\ndir = d", []string{"OS_DRIVER_ACME__PLUGIN_SHA256=w"}, map[string]map[string]string{"acme": {"plugin_sha256": "w", "dir": "d"}}, "driver_acme", "environment OS_DRIVER_ACME__PLUGIN_SHA256"},
		{"misspelled", "", []string{"OS_DRIVER_ACME__PLUGIN_SHA265=w"}, map[string]map[string]string{"acme": {"plugin_sha265": "w"}}, "driver_acme", ""},
		{"spelling of the file", "[driver_Ac-me]\nMaxSize = 1", []string{"OS_DRIVER_AC_ME__MAXSIZE=2", "OS_DRIVER_AC_ME__PLUGIN_SHA256=w"}, map[string]map[string]string{"Ac-me": {"MaxSize": "2", "plugin_sha256": "w"}}, "driver_Ac-me", "environment OS_DRIVER_AC_ME__PLUGIN_SHA256"},
		{"two underscores", "[driver_a__b]", []string{"OS_DRIVER_A__B__PLUGIN_SHA256=w"}, map[string]map[string]string{"a__b": {"plugin_sha256": "w"}}, "driver_a__b", "environment OS_DRIVER_A__B__PLUGIN_SHA256"},
		{"case of sections", "[Driver_Acme]\ndir = d\n[driver_ACME]\nplugin_sha256 = w", nil, map[string]map[string]string{"Acme": {"dir": "d", "plugin_sha256": "w"}}, "driver_acme", "FILE:4"},
		{"no option", "", []string{"OS_DRIVER_ACME=x", "OS_DRIVER_ACME__=x"}, map[string]map[string]string{}, "driver_acme", ""},
	} {
		file := put(t, filepath.Join(t.TempDir(), "1.conf"), tt.text+"\n", 0o600)
		c, err := config.Open[pinned](config.Source{Files: []string{file}, Env: tt.env})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if diff := cmp.Diff(tt.want, c.Current().Drivers); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
		if got := c.Where(tt.section, "plugin_sha256"); got != strings.ReplaceAll(tt.where, "FILE", file) {
			t.Errorf("%s: Where = %q, want %s", tt.name, got, tt.where)
		}
		if head := c.Where(tt.section, ""); (head == "") != (len(tt.want) == 0) {
			t.Errorf("%s: Where of the head = %q", tt.name, head)
		}
	}
}

// TestUnknownSections: a variable of the environment with an unknown section is an error in strict mode. In
// lenient mode it has the same result as a section of a file. Variables without a double underscore belong
// to other programs.
func TestUnknownSections(t *testing.T) {
	t.Parallel()
	for env, want := range map[string][2]string{ // the errors in strict and in lenient mode
		"OS_AIP__AUTH_STRATEGY=x":           {"environment OS_AIP__AUTH_STRATEGY: [aip]: no such section; the nearest is api", "because an option that protects the service has a similar name"},
		"OS_DATABSE__CONNECTION=x":          {"environment OS_DATABSE__CONNECTION: [databse]: no such section; the nearest is database", ""},
		"OS_DRIVR_ACME__PLUGIN_SHA256=x":    {"environment OS_DRIVR_ACME__PLUGIN_SHA256: [drivr_acme]: no such section; the nearest is driver_...", "because an option that protects the service has a similar name"},
		"OS_DRIVER__PLUGIN_SHA256=x":        {"[driver]: no such section; the nearest is driver_...", "similar name"},
		"OS_GLANCE__CAFILE=x":               {"environment OS_GLANCE__CAFILE: [glance]: no such section", ""},
		"OS_SQL__CONNECTIN=x":               {"environment OS_SQL__CONNECTIN: [sql] connectin: no such option; the nearest is connection", ""},
		"OS_DEFAULT__AUTH_STRATGY=x":        {"[DEFAULT] auth_stratgy: no such option; the nearest is auth_strategy", "similar name"},
		"OS_DATABASE__SSL_CA=x":             {"[database] ssl_ca: no such option", "because its name is about TLS or identity"},
		"OS_Api__AUTH_STRATEGY=x":           {"write the name of the variable in upper case", "write the name of the variable in upper case"},
		"OS_AUTH_URL=http://keystone":       {},
		"OS_PROJECT_NAME=x":                 {},
		"OS_CLOUD=x":                        {},
		"OS__X=x":                           {},
		"SOME_OS_API__AUTH_STRATEGY=x":      {},
		"OS_SQL__CONNECTION=sqlite:///x.db": {},
	} {
		for i, lenient := range []bool{false, true} {
			var p pinned
			err := config.Load(&p, config.Source{Env: []string{env}, Lenient: lenient, Logger: slog.New(slog.DiscardHandler)})
			if (err != nil) != (want[i] != "") || !strings.Contains(fmt.Sprint(err), want[i]) {
				t.Errorf("%s, lenient %t: %v\nwant %q", env, lenient, err, want[i])
			}
		}
	}
}

// TestLenientProtects: in lenient mode a name that may be meant for protection is an error: a section whose name is similar to
// that of a family, an option whose name is similar to an older name, and an option of a declared section whose name is about
// TLS or identity and whose value requests protection.
func TestLenientProtects(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"[drivr_acme]\nplugin_sha256 = x":  "1.conf:1: [drivr_acme]: no such section; the nearest is driver_...; this is an error even though",
		"[driveracme]\nplugin_sha256 = x":  "[driveracme]: no such section",
		"[ driver_acme ]\nplugin_sha256=x": "no such section",
		"[driver]\nplugin_sha256 = x":      "[driver]: no such section",
		"[devices]\nenabled = x":           "",
		"[privsep]\nuser = x":              "",
		"auth_strategyy = keystone":        "1.conf:1: [DEFAULT] auth_strategyy: no such option; the nearest is auth_strategy; this is an error even though",
		"auth_stratgy = keystone":          "[DEFAULT] auth_stratgy: no such option; the nearest is auth_strategy",
		"AUTH-STRATEGY = keystone":         "no such option",
		"auth_type = password":             "",
		"[database]\nssl_ca = /x":          "1.conf:2: [database] ssl_ca: no such option; this is an error even though unknown options are ignored, because its name is about TLS or identity",
		"[database]\nssl_ca =":             "",
		"[database]\ntls_enabled = False":  "",
		"[database]\ntls_enabled = True":   "TLS or identity",
		"[database]\nserver_cafile = /x":   "TLS or identity",
		"[database]\ncert = x":             "TLS or identity",
		"[database]\ncertainty = x":        "",
		"[database]\nauth_stratgy = x":     "similar name",
		"[glance]\ncafile = /x":            "",
		"ssl_only = true":                  "1.conf:1: [DEFAULT] ssl_only = true is not supported: name a certificate",
		"ssl_only = False":                 "",
		"ssl_only = no":                    "",
		"ssl_only = maybe":                 "is not supported",
	} {
		var p pinned
		var out bytes.Buffer
		file := put(t, filepath.Join(t.TempDir(), "1.conf"), text+"\n", 0o600)
		err := config.Load(&p, config.Source{Files: []string{file}, Lenient: true, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		if (err != nil) != (want != "") || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%q: %v\nwant %q", text, err, want)
		}
	}
}

// TestFormerSections: in a section that has only older names, an unknown name is also an error.
func TestFormerSections(t *testing.T) {
	t.Parallel()
	var p pinned
	err := config.Load(&p, config.Source{Files: write(t, "[sql]\nconnectin = x\n")})
	if err == nil || !strings.Contains(err.Error(), "1.conf:2: [sql] connectin: no such option; the nearest is connection") {
		t.Errorf("%v, want an error for connectin", err)
	}
}

// TestFarNames: an error suggests a name only if it is similar.
func TestFarNames(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"vcpus = 4":     "[DEFAULT] vcpus: no such option",
		"debgu = 1":     "[DEFAULT] debgu: no such option; the nearest is debug",
		"[libvirt]":     "[libvirt]: no such section",
		"[databases]":   "[databases]: no such section; the nearest is database",
		"[api]\nx = 1":  "[api] x: no such option",
		"[aip]":         "[aip]: no such section; the nearest is api",
		"[API]\ndebug=": "[api] debug: no such option; it belongs to [DEFAULT]",
	} {
		var p pinned
		err := config.Load(&p, config.Source{Files: write(t, text+"\n")})
		if err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// guarded has options with the tags protects and unsupported.
type guarded struct {
	Strategy string `ini:"auth_strategy" default:"keystone" choices:"keystone, none" protects:"true"`
	Debug    bool   `ini:"debug"`
	TLS      struct {
		CA     string `ini:"ca_file" protects:"true"`
		Policy string `ini:"ssl_version" unsupported:"the TLS library chooses the version"`
		Token  string `ini:"token" default:"x" secret:"true" unsupported:"there are no tokens"`
		Size   int    `ini:"size"`
	} `section:"tls"`
	Cache struct {
		Size int `ini:"size"`
	} `section:"cache"`
}

// TestProtects: a name that may be meant for an option with the tag protects is an error, even if unknown options are
// ignored. A value that is not supported is also an error.
func TestProtects(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text    string
		env     string
		strict  string // the error in strict mode; "": no error
		lenient string // the error in lenient mode; "": no error
	}{
		{"auth_strategi = keystone", "", "no such option", "1.conf:1: [DEFAULT] auth_strategi: no such option; the nearest is auth_strategy; this is an error"},
		{"auth_strategyy = keystone", "", "no such option", "this is an error even though"},
		{"ca_file = /x", "", "it belongs to [tls]", "[DEFAULT] ca_file: no such option; it belongs to [tls]; this is an error"},
		{"[cache]\nca_file = /x", "", "it belongs to [tls]", "[cache] ca_file: no such option"},
		{"[tls]\nca_fil = /x", "", "the nearest is ca_file", "[tls] ca_fil: no such option"},
		{"[tsl]\nca_file = /x", "", "no such section", "[tsl]: no such section"},
		{"[tls]\nssl_version = 1", "", "1.conf:2: [tls] ssl_version = 1 is not supported: the TLS library chooses the version", "is not supported"},
		{"[tls]\ntoken = hunter2", "", "[tls] token = *** is not supported", "[tls] token = *** is not supported"},
		{"[tls]\nssl_version =", "", "", ""},
		{"[tls]\ntoken = x", "", "", ""},
		{"[tls]\nsizes = 1", "", "no such option", ""},
		{"[cachee]\nsize = 1", "", "no such section", ""},
		{"[somewhere_else]\nca_file = 1", "", "no such section", ""},
		{"debugg = 1", "", "no such option", ""},
		{"", "OS_DEFAULT__AUTH_STRATEGI=keystone", "environment OS_DEFAULT__AUTH_STRATEGI: [DEFAULT] auth_strategi: no such option; the nearest is auth_strategy", "this is an error even though"},
		{"", "OS_TLS__CA_FIL=/x", "environment OS_TLS__CA_FIL: [tls] ca_fil: no such option; the nearest is ca_file", "this is an error even though"},
		{"", "OS_TLS__SSL_VERSION=1", "environment OS_TLS__SSL_VERSION: [tls] ssl_version = 1 is not supported", "is not supported"},
		{"", "OS_DEFAULT__DEBUGG=1", "the nearest is debug", ""},
		{"", "OS_OTHER__DEBUG=1", "environment OS_OTHER__DEBUG: [other]: no such section", ""},
	} {
		file := filepath.Join(t.TempDir(), "1.conf")
		put(t, file, tt.text+"\n", 0o600)
		for _, lenient := range []bool{false, true} {
			want := tt.strict
			if lenient {
				want = tt.lenient
			}
			var g guarded
			err := config.Load(&g, config.Source{Files: []string{file}, Env: []string{tt.env}, Lenient: lenient, Logger: slog.New(slog.DiscardHandler)})
			if (err != nil) != (want != "") || !strings.Contains(fmt.Sprint(err), want) || strings.Contains(fmt.Sprint(err), "hunter2") {
				t.Errorf("%q %s, lenient %t: %v, want %q", tt.text, tt.env, lenient, err, want)
			}
		}
	}
}
