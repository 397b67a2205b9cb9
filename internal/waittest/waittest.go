// Package waittest makes tests wait for another goroutine, process or service. A test in a bubble of testing/synctest
// does not need this package: it has synctest.Wait and the fake clock.
package waittest

import (
	"errors"
	"testing"
	"time"
)

// Timeout is how long [Until] and [Succeeds] wait. It is far longer than any test needs, because machines may be busy.
const Timeout = 30 * time.Second

// Until blocks until ok returns true. It calls ok as [Poll] calls its function. If ok does not return true within Timeout,
// the test ends with an error. The parameter what names the condition in this error. Until must be called from the goroutine
// of the test.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	Succeeds(t, what, func() error {
		if ok() {
			return nil
		}
		return errors.New("not yet")
	})
}

// Succeeds blocks until f returns nil, as [Until] does. The error of the test has the last error of f.
func Succeeds(t testing.TB, what string, f func() error) {
	t.Helper()
	if err := Poll(Timeout, f); err != nil {
		t.Fatalf("waited %s for %s: %v", Timeout, what, err)
	}
}

// Poll calls f until f returns nil, and returns nil. If f does not return nil within the limit, Poll returns the last error of f.
// Poll may be called from any goroutine. The pause between two calls grows from 1 ms to 50 ms.
func Poll(limit time.Duration, f func() error) error {
	pause, end := time.Millisecond, time.Now().Add(limit)
	for {
		if err := f(); err == nil || time.Now().After(end) {
			return err
		}
		Spend(pause, "the pause of a poll")
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// Pass blocks for d. It is for tests in which real time must pass and no signal shows that it has passed. For example, the
// clock of a database or a broker must advance, or a fault must last so long. The parameter why names the clock or the fault. Use a
// signal or a bubble of testing/synctest wherever possible.
func Pass(t testing.TB, d time.Duration, why string) {
	t.Helper()
	t.Logf("%s pass: %s", d, why)
	Spend(d, why)
}

// Spend blocks for d. It takes the place of something that lasts so long, such as the work of a handler, a delay of the network, or the
// time between two requests of a client. The parameter why names it, for the reader: Spend does not use it. Spend is no wait for
// another goroutine or process: use [Until] or [Poll] instead.
func Spend(d time.Duration, why string) {
	_ = why
	<-time.After(d)
}
