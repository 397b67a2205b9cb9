package apiprom_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/api/apiprom"
)

// TestMetrics: the metrics count requests, and their names are exactly the documented names.
func TestMetrics(t *testing.T) {
	t.Parallel()
	m := apiprom.New()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(m)
	m.Observe(t.Context(), api.Observation{Method: "GET", Pattern: "GET /v3/volumes/{id}", Status: 200, Took: time.Second, Sent: 10})
	m.Observe(t.Context(), api.Observation{Method: "GET", Pattern: "GET /v3/volumes/{id}", Status: 404, Took: time.Second, Sent: 5})
	m.Observe(t.Context(), api.Observation{Method: "BREW", Status: 405, Took: time.Second})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got, names := map[string]float64{}, map[string]bool{}
	for _, f := range families {
		name := strings.TrimPrefix(f.GetName(), "armature_api_")
		names[name] = true
		for _, x := range f.GetMetric() {
			var labels []string
			for _, l := range x.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			got[name+" "+strings.Join(labels, " ")] = x.GetCounter().GetValue() + float64(x.GetHistogram().GetSampleCount())
		}
	}
	want := map[string]float64{
		"requests_total GET /v3/volumes/{id} 200": 1, "requests_total GET /v3/volumes/{id} 404": 1, "requests_total   405": 1,
		"request_duration_seconds GET /v3/volumes/{id}": 2, "request_duration_seconds  ": 1, "request_seconds GET /v3/volumes/{id}": 2, "request_seconds  ": 1, "reply_bytes_total GET /v3/volumes/{id}": 15, "reply_bytes_total  ": 0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	doc, err := os.ReadFile("apiprom.go")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^//\t([a-z_]+) +(counter|histogram) `).FindAllStringSubmatch(string(doc), -1) {
		documented[m[1]] = true
	}
	if diff := cmp.Diff(documented, names); diff != "" {
		t.Errorf("names of metrics (-documented +collected):\n%s", diff)
	}
}
