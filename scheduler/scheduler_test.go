package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler"
)

var update = flag.Bool("update", false, "write the golden files")

type node struct {
	name     string
	free     int
	load     float64
	disabled bool
}

func (n *node) Name() string { return n.name }

type spec struct{ need int }

type (
	filter   = scheduler.Filter[spec, *node]
	weighted = scheduler.Weighted[spec, *node]
	config   = scheduler.Config[spec, *node]
)

func enabled() filter {
	return scheduler.FilterFunc("disabled", func(_ spec, n *node) scheduler.Verdict {
		if n.disabled {
			return scheduler.Reject("out of service")
		}
		return scheduler.Pass
	})
}

func room() filter {
	return scheduler.FilterFunc("MEMORY_MB", func(s spec, n *node) scheduler.Verdict {
		if n.free < s.need {
			return scheduler.RejectNumbers("needs %d MiB, %d MiB free", s.need, n.free)
		}
		return scheduler.Pass
	})
}

func byFree(multiplier float64) weighted {
	return weighted{Weigher: scheduler.WeigherFunc("free", func(_ spec, n *node) float64 { return float64(n.free) }), Multiplier: multiplier}
}

func byLoad(multiplier float64) weighted {
	return weighted{Weigher: scheduler.WeigherFunc("load", func(_ spec, n *node) float64 { return n.load }), Multiplier: multiplier}
}

