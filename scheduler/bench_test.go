package scheduler_test

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/armature-go/armature/internal/compare"
	"github.com/armature-go/armature/scheduler"
)

// box is a host in these benchmarks. The scheduler and the loop that is written by hand rank boxes.
type box struct {
	name              string
	zone              int
	enabled           bool
	traits            uint64
	vcpus, vcpusUsed  int64
	ramMiB, ramUsed   int64
	diskGiB, diskUsed int64
	ioOps, instances  int64
}

func (b *box) Name() string { return b.name }

type ask struct {
	zone           int
	traits         uint64
	vcpus, ram, gb int64
	maxIO, maxVMs  int64
}

// boxes returns a fleet that is half full on average.
func boxes(n int) []*box {
	r := rand.New(rand.NewPCG(1, 2))
	out := make([]*box, n)
	for i := range out {
		b := &box{name: fmt.Sprintf("node-%06d", i), zone: r.IntN(3), enabled: r.IntN(50) > 0, traits: r.Uint64() | 1, vcpus: 256, ramMiB: 512 << 10, diskGiB: 8 << 10, ioOps: r.Int64N(8)}
		b.vcpusUsed, b.ramUsed, b.diskUsed = r.Int64N(b.vcpus), r.Int64N(b.ramMiB), r.Int64N(b.diskGiB)
		b.instances = b.vcpusUsed / 4
		out[i] = b
	}
	return out
}

func boxConfig() scheduler.Config[*ask, *box] {
	f := scheduler.FilterFunc[*ask, *box]
	w := func(name string, m float64, f func(*ask, *box) float64) scheduler.Weighted[*ask, *box] {
		return scheduler.Weighted[*ask, *box]{Weigher: scheduler.WeigherFunc(name, f), Multiplier: m}
	}
	return scheduler.Config[*ask, *box]{
		Filters: []scheduler.Filter[*ask, *box]{
			f("disabled", func(_ *ask, b *box) scheduler.Verdict {
				if !b.enabled {
					return scheduler.Reject("out of service")
				}
				return scheduler.Pass
			}),
			f("zone", func(a *ask, b *box) scheduler.Verdict {
				if a.zone >= 0 && a.zone != b.zone {
					return scheduler.RejectNumbers("wants zone %d, is in zone %d", a.zone, b.zone)
				}
				return scheduler.Pass
			}),
			f("VCPU", func(a *ask, b *box) scheduler.Verdict {
				if free := b.vcpus - b.vcpusUsed; a.vcpus > free {
					return scheduler.RejectNumbers("needs %d VCPU, %d VCPU free", a.vcpus, free)
				}
				return scheduler.Pass
			}),
			f("MEMORY_MB", func(a *ask, b *box) scheduler.Verdict {
				if free := b.ramMiB - b.ramUsed; a.ram > free {
					return scheduler.RejectNumbers("needs %d MiB, %d MiB free", a.ram, free)
				}
				return scheduler.Pass
			}),
			f("DISK_GB", func(a *ask, b *box) scheduler.Verdict {
				if free := b.diskGiB - b.diskUsed; a.gb > free {
					return scheduler.RejectNumbers("needs %d GiB, %d GiB free", a.gb, free)
				}
				return scheduler.Pass
			}),
			f("traits", func(a *ask, b *box) scheduler.Verdict {
				if a.traits&^b.traits != 0 {
					return scheduler.Reject("a trait is missing")
				}
				return scheduler.Pass
			}),
			f("io_ops", func(a *ask, b *box) scheduler.Verdict {
				if b.ioOps > a.maxIO {
					return scheduler.RejectNumbers("%d I/O operations run, at most %d", b.ioOps, a.maxIO)
				}
				return scheduler.Pass
			}),
			f("instances", func(a *ask, b *box) scheduler.Verdict {
				if b.instances > a.maxVMs {
					return scheduler.RejectNumbers("has %d instances, at most %d", b.instances, a.maxVMs)
				}
				return scheduler.Pass
			}),
		},
		Weighers: []scheduler.Weighted[*ask, *box]{
			w("ram", 1, func(_ *ask, b *box) float64 { return float64(b.ramMiB - b.ramUsed) }),
			w("cpu", 1, func(_ *ask, b *box) float64 { return float64(b.vcpus - b.vcpusUsed) }),
			w("disk", 1, func(_ *ask, b *box) float64 { return float64(b.diskGiB - b.diskUsed) }),
			w("io_ops", -1, func(_ *ask, b *box) float64 { return float64(b.ioOps) }),
		},
	}
}

