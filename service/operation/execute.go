package operation

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service"
)

// execution is an operation whose lease this process holds.
type execution struct {
	*Runner

	kind *kind
	slot *slot
	row  *row // the row as it is in the database, but with an older due_at: the renewal of the lease writes due_at only to the database
	log  *slog.Logger

	deadline  atomic.Int64 // row.deadline() in Unix microseconds, for the renewal of the lease
	skipOnEnd bool         // the operation ends without its OnEnd
}

// execute acquires the lease of an operation, and runs its steps until the operation ends or waits, or the lease is lost.
func (r *Runner) execute(ctx context.Context, k *kind, o *row, s *slot) {
	ctx = reqctx.With(ctx, o.request())
	leased, err := r.lease(ctx, k, o)
	if err != nil {
		r.cfg.Logger.WarnContext(ctx, "operation not leased, the next poll finds it", "operation", o.ID, "error", err)
	}
	if leased == nil {
		return
	}
	if r.cfg.Inflight != nil {
		defer r.cfg.Inflight.Begin(ctx, service.Work{Kind: "operation", Name: o.Kind, Resource: o.Resource})()
	}
	x := &execution{Runner: r, kind: k, slot: s, row: leased, log: r.cfg.Logger.With("operation", o.ID, "kind", o.Kind, "resource", o.Resource)}
	x.deadline.Store(leased.deadline().UnixMicro())
	held, lose := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer lose(nil)
	fencingToken := leased.Fence
	wg.Go(func() {
		keepLease(held, r.cfg.Lease, func(ctx context.Context) (bool, error) { return x.renewLease(ctx, o.ID, fencingToken) }, lose)
	})
	for x.next(held) {
	}
	if lostLease(held) && x.row.DueAt != nil && x.row.Owner != "" {
		x.log.WarnContext(ctx, "operation lost to another process", "step", x.row.StepName)
	}
}

// lease acquires the lease of an operation and returns the operation's row. It returns nil if another process was faster. The parameter k is
// the result of adopt for the operation. If no runner has looked at the operation for longer than a lease, lease postpones the deadlines of
// the operation by that time.
func (r *Runner) lease(ctx context.Context, k *kind, o *row) (*row, error) {
	now := r.now()
	if o.Owner != "" && o.DueAt.After(now) {
		return nil, nil //nolint:nilnil // see the doc
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Lease)
	defer cancel()
	next := *o
	next.UnknownAt = nil
	if unheard := now.Sub(*o.DueAt); unheard > r.cfg.Lease {
		next.moveDeadlines(unheard, now.Add(r.cfg.Lease))
	}
	if o.Step >= 0 {
		s := &k.steps[o.Step]
		next.StepName = s.name
		if o.State == Running && o.StepDeadlineAt == nil && s.limit > 0 { // only the first step: enter has set the deadline of each later step
			end := now.Add(s.limit)
			next.StepDeadlineAt = &end
		}
	}
	due := r.leaseEnd(next.deadline(), now)
	next.Owner, next.Fence, next.DueAt = r.cfg.Host+"/"+rand.Text()[:8], o.Fence+1, &due // the peer stays, because only this peer may report
	n, err := db.Exec(ctx, r.cfg.Store.db, `UPDATE operations SET owner = ?, fence = ?, due_at = ?, deadline_at = ?, step_deadline_at = ?,
		kind_version = ?, steps = ?, step = ?, step_name = ?, unknown_at = NULL
		WHERE id = ? AND fence = ? AND owner = ? AND due_at IS NOT NULL AND (owner = '' OR due_at <= ?)`,
		next.Owner, next.Fence, next.DueAt, next.DeadlineAt, next.StepDeadlineAt,
		next.KindVersion, next.Steps, next.Step, next.StepName, o.ID, o.Fence, o.Owner, now)
	if err != nil || n == 0 {
		return nil, err
	}
	return &next, nil
}

// moveDeadlines postpones the deadlines. The parameter by is the time in which no runner was alive. The new deadlines are not before the
// parameter least, so that a report that found no runner can be repeated.
func (r *row) moveDeadlines(by time.Duration, least time.Time) {
	move := func(deadline time.Time) time.Time {
		if end := deadline.Add(by); end.After(least) {
			return end
		}
		return least
	}
	r.DeadlineAt = move(r.DeadlineAt)
	if r.StepDeadlineAt != nil {
		end := move(*r.StepDeadlineAt)
		r.StepDeadlineAt = &end
	}
}

