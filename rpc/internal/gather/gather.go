// Package gather has a connection that gathers writes: while one write is in progress, it collects the bytes of further writes, and
// then writes them together. The brokers' client libraries make a system call for every few messages, and each such call costs the
// broker a read and a wake-up.
package gather

import (
	"net"
	"runtime"
	"slices"
	"sync"
)

// maxGathered: the connection counts as full when this many bytes wait to be written.
const maxGathered = 1 << 20

// Conn is a connection whose writes are gathered. Write returns before the bytes are written, so a later Write or Read returns the
// error of a failed write. Conn is safe for concurrent use.
type Conn struct {
	net.Conn

	// Block makes Write wait while 1 MiB or more waits to be written. If Block is false, Write never blocks, and the writer must
	// call Full before it writes. Set Block before the first Write.
	Block bool

	mu      sync.Mutex
	notFull chan struct{} // closed when the bytes in the field next are being written, or on an error; nil if no writer waits
	next    []byte        // bytes that wait to be written
	spare   []byte        // the second buffer, for reuse, while no write is in progress
	writing bool          // flush or Batch writes
	batches int           // calls of Batch that have not returned
	err     error
}

// Write adds a copy of p to the bytes that wait to be written.
func (c *Conn) Write(p []byte) (int, error) {
	if c.Block {
		for full := c.Full(); full != nil; full = c.Full() {
			c.startFlush() // during a Batch, perhaps no other goroutine writes
			<-full
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	c.next = append(c.next, p...)
	if c.batches == 0 { // otherwise endBatch also writes these bytes
		c.startFlushLocked()
	}
	return len(p), nil
}

func (c *Conn) startFlush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.startFlushLocked()
}

// startFlushLocked starts flush, unless a write is in progress.
func (c *Conn) startFlushLocked() {
	if !c.writing {
		c.writing = true
		go c.flush() // ends when all is written, or the connection is closed
	}
}

// Batch calls f. Then it writes the waiting bytes in the caller's goroutine, as far as the connection accepts them without blocking.
// If there is only one writer, Batch is faster than Write, because no goroutine has to be started. If c is nil, Batch only calls f.
func (c *Conn) Batch(f func()) {
	if c == nil {
		f()
		return
	}
	c.mu.Lock()
	c.batches++
	c.mu.Unlock()
	defer c.endBatch()
	f()
}

func (c *Conn) endBatch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.batches--
	if c.writing || len(c.next) == 0 {
		return
	}
	out := c.takeLocked()
	c.mu.Unlock()
	n := tryWrite(c.Conn, out)
	c.mu.Lock()
	if n < len(out) && c.err == nil {
		c.next = slices.Concat(out[n:], c.next)
	}
	c.spare = out
	if c.writing = len(c.next) > 0; c.writing {
		go c.flush() // ends when all is written, or the connection is closed
	}
}

// takeLocked returns the bytes that wait to be written. The caller writes them, and then stores the buffer in spare.
func (c *Conn) takeLocked() []byte {
	out := c.next
	c.writing = true
	c.next, c.spare = c.spare[:0], nil
	c.notifyNotFullLocked()
	return out
}

// Full returns nil while less than 1 MiB waits to be written. Otherwise it returns a channel that is closed when Write may be called
// again.
func (c *Conn) Full() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.next) < maxGathered || c.err != nil {
		return nil
	}
	if c.notFull == nil {
		c.notFull = make(chan struct{})
	}
	return c.notFull
}

// flush writes until no bytes wait.
func (c *Conn) flush() {
	for {
		runtime.Gosched() // lets goroutines that are about to write join this write
		c.mu.Lock()
		if c.err != nil || len(c.next) == 0 {
			c.writing = false
			c.mu.Unlock()
			return
		}
		out := c.takeLocked()
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

// failLocked makes later writes fail with err, and drops the waiting bytes.
func (c *Conn) failLocked(err error) {
	c.err = err
	c.next = nil
	c.notifyNotFullLocked()
}

// notifyNotFullLocked notifies the writers that wait in Full.
func (c *Conn) notifyNotFullLocked() {
	if c.notFull != nil {
		close(c.notFull)
		c.notFull = nil
	}
}

// Close closes the connection. Waiting writers return an error, and waiting bytes are lost.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.failLocked(net.ErrClosed)
	}
	return err
}
