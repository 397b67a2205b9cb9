// Package serviceprom gives Prometheus the metrics of a process that package service
// runs.
//
//	prometheus.MustRegister(serviceprom.New(app))
//
// The metrics, all with the prefix armature_service_:
//
//	loop_calls_total        counter  loop   calls of a periodic loop that have ended
//	loop_failures_total     counter  loop   those of them with an error or a panic
//	loop_seconds_total      counter  loop   how long all of them took
//	loop_last_timestamp_seconds  gauge  loop   when the last one began
//	inflight                gauge    kind   what runs: requests, RPCs, tasks
//	inflight_oldest_seconds gauge    kind   for how long the oldest of them has been running
package serviceprom

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/service"
)

const prefix = "armature_service_"

type collector struct {
	app                                           *service.App
	calls, failures, seconds, last, count, oldest *prometheus.Desc
}

// New returns the metrics of an App. It is safe for concurrent use.
func New(app *service.App) prometheus.Collector {
	desc := func(name, help, label string) *prometheus.Desc {
		return prometheus.NewDesc(prefix+name, help, []string{label}, nil)
	}
	return &collector{
		app:      app,
		calls:    desc("loop_calls_total", "Calls of a periodic loop that have ended.", "loop"),
		failures: desc("loop_failures_total", "Calls of a periodic loop with an error or a panic.", "loop"),
		seconds:  desc("loop_seconds_total", "How long all calls of a periodic loop took.", "loop"),
		last:     desc("loop_last_timestamp_seconds", "When the last call of a periodic loop began.", "loop"),
		count:    desc("inflight", "What runs.", "kind"),
		oldest:   desc("inflight_oldest_seconds", "For how long the oldest of what runs has been running.", "kind"),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.calls, c.failures, c.seconds, c.last, c.count, c.oldest} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v float64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, label)
	}
	gauge := func(d *prometheus.Desc, v float64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, label)
	}
	for _, l := range c.app.Loops() {
		counter(c.calls, float64(l.Calls), l.Name)
		counter(c.failures, float64(l.Failed), l.Name)
		counter(c.seconds, l.Total.Seconds(), l.Name)
		if !l.Last.IsZero() {
			gauge(c.last, float64(l.Last.UnixMilli())/1000, l.Name)
		}
	}
	count, oldest := map[string]int{}, map[string]time.Time{}
	for _, w := range c.app.Inflight().List() { // the longest first
		if count[w.Kind]++; count[w.Kind] == 1 {
			oldest[w.Kind] = w.Since
		}
	}
	for kind, n := range count {
		gauge(c.count, float64(n), kind)
		gauge(c.oldest, time.Since(oldest[kind]).Seconds(), kind)
	}
}
