package e2e_test

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"

	"github.com/armature-go/armature/internal/clienttest"
	"github.com/armature-go/armature/internal/keystonetest"
)

const clientDocument = "../../../docs/openstack-client.md"

// commandVersion is the microversion of the commands.
const commandVersion = "2.79"

// newAlone starts nova-mini with all services in one process, as docs/openstack-client.md does, and returns a client of its API. Each option is a line of [DEFAULT].
func newAlone(t *testing.T, options ...string) *member {
	t.Helper()
	scenario(t)
	c := &cloud{TB: t, dir: t.TempDir(), procs: map[string]*process{}}
	c.conf = filepath.Join(c.dir, "nova.conf")
	if err := os.WriteFile(c.conf, []byte("[DEFAULT]\nstate_path = "+c.dir+"\nosapi_compute_listen_port = 0\n"+strings.Join(options, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	p := c.start("", "alone")
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s", p.log)
		}
	})
	at := strings.TrimSuffix(c.client(p).Endpoint, "/v2.1/")
	return &member{openstack: &openstack{cloud: c, compute: at, images: []string{"cirros"}}, token: "none", ids: map[string]string{"p": "admin"}}
}

// allIdle waits until no server has a task, like a user who waits between commands.
func (m *member) allIdle() {
	m.Helper()
	for _, s := range itemsOf(m, servers.List(m.at("2.1"), nil), servers.ExtractServers) {
		if s.Status != "DELETED" {
			m.idle(s.ID)
		}
	}
	for _, s := range listOf(m.shown("servers/detail?deleted=true&status=SOFT_DELETED", "servers")) {
		m.idle(fmt.Sprint(object(s)["id"])) // a server that is being restored
	}
}

// printing makes a client compare each printed result with the API, and check the effect of each command without a result.
func (m *member) printing(client *clienttest.Client) *clienttest.Client {
	client.Before, client.JSON, client.After, client.Plain = m.allIdle, m.compareResult, m.checkEffect, plainCommands
	return client
}

// shortFlow creates, lists, shows, stops and deletes a server.
var shortFlow = []string{
	"openstack server create --image cirros --flavor m1.tiny --network none --wait one", "openstack server list", "openstack server show one",
	"openstack server stop one", "openstack server delete --wait one",
}

// checkTables fails the test if the document and shortFlow do not have a command of effects or plainCommands.
func checkTables(t *testing.T) {
	t.Helper()
	document, err := os.ReadFile(clientDocument)
	if err != nil {
		t.Fatal(err)
	}
	lines := append(strings.Split(string(document), "\n"), shortFlow...)
	for _, command := range slices.Concat(slices.Collect(maps.Keys(effects)), slices.Collect(maps.Keys(plainCommands))) {
		if !slices.Contains(lines, "openstack "+command) {
			t.Errorf("no command is %q", command)
		}
	}
}

// TestOpenStackClient runs the commands of docs/openstack-client.md with OpenStack's own command, without Keystone. Without ARMATURE_ACCEPT it runs only five commands.
func TestOpenStackClient(t *testing.T) {
	t.Parallel()
	m := newAlone(t)
	client := m.printing(clienttest.New(t, "openstack", "python3-openstackclient", "OS_AUTH_TYPE=none", "OS_ENDPOINT="+m.compute+"/v2.1", "OS_COMPUTE_API_VERSION="+commandVersion))
	if os.Getenv("ARMATURE_ACCEPT") == "" { // make accept runs all commands
		client.Commands(t, shortFlow, map[string]string{"server show one": "cirros"})
	} else {
		client.Values = userFiles(t)
		client.Document(t, clientDocument, "openstack", tableWants)
		m.checkFilters()
		checkTables(t)
	}
	if left := m.shown("servers", "servers").([]any); len(left) > 0 { //nolint:forcetypeassert // a reply of the API has this form
		t.Errorf("servers at the end: %v", left)
	}
}

// TestRestore runs the commands of docs/openstack-client.md for a server that is deleted and restored.
func TestRestore(t *testing.T) {
	t.Parallel()
	if os.Getenv("ARMATURE_ACCEPT") == "" {
		t.Skip("run it with make accept")
	}
	m := newAlone(t, "reclaim_instance_interval = 600")
	client := m.printing(clienttest.New(t, "openstack", "python3-openstackclient", "OS_AUTH_TYPE=none", "OS_ENDPOINT="+m.compute+"/v2.1", "OS_COMPUTE_API_VERSION="+commandVersion))
	client.Document(t, clientDocument, "openstack-restore", map[string]string{"server list --deleted --status SOFT_DELETED": `"kept"`, "server show kept": `"ACTIVE"`})
	if left := m.shown("servers?deleted=true&status=SOFT_DELETED", "servers").([]any); len(left) > 0 { //nolint:forcetypeassert // a reply of the API has this form
		t.Errorf("soft-deleted servers at the end: %v", left)
	}
}

