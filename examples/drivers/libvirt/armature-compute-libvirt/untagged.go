//go:build !libvirt_dlopen

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "armature-compute-libvirt was built without libvirt: build it with -tags libvirt_dlopen")
	os.Exit(2)
}
