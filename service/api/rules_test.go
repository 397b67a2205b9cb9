package api_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/auth"
)

// decodeFault returns the message of an error body.
func decodeFault(t *testing.T, raw []byte) string {
	t.Helper()
	var body map[string]struct{ Message string }
	if err := json.Unmarshal(raw, &body); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	for _, f := range body {
		return f.Message
	}
	return ""
}

// TestErrorList: with ErrorList, errors have the form of the API-SIG.
func TestErrorList(t *testing.T) {
	t.Parallel()
	m := versionedMux(api.Config{ErrorList: "volume"})
	api.Handle(m, "GET /v3/full", func(context.Context, *api.Request[api.None]) (api.None, error) {
		return api.None{}, fault.Sentinel(fault.Conflict, "ConcurrentUpdate", "another client was faster")
	})
	type item struct {
		Status                 int
		Code, Title, Detail    string
		RequestID              string `json:"request_id"`
		MinVersion, MaxVersion string
	}
	for _, tt := range []struct {
		path, version string
		want          item
	}{
		{"/v3/nothing", "3.0", item{Status: 404, Code: "volume.not_found", Title: "Not Found", Detail: "The resource could not be found."}},
		{"/v3/full", "3.0", item{Status: 409, Code: "volume.concurrent_update", Title: "Conflict", Detail: "another client was faster"}},
		{"/v3/full", "9.9", item{Status: 406, Code: "volume.version_not_supported", Title: "Not Acceptable", Detail: "Version 9.9 is not supported by the API. Minimum is 3.0 and maximum is 3.70."}},
	} {
		w := send(t, m, "GET", tt.path, "", "OpenStack-API-Version", "volume "+tt.version)
		var got struct{ Errors []item }
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || len(got.Errors) != 1 {
			t.Fatalf("%s: %s, %v", tt.path, w.Body, err)
		}
		tt.want.RequestID = w.Header().Get("X-Openstack-Request-Id")
		if diff := cmp.Diff(tt.want, got.Errors[0]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.path, diff)
		}
		if tt.want.Status == 406 && !strings.Contains(w.Body.String(), `"min_version":"3.0","max_version":"3.70"`) {
			t.Errorf("a 406 without bounds: %s", w.Body)
		}
	}
}

// TestConditional: a reply that the client already has is answered with 304, without a body.
func TestConditional(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{})
	api.Handle(m, "GET /x", func(_ context.Context, r *api.Request[api.None]) (map[string]int, error) {
		r.ReplyHeader.Set("ETag", `"7"`)
		return map[string]int{"n": 7}, nil
	})
	api.Handle(m, "GET /none", func(context.Context, *api.Request[api.None]) (map[string]int, error) { return map[string]int{}, nil })
	for _, tt := range []struct {
		method, path, header, value string
		want                        int
	}{
		{"GET", "/x", "If-None-Match", `"7"`, 304},
		{"GET", "/x", "If-None-Match", `"5", W/"7"`, 304},
		{"GET", "/x", "If-None-Match", `*`, 304},
		{"GET", "/x", "If-None-Match", `"8"`, 200},
		{"HEAD", "/x", "If-None-Match", `"7"`, 304},
		{"GET", "/x", "If-Match", `"7"`, 200},
		{"GET", "/none", "If-None-Match", `*`, 200},
	} {
		w := send(t, m, tt.method, tt.path, "", tt.header, tt.value)
		if w.Code != tt.want || w.Code == 304 && w.Body.Len() > 0 {
			t.Errorf("%s %s with %s: %s = %d %s, want %d", tt.method, tt.path, tt.header, tt.value, w.Code, w.Body, tt.want)
		}
	}
}

// TestWrapHandler: CORS, compression, observations and the list of running work have their effects. Headers with an
// identity are removed.
func TestWrapHandler(t *testing.T) {
	t.Parallel()
	var f service.Inflight
	var seen []api.Observation
	m, _ := newMux(api.Config{
		CORS: &api.CORS{Origins: []string{"https://dash.example"}}, Gzip: true, Inflight: &f, RequestIDHeaders: []string{"x-compute-request-id"},
		Observe: func(_ context.Context, o api.Observation) { seen = append(seen, o) },
		Authenticate: func(r *http.Request) (reqctx.Request, error) {
			for name := range r.Header {
				if strings.HasPrefix(name, "X-Ro") || strings.HasPrefix(name, "X-User") || strings.HasPrefix(name, "X-Identity") {
					t.Errorf("the header %s was not removed", name)
				}
			}
			return reqctx.Request{UserID: "u"}, nil
		},
	})
	api.Handle(m, "GET /big/{id}", func(ctx context.Context, _ *api.Request[api.None]) (map[string]string, error) {
		list := f.List()
		if len(list) != 1 || list[0].Resource != "/big/1" || list[0].RequestID != reqctx.From(ctx).ID {
			t.Errorf("in flight: %+v", list)
		}
		return map[string]string{"x": strings.Repeat("x", 5000)}, nil
	})
	w := send(t, m, "GET", "/big/1", "", "Accept-Encoding", "gzip", "Origin", "https://dash.example", "X-Roles", "admin", "X-User-Id", "root", "X-Identity-Status", "Confirmed")
	zr, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(zr)
	if err != nil || len(body) != 5008 || w.Header().Get("Content-Length") == "5008" {
		t.Errorf("%d bytes, %v, Content-Length %s", len(body), err, w.Header().Get("Content-Length"))
	}
	if got := w.Header().Get("Access-Control-Allow-Origin"); got != "https://dash.example" {
		t.Errorf("Access-Control-Allow-Origin %q", got)
	}
	if got := strings.ToLower(w.Header().Get("Access-Control-Expose-Headers")); !strings.Contains(got, "x-compute-request-id") {
		t.Errorf("Access-Control-Expose-Headers %q", got)
	}
	if w := send(t, m, "GET", "/big/1", "", "Origin", "https://evil.example"); w.Header().Get("Access-Control-Allow-Origin") != "" {
		t.Error("a web page of another origin may read the reply")
	}
	if w := send(t, m, "OPTIONS", "/big/1", "", "Origin", "https://dash.example", "Access-Control-Request-Method", "DELETE"); w.Code != 204 || w.Header().Get("Access-Control-Allow-Methods") != "DELETE" {
		t.Errorf("preflight: %d %v", w.Code, w.Header())
	}
	send(t, m, "GET", "/nothing", "")
	if len(seen) != 3 || seen[0].Pattern != "GET /big/{id}" || seen[0].Status != 200 || seen[0].Sent != 5008 || seen[0].Took <= 0 || seen[2].Pattern != "" || seen[2].Status != 404 {
		t.Errorf("observed: %+v", seen)
	}
	if len(f.List()) != 0 {
		t.Errorf("still in flight: %+v", f.List())
	}
}

