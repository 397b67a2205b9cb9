package rpc

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
)

const (
	maxLetters = 65_535 // the greatest prefetch of AMQP
	// A topic of dead letters counts as empty when no dead letter came for deadLetterWait, or for
	// firstDeadLetterWait before the first one.
	firstDeadLetterWait = time.Second
	deadLetterWait      = 300 * time.Millisecond
)

// DeadLetter is a message that a server has dead-lettered.
type DeadLetter struct {
	ID       string
	Reason   string            // a fault code and the last error, or "malformed: ..."
	Topic    string            // the topic that the message was published to
	Failures int               // failed delivery attempts
	DiedAt   time.Time         // when the server dead-lettered it; zero if unknown
	Server   string            // the host that dead-lettered it; empty if that server has no host name
	Info     Info              // zero if the message cannot be read
	Metadata map[string]string // by names on the wire, see docs/wire.md
	Payload  []byte
}

// Verdict says what [DeadLetters] does with a dead letter.
type Verdict uint8

const (
	// Keep leaves the dead letter in its queue.
	Keep Verdict = iota
	// Requeue publishes the message to its topic again, and counts its delivery attempts from zero.
	Requeue
	// Drop deletes the dead letter.
	Drop
)

// DeadLetters calls decide once for each dead letter of an interface, the oldest first, and carries out the verdict of decide.
// DeadLetters returns when no further dead letter comes for 300 ms, or no first one for 1 s. Until then the dead letters with
// the verdict Keep stay unacknowledged, so one call reads at most 65,535 dead letters. It reads fewer if the bus limits the
// bytes in flight or, as watermillbus does, the messages that are handled at once. While DeadLetters runs, no other process can
// read these dead letters.
//
// The function decide runs in the caller's goroutine. It may keep the DeadLetter, but must not change its Payload. A requeued
// message that is dead-lettered again during the call is kept for the next call. After an error, the present dead letter and
// all later ones are kept. Errors:
//
//   - Invalid: the name of the interface is not valid.
//   - Errors of [bus.Bus.Subscribe], and the context's.
//   - For Requeue: errors of publishing the message, such as ErrNoConsumer if its topic is gone; Precondition if the dead letter
//     was truncated, or does not say to which topic the message was published.
func DeadLetters(ctx context.Context, b bus.Bus, i *Interface, decide func(*DeadLetter) Verdict) error {
	if err := checkInterface(i.Name); err != nil {
		return fmt.Errorf("dead letters: %w", err)
	}
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
	requeued := map[string]bool{} // the keys of the messages that were requeued
	defer func() {
		cancel()
		returnLetters(in, kept)
	}()
	end := time.NewTimer(firstDeadLetterWait)
	defer end.Stop()
	for {
		d, err := nextDeadLetter(ctx, in, end.C)
		if err != nil {
			return fmt.Errorf("dead letters of %s: %w", i.Name, err)
		}
		if d == nil {
			return nil
		}
		verdict := Keep
		if !requeued[letterKey(d.Message, 0)] {
			verdict = decide(newDeadLetter(d.Message))
		}
		requeued[letterKey(d.Message, 1)] = verdict == Requeue
		keep, err := executeVerdict(ctx, b, i, d, verdict)
		if keep {
			kept = append(kept, d)
		}
		if err != nil {
			return err
		}
		end.Reset(deadLetterWait)
	}
}

// returnLetters returns dead letters to their topic. The caller has ended the subscription.
func returnLetters(in <-chan *bus.Delivery, kept []*bus.Delivery) {
	for d := range in {
		_ = d.Nack() // on an error the bus redelivers it by itself
	}
	for _, d := range kept {
		_ = d.Nack() // as above
	}
}

// letterKey returns a key for a message and the number of times that its dead letter was requeued. The parameter more is added
// to this number. If the message has no id, the payload takes its place in the key.
func letterKey(m *bus.Message, more int) string {
	return cmp.Or(m.ID, string(m.Payload)) + "/" + strconv.Itoa(m.Requeues+more)
}

// nextDeadLetter returns the next dead letter, or nil if none comes before the timer end fires.
func nextDeadLetter(ctx context.Context, in <-chan *bus.Delivery, end <-chan time.Time) (*bus.Delivery, error) {
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

// executeVerdict carries out a verdict, and reports whether the dead letter stays in its topic.
func executeVerdict(ctx context.Context, b bus.Bus, i *Interface, d *bus.Delivery, v Verdict) (keep bool, err error) {
	if v == Keep {
		return true, nil
	}
	if v == Requeue {
		if err := requeueDeadLetter(ctx, b, d.Message); err != nil {
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

// requeueDeadLetter publishes the message of a dead letter to its topic, with its attempt counters at zero.
func requeueDeadLetter(ctx context.Context, b bus.Bus, m *bus.Message) error {
	if m.Dead == nil {
		return fault.New(fault.Precondition, "the dead letter does not say to which topic the message was published; drop the dead letter, or send the request anew")
	}
	if m.Dead.Truncated > 0 {
		return fault.New(fault.Precondition, "the payload of %d bytes was truncated, because the bus could not carry it in a dead letter; drop the dead letter, or send the request anew", m.Dead.Truncated)
	}
	next := *m
	next.Dead, next.Failures, next.Waited, next.Redeliveries = nil, 0, 0, 0
	next.Requeues++
	return b.Publish(ctx, m.Dead.Topic, &next)
}
