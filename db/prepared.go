package db

import (
	"context"
	"sync/atomic"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/internal/engine"
)

// Prepared is a query that each connection of a handle prepares when the connection first runs the query. So the server
// parses the query once for each connection, and MariaDB describes the columns once. Use Prepared for a query whose text
// never changes, and which a process runs for most requests. Do not prepare every query, because a server limits the
// number of prepared statements (MySQL's max_prepared_stmt_count, by default 16,382). Make a Prepared once,
// when the process starts, and keep it: each Prepared has its own statements, which are closed only with their
// connections. Prepared is safe for concurrent use.
type Prepared struct {
	db    *sqlx.DB
	query string
	stmt  atomic.Pointer[sqlx.Stmt]
}

// maxRepeats is how often Get repeats a query.
const maxRepeats = 10

// Prepare returns the query for the handle. It does not use the database: the first Get prepares the query.
func Prepare(d *sqlx.DB, query string) *Prepared { return &Prepared{db: d, query: query} }

// Get reads the first row into the parameter out, a pointer to a struct or to a value. It does not use a transaction in
// ctx. If the server cannot prepare one more statement, or if the connection is lost, Get runs the query again,
// without preparing it: a query must only read. Get repeats it at most 10 times, because the next connections of the
// pool may be lost, too. Errors are those of [Error]: NotFound if there is no row.
func (p *Prepared) Get(ctx context.Context, out any, args ...any) error {
	st, err := p.statement(ctx) //nolint:sqlclosecheck // it is used until the handle is closed
	if err == nil {
		err = st.GetContext(ctx, out, args...)
	}
	for range maxRepeats {
		if m := engine.Explain(err); err == nil || m.Silent || !m.Unprepared && !m.Lost {
			break
		}
		err = p.db.GetContext(ctx, out, p.query, args...)
	}
	return Error(err)
}

// statement returns the prepared statement. The first call prepares it. Concurrent first calls may each prepare it, so
// that no call waits for another one.
func (p *Prepared) statement(ctx context.Context) (*sqlx.Stmt, error) {
	if st := p.stmt.Load(); st != nil {
		return st, nil
	}
	st, err := p.db.PreparexContext(ctx, p.query)
	if err != nil {
		return nil, err
	}
	if !p.stmt.CompareAndSwap(nil, st) {
		_ = st.Close() //nolint:sqlclosecheck // the other statement is used
		return p.stmt.Load(), nil
	}
	return st, nil
}
