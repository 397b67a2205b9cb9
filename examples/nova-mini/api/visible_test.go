package api_test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/service/policy"
)

// TestTenancy: a client whose token has no project can neither see nor create servers, even if an operator's policy allows
// everything. Only all_tenants lists the servers of all projects.
func TestTenancy(t *testing.T) {
	t.Parallel()
	rules := api.Rules()
	for i := range rules {
		rules[i].Check = "@"
	}
	eachCloudWith(t, rules, func(c *cloud) {
		c.addServers()
		if _, err := c.db.ExecContext(c.Context(), `UPDATE servers SET project_id = '' WHERE id LIKE '00007919%'`); err != nil { // an older release may have left servers without a project
			c.Fatal(err)
		}
		for _, query := range []string{"", "name=web", "limit=5", "project_id=", "project_id=p1", "all_tenants=0"} {
			if got, refused := c.list("nowhere", "servers", query); len(got) > 0 || refused != "" {
				c.Errorf("without a project: %s: %s, %v", query, refused, ids(got))
			}
		}
		for who, want := range map[string]int{"nowhere": 30, "member": 30} {
			if got, refused := c.list(who, "servers", "all_tenants=1"); len(got) != want {
				c.Errorf("%s, all tenants: %s, %d", who, refused, len(got))
			}
		}
		if got, _ := c.list("member", "servers", ""); len(got) != 15 {
			c.Errorf("the own project has %d servers", len(got))
		}
		status, reply := c.ask("nowhere", "POST", "/servers", `{"server": {"name": "x", "flavorRef": "1", "imageRef": "x"}}`)
		if status != 403 || !strings.Contains(reply, "A server needs a project") {
			c.Errorf("a create without a project: %d %s", status, reply)
		}
		if got, _ := c.list("member", "servers", "all_tenants=1"); len(got) != 30 {
			c.Errorf("%d servers", len(got))
		}
	})
}

// TestPrivateFlavors: a client without access to a private flavor does not see it: neither in lists, nor by its id, nor as
// a marker, nor for a new server.
func TestPrivateFlavors(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		c.addServers()
		own := c.launched() // Nova looks at the state of the server before the flavor
		must := func(status int, who, method, path, body, says string) {
			c.Helper()
			if got, reply := c.ask(who, method, path, body); got != status || !strings.Contains(reply, says) {
				c.Errorf("%s: %s %s %s = %d %s; want %d %s", who, method, path, body, got, reply, status, says)
			}
		}
		must(200, "admin", "POST", "/flavors", `{"flavor": {"id": "secret", "name": "secret", "ram": 4096, "vcpus": 1, "disk": 1, "os-flavor-access:is_public": false}}`, "secret")
		const gone = "Flavor secret could not be found."
		visible := func(who string, access bool) {
			c.Helper()
			for query, listed := range map[string]bool{"": access, "is_public=True": access, "is_public=None": access || who == "admin", "is_public=False": access || who == "admin"} { // the filter has an effect only for administrators
				got, refused := c.list(who, "flavors", query)
				if slices.Contains(ids(got), "secret") != listed || refused != "" || (len(got) < 5) != (query == "is_public=False" && who == "admin") {
					c.Errorf("%s, access %t: %s: %s, %v", who, access, query, refused, ids(got))
				}
			}
			status, code, says := 404, 400, gone
			if access || who == "admin" {
				status, code, says = 200, 202, ""
			}
			must(status, who, "GET", "/flavors/secret", "", says)
			create := `{"server": {"name": "x", "flavorRef": "secret", "imageRef": "x"}}`
			must(code, who, "POST", "/servers", create, says)
			must(code, who, "POST", "/servers", strings.Replace(create, "secret", "http://x/flavors/secret", 1), says)
			if who == "stranger" {
				must(404, who, "POST", "/servers/"+own+"/action", `{"resize": {"flavorRef": "secret"}}`, own)
			} else if code == 400 {
				must(code, who, "POST", "/servers/"+own+"/action", `{"resize": {"flavorRef": "secret"}}`, says)
				must(400, who, "GET", "/flavors?marker=secret", "", "marker [secret] not found")
			} else {
				must(200, who, "GET", "/flavors?marker=secret", "", `"flavors":[]`)
			}
		}
		visible("member", false)
		visible("admin", false)

		must(404, "admin", "GET", "/flavors/1/os-flavor-access", "", "Access list not available for public flavors.")
		must(200, "admin", "GET", "/flavors/secret/os-flavor-access", "", `{"flavor_access":[]}`)
		const action, add, remove = "/flavors/secret/action", `{"addTenantAccess": {"tenant": "p1"}}`, `{"removeTenantAccess": {"tenant": "p1"}}`
		must(403, "member", "POST", action, add, "os-flavor-access:add_tenant_access")
		must(404, "admin", "POST", "/flavors/none/action", add, "Flavor none could not be found.")
		must(400, "admin", "POST", action, `{"addTenantAccess": {"tenant": ""}}`, "is too short")
		must(200, "admin", "POST", action, add, `{"flavor_access":[{"flavor_id":"secret","tenant_id":"p1"}]}`)
		must(409, "admin", "POST", action, add, "Flavor access already exists for flavor secret and project p1 combination.")
		must(200, "admin", "GET", "/flavors/secret/os-flavor-access", "", `"tenant_id":"p1"`)
		must(403, "member", "GET", "/flavors/secret/os-flavor-access", "", "os-flavor-access")
		visible("member", true)
		visible("stranger", false)
		must(200, "admin", "POST", action, remove, `{"flavor_access":[]}`)
		must(404, "admin", "POST", action, remove, "Flavor access not found for secret / p1 combination.")
		visible("member", false)

		must(200, "admin", "POST", action, add, "p1")
		must(202, "admin", "DELETE", "/flavors/secret", "", "")
		must(200, "admin", "POST", "/flavors", `{"flavor": {"id": "secret", "name": "new", "ram": 1, "vcpus": 1, "disk": 1, "os-flavor-access:is_public": false}}`, "new")
		visible("member", false) // the access was to the deleted flavor, and not to this flavor with the same id
	})
}

