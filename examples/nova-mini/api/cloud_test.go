package api_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	novaimage "github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/rpctest"
	restapi "github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/api/apitest"
	"github.com/armature-go/armature/service/auth"
	"github.com/armature-go/armature/service/policy"
)

// people are the identities of the clients, by their tokens.
var people = map[string]reqctx.Request{
	"admin":   {UserID: "root", ProjectID: "p1", Roles: []string{"admin", "member", "reader"}},
	"member":  {UserID: "u1", ProjectID: "p1", Roles: []string{"member", "reader"}},
	"reader":  {UserID: "u2", ProjectID: "p1", Roles: []string{"reader"}},
	"nowhere": {UserID: "u1", Roles: []string{"member", "reader"}},
	// The project id of this client has the form that Keystone gives to project ids. It is also the client's token.
	"6f70656e737461636b20342065766572": {UserID: "u1", ProjectID: "6f70656e737461636b20342065766572", Roles: []string{"member", "reader"}},
	"boss":                             {UserID: "root", ProjectID: "p8", Roles: []string{"admin", "member", "reader"}},
	"stranger":                         {UserID: "u9", ProjectID: "p9", Roles: []string{"member", "reader"}},
}

// cloud is an API service with a database, without other services.
type cloud struct {
	*testing.T
	http.Handler

	store *store.Store
	db    *sqlx.DB
	bus   rpcbus.Bus
	log   *bytes.Buffer
	down  error  // the result of Config.Bus; nil: the bus is up
	at    string // the microversion of ask and list; "": 2.1
}

// eachCloud runs the function f with an API on every database, with the default rules.
func eachCloud(t *testing.T, f func(c *cloud)) {
	t.Helper()
	eachCloudWith(t, api.Rules(), f)
}

func eachCloudWith(t *testing.T, rules []policy.Rule, f func(c *cloud)) {
	t.Helper()
	eachCloudOf(t, rules, nil, nil, f)
}

// eachCloudLimited is like eachCloud, with limits.
func eachCloudLimited(t *testing.T, limits store.Limits, f func(c *cloud)) {
	t.Helper()
	eachCloudOf(t, api.Rules(), limits, nil, f)
}

// eachCloudImages is like eachCloud, with images.
func eachCloudImages(t *testing.T, images novaimage.Source, f func(c *cloud)) {
	t.Helper()
	eachCloudOf(t, api.Rules(), nil, images, f)
}

// eachCloudOf is like eachCloud, with rules, limits and images. Each function in the parameter change may change the config of the API.
func eachCloudOf(t *testing.T, rules []policy.Rule, limits store.Limits, images novaimage.Source, f func(c *cloud), change ...func(*api.Config)) {
	t.Helper()
	enforcer, err := policy.New(rules, policy.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	all := store.Limits{store.InjectedFiles: 5, store.FileContentBytes: 10240, store.FilePathLength: 255} // as in Nova
	maps.Copy(all, limits)
	dbtest.Each(t, store.Migrations(), func(t *testing.T, d *sqlx.DB) {
		t.Helper()
		s := store.NewLimited(d, all)
		bus := rpctest.NewBus(t)
		client := rpc.NewClient(bus, rpc.ClientConfig{Timeout: 2 * time.Second})
		t.Cleanup(func() { client.Close() })
		c := &cloud{T: t, store: s, db: d, bus: bus, log: new(bytes.Buffer)}
		cfg := api.Config{
			Store: s, Images: images, Client: client, Bus: func(context.Context) error { return c.down }, Logger: slog.New(reqctx.LogHandler(slog.NewTextHandler(c.log, nil))),
		}
		for _, f := range change {
			f(&cfg)
		}
		c.Handler = checked(t, handler(t, cfg, restapi.Config{
			Enforce: enforcer.Enforce,
			Authenticate: func(r *http.Request) (reqctx.Request, error) {
				who, ok := people[r.Header.Get("X-Auth-Token")]
				if !ok {
					return who, fault.New(fault.Unauthenticated, "who?")
				}
				return who, nil
			},
		}))
		f(c)
	})
}

// handler returns the API as in a process of nova-mini. By default, each client is the administrator, and the rules have their default
// checks. The parameter around may change both.
func handler(t *testing.T, cfg api.Config, around restapi.Config) http.Handler {
	t.Helper()
	around.Logger = cfg.Logger
	if around.Authenticate == nil {
		around.Authenticate = auth.None(api.Administrator)
	}
	if around.Enforce == nil {
		p, err := policy.New(api.Rules(), policy.Config{Logger: cfg.Logger})
		if err != nil {
			t.Fatal(err)
		}
		around.Enforce = p.Enforce
	}
	m := restapi.New(api.HTTP(around))
	api.Register(m, cfg)
	m.Health(cfg.Bus)
	return m
}

// checked wraps the handler h. If a reply of h differs from the OpenAPI document of the request's version, the client gets another status instead.
func checked(t *testing.T, h http.Handler) http.Handler {
	t.Helper()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		version := cmp.Or(strings.TrimPrefix(r.Header.Get("OpenStack-API-Version"), "compute "), "2.1")
		c, err := checkerOf(version)
		switch {
		case err != nil:
			t.Error(err)
		case c == nil: // the API refuses the version
			h.ServeHTTP(w, r)
		default:
			c.Handler(h).ServeHTTP(w, r)
		}
	})
}

