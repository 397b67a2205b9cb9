// Package compute has what the services of nova-mini share: types, RPC methods, and the
// contract of a compute driver.
package compute

// Resources are the amounts that a server needs or a host has.
type Resources struct {
	VCPUs     int `json:"vcpus"`
	MemoryMiB int `json:"memory_mib"`
	DiskGiB   int `json:"disk_gib"`
}

// The resource classes, with OpenStack's names.
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

// Amounts returns r as a list by resource class, always in the same order.
func (r Resources) Amounts() []Amount {
	return []Amount{{DiskGB, r.DiskGiB}, {MemoryMB, r.MemoryMiB}, {VCPU, r.VCPUs}}
}
