// Package operationtest runs an operation of a component in a test, and kills the process that runs the operation at each possible place.
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
// The test fails if a repeated step takes effect a second time, or loses the result of its first call.
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

// Scenario is one operation, and the things that it changes. All fields except Migrations are required.
type Scenario struct {
	// Migrations are the component's own migrations. Run adds those of package operation before them.
	Migrations []db.Migrations
	// Register sets the steps on a runner, as the component does. It is called once for each runner, with the runner's handle on the database.
	Register func(r *operation.Runner, d *sqlx.DB)
	// Begin begins the operation and returns its ID.
	Begin func(ctx context.Context, d *sqlx.DB) (id string, err error)
	// Check checks how the operation has ended, and what it has left behind.
	Check func(t testing.TB, op operation.Operation, d *sqlx.DB)
}

const (
	maxPlaces = 1000             // maximum number of places at which a process is killed
	timeout   = 24 * time.Hour   // the operation must end within this time, by the fake clock
	lease     = 15 * time.Second // the lease of the runners, by the fake clock
)

// Run runs a scenario once without a failure. Then it runs the scenario once for each SQL statement of the runner: at that statement it kills
// the process of the runner, and lets another process continue. The function fresh returns a new scenario for each run, with its own fakes,
// such as a driver.
//
// A place is a statement, identified by its text and by how often that text has run, for example the third UPDATE of operations. It is not
// identified by its number in the run, because a runner has several goroutines, whose statements are in another order in each run. If only one
// of the earlier runs has reached a place, Run still kills a process there.
//
// Each run has a new SQLite database, and runs in a bubble of testing/synctest, so leases and delays take no real time. Therefore the steps
// must not use the network, and fresh, Register and Check must not start goroutines that outlive the run. A killed process loses its
// transaction, as after SIGKILL. A step that runs at this moment still runs until it returns, and its effect outside of the database stays, as
// if the process was killed just after the step. So each step is repeated in at least one run: the run in which the process is killed at the
// statement that records the step.
func Run(t *testing.T, fresh func(t testing.TB) Scenario) {
	t.Helper()
	places := &places{}
	for n := 0; n == 0 || n <= len(places.known); n++ {
		if n > maxPlaces {
			t.Fatalf("the operation has more than %d statements: does a step repeat itself?", maxPlaces)
		}
		// Place 0 means that no process is killed.
		ok := t.Run("place "+strconv.Itoa(n), func(t *testing.T) {
			dir := t.TempDir() // not in the bubble, because the directory is removed after the end of the bubble
			synctest.Test(t, func(t *testing.T) { runOnce(t, fresh(t), dir, places, n) })
		})
		if !ok {
			return
		}
	}
}

// place is a statement of a runner.
type place struct {
	query string
	nth   int // 1 is the first statement with this text
}

// places are the statements of all runs, in the order in which they were first seen.
type places struct {
	known []place
	seen  map[place]bool
}

// add adds a place if it is new.
func (p *places) add(one place) {
	if p.seen == nil {
		p.seen = map[place]bool{}
	}
	if !p.seen[one] {
		p.seen[one] = true
		p.known = append(p.known, one)
	}
}

// runOnce runs a scenario, and kills the runner at the n-th place. If the operation ends before that place, the result is checked as in a run
// without a failure.
func runOnce(t *testing.T, s Scenario, dir string, all *places, n int) {
	t.Helper()
	ctx := t.Context()
	file, left := filepath.Join(dir, "operation.db"), filepath.Join(dir, "left.db")
	d := open(t, file, nil)
	if err := db.Migrate(ctx, d, slices.Concat([]db.Migrations{operation.Migrations}, s.Migrations)...); err != nil {
		t.Fatal(err)
	}
	id, err := s.Begin(ctx, d)
	if err != nil {
		t.Fatalf("begin: %v", err)
	}
	k := &killer{places: all, committed: d, left: left, count: map[string]int{}}
	if n > 0 {
		k.place = all.known[n-1]
	}
	op, over := runUntilEnd(t, s, file, id, "first", k)
	if !over {
		t.Logf("killed at: %s (%d)", k.place.query, k.place.nth)
		if k.err != nil {
			t.Fatalf("copy of the database: %v", k.err)
		}
		d = open(t, left, nil)
		op, _ = runUntilEnd(t, s, left, id, "second", nil)
	}
	s.Check(t, op, d)
}

// open opens a database, and closes it at the end of the test.
func open(t *testing.T, file string, observe func(context.Context, string) func(error)) *sqlx.DB {
	t.Helper()
	d, err := db.Open(t.Context(), db.Config{URL: "sqlite://" + file, Observe: observe})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() }) // an error does not matter, because the file is removed next
	return d
}

// runUntilEnd runs a runner until the operation has ended, or until k has killed the runner. A nil k kills no runner.
func runUntilEnd(t *testing.T, s Scenario, file, id, host string, k *killer) (op operation.Operation, over bool) {
	t.Helper()
	d, watch := open(t, file, k.observe), open(t, file, nil)
	k.arm(d)
	r := operation.NewRunner(operation.RunnerConfig{Store: operation.NewStore(d), Host: host, Lease: lease, Logger: slog.New(slog.DiscardHandler)})
	s.Register(r, d)
	if err := r.Start(t.Context()); err != nil && !k.dead() {
		t.Fatal(err)
	}
	defer func() {
		synctest.Wait()         // a step that runs has returned
		_ = r.Stop(t.Context()) // the runner of a killed process cannot end in order
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

// killer kills a runner at a place: it copies the data that were committed before the place, and closes the runner's database. It also records
// all places that the runner reaches. A nil killer does nothing.
type killer struct {
	place     place // the zero value: kill at no place
	places    *places
	committed *sqlx.DB // a separate handle on the runner's database
	left      string   // the file of the copy

	mu    sync.Mutex
	d     *sqlx.DB // nil: statements are not counted yet
	count map[string]int
	gone  bool
	err   error
}

// arm begins to count statements.
func (k *killer) arm(d *sqlx.DB) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.d = d
}

func (k *killer) dead() bool {
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.gone
}

// observe counts a statement, and kills the runner if the statement is the place.
func (k *killer) observe(_ context.Context, query string) func(error) {
	if k == nil {
		return func(error) {}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.d == nil || k.gone {
		return func(error) {}
	}
	k.count[query]++
	here := place{query: query, nth: k.count[query]}
	k.places.add(here)
	if here == k.place {
		k.gone = true
		// The copy does not have a transaction that still runs. The transaction may end in the runner's database, which is no longer used.
		_, k.err = k.committed.Exec(`VACUUM INTO ?`, k.left)
		_ = k.d.Close() // no further statement begins
	}
	return func(error) {}
}