// deadline returns the earlier one of the operation's deadline and its step's deadline.
func (r *row) deadline() time.Time {
	if r.State == Running && r.StepDeadlineAt != nil && r.StepDeadlineAt.Before(r.DeadlineAt) {
		return *r.StepDeadlineAt
	}
	return r.DeadlineAt
}

// leaseEnd returns the end of a lease that is acquired or renewed now. If the deadline comes before the end of a full lease, the lease ends
// soon after the deadline. So another process undoes the operation in time even if this process is killed.
func (r *Runner) leaseEnd(deadline, now time.Time) time.Time {
	end := now.Add(r.cfg.Lease)
	soon := deadline.Add(min(r.cfg.Lease/5, 2*time.Second))
	if now.Before(deadline) && soon.Before(end) {
		return soon
	}
	return end
}

func (x *execution) renewLease(ctx context.Context, id string, fencingToken int64) (held bool, err error) {
	n, err := db.Exec(ctx, x.cfg.Store.db, `UPDATE operations SET due_at = ? WHERE id = ? AND fence = ? AND due_at IS NOT NULL AND owner <> ''`,
		x.leaseEnd(time.UnixMicro(x.deadline.Load()).UTC(), x.now()), id, fencingToken)
	return n > 0, err
}

// next does or undoes the next step. It reports whether this process must continue with the operation.
func (x *execution) next(ctx context.Context) bool {
	if lostLease(ctx) {
		return false
	}
	x.mu.Lock()
	ending := x.ending
	x.mu.Unlock()
	if ending || ctx.Err() != nil {
		x.release(ctx)
		return false
	}
	r, now := x.row, x.now()
	switch late := !now.Before(r.DeadlineAt); {
	case r.State.Ended():
		return x.compensateLate(ctx)
	case r.State == Running && late:
		return x.fail(ctx, TimedOut, r.timedOut("operation", r.timeout()), nil)
	case r.State == Running && !now.Before(r.deadline()):
		s := &x.kind.steps[r.Step]
		return x.fail(ctx, TimedOut, r.timedOut("step "+s.name, s.limit), nil)
	case r.State == Running:
		return x.do(ctx, &x.kind.steps[r.Step])
	case r.Step < 0:
		return x.endUndone(ctx, late)
	default:
		return x.undo(ctx, &x.kind.steps[r.Step], late)
	}
}

// do runs a step: first Do, then DoTx in the transaction that marks the step as done. It reports whether this process must continue with the
// operation.
func (x *execution) do(ctx context.Context, s *step) bool {
	op, began := x.row.op(), x.now()
	data, err := op.data, error(nil)
	if s.do != nil {
		data, err = x.call(ctx, nil, s, s.do, op, data)
	}
	if err == nil {
		var more bool
		if more, err = x.noteStep(ctx, s, "done", s.doTx, data, began, x.kind.stepDone); err == nil {
			return more
		}
	}
	w, waits := errors.AsType[*waitError](err)
	g, back := errors.AsType[*goToError](err)
	switch {
	case lostLease(ctx):
		return false
	case ctx.Err() != nil: // the process ends, and the step's error does not count
		x.release(ctx)
		return false
	case waits:
		x.wait(ctx, w, data)
		return false
	case back:
		return x.goTo(ctx, s, g, data, began)
	case s.retry.allows(err, x.row.Attempts):
		x.retryStep(ctx, s, err, began)
		return false
	default:
		return x.fail(ctx, Failed, err, x.event(s, "failed", err, began))
	}
}

// noteStep marks a step as done or undone, and calls inTx in the same transaction. It returns the error of inTx or of OnEnd.
func (x *execution) noteStep(ctx context.Context, s *step, result string, inTx stepFunc, data json.RawMessage, began time.Time, change func(*row, time.Time)) (more bool, err error) {
	var also func(context.Context, *sqlx.Tx, *row) error
	if inTx != nil {
		also = func(ctx context.Context, tx *sqlx.Tx, next *row) error {
			out, err := x.call(ctx, tx, s, inTx, x.row.op(), data)
			if err != nil || string(out) == string(data) {
				return err
			}
			next.setData(out)
			_, err = db.Exec(ctx, tx, `UPDATE operations SET data = ? WHERE id = ?`, next.Data, next.ID)
			return err
		}
	}
	return x.write(ctx, func(r *row) {
		r.setData(data)
		change(r, x.now())
	}, x.event(s, result, nil, began), also)
}

