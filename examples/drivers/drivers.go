// Package drivers has the drivers from which the command armature writes new ones.
package drivers

import "embed"

// Files has the driver acme, in Go, and the driver apex, in Python, without the Go tests of apex. No other word in these files contains the name acme
// or apex.
//
//go:embed acme/*.go acme/armature-compute-acme/*.go acme/Makefile acme/README.md acme/.gitignore
//go:embed python/apex/*.py python/tests/*.py python/Makefile python/README.md python/.gitignore
var Files embed.FS
