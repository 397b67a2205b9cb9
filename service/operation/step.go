package operation

import (
	"bytes"
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
)

// Op is an operation as its steps see it. Its fields are not changed by a step.
type Op struct {
	ID       string
	Kind     string
	Resource string
	// State is Running, Undoing, or, for [OnEnd], the state in which the operation ends.
	State State
	// Step is the name of the step. It is empty until a runner has seen the operation.
	Step string
	// Attempt is how many attempts at the step have failed before, one after the other.
	Attempt int
	// Waits is how often the step has returned [WaitFor] since it was entered.
	Waits int
	// Token names this entry into the step: a process that does the step's work asks with it whether the work is still
	// wanted ([Store.Wanted]) and reports the end ([Runner.End]). Attempts at the step have the same token; a step
	// that is entered later, by [GoTo] or [Store.Retry], has another one. A token cannot be guessed: a process that
	// has it got it from the step. It has at most 50 bytes.
	Token string
	// Err is the error that the operation is undone for, or has ended with. Nil while it runs and after it has
	// succeeded. Its code is Timeout if the time of the operation or of the step was over, Canceled if the operation was canceled.
	Err error

	data json.RawMessage
}

// Step is a part of an operation. It needs at least one of Do, DoTx, Undo and UndoTx.
//
// The functions get the operation's data as the steps before have left it. What a function changes in the data is
// written in the transaction that notes that the step is done, undone, or waits. The data must be the same after they
// were written as JSON and read again. What is changed in an attempt that failed is dropped.
//
// An error that is transient by Retry makes the runner try the step again after a back-off, until Limit or the operation's
// Timeout is over. [GoTo] sends the operation back to an earlier step. [WaitFor] makes it wait. Any other error ends the
// operation: its steps are undone, this one first, because it may be done in part. Undoing is tried again after every
// error until the operation's Timeout is over once more. Then each step that is left has one more attempt of at most 5 s. A step
// that still fails is logged, noted in the operation's error, and counted, see [Stats].
type Step[D any] struct {
	// Name is stored. Steps are found again by their place: steps that have been released are not reordered or
	// removed, only added at the end.
	Name string
	// Do does the step's work at least once: it is called again if the process ends before the step is noted as done.
	Do func(ctx context.Context, op *Op, data *D) error
	// DoTx does work exactly once, in the transaction that notes the step as done, after Do. It only writes to tx, and
	// is called again if the transaction is rolled back.
	DoTx func(ctx context.Context, tx *sqlx.Tx, op *Op, data *D) error
	// Reported is called in the transaction of a report ([Runner.End]), with the error of the report, or nil. If it
	// returns nil, the step ends as the report says. With [GoTo] the operation goes back instead. Any other error rolls
	// the transaction back, and End returns it. Nil: the step ends as the report says.
	Reported func(ctx context.Context, tx *sqlx.Tx, op *Op, data *D, err error) error
	// Undo undoes the work at least once, also if it was done only in part or not at all.
	Undo func(ctx context.Context, op *Op, data *D) error
	// UndoTx undoes work exactly once, in the transaction that notes the step as undone, after Undo. Otherwise as DoTx.
	UndoTx func(ctx context.Context, tx *sqlx.Tx, op *Op, data *D) error
	// Timeout is how long one call of Do, DoTx, Undo or UndoTx may take. Default 1 minute.
	Timeout time.Duration
	// Limit is how long the step may take in all, with all attempts and waits, before the operation fails with code
	// Timeout. Default: as long as the operation. Time in which no runner was alive does not count, see [Runner].
	Limit time.Duration
	// Retry says which errors of Do and DoTx are tried again, how often, and how soon. It does not hold for undoing.
	Retry Retry
}

// Retry is how a step is tried again after an error.
type Retry struct {
	// Codes are those of transient errors. Default: Unavailable, Unknown and Timeout. An error of [Transient] is
	// transient and one of [Permanent] is not, whatever their codes.
	Codes []fault.Code
	// Max is how many transient errors one after the other are tried again. Default: no limit but time.
	Max int
	// MinDelay is the delay after the first error. It doubles with each further one up to MaxDelay, and up to a
	// quarter is taken off at random. Defaults 100 ms and 3 s, so that operations go on within 5 s after an outage.
	MinDelay, MaxDelay time.Duration
}

// delay returns the back-off after a number of failed attempts.
func (p Retry) delay(attempts int) time.Duration {
	longest := cmp.Or(p.MaxDelay, 3*time.Second)
	d := min(cmp.Or(p.MinDelay, 100*time.Millisecond)<<min(attempts, 16), longest)
	if d <= 0 { // the shift has overflown
		d = longest
	}
	return d - rand.N(d/4+1)
}

