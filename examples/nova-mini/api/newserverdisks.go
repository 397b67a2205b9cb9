package api

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
)

// This file has the disks of a request to create servers.

// oldDiskRequest is a disk in the older form, which can describe only volumes and snapshots.
type oldDiskRequest struct {
	VirtualName         string     `json:"virtual_name,omitempty" max:"255"`
	VolumeID            string     `json:"volume_id,omitempty" format:"uuid"`
	SnapshotID          string     `json:"snapshot_id,omitempty" format:"uuid"`
	VolumeSize          volumeSize `json:"volume_size,omitzero"`
	DeviceName          string     `json:"device_name,omitempty" min:"1" max:"255" pattern:"^[a-zA-Z0-9._/-]*$"`
	DeleteOnTermination boolean    `json:"delete_on_termination,omitzero"`
	NoDevice            any        `json:"no_device,omitempty"`
	ConnectionInfo      string     `json:"connection_info,omitempty" max:"16777215"`
}

// volumeSize is a positive integer, given as a number or as a text.
type volumeSize struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (volumeSize) JSONSchema() string {
	return `{"type": ["integer", "string"], "pattern": "^[0-9]+$", "minimum": 1, "maximum": 2147483647}`
}

// diskRequest is a disk of a new server.
type diskRequest struct {
	oldDiskRequest

	SourceType      string    `json:"source_type,omitempty" enum:"volume,image,snapshot,blank"`
	UUID            string    `json:"uuid,omitempty" min:"1" max:"255" pattern:"^[a-zA-Z0-9._-]*$"`
	ImageID         string    `json:"image_id,omitempty" format:"uuid"`
	DestinationType string    `json:"destination_type,omitempty" enum:"local,volume"`
	GuestFormat     string    `json:"guest_format,omitempty" max:"255"`
	DeviceType      string    `json:"device_type,omitempty" max:"255"`
	DiskBus         string    `json:"disk_bus,omitempty" max:"255"`
	BootIndex       bootIndex `json:"boot_index,omitzero"`
	Tag             tag       `json:"tag,omitempty" since:"2.32" until:"2.32"`
	Tag42           tag       `json:"tag42,omitempty" name:"tag" since:"2.42"`
	VolumeType      *string   `json:"volume_type,omitempty" max:"255" since:"2.67"`
}

// bootIndex is an integer, given as a number or as a text, or null for no boot index.
type bootIndex struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (bootIndex) JSONSchema() string {
	return `{"type": ["integer", "string", "null"], "pattern": "^-?[0-9]+$"}`
}

// check accepts only local disks: the server's own image, and blank disks. For any other disk it returns an error, in most cases with Nova's text, because nova-mini has no volumes.
func (d *diskRequest) check(imageRef string) error {
	format := func(text string) error { return fault.New(fault.Invalid, "Block Device Mapping is Invalid: %s", text) }
	switch {
	case d.SourceType == "blank" && d.UUID != "":
		return format("Invalid device UUID.")
	case d.SourceType == "":
		return format("Some required fields are missing")
	case d.SourceType != "blank" && d.UUID == "":
		return format("Missing device UUID.")
	case d.SourceType == "image" && d.DestinationType == "local" && (imageRef == "" || plainText(d.BootIndex.RawMessage) != "0"):
		return format("Mapping image to local is not supported.")
	case d.DestinationType == "local" && d.VolumeType != nil && *d.VolumeType != "":
		return format("Specifying a volume_type with destination_type=local is not supported.")
	case d.SourceType == "volume" && d.VolumeType != nil && *d.VolumeType != "":
		return format("Specifying volume type to existing volume is not supported.")
	case d.SourceType == "image" && d.DestinationType == "local" && d.UUID != imageRef:
		return format("failed to get image " + d.UUID + ".")
	case d.SourceType == "volume", d.SourceType == "snapshot":
		return format("failed to get " + d.SourceType + " " + d.UUID + ".")
	case d.DestinationType != "local":
		return notSupported("Volumes are not supported: the cloud has no volume service.")
	case d.SourceType == "blank":
		return d.checkExtra()
	}
	return d.checkRoot()
}

