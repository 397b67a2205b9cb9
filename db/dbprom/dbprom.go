// Package dbprom gives Prometheus the metrics of a database handle.
//
//	m := dbprom.New()
//	prometheus.MustRegister(m)
//	d, err := db.New(db.Config{URL: url, Observe: m.Observe})
//
// The metrics, all with the prefix armature_db_:
//
//	statements_total             counter    verb, code   statements that the database has answered
//	statement_duration_seconds   histogram  verb         time from the start of a statement to the database's answer
//
// The pool of connections is measured by client_golang itself: collectors.NewDBStatsCollector(d.DB, name).
//
// The label verb is SELECT, INSERT, UPDATE, DELETE or other. The label code is OK or a fault code, such as Unavailable.
package dbprom

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

const prefix = "armature_db_"

// Metrics is a [prometheus.Collector]. It is safe for concurrent use.
type Metrics struct {
	total   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

// New returns metrics without values.
func New() *Metrics {
	return &Metrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "statements_total", Help: "Statements that the database has answered."}, []string{"verb", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "statement_duration_seconds", Help: "Duration of statements.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
		}, []string{"verb"}),
	}
}

// Observe is the function for the field Observe of [db.Config].
func (m *Metrics) Observe(_ context.Context, query string) func(error) {
	begin := time.Now()
	return func(err error) {
		verb, code := verbOf(query), "OK"
		if err != nil {
			code = fault.CodeOf(db.Error(err)).String()
		}
		m.total.WithLabelValues(verb, code).Inc()
		m.seconds.WithLabelValues(verb).Observe(time.Since(begin).Seconds())
	}
}

// verbOf returns the value of the label verb: the first word of a statement, or "other".
func verbOf(query string) string {
	verb := strings.ToUpper(query[:min(len(query), 6)])
	if slices.Contains([]string{"SELECT", "INSERT", "UPDATE", "DELETE"}, verb) {
		return verb
	}
	return "other"
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.total.Describe(ch)
	m.seconds.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.total.Collect(ch)
	m.seconds.Collect(ch)
}
