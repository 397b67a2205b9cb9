//go:build unix

package membership

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// lockFile takes the lock of a file, unless another process has it.
func lockFile(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// lockName names the lock of a file on this machine until its next restart. It is empty on a system
// that does not tell one start of the machine from another.
func lockName(f *os.File) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	info, err2 := f.Stat()
	if err != nil || err2 != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%s/%d/%d", strings.TrimSpace(string(boot)), st.Dev, st.Ino)
}
