package componenttest_test

import (
	"context"
	"embed"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/component/componenttest"
	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/operation"
)

//go:embed migrations/*.sql
var migrations embed.FS

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("os/signal.loop"))
}

type options struct {
	component.Options
	component.APIOptions
	Mark string `ini:"mark" default:"" help:"end of each note"`
}

// note is a note: the body of a request, and the data of the operation that writes the note.
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

// gate blocks the first call of the worker's handler until the process of the worker ends. A nil
// gate blocks no call.
type gate struct {
	entered chan string // the host
	calls   atomic.Int64
}

func notes(g *gate) component.Component[options] {
	rank := component.NewScheduler(scheduler.Config[*note, membership.Member]{
		Weighers: []scheduler.Weighted[*note, membership.Member]{component.AvoidHost(func(n *note) string { return n.Host })},
	})
	wireBack := func(_ context.Context, p *component.Process[options]) error {
		choose := func(ctx context.Context, _ *operation.Op, n *note) error {
			m, err := component.Choose(ctx, p, rank, writer.Name, n)
			n.Host = m.Host
			return err
		}
		send := func(ctx context.Context, _ *operation.Op, n *note) error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			out, err := rpc.Call(ctx, p.Client, write, n.Host, n)
			if err != nil {
				return operation.GoTo("choose", 20, err)
			}
			n.Text = out.Text
			return nil
		}
		save := func(ctx context.Context, tx *sqlx.Tx, op *operation.Op, n *note) error {
			_, err := db.Exec(ctx, tx, `INSERT INTO notes (id, text, host) VALUES (?, ?, ?)`, op.Resource, n.Text, n.Host)
			return err
		}
		operation.Handle(p.Runner(), take, operation.Step[note]{Name: "choose", Do: choose}, operation.Step[note]{Name: "send", Do: send}, operation.Step[note]{Name: "save", DoTx: save})
		return nil
	}
	return component.Component[options]{
		Name: "notes", Short: "Takes notes", Defaults: map[string]string{"listen": "127.0.0.1:8779"}, Migrations: []db.Migrations{db.Embedded("", migrations)},
		Services: []component.Service[options]{
			{Name: "front", Wire: func(_ context.Context, p *component.Process[options]) error {
				return p.API(api.Config{}, func(m *api.Mux) {
					m.Discover(api.Discovery{ID: "v1", Path: "/v1"})
					api.Handle(m, "PUT /v1/notes/{id}", func(ctx context.Context, r *api.Request[note]) (note, error) {
						return r.Body, component.Begin(ctx, p, take, r.PathValue("id"), &r.Body, nil)
					})
				})
			}},
			{Name: "back", Wire: wireBack},
			{Name: "worker", NoDatabase: true, Wire: func(_ context.Context, p *component.Process[options]) error {
				p.Serve(writer, func(s *rpc.Server) {
					rpc.Handle(s, write, func(ctx context.Context, n *note) (*note, error) {
						if g != nil && g.calls.Add(1) == 1 {
							g.entered <- p.Host
							<-ctx.Done() // the process ends while it works
							return nil, ctx.Err()
						}
						return &note{Text: n.Text + p.Options.Mark, Host: p.Host}, nil
					})
				})
				return nil
			}},
		},
	}
}

