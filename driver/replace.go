package driver

import (
	"context"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/armature-go/armature/fault"
)

// streamTime is how long the streams of a program that is not Concurrent may continue when the program is replaced.
const streamTime = time.Second

// swap changes the running program in restartLoop. The parameter old is the running process, or nil while the program is down.
// The result is the process that runs afterwards. An error means that none runs.
type swap func(ctx context.Context, old *process) (*process, error)

// replacement is a program that is to replace the running one.
type replacement struct {
	*supervisor

	next  *plan
	file  os.FileInfo
	p     *process                           // the new program, after the handshake
	old   *Info                              // the Info of the running program; nil if the program does not answer
	check func(context.Context, *view) error // the caller's check of the new driver; may be nil
}

// replace replaces the running program, see Plugin.Replace.
func (s *supervisor) replace(ctx context.Context, next *plan, check func(context.Context, *view) error) error {
	program, err := openRefused(next.path, next.cfg.SHA256)
	if err != nil {
		return s.notReplaced(fmt.Errorf("%s: %w", next.path, err))
	}
	file, err := program.Stat()
	if err != nil || s.runs(next, file) {
		_ = program.Close() // the file was only read
		return err
	}
	r := &replacement{supervisor: s, next: next, file: file, check: check}
	if err := s.awaitRetired(ctx); err != nil {
		_ = program.Close() // the file was only read
		return s.notReplaced(err)
	}
	start, cancel := context.WithTimeout(ctx, next.cfg.StartTimeout)
	defer cancel()
	if r.p, err = startProcess(start, program, false, s.protocols, next.path, &next.cfg, s.log); err != nil {
		return s.notReplaced(err)
	}
	r.old = s.runningInfo(start)
	change := r.swapAfter
	if r.old != nil && r.old.Concurrent {
		if err := r.open(start); err != nil {
			return s.notReplaced(err)
		}
		change = r.swapBeside
	}
	result := make(chan error, 1)
	select {
	case s.swaps <- func(life context.Context, old *process) (*process, error) {
		after, failed, err := change(life, ctx, old)
		result <- failed
		return after, err
	}:
		err = <-result
	case <-ctx.Done():
		err = r.discardProgram(fault.New(fault.CodeOf(ctx.Err()), "the replacement did not begin in time: %w", ctx.Err()))
	case <-s.done:
		err = r.discardProgram(fault.New(fault.Unavailable, "the driver is closed"))
	}
	if err != nil {
		return s.notReplaced(err)
	}
	return nil
}

// notReplaced returns the error of a replacement.
func (s *supervisor) notReplaced(err error) error {
	return fmt.Errorf("replace the program of driver %s, which stays as it is: %w", s.name, err)
}

// runs reports whether the plan and its file are those of the running program.
func (s *supervisor) runs(next *plan, file os.FileInfo) bool {
	now := s.plan.Load()
	if now.path != next.path || !sameConfig(now.cfg, next.cfg) {
		return false
	}
	if next.cfg.SHA256 != "" {
		return true // the running program also has the checksum
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.file != nil && os.SameFile(s.file, file) && s.file.Size() == file.Size() && s.file.ModTime().Equal(file.ModTime())
}

// sameConfig reports whether two configurations are equal, except for Observe and Logger.
func sameConfig(a, b PluginConfig) bool {
	for _, c := range []*PluginConfig{&a, &b} {
		c.Observe, c.Logger, c.SHA256 = nil, nil, strings.ToLower(c.SHA256)
		c.Program, c.Dir = "", "" // the caller compares the path that they lead to
	}
	return reflect.DeepEqual(a, b)
}

// runningInfo returns the Info of the running program, or nil if the program does not answer.
func (s *supervisor) runningInfo(ctx context.Context) *Info {
	ctx, cancel := context.WithTimeout(ctx, s.plan.Load().cfg.PingTimeout)
	defer cancel()
	st := s.getStatus()
	if st.State != Up {
		return nil
	}
	info, err := Remote(s.link.view(st.Protocol)).Info(ctx)
	if err != nil {
		return nil
	}
	return &info
}

// open opens and checks the driver of the new program. After an error the program has ended.
func (r *replacement) open(ctx context.Context) error {
	if err := r.openDriver(ctx, r.p); err != nil {
		return err
	}
	err := r.verify(ctx)
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.next.cfg.CloseTimeout)
	defer cancel()
	if r.p.hasExited() {
		return r.discardProgram(err)
	}
	_ = r.p.closeDriver(ctx) // err is the reason
	return fmt.Errorf("%s: %w", r.p.path, err)
}

