//go:build libvirt_dlopen

package libvirt

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	lv "libvirt.org/go/libvirt"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// The process has one loop of libvirt's events, which must be there before the
// first connection, and ends with it.
var startLoop = sync.OnceValue(func() error {
	if err := lv.EventRegisterDefaultImpl(); err != nil {
		return err
	}
	go func() {
		for lv.EventRunDefaultImpl() == nil { //nolint:revive // it blocks until there is something
		}
	}()
	return nil
})

// connection is the connection to libvirtd, which is made again when it is lost.
type connection struct {
	uri string

	mu   sync.Mutex
	conn *lv.Connect
	lost chan struct{} // closed when conn is

	hearing   sync.Mutex
	listeners map[*listener]bool
}

// listener is a stream of events.
type listener struct {
	got  chan compute.Event
	late chan struct{} // gets something when got is full
}

// listen tells a listener of all events from now on, until it is dropped.
func (c *connection) listen() *listener {
	c.hearing.Lock()
	defer c.hearing.Unlock()
	l := &listener{make(chan compute.Event, backlog), make(chan struct{}, 1)}
	if c.listeners == nil {
		c.listeners = make(map[*listener]bool)
	}
	c.listeners[l] = true
	return l
}

func (c *connection) drop(l *listener) {
	c.hearing.Lock()
	defer c.hearing.Unlock()
	delete(c.listeners, l)
}

// hear is libvirt's callback, which must not wait. There is one for each connection:
// libvirt takes a callback for a while after its end for one that is there.
func (c *connection) hear(_ *lv.Connect, dom *lv.Domain, e *lv.DomainEventLifecycle) {
	t := eventType(e)
	name, err := dom.GetName()
	id, ours := strings.CutPrefix(name, domainPrefix)
	if t == "" || err != nil || !ours {
		return
	}
	c.hearing.Lock()
	defer c.hearing.Unlock()
	for l := range c.listeners {
		select {
		case l.got <- compute.Event{ServerID: id, Type: t, Time: time.Now().UTC()}:
		default:
			select {
			case l.late <- struct{}{}:
			default:
			}
		}
	}
}

// get returns the connection, and a channel that is closed when it is lost.
func (c *connection) get() (*lv.Connect, <-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		select {
		case <-c.lost:
			_, _ = c.conn.Close() // what is left of it
			c.conn = nil
		default:
			return c.conn, c.lost, nil
		}
	}
	if err := startLoop(); err != nil {
		return nil, nil, missing(err)
	}
	conn, err := lv.NewConnect(c.uri)
	if err != nil {
		return nil, nil, fault.New(fault.Unavailable, "connect to libvirt at %s: %w", c.uri, missing(err))
	}
	lost := make(chan struct{})
	var once sync.Once
	if err := conn.RegisterCloseCallback(func(*lv.Connect, lv.ConnectCloseReason) { once.Do(func() { close(lost) }) }); err != nil && !is(err, lv.ERR_NO_SUPPORT) {
		_, _ = conn.Close()
		return nil, nil, err
	}
	if err := conn.SetKeepAlive(5, 3); err != nil && !is(err, lv.ERR_NO_SUPPORT) {
		_, _ = conn.Close()
		return nil, nil, err
	}
	if _, err := conn.DomainEventLifecycleRegister(nil, c.hear); err != nil {
		_, _ = conn.Close()
		return nil, nil, err
	}
	c.conn, c.lost = conn, lost
	return conn, lost, nil
}

func (c *connection) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return nil
	}
	_ = c.conn.UnregisterCloseCallback() // there may be none
	_, err := c.conn.Close()
	c.conn = nil
	return err
}

// missing says which package is missing, if one is.
func missing(err error) error {
	for says, pkg := range map[string]string{
		"dlopen": "libvirt0", "libvirt.so": "libvirt0",
		"No such file or directory": "libvirt-daemon and libvirt-daemon-driver-qemu, and see that libvirtd runs",
		"Connection refused":        "libvirt-daemon, and see that libvirtd runs",
		"no connection driver":      "libvirt-daemon-driver-qemu",
	} {
		if strings.Contains(err.Error(), says) {
			return fmt.Errorf("%w: install %s", err, pkg)
		}
	}
	return err
}

func is(err error, n lv.ErrorNumber) bool {
	var e lv.Error
	return errors.As(err, &e) && e.Code == n
}

// classed gives an error of libvirt's a fault code.
func classed(what, id string, err error) error {
	if err == nil {
		return nil
	}
	var e lv.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("%s %s: %w", what, id, err)
	}
	code := fault.Internal
	switch {
	case e.Code == lv.ERR_NO_DOMAIN:
		code = fault.NotFound
	case e.Code == lv.ERR_OPERATION_INVALID, e.Code == lv.ERR_RESOURCE_BUSY:
		code = fault.Precondition
	case e.Code == lv.ERR_NO_MEMORY, strings.Contains(e.Message, "Cannot allocate memory"), strings.Contains(e.Message, "No space left"):
		code = fault.Exhausted
	case e.Code == lv.ERR_OPERATION_TIMEOUT:
		code = fault.Timeout
	case e.Code == lv.ERR_NO_SUPPORT:
		code = fault.Unimplemented
	case e.Domain == lv.FROM_RPC, e.Code == lv.ERR_NO_CONNECT, e.Code == lv.ERR_INVALID_CONN:
		code = fault.Unknown // libvirtd was lost, and may have done it
	}
	return fault.New(code, "%s %s: libvirt: %s", what, id, e.Message)
}

// await runs f, which nothing can interrupt, in its own time, and returns when it has
// ended or the context has. done is called when f has ended.
func await(ctx context.Context, f func() error, done func()) error {
	ended := make(chan error, 1)
	go func() {
		defer done()
		ended <- f()
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
