package e2e_test

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/flavors"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/remoteconsoles"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
)

// TestLibvirt: a server that is created through REST is a QEMU guest that boots, even if the compute service and the
// driver program are killed during the build. The test reads the console log, and stops, starts, reboots and resizes the server.
// After the deletion, libvirt has no domain of the server, and the server's files are removed.
func TestLibvirt(t *testing.T) {
	t.Parallel()
	scenario(t)
	lv := envtest.Libvirt(t)
	plugins, images := filepath.Join(t.TempDir(), "plugins"), t.TempDir()
	if err := compile(filepath.Join(plugins, "armature-compute-libvirt"), "../../drivers/libvirt/armature-compute-libvirt", "-tags", "libvirt_dlopen"); err != nil {
		t.Fatal(err)
	}
	envtest.GuestImage(t, filepath.Join(images, "cirros.img")) // the image that create uses
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	proxy := fmt.Sprintf("127.0.0.1:%d", port)
	c := newCloud(t, "compute_driver = libvirt\nplugin_dir = "+plugins+"\n[driver_libvirt]\nvirt_type = qemu\nimages_path = "+images+
		"\nconnection_uri = "+lv.URL+"\nplugin_max_files = 1024\n[vnc]\nenabled = true\nnovncproxy_base_url = http://"+proxy+"/vnc_lite.html\n[consoleproxy]\nlocal_hosts = node-1\nport = "+strconv.Itoa(port)+"\n")
	for _, s := range [][2]string{{"consoleproxy", "proxy-1"}, {"api", "api-1"}, {"conductor", "c-1"}, {"scheduler", "s-1"}, {"compute", "node-1"}} {
		c.start(s[0], s[1])
	}
	cl := c.client(c.procs["api-1"])
	c.hostsUp(cl, 1)
	small, err := flavors.Create(t.Context(), cl, flavors.CreateOpts{Name: "small", RAM: 128, VCPUs: 1, Disk: new(1), Ephemeral: new(1), Swap: new(64)}).Extract()
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
	// The client asks for a smaller swap disk than that of the flavor.
	s, err := servers.Create(t.Context(), cl, servers.CreateOpts{Name: "guest", FlavorRef: small.ID, ImageRef: "cirros", BlockDevice: []servers.BlockDevice{
		{SourceType: servers.SourceImage, UUID: "cirros", DestinationType: servers.DestinationLocal},
		{SourceType: servers.SourceBlank, DestinationType: servers.DestinationLocal, GuestFormat: "swap", VolumeSize: 32, BootIndex: -1},
	}}, nil).Extract()
	if err != nil {
		t.Fatal(err)
	}
	c.settled(cl, 1, 60*time.Second)
	if got := domains(); len(got) != 1 || got[0] != "instance-"+s.ID { // OS-EXT-SRV-ATTR:instance_name
		t.Errorf("libvirt has %v", got)
	}
	c.procs["node-1"].Kill() // then the driver program ends, too
	c.start("compute", "node-1")
	dir := filepath.Join(c.dir, "instances", "node-1", s.ID)
	says := func(what string) {
		t.Helper()
		c.poll("the console to say "+what, 60*time.Second, func() error {
			out, err := servers.ShowConsoleOutput(t.Context(), cl, s.ID, servers.ShowConsoleOutputOpts{}).Extract()
			if err == nil && !strings.Contains(out, what) {
				err = fmt.Errorf("the console says %q", out[max(0, len(out)-200):])
			}
			return err
		})
	}
	becomes := func(status string) {
		t.Helper()
		c.poll("the server to be "+status, 90*time.Second, func() error {
			got, err := servers.Get(t.Context(), cl, s.ID).Extract()
			if err == nil && (got.Status != status || got.TaskState != "") {
				err = fmt.Errorf("the server is %s, task %q, fault %q", got.Status, got.TaskState, got.Fault.Details)
			}
			return err
		})
	}
	do := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	says("guest ready: 1 CPUs")
	says("disk: vdb 2097152 ephemeral0")
	says("disk: vdc 65536  SWAPSPACE2")
	domain, err := exec.CommandContext(t.Context(), "virsh", "-c", lv.URL, "dumpxml", "instance-"+s.ID).CombinedOutput()
	for _, disk := range []string{"disk.qcow2", "ephemeral.raw", "swap.raw"} {
		if err != nil || !strings.Contains(string(domain), "<source file='"+filepath.Join(dir, disk)) {
			t.Errorf("the domain does not have the disk %s: %s, %v", disk, domain, err)
		}
	}
	c.testVNC(cl, s.ID, proxy)
	if out, err := servers.ShowConsoleOutput(t.Context(), cl, s.ID, servers.ShowConsoleOutputOpts{Length: 2}).Extract(); err != nil || strings.Count(out, "\n") > 2 {
		t.Errorf("two lines of the console: %q, %v", out, err)
	}
	do("stop", servers.Stop(t.Context(), cl, s.ID).ExtractErr())
	becomes("SHUTOFF")
	says("guest powers off")
	if err := servers.Stop(t.Context(), cl, s.ID).ExtractErr(); !gophercloud.ResponseCodeIs(err, http.StatusConflict) {
		t.Errorf("stop of a stopped server: %v", err)
	}
	do("start", servers.Start(t.Context(), cl, s.ID).ExtractErr())
	becomes("ACTIVE")
	says("guest ready")
	do("soft reboot", servers.Reboot(t.Context(), cl, s.ID, servers.RebootOpts{Type: servers.SoftReboot}).ExtractErr())
	becomes("ACTIVE")
	do("hard reboot", servers.Reboot(t.Context(), cl, s.ID, servers.RebootOpts{Type: servers.HardReboot}).ExtractErr())
	becomes("ACTIVE")
	says("guest ready")
	virsh := func(what string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "virsh", "-c", lv.URL, what, "instance-"+s.ID).CombinedOutput(); err != nil {
			t.Fatalf("virsh %s: %v: %s", what, err, out)
		}
	}
	virsh("destroy") // the guest is cut off
	c.awaitServer(cl, s.ID, "SHUTOFF", compute.Shutdown)
	virsh("start") // a stopped server must not run
	c.poll("the guest to be stopped", 60*time.Second, func() error {
		out, err := exec.CommandContext(t.Context(), "virsh", "-c", lv.URL, "list", "--name").Output()
		if text := strings.TrimSpace(string(out)); err == nil && text != "" {
			err = fmt.Errorf("%s runs", text)
		}
		return err
	})
	c.awaitServer(cl, s.ID, "SHUTOFF", compute.Shutdown)
	do("start", servers.Start(t.Context(), cl, s.ID).ExtractErr())
	becomes("ACTIVE")
	virsh("suspend")
	c.awaitServer(cl, s.ID, "ACTIVE", compute.Paused)
	virsh("resume")
	c.awaitServer(cl, s.ID, "ACTIVE", compute.Running)
	says("guest ready")
	// The server is resized and reverted, then resized and confirmed. Then its disk is larger.
	large, err := flavors.Create(t.Context(), cl, flavors.CreateOpts{Name: "large", RAM: 192, VCPUs: 2, Disk: new(2), Ephemeral: new(1), Swap: new(64)}).Extract()
	if err != nil {
		t.Fatal(err)
	}
	do("resize", servers.Resize(t.Context(), cl, s.ID, servers.ResizeOpts{FlavorRef: large.ID}).ExtractErr())
	becomes("VERIFY_RESIZE")
	says("guest ready: 2 CPUs")
	do("revert", servers.RevertResize(t.Context(), cl, s.ID).ExtractErr())
	becomes("ACTIVE")
	says("guest ready: 1 CPUs")
	do("resize", servers.Resize(t.Context(), cl, s.ID, servers.ResizeOpts{FlavorRef: large.ID}).ExtractErr())
	c.procs["node-1"].Kill() // during the resize
	c.start("compute", "node-1")
	becomes("VERIFY_RESIZE")
	do("confirm", servers.ConfirmResize(t.Context(), cl, s.ID).ExtractErr())
	becomes("ACTIVE")
	says("guest ready: 2 CPUs")
	says("disk: vda 4194304")
	says("disk: vdb 2097152 ephemeral0")
	says("disk: vdc 65536  SWAPSPACE2")
	if got, err := servers.Get(t.Context(), cl, s.ID).Extract(); err != nil || got.Flavor["id"] != large.ID {
		t.Errorf("the server's flavor is %v, %v", got.Flavor, err)
	}
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "info", "-U", filepath.Join(dir, "disk.qcow2")).Output(); err != nil || !strings.Contains(string(out), "2 GiB") {
		t.Errorf("the server's disk: %s, %v; want 2 GiB", out, err)
	}
	c.deleteAll(cl, nil)
	if got := domains(); len(got) != 0 {
		t.Errorf("libvirt still has %v", got)
	}
	if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) != 1 || left[0].Name() != "_base" { // the cache of images
		t.Errorf("files are left: %v, %v", left, err)
	}
}

