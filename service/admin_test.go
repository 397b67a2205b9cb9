package service_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service"
)

// running runs an App with an admin listener until the test ends.
func running(t *testing.T, app *service.App, cfg service.AdminConfig) (url string) {
	t.Helper()
	cfg.Addr = "127.0.0.1:0"
	admin := app.Admin(cfg)
	app.Add("admin", admin)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended //nolint:errcheck // a test that checks the error calls Run itself
	})
	for app.Ready(t.Context()) != nil && strings.HasSuffix(admin.Addr(), ":0") {
		select {
		case err := <-ended:
			t.Fatalf("the app ended: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	return "http://" + admin.Addr()
}

// TestAdminAddress: the admin listener accepts only a loopback address, unless Hosts are set, and answers
// no request whose Host header names another host.
func TestAdminAddress(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		addr  string
		hosts []string
		ok    bool
	}{
		{"127.0.0.1:0", nil, true},
		{"127.1.2.3:0", nil, true},
		{"localhost:0", nil, true},
		{"unix:" + filepath.Join(t.TempDir(), "admin.sock"), nil, true},
		{"0.0.0.0:0", nil, false},
		{"[::]:0", nil, false},
		{":0", nil, false},
		{"example.org:0", nil, false},
		{"192.0.2.1:0", nil, false},
		{"9774", nil, false},
		{"0.0.0.0:0", []string{"node1.example.org"}, true},
		{"0.0.0.0", []string{"node1.example.org"}, false},
		{"9774", []string{"node1.example.org"}, false},
		{"127.0.0.1:97740", nil, false},
		{"127.0.0.1:-1", nil, false},
		{"127.0.0.1:admni", nil, false},
		{"0.0.0.0:97740", []string{"node1.example.org"}, false},
	} {
		app := service.New(service.Config{Name: "test", Logger: slog.New(slog.DiscardHandler)})
		cfg := service.AdminConfig{Addr: tt.addr, Hosts: tt.hosts}
		p := app.Admin(cfg)
		err := p.Start(t.Context())
		if (err == nil) != tt.ok || err != nil && (fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "unix:")) {
			t.Errorf("%s, hosts %v: %v", tt.addr, tt.hosts, err)
		}
		if verr := cfg.Validate(); (verr == nil) != tt.ok {
			t.Errorf("%s, hosts %v: Validate: %v", tt.addr, tt.hosts, verr)
		}
		_ = p.Stop(t.Context())
	}
	url := running(t, service.New(service.Config{Name: "test", Logger: slog.New(slog.DiscardHandler)}), service.AdminConfig{Hosts: []string{"node1.example.org"}})
	for host, want := range map[string]int{
		"127.0.0.1": 200, "localhost:9774": 200, "LOCALHOST": 200, "[::1]:80": 200, "node1.example.org": 200, "Node1.Example.org:9774": 200,
		"evil.example.org": 403, "evil.example.org:9774": 403, "192.0.2.1": 403, "127.0.0.1.example.org": 403, "localhost.example.org": 403,
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/debug/config", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		res, err := client(t).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("Host %s: %d, want %d", host, res.StatusCode, want)
		}
	}
}

func ask(t *testing.T, method, url, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(out)
}

// TestAdmin: each page replies as documented, even to a wrong request.
func TestAdmin(t *testing.T) {
	t.Parallel()
	var level slog.LevelVar
	app := service.New(service.Config{Name: "app", NoSignals: true, Logger: quiet()})
	var broken error
	calls := make(chan struct{}, 10)
	app.Add("database", service.Funcs{OnCheck: func(context.Context) error { return broken }})
	app.Add("audit", service.Loop(time.Hour, func(context.Context) error {
		calls <- struct{}{}
		return errBoom
	}))
	app.AddReport("weather", func(w io.Writer) error {
		_, err := io.WriteString(w, "it rains\n")
		return err
	})
	url := running(t, app, service.AdminConfig{
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "up 1\n") }),
		Config:  func() any { return map[string]string{"workers": "4"} },
		Level:   &level,
	})
	end := app.Inflight().Begin(reqctx.With(t.Context(), reqctx.Request{ID: "req-1"}), service.Work{Kind: "task", Name: "copy", Resource: "v1"})
	for _, tt := range []struct {
		method, path, body string
		code               int
		says               string
	}{
		{"GET", "/livez", "", 200, `"status": "ok"`},
		{"GET", "/readyz", "", 200, `"name": "database"`},
		{"GET", "/metrics", "", 200, "up 1"},
		{"GET", "/debug/config", "", 200, `"workers": "4"`},
		{"GET", "/debug/inflight", "", 200, `"request_id": "req-1"`},
		{"GET", "/debug/loops", "", 200, `"name": "audit"`},
		{"GET", "/debug/loops", "", 200, `"every": "`},
		{"POST", "/debug/loops/audit/run", "", 500, "boom"},
		{"POST", "/debug/loops/none/run", "", 404, "does not exist"},
		{"GET", "/debug/loops", "", 200, `"failed": 1`},
		{"GET", "/debug/loglevel", "", 200, "INFO"},
		{"PUT", "/debug/loglevel", `{"level": "debug"}`, 200, "DEBUG"},
		{"PUT", "/debug/loglevel", `{"level": "loud"}`, 400, "the body must be"},
		{"GET", "/debug/report", "", 200, "it rains"},
		{"GET", "/debug/report", "", 200, "task copy v1 req-1"},
		{"GET", "/debug/report", "", 200, "admin_test.go"},
		{"GET", "/debug/pprof/goroutine?debug=1", "", 200, "goroutine profile"},
		{"POST", "/debug/reload", "", 200, "ok"},
		{"DELETE", "/debug/config", "", 405, ""},
	} {
		code, body := ask(t, tt.method, url+tt.path, tt.body)
		if code != tt.code || !strings.Contains(body, tt.says) {
			t.Errorf("%s %s = %d %s, want %d with %s", tt.method, tt.path, code, body, tt.code, tt.says)
		}
	}
	if len(calls) != 1 || level.Level() != slog.LevelDebug {
		t.Errorf("the loop was called %d times, the level is %v", len(calls), level.Level())
	}
	if code, body := ask(t, "POST", url+"/debug/reload", "", "Origin", "http://evil.example"); code != 403 {
		t.Errorf("a web page's request = %d %s", code, body)
	}
	end()
	end()
	broken = errors.New("no route to host")
	code, body := ask(t, "GET", url+"/readyz", "")
	var got struct {
		Status string
		Checks []struct{ Name, Status, Error string }
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || code != 503 || got.Status != "unavailable" || got.Checks[0].Error != "no route to host" {
		t.Errorf("readyz = %d %s, %v", code, body, err)
	}
	if _, body := ask(t, "GET", url+"/debug/inflight", ""); strings.TrimSpace(body) != "[]" {
		t.Errorf("in flight: %s", body)
	}
}

