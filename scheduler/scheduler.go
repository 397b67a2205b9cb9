// Package scheduler chooses the most suitable host for a request: filters turn
// hosts away, weighers score those that are left, a picker takes one of the
// best. The result is a [Decision] that names every host and says why.
//
//	s, err := scheduler.New(scheduler.Config[*Spec, *Node]{
//		Filters: []scheduler.Filter[*Spec, *Node]{
//			scheduler.FilterFunc("room", func(s *Spec, n *Node) scheduler.Verdict {
//				if n.FreeGiB < s.GiB {
//					return scheduler.Reject("needs %d GiB, %d GiB free", s.GiB, n.FreeGiB)
//				}
//				return scheduler.Pass
//			}),
//		},
//		Weighers: []scheduler.Weighted[*Spec, *Node]{{Weigher: free, Multiplier: 1}},
//	})
//	d, err := s.Rank(ctx, spec, nodes)
//	d.Ranked[0].Host // the best; after it the alternates
//
// It decides by the state that it is given and changes none: to claim on the
// chosen host is the caller's next step.
package scheduler

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/armature-go/armature/fault"
)

// ErrNoValidHost is the error of [Scheduler.Rank] when no host passed. Its text
// has the decision's summary.
var ErrNoValidHost = fault.Sentinel(fault.Exhausted, "NoValidHost", "no valid host")

// Host is a candidate. Names are unique among the hosts of a decision.
type Host interface{ Name() string }

// Verdict is a filter's answer about one host: [Pass], or what [Reject] made.
// The zero Verdict is Pass.
type Verdict struct {
	rejected bool
	reason   string
}

// Pass is the Verdict that lets a host through.
var Pass Verdict

// Reject returns the Verdict that turns a host away, with the reason as by
// fmt.Sprintf, best in numbers and units: "needs 2048 MiB, 512 MiB free".
func Reject(format string, args ...any) Verdict {
	return Verdict{true, fmt.Sprintf(format, args...)}
}

// Filter says which hosts can take a request at all.
type Filter[R any, H Host] interface {
	// Name stands in decisions and summaries, and is unique among filters.
	Name() string
	// Prepare is called once a decision and returns the function that judges
	// each host; it may keep state of this decision. Nil means that the filter
	// has nothing to say about this request. hosts, which must not be changed,
	// are those that are still candidates. An error ends the decision.
	Prepare(ctx context.Context, req R, hosts []H) (func(H) Verdict, error)
}

// Weigher says how suitable the hosts are that passed all the filters.
type Weigher[R any, H Host] interface {
	// Name stands in decisions, and is unique among weighers.
	Name() string
	// Prepare is as a Filter's. The function returns the host's raw weight in
	// any unit, more is better; only its place between the lowest and the
	// highest of this decision counts. A host whose weight is not a number, or
	// infinite, is turned away, under the weigher's name.
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
}

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

// Picker chooses one of the hosts that passed by their totals, which are in
// descending order and at least two, and returns its index. It must not keep
// or change them. Calls do not overlap.
type Picker func(totals []float64, r *rand.Rand) int

// Best picks the host with the highest total.
func Best([]float64, *rand.Rand) int { return 0 }

// Subset picks one of the n best at random, so that many schedulers do not all
// choose the same host. It panics if n is less than 1.
func Subset(n int) Picker {
	if n < 1 {
		panic(fmt.Sprintf("scheduler: Subset of %d", n))
	}
	return func(totals []float64, r *rand.Rand) int { return r.IntN(min(n, len(totals))) }
}

// Config configures a [Scheduler]. The zero value lets every host pass and
// orders them by name.
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
}

// Scheduler ranks hosts. It is safe for concurrent use.
type Scheduler[R any, H Host] struct {
	cfg Config[R, H]
	mu  sync.Mutex // guards cfg.Rand
}

// New returns a Scheduler, or an error with code Invalid if a filter or weigher
// is nil, has no name or the name of another one, or a multiplier is not a
// number of at most 1e100.
func New[R any, H Host](cfg Config[R, H]) (*Scheduler[R, H], error) {
	cfg.Filters, cfg.Weighers = slices.Clone(cfg.Filters), slices.Clone(cfg.Weighers)
	seen := map[string]bool{}
	check := func(kind string, i int, v interface{ Name() string }) error {
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
			return nil
		}
	}
	for i, f := range cfg.Filters {
		if err := check("filter", i, f); err != nil {
			return nil, err
		}
	}
	for i, w := range cfg.Weighers {
		if err := check("weigher", i, w.Weigher); err != nil {
			return nil, err
		}
		if !(math.Abs(w.Multiplier) <= 1e100) { // NaN, too
			return nil, fault.New(fault.Invalid, "weigher %s: multiplier %g", w.Weigher.Name(), w.Multiplier)
		}
	}
	if cfg.Picker == nil {
		cfg.Picker = Best
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	return &Scheduler[R, H]{cfg: cfg}, nil
}

