package amqpbus

import (
	"cmp"
	"math"
	"runtime"
	"slices"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
)

// tags settles the deliveries of one channel. Acknowledgements that come
// together go out as one, where no delivery before them is unsettled: the broker
// tells a queue of each one that it gets.
type tags struct {
	ch *amqp.Channel

	mu      sync.Mutex
	held    []unsettled   // handed out and not settled, in their order
	bytes   int           // of their payloads
	todo    []uint64      // settled, to be acknowledged
	acking  bool          // a goroutine acknowledges what is in todo
	retired bool          // nothing is handed out any more
	idle    chan struct{} // closed when retired and nothing is held or to be acknowledged
}

// unsettled is a delivery that is not settled.
type unsettled struct {
	tag  uint64
	size int
}

func newTags(ch *amqp.Channel) *tags {
	return &tags{ch: ch, idle: make(chan struct{})}
}

// hold notes a delivery of so many bytes, and returns what settles it.
func (t *tags) hold(tag uint64, size int) *settler {
	t.mu.Lock()
	t.held = append(t.held, unsettled{tag, size})
	t.bytes += size
	t.mu.Unlock()
	return &settler{tags: t, tag: tag}
}

type settler struct {
	tags *tags
	tag  uint64
}

// Settle is that of [bus.Settler].
func (s *settler) Settle(ack bool) error {
	t := s.tags
	if ack && !t.ch.IsClosed() {
		t.ack(s.tag)
		return nil
	}
	err := t.ch.Nack(s.tag, false, true)
	if ack {
		err = amqp.ErrClosed
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropLocked(s.tag)
	t.endLocked()
	return err
}

// dropLocked notes that a delivery is not held any more.
func (t *tags) dropLocked(tag uint64) {
	if i, ok := t.findLocked(tag); ok {
		t.bytes -= t.held[i].size
		t.held = slices.Delete(t.held, i, i+1)
	}
}

// findLocked returns where a tag is in held, or would be.
func (t *tags) findLocked(tag uint64) (int, bool) {
	return slices.BinarySearchFunc(t.held, tag, func(d unsettled, tag uint64) int { return cmp.Compare(d.tag, tag) })
}

// unsettled returns how many deliveries are held, how many of them came after the given one, and the bytes of all.
func (t *tags) unsettled(after uint64) (all, later, bytes int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, _ := t.findLocked(after + 1)
	return len(t.held), len(t.held) - i, t.bytes
}

// ack has the acknowledgement sent. The receiver need not wait for that.
func (t *tags) ack(tag uint64) {
	t.mu.Lock()
	t.dropLocked(tag)
	t.todo = append(t.todo, tag)
	first := !t.acking
	t.acking = true
	t.mu.Unlock()
	if first {
		go func() { // ends when nothing is to be acknowledged
			for t.send() {
			}
		}()
	}
}

// send acknowledges what is to be, and reports whether more has come meanwhile.
func (t *tags) send() bool {
	runtime.Gosched() // goroutines that are about to acknowledge come along
	t.mu.Lock()
	todo, low := t.todo, uint64(math.MaxUint64) // all before low are settled
	t.todo = nil
	if len(t.held) > 0 {
		low = t.held[0].tag
	}
	t.mu.Unlock()
	var last uint64 // of todo and before low
	for _, tag := range todo {
		if tag < low {
			last = max(last, tag)
		} else {
			_ = t.ch.Ack(tag, false) // else it is delivered again
		}
	}
	if last > 0 {
		_ = t.ch.Ack(last, true) // as above
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.acking = len(t.todo) > 0
	t.endLocked()
	return t.acking
}

// retire notes that nothing is handed out any more.
func (t *tags) retire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retired = true
	t.endLocked()
}

// endLocked closes idle if all is done.
func (t *tags) endLocked() {
	if t.retired && len(t.held) == 0 && !t.acking {
		t.retired = false
		close(t.idle)
	}
}
