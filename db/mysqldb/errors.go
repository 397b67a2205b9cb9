package mysqldb

import (
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/go-sql-driver/mysql"

	"github.com/armature-go/armature/db/internal/engine"
	"github.com/armature-go/armature/fault"
)

// explainError says what an error of the driver means.
func explainError(err error) (m engine.Meaning) {
	if _, ok := errors.AsType[*noAnswerError](err); ok { // nothing was sent
		return engine.Meaning{Silent: true, Code: fault.Unavailable}
	}
	e, ok := errors.AsType[*mysql.MySQLError](err)
	switch {
	case ok:
		m = engine.Meaning{Answered: true, Lasting: isLasting(e), Missing: slices.Contains(missingErrors, e.Number), Done: slices.Contains(doneErrors, e.Number), NoDatabase: e.Number == 1049}
		m.Code, m.Reason = classifyError(e)
		m.Transient = m.Code == fault.Unavailable
		if m.Reason == engine.ReasonDuplicate {
			m.Key = duplicateKey(e.Message)
		}
	case errors.Is(err, mysql.ErrInvalidConn):
		m.Lost = true
		if silence, ok := errors.AsType[*silenceError](err); ok {
			m.Silent = true
			if silence.read {
				m.Code = fault.Unavailable
			}
		}
	case errors.Is(err, mysql.ErrPktTooLarge):
		m.Code = fault.Exhausted
	case errors.Is(err, mysql.ErrNoTLS):
		m.NoTLS = true
	}
	return m
}

// classifyError maps the error numbers of MySQL and MariaDB to codes and reasons.
func classifyError(e *mysql.MySQLError) (fault.Code, string) {
	if isContention(e) {
		return fault.Unavailable, engine.ReasonContention
	}
	switch e.Number {
	case 1022, 1062, 1586: // duplicate key
		return fault.Conflict, engine.ReasonDuplicate
	case 1216, 1217, 1451, 1452: // parent or child rows
		return fault.Precondition, engine.ReasonForeignKey
	case 1049: // the database does not exist
		return fault.Precondition, ""
	case 1048, 1263, 1364, // NULL, no default
		1264, 1265, 1292, 1366, 1406, 1411, 1690, // out of range, truncated, wrong, too long
		3140, 3819, 4025: // JSON, CHECK
		return fault.Invalid, ""
	case 1290, 1792, 1836: // read-only server or transaction
		return fault.Unavailable, engine.ReasonReadOnly
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

// isLasting reports whether an error means that the next statements also fail: the database is full or rejects the user. db.Health
// itself finds out whether the server is read-only.
func isLasting(e *mysql.MySQLError) bool {
	switch e.Number {
	case 1021, 1026, 1114, 3675: // the disk or the table is full, or a file cannot be written
		return true
	}
	code, _ := classifyError(e)
	return code == fault.Unauthenticated || e.Number == 1044 // 1044: no privilege on the database
}

var keyName = regexp.MustCompile(`for key '(?:[^']*\.)?([^'.]*)'$`)

// duplicateKey returns the name of the duplicate key, or "". It parses the message,
// because the driver gives the name nowhere else.
func duplicateKey(message string) string {
	if m := keyName.FindStringSubmatch(message); m != nil {
		return m[1]
	}
	return ""
}

// missingErrors are the errors for a table or a column that does not exist.
var missingErrors = []uint16{
	1054, // ER_BAD_FIELD_ERROR
	1146, // ER_NO_SUCH_TABLE
}

// mayEndTransaction reports whether the server may have rolled the transaction back before it returned an error: because of a deadlock, or because the statement
// was stopped.
func mayEndTransaction(err error) bool {
	e, ok := errors.AsType[*mysql.MySQLError](err)
	if !ok {
		return false
	}
	code, reason := classifyError(e)
	return reason == engine.ReasonContention || code == fault.Unknown || code == fault.Timeout
}

// isUnprepared reports whether the server does not run a statement as a prepared statement, but may run it as text.
func isUnprepared(err error) bool {
	e, ok := errors.AsType[*mysql.MySQLError](err)
	return ok && slices.Contains(unpreparedErrors, e.Number)
}

// unpreparedErrors are the errors for a statement that the server does not prepare.
var unpreparedErrors = []uint16{
	1243, // ER_UNKNOWN_STMT_HANDLER: a proxy has changed the connection
	1461, // ER_MAX_PREPARED_STMT_COUNT_REACHED
	1615, // ER_NEED_REPREPARE: the tables have changed too often
}

// doneErrors are the errors for a statement that has already changed the schema.
var doneErrors = []uint16{
	1005, // ER_CANT_CREATE_TABLE: the foreign key exists
	1050, // ER_TABLE_EXISTS_ERROR
	1051, // ER_BAD_TABLE_ERROR: the dropped table does not exist
	1054, // ER_BAD_FIELD_ERROR: the renamed column does not exist
	1060, // ER_DUP_FIELDNAME
	1061, // ER_DUP_KEYNAME
	1068, // ER_MULTIPLE_PRI_KEY
	1091, // ER_CANT_DROP_FIELD_OR_KEY
	1146, // ER_NO_SUCH_TABLE: the renamed table does not exist
	1304, // ER_SP_ALREADY_EXISTS
	1359, // ER_TRG_ALREADY_EXISTS
	1360, // ER_TRG_DOES_NOT_EXIST
	1517, // ER_SAME_NAME_PARTITION
	1826, // ER_DUP_CONSTRAINT_NAME
	4091, // ER_UNKNOWN_SEQUENCES
	4092, // ER_UNKNOWN_VIEW
}
