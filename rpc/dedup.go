package rpc

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// Dedup remembers which messages of AtLeastOnce methods have been handled, so
// that one that arrives again is not handled again. One that keeps its ids in the
// component's database serves all servers that share it. An error makes the
// server try the message again later. The methods must be safe for concurrent
// use.
type Dedup interface {
	// Seen reports whether the message was handled.
	Seen(ctx context.Context, id string) (bool, error)
	// Add notes that it was. If the process dies before, the message is handled
	// again: the handler must be idempotent all the same.
	Add(ctx context.Context, id string) error
}

// NewDedup returns a Dedup in the memory of this process. It remembers the last
// size messages, each for ttl. Zero means 10,000 messages and an hour.
func NewDedup(size int, ttl time.Duration) Dedup {
	if size <= 0 {
		size = 10_000
	}
	if ttl <= 0 {
		ttl = time.Hour
	}
	return &dedup{size: size, ttl: ttl, at: make(map[string]*list.Element)}
}

type dedup struct {
	size int
	ttl  time.Duration

	mu  sync.Mutex
	at  map[string]*list.Element
	all list.List // of handled, the oldest first
}

type handled struct {
	id   string
	when time.Time
}

func (d *dedup) Seen(_ context.Context, id string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.expire()
	_, ok := d.at[id]
	return ok, nil
}

func (d *dedup) Add(_ context.Context, id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e, ok := d.at[id]; ok {
		d.all.Remove(e)
	}
	d.at[id] = d.all.PushBack(handled{id, time.Now()})
	d.expire()
	return nil
}

func (d *dedup) expire() {
	oldest := time.Now().Add(-d.ttl)
	for e := d.all.Front(); e != nil; e = d.all.Front() {
		h := e.Value.(handled) //nolint:forcetypeassert // the list has nothing else
		if d.all.Len() <= d.size && h.when.After(oldest) {
			return
		}
		d.all.Remove(e)
		delete(d.at, h.id)
	}
}