// checkers has the checkers by version. All tests share them, because to make a checker takes longer than most tests.
var checkers sync.Map

// checkerOf returns the checker of a version, or nil for a version that the API does not have.
func checkerOf(version string) (*apitest.Checker, error) {
	build := sync.OnceValues(func() (*apitest.Checker, error) {
		doc, err := api.OpenAPI(version)
		if err != nil {
			return nil, nil //nolint:nilnil,nilerr // the API does not have the version
		}
		return apitest.NewChecker(doc)
	})
	once, _ := checkers.LoadOrStore(version, build)
	return once.(func() (*apitest.Checker, error))() //nolint:forcetypeassert // checkers has only such functions
}

// ask sends a request of a client at the microversion c.at. The parameter who is the client's token, see people.
func (c *cloud) ask(who, method, path, body string) (status int, reply string) {
	c.Helper()
	return c.askAt(cmp.Or(c.at, "2.1"), who, method, path, body)
}

// askAt sends a request at a microversion.
func (c *cloud) askAt(version, who, method, path, body string) (status int, reply string) {
	c.Helper()
	w := c.send(version, who, method, "/v2.1"+path, body)
	return w.Code, w.Body.String()
}

// send sends a request.
func (c *cloud) send(version, who, method, path, body string) *httptest.ResponseRecorder {
	c.Helper()
	useText(body)
	r := httptest.NewRequestWithContext(c.Context(), method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Auth-Token", who)
	r.Header.Set("OpenStack-API-Version", "compute "+version)
	w := httptest.NewRecorder()
	c.ServeHTTP(w, r)
	return w
}

// list returns the items of a list, or nil and the error's text.
func (c *cloud) list(who, kind, query string) (items []item, refused string) {
	c.Helper()
	status, reply := c.ask(who, "GET", "/"+kind+"/detail?"+query, "")
	if status != http.StatusOK {
		if status >= 500 {
			c.Fatalf("%s?%s = %d %s", kind, query, status, reply)
		}
		return nil, fmt.Sprintf("%d %s", status, reply)
	}
	var got map[string]json.RawMessage
	if err := json.Unmarshal([]byte(reply), &got); err != nil {
		c.Fatal(err)
	}
	if err := json.Unmarshal(got[kind], &items); err != nil {
		c.Fatal(err)
	}
	if strings.Contains(query, "marker=") { // not the first page
		return items, ""
	}
	var brief map[string]json.RawMessage
	var same []item
	if _, reply = c.ask(who, "GET", "/"+kind+"?"+query, ""); json.Unmarshal([]byte(reply), &brief) != nil || json.Unmarshal(brief[kind], &same) != nil ||
		!slices.Equal(ids(same), ids(items)) {
		c.Errorf("%s?%s without details: %s", kind, query, reply)
	}
	return items, ""
}

// item is an element of a list, as in the reply.
type item map[string]any

// text returns an attribute as a text, or "" if the item does not have it.
func (i item) text(name string) string {
	switch v := i[name].(type) {
	case nil:
		return ""
	case map[string]any: // image and flavor
		return fmt.Sprint(v["id"])
	default:
		return fmt.Sprint(v)
	}
}

func ids(items []item) (out []string) {
	for _, i := range items {
		out = append(out, i.text("id"))
	}
	return out
}

// addServers adds servers in many states to each of two projects.
func (c *cloud) addServers() {
	c.Helper()
	base := time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)
	str := func(s string) *string { return &s }
	for i, row := range []struct {
		vm, task, host string
		running        bool
	}{
		{store.Building, store.Scheduling, "", false},
		{store.Building, store.Spawning, "n1", false},
		{store.Active, "", "n1", false},
		{store.Active, compute.SoftReboot.Info().Task, "n2", false},
		{store.Active, compute.HardReboot.Info().Task, "n2", false},
		{store.Active, compute.Resize.Info().Task, "n1", false},
		{store.Active, store.Deleting, "n10", false},
		{store.Stopped, "", "n1", false},
		{store.Stopped, compute.Resize.Info().Task, "n2", false},
		{store.Stopped, compute.Start.Info().Task, "n2", false},
		{store.Resized, "", "n1", true},
		{store.Resized, compute.RevertResize.Info().Task, "n1", false},
		{store.Error, "", "", false},
		{store.Error, "", "n2", false},
		{store.Active, "", "n1", false},
	} {
		for j, project := range []string{"p1", "p2"} {
			n := 2*i + j
			srv := &store.Server{
				ID: fmt.Sprintf("%08d-0000-4000-8000-000000000000", (n*7919)%100000), Name: []string{"web-1", "web-2", "WEB", "db.1", "w+b", "Ä%_"}[n%6],
				ProjectID: project, UserID: []string{"u1", "u2"}[n/2%2], ImageRef: []string{"", "img-1", "img-2"}[n%3], FlavorID: []string{"1", "2", "10"}[n/2%3],
				Description: []*string{nil, str(""), str("a box"), str("Box")}[n%4], Hostname: []string{"web-1", "db", "x.example.org"}[n%3], KeyName: []*string{nil, str("k1"), str("k2")}[n/2%3],
				ReservationID: []string{"r-1", "r-2"}[n/3%2], LaunchIndex: n % 11, AccessIPv4: []string{"", "10.0.0.1", "10.0.0.2"}[n%3], AccessIPv6: []string{"fe80::1", ""}[n%2],
				AutoDisk: n%2 == 0, ConfigDrive: n%3 == 0, Tags: db.JSONOf([][]string{nil, {"a"}, {"a", "b"}, {"b", "c"}, {`"a"`, "A"}}[n%5]),
				Networks: db.JSONOf([]*network.Wanted{nil, ported("a", "10.0.0.1", "fe80::7"), ported("b", "10.0.0.12")}[n%3]),
			}
			if row.vm == store.Building { // a reply does not show its addresses
				srv.Networks.V = nil
			}
			if err := c.store.CreateServer(c.Context(), srv); err != nil {
				c.Fatal(err)
			}
			var host *string
			var launched *time.Time
			var resize db.JSON[*store.Resize]
			if row.host != "" {
				host = str(row.host)
			}
			if i%2 == 0 {
				launched = new(base.Add(time.Duration(n%4) * time.Hour))
			}
			if row.vm == store.Resized {
				resize.V = &store.Resize{Running: row.running}
			}
			if _, err := c.db.ExecContext(c.Context(), `UPDATE servers SET vm_state = ?, host = ?, launched_at = ?, created_at = ?, updated_at = ?, resize = ? WHERE id = ?`,
				row.vm, host, launched, base.Add(time.Duration(n%5)*time.Minute), base.Add(time.Duration(n%7)*time.Second), resize, srv.ID); err != nil {
				c.Fatal(err)
			}
			if _, err := c.db.ExecContext(c.Context(), `UPDATE operations SET kind = ?, step_name = ?, due_at = NULL WHERE active = ?`, operations[row.task][0], operations[row.task][1], srv.ID); err != nil {
				c.Fatal(err)
			}
			if row.task == "" {
				if _, err := c.db.ExecContext(c.Context(), `UPDATE operations SET state = 'succeeded', active = NULL WHERE active = ?`, srv.ID); err != nil {
					c.Fatal(err)
				}
			}
		}
	}
}

// operations maps a task_state to the kind and the step of the server's operation.
var operations = map[string][2]string{
	store.Scheduling: {"server.create", "schedule"}, store.Spawning: {"server.create", "build"}, store.Deleting: {"server.delete", "destroy"},
	compute.SoftReboot.Info().Task: {"server.reboot", "act"}, compute.HardReboot.Info().Task: {"server.hard_reboot", "act"}, compute.Start.Info().Task: {"server.start", "act"},
	compute.Resize.Info().Task: {"server.resize", "act"}, compute.RevertResize.Info().Task: {"server.revert_resize", "act"},
}

// ported returns the networks of a server with one port. The port has the addresses in the named network.
func ported(name string, addresses ...string) *network.Wanted {
	p := network.Port{ID: "port", NetworkName: name}
	for _, ip := range addresses {
		p.Addresses = append(p.Addresses, network.Address{IP: ip})
	}
	return &network.Wanted{Interfaces: []network.Interface{{Port: p}}}
}