type scored struct {
	box   *box
	at    int
	total float64
	raw   [4]float64
}

// byHand is a hand-written scheduler for this one purpose: the same filters,
// weights and order, without names and reasons.
func byHand(a *ask, boxes []*box) []scored {
	out := make([]scored, 0, 1024)
	var low, high [4]float64
	for _, b := range boxes {
		switch {
		case !b.enabled,
			a.zone >= 0 && a.zone != b.zone,
			a.vcpus > b.vcpus-b.vcpusUsed,
			a.ram > b.ramMiB-b.ramUsed,
			a.gb > b.diskGiB-b.diskUsed,
			a.traits&^b.traits != 0,
			b.ioOps > a.maxIO,
			b.instances > a.maxVMs:
			continue
		}
		s := scored{box: b, at: len(out), raw: [4]float64{float64(b.ramMiB - b.ramUsed), float64(b.vcpus - b.vcpusUsed), float64(b.diskGiB - b.diskUsed), float64(b.ioOps)}}
		for j, x := range s.raw {
			if len(out) == 0 || x < low[j] {
				low[j] = x
			}
			if len(out) == 0 || x > high[j] {
				high[j] = x
			}
		}
		out = append(out, s)
	}
	mult := [4]float64{1, 1, 1, -1}
	for i := range out {
		for j, x := range out[i].raw {
			if high[j] > low[j] {
				out[i].total += mult[j] * ((x - low[j]) / (high[j] - low[j]))
			}
		}
	}
	slices.SortFunc(out, func(a, b scored) int { return cmp.Or(cmp.Compare(b.total, a.total), cmp.Compare(a.at, b.at)) })
	return out
}

var (
	mostPass = &ask{zone: -1, traits: 1, vcpus: 1, ram: 1024, gb: 1, maxIO: 8, maxVMs: 1000}
	fewPass  = &ask{zone: 1, traits: 3, vcpus: 100, ram: 128 << 10, gb: 1024, maxIO: 6, maxVMs: 1000}
)

// BenchmarkCompare compares decisions with a hand-written loop, in interleaved
// rounds of one run. It ignores -benchtime. The flags -rounds and -slice, after
// -args, set the duration.
func BenchmarkCompare(b *testing.B) {
	t := compare.New()
	for _, n := range []int{1_000, 10_000, 100_000} {
		hosts := boxes(n)
		for _, a := range []struct {
			name string
			ask  *ask
		}{{"most pass", mostPass}, {"few pass", fewPass}} {
			list := []compare.Contender{{Name: "loop by hand", Op: func() { byHand(a.ask, hosts) }}}
			for _, e := range []struct {
				name       string
				countsOnly bool
			}{{"Rank, counts only", true}, {"Rank", false}} {
				list = append(list, compare.Contender{Name: e.name, Op: ranks(b, e.countsOnly, a.ask, hosts)})
			}
			t.Row(fmt.Sprintf("%d hosts, %s", n, a.name), 1, list...)
		}
	}
	hosts := boxes(10_000)
	cfg := boxConfig()
	cfg.CountsOnly = true
	s, err := scheduler.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	t.Row("10000 hosts", 1,
		compare.Contender{Name: "Rank", Op: ranks(b, true, mostPass, hosts)},
		compare.Contender{Name: "RankMany of 1000", Op: func() {
			got, err := s.RankMany(b.Context(), mostPass, hosts, 1000, func(b *box) *box {
				c := *b
				c.vcpusUsed += mostPass.vcpus
				c.ramUsed += mostPass.ram
				c.diskUsed += mostPass.gb
				c.instances++
				return &c
			})
			if err != nil || len(got.Hosts) != 1000 {
				b.Error(err)
			}
		}})
}

