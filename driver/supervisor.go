package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
)

// supervisor keeps a driver's program running.
type supervisor struct {
	link *link

	name      string
	kind      string
	protocols []int // allowed for a restarted program: the protocol of the first one
	path      string
	cfg       PluginConfig
	log       *slog.Logger

	stop     context.CancelFunc // of restartLoop
	done     chan struct{}      // closed when restartLoop has ended
	last     *process           // the running process when restartLoop ended, or nil
	once     sync.Once          // of close
	closeErr error              // of the first close

	mu     sync.Mutex
	status Status
}

// startSupervised starts the program and keeps it running. It returns the protocol that the program speaks.
func startSupervised(ctx context.Context, kind string, protocols []int, path string, cfg PluginConfig) (*supervisor, int, error) {
	name := strings.TrimPrefix(filepath.Base(path), "armature-"+kind+"-")
	s := &supervisor{name: name, kind: kind, path: path, cfg: cfg, log: cfg.Logger.With("driver", name), done: make(chan struct{})}
	sweepSockets(ctx, &s.cfg, s.log)
	p, err := s.start(ctx, protocols)
	if err != nil {
		return nil, 0, err
	}
	s.protocols = []int{p.protocol}
	s.link = newLink(name, cfg.Observe)
	s.link.check, s.link.end = s.check, s.close
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.setUp(p)
	go s.restartLoop(runCtx, p)
	return s, p.protocol, nil
}

// start starts the program within StartTimeout.
func (s *supervisor) start(ctx context.Context, protocols []int) (*process, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.StartTimeout)
	defer cancel()
	return startProcess(ctx, s.kind, protocols, s.path, &s.cfg, s.log)
}

// restartLoop restarts the program whenever it ends.
func (s *supervisor) restartLoop(ctx context.Context, p *process) {
	defer close(s.done)
	var crashes []time.Time
	for {
		s.awaitEnd(ctx, p)
		if ctx.Err() != nil {
			s.last = p
			return
		}
		s.link.conn.Store(nil)
		s.setDown(Restarting, fault.New(fault.Unavailable, "its program has ended"), time.Now())
		p.cleanUp()
		for err := p.explain(nil); err != nil; {
			crashes = slices.DeleteFunc(crashes, func(at time.Time) bool { return time.Since(at) > s.cfg.CrashWindow })
			if !errors.Is(err, errRefused) { // this crash counts, however short the window is
				crashes = append(crashes, time.Now())
			}
			if !s.awaitRestart(ctx, err, len(crashes)) {
				return
			}
			if p, err = s.start(ctx, s.protocols); ctx.Err() != nil {
				s.last = p
				return
			}
		}
		s.setUp(p)
	}
}

// awaitEnd blocks until the program has ended or ctx ends. It kills a program that hangs.
func (s *supervisor) awaitEnd(ctx context.Context, p *process) {
	t := time.NewTicker(s.cfg.PingEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.exited:
			return
		case <-t.C:
		}
		ping, cancel := context.WithTimeout(ctx, s.cfg.PingTimeout)
		err := p.ping(ping)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			p.fail(fault.New(fault.Timeout, "it was killed because it hung: no heartbeat within %v", s.cfg.PingTimeout))
			<-p.exited
		}
	}
}

// awaitRestart waits until the program is to be restarted after an error, and returns false if ctx ends first.
func (s *supervisor) awaitRestart(ctx context.Context, err error, crashes int) bool {
	if errors.Is(err, errRefused) {
		return s.awaitRecheck(ctx, err)
	}
	return s.backOff(ctx, err, crashes)
}

// backOff waits before the restart after the n-th crash within CrashWindow. It returns false if ctx ends first.
func (s *supervisor) backOff(ctx context.Context, err error, n int) bool {
	state, delay := Restarting, s.cfg.Cooldown
	if n <= s.cfg.MaxCrashes {
		delay = backoff.FullJitter(n, s.cfg.MinDelay, s.cfg.MaxDelay)
	} else {
		state = Broken
		delay += rand.N(delay/10 + 1)
	}
	s.setDown(state, err, time.Now().Add(delay))
	s.log.ErrorContext(ctx, "driver program is down", "error", err, "crashes", n, "window", s.cfg.CrashWindow, "state", string(state), "restart_in", delay)
	return backoff.Sleep(ctx, delay)
}

// awaitRecheck waits before the next check of a program that was refused. A refusal is not a crash: an operator must
// repair the file or the configuration. Of consecutive refusals the first is logged as ERROR, the others as DEBUG. It
// returns false if ctx ends first.
func (s *supervisor) awaitRecheck(ctx context.Context, err error) bool {
	level := slog.LevelError
	if s.getStatus().State == Refused {
		level = slog.LevelDebug
	}
	s.setDown(Refused, err, time.Now().Add(s.cfg.MaxDelay))
	s.log.Log(ctx, level, "driver program refused", "error", err, "retry_in", s.cfg.MaxDelay)
	return backoff.Sleep(ctx, s.cfg.MaxDelay)
}

// setUp makes p the process that gets the calls.
func (s *supervisor) setUp(p *process) {
	s.link.conn.Store(p.conn) // before the state, so that a caller that sees the state Up can call the driver
	s.mu.Lock()
	if s.status.State != "" {
		s.status.Restarts++
	}
	s.status.State, s.status.PID, s.status.Since, s.status.Next = Up, p.pid(), time.Now(), time.Time{}
	restarts := s.status.Restarts
	s.mu.Unlock()
	s.log.Info("driver program is up", "program", s.path, "pid", p.pid(), "protocol", p.protocol, "restarts", restarts)
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
			s.name, s.cfg.MaxCrashes, s.cfg.CrashWindow, time.Until(st.Next).Round(time.Millisecond), st.Err)
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
		ctx, cancel = context.WithTimeout(ctx, s.cfg.CloseTimeout)
		defer cancel()
	}
	s.once.Do(func() {
		s.link.drain(ctx)
		s.stop()
		<-s.done
		if s.last != nil {
			if err := s.last.closeDriver(ctx); err != nil {
				s.closeErr = fmt.Errorf("close driver %s: %w", s.name, err)
			}
		}
		s.link.conn.Store(nil)
		s.setDown(Closed, s.getStatus().Err, time.Time{})
	})
	return s.closeErr
}
