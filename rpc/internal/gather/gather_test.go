package gather_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/rpc/internal/gather"
)

// connect returns both ends of a TCP connection.
func connect(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// TestOrder: several goroutines write, by Write and by Batch. Every message arrives complete, and the messages of each goroutine
// arrive in order.
func TestOrder(t *testing.T) {
	t.Parallel()
	near, far := connect(t)
	c := &gather.Conn{Conn: near, Block: true}
	const writers, each = 8, 2000
	var wg sync.WaitGroup
	for w := range uint32(writers) {
		wg.Go(func() {
			for i := range uint32(each) {
				p := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, w), i)
				write := func() {
					if _, err := c.Write(p); err != nil {
						t.Error(err)
					}
				}
				if i%2 == 0 {
					c.Batch(write)
				} else {
					write()
				}
			}
		})
	}
	next := make([]uint32, writers)
	p := make([]byte, 8)
	for range writers * each {
		if _, err := io.ReadFull(far, p); err != nil {
			t.Fatal(err)
		}
		w, i := binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:])
		if w >= writers || i != next[w] {
			t.Fatalf("message %d of writer %d, want the messages in order", i, w)
		}
		next[w]++
	}
	wg.Wait()
}

// TestBatchNeverBlocks: Batch does not block while the peer reads nothing. Full reports when 1 MiB waits to be written. When the
// peer reads again, all bytes arrive.
func TestBatchNeverBlocks(t *testing.T) {
	t.Parallel()
	near, far := connect(t)
	c := &gather.Conn{Conn: near}
	p := make([]byte, 64<<10)
	sent := 0
	var full <-chan struct{}
	for full = c.Full(); full == nil; full = c.Full() {
		for i := range p {
			p[i] = byte(sent + i)
		}
		start := time.Now()
		c.Batch(func() { _, _ = c.Write(p) })
		if d := time.Since(start); d > 5*time.Second {
			t.Fatalf("Batch took %v while the peer read nothing", d)
		}
		sent += len(p)
	}
	got := make([]byte, sent)
	if _, err := io.ReadFull(far, got); err != nil {
		t.Fatalf("after %d bytes: %v", sent, err)
	}
	for i, b := range got {
		if b != byte(i) {
			t.Fatalf("byte %d of %d is %d, want %d", i, sent, b, byte(i))
		}
	}
}

// TestBatchOfMuch: with Block, one Batch may write more than 1 MiB.
func TestBatchOfMuch(t *testing.T) {
	t.Parallel()
	near, far := connect(t)
	c := &gather.Conn{Conn: near, Block: true}
	const writes, size = 40, 64 << 10
	go c.Batch(func() {
		for i := range writes {
			_, _ = c.Write(bytes.Repeat([]byte{byte(i)}, size)) // an error shows below, because too few bytes arrive
		}
	})
	_ = far.SetReadDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, writes*size)
	if n, err := io.ReadFull(far, got); err != nil {
		t.Fatalf("%d of %d bytes arrived: %v", n, len(got), err)
	}
	for i, b := range got {
		if b != byte(i/size) {
			t.Fatalf("byte %d is %d, want %d", i, b, i/size)
		}
	}
}

// TestBatchOfNil: Batch of a nil Conn only calls its function. The Conn of a connection whose writes are not gathered is nil.
func TestBatchOfNil(t *testing.T) {
	t.Parallel()
	called := false
	(*gather.Conn)(nil).Batch(func() { called = true })
	if !called {
		t.Error("the function was not called")
	}
}
