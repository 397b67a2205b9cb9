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

// Reasons of the errors that [Error] makes, where the code is too coarse.
const (
	reasonDuplicate  = "DuplicateKey"
	reasonForeignKey = "ForeignKey"
	reasonContention = "Contention"
	reasonReadOnly   = "ReadOnly"
)

// Error gives a driver's error its fault code; the cause stays in the tree for
// [errors.Is] and [errors.AsType]. Errors that have a code, errors of contexts,
// others and nil come back as they are.
//
// The error is private (see [fault.Error]): its code is for the component, which translates what its
// users shall know, such as a DuplicateKey or a NotFound, into an error of its own. What it does
// not translate is to users a failure of the component, not their own.
//
//   - NotFound: no rows.
//   - Conflict: a unique key exists already, reason DuplicateKey. The detail
//     "key" is the key's name on MySQL, its columns on SQLite.
//   - Precondition: a foreign key, reason ForeignKey; no such database.
//   - Invalid: a value that the column cannot take.
//   - Exhausted: disk or table full, statement too large.
//   - Unauthenticated, Denied: the database refuses the user.
//   - Unavailable, certainly not done: lost against another transaction (reason
//     Contention), read-only server (reason ReadOnly), no connection, too many
//     connections, server shutting down.
//   - Timeout: the server's own limit on a statement's time.
//   - Unknown, may have been done: the connection was lost in the middle.
func Error(err error) error {
	if err == nil || coded(err) {
		return err
	}
	code, reason := class(err)
	if code == fault.Internal {
		return err
	}
	out := &fault.Error{}
	errors.As(fault.New(code, "%w", err), &out)
	out.Reason, out.Private = reason, true
	if key := duplicateKey(err); reason == reasonDuplicate && key != "" {
		out.Meta = map[string]string{"key": key}
	}
	return out
}

// coded reports whether somebody gave err a code already. A context's error
// needs none.
func coded(err error) bool {
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return true
	}
	if _, ok := errors.AsType[fault.Code](err); ok {
		return true
	}
	return ofContext(err)
}

func ofContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

func class(err error) (fault.Code, string) {
	if errors.Is(err, sql.ErrNoRows) {
		return fault.NotFound, ""
	}
	if my, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return classMySQL(my)
	}
	if code, ok := sqliteCode(err); ok {
		return classSQLite(code)
	}
	op, isNet := errors.AsType[*net.OpError](err)
	switch {
	// By the contract of database/sql nothing was sent.
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone),
		isNet && op.Op == "dial", tlsFailure(err) != nil:
		return fault.Unavailable, ""
	case lost(err):
		return fault.Unknown, ""
	case errors.Is(err, mysql.ErrPktTooLarge):
		return fault.Exhausted, ""
	}
	return fault.Internal, ""
}

// lost reports whether the connection was lost when a statement may have been
// on its way.
func lost(err error) bool {
	if ofContext(err) { // it is a net.Error, too
		return false
	}
	_, isNet := errors.AsType[net.Error](err)
	return isNet || errors.Is(err, mysql.ErrInvalidConn) || errors.Is(err, driver.ErrBadConn) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}

// classMySQL goes by the server's error numbers, those of MySQL and MariaDB.
func classMySQL(e *mysql.MySQLError) (fault.Code, string) {
	if contention(e) {
		return fault.Unavailable, reasonContention
	}
	switch e.Number {
	case 1022, 1062, 1586: // duplicate key
		return fault.Conflict, reasonDuplicate
	case 1216, 1217, 1451, 1452: // parent or child rows
		return fault.Precondition, reasonForeignKey
	case 1049: // no such database
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
	case 1044, 1142, 1143, 1227, 1370:
		return fault.Denied, ""
	case 1045, 1130, 1251, 1698, 1820, 1862, 3118, 4151: // password, host, plugin, expired, locked
		return fault.Unauthenticated, ""
	case 1040, 1203, 1226, // too many connections
		1047,                   // Galera: this node is not ready
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

// contention reports whether another transaction won, so that this one may be
// run again: deadlock, lock wait time-out, row changed since it was read, and
// Galera's conflicts, which come at COMMIT, too.
func contention(e *mysql.MySQLError) bool {
	switch e.Number {
	case 1205, 1213, 1020, 3058:
		return true
	case 1180: // error during COMMIT: 149 is a deadlock
		return strings.Contains(e.Message, "149")
	}
	return e.SQLState == [5]byte{'4', '0', '0', '0', '1'}
}

func classSQLite(code int) (fault.Code, string) {
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

func sqliteCode(err error) (int, bool) {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return 0, false
	}
	return e.Code(), true
}

// retryable reports whether a transaction that failed with err may succeed if
// it is run again from its beginning. It looks through codes and wrapping.
func retryable(err error) bool {
	if my, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return contention(my)
	}
	code, ok := sqliteCode(err)
	return ok && (code&0xff == sqliteBusy || code&0xff == sqliteLocked) // 517 is one of them
}

var (
	mysqlKey  = regexp.MustCompile(`for key '(?:[^']*\.)?([^'.]*)'$`)
	sqliteKey = regexp.MustCompile(`UNIQUE constraint failed: (.*?)(?: \(\d+\))?$`)
)

// duplicateKey takes the key's name out of the message, the only place that
// has it.
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
