// Package schedulerprom has the metrics of a scheduler's decisions, for Prometheus.
//
//	m := schedulerprom.New()
//	prometheus.MustRegister(m)
//	s, err := scheduler.New(scheduler.Config[*Spec, *Node]{Filters: filters, Observe: m.Observe})
//
// The metrics, all with the prefix armature_scheduler_:
//
//	decisions_total            counter    result   decisions; result is ok, no_valid_host or error
//	decision_duration_seconds  histogram           duration of decisions
//	rejected_hosts_total       counter    filter   hosts that a filter or a weigher has rejected, added up over all decisions
//	hosts                      gauge               hosts that the last decision has judged
//
// Several schedulers can share a [Metrics]: its counters and its histogram then count the decisions of all of them. The
// label filter has the names of configured filters and weighers, so it has few values.
package schedulerprom

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/scheduler"
)

const prefix = "armature_scheduler_"

// Metrics is a [prometheus.Collector]. It is safe for concurrent use. Make one with [New].
type Metrics struct {
	total    *prometheus.CounterVec
	duration prometheus.Histogram
	rejected *prometheus.CounterVec
	hosts    prometheus.Gauge
}

// New returns metrics without decisions.
func New() *Metrics {
	return &Metrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "decisions_total", Help: "Decisions."}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + "decision_duration_seconds", Help: "Duration of decisions.", Buckets: prometheus.ExponentialBuckets(0.00005, 4, 9),
		}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "rejected_hosts_total", Help: "Hosts that a filter or a weigher has rejected, in all decisions."}, []string{"filter"}),
		hosts:    prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + "hosts", Help: "Hosts that the last decision has judged."}),
	}
}

// Observe is the function for the field Observe of [scheduler.Config].
func (m *Metrics) Observe(_ context.Context, o scheduler.Observation) {
	result := "ok"
	switch {
	case o.Err != nil:
		result = "error"
	case o.Feasible == 0:
		result = "no_valid_host"
	}
	m.total.WithLabelValues(result).Inc()
	m.duration.Observe(o.Duration.Seconds())
	for _, c := range o.Counts {
		m.rejected.WithLabelValues(c.Filter).Add(float64(c.Hosts))
	}
	m.hosts.Set(float64(o.Hosts))
}

func (m *Metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.total, m.duration, m.rejected, m.hosts}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(ch)
	}
}
