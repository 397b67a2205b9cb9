package rpc

import (
	"container/list"
	"sync"
	"time"
)

// How many messages a server remembers, and for how long.
const (
	rememberSize = 10_000
	rememberTime = time.Hour
)

// recent is a map that forgets old values. It keeps the newest values, whose number is limited by
// the field size, each for at most the duration ttl. It is safe for concurrent use.
type recent[V any] struct {
	size int
	ttl  time.Duration

	mu    sync.Mutex
	byKey map[string]*list.Element
	all   list.List // the elements are entry[V], the oldest first
}

type entry[V any] struct {
	key   string
	value V
	when  time.Time
}

func newRecent[V any](size int, ttl time.Duration) *recent[V] {
	return &recent[V]{size: size, ttl: ttl, byKey: make(map[string]*list.Element)}
}

func (r *recent[V]) get(key string) (value V, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expireLocked()
	e, ok := r.byKey[key]
	if !ok {
		return value, false
	}
	return e.Value.(entry[V]).value, true //nolint:forcetypeassert // the list has nothing else
}

func (r *recent[V]) put(key string, value V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.byKey[key]; ok {
		r.all.Remove(e)
	}
	r.byKey[key] = r.all.PushBack(entry[V]{key, value, time.Now()})
	r.expireLocked()
}

func (r *recent[V]) expireLocked() {
	oldest := time.Now().Add(-r.ttl)
	for e := r.all.Front(); e != nil; e = r.all.Front() {
		n := e.Value.(entry[V]) //nolint:forcetypeassert // the list has nothing else
		if r.all.Len() <= r.size && n.when.After(oldest) {
			return
		}
		r.all.Remove(e)
		delete(r.byKey, n.key)
	}
}
