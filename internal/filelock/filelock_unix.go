//go:build unix

package filelock

import (
	"errors"
	"os"
	"syscall"
)

// Supported reports whether files have locks on this system.
const Supported = true

// Try takes the lock of a file, and reports whether it was free. The lock is held until the file is
// closed. Another open file of the same process counts as that of another process.
func Try(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}
