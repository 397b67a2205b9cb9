package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler"
)

func TestPrepare(t *testing.T) {
	t.Parallel()
	var asked []string
	ask := func(name string, reject ...string) filter {
		return prepared{name, func(hosts []*node) (func(*node) scheduler.Verdict, error) {
			before := slices.Clone(hosts)
			return func(n *node) scheduler.Verdict {
				asked = append(asked, name+n.name)
				if !slices.Equal(before, hosts) {
					t.Errorf("%s: the hosts of Prepare changed during the decision", name)
				}
				if slices.Contains(reject, n.name) {
					return scheduler.Reject("no")
				}
				return scheduler.Pass
			}, nil
		}}
	}
	nothing := prepared{"nothing", func([]*node) (func(*node) scheduler.Verdict, error) { return nil, nil }}
	last := prepared{"last", func([]*node) (func(*node) scheduler.Verdict, error) {
		t.Error("Prepare was called although no host was left")
		return nil, nil
	}}
	s := mustNew(t, config{Filters: []filter{
		ask("f", "n1"),
		nothing,
		ask("g", "n3"),
		ask("h", "n4"),
		ask("i", "n2", "n5"),
		last,
	}})
	d, err := s.Rank(t.Context(), spec{}, fleet())
	if !errors.Is(err, scheduler.ErrNoValidHost) || d.Summary() != "0 of 5 hosts: 2 i, 1 f, 1 g, 1 h" {
		t.Errorf("Rank = %v, %v", d, err)
	}
	want := map[string]string{"hosts": "5", "rejected.i": "2", "rejected.f": "1", "rejected.g": "1", "rejected.h": "1"}
	if diff := cmp.Diff(want, fault.From(err).Meta); diff != "" {
		t.Errorf("the values that cross RPC (-want +got):\n%s", diff)
	}
	if want := "fn1 fn2 gn2 hn2 in2 fn3 gn3 fn4 gn4 hn4 fn5 gn5 hn5 in5"; strings.Join(asked, " ") != want {
		t.Errorf("asked %v, want %s", asked, want)
	}
}

func TestErrorsEndTheDecision(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	broken := prepared{"broken", func([]*node) (func(*node) scheduler.Verdict, error) { return nil, boom }}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name string
		ctx  context.Context //nolint:containedctx // a table of inputs
		cfg  config
		err  error
		text string
	}{
		{"filter", t.Context(), config{Filters: []filter{broken}}, boom, "filter broken: boom"},
		{"weigher", t.Context(), config{Weighers: []weighted{{Weigher: failingWeigher{boom}, Multiplier: 1}}}, boom, "weigher broken: boom"},
		{"context in filters", canceled, config{Filters: []filter{room()}}, context.Canceled, "context canceled"},
		{"context in weighers", canceled, config{Weighers: []weighted{byFree(1)}}, context.Canceled, "context canceled"},
	} {
		d, err := mustNew(t, tt.cfg).Rank(tt.ctx, spec{}, fleet())
		if !errors.Is(err, tt.err) || err.Error() != tt.text || d != nil {
			t.Errorf("%s: Rank = %v, %v", tt.name, d, err)
		}
	}
	d, err := mustNew(t, config{Weighers: []weighted{{Weigher: failingWeigher{nil}, Multiplier: 1}}}).Rank(t.Context(), spec{}, fleet())
	if err != nil || names(d) != "n1 n2 n3 n4 n5" {
		t.Errorf("a weigher whose Prepare returns nil: %v, %v", d, err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]config{
		"Filters[1] is nil":                   {Filters: []filter{room(), nil}},
		"Filters[0] is nil":                   {Filters: []filter{scheduler.FilterFunc[spec, *node]("x", nil)}},
		"Filters[0] has no name":              {Filters: []filter{prepared{}}},
		"two filters have the name MEMORY_MB": {Filters: []filter{room(), enabled(), room()}},
		"Weighers[0] is nil":                  {Weighers: []weighted{{}}},
		"Weighers[0] has no name":             {Weighers: []weighted{{Weigher: scheduler.WeigherFunc("", func(spec, *node) float64 { return 0 }), Multiplier: 1}}},
		"two weighers have the name free":     {Weighers: []weighted{byFree(1), byFree(2)}},
		"weigher free: multiplier NaN: want a number from -1e100 to 1e100":  {Weighers: []weighted{byFree(math.NaN())}},
		"weigher free: multiplier +Inf: want a number from -1e100 to 1e100": {Weighers: []weighted{byFree(math.Inf(1))}},
	} {
		s, err := scheduler.New(cfg)
		if s != nil || !errors.Is(err, fault.Invalid) || err.Error() != want {
			t.Errorf("New = %v, want Invalid: %s", err, want)
		}
	}
	mustNew(t, config{Weighers: []weighted{byFree(1e99)}}) // large, and valid
}

