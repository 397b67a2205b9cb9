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

// systemd returns the notifier of a process that systemd has started, or of any other process.
func systemd(log *slog.Logger) notifier {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Error("the watchdog of systemd is not fed", "error", err)
	}
	return notifier{log: log, watchdog: every}
}

func (n notifier) say(lines ...string) {
	if n.log == nil {
		return
	}
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		n.log.Error("notify systemd", "error", err)
	}
}

// startTimeout is how long an attempt to start a part may take, including the back-off before it, once the
// App waits for a part. It is systemd's default of TimeoutStartSec.
const startTimeout = 90 * time.Second

// waiting tells systemd which part the App waits for, and asks for the time of one more attempt. Each attempt
// extends the start; an attempt that hangs does not.
func (n notifier) waiting(failed error) {
	n.say(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", startTimeout.Microseconds()), "STATUS=waiting: "+oneLine(failed))
}

// reloading tells systemd that a reload begins. Type=notify-reload requires the time.
func (n notifier) reloading() {
	n.say("RELOADING=1", "MONOTONIC_USEC="+monotonic())
}

// feed feeds the watchdog, twice as often as needed, as long as every check answers. A process that is not
// ready is fed, too: killing it does not bring a database back. A process with a check that hangs is not
// fed.
func (a *App) feed(life context.Context, wg *sync.WaitGroup) {
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
					sd.say("WATCHDOG=1", "STATUS=running")
				case errors.Is(err, errHung):
					sd.say("STATUS=" + oneLine(err))
				default:
					sd.say("WATCHDOG=1", "STATUS=not ready: "+oneLine(err))
				}
			case <-life.Done():
				return
			}
		}
	})
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