// put asks the API to take a note with the given id.
func put(t *testing.T, url, id string) error {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url+"/v1/notes/"+id, strings.NewReader(`{"text": "`+id+`", "host": ""}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		return err
	}
	body, _ := io.ReadAll(res.Body)
	if res.Body.Close(); res.StatusCode != http.StatusOK {
		return fmt.Errorf("%d %s", res.StatusCode, body)
	}
	return nil
}

func check(t *testing.T, c *componenttest.Cluster[options], id, text string) (host string) {
	t.Helper()
	if op := c.Wait(id); op.State != operation.Succeeded {
		t.Fatalf("%s: %s %s", id, op.State, op.Error)
	}
	var rows []note
	if err := c.DB.Select(&rows, `SELECT text, host FROM notes WHERE id = ?`, id); err != nil || len(rows) != 1 || rows[0].Text != text {
		t.Fatalf("%s: %+v, %v", id, rows, err)
	}
	return rows[0].Host
}

// TestCluster: a component runs as one process for each service, without other software. Each process may be stopped, killed and started
// again, and nothing is lost. Another host takes over the work of a worker that was killed in the middle of it.
func TestCluster(t *testing.T) {
	t.Parallel()
	g := &gate{entered: make(chan string, 1)}
	c := componenttest.Start(t, notes(g), "mark=!")
	workers := map[string]*componenttest.Service[options]{"host-1": c.Service("worker"), "host-2": c.Add("worker", "host-2")}
	url := c.URL
	if err := put(t, c.URL, "one"); err != nil {
		t.Fatal(err)
	}
	killed := <-g.entered
	workers[killed].Kill()
	if host := check(t, c, "one", "one!"); host == killed {
		t.Errorf("written by %s, which is killed", host)
	}
	workers[killed].Start()
	c.Service("back").Kill()
	if err := put(t, c.URL, "two"); err != nil { // the API accepts it while nothing runs operations
		t.Fatal(err)
	}
	c.Service("back").Start()
	check(t, c, "two", "two!")
	c.Service("front").Kill()
	if err := put(t, c.URL, "three"); err == nil {
		t.Error("a killed process has answered")
	}
	c.Service("front").Start()
	if c.URL != url {
		t.Errorf("the URL was %s and is %s", url, c.URL)
	}
	if err := put(t, c.URL, "three"); err != nil {
		t.Fatal(err)
	}
	check(t, c, "three", "three!")
	second := c.Add("front", "host-2") // another process with the API takes over
	c.Service("front").Kill()
	if err := put(t, c.URL, "four"); err != nil {
		t.Errorf("the other API: %v", err)
	}
	check(t, c, "four", "four!")
	c.Service("front").Start()
	second.Stop()
	if err := put(t, c.URL, "five"); err != nil {
		t.Errorf("the first API again: %v", err)
	}
	check(t, c, "five", "five!")
	c.Service("back").Stop()
	c.Service("back").Start()
	if out := c.Command("operation", "list", "-o", "json"); strings.Count(out, `"succeeded"`) != 5 {
		t.Errorf("operation list: %s", out)
	}
	if own := c.Service("front").Process(); own.Host != "host-1" || own.DB == nil || !strings.Contains(c.Service("front").Log(), "ready") {
		t.Errorf("%+v %s", own, c.Service("front").Log())
	}
	if c.Service("worker").Process().DB != nil {
		t.Error("the worker has a database")
	}
}

// TestServices: the same component runs on a broker and a database server that the options name.
func TestServices(t *testing.T) {
	t.Parallel()
	c := componenttest.Start(t, notes(nil), "transport_url="+envtest.URL(t, testenv.AMQPVar), "control_exchange=componenttest-services", "database.connection="+dbtest.MySQL(t))
	for _, service := range []string{"front", "back", "worker"} {
		c.Service(service).Kill()
		c.Service(service).Start()
		if err := put(t, c.URL, service); err != nil {
			t.Fatal(err)
		}
		check(t, c, service, service)
	}
}

// recorder is a test whose failure has no effect on the test that runs it.
type recorder struct {
	testing.TB

	failed string
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// TestWrongUse: each wrong use ends the test with a text that says what is wrong.
func TestWrongUse(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		use  func(r *recorder)
		want string
	}{
		"an option without a value": {func(r *recorder) { componenttest.Start(r, notes(nil), "mark") }, `option "mark": want NAME=VALUE or SECTION.NAME=VALUE`},
		"an option that is unknown": {func(r *recorder) { componenttest.Start(r, notes(nil), "mork=!") }, "mork"},
		"an option that is wrong":   {func(r *recorder) { componenttest.Start(r, notes(nil), "report_interval=often") }, "report_interval"},
		"a service that is unknown": {func(r *recorder) { componenttest.Start(r, notes(nil)).Service("wroker") }, `the component has no service "wroker"`},
		"a process that is killed twice": {func(r *recorder) {
			s := componenttest.Start(r, notes(nil)).Service("back")
			s.Kill()
			s.Kill()
		}, "back on host-1 does not run: call Start"},
		"a process that is started twice": {func(r *recorder) { componenttest.Start(r, notes(nil)).Service("back").Start() }, "back on host-1 runs already"},
		"a command that fails":            {func(r *recorder) { componenttest.Start(r, notes(nil)).Command("operation", "show", "none") }, "operation show none ended with 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &recorder{TB: t}
			var wg sync.WaitGroup
			wg.Go(func() { tt.use(r) })
			wg.Wait()
			if !strings.Contains(r.failed, tt.want) {
				t.Errorf("%q, want %q", r.failed, tt.want)
			}
		})
	}
}
