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
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/armature-go/armature/examples/drivers/libvirt"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/waittest"
)

const guestID = "11111111-2222-4333-8444-555555555555"

// wait waits until f returns true, because of an event in a guest or in libvirtd.
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

// qemu returns the process id of a guest.
func qemu(t *testing.T) int {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err == nil && strings.HasPrefix(string(raw), "/usr/bin/qemu-system") && strings.Contains(string(raw), guestID) {
			var pid int
			if _, err := fmt.Sscanf(f, "/proc/%d/", &pid); err == nil {
				return pid
			}
		}
	}
	t.Fatalf("no QEMU runs %s", guestID)
	return 0
}

// TestGuest: a real operating system in a real QEMU guest works after crashes of the guest and of libvirtd.
func TestGuest(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short: it boots guests; make test runs it")
	}
	lv := envtest.Libvirt(t)
	dir := filepath.Join(t.TempDir(), "instances")
	opts := options(t, map[string]string{"connection_uri": lv.URL, "images_path": images(t), "dir": dir, "vnc_listen": "none", "wait_soft_reboot_seconds": "60"})
	d, err := libvirt.Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	const id = guestID
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	heard := make(chan compute.Event, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- d.Events(ctx, func(e compute.Event) error { heard <- e; return nil })
	}()
	hears := func(want compute.EventType) {
		t.Helper()
		for timeout := time.After(10 * time.Second); ; {
			select {
			case e := <-heard:
				if e.Type == want {
					return
				}
			case <-timeout:
				t.Fatalf("no event %s within 10 s", want)
			}
		}
	}
	hears(compute.EventBegan)

	must("spawn", d.Spawn(ctx, compute.Spec{ID: id, Name: "real <guest> & \"more\"", ImageRef: "guest", Resources: compute.Resources{VCPUs: 1, MemoryMiB: 128, DiskGiB: 1}}))
	hears(compute.EventStarted)
	wait(t, "the guest to be ready", func() bool { return strings.Contains(console(t, d, 0), "guest ready: 1 CPUs") })
	if last := console(t, d, 1); strings.Contains(last, "Linux version") || strings.Count(last, "\n") > 1 {
		t.Errorf("the last line is %q", last)
	}
	if i, err := d.Get(ctx, id); err != nil || i.Name != "real <guest> & \"more\"" {
		t.Errorf("get: %+v, %v", i, err)
	}

	// A soft reboot and a shutdown are done by the guest itself.
	began := time.Now()
	must("soft reboot", d.Reboot(ctx, id, false))
	if took := time.Since(began); took > 50*time.Second {
		t.Errorf("the guest did not hear the soft reboot: it took %v", took)
	}
	wait(t, "the guest to be ready again", func() bool { return strings.Contains(console(t, d, 0), "guest ready") })
	must("power off", d.PowerOff(ctx, id, 60*time.Second))
	if log := console(t, d, 0); !strings.Contains(log, "guest powers off") {
		t.Errorf("it did not shut down by itself: %s", log[max(0, len(log)-200):])
	}

	// The guest is resized, reverted, and resized again. Each time the disk has the right size.
	disk := filepath.Join(dir, id, "disk.qcow2")
	size := func() int64 {
		t.Helper()
		out, err := exec.CommandContext(ctx, "qemu-img", "info", "-U", "--output=json", disk).Output()
		var info struct {
			Size int64 `json:"virtual-size"`
		}
		must("qemu-img info", errors.Join(err, json.Unmarshal(out, &info)))
		return info.Size >> 30
	}
	was, err := os.Stat(disk)
	must("look at the disk", err)
	bigger := compute.Resources{VCPUs: 2, MemoryMiB: 256, DiskGiB: 2}
	must("resize", d.Resize(ctx, id, bigger))
	must("power on", d.PowerOn(ctx, id))
	wait(t, "the bigger guest to be ready", func() bool { return strings.Contains(console(t, d, 0), "guest ready: 2 CPUs, 2") })
	must("power off", d.PowerOff(ctx, id, 0))
	if got := size(); got != 2 {
		t.Errorf("resized, its disk has %d GiB", got)
	}
	must("revert", d.RevertResize(ctx, id))
	if is, err := os.Stat(disk); err != nil || !os.SameFile(was, is) || size() != 1 {
		t.Errorf("reverted, the disk is not what it was: %v, %d GiB", err, size())
	}
	must("power on", d.PowerOn(ctx, id))
	wait(t, "the old guest to be ready", func() bool { return strings.Contains(console(t, d, 0), "guest ready: 1 CPUs") })
	must("power off", d.PowerOff(ctx, id, 0))
	must("resize", d.Resize(ctx, id, bigger))
	must("power on", d.PowerOn(ctx, id))
	must("confirm", d.ConfirmResize(ctx, id))
	must("revert after it is confirmed", d.RevertResize(ctx, id))
	wait(t, "the bigger guest to be ready", func() bool { return strings.Contains(console(t, d, 0), "guest ready: 2 CPUs, 2") })
	if got := size(); got != 2 {
		t.Errorf("confirmed, its disk has %d GiB", got)
	}

	// The guest's process dies.
	for len(heard) > 0 {
		<-heard
	}
	must("kill QEMU", syscall.Kill(qemu(t), syscall.SIGKILL))
	hears(compute.EventCrashed)
	if p := power(t, d); p != compute.Crashed {
		t.Errorf("after its QEMU was killed it is %v", p)
	}
	must("power on", d.PowerOn(ctx, id))
	if p := power(t, d); p != compute.Running {
		t.Errorf("started again it is %v", p)
	}

	// libvirtd dies, and comes back.
	pid := qemu(t)
	lv.Kill()
	if err := <-ended; fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("the stream of events without libvirtd: %v", err)
	}
	if _, err := d.Get(ctx, id); fault.CodeOf(err) != fault.Unavailable && fault.CodeOf(err) != fault.Unknown {
		t.Errorf("get without libvirtd: %v", err)
	}
	must("restart of libvirtd", lv.Restart(ctx))
	wait(t, "libvirtd to be used again", func() bool { _, err := d.Get(ctx, id); return err == nil })
	if p := power(t, d); p != compute.Running || qemu(t) != pid {
		t.Errorf("after a restart of libvirtd it is %v, in process %d; it was in %d", p, qemu(t), pid)
	}

	// Guests that the driver has not created are neither listed nor changed.
	other := `<domain type="qemu"><name>other</name><uuid>99999999-2222-4333-8444-555555555555</uuid><memory unit="MiB">16</memory><os><type>hvm</type></os></domain>`
	file := filepath.Join(t.TempDir(), "other.xml")
	must("write", os.WriteFile(file, []byte(other), 0o600))
	if out, err := exec.CommandContext(ctx, "virsh", "-c", lv.URL, "define", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if list, err := d.List(ctx); err != nil || len(list) != 1 || list[0].ID != id {
		t.Errorf("list: %+v, %v", list, err)
	}
	if err := d.Destroy(ctx, "99999999-2222-4333-8444-555555555555"); fault.CodeOf(err) != fault.Conflict {
		t.Errorf("destroy of another's guest: %v", err)
	}

	must("destroy", d.Destroy(ctx, id))
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != "_base" { // the cache of images
		t.Errorf("files are left: %v, %v", left, err)
	}
	if out, err := exec.CommandContext(ctx, "virsh", "-c", lv.URL, "list", "--all", "--name").CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "other" {
		t.Errorf("libvirt has %q, %v", out, err)
	}
}

// TestImages: images that are refused, and that nothing is left after the error.
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
	named := bytes.Clone(outside) // the name without the feature
	named[79] &^= 4
	named[95] = 0 // and without the feature that makes the file raw
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
		if bases, _ := filepath.Glob(dir + "/_base/*"); slices.ContainsFunc(bases, func(s string) bool { return !strings.HasPrefix(filepath.Base(s), "big.") }) {
			t.Errorf("image %q: it is in the cache: %v", tt.image, bases)
		}
	}
}

// TestOpen: wrong options, and a libvirtd that does not exist.
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
		{map[string]string{"images_path": dir, "colour": "red"}, fault.Invalid, "option colour: no such option"},
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
