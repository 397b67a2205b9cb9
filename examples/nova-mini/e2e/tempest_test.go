package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gophercloud/gophercloud/v2"

	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/internal/keystonetest"
)

// minTempest is the smallest number of Tempest's tests that must pass and count.
const minTempest = 290

// notTempest has the reasons why tests of Tempest do not pass, by the beginning of their names without "tempest.api.compute.".
var notTempest = map[string]string{
	"admin.test_aggregates":     "host aggregates come later",
	"admin.test_hosts":          "operations on hosts come later",
	"admin.test_live_migration": "migrations come later",
	"admin.test_migrations":     "migrations come later",
	"admin.test_quotas":         "limits are options; requests that change them come later",
	"test_quotas":               "limits are options; requests that change them come later",
	"admin.test_servers_negative.ServersAdminNegativeTestJSON.test_migrate":                          "migrations come later",
	"admin.test_servers_negative.ServersAdminNegativeTestJSON.test_resize_server_using_overlimit":    "the test changes a quota by a request",
	"servers.test_server_metadata_negative.ServerMetadataNegativeTestJSON.test_metadata_items_limit": "the test reads a quota by a request",
}

// TestTempest runs OpenStack's own acceptance tests against a cloud with four hosts and a real Keystone. It prints how many tests of each group pass.
// Then it prints the number of all tests that pass and have requested only routes, methods, actions and parameters that nova-mini has and does not refuse or ignore. A test that does not pass without a
// reason in notTempest is an error, and so are fewer than minTempest tests that count, unless ARMATURE_TEMPEST_TESTS selects tests. TestTempest
// runs with `make tempest`, which needs Debian's package tempest.
func TestTempest(t *testing.T) { //nolint:paralleltest // no other test may use the processor
	dir := os.Getenv("ARMATURE_TEMPEST")
	if dir == "" {
		t.Skip("run it with make tempest, which sets the directory of run.sh in ARMATURE_TEMPEST")
	}
	var unknown *unknowns
	o := newOpenStack(t, openstackWith{glance: true, hosts: []string{"node-1", "node-2", "node-3", "node-4"}, through: func(at string) string {
		unknown = newUnknowns(t, at)
		return unknown.URL
	}})
	for _, a := range []struct{ user, project, role string }{
		{"u0", "p0", "member"}, {"u1", "p1", "member"}, {"u2", "p2", "member"}, {"u3", "p3", "member"}, {"a0", "ap0", "admin"}, {"a1", "ap1", "admin"},
	} {
		user, scope := o.ks.User(a.user), gophercloud.AuthScope{ProjectID: o.ks.Project(a.project)}
		o.ks.Grant(user, a.role, scope)
		if a.role != "member" {
			o.ks.Grant(user, "member", scope)
		}
	}
	work := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "bash", append([]string{filepath.Join(dir, "run.sh"), "run"}, strings.Fields(os.Getenv("ARMATURE_TEMPEST_TESTS"))...)...)
	cmd.Env = append(os.Environ(), "WORK="+work, "AUTH_URL="+o.ks.Endpoint, "OS_PASSWORD="+keystonetest.Password, "IMAGE="+o.images[0], "IMAGE_ALT="+o.images[1], "FLAVOR=1", "FLAVOR_ALT=2",
		"COMPUTES=4", "GLANCE=true")
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	t.Logf("%s\n%v after %s", out, err, time.Since(begin).Round(time.Second))
	results, err := os.ReadFile(filepath.Join(work, "results.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(work, "log", "tempest.log"))
	if err != nil {
		t.Fatal(err)
	}
	met := unknown.met(log)
	counted := 0
	for line := range strings.Lines(string(results)) {
		state, rest, _ := strings.Cut(line, "\t")
		id, _, _ := strings.Cut(rest, "\t")
		if state != "passed" {
			if why := tempestReason(id); why == "" {
				t.Errorf("%s: %s", state, id)
			}
			continue
		}
		name := id[strings.LastIndexByte(id[:strings.LastIndexByte(id, '.')], '.')+1:] // class.method
		if list := met[strings.Replace(name, ".", ":", 1)]; len(list) > 0 {
			t.Logf("does not count: %s has requested %s", id, strings.Join(list, ", "))
			continue
		}
		counted++
	}
	t.Logf("%d pass without an unknown route, method or action, and without an ignored parameter", counted)
	if counted < minTempest && os.Getenv("ARMATURE_TEMPEST_TESTS") == "" {
		t.Errorf("%d tests pass and count, want at least %d", counted, minTempest)
	}
	if keep := os.Getenv("ARMATURE_TEMPEST_KEEP"); keep != "" {
		if err := os.CopyFS(keep, os.DirFS(work)); err != nil {
			t.Error(err)
		}
	}
}

// tempestReason returns the reason why a test need not pass, or "".
func tempestReason(id string) string {
	for prefix, why := range notTempest {
		if strings.HasPrefix(strings.TrimPrefix(id, "tempest.api.compute."), prefix) {
			return why
		}
	}
	return ""
}

// unknowns is a proxy in front of an API. It keeps the requests that use what the API does not have: a route, a method, an action, or a parameter of the query that
// the API has ignored.
type unknowns struct {
	*httptest.Server

	mu         sync.Mutex
	seen       map[string]string            // what the request uses, by method and path; for an ignored parameter by method, path and query
	parameters map[string][]routeParameters // by microversion
}

// routeParameters are the parameters of queries that a route has in a microversion.
type routeParameters struct {
	method string
	path   *regexp.Regexp
	names  []string
}

func newUnknowns(t *testing.T, endpoint string) *unknowns {
	t.Helper()
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	target.Path = ""
	s := &unknowns{seen: map[string]string{}, parameters: map[string][]routeParameters{}}
	p := &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host },
		ModifyResponse: s.check,
	}
	s.Server = httptest.NewServer(p)
	t.Cleanup(s.Close)
	return s
}

