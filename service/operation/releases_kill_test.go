package operation_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/operation"
)

// killedRelease returns a runner of the next release. The function fresh is the work of the step "new", which this release does not
// know.
func killedRelease(d *sqlx.DB, fresh func(ctx context.Context) error) (*operation.Runner, operation.Kind[input]) {
	kind := create
	kind.Version = 1
	r := operation.NewRunner(operation.RunnerConfig{Store: operation.NewStore(d), Host: "next", Lease: releaseLease, Poll: 50 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	operation.Handle(r, kind, operation.Step[input]{Name: "a", Do: func(context.Context, *operation.Op, *input) error { return nil }},
		operation.Step[input]{Name: "new", Do: func(ctx context.Context, _ *operation.Op, _ *input) error { return fresh(ctx) }})
	return r, kind
}

// blockedRelease is the main function of a process of the next release. The process runs an operation until the process is killed.
func blockedRelease() int {
	ctx := context.Background()
	d, err := db.Open(ctx, db.Config{URL: os.Getenv("OPERATION_TEST_URL")})
	if err == nil {
		r, kind := killedRelease(d, func(ctx context.Context) error {
			fmt.Println("asks")
			<-ctx.Done()
			return ctx.Err()
		})
		if err = r.Start(ctx); err == nil {
			var id string
			if id, err = operation.Begin(ctx, operation.NewStore(d), kind, "", &input{}); err == nil {
				fmt.Println("id", id)
				r.Notify(id)
				select {}
			}
		}
	}
	fmt.Println("error:", err)
	return 1
}

// TestKilledRelease: a process of the next release is killed in a step that this release does not know. This release does not
// touch the operation, and a process of the next release continues it.
func TestKilledRelease(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("kills a process: left out with -short")
	}
	dbtest.EachURL(t, func(t *testing.T, url string) {
		d, id := killAsking(t, url, "release")
		this, _ := release(t, d, 0, "a")
		this.start()
		waittest.Until(t, "the mark of an operation that no running process knows", func() bool { return this.runner.Stats().Unknown == 1 })
		waiting, err := this.ops.List(t.Context(), operation.Filter{Open: true})
		if err != nil || len(waiting) != 1 || waiting[0].Owner != "" || waiting[0].UnknownSince == nil {
			t.Errorf("%+v, %v; want an operation that waits, and not the killed process as its owner", waiting, err)
		}
		if o, err := this.ops.Show(t.Context(), id); err != nil || o.State != operation.Running || o.StepName != "new" || events(o) != "a:done" {
			t.Fatalf("the operation is %+v, %v", o, err)
		}
		next, _ := killedRelease(d, func(context.Context) error { return nil })
		if err := next.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer next.Stop(context.WithoutCancel(t.Context()))
		if o := this.ends(id, operation.Succeeded); events(o) != "a:done new:done" {
			t.Errorf("events %s", events(o))
		}
	})
}
