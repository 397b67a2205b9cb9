package scheduler

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// blockSize is how many hosts are filtered, and later weighed, as one block, which fits into the processor's cache.
const blockSize = 256

// ranking computes one decision: it filters the hosts, weighs the feasible ones and makes the Decision. Later decisions
// reuse its memory.
type ranking[R any, H Host] struct {
	s     *Scheduler[R, H]
	ctx   context.Context //nolint:containedctx // only during the call
	req   R
	hosts []H

	filters  []preparedFilter[R, H] // without those whose Prepare returned nil
	feasible []H

	rejecters []rejecter // each filter, then each weigher
	counts    []int      // the number of hosts that each of the rejecters has rejected
	rejected  rejections[H]

	weighers []func(H) float64 // an element is nil if Prepare returned nil
	scores   scoreTable
	order    []rankedIndex
	newRaw   []float64 // temporary memory of replaceFeasible
}

// preparedFilter is a filter with its function for this request: plain for a filter that needs no preparation, judge
// for any other. Both are nil until the first host reaches the filter.
type preparedFilter[R any, H Host] struct {
	index int // the filter's index in the configuration
	plain func(R, H) Verdict
	judge func(H) Verdict
}

// rankedIndex is a feasible host, by its index, with its total.
type rankedIndex struct {
	total float64
	index int
}

func newRanking[R any, H Host](s *Scheduler[R, H]) *ranking[R, H] {
	r := &ranking[R, H]{s: s, counts: make([]int, len(s.names))}
	for _, name := range s.names {
		r.rejecters = append(r.rejecters, rejecter{name: name})
	}
	for _, w := range s.cfg.Weighers {
		r.scores.multipliers = append(r.scores.multipliers, w.Multiplier)
	}
	return r
}

// start filters and weighs hosts.
func (r *ranking[R, H]) start(ctx context.Context, req R, hosts []H) error {
	r.ctx, r.req, r.hosts = ctx, req, hosts
	r.filters = resizeSlice(r.filters, len(r.s.cfg.Filters))
	for i := range r.filters {
		r.filters[i] = preparedFilter[R, H]{index: i}
	}
	if err := r.filterHosts(); err != nil {
		return err
	}
	return r.weighHosts()
}

// release returns the memory to the pool, without references to the caller's values.
func (r *ranking[R, H]) release() {
	var none R
	r.ctx, r.req, r.hosts = nil, none, nil
	clear(r.filters[:cap(r.filters)])
	clear(r.feasible[:cap(r.feasible)])
	clear(r.counts)
	for i := range r.rejecters {
		r.rejecters[i].latest = 0
	}
	clear(r.weighers)
	r.filters, r.feasible, r.weighers = r.filters[:0], r.feasible[:0], r.weighers[:0]
	r.rejected.reset()
	r.s.rankings.Put(r)
}

// filterHosts finds the feasible hosts.
func (r *ranking[R, H]) filterHosts() error {
	for block := range slices.Chunk(r.hosts, blockSize) {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if err := r.filterBlock(block); err != nil {
			return err
		}
	}
	return nil
}

// filterBlock adds the feasible hosts of a block. Each host goes through the filters until one rejects it. This is the
// inner loop of a decision: besides filters it calls only prepareFilter, for a filter's first host, and rejections.add.
func (r *ranking[R, H]) filterBlock(block []H) error { //nolint:gocognit // see CONTRIBUTING.md
	req, filters, explain := r.req, r.filters, !r.s.cfg.CountsOnly
nextHost:
	for _, h := range block {
		for i := 0; i < len(filters); i++ {
			var v Verdict
			f := &filters[i]
			switch {
			case f.plain != nil:
				v = f.plain(req, h)
			case f.judge != nil:
				v = f.judge(h)
			default: // this is the first host that reaches the filter
				if err := r.prepareFilter(i); err != nil {
					return err
				}
				filters = r.filters
				i-- // the same filter, or the next one if prepareFilter removed this one
				continue
			}
			if v.format != "" {
				r.counts[f.index]++
				if explain {
					r.rejected.add(h, &r.rejecters[f.index], &v)
				}
				continue nextHost
			}
		}
		r.feasible = append(r.feasible, h)
	}
	return nil
}

// prepareFilter prepares the i-th filter, and removes the filter if Prepare returns nil.
func (r *ranking[R, H]) prepareFilter(i int) (err error) {
	f := &r.filters[i]
	filter := r.s.cfg.Filters[f.index]
	if p, ok := filter.(funcOf[R, H, Verdict]); ok {
		f.plain = p.f
		return nil
	}
	if f.judge, err = filter.Prepare(r.ctx, r.req, r.hosts); err != nil {
		return fmt.Errorf("filter %s: %w", r.s.names[f.index], err)
	}
	if f.judge == nil {
		r.filters = slices.Delete(r.filters, i, i+1)
	}
	return nil
}

// weighHosts computes the scores of the feasible hosts. A single feasible host is not weighed, as in Nova.
func (r *ranking[R, H]) weighHosts() error {
	n := len(r.feasible)
	if n > 1 {
		if err := r.prepareWeighers(); err != nil {
			return err
		}
	}
	r.scores.resize(n, len(r.weighers))
	finite := true
	for from := 0; from < n; from += blockSize {
		block := r.feasible[from:min(from+blockSize, n)]
		for j := range r.weighers {
			finite = r.weighBlock(j, from, block) && finite
		}
	}
	if !finite {
		r.rejectNonFinite()
	}
	r.scores.scaleAll(len(r.feasible))
	return nil
}

