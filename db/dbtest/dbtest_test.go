package dbtest_test

import (
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
)

var migrations = []db.Migrations{{Name: "library", Files: fstest.MapFS{
	"0001_init.sql": {Data: []byte(`-- +goose Up
CREATE TABLE shelves (id INTEGER PRIMARY KEY, name VARCHAR(40) NOT NULL DEFAULT 'new');
CREATE TABLE books (id INTEGER PRIMARY KEY, shelf INTEGER NOT NULL, title VARCHAR(255), note TEXT, FOREIGN KEY (shelf) REFERENCES shelves (id));
CREATE UNIQUE INDEX titles ON books (title, shelf);
INSERT INTO shelves (id) VALUES (7);
INSERT INTO books (id, shelf, title) VALUES (1, 7, 'It''s ☃');
`)},
	"0002_view.sql": {Data: []byte(`-- +goose Up
ALTER TABLE books ADD COLUMN pages INTEGER NOT NULL DEFAULT 3;
CREATE VIEW titles_of AS SELECT b.title, b.pages, s.name FROM books b JOIN shelves s ON s.id = b.shelf;
`)},
}}}

// entry is a row of the view.
type entry struct {
	Title, Name string
	Pages       int
}

// TestCopies: each test has a database of its own with all that the migrations made: rows, defaults, keys and views. The first one is migrated, the others are copies.
func TestCopies(t *testing.T) {
	t.Parallel()
	for range 3 {
		dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
			var got []entry
			if _, err := d.ExecContext(t.Context(), "INSERT INTO shelves (id) VALUES (8)"); err != nil {
				t.Fatal(err)
			}
			if _, err := d.ExecContext(t.Context(), "INSERT INTO books (id, shelf, title) VALUES (2, 8, 'own')"); err != nil {
				t.Fatal(err)
			}
			if err := d.SelectContext(t.Context(), &got, "SELECT title, name, pages FROM titles_of ORDER BY title"); err != nil {
				t.Fatal(err)
			}
			want := []entry{{"It's ☃", "new", 3}, {"own", "new", 3}}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			for what, text := range map[string]string{"a foreign key": "INSERT INTO books (id, shelf) VALUES (3, 99)", "a unique key": "INSERT INTO books (id, shelf, title) VALUES (3, 8, 'own')"} {
				if _, err := d.ExecContext(t.Context(), text); err == nil {
					t.Errorf("the database lacks %s", what)
				}
			}
		})
	}
}
