// Package driverprom gives Prometheus the metrics of drivers' programs.
//
//	m := driverprom.New()
//	prometheus.MustRegister(m)
//	p, err := driver.New(volume.Kind, driver.PluginConfig{Program: "acme", Observe: m.Observe("acme")})
//	m.Add("acme", p)
//
// The metrics, all with the prefix armature_driver_:
//
//	requests_total      counter    driver, method, code   calls and streams, and how they ended
//	request_seconds     histogram  driver, method         how long they took
//	up                  gauge      driver                 1 while the driver can be called
//	restarts_total      counter    driver                 programs that were started again
//
// code is OK or a fault code such as Timeout, Unavailable (not executed) and Unknown
// (may have been executed).
package driverprom

import (
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
)

const prefix = "armature_driver_"

// Metrics is a [prometheus.Collector]. It is safe for concurrent use.
type Metrics struct {
	total    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	up       *prometheus.Desc
	restarts *prometheus.Desc

	mu      sync.Mutex
	plugins map[string]Plugin
}

// Plugin is a [driver.Plugin], of whatever kind.
type Plugin interface{ Status() driver.Status }

// New returns metrics of nothing yet.
func New() *Metrics {
	return &Metrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "requests_total", Help: "Calls and streams, and how they ended."}, []string{"driver", "method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "request_seconds", Help: "How long calls and streams took.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 11),
		}, []string{"driver", "method"}),
		up:       prometheus.NewDesc(prefix+"up", "1 while the driver can be called.", []string{"driver"}, nil),
		restarts: prometheus.NewDesc(prefix+"restarts_total", "Programs that were started again.", []string{"driver"}, nil),
		plugins:  make(map[string]Plugin),
	}
}

// Observe returns the function for PluginConfig.Observe of the named driver.
func (m *Metrics) Observe(name string) func(method string, took time.Duration, err error) {
	return func(method string, took time.Duration, err error) {
		method = method[strings.LastIndexByte(method, '/')+1:]
		code := "OK"
		if err != nil {
			code = fault.CodeOf(err).String()
		}
		m.total.WithLabelValues(name, method, code).Inc()
		m.seconds.WithLabelValues(name, method).Observe(took.Seconds())
	}
}

// Add adds a plugin's state to the metrics, in the place of an earlier one of the
// name.
func (m *Metrics) Add(name string, p Plugin) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.plugins[name] = p
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.total.Describe(ch)
	m.seconds.Describe(ch)
	ch <- m.up
	ch <- m.restarts
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.total.Collect(ch)
	m.seconds.Collect(ch)
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, p := range m.plugins {
		st, up := p.Status(), 0.0
		if st.State == driver.Up {
			up = 1
		}
		ch <- prometheus.MustNewConstMetric(m.up, prometheus.GaugeValue, up, name)
		ch <- prometheus.MustNewConstMetric(m.restarts, prometheus.CounterValue, float64(st.Restarts), name)
	}
}
