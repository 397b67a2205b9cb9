package broker

import (
	"context"

	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/rpc/bus"
)

// Attempts sends one message repeatedly, with back-off.
type Attempts struct {
	Message *bus.Message
	Backoff backoff.Backoff
	// MayRepeat reports whether another attempt may follow an attempt that ended with err, which is not nil.
	MayRepeat func(err error) bool
	// Send makes one attempt and waits for its outcome. The parameter last is the outcome of the previous attempt.
	Send func(last error) error
}

// Resend makes attempts until an attempt succeeds or MayRepeat forbids another one. The parameter err is the outcome of the first
// attempt, which the caller has made. When ctx ends, the wait between two attempts ends. Resend returns nil, or the error of the last
// attempt. If an attempt may have reached the broker, Resend returns the error of the first such attempt, because a later refusal does
// not undo it.
func (a Attempts) Resend(ctx context.Context, err error) error {
	var unknown error
	for err != nil {
		if unknown == nil && bus.OutcomeOf(err) == bus.Unknown {
			unknown = err
		}
		if !a.MayRepeat(err) {
			break
		}
		a.Backoff.Wait(ctx)
		if unknown == nil && a.Message.Resent != nil { // no attempt has had an effect
			a.Message.Resent()
		}
		err = a.Send(err)
	}
	if err != nil && unknown != nil {
		return unknown
	}
	return err
}
