package component_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/membership"
)

type schedulerConfig = scheduler.Config[*note, membership.Member]

// dialUnix connects to a socket, whatever the address.
func dialUnix(path string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
}

// TestWrongCommands: a wrong command line exits with 2. A wrong option exits with 1, and the error says where the option is set and
// how to correct it.
func TestWrongCommands(t *testing.T) {
	t.Parallel()
	w := newWorld()
	file := filepath.Join(t.TempDir(), "notes.conf")
	for _, c := range []struct {
		args, text string
		code       int
		want       string
	}{
		{"frnt", "", 2, `command "frnt" does not exist; the nearest is front`},
		{"db snc", "", 2, `command "db snc" does not exist; the nearest is sync`},
		{"member list -o xml", "", 2, `format "xml" does not exist; use one of: table, json, yaml`},
		{"front -o json", "", 2, "notes front has only one format: leave out --output"},
		{"-o json", "", 2, "notes has only one format"},
		{"config sample -o yaml", "", 2, "notes config sample has only one format"},
		{"policy sample -o yaml", "", 2, "notes policy sample has only one format"},
		{"completion bash -o yaml", "", 2, "notes completion bash has only one format"},
		{"version --colour", "", 2, "unknown flag: --colour"},
		{"version --outpt json", "", 2, "unknown flag: --outpt; the nearest is --output"},
		{"version --stat-path x", "", 2, "unknown flag: --stat-path; the nearest is --state-path"},
		{"member list --state-path /no/such/directory", "", 1, "flag --state-path: [DEFAULT] state_path: /no/such/directory/"},
		{"operation list --state-path /no/such/directory", "", 1, "does not exist: use the directory of the --state-path with which this process was started"},
		{"front now", "", 2, "front has no arguments"},
		{"operation show", "", 2, "requires at least 1 arg"},
		{"operation list --state done", "", 2, `state "done" does not exist`},
		{"operation list --limit -1", "", 2, "--limit: -1 is less than 0"},
		{"policy explain --rule nots:create", "", 2, `rule "nots:create" does not exist; the nearest is notes:create`},
		{"config validate --service frnt", "", 2, `service "frnt" does not exist; the nearest is front`},
		{"dlq drop", "", 2, "give the ids of the dead letters, or --all"},
		{"openapi --version x", "", 2, "x"},
		{"member list", "", 1, "[database] connection: is not set; use mysql://"},
		{"front", "", 1, "[DEFAULT] transport_url: is not set; use rabbit://"},
		{"front", "transport_url = memory://\n", 1, "FILE:1: [DEFAULT] transport_url: memory:// is a bus in the memory of one process, and the service front would reach no other service: use rabbit://"},
		{"config validate --service worker", "transport_url = memory://\n", 1, "FILE:1: [DEFAULT] transport_url: memory:// is a bus"},
		{"config validate --service front", "transport_url = memory://\n", 1, "FILE:1: [DEFAULT] transport_url: memory:// is a bus"},
		{"config validate --online", "transport_url = memory://\n", 1, "FILE:1: [DEFAULT] transport_url: memory:// is a bus"},
		{"dlq list", "transport_url = memory://\n", 1, "FILE:1: [DEFAULT] transport_url: memory:// is a bus in the memory of one process, which no command reaches"},
		{"front", "transport_url = rabbit://u:p@127.0.0.1/\n", 1, "[database] connection: is not set"},
		{"front", "transport_url = rabbit://u:p@127.0.0.1/\n[database]\nconnection = mysql://u:p@127.0.0.1/d\n", 1, "[keystone_authtoken] auth_url: is not set, and auth_strategy = keystone of [api] needs it"},
		{"member list", "[database]\nconnection = mysql:/u:s3cret@h/d\n", 1, "FILE:2: [database] connection: "},
		{"member list", "[backend_a]\nsiz = 3\n", 1, "FILE:2: [backend_a] siz: no such option; the nearest is size"},
		{"member list", "[backend_a]\nsize = 66\n", 1, "FILE:2: [backend_a] size: 66 is a bad size"},
		{"member list", "[backend_a]\n[backend_A]\n", 1, "FILE:2: [backend_A]: the name differs from [backend_a] (FILE:1)"},
		{"member list", "transport_url = pigeon://u:s3cret@h\nservice_down_time = 5\nhost = a/b\nlisten = nowhere\n", 1, "FILE:1: [DEFAULT] transport_url: "},
		{"member list", "transport_url = pigeon://u:s3cret@h\nservice_down_time = 5\nhost = a/b\nlisten = nowhere\n", 1, "FILE:2: [DEFAULT] service_down_time: service_down_time (5s) must be longer"},
		{"member list", "host = a/b\n", 1, `FILE:1: [DEFAULT] host: "a/b" is not the name of a host`},
		{"member list", "listen = nowhere\n", 1, "FILE:1: [DEFAULT] listen: "},
		{"member list", "[api]\ntoken = s3cret\n", 1, "FILE:2: [api] token: has no effect"},
		{"member list", "[api]\nauth_strategy = token\n", 1, "[api] token: is not set"},
		{"config validate --service front", "listen = 0.0.0.0:80\n[api]\nauth_strategy = noauth2\n", 1, "FILE:3: [api] auth_strategy: noauth2 makes every client the administrator"},
		{"", "listen = 0.0.0.0:80\n", 1, "FILE:1: [DEFAULT] listen: noauth2 makes every client the administrator"},
		{"member list", "admin_listen = 0.0.0.0:80\n", 1, "FILE:1: [DEFAULT] admin_listen: "},
		{"member list", "admin_listen = unix:/run/{servce}.sock\n", 1, "FILE:1: [DEFAULT] admin_listen: placeholder {servce} does not exist; use {service}"},
		{"member list", "admin_listen = unix:run/{service}.sock\n", 1, "is not an absolute path"},
		{"config validate", "admin_listen = unix:FILE/{service}.sock\n", 1, "FILE is not a directory"},
		{"config validate", "admin_listen = unix:/" + strings.Repeat("x", 100) + "/{service}.sock\n", 1, "choose a shorter one"},
		{"config validate", "admin_listen = 127.0.0.1:8080\n", 1, "FILE:1: [DEFAULT] admin_listen: 127.0.0.1:8080 is also the address of the API"},
		{"config validate", "admin_listen = unix:/run/notes.sock\n", 1, "FILE:1: [DEFAULT] admin_listen: unix:/run/notes.sock is the socket of several services (front, back, worker): write {service} into the path, or name the only service of this host with --service"},
		{"config validate", "state_path = FILE\n", 1, "FILE:1: [DEFAULT] state_path: FILE is not a directory"},
		{"member list", "[keystone_authtoken]\nauth_url = here\n", 1, "FILE:2: [keystone_authtoken] auth_url: "},
		{"config validate --service all-in-one", "[wsgi]\nssl_cert_file = /none\n", 1, "FILE:2: [wsgi] ssl_cert_file: "},
		{"member list", "[opentelemetry]\notlp_endpoint = here\n", 1, "FILE:2: [opentelemetry] otlp_endpoint: "},
		{"member list", "[opentelemetry]\notlp_endpoint = http://127.0.0.1:65536\n", 1, "FILE:2: [opentelemetry] otlp_endpoint: \"http://127.0.0.1:65536\": the port 65536 is not between 1 and 65535: correct the port, or leave it out"},
		{"member list", "[keystone_authtoken]\nauth_url = https://127.0.0.1:65536/v3\n", 1, "FILE:2: [keystone_authtoken] auth_url: the port 65536"},
		{"member list", "[keystone_authtoken]\nauth_url = https://u:s3cret@127.0.0.1:65536/v3\n", 1, "FILE:2: [keystone_authtoken] auth_url: the port 65536"},
		{"member list", "[api]\npublic_url = https://notes.example.org:65536/x\n", 1, "FILE:2: [api] public_url: \"https://notes.example.org:65536/x\": the port 65536"},
		{"member list", "[api]\npublic_url = https://:443/x\n", 1, "FILE:2: [api] public_url: \"https://:443/x\" has no host"},
		{"member list", "[cors]\nallowed_origin = *, https://a.example.org:8443, https://b.example.org:0\n", 1, "FILE:2: [cors] allowed_origin: \"https://b.example.org:0\": the port 0"},
		{"front", "transport_url = rabbit://u:s3cret@127.0.0.1:65536/\n[database]\nconnection = sqlite:///none\n", 1, "FILE:1: [DEFAULT] transport_url: "},
		{"member list", "[database]\nconnection = mysql://u:s3cret@127.0.0.1:65536/d\n", 1, "FILE:2: [database] connection: mysql database URL: the port 65536 is not between 1 and 65535"},
		{"member list", "listen = 127.0.0.1:65536\n", 1, "FILE:1: [DEFAULT] listen: "},
		{"policy list", "[oslo_policy]\npolicy_file = /none\n", 1, "/none"},
		{"config validate --service front", "transport_url = rabbit://u:p@127.0.0.1/\n[database]\nconnection = sqlite:///none\n[api]\nauth_strategy=noauth2\n[oslo_policy]\npolicy_file = /none\n", 1, "[oslo_policy] policy_file: "},
	} {
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(c.text, "FILE", file)), 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, errs := w.command(t, nil, append(strings.Fields(c.args), "--config-file", file)...)
		if want := strings.ReplaceAll(c.want, "FILE", file); code != c.code || !strings.Contains(errs, want) || strings.Contains(errs, "s3cret") {
			t.Errorf("%s with %q: %d %s\nwant %d %s", c.args, c.text, code, errs, c.code, want)
		}
	}
}

