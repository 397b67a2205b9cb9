// Package fake is a compute driver without a hypervisor. It keeps its servers in
// a directory of its host, so that they outlive a killed worker as a
// hypervisor's do.
//
// A server's metadata can make it fail: "fake:fail_spawn" holds the names of
// the hosts, separated by commas, on which Spawn fails, or "*" for all;
// "fake:spawn_time" is how long Spawn takes, such as "2s".
package fake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// Config configures a Driver.
type Config struct {
	// Host is the name of the host it simulates. Required.
	Host string
	// Dir is where it keeps the servers. It is made if it is missing. Required.
	Dir string
	// Resources are what the host has. Default 16 VCPUs, 32768 MiB, 500 GiB.
	Resources compute.Resources
	// SpawnTime is how long a build takes, unless the server's metadata say.
	SpawnTime time.Duration
}

// Driver is a compute.Driver. It is safe for concurrent use.
type Driver struct{ cfg Config }

var _ compute.Driver = (*Driver)(nil)

// Open makes a driver of options as they stand in a configuration file, all of
// them text: host and dir, and, if other than the defaults of Config, vcpus,
// memory_mib, disk_gib and spawn_time, such as "2s". It is for a
// driver.Registry.
func Open(_ context.Context, raw json.RawMessage) (compute.Driver, error) {
	var opts map[string]string
	if err := json.Unmarshal(raw, &opts); err != nil {
		return nil, fault.New(fault.Invalid, "options: %w", err)
	}
	cfg := Config{Resources: defaults}
	for name, v := range opts {
		var err error
		switch name {
		case "host":
			cfg.Host = v
		case "dir":
			cfg.Dir = v
		case "vcpus":
			cfg.Resources.VCPUs, err = strconv.Atoi(v)
		case "memory_mib":
			cfg.Resources.MemoryMiB, err = strconv.Atoi(v)
		case "disk_gib":
			cfg.Resources.DiskGiB, err = strconv.Atoi(v)
		case "spawn_time":
			cfg.SpawnTime, err = time.ParseDuration(v)
		default:
			err = errors.New("there is no such option")
		}
		if err != nil {
			return nil, fault.New(fault.Invalid, "option %s: %w", name, err)
		}
	}
	return New(cfg)
}

// defaults are what a host has.
var defaults = compute.Resources{VCPUs: 16, MemoryMiB: 32768, DiskGiB: 500}

// New returns a driver for the servers that are in the directory.
func New(cfg Config) (*Driver, error) {
	if cfg.Host == "" || cfg.Dir == "" {
		return nil, fault.New(fault.Invalid, "the fake driver needs the options host and dir")
	}
	if cfg.Resources == (compute.Resources{}) {
		cfg.Resources = defaults
	}
	if err := os.MkdirAll(cfg.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("fake driver: %w", err)
	}
	// What a killed driver was writing is nobody's server.
	halves, err := filepath.Glob(filepath.Join(cfg.Dir, half+"*"))
	if err != nil {
		return nil, fmt.Errorf("fake driver: %w", err)
	}
	for _, path := range halves {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("fake driver: %w", err)
		}
	}
	return &Driver{cfg: cfg}, nil
}

// Info implements driver.Driver.
func (d *Driver) Info(context.Context) (driver.Info, error) {
	return driver.Info{Name: "fake", Version: "1.0"}, nil
}

// Close implements driver.Driver. The servers stay.
func (d *Driver) Close() error { return nil }

// Resources implements compute.Driver.
func (d *Driver) Resources(context.Context) (compute.Resources, error) { return d.cfg.Resources, nil }

// ext ends the name of a server's file; half begins the name of one that is not
// written to its end.
const ext, half = ".json", ".spawn-"

// Spawn implements compute.Driver.
func (d *Driver) Spawn(ctx context.Context, spec compute.Spec) error {
	path, err := d.path(spec.ID)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err == nil {
		return nil // it runs already
	}
	wait := d.cfg.SpawnTime
	if s := spec.Metadata["fake:spawn_time"]; s != "" {
		if wait, err = time.ParseDuration(s); err != nil {
			return fault.New(fault.Invalid, "metadata fake:spawn_time: %w", err)
		}
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return fmt.Errorf("spawn %s: %w", spec.ID, ctx.Err())
	}
	if hosts := spec.Metadata["fake:fail_spawn"]; hosts == "*" || slices.Contains(strings.Split(hosts, ","), d.cfg.Host) {
		return fault.New(fault.Internal, "the metadata want this build to fail on %s", d.cfg.Host)
	}
	return write(path, compute.Instance{ID: spec.ID, Name: spec.Name, Power: compute.Running})
}

// write makes the file appear whole or not at all, also if the machine stops.
func write(path string, inst compute.Instance) error {
	b, err := json.Marshal(inst)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), half+"*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// Destroy implements compute.Driver.
func (d *Driver) Destroy(_ context.Context, id string) error {
	path, err := d.path(id)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// List implements compute.Driver.
func (d *Driver) List(context.Context) ([]compute.Instance, error) {
	entries, err := os.ReadDir(d.cfg.Dir)
	if err != nil {
		return nil, err
	}
	var out []compute.Instance
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ext {
			continue
		}
		b, err := os.ReadFile(filepath.Join(d.cfg.Dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // destroyed meanwhile
		}
		var inst compute.Instance
		if err == nil {
			err = json.Unmarshal(b, &inst)
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", e.Name(), err)
		}
		out = append(out, inst)
	}
	return out, nil
}

// path is where a server is kept. An id that would lead elsewhere is refused.
func (d *Driver) path(id string) (string, error) {
	if id == "" || id != filepath.Base(id) || strings.HasPrefix(id, ".") {
		return "", fault.New(fault.Invalid, "%q is not a server's id", id)
	}
	return filepath.Join(d.cfg.Dir, id+ext), nil
}
