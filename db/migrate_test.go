package db_test

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
)

// TestMigrateAtOnce: 8 services start at the same time on an empty database, each with
// its own handle, as separate processes have. A migration that runs twice would fail.
func TestMigrateAtOnce(t *testing.T) {
	t.Parallel()
	dir := schema(
		"CREATE TABLE a (i INTEGER NOT NULL PRIMARY KEY)",
		"INSERT INTO a (i) VALUES (1)",
		"ALTER TABLE a ADD COLUMN j INTEGER",
		"UPDATE a SET j = i + 1",
		"CREATE TABLE b (i INTEGER NOT NULL PRIMARY KEY)",
		"INSERT INTO b (i) SELECT j FROM a",
	)
	dbtest.EachURL(t, func(t *testing.T, url string) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				d, err := db.Open(t.Context(), db.Config{URL: url, MaxOpen: 2})
				if err != nil {
					t.Errorf("Open: %v", err)
					return
				}
				defer d.Close()
				if err := db.Migrate(t.Context(), d, only(dir)...); err != nil {
					t.Errorf("Migrate: %v", err)
				}
				if _, err := db.Check(t.Context(), d, only(dir)...); err != nil {
					t.Errorf("Check: %v", err)
				}
			})
		}
		wg.Wait()
		if i := get[int](t, mustOpen(t, url), "SELECT SUM(i) FROM b"); i != 2 {
			t.Errorf("sum = %d, want 2", i)
		}
	})
}

// TestMigrateReleasesAtOnce: the db syncs of two releases run at the same time, on an empty database and on one of the previous release. The
// database then has the newer schema, and each file is applied once. The older program can start, unless the newer release breaks it.
// The result does not depend on which of the two was first.
func TestMigrateReleasesAtOnce(t *testing.T) {
	t.Parallel()
	texts := []string{"CREATE TABLE a (i INTEGER NOT NULL PRIMARY KEY)", "INSERT INTO a (i) VALUES (1)", "UPDATE a SET i = i + 1", "ALTER TABLE a ADD COLUMN j INTEGER"}
	breaking := schema(texts...)
	breaking["0005_step.sql"] = &fstest.MapFile{Data: []byte("-- +db breaks 3\nALTER TABLE a ADD COLUMN k INTEGER;\n")}
	older := schema(texts[:3]...)
	for name, newer := range map[string]fstest.MapFS{"compatible": schema(texts...), "incompatible": breaking} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.EachURL(t, func(t *testing.T, url string) {
				var wg sync.WaitGroup
				for i := range 8 {
					files := older
					if i%2 == 0 {
						files = newer
					}
					wg.Go(func() {
						d, err := db.Open(t.Context(), db.Config{URL: url, MaxOpen: 2})
						if err != nil {
							t.Errorf("Open: %v", err)
							return
						}
						defer d.Close()
						err = db.Migrate(t.Context(), d, only(files)...)
						refused := i%2 == 1 && name == "incompatible" && errors.Is(err, fault.Precondition) && strings.Contains(err.Error(), "at version 5, ") && strings.Contains(err.Error(), "version 3 of this program: upgrade the program")
						if err != nil && !refused {
							t.Errorf("Migrate: %v", err)
						}
					})
				}
				wg.Wait()
				d := mustOpen(t, url)
				if i := get[int](t, d, "SELECT SUM(i) FROM a"); i != 2 {
					t.Errorf("sum = %d, want 2: each file is applied once", i)
				}
				if warning, err := db.Check(t.Context(), d, only(newer)...); err != nil || warning != "" {
					t.Errorf("the newer program: %q, %v", warning, err)
				}
				if warning, err := db.Check(t.Context(), d, only(older)...); (err == nil) != (name == "compatible") || (err == nil) != (warning != "") {
					t.Errorf("the older program: %q, %v", warning, err)
				}
			})
		})
	}
}

// TestMigrateOneHandle: several calls of Migrate with one handle wait for each other.
func TestMigrateOneHandle(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, nil, func(t *testing.T, d *sqlx.DB) {
		files := schema("CREATE TABLE a (i INTEGER)", "CREATE TABLE b (i INTEGER)", "INSERT INTO b (i) VALUES (1)")
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := db.Migrate(t.Context(), d, only(files)...); err != nil {
					t.Errorf("Migrate: %v", err)
				}
			})
		}
		wg.Wait()
		if n := get[int](t, d, "SELECT COUNT(*) FROM b"); n != 1 {
			t.Errorf("%d rows, want 1", n)
		}
	})
}