// TestPortInUse: a service whose port is in use ends before it waits for its database, and the error names the option. Nothing else has started.
func TestPortInUse(t *testing.T) {
	t.Parallel()
	used, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // the address is local
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = used.Close() }()
	file := filepath.Join(t.TempDir(), "notes.conf")
	text := "listen = " + used.Addr().String() + "\ntransport_url = rabbit://u:p@127.0.0.1:1/\n[database]\nconnection = mysql://u:p@127.0.0.1:1/d\n[api]\nauth_strategy = noauth2\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errs := newWorld().command(t, nil, "front", "--config-file", file)
	if code != 1 || !strings.Contains(errs, "(option listen, "+file+":1)") || !strings.Contains(errs, "address already in use") || strings.Contains(errs, "waiting") {
		t.Errorf("%d: %s", code, errs)
	}
}

// TestBusNotAsked: a command about dead letters prints no result if it cannot reach the bus, because an empty list would say that
// no dead letters exist.
func TestBusNotAsked(t *testing.T) {
	t.Parallel()
	w := newWorld()
	for _, url := range []string{"", "rabbit://u:p@127.0.0.1:1/"} {
		for _, args := range []string{"dlq list", "dlq list -o json", "dlq list -o yaml", "dlq drop --all", "dlq requeue --all -o json", "dlq show x -o yaml"} {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond) // ends the attempts to connect
			var out, errs bytes.Buffer
			code := component.Run(ctx, w.component(), strings.Fields(args), []string{"OS_DEFAULT__TRANSPORT_URL=" + url}, &out, &errs)
			cancel()
			if code != 1 || out.Len() > 0 || errs.Len() == 0 {
				t.Errorf("%s with the bus %q: %d, %q, %q", args, url, code, &out, &errs)
			}
		}
	}
}

