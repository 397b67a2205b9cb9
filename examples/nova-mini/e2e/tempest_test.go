package e2e_test

import (
	"bytes"
	"errors"
	"io"
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

	"github.com/gophercloud/gophercloud/v2"

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
// Then it prints the number of all tests that pass and have requested only routes, methods and actions that nova-mini has and does not refuse. A test that does not pass without a
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
	t.Logf("%d pass without an unknown route, method or action", counted)
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

// unknowns is a proxy in front of an API. It keeps the requests whose route, method or action the API does not have.
type unknowns struct {
	*httptest.Server

	mu   sync.Mutex
	seen map[string]bool // method and path
}

func newUnknowns(t *testing.T, endpoint string) *unknowns {
	t.Helper()
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	target.Path = ""
	s := &unknowns{seen: map[string]bool{}}
	p := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host },
		ModifyResponse: func(r *http.Response) error {
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
				s.mu.Lock()
				defer s.mu.Unlock()
				s.seen[r.Request.Method+" "+r.Request.URL.Path] = true
			}
			return nil
		},
	}
	s.Server = httptest.NewServer(p)
	t.Cleanup(s.Close)
	return s
}

var tempestRequest = regexp.MustCompile(`Request \((\w+:\w+)\): \d+ (\w+) (\S+)`)

// met finds in Tempest's log which tests have sent requests with an unknown route, method or action. It returns these requests, by the class and the
// method of the test.
func (s *unknowns) met(log []byte) map[string][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string][]string{}
	for _, m := range tempestRequest.FindAllSubmatch(log, -1) {
		u, err := url.Parse(string(m[3]))
		if err != nil {
			continue
		}
		if what := string(m[2]) + " " + u.Path; s.seen[what] {
			out[string(m[1])] = append(out[string(m[1])], what)
		}
	}
	return out
}
