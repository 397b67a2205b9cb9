package natsbus

import (
	"sync"

	"github.com/armature-go/armature/rpc/bus"
)

// backlog hands the messages of a subscription out, in the order in which they came.
type backlog struct {
	out     chan *bus.Delivery
	end     <-chan struct{} // closed when the subscription ends
	arrived chan struct{}   // holds a token when there may be more messages

	mu    sync.Mutex
	list  []*bus.Delivery // messages that were not received yet, the oldest first
	bytes int             // of their payloads
}

func newBacklog(out chan *bus.Delivery, end <-chan struct{}) *backlog {
	return &backlog{out: out, end: end, arrived: make(chan struct{}, 1)}
}

// add puts a message at the end, unless it would be more than most messages or, with others, more than maxBytes.
func (b *backlog) add(d *bus.Delivery, most, maxBytes int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.list) >= most || len(b.list) > 0 && b.bytes+len(d.Payload) > maxBytes {
		return false
	}
	b.list = append(b.list, d)
	b.bytes += len(d.Payload)
	select {
	case b.arrived <- struct{}{}:
	default:
	}
	return true
}

// run hands messages out until the subscription ends.
func (b *backlog) run() {
	for {
		var out chan *bus.Delivery
		d := b.first()
		if d != nil {
			out = b.out
		}
		select {
		case out <- d:
			b.removeFirst()
		case <-b.arrived:
		case <-b.end:
			return
		}
	}
}

func (b *backlog) first() *bus.Delivery {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.list) == 0 {
		return nil
	}
	return b.list[0]
}

func (b *backlog) removeFirst() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes -= len(b.list[0].Payload)
	b.list[0] = nil
	b.list = b.list[1:]
}

// rest takes the messages that were not handed out.
func (b *backlog) rest() []*bus.Delivery {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := b.list
	b.list, b.bytes = nil, 0
	return list
}
