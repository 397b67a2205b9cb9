package operation

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/outage"
	"github.com/armature-go/armature/service"
)

// RunnerConfig configures a [Runner]. Store and Host are required.
type RunnerConfig struct {
	Store *Store
	// Host is this process's name, which operations and events show.
	Host string
	// Lease is the length of the lease of an operation. If the holder does not renew the lease for this time, another process continues
	// the operation. The holder renews the lease every Lease/3. Default 15 s.
	Lease time.Duration
	// Poll is the interval at which the runner looks for due operations in the database. A notified operation does not wait for the
	// next poll. Default 1 s.
	Poll time.Duration
	// MaxInFlight is how many operations run at once. Operations with a priority above 0 have a quarter more slots. Default 64.
	MaxInFlight int
	// Inflight lists each operation while it runs. Default nil: no list.
	Inflight *service.Inflight
	// Logger gets the events of operations. Default [slog.Default].
	Logger *slog.Logger
}

// Runner runs operations. It is a [service.Part], and safe for concurrent use. Any number of processes may each have a Runner on the
// same tables.
type Runner struct {
	cfg    RunnerConfig
	kinds  map[string]*kind
	names  []string
	notify chan notification

	mu      sync.Mutex
	running map[string]*slot // the key is the operation's ID
	clock   clock
	ending  bool                 // no further operation or step may begin
	stats   map[string]KindStats // the key is the name of the kind

	unknown map[string]bool // the keys of the variants that this process does not know and that polls have found; only dispatch uses it
	swept   time.Time       // the last call of sweepUnknown; only dispatch uses it

	missed       atomic.Bool // an operation may be due that found no free slot, or no place in the queue of notifications
	unknownCount atomic.Int64
	notUndone    atomic.Uint64
	started      atomic.Bool // Start has measured the clock

	cancel context.CancelFunc
	done   chan struct{}
	wg     sync.WaitGroup
}

// slot is the place of a running operation; a runner has a limited number of slots.
type slot struct {
	cancel   context.CancelFunc
	notified bool // the operation was notified while it ran
}

// notification names an operation to look at now, by its ID or by its resource. The zero value asks for a poll.
type notification struct {
	id, resource string
	due          time.Time // if set, an operation that is due after this time is skipped: it has run since the notification was scheduled
}

// kind is a Kind with its steps.
type kind struct {
	version int
	steps   []step
	names   string   // the names of the steps, as they are stored
	onEnd   stepFunc // nil if the kind has none
}

// NewRunner returns a runner that knows no kind yet. It starts nothing.
func NewRunner(cfg RunnerConfig) *Runner {
	cfg.Lease = cmp.Or(cfg.Lease, 15*time.Second)
	cfg.Poll = cmp.Or(cfg.Poll, time.Second)
	cfg.MaxInFlight = cmp.Or(cfg.MaxInFlight, 64)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Runner{cfg: cfg, kinds: map[string]*kind{}, unknown: map[string]bool{}, notify: make(chan notification, 256), running: map[string]*slot{}, stats: map[string]KindStats{}, done: make(chan struct{})}
}

// Handle sets the steps of a kind. Call it before Start, from one goroutine. It panics on a programmer's error: the kind already has
// steps, two steps have the same name, the names of all steps have more than 4000 bytes, or a step breaks a rule of [Step].
func Handle[D any](r *Runner, k Kind[D], steps ...Step[D]) {
	if k.Name == "" || len(k.Name) > maxName || k.Version < 0 || len(steps) == 0 || r.kinds[k.Name] != nil {
		panic("operation: kind " + k.Name + ": need a name of 1 to " + strconv.Itoa(maxName) + " bytes, a version of at least 0, at least one step, and one call of Handle")
	}
	out := &kind{version: k.Version}
	for _, s := range steps {
		if out.position(s.Name) >= 0 {
			panic(fmt.Sprintf("operation: kind %s has two steps with the name %q", k.Name, s.Name))
		}
		out.steps = append(out.steps, eraseStep(k.Name, s))
	}
	if out.names = out.joinNames(); len(out.names) > maxSteps {
		panic(fmt.Sprintf("operation: the names of the steps of kind %s have %d bytes, at most %d fit", k.Name, len(out.names), maxSteps))
	}
	r.kinds[k.Name], r.names = out, append(r.names, k.Name)
}