// check keeps the request of a reply if it uses what the API does not have.
func (s *unknowns) check(r *http.Response) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	route := r.Request.Method + " " + r.Request.URL.Path
	if r.StatusCode < http.StatusBadRequest {
		ignored, err := s.ignoredLocked(r)
		if len(ignored) > 0 {
			s.seen[withQuery(route, r.Request.URL)] = route + " with the ignored " + strings.Join(ignored, ", ")
		}
		return err
	}
	if !slices.Contains([]int{http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusBadRequest, http.StatusNotImplemented}, r.StatusCode) {
		return nil
	}
	body, err := io.ReadAll(r.Body)
	if err = errors.Join(err, r.Body.Close()); err != nil {
		return err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	refused := r.StatusCode == http.StatusNotImplemented && strings.Contains(string(body), "nova-mini ") // see api/refused.go
	if refused || r.StatusCode == http.StatusMethodNotAllowed || strings.Contains(string(body), "The resource could not be found.") || strings.Contains(string(body), "There is no such action") {
		s.seen[route] = route
	}
	return nil
}

// withQuery returns the key of a request whose query matters.
func withQuery(route string, u *url.URL) string { return route + "?" + u.Query().Encode() }

// ignoredLocked returns the parameters of a successful request that the API's document of the reply's microversion does not have. The documents have no form of a path with
// a project, and no /v2: a path that they do not have ignores all its parameters.
func (s *unknowns) ignoredLocked(r *http.Response) (ignored []string, err error) {
	query := r.Request.URL.Query()
	if len(query) == 0 {
		return nil, nil
	}
	_, version, _ := strings.Cut(r.Header.Get("OpenStack-API-Version"), " ")
	routes, ok := s.parameters[version]
	if !ok {
		if routes, err = documentedParameters(version); err != nil {
			return nil, err
		}
		s.parameters[version] = routes
	}
	var has []string
	for _, route := range routes {
		if route.method == r.Request.Method && route.path.MatchString(r.Request.URL.Path) {
			has = append(has, route.names...)
		}
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(query)), func(name string) bool { return slices.Contains(has, name) }), nil
}

// documentedParameters returns the routes of nova-mini's OpenAPI document of a microversion, with the parameters of their queries.
func documentedParameters(version string) ([]routeParameters, error) {
	document, err := api.OpenAPI(version)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(document)
	if err != nil {
		return nil, err
	}
	var doc struct {
		Paths map[string]map[string]struct {
			Parameters []struct{ In, Name string }
		}
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, err
	}
	var out []routeParameters
	for path, methods := range doc.Paths {
		for method, is := range methods {
			one := routeParameters{method: strings.ToUpper(method), path: regexp.MustCompile("^" + pathParameter.ReplaceAllString(path, "[^/]+") + "$")}
			for _, p := range is.Parameters {
				if p.In == "query" {
					one.names = append(one.names, p.Name)
				}
			}
			out = append(out, one)
		}
	}
	return out, nil
}

var (
	pathParameter  = regexp.MustCompile(`\{[^}]*\}`)
	tempestRequest = regexp.MustCompile(`Request \((\w+:\w+)\): \d+ (\w+) (\S+)`)
)

