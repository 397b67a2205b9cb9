package scheduler

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/armature-go/armature/fault"
)

// Batch is what [Scheduler.RankMany] chose.
type Batch[H Host] struct {
	// Hosts are the choices, each as it was before it was chosen. One that has
	// room for several stands there several times.
	Hosts []H
	// Decision is the first one, with which alternates can be found, or the one
	// that found no host.
	Decision *Decision[H]
}

// RankMany chooses hosts for n requests that are all alike, each with the
// earlier choices taken into account, as n decisions would but far cheaper.
// place returns what the chosen host has become by one more request on it, of
// the same name, and leaves h as it is; it may change what else the functions
// look at that filters have prepared, such as the members of a group. Of the
// filters those that are [Once] do not judge a host again, and a weigher weighs
// only the chosen one anew.
//
// If not all can be placed the error is [ErrNoValidHost], with the hosts of
// those that can, and the decision on the next one. With any other error the
// batch is nil. An n below 1 is Invalid. It blocks and may be called as
// [Scheduler.Rank].
func (s *Scheduler[R, H]) RankMany(ctx context.Context, req R, hosts []H, n int, place func(h H) H) (*Batch[H], error) {
	if n < 1 {
		return nil, fault.New(fault.Invalid, "choose hosts for %d requests", n)
	}
	b := &Batch[H]{Hosts: make([]H, 0, n)}
	for {
		placed, d, err := s.fill(ctx, req, hosts, n, place, b)
		switch {
		case err != nil:
			return nil, err
		case b.Decision == nil:
			b.Decision = d
		}
		if len(b.Hosts) == n {
			return b, nil
		}
		if d.Passed == 0 {
			b.Decision = d
			return b, fmt.Errorf("%w for %d of %d requests: %s", ErrNoValidHost, n-len(b.Hosts), n, d.Summary())
		}
		// With Config.Enough there may be more. If not, this says why.
		now := make([]H, len(hosts))
		for i, h := range hosts {
			now[i] = h
			if p, ok := placed[h.Name()]; ok {
				now[i] = p
			}
		}
		hosts = now
	}
}

// fill decides once and places as many requests as the hosts that passed take.
// It returns those that were chosen, as they have become.
func (s *Scheduler[R, H]) fill(ctx context.Context, req R, hosts []H, n int, place func(H) H, b *Batch[H]) (map[string]H, *Decision[H], error) {
	r := s.runs.Get().(*run[R, H])
	defer r.end()
	if err := r.begin(ctx, req, hosts); err != nil {
		return nil, nil, err
	}
	d := r.decision(s.cfg.Keep)
	placed := map[string]H{}
	for first := true; len(r.left) > 0 && len(b.Hosts) < n; first = false {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		var i int
		if first {
			i = r.order[0].at // the decision's choice
		} else if i = s.pick(r.totals); !r.passes(r.left[i]) {
			r.remove(i)
			continue
		}
		h := r.left[i]
		b.Hosts = append(b.Hosts, h)
		h = place(h)
		placed[h.Name()] = h
		r.replace(i, h)
	}
	return placed, d, nil
}

// passes asks the filters once more.
func (r *run[R, H]) passes(h H) bool {
	for i, j := range r.judges {
		if r.s.once[r.filters[i]] {
			continue
		}
		var v Verdict
		if j.plain != nil {
			v = j.plain(r.req, h)
		} else {
			v = j.f(h)
		}
		if v.format != "" {
			return false
		}
	}
	return true
}

// remove takes the host at i out.
func (r *run[R, H]) remove(i int) {
	n := len(r.left)
	dirty := false
	for j := range r.weights {
		at := j * r.stride
		old := r.raw[at+i]
		for _, c := range [][]float64{r.raw, r.scaled, r.mult} {
			copy(c[at+i:at+n-1], c[at+i+1:at+n])
		}
		dirty = r.respan(j, n-1, old) || dirty
	}
	r.left = slices.Delete(r.left, i, i+1)
	r.totals = slices.Delete(r.totals, i, i+1)
	if dirty {
		r.sum()
	}
}

// replace puts h, as it has become, in the place of the host at i, or takes it
// out if the filters turn it away now.
func (r *run[R, H]) replace(i int, h H) {
	if !r.passes(h) {
		r.remove(i)
		return
	}
	dirty := false
	for j, weight := range r.weights {
		at, w := j*r.stride+i, &r.s.cfg.Weighers[j]
		old, x := r.raw[at], 0.0
		if weight != nil {
			x = weight(h)
		}
		if !(math.Abs(x) <= math.MaxFloat64) {
			r.remove(i)
			return
		}
		r.raw[at], r.mult[at] = x, w.multiplier(h)
		if r.respan(j, len(r.left), old, x) {
			dirty = true
		} else {
			r.scaleAt(j, i)
		}
	}
	r.left[i] = h
	if dirty {
		r.sum()
		return
	}
	r.totals[i] = 0
	for j := range r.weights {
		at := j*r.stride + i
		r.totals[i] += r.mult[at] * r.scaled[at]
	}
}

// respan scales the weights of weigher j, of n hosts, anew if those that came and
// went have changed the span, and reports whether they have.
func (r *run[R, H]) respan(j, n int, changed ...float64) bool {
	sp := r.spans[j]
	if r.s.cfg.Unscaled || !slices.ContainsFunc(changed, func(x float64) bool { return x <= sp.low || x >= sp.high }) {
		return false
	}
	if r.spans[j] = r.span(j, n); r.spans[j] == sp {
		return false
	}
	r.scale(j, n)
	return true
}
