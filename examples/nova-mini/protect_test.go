package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/armature-go/armature/service/config"
)

// acmeProgram creates a directory for plugin_dir with the driver program acme, which is this test's binary. It returns the directory
// and the SHA-256 of the program.
func acmeProgram(t *testing.T) (dir, sum string) {
	t.Helper()
	dir = t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"acme", "ac-me"} {
		if err := os.Symlink(self, filepath.Join(dir, "armature-compute-"+name)); err != nil {
			t.Fatal(err)
		}
	}
	digest := sha256.Sum256(raw)
	return dir, hex.EncodeToString(digest[:])
}

// TestDriverPins: a driver's section has the same effect in the environment as in a file, and the environment overrides the file. For a
// wrong value, config validate and the compute service return an error that says where the value is set.
func TestDriverPins(t *testing.T) {
	dir, right := acmeProgram(t)
	wrong := strings.Repeat("0", 64)
	const pin = "OS_DRIVER_ACME__PLUGIN_SHA256="
	for _, tt := range []struct {
		name, text string
		env        []string
		says       string // a part of the error, in which FILE stands for the path of the file; "": no error
	}{
		{"no section", "", []string{pin + wrong}, "environment OS_DRIVER_ACME__PLUGIN_SHA256: [driver_acme] plugin_sha256: the driver's program"},
		{"empty section", "[driver_acme]\n", []string{pin + wrong}, "environment OS_DRIVER_ACME__PLUGIN_SHA256: [driver_acme] plugin_sha256: "},
		{"over a file", "[driver_acme]\nplugin_sha256 = " + right, []string{pin + wrong}, "environment OS_DRIVER_ACME__PLUGIN_SHA256: [driver_acme] plugin_sha256: "},
		{"over a wrong file", "[driver_acme]\nplugin_sha256 = " + wrong, []string{pin + right}, ""},
		{"in a file", "[driver_acme]\nplugin_sha256 = " + wrong, nil, "FILE:12: [driver_acme] plugin_sha256: the driver's program"},
		{"section in another case", "[Driver_ACME]\nplugin_sha256 = " + wrong, nil, "FILE:12: [driver_ACME] plugin_sha256: the driver's program"},
		{"empty", "", []string{pin}, "environment OS_DRIVER_ACME__PLUGIN_SHA256: [driver_acme] plugin_sha256: "},
		{"misspelled option", "", []string{"OS_DRIVER_ACME__PLUGIN_SHA265=" + wrong}, "environment OS_DRIVER_ACME__PLUGIN_SHA265: [driver_acme] plugin_sha265: option plugin_sha265: no such option; the nearest is plugin_sha256"},
		{"misspelled driver", "", []string{"OS_DRIVER_ACMEE__PLUGIN_SHA256=" + wrong}, "environment OS_DRIVER_ACMEE__PLUGIN_SHA256: [driver_acmee]: compute_driver = acme has the section [driver_acme]"},
		{"misspelled family", "", []string{"OS_DRIVR_ACME__PLUGIN_SHA256=" + wrong}, "environment OS_DRIVR_ACME__PLUGIN_SHA256: [drivr_acme]: no such section; the nearest is driver_..."},
		{"hyphen", "", []string{"OS_DRIVER_AC_ME__PLUGIN_SHA256=" + wrong}, "environment OS_DRIVER_AC_ME__PLUGIN_SHA256: [driver_ac_me] plugin_sha256: the driver's program"},
		{"two sections", "[driver_ac-me]\n[driver_ac_me]", nil, "FILE:12: [driver_ac_me]: compute_driver = ac-me has the section [driver_ac-me]"},
	} {
		for _, strict := range []string{"true", "false"} {
			t.Run(strings.ReplaceAll(tt.name, " ", "_")+"_"+strict, func(t *testing.T) {
				for _, kv := range tt.env {
					name, value, _ := strings.Cut(kv, "=")
					t.Setenv(name, value)
				}
				file := filepath.Join(t.TempDir(), "nova.conf")
				driver := "acme"
				if tt.name == "hyphen" || tt.name == "two sections" {
					driver = "ac-me"
				}
				text := strings.ReplaceAll(good, "DIR", filepath.Dir(file)) + "[DEFAULT]\ncompute_driver = " + driver + "\nplugin_dir = " + dir + "\n" + tt.text + "\n"
				text = strings.Replace(text, "[DEFAULT]\n", "[DEFAULT]\nstrict = "+strict+"\n", 1)
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				says := strings.ReplaceAll(tt.says, "FILE:12", "FILE:13")
				says = strings.ReplaceAll(says, "FILE", file)
				for _, args := range [][]string{{"config", "validate"}, {"compute"}} {
					if args[0] == "compute" && tt.says == "" {
						continue
					}
					err := run(t.Context(), new(bytes.Buffer), append(args, "--config-file", file)...)
					if (err != nil) != (tt.says != "") || !strings.HasPrefix(fmt.Sprint(err), says) && tt.says != "" || strings.Contains(fmt.Sprint(err), "\n") {
						t.Errorf("%v: %v\nwant %s", args, err, says)
					}
				}
			})
		}
	}
}