// TestClientErrors: the client prints the errors that docs/openstack-client.md explains.
func TestClientErrors(t *testing.T) {
	t.Parallel()
	if os.Getenv("ARMATURE_ACCEPT") == "" {
		t.Skip("run it with make accept")
	}
	document, err := os.ReadFile(clientDocument)
	if err != nil {
		t.Fatal(err)
	}
	m := newAlone(t)
	m.create("2.37", servers.CreateOpts{Name: "one", ImageRef: "cirros", FlavorRef: "1", Networks: "none"}, nil)
	const boot = "server create --image cirros --flavor m1.tiny --network none two"
	for _, tt := range []struct{ env, command, want, documented string }{ // env replaces a variable; documented is want without names
		{"OS_AUTH_TYPE=", "server list", "Missing value auth-url required for auth plugin password", ""},
		{"OS_ENDPOINT=" + m.compute, "server list", "The resource could not be found. (HTTP 404)", ""},
		{"OS_ENDPOINT=" + m.compute + "/v2", "server list", "'original_name'", ""},
		{"OS_COMPUTE_API_VERSION=", boot, "nics must be a list or a tuple, not <class 'str'>", ""},
		{"OS_COMPUTE_API_VERSION=2.36", boot, "nics must be a list or a tuple, not <class 'str'>", ""},
		{"", "server image create --name snap one", "'NoneType' object has no attribute 'lower'", ""},
		{"", "server backup create --name daily --type daily --rotate 1 one", "No Image found for daily", "No Image found for NAME"},
		{"", "server list --project none", "No project with a name or ID of 'none' exists.", "No project with a name or ID of '...' exists."},
		{"", "server list --user none", "No user with a name or ID of 'none' exists.", "No user with a name or ID of '...' exists."},
		{"", "quota set --instances 5 admin", "No project with a name or ID of 'admin' exists.", "No project with a name or ID of '...' exists."},
		{"", "volume create --size 1 one", "The resource could not be found", ""},
		{"", "server add volume one none", "The resource could not be found", ""},
		{"", boot + " --boot-from-volume 1", "Volumes are not supported: the cloud has no volume service. (HTTP 501)", "`server create --boot-from-volume` is refused with 501"},
	} {
		client := clienttest.New(t, "openstack", "python3-openstackclient", "OS_AUTH_TYPE=none", "OS_ENDPOINT="+m.compute+"/v2.1", "OS_COMPUTE_API_VERSION="+commandVersion, tt.env)
		cmd := exec.CommandContext(t.Context(), client.Program, strings.Fields(tt.command)...)
		cmd.Env = client.Env
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), tt.want) {
			t.Errorf("%s %s: %v %s, want %s", tt.env, tt.command, err, out, tt.want)
		}
		if documented := cmp.Or(tt.documented, tt.want); !strings.Contains(string(document), documented) {
			t.Errorf("the document does not have %q", documented)
		}
	}
}

// setupScript is the user data of a command.
const setupScript = "#!/bin/sh\necho ready\n"

// userFiles returns the files that the commands read: for each name in the document, the path of a file.
func userFiles(t *testing.T) map[string]string {
	t.Helper()
	script := filepath.Join(t.TempDir(), "setup.sh")
	if err := os.WriteFile(script, []byte(setupScript), 0o600); err != nil {
		t.Fatal(err)
	}
	return map[string]string{"~/.ssh/id_ed25519.pub": clienttest.PublicKey(t), "~/setup.sh": script}
}

// newAdmin starts a cloud with Keystone, and returns an administrator of the project p.
func newAdmin(t *testing.T, with openstackWith) *member {
	t.Helper()
	o := newOpenStack(t, with)
	p := o.ks.Project("p")
	scope := gophercloud.AuthScope{ProjectID: p}
	root := o.ks.User("root")
	o.ks.Grant(root, "admin", scope)
	return &member{openstack: o, token: o.ks.Token("root", &scope), ids: map[string]string{"p": p, "root": root}}
}

