package operation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// Op is the operation that a step is of.
type Op struct {
	// ID is the operation's: with the step's name it is the key by which a step that
	// is done again is known.
	ID       string
	Kind     string
	Resource string
	// Attempt is how often the step was tried before, without those that were cut off.
	Attempt int
	// Fence is a number that is higher for whoever has the operation later. What takes
	// it along can turn away those that were thought dead.
	Fence int64
	// Err is why the operation is undone, with its code and text; nil while it is done.
	// Its code is Timeout if it ran out of its time, Canceled if it was canceled.
	Err error

	data json.RawMessage
}

// Step is a part of an operation. It has Do or DoTx, or neither if there is only something to
// undo, and Undo or UndoTx, or neither if there is nothing to undo; but not nothing at all.
//
// They get the operation's input as the steps before have left it: what one changes in it
// is written together with the note that it is done, or undone, or waits (see [Again]), and
// later ones, and those who look, find it so. It has to be the same after it was written as
// JSON and read again. What is changed in an attempt that failed is forgotten.
//
// An error of Do or DoTx with code Unavailable, Unknown or Timeout makes it try again after a
// pause of at most 3 s, until the operation's time is over; [GoTo] sends the operation back to an
// earlier step; any other error ends the operation: its steps are undone, this one first, as it
// may be done in part. Undoing is tried again after every error, until the time for it is over:
// then each step that is left has one more attempt of at most 5 s, and what is still not undone is
// logged, noted in the operation's error, and counted, see [Runner.Stats].
type Step[In any] struct {
	// Name is stored, for people. Steps are found again by their place: steps that have
	// been released are never reordered or removed, only added at the end.
	Name string
	// Do does it, at least once: it is done again if the process dies before it is
	// noted.
	Do func(ctx context.Context, op *Op, in *In) error
	// DoTx does it exactly once, in the transaction in which it is noted. It only
	// writes to tx, and may be called again if the transaction is rolled back.
	DoTx func(ctx context.Context, tx *sqlx.Tx, op *Op, in *In) error
	// Undo undoes it, at least once, also if it was only done in part or not at all.
	// Nil: there is nothing to undo.
	Undo func(ctx context.Context, op *Op, in *In) error
	// UndoTx undoes it exactly once, in the transaction in which that is noted. What it
	// writes is seen together with the end of the operation if no earlier step has anything to
	// undo. Otherwise as DoTx.
	UndoTx func(ctx context.Context, tx *sqlx.Tx, op *Op, in *In) error
	// Timeout is how long one attempt may take. Default 1 minute.
	Timeout time.Duration
}

// step is a Step whose input's type is forgotten.
type step struct {
	name         string
	timeout      time.Duration
	do, undo     func(ctx context.Context, op *Op, in string) error
	doTx, undoTx func(ctx context.Context, tx *sqlx.Tx, op *Op, in string) error
}

func erase[In any](k string, s Step[In]) step {
	for wrong, is := range map[string]bool{
		"has no name":                      s.Name == "",
		"has a name of more than 64 bytes": len(s.Name) > maxName,
		"has both Do and DoTx":             s.Do != nil && s.DoTx != nil,
		"has both Undo and UndoTx":         s.Undo != nil && s.UndoTx != nil,
		"has nothing to do or to undo":     s.Do == nil && s.DoTx == nil && s.Undo == nil && s.UndoTx == nil,
	} {
		if is {
			panic(fmt.Sprintf("operation: step %q of %s %s", s.Name, k, wrong))
		}
	}
	if s.Do == nil && s.DoTx == nil {
		s.Do = func(context.Context, *Op, *In) error { return nil }
	}
	out := step{name: s.Name, timeout: s.Timeout}
	if out.timeout <= 0 {
		out.timeout = time.Minute
	}
	call := func(f func(ctx context.Context, op *Op, in *In) error) func(ctx context.Context, op *Op, in string) error {
		if f == nil {
			return nil
		}
		return func(ctx context.Context, op *Op, raw string) error {
			return with(op, raw, func(in *In) error { return f(ctx, op, in) })
		}
	}
	out.do, out.undo = call(s.Do), call(s.Undo)
	callTx := func(f func(ctx context.Context, tx *sqlx.Tx, op *Op, in *In) error) func(ctx context.Context, tx *sqlx.Tx, op *Op, in string) error {
		if f == nil {
			return nil
		}
		return func(ctx context.Context, tx *sqlx.Tx, op *Op, raw string) error {
			return with(op, raw, func(in *In) error { return f(ctx, tx, op, in) })
		}
	}
	out.doTx, out.undoTx = callTx(s.DoTx), callTx(s.UndoTx)
	return out
}

