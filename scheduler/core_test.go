package scheduler_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler"
)

func TestByName(t *testing.T) {
	t.Parallel()
	all := []weighted{byFree(1), byLoad(-2)}
	got, err := scheduler.ByName(all, []string{"load", "free"})
	if err != nil || len(got) != 2 || got[0].Name() != "load" || got[0].Multiplier != -2 || got[1].Name() != "free" {
		t.Errorf("ByName = %v, %v", got, err)
	}
	for _, tt := range []struct {
		names []string
		want  string
	}{
		{[]string{"load", "ram"}, `"ram" does not exist: the known names are free, load`},
		{[]string{"load", "load"}, `"load" is listed twice`},
	} {
		got, err := scheduler.ByName(all, tt.names)
		if got != nil || !errors.Is(err, fault.Invalid) || err.Error() != tt.want {
			t.Errorf("ByName(%q) = %v, %v; want Invalid: %s", tt.names, got, err, tt.want)
		}
	}
}

// TestReasons: Reject formats a reason as fmt.Sprintf does. RejectNumbers replaces only %d and %%. Each host has the
// reason of its own verdict.
func TestReasons(t *testing.T) {
	t.Parallel()
	verdicts := []scheduler.Verdict{
		scheduler.Reject("out of service"),
		scheduler.RejectNumbers("needs %d MiB, %d MiB free", 2048, 512),
		scheduler.Reject("disk 95% full"),
		scheduler.RejectNumbers("%d%% used, %d%% at most", int64(math.MaxInt64), int64(math.MinInt64)),
		scheduler.Reject("%s is %d%% full, 100%", "/var", 95),
		scheduler.RejectNumbers("no numbers", 1, 2),
		scheduler.RejectNumbers("only %d", 1, 2),
		scheduler.RejectNumbers("%d of %d of %d", 1, 2),
		scheduler.RejectNumbers("%x %", 1, 2),
		scheduler.RejectNumbers("", 1, 2),
		scheduler.Reject(""),
		scheduler.RejectNumbers("needs %d MiB, %d MiB free", 4096, -7),
	}
	want := []string{
		"out of service", "needs 2048 MiB, 512 MiB free", "disk 95% full",
		"9223372036854775807% used, -9223372036854775808% at most", "/var is 95% full, 100%!(NOVERB)",
		"no numbers", "only 1", "1 of 2 of 2", "%x %", "1, 2", "no reason given", "needs 4096 MiB, -7 MiB free",
	}
	s := mustNew(t, config{Filters: []filter{
		scheduler.FilterFunc("f", func(_ spec, n *node) scheduler.Verdict { return verdicts[n.free] }),
	}})
	var hosts []*node
	for i := range 600 { // more than one block
		hosts = append(hosts, &node{name: strconv.Itoa(i), free: i % len(verdicts)})
	}
	d, err := s.Rank(t.Context(), spec{}, hosts)
	if !errors.Is(err, scheduler.ErrNoValidHost) || len(d.Rejected()) != len(hosts) {
		t.Fatalf("%d rejected, %v", len(d.Rejected()), err)
	}
	for i, r := range d.Rejected() {
		if r.Host != hosts[i].name || r.Reason != want[i%len(want)] {
			t.Fatalf("host %d: %+v, want %q", i, r, want[i%len(want)])
		}
	}
}

func TestCountsOnly(t *testing.T) {
	t.Parallel()
	cfg := config{Filters: []filter{enabled(), room()}, Weighers: []weighted{byFree(1), byLoad(-2)}}
	full, err := mustNew(t, cfg).Rank(t.Context(), spec{1024}, fleet())
	if err != nil || names(full) != "n4 n2 n5" {
		t.Fatalf("%s, %v", names(full), err)
	}
	for _, countsOnly := range []bool{false, true} {
		for keep := range 5 {
			cfg.CountsOnly, cfg.MaxRanked = countsOnly, keep
			d, err := mustNew(t, cfg).Rank(t.Context(), spec{1024}, fleet())
			if err != nil {
				t.Fatal(err)
			}
			want := viewOf(full)
			if keep > 0 {
				want.Ranked = want.Ranked[:min(keep, len(want.Ranked))]
			}
			if countsOnly {
				want.Ranked = slices.Clone(want.Ranked)
				for i := range want.Ranked {
					want.Ranked[i].Scores = nil
				}
				want.Rejected = []scheduler.Rejected{}
			}
			if diff := cmp.Diff(want, viewOf(d), cmp.AllowUnexported(node{})); diff != "" {
				t.Errorf("counts only %t, keep %d (-want +got):\n%s", countsOnly, keep, diff)
			}
			if d.Summary() != full.Summary() {
				t.Errorf("summary %q, want %q", d.Summary(), full.Summary())
			}
		}
	}
	if _, err := scheduler.New(config{MaxRanked: -1}); !errors.Is(err, fault.Invalid) {
		t.Errorf("New = %v, want Invalid", err)
	}
}

