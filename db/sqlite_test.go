package db_test

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
)

// TestSQLiteHandles: two handles on one file, like the handles of two processes, write
// without errors and without lost updates.
func TestSQLiteHandles(t *testing.T) {
	t.Parallel()
	url := dbtest.SQLite(t)
	handles := []*sqlx.DB{mustOpen(t, url), mustOpen(t, url)}
	if err := db.Migrate(t.Context(), handles[0], only(things)...); err != nil {
		t.Fatal(err)
	}
	exec(t, handles[0], "INSERT INTO things (id, name) VALUES ('1', 'a')")
	const each = 40
	var wg sync.WaitGroup
	for i := range 4 {
		d := handles[i%2]
		wg.Go(func() {
			for range each {
				err := db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
					var n int
					if err := tx.GetContext(ctx, &n, "SELECT n FROM things"); err != nil {
						return err
					}
					_, err := tx.ExecContext(ctx, "UPDATE things SET n = ?", n+1)
					return err
				})
				if err != nil {
					t.Errorf("Tx: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := get[int](t, handles[0], "SELECT n FROM things"); n != 4*each {
		t.Errorf("n = %d, want %d", n, 4*each)
	}
}

// TestSQLiteWriterWaits: a writer that waits for another writer gives up when its own context ends. The two writers use the same
// handle or different handles. A reader does not wait.
func TestSQLiteWriterWaits(t *testing.T) {
	t.Parallel()
	url := dbtest.SQLite(t)
	d := mustOpen(t, url)
	if err := db.Migrate(t.Context(), d, only(things)...); err != nil {
		t.Fatal(err)
	}
	holder, err := d.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	exec(t, holder, "INSERT INTO things (id, name) VALUES ('1', 'a')")
	for name, d := range map[string]*sqlx.DB{"same": d, "other": mustOpen(t, url)} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		err := db.Tx(ctx, d, func(context.Context, *sqlx.Tx) error { return nil })
		if _, eerr := d.ExecContext(ctx, "DELETE FROM things"); fault.CodeOf(err) != fault.Timeout || fault.CodeOf(eerr) != fault.Timeout {
			t.Errorf("%s handle: Tx %v, Exec %v; want the context's error", name, err, eerr)
		}
		cancel()
		tx, err := d.BeginTxx(t.Context(), &sql.TxOptions{ReadOnly: true}) // does not wait for the writer
		if err != nil {
			t.Fatal(err)
		}
		if n := get[int](t, tx, "SELECT COUNT(*) FROM things"); n != 0 {
			t.Errorf("%s handle: a read-only transaction sees %d uncommitted rows", name, n)
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
	}
	if err := holder.Commit(); err != nil {
		t.Fatal(err)
	}
	st, err := d.PreparexContext(t.Context(), "UPDATE things SET n = ?")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := st.ExecContext(t.Context(), 7); err != nil {
		t.Error(err)
	}
	if n := get[int](t, d, "SELECT n FROM things"); n != 7 {
		t.Errorf("n = %d, want 7", n)
	}
}

// TestSQLiteErrors: the errors of a full database and of a read-only database have the right codes.
func TestSQLiteErrors(t *testing.T) {
	t.Parallel()
	d := mustOpen(t, dbtest.SQLite(t))
	if err := db.Migrate(t.Context(), d, only(things)...); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, pragma string
		want         fault.Code
	}{
		{"full", fmt.Sprintf("PRAGMA max_page_count = %d", get[int](t, d, "PRAGMA page_count")), fault.Exhausted},
		{"read-only", "PRAGMA query_only = 1", fault.Unavailable},
	} {
		c, err := d.Connx(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		exec(t, c, tt.pragma)
		_, err = c.ExecContext(t.Context(), "INSERT INTO things (id, name) VALUES (?, ?)", tt.name, string(make([]byte, 1<<16)))
		if err = db.Error(err); fault.CodeOf(err) != tt.want {
			t.Errorf("%s: %v (%v), want %v", tt.name, err, fault.CodeOf(err), tt.want)
		}
		defer c.Close() // at the end of the test, so that each case has its own connection
	}
}
