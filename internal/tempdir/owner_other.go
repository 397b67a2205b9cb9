//go:build !unix

package tempdir

import "io/fs"

// noFollow has no effect on this system.
const noFollow = 0

// ownedBy returns false, because on this system the owner of a file is not a number.
func ownedBy(fs.FileInfo, ...int) bool { return false }
