// Package life has the life cycle of a bus over a broker: the bus is started once, perhaps after failed attempts, and
// closed once.
package life

import (
	"context"
	"sync"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
)

// Life is the life of a bus. It is safe for concurrent use.
type Life struct {
	context.Context //nolint:containedctx // ends when the bus is closed

	end context.CancelFunc
	wg  sync.WaitGroup

	mu    sync.Mutex // guards state; also held while a goroutine is added to wg
	state state
}

type state uint8

const (
	idle state = iota
	starting
	started
)

// New returns the life of a bus that is not started.
func New() *Life {
	l := &Life{}
	l.Context, l.end = context.WithCancel(context.Background())
	return l
}

// Start calls connect and returns its error. The context of connect ends with ctx, after timeout, or when the bus is
// closed. After an error of connect, Start may be called again. Other errors: Precondition if the bus is started or
// starting; bus.ErrClosed.
func (l *Life) Start(ctx context.Context, timeout time.Duration, connect func(context.Context) error) error {
	l.mu.Lock()
	closed, was := l.Err() != nil, l.state
	if !closed && was == idle {
		l.state = starting
		l.wg.Add(1) // Close waits for the end of Start
		defer l.wg.Done()
	}
	l.mu.Unlock()
	switch {
	case closed:
		return bus.ErrClosed
	case was != idle:
		return fault.New(fault.Precondition, "the bus is started already, or starting")
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer context.AfterFunc(l, cancel)() //nolint:contextcheck // the bus's own life
	err := connect(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = idle
	switch {
	case l.Err() != nil:
		return bus.ErrClosed
	case err == nil:
		l.state = started
	}
	return err
}

// Usable returns nil if the bus is started and not closed. Otherwise it returns bus.ErrClosed or bus.ErrNotStarted.
func (l *Life) Usable() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.Err() != nil:
		return bus.ErrClosed
	case l.state != started:
		return bus.ErrNotStarted
	}
	return nil
}

// Go runs f in a goroutine that End waits for. It returns false, and does not run f, if the bus is closed.
func (l *Life) Go(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Err() != nil {
		return false
	}
	l.wg.Go(f)
	return true
}

// End ends the context, and waits for Start and for the goroutines of Go. It is idempotent.
func (l *Life) End() {
	l.mu.Lock()
	l.end()
	l.mu.Unlock()
	l.wg.Wait()
}
