package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/keystonetest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
)

// TestOperatingFile: with the file in docs/operating.md, changed only in addresses and paths, all services run side by side
// on one host. Before that, `config validate --online` reports which options work and which fail, and exits with 1 on a failure. A
// mistyped command line exits with 2.
func TestOperatingFile(t *testing.T) {
	t.Parallel()
	scenario(t)
	o := newOperated(t)
	o.testValidate()
	o.testServices()
}

// operated is a cloud with the configuration file of docs/operating.md.
type operated struct {
	*cloud

	ks   *keystonetest.Keystone
	text string                // the file, with the test's own addresses
	user gophercloud.AuthScope // the scope of the user ada
	env  []string              // variables for the environment of all processes
	cl   *gophercloud.ServiceClient
}

func newOperated(t *testing.T) *operated {
	t.Helper()
	guide, err := os.ReadFile("../../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile("(?s)```ini\n(.*?)```").FindStringSubmatch(string(guide))[1]
	ks := keystonetest.Start(t)
	ks.Role("service")
	services := gophercloud.AuthScope{ProjectID: ks.Project("service")}
	ks.Grant(ks.User("nova"), "service", services)
	mine := gophercloud.AuthScope{ProjectID: ks.Project("p1")}
	ks.Grant(ks.User("ada"), "member", mine)

	c := newCloud(t, "")
	was, err := os.ReadFile(c.conf)
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(c.dir, "database-url")
	if err := os.WriteFile(secret, regexp.MustCompile(`(?m)^connection = (.*\n)`).FindSubmatch(was)[1], 0o600); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{
		"rabbit://nova:secret@127.0.0.1:5672/": strings.Replace(c.busURL, "amqp://", "rabbit://", 1),
		"/var/lib/nova-mini":                   filepath.Join(c.dir, "state"),
		"/run/nova-mini":                       c.dir,
		"/etc/nova-mini/database-url":          secret,
		"http://127.0.0.1:5000/":               ks.Endpoint,
		"password = secret":                    "password = " + keystonetest.Password,
		"http://127.0.0.1:4318":                "http://127.0.0.1:1",
	} {
		if strings.Count(text, from) != 1 {
			t.Fatalf("the file does not have %q:\n%s", from, text)
		}
		text = strings.Replace(text, from, to, 1)
	}
	return &operated{cloud: c, ks: ks, text: text, user: mine, env: append(os.Environ(), "OS_DEFAULT__CONTROL_EXCHANGE="+c.exchange, "OS_DEFAULT__OSAPI_COMPUTE_LISTEN_PORT=0")}
}

// command runs nova-mini with a configuration file of this text, and returns the output and the exit code.
func (o *operated) command(text string, args ...string) (string, int) {
	o.Helper()
	if err := os.WriteFile(o.conf, []byte(text), 0o600); err != nil {
		o.Fatal(err)
	}
	cmd := o.cloud.command(args...)
	cmd.Env = o.env
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), exit.ExitCode()
	} else if err != nil {
		o.Fatal(err)
	}
	return string(out), 0
}

// testValidate: config validate --online tries the broker, the database, Keystone and the driver, and names the option that
// fails.
func (o *operated) testValidate() {
	o.Helper()
	tried := []string{"[DEFAULT] transport_url", "[database] connection", "[keystone_authtoken] auth_url", "[DEFAULT] compute_driver"}
	for _, tt := range []struct{ from, to, fails, says string }{ // the change to the file, the option that fails, and its error
		{"", "", "none", ""},
		{"password = " + keystonetest.Password, "password = wrong", "[keystone_authtoken] auth_url", "password"},
		{o.ks.Endpoint, "http://127.0.0.1:1/", "[keystone_authtoken] auth_url", "connection refused"},
		{"debug = false", "compute_driver = /bin/true", "[DEFAULT] compute_driver", "it ended by itself"},
	} {
		out, code := o.command(strings.Replace(o.text, tt.from, tt.to, 1), "config", "validate", "--online")
		want := 0
		for _, option := range tried {
			line := "works: " + option
			if option == tt.fails {
				line, want = ": "+option+": ", 1
			}
			if !strings.Contains(out, line) {
				o.Errorf("%s: config validate does not print %q:\n%s", tt.to, line, out)
			}
		}
		if code != want || !strings.Contains(out, tt.says) {
			o.Errorf("%s: exit code %d, want %d with %q:\n%s", tt.to, code, want, tt.says, out)
		}
	}
	if out, code := o.command(o.text, "conducter"); code != 2 || !strings.Contains(out, "the nearest is conductor") {
		o.Errorf("a command that does not exist: exit code %d, want 2:\n%s", code, out)
	}
	if out, code := o.command(o.text, "config", "validate"); code != 0 {
		o.Fatalf("exit code %d:\n%s", code, out)
	}
}

