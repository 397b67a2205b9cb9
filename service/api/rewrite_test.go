package api_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/api/apitest"
)

// TestRewrite: a client may use other forms of the paths. A path with a project other than the client's is refused. In an older form of
// the paths, the version is the first one.
func TestRewrite(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^/v(3|old)/(p[0-9%]+)?/?(.+)$`)
	m, log := newMux(api.Config{
		Microversions: &api.Microversions{Service: "disk", Min: "3.1", Max: "3.9", Prefix: "/v3"},
		Authenticate: func(*http.Request) (reqctx.Request, error) {
			return reqctx.Request{ProjectID: "p1"}, nil
		},
		Rewrite: func(path string) (routed, project string) {
			if f := form.FindStringSubmatch(path); f != nil {
				return "/v3/" + f[3], f[2]
			}
			return path, ""
		},
	})
	type disk struct {
		ID   string     `json:"id"`
		New  int        `json:"new" since:"3.2"`
		Old  int        `json:"old" until:"3.4"`
		Next []api.Link `json:"next"`
		Sent string     `json:"sent"`
	}
	api.HandleRoute(m, api.Route{Pattern: "GET /v3/disks/{id}", List: &listing.Spec{Default: listing.SortKey{Column: "id"}}}, func(_ context.Context, r *api.Request[api.None]) (disk, error) {
		return disk{ID: r.PathValue("id"), Next: r.NextPage(r.List.Limit, "x"), Sent: api.RequestPath(r.Request)}, nil
	})
	for _, tt := range []struct {
		path, version string
		status        int
		want, header  string
	}{
		{"/v3/disks/7?limit=1", "3.5", 200, `{"id":"7","new":0,"next":[{"rel":"next","href":"http://localhost/v3/disks/7?limit=1&marker=x"}],"sent":"/v3/disks/7"}`, "disk 3.5"},
		{"/v3/p1/disks/7?limit=1", "3.5", 200, `{"id":"7","new":0,"next":[{"rel":"next","href":"http://localhost/v3/p1/disks/7?limit=1&marker=x"}],"sent":"/v3/p1/disks/7"}`, "disk 3.5"},
		{"/v3/p1/disks/a%2Fb", "3.1", 200, `{"id":"a/b","old":0,`, "disk 3.1"},
		{"/v3/p2/disks/7", "3.1", 400, `"message":"Malformed request URL: URL's project_id 'p2' doesn't match Context's project_id 'p1'"`, "disk 3.1"},
		{"/vold/p1/disks/7", "3.5", 200, `{"id":"7","old":0,`, ""},
		{"/vold/disks/7", "99.1", 200, `{"id":"7","old":0,`, ""},
		{"/vold/p2/disks/7", "3.5", 400, `project_id 'p2'`, ""},
		{"/v3/p1/nothing", "3.5", 404, ``, "disk 3.5"},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, tt.path, http.NoBody)
		r.Header.Set("OpenStack-API-Version", "disk "+tt.version)
		w := httptest.NewRecorder()
		m.ServeHTTP(w, r)
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.want) || w.Header().Get("OpenStack-API-Version") != tt.header {
			t.Errorf("GET %s at %s: %d %s %s; want %d %s %s", tt.path, tt.version, w.Code, w.Header(), w.Body, tt.status, tt.want, tt.header)
		}
	}
	if !strings.Contains(log.String(), "path=/v3/p1/disks/7") {
		t.Errorf("the log does not have the client's path: %s", log)
	}
}

// TestDiscoverSeveral: the list has each version of the API, in the order of the calls. A version of the API without microversions has
// no range of microversions.
func TestDiscoverSeveral(t *testing.T) {
	t.Parallel()
	m := api.New(api.Config{PublicURL: "http://example.com", Microversions: &api.Microversions{Service: "disk", Min: "3.1", Max: "3.9", Prefix: "/v3.1"}})
	m.Discover(api.Discovery{ID: "v3.0", Path: "/v3", Status: "SUPPORTED"})
	m.Discover(api.Discovery{ID: "v3.1"})
	const (
		old = `{"id":"v3.0","status":"SUPPORTED","version":"","min_version":"","links":[{"rel":"self","href":"http://example.com/v3/"}]}`
		now = `{"id":"v3.1","status":"CURRENT","version":"3.9","min_version":"3.1","links":[{"rel":"self","href":"http://example.com/v3.1/"}]}`
	)
	for path, want := range map[string]string{
		"/": `{"versions":[` + old + `,` + now + `]}`, "/v3": `{"version":` + old + `}`, "/v3/": `{"version":` + old + `}`, "/v3.1/": `{"version":` + now + `}`,
	} {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody))
		if w.Code != http.StatusOK || w.Body.String() != want {
			t.Errorf("GET %s: %d %s; want %s", path, w.Code, w.Body, want)
		}
	}
	defer func() {
		if got, _ := recover().(string); !strings.Contains(got, `"OLD"`) {
			t.Errorf("an unknown status: %s", got)
		}
	}()
	m.Discover(api.Discovery{ID: "v4", Path: "/v4", Status: "OLD"})
}

// TestOtherStatus: a status below 400 in Errors is a reply without a body in the document.
func TestOtherStatus(t *testing.T) {
	t.Parallel()
	m := api.New(api.Config{})
	api.HandleRoute(m, api.Route{Pattern: "PUT /tags/{tag}", Status: http.StatusCreated, Errors: []int{http.StatusNoContent, http.StatusConflict}},
		func(_ context.Context, r *api.Request[api.None]) (api.None, error) {
			r.Status = http.StatusNoContent
			return api.None{}, nil
		})
	checker, err := apitest.NewChecker(m.OpenAPI(api.About{Title: "Tags", Version: "1"}, api.Version{}))
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	checker.Handler(m).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPut, "/tags/x", http.NoBody))
	if w.Code != http.StatusNoContent {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if err := checker.Check(http.MethodPut, "/tags/x", http.StatusNoContent, []byte("{}")); err == nil {
		t.Error("a body with status 204 is allowed")
	}
	if err := checker.Check(http.MethodPut, "/tags/x", http.StatusConflict, []byte(`{"conflictingRequest": {"code": 409, "message": "x"}}`)); err != nil {
		t.Error(err)
	}
}
