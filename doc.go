// Package armature is the root of a module of packages for building OpenStack-like components: services that accept requests,
// choose hosts, and do the work on these hosts through drivers. This package has no code. Its documentation is a tour of the
// packages; the documentation of each package has the contracts.
//
// The example is a component that backs up volumes. Its services share one package of plain declarations.
//
// # fault: errors that survive every boundary
//
// An error that a caller may act on has a code, and, where the code is too coarse, a reason. An RPC carries both, and package
// api maps the code to an HTTP status. errors.Is works on both sides of an RPC.
//
//	var ErrFull = fault.Sentinel(fault.Exhausted, "DiskFull", "the disk is full")
//
//	func retry(err error) bool {
//		return errors.Is(err, fault.Unavailable) || errors.Is(err, ErrFull)
//	}
//
// # reqctx: the request and its user
//
// The context carries the request's id and its user from the API service to the worker service, and into each log line.
//
//	func logger() *slog.Logger {
//		return slog.New(reqctx.LogHandler(slog.NewJSONHandler(os.Stderr, nil)))
//	}
//
//	func nightly(ctx context.Context) context.Context {
//		return reqctx.With(ctx, reqctx.Request{ID: reqctx.NewID(), UserID: "cron", ProjectID: "backup"})
//	}
//
// # rpc: calls over a message bus
//
// A method is one value that both sides import, so that names and types always agree. Each method declares its delivery:
// [rpc.AtMostOnce] for calls, whose caller waits for the result, [rpc.AtLeastOnce] for messages that must not be lost.
//
//	type Request struct{ Volume string }
//	type Result struct{ GiB int }
//
//	var Backup = &rpc.Interface{Name: "backup", Version: rpc.Version{Major: 1}}
//	var Size = rpc.Define(rpc.Method[Request, Result]{Interface: Backup, Name: "size", Since: rpc.Version{Major: 1}})
//	var Start = rpc.Define(rpc.Method[Request, rpc.None]{Interface: Backup, Name: "start", Since: rpc.Version{Major: 1}, Delivery: rpc.AtLeastOnce})
//
//	func server(on bus.Bus, host string) *rpc.Server {
//		srv := rpc.NewServer(on, rpc.ServerConfig{Interface: Backup, Host: host})
//		rpc.Handle(srv, Size, func(_ context.Context, req *Request) (*Result, error) {
//			return nil, fmt.Errorf("volume %s: %w", req.Volume, ErrFull)
//		})
//		rpc.Handle(srv, Start, func(context.Context, *Request) (*rpc.None, error) { return &rpc.None{}, nil })
//		return srv
//	}
//
//	func client(ctx context.Context, c *rpc.Client, host string) error {
//		if err := rpc.Cast(ctx, c, Start, host, &Request{Volume: "photos"}); err != nil { // one way
//			return err
//		}
//		pending, err := rpc.Go(ctx, c, Size, host, &Request{Volume: "photos"}) // the result comes later
//		if err != nil {
//			return err
//		}
//		result, err := rpc.Call(ctx, c, Size, rpc.Any, &Request{Volume: "films"}) // wait for it
//		_, _ = result, pending
//		return err
//	}
//
// A bus carries the messages: package membus inside one process, package amqpbus over RabbitMQ, package natsbus over NATS. In a
// test, one call of package rpctest creates a server and its client.
//
//	func openBus(urls []string) (bus.Bus, error) {
//		if len(urls) == 0 {
//			return membus.New(), nil
//		}
//		return amqpbus.New(amqpbus.Config{URLs: urls, Exchange: "backup"})
//	}
//
// # scheduler: choosing a host
//
// Filters reject hosts. The reason has the numbers: "needs 5 GiB, 3 GiB free". Weighers rank the feasible hosts. The decision is data:
// it has the scores or the rejection reason of every host.
//
//	type Node struct {
//		Host string
//		Free int
//	}
//
//	func (n *Node) Name() string { return n.Host }
//
//	func rank(ctx context.Context, gib int, nodes []*Node) (*scheduler.Decision[*Node], error) {
//		s, err := scheduler.New(scheduler.Config[int, *Node]{
//			Filters: []scheduler.Filter[int, *Node]{
//				scheduler.FilterFunc("room", func(gib int, n *Node) scheduler.Verdict {
//					if n.Free < gib {
//						return scheduler.Reject("needs %d GiB, %d GiB free", gib, n.Free)
//					}
//					return scheduler.Pass
//				}),
//			},
//			Weighers: []scheduler.Weighted[int, *Node]{{
//				Weigher:    scheduler.WeigherFunc("free", func(_ int, n *Node) float64 { return float64(n.Free) }),
//				Multiplier: 1,
//			}},
//		})
//		if err != nil {
//			return nil, err
//		}
//		return s.Rank(ctx, gib, nodes) // ErrNoValidHost: "no valid host: 0 of 4 hosts: 4 room"
//	}
//
// Package placement has the filters and weighers of Nova and Cinder, and claims. A claim reserves resources of the chosen host in
// one transaction, so that two schedulers cannot claim the same capacity. All filters and weighers accept a host that embeds a
// placement.Provider.
//
//	func claim(ctx context.Context, s placement.Store, volume, node string, gib int64) error {
//		return s.Claim(ctx, placement.Claim{ // ErrNoRoom: try the next host
//			Consumer:    volume,
//			Allocations: []placement.Allocation{{Provider: node, Resources: map[string]int64{"DISK_GB": gib}}},
//		})
//	}
//
// # driver: many technologies behind one interface
//
// A component embeds [driver.Driver] in the interface that its vendors implement. One option names the driver: a built-in driver, or
// a vendor's program in any language that has gRPC, which is supervised and restarted.
//
//	type Store interface {
//		driver.Driver
//
//		Put(ctx context.Context, volume string) error
//	}
//
//	func open(kind driver.Kind[Store], name string, fake func(context.Context, json.RawMessage) (Store, error)) (*driver.Plugin[Store], error) {
//		var drivers driver.Registry[Store]
//		drivers.Add("fake", fake)
//		return drivers.New(kind, name, driver.PluginConfig{Dir: "/usr/lib/backup/plugins", Options: json.RawMessage(`{"dir": "/var/lib/backup"}`)})
//	}
//
// # db: MySQL, or SQLite in one process
//
// A program imports db/mysqldb, db/sqlitedb or both. The handle is a *sqlx.DB. A transaction runs again if the database has aborted it because of another transaction. Errors have
// codes.
//
//	func database(ctx context.Context, url string, own db.Migrations) (*sqlx.DB, error) {
//		d, err := db.Open(ctx, db.Config{URL: url}) // mysql://user:password@host/backup, sqlite:///path/backup.db
//		if err != nil {
//			return nil, err
//		}
//		return d, db.Migrate(ctx, d, operation.Migrations, own) // the tables of the packages, then the component's
//	}
//
//	func claimSpace(ctx context.Context, d *sqlx.DB, host string, gib int) error {
//		return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
//			return db.ExecOne(ctx, tx, ErrFull, `UPDATE nodes SET free = free - ? WHERE host = ? AND free >= ?`, gib, host, gib)
//		})
//	}
//
// A change of state is a compare-and-swap. A list is read in pages, and every page costs the same. docs/database.md describes the
// rest: replicas, history, upgrades.
//
//	func remove(ctx context.Context, d *sqlx.DB, volume string) error {
//		return db.UpdateIf(ctx, d, db.Update{ // Conflict: "volumes id=photos: status is in-use, want available"
//			Table: "volumes",
//			Key:   db.Values{"id": volume},
//			If:    db.Values{"status": "available"},
//			Set:   db.Values{"status": "deleting"},
//		})
//	}
//
//	func list(ctx context.Context, d *sqlx.DB, marker string) (volumes []Request, more bool, err error) {
//		return db.List[Request](ctx, d, db.Page{From: "volumes", Columns: "id AS volume", Key: "id", Marker: marker, Limit: 100})
//	}
//
// # service: the life of a process
//
// Parts start in order. On SIGTERM they stop in reverse order, under one deadline, after running work has ended. Package config
// reads the options, package api serves REST.
//
//	type Options struct {
//		Driver string `ini:"backup_driver" default:"fake" help:"where backups go"`
//	}
//
//	func run(ctx context.Context, srv *rpc.Server, report func(context.Context) error) error {
//		var opts Options
//		if err := config.Load(&opts, config.Source{Env: os.Environ()}); err != nil {
//			return err
//		}
//		app := service.New(service.Config{Name: "backup", Logger: logger()})
//		mux := api.New(api.Config{})
//		mux.Health(app.Ready)
//		api.Handle(mux, "GET /volumes/{id}", func(_ context.Context, r *api.Request[api.None]) (Request, error) {
//			return Request{Volume: r.PathValue("id")}, nil
//		})
//		app.Add("rpc", srv) // started first, stopped last
//		app.Add("report", service.Loop(time.Minute, report))
//		app.Add("http", service.HTTP(":8080", mux))
//		return app.Run(ctx)
//	}
//
// # service/auth and service/policy: identity and permissions
//
// Package auth identifies the client, by Keystone or by static tokens. Package policy decides what the client may do, by rules in
// oslo.policy's language. The rules are in the code, and an operator's file can replace them.
//
//	func newAPI(app *service.App, k *auth.Keystone) (*api.Mux, error) {
//		rules, err := policy.New([]policy.Rule{
//			{Name: "backup:show", Check: "role:admin or project_id:%(project_id)s", Description: "Show a backup"},
//		}, policy.Config{File: "/etc/backup/policy.yaml"})
//		if err != nil {
//			return nil, err
//		}
//		app.Add("policy", rules) // reloaded on SIGHUP
//		app.Add("keystone", k)   // ready when Keystone answers
//		mux := api.New(api.Config{
//			Authenticate: k.Authenticate, Challenge: k.Challenge(), Enforce: rules.Enforce,
//			Microversions: &api.Microversions{Service: "backup", Min: "1.0", Max: "1.7", Prefix: "/v1"},
//		})
//		api.HandleRoute(mux, api.Route{
//			Pattern: "GET /v1/backups", Min: "1.4", Rule: "backup:show",
//			Query: []api.Schema{{JSON: `{"type": "object", "properties": {"limit": {"type": "integer", "minimum": 0}}}`}},
//		}, func(context.Context, *api.Request[api.None]) ([]Request, error) { return nil, nil })
//		return mux, nil
//	}
//
// # service/membership and service/operation: services that are up, and work that always ends
//
// A service is a member, and is up while its heartbeats arrive, by the database's clock. An accepted request is an operation: a row
// that is written in the transaction of the change. If the process that runs an operation dies, another process continues it.
//
//	var Archive = operation.Kind[Request]{Name: "backup.archive", Timeout: time.Hour}
//
//	func accept(ctx context.Context, ops *operation.Store, runner *operation.Runner, volume string) error {
//		id, err := operation.Begin(ctx, ops, Archive, volume, &Request{Volume: volume}) // in the transaction of ctx, if it has one
//		if err == nil {
//			runner.Notify(id)
//		}
//		return err
//	}
//
//	func work(app *service.App, d *sqlx.DB, runner *operation.Runner, copyIt, free func(context.Context, *operation.Op, *Request) error) {
//		operation.Handle(runner, Archive, operation.Step[Request]{Name: "copy", Do: copyIt, Undo: free})
//		members := membership.New(membership.Config{DB: d})
//		app.Add("member", members.Member(membership.MemberConfig{Self: membership.Self{Kind: "backup", Host: "node-1", Version: 3}}))
//		app.Add("operations", runner)
//	}
//
// # service/quota: what a project may use
//
// A claim counts in the transaction that writes the component's row, so that a limit holds with any number of API processes.
//
//	func useQuota(ctx context.Context, tx *sqlx.Tx, q *quota.Store, id, project string, size int64) error {
//		return q.Reserve(ctx, tx, quota.Claim{Consumer: id, Project: project, Amounts: map[string]int64{"backups": 1, "gigabytes": size}})
//	}
//
// # component: the process
//
// Package component adds options, commands for operators, metrics and traces, and starts all parts in the right order. It
// links every package above.
//
//	func program(wire func(context.Context, *component.Process[component.Options]) error) {
//		component.Main(component.Component[component.Options]{
//			Name: "backup", Short: "Backs up volumes", Services: []component.Service[component.Options]{{Name: "worker", Short: "Copy", Wire: wire}},
//		})
//	}
//
// docs/tutorial.md builds a component from an empty directory. examples/hello is a whole component in one file. examples/nova-mini is a
// component with all that production needs. docs/architecture.md has the picture.
package armature
