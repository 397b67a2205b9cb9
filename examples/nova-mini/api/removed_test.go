package api_test

import (
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/api"
)

// TestRemoved: operations that Nova has removed answer 410 with Nova's text, to each client that is authenticated and at each version. Nova's proxies to other services answer 501 until 2.35, and 404 from
// 2.36, as in Nova.
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
		// The two proxies that exist answer for a project without networks, too.
		c.want(200, "2.35", "reader", "GET", "/os-security-groups", "")
		c.want(400, "2.35", "reader", "GET", "/os-security-groups/web", "")
		c.want(404, "2.35", "reader", "GET", "/os-security-groups/5a6fb4cb-0eab-4a5c-9f9d-6e3a1a2e6a51", "")
		for _, op := range []string{"GET /os-networks", "GET /os-tenant-networks/x", "POST /os-security-groups", "DELETE /os-security-group-rules/x", "GET /os-floating-ips", "GET /os-volumes/detail", "GET /os-baremetal-nodes"} {
			method, path, _ := strings.Cut(op, " ")
			if reply := c.want(501, "2.35", "admin", method, path, ""); !strings.Contains(reply, " service: send the request to the ") {
				c.Errorf("%s: %s", op, reply)
			}
			c.want(404, "2.36", "admin", method, path, "")
			c.want(401, "2.1", "unknown-token", method, path, "")
		}
	})
}

// TestRulesOfProxies: a policy file may change who lists and sees security groups.
func TestRulesOfProxies(t *testing.T) {
	t.Parallel()
	rules := api.Rules()
	for i := range rules {
		if rules[i].Name == "os_compute_api:os-security-groups:get" || rules[i].Name == "os_compute_api:os-security-groups:show" {
			rules[i].Check = "rule:context_is_admin"
		}
	}
	eachCloudWith(t, rules, func(c *cloud) {
		const missing = "/os-security-groups/5a6fb4cb-0eab-4a5c-9f9d-6e3a1a2e6a51"
		c.want(403, "2.1", "member", "GET", "/os-security-groups", "")
		c.want(403, "2.1", "member", "GET", missing, "")
		c.want(200, "2.1", "admin", "GET", "/os-security-groups?all_tenants=1", "")
		c.want(404, "2.1", "admin", "GET", missing, "")
	})
}
