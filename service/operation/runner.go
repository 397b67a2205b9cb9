package operation

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/internal/outage"
)

// RunnerConfig configures a [Runner]. Store and Host are required.
type RunnerConfig struct {
	Store *Store
	// Host is this process's name, which stands in operations and events.
	Host string
	// Lease is how long a process that runs an operation may be silent before another
	// one goes on with it. It renews it three times as often. Default 15 s.
	Lease time.Duration
	// Poll is how often operations are looked for that nobody was woken for. Default
	// 1 s.
	Poll time.Duration
	// MaxInFlight is how many operations run at once. For those of a priority above 0
	// there is room for a quarter more. Default 64.
	MaxInFlight int
	// Inflight notes each operation while it runs, unless it is nil.
	Inflight *service.Inflight
	// Hook is called, unless it is nil, before and after everything that the runner
	// writes, with a name for the place and the step. It is for tests that kill the
	// process there.
	Hook   func(place, step string)
	Logger *slog.Logger
}

// Runner runs operations. It is a part of package service, and safe for concurrent use.
// Any number of processes may have one on the same tables.
type Runner struct {
	cfg   RunnerConfig
	kinds map[string]*kind
	names []string
	wake  chan string

	mu      sync.Mutex
	running map[string]*place
	perKind map[string]int
	clock   clock
	ending  bool // no more is begun, also no more steps

	notUndone atomic.Uint64

	cancel context.CancelFunc
	done   chan struct{}
	wg     sync.WaitGroup
}

// place is one of those that operations run in.
type place struct {
	stop  context.CancelFunc
	woken bool // while it ran
}

// kind is a Kind with its steps.
type kind struct {
	name     string
	priority int
	max      int
	steps    []step
}

// NewRunner returns a runner that knows no kind yet. It starts nothing.
func NewRunner(cfg RunnerConfig) *Runner {
	cfg.Lease = cmp.Or(cfg.Lease, 15*time.Second)
	cfg.Poll = cmp.Or(cfg.Poll, time.Second)
	cfg.MaxInFlight = cmp.Or(cfg.MaxInFlight, 64)
	if cfg.Hook == nil {
		cfg.Hook = func(string, string) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Runner{
		cfg: cfg, kinds: map[string]*kind{}, wake: make(chan string, 256), running: map[string]*place{},
		perKind: map[string]int{}, done: make(chan struct{}),
	}
}

// Handle says what the steps of a kind are. It must be called before Start, from one
// goroutine. It panics if the kind is known already or a step is not as [Step] says:
// programmers' errors.
func Handle[In any](r *Runner, k Kind[In], steps ...Step[In]) { HandleMax(r, k, 0, steps...) }

// HandleMax is Handle for a kind of which at most n run at once in this process. 0: as
// many as there is room for.
func HandleMax[In any](r *Runner, k Kind[In], n int, steps ...Step[In]) {
	if k.Name == "" || len(k.Name) > maxName || len(steps) == 0 || r.kinds[k.Name] != nil {
		panic("operation: kind " + k.Name + " has no name, one of more than 64 bytes, no steps, or is handled already")
	}
	out := &kind{name: k.Name, priority: k.Priority, max: n}
	for _, s := range steps {
		out.steps = append(out.steps, erase(k.Name, s))
	}
	r.kinds[k.Name], r.names = out, append(r.names, k.Name)
}

// clock is the database's clock as this process knows it: measured now and then, and in
// between counted on by the monotonic clock, which nobody moves.
type clock struct {
	at   time.Time // the database's
	when time.Time // measured then, with a monotonic reading
	last time.Time // that was told
}

// now returns the time. It does not go back, unless the database's clock was set back by
// more than what measuring it is wrong by.
func (r *Runner) now() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &r.clock
	now := c.at.Add(time.Since(c.when))
	if behind := c.last.Sub(now); behind > 0 && behind < time.Second {
		return c.last
	}
	c.last = now
	return now
}

func (r *Runner) setClock(ctx context.Context) error {
	before := time.Now()
	at, err := db.Now(ctx, r.cfg.Store.db)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock.at, r.clock.when = at, before // at the earliest then: a lease ends too late rather than too early
	return nil
}

// Start begins to run operations. Errors: Unavailable: the database is away; Invalid: Host has
// more than 200 bytes, or is not UTF-8.
func (r *Runner) Start(ctx context.Context) error {
	if err := fits("host", r.cfg.Host, 200); err != nil { // the owner of a lease is the host and more
		return err
	}
	if err := r.setClock(ctx); err != nil {
		return err
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r.cancel = cancel
	go func() {
		defer close(r.done)
		r.dispatch(life)
	}()
	return nil
}

// Drain takes no more operations, and waits until those that run have come to the end of
// their step. Others go on with them at once. It implements service.Drainer.
func (r *Runner) Drain(ctx context.Context) error {
	if r.cancel == nil {
		return nil
	}
	r.mu.Lock()
	r.ending = true
	r.mu.Unlock()
	r.cancel()
	<-r.done
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.wg.Wait()
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	r.mu.Lock()
	for _, p := range r.running {
		p.stop()
	}
	r.mu.Unlock()
	<-ended
	return ctx.Err()
}

// Stop is Drain, if that was not called.
func (r *Runner) Stop(ctx context.Context) error { return r.Drain(ctx) }

// Stats is what a [Runner] has done since it was made.
type Stats struct {
	// Running is how many operations run in this process now.
	Running int
	// NotUndone is how many steps could not be undone within their time: what they have done, such
	// as a claim, is left, and the log has an error for each.
	NotUndone uint64
}

// Stats returns what the runner has done.
func (r *Runner) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Stats{Running: len(r.running), NotUndone: r.notUndone.Load()}
}

