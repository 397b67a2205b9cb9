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
	i := newIdentities(t)
	i.testRequests()
	i.testSight()
	i.testCommandLine()
	i.testPolicyFile()
	i.testKeystoneAway()
}

// identities is a cloud with users in Keystone.
type identities struct {
	*cloud

	ks       *keystonetest.Keystone
	cl       *gophercloud.ServiceClient
	token    map[string]string // the tokens, by user
	p1       string            // the project of ada and eve
	ada, bob string            // the ids of the servers of the users ada and bob
}

const bootServer = `{"server": {"name": "s", "flavorRef": "1", "imageRef": "cirros"}}`

func newIdentities(t *testing.T) *identities {
	t.Helper()
	ks := keystonetest.Start(t)
	ks.Role("service")
	in := func(project string) gophercloud.AuthScope { return gophercloud.AuthScope{ProjectID: project} }
	p0, p1, p2, services := ks.Project("p0"), ks.Project("p1"), ks.Project("p2"), ks.Project("service")
	ks.Grant(ks.User("nova"), "service", in(services))
	i := &identities{ks: ks, p1: p1, token: map[string]string{"": "", "unknown": "unknown"}}
	for user, its := range map[string][2]string{
		"ada": {p1, "member"}, "eve": {p1, "reader"}, "bob": {p2, "member"}, "root": {p0, "admin"}, "new": {p1, "member"},
	} {
		scope := in(its[0])
		ks.Grant(ks.User(user), its[1], scope)
		i.token[user] = ks.Token(user, &scope)
	}
	i.cloud = newCloud(t, "[api]\nauth_strategy = keystone\n[keystone_authtoken]\nauth_url = "+ks.Endpoint+"\nusername = nova\npassword = "+keystonetest.Password+"\n")
	for _, p := range [][2]string{{"conductor", "c-1"}, {"scheduler", "s-1"}, {"compute", "node-1"}} {
		i.start(p[0], p[1])
	}
	i.cl = i.client(i.start("api", "api-1"))
	i.poll("the compute service to be known", 30*time.Second, func() error {
		if _, body, _ := i.ask("root", "GET", "os-services", ""); !strings.Contains(body, "nova-compute") {
			return errors.New(body)
		}
		return nil
	})
	ids := map[string]string{}
	for _, user := range []string{"ada", "bob"} {
		code, body, _ := i.ask(user, "POST", "servers", bootServer)
		var made struct{ Server struct{ ID string } }
		if err := json.Unmarshal([]byte(body), &made); code != 202 || err != nil {
			i.Fatalf("%s: %d %s", user, code, body)
		}
		ids[user] = made.Server.ID
	}
	i.ada, i.bob = ids["ada"], ids["bob"]
	return i
}

// ask sends a request with a user's token.
func (i *identities) ask(user, method, path, body string) (int, string, http.Header) {
	i.Helper()
	r, err := http.NewRequestWithContext(i.Context(), method, i.cl.Endpoint+path, strings.NewReader(body))
	if err != nil {
		i.Fatal(err)
	}
	r.Header.Set("X-Auth-Token", i.token[user])
	r.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		i.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		i.Fatal(err)
	}
	return res.StatusCode, string(raw), res.Header
}

// testRequests: for each user, the reply to each request has the right status and text.
func (i *identities) testRequests() {
	i.Helper()
	const flavor = `{"flavor": {"name": "f", "ram": 1, "vcpus": 1, "disk": 1}}`
	for _, tt := range []struct {
		user, method, path, body string
		code                     int
		says                     string
	}{
		{"", "GET", "servers", "", 401, "The request you have made requires authentication."},
		{"unknown", "GET", "servers", "", 401, "requires authentication"},
		{"", "GET", "", "", 200, "CURRENT"},
		{"eve", "GET", "servers", "", 200, i.ada},
		{"eve", "POST", "servers", bootServer, 403, "Policy doesn't allow os_compute_api:servers:create to be performed."},
		{"eve", "GET", "servers/" + i.ada, "", 200, i.ada},
		{"eve", "DELETE", "servers/" + i.ada, "", 403, "Policy doesn't allow os_compute_api:servers:delete to be performed."},
		{"eve", "POST", "servers/" + i.ada + "/action", `{"os-stop": null}`, 403, "servers:stop"},
		{"ada", "GET", "servers/" + i.bob, "", 404, "Instance " + i.bob + " could not be found."},
		{"ada", "DELETE", "servers/" + i.bob, "", 404, "could not be found"},
		{"ada", "POST", "servers/" + i.bob + "/action", `{"os-stop": null}`, 404, "could not be found"},
		{"ada", "GET", "servers?all_tenants=1", "", 403, "get_all_tenants"},
		{"ada", "GET", "os-services", "", 403, "os-services:list"},
		{"ada", "POST", "flavors", flavor, 403, "os-flavor-manage:create"},
		{"root", "GET", "servers/" + i.bob, "", 200, i.bob},
		{"root", "GET", "servers?all_tenants=True", "", 200, i.ada},
		{"root", "GET", "os-services", "", 200, "nova-compute"},
		{"root", "POST", "flavors", flavor, 200, `"name":"f"`},
		{"root", "POST", "flavors", strings.Replace(flavor, `"f"`, `"p", "id": "p", "os-flavor-access:is_public": false`, 1), 200, `"id":"p"`},
		{"ada", "GET", "flavors/p", "", 404, "Flavor p could not be found."},
		{"ada", "POST", "servers", strings.Replace(bootServer, `"1"`, `"p"`, 1), 400, "Flavor p could not be found."},
		{"root", "POST", "flavors/p/action", `{"addTenantAccess": {"tenant": "` + i.p1 + `"}}`, 200, i.p1},
		{"root", "POST", "flavors/p/action", `{"addTenantAccess": {"tenant": "none"}}`, 400, "Project ID none is not a valid project."},
		{"root", "POST", "flavors/p/action", `{"addTenantAccess": {"tenant": "../users"}}`, 400, "Project ID ../users is not a valid project."},
		{"root", "POST", "flavors/p/action", `{"removeTenantAccess": {"tenant": "none"}}`, 404, "none"},
		{"ada", "GET", "flavors/p", "", 200, `"id":"p"`},
		{"bob", "GET", "flavors/p", "", 404, "Flavor p could not be found."},
		{"ada", "GET", "servers?host=node-1", "", 200, i.ada}, // the filter has no effect for a member, as in Nova
		{"root", "GET", "servers?all_tenants=1&status=DELETED", "", 200, `"servers":[]`},
	} {
		if code, body, _ := i.ask(tt.user, tt.method, tt.path, tt.body); code != tt.code || !strings.Contains(body, tt.says) {
			i.Errorf("%s: %s %s = %d %s, want %d with %s", tt.user, tt.method, tt.path, code, body, tt.code, tt.says)
		}
	}
}

