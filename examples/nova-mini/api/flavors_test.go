package api_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
)

// TestFlavorVersions: at each microversion that changes flavors, requests and replies have the keys and types of Nova's samples.
func TestFlavorVersions(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		for _, v := range []string{"2.1", "2.55", "2.61", "2.75", "2.102"} {
			folder := "v" + v + "/"
			if v == "2.1" {
				folder = ""
			}
			body := sample(c.T, "flavor-manage/"+folder+"flavor-create-post-req.json")
			reply := c.want(200, v, "admin", "POST", "/flavors", body)
			c.sameShape(v+" create", sample(c.T, "flavor-manage/"+folder+"flavor-create-post-resp.json"), reply)
			c.want(200, v, "admin", "POST", "/flavors/10/os-extra_specs", `{"extra_specs": {"hw:cpu_policy": "shared", "hw:numa_nodes": "1"}}`)
			c.sameShape(v+" show", sample(c.T, "flavors/"+folder+"flavor-get-resp.json"), c.want(200, v, "member", "GET", "/flavors/10", ""))
			c.sameShape(v+" list", sample(c.T, "flavors/"+folder+"flavors-list-resp.json"), c.want(200, v, "member", "GET", "/flavors", ""))
			c.sameShape(v+" detail", sample(c.T, "flavors/"+folder+"flavors-detail-resp.json"), c.want(200, v, "member", "GET", "/flavors/detail", ""))
			if v != "2.1" {
				update := sample(c.T, "flavor-manage/"+folder+"flavor-update-req.json")
				reply := c.want(200, v, "admin", "PUT", "/flavors/10", update)
				c.sameShape(v+" update", sample(c.T, "flavor-manage/"+folder+"flavor-update-resp.json"), reply)
				if !strings.Contains(reply, `"description":"updated description"`) {
					c.Errorf("%s: the description has not changed: %s", v, reply)
				}
				c.want(403, v, "member", "PUT", "/flavors/10", update)
				c.want(404, v, "admin", "PUT", "/flavors/11", update)
			}
			c.want(202, v, "admin", "DELETE", "/flavors/10", "")
		}
		for _, refused := range []struct{ version, body string }{
			{"2.54", `{"flavor": {"name": "a", "ram": 1, "vcpus": 1, "disk": 1, "description": "x"}}`},
			{"2.55", `{"flavor": {"name": "a", "ram": 1, "vcpus": 1, "disk": 1, "description": 1}}`},
			{"2.55", `{"flavor": {"name": "a", "ram": 1, "vcpus": 1, "disk": 1, "description": "` + strings.Repeat("x", 65536) + `"}}`},
			{"2.102", `{"flavor": {"name": "a", "ram": 1, "vcpus": 1, "disk": 1, "rxtx_factor": 1}}`},
		} {
			c.want(400, refused.version, "admin", "POST", "/flavors", refused.body)
		}
		c.want(404, "2.54", "admin", "PUT", "/flavors/1", `{"flavor": {"description": "x"}}`)
		c.want(400, "2.55", "admin", "PUT", "/flavors/1", `{"flavor": {}}`)
		c.want(200, "2.55", "admin", "PUT", "/flavors/1", `{"flavor": {"description": null}}`)
		// The name is a filter since 2.102, and unknown parameters are refused since 2.75.
		c.want(200, "2.74", "member", "GET", "/flavors?name=small&x=1", "")
		c.want(400, "2.75", "member", "GET", "/flavors?name=small", "")
		if reply := c.want(200, "2.102", "member", "GET", "/flavors?name=small", ""); strings.Count(reply, `"name"`) != 1 {
			c.Errorf("flavors with small in their name: %s", reply)
		}
		c.want(400, "2.102", "member", "GET", "/flavors?sort_key=rxtx_factor", "")
		c.want(200, "2.101", "member", "GET", "/flavors?sort_key=rxtx_factor", "")
		// Access to a public flavor is refused since 2.7.
		c.want(200, "2.6", "admin", "POST", "/flavors/1/action", `{"addTenantAccess": {"tenant": "p1"}}`)
		if reply := c.want(409, "2.7", "admin", "POST", "/flavors/1/action", `{"addTenantAccess": {"tenant": "p1"}}`); !strings.Contains(reply, "Can not add access to a public flavor.") {
			c.Error(reply)
		}
	})
}

