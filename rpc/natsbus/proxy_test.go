package natsbus_test

import (
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/waittest"
)

// proxy forwards connections to NATS. It can cut or stall them.
type proxy struct {
	url  string
	mu   sync.Mutex
	open []net.Conn
	gate chan struct{} // closed while data may pass
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal("the URL of the server cannot be read")
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := u.Host
	u.Host = l.Addr().String()
	p := &proxy{url: u.String(), gate: make(chan struct{})}
	close(p.gate)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := new(net.Dialer).DialContext(t.Context(), "tcp", host)
			if err != nil {
				_ = c.Close()
				continue
			}
			p.mu.Lock()
			p.open = append(p.open, c, s)
			p.mu.Unlock()
			wg.Go(func() { p.pipe(c, s) })
			wg.Go(func() { p.pipe(s, c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.cut()
		wg.Wait()
	})
	return p
}

func (p *proxy) pipe(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		gate := p.gate
		p.mu.Unlock()
		<-gate
		if _, werr := to.Write(buf[:n]); werr != nil || err != nil {
			return
		}
	}
}

// cut closes all connections, and ends a stall. New connections work.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.open {
		_ = c.Close()
	}
	p.open = nil
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
}

// outage closes all connections, and stops the data of new connections for d.
func (p *proxy) outage(d time.Duration) {
	p.mu.Lock()
	p.gate = make(chan struct{})
	for _, c := range p.open {
		_ = c.Close()
	}
	p.open = nil
	p.mu.Unlock()
	waittest.Spend(d, "the outage")
	p.resume()
}

// stall stops the data of all connections, also of new ones, until cut or resume is called.
func (p *proxy) stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate = make(chan struct{})
}

// resume ends a stall.
func (p *proxy) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
}
