// Command hello is a whole component in one file: it takes orders for greetings over
// REST, chooses a host for each, has it said there by a driver, and keeps the answer. Any
// number of processes may run, on one host or many: each has a door, a scheduler and a
// worker. docs/tutorial.md builds it step by step.
//
//	go run ./examples/hello                              everything in one process
//	go run ./examples/hello -config-file hello.conf      with RabbitMQ and MariaDB
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/amqpbus"
	"github.com/armature-go/armature/rpc/membus"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/config"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/operation"
)

type options struct {
	Host       string `ini:"host" default:"hello-1" help:"name of this process, the same after every restart"`
	Listen     string `ini:"listen" default:"127.0.0.1:8780" help:"address of the API"`
	Bus        string `ini:"transport_url" secret:"true" help:"amqp://user:password@host/vhost (default: all in one process)"`
	Connection string `ini:"connection" default:"sqlite://hello.db" secret:"true" help:"mysql://user:password@host/name or sqlite://file"`
	Driver     string `ini:"driver" default:"english" help:"english, or NAME for the program armature-hello-NAME in plugin_dir"`
	Plugins    string `ini:"plugin_dir" help:"directory of drivers' programs"`
}

//go:embed migrations/*.sql
var migrations embed.FS

// Greeting is what the component is about.
type Greeting struct {
	ID   string `json:"id" db:"id"`
	Name string `json:"name" db:"name"`
	Text string `json:"text" db:"text"` // empty until it was said
	Host string `json:"host" db:"host"`
}

var (
	worker = &rpc.Interface{Name: "greeter", Version: rpc.Version{Major: 1}}
	speak  = rpc.Method[Greeting, Greeting]{Interface: worker, Name: "speak", Since: rpc.Version{Major: 1}}
	say    = operation.Kind[Greeting]{Name: "hello.say", Timeout: time.Minute}
)

type component struct {
	db      *sqlx.DB
	ops     *operation.Store
	runner  *operation.Runner
	members *membership.Registry
	rank    *scheduler.Scheduler[*Greeting, host]
	client  *rpc.Client
}

// create takes an order: the row and its operation are written together.
func (c *component) create(ctx context.Context, r *api.Request[Greeting]) (Greeting, error) {
	g := r.Body
	g.ID = uuid.NewString()
	var op string
	err := db.Tx(ctx, c.db, func(ctx context.Context, tx *sqlx.Tx) (err error) {
		if _, err = tx.NamedExecContext(ctx, `INSERT INTO greetings (id, name, text, host) VALUES (:id, :name, '', '')`, g); err != nil {
			return db.Error(err)
		}
		op, err = operation.Begin(ctx, c.ops, say, g.ID, &g)
		return err
	})
	if err != nil {
		return g, err
	}
	c.runner.Wake(op)
	r.Accepted("/v1/greetings/" + g.ID)
	return g, nil
}

func (c *component) show(ctx context.Context, r *api.Request[api.None]) (g Greeting, err error) {
	err = db.Error(c.db.GetContext(ctx, &g, `SELECT * FROM greetings WHERE id = ?`, r.PathValue("id")))
	if errors.Is(err, fault.NotFound) {
		err = fault.New(fault.NotFound, "Greeting %s could not be found.", r.PathValue("id"))
	}
	return g, err
}

// host is a member as the scheduler sees it.
type host struct{ membership.Member }

func (h host) Name() string { return h.Host }

// up is a filter: who is down greets nobody, and who is disabled nobody new.
func up(_ *Greeting, h host) scheduler.Verdict {
	switch {
	case !h.Up:
		return scheduler.Reject("%s", h.Why)
	case h.Disabled:
		return scheduler.Reject("disabled: %s", h.DisabledReason)
	}
	return scheduler.Pass
}

// choose is the first step: which host says it.
func (c *component) choose(ctx context.Context, op *operation.Op, g *Greeting) error {
	list, err := c.members.List(ctx, "greeter")
	if err != nil {
		return err
	}
	hosts := make([]host, len(list))
	for i, m := range list {
		hosts[i] = host{m}
	}
	d, err := c.rank.Rank(ctx, g, hosts)
	if err != nil {
		return fault.New(fault.Unavailable, "%s: %w", d.Summary(), err) // a host may come back
	}
	g.Host = d.Ranked[0].Host.Name()
	return op.Keep(g)
}

// speak is the second step: the host says it. Saying it twice does no harm.
func (c *component) speak(ctx context.Context, op *operation.Op, g *Greeting) error {
	if err := op.Kept(g); err != nil {
		return err
	}
	said, err := rpc.Call(ctx, c.client, speak, g.Host, g)
	if err != nil {
		return err
	}
	return op.Keep(said)
}

