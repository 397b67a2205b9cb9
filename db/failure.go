package db

import (
	"database/sql/driver"
	"errors"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jmoiron/sqlx"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/armature-go/armature/fault"
)

// failureTTL is how long a lasting failure, such as a full disk, makes a database unhealthy. The time ends early when a
// statement writes a row.
const failureTTL = 30 * time.Second

// lastingFailure has the most recent failure of a handle that will repeat, such as that of a full disk. [Health] reports the
// failure, because a query does not show it. A lastingFailure is safe for concurrent use.
type lastingFailure struct {
	mu   sync.Mutex
	err  error
	when time.Time
}

// record notes the result of a statement or of a connection attempt: its error, and whether it wrote a row. A lasting
// error replaces the failure. A success that wrote a row clears the failure. Every other result changes nothing, because a full or
// read-only database still answers queries.
func (t *lastingFailure) record(err error, wrote bool) {
	if err == nil && !wrote {
		return
	}
	if err != nil && !isLasting(err) {
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

// isLasting reports whether an error means that the next statements fail, too. Such an error says that the database is full or
// rejects the user. For SQLite it may also say that the database is read-only or that its file cannot be opened. For a MySQL
// server [Health] itself finds out whether it is read-only.
func isLasting(err error) bool {
	if code, ok := sqliteCode(err); ok {
		switch code & 0xff {
		case sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_CANTOPEN:
			return true
		}
		return false
	}
	my, ok := errors.AsType[*mysql.MySQLError](err)
	if !ok {
		return false
	}
	switch my.Number {
	case 1021, 1026, 1114, 3675: // the disk or the table is full, or a file cannot be written
		return true
	}
	code, _ := classifyMySQL(my)
	return code == fault.Unauthenticated || my.Number == 1044 // 1044: no privilege on the database
}

// observedDriver is a driver that also has the observer of a handle. lastingFailureOf needs it: database/sql gives no other way
// from a handle to its connector.
type observedDriver struct {
	driver.Driver

	observer *observer
}

// lastingFailureOf returns the current lasting failure of a handle of [New], or nil.
func lastingFailureOf(d *sqlx.DB) error {
	if t, ok := d.Driver().(*observedDriver); ok {
		return t.observer.failure.current()
	}
	return nil
}
