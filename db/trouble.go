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

// troubleTTL is how long a lasting failure, such as a full disk, makes a database unhealthy, unless a
// statement writes before.
const troubleTTL = 30 * time.Second

// trouble is the last lasting failure of a handle. [Health] reports it, because a query does not show the
// failure. It is safe for concurrent use.
type trouble struct {
	mu   sync.Mutex
	err  error
	when time.Time
}

// recordResult records the result of a statement or of a connection attempt: its error, and whether it wrote
// a row.
func (t *trouble) recordResult(err error, wrote bool) {
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

// lastFailure returns the failure if it is not older than troubleTTL, or nil.
func (t *trouble) lastFailure() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil || time.Since(t.when) > troubleTTL {
		return nil
	}
	return t.err
}

// isLasting reports whether an error means that the next statements fail, too: the database is full or
// read-only, or rejects the user.
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
	case 1021, 1026, 1114, 3675: // disk or table full
		return true
	}
	code, _ := classifyMySQL(my)
	return code == fault.Unauthenticated || my.Number == 1044 // 1044: no privilege on the database; Health itself finds out whether the server is read-only
}

// watchedDriver is a driver with the watch of a handle. database/sql gives no other way from a handle to its
// connector.
type watchedDriver struct {
	driver.Driver

	watch *watch
}

// lastTrouble returns the last failure of a handle of [New], or nil.
func lastTrouble(d *sqlx.DB) error {
	if t, ok := d.Driver().(*watchedDriver); ok {
		return t.watch.trouble.lastFailure()
	}
	return nil
}
