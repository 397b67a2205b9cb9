package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/compare"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/api/apiprom"
	"github.com/armature-go/armature/service/auth"
	"github.com/armature-go/armature/service/policy"
)

// chain returns a Mux with everything that a component has around its handlers: ids, tokens, a policy, versions, a JSON log, a list
// of running work, and Prometheus.
func chain() *api.Mux {
	var f service.Inflight
	rules, err := policy.New([]policy.Rule{
		{Name: "owner", Check: "project_id:%(project_id)s"},
		{Name: "disk:get", Check: "role:admin or (role:reader and rule:owner) or (role:member and rule:owner)"},
		{Name: "disk:create", Check: "role:admin or (role:member and rule:owner)"},
	}, policy.Config{})
	if err != nil {
		panic(err)
	}
	m := api.New(api.Config{
		Authenticate:  auth.Static(map[string]reqctx.Request{"token": {UserID: "u", ProjectID: "p", Roles: []string{"member"}}}),
		Enforce:       func(ctx context.Context, rule string, _ map[string]any) error { return rules.Enforce(ctx, rule, nil) },
		Microversions: volumeVersions, Inflight: &f, RequestIDHeaders: []string{"X-Compute-Request-Id"},
		Logger:  slog.New(reqctx.LogHandler(slog.NewJSONHandler(io.Discard, nil))), //nolint:sloglint // the benchmark includes the cost of a log line
		Observe: apiprom.New().Observe,
	})
	api.HandleRoute(m, api.Route{Pattern: "GET /v3/disks/{id}", Rule: "disk:get"}, func(_ context.Context, r *api.Request[api.None]) (disk, error) {
		return disk{Name: r.PathValue("id"), Size: 7, Tags: []string{"a", "b"}}, nil
	})
	api.HandleRoute(m, api.Route{Pattern: "POST /v3/disks", Rule: "disk:create", Body: []api.Schema{{JSON: nameAndSize}}, NoEffect: []string{"disk.kind", "disk.ratio", "disk.labels", "disk.host", "disk.id"}}, func(_ context.Context, r *api.Request[loose]) (disk, error) {
		return r.Body.Disk, nil
	})
	return m
}

// plain returns a http.ServeMux with the same handlers as chain, and nothing around them.
func plain() http.Handler {
	m := http.NewServeMux()
	reply := func(w http.ResponseWriter, d disk) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(d)
	}
	m.HandleFunc("GET /v3/disks/{id}", func(w http.ResponseWriter, r *http.Request) {
		reply(w, disk{Name: r.PathValue("id"), Size: 7, Tags: []string{"a", "b"}})
	})
	m.HandleFunc("POST /v3/disks", func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		var in loose
		if err == nil {
			err = json.Unmarshal(raw, &in)
		}
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		reply(w, in.Disk)
	})
	return m
}

const smallBody = `{"disk": {"name": "a", "size": 7, "tags": ["a", "b"], "meta": {"k": "v"}, "kind": "fast"}}`

// newRequest returns a request of the benchmark.
func newRequest(ctx context.Context, method, url string) (*http.Request, error) {
	path, body := "/v3/disks/d1", io.Reader(http.NoBody)
	if method == http.MethodPost {
		path, body = "/v3/disks", strings.NewReader(smallBody)
	}
	r, err := http.NewRequestWithContext(ctx, method, url+path, body)
	if err == nil {
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("X-Auth-Token", "token")
		r.Header.Set("OpenStack-API-Version", "volume 3.10")
	}
	return r, err
}

// TestContenders: both contenders of BenchmarkChain give the same reply.
func TestContenders(t *testing.T) {
	t.Parallel()
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		var replies []string
		for _, h := range []http.Handler{plain(), chain()} {
			r, err := newRequest(t.Context(), method, "")
			if err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			replies = append(replies, fmt.Sprint(w.Code, " ", strings.TrimSpace(w.Body.String())))
		}
		if !strings.HasPrefix(replies[0], "200 ") || replies[0] != replies[1] {
			t.Errorf("%s: ServeMux %s, api %s", method, replies[0], replies[1])
		}
	}
}

// BenchmarkChain compares the complete chain with the same handlers on ServeMux alone, over real connections.
func BenchmarkChain(b *testing.B) {
	table := compare.New()
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		var list []compare.Contender
		for _, c := range []struct {
			name string
			h    http.Handler
		}{{"ServeMux", plain()}, {"api", chain()}} {
			srv := httptest.NewServer(c.h)
			b.Cleanup(srv.Close)
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
			b.Cleanup(client.CloseIdleConnections)
			list = append(list, compare.Contender{Name: c.name, Op: func() {
				r, err := newRequest(b.Context(), method, srv.URL)
				if err != nil {
					b.Error(err)
					return
				}
				resp, err := client.Do(r)
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					b.Error(resp.Status)
				}
			}})
		}
		table.Row(method+" of a small document", 1, list...)
		table.Row(method+" of a small document", 8, list...)
	}
}