// met finds in Tempest's log which tests have sent requests that use what the API does not have. It returns these requests, by the class and the method of the test.
func (s *unknowns) met(log []byte) map[string][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string][]string{}
	for _, m := range tempestRequest.FindAllSubmatch(log, -1) {
		u, err := url.Parse(string(m[3]))
		if err != nil {
			continue
		}
		route := string(m[2]) + " " + u.Path
		for _, key := range []string{route, withQuery(route, u)} {
			if what := s.seen[key]; what != "" {
				out[string(m[1])] = append(out[string(m[1])], what)
			}
		}
	}
	return out
}

// TestUnknowns: the proxy and Tempest's log show which tests send requests with an unknown route, method or action, or with a parameter that the API ignores.
func TestUnknowns(t *testing.T) {
	t.Parallel()
	const notFound = `{"itemNotFound": {"message": "The resource could not be found."}}`
	requests := []struct {
		method, uri, version string
		status               int
		body, want           string // want: what the request uses, "" if the API has all of it
	}{
		{"GET", "/v2.1/nothing", "2.1", 404, notFound, "GET /v2.1/nothing"},
		{"GET", "/v2.1/servers/none", "2.1", 404, `{"itemNotFound": {"message": "Instance none could not be found."}}`, ""},
		{"PUT", "/v2.1/servers", "2.1", 405, "", "PUT /v2.1/servers"},
		{"POST", "/v2.1/servers/1/action", "2.1", 400, `{"badRequest": {"message": "There is no such action: act"}}`, "POST /v2.1/servers/1/action"},
		{"GET", "/v2.1/os-aggregates", "2.1", 501, `{"notImplemented": {"message": "nova-mini has no host aggregates"}}`, "GET /v2.1/os-aggregates"},
		{"GET", "/v2.1/servers", "2.25", 200, "{}", ""},
		{"GET", "/v2.1/servers?name=%5Ea%2A", "2.25", 200, "{}", ""},
		{"GET", "/v2.1/servers/detail?limit=1&shade=a%20b&color=a%2Fb", "2.25", 200, "{}", "GET /v2.1/servers/detail with the ignored color, shade"},
		{"GET", "/v2.1/servers?color=b", "2.25", 403, "{}", ""},
		{"GET", "/v2.1/servers?color=c", "2.75", 400, `{"badRequest": {"message": "Additional properties are not allowed ('color' was unexpected)"}}`, ""},
		{"GET", "/v2.1/servers?tags=a", "2.25", 200, "{}", "GET /v2.1/servers with the ignored tags"},
		{"GET", "/v2.1/servers?tags=b", "2.26", 200, "{}", ""},
		{"DELETE", "/v2.1/os-keypairs/k?user_id=u&limit=1", "2.26", 204, "", "DELETE /v2.1/os-keypairs/k with the ignored limit"},
		{"DELETE", "/v2.1/os-keypairs/l?user_id=u", "2.26", 204, "", ""},
		{"GET", "/v2.1/servers/1?limit=1", "2.25", 200, "{}", "GET /v2.1/servers/1 with the ignored limit"},
		{"GET", "/v2.1/os-services?xxx=nova-compute", "2.25", 200, "{}", "GET /v2.1/os-services with the ignored xxx"},
	}
	next := 0
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { // the requests follow one another
		w.Header().Set("OpenStack-API-Version", "compute "+requests[next].version)
		w.WriteHeader(requests[next].status)
		_, _ = io.WriteString(w, requests[next].body)
	}))
	t.Cleanup(backend.Close)
	s := newUnknowns(t, backend.URL+"/v2.1")
	var log strings.Builder
	want := map[string][]string{}
	for i, is := range requests {
		next = i
		r, err := http.NewRequestWithContext(t.Context(), is.method, s.URL+is.uri, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err = errors.Join(err, res.Body.Close()); err != nil || res.StatusCode != is.status || string(body) != is.body {
			t.Errorf("%s %s: %d %s %v", is.method, is.uri, res.StatusCode, body, err)
		}
		fmt.Fprintf(&log, "2026-11-28 12:02:02.226 16215 INFO tempest.lib.common.rest_client [req-%d req-%d ] Request (OneTestJSON:test_%d): %d %s %s%s 1.164s\n", i, i, i, is.status, is.method, s.URL, is.uri)
		if is.want != "" {
			want[fmt.Sprintf("OneTestJSON:test_%d", i)] = []string{is.want}
		}
	}
	if diff := cmp.Diff(want, s.met([]byte(log.String()))); diff != "" {
		t.Errorf("requests that use what the API does not have (-want +got):\n%s", diff)
	}
}
