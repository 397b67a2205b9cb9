package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
)

// Guests tells the conductor when the power states of the guests on the host differ from what the database has, because a guest has stopped by itself, or an operator has changed a guest without
// nova-mini. It learns of changes from the events of a driver with compute.CapEvents, and it asks the driver for all guests: at the start, whenever a stream of events begins, and periodically. It
// implements service.Part. The state always comes from the driver, and never from an event, because an event may be late.
type Guests struct {
	s      *Service
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{} // has a value after changed or due have changed

	mu      sync.Mutex
	known   map[string]compute.PowerState // the power states that the conductor has, as far as this process knows
	changed map[string]bool               // the guests that may have changed
	due     bool                          // all guests are to be read
}

// newGuests returns the part of a service.
func newGuests(s *Service) *Guests {
	return &Guests{s: s, wake: make(chan struct{}, 1), known: map[string]compute.PowerState{}, changed: map[string]bool{}}
}

// Guests returns the part that watches the guests of the host. Start it after the service.
func (s *Service) Guests() *Guests { return s.guests }

// Start implements service.Part. The work continues when ctx has ended.
func (g *Guests) Start(ctx context.Context) error {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	g.cancel = cancel
	g.readAll()
	g.wg.Go(func() { g.listen(life) })
	g.wg.Go(func() { g.reportLoop(life) })
	return nil
}

// Stop implements service.Part. It waits until the work has ended. If ctx ends first, as with a driver that does not return, Stop returns the error of ctx.
func (g *Guests) Stop(ctx context.Context) error {
	if g.cancel == nil {
		return nil
	}
	g.cancel()
	done := make(chan struct{})
	go func() {
		g.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// The delays after which a stream of events is opened again, and after which a report is repeated.
const (
	minStreamDelay, maxStreamDelay = 100 * time.Millisecond, 30 * time.Second
	minReportDelay, maxReportDelay = 500 * time.Millisecond, time.Minute
)

// errNoEvents means that the driver has no events.
var errNoEvents = errors.New("the driver has no events")

// listen reads the driver's events until ctx ends.
func (g *Guests) listen(ctx context.Context) {
	delay := backoff.Backoff{Min: minStreamDelay, Max: maxStreamDelay}
	for {
		err := g.listenOnce(ctx, &delay)
		wait := delay.Next()
		if ctx.Err() == nil && !errors.Is(err, errNoEvents) {
			g.s.cfg.Logger.InfoContext(ctx, "events of the driver ended, listening again", "error", err, "delay", wait)
		}
		if !backoff.Sleep(ctx, wait) {
			return
		}
	}
}

// listenOnce reads one stream of events. It resets the delay when the stream has begun. Errors: errNoEvents, because the next driver may have events; those of the driver.
func (g *Guests) listenOnce(ctx context.Context, delay *backoff.Backoff) error {
	d := g.s.cfg.Driver()
	limited, cancel := context.WithTimeout(ctx, inspectTimeout)
	info, err := d.Info(limited)
	cancel()
	switch {
	case err != nil:
		return err
	case !info.Has(compute.CapEvents):
		return errNoEvents
	}
	return d.Events(ctx, func(e compute.Event) error {
		switch e.Type {
		case compute.EventBegan: // events before are lost
			delay.Reset()
			g.readAll()
		case compute.EventDestroyed: // nova-mini has done so, or the next comparison finds it
		default:
			g.mark(e.ServerID)
		}
		return nil
	})
}

// readAll makes reportLoop compare all guests, unless this is disabled.
func (g *Guests) readAll() {
	if g.s.cfg.GuestInterval < 0 {
		return
	}
	g.mu.Lock()
	g.due = true
	g.mu.Unlock()
	g.notify()
}

// mark makes reportLoop look at guests.
func (g *Guests) mark(ids ...string) {
	g.mu.Lock()
	for _, id := range ids {
		g.changed[id] = true
	}
	g.mu.Unlock()
	g.notify()
}

func (g *Guests) notify() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// take returns what is to be compared, and forgets it. A guest with a running job stays marked until the end of the job.
func (g *Guests) take() (ids []string, all bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for id := range g.changed {
		if g.s.jobOn(id) == nil {
			ids = append(ids, id)
			delete(g.changed, id)
		}
	}
	all, g.due = g.due, false
	return ids, all
}

// reportLoop compares guests when they may have changed, and all guests periodically, until ctx ends.
func (g *Guests) reportLoop(ctx context.Context) {
	period := time.NewTicker(g.s.cfg.GuestInterval.Abs()) // without an effect if the interval is negative, see readAll
	defer period.Stop()
	again := time.NewTimer(maxReportDelay) // repeats what has failed
	defer again.Stop()
	delay := backoff.Backoff{Min: minReportDelay, Max: maxReportDelay}
	for {
		select {
		case <-ctx.Done():
			return
		case <-period.C:
			g.readAll()
			continue
		case <-again.C:
		case <-g.wake:
		}
		ids, all := g.take()
		later, err := g.compare(ctx, ids, all)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errNotYet):
			g.s.cfg.Logger.DebugContext(ctx, "power states of guests not reported, will be repeated", "error", err)
		case err != nil:
			g.s.cfg.Logger.WarnContext(ctx, "power states of guests not reported, will be repeated", "error", err)
		case len(later) == 0:
			delay.Reset()
			continue
		}
		if err != nil {
			later = append(later, ids...)
		}
		g.mu.Lock()
		for _, id := range later {
			g.changed[id] = true
		}
		g.due = g.due || all && err != nil
		g.mu.Unlock()
		again.Reset(delay.Next())
	}
}

