// Package driver is how a worker comes by the one driver that its
// configuration names, among many technologies behind one interface: built in, or a
// vendor's program, which may be written in any language that has gRPC.
//
// A component embeds [Driver] in the interface of its own kind of driver, says with
// a [Kind] how that crosses a process boundary, and registers the drivers that are
// built in. A name that is not registered is a program, and the same in all else:
//
//	var drivers driver.Registry[volume.Driver]
//	drivers.Add("fake", fake.Open)
//
//	p, err := drivers.New(volume.Kind, conf.VolumeDriver, driver.PluginConfig{Dir: conf.PluginDir, Options: options})
//	app.Add("driver", p) // starts it, and closes it at the end
//	...
//	err = p.Driver().Create(ctx, "v1")
//
// A vendor's program is one line, and its tests are in package drivertest:
//
//	func main() { driver.Serve(volume.Kind, acme.Open) }
//
// A program is started with a handshake that checks kind, protocol and, if wanted, its
// SHA-256; watched, and restarted when it ends or hangs; and cannot outlive its
// worker. Errors of package fault, deadlines, cancellation and the request of package
// reqctx cross the wire. A call while the program is down fails with Unavailable, one in
// whose middle it ended with Unknown.
//
// What only some drivers can do is told by [Info.Has], never by a type
// assertion: those see nothing through a process boundary or a wrapper.
package driver

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/armature-go/armature/fault"
)

// Driver is what all drivers have, whatever they drive. Implementations are
// safe for concurrent use.
type Driver interface {
	// Info tells what the driver is and can do. It must be quick.
	Info(ctx context.Context) (Info, error)
	// Close releases what the driver holds in this process, and leaves alone
	// what it manages outside. No other method is called after it.
	Close() error
}

// Info describes a driver. Its JSON form is stable.
type Info struct {
	// Name and Version are the vendor's; nothing is decided by them.
	Name    string `json:"name"`
	Version string `json:"version"`
	// Capabilities are the optional abilities that the driver has.
	Capabilities []Capability `json:"capabilities,omitempty"`
}

// Capability names an optional ability, such as "snapshot". A component
// declares those of its kind of driver as constants. The methods of an ability
// that a driver lacks return an error with code Unimplemented.
type Capability string

// Has reports whether the driver has the ability.
func (i Info) Has(c Capability) bool { return slices.Contains(i.Capabilities, c) }

// Registry holds the drivers that are built into a program, by the name that
// its configuration uses. The zero value is ready, and safe for concurrent use.
type Registry[D Driver] struct {
	mu   sync.RWMutex
	open map[string]func(ctx context.Context, cfg json.RawMessage) (D, error)
}

// Add registers a driver. open makes one from its own options: a JSON
// object, or nil when there are none; it keeps neither ctx nor cfg. An error about
// an option names it and has code Invalid. Add panics if the name is empty or
// taken, or open is nil: programmer's errors.
func (r *Registry[D]) Add(name string, open func(ctx context.Context, cfg json.RawMessage) (D, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case name == "" || open == nil:
		panic("driver: a driver without a name, or without an open function")
	case r.open[name] != nil:
		panic("driver: two drivers named " + name)
	case r.open == nil:
		r.open = make(map[string]func(context.Context, json.RawMessage) (D, error))
	}
	r.open[name] = open
}

// Open makes the named driver; the caller closes it. It blocks as long as the
// driver's open function does. A name that is not registered has code NotFound,
// and the error says which are; the driver's own error comes with its code and the
// driver's name.
func (r *Registry[D]) Open(ctx context.Context, name string, cfg json.RawMessage) (D, error) {
	var none D
	r.mu.RLock()
	open := r.open[name]
	r.mu.RUnlock()
	if open == nil {
		known := strings.Join(r.Names(), ", ")
		if known == "" {
			known = "none"
		}
		return none, fault.New(fault.NotFound, "no driver named %q; there are: %s", name, known)
	}
	d, err := open(ctx, cfg)
	if err != nil {
		return none, fmt.Errorf("open driver %s: %w", name, err)
	}
	return d, nil
}

// Names returns the registered names in alphabetical order.
func (r *Registry[D]) Names() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Sorted(maps.Keys(r.open))
}
