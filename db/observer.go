package db

import (
	"context"
	"database/sql/driver"
	"log/slog"
	"strings"
	"time"
)

// observer sees all statements of a handle: it logs slow ones and records failures for [Health].
type observer struct {
	failure   lastingFailure
	shown     string        // the URL without the password
	slowAfter time.Duration // 0: no statement is slow
	log       *slog.Logger
	observe   func(context.Context, string) func(error) // nil: none
}

// observeStatement is called at the start of a statement. The caller calls the function that it returns at the
// statement's end, with the result, which is nil for a query, and the error.
func (o *observer) observeStatement(ctx context.Context, query string) func(driver.Result, error) {
	start := time.Now()
	observed := func(error) {}
	if o.observe != nil {
		observed = o.observe(ctx, query)
	}
	return func(res driver.Result, err error) {
		observed(err)
		rows := int64(0)
		if err == nil && res != nil {
			rows, _ = res.RowsAffected() // on an error rows stays 0
		}
		o.failure.record(err, rows > 0)
		if o.slowAfter == 0 {
			return
		}
		if took := time.Since(start); took >= o.slowAfter {
			o.log.WarnContext(ctx, "slow query", "took", took, "query", strings.Join(strings.Fields(query), " "))
		}
	}
}
