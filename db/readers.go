package db

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/internal/engine"
	"github.com/armature-go/armature/fault"
)

// Readers distributes reads over the replicas of a database. After its first write, a
// session reads from the primary. Readers is safe for concurrent use.
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

	mu       sync.Mutex
	failures []error // the result of the last Check for each replica
}

// NewReaders returns Readers of a primary and its replicas. The caller still owns
// the handles and closes them. A replica counts as healthy until [Readers.Check]
// finds an error.
func NewReaders(primary *sqlx.DB, replicas ...*sqlx.DB) *Readers {
	return &Readers{primary: primary, replicas: replicas, failures: make([]error, len(replicas))}
}

// For returns the handle to read from with ctx:
//
//   - If ctx belongs to a transaction on the primary, the transaction.
//   - If the session of ctx has written (see [WithSession]), or if no replica is healthy, the primary.
//   - Otherwise a healthy replica, by round robin. A replica may lag behind the primary, so
//     a read may return outdated rows.
func (r *Readers) For(ctx context.Context) sqlx.ExtContext {
	if o := currentTx(ctx, r.primary); o != nil {
		return o.tx
	}
	if s, ok := ctx.Value(sessionKey{}).(*session); ok && s.hasWritten(r.primary) {
		return r.primary
	}
	n := uint64(len(r.replicas))
	first := r.next.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range n {
		if at := (first + i) % n; r.failures[at] == nil {
			return r.replicas[at]
		}
	}
	return r.primary
}

// Check runs [Health] on all replicas and returns their errors. A replica with an
// error is not used until a later Check finds it healthy. A replica that is
// read-only is healthy. Check blocks for up to 5 s. Call it every few seconds.
func (r *Readers) Check(ctx context.Context) error {
	found := make([]error, len(r.replicas))
	var wg sync.WaitGroup
	for i, d := range r.replicas {
		wg.Go(func() {
			// A replica is read-only on purpose.
			if err := Health(ctx, d); err != nil && fault.From(err).Reason != engine.ReasonReadOnly {
				found[i] = fmt.Errorf("replica %d: %w", i+1, err)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err() // the results say nothing about the replicas
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = found
	return errors.Join(found...)
}

type sessionKey struct{}

// session remembers the databases that a request has written to.
type session struct {
	mu      sync.Mutex
	written map[*sqlx.DB]bool
}

// hasWritten reports whether the session may have written to d.
func (s *session) hasWritten(d *sqlx.DB) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.written[d]
}

// WithSession returns a context with a new session. After the first [Tx] with this
// context that may have written, [Readers.For] returns the primary, so that the
// session reads the rows that it wrote. A session does not cross processes: if a client gets a
// reply from one process and then sends a request to another one, it may read outdated rows.
func WithSession(ctx context.Context) context.Context {
	return context.WithValue(ctx, sessionKey{}, &session{written: map[*sqlx.DB]bool{}})
}

// markWritten records in the session of ctx, if any, that a transaction on d was
// committed or may have been.
func markWritten(ctx context.Context, d *sqlx.DB) {
	s, ok := ctx.Value(sessionKey{}).(*session)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written[d] = true
}

// healthTimeout bounds Health.
const healthTimeout = 5 * time.Second

// Health returns nil if the database answers and accepts writes. Otherwise it fails with Unavailable. It returns within
// 5 s, and when ctx ends, even if the server hangs.
//
// The reason is ReadOnly if the server is read-only. A query alone does not show that a database is full or
// read-only, or rejects the user. Therefore Health also fails for 30 s after a statement or a new connection of this
// handle has failed for such a reason. This time ends early when a statement writes a row. On a database in memory
// Health waits for the transaction that has the only connection.
func Health(ctx context.Context, d *sqlx.DB) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	query := "SELECT @@global.read_only"
	if isSQLite(d) {
		query = "SELECT 0 FROM sqlite_schema UNION SELECT 0"
	}
	var readOnly bool
	err := queryHealth(ctx, d, query, &readOnly)
	switch {
	case err != nil:
		return err
	case readOnly:
		return fault.WithReason(fault.New(fault.Unavailable, "the database is read-only"), engine.ReasonReadOnly, nil)
	}
	o := engine.ObserverOf(d.Driver())
	if o == nil {
		return nil
	}
	if err := o.Failure(); err != nil {
		return fault.WithPrivate(fault.WithReason(fault.New(fault.Unavailable, "the database rejected a statement: %w", err), explainError(err).Reason, nil))
	}
	return nil
}

// queryHealth runs a query of Health. If ctx ends first, the error says whether the query waited for a connection of the pool or for the database.
func queryHealth(ctx context.Context, d *sqlx.DB, query string, dest any) error {
	c, err := d.Connx(ctx)
	for err == nil {
		begin := time.Now()
		err = c.GetContext(ctx, dest, query)
		_ = c.Close() // it goes back to the pool, or is lost
		o := engine.ObserverOf(d.Driver())
		switch {
		case err == nil:
			return nil
		case isDeadline(err) && o != nil && o.Addr != "":
			return fault.New(fault.Unavailable, "%s: %w", engine.SilentText(o.Addr, time.Since(begin)), err)
		case !errors.Is(err, driver.ErrBadConn) || ctx.Err() != nil:
			return fault.New(fault.Unavailable, "the database does not answer: %w", Error(err))
		}
		c, err = d.Connx(ctx) // the server had closed this connection of the pool before the query
	}
	switch pool := d.Stats(); {
	case engine.Explain(err).Silent:
		return fault.New(fault.Unavailable, "%w", Error(err))
	case isDeadline(err) && pool.InUse >= pool.MaxOpenConnections:
		return fault.New(fault.Unavailable, "no connection of the pool is free: all %d are in use (the database hangs, or statements take long): %w", pool.InUse, err)
	}
	return fault.New(fault.Unavailable, "the database does not answer: %w", Error(err))
}

// isDeadline reports whether a context's deadline has ended a wait, and err does not say for what.
func isDeadline(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) && !engine.Explain(err).Silent
}