// TestMigrateWaits: on SQLite, Migrate waits up to 5 minutes for another writer.
func TestMigrateWaits(t *testing.T) {
	t.Parallel()
	for hold, want := range map[time.Duration]error{4 * time.Minute: nil, 6 * time.Minute: fault.Unavailable} {
		url := dbtest.SQLite(t)
		synctest.Test(t, func(t *testing.T) {
			d := mustOpen(t, url)
			writer, err := d.BeginTxx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			time.AfterFunc(hold, func() { _ = writer.Rollback() })
			err = db.Migrate(t.Context(), d, only(schema("CREATE TABLE a (i INTEGER)"))...)
			if took := time.Since(begin); !errors.Is(err, want) || took < 4*time.Minute || took > 5*time.Minute {
				t.Errorf("another writer for %v: Migrate = %v after %v, want %v", hold, err, took, want)
			}
			<-time.After(time.Minute) // the other writer ends
			if err := db.Migrate(t.Context(), d, only(schema("CREATE TABLE a (i INTEGER)"))...); err != nil {
				t.Errorf("Migrate without another writer: %v", err)
			}
		})
	}
}

// TestMigrateSteps: Migrate and Check return the right result for an upgrade, and for each difference that files and
// schema may have.
func TestMigrateSteps(t *testing.T) {
	t.Parallel()
	v2 := schema("CREATE TABLE a (i INTEGER)", "CREATE TABLE b (i INTEGER)")
	v3 := schema("CREATE TABLE a (i INTEGER)", "CREATE TABLE b (i INTEGER)", "CREATE TABLE c (i INTEGER)")
	v4 := maps.Clone(v3)
	v4["0004_step.sql"] = &fstest.MapFile{Data: []byte("-- +db breaks 2\nALTER TABLE b ADD COLUMN j INTEGER;\n")}
	changed := maps.Clone(v2)
	changed["0001_step.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\nCREATE TABLE a (i BIGINT);\n")}
	crlf := maps.Clone(v2)
	crlf["0001_step.sql"] = &fstest.MapFile{Data: []byte(strings.ReplaceAll(string(v2["0001_step.sql"].Data), "\n", "\r\n"))}
	late := maps.Clone(v2)
	delete(late, "0002_step.sql")
	late["0003_step.sql"] = v3["0003_step.sql"]
	missing := fstest.MapFS{"0002_step.sql": v2["0002_step.sql"]}
	migrate := func(ctx context.Context, d *sqlx.DB, files fs.FS) error { return db.Migrate(ctx, d, only(files)...) }
	check := func(ctx context.Context, d *sqlx.DB, files fs.FS) error {
		_, err := db.Check(ctx, d, only(files)...)
		return err
	}
	dbtest.Each(t, only(late), func(t *testing.T, d *sqlx.DB) {
		for _, err := range []error{migrate(t.Context(), d, v3), check(t.Context(), d, v3)} {
			if fault.CodeOf(err) != fault.Precondition || !strings.Contains(err.Error(), "0002_step.sql is new") {
				t.Errorf("a new file with a lower number: %v, want Precondition", err)
			}
		}
	})
	dbtest.Each(t, nil, func(t *testing.T, d *sqlx.DB) {
		for _, tt := range []struct {
			name string
			do   func(context.Context, *sqlx.DB, fs.FS) error
			dir  fstest.MapFS
			want string // a part of the error, a Precondition; empty: success
		}{
			{"check empty", check, v2, "version 0, older than version 2 of this program"},
			{"first", migrate, v2, ""},
			{"migrate a second time", migrate, v2, ""},
			{"check same", check, v2, ""},
			{"check older", check, v3, "version 2, older than version 3"},
			{"check changed", check, changed, "0001_step.sql has changed"},
			{"migrate changed", migrate, changed, "0001_step.sql has changed"},
			{"check missing", check, missing, "0001_step.sql was applied"},
			{"check with other line ends", check, crlf, ""},
			{"upgrade", migrate, v3, ""},
			{"check upgraded", check, v3, ""},
			{"check newer", check, v2, ""},
			{"migrate newer", migrate, v2, ""},
			{"check newer after that", check, v3, ""},
			{"a migration that breaks version 2", migrate, v4, ""},
			{"check broken", check, v2, "at version 4, and its migration 0004_step.sql does not work with version 2 of this program: upgrade the program"},
			{"migrate broken", migrate, v2, "at version 4, and its migration 0004_step.sql does not work with version 2 of this program: upgrade the program"},
			{"check not broken", check, v3, ""},
		} {
			err := tt.do(t.Context(), d, tt.dir)
			switch {
			case tt.want == "" && err != nil:
				t.Fatalf("%s: %v", tt.name, err)
			case tt.want != "" && (fault.CodeOf(err) != fault.Precondition || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("%s: %v, want Precondition with %q", tt.name, err, tt.want)
			}
		}
		exec(t, d, "INSERT INTO c (i) VALUES (1)")
	})
}

