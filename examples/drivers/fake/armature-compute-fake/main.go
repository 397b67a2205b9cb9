// Command armature-compute-fake is the fake driver as a program of its own.
package main

import (
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/drivers/fake"
	"github.com/armature-go/armature/examples/nova-mini/compute"
)

func main() { driver.Serve(compute.Kind, fake.Open) }
