package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

func TestMain(m *testing.M) {
	if how := os.Getenv(idleVar); how != "" {
		if err := idleClients(context.Background(), how); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

type disk struct {
	Name  string            `json:"name"`
	Size  int               `json:"size"`
	Tags  []string          `json:"tags,omitempty"`
	Meta  map[string]string `json:"meta,omitempty"`
	Ready bool              `json:"ready,omitempty"`
}

type create struct {
	Disk *disk `json:"disk"`
}

var errTooSmall = errors.New("size must be at least 1")

func (c *create) Validate() error {
	switch {
	case c.Disk == nil:
		return api.Missing("disk")
	case c.Disk.Name == "":
		return fmt.Errorf("disk: %w", api.Missing("name"))
	case c.Disk.Size < 1:
		return errTooSmall
	}
	return nil
}

// logBuffer is a log that several goroutines may write.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// newMux returns a Mux with a few routes, and its log.
func (b *logBuffer) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Reset()
}

func newMux(cfg api.Config) (*api.Mux, *logBuffer) {
	out := new(logBuffer)
	cfg.Logger = slog.New(reqctx.LogHandler(slog.NewTextHandler(out, nil)))
	m := api.New(cfg)
	api.Handle(m, "POST /disks", func(_ context.Context, r *api.Request[create]) (create, error) {
		r.Status = http.StatusAccepted
		r.ReplyHeader.Set("Location", "/disks/1")
		return r.Body, nil
	})
	api.Handle(m, "GET /disks/{id}", func(_ context.Context, r *api.Request[api.None]) (map[string]string, error) {
		return map[string]string{"id": r.PathValue("id"), "fields": r.URL.Query().Get("fields"), "accept": r.Header.Get("Accept")}, nil
	})
	api.Handle(m, "DELETE /disks/{id}", func(context.Context, *api.Request[api.None]) (api.None, error) {
		return api.None{}, nil
	})
	return m, out
}

// failing returns a Mux whose GET /x answers err.
func failing(cfg api.Config, err error) (*api.Mux, *logBuffer) {
	m, out := newMux(cfg)
	api.Handle(m, "GET /x", func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, err })
	return m, out
}

func send(t *testing.T, h http.Handler, method, path, body string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// wantFault checks status and the whole error body.
func wantFault(t *testing.T, w *httptest.ResponseRecorder, status int, name, message string) {
	t.Helper()
	want := map[string]any{name: map[string]any{"code": float64(status), "message": message}}
	var got map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatalf("body %q: %v", w.Body, err)
	}
	if w.Code != status || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("status %d, type %q; want %d, application/json", w.Code, w.Header().Get("Content-Type"), status)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
}

func TestReplies(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{})
	tests := []struct {
		name, method, path, body string
		wantStatus               int
		wantBody, wantLocation   string
	}{
		{"accepted", "POST", "/disks", `{"disk":{"name":"a<b","size":2}}`, 202, `{"disk":{"name":"a<b","size":2}}`, "/disks/1"},
		{"path and query", "GET", "/disks/7?fields=x", "", 200, `{"accept":"","fields":"x","id":"7"}`, ""},
		{"no body", "DELETE", "/disks/7", "", 204, "", ""},
		{"a body nobody asked for is not read", "DELETE", "/disks/7", "{junk", 204, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := send(t, m, tt.method, tt.path, tt.body)
			if w.Code != tt.wantStatus || w.Body.String() != tt.wantBody || w.Header().Get("Location") != tt.wantLocation {
				t.Errorf("got %d %q, Location %q", w.Code, w.Body, w.Header().Get("Location"))
			}
		})
	}
}

