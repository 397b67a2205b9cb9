// Package engine has the types that package db and the packages of the databases share. Package db imports no driver, so that a
// program links only the databases that it imports.
package engine

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/armature-go/armature/fault"
)

// DialTimeout is the maximum for one attempt to connect.
const DialTimeout = 5 * time.Second

// BusyTimeout is how long a writer of SQLite waits for another writer.
const BusyTimeout = 10 * time.Second

// The reasons of errors that db.Error makes. They distinguish errors with the same code.
const (
	ReasonDuplicate  = "DuplicateKey"
	ReasonForeignKey = "ForeignKey"
	ReasonContention = "Contention"
	ReasonReadOnly   = "ReadOnly"
)

// The names of the drivers in sqlx. sqlx derives the form of parameters from the name.
const (
	MySQL  = "mysql"
	SQLite = "sqlite3"
)

// WantURL is the last part of the texts of errors about a URL.
const WantURL = `want mysql://user:password@host:port/database or sqlite:///absolute/file.db or sqlite://relative/file.db`

// SilentText returns the text of the error for a database that has not answered for the time waited.
func SilentText(addr string, waited time.Duration) string {
	return fmt.Sprintf("the database at %s accepts connections but does not answer (it hangs, or a proxy has no server): no answer within %v", addr, waited.Round(time.Millisecond))
}

// Engine is a kind of database.
type Engine struct {
	// Scheme is the scheme of the engine's URLs.
	Scheme string
	// Driver is the name of the engine's driver in sqlx.
	Driver string
	// Parse parses a URL that has Scheme, or Scheme and a dialect as in SQLAlchemy, mysql+pymysql. Its error is Invalid, and does not
	// contain the URL, because in a wrong URL the password may be anywhere.
	Parse func(url string) (Target, error)
	// Explain returns the meaning of an error of the engine's driver. For every other error the result is zero.
	Explain func(err error) Meaning
}

// Target is a database that a URL names.
type Target struct {
	// Connector returns a connector whose connections report their statements to an observer. Its Driver is a [Driver]. It is called once.
	Connector func(*Observer) driver.Connector
	// Shown is the URL without the password, for messages.
	Shown string
	// Addr is host:port of the server. It is empty if the database is in this process.
	Addr string
	// Memory means that the data ends with the connection.
	Memory bool
	// Plain is the host, if the host is another machine and the connections have no TLS. Otherwise it is empty.
	Plain string
}

// Meaning says what an error of a driver means.
type Meaning struct {
	// Answered means that the error is the database's answer, so that the connection works.
	Answered bool
	// Code, Reason and Key are for db.Error. Key is the name of a duplicate key.
	Code        fault.Code
	Reason, Key string
	// Transient means that the database is down, starts or is busy, so that another attempt to connect may succeed.
	Transient bool
	// Lasting means that the next statements also fail.
	Lasting bool
	// Missing means that a table, a view or a column does not exist.
	Missing bool
	// Done means that a statement has already changed the schema.
	Done bool
	// Lost means that the connection was lost, and that the statement may have been executed.
	Lost bool
	// Silent means that an attempt to connect had no answer, or, beside Lost, that the database does not answer, not even on another
	// connection. For an attempt to connect, and for a statement that only reads, Code is Unavailable.
	Silent bool
	// NoTLS means that the URL requires TLS, and that the server has none.
	NoTLS bool
	// NoDatabase means that the server does not have the database in the URL.
	NoDatabase bool
}

// WriteLocker is a connection of a database without named locks: a transaction that writes is the lock.
type WriteLocker interface {
	// LockWrite begins a transaction. While the transaction runs, no other writer can begin one. LockWrite waits at most
	// [BusyTimeout] for another writer.
	LockWrite(ctx context.Context) (WriteTx, error)
}

// WriteTx is a transaction that is a lock.
type WriteTx interface {
	driver.Tx
	// Unlock releases the lock if the connection was lost, so that neither Commit nor Rollback was called.
	Unlock()
}

// engines are the engines that the program links. Only the init functions of their packages add to it.
var engines []*Engine

// Register adds an engine. The package of an engine calls it in its init function, as drivers of database/sql do.
func Register(e *Engine) { engines = append(engines, e) }

// Find returns the engine of a scheme, or nil if the program does not link it.
func Find(scheme string) *Engine {
	for _, e := range engines {
		if e.Scheme == scheme {
			return e
		}
	}
	return nil
}

// Explain returns the meaning of a driver's error. For every other error the result is zero.
func Explain(err error) Meaning {
	if err != nil {
		for _, e := range engines {
			if m := e.Explain(err); m != (Meaning{}) {
				return m
			}
		}
	}
	return Meaning{}
}

// Driver is a driver that also has the observer of a handle. [ObserverOf] needs it: database/sql gives no other way from
// a handle to its connector.
type Driver struct {
	driver.Driver

	observer *Observer
}

// NewDriver returns a driver with an observer.
func NewDriver(d driver.Driver, o *Observer) *Driver { return &Driver{d, o} }

// ObserverOf returns the observer of a handle's driver, or nil if package db has not opened the handle.
func ObserverOf(d driver.Driver) *Observer {
	if own, ok := d.(*Driver); ok {
		return own.observer
	}
	return nil
}
