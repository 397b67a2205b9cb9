package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/flavors"

	"github.com/armature-go/armature/internal/envtest"
)

// TestLibvirt: a server that is created through REST is a QEMU guest that boots, also
// when the worker and the driver's program are killed under it; when it is deleted
// libvirt has no domain, and the disk no file of it.
func TestLibvirt(t *testing.T) {
	t.Parallel()
	lv := envtest.Libvirt(t)
	plugins, images := filepath.Join(t.TempDir(), "plugins"), t.TempDir()
	if err := compile(filepath.Join(plugins, "armature-compute-libvirt"), "../../drivers/libvirt/armature-compute-libvirt", "-tags", "libvirt_dlopen"); err != nil {
		t.Fatal(err)
	}
	envtest.GuestImage(t, filepath.Join(images, "cirros.img")) // by the name that create gives
	c := newCloud(t, "compute_driver = libvirt\nplugin_dir = "+plugins+"\n[driver_libvirt]\nvirt_type = qemu\nvnc_listen = none\nimages_path = "+images+
		"\nconnection_uri = "+lv.URL+"\nplugin_max_files = 1024\n")
	for _, s := range [][2]string{{"api", "api-1"}, {"conductor", "c-1"}, {"scheduler", "s-1"}, {"compute", "node-1"}} {
		c.start(s[0], s[1])
	}
	cl := c.client(c.procs["api-1"])
	c.hostsUp(cl, 1)
	small, err := flavors.Create(t.Context(), cl, flavors.CreateOpts{Name: "small", RAM: 128, VCPUs: 1, Disk: new(1)}).Extract()
	if err != nil {
		t.Fatal(err)
	}
	domains := func() []string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "virsh", "-c", lv.URL, "list", "--all", "--name").Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(out))
	}
	s, err := create(t.Context(), cl, "guest", small.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.settled(cl, 1, 60*time.Second)
	if got := domains(); len(got) != 1 || got[0] != "armature-"+s.ID {
		t.Errorf("libvirt has %v", got)
	}
	c.procs["node-1"].Kill() // and with it its driver
	c.start("compute", "node-1")
	dir := filepath.Join(c.dir, "instances", "node-1", s.ID)
	c.poll("the guest to be ready", 60*time.Second, func() error {
		raw, err := os.ReadFile(filepath.Join(dir, "console.log"))
		if err == nil && !strings.Contains(string(raw), "guest ready: 1 CPUs") {
			err = os.ErrNotExist
		}
		return err
	})
	c.deleteAll(cl, nil)
	if got := domains(); len(got) != 0 {
		t.Errorf("libvirt still has %v", got)
	}
	if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}
