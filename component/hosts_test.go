package component_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/operation"
)

// fleetOptions are the options of a component that has other names for the options of its API and its driver.
type fleetOptions struct {
	component.Options
	component.AccessOptions
	BindHost string                       `ini:"bind_host" default:"127.0.0.1"`
	BindPort int                          `ini:"bind_port" default:"9292" min:"0"`
	Engine   string                       `ini:"engine" default:"plain"`
	Lease    time.Duration                `ini:"lease" default:"30" min:"1ms"`
	Drivers  map[string]map[string]string `sections:"driver_" protects:"true" reloadable:"true"`
}

func (o *fleetOptions) address() (addr string, options []string) {
	return net.JoinHostPort(o.BindHost, strconv.Itoa(o.BindPort)), []string{"bind_host", "bind_port"}
}

// engine is a driver. Its method Describe returns the options that the driver was given.
type engine struct {
	driver.Driver

	Describe func(ctx context.Context) (string, error)
}

var fleetKind = driver.Functions[engine]("fleet", 1)

// fleet is a component of which one process serves several hosts: n1 and n2 with drivers and
// members, and n3 with a claim.
type fleet struct {
	started chan *component.Process[fleetOptions]
	engines map[string]func() engine // the key is the host
	claimed atomic.Int32
}

func (f *fleet) component() component.Component[fleetOptions] {
	return component.Component[fleetOptions]{
		Name: "fleet", Short: "Serves two hosts", DatabaseFile: "other.db", OwnNotify: true,
		Migrations: []db.Migrations{operation.Migrations, membership.Migrations}, // including those that a component always has
		Address:    (*fleetOptions).address,
		Flags:      []component.Flag{{Name: "port", Option: "bind_port", Help: "port of the API"}},
		Runner:     func(o *fleetOptions) operation.RunnerConfig { return operation.RunnerConfig{Lease: o.Lease} },
		Services:   []component.Service[fleetOptions]{{Name: "all", Wire: f.wire}, {Name: "none", Wire: wireNone}},
		Started: func(p *component.Process[fleetOptions]) error {
			_, err := fmt.Fprintln(p.Out, "listens on", p.Addr())
			f.started <- p
			return err
		},
	}
}

// wireNone wires a service without parts. It refuses a lease above one minute.
func wireNone(_ context.Context, p *component.Process[fleetOptions]) error {
	switch {
	case p.Options.Lease == 66*time.Second:
		panic("Validate has refused this")
	case p.Options.Lease > time.Minute:
		return fault.WithReason(errors.New("the lease is too long"), "", map[string]string{"option": "engine lease"})
	}
	return nil
}

// Validate refuses a lease of 66 s. All other options are valid.
func (o *fleetOptions) Validate() error {
	if o.Lease == 66*time.Second {
		return fault.WithReason(errors.New("66 is a bad lease"), "", map[string]string{"option": "lease"})
	}
	return nil
}

