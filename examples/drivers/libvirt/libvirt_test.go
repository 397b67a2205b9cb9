//go:build libvirt_dlopen

package libvirt_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/armature-go/armature/examples/drivers/libvirt"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
)

const guestID = "11111111-2222-4333-8444-555555555555"

// wait waits until the function f returns true, at most 90 s. f depends on events in a guest or in libvirtd, of which a test gets no signal.
func wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	if err := waittest.Poll(90*time.Second, func() error {
		if !f() {
			return errors.New("not yet")
		}
		return nil
	}); err != nil {
		t.Fatalf("waited 90 s for %s: %v", what, err)
	}
}

func power(t *testing.T, d compute.Driver) compute.PowerState {
	t.Helper()
	i, err := d.Get(t.Context(), guestID)
	if err != nil {
		t.Logf("get: %v", err)
	}
	return i.Power
}

func console(t *testing.T, d compute.Driver, lines int) string {
	t.Helper()
	var b strings.Builder
	if err := d.ConsoleLog(t.Context(), guestID, lines, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// qemu returns the process id of the guest whose disk is in g.dir. Guests of other tests have the same id.
func (g *guest) qemu() int {
	g.Helper()
	disk := filepath.Join(g.dir, guestID) + "/"
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err == nil && strings.HasPrefix(string(raw), "/usr/bin/qemu-system") && strings.Contains(string(raw), disk) {
			var pid int
			if _, err := fmt.Sscanf(f, "/proc/%d/", &pid); err == nil {
				return pid
			}
		}
	}
	g.Fatalf("no QEMU runs with a file of %s", disk)
	return 0
}

// TestGuest: a real operating system in a real QEMU guest works after crashes of the guest and of libvirtd.
func TestGuest(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short: it boots guests; make test runs it")
	}
	g := &guest{T: t, lv: envtest.Libvirt(t), dir: filepath.Join(t.TempDir(), "instances"), heard: make(chan compute.Event, 100), ended: make(chan error, 1)}
	opts := options(t, map[string]string{"connection_uri": g.lv.URL, "images_path": images(t), "dir": g.dir, "vnc_listen": "none", "wait_soft_reboot_seconds": "60"})
	d, err := libvirt.Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	g.d, g.ctx = d, ctx
	go func() {
		g.ended <- d.Events(ctx, func(e compute.Event) error { g.heard <- e; return nil })
	}()
	g.awaitEvent(compute.EventBegan)
	g.testSpawn()
	g.testReboot()
	g.testResize()
	g.testCrash()
	g.testRestart()
	g.testForeign()
	g.testDestroy()
}

// guest is a real guest of the test's own libvirtd.
type guest struct {
	*testing.T

	ctx   context.Context //nolint:containedctx // it is the deadline of the whole test
	d     compute.Driver
	lv    *testenv.Service
	dir   string // the directory of the driver's files
	heard chan compute.Event
	ended chan error // receives the result of Events
}

func (g *guest) must(what string, err error) {
	g.Helper()
	if err != nil {
		g.Fatalf("%s: %v", what, err)
	}
}

// awaitEvent waits for an event, and drops earlier events.
func (g *guest) awaitEvent(want compute.EventType) {
	g.Helper()
	for timeout := time.After(10 * time.Second); ; {
		select {
		case e := <-g.heard:
			if e.Type == want {
				return
			}
		case <-timeout:
			g.Fatalf("no event %s within 10 s", want)
		}
	}
}

// testSpawn: a guest boots, and its console is read.
func (g *guest) testSpawn() {
	g.Helper()
	g.must("spawn", g.d.Spawn(g.ctx, compute.Spec{ID: guestID, Name: "real <guest> & \"more\"", ImageRef: "guest", Resources: compute.Resources{VCPUs: 1, MemoryMiB: 128, DiskGiB: 1}}))
	g.awaitEvent(compute.EventStarted)
	wait(g.T, "the guest to be ready", func() bool { return strings.Contains(console(g.T, g.d, 0), "guest ready: 1 CPUs") })
	if last := console(g.T, g.d, 1); strings.Contains(last, "Linux version") || strings.Count(last, "\n") > 1 {
		g.Errorf("the last line is %q", last)
	}
	grown := &growing{file: filepath.Join(g.dir, guestID, "console.log")}
	if err := g.d.ConsoleLog(g.ctx, guestID, 1, grown); err != nil || grown.err != nil || strings.Contains(grown.got.String(), "later") {
		g.Errorf("the last line, while the guest writes more: %q, %v, %v", &grown.got, err, grown.err)
	}
	if i, err := g.d.Get(g.ctx, guestID); err != nil || i.Name != "real <guest> & \"more\"" {
		g.Errorf("get: %+v, %v", i, err)
	}
}

