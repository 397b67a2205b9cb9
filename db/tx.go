package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/fault"
)

const (
	maxTries = 20
	firstGap = 4 * time.Millisecond // between tries, doubled up to lastGap
	lastGap  = 500 * time.Millisecond
)

// Tx runs f in a transaction and commits it. It rolls back if f returns an
// error or panics. When another transaction won (deadlock, lock time-out,
// changed row, conflict at COMMIT, busy file) it runs f again, up to 20 times
// with growing random pauses, until ctx ends: so f may run several times, must
// have no effect but on tx, and must set whatever it hands out from scratch.
// f must return every error of tx, because a deadlock has ended the
// transaction already. Nothing but tx may be used inside f: a second
// transaction on d may wait for this one for ever.
//
// A Tx on d with the context that f got, or one made from it, joins: its
// function runs in the same transaction, once. The outermost commits, and runs
// all again. What an inner one failed with dooms the whole: it is rolled back,
// and fails with that error even if f hides it, for half of it may be done. A Tx
// on another handle is a transaction of its own.
//
// f's own error is returned, with a code as by [Error] if it had none. Others:
// Unavailable if it lost every time or the connection was lost before COMMIT
// was sent, so that nothing is done; Unknown if the connection was lost, or ctx
// ended, while COMMIT was on its way, so that it may be done; Precondition if
// the transaction of the context has ended; the context's. Tx returns within a
// second of the context's end, if f does. It is safe for concurrent use, but
// one transaction is not.
func Tx(ctx context.Context, d *sqlx.DB, f func(ctx context.Context, tx *sqlx.Tx) error) error {
	if o := current(ctx, d); o != nil {
		return o.join(ctx, f)
	}
	gap := firstGap
	for try := 1; ; try++ {
		err := once(ctx, d, f)
		if err == nil || fault.CodeOf(err) == fault.Unknown {
			wrote(ctx, d)
		}
		if err == nil || !retryable(err) {
			return Error(err)
		}
		if try == maxTries {
			return fault.New(fault.Unavailable, "transaction lost %d times: %w", try, Error(err))
		}
		if serr := sleep(ctx, rand.N(gap)); serr != nil {
			return fmt.Errorf("transaction lost %d times: %w: %w", try, serr, err)
		}
		gap = min(2*gap, lastGap)
	}
}

// open is a transaction that a context carries.
type open struct {
	d     *sqlx.DB
	tx    *sqlx.Tx
	outer *open // on another handle

	mu     sync.Mutex
	ended  bool
	doomed error // by which an inner function failed
}

type openKey struct{}

// current returns the transaction on d that ctx carries, nil if there is none.
func current(ctx context.Context, d *sqlx.DB) *open {
	o, _ := ctx.Value(openKey{}).(*open)
	for o != nil && o.d != d {
		o = o.outer
	}
	return o
}

// join runs f in the transaction.
func (o *open) join(ctx context.Context, f func(context.Context, *sqlx.Tx) error) error {
	o.mu.Lock()
	ended, doomed := o.ended, o.doomed
	o.mu.Unlock()
	switch {
	case ended:
		return fault.New(fault.Precondition, "the transaction that this context belongs to has ended")
	case doomed != nil:
		return fmt.Errorf("the transaction is to be rolled back, a part of it failed: %w", doomed)
	}
	ok := false
	defer func() { // f may panic, and f's caller recover
		if !ok {
			o.doom(errors.New("panic in a part of the transaction"))
		}
	}()
	err := f(ctx, o.tx)
	if ok = true; err != nil {
		o.doom(err)
	}
	return Error(err)
}

// doom keeps the first error.
func (o *open) doom(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.doomed == nil {
		o.doomed = err
	}
}

// end forbids to join, and returns the error that doomed the transaction.
func (o *open) end() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	return o.doomed
}

func once(ctx context.Context, d *sqlx.DB, f func(context.Context, *sqlx.Tx) error) error {
	tx, err := d.BeginTxx(ctx, nil)
	if err != nil {
		return rolledBack("begin transaction", err)
	}
	defer func() { _ = tx.Rollback() }() // after COMMIT it does nothing; a panic goes on after it
	outer, _ := ctx.Value(openKey{}).(*open)
	o := &open{d: d, tx: tx, outer: outer}
	defer func() { _ = o.end() }() // if f panics
	err = f(context.WithValue(ctx, openKey{}, o), tx)
	if doomed := o.end(); doomed != nil && (err == nil || retryable(doomed) && !retryable(err)) {
		err = doomed
	}
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, sql.ErrTxDone) {
			return ctx.Err() // database/sql rolled back behind f's back
		}
		return rolledBack("", err)
	}
	return commit(ctx, d, tx)
}

// rolledBack marks the loss of the connection as what it is before COMMIT:
// nothing is done.
func rolledBack(what string, err error) error {
	if lost(err) && !errors.Is(err, fault.Unavailable) {
		err = fault.New(fault.Unavailable, "connection lost before COMMIT: %w", err)
	}
	if what != "" {
		err = fmt.Errorf("%s: %w", what, err)
	}
	return err
}

func commit(ctx context.Context, d *sqlx.DB, tx *sqlx.Tx) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := tx.Commit()
	_, answered := errors.AsType[*mysql.MySQLError](err)
	_, local := sqliteCode(err)
	switch {
	case err == nil:
		return nil
	case answered, local, coded(err) && isSQLite(d):
		return fmt.Errorf("commit: %w", err)
	case errors.Is(err, driver.ErrBadConn): // it could not be sent
		return fault.New(fault.Unavailable, "commit: %w", err)
	case errors.Is(err, sql.ErrTxDone) && ctx.Err() != nil:
		return ctx.Err()
	}
	return fault.New(fault.Unknown, "commit, which may have been done: %w", err)
}

func isSQLite(d *sqlx.DB) bool { return d.DriverName() == driverSQLite }
