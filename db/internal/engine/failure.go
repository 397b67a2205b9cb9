package engine

import (
	"sync"
	"time"
)

// failureTTL is how long a lasting failure, such as a full disk, makes a database unhealthy. The time ends early when a
// statement writes a row.
const failureTTL = 30 * time.Second

// lastingFailure has the most recent lasting failure of a handle. Such a failure repeats until its cause is removed, as
// for a full disk. db.Health reports the failure, because a query does not show it. A lastingFailure is safe for
// concurrent use.
type lastingFailure struct {
	mu   sync.Mutex
	err  error
	when time.Time
}

// record keeps the result of a statement or of a connection attempt: its error, and whether it wrote a row. A lasting error
// replaces the failure. A success that wrote a row clears the failure. Every other result changes nothing, because a full or
// read-only database still answers queries.
func (t *lastingFailure) record(err error, wrote bool) {
	if err == nil && !wrote {
		return
	}
	if err != nil && !Explain(err).Lasting {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err, t.when = err, time.Now()
}

// current returns the failure if it is not older than failureTTL, or nil.
func (t *lastingFailure) current() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil || time.Since(t.when) > failureTTL {
		return nil
	}
	return t.err
}