// TestMaxRanked: the best hosts are the same for each limit, in the same order.
func TestMaxRanked(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		hosts := make([]*node, 1+r.IntN(300))
		for i := range hosts {
			hosts[i] = &node{name: fmt.Sprintf("n%03d", i), load: float64(r.IntN(20))}
		}
		pick := uint64(r.Int64())
		var all string
		for _, keep := range []int{0, 1 + r.IntN(len(hosts)), 1 + r.IntN(8)} {
			s := mustNew(t, config{Weighers: []weighted{byLoad(1)}, MaxRanked: keep, Picker: scheduler.Subset(5), Rand: rand.New(rand.NewPCG(pick, 1))})
			d, err := s.Rank(t.Context(), spec{}, hosts)
			if err != nil {
				t.Fatal(err)
			}
			if keep == 0 {
				all = names(d)
			} else if !strings.HasPrefix(all+" ", names(d)+" ") || len(d.Ranked) != min(keep, len(hosts)) {
				t.Fatalf("seed %d: kept %d: %s\nof %s", seed, keep, names(d), all)
			}
		}
	}
}

func TestShuffle(t *testing.T) {
	t.Parallel()
	s := mustNew(t, config{Weighers: []weighted{byFree(1)}, Picker: scheduler.Shuffle, Rand: rand.New(rand.NewPCG(1, 2))})
	hosts := []*node{{name: "a", free: 2}, {name: "b", free: 1}, {name: "c", free: 2}, {name: "d", free: 2}}
	seen := map[string]int{}
	for range 300 {
		d, err := s.Rank(t.Context(), spec{}, hosts)
		if err != nil {
			t.Fatal(err)
		}
		seen[names(d)]++
	}
	for _, order := range []string{"a c d b", "c a d b", "d a c b"} {
		if seen[order] < 60 {
			t.Errorf("%s came %d times of 300: %v", order, seen[order], seen)
		}
	}
	if len(seen) != 3 {
		t.Errorf("orders %v", seen)
	}
}

// TestRankMany: a batch chooses the same hosts as single decisions, between which the test places a request on the
// chosen host.
func TestRankMany(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	place := func(n *node) *node {
		m := *n
		m.free -= 1024
		m.load++
		return &m
	}
	for range 300 {
		hosts := make([]*node, 1+r.IntN(40))
		for i := range hosts {
			hosts[i] = &node{name: fmt.Sprintf("n%02d", i), free: r.IntN(8 << 10), load: float64(r.IntN(6)), disabled: r.IntN(5) == 0}
		}
		cfg := config{
			Filters: []filter{enabled(), room()},
			Weighers: []weighted{
				{Weigher: byFree(0).Weigher, Multiplier: r.NormFloat64()},
				{Weigher: byLoad(0).Weigher, Multiplier: r.NormFloat64()},
			},
			MaxRanked: r.IntN(3), CountsOnly: r.IntN(2) > 0,
		}
		want, n := []string{}, 1+r.IntN(60)
		s := mustNew(t, cfg)
		now := slices.Clone(hosts)
		for len(want) < n {
			d, err := s.Rank(t.Context(), spec{1024}, now)
			if err != nil {
				break
			}
			h := d.Ranked[0].Host
			want = append(want, h.name)
			now[slices.Index(now, h)] = place(h)
		}
		b, err := mustNew(t, cfg).RankMany(t.Context(), spec{1024}, hosts, n, place)
		if b == nil || (err == nil) != (len(want) == n) || err != nil && !errors.Is(err, scheduler.ErrNoValidHost) {
			t.Fatalf("seed %d: %v, %v; want %d of %d", seed, b, err, len(want), n)
		}
		got := []string{}
		for _, h := range b.Hosts {
			got = append(got, h.name)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d: chose (-want +got):\n%s", seed, diff)
		}
		if (err != nil) != (b.Decision.Feasible == 0) {
			t.Fatalf("seed %d: %v, but the decision says %s", seed, err, b.Decision.Summary())
		}
		if err != nil {
			if text := fmt.Sprintf("no valid host for %d of %d requests: %s", n-len(got), n, b.Decision.Summary()); err.Error() != text {
				t.Errorf("error %q, want %q", err, text)
			}
		}
	}
	if b, err := mustNew(t, config{}).RankMany(t.Context(), spec{}, fleet(), 0, place); b != nil || !errors.Is(err, fault.Invalid) {
		t.Errorf("no requests: %v, %v", b, err)
	}
}

