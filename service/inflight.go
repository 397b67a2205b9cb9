package service

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/armature-go/armature/reqctx"
)

// Work is something that runs: a request, a call of another service, a long task.
type Work struct {
	// Kind is what sort of work it is, such as "request", "rpc" or "task".
	Kind string `json:"kind"`
	// Name is what is done, such as "POST /v1/volumes" or "build".
	Name string `json:"name"`
	// Resource is what it is done to, such as the ID of a volume; it may be empty.
	Resource string `json:"resource,omitempty"`
	// RequestID is the one of the context; Begin sets it.
	RequestID string `json:"request_id,omitempty"`
	// Since is when it began; Begin sets it.
	Since time.Time `json:"since"`
}

// Inflight is a list of what runs. The zero value is empty and ready. It is safe for
// concurrent use.
type Inflight struct {
	mu    sync.Mutex
	first *entry
}

// entry is one of a doubly linked list, so that beginning and ending cost the same
// however much runs.
type entry struct {
	Work

	next, prev *entry
}

// Begin notes that w begins. The caller must call end when it is over; a second call
// does nothing.
func (f *Inflight) Begin(ctx context.Context, w Work) (end func()) {
	w.RequestID, w.Since = reqctx.From(ctx).ID, time.Now()
	e := &entry{Work: w}
	f.mu.Lock()
	defer f.mu.Unlock()
	if e.next = f.first; e.next != nil {
		e.next.prev = e
	}
	f.first = e
	return func() { f.end(e) }
}

func (f *Inflight) end(e *entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case e.prev != nil:
		e.prev.next = e.next
	case f.first == e:
		f.first = e.next
	default:
		return // it has ended
	}
	if e.next != nil {
		e.next.prev = e.prev
	}
	e.next, e.prev = nil, nil
}

// List returns what runs, the longest first.
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
