//go:build !unix

package driver

import "io/fs"

// ownerOf returns false: on this system the owner of a file is not a number.
func ownerOf(fs.FileInfo) (int, bool) { return 0, false }

// lookupUser returns "".
func lookupUser(int) string { return "" }