// TestFlavorAccess: requests and replies about the access to a flavor have the keys and types of Nova's samples.
func TestFlavorAccess(t *testing.T) {
	t.Parallel()
	samplesOf(t, "flavor-access")
	const dir = "flavor-access/"
	eachCloud(t, func(c *cloud) {
		for _, tt := range []struct {
			version, folder string
			status          int // of a request to add a project
		}{{"2.1", "", 200}, {"2.7", "v2.7/", 409}} { // from 2.7 a public flavor, as in the sample of this version, is refused
			c.want(200, tt.version, "admin", "POST", "/flavors", sample(c.T, dir+tt.folder+"flavor-create-req.json"))
			reply := ""
			if tt.status == 200 {
				reply = dir + "flavor-access-add-tenant-resp"
			}
			c.compareWith(nil, tt.version, "admin", "POST", "/flavors/10/action", dir+tt.folder+"flavor-access-add-tenant-req", reply, tt.status)
			if tt.status == 200 {
				c.compareWith(nil, tt.version, "admin", "GET", "/flavors/10/os-flavor-access", "", dir+"flavor-access-list-resp", 200)
				reply := c.compareWith(nil, tt.version, "admin", "POST", "/flavors/10/action", dir+"flavor-access-remove-tenant-req", dir+"flavor-access-remove-tenant-resp", 200)
				if reply != `{"flavor_access":[]}` {
					c.Errorf("after the removal: %s", reply)
				}
			}
			c.want(202, tt.version, "admin", "DELETE", "/flavors/10", "")
		}
	})
}

