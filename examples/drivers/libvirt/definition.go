package libvirt

import (
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// metadata is the XML element in which the driver stores the data of a server. It is a part of the server's definition, which is the XML
// of the server's libvirt domain. The domain is called the guest.
type metadata struct {
	XMLName   xml.Name `xml:"https://github.com/armature-go/armature/compute/1 server"`
	ID        string   `xml:"id,attr"`
	Name      string   `xml:"name,attr"`
	Project   string   `xml:"project,attr"`
	Image     string   `xml:"image,attr"`
	Host      string   `xml:"host,attr"`
	VCPUs     int      `xml:"vcpus,attr"`
	MemoryMiB int      `xml:"memory_mib,attr"`
	DiskGiB   int      `xml:"disk_gib,attr"`
	Rescued   bool     `xml:"rescued,attr"`
	// EphemeralGiB and SwapMiB are the sizes of the extra disks. DiskGiB is the size of all disks.
	EphemeralGiB int `xml:"ephemeral_gib,attr,omitempty"`
	SwapMiB      int `xml:"swap_mib,attr,omitempty"`
	// ConfigDrive reports whether the server has a config drive.
	ConfigDrive bool     `xml:"config_drive,attr,omitempty"`
	OldSize     *oldSize `xml:"before"`
}

// oldSize is the size of a guest before an unconfirmed resize.
type oldSize struct {
	VCPUs     int `xml:"vcpus,attr"`
	MemoryMiB int `xml:"memory_mib,attr"`
	DiskGiB   int `xml:"disk_gib,attr"`
	// File is the name of the file with the old disk. It is empty if the resize has not changed the disk.
	File string `xml:"file,attr,omitempty"`
}

func (m *metadata) resources() compute.Resources {
	return compute.Resources{VCPUs: m.VCPUs, MemoryMiB: m.MemoryMiB, DiskGiB: m.DiskGiB}
}

// domainPrefix begins the names of guests of servers without an instance name.
const domainPrefix = "armature-"

// All guests have this architecture and mode.
const guestArch, guestMode = "x86_64", "hvm"

// errNotOurs means that a domain was not created by this driver.
var errNotOurs = errors.New("not a guest of this driver")

// definition is a guest's definition, with the driver's metadata decoded.
type definition struct {
	libvirtxml.Domain

	meta metadata
}

// parseDefinition reads a domain's XML. errNotOurs: the domain does not have the driver's metadata.
func parseDefinition(doc string) (*definition, error) {
	d := new(definition)
	if err := d.Unmarshal(doc); err != nil {
		return nil, err
	}
	if d.Metadata == nil || xml.Unmarshal([]byte(d.Metadata.XML), &d.meta) != nil {
		return nil, errNotOurs
	}
	return d, nil
}

// marshalXML writes d.meta into d.Metadata and returns the domain's XML.
func (d *definition) marshalXML() (string, error) {
	raw, err := xml.Marshal(&d.meta)
	if err != nil {
		return "", err
	}
	d.Metadata = &libvirtxml.DomainMetadata{XML: string(raw)}
	return d.Marshal()
}

// The names of a server's files, in its directory.
const (
	diskFile    = "disk.qcow2"
	rescueFile  = "rescue.qcow2"
	consoleFile = "console.log"
	configFile  = "config.iso"
	// rescueConfigFile is the config drive with the password of a rescue.
	rescueConfigFile = "rescue.iso"
	ephemeralFile    = "ephemeral.raw"
	swapFile         = "swap.raw"
)

// file returns the path of a file of the server. If the name is empty, file returns the server's directory.
func (o *options) file(id, name string) string { return filepath.Join(o.dir, id, name) }

// hasFiles reports whether a server has a directory.
func (o *options) hasFiles(id string) bool {
	return fileExists(o.file(id, ""))
}

// newDefinition builds the definition of a new server. It does not call libvirt.
func (o *options) newDefinition(s compute.Spec) *definition {
	d := &definition{meta: metadata{
		ID: s.ID, Name: s.Name, Project: s.ProjectID, Image: s.ImageRef, Host: o.host, ConfigDrive: s.NeedsGuestData(), EphemeralGiB: s.EphemeralGiB, SwapMiB: s.SwapMiB,
	}}
	d.Type, d.Name, d.UUID, d.Title = o.virtType, cmp.Or(s.InstanceName, domainPrefix+s.ID), s.ID, s.Name
	d.OS = &libvirtxml.DomainOS{
		Type:        &libvirtxml.DomainOSType{Type: guestMode, Arch: guestArch, Machine: o.machine},
		BootDevices: []libvirtxml.DomainBootDevice{{Dev: "hd"}},
		BIOS:        &libvirtxml.DomainBIOS{UseSerial: "yes"}, // so that the console log begins with the firmware's output
	}
	d.Features = &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}, APIC: &libvirtxml.DomainFeatureAPIC{}}
	d.CPU = &libvirtxml.DomainCPU{Mode: "host-model"}
	switch {
	case o.cpu != "":
		d.CPU = &libvirtxml.DomainCPU{Match: "exact", Model: &libvirtxml.DomainCPUModel{Value: o.cpu}}
	case o.virtType != "kvm":
		d.CPU = &libvirtxml.DomainCPU{Match: "exact", Model: &libvirtxml.DomainCPUModel{Value: "qemu64"}}
	}
	if o.virtType == "qemu" { // otherwise QEMU uses up to 1 GiB for the translated code of each emulated guest
		d.Features.TCG = &libvirtxml.DomainFeatureTCG{TBCache: &libvirtxml.DomainFeatureTCGTBCache{Unit: "MiB", Size: 32}}
	}
	d.Clock = &libvirtxml.DomainClock{Offset: "utc"}
	d.OnPoweroff, d.OnReboot, d.OnCrash = "destroy", "restart", "destroy"
	d.Devices = &libvirtxml.DomainDeviceList{
		Controllers: []libvirtxml.DomainController{{Type: "usb", Model: "none"}},
		Serials: []libvirtxml.DomainSerial{{
			Source: &libvirtxml.DomainChardevSource{File: &libvirtxml.DomainChardevSourceFile{Path: o.file(s.ID, consoleFile), Append: "off"}},
		}},
		MemBalloon: &libvirtxml.DomainMemBalloon{Model: "virtio"},
	}
	if o.vnc != "none" {
		d.Devices.Graphics = []libvirtxml.DomainGraphic{{VNC: &libvirtxml.DomainGraphicVNC{AutoPort: "yes", Listen: o.vnc}}}
		d.Devices.Videos = []libvirtxml.DomainVideo{{Model: libvirtxml.DomainVideoModel{Type: "vga", VRam: 4096}}}
	}
	d.setResources(s.Resources)
	d.setBootDisks(o, false)
	return d
}

