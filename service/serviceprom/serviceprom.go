// Package serviceprom has the metrics of a process that package service runs, for Prometheus.
//
//	m := serviceprom.New()
//	prometheus.MustRegister(m)
//	m.Add(app)
//
// The metrics, all with the prefix armature_service_:
//
//	loop_calls_total             counter  loop   calls of a periodic loop that have ended
//	loop_failures_total          counter  loop   calls of a periodic loop that ended with an error or a panic
//	loop_duration_seconds_total  counter  loop   duration of all calls together
//	loop_last_timestamp_seconds  gauge    loop   start of the last call
//	inflight                     gauge    kind   number of running requests, RPCs or tasks
//	inflight_oldest_seconds      gauge    kind   age of the oldest running request, RPC or task; 0 if none runs
//	loop_seconds_total           counter  loop   deprecated: use loop_duration_seconds_total
//
// inflight and inflight_oldest_seconds get a kind at the first collection during which work of this kind runs. When no such
// work runs any more, they still have the kind, with the value 0, until Add is called again.
package serviceprom

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/service"
)

const prefix = "armature_service_"

// Metrics is a [prometheus.Collector]. It is safe for concurrent use. Make one with [New].
type Metrics struct {
	mu    sync.Mutex
	app   *service.App
	kinds map[string]bool // the kinds of work that have run at a collection of app

	calls, failures, duration, seconds, last, count, oldest *prometheus.Desc
}

// Add makes app the App whose metrics are collected. It replaces an earlier App, because a process runs one App at a time.
// Before Add no metrics are collected.
func (m *Metrics) Add(app *service.App) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.app, m.kinds = app, map[string]bool{}
}

// New returns Metrics without an App, see [Metrics.Add].
func New() *Metrics {
	desc := func(name, help, label string) *prometheus.Desc {
		return prometheus.NewDesc(prefix+name, help, []string{label}, nil)
	}
	return &Metrics{
		calls:    desc("loop_calls_total", "Calls of a periodic loop that have ended.", "loop"),
		failures: desc("loop_failures_total", "Calls of a periodic loop with an error or a panic.", "loop"),
		duration: desc("loop_duration_seconds_total", "Duration of all calls of a periodic loop together.", "loop"),
		seconds:  desc("loop_seconds_total", "Deprecated: use loop_duration_seconds_total.", "loop"),
		last:     desc("loop_last_timestamp_seconds", "Start of the last call of a periodic loop.", "loop"),
		count:    desc("inflight", "Number of running requests, RPCs or tasks.", "kind"),
		oldest:   desc("inflight_oldest_seconds", "Age of the oldest running request, RPC or task; 0 if none runs.", "kind"),
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.calls, m.failures, m.duration, m.seconds, m.last, m.count, m.oldest} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.app == nil {
		return
	}
	counter := func(d *prometheus.Desc, v float64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, label)
	}
	gauge := func(d *prometheus.Desc, v float64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, label)
	}
	for _, l := range m.app.Loops() {
		counter(m.calls, float64(l.Calls), l.Name)
		counter(m.failures, float64(l.Failed), l.Name)
		counter(m.duration, l.Total.Seconds(), l.Name)
		counter(m.seconds, l.Total.Seconds(), l.Name)
		if !l.Last.IsZero() {
			gauge(m.last, float64(l.Last.UnixMilli())/1000, l.Name)
		}
	}
	count, oldest := map[string]int{}, map[string]time.Time{}
	for _, w := range m.app.Inflight().List() { // the oldest first
		m.kinds[w.Kind] = true
		if count[w.Kind]++; count[w.Kind] == 1 {
			oldest[w.Kind] = w.Since
		}
	}
	for kind := range m.kinds {
		age := 0.0
		if since, runs := oldest[kind]; runs {
			age = time.Since(since).Seconds()
		}
		gauge(m.count, float64(count[kind]), kind)
		gauge(m.oldest, age, kind)
	}
}
