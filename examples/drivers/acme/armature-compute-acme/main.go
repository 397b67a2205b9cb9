// Command armature-compute-acme runs the driver of package acme as a driver program.
package main

import (
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/drivers/acme"
	"github.com/armature-go/armature/examples/nova-mini/compute"
)

func main() { driver.Serve(compute.Kind, acme.Open) }
