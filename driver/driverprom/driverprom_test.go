package driverprom_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/driver/driverprom"
	"github.com/armature-go/armature/fault"
)

type plugin driver.Status

func (p plugin) Status() driver.Status { return driver.Status(p) }

// TestMetrics: the metrics have the documented names and no others, and count calls.
func TestMetrics(t *testing.T) {
	t.Parallel()
	m := driverprom.New()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(m)
	m.Add("acme", "node-1", plugin{State: driver.Broken, Restarts: 7})
	m.Add("acme", "node-1", plugin{State: driver.Restarting, Restarts: 8})
	m.Add("fake", "node-2", plugin{State: driver.Up})
	seen := m.Observe("acme", "node-1")
	seen("/volume.v1.Volume/Create", time.Second, nil)
	seen("/volume.v1.Volume/Create", time.Second, fault.New(fault.Unknown, "lost"))
	seen("/volume.v1.Volume/Delete", time.Second, fault.New(fault.Unavailable, "down"))

	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got, names := map[string]float64{}, map[string]bool{}
	for _, f := range families {
		name := strings.TrimPrefix(f.GetName(), "armature_driver_")
		names[name] = true
		for _, x := range f.GetMetric() {
			var labels []string
			for _, l := range x.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			v := x.GetCounter().GetValue() + x.GetGauge().GetValue()
			if f.GetType() == dto.MetricType_HISTOGRAM {
				v = float64(x.GetHistogram().GetSampleCount())
			}
			got[name+"{"+strings.Join(labels, ",")+"}"] = v
		}
	}
	want := map[string]float64{
		"requests_total{code=OK,driver=acme,host=node-1,method=Create}":          1,
		"requests_total{code=Unknown,driver=acme,host=node-1,method=Create}":     1,
		"requests_total{code=Unavailable,driver=acme,host=node-1,method=Delete}": 1,
		"request_duration_seconds{driver=acme,host=node-1,method=Create}":        2,
		"request_duration_seconds{driver=acme,host=node-1,method=Delete}":        1,
		"request_seconds{driver=acme,host=node-1,method=Create}":                 2,
		"request_seconds{driver=acme,host=node-1,method=Delete}":                 1,
		"up{driver=acme,host=node-1}":                                            0,
		"up{driver=fake,host=node-2}":                                            1,
		"restarts_total{driver=acme,host=node-1}":                                8,
		"restarts_total{driver=fake,host=node-2}":                                0,
		"replacements_total{driver=acme,host=node-1}":                            0,
		"replacements_total{driver=fake,host=node-2}":                            0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	doc, err := os.ReadFile("driverprom.go")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, f := range regexp.MustCompile(`(?m)^//\t([a-z_]+) +(?:counter|gauge|histogram) `).FindAllStringSubmatch(string(doc), -1) {
		documented[f[1]] = true
	}
	if diff := cmp.Diff(documented, names); diff != "" {
		t.Errorf("-documented +there:\n%s", diff)
	}
}
