package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/groups"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"

	"github.com/armature-go/armature/internal/clienttest"
	"github.com/armature-go/armature/internal/keystonetest"
)

// networked is a cloud with a real Neutron. A member of a project and an administrator use it.
type networked struct {
	*openstack

	tokens  map[string]string // by user: ada is a member, and root is an administrator
	version string            // the microversion of the requests
	neutron *gophercloud.ServiceClient
	private *networks.Network
	given   *ports.Port      // a port of the member
	web     *groups.SecGroup // a group of the member
	// command is the command openstack, which the member uses.
	command *clienttest.Client
}

// newNetworked starts the cloud, with a network, a port and a security group of the member's project.
func newNetworked(t *testing.T) *networked {
	t.Helper()
	n := &networked{openstack: newOpenStack(t, openstackWith{neutron: true, hosts: []string{"node-1", "node-2"}}), version: "2.96"}
	p := n.ks.Project("p")
	n.ks.Grant(n.ks.User("ada"), "member", gophercloud.AuthScope{ProjectID: p})
	n.ks.Grant(n.ks.User("root"), "admin", gophercloud.AuthScope{ProjectID: p})
	scope := gophercloud.AuthScope{ProjectID: p}
	n.tokens = map[string]string{"ada": n.ks.Token("ada", &scope), "root": n.ks.Token("root", &scope)}
	n.neutron = n.ks.Networks("ada", p)
	n.private = n.newNetwork(n.neutron, "private", "10.0.0.0/24")
	n.given = n.newPort(t, n.neutron, n.private)
	var err error
	if n.web, err = groups.Create(t.Context(), n.neutron, groups.CreateOpts{Name: "web"}).Extract(); err != nil {
		t.Fatal(err)
	}
	n.command = clienttest.New(t, "openstack", "python3-openstackclient", "OS_AUTH_URL="+n.ks.Endpoint, "OS_USERNAME=ada", "OS_PASSWORD="+keystonetest.Password, "OS_PROJECT_ID="+p,
		"OS_USER_DOMAIN_NAME=Default", "OS_IDENTITY_API_VERSION=3", "OS_REGION_NAME=RegionOne", "OS_COMPUTE_API_VERSION=2.79")
	return n
}

func (n *networked) newPort(t *testing.T, neutron *gophercloud.ServiceClient, at *networks.Network) *ports.Port {
	t.Helper()
	port, err := ports.Create(t.Context(), neutron, ports.CreateOpts{NetworkID: at.ID}).Extract()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// ask sends a request of a user, and returns the status and the body of the reply.
func (n *networked) ask(t *testing.T, user, method, path, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, n.compute+"/v2.1/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Auth-Token", n.tokens[user])
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("OpenStack-API-Version", "compute "+n.version)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(raw)
}

// networkedServer is a server in a reply.
type networkedServer struct {
	ID, Status string
	Addresses  map[string][]struct{ Addr string }
}

// private returns the addresses on the network private.
func (s networkedServer) private() []struct{ Addr string } { return s.Addresses["private"] }

// create creates a server with networks, which are JSON, and returns the id of the server.
func (n *networked) create(t *testing.T, networks string) string {
	t.Helper()
	code, body := n.ask(t, "ada", "POST", "servers", `{"server": {"name": "s", "flavorRef": "1", "imageRef": "one", "networks": `+networks+`}}`)
	var made struct{ Server networkedServer }
	if err := json.Unmarshal([]byte(body), &made); code != 202 || err != nil {
		t.Fatalf("create with %s: %d %s", networks, code, body)
	}
	return made.Server.ID
}