// OnEnd sets the function that is called when an operation of a kind ends, in the transaction of its end: after it has succeeded, or
// after its steps are undone. The fields op.State and op.Err say how it ends. The function's changes of the data are stored. The
// function must have no effect outside tx, because it is called again if the transaction is rolled back.
//
// If the function fails after the last step, its error counts as an error of that step. If it fails after undoing, it is called again,
// with a back-off, until the time for undoing is over; then the operation ends without it, which is logged and counted, see [Stats].
// The function is not called for an operation that is preempted. If an operation times out while no running process knows it, the
// function is called later, when a runner compensates the operation.
//
// OnEnd must be called after [Handle] for the kind, before Start, and once for each kind. Otherwise it panics.
func OnEnd[D any](r *Runner, k Kind[D], f func(ctx context.Context, tx *sqlx.Tx, op *Op, data *D) error) {
	known := r.kinds[k.Name]
	if known == nil || known.onEnd != nil {
		panic("operation: kind " + k.Name + " has no steps, or OnEnd was called for it already")
	}
	known.onEnd = eraseTx(f)
}

// clock is the database's clock as this process knows it. The process reads the database's time at each poll. Between two polls it adds
// the time that has passed by its own monotonic clock, which cannot be set.
type clock struct {
	at       time.Time // the database's time at the last poll
	measured time.Time // when at was read, by the process's monotonic clock
	last     time.Time // the result of the last call of Runner.now
}

// now returns the database's time. The result is ahead of the database's clock by at most the duration of the query that has read it.
// This duration is usually milliseconds, and dispatch bounds it. The result never goes back by less than a second. It goes back by a second
// or more if the database's clock was set back, or if the last query was that much faster than the query before it.
func (r *Runner) now() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &r.clock
	now := c.at.Add(time.Since(c.measured))
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
	// The time before the query is used, so that now is never behind the database's clock: a lease that this process writes ends late
	// rather than early. A lease of another process may seem to end early by the duration of the query. In this case the fencing token
	// stops the writes of that process.
	r.clock.at, r.clock.measured = at, before
	return nil
}

// Start begins to run operations. Errors: Unavailable if the database cannot be reached; Invalid if Host has more than
// 200 bytes or is not UTF-8.
func (r *Runner) Start(ctx context.Context) error {
	if err := checkText("host", r.cfg.Host, 200); err != nil { // the column owner has the host and a random text
		return err
	}
	if err := r.setClock(ctx); err != nil {
		return err
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r.cancel = cancel
	r.started.Store(true)
	go func() {
		defer close(r.done)
		r.dispatch(life)
	}()
	return nil
}

// Drain makes the runner acquire no further operations, and blocks until the running operations have ended their current step. Other processes
// continue these operations at once. When ctx ends, Drain cancels the contexts of the steps, and returns the error of ctx after the steps have
// returned. Drain implements service.Drainer.
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
	for _, s := range r.running {
		s.cancel()
	}
	r.mu.Unlock()
	<-ended
	return ctx.Err()
}

// Stop calls [Runner.Drain]. It has no effect after Drain.
func (r *Runner) Stop(ctx context.Context) error { return r.Drain(ctx) }

// Stats are the current load of a [Runner], and its counters since NewRunner.
type Stats struct {
	// Running is the number of operations that run in this process now.
	Running int
	// NotUndone is the number of steps that could not be undone in time, plus the number of operations that ended without their [OnEnd]
	// because it failed. The effects of these steps, such as a claim, remain. The log has an error for each.
	NotUndone uint64
	// Unknown is the number of operations that this runner does not know in full, see [Step], and that no other runner has continued
	// for the length of a lease. The number is updated every Lease/3.
	Unknown int
	// Kinds has the counters of each kind, by the kind's name. The caller owns the map.
	Kinds map[string]KindStats
}

// KindStats are the counters of a kind of operation in one process.
type KindStats struct {
	// Ended is the number of operations that this process has ended, by their state. It does not include operations that were
	// preempted, that [Record] has added, or that [Store.Cancel] has ended at once. An operation that has timed out while no running
	// process knew it counts when a runner has compensated it.
	Ended map[State]uint64
	// Retries is the number of attempts at a step that failed in this process and are repeated after a delay. It does not include
	// failures that [Runner.EndStep] reports.
	Retries uint64
}

// Stats returns the runner's counters.
func (r *Runner) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Stats{Running: len(r.running), NotUndone: r.notUndone.Load(), Unknown: int(r.unknownCount.Load()), Kinds: maps.Clone(r.stats)}
	for name, k := range s.Kinds {
		k.Ended = maps.Clone(k.Ended)
		s.Kinds[name] = k
	}
	return s
}

// count calls change with the counters of a kind.
func (r *Runner) count(kind string, change func(*KindStats)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.stats[kind]
	change(&k)
	r.stats[kind] = k
}

