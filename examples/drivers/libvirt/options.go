package libvirt

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/armature-go/armature/fault"
)

// options are those of the configuration.
type options struct {
	host, dir, uri, virtType, images, machine, cpu, vnc string
	softReboot, detach                                  time.Duration
}

func parseOptions(raw json.RawMessage) (options, error) {
	o := options{uri: "qemu:///system", virtType: "kvm", machine: "pc", vnc: "127.0.0.1", softReboot: 120 * time.Second, detach: 60 * time.Second}
	var given map[string]string
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &given); err != nil {
			return o, fault.New(fault.Invalid, "options: %w", err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		v := given[name]
		var err error
		switch name {
		case "host":
			o.host = v
		case "dir":
			o.dir = v
		case "connection_uri":
			o.uri = v
		case "virt_type":
			if o.virtType = v; v != "kvm" && v != "qemu" && v != "test" {
				err = fmt.Errorf("%q is neither kvm nor qemu", v)
			}
		case "images_path":
			o.images = v
		case "machine_type":
			o.machine = v
		case "cpu_model":
			o.cpu = v
		case "vnc_listen":
			o.vnc = v
		case "wait_soft_reboot_seconds":
			o.softReboot, err = seconds(v)
		case "detach_timeout_seconds":
			o.detach, err = seconds(v)
		default:
			err = errors.New("there is no such option")
		}
		if err != nil {
			return o, fault.New(fault.Invalid, "option %s: %w", name, err)
		}
	}
	for _, d := range [][2]string{{"dir", o.dir}, {"images_path", o.images}} {
		if !filepath.IsAbs(d[1]) {
			return o, fault.New(fault.Invalid, "option %s: %q is not an absolute path", d[0], d[1])
		}
	}
	if o.host == "" {
		return o, fault.New(fault.Invalid, "option host is not set")
	}
	if info, err := os.Stat(o.images); err != nil || !info.IsDir() {
		return o, fault.New(fault.Invalid, "option images_path: %s is not a directory", o.images)
	}
	if err := os.MkdirAll(o.dir, 0o711); err != nil { //nolint:gosec // QEMU's user has to pass
		return o, fault.New(fault.Invalid, "option dir: %w", err)
	}
	return o, nil
}

func seconds(v string) (time.Duration, error) {
	n, err := strconv.ParseFloat(v, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a number of seconds", v)
	}
	return time.Duration(n * float64(time.Second)), nil
}
