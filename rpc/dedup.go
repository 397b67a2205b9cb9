package rpc

import (
	"context"
	"time"
)

// Dedup remembers the ids of casts of AtLeastOnce methods that have been handled, so
// that a redelivery is not handled again. A Dedup in the component's database serves
// all servers that share the database. The methods must be safe for concurrent use.
type Dedup interface {
	// Seen reports whether the message was handled. After an error the server does not
	// run the handler; the message is delivered again later, as after Unavailable.
	Seen(ctx context.Context, id string) (bool, error)
	// Add records that the message was handled. If the process dies before Add, or Add
	// fails, which the server logs, a redelivery is handled again: the handler must
	// still be idempotent.
	Add(ctx context.Context, id string) error
}

// NewDedup returns a Dedup in the memory of this process. It remembers the last
// size messages, each for ttl. Zero means 10,000 messages and one hour.
func NewDedup(size int, ttl time.Duration) Dedup {
	if size <= 0 {
		size = rememberSize
	}
	if ttl <= 0 {
		ttl = rememberTime
	}
	return dedup{newRecent[struct{}](size, ttl)}
}

// How many messages NewDedup remembers by default, and for how long.
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