// TestAdminWithoutLevel: without a Level every request about the log level is answered with 501, and metrics do not exist.
func TestAdminWithoutLevel(t *testing.T) {
	t.Parallel()
	url := running(t, service.New(service.Config{NoSignals: true, Logger: quiet()}), service.AdminConfig{})
	for _, body := range []string{`{"level": "debug"}`, `{"level": "loud"}`, `{`} {
		if code, text := ask(t, http.MethodPut, url+"/debug/loglevel", body); code != http.StatusNotImplemented {
			t.Errorf("PUT %s = %d %s, want 501", body, code, text)
		}
	}
	if code, text := ask(t, http.MethodGet, url+"/debug/loglevel", ""); code != http.StatusNotImplemented {
		t.Errorf("GET = %d %s, want 501", code, text)
	}
	if code, _ := ask(t, http.MethodGet, url+"/metrics", ""); code != http.StatusNotFound {
		t.Errorf("GET /metrics = %d, want 404", code)
	}
}

// TestInflight: List returns the work that has begun and has not ended, the oldest first. The order in
// which work ends does not matter.
func TestInflight(t *testing.T) {
	t.Parallel()
	var f service.Inflight
	ends := map[string]func(){}
	for _, name := range []string{"a", "b", "c", "d"} {
		ends[name] = f.Begin(t.Context(), service.Work{Name: name})
	}
	for _, step := range []struct {
		end  string
		want []string
	}{{"b", []string{"a", "c", "d"}}, {"d", []string{"a", "c"}}, {"b", []string{"a", "c"}}, {"a", []string{"c"}}, {"c", []string{}}, {"c", []string{}}} {
		ends[step.end]()
		names := []string{}
		for _, w := range f.List() {
			names = append(names, w.Name)
		}
		if diff := cmp.Diff(step.want, names); diff != "" {
			t.Errorf("after the end of %s (-want +got):\n%s", step.end, diff)
		}
	}
}

// TestDrainBeforeStop: every part is drained before any part is stopped, and work that the
// deadline cuts off is logged with its request id.
func TestDrainBeforeStop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		j := new(journal)
		note := func(what string) func(context.Context) error {
			return func(context.Context) error { j.add("%s", what); return nil }
		}
		app := service.New(service.Config{Name: "app", NoSignals: true, DrainTimeout: time.Second, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		app.Add("bus", service.Funcs{OnStop: note("stop bus")})
		app.Add("rpc", service.Funcs{OnDrain: note("drain rpc"), OnStop: note("stop rpc")})
		app.Add("api", service.Funcs{OnDrain: func(ctx context.Context) error {
			j.add("drain api")
			defer app.Inflight().Begin(reqctx.With(ctx, reqctx.Request{ID: "req-7"}), service.Work{Kind: "request", Name: "POST /v1/volumes"})()
			<-ctx.Done()
			return ctx.Err()
		}, OnStop: note("stop api")})
		err := app.Run(stopWhenReady(t, app))
		if diff := cmp.Diff([]string{"drain api", "drain rpc", "stop api", "stop rpc", "stop bus"}, j.entries()); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
		if fault.CodeOf(err) != fault.Timeout || !strings.Contains(err.Error(), "cut off after 1s: api") {
			t.Errorf("Run = %v", err)
		}
		if !strings.Contains(out.String(), `msg="work cut off" service=app kind=request name="POST /v1/volumes" resource="" request_id=req-7`) {
			t.Errorf("the log does not say what was cut off:\n%s", &out)
		}
	})
}

