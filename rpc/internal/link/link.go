// Package link keeps one connection to a broker open. It dials again after a loss, with back-off, and notifies the
// users of the connection of each change.
package link

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/armature-go/armature/internal/backoff"
)

// Bounds of the delay before a lost connection is dialed again, see [backoff.Redial].
const (
	minRedial = 20 * time.Millisecond
	maxRedial = time.Second
)

// Config says how connections of type C are opened and watched.
type Config[C any] struct {
	// Dial makes one attempt to connect. The attempt ends when ctx ends. Required.
	Dial func(ctx context.Context) (C, error)
	// Hold owns the connection until its end. It returns the reason when the connection is lost, and closes the
	// connection when ctx ends. Each connection is passed to Hold once. Required.
	Hold func(ctx context.Context, conn C) error
}

// Link is a connection that is replaced when it is lost. Its methods are safe for concurrent use.
type Link[C any] struct {
	cfg Config[C]

	mu       sync.Mutex
	conn     C                  // valid if epoch is not nil
	epoch    context.Context    //nolint:containedctx // ends when conn is lost; nil while there is no connection
	end      context.CancelFunc // ends epoch
	changed  chan struct{}      // closed, and replaced, at each change
	blocked  string             // why the broker accepts no messages; empty if it accepts them
	last     error              // why the last connection was lost, or the last dial failed
	dials    uint64             // how many connections were made
	restored time.Time          // when a connection last replaced another one
}

// New returns a link without a connection.
func New[C any](cfg Config[C]) *Link[C] {
	return &Link[C]{cfg: cfg, changed: make(chan struct{}), last: errors.New("no attempt to connect was made")}
}

// Run keeps the connection open until life ends. It begins with conn, unless conn is nil.
func (l *Link[C]) Run(life context.Context, conn *C) {
	if conn != nil {
		l.serve(life, *conn)
	}
	for lost := time.Now(); life.Err() == nil; {
		c, err := l.cfg.Dial(life)
		if err != nil {
			l.setDown(err)
			backoff.Sleep(life, backoff.Redial(lost, minRedial, maxRedial))
			continue
		}
		l.serve(life, c)
		lost = time.Now()
	}
}

// serve makes a connection the current one until it is lost or life ends.
func (l *Link[C]) serve(life context.Context, conn C) {
	epoch, end := context.WithCancel(context.WithoutCancel(life))
	defer end()
	l.mu.Lock()
	l.conn, l.epoch, l.end, l.blocked = conn, epoch, end, ""
	if l.dials++; l.dials > 1 {
		l.restored = time.Now()
	}
	l.notifyLocked()
	l.mu.Unlock()
	l.setDown(l.cfg.Hold(life, conn))
}

// setDown records the end of the connection, or a failed dial, and its reason.
func (l *Link[C]) setDown(reason error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var none C
	if l.end != nil {
		l.end()
	}
	l.conn, l.epoch, l.end, l.blocked = none, nil, nil, ""
	if reason != nil {
		l.last = reason
	}
	l.notifyLocked()
}

func (l *Link[C]) notifyLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Notify closes State.Changed, as a change of the connection does. The state itself does not change.
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

// State is the state of a link at one moment.
type State[C any] struct {
	Conn    C               // valid if Epoch is not nil
	Epoch   context.Context //nolint:containedctx // ends when Conn is lost; nil if there is no connection
	Changed <-chan struct{} // closed at the next change
	Blocked string          // why the broker accepts no messages; empty if it accepts them
	Err     error           // why the last connection was lost, or the last dial failed
}

// State returns the current state.
func (l *Link[C]) State() State[C] {
	l.mu.Lock()
	defer l.mu.Unlock()
	return State[C]{Conn: l.conn, Epoch: l.epoch, Changed: l.changed, Blocked: l.blocked, Err: l.last}
}

// Get waits for a connection whose broker accepts messages, and returns it. The context epoch ends when the connection
// is lost. If ctx ends first, Get returns the error of ctx.
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
	return time.Since(l.restored) < d
}

// Reconnects returns how often a connection replaced another one.
func (l *Link[C]) Reconnects() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(l.dials, 1) - 1
}
