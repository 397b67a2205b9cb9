package operation_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing/fstest"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/operation"
)

// Attach is a kind of operation. All processes of the component share this variable.
var Attach = operation.Kind[Volume]{Name: "volume.attach", Timeout: time.Minute}

// tables are the migrations of the library and of the component. In a component the migrations are files, see [db.Embedded].
var tables = []db.Migrations{operation.Migrations, {Files: fstest.MapFS{
	"00001_volumes.sql": {Data: []byte("CREATE TABLE volumes (id VARCHAR(36) NOT NULL PRIMARY KEY, status VARCHAR(20) NOT NULL);\n")},
}}}

// newRunner returns a runner that knows the steps of all kinds. A process that runs operations adds the runner to its App. A
// process that only reports, with EndStep, needs a runner with the same kinds, and does not start it.
func newRunner(ops *operation.Store, host string, messages chan<- string) *operation.Runner {
	r := operation.NewRunner(operation.RunnerConfig{Store: ops, Host: host, Logger: slog.New(slog.DiscardHandler)})
	operation.Handle(r, Attach, operation.Step[Volume]{
		Name: "attach", Limit: time.Minute,
		Do: func(_ context.Context, op *operation.Op, _ *Volume) error {
			messages <- op.Token // in a component, a cast to the host that does the work
			return operation.WaitFor("node-7", 15*time.Second)
		},
	})
	operation.OnEnd(r, Attach, func(ctx context.Context, tx *sqlx.Tx, op *operation.Op, _ *Volume) error {
		_, err := db.Exec(ctx, tx, `UPDATE volumes SET status = ? WHERE id = ?`, string(op.State), op.Resource)
		return err
	})
	return r
}

// This is a whole component: its tables, a runner in one process, and a report from another process.
func Example_setup() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	d, err := db.Open(ctx, db.Config{URL: "sqlite:///:memory:"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	ops, messages := operation.NewStore(d), make(chan string, 1)
	runner := newRunner(ops, "conductor-1", messages)

	app := service.New(service.Config{Name: "volume-conductor", NoSignals: true, Logger: slog.New(slog.DiscardHandler)})
	app.Add("tables", service.Funcs{OnStart: func(ctx context.Context) error { return db.Migrate(ctx, d, tables...) }})
	app.Add("operations", runner) // after the part with the database that it needs
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx) }()
	<-app.Started()

	// The API: the change and its operation in one transaction, then a notification.
	var id string
	err = db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) (err error) {
		if _, err = db.Exec(ctx, tx, `INSERT INTO volumes (id, status) VALUES ('volume-1', 'attaching')`); err != nil {
			return err
		}
		id, err = operation.Begin(ctx, ops, Attach, "volume-1", &Volume{SizeGiB: 10})
		return err
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	runner.Notify(id)

	// Another process, such as the RPC server that the host calls, reports with its own runner, which is not started.
	reporter := newRunner(ops, "conductor-2", messages)
	fmt.Println("report:", reporter.EndStep(ctx, <-messages, "node-7", nil))

	var status string
	err = d.GetContext(ctx, &status, `SELECT status FROM volumes`)
	fmt.Println(status, err)
	stop()
	fmt.Println("stopped:", <-ended)
	// Output:
	// report: <nil>
	// succeeded <nil>
	// stopped: <nil>
}