// TestMigrateFails: the error of a wrong migration has its version. The lock is free
// afterwards, and a corrected file is applied. On SQLite the failed Migrate changes
// nothing.
func TestMigrateFails(t *testing.T) {
	t.Parallel()
	good := schema("CREATE TABLE a (i INTEGER)", "CREATE TABLE b (i INTEGER)")
	bad := maps.Clone(good)
	bad["0002_step.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\nCREATE TABEL b (i INTEGER);\n")}
	dbtest.Each(t, nil, func(t *testing.T, d *sqlx.DB) {
		if err := db.Migrate(t.Context(), d, only(bad)...); err == nil || !strings.Contains(err.Error(), "0002_step.sql") {
			t.Fatalf("Migrate = %v, want an error with the version", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := db.Migrate(ctx, d, only(good)...); fault.CodeOf(err) != fault.Canceled {
			t.Errorf("Migrate = %v, want Canceled", err)
		}
		want := "at version 1"
		if d.DriverName() != "mysql" {
			want = "at version 0"
		}
		if _, err := db.Check(t.Context(), d, only(good)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Check = %v, want %s", err, want)
		}
		if err := db.Migrate(t.Context(), d, only(good)...); err != nil {
			t.Errorf("Migrate with the corrected file: %v", err)
		}
	})
}

// TestWrongMigrations: Migrate rejects a directory without files, a file without a number, and two files with the same number.
func TestWrongMigrations(t *testing.T) {
	t.Parallel()
	d := mustOpen(t, "sqlite:///:memory:")
	for name, dir := range map[string]fstest.MapFS{
		"no file":   {},
		"no number": {"first.sql": {Data: []byte("-- +goose Up\nSELECT 1;\n")}},
		"duplicate": {"1_a.sql": {Data: []byte("-- +goose Up\nSELECT 1;\n")}, "01_b.sql": {Data: []byte("-- +goose Up\nSELECT 1;\n")}},
	} {
		if err := db.Migrate(t.Context(), d, only(dir)...); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v (%v), want Invalid", name, err, fault.CodeOf(err))
		}
	}
}

// file returns a directory of one migration.
func file(name, text string) fstest.MapFS { return fstest.MapFS{name: {Data: []byte(text)}} }

// TestMigrateFailedTwice: a statement that fails because a table exists or does not exist also fails at the next call. Only after the
// process has died can such an error mean that the statement was executed.
func TestMigrateFailedTwice(t *testing.T) {
	t.Parallel()
	for name, statement := range map[string]string{
		"table exists": "CREATE TABLE a (i INTEGER);", "no table": "ALTER TABLE aa ADD COLUMN j INTEGER;", "no column": "ALTER TABLE a DROP COLUMN nope;",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, only(file("1_a.sql", "CREATE TABLE a (i INTEGER, j INTEGER);")), func(t *testing.T, d *sqlx.DB) {
				files := file("1_a.sql", "CREATE TABLE a (i INTEGER, j INTEGER);")
				files["2_b.sql"] = &fstest.MapFile{Data: []byte("CREATE TABLE b (i INTEGER);\n" + statement)}
				for i := range 3 {
					if err := db.Migrate(t.Context(), d, only(files)...); err == nil || !strings.Contains(err.Error(), "2_b.sql") {
						t.Errorf("call %d: %v, want the statement's error", i+1, err)
					}
				}
				if _, err := db.Check(t.Context(), d, only(files)...); err == nil {
					t.Error("Check succeeds after a migration that failed")
				}
			})
		})
	}
}

