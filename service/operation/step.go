package operation

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
)

// Op describes an operation to the functions of its steps. They must not change the fields of Op.
type Op struct {
	ID       string
	Kind     string
	Resource string
	// State is Running, Undoing, or, for [OnEnd], the state in which the operation ends.
	State State
	// StepName is the name of the step. It is empty until a runner has seen the operation.
	StepName string
	// Attempt is the number of failed attempts at the step since the operation entered it, including reported failures.
	Attempt int
	// Waits is how often the step has returned [WaitFor] since the operation entered it.
	Waits int
	// Token names one entry of the operation into the step. A process that does the step's work uses the token to ask whether the work is
	// still wanted ([Store.Wanted]) and to report the result ([Runner.EndStep]). The token stays the same when the runner calls the step
	// again. It changes when Do is retried after a reported failure, and at each later entry into the step, such as by [GoTo], by undoing or by
	// [Store.Retry]. A token consists of the operation's random ID and of a number, which is random except at
	// the first entry. So no process can guess a token. It has at most 50 bytes.
	Token string
	// Err is the error because of which the operation is being undone, or with which it has ended. It is nil while the operation runs and
	// after it has succeeded. Its code is Timeout after a timeout of the operation or of a step, and Canceled if the operation was canceled.
	Err error

	data json.RawMessage
}

// Step is a part of an operation. At least one of Do, DoTx, Undo and UndoTx is required.
//
// The functions get the operation's data with the changes of the previous steps. The changes of a function are written in the transaction that
// marks the step as done, undone, or waiting. The changes of a failed attempt are dropped. The data must stay equal when they are written as
// JSON and read back.
//
// After an error that Retry defines as transient, the runner retries the step with back-off, until Limit or the operation's Timeout has
// passed. [GoTo] sends the operation back to an earlier step. [WaitFor] makes the operation wait. Any other error ends the operation: its
// steps are undone, this step first, because it may be done in part. Undoing is retried after every error, for the operation's Timeout. After
// that, each remaining step gets one more attempt of at most 5 s. If a step still cannot be undone, the error is logged, added to the
// operation's error, and counted, see [Stats].
type Step[D any] struct {
	// Name is stored, and must not change. An operation keeps the steps that the kind had in the release of the runner that has first run the
	// operation, in their order. So a release may add a step anywhere, and reorder steps: operations that already run are continued, and
	// undone, without the new step and in their own order. A release that adds a step must increase Kind.Version. A runner runs and undoes an
	// operation only if the runner's kind has all steps of the operation and at least the operation's version. Other operations wait for a
	// runner that knows them, see [Stats] and [Operation].
	//
	// A step is removed in two releases. In the first release Do does nothing, and Undo still undoes what older releases have done. The second
	// release, which starts when all operations with the step have ended, does not have the step. A step that goes back to a new step
	// ([GoTo]), or needs the data of a new step, must expect operations without the new step. A new step must expect data without the fields
	// that its release has added.
	Name string
	// Do does the step's work at least once: it is called again if the process ends before the step is marked as done.
	Do func(ctx context.Context, op *Op, data *D) error
	// DoTx does work exactly once, after Do, in the transaction that marks the step as done. It must have no effect outside tx, because it is
	// called again if the transaction is rolled back. If a report ends the step, DoTx runs in the transaction of the report, and
	// [Runner.EndStep] returns the error of DoTx.
	DoTx func(ctx context.Context, tx *sqlx.Tx, op *Op, data *D) error
	// Reported is called in the transaction of a report ([Runner.EndStep]), with the error of the report, or nil. If Reported returns nil, the
	// step ends as the report says. If it returns [GoTo], the operation goes back. Any other error rolls the transaction back, and EndStep
	// returns it. Reported requires a Do. Default nil: the step ends as the report says.
	Reported func(ctx context.Context, tx *sqlx.Tx, op *Op, data *D, err error) error
	// Undo undoes the work at least once. It must also succeed if the work was done only in part, or not at all.
	Undo func(ctx context.Context, op *Op, data *D) error
	// UndoTx undoes work exactly once, after Undo, in the transaction that marks the step as undone. The rules of DoTx also hold for UndoTx.
	UndoTx func(ctx context.Context, tx *sqlx.Tx, op *Op, data *D) error
	// Timeout is how long one call of Do, DoTx, Undo or UndoTx may take. Default 1 minute.
	Timeout time.Duration
	// Limit is how long the step may take in total, with all attempts and waits, before the operation fails with code Timeout. Default: only
	// the operation's Timeout limits the step. Time in which no runner was alive does not count, see the package comment. A negative Timeout or Limit
	// makes [Handle] panic.
	Limit time.Duration
	// Retry defines after which errors Do and DoTx are retried, how often, and how soon. It does not apply to undoing.
	Retry Retry
}

