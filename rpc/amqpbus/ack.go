package amqpbus

import (
	"cmp"
	"math"
	"runtime"
	"slices"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
)

// acknowledger acknowledges and requeues the deliveries of one channel. Each acknowledgement costs the broker time. So
// acknowledgements that come together are sent as one, if no earlier delivery is unacknowledged.
type acknowledger struct {
	ch *amqp.Channel

	mu       sync.Mutex
	open     []unackedDelivery // delivered, and neither acknowledged nor requeued; ordered by tag
	bytes    int               // the sum of the payloads in open, in bytes
	pending  []uint64          // the tags of the deliveries to acknowledge
	sending  bool              // a goroutine sends the acknowledgements in pending
	draining bool              // no further message is delivered
	drained  chan struct{}     // closed when draining is set, open is empty, and nothing is pending
}

// unackedDelivery is a delivery that is neither acknowledged nor requeued.
type unackedDelivery struct {
	tag  uint64
	size int // bytes of the payload
}

func newAcknowledger(ch *amqp.Channel) *acknowledger {
	return &acknowledger{ch: ch, drained: make(chan struct{})}
}

// add registers a delivery with a payload of size bytes. The returned deliveryAck acknowledges or requeues the delivery.
func (t *acknowledger) add(tag uint64, size int) *deliveryAck {
	t.mu.Lock()
	t.open = append(t.open, unackedDelivery{tag, size})
	t.bytes += size
	t.mu.Unlock()
	return &deliveryAck{acks: t, tag: tag}
}

// deliveryAck is the [bus.Acknowledger] of one delivery.
type deliveryAck struct {
	acks *acknowledger
	tag  uint64
}

// EndDelivery acknowledges or requeues the delivery, see [bus.Acknowledger]. It does not wait until an acknowledgement is sent.
func (s *deliveryAck) EndDelivery(ack bool) error {
	t := s.acks
	if ack && !t.ch.IsClosed() {
		t.acknowledge(s.tag)
		return nil
	}
	err := t.ch.Nack(s.tag, false, true)
	if ack {
		err = amqp.ErrClosed
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeLocked(s.tag)
	t.closeDrainedLocked()
	return err
}

// removeLocked removes a delivery from open.
func (t *acknowledger) removeLocked(tag uint64) {
	if i, ok := t.indexLocked(tag); ok {
		t.bytes -= t.open[i].size
		t.open = slices.Delete(t.open, i, i+1)
	}
}

// indexLocked returns the index of a tag in open, and true. If the tag is not in open, it returns the index at which the tag
// would be inserted, and false.
func (t *acknowledger) indexLocked(tag uint64) (int, bool) {
	return slices.BinarySearchFunc(t.open, tag, func(d unackedDelivery, tag uint64) int { return cmp.Compare(d.tag, tag) })
}

// unacked returns the number of all unacknowledged deliveries, the number of those whose tags are higher than the parameter
// after, and the payload bytes of all.
func (t *acknowledger) unacked(after uint64) (all, later, bytes int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, _ := t.indexLocked(after + 1)
	return len(t.open), len(t.open) - i, t.bytes
}

// acknowledge starts to acknowledge a delivery. A goroutine sends the acknowledgement.
func (t *acknowledger) acknowledge(tag uint64) {
	t.mu.Lock()
	t.removeLocked(tag)
	t.pending = append(t.pending, tag)
	first := !t.sending
	t.sending = true
	t.mu.Unlock()
	if first {
		go func() { // ends when nothing is pending
			for t.sendPending() {
			}
		}()
	}
}

// sendPending sends the pending acknowledgements, and reports whether more became pending meanwhile.
func (t *acknowledger) sendPending() bool {
	runtime.Gosched() // lets goroutines that are about to acknowledge add their tags
	t.mu.Lock()
	tags, low := t.pending, uint64(math.MaxUint64) // each delivery before low is acknowledged or requeued
	t.pending = nil
	if len(t.open) > 0 {
		low = t.open[0].tag
	}
	t.mu.Unlock()
	var last uint64 // the highest of the tags before low
	for _, tag := range tags {
		if tag < low {
			last = max(last, tag)
		} else {
			_ = t.ch.Ack(tag, false) // after an error the message is redelivered
		}
	}
	if last > 0 {
		_ = t.ch.Ack(last, true) // after an error the messages are redelivered
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sending = len(t.pending) > 0
	t.closeDrainedLocked()
	return t.sending
}

// drain records that no further message is delivered. The channel drained is closed after the last acknowledgement.
func (t *acknowledger) drain() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.draining = true
	t.closeDrainedLocked()
}

// closeDrainedLocked closes the channel drained if no further message is delivered and each
// delivery is acknowledged or requeued.
func (t *acknowledger) closeDrainedLocked() {
	if t.draining && len(t.open) == 0 && !t.sending {
		t.draining = false // drained is closed once
		close(t.drained)
	}
}
