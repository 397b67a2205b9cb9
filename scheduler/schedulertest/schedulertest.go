// Package schedulertest runs a component's filters and weighers on random fleets and requests, which a seed determines. It
// checks every choice: no host gets more than fits, no request fails while a host could take it, and the component's own
// rules hold.
//
//	schedulertest.Run(t, schedulertest.Sim[*Spec, *Node]{
//		Scheduler: s,
//		Fleet:     func(r *rand.Rand) []*Node { ... },
//		Request:   func(r *rand.Rand) *Spec { ... },
//		Fits:      func(s *Spec, n *Node) error { ... }, // does not use the filters
//		Place:     func(s *Spec, n *Node) *Node { ... }, // returns n with s on it
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

// Sim is a simulation of a fleet whose requests come and go. Scheduler, Fleet, Request, Fits and Place are required.
type Sim[R any, H scheduler.Host] struct {
	Scheduler *scheduler.Scheduler[R, H]
	// Fleet returns the hosts, and Request the next request. They must use r as their only source of random numbers.
	Fleet   func(r *rand.Rand) []H
	Request func(r *rand.Rand) R
	// Fits returns an error that says why a host cannot take a request, or nil. It must not use the filters.
	Fits func(req R, h H) error
	// Place returns the host with the request on it, and Remove the host without it. They must not change h. If
	// Remove is nil, requests are only added.
	Place  func(req R, h H) H
	Remove func(req R, h H) H
	// Check, unless nil, is called after each step with all hosts and all placed requests. It checks the
	// component's own rules. An error of Check ends the simulation.
	Check func(hosts []H, placed []Placed[R]) error
	// Steps is the number of requests in one run. Default 500. Each step may also remove an earlier request.
	Steps int
	// Stale is the greatest age, in steps, of the state of the hosts in a decision. It simulates hosts that report
	// rarely, and other schedulers that place requests at the same time. The ranked hosts are tried in order on the
	// current state. If none fits, a new decision uses the current state. Default 0: decisions use the current state.
	Stale int
}

// Placed is a request with the name of its host.
type Placed[R any] struct {
	Request R
	Host    string
}

// Stats counts the events of a run.
type Stats struct {
	// Placed and Removed are the numbers of placed and removed requests.
	Placed, Removed int
	// NoValidHost is the number of requests that no host could take.
	NoValidHost int
	// NoRoom is the number of hosts that were chosen from an old state, and on which the request did not fit.
	NoRoom int
}

// Runs is the number of runs of [Run].
const Runs = 20

// Run runs the simulation with [Runs] seeds. At the first broken rule it fails the test. The message has the seed, and
// for a wrong choice also the decision. It logs the statistics: a simulation in which no request failed, or no request
// was placed, proves little.
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
		sum.NoValidHost += got.NoValidHost
		sum.NoRoom += got.NoRoom
	}
	t.Logf("seeds from %d: %d runs: %d placed, %d removed, %d without a valid host, %d did not fit on the chosen host", first, Runs, sum.Placed, sum.Removed, sum.NoValidHost, sum.NoRoom)
}

// Run runs the simulation once, in the caller's goroutine. The same seed gives the same run if the scheduler's own random
// numbers are the same. The error says which step failed, and why.
func (s Sim[R, H]) Run(ctx context.Context, seed uint64) (Stats, error) {
	r := rand.New(rand.NewPCG(seed, 0))
	w := world[R, H]{Sim: s, hosts: s.Fleet(r)}
	if s.Steps == 0 {
		w.Steps = 500
	}
	for step := range w.Steps {
		w.removeOne(r)
		if step%(s.Stale+1) == 0 {
			w.known = slices.Clone(w.hosts)
		}
		err := w.place(ctx, w.Request(r))
		if err == nil && s.Check != nil {
			err = s.Check(slices.Clone(w.hosts), slices.Clone(w.placed))
		}
		if err != nil {
			return w.stats, fmt.Errorf("step %d: %w", step, err)
		}
	}
	return w.stats, nil
}

// world is the state of a run.
type world[R any, H scheduler.Host] struct {
	Sim[R, H]

	hosts  []H // the hosts in their current state
	known  []H // the state that the scheduler knows
	placed []Placed[R]
	stats  Stats
}

// removeOne removes a random request, in about half of the steps.
func (w *world[R, H]) removeOne(r *rand.Rand) {
	if w.Remove == nil || len(w.placed) == 0 || r.IntN(2) == 0 {
		return
	}
	i := r.IntN(len(w.placed))
	p := w.placed[i]
	w.placed = slices.Delete(w.placed, i, i+1)
	at := w.indexOf(p.Host)
	w.hosts[at] = w.Remove(p.Request, w.hosts[at])
	w.stats.Removed++
}

// place places a request and checks the decision.
func (w *world[R, H]) place(ctx context.Context, req R) error {
	d, err := w.Scheduler.Rank(ctx, req, w.known)
	if w.Stale > 0 {
		if err == nil && w.placeOnFirst(req, d) {
			return nil
		}
		w.known = slices.Clone(w.hosts)
		d, err = w.Scheduler.Rank(ctx, req, w.known)
	}
	switch {
	case err == nil:
		h := d.Ranked[0].Host.Name()
		at := w.indexOf(h)
		if at < 0 {
			return fmt.Errorf("host %s was chosen, but is not in the fleet:\n%s", h, d)
		}
		if misfit := w.Fits(req, w.hosts[at]); misfit != nil {
			return fmt.Errorf("host %s was chosen for %+v, but does not fit: %w\n%s", h, req, misfit, d)
		}
		w.placeOn(req, at)
		return nil
	case !errors.Is(err, scheduler.ErrNoValidHost):
		return err
	}
	for _, h := range w.hosts {
		if w.Fits(req, h) == nil {
			return fmt.Errorf("no host was found for %+v, but %s fits:\n%s", req, h.Name(), d)
		}
	}
	w.stats.NoValidHost++
	return nil
}

// placeOnFirst places a request on the first ranked host that fits. It returns false if none does.
func (w *world[R, H]) placeOnFirst(req R, d *scheduler.Decision[H]) bool {
	for _, c := range d.Ranked {
		if at := w.indexOf(c.Host.Name()); at >= 0 && w.Fits(req, w.hosts[at]) == nil {
			w.placeOn(req, at)
			return true
		}
		w.stats.NoRoom++
	}
	return false
}

func (w *world[R, H]) indexOf(name string) int {
	return slices.IndexFunc(w.hosts, func(h H) bool { return h.Name() == name })
}

func (w *world[R, H]) placeOn(req R, at int) {
	w.hosts[at] = w.Place(req, w.hosts[at])
	w.placed = append(w.placed, Placed[R]{req, w.hosts[at].Name()})
	w.stats.Placed++
}
