package operation

import (
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

// errLost says that somebody else has the operation, may have it, or has ended the step
// with Complete.
var errLost = errors.New("the operation was taken over, or its lease could not be renewed")

// execution is an operation that this process has leased.
type execution struct {
	*Runner
	kind  *kind
	place *place
	row   *row // as it stands in the database
	log   *slog.Logger

	deadline atomic.Int64 // of row, in Unix microseconds, for renew
}

// run leases an operation and goes on with it until it is over, waits, or is lost.
func (r *Runner) run(ctx context.Context, k *kind, c candidate, p *place) {
	row, err := r.lease(ctx, c)
	if err != nil {
		r.cfg.Logger.WarnContext(ctx, "an operation was not leased, and is looked at again", "operation", c.ID, "error", err)
		return
	}
	if row == nil {
		return // somebody was faster
	}
	ctx = reqctx.With(ctx, reqctx.Request{ID: row.RequestID, GlobalID: row.GlobalRequestID, Traceparent: row.Traceparent, UserID: row.UserID, ProjectID: row.ProjectID})
	if r.cfg.Inflight != nil {
		defer r.cfg.Inflight.Begin(ctx, service.Work{Kind: "operation", Name: row.Kind, Resource: row.Resource})()
	}
	x := &execution{Runner: r, kind: k, place: p, row: row, log: r.cfg.Logger.With("operation", c.ID, "kind", row.Kind, "resource", row.Resource)}
	x.deadline.Store(row.DeadlineAt.UnixMicro())
	held, lose := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer lose(nil)
	wg.Go(func() { x.renew(held, lose, row.Fence) })
	for x.next(held) {
	}
	if context.Cause(held) == errLost && x.row.DueAt != nil && x.row.Owner != "" { //nolint:errorlint // it is set so
		x.log.WarnContext(ctx, "an operation was lost to another process", "step", x.row.Step)
	}
}

// lease takes an operation that nobody has, and returns it, or nil.
func (r *Runner) lease(ctx context.Context, c candidate) (*row, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Lease)
	defer cancel()
	owner, now := r.cfg.Host+"/"+rand.Text()[:8], r.now()
	r.cfg.Hook("before lease", "")
	n, err := exec(ctx, r.cfg.Store.db, `UPDATE operations SET owner = ?, fence = fence + 1, due_at = ? WHERE id = ? AND (due_at <= ? OR owner = '' AND due_at IS NOT NULL)`,
		owner, r.leaseEnd(c.DeadlineAt, now), c.ID, now)
	r.cfg.Hook("after lease", "")
	if err != nil || n == 0 {
		return nil, err
	}
	row, err := r.cfg.Store.read(ctx, r.cfg.Store.db, c.ID, "")
	if err == nil && row.Owner != owner {
		return nil, nil //nolint:nilnil // nobody's fault: see the doc
	}
	return row, err
}

// leaseEnd returns when a lease of now ends. It ends soon after the operation's deadline, if that
// comes before: a process that is killed does not keep the operation from being undone.
func (r *Runner) leaseEnd(deadline, now time.Time) time.Time {
	end := now.Add(r.cfg.Lease)
	soon := deadline.Add(min(r.cfg.Lease/5, 2*time.Second))
	if now.Before(deadline) && soon.Before(end) {
		return soon
	}
	return end
}

// renew renews the lease until ctx ends. When it is lost, or may be, it calls lose.
func (x *execution) renew(ctx context.Context, lose context.CancelCauseFunc, fence int64) {
	tick := time.NewTicker(x.cfg.Lease / 3)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		begin := time.Now()
		call, cancel := context.WithTimeout(ctx, x.cfg.Lease/3)
		n, err := exec(call, x.cfg.Store.db, `UPDATE operations SET due_at = ? WHERE id = ? AND fence = ? AND due_at IS NOT NULL AND owner <> ''`,
			x.leaseEnd(time.UnixMicro(x.deadline.Load()).UTC(), x.now()), x.row.ID, fence)
		cancel()
		switch {
		case err == nil && n == 0:
			lose(errLost)
			return
		case err == nil:
			last = begin
		case time.Since(last) > x.cfg.Lease*2/3: // before another one may take it
			lose(errLost)
			return
		}
	}
}