// testServices: all services start with the file, and a user creates a server.
func (o *operated) testServices() {
	o.Helper()
	for _, service := range []string{"conductor", "scheduler", "compute"} {
		o.startWith(service, "controller-1", o.env...)
		o.procs[service] = o.procs["controller-1"]
	}
	o.cl = o.client(o.startWith("api", "controller-1", o.env...))
	for _, service := range []string{"conductor", "scheduler", "compute", "api"} {
		hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(o.dir, service+".sock"))
		}}}
		o.poll(service+" to be ready", 60*time.Second, func() error {
			r, err := hc.Get("http://localhost/readyz") //nolint:noctx // a socket of this machine
			if err != nil {
				return err
			}
			defer r.Body.Close()
			if body, _ := io.ReadAll(r.Body); r.StatusCode != http.StatusOK {
				return fmt.Errorf("%s: %s", r.Status, body)
			}
			return nil
		})
	}
	token := o.ks.Token("ada", &o.user)
	var made struct{ Server struct{ ID string } }
	if code, body := o.ask(token, "POST", "servers", demo); code != http.StatusAccepted || json.Unmarshal([]byte(body), &made) != nil {
		o.Fatalf("%d %s", code, body)
	}
	o.poll("the server to be ACTIVE", 60*time.Second, func() error {
		if _, body := o.ask(token, "GET", "servers/"+made.Server.ID, ""); !strings.Contains(body, `"status":"ACTIVE"`) {
			return errors.New(body)
		}
		return nil
	})
}

func (o *operated) ask(token, method, path, body string) (int, string) {
	o.Helper()
	r, err := http.NewRequestWithContext(o.Context(), method, o.cl.Endpoint+path, strings.NewReader(body))
	if err != nil {
		o.Fatal(err)
	}
	r.Header.Set("X-Auth-Token", token)
	r.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		o.Fatal(err)
	}
	defer res.Body.Close()
	raw, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(raw)
}