// growing receives a console log. At the first write it appends lines to the file of the log, as a guest does.
type growing struct {
	file string
	got  strings.Builder
	err  error
}

func (g *growing) Write(b []byte) (int, error) {
	if g.got.Len() == 0 {
		f, err := os.OpenFile(g.file, os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString("later\nlater\n")
			err = errors.Join(err, f.Close())
		}
		g.err = err
	}
	return g.got.Write(b)
}

// testReboot: the guest's operating system reacts to a soft reboot and to a shutdown.
func (g *guest) testReboot() {
	g.Helper()
	began := time.Now()
	g.must("soft reboot", g.d.Reboot(g.ctx, guestID, false))
	if took := time.Since(began); took > 50*time.Second {
		g.Errorf("the guest did not react to the soft reboot: it took %v", took)
	}
	wait(g.T, "the guest to be ready again", func() bool { return strings.Contains(console(g.T, g.d, 0), "guest ready") })
	g.must("power off", g.d.PowerOff(g.ctx, guestID, 60*time.Second))
	if log := console(g.T, g.d, 0); !strings.Contains(log, "guest powers off") {
		g.Errorf("the guest did not shut down by itself: %s", log[max(0, len(log)-200):])
	}
}

// testResize: the guest is resized, reverted, and resized again. Each time the disk has the right size.
func (g *guest) testResize() {
	g.Helper()
	disk := filepath.Join(g.dir, guestID, "disk.qcow2")
	size := func() int64 {
		g.Helper()
		out, err := exec.CommandContext(g.ctx, "qemu-img", "info", "-U", "--output=json", disk).Output()
		var info struct {
			Size int64 `json:"virtual-size"`
		}
		g.must("qemu-img info", errors.Join(err, json.Unmarshal(out, &info)))
		return info.Size >> 30
	}
	was, err := os.Stat(disk)
	g.must("look at the disk", err)
	bigger := compute.Resources{VCPUs: 2, MemoryMiB: 256, DiskGiB: 2}
	g.must("resize", g.d.Resize(g.ctx, guestID, bigger))
	g.must("power on", g.d.PowerOn(g.ctx, guestID))
	wait(g.T, "the bigger guest to be ready", func() bool { return strings.Contains(console(g.T, g.d, 0), "guest ready: 2 CPUs, 2") })
	g.must("power off", g.d.PowerOff(g.ctx, guestID, 0))
	if got := size(); got != 2 {
		g.Errorf("after the resize, the disk has %d GiB", got)
	}
	g.must("revert", g.d.RevertResize(g.ctx, guestID))
	if is, err := os.Stat(disk); err != nil || !os.SameFile(was, is) || size() != 1 {
		g.Errorf("after the revert, the disk is not the old one: %v, %d GiB", err, size())
	}
	g.must("power on", g.d.PowerOn(g.ctx, guestID))
	wait(g.T, "the old guest to be ready", func() bool { return strings.Contains(console(g.T, g.d, 0), "guest ready: 1 CPUs") })
	g.must("power off", g.d.PowerOff(g.ctx, guestID, 0))
	g.must("resize", g.d.Resize(g.ctx, guestID, bigger))
	g.must("power on", g.d.PowerOn(g.ctx, guestID))
	g.must("confirm", g.d.ConfirmResize(g.ctx, guestID))
	g.must("revert after it is confirmed", g.d.RevertResize(g.ctx, guestID))
	wait(g.T, "the bigger guest to be ready", func() bool { return strings.Contains(console(g.T, g.d, 0), "guest ready: 2 CPUs, 2") })
	if got := size(); got != 2 {
		g.Errorf("after the confirmation, the disk has %d GiB", got)
	}
}

