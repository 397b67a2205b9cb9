// Package schedulertest simulates a component's filters and weighers on fleets and streams of requests that are made
// from a seed, and checks what must hold for every choice: no host gets more than it has room for, no request fails
// while a host could take it, and what else the component promises.
//
//	schedulertest.Run(t, schedulertest.Sim[*Spec, *Node]{
//		Scheduler: s,
//		Fleet:     func(r *rand.Rand) []*Node { ... },
//		Request:   func(r *rand.Rand) *Spec { ... },
//		Fits:      func(s *Spec, n *Node) error { ... }, // without the filters
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

// Sim is a simulation of a fleet whose requests come and go. Scheduler, Fleet, Request, Fits and Place are required.
type Sim[R any, H scheduler.Host] struct {
	Scheduler *scheduler.Scheduler[R, H]
	// Fleet returns the hosts, Request the next request. r is their only source of random numbers.
	Fleet   func(r *rand.Rand) []H
	Request func(r *rand.Rand) R
	// Fits returns why a host cannot take a request, or nil. It must not use the filters.
	Fits func(req R, h H) error
	// Place returns the host with the request on it, Remove the host without the request. They do not change h.
	// Without Remove requests are only added.
	Place  func(req R, h H) H
	Remove func(req R, h H) H
	// Check is called after each step with all hosts and all placed requests. Its error ends the simulation. Nil:
	// nothing more is checked.
	Check func(hosts []H, placed []Placed[R]) error
	// Steps is the number of requests in one run. Default 500. Each step may also remove an earlier request.
	Steps int
	// Stale is the age, in steps, that the state of hosts in a decision may have, as when hosts report now and then
	// and other schedulers place, too. The ranked hosts are then tried in order on the current state. If none fits,
	// the decision is made again from the current state. Default 0.
	Stale int
}

// Placed is a request with the name of its host.
type Placed[R any] struct {
	Request R
	Host    string
}

// Stats counts what happened in a run.
type Stats struct {
	Placed, Removed int
	// NoValidHost is the number of requests that no host could take.
	NoValidHost int
	// NoRoom is how often a host that was chosen from an old state had no room.
	NoRoom int
}

// Runs is the number of runs of [Run].
const Runs = 20

// Run runs the simulation with several seeds. It fails the test with the seed and the decision of the first run in
// which something does not hold. It logs the statistics: a simulation in which no request failed, or none was placed,
// proves little.
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
	t.Logf("seeds from %d: %d runs: %d placed, %d removed, %d without a valid host, %d had no room", first, Runs, sum.Placed, sum.Removed, sum.NoValidHost, sum.NoRoom)
}

// Run runs the simulation once. The same seed gives the same run if the scheduler's own random numbers are the same.
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

	hosts  []H // their current state
	known  []H // as the scheduler knows them
	placed []Placed[R]
	stats  Stats
}

// removeOne removes a random request, in about every other step.
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
			return fmt.Errorf("host %s was chosen and is not in the fleet:\n%s", h, d)
		}
		if why := w.Fits(req, w.hosts[at]); why != nil {
			return fmt.Errorf("host %s was chosen for %+v, and does not fit: %w\n%s", h, req, why, d)
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

// placeOnFirst places a request on the first of the ranked hosts that has room, if there is one.
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