// with calls f with an operation's input as it is now, and notes in op what f has changed.
func with[In any](op *Op, raw string, f func(*In) error) error {
	if string(op.data) != noData {
		raw = string(op.data)
	}
	in := new(In)
	if err := json.Unmarshal([]byte(raw), in); err != nil {
		return fault.New(fault.Invalid, "input: %w", err)
	}
	// Not raw: it may have what a later version of this program knows.
	before, err := json.Marshal(in)
	if err != nil {
		return fault.New(fault.Invalid, "input: %w", err)
	}
	result := f(in)
	_, waits := errors.AsType[*again](result)
	_, back := errors.AsType[*goToError](result)
	if result != nil && !waits && !back {
		return result
	}
	after, err := marshal(in)
	if err != nil {
		return fault.New(fault.Invalid, "input, as the step has left it: %w", err)
	}
	if !bytes.Equal(before, after) {
		op.data = after
	}
	return result
}

// noData is the data of an operation whose steps have changed nothing.
const noData = "null"

// Again is what a step returns that waits for something: it is called again after d, at
// the latest; [Runner.Wake] makes it earlier, and [Runner.Complete] says how what it waits
// for has ended. It is no failure, and leaves no event.
func Again(d time.Duration) error { return &again{d} }

type again struct{ after time.Duration }

// GoTo is what a step returns to send its operation back to an earlier step, because of err: to
// one that chooses a host, say, as the chosen one is gone. What the step has changed in the
// operation's input is kept, such as the host not to choose again; nothing is undone, so what is
// done again from there has to replace what was done before. A step may do so limit times in
// one operation: then it fails with err. The operation goes on after a pause, 100 ms at first and
// at most 3 s, within the time that it has in all. The error is a programmer's, and the step
// fails, if there is no such earlier step.
func GoTo(step string, limit int, err error) error { return &goToError{step, limit, err} }

type goToError struct {
	step  string
	limit int
	err   error
}

func (g *goToError) Error() string { return fmt.Sprintf("back to step %s: %v", g.step, g.err) }
func (g *goToError) Unwrap() error { return g.err }

func (a *again) Error() string { return fmt.Sprintf("not done yet, look again in %v", a.after) }

// passing reports whether an attempt that failed is to be made again.
func passing(err error) bool {
	c := fault.CodeOf(err)
	return c == fault.Unavailable || c == fault.Unknown || c == fault.Timeout
}

// pause is how long to wait before the next attempt.
func pause(attempts int) time.Duration {
	return min(minPause<<min(attempts, 10), maxPause)
}

const (
	minPause = 100 * time.Millisecond
	maxPause = 3 * time.Second // so that what waits goes on within 5 s after an outage
)

// What fits the tables. MySQL refuses what is longer, SQLite does not: so it is judged here.
const (
	maxName  = 64        // bytes of the name of a kind or of a step
	maxID    = 255       // bytes of a resource
	maxData  = 1<<16 - 1 // bytes of an input
	maxError = 8 << 10   // bytes of a text of an error, of which the rest is cut
)

// marshal returns an input as JSON, or an error if it does not fit.
func marshal(in any) ([]byte, error) {
	raw, err := json.Marshal(in)
	if err == nil && len(raw) > maxData {
		err = fmt.Errorf("it has %d bytes, at most %d fit", len(raw), maxData)
	}
	return raw, err
}

// fits reports Invalid if a name cannot be stored as it is.
func fits(what, name string, most int) error {
	if len(name) > most || !utf8.ValidString(name) {
		return fault.New(fault.Invalid, "%s %q has more than %d bytes, or is not UTF-8", what, db.Cut(name, most), most)
	}
	return nil
}
