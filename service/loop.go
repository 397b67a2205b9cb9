package service

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/armature-go/armature/reqctx"
)

// Loop returns a [Part] that calls f again and again. The first call comes after
// a random part of every, so that a fleet started at once does not call at
// once; from then on calls start every apart. They never overlap: after one that took
// longer, the next comes at the next multiple of every. An error or a panic is
// logged, and the loop goes on. Each call's context has a request id of its
// own. Stop cancels the context of a running call and waits for it.
//
// A negative every disables the loop: f is never called. Loop panics if every
// is 0, a programmer's error. What must have been done before the service is
// ready belongs into a Start, not into a loop.
func Loop(every time.Duration, f func(context.Context) error) Part {
	if every == 0 {
		panic("service: Loop without spacing")
	}
	return &loop{every: every, f: f, log: slog.Default(), done: make(chan struct{})}
}

type loop struct {
	every time.Duration
	f     func(context.Context) error
	log   *slog.Logger

	mu     sync.Mutex
	cancel context.CancelFunc // nil before Start
	done   chan struct{}      // closed when the goroutine has ended
}

func (l *loop) bind(name string, logger *slog.Logger) { l.log = logger.With("part", name) }

func (l *loop) Start(ctx context.Context) error {
	if l.every < 0 {
		return nil
	}
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

// Stop returns ctx's error if f did not end in time.
func (l *loop) Stop(ctx context.Context) error {
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

func (l *loop) run(ctx context.Context) {
	timer := time.NewTimer(rand.N(l.every))
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		begin := time.Now()
		call := reqctx.With(ctx, reqctx.Request{ID: reqctx.NewID()})
		if err := l.call(call); err != nil && ctx.Err() == nil {
			l.log.ErrorContext(call, "periodic call", "error", err, "took", time.Since(begin))
		}
		timer.Reset(l.every - time.Since(begin)%l.every)
	}
}

func (l *loop) call(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return l.f(ctx)
}
