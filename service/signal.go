package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

func (a *App) watchSignals(ctx context.Context, wg *sync.WaitGroup, end context.CancelCauseFunc, done <-chan struct{}) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, sigReload, sigReport)
	ctx = context.WithoutCancel(ctx)
	wg.Go(func() {
		defer signal.Stop(signals)
		for asked := false; ; {
			select {
			case s := <-signals:
				switch s {
				case sigReload:
					a.hangup.Store(true) // counts only while parts are started
					if a.phase.Load() != running {
						continue // READY=1 after it would tell systemd that the start is over
					}
					wg.Go(func() {
						a.sd.reloading()
						_ = a.Reload(ctx) // logged
						a.sd.say("READY=1")
					})
				case sigReport:
					wg.Go(func() {
						if err := a.Report(ctx, a.cfg.ReportTo); err != nil {
							a.cfg.Logger.ErrorContext(ctx, "write report", "error", err)
						}
					})
				default:
					if asked {
						a.cfg.Logger.ErrorContext(ctx, "second signal: exit at once", "service", a.cfg.Name, "signal", s.String())
						os.Exit(1)
					}
					asked = true
					end(fmt.Errorf("signal %s", s))
				}
			case <-done:
				return
			}
		}
	})
}

// CatchSignals keeps SIGHUP and SIGUSR2 from killing a process that has not come to [App.Run] yet:
// call it in the first line of main. SIGTERM and SIGINT still end the process at once until then,
// as nothing is open that needs a drain.
func CatchSignals() {
	signal.Notify(make(chan os.Signal, 1), sigReload, sigReport)
}

// reloadTimeout bounds a reload of one part.
const reloadTimeout = time.Minute

// Reload reloads every [Reloader], in the parts' order, as SIGHUP does. What fails is
// logged, and the others are reloaded all the same; the error has all of it. It does
// nothing unless the App runs. It is safe for concurrent use: one waits for the other.
func (a *App) Reload(ctx context.Context) error {
	a.reload.Lock()
	defer a.reload.Unlock()
	if a.phase.Load() != running {
		return nil
	}
	var errs []error
	for _, p := range a.parts {
		r, ok := p.Part.(Reloader)
		if !ok {
			continue
		}
		call, cancel := context.WithTimeout(ctx, reloadTimeout)
		err := r.Reload(call)
		cancel()
		if err != nil {
			a.cfg.Logger.ErrorContext(ctx, "reload", "part", p.name, "error", err)
			errs = append(errs, &partError{"reload", p.name, err})
		}
	}
	a.cfg.Logger.InfoContext(ctx, "reloaded", "service", a.cfg.Name, "failed", len(errs))
	return errors.Join(errs...)
}
