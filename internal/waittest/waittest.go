// Package waittest is how tests wait for what another goroutine, process or service does. In a bubble of testing/synctest
// no test needs it: there, synctest.Wait and the fake clock do the work.
package waittest

import (
	"errors"
	"testing"
	"time"
)

// Timeout is how long [Until] and [Succeeds] wait. It is far more than any of the tests needs, because machines may be busy.
const Timeout = 30 * time.Second

// Until blocks until ok returns true, which it asks as [Poll] does. It ends the test if that takes longer than Timeout; what
// names the condition in the error. It must be called from the goroutine of the test.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	Succeeds(t, what, func() error {
		if ok() {
			return nil
		}
		return errors.New("not yet")
	})
}

// Succeeds is Until with an error, which is nil at the end. The error of the test has the last one.
func Succeeds(t testing.TB, what string, f func() error) {
	t.Helper()
	if err := Poll(Timeout, f); err != nil {
		t.Fatalf("waited %s for %s: %v", Timeout, what, err)
	}
}

// Poll calls f until it returns nil, and returns nil; or its last error, if it has not returned nil within limit. It may be
// called from any goroutine. The pause between two calls grows from 1 ms to 50 ms.
func Poll(limit time.Duration, f func() error) error {
	pause, end := time.Millisecond, time.Now().Add(limit)
	for {
		if err := f(); err == nil || time.Now().After(end) {
			return err
		}
		Spend(pause)
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// Pass lets real time pass, for tests in which no signal says that the time is over: the clock of a database or a broker
// runs, or a fault lasts so long. why names the clock or the fault. Use a signal or a bubble of testing/synctest wherever possible.
func Pass(t testing.TB, d time.Duration, why string) {
	t.Helper()
	t.Logf("%s pass: %s", d, why)
	Spend(d)
}

// Spend blocks for d. It is the work of a handler that takes so long, or the fault of a proxy: it has no test.
func Spend(d time.Duration) { <-time.After(d) }
