package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
)

// supervisor keeps a driver's program running.
type supervisor struct {
	link *link

	name      string
	kind      string
	protocols []int // allowed
	log       *slog.Logger
	plan      atomic.Pointer[plan] // the program that is started; a replacement changes it

	swaps  chan swap                  // requests to restartLoop
	retire atomic.Pointer[retirement] // the retirement of the last program that was replaced beside its successor, or nil

	urgent context.Context    //nolint:containedctx // for all work that must end when the context of Close ends
	kill   context.CancelFunc // ends urgent

	stop     context.CancelFunc // cancels the context of restartLoop
	done     chan struct{}      // closed when restartLoop has ended
	crashes  []time.Time        // within CrashWindow; used by restartLoop alone
	last     *process           // the running process when restartLoop ended, or nil
	once     sync.Once          // runs close once
	closeErr error              // the result of the first close

	mu     sync.Mutex
	status Status
	file   os.FileInfo // the file of the program that was started last
}

// plan says which program runs and how.
type plan struct {
	path string
	cfg  PluginConfig
}

// startSupervised starts the program and keeps it running.
func startSupervised(ctx context.Context, kind string, protocols []int, pl *plan) (*supervisor, error) {
	name := strings.TrimPrefix(filepath.Base(pl.path), "armature-"+kind+"-")
	s := &supervisor{
		name: name, kind: kind, protocols: protocols, log: pl.cfg.Logger.With("driver", name),
		swaps: make(chan swap), done: make(chan struct{}),
	}
	s.plan.Store(pl)
	sweepSockets(ctx, &pl.cfg, s.log)
	p, err := s.start(ctx, pl)
	if err != nil {
		return nil, err
	}
	s.link = newLink(name, pl.cfg.Observe)
	s.link.check, s.link.closeDriver = s.check, s.close
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.urgent, s.kill = context.WithCancel(context.WithoutCancel(ctx))
	s.setUp(p)
	go s.restartLoop(runCtx, p)
	return s, nil
}

// start starts the program of a plan, and opens its driver, within StartTimeout.
func (s *supervisor) start(ctx context.Context, pl *plan) (*process, error) {
	program, err := openRefused(pl.path, pl.cfg.SHA256)
	if err != nil {
		return nil, err
	}
	if file, err := program.Stat(); err == nil {
		s.mu.Lock()
		s.file = file
		s.mu.Unlock()
	}
	return s.startFile(ctx, pl, program, false)
}

// startFile does what start does, for an open program, see startProcess.
func (s *supervisor) startFile(ctx context.Context, pl *plan, program *os.File, runOpenFile bool) (*process, error) {
	ctx, cancel := context.WithTimeout(ctx, pl.cfg.StartTimeout)
	defer cancel()
	p, err := startProcess(ctx, program, runOpenFile, s.protocols, pl.path, &pl.cfg, s.log)
	if err != nil {
		return nil, err
	}
	return p, s.openDriver(ctx, p)
}

// openDriver opens the driver of a process. After an error the process has ended.
func (s *supervisor) openDriver(ctx context.Context, p *process) error {
	return p.attempt(ctx, func(ctx context.Context) error { return p.openDriver(ctx, s.kind) })
}

// restartLoop restarts the program whenever it ends, and replaces it on request.
func (s *supervisor) restartLoop(ctx context.Context, p *process) {
	defer close(s.done)
	for ctx.Err() == nil {
		swap := s.awaitEnd(ctx, p)
		var err error // the reason why no program runs
		switch {
		case swap != nil:
			p, err = swap(ctx, p)
		case ctx.Err() == nil:
			s.link.cur.Store(nil)
			s.setDown(Restarting, fault.New(fault.Unavailable, "its program has ended"), time.Now())
			p.cleanUp()
			err = p.explain(nil)
		}
		if err != nil {
			if p = s.restart(ctx, err); p == nil {
				return
			}
		}
	}
	s.last = p
}

