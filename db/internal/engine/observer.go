package engine

import (
	"context"
	"database/sql/driver"
	"log/slog"
	"strings"
	"time"
)

// Observer gets all statements of a handle. It logs slow statements and records lasting failures.
type Observer struct {
	Shown     string        // the URL without the password
	Addr      string        // host:port of the server; empty if the database is in this process
	SlowAfter time.Duration // 0: no statement is slow
	Log       *slog.Logger
	// ResponseTimeout bounds how long a database may be silent; 0 or negative: no limit. An engine whose database is not another process ignores it.
	ResponseTimeout time.Duration
	Observe         func(context.Context, string) func(error) // nil: none

	failure lastingFailure
}

// Statement records the start of a statement. The caller calls the returned function at the end of the
// statement, with the result, which is nil for a query, and the error.
func (o *Observer) Statement(ctx context.Context, query string) func(driver.Result, error) {
	start := time.Now()
	observed := func(error) {}
	if o.Observe != nil {
		observed = o.Observe(ctx, query)
	}
	return func(res driver.Result, err error) {
		observed(err)
		rows := int64(0)
		if err == nil && res != nil {
			rows, _ = res.RowsAffected() // on an error rows stays 0
		}
		o.failure.record(err, rows > 0)
		if o.SlowAfter == 0 {
			return
		}
		if took := time.Since(start); took >= o.SlowAfter {
			o.Log.WarnContext(ctx, "slow query", "took", took, "query", strings.Join(strings.Fields(query), " "))
		}
	}
}

// Failed records the error of an attempt to connect or to commit. A nil error has no effect.
func (o *Observer) Failed(err error) { o.failure.record(err, false) }

// Failure returns the current lasting failure, such as that of a full disk, or nil.
func (o *Observer) Failure() error { return o.failure.current() }
