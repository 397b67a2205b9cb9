package scheduler

import (
	"context"
	"fmt"
	"math"
	"slices"
)

// How many hosts go through all filters together: they are in the cache then.
// Fewer where the filtering is to end soon.
const (
	block     = 256
	fineBlock = 64
)

// run is one decision in the making. Its memory is used again.
type run[R any, H Host] struct {
	s     *Scheduler[R, H]
	ctx   context.Context //nolint:containedctx // lives as long as the call
	req   R
	hosts []H

	judges  []judge[R, H] // of the filters
	filters []int         // their places in the configuration
	weights []func(H) float64

	left   []H // that passed
	counts []int
	turned []H      // away
	why    []why    // for each of them
	words  []phrase // that the reasons are made of
	last   []int32  // of the words, for each of the names
	seen   int      // hosts looked at
	start  int      // the first of them

	// Columns of a number for each host that passed, one after the other for
	// each weigher that took part.
	raw, scaled, mult []float64
	stride            int    // from column to column
	spans             []span // for each weigher
	totals            []float64
	order             []rank
}

// judge is a filter at work: f, what Prepare returned, or else plain, which needs
// none and is called as it is. Neither is set until it is wanted.
type judge[R any, H Host] struct {
	plain func(R, H) Verdict
	f     func(H) Verdict
}

// why is why a host was turned away: one of the words, with its numbers. It is
// small, and nothing that the garbage collector has to follow.
type why struct {
	a, b int64
	word int32
}

// phrase is what a filter has said, perhaps of many hosts.
type phrase struct{ filter, format string }

// span is between which weights a weigher's are scaled.
type span struct{ low, high float64 }

// rank is a host's place by its total. at is its index among those that passed.
type rank struct {
	total float64
	at    int
}

func newRun[R any, H Host](s *Scheduler[R, H]) *run[R, H] {
	return &run[R, H]{s: s, counts: make([]int, len(s.names)), last: make([]int32, len(s.names))}
}

// begin filters and weighs.
func (r *run[R, H]) begin(ctx context.Context, req R, hosts []H) error {
	r.ctx, r.req, r.hosts = ctx, req, hosts
	r.judges, r.filters = sized(r.judges, len(r.s.cfg.Filters)), sized(r.filters, len(r.s.cfg.Filters))
	for i := range r.filters {
		r.filters[i] = i
	}
	if err := r.filter(); err != nil {
		return err
	}
	return r.weigh()
}

// end gives the memory back, without what others own.
func (r *run[R, H]) end() {
	var none R
	r.ctx, r.req, r.hosts = nil, none, nil
	clear(r.judges[:cap(r.judges)])
	clear(r.counts)
	clear(r.weights)
	clear(r.left[:cap(r.left)])
	clear(r.turned)
	clear(r.words)
	clear(r.last)
	r.weights, r.left, r.turned, r.why, r.words = r.weights[:0], r.left[:0], r.turned[:0], r.why[:0], r.words[:0]
	r.seen = 0
	r.s.runs.Put(r)
}

// filter fills left with the hosts that pass.
func (r *run[R, H]) filter() error {
	n, size, enough := len(r.hosts), block, r.s.cfg.Enough
	r.start = 0
	if enough > 0 && n > 0 {
		size = fineBlock
		r.start = int(r.s.next.Load() % uint64(n))
	}
	for r.seen < n && (enough == 0 || len(r.left) < enough) {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		from := (r.start + r.seen) % n
		part := r.hosts[from:min(from+size, n, from+n-r.seen)]
		r.seen += len(part)
		if err := r.pass(part); err != nil {
			return err
		}
	}
	if enough > 0 {
		r.s.next.Add(uint64(r.seen))
	}
	return nil
}

// pass adds those of the hosts that pass to left. Each host goes through all
// filters while it is at hand.
func (r *run[R, H]) pass(part []H) error {
	full := r.s.cfg.Explain == Full
	req := r.req
next:
	for _, h := range part {
		for i := 0; i < len(r.judges); i++ {
			var v Verdict
			if j := &r.judges[i]; j.plain != nil {
				v = j.plain(req, h)
			} else if j.f != nil {
				v = j.f(h)
			} else { // its first host
				if err := r.prepare(i); err != nil {
					return err
				}
				i--
				continue
			}
			if v.format != "" {
				r.counts[r.filters[i]]++
				if full {
					r.reject(h, r.filters[i], &v)
				}
				continue next
			}
		}
		r.left = append(r.left, h)
	}
	return nil
}

