// Package backupdriver is the contract of the drivers of backup. A driver is built in, or a program of its own:
//
//	func main() { driver.Serve(backupdriver.Kind, open) }
package backupdriver

import (
	"context"
	"sync"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
)

// Driver makes backups on a host. Each call may be repeated, because a call to a worker that was killed is repeated. A function has a context, at most
// one argument and at most one result beside the error: several values are a struct, such as Spec. Argument and result are JSON if the driver is a program.
type Driver struct {
	driver.Driver
	// Create makes a backup. It is not an error if the backup exists. It fails with Exhausted if the host has no room.
	Create func(ctx context.Context, s Spec) error
	// Destroy destroys a backup. It is not an error if the backup does not exist.
	Destroy func(ctx context.Context, id string) error
	// List returns the IDs of all backups, in any order.
	List func(ctx context.Context) ([]string, error)
}

// Spec describes a backup.
type Spec struct {
	ID   string `json:"id"`
	Size int64  `json:"size"` // in GiB
}

// Kind is the kind of these drivers: the number is the version of this contract.
var Kind = driver.Functions[Driver]("backup", 1)

// Registry has the drivers that are built in.
type Registry = *driver.Registry[Driver]

// NewMemory returns a driver that keeps its backups in memory. It is for tests.
func NewMemory() Driver {
	var mu sync.Mutex
	made := map[string]Spec{}
	return Driver{
		Driver: driver.Static(driver.Info{Name: "memory"}),
		Create: func(_ context.Context, s Spec) error {
			if s.ID == "" || s.Size <= 0 {
				return fault.New(fault.Invalid, "backup %q, size %d: want an ID, and a size above 0", s.ID, s.Size)
			}
			mu.Lock()
			defer mu.Unlock()
			made[s.ID] = s
			return nil
		},
		Destroy: func(_ context.Context, id string) error {
			mu.Lock()
			defer mu.Unlock()
			delete(made, id)
			return nil
		},
		List: func(context.Context) (ids []string, _ error) {
			mu.Lock()
			defer mu.Unlock()
			for id := range made {
				ids = append(ids, id)
			}
			return ids, nil
		},
	}
}