// Retry is the retry policy of a step.
type Retry struct {
	// Codes are the codes of transient errors. Default: Unavailable, Unknown and Timeout, and also fault.ErrUnsupportedVersion and
	// fault.ErrVersionCap, because during a rolling upgrade the peer may be upgraded soon. Regardless of its code, an error of [Transient] is
	// always transient, and an error of [Permanent] never.
	Codes []fault.Code
	// Max is the maximum number of retries after transient errors in a row. Default: limited only by time.
	Max int
	// MinDelay is the delay after the first error. The delay doubles with each further error, up to MaxDelay, and is shortened at random by up
	// to a quarter. MinDelay defaults to 100 ms. MaxDelay defaults to 3 s or to MinDelay, whichever is longer. With both defaults operations
	// continue within 5 s after an outage. If MaxDelay is below MinDelay, each delay is MaxDelay. Negative delays make [Handle] panic.
	MinDelay, MaxDelay time.Duration
}

// delay returns the back-off after the given number of failed attempts.
func (p Retry) delay(attempts int) time.Duration {
	first := cmp.Or(p.MinDelay, 100*time.Millisecond)
	longest := cmp.Or(p.MaxDelay, max(3*time.Second, first))
	d := backoff.Exponential(attempts+1, first, longest)
	return d - rand.N(d/4+1)
}

// allows reports whether the step is retried after an error. The parameter attempts is the number of previous failed attempts.
func (p Retry) allows(err error, attempts int) bool {
	return (p.Max <= 0 || attempts < p.Max) && p.transient(err)
}

func (p Retry) transient(err error) bool {
	if m, marked := errors.AsType[*markedError](err); marked {
		return m.transient
	}
	if p.Codes == nil {
		return isTransient(err) || errors.Is(err, fault.ErrUnsupportedVersion) || errors.Is(err, fault.ErrVersionCap)
	}
	return slices.Contains(p.Codes, fault.CodeOf(err))
}

// isTransient reports whether an error is temporary, judged by its code.
func isTransient(err error) bool {
	c := fault.CodeOf(err)
	return c == fault.Unavailable || c == fault.Unknown || c == fault.Timeout
}

// markedError is an error of Permanent or Transient.
type markedError struct {
	error

	transient bool
}

func (m *markedError) Unwrap() error { return m.error }

// Permanent marks an error of a step as permanent: it ends the operation, whatever its code is. If an error has several marks, the outermost
// mark counts. Permanent(nil) is nil.
func Permanent(err error) error { return markError(err, false) }

// Transient marks an error of a step as transient: the step is retried, whatever the code of the error is. If an error has several marks, the
// outermost mark counts. Transient(nil) is nil.
func Transient(err error) error { return markError(err, true) }

func markError(err error, transient bool) error {
	if err == nil {
		return nil
	}
	return &markedError{err, transient}
}

// WaitFor is the result of Do or Undo when another process does the work, or when the function has to be called again later. A report
// ([Runner.EndStep]) ends the step. Without a report, the function is called again when [Runner.Signal] names the peer, when [Runner.Notify]
// names the operation, and at the latest after the delay. The peer is a name that the component chooses, such as that of a host, of at most
// 255 bytes. If the peer is empty, no signal ends the delay. A delay below 10 ms, even a negative one, counts as 10 ms. Waiting is not a
// failure and writes no event.
func WaitFor(peer string, delay time.Duration) error { return &waitError{peer, delay} }

type waitError struct {
	peer  string
	delay time.Duration
}

func (w *waitError) Error() string { return fmt.Sprintf("wait for %q, at most %v", w.peer, w.delay) }

