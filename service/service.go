// Package service is the life of a process: it starts parts in order, tells
// whether they are ready, and on SIGTERM or SIGINT drains them in reverse
// order under one deadline.
//
//	app := service.New(service.Config{Name: "volume-worker"})
//	app.Add("rpc", server)        // started first, stopped last
//	app.Add("report", service.Loop(time.Minute, worker.Report))
//	app.Add("http", service.HTTP(":8776", handler))
//	return app.Run(ctx)
//
// It is not a dependency injector: main makes the parts and says their order.
package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/armature-go/armature/fault"
)

// Part is one thing that is started and stopped with the process: a listener,
// an RPC server, a supervised driver.
type Part interface {
	// Start returns when the part works, or with the reason why it does not;
	// it has then left nothing running. ctx is for the start only: it ends
	// when the drain begins, so what outlives Start must not derive from it.
	Start(ctx context.Context) error
	// Stop takes no new work, waits for what runs, and closes. When ctx ends
	// it cancels what runs and returns ctx's error soon. It is called once for
	// each Start that succeeded.
	Stop(ctx context.Context) error
}

// Failer is a [Part] that can fail after its start. The first error received
// drains the App and is what [App.Run] returns. Failed is called once, after
// Start; the channel may be closed without an error and need not be.
type Failer interface {
	Failed() <-chan error
}

// Checker is a [Part] that can be started and still not be ready, such as an RPC
// server whose broker is away. Check must be safe for concurrent use.
type Checker interface {
	Check(ctx context.Context) error
}

// Config configures an [App]. The zero value is usable.
type Config struct {
	// Name is the program's name in log lines and errors.
	Name string
	// DrainDelay is how long the parts go on working after the App became not
	// ready, so that load balancers can notice. It is a part of DrainTimeout.
	// Default 0.
	DrainDelay time.Duration
	// DrainTimeout bounds the whole drain: parts that have not stopped by then
	// are cut off. Default 60 s. It should be less than what the supervisor of
	// the process grants before it kills.
	DrainTimeout time.Duration
	// NoSignals leaves signals alone: only Run's context and a [Failer] end the
	// App. For a program that handles signals itself, and for tests in a
	// synctest bubble, which the runtime's signal goroutine must not enter.
	NoSignals bool
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// App runs parts. Make one with [New].
type App struct {
	cfg   Config
	parts []named
	phase atomic.Int32
}

type named struct {
	Part
	name string
}

// The phases of an App's life, in this order.
const (
	unstarted int32 = iota
	starting
	running
	draining
	stopped
)

var phaseNames = [...]string{"not started", "starting", "running", "draining", "stopped"}

// hardStop is how long a part has to return from Stop once the drain's
// deadline has passed.
const hardStop = time.Second

// New returns an App without parts. It starts nothing.
func New(cfg Config) *App {
	if cfg.Name == "" {
		cfg.Name = "service"
	}
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = 60 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &App{cfg: cfg}
}

// Add appends a part under a name that errors and log lines use. It must be
// called before Run, from one goroutine. It panics if the name is empty or
// taken, the part is nil, or the App runs already: programmer's errors.
func (a *App) Add(name string, p Part) {
	switch {
	case name == "" || p == nil:
		panic("service: a part without a name, or a nil part")
	case a.phase.Load() != unstarted:
		panic("service: part " + name + " added to an App that runs already")
	case slices.ContainsFunc(a.parts, func(n named) bool { return n.name == name }):
		panic("service: two parts named " + name)
	}
	if b, ok := p.(interface {
		bind(name string, logger *slog.Logger)
	}); ok {
		b.bind(name, a.cfg.Logger)
	}
	a.parts = append(a.parts, named{p, name})
}

// Ready returns nil when every part is started, none is being stopped, and
// every [Checker] is content; otherwise an error with code Unavailable that
// says why. It blocks as long as the checks do, at most until ctx ends if they
// keep to it. It is safe for concurrent use.
func (a *App) Ready(ctx context.Context) error {
	if p := a.phase.Load(); p != running {
		return fault.New(fault.Unavailable, "%s is %s", a.cfg.Name, phaseNames[p])
	}
	for _, p := range a.parts {
		if c, ok := p.Part.(Checker); ok {
			if err := c.Check(ctx); err != nil {
				return fault.New(fault.Unavailable, "%s: %w", p.name, err)
			}
		}
	}
	return nil
}

// Run starts the parts in the order in which they were added, waits until ctx
// ends, SIGTERM or SIGINT arrives, or a [Failer] fails, and then drains: the
// App becomes not ready, DrainDelay passes, and the parts are stopped in
// reverse order, each with what is left of DrainTimeout. A second signal exits
// the process at once with status 1.
//
// It returns nil when it was asked to stop and every part did. Otherwise the
// error names the parts: the one that did not start (those before it are
// stopped), the one that failed, those whose Stop returned an error, and, with
// code Timeout, those that were cut off. An App runs once.
func (a *App) Run(ctx context.Context) error {
	if a.cfg.DrainDelay >= a.cfg.DrainTimeout {
		return fault.New(fault.Invalid, "%s: drain delay %s leaves nothing of the drain timeout %s",
			a.cfg.Name, a.cfg.DrainDelay, a.cfg.DrainTimeout)
	}
	if !a.phase.CompareAndSwap(unstarted, starting) {
		return fault.New(fault.Precondition, "%s is %s: an App runs once", a.cfg.Name, phaseNames[a.phase.Load()])
	}
	defer a.phase.Store(stopped)

	life, end := context.WithCancelCause(ctx)
	done := make(chan struct{})
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer close(done)
	defer end(nil)
	if !a.cfg.NoSignals {
		a.watchSignals(&watchers, end, done)
	}

	n, startErr := a.start(life, &watchers, end, done)
	if startErr == nil {
		a.phase.Store(running)
		a.cfg.Logger.InfoContext(ctx, "ready", "service", a.cfg.Name, "parts", n)
		<-life.Done()
	}
	if failure, ok := errors.AsType[*partError](context.Cause(life)); ok {
		startErr = failure
	} else if life.Err() != nil {
		startErr = nil // asked to stop while it was starting: not a failure
	}
	return errors.Join(startErr, a.drain(life, n))
}

// start starts the parts and returns how many it did start.
func (a *App) start(ctx context.Context, wg *sync.WaitGroup, end context.CancelCauseFunc, done <-chan struct{}) (int, error) {
	for i, p := range a.parts {
		if ctx.Err() != nil {
			return i, context.Cause(ctx)
		}
		begin := time.Now()
		if err := p.Start(ctx); err != nil {
			return i, &partError{"start", p.name, err}
		}
		a.cfg.Logger.DebugContext(ctx, "part started", "part", p.name, "took", time.Since(begin))
		if f, ok := p.Part.(Failer); ok {
			failed := f.Failed()
			wg.Go(func() {
				select {
				case err := <-failed:
					if err != nil {
						end(&partError{"run", p.name, err})
					}
				case <-done:
				}
			})
		}
	}
	return len(a.parts), nil
}

func (a *App) watchSignals(wg *sync.WaitGroup, end context.CancelCauseFunc, done <-chan struct{}) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	wg.Go(func() {
		defer signal.Stop(signals)
		for asked := false; ; asked = true {
			select {
			case s := <-signals:
				if asked {
					a.cfg.Logger.Error("second signal: exit at once", "service", a.cfg.Name, "signal", s.String())
					os.Exit(1)
				}
				end(fmt.Errorf("signal %s", s))
			case <-done:
				return
			}
		}
	})
}