// TestDriverGuide: the file of docs/writing-a-driver.md that tries a driver passes the check that the document names. The file gets the
// directory and the checksum of the tested program, and no user, because only root can start a program as another user.
func TestDriverGuide(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../docs/writing-a-driver.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)^    \[DEFAULT\]\n(    .*\n|\n)*`).FindAllString(string(raw), -1)
	commands := regexp.MustCompile("`nova-mini (config validate[^`]*)`").FindAllStringSubmatch(string(raw), -1)
	if len(lines) != 1 || len(commands) != 1 {
		t.Fatalf("want one file and one command that checks it: %q, %q", lines, commands)
	}
	plugins, sum := acmeProgram(t)
	dir := t.TempDir()
	text := strings.Replace(lines[0], "/usr/lib/armature/plugins", plugins+"\nstate_path = "+dir, 1)
	text = regexp.MustCompile(`[0-9a-f]{64}`).ReplaceAllString(text, sum)
	text = strings.Replace(text, "plugin_user = acme\n", "", 1)
	file := filepath.Join(dir, "acme.conf")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "    ", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func() error {
		return run(t.Context(), new(bytes.Buffer), append(strings.Fields(strings.Replace(commands[0][1], "acme.conf", file, 1)), "--online")...)
	}
	if err := check(); err != nil {
		t.Errorf("%s: %v", commands[0][1], err)
	}
	more, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer more.Close()
	if _, err := more.WriteString("colour = red\n"); err != nil {
		t.Fatal(err)
	}
	if err := check(); err == nil || !regexp.MustCompile(regexp.QuoteMeta(file)+`:\d+: \[driver_acme\] colour: `).MatchString(err.Error()) {
		t.Errorf("a wrong option of a program: %v", err)
	}
}

// TestProtectingNames: an unknown name that looks like an option of identity, TLS or policy is an error in files and in the environment,
// even with strict = false. Variables of OpenStack's clients are not errors.
func TestProtectingNames(t *testing.T) {
	for _, tt := range []struct {
		text, env       string
		strict, lenient string // a part of the error with strict = true and with strict = false; "": no error
	}{
		{"", "OS_KEYSTONE_AUTHTOKN__CAFILE=/x", "[keystone_authtokn]: no such section; the nearest is keystone_authtoken", "similar name"},
		{"", "OS_AIP__AUTH_STRATEGY=keystone", "[aip]: no such section; the nearest is api", "similar name"},
		{"", "OS_OSLO_POLCY__POLICY_FILE=x", "the nearest is oslo_policy", "similar name"},
		{"", "OS_WGSI__SSL_CERT_FILE=x", "the nearest is wsgi", "similar name"},
		{"", "OS_DATABSE__CONNECTION=x", "the nearest is database", ""},
		{"", "OS_DEFAULT__AUTH_STRATGY=keystone", "the nearest is auth_strategy", "similar name"},
		{"", "OS_AUTH_URL=http://keystone:5000", "", ""},
		{"", "OS_PROJECT_NAME=admin", "", ""},
		{"[drivr_acme]\nplugin_sha256 = 0", "", "[drivr_acme]: no such section; the nearest is driver_...", "similar name"},
		{"[DEFAULT]\nauth_strategyy = keystone", "", "the nearest is auth_strategy", "similar name"},
		{"[DEFAULT]\nauth_stratgy = keystone", "", "the nearest is auth_strategy", "similar name"},
		{"[DEFAULT]\nenabled_ssl_apis = osapi_compute", "", "[DEFAULT] enabled_ssl_apis = osapi_compute is not supported: set ssl_cert_file and ssl_key_file in [wsgi]", "is not supported"},
		{"[DEFAULT]\nenabled_ssl_apis =", "", "", ""},
		{"[DEFAULT]\nssl_only = True", "", "[DEFAULT] ssl_only = True is not supported", "is not supported"},
		{"[DEFAULT]\nssl_only = False", "", "", ""},
		{"[keystone_authtoken]\ninsecure = False", "", "", ""},
		{"[database]\nssl_ca = /x", "", "[database] ssl_ca: no such option", "TLS or identity"},
		{"[wsgi]\nsecure_proxy_ssl_header = HTTP_X_FORWARDED_PROTO", "", "set compute_link_prefix in [api]", "set compute_link_prefix in [api]"},
		{"[pci]\nalias = x\n[glance]\ncafile = /x\n[workarounds]\n[vnc]\n", "", "no such section", ""},
	} {
		for _, strict := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s%s strict %t", tt.text, tt.env, strict), func(t *testing.T) {
				if name, value, ok := strings.Cut(tt.env, "="); ok {
					t.Setenv(name, value)
				}
				file, want := filepath.Join(t.TempDir(), "nova.conf"), tt.lenient
				if strict {
					want = tt.strict
				}
				text := strings.Replace(strings.ReplaceAll(good, "DIR", t.TempDir()), "[DEFAULT]\n", fmt.Sprintf("[DEFAULT]\nstrict = %t\n", strict), 1) + tt.text + "\n"
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := run(t.Context(), new(bytes.Buffer), "config", "validate", "--config-file", file); (err != nil) != (want != "") || !strings.Contains(fmt.Sprint(err), want) {
					t.Errorf("%v\nwant %q", err, want)
				}
			})
		}
	}
}

