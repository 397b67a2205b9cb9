package db

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/fault"
)

// Readers spreads reads over replicas of a database. It is safe for concurrent
// use.
//
//	readers := db.NewReaders(primary, replica1, replica2)
//	app.Add("replicas", service.Loop(5*time.Second, readers.Check))
//	...
//	ctx = db.WithSession(ctx) // once a request
//	err := db.Tx(ctx, primary, func(...) error { ... })
//	err = sqlx.GetContext(ctx, readers.For(ctx), &host, "SELECT ...") // sees what Tx wrote
type Readers struct {
	primary  *sqlx.DB
	replicas []*sqlx.DB
	next     atomic.Uint64

	mu   sync.Mutex
	sick []error // by replica
}

// NewReaders returns readers of a primary and its replicas, which stay the
// caller's. A replica counts as well until [Readers.Check] finds otherwise.
func NewReaders(primary *sqlx.DB, replicas ...*sqlx.DB) *Readers {
	return &Readers{primary: primary, replicas: replicas, sick: make([]error, len(replicas))}
}

// For returns what to read from with ctx: the transaction on the primary that it
// belongs to, if any; the primary, if its session has written (see
// [WithSession]), or if no replica is well; otherwise a replica, each in turn. A
// replica may be behind: what is read of it is what was.
func (r *Readers) For(ctx context.Context) sqlx.ExtContext {
	if o := current(ctx, r.primary); o != nil {
		return o.tx
	}
	if s, ok := ctx.Value(sessionKey{}).(*session); ok && s.has(r.primary) {
		return r.primary
	}
	n := uint64(len(r.replicas))
	first := r.next.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range n {
		if at := (first + i) % n; r.sick[at] == nil {
			return r.replicas[at]
		}
	}
	return r.primary
}

// Check asks all replicas for their health, as [Health] does, leaves out those
// that have none until it finds them well again, and returns their errors. It
// blocks up to 5 s; a component calls it every few seconds.
func (r *Readers) Check(ctx context.Context) error {
	found := make([]error, len(r.replicas))
	var wg sync.WaitGroup
	for i, d := range r.replicas {
		wg.Go(func() {
			// That it is read-only is as it should be.
			if err := Health(ctx, d); err != nil && fault.From(err).Reason != reasonReadOnly {
				found[i] = fmt.Errorf("replica %d: %w", i+1, err)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err() // that says nothing of them
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sick = found
	return errors.Join(found...)
}

type sessionKey struct{}

// session is what one who asks has written to.
type session struct {
	mu    sync.Mutex
	wrote map[*sqlx.DB]bool
}

func (s *session) has(d *sqlx.DB) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wrote[d]
}

// WithSession returns a context with a session of its own: from the first [Tx]
// with it that may have written, [Readers.For] returns the primary, so that whoever
// has written reads what was written. It does not cross processes: a caller who
// was told that something is done and asks another process may read what was.
func WithSession(ctx context.Context) context.Context {
	return context.WithValue(ctx, sessionKey{}, &session{wrote: map[*sqlx.DB]bool{}})
}

// wrote notes that a transaction on d was, or may have been, committed.
func wrote(ctx context.Context, d *sqlx.DB) {
	s, ok := ctx.Value(sessionKey{}).(*session)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrote[d] = true
}

// healthWait bounds Health.
const healthWait = 5 * time.Second

// Health returns nil if the database answers and can be written, and otherwise
// Unavailable: within 5 s, or ctx's end, also for a server that hangs. The
// reason is ReadOnly if it is a server that can only be read. A statement of this handle that
// failed because the database is full, read-only, or refuses the user, counts for 30 s, or until
// another one writes: a question does not show it. A database in memory waits for the
// transaction that has its one connection.
func Health(ctx context.Context, d *sqlx.DB) error {
	ctx, cancel := context.WithTimeout(ctx, healthWait)
	defer cancel()
	query := "SELECT @@global.read_only"
	if isSQLite(d) {
		query = "SELECT 0 FROM sqlite_schema UNION SELECT 0"
	}
	var readOnly bool
	err := d.GetContext(ctx, &readOnly, query)
	switch {
	case err != nil:
		return fault.New(fault.Unavailable, "the database does not answer: %w", Error(err))
	case readOnly:
		return &fault.Error{Code: fault.Unavailable, Reason: reasonReadOnly, Msg: "the database is read-only"}
	}
	if err := troubleOf(d); err != nil {
		_, reason := class(err)
		return &fault.Error{Code: fault.Unavailable, Reason: reason, Private: true, Msg: "the database has refused a statement: " + err.Error()}
	}
	return nil
}
