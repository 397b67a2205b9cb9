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

// TestLog: an outage is logged with WARN at its start and then once a minute, and its end with INFO. The next outage is logged with
// WARN at once.
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
		time.Sleep(time.Minute) //nolint:forbidigo // in a synctest bubble
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

// TestLogged: an error that its maker has logged is logged at DEBUG, and so is each of its repetitions. Its end is not logged.
func TestLogged(t *testing.T) {
	t.Parallel()
	log, lines := logtest.New()
	var l outage.Log
	down := errors.New("down")
	err := outage.Logged(down)
	if !errors.Is(err, down) || err.Error() != "down" || outage.Logged(nil) != nil {
		t.Errorf("Logged: %v", err)
	}
	for _, err := range []error{err, err, nil} {
		l.Note(t.Context(), log, slog.LevelError, "watch", err, false)
	}
	if e, d, i := lines.Count(slog.LevelError, ""), lines.Count(slog.LevelDebug, "watch failed"), lines.Count(slog.LevelInfo, ""); e != 0 || d != 2 || i != 0 {
		t.Errorf("%d ERROR, %d DEBUG, %d INFO, want 0, 2, 0", e, d, i)
	}
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
		time.Sleep(time.Minute) //nolint:forbidigo // in a synctest bubble
		if got := l.Level(slog.LevelWarn); got != slog.LevelWarn {
			t.Errorf("after a minute: %v, want WARN", got)
		}
	})
}

// TestGroup: the outage of two members is logged as one WARN. It ends when both members work.
func TestGroup(t *testing.T) {
	t.Parallel()
	log, lines := logtest.New()
	var g outage.Group
	note := func(member string, err error) {
		g.Note(t.Context(), log, slog.LevelWarn, "consume", member, err, "queue", member)
	}
	down := errors.New("down")
	note("c", nil)
	for range 2 {
		note("a", down)
		note("b", down)
	}
	note("c", nil)
	note("a", nil)
	if w, d, i := lines.Count(slog.LevelWarn, ""), lines.Count(slog.LevelDebug, ""), lines.Count(slog.LevelInfo, ""); w != 1 || d != 3 || i != 0 {
		t.Errorf("during the outage: %d WARN, %d DEBUG, %d INFO, want 1, 3, 0", w, d, i)
	}
	note("b", nil)
	if i := lines.Count(slog.LevelInfo, "consume works again"); i != 1 {
		t.Errorf("%d INFO at the end, want 1", i)
	}
	note("a", down)
	g.Forget("a")
	note("c", nil)
	if w, i := lines.Count(slog.LevelWarn, ""), lines.Count(slog.LevelInfo, ""); w != 2 || i != 2 {
		t.Errorf("after a member has ended: %d WARN, %d INFO, want 2, 2", w, i)
	}
}