// TestStartErrors: if a part of the service does not start, the error says where the part's option is set.
func TestStartErrors(t *testing.T) { //nolint:paralleltest // the program sets the default logger
	plugins, _ := acmeProgram(t)
	dir := t.TempDir()
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	_, port, err := net.SplitHostPort(taken.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	const base = "[DEFAULT]\nstate_path = DIR/state\nosapi_compute_listen_port = "
	for _, tt := range []struct{ text, says string }{
		{base + "0\nadmin_listen = " + taken.Addr().String(), "start admin (option admin_listen, FILE:4): listen on"},
		{base + port, "start api address (option osapi_compute_listen; option osapi_compute_listen_port, FILE:3): listen on"},
		{base + "0\ncompute_driver = acme\nplugin_dir = " + plugins + "\n[driver_acme]\nvcpus = 4", "start driver compute node-1: FILE:7: [driver_acme] vcpus: "},
	} {
		file := filepath.Join(dir, "nova.conf")
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(tt.text, "DIR", dir)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := serve(t, "--config-file", file)
		if says := strings.ReplaceAll(tt.says, "FILE", file); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "option compute_driver") {
			t.Errorf("%v\nwant %s", err, says)
		}
	}
}

// TestReloadSame: a reload of unchanged files logs no change, also for options with relative paths.
func TestReloadSame(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	file := filepath.Join(t.TempDir(), "nova.conf")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(good, "DIR", t.TempDir())), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Open[options](config.Source{Files: []string{file}, Logger: slog.New(slog.NewTextHandler(&out, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Reload(context.WithoutCancel(t.Context())); err != nil || out.Len() > 0 {
		t.Errorf("%v, the log has\n%s", err, &out)
	}
}

// TestReloadWrong: if an option is wrong, a reload changes nothing, not even the policy.
func TestReloadWrong(t *testing.T) { //nolint:paralleltest // the program sets the default logger
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "nova.conf"), filepath.Join(dir, "run", "admin.sock")
	text := "[DEFAULT]\nstate_path = " + dir + "\nosapi_compute_listen_port = 0\nadmin_listen = unix:" + socket + "\n"
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("nova.conf", text)
	printed, err := serve(t, "--config-file", file)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer tr.CloseIdleConnections()
	request := func(method, path string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://admin"+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := tr.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
	for code := 0; code != http.StatusOK; { // a reload is refused until all parts are started
		code, _ = request(http.MethodGet, "/readyz")
	}
	reload := func() (int, string) { return request(http.MethodPost, "/debug/reload") }
	const path = "/v2.1/servers"
	write("nova.conf", text+"debugg = true\n")
	write("policy.yaml", "os_compute_api:servers:index: '!'\n")
	if code, body := reload(); code != http.StatusBadRequest || !strings.Contains(body, file+":5: [DEFAULT] debugg: no such option; the nearest is debug") {
		t.Errorf("a reload with a wrong option: %d %s", code, body)
	}
	if got := status(t, printed, path); got != http.StatusOK {
		t.Errorf("after this reload: %d, want the status of the old policy", got)
	}
	write("nova.conf", text)
	if code, body := reload(); code != http.StatusOK {
		t.Errorf("a reload: %d %s", code, body)
	}
	if got := status(t, printed, path); got != http.StatusForbidden {
		t.Errorf("after this reload: %d, want the status of the new policy", got)
	}
}

// TestEmptyDatabase: a command that needs tables fails on an empty database, and its error names the whole command that makes them.
func TestEmptyDatabase(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "my nova.conf")
	if err := os.WriteFile(file, []byte("[database]\nconnection = sqlite://"+filepath.ToSlash(dir)+"/nova.db\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{
		"member list", "member remove nova-compute h", "operation list", "operation show x", "operation cancel x", "operation retry x", "placement audit", "placement audit --repair",
	} {
		if err := run(t.Context(), new(bytes.Buffer), append(strings.Fields(args), "--config-file", file)...); err == nil || !strings.HasSuffix(err.Error(), "run nova-mini db sync --config-file '"+file+"'") {
			t.Errorf("%s: %v, want an error with the command db sync", args, err)
		}
	}
}
