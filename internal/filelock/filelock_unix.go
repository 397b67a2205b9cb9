//go:build unix

package filelock

import (
	"errors"
	"os"
	"syscall"
)

// Supported reports whether files have locks on this system.
const Supported = true

// Try locks a file if it is not locked, and reports whether it has done so. It does not block. The file stays locked until
// it is closed. If the process opens the same file twice, the lock of one open file excludes the lock of the
// other, as between two processes.
func Try(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}