// testVNC opens the VNC console of a guest through the proxy, and reads the greeting of QEMU. A serial console is not enabled.
func (c *cloud) testVNC(cl *gophercloud.ServiceClient, id, proxy string) {
	c.Helper()
	at := *cl
	at.Microversion = "2.6"
	var got *remoteconsoles.RemoteConsole
	c.poll("the console", 30*time.Second, func() (err error) { // until the API knows the versions of all compute services
		got, err = remoteconsoles.Create(c.Context(), &at, id, remoteconsoles.CreateOpts{Protocol: remoteconsoles.ConsoleProtocolVNC, Type: remoteconsoles.ConsoleTypeNoVNC}).Extract()
		return err
	})
	u, err := url.Parse(got.URL)
	if err != nil || u.Host != proxy || u.Path != "/vnc_lite.html" {
		c.Fatalf("the URL %s: %v", got.URL, err)
	}
	for path, want := range map[string]string{u.Query().Get("path"): "RFB 003.008\n", "?token=none": ""} {
		ws, _, err := websocket.Dial(c.Context(), "ws://"+proxy+"/"+path, &websocket.DialOptions{Subprotocols: []string{"binary"}}) //nolint:bodyclose // the library says that it need not be closed
		if err != nil {
			if want != "" {
				c.Errorf("the console: %v", err)
			}
			continue
		}
		_, text, err := ws.Read(c.Context())
		_ = ws.CloseNow()
		if err != nil || string(text) != want {
			c.Errorf("the console sends %q, %v; want %q", text, err, want)
		}
	}
	_, err = remoteconsoles.Create(c.Context(), &at, id, remoteconsoles.CreateOpts{Protocol: remoteconsoles.ConsoleProtocolSerial, Type: remoteconsoles.ConsoleTypeSerial}).Extract()
	if !gophercloud.ResponseCodeIs(err, http.StatusBadRequest) {
		c.Errorf("a serial console: %v", err)
	}
}
