// Package authprom has the metrics of the validation of tokens, for Prometheus.
//
//	m := authprom.New()
//	prometheus.MustRegister(m)
//	k, err := auth.NewKeystone(auth.KeystoneConfig{URL: url, Observe: m.Observe})
//
// The metrics, all with the prefix armature_auth_:
//
//	validations_total                  counter    source, result  validations of tokens; source is cache or identity_service, result is valid, refused or error
//	identity_service_duration_seconds  histogram               duration of Keystone's answers, with a new login if necessary
//
// The result error means that Keystone has given no answer about the token: Keystone cannot be reached, answers with an error, or rejects the
// service's login. The client then gets status 503.
package authprom

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/service/auth"
)

const prefix = "armature_auth_"

// Metrics is a [prometheus.Collector]. It is safe for concurrent use. Make one with [New].
type Metrics struct {
	total    *prometheus.CounterVec
	duration prometheus.Histogram
}

// New returns metrics without values.
func New() *Metrics {
	return &Metrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "validations_total", Help: "Validations of tokens."}, []string{"source", "result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + "identity_service_duration_seconds", Help: "Duration of the answers of the identity service.", Buckets: prometheus.ExponentialBuckets(0.001, 3, 9),
		}),
	}
}

// Observe is the function for the field Observe of [auth.KeystoneConfig].
func (m *Metrics) Observe(_ context.Context, o auth.Observation) {
	source, result := "identity_service", "refused"
	switch {
	case o.Err != nil:
		result = "error"
	case o.Valid:
		result = "valid"
	}
	if o.Cached {
		source = "cache"
	} else {
		m.duration.Observe(o.Duration.Seconds())
	}
	m.total.WithLabelValues(source, result).Inc()
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.total.Describe(ch)
	m.duration.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.total.Collect(ch)
	m.duration.Collect(ch)
}
