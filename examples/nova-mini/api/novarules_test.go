package api_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/service/policy"
)

// otherRules has the reasons why nova-mini does not have some rules of Nova, by the beginning of their names.
var otherRules = map[string]string{
	"compute:server:topology:host:index":                  "a topology never has a node, so nothing of a host could be shown",
	"compute:servers:resize:cross_cell":                   "no cells",
	"os_compute_api:os-volumes-attachments:swap":          "no volumes",
	"os_compute_api:servers:create_image:allow_volume_ba": "no volumes, so no server boots from one",
	"os_compute_api:os-migrate-server:migrate:host":       "no migrations, so a request that names a host gets the same answer as other requests",
	"os_compute_api:os-migrate-server:migrate_live:host":  "no migrations, so a request that names a host gets the same answer as other requests",
	"os_compute_api:os-migrations:index:":                 "no migrations, so nothing of them could be shown",
	"os_compute_api:servers:migrations:index:host":        "no migrations, so nothing of them could be shown",
}

// TestNovaRules: nova-mini has the rules that Nova has for the same operations, so that a policy file written for Nova has the same effect, and no other rules. testdata/nova-rules.txt
// has all rules of the Nova that has the microversion 2.104.
func TestNovaRules(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("testdata/nova-rules.txt")
	if err != nil {
		t.Fatal(err)
	}
	missing := strings.Fields(string(raw))
	for _, r := range api.Rules() {
		i := slices.Index(missing, r.Name)
		if i < 0 {
			t.Errorf("%s is not a rule of Nova", r.Name)
			continue
		}
		missing = slices.Delete(missing, i, i+1)
	}
	used := map[string]bool{}
	for _, name := range missing {
		var of []string
		for prefix := range otherRules {
			if strings.HasPrefix(name, prefix) {
				of, used[prefix] = append(of, prefix), true
			}
		}
		if len(of) != 1 {
			t.Errorf("the rule %s of Nova is missing, with the reasons %q", name, of)
		}
	}
	for prefix, why := range otherRules {
		if !used[prefix] {
			t.Errorf("no rule that is missing begins with %s: %s", prefix, why)
		}
	}
}

// TestRulesOfParts: a policy file may change who sees the status of a host that is unknown, and who may use parts of a request.
func TestRulesOfParts(t *testing.T) {
	t.Parallel()
	rules := api.Rules()
	for name, check := range map[string]string{"os_compute_api:servers:show:host_status:unknown-only": "role:member", "os_compute_api:servers:rebuild:trusted_certs": "role:admin"} {
		i := slices.IndexFunc(rules, func(r policy.Rule) bool { return r.Name == name })
		if i < 0 {
			t.Fatalf("no rule %s", name)
		}
		rules[i].Check = check
	}
	eachCloudWith(t, rules, func(c *cloud) {
		id := c.addActive("s") // on the host n1, which has no compute service
		seen := func(who, want string) {
			c.Helper()
			for _, path := range []string{"/servers/" + id, "/servers/detail"} {
				status, reply := c.askAt("2.16", who, "GET", path, "")
				if has := strings.Contains(reply, `"host_status":`); status != 200 || has != (want != "") || !strings.Contains(reply, want) {
					c.Errorf("%s: %s has no %q: %d %s", who, path, want, status, reply)
				}
			}
		}
		seen("admin", `"host_status":"UNKNOWN"`)
		seen("member", `"host_status":"UNKNOWN"`)
		seen("reader", "")
		c.addHost()
		seen("admin", `"host_status":"UP"`)
		seen("member", "")
		const certified = `{"rebuild": {"imageRef": "70a599e0-31e7-49b7-b260-868f441e862b", "trusted_image_certificates": ["a"]}}`
		c.at = "2.63"
		c.wantAct("member", id, certified, 403, "os_compute_api:servers:rebuild:trusted_certs")
		c.wantAct("admin", id, certified, 501, "Trusted image certificates are not supported")
	})
}
