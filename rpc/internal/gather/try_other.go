//go:build !unix

package gather

import "net"

// tryWrite writes nothing: a write without blocking needs a Unix system.
func tryWrite(net.Conn, []byte) int { return 0 }