// TestExtraSpecs: extra specs are added, changed, shown and removed as in Nova. Since 2.86 known names and their values are checked.
func TestExtraSpecs(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		const specs = "/flavors/1/os-extra_specs"
		create := sample(c.T, "flavor-extra-specs/flavor-extra-specs-create-req.json")
		c.sameShape("create", sample(c.T, "flavor-extra-specs/flavor-extra-specs-create-resp.json"), c.want(200, "2.1", "admin", "POST", specs, create))
		c.sameShape("list", sample(c.T, "flavor-extra-specs/flavor-extra-specs-list-resp.json"), c.want(200, "2.1", "member", "GET", specs, ""))
		c.sameShape("show", sample(c.T, "flavor-extra-specs/flavor-extra-specs-get-resp.json"), c.want(200, "2.1", "member", "GET", specs+"/hw:numa_nodes", ""))
		update := sample(c.T, "flavor-extra-specs/flavor-extra-specs-update-req.json")
		c.sameShape("update", sample(c.T, "flavor-extra-specs/flavor-extra-specs-update-resp.json"), c.want(200, "2.1", "admin", "PUT", specs+"/hw:numa_nodes", update))
		var got struct {
			Specs map[string]string `json:"extra_specs"`
		}
		if err := json.Unmarshal([]byte(c.want(200, "2.1", "member", "GET", specs, "")), &got); err != nil || got.Specs["hw:numa_nodes"] != "2" || len(got.Specs) != 2 {
			c.Errorf("%v: %v", got, err)
		}
		for _, tt := range []struct {
			status                         int
			version, who, method, at, body string
			says                           string
		}{
			{400, "2.1", "admin", "PUT", "/hw:numa_nodes", `{"hw:cpu_policy": "shared"}`, "Request body and URI mismatch"},
			{400, "2.1", "admin", "PUT", "/a", `{"a": "1", "b": "2"}`, "has too many properties"},
			{400, "2.1", "admin", "PUT", "/a", `{}`, ""},
			{400, "2.1", "admin", "POST", "", `{"extra_specs": {"a": "` + strings.Repeat("x", 256) + `"}}`, ""},
			{400, "2.1", "admin", "POST", "", `{"extra_specs": {"a": 1` + strings.Repeat("0", 255) + `}}`, "extra_specs value"},
			{400, "2.1", "admin", "POST", "", `{"extra_specs": {"a": null}}`, ""},
			{400, "2.1", "admin", "POST", "", `{"extra_specs": {"a/b": "1"}}`, ""},
			{400, "2.1", "admin", "POST", "", `{"extra_specs": {}, "x": 1}`, ""},
			{404, "2.1", "member", "GET", "/none", "", "Flavor 1 has no extra specs with key none."},
			{404, "2.1", "admin", "DELETE", "/none", "", "Flavor 1 has no extra specs with key none."},
			{403, "2.1", "member", "POST", "", `{"extra_specs": {"a": "1"}}`, ""},
			{403, "2.1", "member", "DELETE", "/hw:numa_nodes", "", ""},
			{200, "2.85", "admin", "POST", "", `{"extra_specs": {"hw:numa_nodes": "foo", "hw:unknown": "x"}}`, ""},
			{400, "2.86", "admin", "POST", "", `{"extra_specs": {"hw:numa_nodes": "foo"}}`, "Validation failed; 'foo' is not a valid integer value."},
			{400, "2.86", "admin", "POST", "", `{"extra_specs": {"hw:numa_nodes": "0"}}`, "Validation failed; '0' is less than the min value of '1'."},
			{400, "2.86", "admin", "PUT", "/hw:redirected_usb_ports", `{"hw:redirected_usb_ports": 16}`, "Validation failed; '16' is greater than the max value of '15'."},
			{400, "2.86", "admin", "POST", "", `{"extra_specs": {"hw:cpu_policy": "sharrred"}}`, "Validation failed; 'sharrred' is not one of: dedicated, shared, mixed."},
			{400, "2.86", "admin", "POST", "", `{"extra_specs": {"hw:boot_menu": "maybe"}}`, "Validation failed; 'maybe' is not a valid boolean-like value."},
			{400, "2.86", "admin", "POST", "", `{"extra_specs": {"hw:mem_page_size": "huge"}}`, "Validation failed; 'huge' is not of the format"},
			{400, "2.86", "admin", "POST", "", `{"extra_specs": {"hw:unknown": "x"}}`, "Validation failed; extra spec 'hw:unknown' does not appear to be a valid extra spec."},
			{400, "2.86", "admin", "POST", "", `{"extra_specs": {"resources:FOO": "1"}}`, "does not appear"},
			{400, "2.86", "admin", "POST", "", `{"extra_specs": {"trait:HW_X": "wanted"}}`, "is not one of: required, forbidden."},
			{200, "2.86", "admin", "POST", "", `{"extra_specs": {"own:name": "x", "plain": "y", "resources1:VCPU": "2", "trait:CUSTOM_A": "required", "hw:numa_mem.1": 512}}`, ""},
			{200, "2.1", "admin", "DELETE", "/plain", "", ""},
		} {
			if reply := c.want(tt.status, tt.version, tt.who, tt.method, specs+tt.at, tt.body); !strings.Contains(reply, tt.says) {
				c.Errorf("%s %s %s says %s, want %s", tt.method, tt.at, tt.body, reply, tt.says)
			}
		}
		c.want(404, "2.1", "member", "GET", "/flavors/none/os-extra_specs", "")
	})
}

