// Package backoff has the delays between attempts, for all loops of rpc and its buses.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff counts failed attempts. The delay after the first is Min, doubled after each further one up to Max, with
// jitter: between half of it and all of it. It is not safe for concurrent use.
type Backoff struct {
	Min, Max time.Duration

	failed int
}

// Next counts a failed attempt and returns the delay until the next one.
func (b *Backoff) Next() time.Duration {
	b.failed++
	return Delay(b.failed, b.Min, b.Max)
}

// Wait counts a failed attempt and waits until the next one, or until ctx ends.
func (b *Backoff) Wait(ctx context.Context) { Sleep(ctx, b.Next()) }

// Reset forgets the failed attempts.
func (b *Backoff) Reset() { b.failed = 0 }

// Delay returns the delay after so many failed attempts, at least one.
func Delay(failed int, low, high time.Duration) time.Duration {
	return Jitter(min(low<<min(failed-1, 16), high))
}

// Jitter returns a random delay between half of d and d.
func Jitter(d time.Duration) time.Duration { return d/2 + rand.N(max(d/2, 1)) }

// Redial returns the delay before a lost connection is dialed again: at most an eighth of the time since it was lost,
// that bound at least low and at most high, with full jitter, so that a cluster that comes back is not flooded, and a
// process that was away for a second is back before its callers take it for lost (ADR 21).
func Redial(lost time.Time, low, high time.Duration) time.Duration {
	return rand.N(min(max(time.Since(lost)/8, low), high))
}

// Sleep waits, but not beyond the end of ctx.
func Sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
