// Package operationprom has the metrics of the runners of operations, for Prometheus.
//
//	m := operationprom.New()
//	prometheus.MustRegister(m)
//	m.Add("conductor-1", runner)
//
// The metrics, all with the prefix armature_operation_:
//
//	running           gauge    host  operations that run in this process now
//	unknown           gauge    host  unknown operations: they wait for another runner, because this one does not know them in full
//	not_undone_total  counter  host  steps that were not undone in time, and operations that ended without their OnEnd
//
// They are the fields of [operation.Stats]. All runners of one release count the same operations as unknown. During an upgrade
// look at a runner of the newest release: if its value is above 0, no running process knows these operations.
package operationprom

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/service/operation"
)

const prefix = "armature_operation_"

// Metrics is a [prometheus.Collector]. It is safe for concurrent use. Make one with [New].
type Metrics struct {
	mu      sync.Mutex
	runners map[string]*operation.Runner // by host

	running, unknown, notUndone *prometheus.Desc
}

// New returns Metrics without a runner, see [Metrics.Add].
func New() *Metrics {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(prefix+name, help, []string{"host"}, nil)
	}
	return &Metrics{
		runners:   map[string]*operation.Runner{},
		running:   desc("running", "Operations that run in this process now."),
		unknown:   desc("unknown", "Operations that wait for another runner, because this one does not know them in full."),
		notUndone: desc("not_undone_total", "Steps that were not undone in time, and operations that ended without their OnEnd."),
	}
}

// Add adds the metrics of a runner, with the label host. It replaces an earlier runner with the same host.
func (m *Metrics) Add(host string, r *operation.Runner) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.runners[host] = r
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.running
	ch <- m.unknown
	ch <- m.notUndone
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for host, r := range m.runners {
		s := r.Stats()
		ch <- prometheus.MustNewConstMetric(m.running, prometheus.GaugeValue, float64(s.Running), host)
		ch <- prometheus.MustNewConstMetric(m.unknown, prometheus.GaugeValue, float64(s.Unknown), host)
		ch <- prometheus.MustNewConstMetric(m.notUndone, prometheus.CounterValue, float64(s.NotUndone), host)
	}
}
