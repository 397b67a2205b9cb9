package api_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/api"
)

// otherVersions has the operations whose versions differ from Nova's, with the reason.
var otherVersions = map[string]string{
	"POST /os-volumes_boot/{id}/action": "each action gets the same answer, also one that the version does not have",

	"PUT /os-services/disable": wordIsID, "PUT /os-services/disable-log-reason": wordIsID, "PUT /os-services/enable": wordIsID, "PUT /os-services/force-down": wordIsID,
}

const wordIsID = "since 2.53 the word is the id of a service, as in Nova, and answers 400"

// novaRoute is an operation of Nova: the method, the path, the name of the action, and the first and the last microversion.
type novaRoute struct{ method, path, action, first, last string }

// novaRoutes returns all operations of the Nova that has the microversion 2.104. Until 2.52 the id in the path of a change of a service is the name of the change.
func novaRoutes(t *testing.T) (out []novaRoute) {
	t.Helper()
	raw, err := os.ReadFile("testdata/nova-routes.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		path, action, _ := strings.Cut(f[1], "#")
		first, last, _ := strings.Cut(f[2], "-")
		out = append(out, novaRoute{f[0], path, action, first, last})
	}
	if len(out) < 240 {
		t.Fatalf("%d operations", len(out))
	}
	return out
}

// neighbor returns the microversion before or after a version, or "" if it does not exist.
func neighbor(version string, by int) string {
	minor, err := strconv.Atoi(strings.TrimPrefix(version, "2."))
	if minor += by; err != nil || minor < 1 || minor > 104 {
		return ""
	}
	return "2." + strconv.Itoa(minor)
}

// TestNovaRoutes: nova-mini answers each operation of Nova at its first and last microversion, and at 2.104 if it has no last one: with its work, with 410 if Nova has removed the operation, or with
// 501 and a sentence. It knows no operation in versions in which Nova does not have the operation.
func TestNovaRoutes(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		for _, r := range novaRoutes(t) {
			path := r.path
			for strings.Contains(path, "{") {
				id := "x"
				switch {
				case strings.HasPrefix(path, "/extensions"):
					id = "os-services"
				case strings.HasPrefix(path, "/versions"):
					id = "v2.1"
				}
				path = path[:strings.IndexByte(path, '{')] + id + path[strings.IndexByte(path, '}')+1:]
			}
			body := ""
			if r.action != "" {
				body = `{"` + r.action + `": null}`
			}
			known := func(version string) (bool, string) {
				status, reply := c.askAt(version, "admin", r.method, path, body)
				unknown := status == 405 || status == 404 && strings.Contains(reply, "The resource could not be found.") || status == 400 && strings.Contains(reply, "There is no such action")
				if status == 501 && !strings.Contains(reply, ".") {
					t.Errorf("%s %s: no sentence: %s", r.method, path, reply)
				}
				return !unknown, fmt.Sprint(status, " ", reply)
			}
			for _, version := range []string{r.first, r.last} {
				if version == "" {
					version = "2.104"
				}
				if ok, reply := known(version); !ok {
					t.Errorf("%s %s %s at %s: %s", r.method, r.path, r.action, version, reply)
				}
			}
			for _, version := range []string{neighbor(r.first, -1), neighbor(r.last, 1)} {
				if version == "" {
					continue
				}
				if ok, reply := known(version); ok && otherVersions[r.method+" "+r.path] == "" {
					t.Errorf("%s %s %s at %s, which Nova does not have: %s", r.method, r.path, r.action, version, reply)
				}
			}
		}
	})
}

