package api

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/armature-go/armature/examples/nova-mini/image"
)

// propertyNames are the properties of images that Nova knows, also under their older names. Nova stores the four properties with lists of disks elsewhere, so they are left out. The
// source is nova/objects/image_meta.py of Nova at 00a0304.
var propertyNames = strings.Fields(`
	architecture auto_disk_config bdm_v2 bittorrent cache_in_nova hw_architecture hw_auto_disk_config hw_boot_menu hw_cdrom_bus hw_cpu_cores
	hw_cpu_max_cores hw_cpu_max_sockets hw_cpu_max_threads hw_cpu_policy hw_cpu_realtime_mask hw_cpu_sockets hw_cpu_thread_policy hw_cpu_threads
	hw_device_id hw_disk_bus hw_disk_type hw_emulation_architecture hw_ephemeral_encryption hw_ephemeral_encryption_format
	hw_ephemeral_encryption_secret_uuid hw_firmware_stateless hw_firmware_type hw_floppy_bus hw_input_bus hw_ipxe_boot hw_locked_memory hw_machine_type
	hw_maxphysaddr_bits hw_maxphysaddr_mode hw_mem_encryption hw_mem_encryption_model hw_mem_page_size hw_numa_cpus hw_numa_mem hw_numa_nodes
	hw_pci_numa_affinity_policy hw_pmu hw_pointer_model hw_qemu_guest_agent hw_redirected_usb_ports hw_rescue_bus hw_rescue_device hw_rng_model
	hw_scsi_model hw_serial_port_count hw_sound_model hw_time_hpet hw_tpm_model hw_tpm_version hw_usb_model hw_video_model hw_video_ram hw_vif_model
	hw_vif_multiqueue_enabled hw_viommu_model hw_virtio_packed_ring hw_vm_mode hw_watchdog_action hypervisor_type hypervisor_version_requires img_bdm_v2
	img_bittorrent img_cache_in_nova img_compression_level img_config_drive img_hide_hypervisor_id img_hv_requested_version img_hv_type img_linked_clone
	img_owner_id img_root_device_name img_signature img_signature_certificate_uuid img_signature_hash_method img_signature_key_type img_use_agent
	img_version ipxe_boot os_admin_user os_command_line os_distro os_require_quiesce os_secure_boot os_skip_agent_inject_files_at_boot
	os_skip_agent_inject_ssh os_type owner_id root_device_name traits_required vm_mode vmware_disktype vmware_image_version vmware_linked_clone
	vmware_ostype xenapi_device_id xenapi_image_compression_level xenapi_skip_agent_inject_files_at_boot xenapi_skip_agent_inject_ssh xenapi_use_agent`)

// maxProperty is the maximum length of a property's value in bytes, as in Nova.
const maxProperty = 255

// knownProperties returns the properties that a server keeps of its image: those that Nova knows, and the traits that the image requires. Long values are cut, as in Nova.
func knownProperties(all map[string]string) map[string]string {
	out := map[string]string{}
	for name, value := range all {
		if strings.HasPrefix(name, image.TraitPrefix) || slices.Contains(propertyNames, name) {
			out[name] = cutText(value, maxProperty)
		}
	}
	return out
}

// cutText returns the beginning of a text, of at most n bytes and with whole characters. Unlike db.Cut it does not mark the cut.
func cutText(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

// shownProperties are the properties of a server's image in a reply. As in Nova, a reply leaves out the traits that the image requires.
type shownProperties map[string]string

// MarshalJSON returns an object, also for nil.
func (p shownProperties) MarshalJSON() ([]byte, error) {
	out := map[string]string{}
	maps.Copy(out, p)
	maps.DeleteFunc(out, func(name, _ string) bool { return strings.HasPrefix(name, image.TraitPrefix) })
	return json.Marshal(out)
}
