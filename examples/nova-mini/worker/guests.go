package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
)

// Guests tells the conductor when the power states of the guests on the host differ from what the database has, because a guest has stopped by itself, or an operator has changed a guest without
// nova-mini. It learns of changes from the events of a driver with compute.CapEvents, and it asks the driver for all guests: at the start, whenever a stream of events begins, and periodically. It
// implements service.Part. The state always comes from the driver, and never from an event, because an event may be late.
type Guests struct {
	s        *Service
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	wakeLoop chan struct{} // has a value after changed or due have changed

	mu      sync.Mutex
	known   map[string]compute.PowerState // the power states that the conductor has, as far as this process knows
	changed map[string]bool               // the guests that may have changed
	due     bool                          // all guests are to be read
	held    map[string]*hold
}

// hold delays the reports about a guest that differed before. Otherwise a guest that runs on after each stop would be stopped in a loop.
type hold struct {
	delay backoff.Backoff
	since time.Time // when the guest differed
	until time.Time
}

// over reports whether a guest has not differed for so long that the next difference is new.
func (h *hold) over(now time.Time) bool { return now.Sub(h.since) > 2*maxReportDelay }

// newGuests returns the part of a service.
func newGuests(s *Service) *Guests {
	return &Guests{s: s, wakeLoop: make(chan struct{}, 1), known: map[string]compute.PowerState{}, changed: map[string]bool{}, held: map[string]*hold{}}
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
		began := time.Now()
		err := g.listenOnce(ctx)
		if time.Since(began) > maxStreamDelay { // not after EventBegan, because the stream may end at once
			delay.Reset()
		}
		wait := delay.Next()
		if ctx.Err() == nil && !errors.Is(err, errNoEvents) {
			g.s.cfg.Logger.InfoContext(ctx, "events of the driver ended, listening again", "error", err, "delay", wait)
		}
		if !backoff.Sleep(ctx, wait) {
			return
		}
	}
}

// listenOnce reads one stream of events. Errors: errNoEvents, because the next driver may have events; those of the driver.
func (g *Guests) listenOnce(ctx context.Context) error {
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
	case g.wakeLoop <- struct{}{}:
	default:
	}
}

// takeChanged returns what is to be compared, and forgets it. A guest with a running job stays marked until the end of the job, and one that is held until the end of its hold. The result next is the time
// until the first hold ends, or 0.
func (g *Guests) takeChanged() (ids []string, all bool, next time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, h := range g.held {
		if h.over(time.Now()) {
			delete(g.held, id)
		}
	}
	for id := range g.changed {
		left := g.holdLocked(id)
		switch {
		case left > 0 && (next == 0 || left < next):
			next = left
		case left <= 0 && g.s.jobOn(id) == nil:
			ids = append(ids, id)
			delete(g.changed, id)
		}
	}
	all, g.due = g.due, false
	return ids, all, next
}

// holdLocked returns how long a guest is still held.
func (g *Guests) holdLocked(id string) time.Duration {
	if h := g.held[id]; h != nil {
		return time.Until(h.until)
	}
	return 0
}

// isHeld reports whether a guest is held.
func (g *Guests) isHeld(id string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.holdLocked(id) > 0
}

// holdAll holds guests that differ, each time for longer.
func (g *Guests) holdAll(differ []compute.GuestPower) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, is := range differ {
		h := g.held[is.ServerID]
		if h == nil || h.over(time.Now()) {
			h = &hold{delay: backoff.Backoff{Min: minReportDelay, Max: maxReportDelay}}
			g.held[is.ServerID] = h
		}
		h.since = time.Now()
		h.until = h.since.Add(h.delay.Next())
	}
}