// TestReload: a reload whose Validate fails changes nothing; a good one changes the section and the log level.
func TestReload(t *testing.T) {
	t.Parallel()
	w, dir := newWorld(), t.TempDir()
	file := filepath.Join(dir, "notes.conf")
	replace := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte("listen = 127.0.0.1:0\nstate_path = "+dir+"\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	replace("[backend_a]\nsize = 2\n")
	p, log, _ := w.start(t, []string{"--config-file", file})
	<-p.App.Started()
	replace("debug = true\n[backend_a]\nsize = 66\n")
	if err := p.App.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "[backend_a] size: 66 is a bad size") {
		t.Errorf("reload: %v", err)
	}
	if now := p.Current(); now.Debug || now.Backends["a"].Size != 2 {
		t.Errorf("something has changed: %+v", now)
	}
	replace("debug = true\n[backend_a]\nsize = 3\n[backend_b]\n")
	if err := p.App.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := p.Current(); !now.Debug || now.Backends["a"].Size != 3 || now.Backends["b"].Size != 1 {
		t.Errorf("not changed: %+v", now)
	}
	p.Log.Debug("now at debug level")
	if !strings.Contains(log.String(), "now at debug level") {
		t.Error("the log level has not changed")
	}
}

// TestProgrammersErrors: Run panics if the component is defined incorrectly. The text says what to do.
func TestProgrammersErrors(t *testing.T) {
	t.Parallel()
	type plain struct {
		component.Options
	}
	nothing := func(context.Context, *component.Process[plain]) error { return nil }
	good := []component.Service[plain]{{Name: "a", Wire: nothing}}
	run := func(c component.Component[plain]) func() {
		return func() { component.Run(t.Context(), c, []string{"version"}, nil, io.Discard, io.Discard) }
	}
	for want, f := range map[string]func(){
		"does not embed component.Options: write component.Options as a field without a name": func() {
			type none struct {
				A int `ini:"a"`
			}
			component.Run(t.Context(), component.Component[none]{Name: "x"}, nil, nil, io.Discard, io.Discard)
		},
		"no Name or no Services":                                   run(component.Component[plain]{Name: "x"}),
		"service \"\" has no Name":                                 run(component.Component[plain]{Name: "x", Services: []component.Service[plain]{{Wire: nothing}}}),
		"service \"b\" has no Name or no Wire":                     run(component.Component[plain]{Name: "x", Services: []component.Service[plain]{{Name: "b"}}}),
		"two services have the name a: rename one":                 run(component.Component[plain]{Name: "x", Services: append(good, good...)}),
		"service db has the name of a command":                     run(component.Component[plain]{Name: "x", Services: []component.Service[plain]{{Name: "db", Wire: nothing}}}),
		"the options do not embed component.APIOptions":            wiring(t, func(p *component.Process[plain]) { _ = p.API(api.Config{}, func(*api.Mux) {}) }),
		"Runner: the service a has no database":                    wiring(t, func(p *component.Process[plain]) { p.Runner() }),
		"Leader: the service a has no database: remove NoDatabase": wiring(t, func(p *component.Process[plain]) { p.Leader("x", 1, nil) }),
	} {
		func() {
			defer func() {
				if got := fmt.Sprint(recover()); !strings.Contains(got, want) {
					t.Errorf("panic %q, want %s", got, want)
				}
			}()
			f()
		}()
	}
}

