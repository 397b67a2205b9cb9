// Package drivers has the drivers from which the command armature writes new drivers.
package drivers

import "embed"

// Files has the driver acme, in Go, and the driver apex, in Python, without the Go tests of apex. The command replaces the names acme and apex, so
// no other word in these files may contain one of them.
//
//go:embed acme/*.go acme/armature-compute-acme/*.go acme/Makefile acme/README.md acme/.gitignore
//go:embed python/apex/*.py python/tests/*.py python/Makefile python/README.md python/.gitignore
var Files embed.FS
