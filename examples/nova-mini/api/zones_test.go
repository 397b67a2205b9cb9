package api_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/service/membership"
)

// TestZones: zones are listed as in Nova's samples. Only administrators see the hosts of a zone.
func TestZones(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		if reply := c.want(200, "2.1", "member", "GET", "/os-availability-zone", ""); reply != `{"availabilityZoneInfo":[]}` {
			c.Errorf("without hosts: %q", reply)
		}
		for kind, host := range map[string]string{"nova-compute": "compute", "nova-conductor": "conductor", "nova-scheduler": "scheduler"} {
			if err := c.store.Members(0).Join(c.Context(), membership.Self{Kind: kind, Host: host}); err != nil {
				c.Fatal(err)
			}
		}
		c.sameShape("list", sample(c.T, "os-availability-zone/availability-zone-list-resp.json"), c.want(200, "2.1", "member", "GET", "/os-availability-zone", ""))
		allowed := map[string]string{}
		for _, service := range []string{"conductor.nova-conductor", "scheduler.nova-scheduler", "compute.nova-compute"} {
			allowed["availabilityZoneInfo[].hosts."+service+".updated_at"] = "the sample's services have sent no heartbeat"
		}
		c.compareWith(allowed, "2.1", "admin", "GET", "/os-availability-zone/detail", "", "os-availability-zone/availability-zone-detail-resp", 200)
		reply := c.want(200, "2.1", "admin", "GET", "/os-availability-zone/detail", "")
		for _, want := range []string{`"hosts":{"conductor":{"nova-conductor":{"available":true,"active":true,"updated_at":"2`, `"zoneName":"internal"`, `"compute":{"nova-compute":`} {
			if !strings.Contains(reply, want) {
				c.Errorf("no %s in %s", want, reply)
			}
		}
		c.want(403, "2.1", "member", "GET", "/os-availability-zone/detail", "")
		if err := c.store.SetDisabled(c.Context(), "nova-compute", "compute", true, ""); err != nil {
			c.Fatal(err)
		}
		if reply := c.want(200, "2.1", "member", "GET", "/os-availability-zone", ""); !strings.Contains(reply, `{"zoneName":"nova","zoneState":{"available":false},"hosts":null}`) {
			c.Errorf("all hosts disabled: %s", reply)
		}
		c.want(200, "2.101", "member", "GET", "/os-availability-zone?x=1", "")
		c.want(400, "2.102", "member", "GET", "/os-availability-zone?x=1", "")
	})
}

// addHostIn adds a host of an availability zone.
func (c *cloud) addHostIn(zone, name string) {
	c.Helper()
	host := compute.HostReport{Host: name, Driver: "fake", Zone: zone, Resources: compute.Resources{VCPUs: 8, MemoryMiB: 8192, DiskGiB: 80}}
	if err := c.store.ReportHost(c.Context(), &host, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
		c.Fatal(err)
	}
}

