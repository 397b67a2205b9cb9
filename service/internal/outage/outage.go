// Package outage logs a repeated action that fails for a while: once when the failures begin, then once a
// minute, and once when they end. Without it an outage of the database would be a line a second in the log of each
// process.
package outage

import (
	"context"
	"log/slog"
	"time"
)

// interval is the minimum time between two lines about consecutive failures.
const interval = time.Minute

// Log keeps the results of the last calls of one action. The zero value is usable. It is not safe for concurrent use.
type Log struct {
	failures int
	logged   time.Time
}

// Note logs the result of a call. An error is logged as "<action> failed" at the level, or at DEBUG if the last line at
// that level is less than a minute old and always is false. The first success after failures is logged as
// "<action> works again" at INFO. Other successes are not logged. attrs are added to each line, besides "error" and
// "failures", the number of consecutive failures.
func (l *Log) Note(ctx context.Context, log *slog.Logger, level slog.Level, action string, err error, always bool, attrs ...any) {
	if err == nil {
		if l.failures > 0 {
			log.InfoContext(ctx, action+" works again", append(attrs, "failures", l.failures)...)
		}
		*l = Log{}
		return
	}
	l.failures++
	if always || time.Since(l.logged) >= interval {
		l.logged = time.Now()
	} else {
		level = slog.LevelDebug
	}
	log.Log(ctx, level, action+" failed", append([]any{"error", err, "failures", l.failures}, attrs...)...)
}
