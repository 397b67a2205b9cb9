// Package service runs a process: it starts parts in order, reports whether they
// are ready, and on SIGTERM or SIGINT drains them in reverse order under one
// deadline.
//
//	app := service.New(service.Config{Name: "volume-worker"})
//	app.Add("admin", app.Admin(service.AdminConfig{Addr: "127.0.0.1:9776"}))
//	app.Add("rpc", server)        // starts before the parts below, stops after them
//	app.Add("report", service.Loop(time.Minute, worker.Report))
//	app.Add("http", service.HTTP(":8776", handler))
//	return app.Run(ctx)
//
// The drain has two phases. First every [Drainer] stops taking new work and waits for the running
// work, while every part that this work needs still runs. Then every part is stopped. [App.Inflight]
// lists the running work. Work that the deadline cuts off is logged with its request id.
//
// If the database or the broker of a part cannot be reached, the App waits for the part. Meanwhile the process
// is not ready. The log says for which part the App waits, once for each reason. Constructors open
// nothing: a part connects in its Start.
//
// SIGHUP reloads every [Reloader], SIGUSR2 writes a report, and a second SIGTERM or SIGINT exits at
// once. The App tells systemd when it is ready, reloads and stops, asks for more time while it waits
// for a part, and feeds the watchdog.
//
// The package is not a dependency injector: main makes the parts and decides their order.
package service

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
)

// Part is a component that is started and stopped with the process, such as a listener,
// an RPC server or a supervised driver. The App never calls Start and Stop of a part at the same time.
type Part interface {
	// Start returns when the part works. A Start that returns an error must have stopped everything
	// that it has started. The error Unavailable means that the part may start later, for example because
	// its database cannot be reached now. Then the App calls Start again, with a back-off of up to 5 s, until Start
	// succeeds or the App is asked to stop. Any other error ends the App. ctx ends when the drain begins, so
	// goroutines of the part must not derive their context from it.
	Start(ctx context.Context) error
	// Stop takes no new work, waits for the running work, and closes the part. When ctx ends, Stop
	// cancels the running work and returns ctx's error within a second. It is called once for each
	// Start that succeeded.
	Stop(ctx context.Context) error
}

// Failer is a [Part] that can fail after its start. Failed returns a channel. The first error from the
// channel makes the App drain, and [App.Run] returns this error. Failed is called once, after Start has
// succeeded. The channel may be closed without an error, or stay open.
type Failer interface {
	Failed() <-chan error
}

// Drainer is a [Part] that takes work. Drain is called before any part is stopped, in
// reverse order. Drain takes no new work and waits for the running work, which may still use
// every part that was added before. When ctx ends, Drain cancels the running work and returns
// ctx's error within a second. Stop follows. A part that is not a Drainer does all of this in Stop.
type Drainer interface {
	Drain(ctx context.Context) error
}

// Reloader is a [Part] that can change its configuration while it runs. On SIGHUP the App calls
// Reload of one part after the other, in their order. Several SIGHUPs that arrive while another reload
// runs cause only one further reload.
//
// A Reload that returns an error must leave the part as it was. The error ends the reload, so that the later
// parts keep their configuration, see [App.Reload]. Therefore add the part that reads the options first.
//
// ctx ends after a minute, or when the drain begins. The drain does not wait for Reload, so Drain and Stop may
// be called while Reload runs. A Reload that runs for more than 1 s after the drain has begun is abandoned.
type Reloader interface {
	Reload(ctx context.Context) error
}

// Checker is a [Part] that may be not ready although it has started, such as an RPC
// server whose broker cannot be reached. Check returns the reason, or nil if the part is ready. The context of Check
// ends after [Config].CheckTimeout. Check must be safe for concurrent use and in every phase: it is also called
// before the part is started, and while the part is started, reloaded or stopped.
type Checker interface {
	Check(ctx context.Context) error
}

