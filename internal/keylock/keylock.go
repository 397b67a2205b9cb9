// Package keylock has a lock for each key, such as the id of an object. With it, only one goroutine at a time works on
// one key, and work on different keys runs in parallel.
package keylock

import (
	"context"
	"sync"
)

// Locks are the locks of all keys. The zero value is ready to use. A key that is neither locked nor waited for
// takes no memory. Locks are safe for concurrent use and must not be copied.
type Locks struct {
	mu      sync.Mutex
	entries map[string]*entry
}

// entry is the lock of one key.
type entry struct {
	token chan struct{} // holds a token while the lock is free
	users int           // goroutines that hold the lock or wait for it
}

// Lock blocks until it has the lock of key, or until ctx ends, and then returns the context's error. Waiting
// goroutines get the lock in the order of their calls.
func (l *Locks) Lock(ctx context.Context, key string) error {
	l.mu.Lock()
	e := l.entries[key]
	if e == nil {
		e = l.addEntryLocked(key)
	}
	e.users++
	l.mu.Unlock()
	select {
	case <-e.token:
		return nil
	case <-ctx.Done():
		l.release(key, e)
		return ctx.Err()
	}
}

// Unlock releases the lock of key. It panics if the lock is not held. A goroutine may call Unlock for a lock that
// another goroutine has acquired.
func (l *Locks) Unlock(key string) {
	l.mu.Lock()
	e := l.entries[key]
	l.mu.Unlock()
	if e == nil || len(e.token) > 0 {
		panic("keylock: unlock of a key that is not locked: " + key)
	}
	e.token <- struct{}{}
	l.release(key, e)
}

// addEntryLocked adds the entry of a key. Its lock is free.
func (l *Locks) addEntryLocked(key string) *entry {
	e := &entry{token: make(chan struct{}, 1)}
	e.token <- struct{}{}
	if l.entries == nil {
		l.entries = make(map[string]*entry)
	}
	l.entries[key] = e
	return e
}

// release ends the use of an entry by one goroutine.
func (l *Locks) release(key string, e *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.users--; e.users == 0 {
		delete(l.entries, key)
	}
}