func (f *fleet) wire(_ context.Context, p *component.Process[fleetOptions]) error {
	p.AddFirst("lock", service.Funcs{OnStart: func(context.Context) error { f.claimed.Add(1); return nil }}, "state_path")
	engines := new(driver.Registry[engine])
	type engineOptions struct {
		Host  string `option:"host"`
		Color string `option:"color"`
	}
	check := func(raw json.RawMessage) error { return driver.ParseOptions(raw, new(engineOptions)) }
	engines.AddChecked("plain", check, func(_ context.Context, raw json.RawMessage) (engine, error) {
		if f.claimed.Load() == 0 {
			return engine{}, errors.New("the driver is started before the lock")
		}
		var o engineOptions
		err := driver.ParseOptions(raw, &o)
		return engine{driver.Static(driver.Info{Name: "plain"}), func(context.Context) (string, error) { return o.Color + " " + o.Host, nil }}, err
	})
	for _, host := range []string{"n1", "n2"} {
		on := p.On(host)
		made, err := component.DriverWith(on, component.DriverConfig[engine, fleetOptions]{
			Kind: fleetKind, BuiltIn: engines, Option: "engine", Given: map[string]string{"host": host},
			Options: func(o *fleetOptions) driver.Options { return driver.Options{Driver: o.Engine, Drivers: o.Drivers} },
		})
		if err != nil {
			return err
		}
		f.engines[host] = made
		on.ServeWith(component.ServerConfig{Interface: writer, Kind: "fleet-writer", Version: 7, Register: func(s *rpc.Server) {
			rpc.Handle(s, write, func(_ context.Context, n *note) (*note, error) { return &note{n.Text, on.Host}, nil })
		}})
	}
	claim := service.Funcs{OnStart: func(ctx context.Context) error { // the servers added before already serve; the server of this claim does not
		if _, err := rpc.Call(ctx, p.Client, write, "n1", &note{}); err != nil {
			return err
		}
		f.claimed.Add(1)
		return nil
	}}
	p.On("n3").ServeWith(component.ServerConfig{Interface: writer, Claim: claim, Options: []string{"engine"}, Register: func(s *rpc.Server) {
		rpc.Handle(s, write, func(context.Context, *note) (*note, error) {
			return &note{Host: fmt.Sprint("claimed ", f.claimed.Load())}, nil
		})
	}})
	p.Runner()
	return p.API(api.Config{Microversions: &api.Microversions{Service: "fleet", Min: "1.1", Max: "1.2", Prefix: "/v1"}}, func(m *api.Mux) {
		m.Discover(api.Discovery{ID: "v1", Path: "/v1"})
		api.HandleRoute(m, api.Route{Pattern: "GET /v1/later", Min: "1.2"}, func(context.Context, *api.Request[api.None]) (note, error) { return note{}, nil })
	})
}

// TestManyHosts: a process serves several hosts. Each of n1 and n2 has a driver, a server and a member; n3 has a server with a claim.
// A component may choose the kinds and versions of members, the options for the address and the driver, and the name of the database's
// file.
func TestManyHosts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	socket := filepath.Join(dir, "admin.sock")
	f := &fleet{started: make(chan *component.Process[fleetOptions], 1), engines: map[string]func() engine{}}
	ctx, cancel := context.WithCancel(context.Background())
	var out, log output
	ended := make(chan int, 1)
	env := []string{"OS_DEFAULT__HOST=h1", "OS_DRIVER_PLAIN__COLOR=red", "OS_DEFAULT__ADMIN_LISTEN=unix:" + socket, "OS_DEFAULT__DEBUG=true"}
	go func() {
		ended <- component.Run(ctx, f.component(), []string{"--state-path", dir, "--port", "0"}, env, &out, &log)
	}()
	defer func() {
		cancel()
		if code := <-ended; code != 0 {
			t.Errorf("exit code %d: %s", code, &log)
		}
	}()
	var p *component.Process[fleetOptions]
	select {
	case p = <-f.started:
	case <-time.After(30 * time.Second):
		cancel()
		t.Fatalf("not started: %s", &log)
	}
	if text := log.String(); !strings.Contains(text, `msg="part started" part="writer rpc n1"`) || strings.Contains(text, `part="operation rpc"`) {
		t.Errorf("it serves the notifications of other processes, which it does not need:\n%s", text)
	}
	if !strings.Contains(out.String(), "listens on "+p.Addr()) {
		t.Errorf("it prints %q", out.String())
	}
	for _, host := range []string{"n1", "n2"} {
		if n, err := rpc.Call(t.Context(), p.Client, write, host, &note{Text: "x"}); err != nil || n.Host != host {
			t.Errorf("%s: %+v, %v", host, n, err)
		}
		if got, err := f.engines[host]().Describe(t.Context()); err != nil || got != "red "+host {
			t.Errorf("%s: the driver has %q, %v", host, got, err)
		}
	}
	if n, err := rpc.Call(t.Context(), p.Client, write, "n3", &note{}); err != nil || n.Host != "claimed 2" {
		t.Errorf("the server with a claim: %+v, %v", n, err)
	}
	members, err := p.Members.List(t.Context(), "")
	var got []string
	for i := range members {
		got = append(got, fmt.Sprint(members[i].Kind, " ", members[i].Host, " ", members[i].Version))
	}
	if slices.Sort(got); err != nil || strings.Join(got, ", ") != "fleet-writer n1 7, fleet-writer n2 7" {
		t.Errorf("members %q, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "other.db")); err != nil {
		t.Error(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dialUnix(socket), DisableKeepAlives: true}}
	for path, want := range map[string]string{
		"/metrics": `armature_driver_up{driver="plain",host="n2"} 1`, "/debug/report": "0 run here; 0 are unknown",
		"/metrics?": `go_sql_open_connections{db_name="fleet"}`,
	} {
		res, err := client.Get("http://localhost" + path) //nolint:noctx // a question
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		if res.Body.Close(); !strings.Contains(string(body), want) {
			t.Errorf("%s lacks %s:\n%.3000s", path, want, body)
		}
	}
}

