//go:build !unix

package tempdir

import "io/fs"

// noFollow has no effect on this system.
const noFollow = 0

// ownedBy returns false: files of this system have no owner that is a number.
func ownedBy(fs.FileInfo, ...int) bool { return false }