// next does what is next, and reports whether there is more to do here.
func (x *execution) next(ctx context.Context) bool {
	if context.Cause(ctx) == errLost { //nolint:errorlint // it is set so
		return false
	}
	x.mu.Lock()
	ending := x.ending
	x.mu.Unlock()
	if ending || ctx.Err() != nil {
		x.release(ctx, x.now(), x.row.Attempts, nil)
		return false
	}
	late := !x.now().Before(x.row.DeadlineAt)
	switch {
	case x.row.State == Running && late:
		return x.fail(ctx, TimedOut, fault.Timeout, fmt.Sprintf("it was not done within %v", x.row.timeout()), nil)
	case x.row.State == Running && x.row.Step >= len(x.kind.steps):
		return x.write(ctx, "end", func(r *row) { r.over(Succeeded, x.now()) }, nil, nil)
	case x.row.State == Running:
		return x.do(ctx, &x.kind.steps[x.row.Step])
	case x.row.Step < 0 || x.row.Step >= len(x.kind.steps):
		return x.write(ctx, "end", func(r *row) { r.over(r.Outcome, x.now()) }, nil, nil)
	default:
		return x.undo(ctx, &x.kind.steps[x.row.Step], late)
	}
}

// do does a step.
func (x *execution) do(ctx context.Context, s *step) bool {
	op, began := x.op(), x.now()
	done := func(r *row) {
		r.Data = string(op.data)
		x.kind.done(r, x.now())
	}
	var err error
	if s.doTx != nil {
		more, stepErr := x.inTx(ctx, s, s.doTx, op, "done", began, done)
		if stepErr == nil {
			return more
		}
		err = stepErr
	} else {
		err = x.attempt(ctx, s, func(ctx context.Context) error { return s.do(ctx, op, x.row.Input) })
	}
	a, waits := errors.AsType[*again](err)
	g, back := errors.AsType[*goToError](err)
	switch {
	case err == nil:
		return x.write(ctx, "done", done, x.event(s, "done", nil, began), nil)
	case context.Cause(ctx) == errLost: //nolint:errorlint // it is set so
		return false
	case ctx.Err() != nil: // the process ends, and does not wait for the step
		x.release(ctx, x.now(), x.row.Attempts, nil)
		return false
	case waits:
		x.release(ctx, x.now().Add(a.after), 0, op.data)
		return false
	case back:
		return x.back(ctx, s, g, op.data, began)
	case passing(err):
		x.later(ctx, x.event(s, "retry", err, began))
		return false
	default:
		return x.fail(ctx, Failed, fault.CodeOf(err), err.Error(), x.event(s, "failed", err, began))
	}
}

// back sends the operation back to an earlier step, or fails it when it was sent often enough.
func (x *execution) back(ctx context.Context, s *step, g *goToError, data json.RawMessage, began time.Time) bool {
	to := slices.IndexFunc(x.kind.steps[:x.row.Step], func(s step) bool { return s.name == g.step })
	var n int
	err := db.Error(x.cfg.Store.db.GetContext(ctx, &n, `SELECT COUNT(*) FROM operation_events WHERE operation_id = ? AND step = ? AND result = 'back'`, x.row.ID, s.name))
	switch {
	case err != nil:
		x.later(ctx, x.event(s, "retry", err, began))
		return false
	case to < 0:
		err = fault.New(fault.Internal, "there is no step %q before step %s", g.step, s.name)
		return x.fail(ctx, Failed, fault.Internal, err.Error(), x.event(s, "failed", err, began))
	case n >= g.limit:
		err = fmt.Errorf("back to step %s %d times: %w", g.step, n, g.err)
		return x.fail(ctx, Failed, fault.CodeOf(err), err.Error(), x.event(s, "failed", err, began))
	}
	id, wait := x.row.ID, pause(n)
	x.write(ctx, "back", func(r *row) {
		due := x.now().Add(wait)
		r.Step, r.Attempts, r.Owner, r.DueAt, r.Data = to, 0, "", &due, string(data)
	}, x.event(s, "back", g.err, began), nil)
	time.AfterFunc(wait, func() { x.Wake(id) })
	return false
}

// inTx does or undoes a step in the transaction in which it is noted. stepErr is the
// step's own.
func (x *execution) inTx(ctx context.Context, s *step, f func(context.Context, *sqlx.Tx, *Op, string) error, op *Op, result string, began time.Time, change func(*row)) (more bool, stepErr error) {
	more = x.write(ctx, result, change, x.event(s, result, nil, began), func(ctx context.Context, tx *sqlx.Tx) error {
		*op = *x.op() // of an attempt that was rolled back nothing is kept
		if stepErr = x.attempt(ctx, s, func(ctx context.Context) error { return f(ctx, tx, op, x.row.Input) }); stepErr != nil {
			return stepErr
		}
		if string(op.data) == x.row.Data {
			return nil
		}
		_, err := exec(ctx, tx, `UPDATE operations SET data = ? WHERE id = ?`, string(op.data), op.ID)
		return err
	})
	if stepErr == nil {
		x.row.Data = string(op.data)
	}
	return more, stepErr
}

