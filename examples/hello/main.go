// Command hello is a whole component in one file. It accepts requests for greetings over REST, chooses a host for each
// greeting, lets a driver on that host make the greeting, and stores the result. Any number of processes may run, on one
// host or many. Each process has an API, a scheduler and a worker service. docs/tutorial.md builds hello step by step.
//
//	go run ./examples/hello                              everything in one process
//	go run ./examples/hello -config-file hello.conf      with RabbitMQ and MariaDB
package main

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/urlbus"
	"github.com/armature-go/armature/rpc/watermillbus/amqp"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/auth"
	"github.com/armature-go/armature/service/config"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/rpccaps"
	"github.com/armature-go/armature/service/operation"
)

type options struct {
	Host       string `ini:"host" default:"hello-1" regex:"^[A-Za-z0-9_.-]{1,100}$" help:"name of this process, the same after every restart"`
	Listen     string `ini:"listen" default:"127.0.0.1:8780" help:"address of the API"`
	Bus        string `ini:"transport_url" secret:"true" help:"rabbit://user:password@host/vhost, nats://user:password@host or watermill-amqp://user:password@host/vhost (default: all in one process)"`
	Exchange   string `ini:"control_exchange" default:"hello" regex:"^[A-Za-z0-9_.-]{1,100}$" help:"first part of the names of all queues"`
	Connection string `ini:"connection" default:"sqlite://hello.db" secret:"true" help:"mysql://user:password@host/name or sqlite://file"`
	Driver     string `ini:"driver" default:"english" help:"english, or NAME for the program armature-hello-NAME in plugin_dir"`
	Plugins    string `ini:"plugin_dir" help:"directory of the driver programs"`
	Token      string `ini:"api_token" secret:"true" protects:"true" help:"X-Auth-Token that every client must send (default: the API serves every client)"`
}

// schemes are the kinds of buses besides those of package urlbus.
var schemes = map[string]urlbus.Opener{"watermill-amqp": func(at urlbus.Broker, cfg urlbus.Config) (urlbus.Bus, error) {
	return amqp.New(amqp.Config{URLs: at.URLs, TLS: at.TLS, Exchange: cfg.Exchange, MaxMessage: cfg.MaxMessage, Logger: cfg.Logger})
}}

//go:embed migrations/*.sql
var migrations embed.FS

// tables are the migrations of the packages that need tables, and then the component's own.
var tables = []db.Migrations{membership.Migrations, operation.Migrations, db.Embedded("", migrations)}

// Greeting is the resource of the component.
type Greeting struct {
	ID   string `json:"id" db:"id"`
	Name string `json:"name" db:"name"`
	Text string `json:"text" db:"text"` // empty until a host has made it
	Host string `json:"host" db:"host"`
}

var (
	greeter = &rpc.Interface{Name: "greeter", Version: rpc.Version{Major: 1}}
	speak   = rpc.Define(rpc.Method[Greeting, Greeting]{Interface: greeter, Name: "speak", Since: rpc.Version{Major: 1}})
	say     = operation.Kind[Greeting]{Name: "hello.say", Timeout: time.Minute}
)

type component struct {
	db      *sqlx.DB
	ops     *operation.Store
	runner  *operation.Runner
	members *membership.Registry
	rank    *scheduler.Scheduler[*Greeting, membership.Member]
	client  *rpc.Client
	driver  func() Greeter
}

// newGreeting is the body of a request for a greeting.
type newGreeting struct {
	Name string `json:"name" min:"1" max:"255"`
}

// create accepts a request for a greeting. It writes the row and the row's operation in one transaction.
func (c *component) create(ctx context.Context, r *api.Request[newGreeting]) (g Greeting, err error) {
	g, op := Greeting{ID: uuid.NewString(), Name: r.Body.Name}, ""
	err = db.Tx(ctx, c.db, func(ctx context.Context, tx *sqlx.Tx) (err error) {
		if _, err = tx.NamedExecContext(ctx, `INSERT INTO greetings (id, name, text, host) VALUES (:id, :name, '', '')`, g); err != nil {
			return db.Error(err)
		}
		op, err = operation.Begin(ctx, c.ops, say, g.ID, &g)
		return err
	})
	if err == nil {
		c.runner.Notify(op)
		r.Accepted("/v1/greetings/" + g.ID)
	}
	return g, err
}