// noteEnd logs and counts an operation that has ended.
func (r *Runner) noteEnd(ctx context.Context, o *row) {
	r.cfg.Logger.InfoContext(ctx, "operation ended", "operation", o.ID, "kind", o.Kind, "resource", o.Resource, "state", string(o.State), "took", o.UpdatedAt.Sub(o.CreatedAt).Round(time.Millisecond))
	r.count(o.Kind, func(k *KindStats) {
		if k.Ended == nil {
			k.Ended = map[State]uint64{}
		}
		k.Ended[o.State]++
	})
}

// Notify makes the runner look at an operation now, even if the operation waits ([WaitFor]). It does not block. If all slots are busy,
// the operation becomes due in the database, and the first process with free slots continues it: a runner whose
// slots were all busy polls as soon as half of them are free. A notification is lost if 256 others
// are queued in this runner, if the database cannot be reached, or if another process runs the operation. After such a loss the
// operation continues later: at the next poll if it is due, and after the delay of WaitFor if it waits. [Runner.Signal] has no queue,
// and returns its errors.
func (r *Runner) Notify(id string) { r.send(notification{id: id}) }

// NotifyResource does what [Runner.Notify] does, for the open operation on a resource. It has no effect if the resource has no open
// operation.
func (r *Runner) NotifyResource(resource string) { r.send(notification{resource: resource}) }

// lookAfter makes the runner look at an operation after a delay, unless the operation was run meanwhile.
func (r *Runner) lookAfter(delay time.Duration, o *row) {
	if o.DueAt != nil {
		n := notification{id: o.ID, due: o.DueAt.Add(time.Millisecond)} // the database rounds
		time.AfterFunc(delay, func() { r.send(n) })
	}
}

func (r *Runner) send(n notification) {
	select {
	case r.notify <- n:
	default: // lost, see Notify
		r.missed.Store(true)
	}
}

// mustCatchUp reports whether the runner has missed operations, and half of its slots are free. If so, the caller must make the runner poll.
// The caller must hold r.mu.
func (r *Runner) mustCatchUp() bool {
	return !r.ending && len(r.running) <= r.cfg.MaxInFlight/2 && r.missed.CompareAndSwap(true, false)
}

// Signal makes all operations that wait for a peer ([WaitFor]) continue now, for example when a host is back. Any process may call
// Signal on its runner, even if the runner is not started. If a signal comes while the step still runs, before the operation waits, it
// has no effect: the operation then waits for the delay of WaitFor. Errors: those of [db.Error].
func (r *Runner) Signal(ctx context.Context, peer string) error {
	err := r.makeDue(ctx, `peer = ?`, peer)
	if err == nil {
		db.AfterCommit(ctx, r.cfg.Store.db, func() { r.send(notification{}) }) // a poll
	}
	return err
}

// makeDue makes the waiting operations that match a condition due now. It does not change operations that are due already: if an
// operation has been due for long, the method lease extends the deadlines by the time since due_at.
func (r *Runner) makeDue(ctx context.Context, where, arg string) error {
	return db.Tx(ctx, r.cfg.Store.db, func(ctx context.Context, tx *sqlx.Tx) error { // Tx repeats the function after a deadlock
		_, err := db.Exec(ctx, tx, `UPDATE operations SET due_at = UTC_TIMESTAMP(6) WHERE `+where+` AND owner = '' AND due_at > UTC_TIMESTAMP(6)`, arg)
		return err
	})
}

// dispatch polls for operations until ctx ends.
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
	look(r.poll)
	for {
		select {
		case <-tick.C:
			look(func(ctx context.Context) error {
				if err := r.setClock(ctx); err != nil {
					return err
				}
				return r.poll(ctx)
			})
		case n := <-r.notify:
			look(func(ctx context.Context) error { return r.lookAt(ctx, n) })
			r.mu.Lock()
			poll := len(r.notify) == 0 && r.mustCatchUp()
			if r.mu.Unlock(); poll {
				look(r.poll)
			}
		case <-ctx.Done():
			return
		}
	}
}

// poll acquires the operations that are due.
func (r *Runner) poll(ctx context.Context) error {
	if len(r.names) == 0 {
		return nil
	}
	for learned := true; learned; { // the rows that this process does not know must not use up the LIMIT
		where, args := r.excludeUnknown()
		args = append([]any{r.now(), r.names}, append(args, 2*r.cfg.MaxInFlight)...)
		n := len(r.unknown)
		if err := r.acquireRows(ctx, false, `due_at <= ? AND kind IN (?)`+where+` ORDER BY priority DESC, due_at LIMIT ?`, args...); err != nil {
			return err
		}
		learned = len(r.unknown) > n
	}
	return r.sweepUnknown(ctx)
}

