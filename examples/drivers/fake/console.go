package fake

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// consoleKey names a console of a server.
type consoleKey struct {
	id string
	t  compute.ConsoleType
}

// consolePort is a console of a running server: a TCP port on loopback. It sends the greeting of the console type to a client, and then echoes the
// client's data.
type consolePort struct {
	net.Listener

	mu    sync.Mutex
	conns map[net.Conn]bool // nil after close
	wg    sync.WaitGroup
}

// vncGreeting is the first message of a VNC server: the version of the protocol.
const vncGreeting = "RFB 003.008\n"

// Console implements compute.Driver. A serial console first sends the console log of the server, and a VNC console the greeting of the protocol; then both
// echo the client's data. The port is on 127.0.0.1, and is closed when the server stops.
func (d *Driver) Console(ctx context.Context, id string, t compute.ConsoleType) (compute.Console, error) {
	s, err := d.applyTo(ctx, "console", id, nil)
	switch {
	case err != nil:
		return compute.Console{}, err
	case t != compute.VNC && t != compute.Serial:
		return compute.Console{}, fault.New(fault.Invalid, "console type %q is not supported", t)
	case s.Power != compute.Running:
		return compute.Console{}, consoleError(id, s.Power)
	}
	greeting := []byte(vncGreeting)
	if t == compute.Serial {
		var log bytes.Buffer
		if err := d.ConsoleLog(ctx, id, 0, &log); err != nil {
			return compute.Console{}, err
		}
		greeting = bytes.ReplaceAll(log.Bytes(), []byte("\n"), []byte("\r\n")) // a terminal needs \r\n
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.servers[id]
	if d.closed || now == nil || now.Power != compute.Running { // the server was stopped after the check above
		return compute.Console{}, consoleError(id, compute.Shutdown)
	}
	port := d.consoles[consoleKey{id, t}]
	if port == nil {
		if port, err = listenConsole(ctx, greeting); err != nil {
			return compute.Console{}, err
		}
		d.consoles[consoleKey{id, t}] = port
	}
	at, ok := port.Addr().(*net.TCPAddr)
	if !ok {
		return compute.Console{}, errors.New("the console has no TCP port")
	}
	return compute.Console{Host: at.IP.String(), Port: at.Port}, nil
}

func consoleError(id string, p compute.PowerState) error {
	return fault.New(fault.Precondition, "console: server %s is %v", id, p)
}

// listenConsole opens the port of a console.
func listenConsole(ctx context.Context, greeting []byte) (*consolePort, error) {
	l, err := new(net.ListenConfig).Listen(context.WithoutCancel(ctx), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &consolePort{Listener: l, conns: map[net.Conn]bool{}}
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // the port is closed
			}
			if p.add(c) {
				p.wg.Go(func() { p.serve(c, greeting) })
			}
		}
	})
	return p, nil
}

// add registers a connection, and returns true. If the port is closed, add closes the connection and returns false.
func (p *consolePort) add(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		_ = c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

// serve sends the greeting and then echoes the client's data, until the connection or the port is closed.
func (p *consolePort) serve(c net.Conn, greeting []byte) {
	defer func() {
		_ = c.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, c)
	}()
	if err := c.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return
	}
	if _, err := c.Write(greeting); err != nil || c.SetWriteDeadline(time.Time{}) != nil {
		return
	}
	_, _ = io.Copy(c, c)
}

// close closes the port and its connections, and waits until their goroutines have ended.
func (p *consolePort) close() {
	p.mu.Lock()
	_ = p.Close()
	for c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
	p.mu.Unlock()
	p.wg.Wait()
}

// closeConsolesLocked closes the consoles of a server, or, if id is empty, of all servers. The caller holds d.mu.
func (d *Driver) closeConsolesLocked(id string) {
	for key, p := range d.consoles {
		if id == "" || key.id == id {
			p.close()
			delete(d.consoles, key)
		}
	}
}
