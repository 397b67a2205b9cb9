// Package compute is the vocabulary that the services of nova-mini share: the
// types, the RPC methods, and the contract that a compute driver keeps.
package compute

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