func TestBadBodies(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{})
	tests := []struct {
		name, body, want string
	}{
		{"empty", "", "Malformed request body"},
		{"not JSON", "{not json", "Malformed request body"},
		{"cut short", `{"disk":`, "Malformed request body"},
		{"trailing value", `{"disk":{"name":"a","size":1}} {}`, "Malformed request body"},
		{"trailing garbage", `{"disk":{"name":"a","size":1}}]`, "Malformed request body"},
		{"unknown field", `{"disk":{"name":"a","surprise":1}}`, "Additional properties are not allowed ('surprise' was unexpected)"},
		{"number for string", `{"disk":{"name":5}}`, "Invalid input for field/attribute name. Value: 5. 5 is not of type 'string'"},
		{"string for integer", `{"disk":{"size":"5"}}`, "Invalid input for field/attribute size. Value: 5. '5' is not of type 'integer'"},
		{"fraction for integer", `{"disk":{"size":1.5}}`, "Invalid input for field/attribute size. Value: 1.5. 1.5 is not of type 'integer'"},
		{"too large an integer", `{"disk":{"size":99999999999999999999}}`, "Invalid input for field/attribute size. Value: 99999999999999999999. 99999999999999999999 is out of range"},
		{"object for string", `{"disk":{"name":{"a":[1]}}}`, "Invalid input for field/attribute name. Value: {'a': [1]}. {'a': [1]} is not of type 'string'"},
		{"string for object", `{"disk":"x"}`, "Invalid input for field/attribute disk. Value: x. 'x' is not of type 'object'"},
		{"bool for array", `{"disk":{"tags":true}}`, "Invalid input for field/attribute tags. Value: True. True is not of type 'array'"},
		{"number for bool", `{"disk":{"ready":0}}`, "Invalid input for field/attribute ready. Value: 0. 0 is not of type 'boolean'"},
		{"array at the top", `[1]`, "[1] is not of type 'object'"},
		{"missing", `{}`, "'disk' is a required property"},
		{"missing, wrapped", `{"disk":{}}`, "'name' is a required property"},
		{"plain error of Validate", `{"disk":{"name":"a"}}`, "size must be at least 1"},
		{
			"long value is shortened",
			`{"disk":{"size":"` + strings.Repeat("x", 5000) + `"}}`,
			"Invalid input for field/attribute size. Value: " + strings.Repeat("x", 400) + ".... '" + strings.Repeat("x", 399) + "... is not of type 'integer'",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			wantFault(t, send(t, m, "POST", "/disks", tt.body), 400, "badRequest", tt.want)
		})
	}
}

func TestMediaType(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{})
	const body = `{"disk":{"name":"a","size":1}}`
	for _, ct := range []string{"", "text/plain", "application/xml", "application/json-patch+json", ";;"} {
		wantFault(t, send(t, m, "POST", "/disks", body, "Content-Type", ct), 415, "badMediaType",
			"The media type of the body must be application/json.")
	}
	for _, ct := range []string{"application/json", "application/json; charset=UTF-8", "Application/JSON"} {
		if w := send(t, m, "POST", "/disks", body, "Content-Type", ct); w.Code != 202 {
			t.Errorf("%s: status %d", ct, w.Code)
		}
	}
}

func TestNoRoute(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{Authenticate: func(*http.Request) (reqctx.Request, error) {
		return reqctx.Request{}, fault.Unauthenticated
	}})
	wantFault(t, send(t, m, "GET", "/nothing", ""), 404, "itemNotFound", "The resource could not be found.")
	open, _ := newMux(api.Config{})
	wantFault(t, send(t, open, "GET", "/disks/1%20", ""), 404, "itemNotFound", "The resource could not be found.") // it is not /disks/1
	w := send(t, m, "PATCH", "/disks/1", "")
	wantFault(t, w, 405, "badMethod", "The method PATCH is not allowed for this resource.")
	if got := w.Header().Get("Allow"); got != "DELETE, GET, HEAD" {
		t.Errorf("Allow = %q", got)
	}
}

