//go:build !unix

package driver

import "io/fs"

// ownerOf returns false: files of this system have no owner that is a number.
func ownerOf(fs.FileInfo) (int, bool) { return 0, false }

// lookupUser returns "".
func lookupUser(int) string { return "" }
