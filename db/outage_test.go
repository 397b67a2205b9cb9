package db_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
)

// TestOutage: one handle survives a crash and a hang of its server, and each error says
// what is known about the transaction.
func TestOutage(t *testing.T) {
	t.Parallel()
	server := envtest.MariaDB(t)
	o := &outage{T: t, server: server, url: dbtest.On(t, server.URL)}
	o.d = mustOpen(t, o.url)
	if err := db.Migrate(t.Context(), o.d, only(things)...); err != nil {
		t.Fatal(err)
	}
	exec(t, o.d, "INSERT INTO things (id, name) VALUES ('1', 'a')")
	o.killUnderLoad()
	o.restart()
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

// killUnderLoad: the server is killed under load. Each transaction is in the database, or failed with a code that says what is
// known about it.
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
		o.Errorf("while it is down: %v (%v), want Unavailable", err, fault.CodeOf(err))
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

// hang: the server hangs. The context bounds each call, even COMMIT.
func (o *outage) hang() {
	o.Helper()
	ctx, end := context.WithCancel(o.Context())
	err := db.Tx(ctx, o.d, func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE things SET n = n + 1")
		err = errors.Join(err, o.server.Pause())
		time.AfterFunc(time.Second, end) // only COMMIT runs then, however long the statements before took
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