// active waits until a server is ACTIVE.
func (n *networked) active(t *testing.T, id string) networkedServer {
	t.Helper()
	var s struct{ Server networkedServer }
	n.poll("the server to be ACTIVE", 60*time.Second, func() error {
		code, body := n.ask(t, "ada", "GET", "servers/"+id, "")
		if err := json.Unmarshal([]byte(body), &s); code != 200 || err != nil || s.Server.Status != "ACTIVE" {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	return s.Server
}

// remove deletes servers and waits until they are gone. Then no port of the network private may be left, except the given one.
func (n *networked) remove(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if code, body := n.ask(t, "ada", "DELETE", "servers/"+id, ""); code != 204 {
			t.Fatalf("%d %s", code, body)
		}
		n.poll("the server to be gone", 60*time.Second, func() error {
			if code, body := n.ask(t, "ada", "GET", "servers/"+id, ""); code != 404 {
				return fmt.Errorf("%d %s", code, body)
			}
			return nil
		})
	}
	if l := n.left(t); len(l) > 0 {
		t.Errorf("ports left: %v", l)
	}
}

// left returns the ports of the network private, without the given port if no server has it.
func (n *networked) left(t *testing.T) (out []string) {
	t.Helper()
	pages, err := ports.List(n.neutron, ports.ListOpts{NetworkID: n.private.ID}).AllPages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list, err := ports.ExtractPorts(pages)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if p.ID != n.given.ID || p.DeviceID != "" {
			out = append(out, p.ID+" of "+p.DeviceID)
		}
	}
	return out
}

// TestNetworks: servers get ports of a real Neutron, and show their addresses. After the deletion of the servers no port is left, even if the
// conductor is killed while it makes ports.
func TestNetworks(t *testing.T) { //nolint:tparallel // the subtests use one Neutron
	t.Parallel()
	scenario(t)
	n := newNetworked(t)
	for _, tt := range []struct {
		name string
		run  func(t *testing.T, n *networked)
	}{
		{"auto", func(t *testing.T, n *networked) { testNetworkOf(t, n, `"auto"`) }},
		{"network", func(t *testing.T, n *networked) { testNetworkOf(t, n, `[{"uuid": "`+n.private.ID+`"}]`) }},
		{"port", func(t *testing.T, n *networked) { testNetworkOf(t, n, `[{"port": "`+n.given.ID+`"}]`) }},
		{"security groups", testSecurityGroupList},
		{"later interface", testLaterInterface},
		{"lost ports", testLostPorts},
		{"killed conductor", testKilledWithPorts},
	} {
		t.Run(tt.name, func(t *testing.T) {
			parent := n.TB
			n.TB = t
			defer func() { n.TB = parent }()
			tt.run(t, n)
		})
	}
}

// testNetworkOf creates a server with networks, which are JSON, and changes its groups, addresses and interfaces.
func testNetworkOf(t *testing.T, n *networked, networks string) {
	t.Helper()
	id := n.create(t, networks)
	s := n.active(t, id)
	if len(s.private()) != 1 || !strings.HasPrefix(s.private()[0].Addr, "10.0.0.") {
		t.Errorf("%s: %+v", networks, s)
	}
	for path, want := range map[string]string{
		"/ips": `"addr":"10.0.0.`, "/ips/private": `"addr":"10.0.0.`, "/os-security-groups": `"name":"default"`, "/os-interface": n.private.ID,
	} {
		if code, body := n.ask(t, "ada", "GET", "servers/"+id+path, ""); code != 200 || !strings.Contains(body, want) {
			t.Errorf("GET %s: %d %s", path, code, body)
		}
	}
	n.changeGroups(t, id)
	if strings.Contains(networks, n.given.ID) {
		n.changeGroupsInNeutron(t, id)
	}
	if strings.Contains(networks, n.private.ID) {
		n.changeGroupsByCommand(t, id)
	}
	n.changeAddresses(t, id)
	n.sendEvents(t, id)
	port := n.attach(t, id)
	if networks != `"auto"` { // with auto, the deletion of the server releases the port
		n.detach(t, id, port)
	}
	n.remove(t, id)
}

// changeGroups adds a security group to a server, and removes it.
func (n *networked) changeGroups(t *testing.T, id string) {
	t.Helper()
	for _, action := range []struct{ name, then string }{{"addSecurityGroup", `[{"name":"default"},{"name":"web"}]`}, {"removeSecurityGroup", `[{"name":"default"}]`}} {
		if code, body := n.ask(t, "ada", "POST", "servers/"+id+"/action", `{"`+action.name+`": {"name": "web"}}`); code != 202 {
			t.Errorf("%s: %d %s", action.name, code, body)
		}
		if code, body := n.ask(t, "ada", "GET", "servers/"+id, ""); code != 200 || !strings.Contains(body, `"security_groups":`+action.then) {
			t.Errorf("after %s: %d %s", action.name, code, body)
		}
	}
}

// changeGroupsInNeutron changes the groups of the given port in Neutron, as the owner of the port may do. Then the server shows the new groups.
func (n *networked) changeGroupsInNeutron(t *testing.T, id string) {
	t.Helper()
	if _, err := ports.Update(t.Context(), n.neutron, n.given.ID, ports.UpdateOpts{SecurityGroups: &[]string{n.web.ID}}).Extract(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"servers/" + id, "servers/detail"} {
		if code, body := n.ask(t, "ada", "GET", path, ""); code != 200 || !strings.Contains(body, `"security_groups":[{"name":"web"}]`) {
			t.Errorf("GET %s after a change of the groups in Neutron: %d %s", path, code, body)
		}
	}
}

// changeGroupsByCommand adds a group to a server and removes it, with a client that asks compute for the id of the group.
func (n *networked) changeGroupsByCommand(t *testing.T, id string) {
	t.Helper()
	for _, verb := range []string{"add", "remove"} {
		n.command.Run(t, "server", verb, "security", "group", id, "web")
		if code, body := n.ask(t, "ada", "GET", "servers/"+id, ""); code != 200 || strings.Contains(body, `"name":"web"`) != (verb == "add") {
			t.Errorf("after openstack server %s security group: %d %s", verb, code, body)
		}
	}
}

// changeAddresses adds an address to a server, and removes it.
func (n *networked) changeAddresses(t *testing.T, id string) {
	t.Helper()
	n.version = "2.43"
	defer func() { n.version = "2.96" }()
	_, had := n.ask(t, "ada", "GET", "servers/"+id+"/ips/private", "")
	if code, body := n.ask(t, "ada", "POST", "servers/"+id+"/action", `{"addFixedIp": {"networkId": "`+n.private.ID+`"}}`); code != 202 {
		t.Errorf("addFixedIp: %d %s", code, body)
	}
	if ips := n.active(t, id).private(); len(ips) != 2 {
		t.Errorf("addresses after addFixedIp: %v", ips)
	} else {
		added := ips[0].Addr
		if strings.Contains(had, `"`+added+`"`) {
			added = ips[1].Addr
		}
		if code, body := n.ask(t, "ada", "POST", "servers/"+id+"/action", `{"removeFixedIp": {"address": "`+added+`"}}`); code != 202 {
			t.Errorf("removeFixedIp: %d %s", code, body)
		}
		if _, has := n.ask(t, "ada", "GET", "servers/"+id+"/ips/private", ""); has != had {
			t.Errorf("addresses after removeFixedIp: %s, want %s", has, had)
		}
		if code, body := n.ask(t, "ada", "POST", "servers/"+id+"/action", `{"removeFixedIp": {"address": "`+added+`"}}`); code != 400 {
			t.Errorf("removeFixedIp again: %d %s", code, body)
		}
	}
}

// sendEvents sends an event of Neutron about a server, as an administrator and as a member.
func (n *networked) sendEvents(t *testing.T, id string) {
	t.Helper()
	event := `{"events": [{"name": "network-changed", "server_uuid": "` + id + `"}]}`
	if code, body := n.ask(t, "root", "POST", "os-server-external-events", event); code != 200 || !strings.Contains(body, `"code":200`) {
		t.Errorf("event: %d %s", code, body)
	}
	if code, _ := n.ask(t, "ada", "POST", "os-server-external-events", event); code != 403 {
		t.Errorf("event of a member: %d", code)
	}
}

// attach attaches an interface to a server, and returns the id of its port.
func (n *networked) attach(t *testing.T, id string) string {
	t.Helper()
	code, body := n.ask(t, "ada", "POST", "servers/"+id+"/os-interface", `{"interfaceAttachment": {"net_id": "`+n.private.ID+`", "tag": "second"}}`)
	var one struct {
		Interface struct {
			Port string `json:"port_id"`
			Tag  string
		} `json:"interfaceAttachment"`
	}
	if err := json.Unmarshal([]byte(body), &one); code != 200 || err != nil || one.Interface.Tag != "second" {
		t.Errorf("attach: %d %s", code, body)
	}
	return one.Interface.Port
}

// detach detaches an interface of a server that has one other interface.
func (n *networked) detach(t *testing.T, id, port string) {
	t.Helper()
	if code, body := n.ask(t, "ada", "DELETE", "servers/"+id+"/os-interface/"+port, ""); code != 202 || len(n.active(t, id).private()) != 1 {
		t.Errorf("detach: %d %s", code, body)
	}
	_, body := n.ask(t, "ada", "GET", "servers/"+id+"/os-instance-actions", "")
	for _, action := range []string{"attach_interface", "detach_interface"} {
		if !strings.Contains(body, `"action":"`+action+`"`) || strings.Contains(body, `"message":"Error"`) {
			t.Errorf("the actions of the server: %s, want also %s", body, action)
		}
	}
}

// testSecurityGroupList: the old routes of security groups, which newer microversions do not have.
func testSecurityGroupList(t *testing.T, n *networked) {
	t.Helper()
	defer func() { n.version = "2.96" }()
	for _, tt := range []struct {
		version, path string
		code          int
		want          string
	}{
		{"2.35", "os-security-groups", 200, `"name":"web"`},
		{"2.35", "os-security-groups?limit=1&offset=1", 200, `"name":"web"`},
		{"2.35", "os-security-groups?offset=9", 200, `{"security_groups":[]}`},
		{"2.35", "os-security-groups?limit=99999999999999999999", 200, `"name":"web"`}, // Nova has integers of any size
		{"2.35", "os-security-groups?offset=99999999999999999999", 200, `{"security_groups":[]}`},
		{"2.1", "os-security-groups/" + n.web.ID, 200, `{"security_group":{"id":"` + n.web.ID + `","name":"web"`},
		{"2.1", "os-security-groups/web", 400, "Security group id should be uuid"},
		{"2.1", "os-security-groups/" + n.private.ID, 404, "Security group " + n.private.ID + " does not exist"},
		{"2.36", "os-security-groups", 404, ""},
		{"2.36", "os-security-groups/" + n.web.ID, 404, ""},
	} {
		n.version = tt.version
		if code, body := n.ask(t, "ada", "GET", tt.path, ""); code != tt.code || !strings.Contains(body, tt.want) {
			t.Errorf("GET %s at %s: %d %s, want %d %s", tt.path, tt.version, code, body, tt.code, tt.want)
		}
	}
}

// testLaterInterface: a server without a network can get an interface later, and leaves no port behind. A network that does not exist and an address
// that is in use are refused.
func testLaterInterface(t *testing.T, n *networked) {
	t.Helper()
	if code, body := n.ask(t, "ada", "POST", "servers", `{"server": {"name": "s", "flavorRef": "1", "imageRef": "one", "networks": [{"uuid": "5a6fb4cb-0eab-4a5c-9f9d-6e3a1a2e6a51"}]}}`); code != 400 || !strings.Contains(body, "could not be found") {
		t.Errorf("a network that does not exist: %d %s", code, body)
	}
	bare := n.create(t, `"none"`)
	n.active(t, bare)
	if code, body := n.ask(t, "ada", "POST", "servers/"+bare+"/os-interface", "{}"); code != 200 || !strings.Contains(body, n.private.ID) {
		t.Errorf("attach to a server without networks: %d %s", code, body)
	}
	used := `{"server": {"name": "s", "flavorRef": "1", "imageRef": "one", "networks": [{"uuid": "` + n.private.ID + `", "fixed_ip": "` + n.given.FixedIPs[0].IPAddress + `"}]}}`
	if code, body := n.ask(t, "ada", "POST", "servers", used); code != 400 || !strings.Contains(body, "is already in use") {
		t.Errorf("a used address: %d %s", code, body)
	}
	n.attachForeign(t, bare)
	n.remove(t, bare)
}

// attachForeign: an administrator of another project can attach networks and ports of the server's project, but not those of the administrator's own
// project.
func (n *networked) attachForeign(t *testing.T, bare string) {
	t.Helper()
	q := n.ks.Project("q")
	n.ks.Grant(n.ks.User("boss"), "admin", gophercloud.AuthScope{ProjectID: q})
	n.tokens["boss"] = n.ks.Token("boss", &gophercloud.AuthScope{ProjectID: q})
	neutron := n.ks.Networks("boss", q)
	foreign := n.newPort(t, neutron, n.newNetwork(neutron, "theirs", "10.9.0.0/24"))
	if code, body := n.ask(t, "boss", "POST", "servers/"+bare+"/os-interface", "{}"); code != 200 || !strings.Contains(body, n.private.ID) {
		t.Errorf("an administrator attaches: %d %s", code, body)
	}
	if code, body := n.ask(t, "boss", "POST", "servers/"+bare+"/os-interface", `{"interfaceAttachment": {"port_id": "`+foreign.ID+`"}}`); code != 400 || !strings.Contains(body, "not usable for instance "+bare) {
		t.Errorf("an administrator attaches a port of another project: %d %s", code, body)
	}
	if code, body := n.ask(t, "boss", "POST", "servers/"+bare+"/os-interface", `{"interfaceAttachment": {"port_id": "`+n.given.ID+`"}}`); code != 200 {
		t.Errorf("an administrator attaches a port of the server's project: %d %s", code, body)
	}
}

// testLostPorts: Neutron deletes ports of a server. The server loses the interfaces of these ports at the event, or when it is unshelved. It keeps
// the other interfaces.
func testLostPorts(t *testing.T, n *networked) {
	t.Helper()
	dropped, kept := n.newPort(t, n.neutron, n.private).ID, n.newPort(t, n.neutron, n.private).ID
	robbed := n.create(t, `[{"port": "`+dropped+`"}, {"port": "`+kept+`"}, {"uuid": "`+n.private.ID+`"}]`)
	wantInterfaces := func(want int) {
		t.Helper()
		_, body := n.ask(t, "root", "GET", "servers/"+robbed+"/diagnostics", "")
		var is struct {
			NICs int `json:"num_nics"`
		}
		if err := json.Unmarshal([]byte(body), &is); err != nil || is.NICs != want || len(n.active(t, robbed).private()) != want {
			t.Errorf("the guest has %d interfaces, want %d: %s, %+v", is.NICs, want, body, n.active(t, robbed))
		}
	}
	n.active(t, robbed)
	wantInterfaces(3)
	lose := func(port string) {
		t.Helper()
		if err := ports.Delete(t.Context(), n.neutron, port).ExtractErr(); err != nil {
			t.Fatal(err)
		}
	}
	told := func(port string) {
		t.Helper()
		event := `{"events": [{"name": "network-vif-deleted", "server_uuid": "` + robbed + `", "tag": "` + port + `"}]}`
		if code, body := n.ask(t, "root", "POST", "os-server-external-events", event); code != 200 || !strings.Contains(body, `"code":200`) {
			t.Errorf("event: %d %s", code, body)
		}
	}
	told(kept) // the port still exists
	wantInterfaces(3)
	lose(dropped)
	told(dropped)
	told(dropped)
	n.poll("the interface of the deleted port to be gone", 30*time.Second, func() error {
		if has := n.active(t, robbed).private(); len(has) != 2 {
			return fmt.Errorf("the server has the interfaces %v", has)
		}
		return nil
	})
	wantInterfaces(2)
	act := func(body, status string) {
		t.Helper()
		if code, reply := n.ask(t, "ada", "POST", "servers/"+robbed+"/action", body); code != 202 {
			t.Fatalf("%s: %d %s", body, code, reply)
		}
		n.poll("the server to be "+status, 60*time.Second, func() error {
			if _, body := n.ask(t, "ada", "GET", "servers/"+robbed, ""); !strings.Contains(body, `"status":"`+status+`"`) {
				return errors.New(body)
			}
			return nil
		})
	}
	act(`{"shelve": null}`, "SHELVED_OFFLOADED")
	lose(kept)
	act(`{"unshelve": null}`, "ACTIVE")
	wantInterfaces(1)
	n.remove(t, robbed)
}

// testKilledWithPorts: the conductor is killed while it makes ports. In the end each server has one port, and after the deletion of the servers no
// port is left.
func testKilledWithPorts(t *testing.T, n *networked) {
	t.Helper()
	var ids []string
	for range 8 {
		ids = append(ids, n.create(t, `[{"uuid": "`+n.private.ID+`"}]`))
	}
	n.poll("the first port", 30*time.Second, func() error {
		if len(n.left(t)) == 0 {
			return errors.New("none")
		}
		return nil
	})
	n.procs["c-1"].Kill()
	n.start("conductor", "c-2")
	for _, id := range ids {
		if s := n.active(t, id); len(s.private()) != 1 {
			t.Errorf("%+v", s)
		}
	}
	if l := n.left(t); len(l) != len(ids) {
		t.Errorf("%d servers have the ports %v", len(ids), l)
	}
	n.remove(t, ids...)
	if err := networks.Delete(t.Context(), n.neutron, n.private.ID).ExtractErr(); err == nil {
		t.Error("the network is gone, although it has a port")
	}
}