// isSwap reports whether a blank disk is a swap disk.
func (d *diskRequest) isSwap() bool { return d.GuestFormat == "swap" }

// diskBuses are the buses of disks that Nova knows.
var diskBuses = strings.Fields(`fdc ide sata scsi usb virtio xen lxc uml`)

// checkBus returns an error for a bus or a tag that no disk of nova-mini can have.
func (d *diskRequest) checkBus() error {
	switch {
	case d.DiskBus != "" && !slices.Contains(diskBuses, d.DiskBus):
		return fault.New(fault.Invalid, "Block Device Mapping is Invalid: The provided disk bus %s is not valid.", d.DiskBus)
	case d.DiskBus != "" && d.DiskBus != "virtio":
		return notSupported("The disk bus " + d.DiskBus + " is not supported: disks have virtio.")
	case d.Tag != "" || d.Tag42 != "":
		return notSupported("Tags of disks are not supported.")
	}
	return nil
}

// checkExtra returns an error for a property that an ephemeral or a swap disk cannot have. The field delete_on_termination has no effect, as in Nova: these disks end with the server.
func (d *diskRequest) checkExtra() error {
	if err := d.checkBus(); err != nil {
		return err
	}
	switch {
	case d.DeviceType != "" && d.DeviceType != "disk":
		return notSupported("The device type " + d.DeviceType + " is not supported: ephemeral and swap disks are disks.")
	case d.DeviceName != "":
		return notSupported("The device name " + d.DeviceName + " is not supported: the host chooses the names of ephemeral and swap disks.")
	case d.GuestFormat != "" && d.GuestFormat != "ext4" && !d.isSwap():
		return notSupported("The format " + d.GuestFormat + " is not supported: an ephemeral disk has ext4.")
	case isTrue(fmt.Sprint(d.NoDevice)):
		return notSupported("The field no_device is not supported: the server has the ephemeral and the swap disk of its flavor.")
	}
	return nil
}

// checkRoot returns an error for a property that the root disk of a server cannot have: the driver chooses the name and the bus, and the flavor the size.
func (d *diskRequest) checkRoot() error {
	if err := d.checkBus(); err != nil {
		return err
	}
	switch {
	case d.DeviceType != "" && d.DeviceType != "disk":
		return notSupported("The device type " + d.DeviceType + " is not supported: a server boots from a disk.")
	case d.DeviceName != "" && d.DeviceName != "vda" && d.DeviceName != "/dev/vda":
		return notSupported("The device name " + d.DeviceName + " is not supported: the root disk is /dev/vda.")
	case d.VolumeSize.RawMessage != nil:
		return notSupported("A size of the root disk is not supported: the flavor has it.")
	case d.GuestFormat != "":
		return notSupported("A format of the root disk is not supported: the image has it.")
	case isTrue(fmt.Sprint(d.NoDevice)):
		return notSupported("A server without its root disk is not supported.")
	}
	return nil
}

// checkDisks returns an error for disks that a server cannot have.
func (n *newServer) checkDisks() error {
	if len(n.OldDisks) > 0 {
		if len(n.Disks) > 0 {
			return fault.New(fault.Invalid, "Using different block_device_mapping syntaxes is not allowed in the same request.")
		}
		d := n.OldDisks[0]
		if d.SnapshotID != "" {
			return fault.New(fault.Invalid, "Block Device Mapping is Invalid: failed to get snapshot %s.", d.SnapshotID)
		}
		return fault.New(fault.Invalid, "Block Device Mapping is Invalid: failed to get volume %s.", d.VolumeID)
	}
	for i := range n.Disks {
		if err := n.Disks[i].check(n.ImageRef); err != nil {
			return err
		}
	}
	if err := n.checkBootOrder(); err != nil {
		return err
	}
	if n.ImageRef == "" { // without volumes, a server can only boot from an image
		return fault.New(fault.Invalid, "Missing imageRef attribute")
	}
	return nil
}