// lastUndo is how long the last attempt to undo a step may take, when the time for it is over.
const lastUndo = 5 * time.Second

// attempt calls a step within its time.
func (x *execution) attempt(ctx context.Context, s *step, f func(context.Context) error) (err error) {
	left := max(x.row.DeadlineAt.Sub(x.now()), time.Millisecond)
	if x.row.State == Undoing { // the last attempt has its time always
		left = max(left, lastUndo)
	}
	ctx, cancel := context.WithTimeout(ctx, min(s.timeout, left))
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			x.log.ErrorContext(ctx, "panic in a step", "step", s.name, "panic", p, "stack", string(debug.Stack()))
			err = fault.New(fault.Internal, "panic: %v", p)
		}
	}()
	x.cfg.Hook("before step", s.name)
	defer x.cfg.Hook("after step", s.name)
	return f(ctx)
}

func (x *execution) op() *Op {
	op := &Op{ID: x.row.ID, Kind: x.row.Kind, Resource: x.row.Resource, Attempt: x.row.Attempts, Fence: x.row.Fence, data: json.RawMessage(x.row.Data)}
	if x.row.State == Undoing {
		op.Err = x.row.err()
	}
	return op
}

func (x *execution) event(s *step, result string, err error, began time.Time) *Event {
	e := &Event{Step: s.name, Result: result, Host: x.cfg.Host, Began: began}
	if err != nil {
		e.fail(result, err)
	}
	return e
}

// fail ends what goes forward: what was done is undone, from this step on.
func (x *execution) fail(ctx context.Context, outcome State, code fault.Code, why string, e *Event) bool {
	x.log.WarnContext(ctx, "an operation is undone", "step", x.row.Step, "outcome", string(outcome), "error", why)
	return x.write(ctx, "fail", func(r *row) {
		now := x.now()
		if x.kind.fail(r, outcome, code, why, now); !r.State.Over() {
			due := x.leaseEnd(r.DeadlineAt, now) // that of the lease so far was near the deadline
			r.DueAt = &due
		}
	}, e, nil)
}

// undo undoes a step.
func (x *execution) undo(ctx context.Context, s *step, late bool) bool {
	op, began := x.op(), x.now()
	undone := func(r *row) {
		r.Data = string(op.data)
		x.kind.undone(r, x.now())
	}
	var err error
	switch {
	case s.undoTx != nil:
		more, stepErr := x.inTx(ctx, s, s.undoTx, op, "undone", began, undone)
		if stepErr == nil {
			return more
		}
		err = stepErr
	case s.undo != nil:
		err = x.attempt(ctx, s, func(ctx context.Context) error { return s.undo(ctx, op, x.row.Input) })
	}
	switch a, waits := errors.AsType[*again](err); {
	case err == nil:
		return x.write(ctx, "undone", undone, x.event(s, "undone", nil, began), nil)
	case context.Cause(ctx) == errLost: //nolint:errorlint // it is set so
		return false
	case ctx.Err() != nil:
		x.release(ctx, x.now(), x.row.Attempts, nil)
		return false
	case waits && !late:
		x.release(ctx, x.now().Add(a.after), 0, op.data)
		return false
	case !late, s.undoTx != nil && passing(err):
		x.later(ctx, x.event(s, "retry", err, began))
		return false
	default: // the other steps are still undone
		x.log.ErrorContext(ctx, "step not undone", "step", s.name, "error", err)
		x.notUndone.Add(1)
		return x.write(ctx, "undone", func(r *row) {
			r.Error = db.Cut(fmt.Sprintf("%s; step %s was not undone: %v", r.Error, s.name, err), maxError)
			undone(r)
		}, x.event(s, "not undone", err, began), nil)
	}
}

// later gives the operation back until the next attempt.
func (x *execution) later(ctx context.Context, e *Event) {
	id, wait := x.row.ID, time.Duration(0)
	x.write(ctx, "retry", func(r *row) { wait = r.later(x.now()) }, e, nil)
	time.AfterFunc(wait, func() { x.Wake(id) })
}

