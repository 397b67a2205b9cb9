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

// startLoop starts libvirt's event loop, one for the process. The loop must run before the first connection is opened, and
// runs until the process ends.
var startLoop = sync.OnceValue(func() error {
	if err := lv.EventRegisterDefaultImpl(); err != nil {
		return err
	}
	go func() {
		for lv.EventRunDefaultImpl() == nil { //nolint:revive // each call blocks until an event comes
		}
	}()
	return nil
})

// connection is the connection to libvirtd. It is opened again after it was lost.
type connection struct {
	uri string

	mu   sync.Mutex
	conn *lv.Connect
	lost chan struct{} // closed when conn is closed

	listenersMu sync.Mutex
	listeners   map[*listener]bool
}

// listener is a stream of events.
type listener struct {
	got  chan compute.Event
	late chan struct{} // receives a value when got is full
}

// addListener adds a listener, which receives all events until it is dropped.
func (c *connection) addListener() *listener {
	c.listenersMu.Lock()
	defer c.listenersMu.Unlock()
	l := &listener{make(chan compute.Event, backlog), make(chan struct{}, 1)}
	if c.listeners == nil {
		c.listeners = make(map[*listener]bool)
	}
	c.listeners[l] = true
	return l
}

func (c *connection) removeListener(l *listener) {
	c.listenersMu.Lock()
	defer c.listenersMu.Unlock()
	delete(c.listeners, l)
}

// receiveEvent is the callback for libvirt's events. It must not block. Each connection registers it only once, because libvirt
// treats a removed callback as still registered for a while.
func (c *connection) receiveEvent(_ *lv.Connect, dom *lv.Domain, e *lv.DomainEventLifecycle) {
	t := eventType(e)
	name, err := dom.GetName()
	id, ours := strings.CutPrefix(name, domainPrefix)
	if t == "" || err != nil || !ours {
		return
	}
	c.listenersMu.Lock()
	defer c.listenersMu.Unlock()
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

// get returns the connection, and a channel that is closed when the connection is lost. If the connection was lost, get opens it
// again. Errors: Unavailable if libvirtd cannot be reached.
func (c *connection) get() (*lv.Connect, <-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		select {
		case <-c.lost:
			_, _ = c.conn.Close() // frees the lost connection
			c.conn = nil
		default:
			return c.conn, c.lost, nil
		}
	}
	if err := startLoop(); err != nil {
		return nil, nil, addMissingPackage(err)
	}
	conn, err := lv.NewConnect(c.uri)
	if err != nil {
		return nil, nil, fault.New(fault.Unavailable, "connect to libvirt at %s: %w", c.uri, addMissingPackage(err))
	}
	lost := make(chan struct{})
	var once sync.Once
	if err := conn.RegisterCloseCallback(func(*lv.Connect, lv.ConnectCloseReason) { once.Do(func() { close(lost) }) }); err != nil && !hasErrorNumber(err, lv.ERR_NO_SUPPORT) {
		_, _ = conn.Close()
		return nil, nil, err
	}
	if err := conn.SetKeepAlive(5, 3); err != nil && !hasErrorNumber(err, lv.ERR_NO_SUPPORT) {
		_, _ = conn.Close()
		return nil, nil, err
	}
	if _, err := conn.DomainEventLifecycleRegister(nil, c.receiveEvent); err != nil {
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
	_ = c.conn.UnregisterCloseCallback() // fails if no callback was registered
	_, err := c.conn.Close()
	c.conn = nil
	return err
}

// addMissingPackage adds to an error which Debian package is missing, if the error says so.
func addMissingPackage(err error) error {
	for says, pkg := range map[string]string{
		"dlopen": "libvirt0", "libvirt.so": "libvirt0",
		"No such file or directory": "libvirt-daemon and libvirt-daemon-driver-qemu, and start libvirtd",
		"Connection refused":        "libvirt-daemon, and start libvirtd",
		"no connection driver":      "libvirt-daemon-driver-qemu",
	} {
		if strings.Contains(err.Error(), says) {
			return fmt.Errorf("%w: install %s", err, pkg)
		}
	}
	return err
}

func hasErrorNumber(err error, n lv.ErrorNumber) bool {
	var e lv.Error
	return errors.As(err, &e) && e.Code == n
}

// withFaultCode gives an error of libvirt a fault code, and adds to every error what was being done, on which server.
func withFaultCode(what, id string, err error) error {
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
		code = fault.Unknown // the connection was lost, and libvirtd may have done the call
	}
	return fault.New(code, "%s %s: libvirt: %s", what, id, e.Message)
}

// awaitCall runs f in a goroutine, because f cannot be interrupted. It returns when f or ctx has ended. done is called when f has
// ended.
func awaitCall(ctx context.Context, f func() error, done func()) error {
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
