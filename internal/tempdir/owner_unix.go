//go:build unix

package tempdir

import (
	"io/fs"
	"slices"
	"syscall"
)

// noFollow makes it an error to open a symbolic link.
const noFollow = syscall.O_NOFOLLOW

// ownedBy reports whether a file belongs to one of the users.
func ownedBy(info fs.FileInfo, users ...int) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && slices.Contains(users, int(st.Uid))
}