func (c *component) show(ctx context.Context, r *api.Request[api.None]) (g Greeting, err error) {
	err = db.Error(c.db.GetContext(ctx, &g, `SELECT `+db.Columns[Greeting]()+` FROM greetings WHERE id = ?`, r.PathValue("id")))
	if errors.Is(err, fault.NotFound) {
		err = fault.New(fault.NotFound, "Greeting %s could not be found.", r.PathValue("id"))
	}
	return g, err
}

// hostIsFit is a filter. It rejects hosts that are down or disabled.
func hostIsFit(_ *Greeting, m membership.Member) scheduler.Verdict {
	if why := m.Unfit(); why != "" {
		return scheduler.Reject("%s", why)
	}
	return scheduler.Pass
}

// isOtherHost is a weigher. It ranks last the host that was called before and did not answer.
func isOtherHost(g *Greeting, m membership.Member) float64 {
	if m.Host == g.Host {
		return 0
	}
	return 1
}

// choose is the first step. It chooses a host.
func (c *component) choose(ctx context.Context, _ *operation.Op, g *Greeting) error {
	hosts, err := c.members.List(ctx, "greeter")
	if err != nil {
		return err
	}
	d, err := c.rank.Rank(ctx, g, hosts)
	if err != nil {
		return fault.New(fault.Unavailable, "%s: %w", d.Summary(), err) // a host may come back
	}
	g.Host = d.Ranked[0].Host.Host
	return nil
}

// speak is the second step. It calls the chosen host, which makes the greeting. A second call does no harm. If the host
// does not answer, the operation goes back to choose another host.
func (c *component) speak(ctx context.Context, _ *operation.Op, g *Greeting) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	said, err := rpc.Call(ctx, c.client, speak, g.Host, g)
	if err == nil {
		g.Text = said.Text // only Text, because a host of another release may not return all fields
		return nil
	}
	switch fault.CodeOf(err) { //nolint:exhaustive // the other codes are not about the host
	case fault.Unavailable, fault.Unknown, fault.Timeout:
		return operation.GoTo("choose", 20, err)
	}
	return err
}

// save is the last step. It runs in the transaction that ends the step, so it takes effect exactly once.
func (c *component) save(ctx context.Context, tx *sqlx.Tx, _ *operation.Op, g *Greeting) error {
	_, err := tx.NamedExecContext(ctx, `UPDATE greetings SET text = :text, host = :host WHERE id = :id`, g)
	return db.Error(err)
}

// greet handles the method speak on a host.
func (c *component) greet(ctx context.Context, g *Greeting) (_ *Greeting, err error) {
	g.Text, err = c.driver().Greet(ctx, g.Name)
	return g, err
}

// Greeter is this component's kind of driver. A driver greets in one language.
type Greeter interface {
	driver.Driver

	// Greet returns a greeting for name. Errors: Invalid, if the name is empty.
	Greet(ctx context.Context, name string) (string, error)
}

// english is the built-in driver.
type english struct{}

func (english) Info(context.Context) (driver.Info, error) { return driver.Info{Name: "english"}, nil }
func (english) Close() error                              { return nil }
func (english) Greet(_ context.Context, name string) (string, error) {
	if name == "" {
		return "", fault.New(fault.Invalid, "the name is empty")
	}
	return "Hello, " + name + "!", nil
}

func main() {
	service.CatchSignals()
	src, o := config.Source{Env: os.Environ()}, options{}
	src.AddFlags(flag.CommandLine)
	flag.Parse()
	err := config.Load(&o, src)
	if flag.NArg() > 0 {
		err = errors.Join(err, fmt.Errorf("argument %q is not known: -config-file names a file of options", flag.Arg(0)))
	}
	if err == nil {
		err = runComponent(context.Background(), &o, make(chan string, 1))
	}
	if err != nil {
		slog.Error("hello", "error", err)
		os.Exit(1)
	}
}

