package testenv_test

import (
	"context"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/testenv"
)

func TestMain(m *testing.M) {
	switch os.Getenv("TESTENV_INNER") {
	case "shared":
		testenv.Main(m, testenv.MariaDB)
	case "keystone":
		testenv.Main(m, testenv.Keystone)
	}
	os.Exit(m.Run())
}

// TestInner is the test that TestMainShares runs in another process.
func TestInner(t *testing.T) {
	if os.Getenv("TESTENV_INNER") == "" {
		t.Skip("TestMainShares runs it")
	}
	dbtest.Each(t, nil, func(t *testing.T, d *sqlx.DB) {
		now, err := db.Now(t.Context(), d)
		t.Logf("%s: %v, %v", d.DriverName(), now.IsZero(), err)
	})
}

// inner runs this program's TestInner without the services of the environment, and with a directory for temporary files.
func inner(t *testing.T, mode, tmp string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestInner$", "-test.v")
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ARMATURE_TEST_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "TESTENV_INNER="+mode, "TMPDIR="+tmp)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestMainShares: Main starts a database that dbtest finds, and leaves nothing behind.
func TestMainShares(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short: it starts a service; make test runs it")
	}
	dir := t.TempDir()
	out, err := inner(t, "shared", dir)
	if err != nil || !strings.Contains(out, "mysql: false, <nil>") || !strings.Contains(out, "sqlite3: false, <nil>") {
		t.Errorf("%v\n%s", err, out)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("these files are left: %v, %v", left, err)
	}
	if out, err := inner(t, "keystone", dir); err == nil || !strings.Contains(out, `"Keystone" cannot be shared`) {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestWithoutMain: a test without a service says how to get one.
func TestWithoutMain(t *testing.T) {
	t.Parallel()
	out, _ := inner(t, "none", t.TempDir()) // it fails only if CI is set
	if !strings.Contains(out, "call testenv.Main in TestMain, or set ARMATURE_TEST_MYSQL_URL") || !strings.Contains(out, "sqlite3: false, <nil>") {
		t.Errorf("%s", out)
	}
}

// TestStart: a service of a test's own is killed, started again with its data, and paused.
func TestStart(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short: it starts a service; make test runs it")
	}
	s := testenv.Start(t, testenv.MariaDB)
	d, err := db.Open(t.Context(), db.Config{URL: s.URL + "mysql"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	if _, err := d.ExecContext(t.Context(), `CREATE DATABASE kept`); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := net.DialTimeout("tcp", u.Host, time.Second); err == nil { //nolint:noctx // it is refused at once
		_ = c.Close()
		t.Error("a service that was killed answers")
	}
	s.Restart()
	kept, err := db.Open(t.Context(), db.Config{URL: s.URL + "kept"})
	if err != nil {
		t.Fatalf("after the restart: %v", err)
	}
	defer kept.Close()
	s.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := db.Now(ctx, kept); err == nil {
		t.Error("a service that is paused answers")
	}
	s.Resume()
	if _, err := db.Now(t.Context(), kept); err != nil {
		t.Errorf("after the pause: %v", err)
	}
}
