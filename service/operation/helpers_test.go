package operation_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/operation"
)

func TestMain(m *testing.M) {
	if os.Getenv("OPERATION_TEST_CHILD") == "deadline" {
		os.Exit(blocked())
	}
	if os.Getenv("OPERATION_TEST_CHILD") == "release" {
		os.Exit(blockedRelease())
	}
	if os.Getenv("OPERATION_TEST_CHILD") != "" {
		os.Exit(child())
	}
	goleak.VerifyTestMain(m)
}

// migrations are those of the library, then columns of a later release, and the table effects. So all tests also show that the library
// works with such columns.
var migrations = []db.Migrations{operation.Migrations, {Files: fstest.MapFS{
	"00002_next.sql": {Data: []byte(`
ALTER TABLE operations ADD COLUMN next_release VARCHAR(10);
ALTER TABLE operation_events ADD COLUMN next_release VARCHAR(10);
ALTER TABLE operation_leases ADD COLUMN next_release VARCHAR(10);`)},
	"00001_effects.sql": {Data: []byte(`
CREATE TABLE effects (operation_id VARCHAR(36) NOT NULL, step VARCHAR(64) NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (operation_id, step));`)},
}}}

type input struct {
	Size int    `json:"size"`
	Kept int    `json:"kept,omitempty"`
	Text string `json:"text,omitempty"`
}

var (
	create = operation.Kind[input]{Name: "disk.create", Timeout: time.Minute}
	remove = operation.Kind[input]{Name: "disk.delete", Timeout: time.Minute, Priority: 10, Preempts: true}
)

// journal records the calls of the steps, in order.
type journal struct {
	mu   sync.Mutex
	list []string
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.list = append(j.list, fmt.Sprintf(format, args...))
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.list, " ")
}

// bench is a runner with its own database.
type bench struct {
	*testing.T
	db     *sqlx.DB
	ops    *operation.Store
	runner *operation.Runner
	j      journal
}

func newBench(t *testing.T, d *sqlx.DB, cfg operation.RunnerConfig) *bench {
	t.Helper()
	b := &bench{T: t, db: d, ops: operation.NewStore(d)}
	cfg.Store, cfg.Host, cfg.Logger = b.ops, "h1", slog.New(slog.DiscardHandler)
	if cfg.Poll == 0 {
		cfg.Poll = 20 * time.Millisecond
	}
	b.runner = operation.NewRunner(cfg)
	return b
}

// start starts the runner, and stops it at the end of the test.
func (b *bench) start() {
	b.Helper()
	if err := b.runner.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := b.runner.Stop(context.Background()); err != nil {
			b.Error(err)
		}
	})
}

// step returns a step that records its calls in the journal, and returns the results of do and undo.
func (b *bench) step(name string, do, undo func(op *operation.Op) error) operation.Step[input] {
	if do == nil {
		return b.stepIn(name, nil, undo)
	}
	return b.stepIn(name, func(op *operation.Op, _ *input) error { return do(op) }, undo)
}

// stepIn does what step does, with a Do that gets the input.
func (b *bench) stepIn(name string, do func(op *operation.Op, in *input) error, undo func(op *operation.Op) error) operation.Step[input] {
	s := operation.Step[input]{Name: name, Do: func(ctx context.Context, op *operation.Op, in *input) error {
		b.j.add("%s(%d)", name, in.Size)
		if got := reqctx.From(ctx); !gocmp.Equal(got, asker) {
			b.Errorf("step %s is done for %+v, want %+v", name, got, asker)
		}
		if do != nil {
			return do(op, in)
		}
		return nil
	}}
	s.Undo = func(_ context.Context, op *operation.Op, in *input) error {
		b.j.add("-%s", name)
		if in.Kept > 0 {
			in.Kept += 5
		}
		if undo != nil {
			return undo(op)
		}
		return nil
	}
	return s
}

// asker is the request that begins the operations.
var asker = reqctx.Request{ID: "req-1", GlobalID: "req-0", Traceparent: "00-1-2-01", UserID: "u", ProjectID: "p"}

func (b *bench) begin(k operation.Kind[input], resource string) string {
	b.Helper()
	ctx := reqctx.With(b.Context(), asker)
	id, err := operation.Begin(ctx, b.ops, k, resource, &input{Size: 7})
	if err != nil {
		b.Fatal(err)
	}
	return id
}

func (b *bench) ends(id string, want operation.State) *operation.Operation {
	b.Helper()
	end := time.After(30 * time.Second)
	for {
		o, err := b.ops.Show(b.Context(), id)
		if err != nil {
			b.Fatal(err)
		}
		if o.State.Ended() {
			if o.State != want {
				b.Errorf("the operation ended as %s: %s; want %s", o.State, o.Error, want)
			}
			return o
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-end:
			b.Fatalf("the operation does not end: %+v", o)
		}
	}
}

func events(o *operation.Operation) string {
	var out []string
	for _, e := range o.Events {
		out = append(out, e.StepName+":"+e.Result)
	}
	return strings.Join(out, " ")
}

// once returns a list of calls or events. If many is true, it replaces equal entries in a row by one entry, and removes the retries, because
// their number depends on the time.
func once(list string, many bool) string {
	if !many {
		return list
	}
	out := slices.Compact(strings.Fields(strings.ReplaceAll(list, "c:not undone", "c:not_undone")))
	out = slices.DeleteFunc(out, func(s string) bool { return strings.HasSuffix(s, ":retry") })
	return strings.ReplaceAll(strings.Join(out, " "), "c:not_undone", "c:not undone")
}
