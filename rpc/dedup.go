package rpc

import (
	"context"
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
	// again: the handler must still be idempotent.
	Add(ctx context.Context, id string) error
}

// NewDedup returns a Dedup in the memory of this process. It remembers the last
// size messages, each for ttl. Zero means 10,000 messages and an hour.
func NewDedup(size int, ttl time.Duration) Dedup {
	if size <= 0 {
		size = rememberSize
	}
	if ttl <= 0 {
		ttl = rememberTime
	}
	return dedup{newRecent[struct{}](size, ttl)}
}

// How many messages a process remembers by default, and for how long.
const (
	rememberSize = 10_000
	rememberTime = time.Hour
)

type dedup struct{ handled *recent[struct{}] }

func (d dedup) Seen(_ context.Context, id string) (bool, error) {
	_, ok := d.handled.get(id)
	return ok, nil
}

func (d dedup) Add(_ context.Context, id string) error {
	d.handled.put(id, struct{}{})
	return nil
}
