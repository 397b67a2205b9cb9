// Package scheduler chooses the most suitable host for a request: filters reject hosts, weighers score the feasible
// hosts, and a picker chooses one of the best. The result is a [Decision]. By default it names every host, with its scores
// or with the reason of its rejection.
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
//	d.Ranked[0].Host // the chosen host; the alternates follow
//
// A decision uses the hosts that the caller passes, such as those of a [Fleet], and changes nothing: the caller claims
// resources on the chosen host afterwards. Package scheduler/placement has claims, and ready-made filters and weighers.
package scheduler

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/armature-go/armature/fault"
)

// ErrNoValidHost means that no host is feasible. Its code is Exhausted. [Scheduler.Rank] and [Scheduler.RankMany] return errors that wrap it,
// with the decision's summary in the text. The Meta of Rank's error crosses RPC: it has the number of hosts, "hosts", and
// the number of hosts that a filter or a weigher has rejected, "rejected.FILTER".
var ErrNoValidHost = fault.Sentinel(fault.Exhausted, "NoValidHost", "no valid host")

// Host is a candidate. Names are unique among the hosts of a decision.
type Host interface{ Name() string }

// Filter says which hosts could take a request. It must be safe for concurrent use.
type Filter[R any, H Host] interface {
	// Name is the filter's name in decisions and summaries. It is unique among filters.
	Name() string
	// Prepare is called once for each decision, when the first host has passed the filters before this one. It
	// returns a function that judges each host; the function may keep state of this decision. If Prepare returns
	// nil, the filter rejects no host for this request. The parameter hosts are all hosts of the decision; Prepare must not change
	// them. An error ends the decision.
	Prepare(ctx context.Context, req R, hosts []H) (func(H) Verdict, error)
}

// Weigher says how suitable feasible hosts are. It must be safe for concurrent use.
type Weigher[R any, H Host] interface {
	// Name is the weigher's name in decisions. It is unique among weighers.
	Name() string
	// Prepare is called once for each decision, with the feasible hosts, which it must not change. It is not called if
	// fewer than two hosts are feasible. It returns a function that returns a host's raw score in any unit; a higher
	// score is better. A raw score counts only relative to the lowest and the highest raw score of the decision. If
	// Prepare returns nil, all raw scores are 0. A host whose raw score is NaN or infinite is rejected, under the
	// weigher's name. An error ends the decision.
	Prepare(ctx context.Context, req R, hosts []H) (func(H) float64, error)
}

// Weighted is a weigher with its multiplier. The total of a host is the sum of its scaled scores, each times its multiplier.
// A scaled score is between 0 (the lowest raw score of the decision) and 1 (the highest). A negative Multiplier prefers low
// raw scores. With 0 the decision shows the scores, but they do not count.
type Weighted[R any, H Host] struct {
	Weigher    Weigher[R, H]
	Multiplier float64
}

// Name returns the weigher's name.
func (w Weighted[R, H]) Name() string { return w.Weigher.Name() }

// isUsableMultiplier reports whether a multiplier is a number that keeps totals far from infinity.
func isUsableMultiplier(m float64) bool { return math.Abs(m) <= 1e100 } // false for NaN

// FilterFunc returns a Filter that needs no preparation. The function f must be safe for concurrent use.
func FilterFunc[R any, H Host](name string, f func(req R, host H) Verdict) Filter[R, H] {
	return funcOf[R, H, Verdict]{name, f}
}

// WeigherFunc returns a Weigher that needs no preparation. The function f must be safe for concurrent use.
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

// ByName selects elements of the parameter all by their names. The result has the order of the parameter names. T is a
// [Filter] or a [Weighted]. Use it for the filters or weighers that a configuration enables. The error is Invalid if no
// element has one of the names (the error lists the known names), or if a name is listed twice.
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
			return nil, fault.New(fault.Invalid, "%q does not exist: the known names are %s", name, strings.Join(known, ", "))
		}
		if slices.Contains(names[:i], name) {
			return nil, fault.New(fault.Invalid, "%q is listed twice", name)
		}
		out = append(out, all[at])
	}
	return out, nil
}

// Config configures a [Scheduler]. With the zero value every host is feasible, and the hosts are ranked in the order
// given.
type Config[R any, H Host] struct {
	// Filters judge hosts in this order. A host that one filter rejects is not shown to the filters after it. So the
	// first filters should be those that are cheap or reject many hosts.
	Filters []Filter[R, H]
	// Weighers score the feasible hosts.
	Weighers []Weighted[R, H]
	// Picker chooses one of the feasible hosts. Default [Best].
	Picker Picker
	// Rand is the Picker's source of random numbers. The Scheduler owns it: the caller must not use it after New.
	// Default: a source with a random seed.
	Rand *rand.Rand
	// CountsOnly leaves details out of the decisions: ranked hosts have no scores, and Decision.Rejected returns no
	// hosts. The counts stay. Such a decision costs less time and memory. Default false.
	CountsOnly bool
	// MaxRanked is the maximum number of hosts in Decision.Ranked. Default 0: all feasible hosts.
	MaxRanked int
	// Observe is called after each decision, in the goroutine that asked for it. It must not block. Package schedulerprom has
	// such a function for Prometheus. Default: decisions are not observed.
	Observe func(ctx context.Context, o Observation)
}

