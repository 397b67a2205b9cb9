//go:build unix

package service

import "syscall"

// restrictSocket gives a Unix socket the mode 0600 before bind. On Linux bind then makes the file with this mode, so that another
// user can never connect. The function is for [net.ListenConfig]. Other systems may not support the mode before bind, so
// openListener also sets the mode of the file.
func restrictSocket(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), 0o600) })
}
