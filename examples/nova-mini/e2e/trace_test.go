package e2e_test

import (
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// collected is an OTLP collector. It keeps the spans that it receives, by id.
type collected struct {
	mu    sync.Mutex
	spans map[string]*otlp.Span
}

func (c *collected) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	var in collector.ExportTraceServiceRequest
	if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(raw, &in) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range in.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				c.spans[string(s.GetSpanId())] = s
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// below returns the names of a trace's spans, each with the name of its parent.
func (c *collected) below(trace string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := map[string]bool{}
	for _, s := range c.spans {
		if hex.EncodeToString(s.GetTraceId()) != trace {
			continue
		}
		parent := c.spans[string(s.GetParentSpanId())].GetName()
		if parent == "" {
			parent = hex.EncodeToString(s.GetParentSpanId())
		}
		seen[parent+" > "+s.GetName()] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// TestTraces: a client's request is one trace, from the client's own span through the API, the conductor and the scheduler
// to the host. The logs of the API, the conductor and the host have the client's request id.
func TestTraces(t *testing.T) {
	t.Parallel()
	scenario(t)
	got := &collected{spans: map[string]*otlp.Span{}}
	srv := httptest.NewServer(got)
	defer srv.Close()
	c := newCloud(t, "[opentelemetry]\notlp_endpoint = "+srv.URL+"\n")
	c.start("conductor", "c-1")
	c.start("scheduler", "s-1")
	c.start("compute", "node-1")
	cl := c.client(c.start("api", "api-1"))
	c.hostsUp(cl, 1)
	const trace, span, global = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "req-11111111-2222-3333-4444-555555555555"
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, cl.Endpoint+"servers", strings.NewReader(`{"server": {"name": "s", "flavorRef": "1", "imageRef": "cirros"}}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Openstack-Request-Id", global)
	r.Header.Set("Traceparent", "00-"+trace+"-"+span+"-01")
	res, err := http.DefaultClient.Do(r)
	if err != nil || res.StatusCode != http.StatusAccepted {
		t.Fatal(res, err)
	}
	res.Body.Close()
	c.settled(cl, 1, 30*time.Second)
	want := []string{
		span + " > POST /v2.1/servers",
		"POST /v2.1/servers > compute.build",
		"POST /v2.1/servers > conductor.wake",
		"POST /v2.1/servers > scheduler.select",
		"compute.build > compute.build",
		"compute.build > conductor.begin_step",
		"compute.build > conductor.end_step",
		"conductor.begin_step > conductor.begin_step",
		"conductor.end_step > conductor.end_step",
		"conductor.wake > conductor.wake",
		"scheduler.select > scheduler.select",
	}
	c.poll("the trace", 30*time.Second, func() error {
		have := got.below(trace)
		for _, w := range want {
			if !slices.Contains(have, w) {
				return fmt.Errorf("no %s in\n%s", w, strings.Join(have, "\n"))
			}
		}
		return nil
	})
	// The client's request id is in the logs of processes to which the client never sent a request.
	for _, host := range []string{"api-1", "c-1", "node-1"} {
		if log := c.procs[host].log.String(); !strings.Contains(log, global) {
			t.Errorf("the client's request id is not in the log of %s", host)
		}
	}
}
