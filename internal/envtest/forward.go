package envtest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// DeadAddr returns an address of loopback on which no program listens.
func DeadAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // listening on loopback does not block
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return addr
}

// Forward listens on addr until the test ends, and forwards each connection to
// target. It does not block.
func Forward(t testing.TB, addr, target string) {
	t.Helper()
	l, err := net.Listen("tcp", addr) //nolint:noctx // listening on loopback does not block
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	ended := false
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		ended = true
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target) //nolint:noctx // dialing loopback does not block
			if err != nil {
				_ = in.Close()
				continue
			}
			mu.Lock()
			if open = append(open, in, out); ended { // it was accepted while Cleanup ran
				_, _ = in.Close(), out.Close()
			}
			mu.Unlock()
			for _, c := range [][2]net.Conn{{in, out}, {out, in}} {
				wg.Go(func() {
					_, _ = io.Copy(c[0], c[1])
					_ = c[0].Close()
				})
			}
		}
	})
}