// GoTo is the result of Do or Reported that sends the operation back to an earlier step because of err. For example, if the chosen host has
// failed, the operation goes back to the step that chooses a host. Changes of the data are kept, such as the list of failed hosts. Nothing is
// undone, so a repeated step must replace its earlier results. A step may go back at most limit times in one operation; after that it fails
// with err. The operation continues after the back-off of the step's Retry. The time that all back-offs take must be longer than the time until
// a dead host counts as down, or the operation fails while the host is still chosen. The timeout of the operation bounds the attempts, too. If the earlier step does not exist, the step fails: this is a
// programmer's error.
func GoTo(step string, limit int, err error) error { return &goToError{step, limit, err} }

type goToError struct {
	step  string
	limit int
	err   error
}

func (g *goToError) Error() string { return fmt.Sprintf("back to step %s: %v", g.step, g.err) }
func (g *goToError) Unwrap() error { return g.err }

// A stepFunc is a function of a step with untyped data. It returns the data with the function's changes. The parameter tx is nil outside of a
// transaction. The parameter report is the error of a report.
type stepFunc func(ctx context.Context, tx *sqlx.Tx, op *Op, data json.RawMessage, report error) (json.RawMessage, error)

// step is a Step with untyped data.
type step struct {
	name                             string
	timeout, limit                   time.Duration
	retry                            Retry
	do, doTx, reported, undo, undoTx stepFunc // nil if the step has no such function
}

func (s *step) undoes() bool { return s.undo != nil || s.undoTx != nil }

// eraseStep checks a step and erases the type of its data.
func eraseStep[D any](kind string, s Step[D]) step {
	for wrong, is := range map[string]bool{
		"has no name":                      s.Name == "",
		"has a name of more than 64 bytes": len(s.Name) > maxName,
		"has nothing to do or to undo":     s.Do == nil && s.DoTx == nil && s.Undo == nil && s.UndoTx == nil,
		"has Reported and no Do":           s.Reported != nil && s.Do == nil,
		"has a negative time":              min(s.Timeout, s.Limit, s.Retry.MinDelay, s.Retry.MaxDelay) < 0,
	} {
		if is {
			panic(fmt.Sprintf("operation: step %q of %s %s", s.Name, kind, wrong))
		}
	}
	return step{
		name: s.Name, timeout: cmp.Or(s.Timeout, time.Minute), limit: s.Limit, retry: s.Retry,
		do: eraseDo(s.Do), doTx: eraseTx(s.DoTx), undo: eraseDo(s.Undo), undoTx: eraseTx(s.UndoTx), reported: eraseReported(s.Reported),
	}
}

func eraseDo[D any](f func(context.Context, *Op, *D) error) stepFunc {
	if f == nil {
		return nil
	}
	return eraseReported(func(ctx context.Context, _ *sqlx.Tx, op *Op, data *D, _ error) error { return f(ctx, op, data) })
}

func eraseTx[D any](f func(context.Context, *sqlx.Tx, *Op, *D) error) stepFunc {
	if f == nil {
		return nil
	}
	return eraseReported(func(ctx context.Context, tx *sqlx.Tx, op *Op, data *D, _ error) error { return f(ctx, tx, op, data) })
}

func eraseReported[D any](f func(context.Context, *sqlx.Tx, *Op, *D, error) error) stepFunc {
	if f == nil {
		return nil
	}
	return func(ctx context.Context, tx *sqlx.Tx, op *Op, raw json.RawMessage, report error) (json.RawMessage, error) {
		data := new(D)
		if err := json.Unmarshal(raw, data); err != nil {
			return raw, fault.New(fault.Invalid, "data of operation %s: %w", op.ID, err)
		}
		before, err := json.Marshal(data)
		if err != nil {
			return raw, fault.New(fault.Invalid, "data of operation %s: %w", op.ID, err)
		}
		result := f(ctx, tx, op, data, report)
		if _, waits := errors.AsType[*waitError](result); result != nil && !waits && !isGoTo(result) {
			return raw, result
		}
		after, err := json.Marshal(data)
		if err == nil {
			after = place{fresh: func() any { return new(D) }}.merge(raw, before, after)
			err = checkSize(after)
		}
		if err != nil {
			return raw, fault.New(fault.Invalid, "data after the step: %w", err)
		}
		return after, result
	}
}

func asGoTo(err error) (*goToError, bool) { return errors.AsType[*goToError](err) }

func isGoTo(err error) bool {
	_, is := asGoTo(err)
	return is
}
