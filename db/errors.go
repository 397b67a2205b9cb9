package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"regexp"
	"strings"

	"github.com/go-sql-driver/mysql"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/armature-go/armature/fault"
)

const (
	sqliteBusy   = sqlite3.SQLITE_BUSY
	sqliteLocked = sqlite3.SQLITE_LOCKED
)

// The reasons of errors that [Error] makes. They distinguish errors with the same code.
const (
	reasonDuplicate  = "DuplicateKey"
	reasonForeignKey = "ForeignKey"
	reasonContention = "Contention"
	reasonReadOnly   = "ReadOnly"
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
//     there are too many connections, or the server shuts down.
//   - Timeout: the statement took longer than the server's limit.
//   - Unknown: the connection was lost while the statement ran. The statement may
//     have been executed.
func Error(err error) error {
	if err == nil || hasCode(err) {
		return err
	}
	code, reason := classifyError(err)
	if code == fault.Internal {
		return err
	}
	var details map[string]string
	if key := duplicateKey(err); reason == reasonDuplicate && key != "" {
		details = map[string]string{"key": key}
	}
	return fault.WithPrivate(fault.WithReason(fault.New(code, "%w", err), reason, details))
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

// classifyError returns the code and the reason of a driver's error, or Internal.
func classifyError(err error) (fault.Code, string) {
	if errors.Is(err, sql.ErrNoRows) {
		return fault.NotFound, ""
	}
	if my, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return classifyMySQL(my)
	}
	if code, ok := sqliteCode(err); ok {
		return classifySQLite(code)
	}
	op, isNet := errors.AsType[*net.OpError](err)
	switch {
	// For these errors, by the contract of database/sql, nothing was sent.
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone),
		isNet && op.Op == "dial", tlsFailure(err) != nil:
		return fault.Unavailable, ""
	case isConnectionLost(err):
		return fault.Unknown, ""
	case errors.Is(err, mysql.ErrPktTooLarge):
		return fault.Exhausted, ""
	}
	return fault.Internal, ""
}

// isConnectionLost reports whether the connection was lost after a statement may
// have been sent.
func isConnectionLost(err error) bool {
	if isContextError(err) { // context.DeadlineExceeded is a net.Error, too
		return false
	}
	_, isNet := errors.AsType[net.Error](err)
	return isNet || errors.Is(err, mysql.ErrInvalidConn) || errors.Is(err, driver.ErrBadConn) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}

// classifyMySQL maps the error numbers of MySQL and MariaDB to codes and reasons.
func classifyMySQL(e *mysql.MySQLError) (fault.Code, string) {
	if isContention(e) {
		return fault.Unavailable, reasonContention
	}
	switch e.Number {
	case 1022, 1062, 1586: // duplicate key
		return fault.Conflict, reasonDuplicate
	case 1216, 1217, 1451, 1452: // parent or child rows
		return fault.Precondition, reasonForeignKey
	case 1049: // the database does not exist
		return fault.Precondition, ""
	case 1048, 1263, 1364, // NULL, no default
		1264, 1265, 1292, 1366, 1406, 1411, 1690, // out of range, truncated, wrong, too long
		3140, 3819, 4025: // JSON, CHECK
		return fault.Invalid, ""
	case 1290, 1792, 1836: // read-only server or transaction
		return fault.Unavailable, reasonReadOnly
	case 1021, 1026, 1037, 1038, 1041, 1114, // disk, memory, table full
		1118, 1153, 1301: // row, packet, result too large
		return fault.Exhausted, ""
	case 1044, 1142, 1143, 1227, 1370: // the user lacks a privilege
		return fault.Denied, ""
	case 1045, 1130, 1251, 1698, 1820, 1862, 3118, 4151: // password, host, plugin, expired, locked
		return fault.Unauthenticated, ""
	case 1040, 1203, 1226, // too many connections
		1047,                   // Galera: the node is not ready
		1053, 1077, 1078, 1079, // shutting down
		1412: // table definition has changed
		return fault.Unavailable, ""
	case 1317, 1927: // killed
		return fault.Unknown, ""
	case 1969, 3024: // limit on a statement's time
		return fault.Timeout, ""
	}
	return fault.Internal, ""
}

// isContention reports whether the transaction conflicts with another one and can be
// repeated: a deadlock, a lock wait timeout, a row that changed after it was
// read, or a conflict of Galera, which may also come at COMMIT.
func isContention(e *mysql.MySQLError) bool {
	switch e.Number {
	case 1205, 1213, 1020, 3058:
		return true
	case 1180: // error during COMMIT: 149 is a deadlock
		return strings.Contains(e.Message, "149")
	}
	return e.SQLState == [5]byte{'4', '0', '0', '0', '1'}
}

// classifySQLite maps the extended result codes of SQLite to codes and reasons.
func classifySQLite(code int) (fault.Code, string) {
	switch code {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID:
		return fault.Conflict, reasonDuplicate
	case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY, sqlite3.SQLITE_CONSTRAINT_TRIGGER:
		return fault.Precondition, reasonForeignKey
	}
	switch code & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return fault.Unavailable, reasonContention
	case sqlite3.SQLITE_READONLY:
		return fault.Unavailable, reasonReadOnly
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB:
		return fault.Precondition, ""
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH:
		return fault.Invalid, ""
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_TOOBIG:
		return fault.Exhausted, ""
	case sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH:
		return fault.Denied, ""
	case sqlite3.SQLITE_INTERRUPT:
		return fault.Canceled, ""
	case sqlite3.SQLITE_IOERR:
		return fault.Unknown, ""
	}
	return fault.Internal, ""
}

// sqliteCode returns SQLite's extended result code. It returns false if err is not SQLite's.
func sqliteCode(err error) (int, bool) {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return 0, false
	}
	return e.Code(), true
}

// isRetryable reports whether a transaction that failed with err may succeed if
// it runs again from its beginning. It finds the driver's error behind codes and
// wrapping.
func isRetryable(err error) bool {
	if my, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return isContention(my)
	}
	code, ok := sqliteCode(err)
	return ok && (code&0xff == sqliteBusy || code&0xff == sqliteLocked) // SQLITE_BUSY_SNAPSHOT (517) is among them
}

var (
	mysqlKey  = regexp.MustCompile(`for key '(?:[^']*\.)?([^'.]*)'$`)
	sqliteKey = regexp.MustCompile(`UNIQUE constraint failed: (.*?)(?: \(\d+\))?$`)
)

// duplicateKey returns the name of the duplicate key, or "". It parses the message,
// because the drivers give the name nowhere else.
func duplicateKey(err error) string {
	if my, ok := errors.AsType[*mysql.MySQLError](err); ok {
		if m := mysqlKey.FindStringSubmatch(my.Message); m != nil {
			return m[1]
		}
		return ""
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		if m := sqliteKey.FindStringSubmatch(e.Error()); m != nil {
			return m[1]
		}
	}
	return ""
}