// TestReload: parts are reloaded in order. The first error ends the reload, and the log says what has changed.
func TestReload(t *testing.T) {
	t.Parallel()
	j := new(journal)
	out := new(lockedText)
	var failing atomic.Pointer[string]
	app := service.New(service.Config{Name: "api", NoSignals: true, Logger: slog.New(slog.NewTextHandler(out, nil))})
	for _, name := range []string{"options", "policy", "certificates"} {
		app.Add(name, service.Funcs{OnReload: func(context.Context) error {
			j.add("%s", name)
			if f := failing.Load(); f != nil && *f == name {
				return errBoom
			}
			return nil
		}})
	}
	if err := app.Reload(t.Context()); fault.CodeOf(err) != fault.Unavailable || len(j.entries()) > 0 {
		t.Errorf("before it runs: %v, %v", err, j.entries())
	}
	running(t, app, service.AdminConfig{})
	<-app.Started()
	for _, tt := range []struct {
		fails, says string
		calls       []string
	}{
		{"", `level=INFO msg=reloaded service=api parts="[options policy certificates admin]"`, []string{"options", "policy", "certificates"}},
		{"options", `level=ERROR msg="reload failed, nothing changed" service=api error="reload options: boom" reloaded=[] unchanged="[options policy certificates admin]"`, []string{"options"}},
		{"policy", `level=ERROR msg="reload failed, later parts not reloaded" service=api error="reload policy: boom" reloaded=[options] unchanged="[policy certificates admin]"`, []string{"options", "policy"}},
	} {
		before := len(j.entries())
		failing.Store(&tt.fails)
		err := app.Reload(t.Context())
		if (err == nil) != (tt.fails == "") || err != nil && (!errors.Is(err, errBoom) || err.Error() != "reload "+tt.fails+": boom") {
			t.Errorf("Reload = %v, want the error of %q", err, tt.fails)
		}
		if diff := cmp.Diff(tt.calls, j.entries()[before:]); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
		if !strings.Contains(out.String(), tt.says) {
			t.Errorf("the log lacks %s:\n%s", tt.says, out)
		}
	}
}

// lockedText collects log lines. It is safe for concurrent use.
type lockedText struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// TestHungCheck: a check that hangs makes the App not ready. It is not called again while it
// hangs, and delays no caller longer than its timeout.
func TestHungCheck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var calls atomic.Int32
		app := service.New(service.Config{NoSignals: true, CheckTimeout: time.Second, Logger: quiet()})
		app.Add("driver", service.Funcs{OnCheck: func(context.Context) error {
			calls.Add(1)
			<-release
			return nil
		}})
		app.Add("database", service.Funcs{OnCheck: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }})
		for range 3 {
			begin := time.Now()
			checks := app.Checks(t.Context())
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("the checks took %v", took)
			}
			if fault.CodeOf(checks[0].Err) != fault.Timeout || !strings.Contains(checks[0].Err.Error(), "hangs") {
				t.Errorf("the check that hangs: %v", checks[0].Err)
			}
			if !errors.Is(checks[1].Err, context.DeadlineExceeded) || strings.Contains(checks[1].Err.Error(), "hangs") {
				t.Errorf("the check that is only slow: %v", checks[1].Err)
			}
		}
		if n := calls.Load(); n != 1 {
			t.Errorf("the check that hangs was called %d times", n)
		}
		close(release)
		synctest.Wait()
		if checks := app.Checks(t.Context()); checks[0].Err != nil || calls.Load() != 2 {
			t.Errorf("after it ended: %v, %d calls", checks[0].Err, calls.Load())
		}
	})
}

// TestRunNow: RunNow calls the function of a loop, even of a disabled loop, but never while another call runs.
func TestRunNow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		active := 0
		l := service.Loop(-1, func(context.Context) error {
			if active++; active > 1 {
				t.Error("two calls at once")
			}
			<-time.After(time.Second)
			active--
			return errBoom
		})
		if err := l.RunNow(t.Context()); fault.CodeOf(err) != fault.Unavailable {
			t.Errorf("before Start: %v", err)
		}
		if err := l.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		results := make(chan error, 3)
		for range 3 {
			go func() { results <- l.RunNow(t.Context()) }()
		}
		for range 3 {
			if err := <-results; !errors.Is(err, errBoom) {
				t.Errorf("RunNow = %v", err)
			}
		}
		if s := l.Stats(); s.Calls != 3 || s.Failed != 3 || s.Took != time.Second || s.Total != 3*time.Second || s.Err != "boom" || s.Running {
			t.Errorf("stats: %+v", s)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := l.RunNow(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("RunNow of a caller that does not wait: %v", err)
		}
		if err := l.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if err := l.RunNow(t.Context()); fault.CodeOf(err) != fault.Unavailable {
			t.Errorf("after Stop: %v", err)
		}
	})
}
