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

// startLoop starts libvirt's event loop, unless this process has started it already. The loop must run before the first connection is
// opened, and runs until the process ends.
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

// connection is the connection to libvirtd. If it is lost, the next call of get opens it again.
type connection struct {
	uri  string
	ours func(id string) bool // reports whether a guest is one of this driver, by its files; it must not block
	gone sync.Map             // the ids of guests that are being destroyed, so that they may have no files any more

	mu   sync.Mutex
	conn *lv.Connect
	lost chan struct{} // closed when the connection conn is lost

	listenersMu sync.Mutex
	listeners   map[*listener]bool
}

// listener is a stream of events.
type listener struct {
	got  chan compute.Event
	late chan struct{} // receives a value if the channel got is full
}

// addListener adds a listener, which receives all events until it is removed.
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

// receiveEvent is the callback for libvirt's events. It must not block. Each connection registers one callback, and not one for each
// listener, because libvirt treats a removed callback as still registered for a while.
func (c *connection) receiveEvent(_ *lv.Connect, dom *lv.Domain, e *lv.DomainEventLifecycle) {
	t := eventType(e)
	id, err := dom.GetUUIDString()
	if t == "" || err != nil || !c.isOurs(id, t) {
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

// isOurs reports whether an event is about a guest of this driver.
func (c *connection) isOurs(id string, t compute.EventType) bool {
	var destroyed bool
	if t == compute.EventDestroyed {
		_, destroyed = c.gone.LoadAndDelete(id)
	} else {
		_, destroyed = c.gone.Load(id)
	}
	return destroyed || c.ours(id)
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

// addMissingPackage adds the missing Debian package to an error whose text shows that a package is missing.
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

// withFaultCode adds a fault code to an error of libvirt, and adds the action what and the server's id to every error.
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

// awaitCall runs the function f in a goroutine, because f cannot be interrupted. It returns when f or ctx has ended. It calls done when
// f has ended, which may be after the return.
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
