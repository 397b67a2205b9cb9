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
)

// TestOutage: one handle survives a crash and a hang of its server, and each error says
// what is known about the transaction.
func TestOutage(t *testing.T) {
	t.Parallel()
	server := envtest.MariaDB(t)
	url := dbtest.On(t, server.URL)
	d := mustOpen(t, url)
	if err := db.Migrate(t.Context(), d, things); err != nil {
		t.Fatal(err)
	}
	exec(t, d, "INSERT INTO things (id, name) VALUES ('1', 'a')")
	add := func(ctx context.Context) error {
		return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE things SET n = n + 1")
			return err
		})
	}

	// The server is killed under load. Each transaction is in the database, or failed
	// with a code that says what is known about it.
	var mu sync.Mutex
	done, unknown := 0, 0
	var wg sync.WaitGroup
	started := make(chan struct{}, 8)
	for range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				if i == 5 {
					started <- struct{}{}
				}
				err := add(t.Context())
				mu.Lock()
				switch {
				case err == nil:
					done++
				case errors.Is(err, fault.Unknown):
					unknown++
				case !errors.Is(err, fault.Unavailable):
					t.Errorf("during the crash: %v (%v), want Unavailable or Unknown", err, fault.CodeOf(err))
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
			t.Fatal("the load did not start within a minute")
		}
	}
	server.Kill()
	wg.Wait()
	if err := add(t.Context()); !errors.Is(err, fault.Unavailable) {
		t.Errorf("while it is down: %v (%v), want Unavailable", err, fault.CodeOf(err))
	}

	// Open waits for a server that comes back.
	opened := make(chan error, 1)
	go func() {
		d, err := db.Open(t.Context(), db.Config{URL: url, ConnectTimeout: time.Minute})
		if err == nil {
			err = d.Close()
		}
		opened <- err
	}()
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Errorf("Open during the restart: %v", err)
	}
	if err := add(t.Context()); err != nil {
		t.Fatalf("after the restart: %v", err)
	}
	done++
	if n := get[int](t, d, "SELECT n FROM things"); n < done || n > done+unknown {
		t.Errorf("n = %d after %d successes and %d unknowns", n, done, unknown)
	}

	// The server hangs. The context bounds each call, also COMMIT.
	committing := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	go func() {
		committing <- db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE things SET n = n + 1")
			return errors.Join(err, server.Pause())
		})
	}()
	if err := <-committing; !errors.Is(err, fault.Unknown) {
		t.Errorf("COMMIT on a hung server: %v (%v), want Unknown", err, fault.CodeOf(err))
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := add(short); fault.CodeOf(err) != fault.Timeout {
		t.Errorf("on a hung server: %v (%v), want Timeout", err, fault.CodeOf(err))
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := add(t.Context()); err != nil {
		t.Errorf("after the hang: %v", err)
	}

	// The context ends between two statements of a server that hangs. No statement
	// runs then, so only the ROLLBACK must be bounded.
	before := get[int](t, d, "SELECT n FROM things")
	between, cancel := context.WithCancel(t.Context())
	err := db.Tx(between, d, func(_ context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(between, "UPDATE things SET n = n + 1")
		err = errors.Join(err, server.Pause())
		cancel()
		return err
	})
	if !errors.Is(err, context.Canceled) || errors.Is(err, fault.Unknown) {
		t.Errorf("canceled between statements on a hung server: %v (%v), want Canceled", err, fault.CodeOf(err))
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	if n := get[int](t, d, "SELECT n FROM things"); n != before {
		t.Errorf("n = %d after a canceled transaction, want %d", n, before)
	}
}
