package membership

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
)

// gather is how long a sign of life waits for others, to be written with them: a process
// through which many members report writes all of them at once.
const gather = 50 * time.Millisecond

// writeTime bounds the writing of signs of life.
const writeTime = 10 * time.Second

// beats are the signs of life that wait to be written.
type beats struct {
	mu   sync.Mutex
	next *batch // which a caller is about to write
}

type batch struct {
	beats   map[string][]beat // by kind
	done    chan struct{}
	err     error
	refused map[beat]error
}

// beat is a heartbeat that one instance of a member has sent.
type beat struct{ kind, host, instance string }

// Beat is a heartbeat of a member, and of the instance that it belongs to, or "". It is written together
// with those that come within 50 ms. NotFound: it is no member (any more). [ErrHeld]: the member belongs
// to another process.
func (r *Registry) Beat(ctx context.Context, kind, host, instance string) error {
	is := beat{kind, host, instance}
	r.beats.mu.Lock()
	b := r.beats.next
	leads := b == nil
	if leads {
		b = &batch{beats: map[string][]beat{}, done: make(chan struct{}), refused: map[beat]error{}}
		r.beats.next = b
	}
	b.beats[kind] = append(b.beats[kind], is)
	r.beats.mu.Unlock()
	if leads {
		r.write(b) //nolint:contextcheck // it is of many callers: no one's context, nor transaction
	}
	select {
	case <-b.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if b.err != nil {
		return b.err
	}
	return b.refused[is]
}

// write writes a batch.
func (r *Registry) write(b *batch) {
	defer close(b.done)
	timer := time.NewTimer(gather)
	defer timer.Stop()
	<-timer.C
	r.beats.mu.Lock()
	r.beats.next = nil
	r.beats.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), writeTime)
	defer cancel()
	for kind, beats := range b.beats {
		slices.SortFunc(beats, func(x, y beat) int { return strings.Compare(x.host, y.host) }) // two that write the same rows lock them in the same order
		for part := range slices.Chunk(beats, 500) {
			if b.err = r.mark(ctx, b, kind, part); b.err != nil {
				return
			}
		}
	}
}

func (r *Registry) mark(ctx context.Context, b *batch, kind string, beats []beat) error {
	hosts := make([]string, len(beats))
	for i := range beats {
		hosts[i] = beats[i].host
	}
	where, args, err := sqlx.In(`kind = ? AND host IN (?) ORDER BY host FOR UPDATE`, kind, slices.Compact(hosts))
	if err != nil {
		return err
	}
	return db.Tx(ctx, r.cfg.DB, func(ctx context.Context, tx *sqlx.Tx) error {
		holders, err := r.holders(ctx, tx, where, args...)
		if err != nil {
			return err
		}
		var seen []string
		for _, is := range beats {
			switch h, known := holders[is.host]; {
			case !known:
				b.refused[is] = notFound(kind, is.host)
			case h.ID != is.instance:
				b.refused[is] = heldError(kind, is.host, h, "")
			default:
				delete(b.refused, is) // of an attempt at this transaction before
				seen = append(seen, is.host)
			}
		}
		if len(seen) == 0 {
			return nil
		}
		query, args, err := sqlx.In(`UPDATE members SET seen_at = UTC_TIMESTAMP(6) WHERE kind = ? AND host IN (?)`, kind, seen)
		if err != nil {
			return err
		}
		_, err = db.Exec(ctx, tx, query, args...)
		return err
	})
}