// nothing is a ResponseWriter that discards the reply.
type nothing struct{ h http.Header }

func (n *nothing) Header() http.Header         { return n.h }
func (n *nothing) Write(p []byte) (int, error) { return len(p), nil }
func (n *nothing) WriteHeader(int)             {}

// BenchmarkAllocations counts the allocations of a request, once with ServeMux alone and once with the complete chain.
func BenchmarkAllocations(b *testing.B) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		for name, h := range map[string]http.Handler{"ServeMux": plain(), "api": chain()} {
			b.Run(method+"/"+name, func(b *testing.B) {
				path := "/v3/disks/d1"
				if method == http.MethodPost {
					path = "/v3/disks"
				}
				r := httptest.NewRequestWithContext(b.Context(), method, path, http.NoBody)
				r.Header.Set("Content-Type", "application/json")
				r.Header.Set("X-Auth-Token", "token")
				r.Header.Set("OpenStack-API-Version", "volume 3.10")
				w := &nothing{http.Header{}}
				body := bytes.NewReader([]byte(smallBody))
				b.ReportAllocs()
				for b.Loop() {
					clear(w.h)
					if method == http.MethodPost {
						body.Reset([]byte(smallBody))
						r.Body, r.ContentLength = io.NopCloser(body), int64(len(smallBody))
					}
					h.ServeHTTP(w, r)
				}
			})
		}
	}
}

// BenchmarkVersionedReply measures the time of a reply of 1,000 objects whose type has versions. The metric "ratio" is this time
// divided by the time of json.Marshal and a Write of a plain struct with the same fields, without a Mux. The metric "of-plain" is
// this time divided by the time of a reply of the plain struct by the same Mux.
func BenchmarkVersionedReply(b *testing.B) {
	type plainDisk struct {
		ID          string   `json:"id"`
		Name        string   `json:"name"`
		Description *string  `json:"description"`
		Kind        kindRef  `json:"kind"`
		Size        int      `json:"size"`
		Tags        []string `json:"tags"`
		Host        string   `json:"host"`
	}
	type versionedDisk struct {
		ID          string   `json:"id"`
		Name        string   `json:"name"`
		Description *string  `json:"description" since:"3.2"`
		Old         string   `json:"kind" until:"3.2"`
		Kind        kindRef  `json:"new_kind" name:"kind" since:"3.3"`
		Size        int      `json:"size"`
		Tags        []string `json:"tags" since:"3.2"`
		Host        string   `json:"host" rule:"disk:host"`
	}
	type list[T any] struct {
		Disks []T `json:"disks"`
	}
	var versioned list[versionedDisk]
	var plain list[plainDisk]
	text := "a disk"
	for i := range 1000 {
		id := fmt.Sprint("disk-", i)
		versioned.Disks = append(versioned.Disks, versionedDisk{ID: id, Name: id, Description: &text, Kind: kindRef{"fast", 3}, Size: i, Tags: []string{"a", "b"}, Host: "host"})
		plain.Disks = append(plain.Disks, plainDisk{ID: id, Name: id, Description: &text, Kind: kindRef{"fast", 3}, Size: i, Tags: []string{"a", "b"}, Host: "host"})
	}
	m := api.New(api.Config{Microversions: versionsOfDisks, Authenticate: rolesOf, Enforce: enforceRoles, Logger: slog.New(slog.DiscardHandler)})
	api.Handle(m, "GET /versioned", func(context.Context, *api.Request[api.None]) (list[versionedDisk], error) { return versioned, nil })
	api.Handle(m, "GET /plain", func(context.Context, *api.Request[api.None]) (list[plainDisk], error) { return plain, nil })
	get := func(path string) int {
		r := httptest.NewRequestWithContext(b.Context(), http.MethodGet, path, nil)
		r.Header.Set("OpenStack-API-Version", "volume latest")
		r.Header.Set("X-Auth-Token", "disk:host")
		w := httptest.NewRecorder()
		m.ServeHTTP(w, r)
		return w.Body.Len()
	}
	if a, c := get("/versioned"), get("/plain"); a != c {
		b.Fatalf("%d bytes with versions, %d bytes without", a, c)
	}
	marshal := func() {
		raw, err := json.Marshal(plain)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = httptest.NewRecorder().Write(raw)
	}
	contenders := []func(){func() { get("/versioned") }, func() { get("/plain") }, marshal}
	var took [3]time.Duration
	for n := 0; b.Loop(); n++ {
		for i := range contenders {
			i = (i + n) % len(contenders) // each round begins with another contender, so the one before each contender varies
			begin := time.Now()
			contenders[i]()
			took[i] += time.Since(begin)
		}
	}
	b.ReportMetric(float64(took[0])/float64(took[2]), "ratio")
	b.ReportMetric(float64(took[0])/float64(took[1]), "of-plain")
}
