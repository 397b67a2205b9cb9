// Command hello is a whole component in one file. It accepts requests for greetings over REST, chooses a host for each greeting,
// lets a driver on that host make the greeting, and stores the result. docs/tutorial.md builds a larger component step by step.
//
//	go run ./examples/hello [--config-file hello.conf]
package main

import (
	"context"
	"embed"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/operation"
)

//go:embed migrations/*.sql
var migrations embed.FS

type options struct {
	component.Options
	component.APIOptions
	component.DriverOptions
}

// Greeting is the resource of the component.
type Greeting struct {
	ID   string `json:"id" db:"id"`
	Name string `json:"name" db:"name"`
	Text string `json:"text" db:"text"` // empty until a host has made the greeting
	Host string `json:"host" db:"host"`
}

var (
	greeter = &rpc.Interface{Name: "greeter", Version: rpc.Version{Major: 1}}
	speak   = rpc.Define(rpc.Method[Greeting, Greeting]{Interface: greeter, Name: "speak", Since: rpc.Version{Major: 1}})
	say     = operation.Kind[Greeting]{Name: "hello.say", Timeout: time.Minute}
)

// Greeter is a driver. Greet returns a greeting for a name. Errors: Invalid, if the name is empty.
type Greeter struct {
	driver.Driver
	Greet func(ctx context.Context, name string) (string, error)
}

// Kind describes how greeters run as programs, such as armature-hello-latin.
var Kind = driver.Functions[Greeter]("hello", 1)

// english is the built-in driver.
var english = Greeter{driver.Static(driver.Info{Name: "english"}), func(_ context.Context, name string) (string, error) {
	if name == "" {
		return "", fault.New(fault.Invalid, "the name is empty")
	}
	return "Hello, " + name + "!", nil
}}

type greetings struct{ *component.Process[options] }

type newGreeting struct {
	Name string `json:"name" min:"1" max:"255"`
}

// create accepts a request for a greeting. It writes the row of the greeting and its operation in one transaction.
func (c *greetings) create(ctx context.Context, r *api.Request[newGreeting]) (Greeting, error) {
	g := Greeting{ID: uuid.NewString(), Name: r.Body.Name}
	r.Accepted("/v1/greetings/" + g.ID)
	return g, component.Begin(ctx, c.Process, say, g.ID, &g, func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.NamedExecContext(ctx, `INSERT INTO greetings (id, name, text, host) VALUES (:id, :name, '', '')`, g)
		return db.Error(err)
	})
}

func (c *greetings) show(ctx context.Context, r *api.Request[api.None]) (g Greeting, err error) {
	if err = db.Error(c.DB.GetContext(ctx, &g, `SELECT `+db.Columns[Greeting]()+` FROM greetings WHERE id = ?`, r.PathValue("id"))); errors.Is(err, fault.NotFound) {
		err = fault.New(fault.NotFound, "Greeting %s could not be found.", r.PathValue("id"))
	}
	return g, err
}

// rank orders the hosts that are up and enabled. A host that did not answer an earlier call comes last.
var rank = component.NewScheduler(scheduler.Config[*Greeting, membership.Member]{
	Weighers: []scheduler.Weighted[*Greeting, membership.Member]{component.AvoidHost(func(g *Greeting) string { return g.Host })},
})

// choose is the first step. It chooses a host.
func (c *greetings) choose(ctx context.Context, _ *operation.Op, g *Greeting) error {
	m, err := component.Choose(ctx, c.Process, rank, "greeter", g)
	if err == nil {
		g.Host = m.Host
	}
	return err
}

// speak is the second step. It calls the chosen host, which makes the greeting. A second call does no harm. If the host
// does not answer, the operation goes back to choose another host.
func (c *greetings) speak(ctx context.Context, _ *operation.Op, g *Greeting) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	said, err := rpc.Call(ctx, c.Client, speak, g.Host, g)
	if err == nil {
		g.Text = said.Text // only Text, because a host of another release may not return all fields
	} else if code := fault.CodeOf(err); code == fault.Unavailable || code == fault.Unknown || code == fault.Timeout {
		return operation.GoTo("choose", 100, err)
	}
	return err
}

// save is the last step. It runs in the transaction that ends the step, so it takes effect exactly once.
func (c *greetings) save(ctx context.Context, tx *sqlx.Tx, _ *operation.Op, g *Greeting) error {
	_, err := tx.NamedExecContext(ctx, `UPDATE greetings SET text = :text, host = :host WHERE id = :id`, g)
	return db.Error(err)
}

// wire gives the parts of the service to the process, which starts them in the right order.
func wire(_ context.Context, p *component.Process[options]) error {
	c := &greetings{p}
	greeting, err := component.Driver(p, Kind, component.BuiltIn("english", english))
	if err != nil {
		return err
	}
	p.Serve(greeter, func(s *rpc.Server) {
		rpc.Handle(s, speak, func(ctx context.Context, g *Greeting) (_ *Greeting, err error) {
			g.Text, err = greeting().Greet(ctx, g.Name)
			return g, err
		})
	})
	operation.Handle(p.Runner(), say, operation.Step[Greeting]{Name: "choose", Do: c.choose}, operation.Step[Greeting]{Name: "speak", Do: c.speak}, operation.Step[Greeting]{Name: "save", DoTx: c.save})
	return p.API(api.Config{}, func(m *api.Mux) {
		m.Discover(api.Discovery{ID: "v1", Path: "/v1"})
		api.Handle(m, "POST /v1/greetings", c.create)
		api.Handle(m, "GET /v1/greetings/{id}", c.show)
	})
}

var hello = component.Component[options]{
	Name: "hello", Short: "Greets over REST", Defaults: map[string]string{"listen": "127.0.0.1:8780", "database.connection": "sqlite://hello.db", "driver": "english"},
	Migrations: []db.Migrations{db.Embedded("", migrations)}, Services: []component.Service[options]{{Name: "greeter", Short: "Accept requests, and greet on this host", Wire: wire}},
}

func main() { component.Main(hello) }
