package sqlitedb

import (
	"errors"
	"regexp"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/armature-go/armature/db/internal/engine"
	"github.com/armature-go/armature/fault"
)

// explainError says what an error of the driver means.
func explainError(err error) (m engine.Meaning) {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return engine.Meaning{}
	}
	m.Answered = true
	m.Code, m.Reason = classifyError(e.Code())
	m.Transient = m.Reason == engine.ReasonContention
	// SQLite has one code for all wrong statements, so only the text says that a name is missing.
	m.Missing = strings.Contains(e.Error(), "no such table") || strings.Contains(e.Error(), "no such column")
	if m.Reason == engine.ReasonDuplicate {
		m.Key = duplicateKey(e.Error())
	}
	switch e.Code() & 0xff { // the database is full, rejects the user, is read-only, or its file cannot be opened
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_CANTOPEN:
		m.Lasting = true
	}
	return m
}

// classifyError maps the extended result codes of SQLite to codes and reasons.
func classifyError(code int) (fault.Code, string) {
	switch code {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID:
		return fault.Conflict, engine.ReasonDuplicate
	case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY, sqlite3.SQLITE_CONSTRAINT_TRIGGER:
		return fault.Precondition, engine.ReasonForeignKey
	}
	switch code & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return fault.Unavailable, engine.ReasonContention
	case sqlite3.SQLITE_READONLY:
		return fault.Unavailable, engine.ReasonReadOnly
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

var keyColumns = regexp.MustCompile(`UNIQUE constraint failed: (.*?)(?: \(\d+\))?$`)

// duplicateKey returns the columns of the duplicate key, or "". It parses the message,
// because the driver gives them nowhere else.
func duplicateKey(message string) string {
	if m := keyColumns.FindStringSubmatch(message); m != nil {
		return m[1]
	}
	return ""
}