// checkBootOrder returns an error unless the server boots from its root disk, and from no other disk. The indexes of the disks that a server may boot from are 0, 1 and so on; other disks have a
// negative index or none.
func (n *newServer) checkBootOrder() error {
	var indexes []int
	blank := false
	for i := range n.Disks {
		d := &n.Disks[i]
		text := plainText(d.BootIndex.RawMessage)
		if text == "" || strings.HasPrefix(text, "-") {
			continue
		}
		index, err := strconv.Atoi(text)
		if err != nil { // larger than any index that is valid
			index = math.MaxInt
		}
		indexes, blank = append(indexes, index), blank || d.SourceType == "blank"
	}
	slices.Sort(indexes)
	valid := len(indexes) > 0 || len(n.Disks) == 0
	for i, index := range indexes {
		valid = valid && i == index
	}
	switch {
	case !valid:
		return fault.New(fault.Invalid, "Block Device Mapping is Invalid: Boot sequence for the instance and image/block device mapping combination is not valid.")
	case blank:
		return notSupported("A server does not boot from an ephemeral or a swap disk: give these disks the boot_index -1.")
	}
	return nil
}

// maxLocalDisks is the maximum number of local disks of a server, the root disk included. It is the default of Nova's option max_local_block_devices.
const maxLocalDisks = 3

// blankDisks are the blank disks that a request names: the sizes of the ephemeral disks, or their sum, and of the swap disk.
type blankDisks struct {
	store.ExtraDisks

	ephemerals, swaps int
}

// blankDisks returns the blank disks that the request names. A disk without a size has the size of the flavor's disk. Errors: Invalid, with Nova's text, for a wrong size.
func (n *newServer) blankDisks(f *store.Flavor) (out blankDisks, err error) {
	for i := range n.Disks {
		d := &n.Disks[i]
		if d.SourceType != "blank" {
			continue
		}
		size, err := parseWhole("volume_size", d.VolumeSize.RawMessage, 0)
		switch {
		case err != nil:
			return out, err
		case d.isSwap():
			out.swaps++
			out.SwapMiB = cmp.Or(size, f.SwapMiB)
		default:
			out.ephemerals++
			out.EphemeralGiB += cmp.Or(size, f.EphemeralGiB)
		}
	}
	return out, nil
}

// ownDisks returns the extra disks of the server if the client asks for other disks than those of the flavor, otherwise nil. As in Nova, the disks of the request replace those of the flavor with the
// same kind, and are not larger. Errors: Invalid, with Nova's text; 501 for several ephemeral disks, and for a disk without a size that the flavor does not have.
func (n *newServer) ownDisks(f *store.Flavor) (*store.ExtraDisks, error) {
	of := store.ExtraDisks{EphemeralGiB: f.EphemeralGiB, SwapMiB: f.SwapMiB}
	own, err := n.blankDisks(f)
	if err != nil || own.ephemerals+own.swaps == 0 {
		return nil, err
	}
	locals := 1 + own.ephemerals + own.swaps
	if own.ephemerals == 0 {
		own.EphemeralGiB = of.EphemeralGiB
		locals += min(of.EphemeralGiB, 1)
	}
	if own.swaps == 0 {
		own.SwapMiB = of.SwapMiB
		locals += min(of.SwapMiB, 1)
	}
	switch {
	case own.EphemeralGiB > of.EphemeralGiB:
		return nil, fault.New(fault.Invalid, "Ephemeral disks requested are larger than the instance type allows. If no size is given in one block device mapping, flavor ephemeral size will be used.")
	case own.swaps > 1:
		return nil, fault.New(fault.Invalid, "Block Device Mapping is Invalid: More than one swap drive requested.")
	case own.SwapMiB > of.SwapMiB:
		return nil, fault.New(fault.Invalid, "Swap drive requested is larger than instance type allows.")
	case locals > maxLocalDisks:
		return nil, fault.New(fault.Invalid, "Block Device Mapping is Invalid: You specified more local devices than the limit allows")
	case own.ephemerals > 1:
		return nil, notSupported("Several ephemeral disks are not supported: a server has at most one.")
	case own.ephemerals > 0 && own.EphemeralGiB == 0, own.swaps > 0 && own.SwapMiB == 0:
		return nil, notSupported("A disk without a size is not supported if the flavor does not have the disk.")
	case own.ExtraDisks == of:
		return nil, nil //nolint:nilnil // the server has the disks of its flavor
	}
	return &own.ExtraDisks, nil
}
