// Package service is the life of a process: it starts parts in order, tells
// whether they are ready, and on SIGTERM or SIGINT drains them in reverse
// order under one deadline.
//
//	app := service.New(service.Config{Name: "volume-worker"})
//	app.Add("admin", app.Admin(service.AdminConfig{Addr: "127.0.0.1:9776"}))
//	app.Add("rpc", server)        // started before what follows, stopped after it
//	app.Add("report", service.Loop(time.Minute, worker.Report))
//	app.Add("http", service.HTTP(":8776", handler))
//	return app.Run(ctx)
//
// The drain has two phases. First every [Drainer] takes no new work and waits for what
// runs, while all that this may need still works; then every part is stopped. Whatever
// runs is noted in [App.Inflight], and what the deadline cuts off is logged with its
// request ids.
//
// A part whose database or broker is away is waited for: the process is not ready meanwhile, and
// the log says for what it waits, once for each reason. Constructors open nothing; a part connects in its Start.
//
// SIGHUP reloads every [Reloader], SIGUSR2 writes a report, a second SIGTERM or SIGINT
// exits at once. Under systemd the App says when it is ready, reloads and stops, asks for more time
// while it waits for a part, and feeds the watchdog.
//
// It is not a dependency injector: main makes the parts and says their order.
package service

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/armature-go/armature/fault"
)

