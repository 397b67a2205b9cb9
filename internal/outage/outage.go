// Package outage limits the log lines about an action that fails repeatedly. The first failure is logged at the
// level that the caller gives, and so is one failure in each minute after it. The other failures are logged at DEBUG.
// Without this limit, each process would write a line a second while the database or the broker is down.
package outage

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// interval is the minimum time between two lines at the full level.
const interval = time.Minute

// Log logs the results of one action. It counts consecutive failures, which end with a success. The zero value is usable. A
// Log is not safe for concurrent use.
type Log struct {
	failures int
	limiter  Limiter
}

// logged is an error that its maker has logged.
type logged struct{ error }

func (l logged) Unwrap() error { return l.error }

// Logged returns an error that [Log.Note] logs at DEBUG, because the caller has logged it in better words. Nil stays nil.
func Logged(err error) error {
	if err == nil {
		return nil
	}
	return logged{err}
}

// Note logs the result of a call. An error of [Logged] is logged at DEBUG, and its end is not logged. Another error is logged as "<action> failed". The line has the given level if always is true,
// or if no failure was logged at this level in the last minute; otherwise it is at DEBUG. The first success after failures
// is logged as "<action> works again" at INFO. Other successes are not logged. Each line has attrs, and "failures", the
// number of consecutive failures. A line about a failure also has "error".
func (l *Log) Note(ctx context.Context, log *slog.Logger, level slog.Level, action string, err error, always bool, attrs ...any) {
	if err == nil {
		if l.failures > 0 {
			log.InfoContext(ctx, action+" works again", append(attrs, "failures", l.failures)...)
		}
		l.failures = 0
		l.limiter.reset()
		return
	}
	if _, ok := errors.AsType[logged](err); ok && !always {
		log.DebugContext(ctx, action+" failed", append([]any{"error", err}, attrs...)...)
		return
	}
	l.failures++
	if always {
		l.limiter.reset()
	}
	log.Log(ctx, l.limiter.Level(level), action+" failed", append([]any{"error", err, "failures", l.failures}, attrs...)...)
}

// Group is a [Log] of one action on several members that fail together in an outage, such as queues. The zero value is
// usable. A Group is safe for concurrent use.
type Group struct {
	mu      sync.Mutex
	failing map[any]bool // members whose last action failed
	log     Log
}

// Note works like [Log.Note], for the action on one member. The member must be comparable. "<action> works again" is logged
// when the last action on each member has succeeded.
func (g *Group) Note(ctx context.Context, log *slog.Logger, level slog.Level, action string, member any, err error, attrs ...any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil {
		delete(g.failing, member)
		if len(g.failing) > 0 {
			return
		}
	} else {
		if g.failing == nil {
			g.failing = make(map[any]bool)
		}
		g.failing[member] = true
	}
	g.log.Note(ctx, log, level, action, err, false, attrs...)
}

// Forget removes a member that has ended, and logs nothing. If the member was the last one that failed, the next success of
// another member is logged as the end of the outage.
func (g *Group) Forget(member any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.failing, member)
}

// Limiter limits the lines about one kind of event if no success shows its end. The zero value is usable. A Limiter is safe
// for concurrent use.
type Limiter struct {
	mu     sync.Mutex
	logged time.Time // the last line at the full level; zero if there was none
}

// Level returns the level of the next line: the given level, or DEBUG if Level has returned the given level in the last
// minute.
func (l *Limiter) Level(level slog.Level) slog.Level {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.logged.IsZero() && time.Since(l.logged) < interval {
		return slog.LevelDebug
	}
	l.logged = time.Now()
	return level
}

func (l *Limiter) reset() {
	l.mu.Lock()
	l.logged = time.Time{}
	l.mu.Unlock()
}
