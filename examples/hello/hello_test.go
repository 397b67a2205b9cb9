package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/driver/drivertest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/auth"
	"github.com/armature-go/armature/service/config"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/rpccaps"
)

// rules are the rules for every greeter.
var rules = []drivertest.Case[Greeter]{{
	Name: "greets", Rule: "A greeter returns a greeting for a name.",
	Run: func(e *drivertest.Env[Greeter]) {
		for range 2 {
			if text, err := e.Driver().Greet(e.Context(), "Ada"); err != nil || text == "" {
				e.Errorf("%q, %v", text, err)
			}
			e.Restart()
		}
	},
}, {
	Name: "empty name", Rule: "A greeting needs a name: with an empty name, Greet returns Invalid.",
	Run: func(e *drivertest.Env[Greeter]) {
		if text, err := e.Driver().Greet(e.Context(), ""); !errors.Is(err, fault.Invalid) {
			e.Errorf("%q, %v", text, err)
		}
	},
}}

func openLatin(context.Context, json.RawMessage) (Greeter, error) {
	return Greeter{Driver: driver.Static(driver.Info{Name: "latin"}), Greet: func(_ context.Context, name string) (string, error) {
		if name == "" {
			return "", fault.New(fault.Invalid, "nemo salutatur")
		}
		return "Ave, " + name + "!", nil
	}}, nil
}

func TestMain(m *testing.M) {
	if os.Getenv("HELLO_TEST_PROCESS") != "" {
		main()
		return
	}
	drivertest.Main(m, Kind, openLatin)
}

// TestRules: the driver program latin keeps the rules.
func TestRules(t *testing.T) {
	t.Parallel()
	drivertest.Run(t, Kind, openLatin, drivertest.Config{}, rules)
}

// TestDrivers: the built-in driver and a driver program work alike. To launch a driver that does not exist is an error.
func TestDrivers(t *testing.T) {
	t.Parallel()
	dir := plugins(t)
	for name, want := range map[string]string{"english": "Hello, Ada!", "latin": "Ave, Ada!"} {
		var drivers driver.Registry[Greeter]
		drivers.Add("english", func(context.Context, json.RawMessage) (Greeter, error) { return english, nil })
		p, err := drivers.Launch(t.Context(), Kind, name, driver.PluginConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close(t.Context())
		if text, err := p.Driver().Greet(t.Context(), "Ada"); err != nil || text != want {
			t.Errorf("%s: %q, %v", name, text, err)
		}
		if _, err := p.Driver().Greet(t.Context(), ""); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: empty name: %v", name, err)
		}
	}
	if _, err := new(driver.Registry[Greeter]).Launch(t.Context(), Kind, "greek", driver.PluginConfig{Dir: dir}); !errors.Is(err, fault.NotFound) {
		t.Errorf("greek: %v", err)
	}
}

