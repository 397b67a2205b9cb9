package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/internal/engine"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
)

const (
	maxAttempts = 20
	minDelay    = 4 * time.Millisecond // between attempts, doubled up to maxDelay
	maxDelay    = 500 * time.Millisecond
)

// Tx runs f in a transaction and commits it. If f returns an error or panics, Tx
// rolls back.
//
// If the transaction conflicts with another one (a deadlock, a lock wait timeout, a changed row,
// a conflict at COMMIT, a busy file), Tx rolls back and runs f again. It makes at most 20
// attempts, with a random delay that grows up to 0.5 s, and stops when ctx ends. Therefore:
//
//   - f may run several times. It must change nothing except by tx, and must set its results anew
//     in each run.
//   - f must return each error of tx, because a deadlock has ended the transaction.
//   - f must not use another connection of d, because a statement there may wait for this
//     transaction for ever.
//
// A Tx on d with the context that f gets, or with a context derived from it, joins the
// transaction: the inner function runs once, in the same transaction. Only the outermost Tx commits
// and repeats. If an inner Tx fails, the whole transaction is rolled back and fails with
// that error. This also holds if f ignores the error, because a part of the inner function
// may be done. A Tx on another handle is a separate transaction.
//
// Errors:
//
//   - The error of f. If it has no code, it gets one as by [Error].
//   - Unavailable: all attempts failed, or the connection was lost before COMMIT was
//     sent. The database is unchanged.
//   - Unknown: the connection was lost, or ctx ended, after COMMIT was sent. The
//     transaction may be committed.
//   - Precondition: ctx belongs to a transaction that has ended.
//   - The context's error.
//
// Tx returns within one second after ctx ends, if f returns. Tx is safe for concurrent use,
// a transaction is not.
func Tx(ctx context.Context, d *sqlx.DB, f func(ctx context.Context, tx *sqlx.Tx) error) error {
	if o := currentTx(ctx, d); o != nil {
		return o.joinTx(ctx, f)
	}
	for attempt := 1; ; attempt++ {
		err := runOnce(ctx, d, f)
		if err == nil || fault.CodeOf(err) == fault.Unknown {
			markWritten(ctx, d)
		}
		if err == nil || !isRetryable(err) {
			return Error(err)
		}
		if attempt == maxAttempts {
			return fault.New(fault.Unavailable, "transaction failed %d times because of other transactions: %w", attempt, Error(err))
		}
		if !backoff.Sleep(ctx, backoff.FullJitter(attempt, minDelay, maxDelay)) {
			return fmt.Errorf("transaction failed %d times because of other transactions: %w: %w", attempt, context.Cause(ctx), err)
		}
	}
}

// AfterCommit calls f after the commit of the transaction on d in ctx, for example to notify a process that reads the rows that the
// transaction has written. If the transaction is rolled back, f is not called. If [Tx] returns Unknown, f is called. If Tx repeats the
// transaction, only the calls of AfterCommit in the last attempt count. If ctx has no transaction on d, or
// the transaction is committed already, f is called now.
//
// The outermost Tx calls the functions before it returns, in the order of the calls of AfterCommit. So f must not block, and must not
// panic.
func AfterCommit(ctx context.Context, d *sqlx.DB, f func()) {
	o := currentTx(ctx, d)
	if o == nil {
		f()
		return
	}
	o.mu.Lock()
	done := o.done
	if !done {
		o.committed = append(o.committed, f)
	}
	o.mu.Unlock()
	if done {
		f()
	}
}

// openTx is an open transaction in a context.
type openTx struct {
	d     *sqlx.DB
	tx    *sqlx.Tx
	outer *openTx                   // a transaction around this one, on another handle
	now   atomic.Pointer[time.Time] // the database's time, after it was read once

	mu        sync.Mutex
	ended     bool
	failure   error    // the first error of an inner function
	done      bool     // after COMMIT
	committed []func() // are called after COMMIT
}

type txKey struct{}

// currentTx returns the transaction on d in ctx, or nil.
func currentTx(ctx context.Context, d *sqlx.DB) *openTx {
	o, _ := ctx.Value(txKey{}).(*openTx)
	for o != nil && o.d != d {
		o = o.outer
	}
	return o
}