// must returns the items of a list, and panics if the list was refused.
func must(items []item, refused string) []item {
	if refused != "" {
		panic(refused)
	}
	return items
}

// TestAttributes: members see only the attributes of a server that Nova's policies allow. They do not see the host of the server, and the
// fault shows them neither hosts nor amounts.
func TestAttributes(t *testing.T) {
	t.Parallel()
	const message, details = "No valid host was found. There are not enough hosts available.", "No valid host was found. 0 of 4 hosts: 3 MEMORY_MB, 1 node-7 disabled"
	extended := []string{"OS-EXT-SRV-ATTR:host", "OS-EXT-SRV-ATTR:hypervisor_hostname", "OS-EXT-SRV-ATTR:instance_name"}
	loose := api.Rules()
	for i := range loose {
		if loose[i].Name == "os_compute_api:os-extended-server-attributes" {
			loose[i].Check = "rule:project_reader_or_admin"
		}
	}
	for name, rules := range map[string][]policy.Rule{"Nova's rules": api.Rules(), "for readers": loose} {
		eachCloudWith(t, rules, func(c *cloud) {
			c.addServers()
			victim := must(c.list("member", "servers", "status=SHUTOFF"))[0].text("id")
			if err := c.store.BeginAction(c.Context(), victim, compute.Start, store.ActData{}); err != nil {
				c.Fatal(err)
			}
			err := db.Tx(c.Context(), c.db, func(ctx context.Context, tx *sqlx.Tx) error {
				return c.store.FailCreate(ctx, tx, victim, message, details)
			})
			if err != nil {
				c.Fatal(err)
			}
			for who, sees := range map[string]bool{"admin": true, "member": name == "for readers"} {
				list := must(c.list(who, "servers", ""))
				_, one := c.ask(who, "GET", "/servers/"+victim, "")
				var show struct{ Server item }
				if err := json.Unmarshal([]byte(one), &show); err != nil {
					c.Fatal(err)
				}
				for _, i := range append(list, show.Server) {
					for _, attribute := range extended {
						if _, there := i[attribute]; there != sees {
							c.Errorf("%s, %s: %s is there: %t, of %v", name, who, attribute, there, i)
						}
					}
					if i.text("id") != victim {
						continue
					}
					got, _ := i["fault"].(map[string]any)
					if got["message"] != message || (got["details"] == details) != (who == "admin") || got["details"] != nil && who != "admin" || got["code"] != 500. {
						c.Errorf("%s, %s: fault %v", name, who, got)
					}
				}
				if status, raw := c.ask(who, "GET", "/servers/detail", ""); status != 200 || !sees && (strings.Contains(raw, "n10") || strings.Contains(raw, "node-7")) {
					c.Errorf("%s, %s: a host's name is in %s", name, who, raw)
				}
			}
		})
	}
}

