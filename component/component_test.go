package component_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"
	"go.yaml.in/yaml/v4"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/component/componenttest"
	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/operation"
	"github.com/armature-go/armature/service/policy"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("os/signal.loop"))
}

// options are the options of the component in these tests.
type options struct {
	component.Options
	component.APIOptions
	Backends map[string]backend `sections:"backend_" reloadable:"true"`
}

type backend struct {
	Size int `ini:"size" default:"1" min:"1" help:"size of the backend"`
}

// Validate refuses the size 66.
func (b *backend) Validate() error {
	if b.Size == 66 {
		return fault.WithReason(errors.New("66 is a bad size"), "", map[string]string{"option": "size"})
	}
	return nil
}

// note is the data of an operation.
type note struct {
	Text string `json:"text"`
	Host string `json:"host"`
}

var (
	v1     = rpc.Version{Major: 1}
	writer = &rpc.Interface{Name: "writer", Version: v1}
	write  = rpc.Define(rpc.Method[note, note]{Interface: writer, Name: "write", Since: v1})
	take   = operation.Kind[note]{Name: "note.take", Timeout: time.Minute}
)

// world has the channels through which the processes of the component report to a test.
type world struct {
	started chan *component.Process[options]
	led     chan string // hosts that the loop of the leader has run on
}

// component is a component with three services: front has the API, back has the runner, and worker has no database.
func (w *world) component() component.Component[options] {
	rank := component.NewScheduler[*note](schedulerConfig{})
	return component.Component[options]{
		Name: "notes", Short: "Takes notes", Resource: "note",
		Migrations: []db.Migrations{}, Interfaces: []*rpc.Interface{writer},
		Rules: []policy.Rule{{Name: "notes:create", Check: "role:admin", Description: "take a note"}},
		Services: []component.Service[options]{
			{Name: "front", Short: "Serve the API", Wire: func(_ context.Context, p *component.Process[options]) error {
				return p.API(api.Config{}, func(m *api.Mux) {
					m.Discover(api.Discovery{ID: "v1", Path: "/v1"})
					api.HandleRoute(m, api.Route{Pattern: "POST /v1/notes", Rule: "notes:create"}, func(ctx context.Context, r *api.Request[note]) (note, error) {
						err := component.Begin(ctx, p, take, r.Body.Text, &r.Body, nil)
						return r.Body, err
					})
				})
			}},
			{Name: "back", Short: "Run operations", Wire: func(_ context.Context, p *component.Process[options]) error {
				operation.Handle(p.Runner(), take, operation.Step[note]{Name: "write", Do: func(ctx context.Context, _ *operation.Op, n *note) error {
					m, err := component.Choose(ctx, p, rank, writer.Name, n)
					if err != nil {
						return err
					}
					out, err := rpc.Call(ctx, p.Client, write, m.Host, n)
					if err == nil {
						n.Host = out.Host
					}
					return err
				}})
				p.Leader("sweep", 50*time.Millisecond, func(context.Context) error {
					select {
					case w.led <- p.Host:
					default:
					}
					return nil
				})
				return nil
			}},
			{Name: "worker", Short: "Write notes on this host", NoDatabase: true, Disabled: func(o *options) bool { return o.Host == "no-worker" }, Wire: func(_ context.Context, p *component.Process[options]) error {
				p.Serve(writer, func(s *rpc.Server) {
					rpc.Handle(s, write, func(_ context.Context, n *note) (*note, error) { return &note{n.Text, p.Host}, nil })
				})
				return nil
			}},
		},
		Audit: func(_ context.Context, _ *sqlx.DB, repair bool, minAge time.Duration) ([]placement.Finding, error) {
			if minAge == time.Hour {
				return nil, nil
			}
			if minAge == time.Minute {
				return []placement.Finding{{Kind: "orphaned", Claim: placement.Claim{Consumer: "c1"}, Err: errors.New("no permission")}}, nil
			}
			return []placement.Finding{{Kind: "orphaned", Claim: placement.Claim{Consumer: "c1"}, Repaired: repair}}, nil
		},
		Started: func(p *component.Process[options]) error { w.started <- p; return nil },
	}
}

func newWorld() *world {
	return &world{started: make(chan *component.Process[options], 9), led: make(chan string, 100)}
}

// output is a buffer that several goroutines may use.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// start runs a service until the test ends, and returns its process and its log. The function stop ends the service earlier.
func (w *world) start(t *testing.T, args []string, env ...string) (p *component.Process[options], log *output, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log = new(output)
	ended := make(chan int, 1)
	go func() { ended <- component.Run(ctx, w.component(), args, env, io.Discard, log) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if code := <-ended; code != 0 {
			t.Errorf("%v ended with %d: %s", args, code, log)
		}
	})
	t.Cleanup(stop)
	select {
	case p = <-w.started:
	case code := <-ended:
		ended <- 0
		t.Fatalf("%v ended with %d: %s", args, code, log)
	case <-time.After(30 * time.Second):
		t.Fatalf("%v has not started: %s", args, log)
	}
	return p, log, stop
}

