package driver_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/driver"
)

func exists(dir, name string) func() bool {
	return func() bool {
		_, err := os.Stat(filepath.Join(dir, name))
		return err == nil
	}
}

// socketDir returns a directory with a short path, which sockets need.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s") //nolint:usetesting // the names of t.TempDir are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// runs reports whether a process exists and is not a zombie.
func runs(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(raw), ") ")
	return !strings.HasPrefix(state, "Z")
}

// quick makes a plugin restart its program soon after every crash.
func quick(cfg driver.PluginConfig) driver.PluginConfig {
	cfg.MinDelay, cfg.MaxDelay, cfg.MaxCrashes = time.Millisecond, 5*time.Millisecond, 1000
	return cfg
}

func up(p *driver.Plugin[echoer]) func() bool {
	return func() bool { return p.Status().State == driver.Up }
}
