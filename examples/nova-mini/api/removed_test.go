package api_test

import (
	"strings"
	"testing"
)

// TestRemoved: operations that Nova has removed answer 410 with Nova's text, to each client that is authenticated and at each version.
func TestRemoved(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		for _, op := range []string{"GET /os-agents", "DELETE /os-cells/1", "POST /os-networks", "GET /os-fping/x", "GET /servers/x/consoles", "GET /servers/x/os-virtual-interfaces", "PUT /os-floating-ip-dns/a/entries/b"} {
			method, path, _ := strings.Cut(op, " ")
			for _, version := range []string{"2.1", "2.104"} {
				if reply := c.want(410, version, "reader", method, path, ""); !strings.Contains(reply, "This resource is no longer available. No forwarding address is given.") {
					c.Errorf("%s: %s", op, reply)
				}
			}
			c.want(401, "2.1", "unknown-token", method, path, "")
		}
		c.want(404, "2.1", "member", "GET", "/os-nothing", "")
	})
}
