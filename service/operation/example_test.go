package operation_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"testing/fstest"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// Volume is the data of the examples' operations.
type Volume struct {
	SizeGiB int    `json:"size_gib"`
	Host    string `json:"host,omitempty"`
}

// openExample returns the operations in a database in memory, and a runner that is not started.
func openExample() (*sqlx.DB, *operation.Store, *operation.Runner) {
	ctx := context.Background()
	d, err := db.Open(ctx, db.Config{URL: "sqlite:///:memory:"})
	if err != nil {
		panic(err)
	}
	err = db.Migrate(ctx, d, fstest.MapFS{ // a component has these files among its own
		"00001_operation.sql": {Data: []byte(operation.Schema)}, "00002_operation.sql": {Data: []byte(operation.Schema2)}, "00003_operation.sql": {Data: []byte(operation.Schema3)},
	})
	if err != nil {
		panic(err)
	}
	ops := operation.NewStore(d)
	return d, ops, operation.NewRunner(operation.RunnerConfig{Store: ops, Host: "node-1", Poll: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
}

// awaitEnd begins an operation, runs it, and returns it when it has ended. A service adds the runner to its App instead.
func awaitEnd(ops *operation.Store, runner *operation.Runner, k operation.Kind[Volume], v *Volume) *operation.Operation {
	ctx := context.Background()
	id, err := operation.Begin(ctx, ops, k, "volume-1", v)
	if err != nil {
		panic(err)
	}
	if err := runner.Start(ctx); err != nil {
		panic(err)
	}
	defer func() { _ = runner.Stop(ctx) }()
	runner.Notify(id)
	for range time.Tick(5 * time.Millisecond) {
		o, err := ops.Show(ctx, id)
		if err != nil {
			panic(err)
		}
		if o.State.Ended() {
			return o
		}
	}
	panic("unreachable")
}

// Steps share data: each step finds the changes of the steps before.
func Example() {
	d, ops, runner := openExample()
	defer d.Close()
	grow := operation.Kind[Volume]{Name: "volume.create", Timeout: time.Minute}
	operation.Handle(runner, grow,
		operation.Step[Volume]{Name: "schedule", Do: func(_ context.Context, _ *operation.Op, v *Volume) error {
			v.Host = "node-7"
			return nil
		}},
		operation.Step[Volume]{Name: "build", Do: func(_ context.Context, op *operation.Op, v *Volume) error {
			fmt.Printf("%s: %d GiB on %s\n", op.Resource, v.SizeGiB, v.Host)
			return nil
		}})

	o := awaitEnd(ops, runner, grow, &Volume{SizeGiB: 10})
	fmt.Println(o.State)
	// Output:
	// volume-1: 10 GiB on node-7
	// succeeded
}

// After a step has failed, the runner undoes the steps that are done, the last step first.
func ExampleStep_undo() {
	d, ops, runner := openExample()
	defer d.Close()
	k := operation.Kind[Volume]{Name: "volume.create"}
	operation.Handle(runner, k,
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

	fmt.Println(awaitEnd(ops, runner, k, &Volume{}).State)
	// Output:
	// claimed
	// released because: the pool is full
	// failed
}

// Another process does the work of a step. With the token it asks whether the work is still wanted, and reports the result.
func ExampleRunner_End() {
	d, ops, runner := openExample()
	defer d.Close()
	k := operation.Kind[Volume]{Name: "volume.create"}
	messages := make(chan string, 10) // a cast to the host, in a service
	operation.Handle(runner, k, operation.Step[Volume]{
		Name: "build", Limit: time.Minute,
		Do: func(_ context.Context, op *operation.Op, _ *Volume) error {
			messages <- op.Token
			return operation.WaitFor("node-7", 15*time.Second) // then Do is called again
		},
		Reported: func(_ context.Context, _ *sqlx.Tx, op *operation.Op, _ *Volume, err error) error {
			fmt.Printf("%s was reported, error %v\n", op.Step, err)
			return nil // the step ends as reported
		},
	})
	go func() { // the host
		token := <-messages
		if errors.Is(ops.Wanted(context.Background(), token), operation.ErrStale) {
			return
		}
		fmt.Println("building")
		if err := runner.End(context.Background(), token, nil); err != nil {
			log.Print(err)
		}
	}()

	fmt.Println(awaitEnd(ops, runner, k, &Volume{}).State)
	// Output:
	// building
	// build was reported, error <nil>
	// succeeded
}

// The function of OnEnd writes in the transaction in which the operation ends, after success and after failure.
func ExampleOnEnd() {
	d, ops, runner := openExample()
	defer d.Close()
	k := operation.Kind[Volume]{Name: "volume.create"}
	operation.Handle(runner, k, operation.Step[Volume]{Name: "build", Do: func(context.Context, *operation.Op, *Volume) error {
		return errors.New("disk on fire")
	}})
	operation.OnEnd(runner, k, func(_ context.Context, _ *sqlx.Tx, op *operation.Op, _ *Volume) error {
		fmt.Printf("UPDATE volumes SET status = 'error' -- %s: %v\n", op.State, op.Err) // by tx, in a component
		return nil
	})

	awaitEnd(ops, runner, k, &Volume{})
	// Output:
	// UPDATE volumes SET status = 'error' -- failed: disk on fire
}

// A step defines which errors are retried, and how often.
func ExampleRetry() {
	d, ops, runner := openExample()
	defer d.Close()
	k := operation.Kind[Volume]{Name: "volume.attach"}
	operation.Handle(runner, k, operation.Step[Volume]{
		Name:  "attach",
		Retry: operation.Retry{Codes: []fault.Code{fault.Conflict}, Max: 5, MinDelay: time.Millisecond},
		Do: func(_ context.Context, op *operation.Op, _ *Volume) error {
			if op.Attempt < 2 {
				return fault.New(fault.Conflict, "the device is busy")
			}
			return nil
		},
	})

	o := awaitEnd(ops, runner, k, &Volume{})
	for _, e := range o.Events {
		fmt.Println(e.Step, e.Result, e.Error)
	}
	// Output:
	// attach retry the device is busy
	// attach retry the device is busy
	// attach done
}

// A step sends its operation back to an earlier step, because the chosen host has failed.
func ExampleGoTo() {
	d, ops, runner := openExample()
	defer d.Close()
	k := operation.Kind[Volume]{Name: "volume.create"}
	operation.Handle(runner, k,
		operation.Step[Volume]{Name: "schedule", Do: func(_ context.Context, _ *operation.Op, v *Volume) error {
			v.Host = map[string]string{"": "node-1", "node-1": "node-2"}[v.Host]
			return nil
		}},
		operation.Step[Volume]{Name: "build", Do: func(_ context.Context, _ *operation.Op, v *Volume) error {
			if v.Host == "node-1" {
				return operation.GoTo("schedule", 3, errors.New("disk on fire"))
			}
			return nil
		}})

	o := awaitEnd(ops, runner, k, &Volume{})
	fmt.Println(o.State, string(o.Data))
	// Output:
	// succeeded {"size_gib":0,"host":"node-2"}
}

// One process at a time does periodic work.
func ExampleLeader() {
	d, ops, _ := openExample()
	defer d.Close()
	for _, host := range []string{"node-1", "node-2"} {
		leader := operation.NewLeader(operation.LeaderConfig{Store: ops, Name: "audit", Host: host})
		audit := leader.Only(func(_ context.Context, fence int64) error {
			fmt.Println(host, "leads with fencing token", fence)
			return nil
		})
		if err := audit(context.Background()); err != nil { // service.Loop calls it
			log.Print(err)
		}
	}
	// Output:
	// node-1 leads with fencing token 1
}