// private is an error as package db makes them.
func private(c fault.Code) error {
	return &fault.Error{Code: c, Private: true, Msg: "Error 1045 (28000): Access denied for user 'volume'@'10.0.0.7'"}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	const (
		cause       = " The service's log has the cause under request id ID."
		unavailable = "The service is not available for the moment." + cause
		late        = "The service has not got an answer in time; the request may have been executed." + cause
		broken      = "Unexpected API Error." + cause
	)
	noHost := fault.Sentinel(fault.Exhausted, "NoValidHost", "no valid host")
	tests := []struct {
		name       string
		err        error
		wantStatus int
		wantName   string
		wantMsg    string
	}{
		{"invalid", fault.New(fault.Invalid, "bad %d", 1), 400, "badRequest", "bad 1"},
		{"unauthenticated", fault.New(fault.Unauthenticated, "who?"), 401, "unauthorized", "who?"},
		{"denied", fault.New(fault.Denied, "no"), 403, "forbidden", "no"},
		{"not found", fault.New(fault.NotFound, "Disk 1 could not be found."), 404, "itemNotFound", "Disk 1 could not be found."},
		{"conflict", fault.New(fault.Conflict, "taken"), 409, "conflictingRequest", "taken"},
		{"precondition", fault.New(fault.Precondition, "busy"), 409, "conflictingRequest", "busy"},
		{"exhausted", noHost, 403, "forbidden", "no valid host"},
		{"plain text around a fault is for the log", fmt.Errorf("on n1: %w", noHost), 403, "forbidden", "no valid host"},
		{"a fault around a fault is not", fault.New(fault.NotFound, "gone: %w", noHost), 404, "itemNotFound", "gone: no valid host"},
		{"unimplemented", fault.New(fault.Unimplemented, "later"), 501, "notImplemented", "later"},
		{"unavailable", fault.New(fault.Unavailable, "no bus at 10.0.0.7"), 503, "diskFault", unavailable},
		{"unavailable, with a text for users", fault.WithUser(fault.New(fault.Unavailable, "no bus at 10.0.0.7"), "We move house."), 503, "diskFault", "We move house."},
		{"unavailable, through a plain error and a peer", fmt.Errorf("call x.y: %w", fault.Remote(*fault.From(fmt.Errorf("n1: %w", fault.New(fault.Unavailable, "no bus at 10.0.0.7"))))), 503, "diskFault", unavailable},
		{"timeout", context.DeadlineExceeded, 504, "diskFault", late},
		{"unknown", fault.New(fault.Unknown, "lost"), 504, "diskFault", late},
		{"canceled", context.Canceled, 499, "diskFault", "Canceled"},
		{"own status", api.WithStatus(410, errors.New("gone for good")), 410, "diskFault", "gone for good"},
		{"own status of a fault", fmt.Errorf("x: %w", api.WithStatus(429, fault.New(fault.Exhausted, "slower"))), 429, "tooManyRequests", "slower"},
		{"remote", fault.Remote(fault.Error{Code: fault.NotFound, Msg: "no such disk"}), 404, "itemNotFound", "no such disk"},
		{"remote, with where it passed", fault.Remote(*fault.From(fmt.Errorf("select: %w", noHost))), 403, "forbidden", "no valid host"},
		{"a private login", private(fault.Unauthenticated), 503, "diskFault", unavailable},
		{"a private right", private(fault.Denied), 503, "diskFault", unavailable},
		{"a private disk", private(fault.Exhausted), 503, "diskFault", unavailable},
		{"a private outage", private(fault.Unavailable), 503, "diskFault", unavailable},
		{"a private loss", private(fault.Unknown), 504, "diskFault", late},
		{"a private key", private(fault.Conflict), 500, "diskFault", broken},
		{"a private row", private(fault.NotFound), 500, "diskFault", broken},
		{"a private value", private(fault.Invalid), 500, "diskFault", broken},
		{"a private foreign key", private(fault.Precondition), 500, "diskFault", broken},
		{"private, of a peer", fault.Remote(*fault.From(fmt.Errorf("select: %w", private(fault.Denied)))), 503, "diskFault", unavailable},
		{"private, translated", fault.New(fault.Conflict, "disk a exists: %w", private(fault.Conflict)), 409, "conflictingRequest", "disk a exists: internal error"},
		{"private, with a text for users", fault.WithUser(private(fault.Conflict), "Disk a exists."), 409, "conflictingRequest", "Disk a exists."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m, out := failing(api.Config{FaultName: "diskFault"}, tt.err)
			w := send(t, m, "GET", "/x", "")
			wantFault(t, w, tt.wantStatus, tt.wantName, strings.ReplaceAll(tt.wantMsg, "ID", w.Header().Get("X-Openstack-Request-Id")))
			if strings.Contains(w.Body.String(), "10.0.0.7") {
				t.Errorf("what is the service's own gets out: %s", w.Body)
			}
			if got := w.Header().Get("Retry-After"); (got != "") != (tt.wantStatus == 503) {
				t.Errorf("Retry-After = %q", got)
			}
			if logged := strings.Contains(out.String(), "request failed"); logged != (tt.wantStatus >= 500) {
				t.Errorf("logged as failed: %v\n%s", logged, out)
			}
		})
	}
}