// prepare prepares the i-th of judges, or takes it out if the filter has
// nothing to say.
func (r *run[R, H]) prepare(i int) (err error) {
	at := r.filters[i]
	filter, j := r.s.cfg.Filters[at], &r.judges[i]
	if p, ok := filter.(funcOf[R, H, Verdict]); ok {
		j.plain = p.f
		return nil
	}
	if j.f, err = filter.Prepare(r.ctx, r.req, r.hosts); err != nil {
		return fmt.Errorf("filter %s: %w", r.s.names[at], err)
	}
	if j.f == nil {
		r.judges, r.filters = slices.Delete(r.judges, i, i+1), slices.Delete(r.filters, i, i+1)
	}
	return nil
}

// weigh fills the columns. One host alone needs no scores, as in Nova.
func (r *run[R, H]) weigh() error {
	n, k := len(r.left), len(r.s.cfg.Weighers)
	if n < 2 {
		k = 0
	}
	for i := range k {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		f, err := r.s.cfg.Weighers[i].Weigher.Prepare(r.ctx, r.req, r.left)
		if err != nil {
			return fmt.Errorf("weigher %s: %w", r.s.names[len(r.s.cfg.Filters)+i], err)
		}
		r.weights = append(r.weights, f)
	}
	r.raw, r.scaled = sized(r.raw, n*k), sized(r.scaled, n*k)
	r.mult, r.totals = sized(r.mult, n*k), sized(r.totals, n)
	r.stride = n
	broken := false
	for from := 0; from < n; from += block {
		part := r.left[from:min(from+block, n)]
		for j := range k {
			broken = r.column(j, from, part) || broken
		}
	}
	if broken {
		r.drop()
	}
	r.spans = sized(r.spans, k)
	n = len(r.left)
	for j := range k {
		r.spans[j] = r.span(j, n)
		r.scale(j, n)
	}
	r.sum()
	return nil
}

// sized returns a slice of n elements, s if it is large enough.
func sized[E any](s []E, n int) []E { return slices.Grow(s[:0], n)[:n] }

// column weighs hosts with weigher j, from the given place among those that
// passed, and reports whether there is a weight that cannot be compared.
func (r *run[R, H]) column(j, from int, part []H) (broken bool) {
	w, at := &r.s.cfg.Weighers[j], j*r.stride+from
	raw := r.raw[at : at+len(part)]
	if weight := r.weights[j]; weight == nil {
		clear(raw)
	} else {
		for i, h := range part {
			x := weight(h)
			raw[i] = x
			broken = broken || !(math.Abs(x) <= math.MaxFloat64)
		}
	}
	mult := r.mult[at : at+len(part)]
	for i := range mult {
		mult[i] = w.Multiplier
	}
	if w.PerHost != nil {
		for i, h := range part {
			mult[i] = w.multiplier(h)
		}
	}
	return broken
}

// drop turns away the hosts whose weights cannot be compared. One host with a
// broken report must not stop the placement on all the others.
func (r *run[R, H]) drop() {
	keep := 0
	for i, h := range r.left {
		bad := -1
		for j := range r.weights {
			if x := r.raw[j*r.stride+i]; math.IsNaN(x) || math.IsInf(x, 0) {
				bad = len(r.s.cfg.Filters) + j
				r.counts[bad]++
				if why := Reject("weight is %g", x); r.s.cfg.Explain == Full {
					r.reject(h, bad, &why)
				}
				break
			}
		}
		if bad >= 0 {
			continue
		}
		for j := range r.weights {
			at := j * r.stride
			r.raw[at+keep], r.mult[at+keep] = r.raw[at+i], r.mult[at+i]
		}
		r.left[keep] = h
		keep++
	}
	r.left, r.totals = r.left[:keep], r.totals[:keep]
}

// reject writes down that a host was turned away, by which of the names and why.
func (r *run[R, H]) reject(h H, by int, v *Verdict) {
	word := r.last[by] - 1
	if word < 0 || r.words[word].format != v.format { // most come many times in a row
		word = int32(len(r.words))
		r.words = append(r.words, phrase{r.s.names[by], v.format})
		r.last[by] = word + 1
	}
	r.turned = append(r.turned, h)
	r.why = append(r.why, why{v.a, v.b, word})
}

// span returns the lowest and the highest weight of weigher j, or its bounds
// where they are finite.
func (r *run[R, H]) span(j, n int) span {
	b := r.s.bounds[j]
	low, high := math.Inf(1), math.Inf(-1)
	for _, x := range r.raw[j*r.stride : j*r.stride+n] {
		if x < low {
			low = x
		}
		if x > high {
			high = x
		}
	}
	low, high = min(max(low, b[0]), b[1]), min(max(high, b[0]), b[1])
	if !math.IsInf(b[0], 0) {
		low = b[0]
	}
	if !math.IsInf(b[1], 0) {
		high = b[1]
	}
	return span{low, high}
}

