package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/internal/outage"
)

// LoopPart calls a function again and again. Make one with [Loop].
type LoopPart struct {
	every time.Duration
	f     func(context.Context) error
	name  string
	log   *slog.Logger
	asked chan chan error // to call now

	outage outage.Log // for the loop's goroutine

	mu     sync.Mutex
	cancel context.CancelFunc // nil before Start
	done   chan struct{}      // closed when the goroutine has ended
	stats  LoopStats
}

// LoopStats is what a loop has done.
type LoopStats struct {
	// Name is the part's.
	Name string `json:"name"`
	// Every is the spacing; negative: disabled.
	Every time.Duration `json:"every"`
	// Calls are those that have ended, Failed those of them with an error or a panic.
	Calls  uint64 `json:"calls"`
	Failed uint64 `json:"failed"`
	// Last is when the last call began, Took how long the last one that has ended
	// took, Total how long all together did, and Err its error, or "".
	Last  time.Time     `json:"last,omitzero"`
	Took  time.Duration `json:"took"`
	Total time.Duration `json:"total"`
	Err   string        `json:"error,omitempty"`
	// Running says that a call is under way.
	Running bool `json:"running"`
}

// Loop returns a [Part] that calls f again and again. The first call comes after
// a random part of every, so that a fleet started at once does not call at
// once; from then on calls start every apart. They never overlap: after one that took
// longer, the next comes at the next multiple of every. After an error or a panic the loop goes on. Of failures in a
// row the first, each panic, and one a minute are logged as ERROR, the others as DEBUG, and the success that ends them as
// INFO. Each call's context has a request id of its
// own. Stop cancels the context of a running call and waits for it.
//
// A negative every disables the loop: f is called by [LoopPart.RunNow] only. Loop
// panics if every is 0, a programmer's error. What must have been done before the
// service is ready belongs into a Start, not into a loop.
func Loop(every time.Duration, f func(context.Context) error) *LoopPart {
	if every == 0 {
		panic("service: Loop without spacing")
	}
	return &LoopPart{every: every, f: f, log: slog.Default(), asked: make(chan chan error), done: make(chan struct{}), stats: LoopStats{Every: every}}
}

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
		l.run(life)
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

// RunNow makes a call as soon as none is under way, waits for it, and returns its
// error. The spacing of the others stays as it is. When ctx ends it returns ctx's
// error, and a call that has begun goes on. Unavailable: the loop does not run, or is
// stopped meanwhile.
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

// Stats returns what the loop has done. It is safe for concurrent use.
func (l *LoopPart) Stats() LoopStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// Loops returns the statistics of the parts that [Loop] made. It is safe for
// concurrent use.
func (a *App) Loops() []LoopStats {
	out := []LoopStats{}
	for _, p := range a.parts {
		if l, ok := p.Part.(*LoopPart); ok {
			out = append(out, l.Stats())
		}
	}
	return out
}

func (l *LoopPart) run(ctx context.Context) {
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
			_ = l.turn(ctx) // logged and counted
			timer.Reset(l.every - time.Since(begin)%l.every)
		case result := <-l.asked:
			result <- l.turn(ctx)
		case <-ctx.Done():
			return
		}
	}
}

func (l *LoopPart) turn(ctx context.Context) error {
	begin := time.Now()
	l.mu.Lock()
	l.stats.Last, l.stats.Running = begin, true
	l.mu.Unlock()
	call := reqctx.With(ctx, reqctx.Request{ID: reqctx.NewID()})
	err := l.call(call)
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

// errPanic says that the function has panicked.
var errPanic = errors.New("panic")

func (l *LoopPart) call(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v\n%s", errPanic, r, debug.Stack())
		}
	}()
	return l.f(ctx)
}
