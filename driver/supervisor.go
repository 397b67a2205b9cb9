package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/armature-go/armature/fault"
)

// supervisor keeps a driver's program running.
type supervisor struct {
	link *link

	name      string
	kind      string
	protocols []int // that a restarted program may speak: what the first one did
	path      string
	cfg       PluginConfig
	log       *slog.Logger

	stop    context.CancelFunc // of run
	done    chan struct{}      // closed when run has ended
	last    *process           // that run left running
	once    sync.Once          // of close
	closing error              // what the first close returned

	mu  sync.Mutex
	st  Status
	now *process // that is up, or nil
}

func supervise(ctx context.Context, kind string, protocols []int, path string, cfg PluginConfig) (*supervisor, int, error) {
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
	s.up(p)
	go s.run(runCtx, p)
	return s, p.protocol, nil
}

func (s *supervisor) start(ctx context.Context, protocols []int) (*process, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.StartTimeout)
	defer cancel()
	return start(ctx, s.kind, protocols, s.path, &s.cfg, s.log)
}

// run restarts the program whenever it ends.
func (s *supervisor) run(ctx context.Context, p *process) {
	defer close(s.done)
	var crashes []time.Time
	for {
		s.watch(ctx, p)
		if ctx.Err() != nil {
			s.last = p
			return
		}
		s.link.conn.Store(nil)
		s.set(Restarting, fault.New(fault.Unavailable, "its program has ended"), time.Now())
		p.cleanUp()
		for err := p.why(nil); err != nil; {
			var restart bool
			if errors.Is(err, errRefused) {
				restart = s.pauseRefused(ctx, err)
			} else {
				now := time.Now()
				crashes = append(crashes, now)
				for now.Sub(crashes[0]) > s.cfg.CrashWindow {
					crashes = crashes[1:]
				}
				restart = s.pause(ctx, err, len(crashes))
			}
			if !restart {
				return
			}
			if p, err = s.start(ctx, s.protocols); ctx.Err() != nil {
				s.last = p
				return
			}
		}
		s.up(p)
	}
}

// watch returns when the program has ended, and ends one that hangs.
func (s *supervisor) watch(ctx context.Context, p *process) {
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
			p.fail(fault.New(fault.Timeout, "it hung: no sign of life within %v, so it was killed", s.cfg.PingTimeout))
			<-p.exited
		}
	}
}

// pause waits before the start after the n-th crash, and reports whether there is
// to be one.
func (s *supervisor) pause(ctx context.Context, err error, n int) bool {
	state, delay := Restarting, s.cfg.Cooldown
	if n <= s.cfg.MaxCrashes {
		top := min(s.cfg.MaxDelay, s.cfg.MinDelay<<min(n-1, 20))
		delay = rand.N(top) + 1
	} else {
		state = Broken
		delay += rand.N(delay/10 + 1)
	}
	s.set(state, err, time.Now().Add(delay))
	s.log.Error("the driver's program is down", "error", err, "crashes", n, "window", s.cfg.CrashWindow, "state", string(state), "restart_in", delay)
	return wait(ctx, delay)
}

// pauseRefused waits before the next look at a program that was refused, and reports whether there is to be one. A
// refusal is not a crash: an operator has to mend the file, or the configuration. It is logged when it begins.
func (s *supervisor) pauseRefused(ctx context.Context, err error) bool {
	level := slog.LevelError
	if s.get().State == Refused {
		level = slog.LevelDebug
	}
	s.set(Refused, err, time.Now().Add(s.cfg.MaxDelay))
	s.log.Log(ctx, level, "driver program refused", "error", err, "retry_in", s.cfg.MaxDelay)
	return wait(ctx, s.cfg.MaxDelay)
}

// wait reports whether d is over before ctx ends.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (s *supervisor) up(p *process) {
	s.link.conn.Store(p.conn) // first: whoever sees that it is up can call it
	s.mu.Lock()
	if s.st.State != "" {
		s.st.Restarts++
	}
	s.st.State, s.st.PID, s.st.Since, s.st.Next = Up, p.pid(), time.Now(), time.Time{}
	s.now = p
	restarts := s.st.Restarts
	s.mu.Unlock()
	s.log.Info("the driver's program is up", "program", s.path, "pid", p.pid(), "protocol", p.protocol, "restarts", restarts)
}

func (s *supervisor) set(state State, err error, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.st.State != state {
		s.st.Since = time.Now()
	}
	s.st.State, s.st.PID, s.st.Err, s.st.Next = state, 0, err, next
	s.now = nil
}

func (s *supervisor) kill() {
	s.mu.Lock()
	p := s.now
	s.mu.Unlock()
	if p != nil {
		p.kill()
	}
}

func (s *supervisor) get() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.st
}

func (s *supervisor) check() error {
	switch st := s.get(); st.State {
	case Up:
		return nil
	case Closed:
		return fault.New(fault.Unavailable, "driver %s is closed", s.name)
	case Broken:
		return fault.New(fault.Unavailable, "driver %s crashed more than %d times within %v, and is tried again in %v: %w",
			s.name, s.cfg.MaxCrashes, s.cfg.CrashWindow, time.Until(st.Next).Round(time.Millisecond), st.Err)
	case Refused:
		return fault.New(fault.Unavailable, "the program of driver %s is refused, and is looked at again in %v: %w", s.name, time.Until(st.Next).Round(time.Millisecond), st.Err)
	default:
		return fault.New(fault.Unavailable, "driver %s is being restarted: %w", s.name, st.Err)
	}
}

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
			if err := s.last.end(ctx); err != nil {
				s.closing = fmt.Errorf("close driver %s: %w", s.name, err)
			}
		}
		s.link.conn.Store(nil)
		s.set(Closed, s.get().Err, time.Time{})
	})
	return s.closing
}