// scale scales the weights of weigher j to 0..1. When all are equal they become
// 0, not 1: as in Nova.
func (r *run[R, H]) scale(j, n int) {
	at, b, sp := j*r.stride, r.s.bounds[j], r.spans[j]
	raw, scaled := r.raw[at:at+n], r.scaled[at:at+n]
	width := sp.high - sp.low
	if math.IsInf(b[0], 0) && math.IsInf(b[1], 0) && width > 0 && !math.IsInf(width, 0) && !r.s.cfg.Unscaled {
		for i, x := range raw {
			scaled[i] = (x - sp.low) / width
		}
		return
	}
	for i := range raw {
		r.scaleAt(j, i)
	}
}

// scaleAt scales the weight of one host.
func (r *run[R, H]) scaleAt(j, i int) {
	at, b, sp := j*r.stride+i, r.s.bounds[j], r.spans[j]
	switch {
	case r.s.cfg.Unscaled:
		r.scaled[at] = r.raw[at]
	case !(sp.high > sp.low):
		r.scaled[at] = 0
	default:
		r.scaled[at] = sp.scale(min(max(r.raw[at], b[0]), b[1]))
	}
}

// scale returns the place of a weight in the span.
func (s span) scale(x float64) float64 {
	if w := s.high - s.low; !math.IsInf(w, 0) {
		return (x - s.low) / w
	}
	return (x/2 - s.low/2) / (s.high/2 - s.low/2) // the difference alone is too large for a float64
}

// sum adds the scaled weights up, in the weighers' order.
func (r *run[R, H]) sum() {
	n := len(r.left)
	totals := r.totals[:n]
	clear(totals)
	for j := range r.weights {
		at := j * r.stride
		mult := r.mult[at : at+n]
		for i, x := range r.scaled[at : at+n] {
			totals[i] += mult[i] * x
		}
	}
}

// decision writes the decision down, with keep hosts at most, or all if it is 0.
func (r *run[R, H]) decision(keep int) *Decision[H] {
	n := len(r.left)
	if keep == 0 || keep > n {
		keep = n
	}
	d := &Decision[H]{Passed: n, Unseen: len(r.hosts) - r.seen, Ranked: make([]Ranked[H], keep)}
	if keep > 0 {
		r.rank(keep)
	}
	k := len(r.weights)
	var scores []Score
	if r.s.cfg.Explain != Brief {
		scores = make([]Score, keep*k)
	}
	names := r.s.names[len(r.s.cfg.Filters):]
	for q, o := range r.order[:keep] {
		to := &d.Ranked[q]
		to.Host, to.Total = r.left[o.at], o.total
		if scores == nil {
			continue
		}
		to.Scores = scores[q*k : q*k+k : q*k+k]
		for j := range k {
			at := j*r.stride + o.at
			to.Scores[j] = Score{names[j], r.raw[at], r.scaled[at], r.mult[at]}
		}
	}
	d.turned = turned[H]{slices.Clone(r.turned), slices.Clone(r.why), slices.Clone(r.words)}
	d.Counts = make([]Count, 0, len(r.counts))
	for i, c := range r.counts {
		if c > 0 {
			d.Counts = append(d.Counts, Count{r.s.names[i], c})
		}
	}
	sortCounts(d.Counts)
	return d
}

// rank sorts the first keep of order: the picked host, then the best.
func (r *run[R, H]) rank(keep int) {
	n := len(r.left)
	r.order = sized(r.order, n)
	for i, t := range r.totals {
		r.order[i] = rank{t, i}
	}
	if n < 2 {
		return
	}
	p := r.s.pick(r.totals)
	r.order[0], r.order[p] = r.order[p], r.order[0]
	top(r.order[1:], keep-1)
}

// few is up to how many of the best are found without sorting all.
const few = 64

// top moves the n best to the front, in order.
func top(o []rank, n int) {
	if n > few {
		slices.SortFunc(o, rank.compare)
		return
	}
	for i := range o {
		if n == 0 || i >= n && o[i].compare(o[n-1]) > 0 {
			continue
		}
		x, at := o[i], min(i, n)
		if at == n { // the last of the best makes room
			at--
			o[i] = o[at]
		}
		for ; at > 0 && x.compare(o[at-1]) < 0; at-- {
			o[at] = o[at-1]
		}
		o[at] = x
	}
}

func (a rank) compare(b rank) int {
	switch {
	case a.total > b.total:
		return -1
	case a.total < b.total:
		return 1
	}
	return a.at - b.at
}