// drain stops the first n parts in reverse order.
func (a *App) drain(life context.Context, n int) error {
	wasReady := a.phase.Swap(draining) == running
	begin := time.Now()
	logger := a.cfg.Logger.With("service", a.cfg.Name)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(life), a.cfg.DrainTimeout)
	defer cancel()
	logger.InfoContext(ctx, "draining", "why", context.Cause(life), "timeout", a.cfg.DrainTimeout)
	if wasReady && a.cfg.DrainDelay > 0 {
		<-time.After(a.cfg.DrainDelay)
	}
	var errs []error
	var late []string
	for _, p := range slices.Backward(a.parts[:n]) {
		switch err := stop(ctx, p); {
		case err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()):
			late = append(late, p.name)
		case err != nil:
			errs = append(errs, &partError{"stop", p.name, err})
		}
	}
	if late != nil {
		errs = append(errs, fault.New(fault.Timeout, "%s: cut off after %s: %s",
			a.cfg.Name, a.cfg.DrainTimeout, strings.Join(late, ", ")))
	}
	logger.InfoContext(ctx, "stopped", "took", time.Since(begin), "cut_off", late)
	return errors.Join(errs...)
}

// stop stops one part. A part that does not return although its context ended
// is left behind: the process is about to exit.
func stop(ctx context.Context, p named) error {
	result := make(chan error, 1)
	go func() { result <- p.Stop(ctx) }()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-result:
		return err
	case <-time.After(hardStop):
		return ctx.Err()
	}
}

// partError says which part failed at what.
type partError struct {
	doing, part string
	err         error
}

func (e *partError) Error() string { return e.doing + " " + e.part + ": " + e.err.Error() }
func (e *partError) Unwrap() error { return e.err }
