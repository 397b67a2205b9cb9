// Package gather has a connection that gathers what is written while a write is under way, and then writes it at once:
// the libraries of the brokers make a system call for every few messages, and the broker reads and wakes up for each.
package gather

import (
	"net"
	"runtime"
	"sync"
)

// maxGathered is how many bytes may wait to be written before writers have to wait.
const maxGathered = 1 << 20

// Conn is a connection whose writes are gathered. An error comes back from a later Write, or from Read.
type Conn struct {
	net.Conn

	// Block makes Write wait while more than 1 MiB waits to be written. Otherwise it never blocks, and the writer asks
	// Full before.
	Block bool

	mu      sync.Mutex
	room    chan struct{} // closed when next has been taken, or on an error; nil if no writer waits
	next    []byte        // what waits
	spare   []byte        // the other buffer, when no write is under way
	writing bool
	err     error
}

// Write gathers p.
func (c *Conn) Write(p []byte) (int, error) {
	if c.Block {
		for full := c.Full(); full != nil; full = c.Full() {
			<-full
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	c.next = append(c.next, p...)
	if !c.writing {
		c.writing = true
		go c.flush() // ends when nothing waits, or when the connection is closed
	}
	return len(p), nil
}

// Full returns nil, or a channel that is closed when there is room again.
func (c *Conn) Full() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.next) < maxGathered || c.err != nil {
		return nil
	}
	if c.room == nil {
		c.room = make(chan struct{})
	}
	return c.room
}

// flush writes what waits until nothing does.
func (c *Conn) flush() {
	for {
		runtime.Gosched() // goroutines that are about to write come along
		c.mu.Lock()
		if c.err != nil || len(c.next) == 0 {
			c.writing = false
			c.mu.Unlock()
			return
		}
		out := c.next
		c.next, c.spare = c.spare[:0], nil
		c.notifyRoomLocked()
		c.mu.Unlock()
		_, err := c.Conn.Write(out)
		c.mu.Lock()
		c.spare = out
		if err != nil {
			c.failLocked(err)
		}
		c.mu.Unlock()
	}
}

// failLocked ends the connection for writers.
func (c *Conn) failLocked(err error) {
	c.err = err
	c.next = nil
	c.notifyRoomLocked()
}

// notifyRoomLocked wakes the writers that wait for room.
func (c *Conn) notifyRoomLocked() {
	if c.room != nil {
		close(c.room)
		c.room = nil
	}
}

// Close also ends the writers that wait. What has not been written is lost.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.failLocked(net.ErrClosed)
	}
	return err
}
