package api_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
)

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
		{"the body of a request that needs none is not read", "DELETE", "/disks/7", "{junk", 204, "", ""},
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
		{"/nothing", global, ""}, // errors also have an id
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

// TestSecretPath: if the path of a request has a secret, neither the log, nor an observation, nor the list of running requests has this path.
// This also holds if the request is refused or no route matches its path.
func TestSecretPath(t *testing.T) {
	t.Parallel()
	inflight := new(service.Inflight)
	var seen []string
	m, out := newMux(api.Config{Inflight: inflight, Observe: func(_ context.Context, o api.Observation) { seen = append(seen, o.Path) }})
	api.HandleRoute(m, api.Route{Pattern: "GET /tokens/{token}", SecretPath: true}, func(_ context.Context, r *api.Request[api.None]) (api.None, error) {
		for _, w := range inflight.List() {
			if w.Resource != "/tokens/{token}" {
				t.Errorf("a running request: %+v", w)
			}
		}
		if r.PathValue("token") == "secret2" {
			return api.None{}, fault.New(fault.NotFound, "no such token")
		}
		return api.None{}, nil
	})
	api.HandleRoute(m, api.Route{Pattern: "GET /tokens/all"}, func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, nil })
	for path, status := range map[string]int{
		"/tokens/secret1": 204, "/tokens/secret2": 404, "/tokens/secret3%20": 404, "/tokens/secret4/": 404, "/tokens/secret5/more": 404,
		"//tokens/secret6": 404, "/other/../tokens/secret7": 404, "/tokens%2Fsecret8": 404,
	} {
		if w := send(t, m, "GET", path, ""); w.Code != status {
			t.Errorf("%s: %d, want %d", path, w.Code, status)
		}
	}
	if w := send(t, m, "POST", "/tokens/secret9", ""); w.Code != 405 {
		t.Errorf("POST: %d", w.Code)
	}
	if log := out.String(); strings.Count(log, "path=/tokens/{token} ") != 9 || strings.Contains(log, "secret") {
		t.Errorf("log: %s", log)
	}
	for _, path := range []string{"/tokens/all", "/tokens/", "/tokens", "/elsewhere"} {
		send(t, m, "GET", path, "")
		if got := seen[len(seen)-1]; got != path || !strings.Contains(out.String(), "path="+path+" ") {
			t.Errorf("the path of %s: %q", path, got)
		}
	}
	if got := strings.Join(seen, " "); strings.Contains(got, "secret") {
		t.Errorf("observed: %s", got)
	}
	defer func() {
		if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "SecretPath") {
			t.Errorf("a route with SecretPath and no parameter: %v", p)
		}
	}()
	api.HandleRoute(m, api.Route{Pattern: "GET /secrets", SecretPath: true}, func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, nil })
}
