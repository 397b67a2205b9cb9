package db_test

import (
	"testing"
	"testing/fstest"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
)

type (
	stamps struct {
		CreatedAt time.Time `db:"created_at"`
	}
	disk struct {
		stamps

		ID     string
		Labels db.JSON[map[string]string] `db:"labels"`
		Order  *int                       `db:"order"`
		Hidden string                     `db:"-"`
	}
)

// TestColumns: Columns returns the columns of a struct, and panics for a type that is not a struct.
func TestColumns(t *testing.T) {
	t.Parallel()
	for range 2 { // the second time from the cache
		if got, want := db.Columns[disk](), `"id", "labels", "order", "created_at"`; got != want {
			t.Errorf("columns %s, want %s", got, want)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a type that is not a struct: no panic")
		}
	}()
	db.Columns[int]()
}

type (
	labels struct {
		db.JSON[map[string]string] `db:"labels"`

		ID string
	}
	stamped struct {
		time.Time `db:"created_at"`

		ID string
	}
	dotted struct {
		A string `db:"t.a"`
	}
	quoted struct {
		A string `db:"a\" FROM x --"`
	}
	embeddedDotted struct {
		dotted

		B string
	}
)

// TestColumnsRefused: Columns panics for a tag that sqlx cannot read as a column. The text has the type and the tag.
func TestColumnsRefused(t *testing.T) {
	t.Parallel()
	const embedded = "sqlx does not read a column into an embedded field, such as the one with the tag "
	for want, columns := range map[string]func() string{
		"db.Columns: db_test.labels: " + embedded + `"labels": make it a named field, or remove the tag`:           db.Columns[labels],
		"db.Columns: db_test.stamped: " + embedded + `"created_at": make it a named field, or remove the tag`:      db.Columns[stamped],
		`db.Columns: db_test.dotted: the tag "t.a" is not the name of a column: it has a dot or a quote`:           db.Columns[dotted],
		`db.Columns: db_test.embeddedDotted: the tag "t.a" is not the name of a column: it has a dot or a quote`:   db.Columns[embeddedDotted],
		`db.Columns: db_test.quoted: the tag "a\" FROM x --" is not the name of a column: it has a dot or a quote`: db.Columns[quoted],
	} {
		func() {
			defer func() {
				if got := recover(); got != want {
					t.Errorf("panic %v, want %s", got, want)
				}
			}()
			t.Errorf("columns %s", columns())
		}()
	}
}

// TestNewerColumn: rows are read by the names of their columns, so that a column of a later release does no harm.
func TestNewerColumn(t *testing.T) {
	t.Parallel()
	schema := fstest.MapFS{"00001_disks.sql": {Data: []byte(`-- +goose Up
CREATE TABLE disks (id VARCHAR(36) PRIMARY KEY, created_at DATETIME(6) NOT NULL, labels TEXT NOT NULL, "order" INTEGER, next_release VARCHAR(10));
INSERT INTO disks VALUES ('a', '2026-01-02 03:04:05', '{"k":"v"}', NULL, 'new'), ('b', '2026-01-02 03:04:05', '{}', 4, NULL);`)}}
	dbtest.Each(t, only(schema), func(t *testing.T, d *sqlx.DB) {
		var one disk
		if err := d.GetContext(t.Context(), &one, "SELECT "+db.Columns[disk]()+" FROM disks WHERE id = ?", "b"); err != nil || one.Order == nil || *one.Order != 4 || one.CreatedAt.Year() != 2026 {
			t.Errorf("%+v, %v", one, err)
		}
		list, _, err := db.List[disk](t.Context(), d, db.Page{From: "disks", Key: "id", Limit: 5})
		if err != nil || len(list) != 2 || list[0].Labels.V["k"] != "v" {
			t.Errorf("%+v, %v", list, err)
		}
		list, _, err = db.ListFunc(t.Context(), d, db.Page{From: "disks", Key: "id", Limit: 5}, func(x *disk) bool { return x.Order != nil })
		if err != nil || len(list) != 1 || list[0].ID != "b" {
			t.Errorf("%+v, %v", list, err)
		}
		if _, _, err := db.List[string](t.Context(), d, db.Page{From: "disks", Key: "id", Limit: 5}); err == nil {
			t.Error("a plain value without Columns: no error")
		}
	})
}
