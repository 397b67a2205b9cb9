package mysqldb

import (
	"context"
	"slices"
)

// A connection prepares a statement of at least minCached bytes when it runs the statement for the second time. The server
// needs more time to parse such a statement, which names many columns, than to run it. A short statement costs less than
// the round trip that prepares it. A connection keeps the maxCached statements that it has used last: a server limits the
// number of prepared statements of all connections (max_prepared_stmt_count, by default 16,382).
const (
	minCached = 400
	maxCached = 8
)

// statementCache has the long statements that a connection has used last, the latest first. A connection is used by one
// goroutine at a time.
type statementCache struct {
	list []cachedStatement
	off  bool // the server prepares no more statements
}

// cachedStatement is a statement that a connection has run. The field prepared is nil until the second run.
type cachedStatement struct {
	query    string
	prepared rawMySQLStmt
}

// get returns the prepared statement of a query, or nil if the query must be sent as text. An error means that the server may have ended the transaction, so
// that the query must not be sent: it would run outside of the transaction.
func (c *statementCache) get(ctx context.Context, conn rawMySQL, query string) (rawMySQLStmt, error) {
	if len(query) < minCached {
		return nil, nil //nolint:nilnil // see above
	}
	i := slices.IndexFunc(c.list, func(s cachedStatement) bool { return s.query == query })
	if i < 0 {
		if !c.off {
			c.add(query)
		}
		return nil, nil //nolint:nilnil // see above
	}
	latest := c.list[i]
	if latest.prepared == nil {
		if c.off {
			return nil, nil //nolint:nilnil // see above
		}
		st, err := conn.PrepareContext(ctx, query)
		if mayEndTransaction(err) {
			return nil, err
		}
		if err != nil { // if the statement is wrong, the server refuses the text, too, and the driver does not send the text on a lost connection
			c.off = isUnprepared(err)
			return nil, nil //nolint:nilnil // see above
		}
		latest.prepared = st.(rawMySQLStmt)
	}
	copy(c.list[1:], c.list[:i])
	c.list[0] = latest
	return latest.prepared, nil
}

// add adds a query that is not in the list. The statement that was not used for the longest time makes room.
func (c *statementCache) add(query string) {
	if len(c.list) == maxCached {
		last := c.list[maxCached-1]
		c.list = c.list[:maxCached-1]
		if last.prepared != nil {
			_ = last.prepared.Close() // an error means that the connection is lost, which the next statement finds
		}
	}
	c.list = slices.Insert(c.list, 0, cachedStatement{query: query})
}

// refused reports whether the server has not run a prepared statement, so that its query must be sent as text. Then the
// statement is removed.
func (c *statementCache) refused(query string, err error) bool {
	if !isUnprepared(err) {
		return false
	}
	c.list = slices.DeleteFunc(c.list, func(s cachedStatement) bool {
		if s.query == query {
			_ = s.prepared.Close() // see add
		}
		return s.query == query
	})
	return true
}
