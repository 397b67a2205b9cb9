package operation

import (
	"context"
	"errors"
	"time"
)

// errLost is the cause of a context whose lease was lost: another process has the lease, may have it, or has ended
// the step by a report.
var errLost = errors.New("lease lost")

// lostLease reports whether ctx has ended because keepLease found that the lease was lost.
func lostLease(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errLost) }

// keepLease renews a lease every third of its duration until ctx ends. It calls lose with errLost when the lease
// was lost. It also calls lose when the lease could not be renewed for two thirds of its duration, because another
// process may acquire the lease soon. The function renew reports whether the lease is still held.
func keepLease(ctx context.Context, lease time.Duration, renew func(context.Context) (held bool, err error), lose context.CancelCauseFunc) {
	tick := time.NewTicker(lease / 3)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		begin := time.Now()
		call, cancel := context.WithTimeout(ctx, lease/3)
		held, err := renew(call)
		cancel()
		switch {
		case err == nil && !held, err != nil && time.Since(last) > lease*2/3:
			lose(errLost)
			return
		case err == nil:
			last = begin
		}
	}
}
