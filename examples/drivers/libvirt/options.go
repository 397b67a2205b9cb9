package libvirt

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
)

// options are the checked options of the driver, see parseOptions for their names.
type options struct {
	host, dir, uri, virtType, images, machine, cpu, vnc string
	softReboot, detach                                  time.Duration
}

func parseOptions(raw json.RawMessage) (options, error) {
	given := struct {
		Host       string        `option:"host"`
		Dir        string        `option:"dir"`
		URI        string        `option:"connection_uri"`
		VirtType   string        `option:"virt_type"`
		Images     string        `option:"images_path"`
		Machine    string        `option:"machine_type"`
		CPU        string        `option:"cpu_model"`
		VNC        string        `option:"vnc_listen"`
		SoftReboot time.Duration `option:"wait_soft_reboot_seconds"`
		Detach     time.Duration `option:"detach_timeout_seconds"`
	}{URI: "qemu:///system", VirtType: "kvm", Machine: "pc", VNC: "127.0.0.1", SoftReboot: 120 * time.Second, Detach: 60 * time.Second}
	if err := driver.ParseOptions(raw, &given); err != nil {
		return options{}, err
	}
	o := options{
		host: given.Host, dir: given.Dir, uri: given.URI, virtType: given.VirtType, images: given.Images, machine: given.Machine,
		cpu: given.CPU, vnc: given.VNC, softReboot: given.SoftReboot, detach: given.Detach,
	}
	switch {
	case o.virtType != "kvm" && o.virtType != "qemu" && o.virtType != "test":
		return o, fault.New(fault.Invalid, "option virt_type: %q is neither kvm nor qemu", o.virtType)
	case o.softReboot < 0:
		return o, fault.New(fault.Invalid, "option wait_soft_reboot_seconds: %v is negative", o.softReboot)
	case o.detach < 0:
		return o, fault.New(fault.Invalid, "option detach_timeout_seconds: %v is negative", o.detach)
	}
	for _, d := range [][2]string{{"dir", o.dir}, {"images_path", o.images}} {
		if !filepath.IsAbs(d[1]) && (d[0] == "dir" || d[1] != "") {
			return o, fault.New(fault.Invalid, "option %s: %q is not an absolute path", d[0], d[1])
		}
	}
	if o.host == "" {
		return o, fault.New(fault.Invalid, "option host is not set")
	}
	if info, err := os.Stat(o.images); o.images != "" && (err != nil || !info.IsDir()) {
		return o, fault.New(fault.Invalid, "option images_path: %s is not a directory", o.images)
	}
	if err := os.MkdirAll(o.dir, 0o711); err != nil { //nolint:gosec // QEMU runs as another user, which needs the x bit
		return o, fault.New(fault.Invalid, "option dir: %w", err)
	}
	return o, nil
}