// Rank orders the hosts that pass: first the one that the picker chose, then
// the others, best first, as alternates; equals by name. If none passes the
// error is [ErrNoValidHost], and the decision, not nil, tells why for every
// host. With any other error, from ctx, a filter or a weigher, it is nil.
//
// It blocks as long as they do, and does not keep or change hosts.
func (s *Scheduler[R, H]) Rank(ctx context.Context, req R, hosts []H) (*Decision[H], error) {
	d := &Decision[H]{Ranked: []Ranked[H]{}, Rejected: []Rejected{}}
	left, err := s.filter(ctx, d, req, hosts)
	if err != nil {
		return nil, err
	}
	if err := s.weigh(ctx, d, req, left); err != nil {
		return nil, err
	}
	if len(d.Ranked) == 0 {
		return d, fmt.Errorf("%w: %s", ErrNoValidHost, d.Summary())
	}
	slices.SortFunc(d.Ranked, func(a, b Ranked[H]) int {
		if c := cmp.Compare(b.Total, a.Total); c != 0 {
			return c
		}
		return cmp.Compare(a.Host.Name(), b.Host.Name())
	})
	if len(d.Ranked) > 1 {
		s.pick(d)
	}
	return d, nil
}

// filter returns the hosts that pass, and writes down the others.
func (s *Scheduler[R, H]) filter(ctx context.Context, d *Decision[H], req R, left []H) ([]H, error) {
	// A filter's function may look at the hosts that Prepare got, so those that
	// pass go into another buffer, two in turns.
	var next, spare []H
	for _, f := range s.cfg.Filters {
		if len(left) == 0 {
			break
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		judge, err := f.Prepare(ctx, req, left)
		if err != nil {
			return nil, fmt.Errorf("filter %s: %w", f.Name(), err)
		}
		if judge == nil {
			continue
		}
		if next == nil {
			next = make([]H, 0, len(left))
		}
		for _, h := range left {
			if v := judge(h); v.rejected {
				d.Rejected = append(d.Rejected, Rejected{h.Name(), f.Name(), v.reason})
			} else {
				next = append(next, h)
			}
		}
		left, next, spare = next, spare, next[:0]
	}
	return left, nil
}

// weigh scores the hosts into d.Ranked, not yet in order. One host alone
// needs no scores, as in Nova.
func (s *Scheduler[R, H]) weigh(ctx context.Context, d *Decision[H], req R, hosts []H) error {
	d.Ranked = make([]Ranked[H], 0, len(hosts))
	k := len(s.cfg.Weighers)
	if len(hosts) < 2 {
		k = 0
	}
	scores := make([]Score, len(hosts)*k)
	for i, h := range hosts {
		d.Ranked = append(d.Ranked, Ranked[H]{Host: h, Scores: scores[i*k : (i+1)*k : (i+1)*k]})
	}
	for j, w := range s.cfg.Weighers[:k] {
		if err := ctx.Err(); err != nil {
			return err
		}
		weight, err := w.Weigher.Prepare(ctx, req, hosts)
		if err != nil {
			return fmt.Errorf("weigher %s: %w", w.Weigher.Name(), err)
		}
		name := w.Weigher.Name()
		for i, h := range hosts {
			sc := &d.Ranked[i].Scores[j]
			*sc = Score{Weigher: name, Multiplier: w.Multiplier}
			if weight != nil {
				sc.Raw = weight(h)
			}
		}
	}
	d.rejectNonFinite()
	for j, w := range s.cfg.Weighers[:k] {
		low, high := math.Inf(-1), math.Inf(1)
		if b, ok := w.Weigher.(Bounded); ok {
			low, high = b.Bounds()
		}
		normalise(d.Ranked, j, low, high)
	}
	return nil
}

// rejectNonFinite turns away the hosts whose weights cannot be compared. One
// host with a broken report must not stop the placement on all the others.
func (d *Decision[H]) rejectNonFinite() {
	d.Ranked = slices.DeleteFunc(d.Ranked, func(r Ranked[H]) bool {
		for _, sc := range r.Scores {
			if math.IsNaN(sc.Raw) || math.IsInf(sc.Raw, 0) {
				d.Rejected = append(d.Rejected, Rejected{r.Host.Name(), sc.Weigher, fmt.Sprintf("weight is %g", sc.Raw)})
				return true
			}
		}
		return false
	})
}

// normalise scales the raw weights of one weigher to 0..1 between the lowest
// and the highest, or the bounds where they are finite, and adds them to the
// totals. When all are equal they become 0, not 1: as in Nova.
func normalise[H Host](ranked []Ranked[H], j int, low, high float64) {
	lowest, highest := math.Inf(1), math.Inf(-1)
	for i := range ranked {
		raw := min(max(ranked[i].Scores[j].Raw, low), high)
		lowest, highest = min(lowest, raw), max(highest, raw)
	}
	if !math.IsInf(low, 0) {
		lowest = low
	}
	if !math.IsInf(high, 0) {
		highest = high
	}
	if !(highest > lowest) {
		return
	}
	for i := range ranked {
		sc := &ranked[i].Scores[j]
		raw := min(max(sc.Raw, low), high)
		if span := highest - lowest; !math.IsInf(span, 0) {
			sc.Scaled = (raw - lowest) / span
		} else { // the difference alone is too large for a float64
			sc.Scaled = (raw/2 - lowest/2) / (highest/2 - lowest/2)
		}
		ranked[i].Total += sc.Multiplier * sc.Scaled
	}
}

// pick moves the picked host to the front.
func (s *Scheduler[R, H]) pick(d *Decision[H]) {
	totals := make([]float64, len(d.Ranked))
	for i, r := range d.Ranked {
		totals[i] = r.Total
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.cfg.Picker(totals, s.cfg.Rand)
	picked := d.Ranked[n]
	copy(d.Ranked[1:], d.Ranked[:n])
	d.Ranked[0] = picked
}