// goTo sends the operation back to an earlier step. If the step has already gone back as often as its limit allows, goTo fails the operation.
func (x *execution) goTo(ctx context.Context, s *step, g *goToError, data json.RawMessage, began time.Time) bool {
	to, n, err := x.cfg.Store.checkGoTo(ctx, x.cfg.Store.db, x.kind, x.row, g)
	switch {
	case err != nil && isTransient(err) && n < 0:
		x.retryStep(ctx, s, err, began)
		return false
	case err != nil:
		return x.fail(ctx, Failed, err, x.event(s, "failed", err, began))
	}
	delay := s.retry.delay(n)
	_, _ = x.write(ctx, func(r *row) {
		r.setData(data)
		x.kind.goBack(r, to, x.now(), delay)
	}, x.event(s, "back", g.err, began), nil) // the operation does not end, so there is no error
	x.lookAfter(delay, x.row)
	return false
}

// checkGoTo returns the step to go back to, and n, which is how often the current step has already sent the operation back. If n cannot be
// read, it is -1, and the caller may try again later. After any other error the step must fail with this error.
func (s *Store) checkGoTo(ctx context.Context, q sqlx.QueryerContext, k *kind, r *row, g *goToError) (to, n int, err error) {
	name := k.steps[r.Step].name
	to = slices.IndexFunc(k.steps[:r.Step], func(s step) bool { return s.name == g.step })
	if to < 0 {
		return 0, 0, fault.New(fault.Internal, "step %s goes back to %q, which is not a step before it", name, g.step)
	}
	if err := sqlx.GetContext(ctx, q, &n, `SELECT COUNT(*) FROM operation_events WHERE operation_id = ? AND step = ? AND result = 'back'
		AND seq > (SELECT COALESCE(MAX(seq), -1) FROM operation_events WHERE operation_id = ? AND result = 'rerun')`, r.ID, name, r.ID); err != nil {
		return 0, -1, db.Error(err)
	}
	if n >= g.limit {
		return 0, n, fmt.Errorf("back to step %s %d times: %w", g.step, n, g.err)
	}
	return to, n, nil
}

// goBack makes an earlier step the current step, after a delay.
func (k *kind) goBack(r *row, to int, now time.Time, delay time.Duration) {
	due := now.Add(delay)
	k.enter(r, to, now)
	r.Owner, r.DueAt = "", &due
}

// lastUndo is how long the last attempt to undo a step may take, after the time for undoing is over.
const lastUndo = 5 * time.Second

// call calls a function of a step. The context of the function ends after the step's timeout, or earlier, at the deadline of the row.
func (x *execution) call(ctx context.Context, tx *sqlx.Tx, s *step, f stepFunc, op *Op, data json.RawMessage) (json.RawMessage, error) {
	left := max(x.row.deadline().Sub(x.now()), time.Millisecond)
	if x.row.State == Undoing { // the last attempt to undo always has this time
		left = max(left, lastUndo)
	}
	ctx, cancel := context.WithTimeout(ctx, min(s.timeout, left))
	defer cancel()
	return callStep(ctx, tx, f, op, data, nil, func(p any) {
		x.log.ErrorContext(ctx, "panic in a step", "step", s.name, "panic", p, "stack", string(debug.Stack()))
	})
}

func (x *execution) event(s *step, result string, err error, began time.Time) *Event {
	return newEvent(s.name, result, x.cfg.Host, err, began)
}

// fail begins to undo the operation, with the current step first.
func (x *execution) fail(ctx context.Context, outcome State, err error, e *Event) bool {
	x.log.WarnContext(ctx, "operation failed, undoing", "step", x.row.StepName, "outcome", string(outcome), "error", err)
	return x.writeOrPostpone(ctx, e, func(r *row) {
		now := x.now()
		if x.kind.compensate(r, outcome, err, now); !r.State.Ended() {
			due := x.leaseEnd(r.DeadlineAt, now) // the lease so far ends soon after the earlier deadline
			r.DueAt = &due
		}
	})
}

// undo undoes a step. The parameter late means that the time for undoing is over.
func (x *execution) undo(ctx context.Context, s *step, late bool) bool {
	op, began := x.row.op(), x.now()
	data, err := op.data, error(nil)
	if s.undo != nil {
		data, err = x.call(ctx, nil, s, s.undo, op, data)
	}
	if err == nil {
		var more bool
		if more, err = x.noteStep(ctx, s, "undone", s.undoTx, data, began, x.kind.stepUndone); err == nil {
			return more
		}
		if _, atEnd := errors.AsType[*endError](err); atEnd {
			x.postponeEnd(ctx, err, x.event(s, "undone", nil, began), func(r *row) {
				r.setData(data)
				x.kind.stepUndone(r, x.now())
			})
			return false
		}
	}
	switch w, waits := errors.AsType[*waitError](err); {
	case lostLease(ctx):
		return false
	case ctx.Err() != nil:
		x.release(ctx)
		return false
	case waits && !late:
		x.wait(ctx, w, data)
		return false
	case !late, s.undoTx != nil && isTransient(err):
		x.retryStep(ctx, s, err, began)
		return false
	}
	x.log.ErrorContext(ctx, "step not undone", "step", s.name, "error", err) // the other steps are still undone
	x.notUndone.Add(1)
	return x.writeOrPostpone(ctx, x.event(s, "not undone", err, began), func(r *row) {
		r.Error = db.Cut(fmt.Sprintf("%s; step %s was not undone: %v", r.Error, s.name, err), maxError)
		x.kind.stepUndone(r, x.now())
	})
}

