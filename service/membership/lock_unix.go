//go:build unix

package membership

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// lockName names the lock of a file on this machine until the next restart of the machine. It
// returns "" on a system that does not distinguish the starts of the machine.
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
