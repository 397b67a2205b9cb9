package componenttest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// proxy forwards connections to the API, whose process may be killed and started again on another port.
type proxy struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu    sync.Mutex
	to    string // empty: no process listens, and connections are closed
	conns map[net.Conn]struct{}
}

func newProxy(t testing.TB) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // on loopback, at once
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, conns: map[net.Conn]struct{}{}}
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.forward(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.connect("")
		p.wg.Wait()
	})
	return p
}

// connect closes all connections. Later connections go to the address in the parameter to, or are
// closed if the parameter is empty.
func (p *proxy) connect(to string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to = to
	for c := range p.conns {
		_ = c.Close()
	}
	clear(p.conns)
}

// target returns the address to which connections go.
func (p *proxy) target() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.to
}

// add records a connection. It returns false if connections no longer go to the address in the
// parameter to.
func (p *proxy) add(to string, c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.to != to || to == "" {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *proxy) forward(in net.Conn) {
	defer func() { _ = in.Close() }()
	to := p.target()
	if !p.add(to, in) {
		return
	}
	out, err := net.Dial("tcp", to) //nolint:noctx // on loopback, at once
	if err != nil {
		return
	}
	defer func() { _ = out.Close() }()
	if !p.add(to, out) {
		return
	}
	var wg sync.WaitGroup
	for _, d := range [][2]net.Conn{{in, out}, {out, in}} {
		wg.Go(func() {
			_, _ = io.Copy(d[1], d[0])
			_ = d[1].Close() // so that the other copy ends
		})
	}
	wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, in)
	delete(p.conns, out)
}