// TestDiscover: a client without a token can find the path and the versions of the API, in the API-SIG's form.
func TestDiscover(t *testing.T) {
	t.Parallel()
	m := versionedMux(api.Config{Authenticate: auth.Static(nil), PublicURL: "http://example.com/"})
	m.Discover(api.Discovery{ID: "v3", Updated: "2026-11-23T00:00:00Z", Links: []api.Link{{Rel: "describedby", Href: "https://docs.example.org/"}}})
	for path, want := range map[string]string{
		"/": `{"versions":[{"id":"v3","status":"CURRENT","version":"3.70","min_version":"3.0","updated":"2026-11-23T00:00:00Z",` +
			`"links":[{"rel":"self","href":"http://example.com/v3/"}]}]}`,
		"/v3": `{"version":{"id":"v3","status":"CURRENT","version":"3.70","min_version":"3.0","updated":"2026-11-23T00:00:00Z",` +
			`"links":[{"rel":"self","href":"http://example.com/v3/"},{"rel":"describedby","href":"https://docs.example.org/"}]}}`,
	} {
		for _, p := range []string{path, strings.TrimSuffix(path, "/") + "/"} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, p, http.NoBody)
			w := httptest.NewRecorder()
			m.ServeHTTP(w, r)
			if w.Code != http.StatusOK || strings.TrimSpace(w.Body.String()) != want {
				t.Errorf("GET %s: %d %s\nwant %s", p, w.Code, w.Body, want)
			}
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("Discover without a path does not panic")
		}
	}()
	api.New(api.Config{}).Discover(api.Discovery{ID: "v1"})
}

// TestOpenAPI: the document of a version has only the routes of that version, and its schemas are valid.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	m := versionedMux(api.Config{})
	for v, want := range map[api.Version]map[string]string{
		{Major: 3, Minor: 0}:  {"/v3/disks": "get post", "/disks": "post", "/disks/{id}": "delete get"},
		{Major: 3, Minor: 25}: {"/v3/disks": "get post put", "/disks": "post", "/disks/{id}": "delete get"},
		{Major: 3, Minor: 70}: {"/v3/disks": "get post", "/v3/late/{id}": "get", "/disks": "post", "/disks/{id}": "delete get"},
	} {
		raw, err := json.Marshal(m.OpenAPI(api.About{Title: "Volumes", Version: "3"}, v))
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			OpenAPI string
			Paths   map[string]map[string]struct {
				OperationID string
				Parameters  []struct{ Name, In string }
				RequestBody struct {
					Content map[string]struct{ Schema json.RawMessage }
				}
				Responses map[string]struct {
					Description string
					Content     map[string]struct{ Schema json.RawMessage }
				}
			}
		}
		if err := json.Unmarshal(raw, &doc); err != nil || doc.OpenAPI != "3.1.0" {
			t.Fatalf("%s: %v", raw, err)
		}
		got := map[string]string{}
		for path, ops := range doc.Paths {
			var methods []string
			for _, name := range []string{"delete", "get", "post", "put"} {
				op, ok := ops[name]
				if !ok {
					continue
				}
				methods = append(methods, name)
				if op.OperationID == "" || op.Responses["default"].Description == "" {
					t.Errorf("%s %s: %+v", name, path, op)
				}
				if strings.Contains(path, "{id}") != (len(op.Parameters) > 0 && op.Parameters[0].Name == "id" && op.Parameters[0].In == "path") {
					t.Errorf("%s %s has parameters %+v", name, path, op.Parameters)
				}
				check := func(where string, schema json.RawMessage) {
					if schema == nil || bytes.Contains(schema, []byte("$ref")) {
						return
					}
					parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
					c := jsonschema.NewCompiler()
					if err == nil {
						err = c.AddResource("mem:///x", parsed)
					}
					if err == nil {
						_, err = c.Compile("mem:///x")
					}
					if err != nil {
						t.Errorf("%s %s: %s: %v", name, path, where, err)
					}
				}
				check("body", op.RequestBody.Content["application/json"].Schema)
				for status, r := range op.Responses {
					check(status, r.Content["application/json"].Schema)
				}
				if name == "post" && len(op.RequestBody.Content) == 0 {
					t.Errorf("%s %s has no body", name, path)
				}
			}
			got[path] = strings.Join(methods, " ")
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("version %v (-want +got):\n%s", v, diff)
		}
	}
}