// TestHostZones: the zones are the zones of the hosts. A client may ask for a zone that is available. A server has the zone of its host.
func TestHostZones(t *testing.T) {
	t.Parallel()
	eachCloudOf(t, api.Rules(), nil, nil, func(c *cloud) {
		c.addHostIn("a", "n1")
		c.addHostIn("b", "n2")
		c.addHostIn("", "n3")
		if err := c.store.SetDisabled(c.Context(), "nova-compute", "n2", true, ""); err != nil {
			c.Fatal(err)
		}
		const list = `{"availabilityZoneInfo":[{"zoneName":"a","zoneState":{"available":true},"hosts":null},{"zoneName":"nova","zoneState":{"available":true},"hosts":null},{"zoneName":"b","zoneState":{"available":false},"hosts":null}]}`
		if reply := c.want(200, "2.1", "member", "GET", "/os-availability-zone", ""); reply != list {
			c.Error(reply)
		}
		details := c.want(200, "2.1", "admin", "GET", "/os-availability-zone/detail", "")
		for _, want := range []string{`{"zoneName":"a","zoneState":{"available":true},"hosts":{"n1":{"nova-compute":{"available":true,`, `{"zoneName":"b","zoneState":{"available":false},"hosts":null}`} {
			if !strings.Contains(details, want) {
				c.Errorf("no %s in %s", want, details)
			}
		}
		if reply := c.want(200, "2.1", "admin", "GET", "/os-services?host=n1", ""); !strings.Contains(reply, `"zone":"a"`) {
			c.Error(reply)
		}
		for _, tt := range []struct{ who, asks, zone, pinned string }{
			{"member", `"availability_zone": "nova"`, "nova", "nova"},
			{"member", `"min_count": 1`, "a", "a"}, // the zone of the configuration
			{"admin", `"availability_zone": "a:n1"`, "a", "a"},
			{"admin", `"availability_zone": ":n1:n1"`, "a", "a"},
			{"admin", `"availability_zone": "a::n1"`, "a", "a"},
			{"admin", `"availability_zone": "b:n1"`, "", ""}, // then the zone of the host
			{"admin", `"availability_zone": ":n3"`, "", ""},
		} {
			id := c.newServer(tt.who, tt.asks)
			c.zoned(tt.asks, id, tt.zone, tt.pinned)
			if c.launch(id, "n2"); tt.who == "admin" {
				c.zoned(tt.asks+" on n2", id, "b", tt.pinned)
			}
		}
		for _, name := range []string{"b", "c"} {
			if reply := c.want(400, "2.1", "member", "POST", "/servers", `{"server": {"name": "s", "flavorRef": "1", "imageRef": "x", "availability_zone": "`+name+`"}}`); !strings.Contains(reply, "The requested availability zone is not available") {
				c.Errorf("%s: %s", name, reply)
			}
		}
		id := c.newServer("member", `"availability_zone": "a"`)
		c.launch(id, "n1")
		c.zoned("launched", id, "a", "a")
		if _, err := c.db.ExecContext(c.Context(), `UPDATE servers SET vm_state = ?, host = NULL WHERE id = ?`, compute.VMOffloaded, id); err != nil {
			c.Fatal(err)
		}
		c.zoned("offloaded", id, "", "a")
		for _, tt := range []struct {
			body   string
			status int
			says   string
		}{
			{`{"unshelve": {"host": "n4"}}`, 400, "Compute host n4 could not be found."},
			{`{"unshelve": {"host": "n3"}}`, 409, `Host \"n3\" is not in the availability zone \"a\".`},
			{`{"unshelve": {"host": "n1", "availability_zone": "nova"}}`, 409, `Host \"n1\" is not in the availability zone \"nova\".`},
			{`{"unshelve": {"availability_zone": "b"}}`, 400, "The requested availability zone is not available"},
			{`{"unshelve": {"host": "n3", "availability_zone": "nova"}}`, 202, ""},
		} {
			if reply := c.want(tt.status, "2.91", "admin", "POST", "/servers/"+id+"/action", tt.body); !strings.Contains(reply, tt.says) {
				c.Errorf("%s: %s", tt.body, reply)
			}
		}
		c.zoned("unshelved", id, "", "nova")
	}, func(cfg *api.Config) { cfg.ScheduleZone = "a" })
}

// newServer creates a server and returns its ID.
func (c *cloud) newServer(who, asks string) string {
	c.Helper()
	var made struct{ Server struct{ ID string } }
	reply := c.want(202, "2.1", who, "POST", "/servers", `{"server": {"name": "s", "flavorRef": "1", "imageRef": "x", `+asks+`}}`)
	if err := json.Unmarshal([]byte(reply), &made); err != nil {
		c.Fatal(err)
	}
	return made.Server.ID
}

// zoned checks the zone of a server, and the zone to which the server is pinned. An empty text means none.
func (c *cloud) zoned(what, id, zone, pinned string) {
	c.Helper()
	if srv := c.shown("2.96", "admin", id); srv.text("OS-EXT-AZ:availability_zone") != zone || srv.text("pinned_availability_zone") != pinned {
		c.Errorf("%s: the zone is %v, and %v is pinned; want %q, %q", what, srv["OS-EXT-AZ:availability_zone"], srv["pinned_availability_zone"], zone, pinned)
	}
	if list, _ := c.list("admin", "servers", "sort_key=availability_zone&uuid="+id); len(list) != 1 || list[0].text("OS-EXT-AZ:availability_zone") != zone {
		c.Errorf("%s: the list has %v, want the zone %q", what, list, zone)
	}
}
