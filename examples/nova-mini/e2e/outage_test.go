package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
)

// answer is the reply to an HTTP request.
type answer struct {
	status int
	body   string
	header http.Header
}

func request(t *testing.T, method, url, contentType string, body io.Reader) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return answer{body: err.Error()}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, string(b), resp.Header}
}

const demo = `{"server": {"name": "x", "flavorRef": "1", "imageRef": "cirros"}}`

// databaseAway returns how long TestOutage stops the database: ARMATURE_TEST_OUTAGE, or 40 s.
func databaseAway() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("ARMATURE_TEST_OUTAGE")); err == nil {
		return d
	}
	return 40 * time.Second
}

// TestOutage: the broker or the database of a running cloud is stopped and started again, or hangs for a while. During the outage the API answers 503
// and is not ready. Afterwards the API works without a restart. Servers that were being built when the database stopped
// become ACTIVE, and no message is dead-lettered, although ten delivery attempts would take only 34 s.
func TestOutage(t *testing.T) {
	t.Parallel()
	scenario(t)
	stop := func(s *testenv.Service) error { s.Kill(); return nil }
	resume := func(s *testenv.Service, _ context.Context) error { return s.Resume() }
	for _, tt := range []struct {
		name     string
		broker   bool // the broker is away, and not the database
		stop     func(*testenv.Service) error
		start    func(*testenv.Service, context.Context) error
		get      int // the HTTP status of a read
		away     time.Duration
		building int // servers that are being built when the outage begins
	}{
		{"broker", true, stop, (*testenv.Service).Restart, http.StatusOK, 0, 0},
		{"database", false, stop, (*testenv.Service).Restart, http.StatusServiceUnavailable, databaseAway(), 6},
		{"hanging database", false, (*testenv.Service).Pause, resume, http.StatusServiceUnavailable, 0, 6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			broker, database := envtest.RabbitMQ(t), envtest.MariaDB(t)
			c := newCloudOn(t, "[database]\nresponse_timeout = 4\n", database.URL, broker.URL)
			for _, s := range [][2]string{{"api", "api-1"}, {"conductor", "c-1"}, {"scheduler", "s-1"}, {"compute", "node-1"}} {
				c.start(s[0], s[1])
			}
			cl := c.client(c.procs["api-1"])
			c.hostsUp(cl, 1)
			base := strings.TrimSuffix(cl.Endpoint, "/v2.1/")
			if a := request(t, "GET", base+"/readyz", "", nil); a.status != http.StatusOK {
				t.Errorf("ready: %v", a)
			}

			for i := range tt.building {
				if _, err := create(t.Context(), cl, fmt.Sprintf("during-%d", i), "1", map[string]string{"fake:spawn": "slow 3s"}); err != nil {
					t.Fatal(err)
				}
			}
			c.poll("the servers to be built", 30*time.Second, func() error {
				var n int
				if err := c.db.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM operation_current WHERE kind = 'server.create' AND step = 'build'`); err != nil || n != tt.building {
					return fmt.Errorf("%d servers are being built: %w", n, err)
				}
				return nil
			})
			victim := database
			if tt.broker {
				victim = broker
			}
			if err := tt.stop(victim); err != nil {
				t.Fatal(err)
			}
			back := time.After(tt.away)
			c.poll("not ready", 30*time.Second, func() error {
				a := request(t, "GET", base+"/readyz", "", nil)
				if a.status != http.StatusServiceUnavailable {
					return fmt.Errorf("readyz: %v", a)
				}
				if !strings.Contains(a.body, "is not ready: ") || strings.Contains(a.body, "127.0.0.1") || strings.Contains(a.body, "dial") {
					t.Errorf("readyz names more than checks: %v", a)
				}
				return nil
			})
			for _, r := range []struct {
				method, path, body string
				want               int
			}{
				{"GET", "/v2.1/servers", "", tt.get},
				{"POST", "/v2.1/servers", demo, http.StatusServiceUnavailable},
				{"GET", "/livez", "", http.StatusOK},
			} {
				if a := request(t, r.method, base+r.path, "application/json", strings.NewReader(r.body)); a.status != r.want {
					t.Errorf("%s %s without the %s: %v, want %d", r.method, r.path, tt.name, a, r.want)
				} else if strings.Contains(a.body, "127.0.0.1") {
					t.Errorf("%s %s without the %s names an address: %v", r.method, r.path, tt.name, a)
				}
			}
			<-back
			if err := tt.start(victim, t.Context()); err != nil {
				t.Fatal(err)
			}
			c.poll("ready again", 60*time.Second, func() error {
				if a := request(t, "GET", base+"/readyz", "", nil); a.status != http.StatusOK {
					return fmt.Errorf("readyz: %v", a)
				}
				return nil
			})
			// The compute service may still count as down, because it could not send heartbeats.
			c.hostsUp(cl, 1)
			s, err := create(t.Context(), cl, "after", "1", nil)
			if err != nil {
				t.Fatalf("create after the outage: %v", err)
			}
			if by := c.settled(cl, 1+tt.building, 90*time.Second); len(by["ACTIVE"]) != 1+tt.building {
				t.Errorf("server %s after the outage: %v", s.ID, by)
			}
			if out, err := c.command("dlq", "list").CombinedOutput(); err != nil || !strings.Contains(string(out), "no dead letters") {
				t.Errorf("dead letters: %v\n%s", err, out)
			}
			c.deleteAll(cl, []string{"node-1"})
		})
	}
}

// TestBadInput: the answer to a wrong request has the status and the text that OpenStack's clients expect. The request has
// no effect.
func TestBadInput(t *testing.T) {
	t.Parallel()
	scenario(t)
	c := newCloud(t, "")
	cl := c.client(c.start("api", "api-1"))
	base := strings.TrimSuffix(cl.Endpoint, "/v2.1/")
	const none = "00000000-0000-0000-0000-000000000000"
	const js = "application/json"
	tests := []struct {
		name, method, path, contentType, body string
		status                                int
		fault, says                           string
	}{
		{"malformed JSON", "POST", "/servers", js, `{not json`, 400, "badRequest", "Malformed request body"},
		{"nothing in it", "POST", "/servers", js, `{}`, 400, "badRequest", "'server' is a required property"},
		{"no name", "POST", "/servers", js, `{"server": {"flavorRef": "1", "imageRef": "cirros"}}`, 400, "badRequest", "'name' is a required property"},
		{"no flavor", "POST", "/servers", js, `{"server": {"name": "x"}}`, 400, "badRequest", "'flavorRef' is a required property"},
		{"name of wrong type", "POST", "/servers", js, `{"server": {"name": 5, "flavorRef": "1", "imageRef": "cirros"}}`, 400, "badRequest", "Invalid input for field/attribute name. Value: 5."},
		{"unknown field", "POST", "/servers", js, `{"server": {"name": "x", "flavorRef": "1", "imageRef": "cirros", "surprise": 1}}`, 400, "badRequest", "('surprise' was unexpected)"},
		{"unknown flavor", "POST", "/servers", js, `{"server": {"name": "x", "flavorRef": "nope", "imageRef": "cirros"}}`, 400, "badRequest", "Flavor nope could not be found."},
		{"empty name", "POST", "/servers", js, `{"server": {"name": " ", "flavorRef": "1", "imageRef": "cirros"}}`, 400, "badRequest", "name"},
		{"too large", "POST", "/servers", js, `{"server": {"name": "` + strings.Repeat("x", 120000) + `"}}`, 413, "overLimit", ""},
		{"wrong media type", "POST", "/servers", "text/plain", demo, 415, "badMediaType", ""},
		{"unknown server", "GET", "/servers/" + none, "", "", 404, "itemNotFound", "Instance " + none + " could not be found."},
		{"delete an unknown server", "DELETE", "/servers/" + none, "", "", 404, "itemNotFound", none},
		{"unknown flavor shown", "GET", "/flavors/nope", "", "", 404, "itemNotFound", "Flavor nope could not be found."},
		{"flavor twice", "POST", "/flavors", js, `{"flavor": {"id": "1", "name": "again", "ram": 1, "vcpus": 1, "disk": 1}}`, 409, "conflictingRequest", "Flavor with ID 1 already exists."},
		{"flavor name twice", "POST", "/flavors", js, `{"flavor": {"id": "77", "name": "m1.tiny", "ram": 1, "vcpus": 1, "disk": 1}}`, 409, "conflictingRequest", "Flavor with name m1.tiny already exists."},
		{"negative RAM", "POST", "/flavors", js, `{"flavor": {"name": "n", "ram": -1, "vcpus": 1, "disk": 1}}`, 400, "badRequest", "ram"},
		{"bad limit", "GET", "/servers?limit=-1", "", "", 400, "badRequest", "limit"},
		{"bad marker", "GET", "/servers?marker=nope", "", "", 400, "badRequest", "marker [nope] not found"},
		{"unknown hypervisor", "GET", "/os-hypervisors/99", "", "", 404, "itemNotFound", "99"},
		{"unknown route", "GET", "/no-such-thing", "", "", 404, "", ""},
		{"wrong method", "PATCH", "/servers", "", "", 405, "badMethod", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := request(t, tt.method, base+"/v2.1"+tt.path, tt.contentType, strings.NewReader(tt.body))
			if a.status != tt.status {
				t.Fatalf("%v, want status %d", a, tt.status)
			}
			if id := a.header.Get("X-Openstack-Request-Id"); !strings.HasPrefix(id, "req-") || id != a.header.Get("X-Compute-Request-Id") {
				t.Errorf("request ids %q and %q", id, a.header.Get("X-Compute-Request-Id"))
			}
			if tt.fault == "" {
				return
			}
			var body map[string]struct {
				Code    int
				Message string
			}
			if err := json.Unmarshal([]byte(a.body), &body); err != nil {
				t.Fatalf("body %q: %v", a.body, err)
			}
			if f, ok := body[tt.fault]; !ok || f.Code != tt.status || !strings.Contains(f.Message, tt.says) {
				t.Errorf("body %s, want %s with code %d that says %q", a.body, tt.fault, tt.status, tt.says)
			}
		})
	}
	t.Cleanup(func() { // when the sub-tests are done
		var servers, flavors int
		if err := c.db.Get(&servers, `SELECT COUNT(*) FROM servers`); err != nil || servers != 0 {
			t.Errorf("%d servers, error %v; want 0: a bad request created a server", servers, err)
		}
		if err := c.db.Get(&flavors, `SELECT COUNT(*) FROM flavors`); err != nil || flavors != 5 {
			t.Errorf("%d flavors, error %v; want 5: a bad request changed the flavors", flavors, err)
		}
	})
}

// TestMicroversions: each reply names its microversion, and a version that nova-mini does not have is refused.
func TestMicroversions(t *testing.T) {
	t.Parallel()
	scenario(t)
	c := newCloud(t, "")
	cl := c.client(c.start("api", "api-1"))
	for _, tt := range []struct {
		header string
		status int
		says   string // the microversion in the headers; as in Nova, a 406 has the requested microversion
	}{
		{"", 200, "compute 2.1"},
		{"compute 2.1", 200, "compute 2.1"},
		{"compute latest", 200, "compute 2.104"},
		{"compute 2.99", 200, "compute 2.99"},
		{"volume 3.0", 200, "compute 2.1"},
		{"compute 2.105", 406, "compute 2.105"},
		{"compute abc", 400, "compute 2.1"},
		{"compute 2.x", 400, "compute 2.1"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, cl.Endpoint+"flavors", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("OpenStack-API-Version", tt.header)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tt.status || resp.Header.Get("OpenStack-API-Version") != tt.says || len(resp.Header.Values("Vary")) != 2 {
			t.Errorf("version %q: status %d, headers %v; want %d and %s", tt.header, resp.StatusCode, resp.Header, tt.status, tt.says)
		}
	}
}
