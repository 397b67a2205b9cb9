// Package apiprom has the metrics of a REST API, for Prometheus.
//
//	m := apiprom.New()
//	prometheus.MustRegister(m)
//	mux := api.New(api.Config{Observe: m.Observe})
//
// The metrics, all with the prefix armature_api_:
//
//	requests_total            counter    method, route, status   requests that were answered
//	request_duration_seconds  histogram  method, route           duration of requests
//	reply_bytes_total         counter    method, route           bytes of replies, before compression
//	request_seconds           histogram  method, route           deprecated: use request_duration_seconds
//
// The label route is the path of the pattern, such as /v3/volumes/{id}. The labels method and route are empty for a
// request without a route.
package apiprom

import (
	"context"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/service/api"
)

const prefix = "armature_api_"

// Metrics is a [prometheus.Collector]. It is safe for concurrent use. Make one with [New].
type Metrics struct {
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	seconds  *prometheus.HistogramVec // the deprecated name of duration
	bytes    *prometheus.CounterVec
}

// New returns Metrics. Set [Metrics.Observe] in an api.Config.
func New() *Metrics {
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: prefix + name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 4, 8)}, []string{"method", "route"})
	}
	return &Metrics{
		total:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "requests_total", Help: "Requests that were answered."}, []string{"method", "route", "status"}),
		duration: histogram("request_duration_seconds", "Duration of requests."),
		seconds:  histogram("request_seconds", "Deprecated: use request_duration_seconds."),
		bytes:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "reply_bytes_total", Help: "Bytes of replies, before compression."}, []string{"method", "route"}),
	}
}

// Observe counts one request. It is for the field Observe of api.Config.
func (m *Metrics) Observe(_ context.Context, o api.Observation) {
	method, route, ok := strings.Cut(o.Pattern, " ")
	if !ok { // a request without a route: its method could be any text, and each would be a new time series
		method, route = "", ""
	}
	m.total.WithLabelValues(method, route, strconv.Itoa(o.Status)).Inc()
	m.duration.WithLabelValues(method, route).Observe(o.Took.Seconds())
	m.seconds.WithLabelValues(method, route).Observe(o.Took.Seconds())
	m.bytes.WithLabelValues(method, route).Add(float64(o.Sent))
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.total.Describe(ch)
	m.duration.Describe(ch)
	m.seconds.Describe(ch)
	m.bytes.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.total.Collect(ch)
	m.duration.Collect(ch)
	m.seconds.Collect(ch)
	m.bytes.Collect(ch)
}
