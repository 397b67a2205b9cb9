package operation

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// EndStep reports the result of the work of a token ([Op.Token]) and ends the step. The parameter reporter is the name of the process that did
// the work; the caller must have verified this name. If the step waits for a peer ([WaitFor]), only this peer can report, even while Do is
// called again. If err is nil, the step is done. Otherwise err is the error of the step, with its code and its text. [Step.Reported] can change
// that. If the operation is being undone, and Undo has returned [WaitFor], the report ends the undoing of the step, or leads to a retry. A
// report counts as long as the step is the current step, even after its deadline. If a runner runs the step at that moment, the runner loses
// its lease: when it tries to renew the lease, it cancels the context of the step, and the result of the step is dropped.
//
// EndStep runs in the transaction of ctx, if ctx has one, so that the report and the caller's changes are written together. EndStep blocks only
// for the transaction. A runner begins the next step; this runner can do so if it is started. Any process may call EndStep if its runner has
// the steps of the kind. If an answer was lost, the report may be repeated: a repeated report changes nothing and returns nil, until a later
// step is reported. After that, a repeated report of the earlier step returns ErrStale, because only the last report of an operation is
// recognized.
//
// A report without an error calls [Step.DoTx], or Step.UndoTx, after Step.Reported and in the same transaction, with the data that
// Reported has left.
//
// Errors:
//
//   - ErrStale: the work is no longer wanted, or not from this reporter.
//   - [ErrUnknownKind]: the runner does not know the operation in full, see [Step]. A process of the release that runs the operation must take
//     the report. So the reporter should report again soon, when another of several processes may answer.
//   - The error of Step.Reported, DoTx, UndoTx or [OnEnd]: nothing is changed, and the report may be repeated. An error whose methods panic,
//     such as a nil pointer, becomes Internal.
func (r *Runner) EndStep(ctx context.Context, token, reporter string, err error) error {
	id, entry, ok := parseToken(token)
	if !ok {
		return ErrStale
	}
	err = safeError(err, r.logPanic(ctx))
	var next *row
	txErr := db.Tx(ctx, r.cfg.Store.db, func(ctx context.Context, tx *sqlx.Tx) error {
		o, readErr := r.cfg.Store.read(ctx, tx, id, "FOR UPDATE")
		switch {
		case readErr != nil && fault.CodeOf(readErr) == fault.NotFound:
			return ErrStale // the operation was purged
		case readErr != nil:
			return readErr
		case o.Reported == entry:
			return nil
		case o.Entry != entry || o.State.Ended() || o.waitsForAnother(reporter):
			return ErrStale
		}
		var endErr error
		next, endErr = r.endStep(ctx, tx, o, reporter, err)
		return endErr
	})
	if txErr != nil {
		return txErr
	}
	db.AfterCommit(ctx, r.cfg.Store.db, func() { // after the caller's transaction: before its end, this runner would read the old row
		if next != nil && next.State.Ended() {
			r.noteEnd(ctx, next)
		}
		switch {
		case next != nil && next.DueAt == nil: // nothing is left to do
		case next != nil && next.DueAt.After(next.UpdatedAt): // a notification would end the back-off
			r.lookAfter(next.DueAt.Sub(next.UpdatedAt), next)
		default:
			r.Notify(id)
		}
	})
	return nil
}

