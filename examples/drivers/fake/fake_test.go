package fake_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/examples/drivers/fake"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

func open(t *testing.T, dir string) *fake.Driver {
	t.Helper()
	d, err := fake.New(fake.Config{Host: "h1", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func ids(t *testing.T, d *fake.Driver) string {
	t.Helper()
	list, err := d.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, i := range list {
		out = append(out, i.ID)
	}
	return strings.Join(out, ",")
}

// TestLife: calls are idempotent, and servers outlive the driver.
func TestLife(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := open(t, dir)
	for range 2 {
		if err := d.Spawn(t.Context(), compute.Spec{ID: "s1", Name: "one"}); err != nil {
			t.Errorf("spawn: %v", err)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".spawn-1"), []byte("{"), 0o600); err != nil { // it was killed while it wrote
		t.Fatal(err)
	}
	d = open(t, dir)
	if got := ids(t, d); got != "s1" {
		t.Errorf("after a restart it has %q, want s1", got)
	}
	for range 2 {
		if err := d.Destroy(t.Context(), "s1"); err != nil {
			t.Errorf("destroy: %v", err)
		}
	}
	if got := ids(t, d); got != "" {
		t.Errorf("after destroy it has %q", got)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("%d files are left, error %v", len(left), err)
	}
}

// TestFaults: metadata make a build slow or fail, and nothing is left of it.
func TestFaults(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d := open(t, dir)
		spawn := func(ctx context.Context, md map[string]string) error {
			return d.Spawn(ctx, compute.Spec{ID: "s1", Metadata: md})
		}
		for _, hosts := range []string{"*", "h0,h1"} {
			if err := spawn(t.Context(), map[string]string{"fake:fail_spawn": hosts}); err == nil {
				t.Errorf("fail_spawn = %s: no error", hosts)
			}
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := spawn(short, map[string]string{"fake:spawn_time": "1h"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a build that is given up: %v", err)
		}
		if err := spawn(t.Context(), map[string]string{"fake:spawn_time": "soon"}); !errors.Is(err, fault.Invalid) {
			t.Errorf("spawn_time = soon: %v, want Invalid", err)
		}
		if got := ids(t, d); got != "" {
			t.Errorf("after failed builds it has %q", got)
		}
		began := time.Now()
		if err := spawn(t.Context(), map[string]string{"fake:spawn_time": "1h", "fake:fail_spawn": "h2"}); err != nil || time.Since(began) != time.Hour {
			t.Errorf("a slow build: %v after %v", err, time.Since(began))
		}
	})
}

func TestOpen(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, options, says string
	}{
		{"no directory", `{"host": "h"}`, "dir"},
		{"unknown option", `{"host": "h", "dir": "d", "colour": "red"}`, "colour"},
		{"not a number", `{"host": "h", "dir": "d", "vcpus": "many"}`, "vcpus"},
		{"not a duration", `{"host": "h", "dir": "d", "spawn_time": "soon"}`, "spawn_time"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, err := fake.Open(t.Context(), json.RawMessage(tt.options)); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want Invalid that names %s", err, tt.says)
			}
		})
	}
	opts, err := json.Marshal(map[string]string{"host": "h", "dir": t.TempDir(), "vcpus": "3", "memory_mib": "4", "disk_gib": "5"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := fake.Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := d.Resources(t.Context()); err != nil || got != (compute.Resources{VCPUs: 3, MemoryMiB: 4, DiskGiB: 5}) {
		t.Errorf("resources %+v, %v", got, err)
	}
}

// TestPaths: an id must not lead out of the directory.
func TestPaths(t *testing.T) {
	t.Parallel()
	d := open(t, t.TempDir())
	for _, id := range []string{"", "..", "../x", "a/b", ".hidden"} {
		if err := d.Spawn(t.Context(), compute.Spec{ID: id}); !errors.Is(err, fault.Invalid) {
			t.Errorf("spawn %q: %v, want Invalid", id, err)
		}
		if err := d.Destroy(t.Context(), id); !errors.Is(err, fault.Invalid) {
			t.Errorf("destroy %q: %v, want Invalid", id, err)
		}
	}
}