// save is the last step, done exactly once.
func (c *component) save(ctx context.Context, tx *sqlx.Tx, op *operation.Op, g *Greeting) error {
	if err := op.Kept(g); err != nil {
		return err
	}
	_, err := tx.NamedExecContext(ctx, `UPDATE greetings SET text = :text, host = :host WHERE id = :id`, g)
	return db.Error(err)
}

func main() {
	var src config.Source
	flag.Func("config-file", "file with options; may be repeated", func(f string) error { src.Files = append(src.Files, f); return nil })
	flag.Parse()
	src.Env = os.Environ()
	var o options
	err := config.Load(&o, src)
	if err == nil {
		err = run(context.Background(), &o, make(chan string, 1))
	}
	if err != nil {
		slog.Error("hello", "error", err)
		os.Exit(1)
	}
}

// run runs the component until it is told to stop. It sends the address of the API.
func run(ctx context.Context, o *options, listens chan<- string) (err error) {
	log := slog.New(reqctx.LogHandler(slog.NewTextHandler(os.Stderr, nil)))
	d, err := db.Open(ctx, db.Config{URL: o.Connection})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	dir, err := fs.Sub(migrations, "migrations")
	if err == nil {
		err = db.Migrate(ctx, d, dir)
	}
	if err != nil {
		return err
	}
	rank, err := scheduler.New(scheduler.Config[*Greeting, host]{Filters: []scheduler.Filter[*Greeting, host]{scheduler.FilterFunc("up", up)}, Picker: scheduler.Shuffle})
	if err != nil {
		return err
	}
	bus, err := openBus(o, log)
	if err != nil {
		return err
	}
	var drivers driver.Registry[Greeter]
	drivers.Add("english", openEnglish)
	plugin, err := drivers.Launch(ctx, Kind, o.Driver, driver.PluginConfig{Dir: o.Plugins, Logger: log})
	if err != nil {
		return err
	}

	app := service.New(service.Config{Name: "hello", Logger: log})
	c := &component{db: d, ops: operation.NewStore(d), members: membership.New(membership.Config{DB: d}), rank: rank, client: rpc.NewClient(bus, rpc.ClientConfig{Logger: log})}
	c.runner = operation.NewRunner(operation.RunnerConfig{Store: c.ops, Host: o.Host, Inflight: app.Inflight(), Logger: log})
	operation.Handle(c.runner, say, operation.Step[Greeting]{Name: "choose", Do: c.choose}, operation.Step[Greeting]{Name: "speak", Do: c.speak}, operation.Step[Greeting]{Name: "save", DoTx: c.save})
	server := rpc.NewServer(bus, rpc.ServerConfig{Interface: worker, Host: o.Host, Logger: log})
	rpc.Handle(server, speak, func(ctx context.Context, g *Greeting) (_ *Greeting, err error) {
		g.Text, err = plugin.Driver().Greet(ctx, g.Name)
		return g, err
	})
	mux := api.New(api.Config{Inflight: app.Inflight(), Logger: log})
	mux.Health(app.Ready)
	api.HandleRoute(mux, api.Route{Pattern: "POST /v1/greetings", Status: http.StatusAccepted, Body: []api.Schema{{
		JSON: `{"type": "object", "required": ["name"], "additionalProperties": false, "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 255}}}`,
	}}}, c.create)
	api.Handle(mux, "GET /v1/greetings/{id}", c.show)
	door := service.HTTP(o.Listen, mux)

	app.Add("driver", plugin)
	app.Add("bus", bus)
	app.Add("client", c.client)
	app.Add("worker", server)
	app.Add("member", c.members.Member(membership.MemberConfig{Self: membership.Self{Kind: "greeter", Host: o.Host}, Logger: log}))
	app.Add("operations", c.runner)
	app.Add("api", door)
	app.Add("greeting", service.Funcs{OnStart: func(context.Context) error { listens <- door.Addr(); return nil }})
	return app.Run(ctx)
}

// messageBus is a bus that is started and stopped.
type messageBus interface {
	rpc.Bus
	service.Part
}

// openBus returns RabbitMQ, or the bus of one process alone.
func openBus(o *options, log *slog.Logger) (messageBus, error) {
	if o.Bus == "" {
		return membus.New(), nil
	}
	return amqpbus.New(amqpbus.Config{URLs: []string{o.Bus}, Exchange: "hello", Logger: log})
}
