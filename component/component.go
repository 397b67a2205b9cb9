// Package component runs the processes of a component. It provides the command line, the options, and the parts that every component
// has. A component declares only what is specific to it:
//
//	type options struct {
//		component.Options
//		component.APIOptions
//		Greeting string `ini:"greeting" default:"Hello" help:"word of each greeting"`
//	}
//
//	func main() {
//		component.Main(component.Component[options]{
//			Name: "hello", Short: "Greets over REST",
//			Migrations: []db.Migrations{db.Embedded("", migrations)},
//			Services: []component.Service[options]{{Name: "greeter", Short: "Greet on this host", Wire: wire}},
//		})
//	}
//
//	func wire(ctx context.Context, p *component.Process[options]) error {
//		w := &worker{db: p.DB, ops: p.Operations}
//		operation.Handle(p.Runner(), say, operation.Step[Greeting]{Name: "speak", Do: w.speak})
//		p.Serve(greeter, func(s *rpc.Server) { rpc.Handle(s, speak, w.greet) })
//		return p.API(api.Config{}, func(m *api.Mux) { api.Handle(m, "POST /v1/greetings", w.create) })
//	}
//
// The program has these commands:
//
//	hello                            run all services in one process; needs no other software
//	hello SERVICE                    run one service
//	hello db sync|check              create or upgrade the tables; check whether the services can start
//	hello config sample|validate     print all options; check a configuration
//	hello policy sample|validate|list|explain
//	hello operation list|show|cancel|retry
//	hello member list|remove
//	hello placement audit
//	hello dlq list|show|requeue|drop
//	hello status                     members, open operations, and the processes of this host
//	hello openapi, version, completion
//
// Some commands exist only if a field of [Component] is set, see the comments of the fields. Commands that list or show something have
// the flag --output (-o): table, json or yaml. The exit code is 0 for success, 1 for an error, and 2 for a wrong command line; the
// commands "db check" and "placement audit" have codes of their own, see their --help.
//
// A process has one host name. If a service stands for several hosts, [Process.On] returns the process under the name of one of them.
// A component may use other names than the defaults here, for options ([Component.Address], [DriverConfig]), for flags ([Flag]) and
// for kinds of members ([ServerConfig]).
//
// Without a command, all services run in one process. Without the option transport_url, this process uses the bus in memory. Without
// a database connection, it uses an SQLite file in state_path. Such a process creates and upgrades its tables at its start. A
// process of one service only checks them.
//
// The package stands above all library packages, and links all of them: each bus, each database, Prometheus and OTLP. A program that
// needs only some of them uses the packages without component.
package component

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/spf13/cobra"

	"github.com/armature-go/armature/db"
	_ "github.com/armature-go/armature/db/mysqldb"  // the option connection may name any database
	_ "github.com/armature-go/armature/db/sqlitedb" // the option connection may name any database
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/operation"
	"github.com/armature-go/armature/service/policy"
)

