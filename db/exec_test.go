package db_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
)

var errGone = fault.Sentinel(fault.Conflict, "Gone", "the task is gone")

func TestExec(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(volumes), func(t *testing.T, d *sqlx.DB) {
		ctx := t.Context()
		insert := "INSERT INTO volumes (id, site, status, version) VALUES (?, ?, 'new', 1)"
		for site := range 2 {
			if n, err := db.Exec(ctx, d, insert, "v", site); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		const same = "UPDATE volumes SET status = 'new' WHERE id = ?"
		if n, err := db.Exec(ctx, d, same, "v"); n != 2 || err != nil {
			t.Errorf("rows that match and do not change: %d, %v", n, err)
		}
		if _, err := db.Exec(ctx, d, insert, "v", 1); fault.CodeOf(err) != fault.Conflict {
			t.Errorf("a second row of one key: %v", err)
		}
		err := db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
			if err := db.ExecOne(ctx, tx, errGone, same, "w"); !errors.Is(err, errGone) {
				t.Errorf("no row: %v", err)
			}
			if err := db.ExecOne(ctx, tx, errGone, same, "v"); fault.CodeOf(err) != fault.Internal || !strings.Contains(err.Error(), "matches 2 rows") {
				t.Errorf("two rows: %v", err)
			}
			return db.ExecOne(ctx, tx, errGone, same+" AND site = 1", "v") // the transaction goes on
		})
		if err != nil {
			t.Error(err)
		}
		if err := db.ExecOne(ctx, d, errGone, insert, "v", 1); fault.CodeOf(err) != fault.Conflict || errors.Is(err, errGone) {
			t.Errorf("a second row of one key: %v", err)
		}
	})
}

type size struct {
	GiB int `json:"gib"`
}

type document struct {
	ID     int                           `db:"id"`
	Tags   db.JSON[map[string]string]    `db:"tags"`
	Names  db.JSON[[]string]             `db:"names"`
	Size   db.JSON[*size]                `db:"size"`
	Fixed  db.JSON[size]                 `db:"fixed"`
	Opaque db.JSON[json.RawMessage]      `db:"opaque"`
	Times  db.JSON[map[string]time.Time] `db:"times"`
}

var documents = fstest.MapFS{"0001_documents.sql": {Data: []byte(`-- +goose Up
CREATE TABLE documents (id INTEGER NOT NULL PRIMARY KEY, tags TEXT NOT NULL, names TEXT NOT NULL, size TEXT, fixed TEXT NOT NULL, opaque TEXT, times TEXT);
`)}}

func TestJSON(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(documents), func(t *testing.T, d *sqlx.DB) {
		ctx := t.Context()
		want := []document{
			{ID: 1, Opaque: db.JSONOf(json.RawMessage("[]"))},
			{
				ID: 2, Tags: db.JSONOf(map[string]string{"k": "\u00fc'\""}), Names: db.JSONOf([]string{"a", "b"}), Size: db.JSONOf(&size{7}), Fixed: db.JSONOf(size{8}),
				Opaque: db.JSONOf(json.RawMessage(`{"x":1}`)), Times: db.JSONOf(map[string]time.Time{"t": time.Unix(1, 5).UTC()}),
			},
		}
		for _, doc := range want {
			if _, err := d.NamedExecContext(ctx, `INSERT INTO documents (id, tags, names, size, fixed, opaque, times) VALUES (:id, :tags, :names, :size, :fixed, :opaque, :times)`, doc); err != nil {
				t.Fatal(err)
			}
		}
		var texts []struct {
			Tags, Names string
			Size        *string
		}
		if err := d.SelectContext(ctx, &texts, `SELECT tags, names, size FROM documents ORDER BY id`); err != nil {
			t.Fatal(err)
		}
		if texts[0].Tags != "{}" || texts[0].Names != "[]" || texts[0].Size != nil {
			t.Errorf("nil values in the table: %+v", texts[0])
		}
		if texts[1].Names != `["a","b"]` || *texts[1].Size != `{"gib":7}` {
			t.Errorf("the text in the table: %+v", texts[1])
		}
		var got []document
		if err := d.SelectContext(ctx, &got, `SELECT * FROM documents ORDER BY id`); err != nil {
			t.Fatal(err)
		}
		want[0].Tags.V, want[0].Names.V, want[0].Times.V = map[string]string{}, []string{}, map[string]time.Time{}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}

		// A condition of UpdateIf is a text, not a list of values.
		err := db.UpdateIf(ctx, d, db.Update{Table: "documents", Key: db.Values{"id": 2}, If: db.Values{"names": db.JSONOf([]string{"b"})}, Set: db.Values{"size": db.JSONOf[*size](nil)}})
		if err == nil || !strings.Contains(err.Error(), `names is ["a","b"], want ["b"]`) {
			t.Errorf("another value: %v", err)
		}

		d.MustExecContext(ctx, `UPDATE documents SET names = '{}' WHERE id = 2`)
		doc := document{Names: db.JSONOf([]string{"kept"})}
		if err := d.GetContext(ctx, &doc, `SELECT names FROM documents WHERE id = 2`); err == nil || !strings.Contains(err.Error(), "read []string from JSON") {
			t.Errorf("an object for a list: %v", err)
		}
		if doc.Names.V[0] != "kept" {
			t.Errorf("after an error: %v", doc.Names.V)
		}
		if err := d.GetContext(ctx, &doc.Names, `SELECT id FROM documents WHERE id = 2`); err == nil || !strings.Contains(err.Error(), "want text") && !strings.Contains(err.Error(), "from JSON") {
			t.Errorf("a number for a text: %v", err)
		}
		if _, err := d.ExecContext(ctx, `UPDATE documents SET names = ?`, db.JSONOf(func() {})); err == nil || !strings.Contains(err.Error(), "as JSON") {
			t.Errorf("a value without JSON: %v", err)
		}
	})
}