// wiring returns a function that wires a service without a database.
func wiring[O any](t *testing.T, f func(p *component.Process[O])) func() {
	return func() {
		var errs bytes.Buffer
		code := component.Run(t.Context(), component.Component[O]{Name: "x", Services: []component.Service[O]{{
			Name: "a", Wire: func(_ context.Context, p *component.Process[O]) error { f(p); return nil },
		}}}, []string{"config", "validate"}, []string{"OS_DEFAULT__TRANSPORT_URL=memory://"}, io.Discard, &errs)
		t.Errorf("no panic: %d %s", code, &errs)
	}
}

// TestFilesOfOtherServices: a command or a service works on a machine that lacks the files for TLS of services that it does not use.
func TestFilesOfOtherServices(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "notes.conf")
	text := "transport_url = rabbit://u:p@127.0.0.1/?ssl=1&ssl_ca_file=/none\n[database]\nconnection = sqlite://" + filepath.Join(dir, "n.db") +
		"\n[wsgi]\nssl_cert_file = /none\nssl_key_file = /none\n[keystone_authtoken]\nauth_url = https://127.0.0.1:5000\ncafile = /none\n" +
		"[opentelemetry]\notlp_endpoint = https://127.0.0.1:1\notlp_cafile = /none\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := newWorld().command(t, nil, "db", "sync", "--config-file", file); code != 0 {
		t.Errorf("%d %s", code, errs)
	}
	if code, _, errs := newWorld().command(t, nil, "config", "validate", "--service", "front", "--config-file", file); code != 1 || !strings.Contains(errs, "/none") {
		t.Errorf("the service that needs a file: %d %s", code, errs)
	}
}

// TestOneError: when one check fails, the checks that depend on it report no error, because a second error would hide
// the cause.
func TestOneError(t *testing.T) {
	t.Parallel()
	w := newWorld()
	env := []string{"OS_DATABASE__CONNECTION=sqlite://" + filepath.Join(t.TempDir(), "empty.db")}
	code, out, errs := w.command(t, env, "db", "check")
	if code != 2 || !strings.Contains(out, "run notes db sync") || !strings.Contains(out, "not checked without the schema") || strings.Contains(out+errs, "no such table") {
		t.Errorf("db check without tables: %d %s%s", code, out, errs)
	}
	if code, _, errs := w.command(t, []string{"OS_DEFAULT__LISTEN=8780"}); code != 1 || !strings.Contains(errs, "missing port in address") || strings.Contains(errs, "noauth2") {
		t.Errorf("a malformed address: %d %s", code, errs)
	}
}

// TestNoArguments: Run without arguments does not read the arguments of the process, such as the flags of a test.
func TestNoArguments(t *testing.T) {
	t.Parallel()
	const variable = "ARMATURE_TEST_NO_ARGUMENTS"
	if os.Getenv(variable) == "" {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNoArguments$", "no-command")
		child.Env = append(os.Environ(), variable+"=1")
		if out, err := child.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	c := newWorld().component()
	c.Started = func(*component.Process[options]) error { cancel(); return nil }
	var log bytes.Buffer
	if code := component.Run(ctx, c, nil, []string{"OS_DEFAULT__LISTEN=127.0.0.1:0"}, io.Discard, &log); code != 0 {
		t.Errorf("exit code %d: %s", code, &log)
	}
}