// Component describes a component. O is the struct of its options, in the form of package service/config, which embeds [Options]. Name and
// Services are required.
type Component[O any] struct {
	// Name is the name of the program. The file NAME.conf, the SQLite file and, by default, the queues are named after
	// it.
	Name string
	// Short says in a line what the component is. Long may say more. Both are for --help.
	Short, Long string
	// Defaults replace defaults in the tags of options. The keys are as in config.Source.
	Defaults map[string]string
	// Services are the services, in the order in which they are wired in a process with all of them.
	Services []Service[O]
	// Migrations are the component's own migrations, and those of packages such as service/quota. The migrations of the packages
	// membership and operation are always included, and come first. Nil: the component has no database. An empty slice that is
	// not nil: the database has only the tables of these two packages.
	Migrations []db.Migrations
	// Rules are the rules of the policy. Nil: no route of the API has a rule, and the component has no command policy.
	Rules []policy.Rule
	// Interfaces are the RPC interfaces whose dead letters the command dlq manages. Nil: the component has no such command.
	Interfaces []*rpc.Interface
	// Unreported has the RPC versions of processes whose release does not report versions, see rpccaps.Config.
	Unreported rpc.Versions
	// Runner returns the settings of the process's runner of operations. Store, Host, Inflight and Logger are set by the process. Nil: the
	// defaults.
	Runner func(o *O) operation.RunnerConfig
	// OwnNotify is for a component that notifies runners by an RPC method of its own. Then no process serves the interface armature-operation,
	// and [Process.Notify] reaches only the runner of its own process.
	OwnNotify bool
	// Resource is the word for a resource of operations, such as "server". Default "resource".
	Resource string
	// OpenAPI returns the OpenAPI document of the API in a microversion. The version "" means the default of the flag --version. Nil: the
	// document is made from the routes of the API.
	OpenAPI func(version string) (any, error)
	// Changes describe microversions of the API for people. The command "openapi --history" prints the description of a microversion above the changes
	// that the routes and their types declare, see api.Mux.History; Where may be a list of resources, and empty. Nil: the command prints only the
	// declared changes.
	Changes []api.Change
	// Address returns the address of the API, and the names of the options that set the address, for a component whose options embed
	// [AccessOptions] instead of [APIOptions]. Nil: the option listen.
	Address func(o *O) (addr string, options []string)
	// DatabaseFile is the name of the SQLite file in the state path of a process with all services. Default NAME.db.
	DatabaseFile string
	// Flags are further flags of the command line, each of which sets an option. Nil: none.
	Flags []Flag
	// Audit compares the claims on hosts with their consumers, see placement.Audit. Nil: the component has no command placement.
	Audit func(ctx context.Context, d *sqlx.DB, repair bool, minAge time.Duration) ([]placement.Finding, error)
	// Commands returns further commands. Nil: none.
	Commands func(t *Tool[O]) []*cobra.Command
	// Started is called when all parts of a process have started. It may print the address of the API, for example. Nil: it is
	// not called.
	Started func(p *Process[O]) error
}

// Service is a kind of process of a component. Name and Wire are required.
type Service[O any] struct {
	// Name is the name of the service, and of the command that runs it.
	Name string
	// Short says in a line what the service does.
	Short string
	// Disabled reports whether the options disable the service, so that its process need not run. Then the command status leaves the process out
	// if it has no admin socket. The service itself can still be started. Nil: never.
	Disabled func(o *O) bool
	// NoDatabase is for a service that must not reach the database, such as a worker on a host that is not trusted. It reports its
	// members over RPC to the processes with the database, which write them.
	NoDatabase bool
	// AutoCaps returns the version caps of the RPC client in a process of a service without a database. Default: such a
	// process asks a process with the database.
	AutoCaps func(context.Context, *rpc.Client) (rpc.Versions, error)
	// Wire makes the parts of the service and gives them to the process. It starts nothing, because the commands "config validate" and "openapi"
	// call it as well. If the Meta of an error names an option, as errors of package service/config do, the process adds the place of the
	// option. Wire reports the errors of options that only this service needs, joined by errors.Join. A Validate of the options reports the
	// errors that concern all services. Wire is called even if other options are wrong, so that all errors are found. A process with a
	// wrong option is not started.
	Wire func(ctx context.Context, p *Process[O]) error
}

// Flag is a flag of the command line. It sets an option, whose name has the form NAME or SECTION.NAME. Help is for --help.
type Flag struct{ Name, Option, Help string }

// AllInOne is the name of the process with all services.
const AllInOne = "all-in-one"

// Main runs the program of a component with the arguments and the environment of the process, and exits. It panics as [Run] does.
func Main[O any](c Component[O]) {
	service.CatchSignals()
	r := &runtime[O]{c: &c, out: os.Stdout, err: os.Stderr, setDefault: true}
	os.Exit(r.main(context.Background(), os.Args[1:], os.Environ()))
}

