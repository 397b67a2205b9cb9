package api_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// These are Nova's names at microversion 2.1 (nova/api/openstack/compute/schemas, servers
// and flavors): filters, joined tables that Nova refuses, sort keys, and sort keys that Nova
// ignores.
const (
	novaFilters = `user_id project_id tenant_id launch_index image_ref image kernel_id ramdisk_id hostname key_name power_state
		vm_state task_state host node flavor reservation_id launched_at terminated_at availability_zone name display_name description
		display_description locked_by uuid root_device_name config_drive access_ip_v4 access_ip_v6 auto_disk_config progress soft_deleted
		deleted status changes-since ip ip6 created_at`
	novaTagFilters = `tags tags-any not-tags not-tags-any`
	novaJoined     = `block_device_mapping services metadata system_metadata info_cache security_groups pci_devices _anything`
	novaSortKeys   = `access_ip_v4 access_ip_v6 auto_disk_config availability_zone config_drive created_at display_description
		display_name host hostname image_ref instance_type_id kernel_id key_name launch_index launched_at locked_by node power_state
		progress project_id ramdisk_id root_device_name task_state terminated_at updated_at user_id uuid vm_state`
	novaIgnored = `architecture cell_name cleaned default_ephemeral_device default_swap_device deleted deleted_at disable_terminate
		ephemeral_gb ephemeral_key_uuid id key_data launched_on locked memory_mb os_type reservation_id root_gb shutdown_terminate
		user_data vcpus vm_mode`
	novaFlavorSorts = `created_at description disabled ephemeral_gb flavorid id is_public memory_mb name root_gb rxtx_factor swap
		updated_at vcpu_weight vcpus`
)

