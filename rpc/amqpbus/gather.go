package amqpbus

import (
	"net"
	"runtime"
	"sync"
)

// maxGathered is how much may wait to be written before publishers have to wait.
const maxGathered = 1 << 20

// gathering is a connection that gathers what is written while a write is under
// way, and then writes it at once: amqp091 makes a system call for every frame
// that it sends, and the broker reads and wakes up for every one. An error comes
// back from a later Write, or from Read.
type gathering struct {
	net.Conn

	mu      sync.Mutex
	room    chan struct{} // closed when next has been taken, or on an error; nil if no publisher waits
	next    []byte        // what waits
	spare   []byte        // the other buffer, when no write is under way
	writing bool
	err     error
}

// Write gathers p. It never blocks: publishers ask full before.
func (g *gathering) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		return 0, g.err
	}
	g.next = append(g.next, p...)
	if !g.writing {
		g.writing = true
		go g.flush() // ends when nothing waits, or when the connection is closed
	}
	return len(p), nil
}

// full returns nil, or a channel that is closed when there is room again.
func (g *gathering) full() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.next) < maxGathered || g.err != nil {
		return nil
	}
	if g.room == nil {
		g.room = make(chan struct{})
	}
	return g.room
}

// flush writes what waits until nothing does.
func (g *gathering) flush() {
	for {
		runtime.Gosched() // goroutines that are about to write come along
		g.mu.Lock()
		if g.err != nil || len(g.next) == 0 {
			g.writing = false
			g.mu.Unlock()
			return
		}
		out := g.next
		g.next, g.spare = g.spare[:0], nil
		g.notifyRoomLocked()
		g.mu.Unlock()
		_, err := g.Conn.Write(out)
		g.mu.Lock()
		g.spare = out
		if err != nil {
			g.failLocked(err)
		}
		g.mu.Unlock()
	}
}

// failLocked ends the connection for writers.
func (g *gathering) failLocked(err error) {
	g.err = err
	g.next = nil
	g.notifyRoomLocked()
}

// notifyRoomLocked wakes the publishers that wait for room.
func (g *gathering) notifyRoomLocked() {
	if g.room != nil {
		close(g.room)
		g.room = nil
	}
}

// Close also ends the writers that wait.
func (g *gathering) Close() error {
	err := g.Conn.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.failLocked(net.ErrClosed)
	}
	return err
}
