// Command armature-compute-fake runs the fake driver as a driver program.
package main

import (
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/drivers/fake"
	"github.com/armature-go/armature/examples/nova-mini/compute"
)

func main() { driver.Serve(compute.Kind, fake.Open) }
