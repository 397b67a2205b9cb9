//go:build !unix

package driver

import "io/fs"

func ownerOf(fs.FileInfo) (int, bool) { return 0, false }

func lookupUser(int) string { return "" }