// verify checks the open driver of the new program.
func (r *replacement) verify(ctx context.Context) error {
	v := &view{link: r.link, protocol: r.p.protocol, fixed: r.p.route}
	info, err := Remote(v).Info(ctx)
	if err != nil {
		return fmt.Errorf("read its Info: %w", err)
	}
	if r.old != nil {
		for _, c := range r.old.Capabilities {
			if !slices.Contains(info.Capabilities, c) {
				return fault.New(fault.Precondition, "it does not have the capability %s, which the running program has; to use it, restart the worker", c)
			}
		}
	}
	if r.check == nil {
		return nil
	}
	return r.check(ctx, v)
}

// discardProgram ends the new program, which is not used, and returns the reason.
func (r *replacement) discardProgram(reason error) error {
	r.p.fail(reason)
	r.p.cleanUp()
	return r.p.explain(reason)
}

// use makes new calls go to the new program.
func (r *replacement) use(old *process) *process {
	r.plan.Store(r.next)
	r.crashes = nil
	r.link.cur.Store(r.p.route) // before the state changes, as in setUp
	r.mu.Lock()
	r.status.Replacements++
	r.supervisor.file = r.file
	r.setUpLocked(r.p)
	r.mu.Unlock()
	oldPID := 0
	if old != nil {
		oldPID = old.pid()
	}
	r.log.Info("driver program replaced", "program", r.p.path, "pid", r.p.pid(), "protocol", r.p.protocol, "old_pid", oldPID)
	return r.p
}

// swapBeside changes to the new program, whose driver is open, while calls on the old program continue.
func (r *replacement) swapBeside(life, _ context.Context, old *process) (after *process, failed, err error) {
	if r.p.hasExited() {
		failed = r.discardProgram(nil)
		if old == nil {
			return nil, failed, failed
		}
		return old, failed, nil
	}
	r.use(old)
	if old != nil {
		r.retireProcess(life, old)
	}
	return r.p, nil, nil
}

// swapAfter closes the old program, and then opens the driver of the new one. New calls wait. If calls on the old program do not
// end in time, nothing changes. If the new program is refused, the old one is started again.
func (r *replacement) swapAfter(life, ctx context.Context, old *process) (after *process, failed, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	now := r.plan.Load()
	if old != nil {
		defer r.link.holdCalls()()
		if err := r.awaitCalls(ctx, old); err != nil {
			return old, r.discardProgram(err), nil
		}
		r.link.cur.Store(nil)
		program := old.program
		old.program = nil    // stays open for the restart
		r.closeReplaced(old) //nolint:contextcheck // only Close ends it
		defer func() {
			if failed == nil {
				_ = program.Close() // the file was only read
				return
			}
			if after, err = r.startAgain(r.urgent, now, program); err != nil {
				r.setDown(Restarting, err, time.Now())
			}
		}()
	}
	start, stop := context.WithTimeout(ctx, r.next.cfg.StartTimeout)
	defer stop()
	if err := r.open(start); err != nil {
		return nil, err, err
	}
	return r.use(old), nil, nil
}

