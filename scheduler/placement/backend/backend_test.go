package backend_test

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/placement/backend"
)

type (
	request = backend.Request
	pool    = backend.Backend
)

func newScheduler(t *testing.T, filters, weighers bool) *scheduler.Scheduler[*request, *pool] {
	t.Helper()
	cfg := scheduler.Config[*request, *pool]{}
	if filters {
		cfg.Filters = backend.Filters[*request, *pool]()
	}
	if weighers {
		cfg.Weighers = backend.Weighers[*request, *pool]()
	}
	s, err := scheduler.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestFilters has the vectors of Cinder's capacity filter, and formulas. An empty
// reason means that the back end passes.
func TestFilters(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, true, false)
	inf, nan := math.Inf(1), math.NaN()
	hundred := request{SizeGB: 100}
	for _, tt := range []struct {
		name   string
		q      request
		b      pool
		reason string
	}{
		{"enough", hundred, pool{TotalGB: 500, FreeGB: 200}, ""},
		{"just enough", hundred, pool{TotalGB: 500, FreeGB: 100}, ""},
		{"too little", hundred, pool{TotalGB: 500, FreeGB: 99}, "needs 100 GiB, 99 GiB free"},
		{"too little is not reserved", hundred, pool{TotalGB: 500, FreeGB: 120, ReservedPercent: 5}, "needs 100 GiB, 95 GiB free"},
		{"it is there already", request{SizeGB: 100, ExistsOn: "p"}, pool{ID: "p", TotalGB: 500}, ""},
		{"free is infinite", hundred, pool{TotalGB: 500, FreeGB: inf}, ""},
		{"free is not known", hundred, pool{TotalGB: 500, FreeGB: nan}, ""},
		{"total is infinite", hundred, pool{TotalGB: inf, FreeGB: 200}, ""},
		{"total is infinite, too little", hundred, pool{TotalGB: inf, FreeGB: 20}, "needs 100 GiB, 20 GiB free"},
		{"total is not known, some is reserved", hundred, pool{TotalGB: nan, FreeGB: 200, ReservedPercent: 5}, "its total capacity is not known, so 5% of it cannot be reserved"},
		{"nothing at all", request{}, pool{}, "has no capacity at all"},
		{"thin", hundred, pool{TotalGB: 500, FreeGB: 60, ProvisionedGB: 800, Thin: true, MaxRatio: 2}, ""},
		{"thin, too much", hundred, pool{TotalGB: 500, FreeGB: 200, ProvisionedGB: 950, Thin: true, MaxRatio: 2}, "would have given away 2.1 times its capacity, 2 times at most"},
		{"thin, too little", hundred, pool{TotalGB: 500, FreeGB: 40, ProvisionedGB: 500, Thin: true, MaxRatio: 2}, "needs 100 GiB, 80 GiB free"},
		{"thin, but thick is asked for", request{SizeGB: 100, Thick: true}, pool{TotalGB: 500, FreeGB: 60, Thin: true, MaxRatio: 2}, "needs 100 GiB, 60 GiB free"},
		{"thin below 1", hundred, pool{TotalGB: 500, FreeGB: 200, Thin: true, MaxRatio: 0.8}, "provisions thin, but only up to 0.8 times its capacity"},

		{"formula", hundred, pool{TotalGB: 1, FreeGB: inf, Filter: "volume.size < 500 and stats.total_capacity_gb == 1"}, ""},
		{"formula says no", hundred, pool{TotalGB: 1, FreeGB: inf, Filter: "volume.size >= 500 || !true"}, "its formula says no: volume.size >= 500 || !true"},
		{
			"all that it knows",
			request{SizeGB: 3, Properties: map[string]any{"kind": "x"}, Specs: map[string]string{"iops": "7"}, QoS: map[string]string{"max": "2.5"}},
			pool{TotalGB: 1, FreeGB: inf, Capabilities: map[string]any{"load": 4}, Filter: `abs(-volume.size) + max(extra.iops, qos.max) + min(capabilities.load, 9) == 14 && (volume.kind == "x" ? 2 ^ 3 == 8 : false)`},
			"",
		},
		{"what it does not know", hundred, pool{TotalGB: 1, FreeGB: inf, Filter: "capabilities.speed > 4"}, "its formula \"capabilities.speed > 4\" fails:"},
		{"no truth", hundred, pool{TotalGB: 1, FreeGB: inf, Filter: "volume.size"}, `its formula "volume.size" says 100, not true or false`},
		{"no formula", hundred, pool{TotalGB: 1, FreeGB: inf, Filter: "volume.size <"}, `its formula "volume.size <" fails:`},
		{"no function", hundred, pool{TotalGB: 1, FreeGB: inf, Filter: "len(volume) > 0"}, `its formula "len(volume) > 0" fails:`},
		{"no loop", hundred, pool{TotalGB: 1, FreeGB: inf, Filter: "all(1..1000000000, # > 0)"}, `its formula "all(1..1000000000, # > 0)" fails:`},
		{"too much memory", hundred, pool{TotalGB: 1, FreeGB: inf, Filter: "(1..1000000000) == (1..1000000000)"}, "its formula"},
		{"too long", hundred, pool{TotalGB: 1, FreeGB: inf, Filter: strings.Repeat("1", 5000)}, "its formula"},
	} {
		d, err := s.Rank(t.Context(), &tt.q, []*pool{&tt.b})
		got := ""
		if errors.Is(err, scheduler.ErrNoValidHost) {
			got = d.Rejected()[0].Reason
		} else if err != nil {
			t.Fatal(err)
		}
		if got != tt.reason && (tt.reason == "" || !strings.HasPrefix(got, tt.reason)) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.reason)
		}
	}
}