// Run runs the program of a component with the given arguments and environment, and returns the exit code. It is for tests and for programs
// with a main of their own. When ctx ends, a running service stops as after SIGTERM. The log goes to stderr.
//
// Run panics if the component is wrong, which is a programmer's error: its options do not embed [Options], it has no Name or no
// Services, a service has no Name or no Wire, two services have the same name, or a service has the name of a command.
func Run[O any](ctx context.Context, c Component[O], args, env []string, stdout, stderr io.Writer) int {
	r := &runtime[O]{c: &c, out: stdout, err: stderr}
	return r.main(ctx, args, env)
}

// runtime is one run of the program.
type runtime[O any] struct {
	c          *Component[O]
	out, err   io.Writer
	setDefault bool // the log of the process becomes the default logger of slog
}

// main runs the command and returns the exit code.
func (r *runtime[O]) main(ctx context.Context, args, env []string) int {
	r.c.check()
	cmd := r.command(env)                    //nolint:contextcheck // cobra passes the context on
	cmd.SetArgs(append([]string{}, args...)) // cobra reads the arguments of the process if args is nil
	err := cmd.ExecuteContext(ctx)
	if code, ok := errors.AsType[ExitError](err); ok {
		return int(code)
	}
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintf(r.err, "%s: %v\n", r.c.Name, err) // standard error may be closed
	if _, ok := errors.AsType[usageError](err); ok {
		return 2
	}
	return 1
}

// check panics if the component is wrong.
func (c *Component[O]) check() {
	fail := func(format string, args ...any) { panic("component: " + fmt.Sprintf(format, args...)) }
	if findOptions[Options](new(O)) == nil {
		fail("the options type %T does not embed component.Options: write component.Options as a field without a name in it", *new(O))
	}
	if c.Name == "" || len(c.Services) == 0 {
		fail("the component has no Name or no Services: set both")
	}
	var names []string
	for _, s := range c.Services {
		switch {
		case s.Name == "" || s.Wire == nil:
			fail("service %q has no Name or no Wire: set both", s.Name)
		case slices.Contains(names, s.Name):
			fail("two services have the name %s: rename one", s.Name)
		case slices.Contains(commandNames, s.Name) || s.Name == AllInOne:
			fail("service %s has the name of a command: rename it", s.Name)
		}
		names = append(names, s.Name)
	}
}

// migrations returns the migrations of the packages, then those of the component. If the component lists a package's
// migrations, they are in the result once.
func (c *Component[O]) migrations() []db.Migrations {
	own := slices.DeleteFunc(slices.Clone(c.Migrations), func(m db.Migrations) bool {
		return slices.ContainsFunc(packageMigrations, func(p db.Migrations) bool { return p.Name == m.Name })
	})
	return slices.Concat(packageMigrations, own)
}

// databaseFile returns the name of the SQLite file in the state path.
func (c *Component[O]) databaseFile() string { return cmp.Or(c.DatabaseFile, c.Name+".db") }

// address returns the address of the API, and the options that set the address. The address is "" if the options have
// none.
func (c *Component[O]) address(o *O) (addr string, options []string) {
	if c.Address != nil {
		return c.Address(o)
	}
	if a := findOptions[APIOptions](o); a != nil {
		return a.Listen, []string{"listen"}
	}
	return "", nil
}

// defaults returns the component's defaults.
func (c *Component[O]) defaults() map[string]string {
	out := map[string]string{"control_exchange": c.Name}
	maps.Copy(out, c.Defaults)
	return out
}

// quiet is a logger that discards everything. It is for commands, which return errors and do not
// log them.
var quiet = slog.New(slog.DiscardHandler)

// ExitError is an error of a command that ends the program with this code and without a message.
type ExitError int

func (c ExitError) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// usageError is an error of the command line: the exit code is 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }
