package db_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
)

var servers = fstest.MapFS{"0001_servers.sql": {Data: []byte(`-- +goose Up
CREATE TABLE servers (id VARCHAR(36) NOT NULL PRIMARY KEY, name VARCHAR(50), deleted_at DATETIME(6));
CREATE TABLE servers_history (archived_at DATETIME(6) DEFAULT NULL, deleted_at DATETIME(6), name VARCHAR(50), id VARCHAR(36) NOT NULL);
CREATE TABLE tags (server_id VARCHAR(36) NOT NULL REFERENCES servers (id), tag VARCHAR(50) NOT NULL, PRIMARY KEY (server_id, tag),
	CONSTRAINT tags_server FOREIGN KEY (server_id) REFERENCES servers (id));
CREATE TABLE tags_history (server_id VARCHAR(36) NOT NULL, tag VARCHAR(50) NOT NULL);
CREATE TABLE notes (server VARCHAR(36) NOT NULL, note VARCHAR(50));
CREATE INDEX notes_server ON notes (server);
`)}}

var longAgo = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// addServers adds servers, each with two tags and a note. Every third server is deleted.
func addServers(t *testing.T, d *sqlx.DB, from, n int) {
	t.Helper()
	err := db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
		for i := from; i < from+n; i++ {
			id := fmt.Sprintf("é%06d", i) // é: keys with bytes above ASCII are also compared
			var deleted *time.Time
			if i%3 == 0 {
				deleted = &longAgo
			}
			for _, s := range []struct {
				query string
				args  []any
			}{
				{"INSERT INTO servers (id, name, deleted_at) VALUES (?, 'x', ?)", []any{id, deleted}},
				{"INSERT INTO tags (server_id, tag) VALUES (?, 'a'), (?, 'b')", []any{id, id}},
				{"INSERT INTO notes (server, note) VALUES (?, 'n')", []any{id}},
			} {
				if _, err := tx.ExecContext(ctx, s.query, s.args...); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// deletedServers returns the retention of the deleted servers, with history. Where has an OR: if a statement of Purge adds its terms
// without parentheses, it removes other rows, and the tests fail.
func deletedServers() db.Retention {
	return db.Retention{
		Table: "servers", Where: "deleted_at < ? OR name = ?", Args: []any{longAgo.AddDate(1, 0, 0), "none"},
		History: "servers_history",
		Parts:   []db.Part{{Table: "tags", Column: "server_id", History: "tags_history"}, {Table: "notes", Column: "server"}},
	}
}

// wantServers checks how many servers are left and how many were moved, and that each
// was moved with all its parts.
func wantServers(t *testing.T, d *sqlx.DB, left, moved int) {
	t.Helper()
	for query, want := range map[string]int{
		"SELECT COUNT(*) FROM servers":                            left,
		"SELECT COUNT(*) FROM servers_history":                    moved,
		"SELECT COUNT(DISTINCT id) FROM servers_history":          moved,
		"SELECT COUNT(*) FROM tags":                               2 * left,
		"SELECT COUNT(*) FROM tags_history":                       2 * moved,
		"SELECT COUNT(*) FROM notes":                              left,
		"SELECT COUNT(*) FROM notes JOIN servers ON id = server":  left,
		"SELECT COUNT(*) FROM servers_history WHERE name IS NULL": 0,
	} {
		if got := get[int](t, d, query); got != want {
			t.Errorf("%s: %d, want %d", query, got, want)
		}
	}
}

// TestPurge: Purge moves or deletes the right number of rows, with Batch and Max.
func TestPurge(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(servers), func(t *testing.T, d *sqlx.DB) {
		addServers(t, d, 0, 300)
		for _, tt := range []struct {
			name       string
			batch, max int
			want       int64
		}{
			{"up to 30 rows", 4, 30, 30},
			{"one row", 4, 1, 1},
			{"the rest", 7, 0, 69},
			{"no row", 0, 0, 0},
		} {
			r := deletedServers()
			r.Batch, r.Max = tt.batch, tt.max
			if n, err := db.Purge(t.Context(), d, r); n != tt.want || err != nil {
				t.Errorf("%s: %d, %v; want %d", tt.name, n, err, tt.want)
			}
		}
		wantServers(t, d, 200, 100)

		r := db.Retention{Table: "servers", Where: "id >= ?", Args: []any{"é000150"}, Parts: []db.Part{{Table: "tags", Column: "server_id"}, {Table: "notes", Column: "server"}}}
		if n, err := db.Purge(t.Context(), d, r); n != 100 || err != nil {
			t.Errorf("without history: %d, %v; want 100", n, err)
		}
		if got := get[int](t, d, "SELECT COUNT(*) FROM tags"); got != 200 {
			t.Errorf("%d tags are left, want 200", got)
		}
	})
}

// TestConcurrentPurge: several calls of Purge are active while other transactions write. The contexts of most calls end
// early. No row is lost, moved twice or half moved.
func TestConcurrentPurge(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(servers), func(t *testing.T, d *sqlx.DB) {
		addServers(t, d, 0, 600)
		var wg sync.WaitGroup
		var reported atomic.Int64
		for i := range 4 {
			wg.Go(func() {
				for round := range 6 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(5+10*i)*time.Millisecond)
					if round == 5 {
						ctx = context.WithoutCancel(ctx)
					}
					r := deletedServers()
					r.Batch = 3 + i
					n, err := db.Purge(ctx, d, r)
					reported.Add(n)
					if err != nil && (round == 5 || !errors.Is(err, context.DeadlineExceeded)) {
						t.Error(err)
					}
					cancel()
				}
			})
		}
		for i := range 10 {
			addServers(t, d, 1000+30*i, 30)
		}
		wg.Wait()
		n, err := db.Purge(t.Context(), d, deletedServers())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("of 300 rows the concurrent calls reported %d, the last call %d", reported.Load(), n)
		wantServers(t, d, 600, 300)
	})
}

// TestPurgeErrors: wrong fields, a wrong history, a rolled back transaction and a context that has ended change
// no row.
func TestPurgeErrors(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(servers), func(t *testing.T, d *sqlx.DB) {
		addServers(t, d, 0, 30)
		for name, tt := range map[string]struct {
			change func(r *db.Retention)
			want   fault.Code
			text   string
		}{
			"no condition":      {func(r *db.Retention) { r.Where = "" }, fault.Invalid, "Where is empty"},
			"no table":          {func(r *db.Retention) { r.Table = "" }, fault.Invalid, "not the name of"},
			"an injection":      {func(r *db.Retention) { r.History = `h" --` }, fault.Invalid, "not the name of"},
			"an unknown column": {func(r *db.Retention) { r.Where, r.Args = "size > 3", nil }, fault.Internal, "size"},
			"wrong history":     {func(r *db.Retention) { r.History = "tags_history" }, fault.Precondition, "the history table tags_history lacks columns of servers: id, name, deleted_at"},
			"a missing part":    {func(r *db.Retention) { r.Parts = r.Parts[1:] }, fault.Precondition, "purge servers: "},
		} {
			r := deletedServers()
			tt.change(&r)
			n, err := db.Purge(t.Context(), d, r)
			if n != 0 || err == nil || fault.CodeOf(err) != tt.want || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%s: %d, %v; want %v with %q", name, n, err, tt.want, tt.text)
			}
		}
		undo := errors.New("undo")
		err := db.Tx(t.Context(), d, func(ctx context.Context, _ *sqlx.Tx) error {
			r := deletedServers()
			r.Batch = 3
			if n, err := db.Purge(ctx, d, r); n != 10 || err != nil {
				t.Errorf("in a transaction: %d, %v; want 10", n, err)
			}
			return undo
		})
		if !errors.Is(err, undo) {
			t.Error(err)
		}
		wantServers(t, d, 30, 0)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if n, err := db.Purge(ctx, d, deletedServers()); n != 0 || !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that has ended: %d, %v; want 0, %v", n, err, context.Canceled)
		}
		wantServers(t, d, 30, 0)
	})
}
