//go:build unix

package tlsfile

import (
	"io/fs"
	"syscall"
)

// fileOwner returns the id of the user that owns the file. It returns false if info has no owner.
func fileOwner(info fs.FileInfo) (uid int, ok bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(st.Uid), true
}
