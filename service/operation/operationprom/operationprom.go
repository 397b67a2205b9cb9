// Package operationprom has the metrics of operations, for Prometheus.
//
//	m := operationprom.New()
//	prometheus.MustRegister(m)
//	m.Add("conductor-1", runner)
//	m.AddStore(store) // in the processes that may read the database for metrics
//
// The metrics, all with the prefix armature_operation_:
//
//	running           gauge    host               operations that run in this process now
//	unknown           gauge    host               unknown operations: they wait for another runner, because this one does not know them in full
//	not_undone_total  counter  host               steps that were not undone in time, and operations that ended without their OnEnd
//	ended_total       counter  host, kind, state  operations that this process has ended
//	retries_total     counter  host, kind         attempts at a step that failed in this process and are repeated after a delay
//	open              gauge    kind, state        operations in the database that have not ended, or are not compensated
//	oldest_seconds    gauge    kind, state        age of the oldest of them
//
// The metrics with the label host are the fields of [operation.Stats]. All runners of one release report the same number of unknown operations.
// During an upgrade look at a runner of the newest release: if its value is above 0, no running process knows these operations.
//
// The metrics open and oldest_seconds need [Metrics.AddStore]. All processes with one database report the same values, which are up to 30 s
// old: a process reads the database at most once in 30 s, however often the metrics are collected.
package operationprom

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/service/operation"
)

const prefix = "armature_operation_"

// countTimeout bounds a collection that reads the database. Counts that are younger than countAge are not read again, because otherwise each
// scrape of each process would read all open operations.
const (
	countTimeout = 5 * time.Second
	countAge     = 30 * time.Second
)

// Metrics is a [prometheus.Collector]. It is safe for concurrent use. Make one with [New].
type Metrics struct {
	mu      sync.Mutex
	runners map[string]*operation.Runner // the key is the host
	store   *operation.Store             // nil: no metrics of the database
	counts  []operation.OpenCount        // the last counts from the database
	counted time.Time                    // when counts was read; zero: there are no counts

	running, unknown, notUndone, ended, retries, open, oldest *prometheus.Desc
}

// New returns Metrics without a runner, see [Metrics.Add].
func New() *Metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prefix+name, help, labels, nil)
	}
	return &Metrics{
		runners:   map[string]*operation.Runner{},
		running:   desc("running", "Operations that run in this process now.", "host"),
		unknown:   desc("unknown", "Operations that wait for another runner, because this one does not know them in full.", "host"),
		notUndone: desc("not_undone_total", "Steps that were not undone in time, and operations that ended without their OnEnd.", "host"),
		ended:     desc("ended_total", "Operations that this process has ended.", "host", "kind", "state"),
		retries:   desc("retries_total", "Steps that failed and are repeated after a delay.", "host", "kind"),
		open:      desc("open", "Operations in the database that have not ended, or are not compensated.", "kind", "state"),
		oldest:    desc("oldest_seconds", "Age of the oldest operation that has not ended, or is not compensated.", "kind", "state"),
	}
}

// Add adds the metrics of a runner, with the label host. It replaces an earlier runner with the same host.
func (m *Metrics) Add(host string, r *operation.Runner) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.runners[host] = r
}

// AddStore adds the metrics of a database. If the last counts are older than 30 s, a collection reads the open operations, for at most 5 s. If
// the database does not answer, the collection has no metrics of the database, but all other metrics. AddStore replaces an earlier store.
func (m *Metrics) AddStore(s *operation.Store) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.store, m.counted = s, time.Time{}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.running, m.unknown, m.notUndone, m.ended, m.retries, m.open, m.oldest} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for host, r := range m.runners {
		s := r.Stats()
		gauge(m.running, float64(s.Running), host)
		gauge(m.unknown, float64(s.Unknown), host)
		counter(m.notUndone, s.NotUndone, host)
		for kind, k := range s.Kinds {
			counter(m.retries, k.Retries, host, kind)
			for state, n := range k.Ended {
				counter(m.ended, n, host, kind, string(state))
			}
		}
	}
	m.countOpenLocked()
	if m.counted.IsZero() {
		return
	}
	for _, c := range m.counts {
		gauge(m.open, float64(c.Count), c.Kind, string(c.State))
		gauge(m.oldest, (c.Oldest + time.Since(m.counted)).Seconds(), c.Kind, string(c.State))
	}
}

// countOpenLocked counts the open operations if the last counts are too old.
func (m *Metrics) countOpenLocked() {
	if m.store == nil || !m.counted.IsZero() && time.Since(m.counted) < countAge {
		return
	}
	m.counted = time.Time{}
	ctx, cancel := context.WithTimeout(context.Background(), countTimeout)
	defer cancel()
	if counts, err := m.store.CountOpen(ctx); err == nil { // the metrics of package dbprom show a failure
		m.counts, m.counted = counts, time.Now()
	}
}