// again reports whether another attempt follows after an error and a number of failed attempts before.
func (p Retry) again(err error, attempts int) bool {
	return (p.Max <= 0 || attempts < p.Max) && p.transient(err)
}

func (p Retry) transient(err error) bool {
	if m, marked := errors.AsType[*markedError](err); marked {
		return m.transient
	}
	if p.Codes == nil {
		return isTransient(err)
	}
	return slices.Contains(p.Codes, fault.CodeOf(err))
}

// isTransient reports whether an error passes by itself, judged by its code.
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

// Permanent marks an error of a step as one that ends the operation, whatever its code. Of nested marks the outermost
// counts. Permanent(nil) is nil.
func Permanent(err error) error { return mark(err, false) }

// Transient marks an error of a step as one after which the step is tried again, whatever its code. Of nested marks the
// outermost counts. Transient(nil) is nil.
func Transient(err error) error { return mark(err, true) }

func mark(err error, transient bool) error {
	if err == nil {
		return nil
	}
	return &markedError{err, transient}
}

// WaitFor is what Do or Undo returns when another process does the work, or when the step has to look again later. The
// operation goes on when a report ends the step ([Runner.End]), when [Runner.Signal] says that the peer is there,
// when [Runner.Notify] names the operation, and at the latest after the delay: then the function is called again. The peer is a
// name that the component chooses, such as that of a host, of at most 255 bytes; empty: no signal ends the delay. Waiting is not a
// failure and leaves no event.
func WaitFor(peer string, delay time.Duration) error { return &waitError{peer, delay} }

type waitError struct {
	peer  string
	delay time.Duration
}

func (w *waitError) Error() string { return fmt.Sprintf("wait for %q, at most %v", w.peer, w.delay) }

// GoTo is what Do or Reported returns to send the operation back to an earlier step because of err: to the one that
// chooses a host, for example, because the chosen host has failed. What was changed in the data is kept, such as the host not to choose
// again. Nothing is undone, so what is done again from there has to replace what was done before. A step may do so limit times
// in one operation; after that it fails with err. The operation goes on after the back-off of the step's Retry. It is a
// programmer's error, and the step fails, if there is no such earlier step.
func GoTo(step string, limit int, err error) error { return &goToError{step, limit, err} }

type goToError struct {
	step  string
	limit int
	err   error
}

func (g *goToError) Error() string { return fmt.Sprintf("back to step %s: %v", g.step, g.err) }
func (g *goToError) Unwrap() error { return g.err }

// A stepFunc is a function of a step whose data have lost their type. It returns the data as the function has left
// them. tx is nil outside of a transaction, report is the error of a report.
type stepFunc func(ctx context.Context, tx *sqlx.Tx, op *Op, data json.RawMessage, report error) (json.RawMessage, error)

// step is a Step whose data have lost their type.
type step struct {
	name                             string
	timeout, limit                   time.Duration
	retry                            Retry
	do, doTx, reported, undo, undoTx stepFunc // nil if the step has none
}

func (s *step) undoes() bool { return s.undo != nil || s.undoTx != nil }

// eraseStep checks a step and takes the type of its data away.
func eraseStep[D any](kind string, s Step[D]) step {
	for wrong, is := range map[string]bool{
		"has no name":                      s.Name == "",
		"has a name of more than 64 bytes": len(s.Name) > maxName,
		"has nothing to do or to undo":     s.Do == nil && s.DoTx == nil && s.Undo == nil && s.UndoTx == nil,
		"has Reported and no Do":           s.Reported != nil && s.Do == nil,
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
		// raw may have fields that only a later release knows, so it does not tell what f changes.
		before, err := json.Marshal(data)
		if err != nil {
			return raw, fault.New(fault.Invalid, "data of operation %s: %w", op.ID, err)
		}
		result := f(ctx, tx, op, data, report)
		if _, waits := errors.AsType[*waitError](result); result != nil && !waits && !isGoTo(result) {
			return raw, result
		}
		after, err := marshalData(data)
		if err != nil {
			return raw, fault.New(fault.Invalid, "data, as the step has left them: %w", err)
		}
		if bytes.Equal(before, after) {
			after = raw
		}
		return after, result
	}
}

func asGoTo(err error) (*goToError, bool) { return errors.AsType[*goToError](err) }

func isGoTo(err error) bool {
	_, is := asGoTo(err)
	return is
}