// TestInternalErrorsStayInside: the client learns the request's id, the log the cause.
func TestInternalErrorsStayInside(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{
		"plain":  errors.New("dial tcp 10.0.0.7: refused"),
		"fault":  fault.New(fault.Internal, "dial tcp 10.0.0.7: refused"),
		"remote": fault.Remote(fault.Error{Msg: "dial tcp 10.0.0.7: refused"}),
	} {
		m, out := failing(api.Config{}, err)
		w := send(t, m, "GET", "/x", "")
		id := w.Header().Get("X-Openstack-Request-Id")
		wantFault(t, w, 500, "fault", "Unexpected API Error. The service's log has the cause under request id "+id+".")
		if line, _, _ := strings.Cut(out.String(), "\n"); !strings.Contains(line, "10.0.0.7") || !strings.Contains(line, "request_id="+id) {
			t.Errorf("%s: log line %q lacks the cause or the id", name, line)
		}
	}
}

func TestPanic(t *testing.T) {
	t.Parallel()
	m, out := newMux(api.Config{})
	api.Handle(m, "GET /panic", func(context.Context, *api.Request[api.None]) (api.None, error) { panic("argh") })
	api.Handle(m, "GET /nojson", func(context.Context, *api.Request[api.None]) (chan int, error) { return nil, nil })
	for range 2 { // it lives
		if w := send(t, m, "GET", "/panic", ""); w.Code != 500 || strings.Contains(w.Body.String(), "argh") {
			t.Errorf("panic: %d %s", w.Code, w.Body)
		}
	}
	if w := send(t, m, "GET", "/nojson", ""); w.Code != 500 {
		t.Errorf("reply that JSON cannot express: %d %s", w.Code, w.Body)
	}
	for _, want := range []string{"panic: argh", "api_test.go", "encode reply", "status=500"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("log lacks %q:\n%s", want, out)
		}
	}
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	m, out := newMux(api.Config{RequestIDHeaders: []string{"X-Disk-Request-Id"}})
	var seen reqctx.Request
	api.Handle(m, "GET /who", func(ctx context.Context, _ *api.Request[api.None]) (api.None, error) {
		seen = reqctx.From(ctx)
		return api.None{}, nil
	})
	global := reqctx.NewID()
	for _, tt := range []struct{ path, inbound, want string }{
		{"/who", global, global},
		{"/who", "req-mine", ""},
		{"/who", "", ""},
		{"/nothing", global, ""}, // errors have an id, too
	} {
		seen = reqctx.Request{}
		w := send(t, m, "GET", tt.path, "", "X-Openstack-Request-Id", tt.inbound, "X-User-Id", "root", "X-Project-Id", "p")
		id := w.Header().Get("x-openstack-request-id")
		if !reqctx.ValidID(id) || id == tt.inbound || w.Header().Get("X-Disk-Request-Id") != id {
			t.Errorf("%+v: reply's ids %q, %q", tt, id, w.Header().Get("X-Disk-Request-Id"))
		}
		if tt.path == "/who" {
			if diff := cmp.Diff(reqctx.Request{ID: id, GlobalID: tt.want}, seen); diff != "" {
				t.Errorf("%+v: context (-want +got):\n%s", tt, diff)
			}
		}
		if !strings.Contains(out.String(), "request_id="+id) {
			t.Errorf("no log line of %s", id)
		}
	}
	if strings.Contains(out.String(), "req-mine") {
		t.Error("a malformed id got into the log")
	}
}