func TestConcurrentRank(t *testing.T) {
	t.Parallel()
	s := mustNew(t, config{Filters: []filter{enabled()}, Weighers: []weighted{byFree(1)}, Picker: scheduler.Subset(2)})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if d, err := s.Rank(t.Context(), spec{}, fleet()); err != nil || len(d.Ranked) != 4 {
					t.Errorf("Rank = %v, %v", d, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestProperties ranks random fleets: every host is in exactly one list, every ranked host
// passes all filters, and totals descend.
func TestProperties(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 500 {
		s := mustNew(t, config{
			Filters:  []filter{enabled(), room()},
			Weighers: []weighted{byFree(r.NormFloat64()), byLoad(r.NormFloat64())},
		})
		var hosts []*node
		for i := range r.IntN(30) {
			n := &node{name: fmt.Sprintf("n%d", i), free: r.IntN(8), load: float64(r.IntN(4)), disabled: r.IntN(4) == 0}
			if r.IntN(20) == 0 {
				n.load = math.NaN()
			}
			hosts = append(hosts, n)
		}
		need := spec{r.IntN(8)}
		d, err := s.Rank(t.Context(), need, hosts)
		if d == nil || (err != nil) != (len(d.Ranked) == 0) {
			t.Fatalf("Rank = %v, %v", d, err)
		}
		count := map[string]int{}
		for i, rk := range d.Ranked {
			count[rk.Host.name]++
			if rk.Host.disabled || rk.Host.free < need.need {
				t.Errorf("%s passed: %+v", rk.Host.name, rk.Host)
			}
			if i > 0 && rk.Total > d.Ranked[i-1].Total {
				t.Errorf("totals do not descend:\n%s", d)
			}
			sum := 0.0
			for _, sc := range rk.Scores {
				sum += sc.Multiplier * sc.Scaled
				if sc.Scaled < 0 || sc.Scaled > 1 {
					t.Errorf("scaled out of 0..1: %+v", sc)
				}
			}
			if sum != rk.Total {
				t.Errorf("total %g, its scores add up to %g", rk.Total, sum)
			}
		}
		for _, rj := range d.Rejected() {
			count[rj.Host]++
			if rj.Filter == "" || rj.Reason == "" {
				t.Errorf("rejected without a reason: %+v", rj)
			}
		}
		for _, h := range hosts {
			if count[h.name] != 1 {
				t.Errorf("%s is in the decision %d times", h.name, count[h.name])
			}
		}
		if len(count) != len(hosts) || t.Failed() {
			t.Fatalf("seed %d: %d hosts in, %d out\n%s", seed, len(hosts), len(count), d)
		}
	}
}

func BenchmarkRank(b *testing.B) {
	for _, tt := range []struct {
		name string
		need int
	}{{"most pass", 1}, {"few pass", 7900}} {
		b.Run(tt.name, func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 2))
			hosts := make([]*node, 1000)
			for i := range hosts {
				hosts[i] = &node{name: fmt.Sprintf("node-%04d", i), free: r.IntN(8192), load: r.Float64(), disabled: r.IntN(50) == 0}
			}
			third := scheduler.FilterFunc("load", func(_ spec, n *node) scheduler.Verdict {
				if n.load > 0.99 {
					return scheduler.Reject("load %g", n.load)
				}
				return scheduler.Pass
			})
			s := mustNew(b, config{
				Filters: []filter{enabled(), room(), third},
				Weighers: []weighted{
					byFree(1), byLoad(-1),
					{Weigher: scheduler.WeigherFunc("even", func(_ spec, n *node) float64 { return float64(n.free % 7) }), Multiplier: 0.5},
				},
			})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Rank(b.Context(), spec{tt.need}, hosts); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func Example() {
	s, err := scheduler.New(config{
		Filters:  []filter{enabled(), room()},
		Weighers: []weighted{byFree(1)},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	hosts := []*node{{name: "n1", free: 4096}, {name: "n2", free: 512}, {name: "n3", free: 8192}}
	d, err := s.Rank(context.Background(), spec{need: 2048}, hosts)
	fmt.Println(d.Ranked[0].Host.Name(), d.Summary(), err)

	_, err = s.Rank(context.Background(), spec{need: 9000}, hosts)
	fmt.Println(err)
	// Output:
	// n3 2 of 3 hosts: 1 MEMORY_MB <nil>
	// no valid host: 0 of 3 hosts: 3 MEMORY_MB
}
