//go:build libvirt_dlopen

// Command armature-compute-libvirt runs the libvirt driver as a driver program.
package main

import (
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/drivers/libvirt"
	"github.com/armature-go/armature/examples/nova-mini/compute"
)

func main() { driver.Serve(compute.Kind, libvirt.Open) }
