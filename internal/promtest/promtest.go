// Package promtest reads the metrics of a collector in tests.
package promtest

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Gather returns the values of a collector's metrics, by NAME{LABEL=VALUE,...}, where NAME does not have the prefix. The value of a
// histogram is the number of its observations. Gather fails the test if the collector breaks a rule of Prometheus, for example if it has
// a metric that it does not describe.
func Gather(t testing.TB, prefix string, c prometheus.Collector) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, x := range f.GetMetric() {
			var labels []string
			for _, l := range x.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			v := x.GetCounter().GetValue() + x.GetGauge().GetValue()
			if f.GetType() == dto.MetricType_HISTOGRAM {
				v = float64(x.GetHistogram().GetSampleCount())
			}
			name := strings.TrimPrefix(f.GetName(), prefix)
			if len(labels) > 0 {
				name += "{" + strings.Join(labels, ",") + "}"
			}
			got[name] = v
		}
	}
	return got
}
