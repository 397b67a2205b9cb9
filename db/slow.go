package db

import (
	"context"
	"database/sql/driver"
	"log/slog"
	"strings"
	"time"
)

// watch sees every statement of a handle: it logs those that take long, and notes the trouble
// that they tell of.
type watch struct {
	trouble trouble
	shown   string        // the URL without the password
	limit   time.Duration // 0: none is slow
	log     *slog.Logger
}

// begin starts the clock of a statement, and returns what is called at its end: with its result,
// nil for a question, and its error.
func (s *watch) begin(ctx context.Context, query string) func(driver.Result, error) {
	start := time.Now()
	return func(res driver.Result, err error) {
		rows := int64(0)
		if err == nil && res != nil {
			rows, _ = res.RowsAffected() // else nothing was written
		}
		s.trouble.note(err, rows > 0)
		if s.limit == 0 {
			return
		}
		if took := time.Since(start); took >= s.limit {
			s.log.WarnContext(ctx, "slow query", "took", took, "query", strings.Join(strings.Fields(query), " "))
		}
	}
}
