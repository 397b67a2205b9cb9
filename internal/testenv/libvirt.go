package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Libvirt starts a libvirtd with the QEMU driver. The libvirtd keeps its files in dir, which must
// exist. The caller removes dir. The path of dir must be short, because the length of
// socket paths is limited. Service.URL is for libvirt's clients.
//
// libvirtd runs in its own mount and process namespaces, in which dir replaces libvirt's
// directories. This needs Linux and root. When this process ends, for any reason,
// the kernel ends all processes in the namespaces. Guests outlive Kill and Restart, and
// end with Stop.
//
// Libvirt returns when libvirtd answers, or with an error after 120 s. It fails with
// [ErrMissing] if libvirt is not installed, or if this process does not run as root.
func Libvirt(ctx context.Context, dir string, log io.Writer) (*Service, error) {
	if err := findLibvirt(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("start libvirtd: run the tests as root: %w", ErrMissing)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "run", "libvirt-sock")
	if len(socket) > 100 {
		return nil, fmt.Errorf("start libvirtd: the socket path %s is longer than 100 bytes: use a shorter directory", socket)
	}
	if err := writeLibvirt(dir); err != nil {
		return nil, err
	}
	s := &Service{Name: "libvirt", out: &tail{next: log}, URL: "qemu+unix:///system?socket=" + socket}
	var holder *Process
	s.extra = func(ctx context.Context, stop bool) error {
		switch {
		case stop && holder != nil:
			holder.Kill() // the first process of the namespaces ends, and the other processes in them end with it
			holder = nil
		case !stop && holder == nil:
			var err error
			holder, err = startNamespaces(ctx, dir)
			return err
		}
		return nil
	}
	s.launch = func() (*exec.Cmd, error) {
		first, err := firstChild(holder.PID())
		if err != nil {
			return nil, err
		}
		return exec.Command("nsenter", "-t", first, "-m", "-p", "libvirtd", "-f", "/etc/libvirt/libvirtd.conf", "-p", "/run/libvirt/libvirtd.pid"), nil //nolint:noctx // it runs until Stop
	}
	s.probe = func(ctx context.Context) (string, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", socket)
		if err != nil {
			return "", err
		}
		_ = c.Close() // it was only to find out whether libvirtd listens
		// The first connection waits until libvirtd has examined every QEMU program.
		long, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout/2)
		defer cancel()
		out, err := exec.CommandContext(long, "virsh", "-c", s.URL, "version").CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("virsh: %w: %s", err, out)
		}
		_, after, _ := strings.Cut(string(out), "Using library: libvirt ")
		v, _, _ := strings.Cut(after, "\n")
		return v, nil
	}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// writeLibvirt writes the configuration, and the files that replace the machine's.
func writeLibvirt(dir string) error {
	files := map[string]string{
		"etc/qemu.conf": "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nremember_owner = 0\nsecurity_driver = \"none\"\n" +
			"namespaces = []\ncgroup_controllers = []\nstdio_handler = \"file\"\n",
		"etc/libvirtd.conf": fmt.Sprintf("unix_sock_dir = %q\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\nlog_outputs = \"3:stderr\"\n"+
			"host_uuid = \"4c8b9c3e-7a41-4f6b-9f0a-2d5f6b8a1c10\"\n", filepath.Join(dir, "run")),
	}
	// The QEMU driver looks up this user before it reads its configuration.
	for _, f := range [][2]string{{"passwd", "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n"}, {"group", "libvirt-qemu:x:64055:\nkvm:x:64054:\n"}} {
		name, line := f[0], f[1]
		raw, err := os.ReadFile("/etc/" + name)
		if err != nil {
			return err
		}
		files[name] = string(bytes.TrimRight(raw, "\n")) + "\n" + line
	}
	for _, sub := range []string{"run", "lib", "cache", "log", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil { //nolint:gosec // the mode of the files that it replaces
			return err
		}
	}
	return nil
}

// startNamespaces starts a process that creates the namespaces and runs until it is killed. It returns when the namespaces
// are ready.
func startNamespaces(ctx context.Context, dir string) (*Process, error) {
	const script = `set -e
for d in run/libvirt:run var/lib/libvirt:lib var/cache/libvirt:cache var/log/libvirt:log etc/libvirt:etc; do
	mkdir -p /${d%%:*}
	mount --bind "$1/${d#*:}" /${d%%:*}
done
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
touch "$1/held"
while :; do # the first process must wait for processes whose parents have ended
	sleep 3600 &
	wait
done`
	if err := os.Remove(filepath.Join(dir, "held")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh", dir) //nolint:noctx // it runs until Stop
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := Start(cmd)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(filepath.Join(dir, "held")); err == nil {
			return p, nil
		}
		select {
		case <-p.Done():
			return nil, fmt.Errorf("create namespaces for libvirt: %w: %s", p.Err(), &out)
		case <-ctx.Done():
			p.Kill()
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// firstChild returns the process ID of a process's only child.
func firstChild(pid int) (string, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return "", err
	}
	if f := strings.Fields(string(raw)); len(f) == 1 {
		return f[0], nil
	}
	return "", fmt.Errorf("process %d has the children %q, want exactly one", pid, raw)
}

// findLibvirt returns ErrMissing, with the name of the package, if a program that libvirt needs is not installed.
func findLibvirt() error {
	for _, p := range libvirtPrograms {
		if _, err := findProgram(p.pkg, p.name); err != nil {
			return err
		}
	}
	if m, _ := filepath.Glob("/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so"); len(m) == 0 {
		return fmt.Errorf("libvirt-daemon-driver-qemu: %w", ErrMissing)
	}
	return nil
}

var libvirtPrograms = []struct{ pkg, name string }{
	{"libvirt-daemon", "libvirtd"},
	{"libvirt-clients", "virsh"},
	{"qemu-system-x86", "qemu-system-x86_64"},
	{"qemu-utils", "qemu-img"},
}

// missingForGuests returns the packages that are not installed: those of libvirt with QEMU, and those that
// [GuestImage] needs.
func missingForGuests() []string {
	var missing []string
	for _, p := range slices.Concat(guestPrograms, libvirtPrograms) {
		if _, err := findProgram(p.pkg, p.name); err != nil {
			missing = append(missing, p.pkg)
		}
	}
	if m, _ := filepath.Glob("/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so"); len(m) == 0 {
		missing = append(missing, "libvirt-daemon-driver-qemu")
	}
	return missing
}