// Part is one thing that is started and stopped with the process: a listener,
// an RPC server, a supervised driver.
type Part interface {
	// Start returns when the part works, or with the reason why it does not;
	// it has then left nothing running. An error with code Unavailable, such as of a database
	// that is away, means that it may work later: the App calls Start again, after a pause
	// of at most 5 s, until it works or the App is told to stop. ctx is for the start only: it
	// ends when the drain begins, so what outlives Start must not derive from it.
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

// Drainer is a [Part] with an intake. Drain is called before any part is stopped, the
// last part's first: it takes no new work and waits for what runs, which may still use
// every part that was added before. When ctx ends it cancels what runs and returns ctx's
// error soon. Stop follows. A part that is no Drainer does all of it in Stop.
type Drainer interface {
	Drain(ctx context.Context) error
}

// Reloader is a [Part] that can take up changes of its configuration while it runs.
// Reload is called for each SIGHUP, of one part after the other in their order. An
// error must leave the part as it was. It ends the reload, so that later parts stay as
// they are, see [App.Reload]: add the part of the options first.
type Reloader interface {
	Reload(ctx context.Context) error
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
	// CheckTimeout is how long a [Checker] may take to answer. Default 5 s.
	CheckTimeout time.Duration
	// NoSignals leaves signals and systemd alone: only Run's context and a [Failer]
	// end the App. For a program that handles them itself, and for tests in a
	// synctest bubble, which the runtime's signal goroutine must not enter.
	NoSignals bool
	// ReportTo is where the report of SIGUSR2 goes. Default os.Stderr.
	ReportTo io.Writer
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// App runs parts. Make one with [New].
type App struct {
	cfg      Config
	parts    []named
	sections []section
	phase    atomic.Int32
	began    atomic.Pointer[time.Time]
	inflight Inflight
	reload   sync.Mutex // one at a time
	started  chan struct{}
	waiting  atomic.Pointer[partError] // the part that does not start yet
	hangup   atomic.Bool               // SIGHUP came while parts were started
	sd       notifier                  // set by Run
}

type named struct {
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
	return &App{cfg: cfg, started: make(chan struct{})}
}

// Add appends a part under a name that errors and log lines use. It must be
// called before Run, from one goroutine. It panics if the name is empty or
// taken, the part is nil, or the App runs already: programmer's errors.
func (a *App) Add(name string, p Part) { a.AddLabeled(name, "", p) }

// AddLabeled is [App.Add] with a label for people, such as "option transport_url": it stands after
// the name where a start or a run fails, or waits. Checks, loops and metrics have the name alone.
func (a *App) AddLabeled(name, label string, p Part) {
	switch {
	case name == "" || p == nil:
		panic("service: a part without a name, or a nil part")
	case a.phase.Load() != unstarted:
		panic("service: part " + name + " added to an App that runs already")
	case slices.ContainsFunc(a.parts, func(n named) bool { return n.name == name }):
		panic("service: two parts named " + name)
	}
	if b, ok := p.(interface{ bind(a *App, name string) }); ok {
		b.bind(a, name)
	}
	n := named{Part: p, name: name, label: label}
	if c, ok := p.(Checker); ok {
		n.checking = &checking{checker: c}
	}
	a.parts = append(a.parts, n)
}

// Inflight returns the list of what runs in this process, for whoever takes work in to
// note it there.
func (a *App) Inflight() *Inflight { return &a.inflight }

// Started returns a channel that is closed when every part has started: from then on an
// [HTTPPart].Addr has the port that was chosen.
func (a *App) Started() <-chan struct{} { return a.started }

// Run starts the parts in the order in which they were added, waits until ctx
// ends, SIGTERM or SIGINT arrives, or a [Failer] fails, and then drains: the
// App becomes not ready, DrainDelay passes, and the parts are drained and then stopped
// in reverse order, each with what is left of DrainTimeout. A second signal exits
// the process at once with status 1.
//
// It returns nil when it was asked to stop and every part did. Otherwise the
// error names the parts: the one that did not start (those before it are
// stopped), the one that failed, those whose Drain or Stop returned an error, and, with
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
	a.began.Store(new(time.Now()))

	life, end := context.WithCancelCause(ctx)
	done := make(chan struct{})
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer close(done)
	defer end(nil)
	if !a.cfg.NoSignals {
		a.sd = systemd(a.cfg.Logger)
		a.watchSignals(ctx, &watchers, end, done)
	}

	n, startErr := a.start(life, &watchers, end, done)
	if startErr == nil {
		a.phase.Store(running)
		close(a.started)
		if a.hangup.Load() { // what the parts have read may be older
			_ = a.Reload(ctx) // logged
		}
		a.cfg.Logger.InfoContext(ctx, "ready", "service", a.cfg.Name, "parts", n)
		a.sd.say("READY=1", "STATUS=running")
		a.feed(life, &watchers)
		<-life.Done()
	}
	if failure, ok := errors.AsType[*partError](context.Cause(life)); ok {
		startErr = failure
	} else if life.Err() != nil {
		startErr = nil // asked to stop while it was starting: not a failure
	}
	a.sd.say("STOPPING=1", "STATUS=draining")
	return errors.Join(startErr, a.drain(life, n))
}

// start starts the parts and returns how many it did start.
func (a *App) start(ctx context.Context, wg *sync.WaitGroup, end context.CancelCauseFunc, done <-chan struct{}) (int, error) {
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
			wg.Go(func() {
				select {
				case err := <-failed:
					if err != nil {
						end(p.failed("run", err))
					}
				case <-done:
				}
			})
		}
	}
	return len(a.parts), nil
}

// maxStartPause is the longest pause between two attempts to start a part.
const maxStartPause = 5 * time.Second

// startPart starts a part, and waits for what it needs as long as that is away.
func (a *App) startPart(ctx context.Context, p named) error {
	pause := 100 * time.Millisecond
	said := map[string]bool{}
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
		// One line for each reason that peers give, as the second one may be what an operator must know.
		if reason := fault.From(err).Reason; !said[reason] {
			said[reason] = true
			a.cfg.Logger.WarnContext(ctx, "waiting for a part to start; the service is not ready", "part", p.name, "label", p.label, "error", err)
		}
		a.waiting.Store(failed) // after the log line, so that an operator who sees it at /readyz finds the line
		a.sd.waiting(failed)
		pause = min(2*pause, maxStartPause)
		t := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return failed
		}
	}
}

func (n *named) failed(doing string, err error) *partError {
	part := n.name
	if n.label != "" {
		part += " (" + n.label + ")"
	}
	return &partError{doing, part, err}
}

// partError says which part failed at what.
type partError struct {
	doing, part string
	err         error
}

func (e *partError) Error() string { return e.doing + " " + e.part + ": " + e.err.Error() }
func (e *partError) Unwrap() error { return e.err }
