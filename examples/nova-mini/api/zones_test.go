package api_test

import (
	"strings"
	"testing"

	"github.com/armature-go/armature/service/membership"
)

// TestZones: zones are listed as in Nova's samples, with their hosts for administrators only.
func TestZones(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		if reply := c.want(200, "2.1", "member", "GET", "/os-availability-zone", ""); reply != `{"availabilityZoneInfo":[]}` {
			c.Errorf("without hosts: %q", reply)
		}
		for kind, host := range map[string]string{"nova-compute": "node-1", "nova-conductor": "control", "nova-scheduler": "control"} {
			if err := c.store.Members(0).Join(c.Context(), membership.Self{Kind: kind, Host: host}); err != nil {
				c.Fatal(err)
			}
		}
		c.sameShape("list", sample(c.T, "os-availability-zone/availability-zone-list-resp.json"), c.want(200, "2.1", "member", "GET", "/os-availability-zone", ""))
		reply := c.want(200, "2.1", "admin", "GET", "/os-availability-zone/detail", "")
		for _, want := range []string{`"hosts":{"control":{"nova-conductor":{"available":true,"active":true,"updated_at":"2`, `"zoneName":"internal"`, `"node-1":{"nova-compute":`} {
			if !strings.Contains(reply, want) {
				c.Errorf("no %s in %s", want, reply)
			}
		}
		c.want(403, "2.1", "member", "GET", "/os-availability-zone/detail", "")
		if err := c.store.SetDisabled(c.Context(), "nova-compute", "node-1", true, ""); err != nil {
			c.Fatal(err)
		}
		if reply := c.want(200, "2.1", "member", "GET", "/os-availability-zone", ""); !strings.Contains(reply, `{"zoneName":"nova","zoneState":{"available":false},"hosts":null}`) {
			c.Errorf("all hosts disabled: %s", reply)
		}
		c.want(200, "2.101", "member", "GET", "/os-availability-zone?x=1", "")
		c.want(400, "2.102", "member", "GET", "/os-availability-zone?x=1", "")
	})
}
