package image_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/fault"
)

// TestNeeds: the properties of an image say what kind of guest it has, under Nova's names. A value that Nova does not know, or that no driver honors, is refused.
func TestNeeds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		properties string
		want       string
		code       fault.Code
	}{
		{"", "{{  } []}", 0},
		{"hw_architecture=x86_64 img_hv_type=kvm hw_vm_mode=hvm", "{{x86_64 kvm hvm} []}", 0},
		{"architecture=AMD64 hypervisor_type=XAPI vm_mode=pv", "{{x86_64 xen xen} []}", 0},
		{"architecture=arm hw_architecture=i386", "{{i686  } []}", 0}, // the newer name counts
		{"trait:HW_CPU_X86_AVX=required trait:CUSTOM_B=forbidden trait:CUSTOM_A=required", "{{  } [CUSTOM_A HW_CPU_X86_AVX]}", 0},
		{"hw_disk_bus=virtio os_distro=debian hw_mem_encryption=False os_secure_boot=optional hw_firmware_type=bios", "{{  } []}", 0},
		{"hw_architecture=z80", "Invalid image metadata. Error: Architecture name 'z80' is not valid", fault.Invalid},
		{"architecture=", "Invalid image metadata. Error: Architecture name '' is not valid", fault.Invalid},
		{"img_hv_type=Magic", "Invalid image metadata. Error: Hypervisor virt type 'Magic' is not valid", fault.Invalid},
		{"vm_mode=x", "Invalid image metadata. Error: Virtual machine mode 'x' is not valid", fault.Invalid},
		{"hw_emulation_architecture=aarch64", "The image has the property hw_emulation_architecture = aarch64, which no driver supports.", fault.Unimplemented},
		{"img_hv_requested_version=>=2", "img_hv_requested_version = >=2", fault.Unimplemented},
		{"hw_mem_encryption=true", "hw_mem_encryption = true", fault.Unimplemented},
		{"os_secure_boot=required", "os_secure_boot = required", fault.Unimplemented},
		{"hw_firmware_type=uefi", "hw_firmware_type = uefi", fault.Unimplemented},
	} {
		properties := map[string]string{}
		for text := range strings.FieldsSeq(tt.properties) {
			name, value, _ := strings.Cut(text, "=")
			properties[name] = value
		}
		switch got, err := image.Needs(properties); {
		case tt.code == 0 && (err != nil || fmt.Sprint(got) != tt.want):
			t.Errorf("%s: %v, %v; want %s", tt.properties, got, err, tt.want)
		case tt.code != 0 && (fault.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %v, want %v: %s", tt.properties, err, tt.code, tt.want)
		}
	}
}
