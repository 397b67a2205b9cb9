package service

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/armature-go/armature/reqctx"
)

// Work is a piece of running work: a request, a call of another service, a long task.
type Work struct {
	// Kind is the kind of work, such as "request", "rpc" or "task".
	Kind string `json:"kind"`
	// Name is the action, such as "POST /v1/volumes" or "build".
	Name string `json:"name"`
	// Resource is the object of the action, such as the ID of a volume. It may be empty.
	Resource string `json:"resource,omitempty"`
	// RequestID is the request id of the context. [Inflight.Begin] sets it.
	RequestID string `json:"request_id,omitempty"`
	// Since is the time of the start. [Inflight.Begin] sets it.
	Since time.Time `json:"since"`
}

// Inflight is a list of running work. The zero value is an empty list. It is safe for concurrent use.
type Inflight struct {
	mu    sync.Mutex
	first *entry
}

// entry is an element of a doubly linked list, so that the cost of adding and of removing an entry does not
// depend on the length of the list.
type entry struct {
	Work

	next, prev *entry
}

// Begin adds w to the list. The caller must call the function end when the work has ended. A second
// call of end has no effect.
func (f *Inflight) Begin(ctx context.Context, w Work) (end func()) {
	w.RequestID, w.Since = reqctx.From(ctx).ID, time.Now()
	e := &entry{Work: w}
	f.mu.Lock()
	defer f.mu.Unlock()
	if e.next = f.first; e.next != nil {
		e.next.prev = e
	}
	f.first = e
	return func() { f.remove(e) }
}

// remove removes an entry, unless it is removed already.
func (f *Inflight) remove(e *entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case e.prev != nil:
		e.prev.next = e.next
	case f.first == e:
		f.first = e.next
	default:
		return // already removed
	}
	if e.next != nil {
		e.next.prev = e.prev
	}
	e.next, e.prev = nil, nil
}

// List returns a copy of the list, the oldest work first.
func (f *Inflight) List() []Work {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := []Work{}
	for e := f.first; e != nil; e = e.next {
		out = append(out, e.Work)
	}
	slices.SortStableFunc(out, func(a, b Work) int { return a.Since.Compare(b.Since) })
	return out
}
