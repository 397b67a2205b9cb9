//go:build libvirt_dlopen

// Command armature-compute-libvirt is the libvirt driver as a program of its own.
package main

import (
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/drivers/libvirt"
	"github.com/armature-go/armature/examples/nova-mini/compute"
)

func main() { driver.Serve(compute.Kind, libvirt.Open) }