// awaitCalls waits until no call runs on the old program. It waits for at most DrainTimeout, and for at most half of the time until
// the deadline of ctx. After an error the old program gets calls again.
func (r *replacement) awaitCalls(ctx context.Context, old *process) error {
	limit := old.cfg.DrainTimeout
	if d, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(d)/2)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	var pings sync.WaitGroup
	defer pings.Wait()
	defer cancel()
	pings.Go(func() { old.killWhenHung(ctx) }) // restartLoop waits here and sends no pings
	old.route.retired.Store(true)
	defer time.AfterFunc(streamTime, func() { old.route.cutStreams("its program is being replaced") }).Stop()
	if old.route.awaitIdle(ctx) {
		return nil
	}
	old.route.retired.Store(false)
	return fault.New(fault.Timeout, "calls that run on the old program did not end within %v; try again", limit.Round(time.Millisecond))
}

// killWhenHung kills the program when it hangs, until ctx or the program ends.
func (p *process) killWhenHung(ctx context.Context) {
	t := time.NewTicker(p.cfg.PingEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			p.killIfHung(ctx)
		case <-p.exited:
			return
		case <-ctx.Done():
			return
		}
	}
}

// startAgain starts a program again that was ended for a replacement. The parameter program is its open file.
func (s *supervisor) startAgain(ctx context.Context, now *plan, program *os.File) (*process, error) {
	_, err := program.Seek(0, io.SeekStart)
	if err == nil {
		err = checkProgram(program, now.path, now.cfg.SHA256) // a script may have been overwritten
	}
	if err != nil {
		_ = program.Close() // the file was only read
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	p, err := s.startFile(ctx, now, program, true)
	if err != nil {
		return nil, err
	}
	s.setUp(p)
	return p, nil
}

// retirement is a program that was replaced, and still has calls.
type retirement struct {
	route *route
	done  chan struct{} // closed when the program has ended
}

// retireProcess ends a replaced program as soon as its calls have ended, at the latest after DrainTimeout. It does not
// block.
func (s *supervisor) retireProcess(life context.Context, old *process) {
	life = context.WithoutCancel(life) // close waits for the retirement
	r := &retirement{route: old.route, done: make(chan struct{})}
	old.route.retired.Store(true)
	s.retire.Store(r)
	go func() {
		defer close(r.done)
		ctx, cancel := context.WithTimeout(s.urgent, old.cfg.DrainTimeout)
		defer cancel()
		if !old.route.awaitIdle(ctx) { //nolint:contextcheck // only Close ends it
			old.route.cutStreams("its program was replaced")
			soon, stop := context.WithTimeout(life, killTime/10)
			defer stop()
			if !old.route.awaitIdle(soon) {
				old.fail(fault.New(fault.Timeout, "it was killed because %d calls did not end after its replacement", old.route.n.Load()))
				<-old.exited
			}
		}
		s.closeReplaced(old) //nolint:contextcheck // only Close ends it
	}()
}

// closeReplaced closes the driver of a program that was replaced, ends the program, and logs how it has ended. It takes at most
// CloseTimeout, and ends with the context of Close.
func (s *supervisor) closeReplaced(old *process) {
	ctx, cancel := context.WithTimeout(s.urgent, old.cfg.CloseTimeout)
	defer cancel()
	var err error
	if old.hasExited() {
		old.cleanUp()
		err = old.explain(nil)
	} else {
		err = old.closeDriver(ctx)
	}
	if err != nil {
		s.log.Warn("replaced driver program ended with an error", "pid", old.pid(), "error", err)
		return
	}
	s.log.Info("replaced driver program ended", "pid", old.pid())
}

// awaitRetired waits until the program that was replaced before has ended, so that at most two programs run at a time.
func (s *supervisor) awaitRetired(ctx context.Context) error {
	r := s.retire.Load()
	if r == nil {
		return nil
	}
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return fault.New(fault.CodeOf(ctx.Err()), "the program that was replaced before still has %d calls; try again when they have ended", r.route.n.Load())
	}
}