// writeOrPostpone writes a change. If the change ends the operation and OnEnd fails, the end is postponed.
func (x *execution) writeOrPostpone(ctx context.Context, e *Event, change func(*row)) bool {
	more, err := x.write(ctx, change, e, nil)
	if err != nil {
		x.postponeEnd(ctx, err, e, change)
	}
	return more
}

// postponeEnd writes a change that would end the operation, but leaves the operation open, because OnEnd has failed. The end is retried later.
func (x *execution) postponeEnd(ctx context.Context, err error, e *Event, change func(*row)) {
	x.log.WarnContext(ctx, "OnEnd failed", "error", err)
	delay := Retry{}.delay(0)
	_, _ = x.write(ctx, func(r *row) {
		change(r)
		r.Outcome, r.State, r.EndedAt, r.Step = r.State, Undoing, nil, -1
		r.Active = x.row.Active
		r.retryLater(x.now(), delay)
	}, e, nil) // the operation does not end, so there is no error
	x.lookAfter(delay, x.row)
}

// endUndone ends an operation whose steps are undone and whose OnEnd has failed at least once.
func (x *execution) endUndone(ctx context.Context, late bool) bool {
	end := func(r *row) { r.markEnded(cmp.Or(r.Outcome, Failed), x.now()) }
	more, err := x.write(ctx, end, nil, nil)
	switch {
	case err == nil:
		return more
	case !late:
		x.retryStep(ctx, &step{name: "end"}, err, x.now())
		return false
	}
	x.log.ErrorContext(ctx, "operation ends without its OnEnd", "error", err)
	x.notUndone.Add(1)
	x.skipOnEnd = true
	more, _ = x.write(ctx, func(r *row) {
		r.Error = db.Cut(fmt.Sprintf("%s; the end failed: %v", r.Error, err), maxError)
		end(r)
	}, newEvent("end", "not undone", x.cfg.Host, err, x.now()), nil) // without OnEnd there is no error
	return more
}

// retryStep releases the operation until the next attempt at the step.
func (x *execution) retryStep(ctx context.Context, s *step, err error, began time.Time) {
	delay := s.retry.delay(x.row.Attempts)
	x.count(x.row.Kind, func(k *KindStats) { k.Retries++ })
	_, _ = x.write(ctx, func(r *row) {
		if r.retryLater(x.now(), delay); r.State == Running { // while it is undone, the row keeps the error because of which it is undone
			r.setError(err)
		}
	}, x.event(s, "retry", err, began), nil) // the operation does not end, so there is no error
	x.lookAfter(delay, x.row)
}

// minWait is the shortest delay of [WaitFor].
const minWait = 10 * time.Millisecond

// wait releases the operation until the peer signals, the delay has passed, or a deadline comes. If the operation was notified while the step
// ran, it is due at once.
func (x *execution) wait(ctx context.Context, w *waitError, data json.RawMessage) {
	x.writeRelease(ctx, func(r *row, now time.Time) {
		due := now.Add(max(w.delay, minWait))
		if end := r.deadline(); end.Before(due) {
			due = end
		}
		if due.Before(now) { // the method lease would count the time since due_at as time without a runner
			due = now
		}
		r.DueAt, r.Waits = &due, r.Waits+1
		if r.Peer = nil; w.peer != "" {
			peer := db.Cut(w.peer, maxID)
			r.Peer = &peer
		}
		r.setData(data)
	})
}

// release releases the operation, so that another process can continue it at once.
func (x *execution) release(ctx context.Context) {
	x.writeRelease(ctx, func(r *row, now time.Time) { r.DueAt = &now })
}

func (x *execution) writeRelease(ctx context.Context, change func(*row, time.Time)) {
	x.mu.Lock()
	notified := x.slot.notified
	x.mu.Unlock()
	_, _ = x.write(ctx, func(r *row) {
		now := x.now()
		if change(r, now); notified {
			r.DueAt = &now
		}
		r.Owner = ""
	}, nil, nil) // the operation does not end, so there is no error
}
