package rpc

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/armature-go/armature/fault"
)

const (
	maxLetters = 65_535 // what an AMQP broker sends ahead at most
	// A topic of dead letters is taken for read to its end when nothing came for
	// lettersEnd, at the beginning for lettersBegin.
	lettersBegin = time.Second
	lettersEnd   = 300 * time.Millisecond
)

// DeadLetter is a message that no server could do.
type DeadLetter struct {
	ID       string
	Reason   string    // a fault code and the last error, or that it was malformed
	Topic    string    // where it was published to
	Failures int       // how often a handler failed
	DiedAt   time.Time // when it was given up; zero if that cannot be read
	Server   string    // the host that gave it up; empty if it has no name
	Info     Info      // what it is; zero if it cannot be read
	Metadata map[string]string
	Payload  []byte
}

// Verdict is what becomes of a dead letter.
type Verdict uint8

const (
	// Keep leaves the letter where it is.
	Keep Verdict = iota
	// Requeue sends it again to where it was sent, with its tries counted anew.
	Requeue
	// Drop deletes it.
	Drop
)

// DeadLetters shows decide the dead letters of an interface, the oldest first,
// each once and at most 65,535 and no more kept ones than the bus has bytes in flight, and does with each what decide says. It returns
// when it has seen those that were there, which takes a second at least. While it
// runs nobody else sees them. decide runs in the caller's goroutine.
//
// Errors: those of [Bus.Subscribe]; those of publishing a letter that is to be
// sent again, such as ErrNoConsumer if its topic is gone: that letter and all
// that follow are kept; the context's.
func DeadLetters(ctx context.Context, bus Bus, i *Interface, decide func(*DeadLetter) Verdict) error {
	topic := i.Name + suffixDead
	if err := create(ctx, bus, topic); err != nil {
		return fmt.Errorf("dead letters of %s: %w", i.Name, err)
	}
	sub, cancel := context.WithCancel(ctx)
	in, err := bus.Subscribe(sub, Subscription{Topic: topic, Slots: maxLetters})
	if err != nil {
		cancel()
		return fmt.Errorf("dead letters of %s: %w", i.Name, err)
	}
	var kept []*message.Message
	defer func() {
		cancel()
		for m := range in {
			_ = Settle(m, false) // else the bus gives it back by itself
		}
		for _, m := range kept {
			_ = Settle(m, false) // else the bus gives it back by itself
		}
	}()
	end := time.NewTimer(lettersBegin)
	defer end.Stop()
	for {
		select {
		case m, ok := <-in:
			if !ok {
				return fmt.Errorf("dead letters of %s: %w", i.Name, ErrClosed)
			}
			verdict := decide(letter(m))
			if verdict == Requeue {
				if err := resend(ctx, bus, m); err != nil {
					kept = append(kept, m)
					return fmt.Errorf("send dead letter %s of %s again: %w", m.UUID, i.Name, err)
				}
			}
			if verdict == Keep {
				kept = append(kept, m)
			} else if err := Settle(m, true); err != nil {
				return fmt.Errorf("take dead letter %s of %s away: %w", m.UUID, i.Name, err)
			}
			end.Reset(lettersEnd)
		case <-end.C:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("dead letters of %s: %w", i.Name, ctx.Err())
		}
	}
}

func letter(m *message.Message) *DeadLetter {
	l := &DeadLetter{
		ID: m.UUID, Reason: m.Metadata[MetaReason], Topic: m.Metadata[MetaTopic], Server: m.Metadata[MetaServer],
		Failures: count(m, MetaFailures), Metadata: maps.Clone(m.Metadata), Payload: m.Payload,
	}
	l.DiedAt, _ = time.Parse(time.RFC3339Nano, m.Metadata[MetaDiedAt])
	if info, _, err := parseMark(m.Metadata[MetaRPC]); err == nil {
		l.Info = info
	}
	return l
}

func resend(ctx context.Context, bus Bus, m *message.Message) error {
	if whole := m.Metadata[MetaTruncated]; whole != "" {
		return fault.New(fault.Precondition, "its payload of %s bytes was too large to be kept whole", whole)
	}
	next := clone(ctx, m)
	topic := next.Metadata[MetaTopic]
	next.Metadata[MetaRequeues] = strconv.Itoa(count(m, MetaRequeues) + 1) // its attempts are counted anew
	for _, key := range []string{MetaFailures, MetaWaited, MetaRedeliveries, MetaReason, MetaTopic, MetaDiedAt, MetaServer} {
		delete(next.Metadata, key)
	}
	return bus.Publish(topic, next)
}