// restart starts the program again, with as many attempts as needed. The parameter err is the reason why no program runs.
// restart returns nil if ctx ends first.
func (s *supervisor) restart(ctx context.Context, err error) (p *process) {
	for {
		s.crashes = slices.DeleteFunc(s.crashes, func(at time.Time) bool { return time.Since(at) > s.plan.Load().cfg.CrashWindow })
		if !errors.Is(err, errRefused) { // this crash counts, however short the window is
			s.crashes = append(s.crashes, time.Now())
		}
		s.noteDown(ctx, err, len(s.crashes))
		if p = s.awaitRestart(ctx); p != nil || ctx.Err() != nil {
			return p
		}
		if p, err = s.startOrSwap(ctx); err == nil {
			return p
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// startOrSwap starts the program of the plan. If a swap is requested meanwhile, startOrSwap cancels the start, because
// the start may hang, and then runs the swap. If the swap starts no program, the start is repeated.
func (s *supervisor) startOrSwap(ctx context.Context) (*process, error) {
	type result struct {
		p   *process
		err error
	}
	for {
		start, cancel := context.WithCancel(ctx)
		started := make(chan result, 1)
		go func() {
			p, err := s.start(start, s.plan.Load())
			started <- result{p, err}
		}()
		var r result
		var change swap
		select {
		case r = <-started:
		case change = <-s.swaps:
			cancel()
			r = <-started
		}
		cancel()
		if r.err == nil {
			s.setUp(r.p)
		}
		switch {
		case change == nil && r.err != nil:
			return nil, r.err
		case change == nil:
			return r.p, nil
		case r.err == nil: // the start succeeded before the swap could end it
			return change(ctx, r.p)
		}
		if p, err := change(ctx, nil); err == nil {
			return p, nil
		}
	}
}

// awaitEnd blocks until the program has ended, ctx ends, or a swap is requested. It returns the requested swap, or nil. It kills a program
// that hangs.
func (s *supervisor) awaitEnd(ctx context.Context, p *process) swap {
	t := time.NewTicker(p.cfg.PingEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.exited:
			return nil
		case swap := <-s.swaps:
			return swap
		case <-t.C:
		}
		p.killIfHung(ctx)
	}
}

// awaitRestart waits for the time of the next start. If a swap is requested earlier, and starts a program, awaitRestart returns that
// process. Otherwise, or if ctx ends first, it returns nil.
func (s *supervisor) awaitRestart(ctx context.Context) *process {
	t := time.NewTimer(time.Until(s.getStatus().Next))
	defer t.Stop()
	for {
		select {
		case swap := <-s.swaps:
			if p, err := swap(ctx, nil); err == nil {
				return p
			}
		case <-t.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// noteDown sets and logs the state of a program that has ended or was refused. The parameter n is the number of crashes within CrashWindow. A
// refusal is not a crash: an operator must repair the file or the configuration. Of
// consecutive refusals the first is logged as ERROR, the others as DEBUG.
func (s *supervisor) noteDown(ctx context.Context, err error, n int) {
	cfg := &s.plan.Load().cfg
	if errors.Is(err, errRefused) {
		level := slog.LevelError
		if s.getStatus().State == Refused {
			level = slog.LevelDebug
		}
		s.setDown(Refused, err, time.Now().Add(cfg.MaxDelay))
		s.log.Log(ctx, level, "driver program refused", "error", err, "retry_in", cfg.MaxDelay)
		return
	}
	state, delay := Restarting, cfg.Cooldown
	if n <= cfg.MaxCrashes {
		delay = backoff.FullJitter(n, cfg.MinDelay, cfg.MaxDelay)
	} else {
		state = Broken
		delay += rand.N(delay/10 + 1)
	}
	s.setDown(state, err, time.Now().Add(delay))
	s.log.ErrorContext(ctx, "driver program is down", "error", err, "crashes", n, "window", cfg.CrashWindow, "state", string(state), "restart_in", delay)
}

// setUp makes new calls go to p, which is the first process or one that was started after a crash. For a replacement,
// replacement.use does this.
func (s *supervisor) setUp(p *process) {
	s.link.cur.Store(p.route) // before the state changes, so that a caller that sees the state Up can call the driver
	s.mu.Lock()
	if s.status.State != "" {
		s.status.Restarts++
	}
	s.setUpLocked(p)
	restarts := s.status.Restarts
	s.mu.Unlock()
	s.log.Info("driver program is up", "program", p.path, "pid", p.pid(), "protocol", p.protocol, "restarts", restarts)
}

func (s *supervisor) setUpLocked(p *process) {
	s.status.State, s.status.PID, s.status.Protocol, s.status.Since, s.status.Next = Up, p.pid(), p.protocol, time.Now(), time.Time{}
}

// setDown sets the state of a plugin without a program.
func (s *supervisor) setDown(state State, err error, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.State != state {
		s.status.Since = time.Now()
	}
	s.status.State, s.status.PID, s.status.Err, s.status.Next = state, 0, err, next
}

// getStatus returns a copy of the status.
func (s *supervisor) getStatus() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// check returns the reason why the driver cannot be called, as Unavailable, or nil.
func (s *supervisor) check() error {
	switch st := s.getStatus(); st.State {
	case Up:
		return nil
	case Closed:
		return fault.New(fault.Unavailable, "driver %s is closed", s.name)
	case Broken:
		return fault.New(fault.Unavailable, "driver %s crashed more than %d times within %v, and is restarted in %v: %w",
			s.name, s.plan.Load().cfg.MaxCrashes, s.plan.Load().cfg.CrashWindow, time.Until(st.Next).Round(time.Millisecond), st.Err)
	case Refused:
		return fault.New(fault.Unavailable, "the program of driver %s is refused, and is checked again in %v: %w", s.name, time.Until(st.Next).Round(time.Millisecond), st.Err)
	default:
		return fault.New(fault.Unavailable, "driver %s is being restarted: %w", s.name, st.Err)
	}
}

// close drains the link, ends restartLoop, and then ends the program. Only the first call does so; later calls wait for it
// and return the same error.
func (s *supervisor) close(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.plan.Load().cfg.CloseTimeout)
		defer cancel()
	}
	s.once.Do(func() {
		defer s.kill()
		defer context.AfterFunc(ctx, s.kill)()
		if r := s.retire.Load(); r != nil {
			r.route.cutStreams("the driver is closed")
			defer func() { <-r.done }()
		}
		s.link.drain(ctx)
		s.stop()
		<-s.done
		if s.last != nil {
			if err := s.last.closeDriver(ctx); err != nil {
				s.closeErr = fmt.Errorf("close driver %s: %w", s.name, err)
			}
		}
		s.link.cur.Store(nil)
		s.setDown(Closed, s.getStatus().Err, time.Time{})
	})
	return s.closeErr
}
