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

// Check is what one part says about its readiness.
type Check struct {
	Name string
	// Err is why it is not ready, or nil.
	Err  error
	Took time.Duration
}

// checking is a [Checker] with the call that is under way, of which there is never
// more than one: a check that hangs must not be asked again and again.
type checking struct {
	checker Checker

	mu  sync.Mutex
	run *checkRun
}

type checkRun struct {
	began time.Time
	done  chan struct{}
	err   error
	took  time.Duration
}

func (c *checking) check(ctx context.Context, timeout time.Duration) (time.Duration, error) {
	c.mu.Lock()
	run := c.run
	if run == nil {
		run = &checkRun{began: time.Now(), done: make(chan struct{})}
		c.run = run
		// It belongs to all who ask meanwhile, and so not to the first one's context.
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

// grace is how long a check has to return when its context has ended.
const grace = time.Second

// errHung is the error of a check that does not keep to its context.
var errHung = errors.New("the check hangs")

// Checks asks every [Checker], all at once, and returns what they say in the parts'
// order. A check that does not answer within CheckTimeout, or before ctx ends, has
// failed; while it hangs it is not called again. It is safe for concurrent use.
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

// Ready returns nil when every part is started, none is being stopped, and every
// [Checker] is content; otherwise an error with code Unavailable. Its text says why, for
// each check that has failed, and is for operators; the [fault.Error] in it names the
// checks only, and is what clients may read. It blocks as [App.Checks] does. It is safe for
// concurrent use.
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

// notReadyError is an error with the text of the causes, and a fault that names the checks only.
type notReadyError struct{ names, causes error }

func (e *notReadyError) Error() string   { return e.causes.Error() }
func (e *notReadyError) Unwrap() []error { return []error{e.names, e.causes} }
