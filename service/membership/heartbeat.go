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

// gatherTime is how long a heartbeat waits for other heartbeats. All of them are written in one transaction, because many
// members may send their heartbeats through one process.
const gatherTime = 50 * time.Millisecond

// writeTimeout bounds the writing of a batch.
const writeTimeout = 10 * time.Second

// maxWritten is how many heartbeats one transaction writes.
const maxWritten = 500

// heartbeats are the heartbeats that wait to be written.
type heartbeats struct {
	mu   sync.Mutex
	next *batch // gets new heartbeats, until its first caller writes it; nil: no heartbeat waits
}

// batch has the heartbeats that are written together.
type batch struct {
	beats   map[string][]heartbeat // by kind
	done    chan struct{}          // closed when the batch is written
	err     error
	refused map[heartbeat]error
}

// heartbeat is a heartbeat of an instance of a member.
type heartbeat struct{ kind, host, instance string }

// Heartbeat records that a member is alive. instance is the instance that is alive, or "" for a member that may be
// several processes. Heartbeat blocks until the heartbeat is written, together with all other heartbeats of the next 50
// ms. NotFound: the member does not exist, or was removed. [ErrHeld]: the member belongs to another process.
func (r *Registry) Heartbeat(ctx context.Context, kind, host, instance string) error {
	own := heartbeat{kind, host, instance}
	b, first := r.heartbeats.add(own)
	if first {
		r.writeBatch(b) //nolint:contextcheck // the batch belongs to several callers, so it uses neither the context nor the transaction of one of them
	}
	select {
	case <-b.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if b.err != nil {
		return b.err
	}
	return b.refused[own]
}

// add adds a heartbeat to the next batch. first reports whether the heartbeat is the first one of the batch. If it is, the caller must
// write the batch.
func (h *heartbeats) add(own heartbeat) (b *batch, first bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if first = h.next == nil; first {
		h.next = &batch{beats: map[string][]heartbeat{}, done: make(chan struct{}), refused: map[heartbeat]error{}}
	}
	h.next.beats[own.kind] = append(h.next.beats[own.kind], own)
	return h.next, first
}

// close makes the next heartbeat the first of another batch.
func (h *heartbeats) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next = nil
}

// writeBatch waits for further heartbeats and writes all of them.
func (r *Registry) writeBatch(b *batch) {
	defer close(b.done)
	timer := time.NewTimer(gatherTime)
	defer timer.Stop()
	<-timer.C
	r.heartbeats.close()
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	for kind, beats := range b.beats {
		// Two processes that write the same rows lock them in the same order.
		slices.SortFunc(beats, func(x, y heartbeat) int { return strings.Compare(x.host, y.host) })
		for part := range slices.Chunk(beats, maxWritten) {
			if b.err = r.writeHeartbeats(ctx, b, kind, part); b.err != nil {
				return
			}
		}
	}
}

// writeHeartbeats writes heartbeats of one kind, and records the refused ones in b.
func (r *Registry) writeHeartbeats(ctx context.Context, b *batch, kind string, beats []heartbeat) error {
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
		for _, beat := range beats {
			switch h, known := holders[beat.host]; {
			case !known:
				b.refused[beat] = notFound(kind, beat.host)
			case h.ID != beat.instance:
				b.refused[beat] = heldError(kind, beat.host, h, "")
			default:
				delete(b.refused, beat) // an earlier attempt of this transaction may have refused it
				seen = append(seen, beat.host)
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