// TestRefused: operations of Nova that nova-mini does not have are refused with a sentence, after the policy and the look-up of the server, as in Nova.
func TestRefused(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		own := c.addActive("s")
		for _, tt := range []struct {
			version, method, path, body string
			says                        string         // of the answer with 501
			want                        map[string]int // the status, by the client
		}{
			{"2.35", "GET", "/os-networks", "", "send the request to the network service", map[string]int{"reader": 501, "nowhere": 403, "unknown-token": 401}},
			{"2.35", "POST", "/os-security-groups", "", "network service", map[string]int{"member": 501, "reader": 403}},
			{"2.35", "GET", "/os-volumes/detail", "", "volume service", map[string]int{"reader": 501}},
			{"2.35", "GET", "/os-baremetal-nodes", "", "baremetal service", map[string]int{"admin": 501, "member": 403}},
			{"2.43", "POST", "/servers/" + own + "/action", `{"addFloatingIp": {"address": "10.0.0.1"}}`, "network service", map[string]int{"member": 501, "reader": 403, "stranger": 404}},
			{"2.1", "POST", "/servers/none/action", `{"removeFloatingIp": {"address": "10.0.0.1"}}`, "", map[string]int{"member": 404}},
			{"2.44", "POST", "/servers/" + own + "/action", `{"removeFloatingIp": {"address": "10.0.0.1"}}`, "", map[string]int{"member": 404}},
			{"2.102", "GET", "/os-volumes_boot", "", "send the request to /servers.", map[string]int{"reader": 501, "unknown-token": 401}},
			{"2.103", "GET", "/os-volumes_boot", "", "", map[string]int{"reader": 404}},
			{"2.1", "POST", "/os-volumes_boot", "", "/servers", map[string]int{"member": 501, "reader": 403}},
			{"2.1", "DELETE", "/os-volumes_boot/" + own, "", "/servers", map[string]int{"member": 501, "reader": 403, "stranger": 404}},
			{"2.97", "GET", "/servers/" + own + "/shares", "", "no share service", map[string]int{"reader": 501, "stranger": 404}},
			{"2.97", "POST", "/servers/" + own + "/shares", "", "no share service", map[string]int{"member": 501, "reader": 403}},
			{"2.96", "GET", "/servers/" + own + "/shares", "", "", map[string]int{"member": 404}},
			{"2.1", "POST", "/os-assisted-volume-snapshots", "", "snapshots of volumes", map[string]int{"admin": 501, "member": 403}},
			{"2.1", "DELETE", "/os-services/x", "", "disable the service", map[string]int{"admin": 501, "member": 403}},
			{"2.104", "DELETE", "/os-services/x", "", "disable the service", map[string]int{"admin": 501, "member": 403}},
			{"2.1", "POST", "/os-aggregates/1/action", `{"add_host": {"host": "h"}}`, "no host aggregates", map[string]int{"admin": 501, "member": 403}},
			{"2.1", "POST", "/os-aggregates/1/action", `{"add_hosts": {"host": "h"}}`, "", map[string]int{"admin": 400}},
			{"2.1", "GET", "/os-quota-sets/p1", "", "section quota", map[string]int{"admin": 501, "reader": 501, "stranger": 403}},
			{"2.1", "GET", "/os-quota-sets/p1/defaults", "", "section quota", map[string]int{"stranger": 501}},
			{"2.1", "PUT", "/os-quota-sets/p1", "", "section quota", map[string]int{"admin": 501, "member": 403}},
			{"2.1", "POST", "/servers/" + own + "/action", `{"migrate": null}`, "does not migrate", map[string]int{"admin": 501, "member": 403, "stranger": 404}},
			{"2.22", "POST", "/servers/" + own + "/migrations/1/action", `{"force_complete": null}`, "does not migrate", map[string]int{"admin": 501, "member": 403}},
			{"2.1", "GET", "/os-migrations", "", "does not migrate", map[string]int{"admin": 501, "member": 403}},
		} {
			for who, want := range tt.want {
				status, reply := c.askAt(tt.version, who, tt.method, tt.path, tt.body)
				if status != want || status == 501 && !strings.Contains(reply, tt.says) {
					t.Errorf("%s %s at %s by %s: %d %s, want %d %s", tt.method, tt.path, tt.version, who, status, reply, want, tt.says)
				}
			}
		}
		// Nova itself refuses these.
		for _, op := range [][3]string{
			{"POST /os-baremetal-nodes", "", "node-create"}, {"DELETE /os-baremetal-nodes/x", "", "node-delete"}, {"POST /os-baremetal-nodes/x/action", `{"add_interface": {}}`, "port-create"},
		} {
			method, path, _ := strings.Cut(op[0], " ")
			if reply := c.want(400, "2.35", "member", method, path, op[1]); !strings.Contains(reply, "Command not supported. Please use Ironic command "+op[2]+" to perform this action.") {
				t.Errorf("%s: %s", op[0], reply)
			}
			c.want(404, "2.36", "member", method, path, op[1])
		}
		if got := c.want(200, "2.1", "reader", "GET", "/versions/v2.1", ""); got != c.want(200, "2.1", "reader", "GET", "/", "") || !strings.Contains(got, `"id":"v2.1"`) {
			t.Errorf("the version: %s", got)
		}
		if got := c.want(200, "2.1", "reader", "GET", "/versions/v2.0", ""); !strings.Contains(got, `"id":"v2.0"`) {
			t.Errorf("the older version: %s", got)
		}
		c.want(404, "2.1", "reader", "GET", "/versions/v3", "")
	})
}

// TestRulesOfRefused: a policy file may change who gets the answer.
func TestRulesOfRefused(t *testing.T) {
	t.Parallel()
	rules := api.Rules()
	for i := range rules {
		if rules[i].Name == "os_compute_api:os-aggregates:index" {
			rules[i].Check = "role:reader"
		}
	}
	eachCloudWith(t, rules, func(c *cloud) {
		c.want(501, "2.1", "reader", "GET", "/os-aggregates", "")
		c.want(403, "2.1", "reader", "GET", "/os-aggregates/1", "")
	})
}
