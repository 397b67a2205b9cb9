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

// gatherTime is how long a heartbeat waits for other heartbeats. All of them are written together, because many members may send their
// heartbeats through one process.
const gatherTime = 50 * time.Millisecond

// writeTimeout bounds the writing of one batch.
const writeTimeout = 10 * time.Second

// maxWritten is the maximum number of heartbeats that one transaction writes.
const maxWritten = 500

// heartbeats has the heartbeats that wait to be written.
type heartbeats struct {
	mu   sync.Mutex
	next *batch // collects new heartbeats until the batch is written; nil: no heartbeat waits
}

// batch has the heartbeats that are written together.
type batch struct {
	byKind  map[string][]heartbeat // the key is the kind of the member
	done    chan struct{}          // closed when the batch is written
	err     error
	refused map[heartbeat]error
}

// heartbeat is a heartbeat of one instance of a member.
type heartbeat struct{ kind, host, instance string }

// Heartbeat records that a member is alive. The parameter instance is the instance that is alive, or "" if several processes may be
// the member. Heartbeat blocks until the heartbeat is written, together with all other heartbeats of the next 50 ms. Errors: NotFound
// if the member does not exist, or was removed; [ErrHeld] if the member belongs to another process.
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

// add adds a heartbeat to the next batch. The result first reports whether the heartbeat is the first of the batch. If it is, the
// caller must write the batch.
func (h *heartbeats) add(own heartbeat) (b *batch, first bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if first = h.next == nil; first {
		h.next = &batch{byKind: map[string][]heartbeat{}, done: make(chan struct{}), refused: map[heartbeat]error{}}
	}
	h.next.byKind[own.kind] = append(h.next.byKind[own.kind], own)
	return h.next, first
}

// close ends the collection of a batch: the next heartbeat begins another batch.
func (h *heartbeats) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next = nil
}

// writeBatch waits for further heartbeats, and writes the batch.
func (r *Registry) writeBatch(b *batch) {
	defer close(b.done)
	timer := time.NewTimer(gatherTime)
	defer timer.Stop()
	<-timer.C
	r.heartbeats.close()
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	for kind, senders := range b.byKind {
		// Processes that write the same rows must lock them in the same order.
		slices.SortFunc(senders, func(x, y heartbeat) int { return strings.Compare(x.host, y.host) })
		for part := range slices.Chunk(senders, maxWritten) {
			if b.err = r.writeHeartbeats(ctx, b, kind, part); b.err != nil {
				return
			}
		}
	}
}

// writeHeartbeats writes heartbeats of one kind, and records the refused heartbeats in b.
func (r *Registry) writeHeartbeats(ctx context.Context, b *batch, kind string, senders []heartbeat) error {
	hosts := make([]string, len(senders))
	for i := range senders {
		hosts[i] = senders[i].host
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
		for _, sender := range senders {
			switch h, known := holders[sender.host]; {
			case !known:
				b.refused[sender] = notFound(kind, sender.host)
			case h.ID != sender.instance:
				b.refused[sender] = heldError(kind, sender.host, h, "")
			default:
				delete(b.refused, sender) // an earlier attempt of this transaction may have refused the heartbeat
				seen = append(seen, sender.host)
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