// TestExtraDisks: a flavor with an ephemeral or a swap disk gives a server only if a driver has such disks. A resize does not change these disks.
func TestExtraDisks(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		c.addHost()
		id := c.boot("x")
		for name, more := range map[string]string{"e": `"OS-FLV-EXT-DATA:ephemeral": 1`, "s": `"swap": 512`} {
			c.want(200, "2.1", "admin", "POST", "/flavors", `{"flavor": {"name": "`+name+`", "id": "`+name+`", "ram": 1, "vcpus": 1, "disk": 1, `+more+`}}`)
			create := `{"server": {"name": "x", "flavorRef": "` + name + `", "imageRef": "x"}}`
			resize := "/servers/" + id + "/action"
			for path, tt := range map[string]struct{ body, says string }{
				"/servers": {create, "choose a flavor without them"}, resize: {`{"resize": {"flavorRef": "` + name + `"}}`, "choose a flavor with the same ones"},
			} {
				if reply := c.want(501, "2.1", "member", "POST", path, tt.body); !strings.Contains(reply, tt.says) {
					c.Errorf("%s: %s", path, reply)
				}
			}
		}
		host := compute.HostReport{Host: "n2", Driver: "d", Capabilities: []driver.Capability{compute.CapExtraDisks, compute.CapResize}, Resources: compute.Resources{VCPUs: 9, MemoryMiB: 9999, DiskGiB: 99}}
		if err := c.store.ReportHost(c.Context(), &host, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
			c.Fatal(err)
		}
		var made struct {
			Server struct{ ID string }
		}
		if err := json.Unmarshal([]byte(c.want(202, "2.1", "member", "POST", "/servers", `{"server": {"name": "x", "flavorRef": "e", "imageRef": "x"}}`)), &made); err != nil {
			c.Fatal(err)
		}
		c.launch(made.Server.ID, "n2")
		spec := func() compute.Spec {
			c.Helper()
			srv, err := c.store.ServerToBuild(c.Context(), made.Server.ID)
			if err != nil {
				c.Fatal(err)
			}
			return srv.Spec()
		}
		if s := spec(); s.EphemeralGiB != 1 || s.RootGiB() != 1 || s.Resources.DiskGiB != 2 {
			c.Errorf("the driver builds %+v", s)
		}
		c.want(200, "2.1", "admin", "POST", "/flavors", `{"flavor": {"name": "f", "id": "f", "ram": 1, "vcpus": 1, "disk": 2, "OS-FLV-EXT-DATA:ephemeral": 1}}`)
		for name, want := range map[string]int{"1": 501, "s": 501} {
			c.want(want, "2.1", "member", "POST", "/servers/"+made.Server.ID+"/action", `{"resize": {"flavorRef": "`+name+`"}}`)
		}
		// A server of an earlier release has one disk with the sizes of all disks of its flavor.
		c.exec(`UPDATE servers SET boot_flavor = ? WHERE id = ?`, db.JSONOf(store.BootFlavor{Name: "e", DiskGiB: 1, EphemeralGiB: 1}), made.Server.ID)
		if s := spec(); s.HasExtraDisks() || s.RootGiB() != 2 {
			c.Errorf("the driver builds %+v", s)
		}
		c.want(501, "2.1", "member", "POST", "/servers/"+made.Server.ID+"/action", `{"resize": {"flavorRef": "f"}}`)
		c.exec(`UPDATE servers SET boot_flavor = ? WHERE id = ?`, db.JSONOf(store.BootFlavor{Name: "e", DiskGiB: 1, EphemeralGiB: 1, ExtraDisks: true}), made.Server.ID)
		c.want(202, "2.1", "member", "POST", "/servers/"+made.Server.ID+"/action", `{"resize": {"flavorRef": "f"}}`)
	})
}

// TestAccessOfProjects: a project that Keystone does not have gets no access to a flavor, also to a public one. As in Nova, a project that Keystone does not show is accepted, and the access of
// any project can be removed.
func TestAccessOfProjects(t *testing.T) {
	t.Parallel()
	eachCloudOf(t, api.Rules(), nil, nil, func(c *cloud) {
		c.want(200, "2.1", "admin", "POST", "/flavors", `{"flavor": {"name": "f", "id": "f", "ram": 1, "vcpus": 1, "disk": 1, "os-flavor-access:is_public": false}}`)
		give := func(status int, version, flavor, project, says string) {
			c.Helper()
			if reply := c.want(status, version, "admin", "POST", "/flavors/"+flavor+"/action", `{"addTenantAccess": {"tenant": "`+project+`"}}`); !strings.Contains(reply, says) {
				c.Errorf("%s: %s", project, reply)
			}
		}
		give(400, "2.1", "f", "none", "Project ID none is not a valid project.")
		give(400, "2.7", "1", "none", "Project ID none is not a valid project.")
		give(200, "2.7", "f", "p1", "p1")
		give(200, "2.1", "f", "hidden", "hidden")
		c.want(200, "2.1", "admin", "POST", "/flavors/f/action", `{"removeTenantAccess": {"tenant": "hidden"}}`)
		if !strings.Contains(c.log.String(), "project accepted without a check") {
			c.Errorf("the log: %s", c.log)
		}
	}, func(cfg *api.Config) {
		cfg.HasProject = func(_ context.Context, token, id string) (bool, error) {
			if token != "admin" {
				return false, fault.New(fault.Unauthenticated, "who?")
			}
			if id == "hidden" {
				return false, fault.New(fault.Denied, "no")
			}
			return id == "p1", nil
		}
	})
}
