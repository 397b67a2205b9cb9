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
	// host that takes several requests appears several times.
	Hosts []H
	// Decision is the first decision, for alternates, or the decision that found no host.
	Decision *Decision[H]
}

// RankMany chooses hosts for n equal requests. Each choice takes the earlier choices into account. The result is like
// that of n decisions one after the other, at a fraction of the cost. place returns the host h with one more request on
// it, under the same name, and must not change h. place may change other data that prepared filters read, such as the
// members of a group. A chosen host is filtered and weighed again; all other hosts keep their scores.
//
// If only some of the requests can be placed, the error is [ErrNoValidHost], and the batch has the hosts of these
// requests and the decision about the next one. With any other error the batch is nil. Invalid: n is less than 1.
// RankMany blocks as [Scheduler.Rank] does, and is safe for concurrent use.
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
		// If no host is left, the next decision has the reasons.
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

// fillFeasible makes one decision, and places requests on its feasible hosts until n are placed in all, or no host is
// feasible any more. It returns the chosen hosts by name, in their new state.
func (s *Scheduler[R, H]) fillFeasible(ctx context.Context, req R, hosts []H, n int, place func(H) H, b *Batch[H]) (map[string]H, *Decision[H], error) {
	r := s.rankings.Get().(*ranking[R, H])
	defer r.release()
	if err := r.start(ctx, req, hosts); err != nil {
		return nil, nil, err
	}
	d := r.decide()
	placed := map[string]H{}
	for first := true; len(r.feasible) > 0 && len(b.Hosts) < n; first = false {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		var i int
		if first {
			i = r.order[0].index // the decision's choice
		} else if i = s.pick(r.scores.totals); !r.isFeasible(r.feasible[i]) { // place may have changed what filters read
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

// isFeasible runs the filters again for a host.
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

// removeFeasible removes a host from the feasible ones.
func (r *ranking[R, H]) removeFeasible(i int) {
	r.feasible = slices.Delete(r.feasible, i, i+1)
	r.scores.removeRow(i)
}

// replaceFeasible replaces the i-th feasible host with h, or removes it if h is not feasible.
func (r *ranking[R, H]) replaceFeasible(i int, h H) {
	if !r.isFeasible(h) {
		r.removeFeasible(i)
		return
	}
	r.newRaw = resized(r.newRaw, len(r.weighers))
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