func TestAuthenticate(t *testing.T) {
	t.Parallel()
	m, out := newMux(api.Config{Authenticate: func(r *http.Request) (reqctx.Request, error) {
		switch r.Header.Get("X-Auth-Token") {
		case "good":
			return reqctx.Request{ID: "mine", UserID: "u1", ProjectID: "p1", Roles: []string{"member"}}, nil
		case "broken":
			return reqctx.Request{}, errors.New("identity service: bug")
		}
		if r.Pattern == "GET /disks/{id}" {
			return reqctx.Request{}, nil
		}
		return reqctx.Request{}, fault.New(fault.Unauthenticated, "The request you have made requires authentication.")
	}})
	m.Health(func(context.Context) error { return nil })
	var seen reqctx.Request
	api.Handle(m, "GET /who", func(ctx context.Context, _ *api.Request[api.None]) (api.None, error) {
		seen = reqctx.From(ctx)
		return api.None{}, nil
	})
	w := send(t, m, "GET", "/who", "", "X-Auth-Token", "good")
	want := reqctx.Request{ID: w.Header().Get("X-Openstack-Request-Id"), UserID: "u1", ProjectID: "p1", Roles: []string{"member"}}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("context (-want +got):\n%s", diff)
	}
	if !strings.Contains(out.String(), "project_id=p1") {
		t.Errorf("log line without the project: %s", out)
	}
	wantFault(t, send(t, m, "GET", "/who", ""), 401, "unauthorized", "The request you have made requires authentication.")
	wantFault(t, send(t, m, "POST", "/disks", "{junk"), 401, "unauthorized", "The request you have made requires authentication.")
	for path, status := range map[string]int{"/disks/1": 200, "/livez": 200, "/readyz": 200} {
		if w := send(t, m, "GET", path, ""); w.Code != status {
			t.Errorf("%s without a token: %d", path, w.Code)
		}
	}
	if w := send(t, m, "GET", "/who", "", "X-Auth-Token", "broken"); w.Code != 500 {
		t.Errorf("a broken identity service: status %d, want 500", w.Code)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	m, out := newMux(api.Config{})
	var down error
	m.Health(func(ctx context.Context) error {
		if _, ok := ctx.Deadline(); !ok {
			t.Error("ready is called without a deadline")
		}
		return down
	})
	for _, tt := range []struct {
		path string
		down error
		code int
		want string
	}{
		{"/livez", nil, 200, `{"status":"ok"}`},
		{"/readyz", nil, 200, `{"status":"ok"}`},
		{"/livez", errTooSmall, 200, `{"status":"ok"}`},
		{"/readyz", errors.New("dial 10.0.0.1:5672: no broker"), 503, `{"status":"unavailable"}`},
		{"/readyz", fmt.Errorf("%w: dial 10.0.0.1:5672", fault.New(fault.Unavailable, "not ready: bus")), 503, `{"status":"unavailable","reason":"not ready: bus"}`},
	} {
		down = tt.down
		out.reset()
		w := send(t, m, "GET", tt.path, "")
		if w.Code != tt.code || w.Body.String() != tt.want {
			t.Errorf("%s: %d %s, want %d %s", tt.path, w.Code, w.Body, tt.code, tt.want)
		}
		if id := w.Header().Get("X-Openstack-Request-Id"); tt.code == 503 && (!strings.Contains(out.String(), "10.0.0.1:5672") || !strings.Contains(out.String(), id)) {
			t.Errorf("the log does not have the details under %s: %s", id, out)
		} else if tt.code == 200 && out.String() != "" {
			t.Errorf("probes fill the log:\n%s", out)
		}
	}
}

func TestAccessLog(t *testing.T) {
	t.Parallel()
	m, out := newMux(api.Config{})
	send(t, m, "GET", "/disks/7?token=secret", "")
	line := out.String()
	for _, want := range []string{"level=INFO msg=request method=GET path=/disks/7 status=200 bytes=34 took=", "client=192.0.2.1:1234", "request_id=req-"} {
		if !strings.Contains(line, want) {
			t.Errorf("log line lacks %q: %s", want, line)
		}
	}
	if strings.Contains(line, "secret") || strings.Count(line, "\n") != 1 {
		t.Errorf("log: %s", line)
	}
}

