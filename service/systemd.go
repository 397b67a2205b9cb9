package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notifier sends the state of the service to systemd. The zero value sends nothing.
type notifier struct {
	log      *slog.Logger
	watchdog time.Duration // 0: no watchdog
}

// newNotifier returns the notifier of this process. If systemd has not started the process, the notifier sends nothing.
func newNotifier(log *slog.Logger) notifier {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Error("systemd watchdog not fed, WATCHDOG_USEC cannot be read", "error", err)
	}
	return notifier{log: log, watchdog: every}
}

// notify sends lines of the protocol of sd_notify(3). An error is logged.
func (n notifier) notify(lines ...string) {
	if n.log == nil {
		return
	}
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		n.log.Error("systemd notification failed", "error", err)
	}
}

// startTimeout is how long an attempt to start a part may take, including the back-off before it, after the
// part's first attempt has failed. It is systemd's default of TimeoutStartSec.
const startTimeout = 90 * time.Second

// notifyWaiting tells systemd which part the App waits for, and asks for the time of one more attempt. Each attempt
// extends the timeout of the start once, so an attempt that hangs does not extend it without end.
func (n notifier) notifyWaiting(failed error) {
	n.notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", startTimeout.Microseconds()), "STATUS=waiting: "+joinLines(failed))
}

// notifyReloading tells systemd that a reload begins. Type=notify-reload requires the time.
func (n notifier) notifyReloading() {
	n.notify("RELOADING=1", "MONOTONIC_USEC="+monotonicMicroseconds())
}

// feedWatchdog feeds systemd's watchdog, twice as often as needed, as long as every check returns. A process that is not
// ready also feeds the watchdog, because a restart does not bring a database back. A process with a check that hangs
// does not feed it, so that systemd restarts the process.
func (a *App) feedWatchdog(life context.Context, wg *sync.WaitGroup) {
	sd := a.sd
	if sd.watchdog <= 0 {
		return
	}
	wg.Go(func() {
		tick := time.NewTicker(sd.watchdog / 2)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				switch err := a.Ready(life); {
				case err == nil:
					sd.notify("WATCHDOG=1", "STATUS=running")
				case errors.Is(err, errHung):
					sd.notify("STATUS=" + joinLines(err))
				default:
					sd.notify("WATCHDOG=1", "STATUS=not ready: "+joinLines(err))
				}
			case <-life.Done():
				return
			}
		}
	})
}

// joinLines returns the text of an error in one line, because the protocol has a line for each variable.
func joinLines(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
