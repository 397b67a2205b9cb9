// Package backoff computes the delays between attempts, for the retry loops of all library packages.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff counts failed attempts. The delay is Min after the first failed attempt, and doubles after each further one, up
// to Max. Jitter shortens each delay to a random part of it, at least half. A Backoff is not safe for concurrent use.
type Backoff struct {
	Min, Max time.Duration

	failed int
}

// Next counts a failed attempt and returns the delay until the next one.
func (b *Backoff) Next() time.Duration {
	b.failed++
	return Delay(b.failed, b.Min, b.Max)
}

// Wait counts a failed attempt and waits until the next one. It returns false if ctx ends first.
func (b *Backoff) Wait(ctx context.Context) bool { return Sleep(ctx, b.Next()) }

// Reset forgets the failed attempts.
func (b *Backoff) Reset() { b.failed = 0 }

// Delay returns the delay after a number of failed attempts, with jitter. The parameter failed is at least 1. The
// parameters low and high are like Min and Max of [Backoff].
func Delay(failed int, low, high time.Duration) time.Duration {
	return Jitter(Exponential(failed, low, high))
}

// FullJitter returns a random delay of more than zero and at most that of [Exponential]. It is for attempts that collide, such as
// transactions, and for many processes that fail together.
func FullJitter(failed int, low, high time.Duration) time.Duration {
	return rand.N(max(Exponential(failed, low, high), 1)) + 1
}

// Exponential returns the delay after a number of failed attempts, without jitter: low after the first, doubled after each further
// one, and at most high. The parameter failed is at least 1.
func Exponential(failed int, low, high time.Duration) time.Duration {
	d := low << min(failed-1, 62)
	if failed > 1 && d>>min(failed-1, 62) != low { // overflow
		return high
	}
	return min(d, high)
}

// Jitter returns a random delay between half of d and d.
func Jitter(d time.Duration) time.Duration { return d/2 + rand.N(max(d/2, 1)) }

// Redial returns the delay before a lost connection is dialed again: a random time between zero and an eighth of the time
// since the loss; that upper bound is at least low and at most high. The full jitter keeps the processes from flooding a
// cluster that comes back. Soon after the loss the delays are short. So a process that was disconnected for a second is connected again before
// its callers count it as lost (ADR 21).
func Redial(lost time.Time, low, high time.Duration) time.Duration {
	return rand.N(min(max(time.Since(lost)/8, low), high))
}

// Sleep waits for d. It returns false if ctx ends first.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