func TestBodyLimit(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{MaxBody: 64})
	srv := httptest.NewServer(m)
	t.Cleanup(srv.Close)
	fits := `{"disk":{"name":"a","size":1}}`
	fits += strings.Repeat(" ", 64-len(fits))
	tests := []struct {
		name    string
		body    string
		chunked bool
		want    int
	}{
		{"fits", fits, false, 202},
		{"fits, chunked", fits, true, 202},
		{"one byte more", fits + " ", false, 413},
		{"one byte more, chunked", fits + " ", true, 413},
		{"much more, chunked", strings.Repeat(fits, 10000), true, 413},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			body := io.Reader(strings.NewReader(tt.body))
			if tt.chunked {
				body = io.MultiReader(body) // hides the length
			}
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/disks", body)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			res, err := srv.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			raw, _ := io.ReadAll(res.Body)
			if res.StatusCode != tt.want {
				t.Errorf("status %d, want %d: %s", res.StatusCode, tt.want, raw)
			}
			if want := `{"overLimit":{"code":413,"message":"Request is too large. Larger than max_request_body_size (64)."}}`; tt.want == 413 && string(raw) != want {
				t.Errorf("body %s", raw)
			}
		})
	}
	if w := send(t, mustMux(newMux(api.Config{})), "POST", "/disks", strings.Repeat(" ", 114689)); w.Code != 413 {
		t.Errorf("default limit: status %d for 114689 bytes, want 413", w.Code)
	}
	if w := send(t, mustMux(newMux(api.Config{})), "POST", "/disks", fits+strings.Repeat(" ", 114688-64)); w.Code != 202 {
		t.Errorf("default limit: status %d for 114688 bytes, want 202", w.Code)
	}
}

func mustMux(m *api.Mux, _ *logBuffer) *api.Mux { return m }

// TestSlowBody: a client that sends its headers and then no body is answered.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{BodyTimeout: 20 * time.Millisecond})
	srv := httptest.NewServer(m)
	defer srv.Close()
	body, never := io.Pipe()
	defer never.Close()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/disks", body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := srv.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusRequestTimeout {
		t.Errorf("status %d, want 408", res.StatusCode)
	}
}

// FuzzDecode: whatever the body, the answer is 202, 400 or 413, with JSON that parses.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"disk":{"name":"a","size":1}}`, `{"disk":{"name":5}}`, `{"disk":{"tags":[1]}}`, `{"disk":[]}`, "{", `{"x":1}`, "null", "[[[", `"\ud800"`,
		`{"disk":{"meta":{"a":1}}}`, "{\"\xff\":1}",
	} {
		f.Add(s)
	}
	m := api.New(api.Config{Logger: slog.New(slog.DiscardHandler)})
	api.Handle(m, "POST /disks", func(_ context.Context, r *api.Request[create]) (create, error) {
		r.Status = http.StatusAccepted
		return r.Body, nil
	})
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/disks", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		m.ServeHTTP(w, r)
		if w.Code != 202 && w.Code != 400 && w.Code != 413 || !json.Valid(w.Body.Bytes()) {
			t.Errorf("%q: %d %s", body, w.Code, w.Body)
		}
	})
}

func Example() {
	type greeting struct {
		Text string `json:"text"`
	}
	mux := api.New(api.Config{Logger: slog.New(slog.DiscardHandler)})
	api.Handle(mux, "GET /hello/{name}", func(_ context.Context, r *api.Request[api.None]) (greeting, error) {
		if r.PathValue("name") == "nobody" {
			return greeting{}, fault.New(fault.NotFound, "nobody is not here")
		}
		return greeting{"hello " + r.PathValue("name")}, nil
	})
	for _, name := range []string{"ada", "nobody"} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/hello/"+name, http.NoBody))
		fmt.Println(w.Code, w.Body)
	}
	// Output:
	// 200 {"text":"hello ada"}
	// 404 {"itemNotFound":{"code":404,"message":"nobody is not here"}}
}