// plugins returns a directory with the program armature-hello-latin, which is this test's binary.
func plugins(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(dir, "armature-hello-latin"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// setup has the options of a process of hello. An empty option is not set.
type setup struct{ host, driver, plugins, connection, bus, exchange, token string }

// env returns the options as environment variables, for a process that listens on an address.
func (s *setup) env(listen string) (out []string) {
	for name, value := range map[string]string{
		"DEFAULT__HOST": s.host, "DEFAULT__LISTEN": listen, "DEFAULT__DRIVER": s.driver, "DEFAULT__PLUGIN_DIR": s.plugins, "DEFAULT__TRANSPORT_URL": s.bus,
		"DEFAULT__CONTROL_EXCHANGE": s.exchange, "DATABASE__CONNECTION": s.connection, "API__TOKEN": s.token,
	} {
		if value != "" {
			out = append(out, "OS_"+name+"="+value)
		}
	}
	if s.token != "" {
		out = append(out, "OS_API__AUTH_STRATEGY=token")
	}
	return out
}

// processes runs components until the test ends, and returns their addresses.
func processes(t *testing.T, all ...*setup) (addrs []string) {
	t.Helper()
	for _, o := range all {
		ctx, cancel := context.WithCancel(context.Background())
		listens, ended := make(chan string, 1), make(chan int, 1)
		c := hello
		c.Started = func(p *component.Process[options]) error { listens <- p.Addr(); return nil }
		var log logBuffer
		go func() { ended <- component.Run(ctx, c, nil, o.env("127.0.0.1:0"), io.Discard, &log) }()
		t.Cleanup(func() {
			cancel()
			if code := <-ended; code != 0 {
				t.Errorf("%s ended with %d: %s", o.host, code, log.text())
			}
		})
		select {
		case a := <-listens:
			addrs = append(addrs, "http://"+a)
		case code := <-ended:
			ended <- code
			t.Fatalf("%s ended with %d: %s", o.host, code, log.text())
		case <-time.After(30 * time.Second):
			t.Fatalf("%s does not listen: %s", o.host, log.text())
		}
	}
	return addrs
}

func ask(t *testing.T, method, url, body string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(out)
}

// greeted requests a greeting, and returns it when it is made.
func greeted(t *testing.T, addr, name string) (g Greeting) {
	t.Helper()
	code, header, body := ask(t, http.MethodPost, addr+"/v1/greetings", fmt.Sprintf(`{"name": %q}`, name))
	if code != http.StatusAccepted {
		t.Fatalf("POST: %d %s", code, body)
	}
	for end := time.Now().Add(30 * time.Second); g.Text == ""; {
		if time.Now().After(end) {
			t.Fatalf("the greeting was not made within 30 s: %+v", g)
		}
		if code, _, body = ask(t, http.MethodGet, addr+header.Get("Location"), ""); code != http.StatusOK || json.Unmarshal([]byte(body), &g) != nil {
			t.Fatalf("GET: %d %s", code, body)
		}
	}
	return g
}

// TestOneProcess: the component works with everything in one process.
func TestOneProcess(t *testing.T) {
	t.Parallel()
	addr := processes(t, &setup{host: "h1", driver: "latin", plugins: plugins(t), connection: dbtest.SQLite(t), exchange: "hello"})[0]
	if g := greeted(t, addr, "Ada"); g.Text != "Ave, Ada!" || g.Host != "h1" {
		t.Errorf("%+v", g)
	}
	for body, says := range map[string]string{
		`{"name": ""}`: "'' is too short", `{}`: "'name' is a required property", `{"name": "a", "text": "b"}`: "('text' was unexpected)", `{"name"`: "Malformed request body",
	} {
		if code, _, got := ask(t, http.MethodPost, addr+"/v1/greetings", body); code != http.StatusBadRequest || !strings.Contains(got, says) {
			t.Errorf("%s: %d %s, want %s", body, code, got, says)
		}
	}
	if code, _, got := ask(t, http.MethodGet, addr+"/v1/greetings/none", ""); code != http.StatusNotFound || !strings.Contains(got, "Greeting none could not be found.") {
		t.Errorf("%d %s", code, got)
	}
	waittest.Until(t, "readyz", func() bool { // not at once: the RPC client may still read its version caps
		code, _, _ := ask(t, http.MethodGet, addr+"/readyz", "")
		return code == http.StatusOK
	})
}

// TestToken: with the option token, the API serves only clients that send the token. /readyz needs no token.
func TestToken(t *testing.T) {
	t.Parallel()
	addr := processes(t, &setup{host: "h1", driver: "english", connection: dbtest.SQLite(t), exchange: "hello", token: "s3cret"})[0]
	for token, want := range map[string]int{"": http.StatusUnauthorized, "S3cret": http.StatusUnauthorized, "s3cret": http.StatusNotFound} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, addr+"/v1/greetings/none", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set(auth.Header, token)
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("token %q: %d, want %d", token, res.StatusCode, want)
		}
	}
	waittest.Until(t, "readyz", func() bool { // not at once: the RPC client may still read its version caps
		code, _, _ := ask(t, http.MethodGet, addr+"/readyz", "")
		return code == http.StatusOK
	})
}

// TestTwoProcesses: two processes work together over RabbitMQ and MariaDB. Both hosts greet, whichever API gets the request.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	testTwoProcesses(t, envtest.URL(t, testenv.AMQPVar), "hello")
}