// optionError adds the name of an option to an error. It returns nil if err is nil.
func optionError(option string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("option %s: %w", option, err)
}

// runComponent runs the component until ctx ends or a signal comes. It sends the address of the API to listens.
func runComponent(ctx context.Context, o *options, listens chan<- string) error {
	log := slog.New(reqctx.LogHandler(slog.NewTextHandler(os.Stderr, nil)))
	bus, busErr := urlbus.Open(o.Bus, urlbus.Config{Exchange: o.Exchange, Schemes: schemes, Logger: log})
	rank, rankErr := scheduler.New(scheduler.Config[*Greeting, membership.Member]{
		Filters:    []scheduler.Filter[*Greeting, membership.Member]{scheduler.FilterFunc("fit", hostIsFit)},
		Weighers:   []scheduler.Weighted[*Greeting, membership.Member]{{Weigher: scheduler.WeigherFunc("other", isOtherHost), Multiplier: 1}},
		Picker:     scheduler.Shuffle,
		CountsOnly: true, // the error of choose uses only the counts
	})
	var drivers driver.Registry[Greeter]
	drivers.Add("english", func(context.Context, json.RawMessage) (Greeter, error) { return english{}, nil })
	plugin, pluginErr := drivers.New(Kind, o.Driver, driver.PluginConfig{Dir: o.Plugins, Logger: log})
	d, dbErr := db.New(db.Config{URL: o.Connection})
	if err := errors.Join(optionError("transport_url", busErr), rankErr, optionError("driver", pluginErr), optionError("connection", dbErr)); err != nil {
		return err // all errors at once
	}

	app := service.New(service.Config{Name: "hello", Logger: log})
	members := membership.New(membership.Config{DB: d})
	c := &component{
		db: d, ops: operation.NewStore(d), members: members, rank: rank,
		client: rpc.NewClient(bus, rpc.ClientConfig{AutoCaps: rpccaps.New(rpccaps.Config{Members: members}).Read, Logger: log}), driver: plugin.Driver,
	}
	c.runner = operation.NewRunner(operation.RunnerConfig{Store: c.ops, Host: o.Host, Inflight: app.Inflight(), Logger: log})
	operation.Handle(c.runner, say, operation.Step[Greeting]{Name: "choose", Do: c.choose}, operation.Step[Greeting]{Name: "speak", Do: c.speak}, operation.Step[Greeting]{Name: "save", DoTx: c.save})
	worker := rpc.NewServer(bus, rpc.ServerConfig{Interface: greeter, Host: o.Host, Logger: log})
	rpc.Handle(worker, speak, c.greet)
	member := members.Member(membership.MemberConfig{Self: membership.Self{Kind: "greeter", Host: o.Host, Interfaces: rpccaps.Of(worker)}, Logger: log})
	authenticate := auth.None(reqctx.Request{})
	if o.Token != "" {
		authenticate = auth.Static(map[string]reqctx.Request{o.Token: {UserID: "client"}})
	}
	mux := api.New(api.Config{Authenticate: authenticate, Inflight: app.Inflight(), Logger: log})
	mux.Health(app.Ready)
	mux.Discover(api.Discovery{ID: "v1", Path: "/v1"})
	api.Handle(mux, "POST /v1/greetings", c.create)
	api.Handle(mux, "GET /v1/greetings/{id}", c.show)
	server := service.HTTP(o.Listen, mux)

	app.AddLabeled("database", "option connection", &db.Service{DB: d, Migrations: tables, Migrate: true, Logger: log})
	app.AddLabeled("driver", "option driver", plugin)
	app.AddLabeled("bus", "option transport_url", bus)
	app.Add("client", c.client)
	app.AddLabeled("versions", "option host", member.Announcement()) // other processes learn the versions before the worker serves
	app.AddLabeled("worker", "option host", worker)
	app.AddLabeled("member", "option host", member)
	app.Add("operations", c.runner)
	app.AddLabeled("api", "option listen", server)
	app.Add("greeting", service.Funcs{OnStart: func(context.Context) error { listens <- server.Addr(); return nil }})
	return app.Run(ctx)
}
