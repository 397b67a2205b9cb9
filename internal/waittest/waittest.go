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

// Until blocks until ok returns true, which it asks every 5 ms. It ends the test if that takes longer than Timeout; what
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
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(Timeout); ; <-tick.C {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited %s for %s: %v", Timeout, what, err)
		}
	}
}

// Pass lets real time pass, for tests in which no signal says that the time is over: the clock of a database or a broker
// runs, or a fault lasts so long. why names the clock or the fault. Use a signal or a bubble of testing/synctest wherever possible.
func Pass(t testing.TB, d time.Duration, why string) {
	t.Helper()
	t.Logf("%s pass: %s", d, why)
	<-time.After(d)
}