// TestResizeWithoutRoom: the error for a resize without room names neither hosts nor amounts.
func TestResizeWithoutRoom(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		c.addServers()
		own := must(c.list("admin", "servers", "vm_state=stopped&flavor=1"))[0].text("id")
		if err := c.store.ReportHost(c.Context(), &compute.HostReport{Host: "n1", Driver: "fake", Resources: compute.Resources{VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}}, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
			c.Fatal(err)
		}
		if _, err := c.db.ExecContext(c.Context(), `UPDATE servers SET host = 'n1' WHERE id = ?`, own); err != nil {
			c.Fatal(err)
		}
		if _, err := c.db.ExecContext(c.Context(), `UPDATE operations SET state = 'succeeded', active = NULL WHERE active = ?`, own); err != nil {
			c.Fatal(err)
		}
		status, reply := c.ask("member", "POST", "/servers/"+own+"/action", `{"resize": {"flavorRef": "2"}}`)
		if want := `{"badRequest":{"code":400,"message":"No valid host was found. No valid host found for resize"}}`; status != 400 || reply != want {
			c.Errorf("%d %s; want %s", status, reply, want)
		}
		if log := c.log.String(); !strings.Contains(log, "no valid host for a resize") || !strings.Contains(log, "host=n1") || !strings.Contains(log, "20 DISK_GB") {
			c.Errorf("the log does not have the reason for administrators: %s", log)
		}
	})
}

// TestResizeSpecs: a resize to a flavor whose extra specs ask for what the host does not have is refused.
func TestResizeSpecs(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		c.addHost()
		for spec, status := range map[string]int{"hw:numa_nodes=2": 400, "trait:CUSTOM_FAST=required": 400, "capabilities:hypervisor_type=xen": 400, "capabilities:host=n1": 202, "hw:cpu_policy=shared": 202} {
			name, value, _ := strings.Cut(spec, "=")
			if err := c.store.SetSpecs(c.Context(), "2", map[string]string{name: value}); err != nil {
				c.Fatal(err)
			}
			reply := c.want(status, "2.1", "member", "POST", "/servers/"+c.boot("x")+"/action", `{"resize": {"flavorRef": "2"}}`)
			if status == 400 && !strings.Contains(reply, "No valid host was found. No valid host found for resize") {
				c.Errorf("%s: %s", spec, reply)
			}
			if log := c.log.String(); status == 400 && !strings.Contains(log, `reason="`+map[string]string{"hw": "extra_specs (no driver", "trait": "traits (does not have", "capabilities": "capabilities (does not have"}[strings.Split(name, ":")[0]]) {
				c.Errorf("%s: the log does not have the reason for administrators: %s", spec, log)
			}
			if err := c.store.DeleteSpec(c.Context(), "2", name); err != nil {
				c.Fatal(err)
			}
		}
	})
}

// TestResizeFilters: the configured filters check the host of a server that is resized. The filters traits and extra_specs are always used.
func TestResizeFilters(t *testing.T) {
	t.Parallel()
	for filters, want := range map[string]int{"": 400, "ComputeFilter": 202, "ComputeFilter ComputeCapabilitiesFilter": 400} {
		eachCloudOf(t, api.Rules(), nil, nil, func(c *cloud) {
			c.addHost()
			for spec, status := range map[string]int{"hw:numa_nodes=2": 400, "trait:CUSTOM_FAST=required": 400, "capabilities:hypervisor_type=xen": want} {
				name, value, _ := strings.Cut(spec, "=")
				if err := c.store.SetSpecs(c.Context(), "2", map[string]string{name: value}); err != nil {
					c.Fatal(err)
				}
				c.want(status, "2.1", "member", "POST", "/servers/"+c.boot("x")+"/action", `{"resize": {"flavorRef": "2"}}`)
				if err := c.store.DeleteSpec(c.Context(), "2", name); err != nil {
					c.Fatal(err)
				}
			}
		}, func(cfg *api.Config) { cfg.Filters = strings.Fields(filters) })
	}
}

// TestBlanks: a name with a space at its end differs from the name without it, on every database.
func TestBlanks(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		c.addServers()
		own, _ := c.list("admin", "servers", "")
		id := own[0].text("id")
		for _, path := range []string{"/servers/" + id, "/flavors/1"} {
			if status, reply := c.ask("admin", "GET", path, ""); status != 200 {
				c.Errorf("GET %s: %d %s", path, status, reply)
			}
			for _, method := range []string{"GET", "DELETE"} {
				if status, reply := c.ask("admin", method, path+"%20", ""); status != 404 {
					c.Errorf("%s %s%%20: %d %s", method, path, status, reply)
				}
			}
		}
		if status, reply := c.ask("admin", "POST", "/servers/"+id+"%20/action", `{"os-stop": null}`); status != 404 {
			c.Errorf("an action: %d %s", status, reply)
		}
	})
}
