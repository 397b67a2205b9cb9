// Package driverprom has the metrics of drivers, for Prometheus.
//
//	m := driverprom.New()
//	prometheus.MustRegister(m)
//	p, err := driver.New(volume.Kind, driver.PluginConfig{Program: "acme", Observe: m.Observe("acme", "node-1")})
//	m.Add("acme", "node-1", p)
//
// The metrics, all with the prefix armature_driver_:
//
//	requests_total            counter    driver, host, method, code   calls and streams that have ended
//	request_duration_seconds  histogram  driver, host, method         duration of calls and streams
//	up                        gauge      driver, host                 1 while the driver can be called
//	restarts_total            counter    driver, host                 restarts of programs
//	replacements_total        counter    driver, host                 replacements of running programs
//	request_seconds           histogram  driver, host, method         deprecated: request_duration_seconds
//
// The label driver is the name of the driver, and host the host that it manages. The label code is OK or a fault code, such
// as Timeout, Unavailable (not executed) or Unknown (may have been executed).
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

// Metrics is a [prometheus.Collector]. It is safe for concurrent use. Make one with [New].
type Metrics struct {
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	seconds  *prometheus.HistogramVec // the deprecated name of duration
	up       *prometheus.Desc
	restarts *prometheus.Desc
	replaced *prometheus.Desc

	mu      sync.Mutex
	plugins map[key]Plugin
}

// key identifies a plugin.
type key struct{ driver, host string }

// Plugin is a [driver.Plugin] of any kind.
type Plugin interface{ Status() driver.Status }

// New returns Metrics. For each driver set [Metrics.Observe] in its PluginConfig, and call [Metrics.Add] with its plugin.
func New() *Metrics {
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: prefix + name, Help: help, Buckets: prometheus.ExponentialBuckets(0.0001, 4, 11)}, []string{"driver", "host", "method"})
	}
	return &Metrics{
		total:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "requests_total", Help: "Calls and streams that have ended."}, []string{"driver", "host", "method", "code"}),
		duration: histogram("request_duration_seconds", "Duration of calls and streams."),
		seconds:  histogram("request_seconds", "Deprecated: use request_duration_seconds."),
		up:       prometheus.NewDesc(prefix+"up", "1 while the driver can be called.", []string{"driver", "host"}, nil),
		restarts: prometheus.NewDesc(prefix+"restarts_total", "Restarts of programs.", []string{"driver", "host"}, nil),
		replaced: prometheus.NewDesc(prefix+"replacements_total", "Replacements of running programs.", []string{"driver", "host"}, nil),
		plugins:  make(map[key]Plugin),
	}
}

// Observe returns the function for PluginConfig.Observe of a driver. The parameter host may be empty if the process manages one host.
func (m *Metrics) Observe(driver, host string) func(method string, took time.Duration, err error) {
	return func(method string, took time.Duration, err error) {
		method = method[strings.LastIndexByte(method, '/')+1:]
		code := "OK"
		if err != nil {
			code = fault.CodeOf(err).String()
		}
		m.total.WithLabelValues(driver, host, method, code).Inc()
		m.duration.WithLabelValues(driver, host, method).Observe(took.Seconds())
		m.seconds.WithLabelValues(driver, host, method).Observe(took.Seconds())
	}
}

// Add adds the metrics up, restarts_total and replacements_total of a driver's plugin. It replaces an earlier plugin of the same driver and
// host.
func (m *Metrics) Add(driver, host string, p Plugin) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.plugins[key{driver, host}] = p
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.total.Describe(ch)
	m.duration.Describe(ch)
	m.seconds.Describe(ch)
	ch <- m.up
	ch <- m.restarts
	ch <- m.replaced
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.total.Collect(ch)
	m.duration.Collect(ch)
	m.seconds.Collect(ch)
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, p := range m.plugins {
		st, up := p.Status(), 0.0
		if st.State == driver.Up {
			up = 1
		}
		ch <- prometheus.MustNewConstMetric(m.up, prometheus.GaugeValue, up, k.driver, k.host)
		ch <- prometheus.MustNewConstMetric(m.restarts, prometheus.CounterValue, float64(st.Restarts), k.driver, k.host)
		ch <- prometheus.MustNewConstMetric(m.replaced, prometheus.CounterValue, float64(st.Replacements), k.driver, k.host)
	}
}
