package testenv

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

var guestPrograms = []struct{ pkg, name string }{
	{"busybox-static", "busybox"},
	{"syslinux", "syslinux"},
	{"mtools", "mcopy"},
}

// guestModules are the modules of the kernel that the guest loads, in this order: for the power button, and for disks with a config drive.
var guestModules = []string{
	"drivers/acpi/button", "drivers/input/evdev", "drivers/virtio/virtio_ring", "drivers/virtio/virtio", "drivers/virtio/virtio_pci_legacy_dev",
	"drivers/virtio/virtio_pci_modern_dev", "drivers/virtio/virtio_pci", "drivers/block/virtio_blk", "drivers/cdrom/cdrom", "fs/isofs/isofs",
}

// guestInit is the first program of the guest. It prints the files of a config drive, in base64, the guest's disks and its size on the console,
// and shuts down when the power button is pressed.
const guestInit = `#!/bin/busybox sh
B=/bin/busybox
$B mkdir -p /proc /sys /dev
$B mount -t proc p /proc; $B mount -t sysfs s /sys; $B mount -t devtmpfs d /dev
for m in MODULES; do $B insmod /$m.ko; done
$B mkdir -p /config
for d in /dev/vd?; do # the config drive among them
	$B mount -t iso9660 -o ro $d /config 2>/dev/null || continue
	cd /config
	for f in $($B find . -type f); do echo "config drive: $f $($B base64 -w 0 $f)"; done
done
for d in /dev/vd?; do # with the label of an ext4 file system, and the signature of a swap area
	echo "disk: ${d#/dev/} $($B cat /sys/block/${d#/dev/}/size) $($B dd if=$d bs=2 skip=572 count=8 2>/dev/null | $B tr -dc a-z0-9) $($B dd if=$d bs=2 skip=2043 count=5 2>/dev/null | $B tr -dc A-Z0-9)"
done
echo "guest ready: $($B grep -c ^processor /proc/cpuinfo) CPUs, $($B awk '/MemTotal/{print int($2/1024)}' /proc/meminfo) MiB"
for e in /dev/input/event*; do # the power button among them
	( $B dd if="$e" of=/dev/null bs=24 count=1 2>/dev/null; echo 'guest powers off'; $B poweroff -f ) &
done
while :; do $B sleep 1000; done
`

// GuestImage creates an image of 40 MiB at path, from which a PC boots. The image has Debian's
// kernel for clouds and a busybox. The guest writes "guest ready" on the serial console, and shuts
// down on request. It boots in some seconds, even without KVM. GuestImage needs Debian. It takes a few
// seconds and downloads 27 MB: the package of the kernel, which it unpacks but does not install.
// It fails with [ErrMissing] if a program is not installed.
func GuestImage(ctx context.Context, path string) error {
	for _, p := range guestPrograms {
		if _, err := findProgram(p.pkg, p.name); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp("", "guest-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := fetchKernel(ctx, dir); err != nil {
		return err
	}
	kernel, err := onlyFile(dir, "boot/vmlinuz-*")
	if err != nil {
		return err
	}
	initrd, err := buildInitramfs(dir)
	if err != nil {
		return err
	}
	conf := "SERIAL 0 115200\nDEFAULT guest\nLABEL guest\n KERNEL vmlinuz\n INITRD initrd.gz\n APPEND console=ttyS0 panic=-1\n"
	tmp := filepath.Join(dir, "disk.img")
	for name, raw := range map[string][]byte{"initrd.gz": initrd, "syslinux.cfg": []byte(conf), "disk.img": nil} {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			return err
		}
	}
	if err := os.Truncate(tmp, 40<<20); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"mformat", "-i", tmp, "-v", "GUEST", "::"},
		{"mcopy", "-i", tmp, kernel, "::vmlinuz"},
		{"mcopy", "-i", tmp, filepath.Join(dir, "initrd.gz"), "::initrd.gz"},
		{"mcopy", "-i", tmp, filepath.Join(dir, "syslinux.cfg"), "::syslinux.cfg"},
		{"syslinux", "--install", tmp},
		{"cp", "--sparse=always", tmp, path},
	} {
		if err := runCommand(ctx, dir, args...); err != nil {
			return err
		}
	}
	return nil
}