// lookAt acquires the operation that a notification names, even if the operation waits. If the operation runs in this process, lookAt
// only records the notification; the runner looks at the operation when the operation no longer runs.
func (r *Runner) lookAt(ctx context.Context, n notification) error {
	switch {
	case n == notification{}:
		return r.poll(ctx)
	case len(r.names) == 0:
		return nil
	case !n.due.IsZero():
		return r.acquireRows(ctx, false, `id = ? AND due_at <= ? AND kind IN (?)`, n.id, n.due, r.names)
	case n.id != "" && r.markNotified(n.id):
		return nil
	case n.id != "":
		return r.acquireRows(ctx, true, `id = ? AND due_at IS NOT NULL AND kind IN (?)`, n.id, r.names)
	}
	return r.acquireRows(ctx, true, `active = ? AND due_at IS NOT NULL AND kind IN (?)`, n.resource, r.names)
}

// acquireRows acquires the operations that match a condition and that this process knows, as long as slots are free. If notified is
// true and no slot is free, acquireRows makes the operation due now, so that a poll finds it.
func (r *Runner) acquireRows(ctx context.Context, notified bool, where string, args ...any) error {
	query, args, err := sqlx.In(selectRows+`WHERE `+where, args...)
	if err != nil {
		return err
	}
	var list []row
	if err := r.cfg.Store.db.SelectContext(ctx, &list, query, args...); err != nil {
		return db.Error(err)
	}
	var errs []error
	for i := range list {
		o := &list[i]
		switch k := r.kinds[o.Kind].adopt(o); {
		case k == nil:
			r.unknown[o.variant().key()] = true
		case !r.runInSlot(k, o, notified) && notified: //nolint:contextcheck // the operation runs on after the poll
			if o.DueAt.After(r.now()) {
				errs = append(errs, r.makeDue(ctx, `id = ?`, o.ID))
			}
		}
	}
	return errors.Join(errs...)
}

// markNotified reports whether an operation runs in this process. If it does, markNotified records that the operation was notified.
func (r *Runner) markNotified(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.running[id]
	if s != nil {
		s.notified = true
	}
	return s != nil
}

// runInSlot runs an operation if a slot is free. It returns false if no slot is free, or if the runner is ending.
func (r *Runner) runInSlot(k *kind, o *row, notified bool) bool {
	slots := r.cfg.MaxInFlight
	if o.Priority > 0 {
		slots += (slots + 3) / 4
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.running[o.ID]; s != nil {
		s.notified = s.notified || notified
		return true
	}
	if r.ending || len(r.running) >= slots {
		r.missed.Store(true)
		return false
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &slot{cancel: cancel}
	r.running[o.ID] = s
	r.wg.Go(func() {
		defer func() {
			cancel()
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.running, o.ID)
			if s.notified && !r.ending {
				r.Notify(o.ID) // EndStep may have ended the step in the database while the step ran here
			}
			if r.mustCatchUp() {
				r.send(notification{})
			}
		}()
		r.execute(ctx, k, o, s)
	})
	return true
}

// callEnd calls the function of OnEnd for an operation that has ended, and stores the function's changes of the data.
func (k *kind) callEnd(ctx context.Context, tx *sqlx.Tx, r *row, onPanic func(any)) error {
	if k.onEnd == nil {
		return nil
	}
	op := r.op()
	data, err := callStep(ctx, tx, k.onEnd, op, op.data, nil, onPanic)
	if err != nil || string(data) == string(op.data) {
		return err
	}
	r.setData(data)
	_, err = db.Exec(ctx, tx, `UPDATE operations SET data = ? WHERE id = ?`, r.Data, r.ID)
	return err
}

// callStep calls a function of a step, or of OnEnd, and turns a panic into an error. The methods of the returned error do not panic.
func callStep(ctx context.Context, tx *sqlx.Tx, f stepFunc, op *Op, data json.RawMessage, report error, onPanic func(any)) (out json.RawMessage, err error) {
	defer func() {
		if p := recover(); p != nil {
			onPanic(p)
			out, err = data, fault.New(fault.Internal, "panic: %v", p)
		}
	}()
	out, err = f(ctx, tx, op, data, report)
	return out, safeError(err, onPanic)
}

// safeError returns err. If the methods of err panic, such as those of a nil pointer, it returns an Internal error.
func safeError(err error, onPanic func(any)) (safe error) {
	defer func() {
		if p := recover(); p != nil {
			onPanic(p)
			safe = fault.New(fault.Internal, "panic in the error %T: %v", err, p)
		}
	}()
	readError(err)
	if g, is := asGoTo(err); is {
		readError(g.err)
	}
	return err
}

// readError calls the methods of an error, to find out whether they panic.
func readError(err error) {
	if err != nil {
		_, _ = err.Error(), fault.CodeOf(err)
	}
}
