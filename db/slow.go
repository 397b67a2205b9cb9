package db

import (
	"context"
	"log/slog"
	"strings"
	"time"
)

// slow logs statements that take long. Nil logs nothing.
type slow struct {
	limit time.Duration
	log   *slog.Logger
}

// begin starts the clock of a statement, and returns what stops it.
func (s *slow) begin(ctx context.Context, query string) func() {
	if s == nil {
		return func() {}
	}
	start := time.Now()
	return func() {
		if took := time.Since(start); took >= s.limit {
			s.log.WarnContext(ctx, "slow query", "took", took, "query", strings.Join(strings.Fields(query), " "))
		}
	}
}
