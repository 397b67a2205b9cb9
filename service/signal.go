package service

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/armature-go/armature/fault"
)

// watchSignals starts a goroutine in wg that handles signals until done is closed. At the first SIGTERM or SIGINT it calls the function end.
func (a *App) watchSignals(ctx context.Context, wg *sync.WaitGroup, end context.CancelCauseFunc, done <-chan struct{}) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, sigReload, sigReport)
	ctx = context.WithoutCancel(ctx)
	wg.Go(func() {
		defer signal.Stop(signals)
		for asked := false; ; {
			select {
			case s := <-signals:
				switch {
				case s == sigReload:
					a.reloadOnSignal(ctx, wg)
				case s == sigReport:
					wg.Go(func() { a.reportOnSignal(ctx, done) })
				case asked:
					a.cfg.Logger.ErrorContext(ctx, "second signal, exiting at once", "service", a.cfg.Name, "signal", s.String())
					os.Exit(1)
				default:
					asked = true
					end(fmt.Errorf("signal %s", s))
				}
			case <-done:
				return
			}
		}
	})
}

// reloadOnSignal starts a reload. If another reload waits to begin, it starts none, because the waiting reload also
// serves this signal. While parts start, it only records the signal, and Run reloads when all parts have started.
func (a *App) reloadOnSignal(ctx context.Context, wg *sync.WaitGroup) {
	if a.hangup.Swap(true) || a.phase.Load() != running {
		return // a reload would end with READY=1, so that systemd would regard the start as complete
	}
	wg.Go(func() {
		a.reloadForSignals(ctx, a.sd.notifyReloading)
		if a.phase.Load() == running {
			a.sd.notify("READY=1")
		}
	})
}

// reloadForSignals waits until no other reload runs, calls the function begin, and reloads once for all SIGHUPs that have
// arrived until then. It does nothing if another reload has already served these signals, or if the App is not running.
// systemd requires that the function begin is called after the last of these signals.
func (a *App) reloadForSignals(ctx context.Context, begin func()) {
	a.reload.Lock()
	defer a.reload.Unlock()
	if a.phase.Load() != running || !a.hangup.Swap(false) {
		return
	}
	begin()
	_ = a.reloadLocked(ctx) // logged
}

// reportOnSignal writes the report to Config.ReportTo. It returns at most hardStop after done is closed, even if a check hangs or
// the writer blocks, such as a pipe that no program reads.
func (a *App) reportOnSignal(ctx context.Context, done <-chan struct{}) {
	life, end := context.WithCancel(ctx)
	defer end()
	go func() {
		select {
		case <-done:
			end()
		case <-life.Done():
		}
	}()
	if err := callWithin(life, func(ctx context.Context) error { return a.Report(ctx, a.cfg.ReportTo) }); err != nil {
		a.cfg.Logger.ErrorContext(ctx, "report failed", "error", err)
	}
}

// CatchSignals prevents SIGHUP and SIGUSR2 from killing the process before [App.Run] is called. Call it
// in the first line of main. Before Run is called, SIGTERM and SIGINT still end the process at once, because
// the process has no work to drain yet.
func CatchSignals() {
	signal.Notify(make(chan os.Signal, 1), sigReload, sigReport)
}

// reloadTimeout bounds a reload of one part.
const reloadTimeout = time.Minute

// Reload reloads every [Reloader], in the parts' order, as SIGHUP does. The first error ends the reload. The part
// with the error and the later parts keep their configuration. So, for example, the policy does not change if the
// options are wrong. One log line says "reloaded", or "reload failed" with the error, the parts that are
// reloaded and the parts that are not. Reload is safe for concurrent use: concurrent calls wait for each other.
//
// When the drain begins, Reload reloads no further part and returns within 1 s, see [Reloader].
// Errors: Unavailable if the App is not running (it has not started, or it drains or is stopped), or if the drain begins
// during the reload; otherwise the error of a part.
func (a *App) Reload(ctx context.Context) error {
	a.reload.Lock()
	defer a.reload.Unlock()
	if err := a.checkRunning(); err != nil {
		return err
	}
	return a.reloadLocked(ctx)
}

// checkRunning returns Unavailable if the App is not running.
func (a *App) checkRunning() error {
	if p := a.phase.Load(); p != running {
		return fault.New(fault.Unavailable, "%s is %s: parts are reloaded only while it is running", a.cfg.Name, phaseNames[p])
	}
	return nil
}

// reloadLocked does the work of Reload for an App that runs. a.reload must be held.
func (a *App) reloadLocked(ctx context.Context) error {
	reloaded, unchanged := []string{}, []string{}
	var failed error
	for _, p := range a.parts {
		r, ok := p.Part.(Reloader)
		if f, isFuncs := p.Part.(Funcs); !ok || isFuncs && f.OnReload == nil {
			continue
		}
		if failed == nil {
			failed = a.checkRunning()
		}
		if failed == nil {
			failed = a.reloadPart(ctx, p.name, r)
		}
		if failed != nil {
			unchanged = append(unchanged, p.name)
			continue
		}
		reloaded = append(reloaded, p.name)
	}
	if failed == nil {
		a.cfg.Logger.InfoContext(ctx, "reloaded", "service", a.cfg.Name, "parts", reloaded)
		return nil
	}
	msg := "reload failed, later parts not reloaded"
	if len(reloaded) == 0 {
		msg = "reload failed, nothing changed"
	}
	a.cfg.Logger.ErrorContext(ctx, msg, "service", a.cfg.Name, "error", failed, "reloaded", reloaded, "unchanged", unchanged)
	return failed
}

// reloadPart reloads a part. When the drain begins, reloadPart cancels the context of Reload and returns within hardStop.
func (a *App) reloadPart(ctx context.Context, name string, r Reloader) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx)) // until the drain begins
	defer end()
	go func() {
		select {
		case <-a.drains:
			end()
		case <-life.Done():
		}
	}()
	err := callWithin(life, func(life context.Context) error {
		call, cancel := context.WithTimeout(ctx, reloadTimeout)
		defer cancel()
		defer context.AfterFunc(life, cancel)()
		return r.Reload(call)
	})
	switch {
	case err == nil:
		return nil
	case life.Err() != nil:
		return fault.New(fault.Unavailable, "reload %s: the drain began before the reload ended: %v", name, err)
	}
	return &partError{"reload", name, err}
}
