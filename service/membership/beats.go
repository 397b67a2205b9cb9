package membership

import (
	"context"
	"slices"
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
	hosts map[string][]string // by kind
	done  chan struct{}
	err   error
	gone  map[[2]string]bool // who is no member
}

// Beat is a sign of life. It is written together with those that come within 50 ms.
// NotFound: it is no member (any more).
func (r *Registry) Beat(ctx context.Context, kind, host string) error {
	r.beats.mu.Lock()
	b := r.beats.next
	leads := b == nil
	if leads {
		b = &batch{hosts: map[string][]string{}, done: make(chan struct{}), gone: map[[2]string]bool{}}
		r.beats.next = b
	}
	b.hosts[kind] = append(b.hosts[kind], host)
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
	if b.gone[[2]string{kind, host}] {
		return notFound(kind, host)
	}
	return nil
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
	for kind, hosts := range b.hosts {
		slices.Sort(hosts) // two that write the same rows lock them in the same order
		for part := range slices.Chunk(slices.Compact(hosts), 500) {
			if b.err = r.mark(ctx, b, kind, part); b.err != nil {
				return
			}
		}
	}
}

func (r *Registry) mark(ctx context.Context, b *batch, kind string, hosts []string) error {
	query, args, err := sqlx.In(`UPDATE members SET seen_at = UTC_TIMESTAMP(6), departed = FALSE WHERE kind = ? AND host IN (?)`, kind, hosts)
	if err != nil {
		return err
	}
	return db.Tx(ctx, r.cfg.DB, func(ctx context.Context, tx *sqlx.Tx) error {
		n, err := exec(ctx, tx, query, args...)
		if err != nil || n == int64(len(hosts)) {
			return err
		}
		query, args, err := sqlx.In(`SELECT host FROM members WHERE kind = ? AND host IN (?)`, kind, hosts)
		if err != nil {
			return err
		}
		var have []string
		if err := tx.SelectContext(ctx, &have, query, args...); err != nil {
			return db.Error(err)
		}
		for _, h := range hosts {
			if !slices.Contains(have, h) {
				b.gone[[2]string{kind, h}] = true
			}
		}
		return nil
	})
}
