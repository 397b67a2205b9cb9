// Package scheduler chooses the most suitable host for a request: filters turn
// hosts away, weighers score those that are left, a picker takes one of the
// best. The result is a [Decision] that names every host and says why.
//
//	s, err := scheduler.New(scheduler.Config[*Spec, *Node]{
//		Filters: []scheduler.Filter[*Spec, *Node]{
//			scheduler.FilterFunc("room", func(s *Spec, n *Node) scheduler.Verdict {
//				if n.FreeGiB < s.GiB {
//					return scheduler.RejectNumbers("needs %d GiB, %d GiB free", s.GiB, n.FreeGiB)
//				}
//				return scheduler.Pass
//			}),
//		},
//		Weighers: []scheduler.Weighted[*Spec, *Node]{{Weigher: free, Multiplier: 1}},
//	})
//	d, err := s.Rank(ctx, spec, nodes)
//	d.Ranked[0].Host // the best; after it the alternates
//
// It decides by the state that it is given, which a [Fleet] keeps, and changes
// none: to claim on the chosen host is the caller's next step. Package
// scheduler/placement has claims, and filters and weighers to begin with.
package scheduler

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/armature-go/armature/fault"
)

// ErrNoValidHost is the error of [Scheduler.Rank] when no host passed. Its text
// has the decision's summary.
var ErrNoValidHost = fault.Sentinel(fault.Exhausted, "NoValidHost", "no valid host")

// Host is a candidate. Names are unique among the hosts of a decision.
type Host interface{ Name() string }

// Filter says which hosts can take a request at all. It is safe for concurrent
// use.
type Filter[R any, H Host] interface {
	// Name stands in decisions and summaries, and is unique among filters.
	Name() string
	// Prepare is called once a decision, when a host has come as far as this
	// filter, and returns the function that judges each host; it may keep state
	// of this decision. Nil means that the filter has nothing to say about this
	// request. hosts, which must not be changed, are all those of the decision.
	// An error ends the decision.
	Prepare(ctx context.Context, req R, hosts []H) (func(H) Verdict, error)
}

// Once is a Filter whose verdict on a host stays while the requests of one
// [Scheduler.RankMany] are placed, so that it need not judge the host again
// (Nova's run_filter_once_per_request).
type Once interface{ Once() }

// Weigher says how suitable the hosts are that passed all the filters. It is
// safe for concurrent use.
type Weigher[R any, H Host] interface {
	// Name stands in decisions, and is unique among weighers.
	Name() string
	// Prepare is as a Filter's, with the hosts that passed. The function returns
	// the host's raw weight in any unit, more is better; only its place between
	// the lowest and the highest of this decision counts. A host whose weight is
	// not a number, or infinite, is turned away, under the weigher's name.
	Prepare(ctx context.Context, req R, hosts []H) (func(H) float64, error)
}

// Bounded is a [Weigher] with bounds of its own, which replace the lowest and
// the highest weight of a decision; weights beyond them count as the bound. An
// infinite bound replaces nothing.
type Bounded interface{ Bounds() (low, high float64) }

// Weighted is a weigher and what its weights, scaled to 0..1, are multiplied
// by before they are added up. A negative Multiplier prefers low weights; with
// 0 the weigher is without effect and only shown.
type Weighted[R any, H Host] struct {
	Weigher    Weigher[R, H]
	Multiplier float64
	// PerHost returns the multiplier of a host that has one of its own, such as
	// Nova's aggregates give; ok is false for any other. One beyond 1e100, or not
	// a number, does not count. Nil: no host has one.
	PerHost func(host H) (multiplier float64, ok bool)
}

// Name returns the weigher's.
func (w Weighted[R, H]) Name() string { return w.Weigher.Name() }

// multiplier returns what counts for a host.
func (w *Weighted[R, H]) multiplier(h H) float64 {
	if w.PerHost != nil {
		if m, ok := w.PerHost(h); ok && finite(m) {
			return m
		}
	}
	return w.Multiplier
}

// finite reports whether a multiplier can be used. Sums of weights stay far from
// infinity then.
func finite(m float64) bool { return math.Abs(m) <= 1e100 } // NaN is not

// FilterFunc makes a Filter of a function that needs no preparation. The
// function must be safe for concurrent use.
func FilterFunc[R any, H Host](name string, f func(req R, host H) Verdict) Filter[R, H] {
	return funcOf[R, H, Verdict]{name, f}
}

// WeigherFunc makes a Weigher of a function that needs no preparation. The
// function must be safe for concurrent use.
func WeigherFunc[R any, H Host](name string, f func(req R, host H) float64) Weigher[R, H] {
	return funcOf[R, H, float64]{name, f}
}

type funcOf[R any, H Host, V any] struct {
	name string
	f    func(R, H) V
}

func (f funcOf[R, H, V]) Name() string { return f.name }

func (f funcOf[R, H, V]) Prepare(_ context.Context, req R, _ []H) (func(H) V, error) {
	return func(h H) V { return f.f(req, h) }, nil
}

func (f funcOf[R, H, V]) isNil() bool { return f.f == nil }