// TestMigrateCorrected: after a failure, the failed statement and those after it may be corrected. If an earlier statement changes, or the
// file is another one, Migrate refuses to continue on MySQL. On SQLite it continues, because nothing of the file was done.
func TestMigrateCorrected(t *testing.T) {
	t.Parallel()
	const first = "CREATE TABLE a (i INTEGER);\n"
	for name, tt := range map[string]struct {
		text string
		ok   bool
	}{
		"corrected":          {first + "CREATE TABLE b (i INTEGER);\nINSERT INTO b (i) VALUES (1);\n", true},
		"a statement before": {"CREATE TABLE z (i INTEGER);\n" + first + "CREATE TABLE b (i INTEGER);\n", false},
		"another file":       {"CREATE TABLE o1 (i INTEGER);\nCREATE TABLE o2 (i INTEGER);\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, nil, func(t *testing.T, d *sqlx.DB) {
				if err := db.Migrate(t.Context(), d, only(file("1_a.sql", first+"CREATE TABEL b (i INTEGER);\n"))...); err == nil {
					t.Fatal("a wrong statement succeeds")
				}
				err := db.Migrate(t.Context(), d, only(file("1_a.sql", tt.text))...)
				if ok := tt.ok || d.DriverName() != "mysql"; ok && err != nil || !ok && fault.CodeOf(err) != fault.Precondition {
					t.Errorf("%v, want success: %t", err, ok)
				}
			})
		})
	}
}

// TestMigrationText: Migrate accepts the texts that a file may have, and rejects others.
func TestMigrationText(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"no end": "CREATE TABLE b (i INTEGER)", "SET": "SET @x = 1;", "commit": "INSERT INTO a (t) VALUES ('');\nCOMMIT;",
		"commit after a comment": "/* x */ commit;", "a query with a semicolon": "-- +db applied-if SELECT 1;\nSELECT 1;", "an unknown declaration": "--+db brakes 1\nSELECT 1;",
	} {
		if err := db.Migrate(t.Context(), mustOpen(t, "sqlite:///:memory:"), only(file("2_a.sql", text))...); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
	if err := db.Migrate(t.Context(), mustOpen(t, "sqlite:///:memory:"), only(file("2_A.SQL", "SELECT 1;"))...); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("2_A.SQL: %v, want Invalid", err)
	}
	for name, text := range map[string]string{
		"plain":                "CREATE TABLE a (t TEXT);\nINSERT INTO a (t) VALUES ('x');\n",
		"a comment at the end": "CREATE TABLE a (t TEXT); -- one\nINSERT INTO a (t) VALUES ('x'); -- two",
		"down":                 "-- +goose Up\nCREATE TABLE a (t TEXT);\nINSERT INTO a (t) VALUES ('x');\n--  +GOOSE down\nDROP TABLE a;\n",
		"line ends":            "-- a comment\rCREATE TABLE a (t TEXT);\rINSERT INTO a (t) VALUES ('x');\r",
		"a byte order mark":    "\ufeff-- +db breaks 1\nCREATE TABLE a (t TEXT);\nINSERT INTO a (t) VALUES ('x');\n",
	} {
		dbtest.Each(t, only(file("2_a.sql", text)), func(t *testing.T, d *sqlx.DB) {
			if got := get[string](t, d, "SELECT t FROM a"); got != "x" {
				t.Errorf("%s: %q", name, got)
			}
		})
	}
	dbtest.Each(t, only(file("2_a.sql", "CREATE TABLE a (t TEXT);\nINSERT INTO a (t) VALUES ('x\n-- y\n\nz');\n")), func(t *testing.T, d *sqlx.DB) {
		if got := get[string](t, d, "SELECT t FROM a"); got != "x\n-- y\n\nz" {
			t.Errorf("a text of several lines: %q", got)
		}
	})
}

// TestOtherComponent: the database of another component, whose first migration has a lower number, is refused. The error names both causes.
func TestOtherComponent(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, only(schema("CREATE TABLE notes (id INTEGER NOT NULL PRIMARY KEY)")), func(t *testing.T, d *sqlx.DB) {
		err := db.Migrate(t.Context(), d, only(fstest.MapFS{"0013_all.sql": {
			Data: []byte("-- +db replaces 0013_last.sql " + strings.Repeat("a", 64) + "\n-- +goose Up\nCREATE TABLE servers (id INTEGER NOT NULL PRIMARY KEY);\n"),
		}})...)
		if !errors.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "first run db sync of an older release; or this is the database of another component: correct the name at the end of the URL") {
			t.Errorf("%v", err)
		}
	})
}
