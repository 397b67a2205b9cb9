package component_test

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/service/operation"
)

// TestStatus: the command shows what the database knows, and what the processes of this host say about themselves. It says what it cannot reach, and
// then shows the rest.
func TestStatus(t *testing.T) {
	t.Parallel()
	w, dir := newWorld(), t.TempDir()
	env := []string{
		"OS_DEFAULT__HOST=h1", "OS_DEFAULT__LISTEN=127.0.0.1:0", "OS_DEFAULT__STATE_PATH=" + dir, "OS_DEFAULT__ADMIN_LISTEN=unix:" + filepath.Join(dir, "{service}.sock"),
	}
	p, _, stop := w.start(t, nil, env...)
	<-p.App.Started()
	status := func(want int, env []string, args ...string) string {
		t.Helper()
		code, out, errs := w.command(t, env, append([]string{"status"}, args...)...)
		if code != want {
			t.Errorf("status: %d, want %d: %s", code, want, errs)
		}
		return out + errs
	}
	lines := map[string]string{} // the key is the first word
	out := status(0, env)
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) > 0 {
			lines[fields[0]] = strings.Join(fields[1:], " ")
		}
	}
	for name, want := range map[string]string{"writer": "h1 up", "PROCESS": "STATE ADDRESS WHY", "all-in-one": "ready"} {
		if !strings.HasPrefix(lines[name], want) {
			t.Errorf("%s: %q, want %s\n%s", name, lines[name], want, out)
		}
	}
	var seen struct {
		Members   []map[string]any
		Processes []struct{ Process, State, Address, Why string }
	}
	if out := status(0, env, "-o", "json"); json.Unmarshal([]byte(out), &seen) != nil || len(seen.Members) != 1 || len(seen.Processes) != 1 || seen.Processes[0].State != "ready" {
		t.Errorf("%+v", seen)
	}

	broken := append(env, "OS_DATABASE__CONNECTION=sqlite:///nowhere/x.db")
	if out := status(1, broken); !strings.Contains(out, "all-in-one  ready") || !strings.Contains(out, "[database] connection") {
		t.Errorf("without the database: %s", out)
	}
	stop()
	if out := status(0, env); strings.Contains(out, "all-in-one") || !strings.Contains(out, "no such file") || !strings.Contains(out, "back        not running") && !strings.Contains(out, "back     not running") {
		t.Errorf("after the end: %s", out)
	}
	abandoned, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(dir, "front.sock"))
	if err != nil {
		t.Fatal(err)
	}
	abandoned.(*net.UnixListener).SetUnlinkOnClose(false) //nolint:forcetypeassert // the network is unix
	abandoned.Close()
	if out := status(0, env); !strings.Contains(strings.Join(strings.Fields(out), " "), "front not running unix:"+filepath.Join(dir, "front.sock")+" no process listens at the socket: the last one was killed") {
		t.Errorf("after a process was killed: %s", out)
	}

	if out := status(0, env); !strings.Contains(out, "worker") {
		t.Errorf("without a process, the service is not listed: %s", out)
	}
	disabled := append(env[1:], "OS_DEFAULT__HOST=no-worker")
	if out := status(0, disabled); strings.Contains(out, "worker") || !strings.Contains(out, "back") {
		t.Errorf("a disabled service: %s", out)
	}
	if err := os.WriteFile(filepath.Join(dir, "worker.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := status(0, disabled); !strings.Contains(out, "worker") {
		t.Errorf("a disabled service with a socket is not listed: %s", out)
	}

	// One address for all processes of the host, at which another program listens.
	teapot := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	defer teapot.Close()
	other := append(env[:3:3], "OS_DEFAULT__ADMIN_LISTEN="+teapot.Listener.Addr().String())
	if out := status(0, other); !strings.Contains(out, "not reached") || !strings.Contains(out, "418") || strings.Contains(out, "front") {
		t.Errorf("another server: %s", out)
	}
	if out := status(0, env[:3:3]); strings.Contains(out, "PROCESS ") {
		t.Errorf("without admin_listen: %s", out)
	}
}