// endStep ends the current step of an operation whose row is locked. It returns the new row.
func (r *Runner) endStep(ctx context.Context, tx *sqlx.Tx, o *row, reporter string, err error) (*row, error) {
	k := r.kinds[o.Kind].adopt(o)
	if k == nil {
		return nil, fmt.Errorf("end step %q of operation %s: this process does not know %s: %w", o.StepName, o.ID, o.variant(), ErrUnknownKind)
	}
	if o.Step < 0 {
		return nil, ErrStale
	}
	now := r.now()
	if !r.started.Load() { // only a started runner has measured the clock
		var nowErr error
		if now, nowErr = db.Now(ctx, tx); nowErr != nil {
			return nil, nowErr
		}
	}
	next := *o
	next.Owner, next.DueAt, next.UpdatedAt, next.Reported, next.UnknownAt = "", &now, now, o.Entry, nil
	next.Fence, next.Events = o.Fence+1, o.Events+1
	e, partErr := r.applyReport(ctx, tx, k, o, &next, err, now)
	if partErr != nil {
		return nil, partErr
	}
	e.Reporter = db.Cut(reporter, maxID)
	n, saveErr := saveRow(ctx, tx, o, &next)
	if saveErr != nil {
		return nil, saveErr
	}
	if n == 0 { // this cannot happen, because the row is locked
		return nil, fault.New(fault.Internal, "operation %s has changed while it was locked", o.ID)
	}
	if next.State.Ended() {
		if endErr := k.callEnd(ctx, tx, &next, r.logPanic(ctx)); endErr != nil {
			return nil, endErr
		}
	}
	return &next, insertEvent(ctx, tx, o.ID, o.Events, e, now)
}

// applyReport applies a report to next, the operation's new row, and returns the event.
func (r *Runner) applyReport(ctx context.Context, tx *sqlx.Tx, k *kind, o, next *row, err error, now time.Time) (*Event, error) { //nolint:gocognit // see CONTRIBUTING.md
	s := &k.steps[o.Step]
	event := func(result string, err error) *Event { return newEvent(s.name, result, r.cfg.Host, err, o.UpdatedAt) }
	if o.State == Undoing {
		if err == nil {
			if txErr := r.callTx(ctx, tx, s.undoTx, o, next); txErr != nil {
				return nil, txErr
			}
			k.stepUndone(next, now)
			return event("undone", nil), nil
		}
		next.Reported = o.Reported // the next attempt has the same token
		next.retryLater(now, s.retry.delay(o.Attempts))
		return event("retry", err), nil
	}
	var ends error
	if s.reported != nil {
		op := o.op()
		data, reportedErr := callStep(ctx, tx, s.reported, op, op.data, err, r.logPanic(ctx))
		if reportedErr != nil && !isGoTo(reportedErr) {
			return nil, reportedErr
		}
		next.setData(data)
		ends = reportedErr
	}
	if g, back := asGoTo(ends); back {
		to, n, goErr := r.cfg.Store.checkGoTo(ctx, tx, k, o, g)
		switch {
		case n < 0:
			return nil, goErr
		case goErr == nil:
			k.goBack(next, to, now, s.retry.delay(n))
			return event("back", g.err), nil
		}
		err = Permanent(goErr)
	}
	switch {
	case err == nil:
		if txErr := r.callTx(ctx, tx, s.doTx, o, next); txErr != nil {
			return nil, txErr
		}
		k.stepDone(next, now)
		return event("done", nil), nil
	case s.retry.allows(err, o.Attempts):
		k.enter(next, o.Step, now) // a report ends the entry, so the next attempt has another token
		next.StepDeadlineAt, next.Attempts = o.StepDeadlineAt, o.Attempts
		next.setError(err)
		next.retryLater(now, s.retry.delay(o.Attempts))
		return event("retry", err), nil
	default:
		k.compensate(next, Failed, err, now)
		return event("failed", err), nil
	}
}

// logPanic returns a function that logs a panic of one of the component's functions.
func (r *Runner) logPanic(ctx context.Context) func(any) {
	return func(p any) {
		r.cfg.Logger.ErrorContext(ctx, "panic in the report of a step", "panic", p, "stack", string(debug.Stack()))
	}
}

// callTx calls DoTx or UndoTx of a step, if the step has the function, with the data of next. It stores the changed data in next.
func (r *Runner) callTx(ctx context.Context, tx *sqlx.Tx, f stepFunc, o, next *row) error {
	if f == nil {
		return nil
	}
	data, err := callStep(ctx, tx, f, o.op(), next.data(), nil, r.logPanic(ctx))
	if err == nil {
		next.setData(data)
	}
	return err
}
