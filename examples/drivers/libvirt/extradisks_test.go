//go:build libvirt_dlopen

package libvirt_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/examples/drivers/libvirt"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/internal/envtest"
)

// diskLine matches a line in which the guest prints one of its disks: the name, the number of sectors, the label of an ext4 file system, and the signature of a swap area.
var diskLine = regexp.MustCompile(`(?m)^disk: (\w+ \d+ \w* \w*)\r?$`)

// disksOfGuest waits until the guest has started, and returns its disks.
func disksOfGuest(t *testing.T, d compute.Driver) (out []string) {
	t.Helper()
	wait(t, "the guest to be ready", func() bool { return strings.Contains(console(t, d, 0), "guest ready") })
	for _, m := range diskLine.FindAllStringSubmatch(console(t, d, 0), -1) {
		out = append(out, strings.TrimSpace(m[1]))
	}
	return out
}

// TestExtraDisks: a guest has its ephemeral disk with a file system as the second disk, and then its swap disk. They stay when the root disk grows. A rescued guest does not have them. Volumes
// have other names.
func TestExtraDisks(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short: it boots guests; make test runs it")
	}
	lv := envtest.Libvirt(t)
	dir := filepath.Join(t.TempDir(), "instances")
	d, err := libvirt.Open(t.Context(), options(t, map[string]string{"connection_uri": lv.URL, "images_path": images(t), "dir": dir, "vnc_listen": "none"}))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	want := func(when string, disks ...string) {
		t.Helper()
		if diff := cmp.Diff(disks, disksOfGuest(t, d)); diff != "" {
			t.Errorf("%s the guest has the disks (-want +got):\n%s", when, diff)
		}
	}
	const gib, ephemeral, swap = "2097152", "2097152 ephemeral0", "131072  SWAPSPACE2"
	must("spawn", d.Spawn(t.Context(), compute.Spec{ID: guestID, ImageRef: "guest", Resources: compute.Resources{VCPUs: 1, MemoryMiB: 128, DiskGiB: 3}, EphemeralGiB: 1, SwapMiB: 64}))
	want("at first", "vda "+gib, "vdb "+ephemeral, "vdc "+swap)
	volume := filepath.Join(t.TempDir(), "volume.raw")
	must("write", os.WriteFile(volume, make([]byte, 1<<20), 0o600))
	must("rescue", d.Rescue(t.Context(), guestID, "", ""))
	must("attach", d.AttachVolume(t.Context(), guestID, compute.Volume{ID: "5f0c8b3e-8d55-4f30-9f29-0a4c1f6a7b11", Path: volume}))
	if out, err := exec.CommandContext(t.Context(), "virsh", "-c", lv.URL, "domblklist", guestID).CombinedOutput(); err != nil || !strings.Contains(string(out), "vdd") || strings.Contains(string(out), "swap.raw") {
		t.Errorf("a rescued guest has the disks %s, %v", out, err)
	}
	must("unrescue", d.Unrescue(t.Context(), guestID))
	left := filepath.Join(dir, guestID, "rescue.qcow2") // as if the call was interrupted
	must("write", os.WriteFile(left, nil, 0o600))
	must("unrescue again", d.Unrescue(t.Context(), guestID))
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("the disk of the rescue is left: %v", err)
	}
	must("detach", d.DetachVolume(t.Context(), guestID, "5f0c8b3e-8d55-4f30-9f29-0a4c1f6a7b11"))
	must("power off", d.PowerOff(t.Context(), guestID, 0))
	must("resize", d.Resize(t.Context(), guestID, compute.Resources{VCPUs: 1, MemoryMiB: 128, DiskGiB: 4}))
	must("power on", d.PowerOn(t.Context(), guestID))
	want("after a resize", "vda 4194304", "vdb "+ephemeral, "vdc "+swap)
	must("destroy", d.Destroy(t.Context(), guestID))
	must("spawn with swap only", d.Spawn(t.Context(), compute.Spec{ID: guestID, ImageRef: "guest", Resources: compute.Resources{VCPUs: 1, MemoryMiB: 128, DiskGiB: 2}, SwapMiB: 64}))
	want("without an ephemeral disk", "vda "+gib, "vdb "+swap)
	must("destroy", d.Destroy(t.Context(), guestID))
}