// reportLoop compares guests when they may have changed, and all guests periodically, until ctx ends.
func (g *Guests) reportLoop(ctx context.Context) {
	period := time.NewTicker(g.s.cfg.GuestInterval.Abs()) // without an effect if the interval is negative, see readAll
	defer period.Stop()
	retryTimer := time.NewTimer(maxReportDelay) // repeats what has failed
	defer retryTimer.Stop()
	delay := backoff.Backoff{Min: minReportDelay, Max: maxReportDelay}
	for {
		select {
		case <-ctx.Done():
			return
		case <-period.C:
			g.readAll()
			continue
		case <-retryTimer.C:
		case <-g.wakeLoop:
		}
		ids, all, next := g.takeChanged()
		later, err := g.compare(ctx, ids, all)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errNotYet):
			g.s.cfg.Logger.DebugContext(ctx, "power states of guests not reported, will be repeated", "error", err)
		case err != nil:
			g.s.cfg.Logger.WarnContext(ctx, "power states of guests not reported, will be repeated", "error", err)
		case len(later) == 0:
			if delay.Reset(); next > 0 {
				retryTimer.Reset(next)
			}
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
		retryTimer.Reset(delay.Next()) // not later than next: the hold of a guest is as long as this delay
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
	more, err := g.reportDiffering(ctx, reply.Differ)
	return append(later, more...), err
}

// reportDiffering reads the guests that differ again, and reports them. The result later is that of compare.
func (g *Guests) reportDiffering(ctx context.Context, list []compute.GuestVersion) (later []string, err error) {
	versions, ids := map[string]string{}, []string{}
	for _, v := range list {
		if g.isHeld(v.ServerID) {
			g.mark(v.ServerID)
			continue
		}
		versions[v.ServerID] = v.Version
		ids = append(ids, v.ServerID)
	}
	var differ []compute.GuestPower
	for id, is := range g.readEach(ctx, ids) {
		if is.err != nil || g.s.jobOn(id) != nil { // a job may be changing the guest
			later = append(later, id)
			continue
		}
		differ = append(differ, compute.GuestPower{ServerID: id, Power: is.power, Version: versions[id]})
	}
	if len(differ) == 0 {
		return later, nil
	}
	g.holdAll(differ)
	reply, err := g.report(ctx, differ, false)
	if err != nil {
		return nil, err
	}
	return append(later, reply.Later...), nil
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

// readChanged returns the power states of those guests whose power state is not what the conductor has. The result later has guests of which the driver does not tell the state. If the compute service
// itself may have changed a guest during the read, the guest is marked again.
func (g *Guests) readChanged(ctx context.Context, ids []string) (out []compute.GuestPower, later []string) {
	before := make(map[string]compute.PowerState, len(ids))
	g.mu.Lock()
	for _, id := range ids {
		if is, ok := g.known[id]; ok {
			before[id] = is
		}
	}
	g.mu.Unlock()
	for id, is := range g.readEach(ctx, ids) {
		busy := g.s.jobOn(id) != nil // before known, because a job changes known before its end
		g.mu.Lock()
		known, ok := g.known[id]
		g.mu.Unlock()
		was, had := before[id]
		switch {
		case is.err != nil:
			later = append(later, id)
		case is.power == compute.NoState || ok && is.power == known:
		case busy || ok != had || known != was:
			g.mark(id)
		default:
			out = append(out, compute.GuestPower{ServerID: id, Power: is.power})
		}
	}
	return out, later
}

// maxReads is the number of guests whose states are read at the same time, so that a guest of which the driver does not tell the state does not delay the others one after another.
const maxReads = 16

// readResult is a power state, or the error of the driver.
type readResult struct {
	power compute.PowerState
	err   error
}

// readEach reads the power states of guests.
func (g *Guests) readEach(ctx context.Context, ids []string) map[string]readResult {
	var mu sync.Mutex
	out := make(map[string]readResult, len(ids))
	var reads errgroup.Group
	reads.SetLimit(maxReads)
	for _, id := range ids {
		reads.Go(func() error {
			power, err := g.read(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			out[id] = readResult{power, err}
			return nil
		})
	}
	_ = reads.Wait() // no function returns an error
	return out
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
