package component_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
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
	lines := map[string]string{} // by the first word
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
	if out := status(0, env); strings.Contains(out, "all-in-one") || !strings.Contains(out, "no such file") || !strings.Contains(out, "back        not reached") && !strings.Contains(out, "back     not reached") {
		t.Errorf("after the end: %s", out)
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
