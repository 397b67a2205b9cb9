package image

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// names describes a property of images whose values Nova checks.
type names struct {
	property, older string            // the name of the property, and its older name
	invalid         string            // Nova's text for another value
	known           []string          // the values that Nova knows, in lower case
	others          map[string]string // other names of known values
}

// The sources are nova/objects/fields.py and image_meta.py of Nova at 00a0304.
var (
	architectures = names{
		"hw_architecture", "architecture", "Architecture name '%s' is not valid",
		strings.Fields(`alpha armv6 armv7l armv7b aarch64 cris i686 ia64 lm32 m68k microblaze microblazeel mips mipsel mips64 mips64el openrisc parisc parisc64
			ppc ppcle ppc64 ppc64le ppcemb s390 s390x sh4 sh4eb sparc sparc64 unicore32 x86_64 xtensa xtensaeb`),
		map[string]string{"i386": "i686", "i486": "i686", "i586": "i686", "x86_32": "i686", "x86_32p": "i686", "amd64": "x86_64"},
	}
	hypervisors = names{
		"img_hv_type", "hypervisor_type", "Hypervisor virt type '%s' is not valid",
		strings.Fields(`baremetal bhyve docker fake hyperv ironic kqemu kvm lxc lxd openvz parallels vz phyp qemu test uml vbox vmware xen zvm prsm`),
		map[string]string{"xapi": "xen"},
	}
	modes = names{
		"hw_vm_mode", "vm_mode", "Virtual machine mode '%s' is not valid", strings.Fields(`hvm xen uml exe`),
		map[string]string{"pv": "xen", "hv": "hvm", "baremetal": "hvm"},
	}
)

// valueIn returns the value that the properties of an image ask for, or "" for any.
func (n *names) valueIn(properties map[string]string) (string, error) {
	given, ok := properties[n.property]
	if !ok {
		given, ok = properties[n.older]
	}
	value := strings.ToLower(given)
	value = cmp.Or(n.others[value], value)
	if ok && !slices.Contains(n.known, value) {
		return "", fault.New(fault.Invalid, "Invalid image metadata. Error: "+n.invalid, given)
	}
	return value, nil
}

// TraitPrefix is the prefix of the names of properties with which an image requires a trait of its host.
const TraitPrefix = "trait:"

// Needs returns what an image needs of the host of a server. Errors: Invalid, with Nova's text, if a value is not one that Nova knows; Unimplemented if the image asks for something that
// no host can do, and that protects the guest or makes the guest another machine.
func Needs(properties map[string]string) (out compute.GuestNeeds, err error) {
	for _, to := range []struct {
		names *names
		value *string
	}{{&architectures, &out.Platform.Arch}, {&hypervisors, &out.Platform.Type}, {&modes, &out.Platform.Mode}} {
		if *to.value, err = to.names.valueIn(properties); err != nil {
			return out, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		if trait, ok := strings.CutPrefix(name, TraitPrefix); ok && properties[name] == "required" {
			out.Traits = append(out.Traits, trait)
		}
		if off, ok := unsupported[name]; ok && !slices.Contains(off, strings.ToLower(properties[name])) {
			return out, fault.New(fault.Unimplemented, "The image has the property %s = %s, which no driver supports.", name, properties[name])
		}
	}
	return out, nil
}

// unsupported are the properties that no driver honors, although they protect the guest or make it another machine. Each has the values with which it asks for nothing.
var unsupported = func() map[string][]string {
	no := []string{"false", "0", "off", "no", "f", "n", ""}
	return map[string][]string{
		"hw_emulation_architecture": nil, "img_hv_requested_version": nil, "hypervisor_version_requires": nil, "hw_mem_encryption": no, "hw_mem_encryption_model": nil,
		"hw_ephemeral_encryption": no, "hw_tpm_version": nil, "hw_firmware_type": {"bios"}, "os_secure_boot": {"disabled", "optional"}, "hw_locked_memory": no,
	}
}()