// TestWatermill: two processes work together over the bus that uses watermill-amqp.
func TestWatermill(t *testing.T) {
	t.Parallel()
	testTwoProcesses(t, "watermill-"+envtest.URL(t, testenv.AMQPVar), "hello-watermill")
}

func testTwoProcesses(t *testing.T, bus, exchange string) {
	t.Helper()
	database := dbtest.MySQL(t)
	var all []*setup
	for _, host := range []string{"h1", "h2"} {
		all = append(all, &setup{host: host, driver: "english", connection: database, bus: bus, exchange: exchange})
	}
	addrs := processes(t, all...)
	hosts := map[string]bool{}
	for i := 0; i < 100 && len(hosts) < 2; i++ {
		g := greeted(t, addrs[i%2], "Ada")
		if g.Text != "Hello, Ada!" {
			t.Errorf("%+v", g)
		}
		hosts[g.Host] = true
	}
	if len(hosts) != 2 {
		t.Errorf("only %v greeted", hosts)
	}
}

// start starts hello as a process of its own, and returns the process and the address of its API.
func start(t *testing.T, host, database, bus, exchange string) (*exec.Cmd, string) {
	t.Helper()
	return startProgram(t, os.Args[0], host, database, bus, exchange)
}

// startProgram is like start, but for any program, such as hello of another release.
func startProgram(t *testing.T, program, host, database, bus, exchange string) (*exec.Cmd, string) {
	t.Helper()
	return startLogged(t, nil, program, host, database, bus, exchange)
}

// startLogged is like startProgram, and writes the log of the process to the parameter log.
func startLogged(t *testing.T, log io.Writer, program, host, database, bus, exchange string) (*exec.Cmd, string) {
	t.Helper()
	addr := envtest.FreeAddr(t)
	return startWith(t, log, program, host, addr, (&setup{host: host, connection: database, bus: bus, exchange: exchange}).env(addr)), "http://" + addr
}

// startWith starts a program whose API listens on addr, with options in the environment, and waits until it is ready.
func startWith(t *testing.T, log io.Writer, program, host, addr string, env []string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(context.Background(), program)
	cmd.Env = append(append(os.Environ(), "HELLO_TEST_PROCESS=1"), env...)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // the process may have ended already
		_ = cmd.Wait()
	})
	waittest.Succeeds(t, host+" to be ready", func() error {
		res, err := http.Get("http://" + addr + "/readyz") //nolint:noctx // a question
		if err != nil {
			return err
		}
		if res.StatusCode != http.StatusOK {
			err = errors.New(res.Status)
		}
		return errors.Join(err, res.Body.Close())
	})
	return cmd
}

