package db_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
)

const (
	killURLVar = "ARMATURE_TEST_KILL_URL" // the URL of the database of a child process that migrates
	killAtVar  = "ARMATURE_TEST_KILL_AT"  // the number of the statement before which the child kills itself
)

func TestMain(m *testing.M) {
	if url := os.Getenv(killURLVar); url != "" {
		migrateAndDie(url)
	}
	goleak.VerifyTestMain(m)
}

// The migrations in killed are such that the test sees whether a statement took effect more than once, or not at all.
var killed = []db.Migrations{
	{Name: "library", Files: fstest.MapFS{
		"1_parts.sql": {Data: []byte("-- +db applied-if SELECT id FROM parts LIMIT 0\nCREATE TABLE parts (id INTEGER NOT NULL PRIMARY KEY);\nINSERT INTO parts (id) VALUES (1);\n")},
	}},
	{Files: fstest.MapFS{
		"0001_first.sql": {Data: []byte("CREATE TABLE a (id INTEGER NOT NULL PRIMARY KEY, n INTEGER NOT NULL, extra INTEGER);\nINSERT INTO a (id, n) VALUES (1, 0), (2, 0);\nCREATE INDEX a_n ON a (n);\n")},
		"0002_second.sql": {Data: []byte(`UPDATE a SET n = n + 1;
ALTER TABLE a ADD COLUMN k INTEGER NOT NULL DEFAULT 0;
UPDATE a SET k = k + n;
ALTER TABLE a RENAME TO b;
CREATE VIEW c AS SELECT id, n + k AS sum FROM b;
ALTER TABLE b DROP COLUMN extra;
INSERT INTO parts (id) SELECT 10 + id FROM b;
`)},
	}},
}

// migrateAndDie is the main function of the child process. It kills the process before the statement with the number in
// killAtVar.
func migrateAndDie(url string) {
	at, _ := strconv.Atoi(os.Getenv(killAtVar))
	n := 0
	d, err := db.Open(context.Background(), db.Config{URL: url, MaxOpen: 1, Observe: func(context.Context, string) func(error) {
		if n++; n == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return func(error) {}
	}})
	if err == nil {
		err = db.Migrate(context.Background(), d, killed...)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestMigrateKilled: a process that migrates is killed before one of its statements. The next process continues where the killed one
// stopped, and each statement takes effect once. The test repeats this for each statement.
func TestMigrateKilled(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		mysql := strings.HasPrefix(url, "mysql")
		for at := 1; ; at++ {
			one := dbtest.SQLite(t)
			if mysql {
				one = dbtest.MySQL(t)
			}
			cmd := osexec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), killURLVar+"="+one, killAtVar+"="+strconv.Itoa(at))
			out, err := cmd.CombinedOutput()
			var exit *osexec.ExitError
			if err != nil && (!errors.As(err, &exit) || exit.Exited()) {
				t.Fatalf("statement %d: %v: %s", at, err, out)
			}
			d, oerr := db.Open(t.Context(), db.Config{URL: one})
			if oerr != nil {
				t.Fatal(oerr)
			}
			for range 2 {
				if err := db.Migrate(t.Context(), d, killed...); err != nil {
					t.Fatalf("killed before statement %d: %v", at, err)
				}
			}
			checkKilled(t, d, at)
			_ = d.Close()
			if err == nil {
				if at < 10 {
					t.Errorf("only %d statements", at)
				}
				return
			}
		}
	})
}

func checkKilled(t *testing.T, d *sqlx.DB, at int) {
	t.Helper()
	if warning, err := db.Check(t.Context(), d, killed...); warning != "" || err != nil {
		t.Errorf("killed before statement %d: Check: %q, %v", at, warning, err)
	}
	if n := get[int](t, d, "SELECT SUM(sum) FROM c"); n != 4 {
		t.Errorf("killed before statement %d: sum %d, want 4: an UPDATE ran twice, or did not run", at, n)
	}
	if n := get[int](t, d, "SELECT SUM(id) FROM parts"); n != 1+11+12 {
		t.Errorf("killed before statement %d: parts %d, want 24", at, n)
	}
}
