package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/outage"
	"github.com/armature-go/armature/reqctx"
)

// LoopPart calls a function periodically. Make one with [Loop].
type LoopPart struct {
	every time.Duration
	f     func(context.Context) error
	name  string
	log   *slog.Logger
	asked chan chan error // requests of RunNow, each with a channel for the result

	outage outage.Log // logs failures; only the loop's goroutine uses it

	mu     sync.Mutex
	cancel context.CancelFunc // nil before Start
	done   chan struct{}      // closed when the goroutine has ended
	stats  LoopStats
}

// LoopStats are the statistics of a loop. In JSON, which /debug/loops shows, durations have their unit, such as "1m0s".
type LoopStats struct {
	// Name is the name of the part.
	Name string `json:"name"`
	// Every is the time between the starts of calls. Negative: the loop is disabled.
	Every time.Duration `json:"every"`
	// Calls is the number of calls that have ended, Failed the number of those with an error or a panic.
	Calls  uint64 `json:"calls"`
	Failed uint64 `json:"failed"`
	// Last is the start of the last call. Took is the duration of the last call that has
	// ended, Err its error or "", and Total the duration of all calls together.
	Last  time.Time     `json:"last,omitzero"`
	Took  time.Duration `json:"took"`
	Total time.Duration `json:"total"`
	Err   string        `json:"error,omitempty"`
	// Running reports whether a call runs.
	Running bool `json:"running"`
}

// MarshalJSON writes the durations as texts with units.
func (s LoopStats) MarshalJSON() ([]byte, error) {
	type plain LoopStats
	return json.Marshal(struct {
		plain

		Every string `json:"every"`
		Took  string `json:"took"`
		Total string `json:"total"`
	}{plain(s), s.Every.String(), s.Took.String(), s.Total.String()})
}

// Loop returns a [Part] that calls f periodically. The parameter every is the interval. The first call starts at a random
// time within the first interval, so that processes that start at the same time do not call f at the same time. From then
// on one call starts in each interval. Calls never overlap: after a call that takes longer than the interval, the next
// call starts at the next multiple of the interval.
//
// The loop continues after an error or a panic. Of consecutive failures, the first failure, each panic, and one failure
// a minute are logged at ERROR, the others at DEBUG. The success after the failures is logged at INFO. The context of
// each call has its own request id. Stop cancels the context of a running call and waits for its end.
//
// If the interval is negative, only [LoopPart.RunNow] calls f. Loop panics if the interval is 0, which is a
// programmer's error. Work that must be done before the service is ready belongs in a Start, not in a loop.
func Loop(every time.Duration, f func(context.Context) error) *LoopPart {
	if every == 0 {
		panic("service: Loop: the interval is 0; a negative one disables the loop")
	}
	return &LoopPart{every: every, f: f, log: slog.Default(), asked: make(chan chan error), done: make(chan struct{}), stats: LoopStats{Every: every}}
}

// bind gives the loop its name and the logger of its App. App.Add calls it.
func (l *LoopPart) bind(a *App, name string) {
	l.log, l.name, l.stats.Name = a.cfg.Logger.With("part", name), name, name
}

// Start implements [Part].
func (l *LoopPart) Start(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l.cancel = cancel
	go func() {
		defer close(l.done)
		l.callPeriodically(life)
	}()
	return nil
}

// Stop implements [Part]. It returns ctx's error if f did not end in time.
func (l *LoopPart) Stop(ctx context.Context) error {
	l.mu.Lock()
	cancel := l.cancel
	l.mu.Unlock()
	if cancel == nil {
		return nil
	}
	cancel()
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// RunNow makes a call as soon as no other call runs, waits for its end, and returns its
// error. The times of the periodic calls do not change. When ctx ends, RunNow returns ctx's
// error, and a call that has started continues. RunNow fails with Unavailable if the loop has
// not started or has been stopped. It is safe for concurrent use.
func (l *LoopPart) RunNow(ctx context.Context) error {
	l.mu.Lock()
	started := l.cancel != nil
	l.mu.Unlock()
	if !started {
		return fault.New(fault.Unavailable, "loop %s is not started", l.name)
	}
	result := make(chan error, 1)
	select {
	case l.asked <- result:
	case <-l.done:
		return fault.New(fault.Unavailable, "loop %s is stopped", l.name)
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stats returns the statistics of the loop. It is safe for concurrent use.
func (l *LoopPart) Stats() LoopStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// Loops returns the statistics of all parts made by [Loop]. It is safe for concurrent
// use.
func (a *App) Loops() []LoopStats {
	out := []LoopStats{}
	for _, p := range a.parts {
		if l, ok := p.Part.(*LoopPart); ok {
			out = append(out, l.Stats())
		}
	}
	return out
}

// callPeriodically makes the calls until ctx ends.
func (l *LoopPart) callPeriodically(ctx context.Context) {
	var tick <-chan time.Time
	var timer *time.Timer
	if l.every > 0 {
		timer = time.NewTimer(rand.N(l.every))
		defer timer.Stop()
		tick = timer.C
	}
	for {
		select {
		case <-tick:
			begin := time.Now()
			_ = l.callOnce(ctx) // the error is logged and counted
			timer.Reset(l.every - time.Since(begin)%l.every)
		case result := <-l.asked:
			result <- l.callOnce(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// callOnce makes a call, and logs and counts its result.
func (l *LoopPart) callOnce(ctx context.Context) error {
	begin := time.Now()
	l.mu.Lock()
	l.stats.Last, l.stats.Running = begin, true
	l.mu.Unlock()
	call := reqctx.With(ctx, reqctx.Request{ID: reqctx.NewID()})
	err := l.callRecovered(call)
	took := time.Since(begin)
	if ctx.Err() == nil {
		l.outage.Note(call, l.log, slog.LevelError, "periodic call", err, errors.Is(err, errPanic), "took", took)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.stats
	s.Calls, s.Took, s.Total, s.Err, s.Running = s.Calls+1, took, s.Total+took, "", false
	if err != nil {
		s.Failed, s.Err = s.Failed+1, err.Error()
	}
	return err
}

// errPanic means that the function has panicked.
var errPanic = errors.New("panic")

// callRecovered calls f and turns a panic into an error. It also calls the methods of f's error: some panic, for example
// on a nil pointer, and then the result is the error of that panic.
func (l *LoopPart) callRecovered(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v\n%s", errPanic, r, debug.Stack())
		}
	}()
	if err = l.f(ctx); err != nil {
		_, _ = err.Error(), errors.Is(err, errPanic)
	}
	return err
}