// TestKilled: two processes accept requests, and one process is killed after half of them. All 30 accepted greetings are made.
func TestKilled(t *testing.T) {
	t.Parallel()
	bus, database := envtest.URL(t, testenv.AMQPVar), dbtest.MySQL(t)
	exchange := "hello-" + strings.ToLower(rand.Text()[:8])
	var addrs []string
	var second *exec.Cmd
	for _, host := range []string{"h1", "h2"} {
		cmd, addr := start(t, host, database, bus, exchange)
		addrs, second = append(addrs, addr), cmd
	}
	var places []string
	for i := range 30 {
		if i == 15 {
			if err := second.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		at := addrs[i%2]
		if i >= 15 {
			at = addrs[0]
		}
		code, header, body := ask(t, http.MethodPost, at+"/v1/greetings", `{"name": "Ada"}`)
		if code != http.StatusAccepted {
			t.Fatalf("POST %d: %d %s", i, code, body)
		}
		places = append(places, header.Get("Location"))
	}
	killed := time.Now()
	done := 0
	for _, place := range places {
		if waittest.Poll(time.Until(killed.Add(time.Minute)), func() error {
			var g Greeting
			if code, _, body := ask(t, http.MethodGet, addrs[0]+place, ""); code != http.StatusOK || json.Unmarshal([]byte(body), &g) != nil {
				t.Fatalf("GET: %d %s", code, body)
			}
			if g.Text != "Hello, Ada!" {
				return errors.New("not done yet")
			}
			return nil
		}) == nil {
			done++
		}
	}
	t.Logf("%d of 30 greetings are made %v after the kill", done, time.Since(killed).Round(time.Millisecond))
	if done != 30 {
		t.Errorf("%d of 30 greetings are made", done)
	}
}

// TestVersions: the member of a process has the versions that the process's RPC server serves, and the caps that a client reads from the
// members are these versions.
func TestVersions(t *testing.T) {
	t.Parallel()
	url := dbtest.SQLite(t)
	addr := processes(t, &setup{host: "h1", driver: "english", connection: url, exchange: "hello"})[0]
	greeted(t, addr, "Ada")
	d, err := db.Open(t.Context(), db.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	members := membership.New(membership.Config{DB: d})
	m, err := members.Get(t.Context(), "greeter", "h1")
	if diff := cmp.Diff(map[string][]string{greeter.Name: {greeter.Version.String()}}, m.Interfaces); err != nil || diff != "" {
		t.Errorf("the member serves: %v (-want +got):\n%s", err, diff)
	}
	caps, err := rpccaps.New(rpccaps.Config{Members: members}).Read(t.Context(), nil)
	if diff := cmp.Diff(rpc.Versions{greeter.Name: {greeter.Version}}, caps); err != nil || diff != "" {
		t.Errorf("the caps: %v (-want +got):\n%s", err, diff)
	}
}

// TestBadNames: config.Load refuses a host and an exchange if a queue's name cannot contain their names.
func TestBadNames(t *testing.T) {
	t.Parallel()
	for _, variable := range []string{"OS_DEFAULT__HOST", "OS_DEFAULT__CONTROL_EXCHANGE"} {
		var o options
		err := config.Load(&o, config.Source{Env: []string{variable + "=a b"}})
		if want := strings.ToLower(strings.TrimPrefix(variable, "OS_DEFAULT__")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want an error with %s", variable, err, want)
		}
	}
}

// TestBadOptions: the error of a start names every option with a wrong value.
func TestBadOptions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		env   []string
		wants []string
	}{
		{[]string{"OS_DEFAULT__LISTEN=nowhere"}, []string{"OS_DEFAULT__LISTEN: [DEFAULT] listen: ", "missing port"}},
		{[]string{"OS_DEFAULT__LISTEN=0.0.0.0:0"}, []string{"[DEFAULT] listen: noauth2 makes every client the administrator"}},
		{[]string{"OS_DEFAULT__TRANSPORT_URL=carrier-pigeon://h"}, []string{"[DEFAULT] transport_url: "}},
		{[]string{"OS_DRIVER_ENGLSH__PLUGIN_SHA256=00"}, []string{"environment OS_DRIVER_ENGLSH__PLUGIN_SHA256: [driver_englsh]: driver = english has the section [driver_english]"}},
		{[]string{"OS_DRIVER_ENGLISH__PLUGIN_MAX_FILES=x"}, []string{"environment OS_DRIVER_ENGLISH__PLUGIN_MAX_FILES: [driver_english] plugin_max_files: "}},
		{[]string{"OS_DATABASE__CONNECTION=oracle://h"}, []string{"[database] connection: "}},
		{
			[]string{"OS_DEFAULT__TRANSPORT_URL=carrier-pigeon://h", "OS_DATABASE__CONNECTION=oracle://h", "OS_DEFAULT__DRIVER=no/such"},
			[]string{"[DEFAULT] transport_url: ", "[database] connection: ", "[DEFAULT] driver: "},
		},
		{[]string{"OS_DATABASE__CONNECTION=" + dbtest.SQLite(t), "OS_DEFAULT__DRIVER=greek", "OS_DEFAULT__LISTEN=127.0.0.1:0"}, []string{"[DEFAULT] driver: "}},
	} {
		var log bytes.Buffer
		code := component.Run(t.Context(), hello, nil, tt.env, io.Discard, &log)
		for _, want := range tt.wants {
			if code != 1 || !strings.Contains(log.String(), want) {
				t.Errorf("%v: %d %s; want %s", tt.env, code, &log, want)
			}
		}
	}
}