// setResources sets the size of the server in the definition. It does not change the disk file.
func (d *definition) setResources(r compute.Resources) {
	d.meta.VCPUs, d.meta.MemoryMiB, d.meta.DiskGiB = r.VCPUs, r.MemoryMiB, r.DiskGiB
	d.VCPU = &libvirtxml.DomainVCPU{Value: uint(r.VCPUs)}
	d.Memory = &libvirtxml.DomainMemory{Value: uint(r.MemoryMiB), Unit: "MiB"}
	d.CurrentMemory = &libvirtxml.DomainCurrentMemory{Value: uint(r.MemoryMiB), Unit: "MiB"}
}

// setBootDisks makes the server boot from its root disk. If rescued is true, the server boots from the rescue disk, and the root
// disk is the second disk. The config drive and attached volumes stay attached; a rescue with a password has a config drive of its own. As in Nova, a
// rescued server does not have its ephemeral and its swap disk.
func (d *definition) setBootDisks(o *options, rescued bool) {
	d.meta.Rescued = rescued
	attached := slices.DeleteFunc(d.Devices.Disks, func(disk libvirtxml.DomainDisk) bool { return volumeOf(&disk) == "" })
	files := []string{diskFile}
	if rescued {
		files = []string{rescueFile, diskFile}
	}
	disks := make([]libvirtxml.DomainDisk, 0, len(files)+len(attached))
	for i, name := range files {
		disks = append(disks, newDisk(o.file(d.meta.ID, name), "qcow2", "vd"+string(rune('a'+i))))
	}
	if !rescued {
		for i, name := range d.meta.extraFiles() {
			disks = append(disks, newDisk(o.file(d.meta.ID, name), "raw", extraTarget(i)))
		}
	}
	if d.meta.ConfigDrive {
		config := o.file(d.meta.ID, configFile)
		if own := o.file(d.meta.ID, rescueConfigFile); rescued && fileExists(own) {
			config = own
		}
		drive := newDisk(config, "raw", configTarget)
		drive.ReadOnly = &libvirtxml.DomainDiskReadOnly{}
		disks = append(disks, drive)
	}
	d.Devices.Disks = append(disks, attached...)
}

// extraFiles returns the names of the files of the extra disks, in the order of the disks.
func (m *metadata) extraFiles() (out []string) {
	if m.EphemeralGiB > 0 {
		out = append(out, ephemeralFile)
	}
	if m.SwapMiB > 0 {
		out = append(out, swapFile)
	}
	return out
}

