package db_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
)

// TestSQLiteStatements: prepared statements of SQLite are reused, and each execution has the result of a newly prepared statement.
func TestSQLiteStatements(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]string{"file": "sqlite://" + filepath.Join(t.TempDir(), "test.db"), "memory": "sqlite:///:memory:"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := db.Open(t.Context(), db.Config{URL: url})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			exec := func(query string, args ...any) error {
				_, err := d.ExecContext(t.Context(), query, args...)
				return err
			}
			must := func(query string, args ...any) {
				t.Helper()
				if err := exec(query, args...); err != nil {
					t.Fatalf("%s: %v", query, err)
				}
			}
			must("CREATE TABLE numbers (n INTEGER PRIMARY KEY)")
			insert := "INSERT INTO numbers (n) VALUES (?)"
			for i := range 3 {
				must(insert, i)
				if err := exec(insert, i); err == nil {
					t.Errorf("%d is there twice", i)
				}
			}
			t.Run("two results of one text are read in turn", func(t *testing.T) {
				query := "SELECT n FROM numbers ORDER BY n"
				err := db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
					outer, err := tx.QueryContext(ctx, query)
					if err != nil {
						return err
					}
					defer outer.Close()
					for want := 0; outer.Next(); want++ {
						var n int
						var inner []int
						if err := tx.SelectContext(ctx, &inner, query); err != nil {
							return err
						}
						if err := outer.Scan(&n); err != nil || n != want || len(inner) != 3 {
							t.Errorf("%d, %v, %v; want %d", n, inner, err, want)
						}
					}
					return outer.Err()
				})
				if err != nil {
					t.Fatal(err)
				}
			})
			t.Run("a result that is not read to its end leaves no lock", func(t *testing.T) {
				for range 3 {
					ctx, cancel := context.WithCancel(t.Context())
					rows, err := d.QueryContext(ctx, "SELECT n FROM numbers")
					if err != nil {
						t.Fatal(err)
					}
					if !rows.Next() || rows.Err() != nil {
						t.Fatal(rows.Err())
					}
					cancel()
					_ = rows.Close() //nolint:sqlclosecheck // closed before the next statement; the error says that the context has ended
					must("UPDATE numbers SET n = n + 0")
				}
			})
			t.Run("a changed table has its new columns", func(t *testing.T) {
				all := func() int {
					rows, err := d.QueryContext(t.Context(), "SELECT * FROM numbers")
					if err != nil {
						t.Fatal(err)
					}
					defer rows.Close()
					columns, err := rows.Columns()
					if err != nil || !rows.Next() || rows.Err() != nil {
						t.Fatal(err, rows.Err())
					}
					return len(columns)
				}
				if all() != 1 {
					t.Error("want one column")
				}
				must("ALTER TABLE numbers ADD COLUMN name TEXT")
				if n := all(); n != 2 {
					t.Errorf("%d columns after the change", n)
				}
				must("DROP TABLE numbers")
				must("CREATE TABLE numbers (n INTEGER PRIMARY KEY)")
				must(insert, 7)
			})
			t.Run("more texts than a connection keeps", func(t *testing.T) {
				for range 2 {
					for i := range 200 {
						var got int
						if err := d.GetContext(t.Context(), &got, fmt.Sprintf("SELECT %d + n FROM numbers WHERE n = ?", i), 7); err != nil || got != i+7 {
							t.Fatalf("%d, %v; want %d", got, err, i+7)
						}
					}
				}
			})
			t.Run("a setting has an effect each time", func(t *testing.T) {
				for _, want := range []int{1, 2, 1, 2} {
					var got int
					must(fmt.Sprintf("PRAGMA user_version = %d", want))
					if err := d.GetContext(t.Context(), &got, "PRAGMA user_version"); err != nil || got != want {
						t.Errorf("%d, %v; want %d", got, err, want)
					}
				}
			})
		})
	}
}

// TestSQLiteFileMode: only the owner may read the files of a database that is created.
func TestSQLiteFileMode(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "test.db")
	d, err := db.Open(t.Context(), db.Config{URL: "sqlite://" + path})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.ExecContext(t.Context(), "CREATE TABLE numbers (n INTEGER PRIMARY KEY)"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v", name, info.Mode())
		}
	}
}