// fetchKernel downloads the kernel's package, and unpacks the kernel and the modules that the guest needs.
func fetchKernel(ctx context.Context, dir string) error {
	const meta = "linux-image-cloud-amd64"
	name := func() (string, error) {
		out, err := exec.CommandContext(ctx, "apt-cache", "depends", meta).Output()
		for line := range strings.SplitSeq(string(out), "\n") {
			if pkg, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && err == nil {
				return pkg, nil
			}
		}
		return "", fmt.Errorf("apt-cache depends %s names no package: %w", meta, ErrMissing)
	}
	deb, err := downloadPackage(ctx, dir, name)
	if err != nil {
		return err
	}
	args := []string{"sh", "-c", `deb=$1; shift; dpkg-deb --fsys-tarfile "$deb" | tar x --wildcards "$@"`, "sh", deb, "./boot/vmlinuz-*"}
	for _, m := range guestModules {
		args = append(args, "./lib/modules/*/kernel/"+m+".ko*")
	}
	return runCommand(ctx, dir, args...)
}

// downloadPackage downloads a Debian package into dir, and returns its file. The function name returns the name of the package.
func downloadPackage(ctx context.Context, dir string, name func() (string, error)) (string, error) {
	pkg, err := name()
	if err == nil {
		err = runCommand(ctx, dir, "apt-get", "download", "-q", pkg)
	}
	if err != nil { // the package lists may be old or missing
		if uerr := runCommand(ctx, dir, "apt-get", "update", "-q"); uerr != nil {
			return "", uerr
		}
		if pkg, err = name(); err != nil {
			return "", err
		}
		if err := runCommand(ctx, dir, "apt-get", "download", "-q", pkg); err != nil {
			return "", err
		}
	}
	return onlyFile(dir, "*.deb")
}

// onlyFile returns the only file that matches the pattern.
func onlyFile(dir, pattern string) (string, error) {
	m, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(m) != 1 {
		return "", fmt.Errorf("a Debian package has %d files %s, want exactly one", len(m), pattern)
	}
	return m[0], nil
}

// runCommand runs a command in dir. The error has the command's output.
func runCommand(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// buildInitramfs returns the guest's first file system: an archive in cpio's format newc, compressed.
func buildInitramfs(dir string) ([]byte, error) {
	busybox, err := findProgram("busybox-static", "busybox")
	if err != nil {
		return nil, err
	}
	files := map[string]string{"bin/busybox": busybox}
	names, modules := []string{"bin/busybox"}, ""
	for _, module := range guestModules {
		path, err := onlyFile(dir, "lib/modules/*/kernel/"+module+".ko")
		if err != nil {
			return nil, err
		}
		name := filepath.Base(module) + ".ko"
		files[name], names, modules = path, append(names, name), modules+" "+filepath.Base(module)
	}
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	n := 0
	add := func(name string, mode fs.FileMode, raw []byte) error {
		n++
		head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			n, uint32(mode), 0, 0, 1, 0, len(raw), 0, 0, 0, 0, len(name)+1, 0, name)
		for _, part := range [][]byte{[]byte(head), raw} {
			part = append(slices.Clone(part), make([]byte, -len(part)&3)...)
			if _, err := zip.Write(part); err != nil {
				return err
			}
		}
		return nil
	}
	const dirMode, fileMode = 0o040755, 0o100755
	err = add("bin", dirMode, nil)
	for _, name := range names {
		raw, rerr := os.ReadFile(files[name])
		err = joinErr(err, rerr)
		err = joinErr(err, add(name, fileMode, raw))
	}
	err = joinErr(err, add("init", fileMode, []byte(strings.Replace(guestInit, "MODULES", modules, 1))))
	err = joinErr(err, add("TRAILER!!!", 0, nil))
	err = joinErr(err, zip.Close())
	return out.Bytes(), err
}

func joinErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