// Wake makes the runner look at an operation now. It does not block, and is only a hint:
// operations are found without it, only later.
func (r *Runner) Wake(id string) {
	select {
	case r.wake <- id:
	default: // so many are waiting that the next look comes first
	}
}

// candidate is an operation that is due.
type candidate struct {
	ID         string    `db:"id"`
	Kind       string    `db:"kind"`
	Priority   int       `db:"priority"`
	DeadlineAt time.Time `db:"deadline_at"`
}

func (r *Runner) dispatch(ctx context.Context) {
	tick := time.NewTicker(r.cfg.Poll)
	defer tick.Stop()
	var polls outage.Log
	look := func(f func(context.Context) error) {
		call, cancel := context.WithTimeout(ctx, max(r.cfg.Poll, 5*time.Second))
		defer cancel()
		if err := f(call); ctx.Err() == nil {
			polls.Note(ctx, r.cfg.Logger, slog.LevelWarn, "poll for operations", err, false)
		}
	}
	look(func(ctx context.Context) error { return r.poll(ctx, "") })
	for {
		select {
		case <-tick.C:
			look(func(ctx context.Context) error {
				if err := r.setClock(ctx); err != nil {
					return err
				}
				return r.poll(ctx, "")
			})
		case id := <-r.wake:
			look(func(ctx context.Context) error { return r.poll(ctx, id) })
		case <-ctx.Done():
			return
		}
	}
}

// poll takes what is due, or the one that is named if it is.
func (r *Runner) poll(ctx context.Context, id string) error {
	if len(r.names) == 0 || id != "" && r.woken(id) {
		return nil
	}
	query, args, err := sqlx.In(`SELECT id, kind, priority, deadline_at FROM operations WHERE due_at <= ? AND kind IN (?) ORDER BY priority DESC, due_at LIMIT ?`,
		r.now(), r.names, 2*r.cfg.MaxInFlight)
	if id != "" {
		// Also one that waits for its next attempt.
		query, args, err = sqlx.In(`SELECT id, kind, priority, deadline_at FROM operations WHERE id = ? AND owner = '' AND due_at IS NOT NULL AND kind IN (?)`, id, r.names)
	}
	if err != nil {
		return err
	}
	var list []candidate
	if err := r.cfg.Store.db.SelectContext(ctx, &list, query, args...); err != nil {
		return db.Error(err)
	}
	for _, c := range list {
		r.take(c) //nolint:contextcheck // an operation outlives the look that found it
	}
	if id != "" {
		return nil
	}
	return r.giveUp(ctx)
}

// giveUp ends operations of kinds that nobody here knows, and nobody else has run either:
// their time is over twice, once for what is done and once for what is undone.
func (r *Runner) giveUp(ctx context.Context) error {
	now := r.now()
	query, args, err := sqlx.In(`SELECT * FROM operations WHERE due_at <= ? AND deadline_at <= ? AND kind NOT IN (?) LIMIT 100`, now, now, r.names)
	if err != nil {
		return err
	}
	var list []row
	if err := r.cfg.Store.db.SelectContext(ctx, &list, query, args...); err != nil {
		return db.Error(err)
	}
	for i := range list {
		o := &list[i]
		if o.DeadlineAt.Add(o.timeout()).After(now) {
			continue
		}
		n, err := exec(ctx, r.cfg.Store.db, `UPDATE operations SET state = ?, active = NULL, due_at = NULL, fence = fence + 1, error_code = ?, error = ?, updated_at = ?, ended_at = ?
			WHERE id = ? AND fence = ?`, TimedOut, fault.Timeout.String(), "no process knows the kind "+o.Kind, now, now, o.ID, o.Fence)
		if err != nil {
			return err
		}
		if n > 0 {
			r.cfg.Logger.ErrorContext(ctx, "gave an operation up, as no process knows its kind", "operation", o.ID, "kind", o.Kind, "resource", o.Resource)
		}
	}
	return nil
}

// woken notes that an operation that runs here was woken, and reports whether it runs.
func (r *Runner) woken(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.running[id]
	if p != nil {
		p.woken = true
	}
	return p != nil
}

// take runs an operation if there is room.
func (r *Runner) take(c candidate) {
	k := r.kinds[c.Kind]
	room := r.cfg.MaxInFlight
	if c.Priority > 0 {
		room += (room + 3) / 4
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ending || r.running[c.ID] != nil || len(r.running) >= room || k.max > 0 && r.perKind[c.Kind] >= k.max {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &place{stop: cancel}
	r.running[c.ID] = p
	r.perKind[c.Kind]++
	r.wg.Go(func() {
		defer func() {
			cancel()
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.running, c.ID)
			r.perKind[c.Kind]--
			if p.woken && !r.ending {
				r.Wake(c.ID) // it may have gone on meanwhile, by Complete
			}
		}()
		r.run(ctx, k, c, p)
	})
}
