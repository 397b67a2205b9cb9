package scheduler

import (
	"context"
	"fmt"
	"slices"

	"github.com/armature-go/armature/fault"
)

// Batch is the result of [Scheduler.RankMany].
type Batch[H Host] struct {
	// Hosts are the chosen hosts, one for each request, each in its state before the request was placed on it. A
	// host on which several requests are placed appears several times.
	Hosts []H
	// Decision is the first decision if all requests are placed; its other ranked hosts can serve as alternates.
	// Otherwise it is the decision that found no host.
	Decision *Decision[H]
}

// RankMany chooses hosts for n equal requests. Each choice takes the earlier choices into account. RankMany is much faster
// than n calls of Rank, because one decision serves many choices. The function place returns the host h with one more
// request on it, under the same name, and must not change h. The function may change other data that prepared filters read, such as
// the members of a group.
//
// After each choice the chosen host is filtered and weighed again. All other hosts keep their raw scores; their scaled
// scores and totals follow the new lowest and highest raw scores. These hosts are filtered again only when they are about
// to be chosen. So the result can differ from that of n calls of Rank if the verdict on a host, or its raw score, depends
// on the choice of another host.
//
// If only some of the requests can be placed, the error is [ErrNoValidHost], and the batch has the hosts of these
// requests and the decision about the next one. With any other error the batch is nil. The error is Invalid if n is less
// than 1. RankMany blocks as [Scheduler.Rank] does, and is safe for concurrent use.
func (s *Scheduler[R, H]) RankMany(ctx context.Context, req R, hosts []H, n int, place func(h H) H) (*Batch[H], error) {
	if n < 1 {
		return nil, fault.New(fault.Invalid, "choose hosts for %d requests: want at least 1", n)
	}
	b := &Batch[H]{Hosts: make([]H, 0, n)}
	for {
		placed, d, err := s.fillFeasible(ctx, req, hosts, n, place, b)
		switch {
		case err != nil:
			return nil, err
		case b.Decision == nil:
			b.Decision = d
		}
		if len(b.Hosts) == n {
			return b, nil
		}
		if d.Feasible == 0 {
			b.Decision = d
			return b, fmt.Errorf("%w for %d of %d requests: %s", ErrNoValidHost, n-len(b.Hosts), n, d.Summary())
		}
		// No host of this decision is feasible any more. Decide again with the new states: if no host is feasible then, the
		// decision has the reasons.
		current := make([]H, len(hosts))
		for i, h := range hosts {
			current[i] = h
			if p, ok := placed[h.Name()]; ok {
				current[i] = p
			}
		}
		hosts = current
	}
}

// fillFeasible makes one decision, and places requests on its feasible hosts until b has n hosts, or no host is feasible
// any more. It returns the chosen hosts by name, in their new state.
func (s *Scheduler[R, H]) fillFeasible(ctx context.Context, req R, hosts []H, n int, place func(H) H, b *Batch[H]) (map[string]H, *Decision[H], error) {
	r := s.rankings.Get().(*ranking[R, H])
	defer r.release()
	d, err := r.decide(ctx, req, hosts)
	if err != nil {
		return nil, nil, err
	}
	placed := map[string]H{}
	for first := true; len(r.feasible) > 0 && len(b.Hosts) < n; first = false {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		var i int
		if first {
			i = r.order[0].index // the decision's choice
		} else if i = s.pick(r.scores.totals); !r.isFeasible(r.feasible[i]) { // place may have changed data that filters read
			r.removeFeasible(i)
			continue
		}
		h := r.feasible[i]
		b.Hosts = append(b.Hosts, h)
		h = place(h)
		placed[h.Name()] = h
		r.replaceFeasible(i, h)
	}
	return placed, d, nil
}

// isFeasible runs the filters again for a host, and reports whether all accept it.
func (r *ranking[R, H]) isFeasible(h H) bool {
	for _, f := range r.filters {
		var v Verdict
		if f.plain != nil {
			v = f.plain(r.req, h)
		} else {
			v = f.judge(h)
		}
		if v.format != "" {
			return false
		}
	}
	return true
}

// removeFeasible removes the i-th feasible host.
func (r *ranking[R, H]) removeFeasible(i int) {
	r.feasible = slices.Delete(r.feasible, i, i+1)
	r.scores.removeRow(i)
}

// replaceFeasible replaces the i-th feasible host with h. It removes the host instead if a filter rejects h, or a raw score
// of h is not finite.
func (r *ranking[R, H]) replaceFeasible(i int, h H) {
	if !r.isFeasible(h) {
		r.removeFeasible(i)
		return
	}
	r.newRaw = resizeSlice(r.newRaw, len(r.weighers))
	for j, weigh := range r.weighers {
		r.newRaw[j] = 0
		if weigh != nil {
			r.newRaw[j] = weigh(h)
		}
		if !isFinite(r.newRaw[j]) {
			r.removeFeasible(i)
			return
		}
	}
	r.feasible[i] = h
	r.scores.replaceRow(i, r.newRaw)
}
