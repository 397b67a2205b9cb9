// Package membershipprom has the metrics of the members that a registry knows, for Prometheus.
//
//	m := membershipprom.New()
//	prometheus.MustRegister(m)
//	m.Add(members)
//
// The metric, with the prefix armature_membership_:
//
//	members  gauge  kind, state  members; state is up, disabled (up, but gets no new work) or down
//
// A kind that has a member has all three states. All processes with one database report the same values, which are up to 30 s old: a process
// reads the database at most once in 30 s, however often the metrics are collected.
package membershipprom

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/service/membership"
)

// listTimeout bounds a collection that reads the database. Counts that are younger than listAge are not read again, because otherwise each
// scrape of each process would read all members.
const (
	listTimeout = 5 * time.Second
	listAge     = 30 * time.Second
)

// Metrics is a [prometheus.Collector]. It is safe for concurrent use. Make one with [New].
type Metrics struct {
	members *prometheus.Desc

	mu       sync.Mutex
	registry *membership.Registry      // nil: no values
	counts   map[string]map[string]int // the last counts, by kind and state
	listed   time.Time                 // when the members were counted; zero: the counts are not known
}

// New returns Metrics without a registry, see [Metrics.Add].
func New() *Metrics {
	return &Metrics{members: prometheus.NewDesc("armature_membership_members", "Members by kind and state.", []string{"kind", "state"}, nil)}
}

// Add adds the metrics of a registry. If the last counts are older than 30 s, a collection reads all members, for at most 5 s. If the
// database does not answer, the collection has no values. Add replaces an earlier registry.
func (m *Metrics) Add(r *membership.Registry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.registry, m.listed = r, time.Time{}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.members }

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.countLocked()
	if m.listed.IsZero() {
		return
	}
	for kind, states := range m.counts {
		for state, n := range states {
			ch <- prometheus.MustNewConstMetric(m.members, prometheus.GaugeValue, float64(n), kind, state)
		}
	}
}

// countLocked counts the members if the last counts are too old.
func (m *Metrics) countLocked() {
	if m.registry == nil || !m.listed.IsZero() && time.Since(m.listed) < listAge {
		return
	}
	m.listed = time.Time{}
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	list, err := m.registry.List(ctx, "")
	if err != nil { // the metrics of package dbprom show the failure
		return
	}
	m.listed = time.Now()
	counts := map[string]map[string]int{}
	for i := range list {
		kind := list[i].Kind
		if counts[kind] == nil {
			counts[kind] = map[string]int{"up": 0, "disabled": 0, "down": 0}
		}
		counts[kind][stateOf(&list[i])]++
	}
	m.counts = counts
}

func stateOf(m *membership.Member) string {
	switch {
	case !m.Up:
		return "down"
	case m.Disabled:
		return "disabled"
	}
	return "up"
}
