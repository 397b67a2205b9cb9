package api_test

import (
	"cmp"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// TestServerFilters checks each of Nova's filters of servers: the list has the matching rows, or the filter has no effect or is refused.
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
		"locked_by":     {func(item, string) bool { return false }, []string{".*"}}, // no server of the test is locked
		"progress":      {func(_ item, value string) bool { return regexp.MustCompile(value).MatchString("0") }, []string{"0", "1"}},
		"terminated_at": {like("OS-SRV-USG:terminated_at"), []string{".*"}},
		"ip":            {address(4), []string{".*", `^10\.0\.0\.1$`, "10.0.0.2"}},
		"ip6":           {address(6), []string{".*", "::7", "::8"}},
		"soft_deleted":  {func(item, string) bool { return true }, []string{"True", "x"}}, // the filter has an effect only on deleted servers
		"tags":          {func(i item, value string) bool { return tagged(i, value) == len(strings.Split(value, ",")) }, []string{"a", "a,b", "A", "a,c", `"a"`, ""}},
		"tags-any":      {func(i item, value string) bool { return tagged(i, value) > 0 }, []string{"a", "a,c", "x"}},
		"not-tags":      {func(i item, value string) bool { return tagged(i, value) < len(strings.Split(value, ",")) }, []string{"a", "a,b", "x"}},
		"not-tags-any":  {func(i item, value string) bool { return tagged(i, value) == 0 }, []string{"a", "a,c", "x"}},
		"uuid":          {same("id"), []string{"00007919-0000-4000-8000-000000000000", "7919", ""}},
		"deleted":       {func(_ item, value string) bool { return value != "True" && value != " 1" }, []string{"True", "False", "perhaps", " 1", ""}},
		"status": {
			func(i item, value string) bool { // a status without a task selects by the state alone
				if vm := map[string]string{"ACTIVE": "active", "SHUTOFF": "stopped", "VERIFY_RESIZE": "resized"}[strings.ToUpper(value)]; vm != "" {
					return i.text("OS-EXT-STS:vm_state") == vm
				}
				return strings.EqualFold(i.text("status"), value)
			},
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
			"member": must(c.list("admin", "servers", "")), // the servers of the member's project, as an administrator sees them, with their hosts
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
				values := f.values
				if !done {
					values = []string{"x", "a.b", ""}
				}
				if who == "member" && !slices.Contains(strings.Fields(novaMembers), name) { // it has no effect
					done, f.matches = true, func(item, string) bool { return true }
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
		for _, query := range []string{"tenant_id=p2", "project_id=p2", "tenant_id=p2&project_id=p2&all_tenants=0"} { // without effect, as in Nova
			if got, refused := c.list("admin", "servers", query); refused != "" || len(got) != 15 {
				c.Errorf("%s: %s, %v", query, refused, ids(got))
			}
		}
		for query, same := range map[string]string{ // of several values the last one counts
			"name=web&name=db": "name=db", "vm_state=active&vm_state=error": "vm_state=error", "limit=1&limit=5": "limit=5", "all_tenants=0&all_tenants=1": "",
			"tenant_id=p1&tenant_id=p2": "tenant_id=p2", "name=web-2&ip=x&name=web": "name=web&ip=x", "status=ERROR&vm_state=active": "status=ERROR",
			"status=REBOOT&status=ACTIVE": "vm_state=active",
		} {
			got, refused := c.list("admin", "servers", "all_tenants=1&"+query)
			want, _ := c.list("admin", "servers", "all_tenants=1&"+same)
			if diff := gocmp.Diff(ids(want), ids(got)); diff != "" || refused != "" || len(want) == 0 && !strings.Contains(query, "ip") {
				c.Errorf("%s: %s (-%s +got):\n%s", query, refused, same, diff)
			}
		}
		for _, name := range []string{"uuid", "name", "node", "status", "changes-since", "deleted"} { // one of each kind
			for _, value := range []string{"\x00", "a\x00b", "'", `"`, "%", "_", `\`, "((((", "a{1000}{1000}", strings.Repeat("(a|b)*", 50), strings.Repeat("x", 4000), "\U0010FFFF\uFFFD", "(?=x)", "99999999999999999999", "-1"} {
				if got, _ := c.list("admin", "servers", "all_tenants=1&"+name+"="+url.QueryEscape(value)); len(got) > 0 && name != "deleted" { // the values of deleted are booleans, so that a wrong value may match
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
			{"member", "display_name=[", "400 is not a 'regex'"}, // also a filter without an effect is checked
			{"admin", "name=[", `400 "message":"Invalid input for query parameters name. Value: [. '[' is not a 'regex'"`},
			{"member", "changes-since=invalid+date", `400 "message":"Invalid input for query parameters changes-since. Value: invalid date. 'invalid date' is not a 'date-time'"`},
			{"member", "changes-since=", "400 is not a 'date-time'"},
			{"member", "all_tenants=1", "403 get_all_tenants"},
			{"member", "unknown=1&tags=a&changes-before=x", ""}, // Nova ignores these parameters at 2.1
			{"member", "name=%ff", "400 Query string is not UTF-8 encoded"},
		} {
			got, refused := c.list(tt.who, "servers", tt.query)
			code, says, _ := strings.Cut(tt.want, " ")
			if !strings.HasPrefix(refused, code) || !strings.Contains(refused, says) || (tt.want == "") != (refused == "") {
				c.Errorf("%s: %s: %s, %v; want %s", tt.who, tt.query, refused, ids(got), tt.want)
			}
			for _, i := range got {
				if tt.who == "admin" && i.text("status") != "BUILD" && i.text("status") != "ERROR" || tt.who == "member" && i.text("tenant_id") != "p1" {
					c.Errorf("%s: %s: has %v", tt.who, tt.query, i)
				}
			}
			if strings.HasPrefix(tt.query, "status") && len(got) != 4 {
				c.Errorf("%s: %d servers", tt.query, len(got))
			}
		}
	})
}

// TestChangesBefore: the time that a server shows as updated has whole seconds. A list with changes-before this time has the server, although the server changed
// within this second. As in Nova, the list also has servers that changed earlier, and none that changed later.
func TestChangesBefore(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		c.addServers()
		at := time.Date(2026, 12, 1, 8, 0, 0, 750_000_000, time.UTC)
		if _, err := c.db.ExecContext(c.Context(), `UPDATE servers SET updated_at = ?`, at); err != nil {
			c.Fatal(err)
		}
		for query, want := range map[string]int{
			"changes-before=2026-12-01T07:59:59Z": 0, "changes-before=2026-12-01T08:00:00Z": 15, "changes-before=2026-12-01T08:00:00.25Z": 15, "changes-before=2026-12-01T08:00:01Z": 15,
			"changes-since=2026-12-01T08:00:00Z&changes-before=2026-12-01T08:00:00Z": 15, "changes-since=2026-12-01T08:00:01Z": 0,
		} {
			reply := c.want(200, "2.66", "member", "GET", "/servers/detail?"+query, "")
			if n := strings.Count(reply, `"updated":"2026-12-01T08:00:00Z"`); n != want {
				c.Errorf("%s: %d servers, want %d", query, n, want)
			}
		}
	})
}

// TestListVersions: a filter has an effect only from its microversion on. Unknown parameters are ignored before 2.75, and refused from 2.75 on.
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
			{"2.38", "status=active&status=nonsense", 200, 6, ""},
			{"2.38", "status=nonsense&status=active", 200, 6, ""},
			{"2.38", "status=bad&status=nonsense", 400, 0, "Invalid status value"},
			{"2.37", "status=active&status=nonsense", 200, 6, ""},
			{"2.38", "status=active", 200, 6, ""},
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
			{"2.72", "sort_key=locked", 200, 15, ""},
			{"2.1", "locked_by=^o", 200, 15, ""},
			{"2.4", "ip6=none", 200, 15, ""},
			{"2.5", "ip6=none", 200, 0, ""},
			{"2.82", "vm_state=none", 200, 15, ""},
			{"2.83", "vm_state=none", 200, 0, ""},
			{"2.82", "power_state=9&task_state=x&user_id=x&key_name=x&availability_zone=x&config_drive=x", 200, 15, ""},
			{"2.82", "progress=x&created_at=x&launched_at=x&terminated_at=x", 200, 15, ""},
			{"2.83", "user_id=none", 200, 0, ""},
			{"2.83", "key_name=none", 200, 0, ""},
			{"2.83", "progress=none", 200, 0, ""},
			{"2.83", "created_at=none", 200, 0, ""},
			{"2.89", "hostname=none", 200, 15, ""},
			{"2.90", "hostname=none", 200, 0, ""},
			{"2.104", "host=x&node=x&uuid=x&description=x&display_name=x&access_ip_v4=x&deleted=1&metadata=x&services=x&project_id=x", 200, 15, ""},
			{"2.104", "launch_index=x&kernel_id=x&root_device_name=x&locked_by=x", 200, 15, ""},
			{"2.74", "_x=1", 200, 15, ""},
			{"2.74", "unknown=1", 200, 15, ""},
			{"2.75", "unknown=1", 400, 0, "Additional properties are not allowed ('unknown' was unexpected)"},
			{"2.75", "ip=10.0.0.1&name=web", 200, 0, ""},
			{"2.74", "sort_key=vcpus&sort_dir=asc", 200, 15, ""},
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

// TestServerOrder checks Nova's sort keys of servers, see checkOrder: the list and its pages have the right order. A key that Nova ignores gives the default order.
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
		c.checkOrder("servers", "all_tenants=1&", strings.Fields(novaSortKeys), shown, "desc", "created_at", "created")
		want, _ := c.list("admin", "servers", "all_tenants=1")
		for key := range strings.FieldsSeq(novaIgnored) {
			if got, refused := c.list("admin", "servers", "all_tenants=1&sort_key="+key); refused != "" || gocmp.Diff(ids(want), ids(got)) != "" {
				c.Errorf("%s: %s, %v; want the default order", key, refused, ids(got))
			}
		}
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
