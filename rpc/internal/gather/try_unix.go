//go:build unix

package gather

import (
	"net"
	"syscall"
)

// tryWrite writes as much of p as the connection accepts without blocking, and returns the number of bytes. After an error it
// returns 0; the next ordinary write then returns the error.
func tryWrite(c net.Conn, p []byte) int {
	s, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	_ = raw.Write(func(fd uintptr) bool { // after an error nothing is written
		n, _ = syscall.Write(int(fd), p)
		return true
	})
	return max(n, 0)
}
