package sqlitedb

import (
	"container/list"
	"context"
	"strings"
)

// maxStatements is the maximum number of prepared statements that a connection keeps. One of them takes about 10 KiB.
const maxStatements = 64

// statements keeps the most recently used prepared statements of a connection, because preparing a statement takes longer than executing most
// statements. It does not contain statements that are in use. Only one goroutine at a time calls its methods, as for a connection.
type statements struct {
	conn   rawConn
	byText map[string]*list.Element // the values of the elements are *statement
	order  list.List                // the first is the one used last
}

type statement struct {
	rawStmt
	query string
}

// discard closes a statement whose execution has failed with err, and returns err.
func (s *statement) discard(err error) error {
	_ = s.Close() // Close repeats the error of the execution
	return err
}

// takeStatement returns a prepared statement without FOR UPDATE, which SQLite does not accept. The caller passes the statement to
// the method keepStatement, or closes it.
func (s *statements) takeStatement(ctx context.Context, query string) (*statement, error) {
	if e := s.byText[query]; e != nil {
		delete(s.byText, query)
		return s.order.Remove(e).(*statement), nil //nolint:forcetypeassert // see order
	}
	st, err := s.conn.PrepareContext(ctx, forUpdate.ReplaceAllString(query, ""))
	if err != nil {
		return nil, err
	}
	return &statement{st.(rawStmt), query}, nil //nolint:forcetypeassert // the driver's statement has all methods
}

// keepStatement stores a statement that is not in use, so that the next call of takeStatement can return it.
func (s *statements) keepStatement(st *statement) error {
	if s.byText[st.query] != nil || !isRepeatable(st.query) {
		return st.Close()
	}
	if s.byText == nil {
		s.byText = map[string]*list.Element{}
	}
	s.byText[st.query] = s.order.PushFront(st)
	if s.order.Len() <= maxStatements {
		return nil
	}
	last := s.order.Remove(s.order.Back()).(*statement) //nolint:forcetypeassert // see order
	delete(s.byText, last.query)
	return last.Close()
}

// close closes all statements that are not in use.
func (s *statements) close() {
	for e := s.order.Front(); e != nil; e = e.Next() {
		_ = e.Value.(*statement).Close() //nolint:forcetypeassert // see order; the connection is closed, too
	}
	s.byText, s.order = nil, list.List{}
}

// isRepeatable reports whether a statement may be executed again after its preparation. SQLite executes some statements, such as PRAGMA, partly when it prepares
// them.
func isRepeatable(query string) bool {
	word, _, _ := strings.Cut(strings.TrimSpace(query), " ")
	switch strings.ToUpper(word) {
	case "SELECT", "INSERT", "UPDATE", "DELETE", "WITH":
		return true
	}
	return false
}
