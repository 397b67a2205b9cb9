package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"

	"github.com/armature-go/armature/db/internal/engine"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/tlsfile"
)

// Error returns a database driver's error with a fault code. The cause stays in the
// error's tree for [errors.Is] and [errors.AsType]. Error returns err itself if err is
// nil, has a code, is a context's error, or is none of the errors in the list below.
//
// The error is private (see [fault.Error]): its code is for the component. If users need to know of an
// error, such as a DuplicateKey or a NotFound, the component must translate it into an error of its own.
// For users any other error is a failure of the component.
//
//   - NotFound: the query has no rows.
//   - Conflict, reason DuplicateKey: the unique key exists already. Meta["key"]
//     is the key's name on MySQL and its columns on SQLite.
//   - Precondition: a foreign key forbids the change (reason ForeignKey), the
//     database does not exist, or SQLite's file cannot be opened or is not a database.
//   - Invalid: the column does not accept the value.
//   - Exhausted: the disk or the table is full, or the statement is too large.
//   - Unauthenticated, Denied: the database rejects the user.
//   - Unavailable; the statement had no effect: it conflicts with another transaction
//     (reason Contention), the server is read-only (reason ReadOnly), there is no connection,
//     there are too many connections, the server shuts down, or it hangs while a query runs (see Config.ResponseTimeout).
//   - Timeout: the statement took longer than the server's limit.
//   - Unknown: the connection was lost while the statement ran. The statement may
//     have been executed.
func Error(err error) error {
	if err == nil || hasCode(err) {
		return err
	}
	m := explainError(err)
	if m.Code == fault.Internal {
		return err
	}
	var details map[string]string
	if m.Key != "" {
		details = map[string]string{"key": m.Key}
	}
	return fault.WithPrivate(fault.WithReason(fault.New(m.Code, "%w", err), m.Reason, details))
}

// hasCode reports whether err has a fault code, or is a context's error, which
// needs no code.
func hasCode(err error) bool {
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return true
	}
	if _, ok := errors.AsType[fault.Code](err); ok {
		return true
	}
	return isContextError(err)
}

// isContextError reports whether err is the error of a context that has ended.
func isContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// explainError returns the meaning of an error of a driver or of database/sql. For any other error the code is Internal.
func explainError(err error) engine.Meaning {
	m := engine.Explain(err)
	op, isNet := errors.AsType[*net.OpError](err)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		m.Code = fault.NotFound
	case m.Answered, m.Silent && m.Code == fault.Unavailable:
	// For these errors, by the contract of database/sql, nothing was sent.
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone),
		isNet && op.Op == "dial", tlsFailure(err) != nil:
		m.Code = fault.Unavailable
	case isConnectionLost(err):
		m.Code = fault.Unknown
	}
	return m
}

// isConnectionLost reports whether the connection was lost after a statement may
// have been sent.
func isConnectionLost(err error) bool {
	if isContextError(err) { // context.DeadlineExceeded is also a net.Error
		return false
	}
	_, isNet := errors.AsType[net.Error](err)
	return isNet || engine.Explain(err).Lost || errors.Is(err, driver.ErrBadConn) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}

// isRetryable reports whether a transaction that failed with err may succeed if
// it runs again from its beginning. It also finds a driver's error that is wrapped
// or has a fault code.
func isRetryable(err error) bool { return engine.Explain(err).Reason == engine.ReasonContention }

// tlsFailure returns an error that explains err if a connection failed because of TLS, and nil otherwise.
func tlsFailure(err error) error {
	if engine.Explain(err).NoTLS {
		return fault.New(fault.Precondition, "the URL requires TLS, but the server does not use TLS: %w", err)
	}
	return tlsfile.Failure(err)
}
