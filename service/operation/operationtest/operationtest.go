// Package operationtest runs an operation of a component in a test, and kills the process that runs it at each place.
//
//	operationtest.Run(t, func(t testing.TB) operationtest.Scenario {
//		disks := newFakeDisks()
//		return operationtest.Scenario{
//			Migrations: []db.Migrations{db.Embedded("", migrations)},
//			Register:   func(r *operation.Runner, d *sqlx.DB) { (&conductor{db: d, disks: disks}).register(r) },
//			Begin: func(ctx context.Context, d *sqlx.DB) (string, error) {
//				return operation.Begin(ctx, operation.NewStore(d), createKind, "disk-1", &work{Size: 1})
//			},
//			Check: func(t testing.TB, op operation.Operation, d *sqlx.DB) {
//				if op.State != operation.Succeeded || disks.count() != 1 {
//					t.Errorf("%s, %d disks", op.State, disks.count())
//				}
//			},
//		}
//	})
//
// A step that takes effect twice when it is repeated, or that forgets what it has done, fails such a test.
package operationtest

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	_ "github.com/armature-go/armature/db/sqlitedb" // the database of a scenario
	"github.com/armature-go/armature/service/operation"
)

// Scenario is one operation with the world that it changes. All fields but Migrations are required.
type Scenario struct {
	// Migrations are the component's own. Those of package operation come first by themselves.
	Migrations []db.Migrations
	// Register gives the steps to a runner, as the component does. It is called once for each runner, with the runner's handle on the database.
	Register func(r *operation.Runner, d *sqlx.DB)
	// Begin begins the operation and returns its ID.
	Begin func(ctx context.Context, d *sqlx.DB) (id string, err error)
	// Check judges how the operation has ended, and what it has left.
	Check func(t testing.TB, op operation.Operation, d *sqlx.DB)
}

const (
	maxPlaces = 1000             // places at which a process is killed
	timeout   = 24 * time.Hour   // of the fake clock
	lease     = 15 * time.Second // of the fake clock
)

// Run runs a scenario without a failure, and then once for each statement of the runner on the database: there the process of the runner is
// killed, and another one continues. fresh returns a new scenario for each run, with a world of its own, such as a driver.
//
// Each run has a new SQLite database, and runs in a bubble of testing/synctest, so leases and delays take no time. For that, the steps must not
// use the network, and fresh, Register and Check must not start goroutines that outlive the run. A process that is killed loses its database at
// once; a step that runs at this moment runs until it returns, and its effect outside of the database stays, as that of a step whose process
// was killed just after it. Steps of different places are repeated in different runs, so that each step is repeated at least once.
func Run(t *testing.T, fresh func(t testing.TB) Scenario) {
	t.Helper()
	for place := range maxPlaces {
		var over bool
		// Place 0 is no place.
		ok := t.Run("place "+strconv.Itoa(place), func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "operation.db") // outside of the bubble, because it is removed after the bubble
			synctest.Test(t, func(t *testing.T) { over = runOnce(t, fresh(t), "sqlite://"+file, place) })
		})
		if !ok || place > 0 && over {
			return
		}
	}
	t.Fatalf("the operation has not ended after %d statements: does a step repeat itself?", maxPlaces)
}

// runOnce runs a scenario, and kills the runner at a place. over means that the operation ended before.
func runOnce(t *testing.T, s Scenario, url string, place int) (over bool) {
	t.Helper()
	ctx := t.Context()
	d, err := db.Open(ctx, db.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // the file is removed
	if err := db.Migrate(ctx, d, slices.Concat([]db.Migrations{operation.Migrations}, s.Migrations)...); err != nil {
		t.Fatal(err)
	}
	id, err := s.Begin(ctx, d)
	if err != nil {
		t.Fatalf("begin: %v", err)
	}
	killed := make(chan string, 1)
	op, over := runUntilEnd(t, s, url, id, place, killed)
	if !over {
		t.Logf("killed at: %s", <-killed)
		op, over = runUntilEnd(t, s, url, id, 0, nil)
		if !over {
			t.Fatal("the second runner was killed, too")
		}
		over = false
	}
	s.Check(t, op, d)
	return over
}

// runUntilEnd runs a runner until the operation has ended or, if place is not 0, until the runner is killed at a place.
func runUntilEnd(t *testing.T, s Scenario, url, id string, place int, killed chan string) (op operation.Operation, over bool) {
	t.Helper()
	k := &killer{place: place, at: killed}
	d, err := db.Open(t.Context(), db.Config{URL: url, Observe: k.observe})
	if err != nil {
		t.Fatal(err)
	}
	k.arm(d)
	watch, err := db.Open(t.Context(), db.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	r := operation.NewRunner(operation.RunnerConfig{Store: operation.NewStore(d), Host: "host-" + strconv.Itoa(place), Lease: lease, Logger: slog.New(slog.DiscardHandler)})
	s.Register(r, d)
	if err := r.Start(t.Context()); err != nil && !k.dead() {
		t.Fatal(err)
	}
	defer func() {
		synctest.Wait()                 // a step that runs has returned
		_ = r.Stop(t.Context())         // the runner of a killed process cannot end in order
		_, _ = d.Close(), watch.Close() // both are closed, or were only read
	}()
	r.Notify(id)
	for end := time.Now().Add(timeout); ; time.Sleep(time.Second) { //nolint:forbidigo // in a bubble
		if k.dead() {
			return op, false
		}
		one, err := operation.NewStore(watch).Show(t.Context(), id)
		switch {
		case err != nil:
			t.Fatal(err)
		case one.State.Ended():
			return *one, true
		case time.Now().After(end):
			t.Fatalf("the operation has not ended within %s: %s, step %s, %d attempts, last error: %s", timeout, one.State, one.StepName, one.Attempts, one.Error)
		}
	}
}

// killer closes the database of a runner at a statement.
type killer struct {
	place int
	at    chan string

	mu    sync.Mutex
	d     *sqlx.DB // nil: statements are not counted yet
	count int
	gone  bool
}

// arm begins to count.
func (k *killer) arm(d *sqlx.DB) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.d = d
}

func (k *killer) dead() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.gone
}

// observe counts a statement, and closes the database if it is the one.
func (k *killer) observe(_ context.Context, query string) func(error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.d == nil || k.place == 0 || k.gone {
		return func(error) {}
	}
	if k.count++; k.count == k.place {
		k.gone = true
		k.at <- query
		_ = k.d.Close() // transactions that run are not affected, and nothing begins any more
	}
	return func(error) {}
}