// env returns the environment of commands that an administrator uses.
func (m *member) env() []string {
	return []string{
		"OS_AUTH_URL=" + m.ks.Endpoint, "OS_USERNAME=root", "OS_PASSWORD=" + keystonetest.Password, "OS_PROJECT_ID=" + m.ids["p"], "OS_USER_DOMAIN_NAME=Default",
		"OS_PROJECT_DOMAIN_NAME=Default", "OS_IDENTITY_API_VERSION=3", "OS_REGION_NAME=RegionOne", "OS_COMPUTE_API_VERSION=" + commandVersion,
	}
}

// TestCommands runs the commands of docs/openstack-client.md with a real Keystone, a real Glance and a real Neutron.
func TestCommands(t *testing.T) {
	t.Parallel()
	if os.Getenv("ARMATURE_ACCEPT") == "" {
		t.Skip("run it with make accept; TestEachClient has a short flow")
	}
	m := newAdmin(t, openstackWith{glance: true, neutron: true, image: "cirros", hosts: []string{"node-1", "node-2"}})
	p := m.ids["p"]
	m.glance, m.networks = m.ks.Images("root", p), m.ks.Networks("root", p)
	m.foreignServer()
	client := m.printing(clienttest.New(t, "openstack", "python3-openstackclient", m.env()...))
	client.Values = userFiles(t)
	client.Document(t, clientDocument, "openstack", tableWants)
	client.Document(t, clientDocument, "openstack-keystone", map[string]string{
		"flavor show hidden": m.ids["demo"], "server show -c id -c security_groups one": `"web"`, "console url show one": "http://127.0.0.1:6080/vnc_lite.html?path=",
	})
	m.checkFilters()

	nova := clienttest.New(t, "nova", "python3-novaclient", m.env()...)
	nova.Before, nova.Values = m.allIdle, map[string]string{"IMAGE": m.images[0]}
	nova.Document(t, clientDocument, "nova", map[string]string{
		"show one": "small", "list --all-tenants --status ACTIVE": "first", "server-tag-list first": "blue", "instance-action-list first": "unrescue", "usage-list": p,
		"list --sort display_name:asc --fields name": "first",
		"server-group-list":                          "soft-anti-affinity", "hypervisor-list": "node-1", "service-list": "nova-compute", "version-list": "v2.1",
	})
}

// foreignServer creates a server of the user ada in the project demo, for lists of other projects and users.
func (m *member) foreignServer() {
	m.Helper()
	m.ids["demo"], m.ids["ada"] = m.ks.Project("demo"), m.ks.User("ada")
	scope := gophercloud.AuthScope{ProjectID: m.ids["demo"]}
	m.ks.Grant(m.ids["ada"], "member", scope)
	ada := &member{openstack: m.openstack, token: m.ks.Token("ada", &scope)}
	ada.create("2.37", servers.CreateOpts{Name: "theirs", ImageRef: m.images[0], FlavorRef: "1", Networks: "none"}, nil)
}

// TestEachClient runs one short flow of each other kind of client, with a real Keystone: Terraform, the command nova, and gophercloud's own acceptance tests. With
// ARMATURE_ACCEPT, other tests run all flows.
func TestEachClient(t *testing.T) {
	t.Parallel()
	scenario(t)
	if os.Getenv("ARMATURE_ACCEPT") != "" {
		t.Skip("TestClients, TestCommands and TestGophercloud run all flows")
	}
	m := newAdmin(t, openstackWith{glance: true, image: "cirros", hosts: []string{"node-1", "node-2"}}) // the command nova asks the image service for an image's name
	m.smallestPlan()
	nova := clienttest.New(t, "nova", "python3-novaclient", m.env()...)
	nova.Before = m.allIdle
	nova.Commands(t, []string{"nova boot --image cirros --flavor m1.tiny --nic none --poll one", "nova list", "nova show one", "nova stop one", "nova list --status SHUTOFF", "nova delete one"},
		map[string]string{"list": "ACTIVE", "show one": "m1.tiny", "list --status SHUTOFF": "one"})
	m.runGophercloud(t, "^TestServerNoNetworkCreateDestroy$", "", 1)
	if left := m.shown("servers?all_tenants=1", "servers").([]any); len(left) > 0 { //nolint:forcetypeassert // a reply of the API has this form
		t.Errorf("servers at the end: %v", left)
	}
}
