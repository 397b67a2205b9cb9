//go:build unix

package driver

import (
	"io/fs"
	"os/user"
	"strconv"
	"syscall"
)

// ownerOf returns the id of the user that owns a file.
func ownerOf(info fs.FileInfo) (int, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(st.Uid), true
}

// lookupUser returns the name of a user, or "".
func lookupUser(uid int) string {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return ""
	}
	return u.Username
}
