//go:build !unix

package gather

import "net"

// tryWrite writes nothing, because this system has no write without blocking.
func tryWrite(net.Conn, []byte) int { return 0 }