// extraTarget returns libvirt's device name of the extra disk with an index: vdb or vdc.
func extraTarget(i int) string { return "vd" + string(rune('b'+i)) }

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// configTarget is libvirt's device name of the config drive. The names of volumes end with vdz, so no volume has this name. A guest finds the drive by its label.
const configTarget = "vdaa"

// newDisk returns a virtio disk. The source is a block device if path is a block device now, and otherwise a file. The parameter target is
// the name of the device in the guest, such as vda.
func newDisk(path, format, target string) libvirtxml.DomainDisk {
	src := &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}}
	if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeDevice != 0 {
		src = &libvirtxml.DomainDiskSource{Block: &libvirtxml.DomainDiskSourceBlock{Dev: path}}
	}
	return libvirtxml.DomainDisk{
		Device: "disk",
		Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: format},
		Source: src,
		Target: &libvirtxml.DomainDiskTarget{Dev: target, Bus: "virtio"},
	}
}

// Attached devices are identified by their alias. libvirt reserves aliases with the prefix "ua-" for users.
const (
	volumeAlias    = "ua-volume-"
	interfaceAlias = "ua-interface-"
)

// volumeOf returns the ID of a disk's volume, or "" for the server's own disks.
func volumeOf(d *libvirtxml.DomainDisk) string {
	if d.Alias == nil {
		return ""
	}
	id, _ := strings.CutPrefix(d.Alias.Name, volumeAlias)
	if id == d.Alias.Name {
		return ""
	}
	return id
}

// interfaceOf returns the ID of an attached interface, or "" for any other interface.
func interfaceOf(i *libvirtxml.DomainInterface) string {
	if i.Alias == nil {
		return ""
	}
	id, found := strings.CutPrefix(i.Alias.Name, interfaceAlias)
	if !found {
		return ""
	}
	return id
}

// volumes returns the IDs of the attached volumes.
func (d *definition) volumes() (ids []string) {
	for i := range d.Devices.Disks {
		if id := volumeOf(&d.Devices.Disks[i]); id != "" {
			ids = append(ids, id)
		}
	}
	return ids
}

// interfaces returns the IDs of the attached interfaces.
func (d *definition) interfaces() (ids []string) {
	for i := range d.Devices.Interfaces {
		if id := interfaceOf(&d.Devices.Interfaces[i]); id != "" {
			ids = append(ids, id)
		}
	}
	return ids
}

// volumeDisk returns the XML of a disk for the volume, with the first free device name from vdc to vdz. vda and vdb are for
// the root disk and the rescue disk, and vdb and vdc for extra disks. Exhausted: all these names are in use.
func (d *definition) volumeDisk(v compute.Volume) (string, error) {
	taken := make(map[string]bool)
	for _, disk := range d.Devices.Disks {
		taken[disk.Target.Dev] = true
	}
	for i := range d.meta.extraFiles() { // also while the server is rescued
		taken[extraTarget(i)] = true
	}
	for c := 'c'; c <= 'z'; c++ {
		if taken["vd"+string(c)] {
			continue
		}
		out := newDisk(v.Path, "raw", "vd"+string(c)) // the format is never guessed, because the guest controls the content
		out.Alias = &libvirtxml.DomainAlias{Name: volumeAlias + v.ID}
		if v.ReadOnly {
			out.ReadOnly = &libvirtxml.DomainDiskReadOnly{}
		}
		return out.Marshal()
	}
	return "", fault.New(fault.Exhausted, "server %s has volumes at all device names: detach a volume first", d.meta.ID)
}

// networkCard returns the XML of an interface. The network "user" is QEMU's user-mode network, in which the guest reaches
// other machines through the host's address. "bridge:NAME" is a bridge of the host, and every other name is a network of libvirt.
func networkCard(i compute.Interface) (string, error) {
	out := libvirtxml.DomainInterface{
		MAC:   &libvirtxml.DomainInterfaceMAC{Address: i.MAC},
		Model: &libvirtxml.DomainInterfaceModel{Type: "virtio"},
		Alias: &libvirtxml.DomainAlias{Name: interfaceAlias + i.ID},
	}
	bridge, isBridge := strings.CutPrefix(i.Network, "bridge:")
	switch {
	case i.Network == "user":
		out.Source = &libvirtxml.DomainInterfaceSource{User: &libvirtxml.DomainInterfaceSourceUser{}}
	case isBridge:
		out.Source = &libvirtxml.DomainInterfaceSource{Bridge: &libvirtxml.DomainInterfaceSourceBridge{Bridge: bridge}}
	default:
		out.Source = &libvirtxml.DomainInterfaceSource{Network: &libvirtxml.DomainInterfaceSourceNetwork{Network: i.Network}}
	}
	doc, err := out.Marshal()
	if err != nil {
		return "", fmt.Errorf("interface %s: %w", i.ID, err)
	}
	return doc, nil
}
