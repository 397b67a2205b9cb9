package api_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// TestOwnDisks: a request may name an ephemeral and a swap disk, with Nova's rules and errors. The driver builds these disks. The claim covers the disks of the flavor, as in Nova, and a resize
// keeps the disks.
func TestOwnDisks(t *testing.T) {
	t.Parallel()
	const (
		root      = `{"source_type": "image", "uuid": "x", "destination_type": "local", "boot_index": 0, "delete_on_termination": true}`
		blank     = `{"source_type": "blank", "destination_type": "local"`
		tooLarge  = "Ephemeral disks requested are larger than the instance type allows. If no size is given in one block device mapping, flavor ephemeral size will be used."
		bdm       = "Block Device Mapping is Invalid: "
		wrongBoot = bdm + "Boot sequence for the instance and image/block device mapping combination is not valid."
	)
	ephemeral := func(more string) string { return blank + more + `}` }
	swap := func(more string) string { return blank + `, "guest_format": "swap"` + more + `}` }
	body := func(flavor string, disks ...string) string {
		return `{"server": {"name": "x", "flavorRef": "` + flavor + `", "imageRef": "x", "networks": "none", "block_device_mapping_v2": [` + strings.Join(append([]string{root}, disks...), ", ") + `]}}`
	}
	eachCloud(t, func(c *cloud) {
		for name, more := range map[string]string{"both": `"OS-FLV-EXT-DATA:ephemeral": 5, "swap": 2048`, "larger": `"OS-FLV-EXT-DATA:ephemeral": 5, "swap": 2048`, "other": `"OS-FLV-EXT-DATA:ephemeral": 3, "swap": 2048`, "plain": `"rxtx_factor": 1.0`} {
			disk := map[string]string{"larger": "7"}[name]
			if disk == "" {
				disk = "2"
			}
			c.want(200, "2.1", "admin", "POST", "/flavors", `{"flavor": {"name": "`+name+`", "id": "`+name+`", "ram": 1, "vcpus": 1, "disk": `+disk+`, `+more+`}}`)
		}
		c.addHost() // its driver does not have the disks
		if reply := c.want(501, "2.37", "member", "POST", "/servers", body("both", ephemeral(`, "volume_size": 1`))); !strings.Contains(reply, "Ephemeral and swap disks are not supported") {
			t.Error(reply)
		}
		host := compute.HostReport{Host: "n2", Driver: "d", Capabilities: []driver.Capability{compute.CapExtraDisks, compute.CapResize}, Resources: compute.Resources{VCPUs: 99, MemoryMiB: 9999, DiskGiB: 999}}
		if err := c.store.ReportHost(c.Context(), &host, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			flavor string
			disks  []string
			status int
			says   string
		}{
			{"both", []string{ephemeral(`, "volume_size": 6`)}, 400, tooLarge},
			{"both", []string{ephemeral(`, "volume_size": 3`), ephemeral(`, "volume_size": "3"`)}, 400, tooLarge},
			{"both", []string{ephemeral(""), ephemeral(`, "volume_size": 1`)}, 400, tooLarge},
			{"plain", []string{ephemeral(`, "volume_size": 1`)}, 400, tooLarge},
			{"both", []string{swap(""), swap("")}, 400, bdm + "More than one swap drive requested."},
			{"both", []string{swap(`, "volume_size": 2049`)}, 400, "Swap drive requested is larger than instance type allows."},
			{"plain", []string{swap(`, "volume_size": 1`)}, 400, "Swap drive requested is larger than instance type allows."},
			{"both", []string{ephemeral(`, "volume_size": 1`), ephemeral(`, "volume_size": 1`)}, 400, bdm + "You specified more local devices than the limit allows"}, // with the flavor's swap disk
			{"both", []string{ephemeral(`, "volume_size": 1`), ephemeral(`, "volume_size": 1`), swap(`, "volume_size": 1`)}, 400, bdm + "You specified more local devices than the limit allows"},
			{"plain", []string{ephemeral("")}, 501, "A disk without a size"},
			{"plain", []string{swap("")}, 501, "A disk without a size"},
			{"both", []string{ephemeral(`, "boot_index": 0`)}, 400, wrongBoot},
			{"both", []string{ephemeral(`, "boot_index": 2`)}, 400, wrongBoot},
			{"both", []string{ephemeral(`, "boot_index": "99999999999999999999"`)}, 400, wrongBoot},
			{"both", []string{ephemeral(`, "boot_index": "1"`)}, 501, "A server does not boot from an ephemeral or a swap disk"},
			{"both", []string{ephemeral(`, "guest_format": "xfs"`)}, 501, "The format xfs is not supported"},
			{"both", []string{ephemeral(`, "disk_bus": "nonsense"`)}, 400, bdm},
			{"both", []string{swap(`, "disk_bus": "scsi"`)}, 501, "The disk bus scsi is not supported"},
			{"both", []string{ephemeral(`, "device_type": "cdrom"`)}, 501, "The device type cdrom is not supported"},
			{"both", []string{ephemeral(`, "device_name": "/dev/vdb"`)}, 501, "The device name /dev/vdb is not supported"},
			{"both", []string{ephemeral(`, "no_device": true`)}, 501, "The field no_device is not supported"},
			{"both", []string{ephemeral(`, "volume_size": 0`)}, 400, "0 is less than the minimum of 1"},
			{"both", []string{root}, 400, wrongBoot},
		} {
			if reply := c.want(tt.status, "2.37", "member", "POST", "/servers", body(tt.flavor, tt.disks...)); !strings.Contains(reply, tt.says) {
				t.Errorf("%s %s: %s, want %s", tt.flavor, tt.disks, reply, tt.says)
			}
		}
		if list := must(c.list("admin", "servers", "all_tenants=1")); len(list) != 0 {
			t.Fatalf("a refused request has created %v", ids(list))
		}
		const index = `, "boot_index": -1, "delete_on_termination": true`
		for _, tt := range []struct {
			disks           []string
			ephemeral, swap int
		}{
			{nil, 5, 2048},
			{[]string{ephemeral(index + `, "volume_size": 1`)}, 1, 2048},
			{[]string{ephemeral(`, "boot_index": null, "guest_format": "ext4"`)}, 5, 2048},
			{[]string{swap(index + `, "volume_size": "512"`)}, 5, 512},
			{[]string{swap(index), ephemeral(`, "volume_size": 4`)}, 4, 2048},
			{[]string{swap(`, "volume_size": 2048`), ephemeral(`, "volume_size": 5`)}, 5, 2048},
		} {
			var made struct{ Server struct{ ID string } }
			if err := json.Unmarshal([]byte(c.want(202, "2.37", "member", "POST", "/servers", body("both", tt.disks...))), &made); err != nil {
				t.Fatal(err)
			}
			id := made.Server.ID
			c.launch(id, "n2")
			check := func(when string, root int) {
				t.Helper()
				srv, err := c.store.ServerToBuild(c.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				if s := srv.Spec(); s.EphemeralGiB != tt.ephemeral || s.SwapMiB != tt.swap || s.RootGiB() != root || srv.Need().DiskGiB != root+5+2 {
					t.Errorf("%s, %s: the driver builds %+v, and the claim is %+v; want %d, %d and %d", tt.disks, when, s, srv.Need(), tt.ephemeral, tt.swap, root)
				}
			}
			check("at first", 2)
			if reply := c.want(200, "2.47", "member", "GET", "/servers/"+id, ""); !strings.Contains(reply, `"ephemeral":5,"swap":2048`) {
				t.Errorf("the flavor: %s", reply)
			}
			c.want(501, "2.1", "member", "POST", "/servers/"+id+"/action", `{"resize": {"flavorRef": "other"}}`)
			c.want(202, "2.1", "member", "POST", "/servers/"+id+"/action", `{"resize": {"flavorRef": "larger"}}`)
			srv, err := c.store.Server(c.Context(), id)
			if err != nil || srv.Resize.V == nil {
				t.Fatal(srv, err)
			}
			extra := compute.ExtraGiB(tt.ephemeral, tt.swap)
			if from, to := srv.Resize.V.From.OnHost(), srv.Resize.V.To.OnHost(); from.DiskGiB != 2+extra || to.DiskGiB != 7+extra {
				t.Errorf("%s: a resize from %+v to %+v", tt.disks, from, to)
			}
			c.want(204, "2.1", "member", "DELETE", "/servers/"+id, "")
		}
	})
}
