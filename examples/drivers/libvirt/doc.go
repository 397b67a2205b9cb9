// Package libvirt is a compute driver for libvirt. Its servers are KVM or QEMU guests. It runs as the driver program
// armature-compute-libvirt, because libvirt is a C library whose calls cannot be interrupted:
//
//	go build -tags libvirt_dlopen -o /usr/lib/armature/plugins/ \
//		github.com/armature-go/armature/examples/drivers/libvirt/armature-compute-libvirt
//
// The program is built with cgo and the tag libvirt_dlopen. The build needs no libvirt. The host that runs the program needs
// libvirtd with the QEMU driver, qemu-system-x86 and qemu-img.
//
// These are the options of [driver_libvirt]. Options that Nova also has have the same names as in nova.conf:
//
//	connection_uri            address of libvirtd; default qemu:///system
//	virt_type                 kvm, qemu for software emulation, or test with test:///default; default kvm
//	images_path               directory of the images: NAME.qcow2, or NAME.img or NAME.raw for raw images. Required, unless the images
//	                          are in an image service: then the compute service passes the paths of files to the driver.
//	                          An image is refused if its format differs from that of its name, or if it refers to another
//	                          file (a backing file, an external data file). Every other image is converted once, into the
//	                          driver's own cache, the directory _base. These copies are the backing files of disks
//	machine_type              QEMU's machine; default pc
//	cpu_model                 the guests' processor; default host-model with kvm, qemu64 with qemu
//	vnc_listen                address of VNC consoles; default 127.0.0.1; "none": guests have no VNC console
//	wait_soft_reboot_seconds  seconds that a soft reboot waits for the guest; then it becomes a hard reboot; default 120
//	detach_timeout_seconds    seconds that a guest may take to release a device; default 60
//
// The compute service sets host and dir: the name of the host, and the directory of the servers. Each server has a
// directory there, with its disk and its console log.
//
// A server with user data, a key pair or a config drive has one more disk: OpenStack's config drive, an ISO 9660 image with the label
// config-2 that cloud-init reads. The drive has openstack/latest/meta_data.json (with the host name, the metadata, the key and the password), user_data,
// vendor_data.json and network_data.json. vendor_data.json is empty. network_data.json has the addresses of the
// interfaces. The file is missing if the addresses of an interface are not known. The drive is the file config.iso in the
// server's directory, with mode 0600. A rescue with a password has a copy of the drive with this password, rescue.iso, until
// its end. libvirt's option dynamic_ownership, which is enabled by default, makes the files readable for QEMU.
//
// A server with an ephemeral or a swap disk has the files ephemeral.raw and swap.raw, which are sparse. mkfs.ext4 and mkswap must be installed on the host.
//
// The state of a server is only in libvirt's definition of the guest. The metadata of the definition have the server's id. The
// driver ignores guests without this metadata. So a restarted driver finds all its servers, and needs no other storage.
package libvirt