// testCrash: after the guest's process was killed, the guest has the state crashed, and can be started.
func (g *guest) testCrash() {
	g.Helper()
	for len(g.heard) > 0 {
		<-g.heard
	}
	g.must("kill QEMU", syscall.Kill(g.qemu(), syscall.SIGKILL))
	g.awaitEvent(compute.EventCrashed)
	if p := power(g.T, g.d); p != compute.Crashed {
		g.Errorf("after its QEMU was killed, the guest is %v", p)
	}
	g.must("power on", g.d.PowerOn(g.ctx, guestID))
	if p := power(g.T, g.d); p != compute.Running {
		g.Errorf("after the second start, the guest is %v", p)
	}
}

// testRestart: while libvirtd is down, calls fail. After its restart the guest still runs, and calls succeed.
func (g *guest) testRestart() {
	g.Helper()
	pid := g.qemu()
	g.lv.Kill()
	if err := <-g.ended; fault.CodeOf(err) != fault.Unavailable {
		g.Errorf("the stream of events without libvirtd: %v", err)
	}
	if _, err := g.d.Get(g.ctx, guestID); fault.CodeOf(err) != fault.Unavailable && fault.CodeOf(err) != fault.Unknown {
		g.Errorf("get without libvirtd: %v", err)
	}
	g.must("restart of libvirtd", g.lv.Restart(g.ctx))
	wait(g.T, "libvirtd to be used again", func() bool { _, err := g.d.Get(g.ctx, guestID); return err == nil })
	if p := power(g.T, g.d); p != compute.Running || g.qemu() != pid {
		g.Errorf("after a restart of libvirtd, the guest is %v in process %d; before, it was in process %d", p, g.qemu(), pid)
	}
}

// testForeign: guests that the driver has not created are neither listed nor changed.
func (g *guest) testForeign() {
	g.Helper()
	other := `<domain type="qemu"><name>other</name><uuid>99999999-2222-4333-8444-555555555555</uuid><memory unit="MiB">16</memory><os><type>hvm</type></os></domain>`
	file := filepath.Join(g.TempDir(), "other.xml")
	g.must("write", os.WriteFile(file, []byte(other), 0o600))
	if out, err := exec.CommandContext(g.ctx, "virsh", "-c", g.lv.URL, "define", file).CombinedOutput(); err != nil {
		g.Fatalf("%v: %s", err, out)
	}
	if list, err := g.d.List(g.ctx); err != nil || len(list) != 1 || list[0].ID != guestID {
		g.Errorf("list: %+v, %v", list, err)
	}
	if err := g.d.Destroy(g.ctx, "99999999-2222-4333-8444-555555555555"); fault.CodeOf(err) != fault.Conflict {
		g.Errorf("destroy of a guest that the driver has not created: %v", err)
	}
}

// testDestroy: after the deletion, only the cache of images, and guests that the driver has not created, are left.
func (g *guest) testDestroy() {
	g.Helper()
	g.must("destroy", g.d.Destroy(g.ctx, guestID))
	if left, err := os.ReadDir(g.dir); err != nil || len(left) != 1 || left[0].Name() != "_base" { // the cache of images
		g.Errorf("files are left: %v, %v", left, err)
	}
	if out, err := exec.CommandContext(g.ctx, "virsh", "-c", g.lv.URL, "list", "--all", "--name").CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "other" {
		g.Errorf("libvirt has %q, %v", out, err)
	}
}

