// Package apiprom gives Prometheus the metrics of a REST API.
//
//	m := apiprom.New()
//	prometheus.MustRegister(m)
//	mux := api.New(api.Config{Observe: m.Observe})
//
// The metrics, all with the prefix armature_api_:
//
//	requests_total    counter    method, route, status   requests that were answered
//	request_seconds   histogram  method, route           how long they took
//	reply_bytes_total counter    method, route           what was sent, before compression
//
// route is the pattern's path, such as /v3/volumes/{id}, and empty for what has no route.
package apiprom

import (
	"context"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/service/api"
)

const prefix = "armature_api_"

// Metrics is a [prometheus.Collector]. It is safe for concurrent use.
type Metrics struct {
	total   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	bytes   *prometheus.CounterVec
}

// New returns metrics of nothing yet.
func New() *Metrics {
	return &Metrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "requests_total", Help: "Requests that were answered."}, []string{"method", "route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "request_seconds", Help: "How long requests took.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}, []string{"method", "route"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "reply_bytes_total", Help: "What was sent, before compression."}, []string{"method", "route"}),
	}
}

// Observe is for api.Config.
func (m *Metrics) Observe(_ context.Context, o api.Observation) {
	method, route, ok := strings.Cut(o.Pattern, " ")
	if !ok { // what a client sends as a method could be anything
		method, route = "", ""
	}
	m.total.WithLabelValues(method, route, strconv.Itoa(o.Status)).Inc()
	m.seconds.WithLabelValues(method, route).Observe(o.Took.Seconds())
	m.bytes.WithLabelValues(method, route).Add(float64(o.Sent))
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.total.Describe(ch)
	m.seconds.Describe(ch)
	m.bytes.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.total.Collect(ch)
	m.seconds.Collect(ch)
	m.bytes.Collect(ch)
}