// command runs a command and returns its exit code and what it prints.
func (w *world) command(t *testing.T, env []string, args ...string) (code int, out, errs string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = component.Run(t.Context(), w.component(), args, env, &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

// takeNote asks the API at an address to take a note.
func takeNote(t *testing.T, addr, text string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+"/v1/notes", strings.NewReader(fmt.Sprintf(`{"text": %q, "host": ""}`, text)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	if res.Body.Close(); res.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
}

// written waits until the operation on a note has succeeded, and returns the note, with the host that has written it.
func written(t *testing.T, d *sqlx.DB, text string) (n note) {
	t.Helper()
	waittest.Until(t, text+" to be written", func() bool {
		found, err := operation.NewStore(d).List(t.Context(), operation.Filter{Resource: text, State: operation.Succeeded})
		return err == nil && len(found) == 1 && json.Unmarshal(found[0].Data, &n) == nil
	})
	return n
}

// TestAllInOne: without a command all services run in one process, with the bus in memory and a database in the state path. A later
// process finds the database again. Commands for operators use this database. The admin listener has metrics and the options.
func TestAllInOne(t *testing.T) {
	t.Parallel()
	w, dir := newWorld(), t.TempDir()
	socket := filepath.Join(dir, "admin.sock")
	env := []string{
		"OS_DEFAULT__HOST=h1", "OS_DEFAULT__LISTEN=127.0.0.1:0", "OS_DEFAULT__STATE_PATH=" + dir, "OS_DEFAULT__ADMIN_LISTEN=unix:" + socket,
		"OS_DEFAULT__USE_JSON=true", "OS_BACKEND_FAST__SIZE=7",
	}
	p, log, stop := w.start(t, nil, env...)
	takeNote(t, p.Addr(), "first")
	if n := written(t, p.DB, "first"); n.Host != "h1" {
		t.Errorf("written by %q", n.Host)
	}
	if p.Options.Backends["FAST"].Size+p.Options.Backends["fast"].Size != 7 || p.StatePath != dir {
		t.Errorf("options %+v, state path %s", p.Options.Backends, p.StatePath)
	}
	if host := <-w.led; host != "h1" {
		t.Errorf("led by %q", host)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dialUnix(socket), DisableKeepAlives: true}}
	for path, want := range map[string]string{
		"/metrics": `armature_membership_members{kind="writer",state="up"} 1`, "/debug/config": `"section": "backend_fast"`, "/readyz": "writer member",
	} {
		res, err := client.Get("http://localhost" + path) //nolint:noctx // a question
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		if res.Body.Close(); !strings.Contains(strings.ReplaceAll(string(body), `":"`, `": "`), want) {
			t.Errorf("%s lacks %s:\n%.3000s", path, want, body)
		}
	}
	for args, want := range map[string][]string{
		"member list":                          {"KIND", "writer", "h1", "up", "writer 1.0  -    -\n"},
		"operation list":                       {"ID", "RESOURCE", "note.take", "first", "succeeded"},
		"operation list -o json":               {`"kind": "note.take"`, `"resource": "first"`},
		"operation list -o yaml":               {"kind: note.take", "resource: first"},
		"operation list --note no":             {"ID"},
		"status":                               {"KIND", "writer", "OPERATIONS"},
		"status -o json":                       {`"members"`, `"operations": []`},
		"db check":                             {"CHECK", "Schema", "Success"},
		"db sync":                              {"the database has the schema of this version"},
		"db sync -o yaml":                      {"synced: true"},
		"policy list":                          {"RULE", "notes:create", "role:admin", "default"},
		"policy list -o json":                  {`"name": "notes:create"`, `"where": "default"`},
		"version -o json":                      {`"name": "notes"`},
		"openapi":                              {`"/v1/notes"`, `"3.1`},
		"openapi -o yaml":                      {"/v1/notes:"},
		"completion bash":                      {"notes"},
		"config validate --service all-in-one": {"valid for all-in-one"},
		"config sample":                        {"#control_exchange = notes", "#[backend_NAME]", "#size = 1"},
		"config validate --service all-in-one -o json": {`"section": "backend_fast"`},
	} {
		code, out, errs := w.command(t, env, strings.Fields(args)...)
		for _, text := range want {
			if code != 0 || !strings.Contains(out, text) {
				t.Errorf("%s: %d %s; want %s in:\n%.2000s", args, code, errs, text, out)
			}
		}
		var data any
		if strings.HasSuffix(args, "-o json") && json.Unmarshal([]byte(out), &data) != nil || strings.HasSuffix(args, "-o yaml") && yaml.Unmarshal([]byte(out), &data) != nil {
			t.Errorf("%s: not in the format:\n%s", args, out)
		}
	}
	done, err := p.Operations.List(t.Context(), operation.Filter{})
	if err != nil || len(done) != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	for args, want := range map[string]struct {
		code int
		text string
	}{
		"operation show " + done[0].ID:                    {0, `"events": [`},
		"operation show -o yaml " + done[0].ID:            {0, "events:"},
		"operation show none":                             {1, "none"},
		"operation retry " + done[0].ID:                   {1, done[0].ID},
		"operation cancel --reason x none":                {1, "none"},
		"member remove writer h1":                         {1, "use --force if its process no longer exists"},
		"member remove writer h2":                         {1, "h2"},
		"member remove wrter h1":                          {2, `kind "wrter" does not exist; the nearest is writer`},
		"placement audit":                                 {3, "orphaned"},
		"placement audit --repair -o json":                {4, `"repaired": true`},
		"placement audit --repair --min-age 1m -o json":   {3, `"error": "no permission"`},
		"placement audit --repair --min-age 1m":           {3, "not repaired: no permission"},
		"placement audit --min-age 1h":                    {0, "no differences"},
		"placement audit --min-age 1h -o json":            {0, "[]"},
		"policy explain --rule notes:create --role x":     {0, "denies"},
		"policy explain --rule notes:create --role admin": {0, "allows"},
		"policy explain --rule notes:create -o json":      {0, `"allowed": false`},
	} {
		if code, out, errs := w.command(t, env, strings.Fields(args)...); code != want.code || !strings.Contains(out+errs, want.text) {
			t.Errorf("%s: %d %s %s; want %d %s", args, code, out, errs, want.code, want.text)
		}
	}
	for _, ids := range [][]string{{done[0].ID}, {done[0].ID, done[0].ID, done[0].ID}} {
		for _, form := range []string{"json", "yaml"} {
			code, out, errs := w.command(t, env, append([]string{"operation", "show", "-o", form}, ids...)...)
			if n := countDocuments(t, form, out); code != 0 || n != len(ids) || len(ids) == 1 && strings.Contains(out, "---") {
				t.Errorf("%d operations as %s: %d documents, %d %s:\n%s", len(ids), form, n, code, errs, out)
			}
		}
	}
	if _, out, _ := w.command(t, env, "operation", "show", "--help"); !strings.Contains(out, "notes operation list --note NOTE") {
		t.Errorf("the help of operation show does not say how to find the operations on a resource:\n%s", out)
	}
	stop()
	for line := range strings.Lines(log.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
	p, _, _ = w.start(t, nil, env...)
	if n := written(t, p.DB, "first"); n.Host != "h1" {
		t.Errorf("after a restart: written by %q", n.Host)
	}
}

// countDocuments returns the number of documents in a text of JSON or YAML. Each must have an id.
func countDocuments(t *testing.T, form, text string) (n int) {
	t.Helper()
	read := json.NewDecoder(strings.NewReader(text)).Decode
	if form == "yaml" {
		read = yaml.NewDecoder(strings.NewReader(text)).Decode
	}
	for ; ; n++ {
		var one struct {
			ID string `json:"id" yaml:"id"`
		}
		switch err := read(&one); {
		case errors.Is(err, io.EOF):
			return n
		case err != nil || one.ID == "":
			t.Fatalf("document %d: %+v, %v", n, one, err)
		}
	}
}

// TestTemporaryState: a process without a state path has a temporary one, which is removed at its end.
func TestTemporaryState(t *testing.T) {
	t.Parallel()
	w := newWorld()
	p, _, stop := w.start(t, nil, "OS_DEFAULT__LISTEN=127.0.0.1:0")
	if _, err := os.Stat(filepath.Join(p.StatePath, "notes.db")); err != nil {
		t.Error(err)
	}
	stop()
	if _, err := os.Stat(p.StatePath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state path remains: %v", err)
	}
}

// TestThreeProcesses: each service runs in a process of its own, with a broker and a database server. The API notifies the runner in
// another process. The worker has no database, and its member is reported over RPC. The member is down after the worker has left.
func TestThreeProcesses(t *testing.T) {
	t.Parallel()
	c := componenttest.Start(t, newWorld().component(), "transport_url="+envtest.URL(t, testenv.AMQPVar), "database.connection="+dbtest.MySQL(t),
		"control_exchange=notes-"+strings.ToLower(t.Name()), "service_down_time=30", "debug=true")
	if out := c.Command("config", "validate", "--online"); !strings.Contains(out, "works: [DEFAULT] transport_url") || !strings.Contains(out, "works: [database] connection") {
		t.Errorf("online: %s", out)
	}
	front := c.Service("front").Process()
	if c.Service("worker").Process().DB != nil || front.DB == nil {
		t.Error("the worker has a database, or the API has none")
	}
	takeNote(t, front.Addr(), "first")
	if n := written(t, front.DB, "first"); n.Host != "host-1" {
		t.Errorf("written by %q", n.Host)
	}
	if log := c.Service("front").Log(); strings.Contains(log, "operation not notified") {
		t.Errorf("the API has not notified the runner:\n%s", log)
	}
	first, err := front.Members.Get(t.Context(), "writer", "host-1")
	if err != nil || !first.Up || first.Interfaces["writer"][0] != "1.0" {
		t.Fatalf("%+v, %v", first, err)
	}
	waittest.Until(t, "a heartbeat of the worker", func() bool {
		now, err := front.Members.Get(t.Context(), "writer", "host-1")
		return err == nil && now.Up && now.SeenAt.After(first.SeenAt)
	})
	if err := front.Members.ForceDown(t.Context(), "writer", "host-1", true); err != nil {
		t.Fatal(err)
	}
	if err := front.Members.Remove(t.Context(), "writer", "host-1"); err != nil {
		t.Fatal(err)
	}
	waittest.Until(t, "the removed member to join again", func() bool {
		now, err := front.Members.Get(t.Context(), "writer", "host-1")
		return err == nil && now.Up
	})
	if log := c.Service("worker").Log(); strings.Contains(log, "heartbeat failed") {
		t.Errorf("the worker has joined again, and its log has a failure:\n%s", log)
	}
	if out := c.Command("dlq", "list"); !strings.Contains(out, "no dead letters") {
		t.Errorf("dlq: %s", out)
	}
	c.Service("worker").Stop()
	if last, err := front.Members.Get(t.Context(), "writer", "host-1"); err != nil || last.Up || !last.Departed {
		t.Errorf("after the end: %+v, %v", last, err)
	}
}

// TestWaitingOperation: the list of operations says what an operation waits for.
func TestWaitingOperation(t *testing.T) {
	t.Parallel()
	w := newWorld()
	env := []string{"OS_DATABASE__CONNECTION=sqlite://" + filepath.Join(t.TempDir(), "notes.db")}
	if code, _, errs := w.command(t, env, "db", "sync"); code != 0 {
		t.Fatal(errs)
	}
	_, url, _ := strings.Cut(env[0], "=")
	d, err := db.Open(t.Context(), db.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	store := operation.NewStore(d)
	r := operation.NewRunner(operation.RunnerConfig{Store: store, Host: "h1"})
	operation.Handle(r, take, operation.Step[note]{Name: "write", Do: func(context.Context, *operation.Op, *note) error { return operation.WaitFor("writer on h7", time.Hour) }})
	id, err := operation.Begin(t.Context(), store, take, "first", &note{})
	if err := errors.Join(err, r.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Stop(context.WithoutCancel(t.Context())) }()
	waittest.Until(t, "the operation to wait", func() bool {
		o, err := store.Show(t.Context(), id)
		return err == nil && o.WaitsFor != "" && o.Owner == ""
	})
	for args, want := range map[string]string{"operation list": "running  waits for writer on h7  ", "operation list -o json": `"waits_for": "writer on h7"`} {
		if code, out, errs := w.command(t, env, strings.Fields(args)...); code != 0 || !strings.Contains(out, want) {
			t.Errorf("%s: %d %s %s; want %s", args, code, out, errs, want)
		}
	}
}

// TestChooseRejected: if a component's own filter rejects all members, the error says once how many members each filter has rejected, and one reason of each filter.
func TestChooseRejected(t *testing.T) {
	t.Parallel()
	p, _, _ := newWorld().start(t, nil, "OS_DEFAULT__HOST=h1", "OS_DEFAULT__LISTEN=127.0.0.1:0")
	rank := component.NewScheduler[*note](schedulerConfig{Filters: []scheduler.Filter[*note, membership.Member]{
		scheduler.FilterFunc("avoid", func(n *note, m membership.Member) scheduler.Verdict {
			return scheduler.Reject("the note %s was refused by %s before", n.Text, m.Host)
		}),
	}})
	_, err := component.Choose(t.Context(), p, rank, writer.Name, &note{Text: "first"})
	const want = "no valid host: 0 of 1 hosts: 1 avoid (avoid rejects h1: the note first was refused by h1 before)"
	if !errors.Is(err, fault.Unavailable) || !errors.Is(err, scheduler.ErrNoValidHost) || err.Error() != want {
		t.Errorf("%v (%v), want %s", err, fault.CodeOf(err), want)
	}
	if _, err := component.Choose(t.Context(), p, rank, "none", &note{}); err == nil || err.Error() != "no valid host: 0 of 0 hosts" {
		t.Errorf("without members: %v", err)
	}
}