// Config configures an [App]. The zero value is usable.
type Config struct {
	// Name is the program's name in log lines and errors.
	Name string
	// DrainDelay is the time between the moment when the App becomes not ready and the drain of the
	// first part. Parts still take work in this time, so that load balancers can stop sending requests
	// first. DrainDelay is a part of DrainTimeout and must be less. Default 0.
	DrainDelay time.Duration
	// DrainTimeout bounds the whole drain. Work that still runs after this time is cut off.
	// Default 60 s. It should be less than the time after which the supervisor, such as systemd, kills
	// the process.
	DrainTimeout time.Duration
	// CheckTimeout is how long a [Checker] may take to answer. Default 5 s. systemd's watchdog is fed after all
	// checks have returned, so WatchdogSec must be longer than 2 * CheckTimeout + 2 s.
	CheckTimeout time.Duration
	// NoSignals makes the App handle no signals and tell systemd nothing: only the end of Run's context, or a [Failer], stops the App. It
	// is for programs that handle signals themselves, and for the further Apps of a program with several ones, because systemd would take
	// READY=1 of the first App for that of all. In a synctest bubble it must be set, because the runtime's goroutine for signals must not
	// enter a bubble.
	NoSignals bool
	// ReportTo gets the report of SIGUSR2. Default os.Stderr.
	ReportTo io.Writer
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// App runs parts. Make one with [New], add the parts, then call Run. Add, AddLabeled and AddReport must
// return before Run is called; the other methods are safe for concurrent use.
type App struct {
	cfg      Config
	parts    []namedPart
	sections []section
	phase    atomic.Int32
	began    atomic.Pointer[time.Time]
	inflight Inflight
	reload   sync.Mutex // held during a reload: reloads do not overlap
	started  chan struct{}
	drains   chan struct{}             // closed when the drain begins
	waiting  atomic.Pointer[partError] // the part that cannot start yet
	hangup   atomic.Bool               // SIGHUP was received, and its reload has not begun
	sd       notifier                  // set by Run
}

// namedPart is a part with the name and the label of App.AddLabeled.
type namedPart struct {
	Part
	name     string
	label    string    // for people
	checking *checking // nil: not a Checker
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

// New returns an App without parts. It starts nothing.
func New(cfg Config) *App {
	if cfg.Name == "" {
		cfg.Name = "service"
	}
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = 60 * time.Second
	}
	if cfg.CheckTimeout == 0 {
		cfg.CheckTimeout = 5 * time.Second
	}
	if cfg.ReportTo == nil {
		cfg.ReportTo = os.Stderr
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &App{cfg: cfg, started: make(chan struct{}), drains: make(chan struct{})}
}

// Add appends a part. The name identifies the part in errors, log lines, checks and metrics. Call Add
// before Run, from one goroutine. Add panics if the name is empty or in use, if the part is nil, or if
// the App has been run, because these are programmers' errors.
func (a *App) Add(name string, p Part) { a.AddLabeled(name, "", p) }

// AddLabeled does what [App.Add] does, and gives the part a label that tells an operator what to look at, such as "option
// transport_url". Errors and log lines about the part have the name and the label. While the App waits for the part to
// start, /readyz also has both. Checks, loops and metrics have the name alone.
func (a *App) AddLabeled(name, label string, p Part) {
	switch {
	case name == "" || p == nil:
		panic("service: Add: the name is empty, or the part is nil")
	case a.phase.Load() != unstarted:
		panic("service: Add: part " + name + " added after Run was called")
	case slices.ContainsFunc(a.parts, func(n namedPart) bool { return n.name == name }):
		panic("service: Add: two parts are named " + name)
	}
	if b, ok := p.(interface{ bind(a *App, name string) }); ok {
		b.bind(a, name)
	}
	n := namedPart{Part: p, name: name, label: label}
	if c, ok := p.(Checker); ok {
		n.checking = &checking{checker: c}
	}
	a.parts = append(a.parts, n)
}

// Inflight returns the list of the work that runs in this process. Give it to the parts that take work,
// such as an RPC server or a REST API: they add their work to the list.
func (a *App) Inflight() *Inflight { return &a.inflight }

// Started returns a channel that is closed when every part has started. From then on [HTTPPart].Addr has
// the port that the system has chosen. The channel is never closed if a part does not start.
func (a *App) Started() <-chan struct{} { return a.started }

// Run starts the parts in the order in which they were added. It blocks until ctx ends, SIGTERM or
// SIGINT arrives, or a [Failer] fails. Then it drains: the App becomes not ready, DrainDelay
// passes, and the parts are drained and then stopped in reverse order, within DrainTimeout in total. A
// second SIGTERM or SIGINT exits the process at once with status 1.
//
// Run returns nil if it was asked to stop and every part has stopped. Otherwise the error names these parts:
//
//   - the part that did not start; the parts before it are stopped;
//   - the part that failed;
//   - the parts whose Drain or Stop returned an error;
//   - the parts that were cut off, with code Timeout.
//
// Other errors are Invalid if DrainDelay is not less than DrainTimeout, and Precondition if Run was called
// before, because an App runs once.
func (a *App) Run(ctx context.Context) error {
	if a.cfg.DrainDelay >= a.cfg.DrainTimeout {
		return fault.New(fault.Invalid, "%s: drain delay %s leaves no time for the drain, whose timeout is %s: choose a shorter delay",
			a.cfg.Name, a.cfg.DrainDelay, a.cfg.DrainTimeout)
	}
	if !a.phase.CompareAndSwap(unstarted, starting) {
		return fault.New(fault.Precondition, "%s is %s: an App runs once", a.cfg.Name, phaseNames[a.phase.Load()])
	}
	defer a.phase.Store(stopped)
	a.began.Store(new(time.Now()))

	life, end := context.WithCancelCause(ctx)
	done := make(chan struct{})
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer close(done)
	defer end(nil)
	if !a.cfg.NoSignals {
		a.sd = newNotifier(a.cfg.Logger)
		a.watchSignals(ctx, &watchers, end, done)
	}

	n, startErr := a.startParts(life, &watchers, end, done)
	if startErr == nil {
		a.phase.Store(running)
		close(a.started)
		if a.hangup.Load() { // some parts may have read their files before the signal
			reloaded := make(chan struct{})
			watchers.Go(func() { defer close(reloaded); a.reloadForSignals(ctx, func() {}) })
			select {
			case <-reloaded:
			case <-life.Done():
			}
		}
		a.cfg.Logger.InfoContext(ctx, "ready", "service", a.cfg.Name, "parts", n)
		a.sd.notify("READY=1", "STATUS=running")
		a.feedWatchdog(life, &watchers)
		<-life.Done()
	}
	if failure, ok := errors.AsType[*partError](context.Cause(life)); ok {
		startErr = failure
	} else if life.Err() != nil {
		startErr = nil // the App was asked to stop while it was starting, which is not a failure
	}
	a.sd.notify("STOPPING=1", "STATUS=draining")
	return errors.Join(startErr, a.drain(life, n))
}

// startParts starts the parts and returns how many have started. It calls the function end with the first failure of a
// part that has started. The goroutines that wait for these failures are in wg, and return when done is closed.
func (a *App) startParts(ctx context.Context, wg *sync.WaitGroup, end context.CancelCauseFunc, done <-chan struct{}) (int, error) {
	for i, p := range a.parts {
		if ctx.Err() != nil {
			return i, context.Cause(ctx)
		}
		begin := time.Now()
		if err := a.startPart(ctx, p); err != nil {
			return i, err
		}
		a.cfg.Logger.DebugContext(ctx, "part started", "part", p.name, "took", time.Since(begin))
		if f, ok := p.Part.(Failer); ok {
			failed := f.Failed()
			wg.Go(func() { p.watchFailure(failed, end, done) })
		}
	}
	return len(a.parts), nil
}

// watchFailure waits until the part fails or done is closed, and calls the function end with the failure.
func (n *namedPart) watchFailure(failed <-chan error, end context.CancelCauseFunc, done <-chan struct{}) {
	select {
	case err := <-failed:
		if err != nil {
			end(n.failed("run", err))
		}
	case <-done:
	}
}

// Bounds of the back-off between two attempts to start a part.
const minStartDelay, maxStartDelay = 200 * time.Millisecond, 5 * time.Second

// startPart starts a part. It repeats the attempt, with a back-off, as long as the error is Unavailable.
func (a *App) startPart(ctx context.Context, p namedPart) error {
	delay := backoff.Backoff{Min: minStartDelay, Max: maxStartDelay}
	logged := map[string]bool{} // the key is the reason
	for attempt := 1; ; attempt++ {
		err := p.Start(ctx)
		if err == nil {
			if a.waiting.Swap(nil) != nil {
				a.cfg.Logger.InfoContext(ctx, "part started after waiting", "part", p.name, "attempts", attempt)
			}
			return nil
		}
		failed := p.failed("start", err)
		if ctx.Err() != nil || !errors.Is(err, fault.Unavailable) {
			return failed
		}
		// One line for each reason, because the second reason may be the one that an operator must know.
		if reason := fault.From(err).Reason; !logged[reason] {
			logged[reason] = true
			a.cfg.Logger.WarnContext(ctx, "waiting for a part to start; the service is not ready", "part", p.name, "label", p.label, "error", err)
		}
		a.waiting.Store(failed) // after the log line, so that an operator who sees it at /readyz finds the line
		a.sd.notifyWaiting(failed)
		if !delay.Wait(ctx) {
			return failed
		}
	}
}

// failed returns the error of a part. The parameter doing is "start", "run", "drain" or "stop".
func (n *namedPart) failed(doing string, err error) *partError {
	part := n.name
	if n.label != "" {
		part += " (" + n.label + ")"
	}
	return &partError{doing, part, err}
}

// partError is the error of a part with its name: "start rpc (option transport_url): ...".
type partError struct {
	doing, part string
	err         error
}

func (e *partError) Error() string { return e.doing + " " + e.part + ": " + e.err.Error() }
func (e *partError) Unwrap() error { return e.err }
