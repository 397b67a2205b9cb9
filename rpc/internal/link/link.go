// Package link keeps one connection to a broker up: it dials again after a loss, with a back-off, and tells the users of
// the connection about each change.
package link

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/armature-go/armature/rpc/internal/backoff"
)

// The delay before a lost connection is dialed again is an eighth of the time since the loss, between these, with jitter.
const (
	minRedial = 20 * time.Millisecond
	maxRedial = time.Second
)

// Config says how connections of type C are made and kept.
type Config[C any] struct {
	// Dial makes one attempt to connect. It ends with ctx.
	Dial func(ctx context.Context) (C, error)
	// Hold returns when the connection is lost, with the reason, or closes the connection when ctx ends. It is
	// called once for each connection, which it owns.
	Hold func(ctx context.Context, conn C) error
}

// Link is a connection that is replaced when it is lost. It is safe for concurrent use.
type Link[C any] struct {
	cfg Config[C]

	mu      sync.Mutex
	conn    C                  // if epoch is not nil
	epoch   context.Context    //nolint:containedctx // the life of conn; nil while there is no connection
	end     context.CancelFunc // ends epoch
	changed chan struct{}      // closed, and replaced, at each change
	blocked string             // why the broker takes nothing; empty if it does
	last    error              // why there is no connection
	dials   uint64             // how many connections were made
	back    time.Time          // when a connection replaced another one
}

// New returns a link without a connection.
func New[C any](cfg Config[C]) *Link[C] {
	return &Link[C]{cfg: cfg, changed: make(chan struct{}), last: errors.New("no attempt was made")}
}

// Run keeps the connection up until life ends. It begins with conn, unless that is nil.
func (l *Link[C]) Run(life context.Context, conn *C) {
	if conn != nil {
		l.hold(life, *conn)
	}
	for lost := time.Now(); life.Err() == nil; {
		c, err := l.cfg.Dial(life)
		if err != nil {
			l.down(err)
			backoff.Sleep(life, backoff.Redial(lost, minRedial, maxRedial))
			continue
		}
		l.hold(life, c)
		lost = time.Now()
	}
}

// hold serves a connection until it is lost or life ends.
func (l *Link[C]) hold(life context.Context, conn C) {
	epoch, end := context.WithCancel(context.WithoutCancel(life))
	defer end()
	l.mu.Lock()
	l.conn, l.epoch, l.end, l.blocked = conn, epoch, end, ""
	if l.dials++; l.dials > 1 {
		l.back = time.Now()
	}
	l.notifyLocked()
	l.mu.Unlock()
	l.down(l.cfg.Hold(life, conn))
}

// down notes that the connection is gone.
func (l *Link[C]) down(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var none C
	if l.end != nil {
		l.end()
	}
	l.conn, l.epoch, l.end, l.blocked = none, nil, nil, ""
	if why != nil {
		l.last = why
	}
	l.notifyLocked()
}

func (l *Link[C]) notifyLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Notify tells those that wait for a change that something has changed.
func (l *Link[C]) Notify() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notifyLocked()
}

// Block records why the broker accepts no messages. An empty reason means that it accepts them.
func (l *Link[C]) Block(reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.blocked = reason
	l.notifyLocked()
}

// State is a link at one moment.
type State[C any] struct {
	Conn    C               // if Epoch is not nil
	Epoch   context.Context //nolint:containedctx // ends when Conn is lost; nil if there is no connection
	Changed <-chan struct{} // closed at the next change
	Blocked string          // why the broker takes nothing; empty if it does
	Err     error           // why there is no connection
}

// State returns the present state.
func (l *Link[C]) State() State[C] {
	l.mu.Lock()
	defer l.mu.Unlock()
	return State[C]{Conn: l.conn, Epoch: l.epoch, Changed: l.changed, Blocked: l.blocked, Err: l.last}
}

// Get waits until there is a connection whose broker takes messages, or ctx ends. The context that it returns ends when
// the connection is lost.
func (l *Link[C]) Get(ctx context.Context) (conn C, epoch context.Context, err error) {
	for {
		s := l.State()
		if s.Epoch != nil && s.Blocked == "" {
			return s.Conn, s.Epoch, nil
		}
		select {
		case <-s.Changed:
		case <-ctx.Done():
			return conn, nil, ctx.Err()
		}
	}
}

// Restored reports whether a connection replaced another one less than d ago.
func (l *Link[C]) Restored(d time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.back) < d
}

// Reconnects returns how often a connection replaced another one.
func (l *Link[C]) Reconnects() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(l.dials, 1) - 1
}
