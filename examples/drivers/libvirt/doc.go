// Package libvirt is a compute driver for libvirt: its servers are KVM or QEMU
// guests. It is run as a program, armature-compute-libvirt, because libvirt is a C
// library whose calls nothing can interrupt:
//
//	go build -tags libvirt_dlopen -o /usr/lib/armature/plugins/ \
//		github.com/armature-go/armature/examples/drivers/libvirt/armature-compute-libvirt
//
// It is built with cgo and the tag libvirt_dlopen, and needs no libvirt to be built;
// the host that it runs on needs libvirtd with the QEMU driver, qemu-system-x86 and
// qemu-img.
//
// The options of [driver_libvirt], named as in nova.conf where Nova has them:
//
//	connection_uri            where libvirtd is; default qemu:///system
//	virt_type                 kvm, qemu for software emulation, or test with test:///default; default kvm
//	images_path               the directory of the images: NAME.qcow2, or NAME.img and NAME.raw for raw ones. Required.
//	                          An image of another format than its name says, and one that refers to another file (a
//	                          backing file, an external data file), is refused; others are converted once into the
//	                          driver's own cache, the directory _base, on which disks rest
//	machine_type              QEMU's machine; default pc
//	cpu_model                 the guests' processor; default host-model with kvm, qemu64 with qemu
//	vnc_listen                the address of VNC consoles, default 127.0.0.1; "none" for guests without one
//	wait_soft_reboot_seconds  how long a soft reboot waits for the guest before it is a hard one; default 120
//	detach_timeout_seconds    how long a guest has to give a device back; default 60
//
// host and dir are set by the worker: the name of the host, and the directory in
// which each server has one of its own, with its disk and the log of its console.
//
// All that the driver knows of a server is in libvirt's definition of the guest,
// whose metadata have the server's id; guests without are none of its business. So
// servers that are there when it starts are its own again, and nothing has to be
// kept elsewhere.
package libvirt
