package scheduler_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/scheduler"
)

// TestScale has Nova's golden vectors: the scaled score of each host, and the
// resulting order.
func TestScale(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name       string
		loads      []float64 // one load for each of the hosts a, b, c, ...
		multiplier float64
		wantScaled []float64
		wantOrder  string
	}{
		{"spread", []float64{2, 10, 4}, 1, []float64{0, 1, 0.25}, "b c a"},
		{"equal raw scores become 0, not 1", []float64{7, 7, 7}, 1, []float64{0, 0, 0}, "a b c"},
		{"negative weights", []float64{-2, -10, -4}, 1, []float64{1, 0, 0.75}, "a c b"},
		{"negative multiplier", []float64{2, 10, 4}, -1.5, []float64{0, 1, 0.25}, "a c b"},
		{"zero multiplier", []float64{2, 10, 4}, 0, []float64{0, 1, 0.25}, "a b c"},
		{"ties in the order given", []float64{10, 2, 10}, 1, []float64{1, 0, 1}, "a c b"},
		{"a range above the largest float64", []float64{-math.MaxFloat64, math.MaxFloat64, 0}, 1, []float64{0, 1, 0.5}, "b c a"},
		{"a single feasible host is not weighed", []float64{5}, 1, nil, "a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var hosts []*node
			for i, l := range tt.loads {
				hosts = append(hosts, &node{name: string(rune('a' + i)), load: l})
			}
			s := mustNew(t, config{Weighers: []weighted{byLoad(tt.multiplier)}})
			d, err := s.Rank(t.Context(), spec{}, hosts)
			if err != nil {
				t.Fatal(err)
			}
			if got := names(d); got != tt.wantOrder {
				t.Errorf("order %s, want %s", got, tt.wantOrder)
			}
			for _, r := range d.Ranked {
				if tt.wantScaled == nil {
					if len(r.Scores) != 0 || r.Total != 0 {
						t.Errorf("the only host has scores: %+v", r)
					}
					continue
				}
				i := r.Host.name[0] - 'a'
				want := []scheduler.Score{{Weigher: "load", Raw: tt.loads[i], Scaled: tt.wantScaled[i], Multiplier: tt.multiplier}}
				if diff := cmp.Diff(want, r.Scores); diff != "" || r.Total != tt.multiplier*tt.wantScaled[i] {
					t.Errorf("host %s: total %g, scores (-want +got):\n%s", r.Host.name, r.Total, diff)
				}
			}
		})
	}
}

func TestNonFiniteWeights(t *testing.T) {
	t.Parallel()
	s := mustNew(t, config{Weighers: []weighted{byLoad(1)}})
	d, err := s.Rank(t.Context(), spec{}, []*node{
		{name: "a", load: math.NaN()},
		{name: "b", load: 1},
		{name: "c", load: math.Inf(1)},
		{name: "d", load: 2},
		{name: "e", load: math.Inf(-1)},
	})
	if err != nil || names(d) != "d b" || d.Ranked[0].Total != 1 {
		t.Errorf("Rank = %v, %v; want d and b, weighed without the others", d, err)
	}
	want := []scheduler.Rejected{{"a", "load", "raw score is NaN"}, {"c", "load", "raw score is +Inf"}, {"e", "load", "raw score is -Inf"}}
	if diff := cmp.Diff(want, d.Rejected()); diff != "" {
		t.Errorf("rejected (-want +got):\n%s", diff)
	}
	d, err = s.Rank(t.Context(), spec{}, []*node{{name: "a", load: math.NaN()}, {name: "b", load: math.NaN()}})
	if !errors.Is(err, scheduler.ErrNoValidHost) || len(d.Rejected()) != 2 {
		t.Errorf("all of them: %v, %v", d, err)
	}
}

func TestSubset(t *testing.T) {
	t.Parallel()
	s := mustNew(t, config{
		Weighers: []weighted{byFree(1)},
		Picker:   scheduler.Subset(3),
		Rand:     rand.New(rand.NewPCG(1, 2)),
	})
	seen := map[string]int{}
	for range 300 {
		d, err := s.Rank(t.Context(), spec{}, fleet())
		if err != nil {
			t.Fatal(err)
		}
		seen[names(d)]++
	}
	// The picked host comes first, then the alternates in order.
	want := map[string]bool{"n3 n2 n4 n5 n1": true, "n2 n3 n4 n5 n1": true, "n4 n3 n2 n5 n1": true}
	for order, n := range seen {
		if !want[order] || n < 60 {
			t.Errorf("%s came %d times of 300", order, n)
		}
	}
	if len(seen) != 3 {
		t.Errorf("orders %v, want three", seen)
	}
	few := mustNew(t, config{Picker: scheduler.Subset(100)})
	if _, err := few.Rank(t.Context(), spec{}, fleet()[:2]); err != nil {
		t.Errorf("a subset larger than the fleet: %v", err)
	}
	defer func() {
		if recover() == nil {
			t.Error("Subset(0) does not panic")
		}
	}()
	scheduler.Subset(0)
}