// testSight: no user sees the servers of other projects in a list, and only administrators see the host of a server.
func (i *identities) testSight() {
	i.Helper()
	for user, other := range map[string]string{"eve": i.bob, "root": i.ada} {
		if _, body, _ := i.ask(user, "GET", "servers", ""); strings.Contains(body, other) {
			i.Errorf("%s sees servers of others: %s", user, body)
		}
	}

	for user, sees := range map[string]bool{"ada": false, "eve": false, "root": true} {
		if _, body, _ := i.ask(user, "GET", "servers/"+i.ada, ""); strings.Contains(body, "OS-EXT-SRV-ATTR:host") != sees || !strings.Contains(body, i.ada) {
			i.Errorf("%s sees the host of a server, which is for administrators: %t; %s", user, !sees, body)
		}
	}
}

// testCommandLine: the output of "nova-mini policy explain" and of OpenStack's own client is right.
func (i *identities) testCommandLine() {
	i.Helper()
	if out, err := i.command("policy", "explain", "--rule", "os_compute_api:os-services:list", "--token", i.token["ada"]).CombinedOutput(); err != nil || !strings.Contains(string(out), "denies\n") {
		i.Errorf("policy explain of a member's token: %v\n%s", err, out)
	}

	i.ks.Publish("compute", i.cl.Endpoint)
	i.ks.Publish("image", i.cl.Endpoint) // OpenStack's client looks up this service, but does not call it
	openstack := func(user, project string, args ...string) (string, error) {
		cmd := exec.CommandContext(i.Context(), "openstack", append(args, "-f", "json")...)
		cmd.Env = append(os.Environ(), "OS_AUTH_URL="+i.ks.Endpoint, "OS_USERNAME="+user, "OS_PASSWORD="+keystonetest.Password, "OS_PROJECT_ID="+project,
			"OS_USER_DOMAIN_ID=default", "OS_IDENTITY_API_VERSION=3")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := openstack("ada", i.p1, "server", "list", "-n"); err != nil || !strings.Contains(out, i.ada) || strings.Contains(out, i.bob) {
		i.Errorf("openstack server list: %v\n%s", err, out)
	}
	if out, err := openstack("ada", i.p1, "compute", "service", "list"); err == nil || !strings.Contains(out, "os-services:list") || !strings.Contains(out, "403") {
		i.Errorf("openstack compute service list of a member: %v\n%s", err, out)
	}
}

// testPolicyFile: a reader can create a server after the operator has written a policy file that allows this.
func (i *identities) testPolicyFile() {
	i.Helper()
	if err := os.WriteFile(filepath.Join(i.dir, "policy.yaml"), []byte("os_compute_api:servers:create: 'role:reader'\n"), 0o600); err != nil {
		i.Fatal(err)
	}
	i.poll("the policy to change", 30*time.Second, func() error {
		if code, body, _ := i.ask("eve", "POST", "servers", bootServer); code != 202 {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
}

// testKeystoneAway: while Keystone is down, a request with a cached token succeeds. With any other token it gets 503.
func (i *identities) testKeystoneAway() {
	i.Helper()
	i.ks.Kill()
	if code, body, h := i.ask("new", "GET", "servers", ""); code != 503 || h.Get("Retry-After") == "" {
		i.Errorf("a new token while Keystone is down: %d %s", code, body)
	}
	if code, body, _ := i.ask("eve", "GET", "servers", ""); code != 200 {
		i.Errorf("a cached token while Keystone is down: %d %s", code, body)
	}
}