// Observation describes a decision for Config.Observe. [Scheduler.RankMany] makes one decision for many requests, and
// another one each time when all hosts of the previous decision are full.
type Observation struct {
	// Duration is the time that the filters, the weighers and the picker took.
	Duration time.Duration
	// Hosts is the number of hosts that were judged. Feasible is the number of feasible hosts among them.
	Hosts, Feasible int
	// Counts are the Counts of the decision. The function must neither keep nor change them.
	Counts []Count
	// Err is the error of ctx, of a filter or of a weigher. It is nil for a decision without a feasible host. With an error, Feasible
	// and Counts are not set.
	Err error
}

// Scheduler ranks hosts. It is safe for concurrent use.
type Scheduler[R any, H Host] struct {
	cfg   Config[R, H]
	names []string // the names of the filters, then of the weighers

	rankings sync.Pool  // the elements are *ranking[R, H]
	mu       sync.Mutex // guards cfg.Rand
}

// New returns a Scheduler. It returns Invalid in these cases:
//
//   - A filter or a weigher is nil or has no name.
//   - Two filters, or two weighers, have the same name.
//   - A multiplier is NaN, or its absolute value is greater than 1e100.
//   - MaxRanked is negative.
func New[R any, H Host](cfg Config[R, H]) (*Scheduler[R, H], error) {
	cfg.Filters, cfg.Weighers = slices.Clone(cfg.Filters), slices.Clone(cfg.Weighers)
	s := &Scheduler[R, H]{}
	for i, f := range cfg.Filters {
		if err := checkNamed("filter", "Filters", i, f, s.names); err != nil {
			return nil, err
		}
		s.names = append(s.names, f.Name())
	}
	for i, w := range cfg.Weighers {
		if err := checkNamed("weigher", "Weighers", i, w.Weigher, s.names[len(cfg.Filters):]); err != nil {
			return nil, err
		}
		if !isUsableMultiplier(w.Multiplier) {
			return nil, fault.New(fault.Invalid, "weigher %s: multiplier %g: want a number from -1e100 to 1e100", w.Name(), w.Multiplier)
		}
		s.names = append(s.names, w.Name())
	}
	if cfg.MaxRanked < 0 {
		return nil, fault.New(fault.Invalid, "MaxRanked is %d: it must not be negative", cfg.MaxRanked)
	}
	if cfg.Picker == nil {
		cfg.Picker = Best
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	s.cfg = cfg
	s.rankings.New = func() any { return newRanking(s) }
	return s, nil
}

// checkNamed returns Invalid if element i of a field of [Config] is nil, has no name, or has the name of an earlier element. The
// parameter names has the names of the earlier elements.
func checkNamed(kind, field string, i int, v interface{ Name() string }, names []string) error {
	if n, ok := v.(interface{ isNil() bool }); v == nil || ok && n.isNil() {
		return fault.New(fault.Invalid, "%s[%d] is nil", field, i)
	}
	switch name := v.Name(); {
	case name == "":
		return fault.New(fault.Invalid, "%s[%d] has no name", field, i)
	case slices.Contains(names, name):
		return fault.New(fault.Invalid, "two %ss have the name %s", kind, name)
	}
	return nil
}

// Rank orders the feasible hosts. The host that the picker chose is the first; the others follow as alternates, best
// first. Hosts with equal totals keep their order in the parameter hosts. If no host is feasible, the error is
// [ErrNoValidHost], and the decision is not nil: it has the reasons, or with Config.CountsOnly only their counts. Other
// errors come from ctx, a filter or a weigher; then the decision is nil.
//
// Rank blocks as long as filters and weighers do. It does not change the hosts. After the call only the decision refers
// to them.
func (s *Scheduler[R, H]) Rank(ctx context.Context, req R, hosts []H) (*Decision[H], error) {
	r := s.rankings.Get().(*ranking[R, H])
	defer r.release()
	d, err := r.decide(ctx, req, hosts)
	if err != nil {
		return nil, err
	}
	if d.Feasible == 0 {
		return d, d.noValidHost()
	}
	return d, nil
}

// pick returns the index of the total that the picker chooses.
func (s *Scheduler[R, H]) pick(totals []float64) int {
	if len(totals) < 2 {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.Picker(totals, s.cfg.Rand)
}
