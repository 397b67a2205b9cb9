package operation_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// Volume is the data of the operations in the examples.
type Volume struct {
	SizeGiB int    `json:"size_gib"`
	Host    string `json:"host,omitempty"`
}

// openExample returns an in-memory database, the store of its operations, and a runner that is not started. The caller must
// close the database.
func openExample() (*sqlx.DB, *operation.Store, *operation.Runner) {
	ctx := context.Background()
	database, err := db.Open(ctx, db.Config{URL: "sqlite:///:memory:"})
	if err != nil {
		panic(err)
	}
	if err = db.Migrate(ctx, database, operation.Migrations); err != nil { // a component adds its own migrations
		panic(err)
	}
	ops := operation.NewStore(database)
	return database, ops, operation.NewRunner(operation.RunnerConfig{Store: ops, Host: "node-1", Poll: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
}

// awaitEnd begins an operation, runs it, and returns it when it has ended. In a service, the App starts the runner instead.
func awaitEnd(ops *operation.Store, runner *operation.Runner, kind operation.Kind[Volume], v *Volume) *operation.Operation {
	ctx := context.Background()
	id, err := operation.Begin(ctx, ops, kind, "volume-1", v)
	if err != nil {
		panic(err)
	}
	if err := runner.Start(ctx); err != nil {
		panic(err)
	}
	defer func() { _ = runner.Stop(ctx) }()
	runner.Notify(id)
	for range time.Tick(5 * time.Millisecond) {
		op, err := ops.Show(ctx, id)
		if err != nil {
			panic(err)
		}
		if op.State.Ended() {
			return op
		}
	}
	panic("unreachable")
}

// Steps share data: each step gets the changes of the previous steps.
func Example() {
	database, ops, runner := openExample()
	defer database.Close()
	kind := operation.Kind[Volume]{Name: "volume.create", Timeout: time.Minute}
	operation.Handle(runner, kind,
		operation.Step[Volume]{Name: "schedule", Do: func(_ context.Context, _ *operation.Op, v *Volume) error {
			v.Host = "node-7"
			return nil
		}},
		operation.Step[Volume]{Name: "build", Do: func(_ context.Context, op *operation.Op, v *Volume) error {
			fmt.Printf("%s: %d GiB on %s\n", op.Resource, v.SizeGiB, v.Host)
			return nil
		}})

	ended := awaitEnd(ops, runner, kind, &Volume{SizeGiB: 10})
	fmt.Println(ended.State)
	// Output:
	// volume-1: 10 GiB on node-7
	// succeeded
}

// After a step has failed, the runner undoes the completed steps: it calls the Undo of each, beginning with the last step.
func ExampleStep_undo() {
	database, ops, runner := openExample()
	defer database.Close()
	kind := operation.Kind[Volume]{Name: "volume.create"}
	operation.Handle(runner, kind,
		operation.Step[Volume]{
			Name: "claim",
			Do:   func(context.Context, *operation.Op, *Volume) error { fmt.Println("claimed"); return nil },
			Undo: func(_ context.Context, op *operation.Op, _ *Volume) error {
				fmt.Println("released because:", op.Err)
				return nil
			},
		},
		operation.Step[Volume]{Name: "build", Do: func(context.Context, *operation.Op, *Volume) error {
			return fault.New(fault.Exhausted, "the pool is full")
		}})

	fmt.Println(awaitEnd(ops, runner, kind, &Volume{}).State)
	// Output:
	// claimed
	// released because: the pool is full
	// failed
}

// Another process does the work of a step. It gets the step's token, asks with Wanted whether the work is still needed, and
// reports the result with EndStep.
func ExampleRunner_EndStep() {
	database, ops, runner := openExample()
	defer database.Close()
	kind := operation.Kind[Volume]{Name: "volume.create"}
	messages := make(chan string, 10) // in a service, rpc.Cast sends the message to the host
	operation.Handle(runner, kind, operation.Step[Volume]{
		Name: "build", Limit: time.Minute, // the limit for the whole step, with all attempts and waits
		Do: func(_ context.Context, op *operation.Op, _ *Volume) error {
			messages <- op.Token
			return operation.WaitFor("node-7", 15*time.Second) // without a report, Do is called again after 15 s
		},
		Reported: func(_ context.Context, _ *sqlx.Tx, op *operation.Op, _ *Volume, err error) error {
			fmt.Printf("%s was reported, error %v\n", op.StepName, err)
			return nil // the step ends as the report says
		},
	})
	go func() { // this goroutine stands for the host
		token := <-messages
		if errors.Is(ops.Wanted(context.Background(), token, "node-7"), operation.ErrStale) {
			return
		}
		fmt.Println("building")
		if err := runner.EndStep(context.Background(), token, "node-7", nil); err != nil {
			log.Print(err)
		}
	}()

	fmt.Println(awaitEnd(ops, runner, kind, &Volume{}).State)
	// Output:
	// building
	// build was reported, error <nil>
	// succeeded
}

// The function of OnEnd writes in the transaction in which the operation ends, after success and after failure.
func ExampleOnEnd() {
	database, ops, runner := openExample()
	defer database.Close()
	kind := operation.Kind[Volume]{Name: "volume.create"}
	operation.Handle(runner, kind, operation.Step[Volume]{Name: "build", Do: func(context.Context, *operation.Op, *Volume) error {
		return errors.New("disk on fire")
	}})
	operation.OnEnd(runner, kind, func(_ context.Context, _ *sqlx.Tx, op *operation.Op, _ *Volume) error {
		fmt.Printf("UPDATE volumes SET status = 'error' -- %s: %v\n", op.State, op.Err) // a component uses tx for this
		return nil
	})

	awaitEnd(ops, runner, kind, &Volume{})
	// Output:
	// UPDATE volumes SET status = 'error' -- failed: disk on fire
}

// A step defines after which errors it is retried, and how often.
func ExampleRetry() {
	database, ops, runner := openExample()
	defer database.Close()
	kind := operation.Kind[Volume]{Name: "volume.attach"}
	operation.Handle(runner, kind, operation.Step[Volume]{
		Name:  "attach",
		Retry: operation.Retry{Codes: []fault.Code{fault.Conflict}, Max: 5, MinDelay: time.Millisecond},
		Do: func(_ context.Context, op *operation.Op, _ *Volume) error {
			if op.Attempt < 2 {
				return fault.New(fault.Conflict, "the device is busy")
			}
			return nil
		},
	})

	ended := awaitEnd(ops, runner, kind, &Volume{})
	for _, e := range ended.Events {
		fmt.Println(e.StepName, e.Result, e.Error)
	}
	// Output:
	// attach retry the device is busy
	// attach retry the device is busy
	// attach done
}

// A step sends its operation back to an earlier step, because the chosen host has failed.
func ExampleGoTo() {
	database, ops, runner := openExample()
	defer database.Close()
	kind := operation.Kind[Volume]{Name: "volume.create"}
	operation.Handle(runner, kind,
		operation.Step[Volume]{Name: "schedule", Do: func(_ context.Context, _ *operation.Op, v *Volume) error {
			v.Host = map[string]string{"": "node-1", "node-1": "node-2"}[v.Host]
			return nil
		}},
		operation.Step[Volume]{Name: "build", Do: func(_ context.Context, _ *operation.Op, v *Volume) error {
			if v.Host == "node-1" {
				return operation.GoTo("schedule", 3, errors.New("disk on fire")) // at most 3 times
			}
			return nil
		}})

	ended := awaitEnd(ops, runner, kind, &Volume{})
	fmt.Println(ended.State, string(ended.Data))
	// Output:
	// succeeded {"size_gib":0,"host":"node-2"}
}

// Each host has a Leader. Only the Leader that holds the lease calls its function, so node-2 does nothing here.
func ExampleLeader() {
	database, ops, _ := openExample()
	defer database.Close()
	for _, host := range []string{"node-1", "node-2"} {
		leader := operation.NewLeader(operation.LeaderConfig{Store: ops, Name: "audit", Host: host})
		audit := leader.Only(func(_ context.Context, token int64) error {
			fmt.Println(host, "leads with fencing token", token)
			return nil
		})
		if err := audit(context.Background()); err != nil { // service.Loop calls it
			log.Print(err)
		}
	}
	// Output:
	// node-1 leads with fencing token 1
}
