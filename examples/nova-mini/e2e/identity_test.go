package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/armature-go/armature/internal/keystonetest"
)

// TestIdentity: a real Keystone and the policy decide what each client may see and do. An operator changes the policy while
// the service runs. While Keystone is down, clients with a new token are refused. OpenStack's command line finds the
// service in Keystone's catalog.
func TestIdentity(t *testing.T) {
	t.Parallel()
	scenario(t)
	ks := keystonetest.Start(t)
	ks.Role("service")
	in := func(project string) gophercloud.AuthScope { return gophercloud.AuthScope{ProjectID: project} }
	p0, p1, p2, services := ks.Project("p0"), ks.Project("p1"), ks.Project("p2"), ks.Project("service")
	ks.Grant(ks.User("nova"), "service", in(services))
	token := map[string]string{"": "", "unknown": "unknown"}
	for user, its := range map[string][2]string{
		"ada": {p1, "member"}, "eve": {p1, "reader"}, "bob": {p2, "member"}, "root": {p0, "admin"}, "new": {p1, "member"},
	} {
		scope := in(its[0])
		ks.Grant(ks.User(user), its[1], scope)
		token[user] = ks.Token(user, &scope)
	}
	c := newCloud(t, "[api]\nauth_strategy = keystone\n[keystone_authtoken]\nauth_url = "+ks.Endpoint+"\nusername = nova\npassword = "+keystonetest.Password+"\n")
	for _, p := range [][2]string{{"conductor", "c-1"}, {"scheduler", "s-1"}, {"compute", "node-1"}} {
		c.start(p[0], p[1])
	}
	cl := c.client(c.start("api", "api-1"))
	ask := func(user, method, path, body string) (int, string, http.Header) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, cl.Endpoint+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Auth-Token", token[user])
		r.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		raw, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(raw), res.Header
	}
	c.poll("the compute service to be known", 30*time.Second, func() error {
		if _, body, _ := ask("root", "GET", "os-services", ""); !strings.Contains(body, "nova-compute") {
			return errors.New(body)
		}
		return nil
	})
	const boot = `{"server": {"name": "s", "flavorRef": "1", "imageRef": "cirros"}}`
	ids := map[string]string{}
	for _, user := range []string{"ada", "bob"} {
		code, body, _ := ask(user, "POST", "servers", boot)
		var made struct{ Server struct{ ID string } }
		if err := json.Unmarshal([]byte(body), &made); code != 202 || err != nil {
			t.Fatalf("%s: %d %s", user, code, body)
		}
		ids[user] = made.Server.ID
	}
	ada, bob := ids["ada"], ids["bob"]
	const flavor = `{"flavor": {"name": "f", "ram": 1, "vcpus": 1, "disk": 1}}`
	for _, tt := range []struct {
		user, method, path, body string
		code                     int
		says                     string
	}{
		{"", "GET", "servers", "", 401, "The request you have made requires authentication."},
		{"unknown", "GET", "servers", "", 401, "requires authentication"},
		{"", "GET", "", "", 200, "CURRENT"},
		{"eve", "GET", "servers", "", 200, ada},
		{"eve", "POST", "servers", boot, 403, "Policy doesn't allow os_compute_api:servers:create to be performed."},
		{"eve", "GET", "servers/" + ada, "", 200, ada},
		{"eve", "DELETE", "servers/" + ada, "", 403, "Policy doesn't allow os_compute_api:servers:delete to be performed."},
		{"eve", "POST", "servers/" + ada + "/action", `{"os-stop": null}`, 403, "servers:stop"},
		{"ada", "GET", "servers/" + bob, "", 404, "Instance " + bob + " could not be found."},
		{"ada", "DELETE", "servers/" + bob, "", 404, "could not be found"},
		{"ada", "POST", "servers/" + bob + "/action", `{"os-stop": null}`, 404, "could not be found"},
		{"ada", "GET", "servers?all_tenants=1", "", 403, "get_all_tenants"},
		{"ada", "GET", "os-services", "", 403, "os-services:list"},
		{"ada", "POST", "flavors", flavor, 403, "os-flavor-manage:create"},
		{"root", "GET", "servers/" + bob, "", 200, bob},
		{"root", "GET", "servers?all_tenants=True", "", 200, ada},
		{"root", "GET", "os-services", "", 200, "nova-compute"},
		{"root", "POST", "flavors", flavor, 200, `"name":"f"`},
		{"root", "POST", "flavors", strings.Replace(flavor, `"f"`, `"p", "id": "p", "os-flavor-access:is_public": false`, 1), 200, `"id":"p"`},
		{"ada", "GET", "flavors/p", "", 404, "Flavor p could not be found."},
		{"ada", "POST", "servers", strings.Replace(boot, `"1"`, `"p"`, 1), 400, "Flavor p could not be found."},
		{"root", "POST", "flavors/p/action", `{"addTenantAccess": {"tenant": "` + p1 + `"}}`, 200, p1},
		{"ada", "GET", "flavors/p", "", 200, `"id":"p"`},
		{"bob", "GET", "flavors/p", "", 404, "Flavor p could not be found."},
		{"ada", "GET", "servers?host=node-1", "", 400, "Invalid filter field: host."},
		{"root", "GET", "servers?all_tenants=1&status=DELETED", "", 200, `"servers":[]`},
	} {
		if code, body, _ := ask(tt.user, tt.method, tt.path, tt.body); code != tt.code || !strings.Contains(body, tt.says) {
			t.Errorf("%s: %s %s = %d %s, want %d with %s", tt.user, tt.method, tt.path, code, body, tt.code, tt.says)
		}
	}
	for user, other := range map[string]string{"eve": bob, "root": ada} {
		if _, body, _ := ask(user, "GET", "servers", ""); strings.Contains(body, other) {
			t.Errorf("%s sees servers of others: %s", user, body)
		}
	}

	for user, sees := range map[string]bool{"ada": false, "eve": false, "root": true} {
		if _, body, _ := ask(user, "GET", "servers/"+ada, ""); strings.Contains(body, "OS-EXT-SRV-ATTR:host") != sees || !strings.Contains(body, ada) {
			t.Errorf("%s sees the host of a server, which is for administrators: %t; %s", user, !sees, body)
		}
	}

	if out, err := c.command("policy", "explain", "--rule", "os_compute_api:os-services:list", "--token", token["ada"]).CombinedOutput(); err != nil || !strings.Contains(string(out), "denies\n") {
		t.Errorf("policy explain of a member's token: %v\n%s", err, out)
	}

	ks.Publish("compute", cl.Endpoint)
	ks.Publish("image", cl.Endpoint) // the command line looks it up, but does not call it
	openstack := func(user, project string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "openstack", append(args, "-f", "json")...)
		cmd.Env = append(os.Environ(), "OS_AUTH_URL="+ks.Endpoint, "OS_USERNAME="+user, "OS_PASSWORD="+keystonetest.Password, "OS_PROJECT_ID="+project,
			"OS_USER_DOMAIN_ID=default", "OS_IDENTITY_API_VERSION=3")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := openstack("ada", p1, "server", "list", "-n"); err != nil || !strings.Contains(out, ada) || strings.Contains(out, bob) {
		t.Errorf("openstack server list: %v\n%s", err, out)
	}
	if out, err := openstack("ada", p1, "compute", "service", "list"); err == nil || !strings.Contains(out, "os-services:list") || !strings.Contains(out, "403") {
		t.Errorf("openstack compute service list of a member: %v\n%s", err, out)
	}

	// The operator allows readers to create servers.
	if err := os.WriteFile(filepath.Join(c.dir, "policy.yaml"), []byte("os_compute_api:servers:create: 'role:reader'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.poll("the policy to change", 30*time.Second, func() error {
		if code, body, _ := ask("eve", "POST", "servers", boot); code != 202 {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})

	ks.Kill()
	if code, body, h := ask("new", "GET", "servers", ""); code != 503 || h.Get("Retry-After") == "" {
		t.Errorf("while Keystone is dead: %d %s", code, body)
	}
	if code, body, _ := ask("eve", "GET", "servers", ""); code != 200 {
		t.Errorf("a token that is remembered: %d %s", code, body)
	}
}
