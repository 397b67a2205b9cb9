//go:build unix

package membership

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

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
