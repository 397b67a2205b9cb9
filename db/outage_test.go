package db_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
)

// TestOutage: one handle survives a crash and a hang of its server, and the code of each error
// says whether COMMIT may have been executed.
func TestOutage(t *testing.T) {
	t.Parallel()
	server := envtest.MariaDB(t)
	o := &outage{T: t, server: server, url: dbtest.On(t, server.URL)}
	o.d = mustOpen(t, o.url)
	if err := db.Migrate(t.Context(), o.d, only(things)...); err != nil {
		t.Fatal(err)
	}
	exec(t, o.d, "INSERT INTO things (id, name) VALUES ('1', 'a')")
	o.prepared()
	o.killUnderLoad()
	o.restart()
	o.prepared()
	o.killedConnections()
	o.unprepared()
	o.hang()
	o.cancelWhileHung()
}

// outage is a database on a server of its own.
type outage struct {
	*testing.T

	server  *testenv.Service
	url     string
	d       *sqlx.DB
	done    int // transactions that succeeded
	unknown int // transactions that failed with Unknown
}

// add is a transaction that adds 1 to the row's n.
func (o *outage) add(ctx context.Context) error {
	return db.Tx(ctx, o.d, func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE things SET n = n + 1")
		return err
	})
}

// killUnderLoad: the server is killed under load. Each transaction is in the database, or its error says that it is not there
// (Unavailable) or may be there (Unknown).
func (o *outage) killUnderLoad() {
	o.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	started := make(chan struct{}, 8)
	for range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				if i == 5 {
					started <- struct{}{}
				}
				err := o.add(o.Context())
				mu.Lock()
				switch {
				case err == nil:
					o.done++
				case errors.Is(err, fault.Unknown):
					o.unknown++
				case !errors.Is(err, fault.Unavailable):
					o.Errorf("during the crash: %v (%v), want Unavailable or Unknown", err, fault.CodeOf(err))
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	for range 8 {
		select {
		case <-started:
		case <-time.After(time.Minute):
			o.Fatal("the load did not start within a minute")
		}
	}
	o.server.Kill()
	wg.Wait()
	if err := o.add(o.Context()); !errors.Is(err, fault.Unavailable) {
		o.Errorf("while the server is down: %v (%v), want Unavailable", err, fault.CodeOf(err))
	}
}

// restart: Open waits for a server that comes back.
func (o *outage) restart() {
	o.Helper()
	opened := make(chan error, 1)
	go func() {
		d, err := db.Open(o.Context(), db.Config{URL: o.url, ConnectTimeout: time.Minute})
		if err == nil {
			err = d.Close()
		}
		opened <- err
	}()
	if err := o.server.Restart(o.Context()); err != nil {
		o.Fatal(err)
	}
	if err := <-opened; err != nil {
		o.Errorf("Open during the restart: %v", err)
	}
	if err := o.add(o.Context()); err != nil {
		o.Fatalf("after the restart: %v", err)
	}
	o.done++
	if n := get[int](o.T, o.d, "SELECT n FROM things"); n < o.done || n > o.done+o.unknown {
		o.Errorf("n = %d after %d successes and %d unknowns", n, o.done, o.unknown)
	}
}

// longQuery selects the name of a thing. A connection prepares it, because it is long.
var longQuery = "SELECT name FROM things" + filler + "WHERE id = ?"

// readName returns the name of the thing, read by longQuery.
func (o *outage) readName() (name string, err error) {
	return name, db.Error(o.d.GetContext(o.Context(), &name, longQuery, "1"))
}

// prepared: a connection that runs a long query several times leaves a prepared statement on the server.
func (o *outage) prepared() {
	o.Helper()
	for range 3 {
		if name, err := o.readName(); err != nil || name != "a" {
			o.Errorf("the long query: %q, %v", name, err)
		}
	}
	if n := o.statements(); n == 0 {
		o.Error("the server has no prepared statement")
	}
}

// killedConnections: while each connection is killed again and again, the long query returns its row, or an error that
// says that the connection was lost.
func (o *outage) killedConnections() {
	o.Helper()
	admin := mustOpen(o.T, o.url)
	var all sync.WaitGroup
	var reads atomic.Int64
	var enough atomic.Bool
	for range 4 {
		all.Go(func() {
			for !enough.Load() {
				name, err := o.readName()
				lost := errors.Is(err, fault.Unknown) || errors.Is(err, fault.Unavailable)
				if err == nil && name != "a" || err != nil && !lost {
					o.Errorf("while connections are killed: %q, %v (%v)", name, err, fault.CodeOf(err))
				}
				reads.Add(1)
			}
		})
	}
	for range 5 {
		before := reads.Load()
		waittest.Until(o.T, "100 reads", func() bool { return reads.Load() > before+100 })
		var ids []int64
		if err := admin.SelectContext(o.Context(), &ids, "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id != CONNECTION_ID()"); err != nil {
			o.Fatal(err)
		}
		for _, id := range ids {
			if _, err := admin.ExecContext(o.Context(), fmt.Sprintf("KILL CONNECTION %d", id)); err != nil && !strings.Contains(err.Error(), "Unknown thread") {
				o.Error(err)
			}
		}
	}
	enough.Store(true)
	all.Wait()
}

// unprepared: a server that cannot prepare one more statement still answers the long query.
func (o *outage) unprepared() {
	o.Helper()
	exec(o.T, o.d, "SET GLOBAL max_prepared_stmt_count = 0")
	defer exec(o.T, o.d, "SET GLOBAL max_prepared_stmt_count = DEFAULT")
	d := mustOpen(o.T, o.url)
	before := o.statements()
	for range 3 {
		var name string
		if err := d.GetContext(o.Context(), &name, longQuery, "1"); err != nil || name != "a" {
			o.Errorf("the query that cannot be prepared: %q, %v", name, err)
		}
	}
	if n := o.statements(); n > before { // it falls when the server ends a killed connection late
		o.Errorf("the server has %d prepared statements, want at most %d", n, before)
	}
}

// statements returns the number of prepared statements on the server.
func (o *outage) statements() (n int) {
	o.Helper()
	var status struct {
		Name  string `db:"Variable_name"`
		Value int    `db:"Value"`
	}
	if err := o.d.GetContext(o.Context(), &status, "SHOW GLOBAL STATUS LIKE 'Prepared_stmt_count'"); err != nil {
		o.Fatal(err)
	}
	return status.Value
}

// hang: the server hangs. The context bounds each call, even COMMIT.
func (o *outage) hang() {
	o.Helper()
	ctx, end := context.WithCancel(o.Context())
	err := db.Tx(ctx, o.d, func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE things SET n = n + 1")
		err = errors.Join(err, o.server.Pause())
		time.AfterFunc(time.Second, end) // then only COMMIT runs, even if the UPDATE and the pause took long
		return err
	})
	if !errors.Is(err, fault.Unknown) {
		o.Errorf("COMMIT on a hung server: %v (%v), want Unknown", err, fault.CodeOf(err))
	}
	short, cancel := context.WithTimeout(o.Context(), 100*time.Millisecond)
	defer cancel()
	if err := o.add(short); fault.CodeOf(err) != fault.Timeout {
		o.Errorf("on a hung server: %v (%v), want Timeout", err, fault.CodeOf(err))
	}
	if err := o.server.Resume(); err != nil {
		o.Fatal(err)
	}
	if err := o.add(o.Context()); err != nil {
		o.Errorf("after the hang: %v", err)
	}
}

// cancelWhileHung: the server hangs, and the context ends after the UPDATE and before COMMIT. No statement runs at that moment, so
// only the ROLLBACK has to be bounded.
func (o *outage) cancelWhileHung() {
	o.Helper()
	before := get[int](o.T, o.d, "SELECT n FROM things")
	between, cancel := context.WithCancel(o.Context())
	err := db.Tx(between, o.d, func(_ context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(between, "UPDATE things SET n = n + 1")
		err = errors.Join(err, o.server.Pause())
		cancel()
		return err
	})
	if !errors.Is(err, context.Canceled) || errors.Is(err, fault.Unknown) {
		o.Errorf("canceled between statements on a hung server: %v (%v), want Canceled", err, fault.CodeOf(err))
	}
	if err := o.server.Resume(); err != nil {
		o.Fatal(err)
	}
	if n := get[int](o.T, o.d, "SELECT n FROM things"); n != before {
		o.Errorf("n = %d after a canceled transaction, want %d", n, before)
	}
}