// TestImages: the driver refuses an image that is missing, whose format differs from that of its name, that refers to another file, or that is
// too large. No file is left after the error.
func TestImages(t *testing.T) {
	t.Parallel()
	lv := envtest.Libvirt(t)
	dir, imgs := filepath.Join(t.TempDir(), "instances"), t.TempDir()
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	run("create", "-q", "-f", "qcow2", imgs+"/big.qcow2", "5G")
	run("create", "-q", "-f", "qcow2", "-b", imgs+"/big.qcow2", "-F", "qcow2", imgs+"/hole.qcow2")
	run("create", "-q", "-f", "qcow2", imgs+"/fine.qcow2", "1G")
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	run("create", "-q", "-f", "qcow2", "-o", "data_file="+secret+",data_file_raw=on", imgs+"/outside.qcow2", "1M")
	outside, err := os.ReadFile(imgs + "/outside.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	fine, err := os.ReadFile(imgs + "/fine.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	named := bytes.Clone(outside) // the header names a data file, but the feature bit is not set
	named[79] &^= 4
	named[95] = 0 // the bit for a raw data file is not set either
	unknown := bytes.Clone(fine)
	unknown[72] |= 0x80
	for name, content := range map[string][]byte{
		"noise.qcow2": []byte("not an image"), "disguised.img": outside, "vmdk.raw": []byte("KDMV and more"), "short.qcow2": []byte("QFI\xfb"), "named.qcow2": named, "unknown.qcow2": unknown,
	} {
		if err := os.WriteFile(filepath.Join(imgs, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, err := libvirt.Open(t.Context(), options(t, map[string]string{"connection_uri": lv.URL, "images_path": imgs, "dir": dir}))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, tt := range []struct {
		image string
		code  fault.Code
		says  string
	}{
		{"none", fault.Precondition, "this host has no image none"},
		{"../etc/passwd", fault.Invalid, "is not an image's name"},
		{"", fault.Invalid, "is not an image's name"},
		{"big", fault.Invalid, "a disk of 1 GiB is too small for image big"},
		{"hole", fault.Invalid, "has a backing file"},
		{"noise", fault.Invalid, "the image has the format raw, not qcow2"},
		{"outside", fault.Invalid, "external data file"},
		{"named", fault.Invalid, "names an external data file"},
		{"disguised", fault.Invalid, "the image has the format qcow2, not raw"},
		{"vmdk", fault.Invalid, "the image has the format vmdk, not raw"},
		{"short", fault.Invalid, "less than a header of qcow2"},
		{"unknown", fault.Invalid, "unknown features"},
	} {
		err := d.Spawn(t.Context(), compute.Spec{ID: guestID, ImageRef: tt.image, Resources: compute.Resources{VCPUs: 1, MemoryMiB: 64, DiskGiB: 1}})
		if fault.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("image %q: %v: %v, want %v with %q", tt.image, fault.CodeOf(err), err, tt.code, tt.says)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 1 || len(left) == 1 && left[0].Name() != "_base" {
			t.Errorf("image %q: left %v, %v", tt.image, left, err)
		}
		// A large image is not converted either: it could fill the host.
		if bases, _ := filepath.Glob(dir + "/_base/*"); len(bases) > 0 {
			t.Errorf("image %q is in the cache: %v", tt.image, bases)
		}
	}
}

// TestOpen: Open returns the right error for each wrong option, and for a libvirtd that does not run.
func TestOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, tt := range []struct {
		opts map[string]string
		code fault.Code
		says string
	}{
		{map[string]string{"images_path": "relative"}, fault.Invalid, "option images_path"},
		{map[string]string{"images_path": dir + "/none"}, fault.Invalid, "is not a directory"},
		{map[string]string{"images_path": dir, "virt_type": "xen"}, fault.Invalid, "option virt_type"},
		{map[string]string{"images_path": dir, "color": "red"}, fault.Invalid, "option color: no such option"},
		{map[string]string{"images_path": dir, "wait_soft_reboot_seconds": "long"}, fault.Invalid, "option wait_soft_reboot_seconds"},
		{map[string]string{"images_path": dir, "connection_uri": "qemu+unix:///system?socket=/nonexistent"}, fault.Unavailable, "install libvirt-daemon and libvirt-daemon-driver-qemu, and start libvirtd"},
	} {
		d, err := libvirt.Open(t.Context(), options(t, tt.opts))
		if d != nil || fault.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%v: %v: %v, want %v with %q", tt.opts, fault.CodeOf(err), err, tt.code, tt.says)
		}
	}
	if _, err := libvirt.Open(t.Context(), json.RawMessage("[]")); !errors.Is(err, fault.Invalid) {
		t.Errorf("options that are not JSON: %v", err)
	}
}