// TestStatusOfHungDatabase: while the database hangs, the command names it and shows the processes, which say that they are not ready because of it. It
// prints no empty tables of members and operations.
func TestStatusOfHungDatabase(t *testing.T) {
	t.Parallel()
	server := envtest.MariaDB(t)
	w, dir := newWorld(), t.TempDir()
	env := []string{
		"OS_DEFAULT__HOST=h1", "OS_DEFAULT__LISTEN=127.0.0.1:0", "OS_DEFAULT__STATE_PATH=" + dir, "OS_DEFAULT__ADMIN_LISTEN=unix:" + filepath.Join(dir, "{service}.sock"),
		"OS_DATABASE__CONNECTION=" + dbtest.On(t, server.URL), "OS_API__AUTH_STRATEGY=noauth2",
	}
	p, _, _ := w.start(t, nil, env...)
	<-p.App.Started()
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Resume() }) // before the process ends
	want := "the database at 127.0.0.1:" + strconv.Itoa(server.Port) + " accepts connections but does not answer (it hangs, or a proxy has no server)"
	for range 2 { // the check of the process begins at another time
		code, out, errs := w.command(t, env, "status")
		line := strings.Join(strings.Fields(out), " ")
		if code != 1 || !strings.Contains(line, "all-in-one not ready unix:") || !strings.Contains(line, "database: ") || strings.Contains(out, "KIND") || strings.Contains(out, "OPERATIONS") {
			t.Errorf("%d: %s", code, out)
		}
		if strings.Count(errs, "members and operations cannot be read") != 1 || !strings.Contains(errs, want) {
			t.Errorf("%s\nwant %s", errs, want)
		}
	}
	code, out, _ := w.command(t, env, "status", "-o", "json")
	var seen map[string]any
	if err := json.Unmarshal([]byte(out), &seen); code != 1 || err != nil || seen["members"] != nil || seen["operations"] != nil || seen["processes"] == nil {
		t.Errorf("%d %v: %s", code, err, out)
	}
	for _, args := range []string{"operation list", "member list", "db check", "config validate --service all-in-one --online"} {
		if code, _, errs := w.command(t, env, strings.Fields(args)...); code != 1 || !strings.Contains(errs, want) {
			t.Errorf("%s: %d %s\nwant %s", args, code, errs, want)
		}
	}
}

// TestStatusCounts: the command counts all open operations, and shows the creation time of the oldest, even if there are more than 10,000.
func TestStatusCounts(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := "sqlite://" + filepath.Join(t.TempDir(), "notes.db")
	env := []string{"OS_DATABASE__CONNECTION=" + url}
	if code, _, errs := w.command(t, env, "db", "sync"); code != 0 {
		t.Fatal(errs)
	}
	d, err := db.Open(t.Context(), db.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := operation.Begin(t.Context(), operation.NewStore(d), take, "oldest", &note{}); err != nil {
		t.Fatal(err)
	}
	oldest := time.Now().UTC().Add(-24 * time.Hour).Truncate(time.Second)
	if _, err := d.ExecContext(t.Context(), `UPDATE operations SET created_at = ?`, oldest); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ExecContext(t.Context(), `INSERT INTO operations (id, kind, resource, active, priority, state, outcome, step, attempts, events, input, data,
			error_code, error, fence, owner, due_at, deadline_at, timeout_ms, request_id, project_id, user_id, created_at, updated_at)
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
		SELECT 'id' || i, kind, 'r' || i, 'r' || i, priority, state, outcome, step, attempts, events, input, data,
			error_code, error, fence, owner, due_at, deadline_at, timeout_ms, request_id, project_id, user_id, updated_at, updated_at FROM operations, n`); err != nil {
		t.Fatal(err)
	}
	code, out, errs := w.command(t, env, "status", "-o", "json")
	var seen struct {
		Operations []struct {
			Kind, State string
			Count       int
			Oldest      time.Time `json:"oldest_at"`
		}
	}
	if err := json.Unmarshal([]byte(out), &seen); code != 0 || err != nil || len(seen.Operations) != 1 {
		t.Fatalf("%d %s %v %s", code, errs, err, out)
	}
	if o := seen.Operations[0]; o.Kind != "note.take" || o.State != "running" || o.Count != 10_001 || o.Oldest.Sub(oldest).Abs() > time.Minute {
		t.Errorf("%+v; want 10001, the oldest created at %v", o, oldest)
	}
}