// TestBuiltIn: a built-in driver without options refuses options before the start.
func TestBuiltIn(t *testing.T) {
	t.Parallel()
	type plainOptions struct {
		component.Options
		component.DriverOptions
	}
	c := component.Component[plainOptions]{Name: "plain", Defaults: map[string]string{"driver": "simple"}, Services: []component.Service[plainOptions]{{
		Name: "worker", Wire: func(_ context.Context, p *component.Process[plainOptions]) error {
			_, err := component.Driver(p, fleetKind, component.BuiltIn("simple", engine{Driver: driver.Static(driver.Info{Name: "simple"})}))
			return err
		},
	}}}
	for env, want := range map[string]string{"OS_DRIVER_SIMPLE__SPEED=3": "OS_DRIVER_SIMPLE__SPEED: [driver_simple] speed: open driver simple: option speed: no such option", "": ""} {
		var out, errs bytes.Buffer
		code := component.Run(t.Context(), c, []string{"config", "validate", "--service", "all-in-one"}, []string{env}, &out, &errs)
		if !strings.Contains(errs.String(), want) || (code == 0) != (want == "") {
			t.Errorf("%q: %d %s; want %s", env, code, &errs, want)
		}
	}
}

// TestOtherNames: if a component has other names for options and flags, errors use these names. All errors are reported at once, each
// error once.
func TestOtherNames(t *testing.T) {
	t.Parallel()
	const served = "transport_url = rabbit://u:p@127.0.0.1/\n[database]\nconnection = sqlite:///:memory:\n[api]\nauth_strategy = noauth2\n"
	for _, c := range []struct {
		args, text string
		code       int
		want       []string // the lines of the error
	}{
		{"config validate --service all", "bind_host = 0.0.0.0\n" + served, 1, []string{"FILE:6: [api] auth_strategy: noauth2 makes every client the administrator"}},
		{"config validate --service all-in-one", "bind_host = 0.0.0.0\n", 1, []string{"FILE:1: [DEFAULT] bind_host: noauth2 makes every client the administrator, and other machines can reach the API at 0.0.0.0:9292"}},
		{"config validate --service all", "engine = none\n" + served, 1, []string{"FILE:1: [DEFAULT] engine: "}},
		{"config validate --service all", served + "[driver_plain]\nhost = x\n", 1, []string{"FILE:7: [driver_plain] host: option host: cannot be set here"}},
		{"config validate --service all", served + "[driver_plain]\ncolour = red\n", 1, []string{"FILE:7: [driver_plain] colour: open driver plain: option colour: no such option; the nearest is color"}},
		{"all", served + "[driver_plain]\ncolour = red\n", 1, []string{"FILE:7: [driver_plain] colour: open driver plain: option colour: no such option"}},
		{"config validate --service none", "lease = 100\n" + served, 1, []string{"FILE:1: [DEFAULT] lease: the lease is too long"}},
		{"config validate --service all", "lease = 100\n" + served, 0, nil},
		{"config validate --service none", "lease = 66\n" + served, 1, []string{"FILE:1: [DEFAULT] lease: 66 is a bad lease"}},
		{"all --port 99999", served, 1, []string{`flag --port: [DEFAULT] bind_port: address "127.0.0.1:99999"`}},
		{"config validate --port x", served + "auth_url = x\n", 1, []string{`flag --port: [DEFAULT] bind_port: "x" is not an integer`, "[api] auth_url: no such option"}},
		{"config validate", "engine = none\nlease = 0\nworkers = 1\nadmin_listen = nowhere\nreport_interval = 90\n[wsgi]\nssl_key_file = /none\n", 1, []string{
			"FILE:3: [DEFAULT] workers: no such option", "FILE:2: [DEFAULT] lease: ", "FILE:5: [DEFAULT] report_interval: service_down_time (1m0s) must be longer",
			"FILE:4: [DEFAULT] admin_listen: ", "[DEFAULT] transport_url: is not set", "[database] connection: is not set", "FILE:1: [DEFAULT] engine: ",
		}},
		{"config validate", "[wsgi]\nssl_key_file = /none\n", 1, []string{
			"[DEFAULT] transport_url: is not set", "[database] connection: is not set", "[keystone_authtoken] auth_url: is not set", "[keystone_authtoken] username: is not set",
			"[keystone_authtoken] password: is not set", "FILE:2: [wsgi] ssl_key_file: ",
		}},
	} {
		file := filepath.Join(t.TempDir(), "fleet.conf")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		f := &fleet{started: make(chan *component.Process[fleetOptions], 1), engines: map[string]func() engine{}}
		var out, errs bytes.Buffer
		code := component.Run(t.Context(), f.component(), append(strings.Fields(c.args), "--config-file", file), nil, &out, &errs)
		_, text, _ := strings.Cut(errs.String(), "fleet: ")
		lines := strings.Split(strings.TrimSpace(text), "\n")
		if code != c.code || c.code != 0 && len(lines) != len(c.want) {
			t.Errorf("%s with %q: %d %s; want %d %q", c.args, c.text, code, &errs, c.code, c.want)
		}
		for _, want := range c.want {
			if !strings.Contains(text, strings.ReplaceAll(want, "FILE", file)) {
				t.Errorf("%s with %q: %s; want %s", c.args, c.text, &errs, want)
			}
		}
		if strings.HasPrefix(c.args, "config") && !strings.Contains(out.String(), "read "+file+"\n") {
			t.Errorf("%s does not print the file: %s", c.args, &out)
		}
	}
}

