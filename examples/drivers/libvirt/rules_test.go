//go:build libvirt_dlopen

package libvirt_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/armature-go/armature/driver/drivertest"
	"github.com/armature-go/armature/examples/drivers/libvirt"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/compute/computetest"
	"github.com/armature-go/armature/internal/envtest"
)

func TestMain(m *testing.M) { drivertest.Main(m, compute.Kind, libvirt.Open) }

func options(t *testing.T, opts map[string]string) json.RawMessage {
	t.Helper()
	all := map[string]string{"host": "h1", "dir": filepath.Join(t.TempDir(), "instances"), "virt_type": "qemu", "wait_soft_reboot_seconds": "1"}
	maps.Copy(all, opts)
	raw, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// images creates a directory with the image "guest".
func images(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	envtest.GuestImage(t, filepath.Join(dir, "guest.img"))
	return dir
}

// TestRules: the driver keeps the rules of compute drivers, with real guests.
func TestRules(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short: it boots guests; make test runs it")
	}
	lv := envtest.Libvirt(t)
	volume := filepath.Join(t.TempDir(), "volume.raw")
	if err := os.WriteFile(volume, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	computetest.Run(t, libvirt.Open, computetest.Config{
		Config:    drivertest.Config{Options: options(t, map[string]string{"connection_uri": lv.URL, "images_path": images(t)})},
		Image:     "guest",
		Resources: compute.Resources{VCPUs: 1, MemoryMiB: 96, DiskGiB: 1},
		Volume:    compute.Volume{ID: "5f0c8b3e-8d55-4f30-9f29-0a4c1f6a7b11", Path: volume},
		Interface: compute.Interface{ID: "8a0f6b1d-2f4e-4c58-8f0e-6f2b7c9d4e21", MAC: "52:54:00:12:34:56", Network: "user"},
		Servers:   4,
		Crashes:   2,
		Timeout:   2 * time.Minute,
	})
}

// TestRulesOnTestDriver checks the rules with libvirt's own test driver, which uses no QEMU. The guests of this driver end with the
// connection, so the rules about restarts are skipped.
func TestRulesOnTestDriver(t *testing.T) {
	t.Parallel()
	known := map[string]string{
		"restart":             "guests of test:// end with the connection",
		"crash in the middle": "guests of test:// end with the connection",
	}
	computetest.Run(t, libvirt.Open, computetest.Config{
		Config: drivertest.Config{Options: options(t, map[string]string{"connection_uri": "test:///default", "virt_type": "test", "images_path": images(t)}), Skip: known},
		Image:  "guest",
	})
}
