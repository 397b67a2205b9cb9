// Package driver opens the driver that a worker's configuration names. The worker is the process that uses the driver, usually the
// worker service of a host. Drivers for different technologies have one interface. A driver is built into the worker, or it is a
// vendor's program, which may be written in any language that has gRPC.
//
// A component embeds [Driver] in the interface of its own kind of driver. It describes with
// a [Kind] how that interface crosses a process boundary, and registers the drivers that are
// built in. A name that is not registered is the name of a program. The component uses both in the same way:
//
//	var drivers driver.Registry[volume.Driver]
//	drivers.Add("fake", fake.Open)
//
//	p, err := drivers.New(volume.Kind, conf.VolumeDriver, driver.PluginConfig{Dir: conf.PluginDir, Options: options})
//	app.Add("driver", p) // starts it, and closes it at the end
//	...
//	err = p.Driver().Create(ctx, "v1")
//
// Package drivertest has the tests of a vendor's program. The program's main function is one line:
//
//	func main() { driver.Serve(volume.Kind, acme.Open) }
//
// At the start of a program the worker checks the program's owner, its kind, its protocol and, if the configuration has
// one, its SHA-256. A program is supervised, and restarted when it ends or hangs. It cannot outlive its worker. Errors of
// package fault, deadlines, cancellation and the request of package reqctx cross the wire. A call while the program is
// down fails with Unavailable. A call during which the program ends fails with Unknown.
//
// Use [Info.Has] to find out whether a driver has a capability. Never use a type
// assertion: it does not work through a process boundary or a wrapper.
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

// Driver has the methods of every driver of every kind. Implementations must be
// safe for concurrent use.
type Driver interface {
	// Info returns the driver's name and capabilities. It must return quickly.
	Info(ctx context.Context) (Info, error)
	// Close releases the resources of the driver in this process, such as connections. The objects that
	// the driver manages outside of the process stay as they are. No method is called after Close, even if Close
	// has failed. [Plugin.Close] returns the error.
	Close() error
}

// Info describes a driver. Its JSON form is stable.
type Info struct {
	// Name and Version are the vendor's. They are for people: no decision depends on them.
	Name    string `json:"name"`
	Version string `json:"version"`
	// Capabilities are the capabilities that the driver has.
	Capabilities []Capability `json:"capabilities,omitempty"`
	// Concurrent reports that two programs of the driver, of this version and of a later one, may be open at the same time with
	// the same options. [Plugin.Replace] uses it. A driver that keeps its state in memory, or that has a lock, is not Concurrent.
	Concurrent bool `json:"concurrent,omitempty"`
}

// Capability is the name of something that a driver may lack, such as "snapshot". A component
// declares the capabilities of its kind of driver as constants. If a driver does not have a capability, the
// methods of this capability return an error with code Unimplemented.
type Capability string

// Has reports whether the driver has the capability.
func (i Info) Has(c Capability) bool { return slices.Contains(i.Capabilities, c) }

// Registry has the drivers that are built into a worker, by the names that
// its configuration uses. The zero value is empty. A Registry is safe for concurrent use.
type Registry[D Driver] struct {
	mu    sync.RWMutex
	open  map[string]func(ctx context.Context, cfg json.RawMessage) (D, error)
	check map[string]func(options json.RawMessage) error // nil for a driver without a check
}

// Add registers a driver. The function open makes the driver. Its parameter cfg has the driver's own options: a JSON
// object, or nil without options. The function must keep neither ctx nor cfg. Its error for a wrong option must have code Invalid
// and the option's name, see [ParseOptions]. Add panics if the name is empty or
// in use, or if open is nil, because these are programmers' errors.
func (r *Registry[D]) Add(name string, open func(ctx context.Context, cfg json.RawMessage) (D, error)) {
	r.add(name, nil, open)
}

// AddChecked registers a driver as [Registry.Add] does. The function check checks the driver's options and has no other effect: for example, it calls
// [ParseOptions] with the same struct as open. [Registry.New] and [Registry.Validate] call check, so that wrong options are found before the process
// starts. The function check gets the same options as open, and returns the errors that open returns for wrong options.
// AddChecked panics as Add does, and also if check is nil.
func (r *Registry[D]) AddChecked(name string, check func(options json.RawMessage) error, open func(ctx context.Context, cfg json.RawMessage) (D, error)) {
	if check == nil {
		panic("driver: AddChecked: the check function is nil")
	}
	r.add(name, check, open)
}

func (r *Registry[D]) add(name string, check func(json.RawMessage) error, open func(context.Context, json.RawMessage) (D, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case name == "" || open == nil:
		panic("driver: Add: the name is empty, or the open function is nil")
	case r.open[name] != nil:
		panic("driver: Add: two drivers are named " + name)
	case r.open == nil:
		r.open = make(map[string]func(context.Context, json.RawMessage) (D, error))
		r.check = make(map[string]func(json.RawMessage) error)
	}
	r.open[name], r.check[name] = open, check
}

// Open makes the named driver. The caller closes it. Open blocks as long as the
// driver's open function does. The error is NotFound if the name is not registered, and lists the registered names. An error
// of the open function is returned with its code and the driver's name.
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
		return none, fault.New(fault.NotFound, "driver %q does not exist; built in: %s", name, known)
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
