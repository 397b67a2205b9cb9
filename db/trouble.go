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

// troubled is how long after the last failure of a kind that no statement gets around, such as a
// full disk, a database counts as unhealthy, unless it takes a write before.
const troubled = 30 * time.Second

// trouble is the last such failure of a handle: [Health] reports it, as a question alone does not
// show it. It is safe for concurrent use.
type trouble struct {
	mu   sync.Mutex
	err  error
	when time.Time
}

// note remembers what a statement, or a connection's beginning, has ended with.
func (t *trouble) note(err error, wrote bool) {
	if err == nil && !wrote {
		return
	}
	if err != nil && !lasting(err) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err, t.when = err, time.Now()
}

// last returns the failure that still counts, or nil.
func (t *trouble) last() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil || time.Since(t.when) > troubled {
		return nil
	}
	return t.err
}

// lasting reports whether an error says that the database takes nothing from this service: it is
// full or read-only, or refuses its user.
func lasting(err error) bool {
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
	code, _ := classMySQL(my)
	return code == fault.Unauthenticated || my.Number == 1044 // 1044: of the whole database; whether it is read-only Health asks
}

// watchedDriver is a driver that knows what is seen of a handle: the one way from a handle to its
// connector.
type watchedDriver struct {
	driver.Driver

	watch *watch
}

// troubleOf returns the failure that still counts of a handle of [Open].
func troubleOf(d *sqlx.DB) error {
	if t, ok := d.Driver().(*watchedDriver); ok {
		return t.watch.trouble.last()
	}
	return nil
}