// release gives the operation back: it is due then, or at once if it was woken.
func (x *execution) release(ctx context.Context, due time.Time, attempts int, data json.RawMessage) {
	x.mu.Lock()
	woken := x.place.woken
	x.mu.Unlock()
	if woken {
		due = x.now()
	}
	x.write(ctx, "release", func(r *row) {
		r.Owner, r.DueAt, r.Attempts = "", &due, attempts
		if data != nil {
			r.Data = string(data)
		}
	}, nil, nil)
}

// write changes the row, and adds an event and what else belongs to the change, in one
// transaction. While the database is away it tries again, until the lease is lost. It
// reports whether the operation is still here and not over.
func (x *execution) write(ctx context.Context, place string, change func(*row), e *Event, also func(context.Context, *sqlx.Tx) error) bool {
	// What was done is noted also when the process is told to hurry.
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.cfg.Lease)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		if context.Cause(ctx) == errLost { //nolint:errorlint // it is set so
			cancel()
		}
	})()
	for attempt := 0; ; attempt++ {
		next := *x.row
		change(&next)
		next.UpdatedAt = x.now()
		x.cfg.Hook("before "+place, "")
		err := x.try(wctx, &next, e, also)
		x.cfg.Hook("after "+place, "")
		switch {
		case err == nil:
			x.row = &next
			x.deadline.Store(next.DeadlineAt.UnixMicro())
			if next.State.Over() {
				x.log.InfoContext(ctx, "an operation is over", "state", string(next.State), "took", next.UpdatedAt.Sub(next.CreatedAt).Round(time.Millisecond))
			}
			return next.DueAt != nil && next.Owner != ""
		case errors.Is(err, errLost), errors.Is(err, errStep):
			return false
		case !passing(err):
			x.log.ErrorContext(ctx, "an operation cannot be written, and is left to the end of its lease", "error", err)
			return false
		}
		t := time.NewTimer(pause(min(attempt, 3)))
		select {
		case <-t.C:
		case <-wctx.Done():
			t.Stop()
			return false
		}
	}
}

// errStep marks the error of a step that is part of a transaction.
var errStep = errors.New("the step failed")

func (x *execution) try(ctx context.Context, next *row, e *Event, also func(context.Context, *sqlx.Tx) error) error {
	if e == nil && also == nil {
		n, err := x.update(ctx, x.cfg.Store.db, next)
		if err == nil && n == 0 {
			err = x.already(ctx, next)
		}
		return err
	}
	next.Events++
	err := db.Tx(ctx, x.cfg.Store.db, func(ctx context.Context, tx *sqlx.Tx) error {
		// First, so that what was committed by an attempt whose answer was lost is not
		// done again.
		n, err := x.update(ctx, tx, next)
		if err != nil {
			return err
		}
		if n == 0 {
			return errLost
		}
		if also != nil {
			if err := also(ctx, tx); err != nil {
				return fmt.Errorf("%w: %w", errStep, err)
			}
		}
		return e.insert(ctx, tx, next.ID, x.row.Events, x.now())
	})
	if errors.Is(err, errLost) {
		return x.already(ctx, next)
	}
	return err
}

// update writes a row if it is what this execution has seen.
func (x *execution) update(ctx context.Context, q sqlx.ExecerContext, next *row) (int64, error) {
	return exec(ctx, q, `UPDATE operations SET state = ?, outcome = ?, active = ?, step = ?, attempts = ?, events = ?, data = ?, error_code = ?, error = ?,
		owner = ?, due_at = CASE WHEN ? THEN due_at ELSE ? END, deadline_at = ?, updated_at = ?, ended_at = ?
		WHERE id = ? AND fence = ? AND state = ? AND step = ? AND events = ? AND owner = ?`,
		next.State, next.Outcome, next.Active, next.Step, next.Attempts, next.Events, next.Data, next.ErrorCode, next.Error,
		next.Owner, next.DueAt == x.row.DueAt, next.DueAt, next.DeadlineAt, next.UpdatedAt, next.EndedAt,
		x.row.ID, x.row.Fence, x.row.State, x.row.Step, x.row.Events, x.row.Owner)
}

// already looks whether a change that found no row was made before: its answer was lost.
func (x *execution) already(ctx context.Context, next *row) error {
	have, err := x.cfg.Store.read(ctx, x.cfg.Store.db, next.ID, "")
	if err != nil {
		return err
	}
	if have.Fence == x.row.Fence && have.State == next.State && have.Step == next.Step && have.Events == next.Events && have.Owner == next.Owner {
		return nil
	}
	return errLost
}