// txOf returns the transaction q if ctx has this transaction, and nil otherwise.
func txOf(ctx context.Context, q sqlx.QueryerContext) *openTx {
	tx, ok := q.(*sqlx.Tx)
	o, _ := ctx.Value(txKey{}).(*openTx)
	for ok && o != nil && o.tx != tx {
		o = o.outer
	}
	if !ok {
		return nil
	}
	return o
}

// joinTx runs f in the transaction. An error or a panic of f makes the transaction fail.
func (o *openTx) joinTx(ctx context.Context, f func(context.Context, *sqlx.Tx) error) error {
	o.mu.Lock()
	ended, failure := o.ended, o.failure
	o.mu.Unlock()
	switch {
	case ended:
		return fault.New(fault.Precondition, "the transaction of this context has ended")
	case failure != nil:
		return fmt.Errorf("the transaction will be rolled back because a part of it failed: %w", failure)
	}
	returned := false
	defer func() { // f may panic, and a caller of joinTx may recover
		if !returned {
			o.markFailed(errors.New("panic in a part of the transaction"))
		}
	}()
	err := f(ctx, o.tx)
	if returned = true; err != nil {
		o.markFailed(err)
	}
	return Error(err)
}

// markFailed makes the transaction fail with err, unless it has an earlier error.
func (o *openTx) markFailed(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failure == nil {
		o.failure = err
	}
}

// endTx makes later calls of joinTx fail. It returns the first error of a joined function.
func (o *openTx) endTx() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	return o.failure
}

// runOnce makes one attempt: it begins a transaction, runs f and commits or rolls back.
func runOnce(ctx context.Context, d *sqlx.DB, f func(context.Context, *sqlx.Tx) error) error {
	tx, err := d.BeginTxx(ctx, nil)
	if err != nil {
		return markRolledBack("begin transaction", "no connection to the database", err)
	}
	defer func() { _ = tx.Rollback() }() // has no effect after COMMIT; if f panics, the panic continues
	outer, _ := ctx.Value(txKey{}).(*openTx)
	o := &openTx{d: d, tx: tx, outer: outer}
	defer func() { _ = o.endTx() }() // if f panics
	err = f(context.WithValue(ctx, txKey{}, o), tx)
	if failure := o.endTx(); failure != nil && (err == nil || isRetryable(failure) && !isRetryable(err)) {
		err = failure
	}
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, sql.ErrTxDone) {
			return ctx.Err() // database/sql rolled back when the context ended
		}
		return markRolledBack("", "connection lost before COMMIT", err)
	}
	if err = commitTx(ctx, d, tx); err == nil || fault.CodeOf(err) == fault.Unknown {
		o.mu.Lock()
		o.done = true
		list := o.committed
		o.mu.Unlock()
		for _, f := range list {
			f()
		}
	}
	return err
}

// markRolledBack gives the loss of a connection before COMMIT the code Unavailable,
// because the database is unchanged. The error begins with the parameter action, unless action is empty. For a lost
// connection the error also has the text of the parameter loss.
func markRolledBack(action, loss string, err error) error {
	if isConnectionLost(err) && !errors.Is(err, fault.Unavailable) {
		err = fault.New(fault.Unavailable, "%s: %w", loss, err)
	}
	if action != "" {
		err = fmt.Errorf("%s: %w", action, err)
	}
	return err
}

// commitTx commits tx. The error is Unknown if COMMIT may have been executed.
func commitTx(ctx context.Context, d *sqlx.DB, tx *sqlx.Tx) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := tx.Commit()
	switch {
	case err == nil:
		return nil
	case engine.Explain(err).Answered, hasCode(err) && isSQLite(d):
		return fmt.Errorf("commit: %w", err)
	case errors.Is(err, driver.ErrBadConn): // COMMIT was not sent
		return fault.New(fault.Unavailable, "commit: %w", err)
	case errors.Is(err, sql.ErrTxDone) && ctx.Err() != nil:
		return ctx.Err()
	}
	return fault.New(fault.Unknown, "commit, the transaction may be committed: %w", err)
}

// isSQLite reports whether d is a handle on SQLite.
func isSQLite(d *sqlx.DB) bool { return d.DriverName() == engine.SQLite }
