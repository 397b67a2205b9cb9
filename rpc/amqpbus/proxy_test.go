package amqpbus_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/waittest"
)

// proxy forwards connections to a broker. It can cut, stall or slow them.
type proxy struct {
	l    net.Listener
	to   string
	wg   sync.WaitGroup
	mu   sync.Mutex
	open map[net.Conn]bool
	gate chan struct{} // closed while data may pass
	slow time.Duration // the delay of each piece of data
	look func([]byte)  // is called with the data from clients before the data passes; may be nil
}

func newProxy(t testing.TB, to string) *proxy {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return proxyOn(t, l, to)
}

func proxyOn(t testing.TB, l net.Listener, to string) *proxy {
	t.Helper()
	p := &proxy{l: l, to: to, open: make(map[net.Conn]bool), gate: make(chan struct{})}
	close(p.gate)
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.resume()
		p.cut()
		p.wg.Wait()
	})
	return p
}

// proxyTo returns a proxy for the broker of an AMQP URL, and the URL of the proxy.
func proxyTo(t testing.TB, raw string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, u.Host)
	u.Host = p.l.Addr().String()
	return p, u.String()
}

func (p *proxy) accept() {
	for {
		a, err := p.l.Accept()
		if err != nil {
			return
		}
		b, err := new(net.Dialer).DialContext(context.Background(), "tcp", p.to)
		if err != nil {
			a.Close()
			continue
		}
		p.mu.Lock()
		p.open[a], p.open[b] = true, true
		p.mu.Unlock()
		for i, pair := range [][2]net.Conn{{a, b}, {b, a}} {
			p.wg.Go(func() {
				p.copy(pair[0], pair[1], i == 1)
				pair[0].Close()
				pair[1].Close()
			})
		}
	}
}

// copy forwards one direction of a connection. It returns when either side is closed. The parameter client reports whether the
// data comes from the client.
func (p *proxy) copy(to io.Writer, from io.Reader, client bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		gate, slow, look := p.gate, p.slow, p.look
		p.mu.Unlock()
		if client && look != nil {
			look(buf[:n])
		}
		<-gate
		if slow > 0 {
			waittest.Spend(slow, "the delay of the network")
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// cut resets all connections, as a firewall does after it has lost their state. It returns the number of connections.
func (p *proxy) cut() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.open)
	for c := range p.open {
		if s, ok := c.(*tls.Conn); ok {
			c = s.NetConn()
		}
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		c.Close()
	}
	clear(p.open)
	return n
}

// stall stops all data until resume is called.
func (p *proxy) stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate = make(chan struct{})
}

func (p *proxy) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
}

// delay delays each piece of data by d.
func (p *proxy) delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow = d
}