// TestWeighers: the raw weights.
func TestWeighers(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, false, true)
	for _, tt := range []struct {
		name string
		q    request
		b    pool
		want [3]float64 // capacity, allocated_capacity, goodness
	}{
		{"thick", request{}, pool{TotalGB: 500, FreeGB: 120.5, ReservedPercent: 5, AllocatedGB: 7}, [3]float64{95, 7, 0}},
		{"thin", request{}, pool{TotalGB: 500, FreeGB: 120, ProvisionedGB: 300, ReservedPercent: 5, Thin: true, MaxRatio: 2}, [3]float64{675, 0, 0}},
		{"thick is asked for", request{Thick: true}, pool{TotalGB: 500, FreeGB: 120, ProvisionedGB: 300, Thin: true, MaxRatio: 2}, [3]float64{120, 0, 0}},
		{"infinite", request{}, pool{TotalGB: 500, FreeGB: math.Inf(1)}, [3]float64{-1, 0, 0}},
		{"goodness", request{SizeGB: 4}, pool{Goodness: "(volume.size < 5) ? 100 / 2 : 0"}, [3]float64{0, 0, 50}},
		{"goodness, whole", request{SizeGB: 4}, pool{Goodness: "7"}, [3]float64{0, 0, 7}},
		{"goodness beyond", request{}, pool{Goodness: "101"}, [3]float64{}},
		{"goodness fails", request{}, pool{Goodness: "qos.x * 2"}, [3]float64{}},
		{"goodness is no number", request{}, pool{Goodness: "true"}, [3]float64{}},
	} {
		d, err := s.Rank(t.Context(), &tt.q, []*pool{&tt.b, {}})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(d.Ranked, func(r scheduler.Ranked[*pool]) bool { return r.Host == &tt.b })
		for j, sc := range d.Ranked[i].Scores {
			if sc.Raw != tt.want[j] {
				t.Errorf("%s: %s %g, want %g", tt.name, sc.Weigher, sc.Raw, tt.want[j])
			}
		}
	}
}
