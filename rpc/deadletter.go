package rpc

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
)

const (
	maxLetters = 65_535 // what an AMQP broker sends ahead at most
	// A topic of dead letters is taken for read to its end when nothing came for
	// lettersEnd, at the beginning for lettersBegin.
	lettersBegin = time.Second
	lettersEnd   = 300 * time.Millisecond
)

// DeadLetter is a message that the servers have given up.
type DeadLetter struct {
	ID       string
	Reason   string            // a fault code and the last error, or that it was malformed
	Topic    string            // where it was published to
	Failures int               // how many delivery attempts failed
	DiedAt   time.Time         // when it was given up; zero if that cannot be read
	Server   string            // the host that gave it up; empty if it has no name
	Info     Info              // what it is; zero if it cannot be read
	Metadata map[string]string // all of it, by its names on the wire
	Payload  []byte
}

// Verdict is what becomes of a dead letter.
type Verdict uint8

const (
	// Keep leaves the letter where it is.
	Keep Verdict = iota
	// Requeue sends it again to its topic, with its delivery attempts counted anew.
	Requeue
	// Drop deletes it.
	Drop
)

// DeadLetters calls decide with each dead letter of an interface, the oldest first,
// each once and at most 65,535 and no more kept ones than the bus has bytes in flight, and does with each what decide says. It returns
// when it has seen those that were there, which takes a second at least. While it
// runs no other process sees them. decide runs in the caller's goroutine.
//
// Errors: those of [bus.Bus.Subscribe]; those of publishing a letter that is to be
// sent again, such as ErrNoConsumer if its topic is gone: that letter and all
// that follow are kept; the context's.
func DeadLetters(ctx context.Context, b bus.Bus, i *Interface, decide func(*DeadLetter) Verdict) error {
	topic := i.Name + suffixDead
	if err := b.CreateTopic(ctx, topic); err != nil {
		return fmt.Errorf("dead letters of %s: %w", i.Name, err)
	}
	sub, cancel := context.WithCancel(ctx)
	in, err := b.Subscribe(sub, bus.Subscription{Topic: topic, Slots: maxLetters})
	if err != nil {
		cancel()
		return fmt.Errorf("dead letters of %s: %w", i.Name, err)
	}
	var kept []*bus.Delivery
	defer func() {
		cancel()
		for d := range in {
			_ = d.Nack() // on an error the bus gives it back by itself
		}
		for _, d := range kept {
			_ = d.Nack() // as above
		}
	}()
	end := time.NewTimer(lettersBegin)
	defer end.Stop()
	for {
		d, err := nextLetter(ctx, in, end.C)
		if err != nil {
			return fmt.Errorf("dead letters of %s: %w", i.Name, err)
		}
		if d == nil {
			return nil
		}
		keep, err := execute(ctx, b, i, d, decide(newDeadLetter(d.Message)))
		if keep {
			kept = append(kept, d)
		}
		if err != nil {
			return err
		}
		end.Reset(lettersEnd)
	}
}

// nextLetter returns the next dead letter, or nil if none comes until end.
func nextLetter(ctx context.Context, in <-chan *bus.Delivery, end <-chan time.Time) (*bus.Delivery, error) {
	select {
	case d, ok := <-in:
		if !ok {
			return nil, ErrClosed
		}
		return d, nil
	case <-end:
		return nil, nil //nolint:nilnil // no dead letter is left
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// execute does with a dead letter what a verdict says, and reports whether the letter stays in its topic.
func execute(ctx context.Context, b bus.Bus, i *Interface, d *bus.Delivery, v Verdict) (keep bool, err error) {
	if v == Keep {
		return true, nil
	}
	if v == Requeue {
		if err := resend(ctx, b, d.Message); err != nil {
			return true, fmt.Errorf("send dead letter %s of %s again: %w", d.ID, i.Name, err)
		}
	}
	if err := d.Ack(); err != nil {
		return false, fmt.Errorf("remove dead letter %s of %s: %w", d.ID, i.Name, err)
	}
	return false, nil
}

func newDeadLetter(m *bus.Message) *DeadLetter {
	l := &DeadLetter{ID: m.ID, Failures: m.Failures, Metadata: maps.Collect(m.Metadata()), Payload: m.Payload}
	if m.Dead != nil {
		l.Reason, l.Topic, l.Server, l.DiedAt = m.Dead.Reason, m.Dead.Topic, m.Dead.Server, m.Dead.At
	}
	if m.Malformed == nil && m.Method != "" {
		l.Info = infoOf(m)
	}
	return l
}

func resend(ctx context.Context, b bus.Bus, m *bus.Message) error {
	if m.Dead == nil {
		return fault.New(fault.Precondition, "it does not say where it was published to")
	}
	if m.Dead.Truncated > 0 {
		return fault.New(fault.Precondition, "its payload of %d bytes was too large to be kept whole", m.Dead.Truncated)
	}
	next := *m
	next.Dead, next.Failures, next.Waited, next.Redeliveries = nil, 0, 0, 0
	next.Requeues++
	return b.Publish(ctx, m.Dead.Topic, &next)
}