func (r *ranking[R, H]) prepareWeighers() error {
	for i, w := range r.s.cfg.Weighers {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		weigh, err := w.Weigher.Prepare(r.ctx, r.req, r.feasible)
		if err != nil {
			return fmt.Errorf("weigher %s: %w", r.s.names[len(r.s.cfg.Filters)+i], err)
		}
		r.weighers = append(r.weighers, weigh)
	}
	return nil
}

// weighBlock computes one weigher's raw scores of a block, and reports whether all are finite. The parameter from is the
// index of the block's first host.
func (r *ranking[R, H]) weighBlock(weigher, from int, block []H) (finite bool) {
	raw := r.scores.rawOf(weigher)[from:][:len(block)]
	weigh := r.weighers[weigher]
	if weigh == nil {
		clear(raw)
		return true
	}
	finite = true
	for i, h := range block {
		x := weigh(h)
		raw[i] = x
		finite = finite && isFinite(x)
	}
	return finite
}

// rejectNonFinite rejects the hosts with a raw score that is NaN or infinite. One host with a wrong report must not
// prevent the placement on the others.
func (r *ranking[R, H]) rejectNonFinite() {
	kept := 0
	for i, h := range r.feasible {
		if j := r.scores.findNonFinite(i); j >= 0 {
			raw, _ := r.scores.score(j, i)
			v := Reject("raw score is %g", raw)
			by := len(r.s.cfg.Filters) + j
			if r.counts[by]++; !r.s.cfg.CountsOnly {
				r.rejected.add(h, &r.rejecters[by], &v)
			}
			continue
		}
		r.scores.moveRaw(kept, i)
		r.feasible[kept] = h
		kept++
	}
	r.feasible = r.feasible[:kept]
}

// decide makes the decision about a request, and reports it to the observer.
func (r *ranking[R, H]) decide(ctx context.Context, req R, hosts []H) (*Decision[H], error) {
	observe := r.s.cfg.Observe
	if observe == nil {
		return r.rank(ctx, req, hosts)
	}
	begin := time.Now()
	d, err := r.rank(ctx, req, hosts)
	o := Observation{Duration: time.Since(begin), Hosts: len(hosts), Err: err}
	if err == nil {
		o.Feasible, o.Counts = d.Feasible, d.Counts
	}
	observe(ctx, o)
	return d, err
}

func (r *ranking[R, H]) rank(ctx context.Context, req R, hosts []H) (*Decision[H], error) {
	if err := r.start(ctx, req, hosts); err != nil {
		return nil, err
	}
	return r.result(), nil
}

// result returns the decision after start.
func (r *ranking[R, H]) result() *Decision[H] {
	d := &Decision[H]{
		Feasible: len(r.feasible), Ranked: r.rankFeasible(),
		Counts: make([]Count, 0, len(r.counts)), rejected: r.rejected.clone(),
	}
	for i, n := range r.counts {
		if n > 0 {
			d.Counts = append(d.Counts, Count{r.s.names[i], n})
		}
	}
	sortCounts(d.Counts)
	return d
}

// rankFeasible returns the ranked hosts, at most MaxRanked, with their scores.
func (r *ranking[R, H]) rankFeasible() []Ranked[H] {
	n, k := len(r.feasible), len(r.weighers)
	if limit := r.s.cfg.MaxRanked; limit > 0 {
		n = min(n, limit)
	}
	r.sortBest(n)
	ranked := make([]Ranked[H], n)
	var scores []Score // the scores of all hosts, in one allocation
	if !r.s.cfg.CountsOnly {
		scores = make([]Score, n*k)
	}
	names := r.s.names[len(r.s.cfg.Filters):]
	for i, o := range r.order[:n] {
		ranked[i].Host, ranked[i].Total = r.feasible[o.index], o.total
		if scores == nil {
			continue
		}
		ranked[i].Scores = scores[i*k:][:k:k]
		for j := range k {
			raw, scaled := r.scores.score(j, o.index)
			ranked[i].Scores[j] = Score{names[j], raw, scaled, r.scores.multipliers[j]}
		}
	}
	return ranked
}

// sortBest moves n hosts to the front of r.order: the picked host, and then the best of the others, in order.
func (r *ranking[R, H]) sortBest(n int) {
	r.order = resizeSlice(r.order, len(r.feasible))
	for i, total := range r.scores.totals {
		r.order[i] = rankedIndex{total, i}
	}
	if len(r.order) < 2 {
		return
	}
	picked := r.s.pick(r.scores.totals)
	r.order[0], r.order[picked] = r.order[picked], r.order[0]
	selectBest(r.order[1:], n-1)
}

// maxInserted is the greatest n for which selectBest inserts, instead of sorting all hosts.
const maxInserted = 64

// selectBest moves the n best hosts to the front, in order.
func selectBest(o []rankedIndex, n int) {
	if n > maxInserted {
		slices.SortFunc(o, rankedIndex.compare)
		return
	}
	for i := range o {
		if n == 0 || i >= n && o[i].compare(o[n-1]) > 0 {
			continue
		}
		x, at := o[i], min(i, n)
		if at == n { // x replaces the last of the n best
			at--
			o[i] = o[at]
		}
		for ; at > 0 && x.compare(o[at-1]) < 0; at-- {
			o[at] = o[at-1]
		}
		o[at] = x
	}
}

func (a rankedIndex) compare(b rankedIndex) int {
	switch {
	case a.total > b.total:
		return -1
	case a.total < b.total:
		return 1
	}
	return a.index - b.index
}
