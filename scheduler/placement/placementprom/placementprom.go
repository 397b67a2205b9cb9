// Package placementprom has the metrics of claims and of the resources of providers, for Prometheus.
//
//	m := placementprom.New()
//	prometheus.MustRegister(m)
//	m.AddProviders(func(ctx context.Context) ([]*placement.Provider, error) { return store.Providers(ctx) })
//	placer := placement.Placer[*Spec, *Node]{Scheduler: s, Store: store, Hosts: hosts, Observe: m.Observe}
//
// The metrics, all with the prefix armature_placement_:
//
//	claims_total            counter    result  claims of Place; result is ok, no_room, group_policy, changed or error
//	claim_duration_seconds  histogram          duration of claims
//	providers               gauge      state   providers; state is enabled or disabled
//	capacity                gauge      class   amount that consumers may have on all enabled providers together
//	used                    gauge      class   amount that consumers have on all enabled providers together
//
// The result changed means that another process had changed the claim or the provider first, so that Place tries again.
//
// The metrics providers, capacity and used need [Metrics.AddProviders]. All processes with one database report the same values.
package placementprom

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/scheduler/placement"
)

const prefix = "armature_placement_"

// listTimeout bounds a collection.
const listTimeout = 5 * time.Second

// Metrics is a [prometheus.Collector]. It is safe for concurrent use. Make one with [New].
type Metrics struct {
	claims                    *prometheus.CounterVec
	duration                  prometheus.Histogram
	providers, capacity, used *prometheus.Desc

	list atomic.Pointer[func(context.Context) ([]*placement.Provider, error)] // nil: no metrics of providers
}

// New returns Metrics without claims and providers. Set [Metrics.Observe] in the Placer, and call [Metrics.AddProviders].
func New() *Metrics {
	desc := func(name, help, label string) *prometheus.Desc {
		return prometheus.NewDesc(prefix+name, help, []string{label}, nil)
	}
	return &Metrics{
		claims: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "claims_total", Help: "Claims of Place."}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + "claim_duration_seconds", Help: "Duration of claims.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
		}),
		providers: desc("providers", "Providers by state.", "state"),
		capacity:  desc("capacity", "Amount that consumers may have on all enabled providers together.", "class"),
		used:      desc("used", "Amount that consumers have on all enabled providers together.", "class"),
	}
}

// results are the values of the label result, by the errors of a claim.
var results = []struct {
	err    error
	result string
}{{placement.ErrNoRoom, "no_room"}, {placement.ErrGroup, "group_policy"}, {placement.ErrChanged, "changed"}}

// Observe is the function for the field Observe of [placement.Placer].
func (m *Metrics) Observe(_ context.Context, o placement.Observation) {
	result := "ok"
	if o.Err != nil {
		result = "error"
		for _, r := range results {
			if errors.Is(o.Err, r.err) {
				result = r.result
			}
		}
	}
	m.claims.WithLabelValues(result).Inc()
	m.duration.Observe(o.Duration.Seconds())
}

// AddProviders adds the metrics of providers. The function list returns all providers, for example from the memory of a scheduler. Each
// collection calls list, for at most 5 s. If list fails, the collection has no metrics of providers, but all other metrics. The function
// list must be safe for concurrent use. AddProviders replaces an earlier function.
func (m *Metrics) AddProviders(list func(context.Context) ([]*placement.Provider, error)) {
	m.list.Store(&list)
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.claims.Describe(ch)
	m.duration.Describe(ch)
	for _, d := range []*prometheus.Desc{m.providers, m.capacity, m.used} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.claims.Collect(ch)
	m.duration.Collect(ch)
	providers := m.list.Load()
	if providers == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	list, err := (*providers)(ctx)
	if err != nil { // the metrics of the database's own package show the failure
		return
	}
	states := map[string]float64{"enabled": 0, "disabled": 0}
	capacity, used := map[string]float64{}, map[string]float64{}
	for _, p := range list {
		if p.Disabled != "" {
			states["disabled"]++
			continue
		}
		states["enabled"]++
		for class, i := range p.Inventories {
			capacity[class] += float64(i.Capacity())
			used[class] += float64(i.Used)
		}
	}
	for d, values := range map[*prometheus.Desc]map[string]float64{m.providers: states, m.capacity: capacity, m.used: used} {
		for label, v := range values {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, label)
		}
	}
}