// TestInstalling runs the commands of "Installing" in docs/operating.md. Then the four services run with the command line
// of their unit, are ready, and report their readiness to systemd. Only paths and ports differ. The test leaves out the clone, and
// commands that need systemd or create a user of the machine.
func TestInstalling(t *testing.T) {
	t.Parallel()
	scenario(t)
	raw, err := os.ReadFile("../../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	_, guide, _ := strings.Cut(string(raw), "\n## Installing\n")
	steps, options, _ := strings.Cut(guide, "\n## Options\n")
	block := regexp.MustCompile("(?s)```([a-z]+)\n(.*?)```")
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	broker, database, ks := envtest.RabbitMQ(t), envtest.MariaDB(t), keystonetest.Start(t)
	broker0, database0, ks0 := parseURL(t, broker.URL), parseURL(t, database.URL), parseURL(t, ks.URL)
	dir, api := t.TempDir(), envtest.DeadAddr(t)
	_, port, _ := strings.Cut(api, ":")
	here := strings.NewReplacer(
		"git clone https://github.com/armature-go/armature\ncd armature\n", "cd "+root+"\n", // TestCommands of the root package tests the clone
		"/usr/local/bin", dir+"/bin", "/etc/nova-mini", dir+"/.nova-mini", "/run/nova-mini", dir+"/run", "/var/lib/nova-mini", dir+"/state",
		"127.0.0.1:8774", api, "127.0.0.1:5672", broker0.Host, "127.0.0.1:3306", database0.Host, "http://127.0.0.1:5000/", ks.Endpoint,
		"mariadb <<", "mariadb --no-defaults --protocol=tcp --host="+database0.Hostname()+" --port="+database0.Port()+" --user="+database0.User.Username()+" <<",
		"otlp_endpoint = http://127.0.0.1:4318\n", "",
	).Replace
	password := func(u *url.URL) string { p, _ := u.User.Password(); return p }
	env := append(os.Environ(), "PATH="+dir+"/bin:"+os.Getenv("PATH"), "MYSQL_PWD="+password(database0), "OS_DEFAULT__OSAPI_COMPUTE_LISTEN_PORT="+port,
		"OS_AUTH_URL="+ks.Endpoint, "OS_IDENTITY_API_VERSION=3", "OS_USERNAME="+ks0.User.Username(), "OS_PASSWORD="+password(ks0),
		"OS_PROJECT_NAME=admin", "OS_USER_DOMAIN_ID=default", "OS_PROJECT_DOMAIN_ID=default")
	shell := func(command string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-euc", command)
		cmd.Dir, cmd.Env = dir, env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s%s", err, command, out)
		}
		return string(out)
	}
	file := here(block.FindStringSubmatch(options)[2])

	var last string
	run := 0
	for _, b := range block.FindAllStringSubmatch(steps, -1) {
		switch text := here(b[2]); {
		case b[1] == "systemd":
			startUnits(t, text, steps, dir, env)
		case b[1] != "sh":
		case strings.HasPrefix(text, "rabbitmqctl "):
			for line := range strings.Lines(text) {
				if out, err := broker.Ctl(t.Context(), strings.Fields(strings.ReplaceAll(line, "'", ""))[1:]...); err != nil {
					t.Fatalf("%s%v: %s", line, err, out)
				}
			}
			run++
		default:
			last = shell(text)
			run++
			if strings.Contains(text, "go build") { // the commands after the build find the configuration by the home directory
				env = append(env, "HOME="+dir)
			}
			if strings.Contains(text, "database-url") {
				if err := os.WriteFile(filepath.Join(dir, ".nova-mini", "nova-mini.conf"), []byte(file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if run != 7 || !strings.Contains(last, "nova-compute") || !strings.Contains(last, "controller-1") {
		t.Errorf("%d steps, want 7; the last step prints:\n%s", run, last)
	}
	second := exec.CommandContext(t.Context(), filepath.Join(dir, "bin", "nova-mini"), "compute") // a second compute service of the same host
	second.Dir, second.Env = dir, env
	out, err := second.CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	says := lines[len(lines)-1]
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(says, "option admin_listen") || !strings.Contains(says, filepath.Join(dir, "run", "compute.sock")+": address already in use: another process listens there; stop it") {
		t.Errorf("a second compute service: %v, want exit code 1 and the socket in the last line:\n%s", err, out)
	}
	if out := shell("openstack compute service list"); !strings.Contains(out, "controller-1") { // with the address from the catalog
		t.Errorf("OpenStack's command line prints:\n%s", out)
	}
}

func parseURL(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal("the URL of a broker, database or Keystone is not valid")
	}
	return u
}

// startUnits starts the services that the guide enables, with the unit's command line, and waits until each reports that it
// is ready.
func startUnits(t *testing.T, unit, guide, dir string, env []string) {
	t.Helper()
	for _, line := range []string{"RuntimeDirectory=nova-mini", "RuntimeDirectoryPreserve=yes", "StateDirectory=nova-mini", "Type=notify-reload", "User=nova-mini"} {
		if !strings.Contains(unit, line+"\n") {
			t.Errorf("the unit does not have %s", line)
		}
	}
	for _, directory := range []string{"run", "state"} { // as systemd does
		if err := os.MkdirAll(filepath.Join(dir, directory), 0o750); err != nil { // config validate --online may have created the second directory
			t.Fatal(err)
		}
	}
	names := regexp.MustCompile(`nova-mini@([a-z]+)`).FindAllStringSubmatch(regexp.MustCompile(`(?m)^systemctl enable --now .*$`).FindString(guide), -1)
	command := regexp.MustCompile(`(?m)^ExecStart=(.*)$`).FindStringSubmatch(unit)
	if len(names) != 4 || command == nil {
		t.Fatalf("units %v, command %v", names, command)
	}
	for _, name := range names {
		socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, name[1]+".notify"), Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { socket.Close() })
		args := strings.Fields(strings.ReplaceAll(command[1], "%i", name[1]))
		cmd := exec.CommandContext(context.Background(), args[0], args[1:]...)
		log := &safeBuffer{}
		cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
		cmd.Env = append(slices.Clone(env), "NOTIFY_SOCKET="+socket.LocalAddr().String())
		p, err := testenv.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Kill() })
		if err := socket.SetReadDeadline(time.Now().Add(60 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		for said := ""; !strings.HasPrefix(said, "READY=1\n"); {
			n, err := socket.Read(buf)
			if err != nil {
				t.Fatalf("%s is not ready: %v\n%s", name[1], err, log)
			}
			said = string(buf[:n])
		}
		named := func() bool { return strings.Contains(log.String(), "msg=ready service="+name[1]+" ") }
		if err := waittest.Poll(5*time.Second, func() error { // the log comes through a pipe
			if named() {
				return nil
			}
			return fmt.Errorf("the log of the service %s does not have the service's name:\n%s", name[1], log)
		}); err != nil {
			t.Error(err)
		}
	}
}
