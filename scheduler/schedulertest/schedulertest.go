// Package schedulertest tries a component's own filters and weighers out on
// fleets and streams of requests that are made from a seed, and checks what must
// hold whatever they choose: no host takes more than it has, no request is
// turned away while a host could take it, and what else the component promises.
//
//	schedulertest.Run(t, schedulertest.Sim[*Spec, *Node]{
//		Scheduler: s,
//		Fleet:     func(r *rand.Rand) []*Node { ... },
//		Request:   func(r *rand.Rand) *Spec { ... },
//		Fits:      func(s *Spec, n *Node) error { ... }, // the truth, without the filters
//		Place:     func(s *Spec, n *Node) *Node { ... }, // n with s on it
//	})
package schedulertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/armature-go/armature/scheduler"
)

// Sim is a simulation of a fleet whose requests come and go. Scheduler, Fleet,
// Request, Fits and Place are required.
type Sim[R any, H scheduler.Host] struct {
	Scheduler *scheduler.Scheduler[R, H]
	// Fleet makes the hosts, Request the next request. They use no other source
	// of chance than r.
	Fleet   func(r *rand.Rand) []H
	Request func(r *rand.Rand) R
	// Fits says why a host cannot take a request, or nil: what is true of the
	// resources, found out in another way than by the filters.
	Fits func(req R, h H) error
	// Place returns what a host becomes with a request on it, Remove without it
	// again; h itself stays as it is. Without Remove requests only come.
	Place  func(req R, h H) H
	Remove func(req R, h H) H
	// Check is asked after each step, with what is on which host; the error ends
	// the simulation. Nil: there is nothing more to promise.
	Check func(hosts []H, placed []Placed[R]) error
	// Steps is how many requests come in one run. Default 500. Each step may end
	// one that came before.
	Steps int
	// Stale is how many steps old the picture is that a decision is made from, at
	// most, as when hosts report now and then and others place, too. The choice
	// is then tried on the hosts as they are, the next best if it does not fit,
	// and if none does it is made anew from how they are. Default 0.
	Stale int
}

// Placed is a request and the name of its host.
type Placed[R any] struct {
	Request R
	Host    string
}

// Stats is what happened in a run.
type Stats struct {
	Placed, Removed, TurnedAway int
	// Refused is how often a host that was chosen from an old picture had no room.
	Refused int
}

// Runs is how many runs [Run] makes.
const Runs = 20

// Run runs the simulation from several seeds and fails the test with the seed
// and the decision of the first run that breaks a promise. It logs what happened;
// a simulation in which nothing was turned away, or nothing placed, proves
// little.
func Run[R any, H scheduler.Host](t *testing.T, s Sim[R, H]) {
	t.Helper()
	first := rand.Uint64()
	var sum Stats
	for i := range uint64(Runs) {
		got, err := s.Run(t.Context(), first+i)
		if err != nil {
			t.Fatalf("seed %d: %v", first+i, err)
		}
		sum.Placed += got.Placed
		sum.Removed += got.Removed
		sum.TurnedAway += got.TurnedAway
		sum.Refused += got.Refused
	}
	t.Logf("seeds from %d: %d runs: %d placed, %d removed, %d turned away, %d refused", first, Runs, sum.Placed, sum.Removed, sum.TurnedAway, sum.Refused)
}

// Run runs the simulation once. The same seed gives the same run, if the
// scheduler's own source of chance allows that.
func (s Sim[R, H]) Run(ctx context.Context, seed uint64) (Stats, error) {
	r := rand.New(rand.NewPCG(seed, 0))
	w := world[R, H]{Sim: s, hosts: s.Fleet(r)}
	if s.Steps == 0 {
		w.Steps = 500
	}
	for step := range w.Steps {
		w.end(r)
		if step%(s.Stale+1) == 0 {
			w.seen = slices.Clone(w.hosts)
		}
		err := w.step(ctx, w.Request(r))
		if err == nil && s.Check != nil {
			err = s.Check(slices.Clone(w.hosts), slices.Clone(w.placed))
		}
		if err != nil {
			return w.stats, fmt.Errorf("step %d: %w", step, err)
		}
	}
	return w.stats, nil
}

// world is a run.
type world[R any, H scheduler.Host] struct {
	Sim[R, H]

	hosts  []H // as they are
	seen   []H // as the scheduler sees them
	placed []Placed[R]
	stats  Stats
}

// end ends a request that came before, in every other step.
func (w *world[R, H]) end(r *rand.Rand) {
	if w.Remove == nil || len(w.placed) == 0 || r.IntN(2) == 0 {
		return
	}
	i := r.IntN(len(w.placed))
	p := w.placed[i]
	w.placed = slices.Delete(w.placed, i, i+1)
	at := w.find(p.Host)
	w.hosts[at] = w.Remove(p.Request, w.hosts[at])
	w.stats.Removed++
}

func (w *world[R, H]) step(ctx context.Context, req R) error {
	d, err := w.Scheduler.Rank(ctx, req, w.seen)
	if w.Stale > 0 {
		if err == nil && w.first(req, d) {
			return nil
		}
		w.seen = slices.Clone(w.hosts) // from here on it is as with a picture that is true
		d, err = w.Scheduler.Rank(ctx, req, w.seen)
	}
	switch {
	case err == nil:
		h := d.Ranked[0].Host.Name()
		at := w.find(h)
		if at < 0 {
			return fmt.Errorf("host %s was chosen, which is none of the fleet:\n%s", h, d)
		}
		if why := w.Fits(req, w.hosts[at]); why != nil {
			return fmt.Errorf("host %s was chosen for %+v, and does not fit: %w\n%s", h, req, why, d)
		}
		w.put(req, at)
		return nil
	case !errors.Is(err, scheduler.ErrNoValidHost):
		return err
	}
	for _, h := range w.hosts {
		if w.Fits(req, h) == nil {
			return fmt.Errorf("no host was found for %+v, but %s fits:\n%s", req, h.Name(), d)
		}
	}
	w.stats.TurnedAway++
	return nil
}

// first places a request on the first of the ranked hosts that it fits on.
func (w *world[R, H]) first(req R, d *scheduler.Decision[H]) bool {
	for _, c := range d.Ranked {
		if at := w.find(c.Host.Name()); at >= 0 && w.Fits(req, w.hosts[at]) == nil {
			w.put(req, at)
			return true
		}
		w.stats.Refused++
	}
	return false
}

func (w *world[R, H]) find(name string) int {
	return slices.IndexFunc(w.hosts, func(h H) bool { return h.Name() == name })
}

func (w *world[R, H]) put(req R, at int) {
	w.hosts[at] = w.Place(req, w.hosts[at])
	w.placed = append(w.placed, Placed[R]{req, w.hosts[at].Name()})
	w.stats.Placed++
}
