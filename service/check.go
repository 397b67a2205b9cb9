package service

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/armature-go/armature/fault"
)

// Check is the result of a readiness check of one part.
type Check struct {
	Name string
	// Err is the reason why the part is not ready, or nil.
	Err error
	// Took is how long the check took. For a check that still runs, Took is how long it has been running.
	Took time.Duration
}

// checking is a [Checker] with its running call. At most one call runs at a time, because a check that
// hangs must not be called again.
type checking struct {
	checker Checker

	mu  sync.Mutex
	run *checkRun
}

// checkRun is a running or finished call of a Checker. The fields err and took are valid once done is closed.
type checkRun struct {
	began time.Time
	done  chan struct{}
	err   error
	took  time.Duration
}

// check joins the running call, or starts one. It returns how long the call took or has been running.
func (c *checking) check(ctx context.Context, timeout time.Duration) (time.Duration, error) {
	c.mu.Lock()
	run := c.run
	if run == nil {
		run = &checkRun{began: time.Now(), done: make(chan struct{})}
		c.run = run
		// Callers that arrive while the check runs share the call, so it must not end with the first caller's context.
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
		go func() {
			defer cancel()
			err := c.checker.Check(call)
			c.mu.Lock()
			defer c.mu.Unlock()
			run.err, run.took = err, time.Since(run.began)
			c.run = nil
			close(run.done)
		}()
	}
	c.mu.Unlock()
	timer := time.NewTimer(timeout + grace)
	defer timer.Stop()
	select {
	case <-run.done:
		return run.took, run.err
	case <-ctx.Done():
	case <-timer.C:
	}
	took := time.Since(run.began)
	err := fault.New(fault.Timeout, "the check has been running for %v", took.Round(time.Millisecond))
	if took > timeout {
		err = fault.New(fault.Timeout, "%w for %v, and did not end with its context", errHung, took.Round(time.Millisecond))
	}
	return took, err
}

// grace is how long a check may take to return after its context has ended.
const grace = time.Second

// errHung is the error of a check that does not return when its context ends.
var errHung = errors.New("the check hangs")

// Checks calls all [Checker]s at the same time, and returns the results in the order of
// the parts. If a check does not return within CheckTimeout plus one second, or before ctx ends, its result is
// Timeout. A check is not called again while it hangs. Checks is safe for concurrent use.
func (a *App) Checks(ctx context.Context) []Check {
	var out []Check
	var wg sync.WaitGroup
	for i := range a.parts {
		if a.parts[i].checking != nil {
			out = append(out, Check{Name: a.parts[i].name})
		}
	}
	n := 0
	for i := range a.parts {
		c := a.parts[i].checking
		if c == nil {
			continue
		}
		o := &out[n]
		n++
		wg.Go(func() { o.Took, o.Err = c.check(ctx, a.cfg.CheckTimeout) })
	}
	wg.Wait()
	return out
}

// Ready returns nil if every part has started, the drain has not begun, and every
// [Checker] returns nil. Otherwise the error is Unavailable. The text of the error is for operators, and has
// the reason of each failed check. The error wraps a [fault.Error] for clients, which has only the names of these
// checks, because a reason may contain addresses. Ready blocks as [App.Checks] does. It is safe for concurrent use.
func (a *App) Ready(ctx context.Context) error {
	if p := a.phase.Load(); p != running {
		state := fault.New(fault.Unavailable, "%s is %s", a.cfg.Name, phaseNames[p])
		if w := a.waiting.Load(); w != nil {
			return &notReadyError{state, fmt.Errorf("%w: %w", state, w)}
		}
		return state
	}
	var names []string
	var errs []error
	for _, c := range a.Checks(ctx) {
		if c.Err != nil {
			names, errs = append(names, c.Name), append(errs, fmt.Errorf("%s: %w", c.Name, c.Err))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return &notReadyError{fault.New(fault.Unavailable, "%s is not ready: %s", a.cfg.Name, strings.Join(names, ", ")), errors.Join(errs...)}
}

// notReadyError has the text of the causes, and wraps a fault that has the names of the checks only.
type notReadyError struct{ names, causes error }

func (e *notReadyError) Error() string   { return e.causes.Error() }
func (e *notReadyError) Unwrap() []error { return []error{e.names, e.causes} }
