// Package compute is the vocabulary that the services of nova-mini share: the
// types, the RPC methods, and the contract that a compute driver keeps.
package compute

import (
	"context"

	"github.com/armature-go/armature/driver"
)

// Resources are amounts of what a server needs or a host has.
type Resources struct {
	VCPUs     int `json:"vcpus"`
	MemoryMiB int `json:"memory_mib"`
	DiskGiB   int `json:"disk_gib"`
}

// Names of the resource classes, OpenStack's.
const (
	VCPU     = "VCPU"
	MemoryMB = "MEMORY_MB"
	DiskGB   = "DISK_GB"
)

// Amount is a quantity of one resource class.
type Amount struct {
	Class string
	N     int
}

// Amounts returns r by resource class, always in the same order.
func (r Resources) Amounts() []Amount {
	return []Amount{{DiskGB, r.DiskGiB}, {MemoryMB, r.MemoryMiB}, {VCPU, r.VCPUs}}
}

// Spec is what a driver needs to know to build a server.
type Spec struct {
	// ID is the server's UUID, by which every call names it.
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	ProjectID string            `json:"project_id"`
	ImageRef  string            `json:"image_ref"`
	Resources Resources         `json:"resources"`
	Metadata  map[string]string `json:"metadata,omitempty"`
}

// PowerState is a server's state as its driver sees it. The numbers are Nova's.
type PowerState int

// The power states.
const (
	NoState PowerState = 0 // not known
	Running PowerState = 1
)

// Instance is a server that a driver has.
type Instance struct {
	ID    string     `json:"id"`
	Name  string     `json:"name"`
	Power PowerState `json:"power"`
}

// Driver is what a vendor implements: the worker's one interface to what really
// runs servers on its host. The life of a server is
//
//	(nothing) --Spawn--> Running --Destroy--> (nothing)
//
// Each call is idempotent by the server's id: a worker that was killed, or that
// lost the driver in the middle of a call, makes the call again. Servers outlive
// the driver's process. All methods are safe for concurrent use on different
// servers; the worker never makes two calls on one server at once. A call gives
// up when its context ends, and leaves the server such that the same call, or
// Destroy, succeeds later.
type Driver interface {
	driver.Driver

	// Spawn builds the server and starts it. If it exists already Spawn makes
	// sure that it runs, and returns nil. Errors: Exhausted if the host has no
	// room after all, Invalid if the spec can be built nowhere.
	Spawn(ctx context.Context, spec Spec) error
	// Destroy stops the server and removes all of it. That there is none is no
	// error.
	Destroy(ctx context.Context, id string) error
	// List returns the servers that exist on the host, also those that are half
	// built or half destroyed.
	List(ctx context.Context) ([]Instance, error)
	// Resources returns what the host has in all.
	Resources(ctx context.Context) (Resources, error)
}