// ByName returns those of all, filters or [Weighted] weighers, that names lists,
// in that order: what a configuration enables. Invalid if a name is not among
// them, or is listed twice; the error has those that there are.
func ByName[T interface{ Name() string }](all []T, names []string) ([]T, error) {
	out := make([]T, 0, len(names))
	for i, name := range names {
		at := slices.IndexFunc(all, func(v T) bool { return v.Name() == name })
		if at < 0 {
			known := make([]string, len(all))
			for j, v := range all {
				known[j] = v.Name()
			}
			slices.Sort(known)
			return nil, fault.New(fault.Invalid, "there is no %q; there are: %s", name, strings.Join(known, ", "))
		}
		if slices.Contains(names[:i], name) {
			return nil, fault.New(fault.Invalid, "%q is listed twice", name)
		}
		out = append(out, all[at])
	}
	return out, nil
}

// Explain says how much of a decision is written down.
type Explain uint8

const (
	// Full names every host: with its scores, or with the filter and the reason.
	Full Explain = iota
	// Short only counts the hosts that were turned away, by filter.
	Short
	// Brief is Short, and leaves the scores out.
	Brief
)

// Config configures a [Scheduler]. The zero value lets every host pass and
// leaves them in their order.
type Config[R any, H Host] struct {
	// Filters are asked in this order, each about what the ones before it
	// left: put first what is cheap or turns many away.
	Filters  []Filter[R, H]
	Weighers []Weighted[R, H]
	// Picker defaults to [Best].
	Picker Picker
	// Rand is for the Picker, and is the scheduler's alone from then on.
	// Default: seeded at random.
	Rand *rand.Rand
	// Unscaled adds the weights up as they are, instead of scaling them to
	// 0..1 first. For [Lottery], whose chances the scaling would distort.
	Unscaled bool
	// Explain defaults to Full.
	Explain Explain
	// Keep is how many hosts Decision.Ranked has at most. Default 0: all that
	// passed.
	Keep int
	// Enough ends the filtering when so many hosts have passed, for fleets that
	// are too large to look at as a whole; each decision begins where the last
	// one ended. A few more may pass. Default 0: all hosts are looked at.
	Enough int
}

// Scheduler ranks hosts. It is safe for concurrent use.
type Scheduler[R any, H Host] struct {
	cfg    Config[R, H]
	names  []string // of the filters, then of the weighers
	once   []bool   // of the filters
	bounds [][2]float64

	next atomic.Uint64 // where the next decision begins, with cfg.Enough
	runs sync.Pool     // of *run[R, H]
	mu   sync.Mutex    // guards cfg.Rand
}

// New returns a Scheduler, or an error with code Invalid if a filter or weigher
// is nil, has no name or the name of another one, if a multiplier is not a
// number of at most 1e100, or if Keep or Enough is negative.
func New[R any, H Host](cfg Config[R, H]) (*Scheduler[R, H], error) {
	cfg.Filters, cfg.Weighers = slices.Clone(cfg.Filters), slices.Clone(cfg.Weighers)
	s := &Scheduler[R, H]{}
	seen := map[string]bool{}
	add := func(kind string, i int, v interface{ Name() string }) error {
		if n, ok := v.(interface{ isNil() bool }); v == nil || ok && n.isNil() {
			return fault.New(fault.Invalid, "%s %d is nil", kind, i)
		}
		switch name := v.Name(); {
		case name == "":
			return fault.New(fault.Invalid, "%s %d has no name", kind, i)
		case seen[kind+name]:
			return fault.New(fault.Invalid, "two %ss named %s", kind, name)
		default:
			seen[kind+name] = true
			s.names = append(s.names, name)
			return nil
		}
	}
	for i, f := range cfg.Filters {
		if err := add("filter", i, f); err != nil {
			return nil, err
		}
		_, once := f.(Once)
		s.once = append(s.once, once)
	}
	for i, w := range cfg.Weighers {
		if err := add("weigher", i, w.Weigher); err != nil {
			return nil, err
		}
		if !finite(w.Multiplier) {
			return nil, fault.New(fault.Invalid, "weigher %s: multiplier %g", w.Name(), w.Multiplier)
		}
		low, high := math.Inf(-1), math.Inf(1)
		if b, ok := w.Weigher.(Bounded); ok {
			low, high = b.Bounds()
		}
		s.bounds = append(s.bounds, [2]float64{low, high})
	}
	if cfg.Keep < 0 || cfg.Enough < 0 {
		return nil, fault.New(fault.Invalid, "keep %d hosts, enough are %d: negative", cfg.Keep, cfg.Enough)
	}
	if cfg.Picker == nil {
		cfg.Picker = Best
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	s.cfg = cfg
	s.runs.New = func() any { return newRun(s) }
	return s, nil
}

// Rank orders the hosts that pass: first the one that the picker chose, then
// the others, best first, as alternates; equals in the order of hosts. If none
// passes the error is [ErrNoValidHost], and the decision, not nil, tells why
// for every host. With any other error, from ctx, a filter or a weigher, it is
// nil.
//
// It blocks as long as they do, and does not keep or change hosts.
func (s *Scheduler[R, H]) Rank(ctx context.Context, req R, hosts []H) (*Decision[H], error) {
	r := s.runs.Get().(*run[R, H])
	defer r.end()
	if err := r.begin(ctx, req, hosts); err != nil {
		return nil, err
	}
	d := r.decision(s.cfg.Keep)
	if d.Passed == 0 {
		return d, fmt.Errorf("%w: %s", ErrNoValidHost, d.Summary())
	}
	return d, nil
}

// pick returns which of the totals the picker chooses.
func (s *Scheduler[R, H]) pick(totals []float64) int {
	if len(totals) < 2 {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.Picker(totals, s.cfg.Rand)
}
