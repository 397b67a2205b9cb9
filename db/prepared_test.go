package db_test

import (
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
)

// TestPrepared: a prepared query returns the same rows and errors as the query itself. This also holds for concurrent
// first calls, and after a column was added to the table.
func TestPrepared(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(things), func(t *testing.T, d *sqlx.DB) {
		q := db.Prepare(d, "SELECT name FROM things WHERE id = ?")
		var all sync.WaitGroup
		for i := range 8 {
			id := strconv.Itoa(i)
			exec(t, d, "INSERT INTO things (id, name) VALUES (?, ?)", id, "name of "+id)
		}
		read := func(id string) {
			var name string
			if err := q.Get(t.Context(), &name, id); err != nil || name != "name of "+id {
				t.Errorf("thing %s: %q, %v", id, name, err)
			}
		}
		for i := range 32 {
			all.Go(func() { read(strconv.Itoa(i % 8)) })
		}
		all.Wait()
		var name string
		if err := q.Get(t.Context(), &name, "none"); !errors.Is(err, fault.NotFound) {
			t.Errorf("no row: %v, want NotFound", err)
		}
		exec(t, d, "ALTER TABLE things ADD COLUMN more INTEGER")
		for i := range 8 {
			read(strconv.Itoa(i))
		}
		if err := db.Prepare(d, "SELECT nothing FROM things").Get(t.Context(), &name); err == nil {
			t.Error("a query with an unknown column succeeds")
		}
	})
}

// BenchmarkPrepared compares a query of 40 columns as text with the same query as a prepared statement, on MariaDB.
func BenchmarkPrepared(b *testing.B) {
	d, err := db.Open(b.Context(), db.Config{URL: dbtest.MySQL(b)})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	columns := make([]string, 40)
	for i := range columns {
		columns[i] = "column_" + strconv.Itoa(i)
	}
	d.MustExecContext(b.Context(), "CREATE TABLE wide (id INTEGER PRIMARY KEY, "+strings.Join(columns, " VARCHAR(36) NOT NULL DEFAULT 'text', ")+" VARCHAR(36) NOT NULL DEFAULT 'text')")
	d.MustExecContext(b.Context(), "INSERT INTO wide (id) VALUES (1)")
	type row struct {
		First string `db:"column_0"`
	}
	query := "SELECT " + strings.Join(columns, ", ") + " FROM wide WHERE id = ?"
	all := d.Unsafe() // row has only one of the columns
	q := db.Prepare(all, query)
	for name, get := range map[string]func(*row) error{
		"text":     func(r *row) error { return all.GetContext(b.Context(), r, query, 1) },
		"prepared": func(r *row) error { return q.Get(b.Context(), r, 1) },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				var r row
				if err := get(&r); err != nil || r.First != "text" {
					b.Fatal(r, err)
				}
			}
		})
	}
}