func mustNew(t testing.TB, cfg config) *scheduler.Scheduler[spec, *node] {
	t.Helper()
	s, err := scheduler.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func names(d *scheduler.Decision[*node]) string {
	var out []string
	for _, r := range d.Ranked {
		out = append(out, r.Host.name)
	}
	return strings.Join(out, " ")
}

// TestNormalise has Nova's golden vectors: what each host's weight is scaled to,
// and the order that follows.
func TestNormalise(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name       string
		loads      []float64 // of hosts a, b, c, ...
		multiplier float64
		wantScaled []float64
		wantOrder  string
	}{
		{"spread", []float64{2, 10, 4}, 1, []float64{0, 1, 0.25}, "b c a"},
		{"all equal are 0, not 1", []float64{7, 7, 7}, 1, []float64{0, 0, 0}, "a b c"},
		{"negative weights", []float64{-2, -10, -4}, 1, []float64{1, 0, 0.75}, "a c b"},
		{"negative multiplier", []float64{2, 10, 4}, -1.5, []float64{0, 1, 0.25}, "a c b"},
		{"zero multiplier", []float64{2, 10, 4}, 0, []float64{0, 1, 0.25}, "a b c"},
		{"ties in the order given", []float64{10, 2, 10}, 1, []float64{1, 0, 1}, "a c b"},
		{"a span beyond float64", []float64{-math.MaxFloat64, math.MaxFloat64, 0}, 1, []float64{0, 1, 0.5}, "b c a"},
		{"one survivor is not weighed", []float64{5}, 1, nil, "a"},
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

func fleet() []*node {
	return []*node{
		{name: "n1", free: 512, load: 0.5},
		{name: "n2", free: 4096, load: 3},
		{name: "n3", free: 8192, load: 1, disabled: true},
		{name: "n4", free: 2048, load: 1},
		{name: "n5", free: 1024, load: 2},
	}
}

// view is all of a decision.
type view[H scheduler.Host] struct {
	Ranked   []scheduler.Ranked[H]
	Rejected []scheduler.Rejected
	Feasible int
	Counts   []scheduler.Count
}

func viewOf[H scheduler.Host](d *scheduler.Decision[H]) view[H] {
	return view[H]{d.Ranked, d.Rejected(), d.Feasible, d.Counts}
}

func TestDecision(t *testing.T) {
	t.Parallel()
	s := mustNew(t, config{Filters: []filter{enabled(), room()}, Weighers: []weighted{byFree(1), byLoad(-2)}})
	hosts := fleet()
	d, err := s.Rank(t.Context(), spec{2048}, hosts)
	if err != nil {
		t.Fatal(err)
	}
	want := view[*node]{
		Ranked: []scheduler.Ranked[*node]{
			{Host: hosts[3], Total: 0, Scores: []scheduler.Score{{"free", 2048, 0, 1}, {"load", 1, 0, -2}}},
			{Host: hosts[1], Total: -1, Scores: []scheduler.Score{{"free", 4096, 1, 1}, {"load", 3, 1, -2}}},
		},
		Rejected: []scheduler.Rejected{
			{"n1", "MEMORY_MB", "needs 2048 MiB, 512 MiB free"},
			{"n3", "disabled", "out of service"},
			{"n5", "MEMORY_MB", "needs 2048 MiB, 1024 MiB free"},
		},
		Feasible: 2,
		Counts:   []scheduler.Count{{"MEMORY_MB", 2}, {"disabled", 1}},
	}
	if diff := cmp.Diff(want, viewOf(d), cmp.AllowUnexported(node{})); diff != "" {
		t.Errorf("decision (-want +got):\n%s", diff)
	}
	golden(t, "decision.txt", d.String())
	raw, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "decision.json", string(raw)+"\n")
	var back scheduler.Decision[scheduler.Name]
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(viewOf(d.Named()), viewOf(&back)); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(fleet(), hosts, cmp.AllowUnexported(node{})); diff != "" {
		t.Errorf("Rank changed the hosts it was given:\n%s", diff)
	}
}

func TestNoValidHost(t *testing.T) {
	t.Parallel()
	s := mustNew(t, config{Filters: []filter{enabled(), room()}, Weighers: []weighted{byFree(1)}})
	d, err := s.Rank(t.Context(), spec{10000}, fleet()[:4])
	if !errors.Is(err, scheduler.ErrNoValidHost) || !errors.Is(err, fault.Exhausted) {
		t.Fatalf("Rank = %v, want ErrNoValidHost", err)
	}
	if want := "no valid host: 0 of 4 hosts: 3 MEMORY_MB, 1 disabled"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	golden(t, "no_valid_host.txt", d.String())

	d, err = s.Rank(t.Context(), spec{}, nil)
	if !errors.Is(err, scheduler.ErrNoValidHost) || d == nil || d.Summary() != "0 of 0 hosts" {
		t.Errorf("without hosts: %v, %v", d, err)
	}
	raw, err := json.Marshal(d)
	if string(raw) != `{"ranked":[],"rejected":[],"passed":0,"counts":[]}` || err != nil {
		t.Errorf("JSON of an empty decision: %s, %v", raw, err)
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestSummary(t *testing.T) {
	t.Parallel()
	type decision = scheduler.Decision[scheduler.Name]
	tests := []struct {
		d    decision
		want string
	}{
		{decision{}, "0 of 0 hosts"},
		{decision{Feasible: 2}, "2 of 2 hosts"},
		{decision{Feasible: 2, Counts: []scheduler.Count{{"b", 2}, {"a", 1}}}, "2 of 5 hosts: 2 b, 1 a"},
	}
	for _, tt := range tests {
		if got := tt.d.Summary(); got != tt.want {
			t.Errorf("Summary = %q, want %q", got, tt.want)
		}
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
	want := []scheduler.Rejected{{"a", "load", "weight is NaN"}, {"c", "load", "weight is +Inf"}, {"e", "load", "weight is -Inf"}}
	if diff := cmp.Diff(want, d.Rejected()); diff != "" {
		t.Errorf("rejected (-want +got):\n%s", diff)
	}
	d, err = s.Rank(t.Context(), spec{}, []*node{{name: "a", load: math.NaN()}, {name: "b", load: math.NaN()}})
	if !errors.Is(err, scheduler.ErrNoValidHost) || len(d.Rejected()) != 2 {
		t.Errorf("all of them: %v, %v", d, err)
	}
}

// prepared is a filter and a weigher whose preparation does as it is told.
type prepared struct {
	name    string
	prepare func(hosts []*node) (func(*node) scheduler.Verdict, error)
}

func (p prepared) Name() string { return p.name }

func (p prepared) Prepare(_ context.Context, _ spec, hosts []*node) (func(*node) scheduler.Verdict, error) {
	return p.prepare(hosts)
}

type failingWeigher struct{ err error }

func (failingWeigher) Name() string { return "broken" }

func (f failingWeigher) Prepare(context.Context, spec, []*node) (func(*node) float64, error) {
	return nil, f.err
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	var asked []string
	ask := func(name string, reject ...string) filter {
		return prepared{name, func(hosts []*node) (func(*node) scheduler.Verdict, error) {
			before := slices.Clone(hosts)
			return func(n *node) scheduler.Verdict {
				asked = append(asked, name+n.name)
				if !slices.Equal(before, hosts) {
					t.Errorf("%s: the hosts given to Prepare changed meanwhile", name)
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
		t.Error("prepared although no host was left")
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
	if want := "fn1 fn2 gn2 hn2 in2 fn3 gn3 fn4 gn4 hn4 fn5 gn5 hn5 in5"; strings.Join(asked, " ") != want {
		t.Errorf("asked %v, want %s", asked, want)
	}
}

func TestErrorsEndTheDecision(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	broken := prepared{"broken", func([]*node) (func(*node) scheduler.Verdict, error) { return nil, boom }}
	cancelled, cancel := context.WithCancel(t.Context())
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
		{"context in filters", cancelled, config{Filters: []filter{room()}}, context.Canceled, "context canceled"},
		{"context in weighers", cancelled, config{Weighers: []weighted{byFree(1)}}, context.Canceled, "context canceled"},
	} {
		d, err := mustNew(t, tt.cfg).Rank(tt.ctx, spec{}, fleet())
		if !errors.Is(err, tt.err) || err.Error() != tt.text || d != nil {
			t.Errorf("%s: Rank = %v, %v", tt.name, d, err)
		}
	}
	d, err := mustNew(t, config{Weighers: []weighted{{Weigher: failingWeigher{nil}, Multiplier: 1}}}).Rank(t.Context(), spec{}, fleet())
	if err != nil || names(d) != "n1 n2 n3 n4 n5" {
		t.Errorf("a weigher that has nothing to say: %v, %v", d, err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]config{
		"filter 1 is nil":               {Filters: []filter{room(), nil}},
		"filter 0 is nil":               {Filters: []filter{scheduler.FilterFunc[spec, *node]("x", nil)}},
		"filter 0 has no name":          {Filters: []filter{prepared{}}},
		"two filters named MEMORY_MB":   {Filters: []filter{room(), enabled(), room()}},
		"weigher 0 is nil":              {Weighers: []weighted{{}}},
		"weigher 0 has no name":         {Weighers: []weighted{{Weigher: scheduler.WeigherFunc("", func(spec, *node) float64 { return 0 }), Multiplier: 1}}},
		"two weighers named free":       {Weighers: []weighted{byFree(1), byFree(2)}},
		"weigher free: multiplier NaN":  {Weighers: []weighted{byFree(math.NaN())}},
		"weigher free: multiplier +Inf": {Weighers: []weighted{byFree(math.Inf(1))}},
	} {
		s, err := scheduler.New(cfg)
		if s != nil || !errors.Is(err, fault.Invalid) || err.Error() != want {
			t.Errorf("New = %v, want Invalid: %s", err, want)
		}
	}
	mustNew(t, config{Weighers: []weighted{byFree(1e99)}}) // large, and fine
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
	// The picked host first, the alternates in order behind it.
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

// TestProperties ranks random fleets: every host is in exactly one list, those
// that passed were let pass by all filters, and totals descend.
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
