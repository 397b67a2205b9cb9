package operation

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/internal/backoff"
)

// endError is an error of the function of OnEnd.
type endError struct{ error }

func (e *endError) Unwrap() error { return e.error }

// errStep marks the error of a function that was called in the transaction.
var errStep = errors.New("part of the transaction failed")

// write changes the row, adds an event, calls inTx, and calls OnEnd if the operation ends, all in one transaction. The parameters e and inTx
// may be nil. While the database is down, write retries until the lease is lost. The result more reports whether this process must continue
// the operation. The result err is the error of inTx, or an endError of OnEnd; in both cases nothing was written.
func (x *execution) write(ctx context.Context, change func(*row), e *Event, inTx func(context.Context, *sqlx.Tx, *row) error) (more bool, err error) {
	// The result is written even if ctx has ended, as in a drain.
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.cfg.Lease)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		if lostLease(ctx) {
			cancel()
		}
	})()
	for attempt := 0; ; attempt++ {
		next := *x.row
		change(&next)
		next.UpdatedAt = x.now()
		var partErr error
		err := x.writeOnce(wctx, &next, e, inTx, &partErr)
		if errors.Is(err, errLost) && attempt > 0 {
			err = x.checkWritten(wctx, &next)
		}
		switch {
		case err == nil:
			x.row = &next
			x.deadline.Store(next.deadline().UnixMicro())
			if next.over() {
				x.noteEnd(ctx, &next)
			}
			return next.DueAt != nil && next.Owner != "", nil
		case errors.Is(err, errLost):
			return false, nil
		case errors.Is(err, errStep):
			return false, partErr
		case !isTransient(err):
			x.log.ErrorContext(ctx, "operation not written, it is continued after the end of its lease", "error", err)
			return false, nil
		}
		if !backoff.Sleep(wctx, Retry{}.delay(min(attempt, 3))) {
			return false, nil
		}
	}
}

// writeOnce makes one attempt to write. The error is errLost if the row has changed, perhaps by an earlier attempt. It wraps errStep if
// partErr is set.
func (x *execution) writeOnce(ctx context.Context, next *row, e *Event, inTx func(context.Context, *sqlx.Tx, *row) error, partErr *error) error {
	ends := next.over() && x.kind.onEnd != nil && !x.skipOnEnd
	if e == nil && inTx == nil && !ends {
		n, err := saveRow(ctx, x.cfg.Store.db, x.row, next)
		if err == nil && n == 0 {
			err = errLost
		}
		return err
	}
	if e != nil {
		next.Events++
	}
	before := *next
	return db.Tx(ctx, x.cfg.Store.db, func(ctx context.Context, tx *sqlx.Tx) error {
		*next, *partErr = before, nil // the transaction may run several times
		// The row is saved first. If an earlier attempt was committed and its answer was lost, the row has changed, and inTx and OnEnd
		// are not called a second time.
		n, err := saveRow(ctx, tx, x.row, next)
		if err != nil {
			return err
		}
		if n == 0 {
			return errLost
		}
		if *partErr = x.callParts(ctx, tx, next, inTx, ends); *partErr != nil {
			return fmt.Errorf("%w: %w", errStep, *partErr)
		}
		if e == nil {
			return nil
		}
		return insertEvent(ctx, tx, next.ID, x.row.Events, e, x.now())
	})
}

// callParts calls the functions that belong to the transaction of a change of the row: inTx, and OnEnd if the operation ends.
func (x *execution) callParts(ctx context.Context, tx *sqlx.Tx, next *row, inTx func(context.Context, *sqlx.Tx, *row) error, ends bool) error {
	if inTx != nil {
		if err := inTx(ctx, tx, next); err != nil {
			return err
		}
	}
	if ends {
		if err := x.callEnd(ctx, tx, next); err != nil {
			return &endError{err}
		}
	}
	return nil
}

// callEnd calls the function of OnEnd.
func (x *execution) callEnd(ctx context.Context, tx *sqlx.Tx, next *row) error {
	return x.kind.callEnd(ctx, tx, next, func(p any) {
		x.log.ErrorContext(ctx, "panic in OnEnd", "panic", p, "stack", string(debug.Stack()))
	})
}

// checkWritten is called if a repeated attempt found that the row has changed. It returns nil if an earlier attempt, whose answer was lost,
// has written the change. Otherwise the lease is lost, and it returns errLost.
func (x *execution) checkWritten(ctx context.Context, next *row) error {
	have, err := x.cfg.Store.read(ctx, x.cfg.Store.db, next.ID, "")
	if err != nil {
		return err
	}
	if have.Fence == next.Fence && have.State == next.State && have.Entry == next.Entry && have.Events == next.Events && have.Owner == next.Owner {
		*next = *have // the stored row includes the changes of the data by inTx and OnEnd
		return nil
	}
	return errLost
}
