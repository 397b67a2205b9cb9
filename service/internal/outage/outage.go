// Package outage logs an action that is repeated and fails for a while: once when the failures begin, then once a
// minute, and once when they end. Otherwise an outage of a database is a line a second in the log of each process.
package outage

import (
	"context"
	"log/slog"
	"time"
)

// interval is how far apart the lines of failures in a row are.
const interval = time.Minute

// Log keeps how the last calls of one action ended. The zero value is usable. It is for one goroutine at a time.
type Log struct {
	failures int
	logged   time.Time
}

// Note logs the end of a call: "<action> failed" at the level, or at DEBUG if the last line at the level is less than a
// minute old, unless always is set; "<action> works again" as INFO after failures; nothing otherwise. The attributes are
// added to each line.
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
