// Package acme is the smallest compute driver that keeps the rules. Its servers are entries of a file.
package acme

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// Driver is a compute.Driver without optional capabilities.
type Driver struct {
	compute.Unsupported

	file    string
	mu      sync.Mutex
	servers map[string]compute.Instance
}

// Open returns a driver. The compute service sets the options: dir is the directory of the driver's file, and host is not used.
// Errors: Invalid for a wrong option; an error without a code if the file cannot be read.
func Open(_ context.Context, raw json.RawMessage) (compute.Driver, error) {
	var opts struct {
		Host string `option:"host"`
		Dir  string `option:"dir"`
	}
	if err := driver.ParseOptions(raw, &opts); err != nil {
		return nil, err
	}
	if opts.Dir == "" {
		return nil, fault.New(fault.Invalid, "option dir is not set")
	}
	d := &Driver{file: filepath.Join(opts.Dir, "servers.json"), servers: make(map[string]compute.Instance)}
	saved, err := os.ReadFile(d.file)
	if errors.Is(err, fs.ErrNotExist) {
		return d, os.MkdirAll(opts.Dir, 0o750)
	}
	if err == nil {
		err = json.Unmarshal(saved, &d.servers)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Info implements driver.Driver.
func (d *Driver) Info(context.Context) (driver.Info, error) {
	return driver.Info{Name: "acme", Version: "1.0"}, nil
}

// Close implements driver.Driver. The servers stay.
func (d *Driver) Close() error { return nil }

// Spawn implements compute.Driver.
func (d *Driver) Spawn(ctx context.Context, s compute.Spec) error {
	return d.change(ctx, s.ID, func(i compute.Instance, there bool) (compute.Instance, error) {
		if !there {
			i = compute.Instance{ID: s.ID, Name: s.Name, Resources: s.Resources}
		}
		i.Power = compute.Running
		return i, nil
	})
}

// Destroy implements compute.Driver.
func (d *Driver) Destroy(ctx context.Context, id string) error {
	return d.change(ctx, id, func(compute.Instance, bool) (compute.Instance, error) { return compute.Instance{}, nil })
}

// PowerOn implements compute.Driver.
func (d *Driver) PowerOn(ctx context.Context, id string) error {
	return d.power(ctx, id, compute.Running)
}

// PowerOff implements compute.Driver.
func (d *Driver) PowerOff(ctx context.Context, id string, _ time.Duration) error {
	return d.power(ctx, id, compute.Shutdown)
}

// Reboot implements compute.Driver.
func (d *Driver) Reboot(ctx context.Context, id string, hard bool) error {
	i, err := d.Get(ctx, id)
	if err == nil && !hard && i.Power != compute.Running {
		err = fault.New(fault.Precondition, "server %s is %v", id, i.Power)
	}
	if err != nil {
		return err
	}
	return d.power(ctx, id, compute.Running)
}

func (d *Driver) power(ctx context.Context, id string, p compute.PowerState) error {
	return d.change(ctx, id, func(i compute.Instance, there bool) (compute.Instance, error) {
		if !there {
			return i, fault.New(fault.NotFound, "server %s does not exist", id)
		}
		i.Power = p
		return i, nil
	})
}

// Get implements compute.Driver.
func (d *Driver) Get(_ context.Context, id string) (compute.Instance, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, ok := d.servers[id]
	if !ok {
		return i, fault.New(fault.NotFound, "server %s does not exist", id)
	}
	return i, nil
}

// List implements compute.Driver.
func (d *Driver) List(context.Context) ([]compute.Instance, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Values(d.servers)), nil
}

// Resources implements compute.Driver.
func (d *Driver) Resources(context.Context) (compute.Resources, error) {
	return compute.Resources{VCPUs: 16, MemoryMiB: 32768, DiskGiB: 500}, nil
}

var uuid = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// change replaces a server by the result of the function f. A result without an id removes the server. The file is replaced as a
// whole, so it is complete even if the process is killed.
func (d *Driver) change(ctx context.Context, id string, f func(i compute.Instance, there bool) (compute.Instance, error)) error {
	if !uuid.MatchString(id) {
		return fault.New(fault.Invalid, "%q is not a server's id", id)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	old, there := d.servers[id]
	i, err := f(old, there)
	if err != nil {
		return err
	}
	servers := maps.Clone(d.servers)
	if delete(servers, id); i.ID != "" {
		servers[id] = i
	}
	raw, err := json.Marshal(servers)
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.file+".new", raw, 0o600); err != nil {
		return err
	}
	if err := os.Rename(d.file+".new", d.file); err != nil {
		return err
	}
	d.servers = servers
	return nil
}