// TestRankManyGroup: if the function place changes other data that a filter reads, the next choice uses the changed data.
func TestRankManyGroup(t *testing.T) {
	t.Parallel()
	taken := map[string]bool{}
	anti := prepared{"anti", func([]*node) (func(*node) scheduler.Verdict, error) {
		return func(n *node) scheduler.Verdict {
			if taken[n.name[:1]] {
				return scheduler.Reject("its rack is taken")
			}
			return scheduler.Pass
		}, nil
	}}
	s := mustNew(t, config{Filters: []filter{anti}, Weighers: []weighted{byLoad(1)}})
	hosts := []*node{{name: "a1", load: 6}, {name: "a2", load: 5}, {name: "b1", load: 4}, {name: "b2", load: 3}, {name: "c1", load: 2}}
	b, err := s.RankMany(t.Context(), spec{}, hosts, 3, func(n *node) *node { taken[n.name[:1]] = true; return n })
	if err != nil || len(b.Hosts) != 3 || b.Hosts[0] != hosts[0] || b.Hosts[1] != hosts[2] || b.Hosts[2] != hosts[4] {
		t.Errorf("%v, %v", b, err)
	}
	clear(taken)
	_, err = s.RankMany(t.Context(), spec{}, hosts, 4, func(n *node) *node { taken[n.name[:1]] = true; return n })
	if want := "no valid host for 1 of 4 requests: 0 of 5 hosts: 5 anti"; err == nil || err.Error() != want {
		t.Errorf("four requests on three racks: %v, want %s", err, want)
	}
}

// report is a host in a Fleet.
type report struct {
	name string
	at   time.Time
	n    int
}

func (r *report) Name() string          { return r.name }
func (r *report) ReportedAt() time.Time { return r.at }

func TestFleet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var f scheduler.Fleet[*report]
		if f.Hosts() != nil || f.Update("a", func(r *report) *report { return r }) {
			t.Error("an empty fleet has hosts")
		}
		t0 := time.Now()
		late := f.Report(&report{"c", t0, 1}, &report{"a", t0, 1}, &report{"c", t0.Add(-1), 7}, &report{"b", t0, 1})
		before := f.Hosts()
		if late != 1 || len(before) != 3 || before[0].name != "a" || before[2].n != 1 {
			t.Fatalf("%d late, %v", late, before)
		}
		time.Sleep(10 * time.Second) //nolint:forbidigo // in a bubble it takes no time
		if late := f.Report(&report{"b", t0.Add(-1), 8}, &report{"a", time.Now(), 2}); late != 1 {
			t.Errorf("%d late, want 1", late)
		}
		if !f.Update("c", func(r *report) *report { return &report{r.name, r.at, r.n + 1} }) {
			t.Error("host c does not exist")
		}
		for name, want := range map[string]int{"a": 2, "b": 1, "c": 2} {
			if !slices.ContainsFunc(f.Hosts(), func(h *report) bool { return h.name == name && h.n == want }) {
				t.Errorf("%v, want %s with %d", f.Hosts(), name, want)
			}
		}
		if before[0].n != 1 || before[2].n != 1 {
			t.Error("a list that Hosts had returned has changed")
		}
		if newest, oldest := f.Age(); newest != 0 || oldest != 10*time.Second {
			t.Errorf("age %v to %v", newest, oldest)
		}
		s, err := scheduler.New(scheduler.Config[spec, *report]{Filters: []scheduler.Filter[spec, *report]{scheduler.Fresh[spec, *report](9 * time.Second)}})
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.Rank(t.Context(), spec{}, f.Hosts())
		want := []scheduler.Rejected{{"b", "stale", "the last report is 10 s old, at most 9 s are allowed"}, {"c", "stale", "the last report is 10 s old, at most 9 s are allowed"}}
		if diff := cmp.Diff(want, d.Rejected()); err != nil || diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
		if gone := f.Forget(9 * time.Second); !slices.Equal(gone, []string{"b", "c"}) || len(f.Hosts()) != 1 {
			t.Errorf("forgot %v, left %v", gone, f.Hosts())
		}
	})
}

// TestFleetConcurrent: no update is lost, and readers see complete lists.
func TestFleetConcurrent(t *testing.T) {
	t.Parallel()
	var f scheduler.Fleet[*report]
	now := time.Now()
	for i := range 50 {
		f.Report(&report{fmt.Sprintf("n%02d", i), now, 0})
	}
	var writers, readers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for i := range 2000 {
				f.Update(fmt.Sprintf("n%02d", i%50), func(r *report) *report { return &report{r.name, r.at, r.n + 1} })
			}
		})
	}
	done := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			last := 0
			for {
				sum := 0
				for _, h := range f.Hosts() {
					sum += h.n
				}
				if sum < last {
					t.Errorf("the sum went from %d to %d", last, sum)
				}
				last = sum
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
	for _, h := range f.Hosts() {
		if h.n != 160 {
			t.Errorf("%s has %d updates, want 160", h.name, h.n)
		}
	}
}