// errNotYet means that guests cannot be compared now.
var errNotYet = errors.New("not yet")

// compare reports those guests that differ from what the conductor has. The parameter ids are guests that may have changed; with all, all guests are compared. The result later has guests that
// must be compared again, for example because their servers have tasks.
func (g *Guests) compare(ctx context.Context, ids []string, all bool) (later []string, err error) {
	if len(ids) == 0 && !all {
		return nil, nil
	}
	if err := g.s.Check(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotYet, err)
	}
	if !g.s.cfg.Client.Allows(compute.Conductor, compute.ReportPower.Since) {
		return nil, fmt.Errorf("%w: a conductor of the previous release does not store power states", errNotYet)
	}
	var asked []compute.GuestPower
	if all {
		asked, err = g.listAll(ctx)
	} else {
		asked, later = g.readChanged(ctx, ids)
	}
	if err != nil || len(asked) == 0 && !all {
		return later, err
	}
	reply, err := g.report(ctx, asked, all)
	if err != nil {
		return nil, err
	}
	later = append(later, reply.Later...)
	var differ []compute.GuestPower
	for _, v := range reply.Differ {
		is, err := g.read(ctx, v.ServerID)
		if err != nil || g.s.jobOn(v.ServerID) != nil { // a job may be changing the guest
			later = append(later, v.ServerID)
			continue
		}
		differ = append(differ, compute.GuestPower{ServerID: v.ServerID, Power: is, Version: v.Version})
	}
	if len(differ) > 0 {
		if reply, err = g.report(ctx, differ, false); err != nil {
			return nil, err
		}
		later = append(later, reply.Later...)
	}
	return later, nil
}

// report reports power states to a conductor, and notes what the conductor then has.
func (g *Guests) report(ctx context.Context, list []compute.GuestPower, all bool) (*compute.PowerReply, error) {
	reply, err := askConductor(ctx, g.s, compute.ReportPower, &compute.PowerReport{Host: g.s.cfg.Host, Instance: g.s.instance, Guests: list, All: all})
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, is := range list {
		g.known[is.ServerID] = is.Power
	}
	for _, v := range reply.Differ {
		delete(g.known, v.ServerID)
	}
	for _, id := range reply.Later {
		delete(g.known, id)
	}
	return reply, nil
}

// listAll returns the power states of all guests.
func (g *Guests) listAll(ctx context.Context) ([]compute.GuestPower, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	list, err := g.s.cfg.Driver().List(ctx)
	out := make([]compute.GuestPower, len(list))
	present := make(map[string]bool, len(list))
	for i, is := range list {
		out[i], present[is.ID] = compute.GuestPower{ServerID: is.ID, Power: is.Power}, true
	}
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for id := range g.known {
		if !present[id] {
			delete(g.known, id)
		}
	}
	return out, nil
}

// readChanged returns the power states of those guests whose power state is not what the conductor has. The result later has guests of which the driver does not tell the state.
func (g *Guests) readChanged(ctx context.Context, ids []string) (out []compute.GuestPower, later []string) {
	for _, id := range ids {
		is, err := g.read(ctx, id)
		g.mu.Lock()
		known, ok := g.known[id]
		g.mu.Unlock()
		if err != nil {
			later = append(later, id)
		} else if is != compute.NoState && (!ok || is != known) {
			out = append(out, compute.GuestPower{ServerID: id, Power: is})
		}
	}
	return out, later
}

// read returns the power state of a guest: NoState if the host does not have the guest.
func (g *Guests) read(ctx context.Context, id string) (compute.PowerState, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	is, err := g.s.cfg.Driver().Get(ctx, id)
	if errors.Is(err, fault.NotFound) {
		return compute.NoState, nil
	}
	return is.Power, err
}

// acted notes the power state that a conductor has stored at the end of a step. A conductor of the previous release stores none.
func (g *Guests) acted(id string, is compute.PowerState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.s.cfg.Client.Allows(compute.Conductor, compute.ReportPower.Since) {
		g.known[id] = is
	} else {
		delete(g.known, id)
	}
}

// removed forgets a guest that nova-mini has destroyed.
func (g *Guests) removed(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.known, id)
	delete(g.changed, id)
}

// jobEnded makes reportLoop look at a guest that has changed during a job on its server.
func (g *Guests) jobEnded(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.changed[id] {
		g.notify()
	}
}