// TestHistory: openapi --history prints what the routes declare. If the component describes microversions, each description stands above the declarations.
func TestHistory(t *testing.T) {
	t.Parallel()
	const route = "1.2      GET /v1/later  the route is added\n"
	for _, tt := range []struct {
		described    []api.Change
		output, want string
	}{
		{nil, "table", "VERSION  WHERE          WHAT\n" + route},
		{
			[]api.Change{{Version: api.Version{Major: 1, Minor: 10}, What: "only values"}, {Version: api.Version{Major: 1, Minor: 2}, Where: "later", What: "notes"}},
			"table",
			"VERSION  WHERE          WHAT\n1.2      later          notes\n" + route + "1.10                    only values\n",
		},
		{
			[]api.Change{{Version: api.Version{Major: 1, Minor: 2}, Where: "later", What: "notes"}},
			"yaml",
			"- version: \"1.2\"\n  what: notes\n  where: later\n- version: \"1.2\"\n  what: the route is added\n  where: GET /v1/later\n",
		},
	} {
		c := (&fleet{engines: map[string]func() engine{}}).component()
		c.Changes = tt.described
		var out, errs bytes.Buffer
		if code := component.Run(t.Context(), c, []string{"openapi", "--history", "-o", tt.output}, nil, &out, &errs); code != 0 || out.String() != tt.want {
			t.Errorf("history of %+v: %d %s\n%s\nwant\n%s", tt.described, code, &errs, &out, tt.want)
		}
	}
}