func ranks(b *testing.B, countsOnly bool, a *ask, hosts []*box) func() {
	b.Helper()
	cfg := boxConfig()
	cfg.CountsOnly = countsOnly
	s, err := scheduler.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	return func() {
		if _, err := s.Rank(b.Context(), a, hosts); err != nil {
			b.Error(err)
		}
	}
}

// TestAllocations: the number of memory allocations of a decision does not grow with the number of hosts.
func TestAllocations(t *testing.T) {
	for _, countsOnly := range []bool{true, false} {
		for name, a := range map[string]*ask{"most pass": mostPass, "few pass": fewPass} {
			cfg := boxConfig()
			cfg.CountsOnly = countsOnly
			s, err := scheduler.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			count := func(hosts []*box) float64 { // the least of 20, because a sync.Pool may have dropped the buffers of an earlier decision
				least := math.Inf(1)
				for range 20 {
					least = min(least, testing.AllocsPerRun(1, func() {
						if _, err := s.Rank(t.Context(), a, hosts); err != nil {
							t.Error(err)
						}
					}))
				}
				return least
			}
			few, many := count(boxes(500)), count(boxes(5000))
			t.Logf("counts only %t, %s: %g allocations for 500 hosts, %g for 5000", countsOnly, name, few, many)
			if many > few+20 { // 20 for lists that grow
				t.Errorf("counts only %t, %s: %g allocations for 500 hosts, %g for 5000", countsOnly, name, few, many)
			}
		}
	}
}

// TestByHand: both sides of the benchmark have the same result.
func TestByHand(t *testing.T) {
	t.Parallel()
	hosts := boxes(1000)
	for _, a := range []*ask{mostPass, fewPass} {
		s, err := scheduler.New(boxConfig())
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.Rank(t.Context(), a, hosts)
		if err != nil {
			t.Fatal(err)
		}
		want := byHand(a, hosts)
		if len(want) != len(d.Ranked) || len(want) < 2 {
			t.Fatalf("%d by hand, %d by Rank", len(want), len(d.Ranked))
		}
		for i, w := range want {
			if r := d.Ranked[i]; r.Host != w.box || r.Total != w.total {
				t.Fatalf("place %d: %s %g, by hand %s %g", i, r.Host.name, r.Total, w.box.name, w.total)
			}
		}
	}
}

// BenchmarkRejections measures the cost of a reason for every rejected host: without reasons, with one reason for all
// hosts, with two reasons that alternate, and with a text for each host. If all hosts have the same reason, its format is
// kept once.
func BenchmarkRejections(b *testing.B) {
	hosts := boxes(10_000)
	full := scheduler.Reject("out of service")
	for _, c := range []struct {
		name       string
		countsOnly bool
		judge      func(*ask, *box) scheduler.Verdict
	}{
		{"counts only", true, func(*ask, *box) scheduler.Verdict { return full }},
		{"one reason", false, func(*ask, *box) scheduler.Verdict { return full }},
		{"numbers", false, func(_ *ask, b *box) scheduler.Verdict {
			return scheduler.RejectNumbers("%d of %d", b.vcpusUsed, b.vcpus)
		}},
		{"two reasons", false, func(_ *ask, b *box) scheduler.Verdict {
			if b.vcpusUsed%2 == 0 {
				return full
			}
			return scheduler.Reject("odd")
		}},
		{"a text for each host", false, func(_ *ask, b *box) scheduler.Verdict { return scheduler.Reject("%s is full", b.name) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			s, err := scheduler.New(scheduler.Config[*ask, *box]{CountsOnly: c.countsOnly, Filters: []scheduler.Filter[*ask, *box]{scheduler.FilterFunc("f", c.judge)}})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if d, err := s.Rank(b.Context(), mostPass, hosts); !errors.Is(err, scheduler.ErrNoValidHost) || d.Counts[0].Hosts != len(hosts) {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(hosts)), "ns/host")
		})
	}
}
