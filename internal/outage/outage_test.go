package outage_test

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/internal/logtest"
	"github.com/armature-go/armature/internal/outage"
)

// TestLog: an outage is one WARN, then one in each minute. Its end is one INFO, and the next outage is a WARN at once.
func TestLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, lines := logtest.New()
		var l outage.Log
		note := func(err error, always bool) { l.Note(t.Context(), log, slog.LevelWarn, "ping", err, always) }
		want := func(warn, debug, info int) {
			t.Helper()
			if w, d, i := lines.Count(slog.LevelWarn, "ping failed"), lines.Count(slog.LevelDebug, "ping failed"), lines.Count(slog.LevelInfo, "ping works again"); w != warn || d != debug || i != info {
				t.Errorf("%d WARN, %d DEBUG, %d INFO, want %d, %d, %d", w, d, i, warn, debug, info)
			}
		}
		down := errors.New("down")
		note(nil, false)
		want(0, 0, 0)
		for range 3 {
			note(down, false)
		}
		want(1, 2, 0)
		time.Sleep(time.Minute)
		note(down, false)
		want(2, 2, 0)
		note(down, true)
		want(3, 2, 0)
		note(nil, false)
		note(nil, false)
		want(3, 2, 1)
		note(down, false)
		want(4, 2, 1)
	})
}

// TestLimiter: one line in a minute has the full level.
func TestLimiter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var l outage.Limiter
		for _, want := range []slog.Level{slog.LevelWarn, slog.LevelDebug, slog.LevelDebug} {
			if got := l.Level(slog.LevelWarn); got != want {
				t.Errorf("%v, want %v", got, want)
			}
		}
		time.Sleep(time.Minute)
		if got := l.Level(slog.LevelWarn); got != slog.LevelWarn {
			t.Errorf("after a minute: %v, want WARN", got)
		}
	})
}