// TestServerFilters checks each of Nova's filters of servers: the list has the matching rows, or the filter is refused.
func TestServerFilters(t *testing.T) {
	t.Parallel()
	same := func(attribute string) func(item, string) bool {
		return func(i item, value string) bool { return i[attribute] != nil && i.text(attribute) == value }
	}
	like := func(attribute string) func(item, string) bool {
		return func(i item, value string) bool {
			return i[attribute] != nil && regexp.MustCompile(value).MatchString(i.text(attribute))
		}
	}
	address := func(version float64) func(item, string) bool {
		return func(i item, value string) bool {
			for _, network := range i["addresses"].(map[string]any) {
				for _, one := range network.([]any) {
					if a := one.(map[string]any); a["version"] == version && regexp.MustCompile(value).MatchString(a["addr"].(string)) {
						return true
					}
				}
			}
			return false
		}
	}
	const host = "OS-EXT-SRV-ATTR:host"
	filters := map[string]struct {
		matches func(i item, value string) bool
		values  []string
	}{
		"user_id":             {same("user_id"), []string{"u1", "u2", "u", "", "U1", "u1 "}},
		"project_id":          {same("tenant_id"), []string{"p1", "p2", "p"}},
		"tenant_id":           {same("tenant_id"), []string{"p1", "p2", ""}},
		"image":               {same("image"), []string{"img-1", "", "img-3", "img-1  "}},
		"image_ref":           {same("image"), []string{"img-2", "img"}},
		"flavor":              {same("flavor"), []string{"1", "10", "0", ".*"}},
		"vm_state":            {same("OS-EXT-STS:vm_state"), []string{"active", "error", "ACTIVE", "deleted", ""}},
		"task_state":          {same("OS-EXT-STS:task_state"), []string{"rebooting", "deleting", "reboot", ""}},
		"host":                {same(host), []string{"n1", "n10", "n", "", "n1 "}},
		"node":                {like(host), []string{"n1", "^n1$", "2|0"}},
		"power_state":         {like("OS-EXT-STS:power_state"), []string{"1", "4", "0", "9", "[14]"}},
		"availability_zone":   {like("OS-EXT-AZ:availability_zone"), []string{"nova", "^$", "x"}},
		"name":                {like("name"), []string{"web", "^web-1$", "b.1", "(?i)web", "w+b", `w\+b`, "Ä%_", "", "[dw]b?", "none", "web-1|db", "(web)-(1)", "(?i:w)eb-2"}},
		"display_name":        {like("name"), []string{"web", "1$"}},
		"created_at":          {like("created"), []string{"10:0[12]:00Z$", "2025"}},
		"launched_at":         {like("OS-SRV-USG:launched_at"), []string{"T1[01]:", ".*"}},
		"display_description": {like("description"), []string{"box", "^$", "."}},
		"description":         {like("description"), []string{"(?i)^BOX$"}},
		"hostname":            {like("OS-EXT-SRV-ATTR:hostname"), []string{"^web", `\.org$`, "none"}},
		"key_name":            {like("key_name"), []string{"k1", ".*"}},
		"reservation_id":      {like("OS-EXT-SRV-ATTR:reservation_id"), []string{"r-1", "^r"}},
		"root_device_name":    {like("OS-EXT-SRV-ATTR:root_device_name"), []string{"vda", "sda"}},
		"launch_index":        {like("OS-EXT-SRV-ATTR:launch_index"), []string{"1", "^1$"}},
		"kernel_id":           {like("OS-EXT-SRV-ATTR:kernel_id"), []string{"^$", "x"}},
		"ramdisk_id":          {like("OS-EXT-SRV-ATTR:ramdisk_id"), []string{"^$", "x"}},
		"access_ip_v4":        {like("accessIPv4"), []string{`^10\.0\.0\.1$`, "^$"}},
		"access_ip_v6":        {like("accessIPv6"), []string{"fe80"}},
		"config_drive":        {like("config_drive"), []string{"True", "^$"}},
		"auto_disk_config": {func(i item, value string) bool {
			return regexp.MustCompile(value).MatchString(map[string]string{"AUTO": "1", "MANUAL": "0"}[i.text("OS-DCF:diskConfig")])
		}, []string{"1", "0", "[01]"}},
		"locked_by":     {func(item, string) bool { return false }, []string{".*"}}, // no server is locked
		"progress":      {func(_ item, value string) bool { return regexp.MustCompile(value).MatchString("0") }, []string{"0", "1"}},
		"terminated_at": {like("OS-SRV-USG:terminated_at"), []string{".*"}},
		"ip":            {address(4), []string{".*", `^10\.0\.0\.1$`, "10.0.0.2"}},
		"ip6":           {address(6), []string{".*", "::7", "::8"}},
		"soft_deleted":  {func(item, string) bool { return true }, []string{"True", "x"}}, // it counts only for deleted servers
		"tags":          {func(i item, value string) bool { return tagged(i, value) == len(strings.Split(value, ",")) }, []string{"a", "a,b", "A", "a,c", `"a"`, ""}},
		"tags-any":      {func(i item, value string) bool { return tagged(i, value) > 0 }, []string{"a", "a,c", "x"}},
		"not-tags":      {func(i item, value string) bool { return tagged(i, value) < len(strings.Split(value, ",")) }, []string{"a", "a,b", "x"}},
		"not-tags-any":  {func(i item, value string) bool { return tagged(i, value) == 0 }, []string{"a", "a,c", "x"}},
		"uuid":          {same("id"), []string{"00007919-0000-4000-8000-000000000000", "7919", ""}},
		"deleted":       {func(_ item, value string) bool { return value != "True" && value != " 1" }, []string{"True", "False", "perhaps", " 1", ""}},
		"status": {
			func(i item, value string) bool { return strings.EqualFold(i.text("status"), value) },
			[]string{"ACTIVE", "error", "BUILD", "REBOOT", "HARD_REBOOT", "RESIZE", "VERIFY_RESIZE", "REVERT_RESIZE", "SHUTOFF", "PAUSED", "DELETED", "nonsense", ""},
		},
		"changes-since": {func(i item, value string) bool {
			at, err := time.Parse("2006-01-02T15:04:05Z07:00", value)
			updated, err2 := time.Parse(time.RFC3339, i.text("updated"))
			return err == nil && err2 == nil && !updated.Before(at)
		}, []string{"2026-11-26T10:00:03Z", "2026-11-26T11:00:04+01:00", "2051-01-01T12:34:00Z", "2000-01-01T00:00:00Z"}},
	}
	eachCloud(t, func(c *cloud) {
		c.addServers()
		c.at = "2.37" // the last version that ignores an unknown status
		visible := map[string][]item{
			"admin":  must(c.list("admin", "servers", "all_tenants=1")),
			"member": must(c.list("admin", "servers", "")), // the servers of the member's project, with the hosts that only the administrator sees
		}
		if len(visible["admin"]) != 30 || len(visible["member"]) != 15 {
			c.Fatalf("%d and %d servers", len(visible["admin"]), len(visible["member"]))
		}
		for name := range strings.FieldsSeq(novaFilters + " " + novaTagFilters + " " + novaJoined) {
			for _, who := range []string{"admin", "member"} {
				all := ""
				if who == "admin" {
					all = "&all_tenants=1"
				}
				every := visible[who]
				f, done := filters[name]
				if who == "member" && name == "deleted" { // it has no effect
					f.matches = func(item, string) bool { return true }
				}
				values := f.values
				if hidden := who == "member" && (name == "host" || name == "node"); !done || hidden {
					values, done = []string{"x", "a.b", ""}, false
				}
				for _, value := range values {
					query := url.QueryEscape(name) + "=" + url.QueryEscape(value) + all
					got, refused := c.list(who, "servers", query)
					if strings.EqualFold(value, "DELETED") && name == "status" && who == "member" {
						if !strings.HasPrefix(refused, "403") || !strings.Contains(refused, "Only administrators may list deleted instances") {
							c.Errorf("%s: %s: %s, %v", who, query, refused, ids(got))
						}
						continue
					}
					if !done {
						if !strings.HasPrefix(refused, "400") || !strings.Contains(refused, "Invalid filter field: "+name+".") {
							c.Errorf("%s: %s: %s, %v; want a refusal of %s", who, query, refused, ids(got), name)
						}
						continue
					}
					want := slices.DeleteFunc(slices.Clone(every), func(i item) bool { return !f.matches(i, value) })
					if diff := gocmp.Diff(ids(want), ids(got)); diff != "" || refused != "" {
						c.Errorf("%s: %s: %s (-want +got):\n%s", who, query, refused, diff)
					}
				}
			}
		}
		for _, name := range []string{"uuid", "name", "node", "status", "changes-since", "deleted"} { // one of each kind
			for _, value := range []string{"\x00", "a\x00b", "'", `"`, "%", "_", `\`, "((((", "a{1000}{1000}", strings.Repeat("(a|b)*", 50), strings.Repeat("x", 4000), "\U0010FFFF\uFFFD", "(?=x)", "99999999999999999999", "-1"} {
				if got, _ := c.list("admin", "servers", "all_tenants=1&"+name+"="+url.QueryEscape(value)); len(got) > 0 && name != "deleted" { // deleted is true or false
					for _, i := range got {
						if !filters[name].matches(i, value) {
							c.Errorf("%s=%q has %v", name, value, i)
						}
					}
				}
			}
		}
		c.at = "2.1"
		for _, tt := range []struct{ who, query, want string }{
			{"admin", "status=ERROR&status=build&name=web&all_tenants=1", ""},
			{"admin", "tenant_id=p2", ""}, // the client's own project is a condition, too, so the list is empty, as in Nova
			{"admin", "name=[", `400 "message":"Invalid input for query parameters name. Value: [. '[' is not a 'regex'"`},
			{"member", "changes-since=invalid+date", `400 "message":"Invalid input for query parameters changes-since. Value: invalid date. 'invalid date' is not a 'date-time'"`},
			{"member", "changes-since=", "400 is not a 'date-time'"},
			{"member", "all_tenants=1", "403 get_all_tenants"},
			{"member", "unknown=1&tags=a&changes-before=x", ""}, // Nova ignores them at 2.1
			{"member", "name=%ff", "400 Query string is not UTF-8 encoded"},
		} {
			got, refused := c.list(tt.who, "servers", tt.query)
			code, says, _ := strings.Cut(tt.want, " ")
			if !strings.HasPrefix(refused, code) || !strings.Contains(refused, says) || (tt.want == "") != (refused == "") {
				c.Errorf("%s: %s: %s, %v; want %s", tt.who, tt.query, refused, ids(got), tt.want)
			}
			for _, i := range got {
				if tt.query == "tenant_id=p2" || tt.who == "admin" && i.text("status") != "BUILD" && i.text("status") != "ERROR" || tt.who == "member" && i.text("tenant_id") != "p1" {
					c.Errorf("%s: %s: has %v", tt.who, tt.query, i)
				}
			}
			if strings.HasPrefix(tt.query, "status") && len(got) != 4 {
				c.Errorf("%s: %d servers", tt.query, len(got))
			}
		}
	})
}

// TestListVersions: filters of a later version are ignored, and refused from 2.75.
func TestListVersions(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		c.addServers()
		if _, err := c.db.ExecContext(c.Context(), `UPDATE servers SET locked_by = 'owner' WHERE user_id = 'u2'`); err != nil {
			c.Fatal(err)
		}
		for _, tt := range []struct {
			version, query string
			status, n      int
			says           string
		}{
			{"2.25", "tags=a", 200, 15, ""},
			{"2.26", "tags=a,b", 200, 3, ""},
			{"2.37", "status=nonsense", 200, 0, ""},
			{"2.38", "status=nonsense", 400, 0, "Invalid status value"},
			{"2.38", "status=active&status=nonsense", 400, 0, "Invalid status value"},
			{"2.38", "status=active", 200, 3, ""},
			{"2.65", "changes-before=2000-01-01T00:00:00Z", 200, 15, ""},
			{"2.66", "changes-before=2000-01-01T00:00:00Z", 200, 0, ""},
			{"2.66", "changes-before=2026-11-26T10:00:02Z", 200, 7, ""},
			{"2.66", "changes-before=2026-11-26T10:00:02Z&changes-since=2026-11-26T10:00:03Z", 400, 0, "The value of changes-since must be less than or equal to changes-before."},
			{"2.66", "changes-before=x", 400, 0, "'x' is not a 'date-time'"},
			{"2.72", "locked=x", 200, 15, ""},
			{"2.73", "locked=1", 200, 7, ""},
			{"2.73", "locked=No", 200, 8, ""},
			{"2.73", "locked=x", 400, 0, "Invalid input received: Unrecognized value 'x', acceptable values are: '0', '1'"},
			{"2.73", "locked=1&sort_key=locked", 200, 7, ""},
			{"2.72", "sort_key=locked", 400, 0, "'locked' is not one of ["},
			{"2.1", "locked_by=^o", 200, 7, ""},
			{"2.74", "unknown=1", 200, 15, ""},
			{"2.75", "unknown=1", 400, 0, "Additional properties are not allowed ('unknown' was unexpected)"},
			{"2.75", "ip=10.0.0.1&display_name=web", 200, 0, ""},
			{"2.75", "sort_key=vcpus", 400, 0, "'vcpus' is not one of ["},
		} {
			status, reply := c.askAt(tt.version, "member", "GET", "/servers?"+tt.query, "")
			var got struct{ Servers []item }
			if err := json.Unmarshal([]byte(reply), &got); err != nil || status != tt.status || len(got.Servers) != tt.n || !strings.Contains(reply, tt.says) {
				c.Errorf("%s: %s = %d, %d servers, %.300s; want %d, %d servers, %s", tt.version, tt.query, status, len(got.Servers), reply, tt.status, tt.n, tt.says)
			}
		}
	})
}

// TestServerOrder checks each of Nova's sort keys of servers, in both directions: the list and its pages have that order,
// or the key is refused.
func TestServerOrder(t *testing.T) {
	t.Parallel()
	shown := map[string]string{
		"created_at": "created", "updated_at": "updated", "launched_at": "OS-SRV-USG:launched_at", "display_name": "name", "uuid": "id",
		"host": "OS-EXT-SRV-ATTR:host", "node": "OS-EXT-SRV-ATTR:host", "image_ref": "image", "instance_type_id": "flavor",
		"project_id": "tenant_id", "user_id": "user_id", "task_state": "OS-EXT-STS:task_state", "vm_state": "OS-EXT-STS:vm_state",
		"display_description": "description", "hostname": "OS-EXT-SRV-ATTR:hostname", "access_ip_v4": "accessIPv4", "access_ip_v6": "accessIPv6", "auto_disk_config": "OS-DCF:diskConfig",
		"availability_zone": "OS-EXT-AZ:availability_zone", "config_drive": "config_drive", "kernel_id": "OS-EXT-SRV-ATTR:kernel_id", "ramdisk_id": "OS-EXT-SRV-ATTR:ramdisk_id",
		"key_name": "key_name", "launch_index": "OS-EXT-SRV-ATTR:launch_index", "power_state": "OS-EXT-STS:power_state", "progress": "no such attribute", "locked_by": "no such attribute",
		"root_device_name": "OS-EXT-SRV-ATTR:root_device_name", "terminated_at": "OS-SRV-USG:terminated_at",
	}
	eachCloud(t, func(c *cloud) {
		c.addServers()
		c.at = "2.37"
		c.checkOrder("servers", "all_tenants=1&", append(strings.Fields(novaSortKeys), strings.Fields(novaIgnored)...), shown, "desc", "created_at", "created")
		for _, tt := range []struct{ who, query, says string }{
			{"member", "sort_key=host", "403 Only administrators can sort servers by host"},
			{"member", "sort_key=node", "403 Only administrators can sort servers by node"},
			{"member", "sort_key=password", "400 'password' is not one of ["},
			{"member", "sort_key=uuid&sort_dir=up", "400 Unknown sort direction, must be 'desc' or 'asc'"},
			{"member", "sort_key=uuid&sort_dir=asc&sort_dir=asc", "400 Sort direction size exceeds sort key size"},
		} {
			code, says, _ := strings.Cut(tt.says, " ")
			if _, refused := c.list(tt.who, "servers", tt.query); !strings.HasPrefix(refused, code) || !strings.Contains(refused, says) {
				c.Errorf("%s: %s: %s; want %s", tt.who, tt.query, refused, tt.says)
			}
		}
		mixed, _ := c.list("admin", "servers", "all_tenants=1&sort_key=vm_state&sort_dir=asc&sort_key=project_id&sort_dir=desc&sort_key=uuid")
		if !slices.IsSortedFunc(mixed, func(a, b item) int {
			const vm = "OS-EXT-STS:vm_state"
			return cmp.Or(cmp.Compare(a.text(vm), b.text(vm)), cmp.Compare(b.text("tenant_id"), a.text("tenant_id")), cmp.Compare(a.text("id"), b.text("id")))
		}) || len(mixed) != 30 {
			c.Errorf("by state, project downwards and id: %v", mixed)
		}
	})
}

// checkOrder checks each of Nova's sort keys of a list.
func (c *cloud) checkOrder(kind, query string, keys []string, shown map[string]string, dir, first, firstShown string) {
	c.Helper()
	for _, key := range keys {
		for _, how := range []string{"asc", "desc", ""} {
			q := query + "sort_key=" + key
			if how != "" {
				q += "&sort_dir=" + how
			}
			got, refused := c.list("admin", kind, q)
			attribute, done := shown[key]
			if !done {
				if !strings.HasPrefix(refused, "400") || !strings.Contains(refused, "'"+key+"' is not one of [") {
					c.Errorf("%s: %s, %v; want a refusal of %s", q, refused, ids(got), key)
				}
				continue
			}
			down := cmp.Or(how, dir) == "desc"
			if refused != "" || len(got) < 5 || !slices.IsSortedFunc(got, func(a, b item) int {
				out := cmp.Or(compare(a[attribute], b[attribute]), compare(a[firstShown], b[firstShown]), compare(a["id"], b["id"]))
				if down {
					return -out
				}
				return out
			}) {
				c.Errorf("%s: %s; not by %s and then by %s: %v", q, refused, key, first, got)
			}
			for _, limit := range []int{7, len(got)} {
				var paged []item
				for marker := ""; ; marker = paged[len(paged)-1].text("id") {
					page := fmt.Sprintf("%s&limit=%d", q, limit)
					if marker != "" {
						page += "&marker=" + url.QueryEscape(marker)
					}
					some, refused := c.list("admin", kind, page)
					if refused != "" || len(some) > limit {
						c.Fatalf("%s: %s, %d items", page, refused, len(some))
					}
					if len(some) == 0 {
						break
					}
					paged = append(paged, some...)
				}
				if diff := gocmp.Diff(ids(got), ids(paged)); diff != "" {
					c.Errorf("%s: pages of %d (-whole +pages):\n%s", q, limit, diff)
				}
			}
		}
	}
}

// tagged returns how many of the tags, separated by commas, a server has.
func tagged(i item, list string) (n int) {
	have, _ := i["tags"].([]any)
	for tag := range strings.SplitSeq(list, ",") {
		if slices.Contains(have, any(tag)) {
			n++
		}
	}
	return n
}

// compare compares two values of replies. A missing value is the smallest.
func compare(a, b any) int {
	if m, ok := a.(map[string]any); ok {
		a = m["id"]
	}
	if m, ok := b.(map[string]any); ok {
		b = m["id"]
	}
	truth := map[any]float64{true: 1, false: 0, "AUTO": 1, "MANUAL": 0, "True": 1}
	for _, v := range []*any{&a, &b} {
		if n, ok := truth[*v]; ok {
			*v = n
		}
	}
	x, isX := a.(float64)
	y, isY := b.(float64)
	switch {
	case isX || isY: // "" is 0
		return cmp.Compare(x, y)
	case a == nil || b == nil:
		return cmp.Compare(truth[b == nil], truth[a == nil])
	}
	return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
}

// TestLimit: with limit 0 a list is empty and has no next page, as in Nova. A filter does not change the length of pages.
func TestLimit(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		c.addServers()
		for _, path := range []string{"/servers", "/servers/detail", "/flavors", "/flavors/detail"} {
			for _, query := range []string{"?limit=0", "?limit=0&sort_key=flavorid", "?limit=0&sort_key=uuid", "?limit=0&name=web"} {
				if strings.Contains(query, "uuid") == strings.HasPrefix(path, "/flavors") && strings.Contains(query, "_key") {
					continue
				}
				kind, _, _ := strings.Cut(strings.Trim(path, "/"), "/")
				if status, got := c.ask("admin", "GET", path+query, ""); status != 200 || got != `{"`+kind+`":[]}` {
					c.Errorf("%s%s = %d %.300s", path, query, status, got)
				}
			}
		}
		var all []string
		want, _ := c.list("member", "servers", "name=web-")
		for next := "/servers?limit=2&name=web-"; next != ""; {
			_, got := c.ask("member", "GET", next, "")
			var page struct {
				Servers []item
				Links   []struct{ Href string } `json:"servers_links"`
			}
			if err := json.Unmarshal([]byte(got), &page); err != nil {
				c.Fatal(err)
			}
			all = append(all, ids(page.Servers)...)
			if next = ""; len(page.Links) > 0 {
				_, next, _ = strings.Cut(page.Links[0].Href, "/v2.1")
			}
		}
		if diff := gocmp.Diff(ids(want), all); diff != "" || len(want) < 4 {
			c.Errorf("by the links (-want +got):\n%s", diff)
		}
	})
}

// TestFlavorLists checks filters, sort keys and pages of flavors.
func TestFlavorLists(t *testing.T) {
	t.Parallel()
	shown := map[string]string{
		"flavorid": "id", "name": "name", "memory_mb": "ram", "root_gb": "disk", "ephemeral_gb": "OS-FLV-EXT-DATA:ephemeral", "swap": "swap",
		"vcpus": "vcpus", "is_public": "os-flavor-access:is_public", "rxtx_factor": "rxtx_factor", "description": "description",
	}
	eachCloud(t, func(c *cloud) {
		for i, name := range []string{"small", "Small", "x y", "tiny"} {
			f := &store.Flavor{ID: name, Name: name, VCPUs: 1 + i%2, MemoryMiB: 256 << i, DiskGiB: 5 * (i % 3), EphemeralGiB: i % 2, SwapMiB: i % 3, RxTxFactor: 1 / float64(1+i%2), Public: i%2 == 0}
			if err := c.store.CreateFlavor(c.Context(), f); err != nil {
				c.Fatal(err)
			}
		}
		c.checkOrder("flavors", "is_public=None&", strings.Fields(novaFlavorSorts), shown, "asc", "flavorid", "id")
		every, _ := c.list("admin", "flavors", "is_public=none")
		if len(every) != 9 {
			c.Fatalf("%d flavors", len(every))
		}
		atLeast := func(attribute string, least float64) func(item) bool {
			return func(i item) bool {
				got, _ := i[attribute].(float64)
				return i["os-flavor-access:is_public"] == true && got >= least
			}
		}
		public := func(want bool) func(item) bool {
			return func(i item) bool { return i["os-flavor-access:is_public"] == want }
		}
		for query, matches := range map[string]func(item) bool{
			"": public(true), "is_public=True": public(true), "is_public=1": public(true), "is_public=F": public(false), "is_public=false": public(false),
			"is_public=NONE": func(item) bool { return true },
			"minRam=512":     atLeast("ram", 512), "minRam=2049": atLeast("ram", 2049), "minDisk=20": atLeast("disk", 20), "minDisk=-1": public(true),
			"minRam=99999999999999999999": func(item) bool { return false },
			"minRam=512&minDisk=21&x=1":   atLeast("disk", 21),
		} {
			want := slices.DeleteFunc(slices.Clone(every), func(i item) bool { return !matches(i) })
			got, refused := c.list("admin", "flavors", query)
			if diff := gocmp.Diff(ids(want), ids(got)); diff != "" || refused != "" {
				c.Errorf("%s: %s (-want +got):\n%s", query, refused, diff)
			}
		}
		for query, says := range map[string]string{
			"minRam=1GB": "Invalid minRam filter [1GB]", "minDisk=": "Invalid minDisk filter []", "minDisk=1+2": "Invalid minDisk filter [1 2]",
			"is_public=perhaps": "Invalid is_public filter [perhaps]", "sort_dir=up": "'up' is not one of ['asc', 'desc']", "marker=none": "marker [none] not found",
		} {
			if _, refused := c.list("admin", "flavors", query); !strings.HasPrefix(refused, "400") || !strings.Contains(refused, says) {
				c.Errorf("%s: %s; want %s", query, refused, says)
			}
		}
	})
}

// TestHostLists: lists of services and hypervisors have the filters that Nova has at 2.1. Other parameters are ignored.
func TestHostLists(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		for _, kind := range []string{store.ComputeBinary, store.ConductorBinary} {
			for _, host := range []string{"n1", "n2"} {
				if _, err := c.db.ExecContext(c.Context(), `INSERT INTO members (kind, host, id, version, data, disabled, disabled_reason, forced_down, departed, joined_at, seen_at, created_at)
					VALUES (?, ?, ?, 1, '', FALSE, '', FALSE, FALSE, ?, ?, ?)`, kind, host, kind[5:]+host, time.Now().UTC(), time.Now().UTC(), time.Now().UTC()); err != nil {
					c.Fatal(err)
				}
			}
		}
		for _, host := range []string{"n1", "n2"} {
			if err := c.store.ReportHost(c.Context(), &compute.HostReport{Host: host, Driver: "fake", Resources: compute.Resources{VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}}, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
				c.Fatal(err)
			}
		}
		for _, path := range []string{"/os-hypervisors", "/os-hypervisors/detail"} { // pages and patterns begin with 2.33 and 2.53
			if _, reply := c.ask("admin", "GET", path+"?limit=1&marker=x&hypervisor_hostname_pattern=n9", ""); !strings.Contains(reply, `"n1"`) || !strings.Contains(reply, `"n2"`) {
				c.Errorf("%s: %s", path, reply)
			}
		}
		for query, want := range map[string]int{"": 4, "host=n1": 2, "binary=nova-compute": 2, "host=n1&binary=nova-compute": 1, "host=n": 0, "host=": 4, "x=1&limit=1": 4} {
			_, reply := c.ask("admin", "GET", "/os-services?"+query, "")
			var got struct{ Services []item }
			if err := json.Unmarshal([]byte(reply), &got); err != nil || len(got.Services) != want {
				c.Errorf("os-services?%s: %v, %s; want %d", query, err, reply, want)
			}
			for _, i := range got.Services {
				if strings.Contains(query, "host=n1") && i["host"] != "n1" || strings.Contains(query, "binary") && i["binary"] != "nova-compute" {
					c.Errorf("os-services?%s has %v", query, i)
				}
			}
		}
	})
}

// TestMarkers: the marker of a page must be a server that the client may see.
func TestMarkers(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		c.addServers()
		own, _ := c.list("member", "servers", "")
		all, _ := c.list("admin", "servers", "all_tenants=1")
		var foreign string
		for _, i := range all {
			if i.text("tenant_id") != "p1" {
				foreign = i.text("id")
			}
		}
		const unknown = "99999999-0000-4000-8000-000000000000"
		for _, sort := range []string{"", "sort_key=task_state&", "name=web&", "limit=0&"} {
			for marker, found := range map[string]bool{own[3].text("id"): true, foreign: false, unknown: false, "nope": false, own[3].text("id") + " ": false} {
				_, refused := c.list("member", "servers", sort+"marker="+url.QueryEscape(marker))
				if (refused == "") != found || !found && (!strings.HasPrefix(refused, "400") || !strings.Contains(refused, "marker ["+marker+"] not found")) {
					c.Errorf("%smarker=%s: %q", sort, marker, refused)
				}
			}
			if _, refused := c.list("admin", "servers", sort+"all_tenants=1&marker="+foreign); refused != "" {
				c.Errorf("all tenants, %smarker of any: %s", sort, refused)
			}
		}
	})
}
