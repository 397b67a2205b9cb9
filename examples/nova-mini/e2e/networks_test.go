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

// TestNetworks: servers get ports of a real Neutron, and show their addresses. After the deletion of the servers no port is left, even if the
// conductor is killed while it makes ports.
func TestNetworks(t *testing.T) {
	t.Parallel()
	scenario(t)
	o := newOpenStack(t, openstackWith{neutron: true, hosts: []string{"node-1", "node-2"}})
	p := o.ks.Project("p")
	o.ks.Grant(o.ks.User("ada"), "member", gophercloud.AuthScope{ProjectID: p})
	o.ks.Grant(o.ks.User("root"), "admin", gophercloud.AuthScope{ProjectID: p})
	scope := gophercloud.AuthScope{ProjectID: p}
	tokens := map[string]string{"ada": o.ks.Token("ada", &scope), "root": o.ks.Token("root", &scope)}
	version := "2.96"
	ask := func(user, method, path, body string) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), method, o.compute+"/v2.1/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Auth-Token", tokens[user])
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("OpenStack-API-Version", "compute "+version)
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
	type shown struct {
		Server struct {
			ID, Status string
			Addresses  map[string][]struct{ Addr string }
		}
	}
	create := func(networks string) string {
		t.Helper()
		code, body := ask("ada", "POST", "servers", `{"server": {"name": "s", "flavorRef": "1", "imageRef": "one", "networks": `+networks+`}}`)
		var made shown
		if err := json.Unmarshal([]byte(body), &made); code != 202 || err != nil {
			t.Fatalf("create with %s: %d %s", networks, code, body)
		}
		return made.Server.ID
	}
	active := func(id string) (s shown) {
		t.Helper()
		o.poll("the server to be ACTIVE", 60*time.Second, func() error {
			code, body := ask("ada", "GET", "servers/"+id, "")
			if err := json.Unmarshal([]byte(body), &s); code != 200 || err != nil || s.Server.Status != "ACTIVE" {
				return fmt.Errorf("%d %s", code, body)
			}
			return nil
		})
		return s
	}
	remove := func(id string) {
		t.Helper()
		if code, body := ask("ada", "DELETE", "servers/"+id, ""); code != 204 {
			t.Fatalf("%d %s", code, body)
		}
		o.poll("the server to be gone", 60*time.Second, func() error {
			if code, body := ask("ada", "GET", "servers/"+id, ""); code != 404 {
				return fmt.Errorf("%d %s", code, body)
			}
			return nil
		})
	}
	neutron := o.ks.Networks("ada", p)
	private := o.newNetwork(neutron, "private", "10.0.0.0/24")
	given, err := ports.Create(t.Context(), neutron, ports.CreateOpts{NetworkID: private.ID}).Extract()
	if err != nil {
		t.Fatal(err)
	}
	web, err := groups.Create(t.Context(), neutron, groups.CreateOpts{Name: "web"}).Extract()
	if err != nil {
		t.Fatal(err)
	}
	client := clienttest.New(t, "openstack", "python3-openstackclient", "OS_AUTH_URL="+o.ks.Endpoint, "OS_USERNAME=ada", "OS_PASSWORD="+keystonetest.Password, "OS_PROJECT_ID="+p,
		"OS_USER_DOMAIN_NAME=Default", "OS_IDENTITY_API_VERSION=3", "OS_REGION_NAME=RegionOne", "OS_COMPUTE_API_VERSION=2.79")
	left := func() (out []string) {
		t.Helper()
		pages, err := ports.List(neutron, ports.ListOpts{NetworkID: private.ID}).AllPages(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		list, err := ports.ExtractPorts(pages)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			if p.ID != given.ID || p.DeviceID != "" {
				out = append(out, p.ID+" of "+p.DeviceID)
			}
		}
		return out
	}

	for _, networks := range []string{`"auto"`, `[{"uuid": "` + private.ID + `"}]`, `[{"port": "` + given.ID + `"}]`} {
		id := create(networks)
		s := active(id)
		if len(s.Server.Addresses["private"]) != 1 || !strings.HasPrefix(s.Server.Addresses["private"][0].Addr, "10.0.0.") {
			t.Errorf("%s: %+v", networks, s)
		}
		for path, want := range map[string]string{
			"/ips": `"addr":"10.0.0.`, "/ips/private": `"addr":"10.0.0.`, "/os-security-groups": `"name":"default"`, "/os-interface": private.ID,
		} {
			if code, body := ask("ada", "GET", "servers/"+id+path, ""); code != 200 || !strings.Contains(body, want) {
				t.Errorf("GET %s: %d %s", path, code, body)
			}
		}
		for _, action := range []struct{ name, then string }{{"addSecurityGroup", `[{"name":"default"},{"name":"web"}]`}, {"removeSecurityGroup", `[{"name":"default"}]`}} {
			if code, body := ask("ada", "POST", "servers/"+id+"/action", `{"`+action.name+`": {"name": "web"}}`); code != 202 {
				t.Errorf("%s: %d %s", action.name, code, body)
			}
			if code, body := ask("ada", "GET", "servers/"+id, ""); code != 200 || !strings.Contains(body, `"security_groups":`+action.then) {
				t.Errorf("after %s: %d %s", action.name, code, body)
			}
		}
		if strings.Contains(networks, given.ID) { // the owner of the port changes it in Neutron
			if _, err := ports.Update(t.Context(), neutron, given.ID, ports.UpdateOpts{SecurityGroups: &[]string{web.ID}}).Extract(); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{"servers/" + id, "servers/detail"} {
				if code, body := ask("ada", "GET", path, ""); code != 200 || !strings.Contains(body, `"security_groups":[{"name":"web"}]`) {
					t.Errorf("GET %s after a change of the groups in Neutron: %d %s", path, code, body)
				}
			}
		}
		if strings.Contains(networks, private.ID) { // the client asks compute for the id of the group
			for _, command := range []string{"add", "remove"} {
				client.Run(t, "server", command, "security", "group", id, "web")
				if code, body := ask("ada", "GET", "servers/"+id, ""); code != 200 || strings.Contains(body, `"name":"web"`) != (command == "add") {
					t.Errorf("after openstack server %s security group: %d %s", command, code, body)
				}
			}
		}
		version = "2.43"
		_, had := ask("ada", "GET", "servers/"+id+"/ips/private", "")
		if code, body := ask("ada", "POST", "servers/"+id+"/action", `{"addFixedIp": {"networkId": "`+private.ID+`"}}`); code != 202 {
			t.Errorf("addFixedIp: %d %s", code, body)
		}
		if ips := active(id).Server.Addresses["private"]; len(ips) != 2 {
			t.Errorf("addresses after addFixedIp: %v", ips)
		} else {
			added := ips[0].Addr
			if strings.Contains(had, `"`+added+`"`) {
				added = ips[1].Addr
			}
			if code, body := ask("ada", "POST", "servers/"+id+"/action", `{"removeFixedIp": {"address": "`+added+`"}}`); code != 202 {
				t.Errorf("removeFixedIp: %d %s", code, body)
			}
			if _, has := ask("ada", "GET", "servers/"+id+"/ips/private", ""); has != had {
				t.Errorf("addresses after removeFixedIp: %s, want %s", has, had)
			}
			if code, body := ask("ada", "POST", "servers/"+id+"/action", `{"removeFixedIp": {"address": "`+added+`"}}`); code != 400 {
				t.Errorf("removeFixedIp again: %d %s", code, body)
			}
		}
		version = "2.96"
		event := `{"events": [{"name": "network-changed", "server_uuid": "` + id + `"}]}`
		if code, body := ask("root", "POST", "os-server-external-events", event); code != 200 || !strings.Contains(body, `"code":200`) {
			t.Errorf("event: %d %s", code, body)
		}
		if code, _ := ask("ada", "POST", "os-server-external-events", event); code != 403 {
			t.Errorf("event of a member: %d", code)
		}
		code, body := ask("ada", "POST", "servers/"+id+"/os-interface", `{"interfaceAttachment": {"net_id": "`+private.ID+`", "tag": "second"}}`)
		var one struct {
			Interface struct {
				Port string `json:"port_id"`
				Tag  string
			} `json:"interfaceAttachment"`
		}
		if err := json.Unmarshal([]byte(body), &one); code != 200 || err != nil || one.Interface.Tag != "second" {
			t.Errorf("attach: %d %s", code, body)
		}
		if networks != `"auto"` { // with auto, the deletion of the server releases the port
			if code, body := ask("ada", "DELETE", "servers/"+id+"/os-interface/"+one.Interface.Port, ""); code != 202 || len(active(id).Server.Addresses["private"]) != 1 {
				t.Errorf("detach: %d %s", code, body)
			}
			_, body := ask("ada", "GET", "servers/"+id+"/os-instance-actions", "")
			for _, action := range []string{"attach_interface", "detach_interface"} {
				if !strings.Contains(body, `"action":"`+action+`"`) || strings.Contains(body, `"message":"Error"`) {
					t.Errorf("the actions of the server: %s, want also %s", body, action)
				}
			}
		}
		remove(id)
		if l := left(); len(l) > 0 {
			t.Errorf("%s: ports left: %v", networks, l)
		}
	}
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
		{"2.1", "os-security-groups/" + web.ID, 200, `{"security_group":{"id":"` + web.ID + `","name":"web"`},
		{"2.1", "os-security-groups/web", 400, "Security group id should be uuid"},
		{"2.1", "os-security-groups/" + private.ID, 404, "Security group " + private.ID + " does not exist"},
		{"2.36", "os-security-groups", 404, ""},
		{"2.36", "os-security-groups/" + web.ID, 404, ""},
	} {
		version = tt.version
		if code, body := ask("ada", "GET", tt.path, ""); code != tt.code || !strings.Contains(body, tt.want) {
			t.Errorf("GET %s at %s: %d %s, want %d %s", tt.path, tt.version, code, body, tt.code, tt.want)
		}
	}
	version = "2.96"
	if code, body := ask("ada", "POST", "servers", `{"server": {"name": "s", "flavorRef": "1", "imageRef": "one", "networks": [{"uuid": "5a6fb4cb-0eab-4a5c-9f9d-6e3a1a2e6a51"}]}}`); code != 400 || !strings.Contains(body, "could not be found") {
		t.Errorf("a network that does not exist: %d %s", code, body)
	}

	// A server without a network can get an interface later, and leaves no port behind. An address that is in use is refused.
	bare := create(`"none"`)
	active(bare)
	if code, body := ask("ada", "POST", "servers/"+bare+"/os-interface", "{}"); code != 200 || !strings.Contains(body, private.ID) {
		t.Errorf("attach to a server without networks: %d %s", code, body)
	}
	used := `{"server": {"name": "s", "flavorRef": "1", "imageRef": "one", "networks": [{"uuid": "` + private.ID + `", "fixed_ip": "` + given.FixedIPs[0].IPAddress + `"}]}}`
	if code, body := ask("ada", "POST", "servers", used); code != 400 || !strings.Contains(body, "is already in use") {
		t.Errorf("a used address: %d %s", code, body)
	}
	// An administrator of another project can attach networks and ports of the server's project, but not those of the administrator's own project.
	q := o.ks.Project("q")
	o.ks.Grant(o.ks.User("boss"), "admin", gophercloud.AuthScope{ProjectID: q})
	tokens["boss"] = o.ks.Token("boss", &gophercloud.AuthScope{ProjectID: q})
	theirs := o.newNetwork(o.ks.Networks("boss", q), "theirs", "10.9.0.0/24")
	foreign, err := ports.Create(t.Context(), o.ks.Networks("boss", q), ports.CreateOpts{NetworkID: theirs.ID}).Extract()
	if err != nil {
		t.Fatal(err)
	}
	if code, body := ask("boss", "POST", "servers/"+bare+"/os-interface", "{}"); code != 200 || !strings.Contains(body, private.ID) {
		t.Errorf("an administrator attaches: %d %s", code, body)
	}
	if code, body := ask("boss", "POST", "servers/"+bare+"/os-interface", `{"interfaceAttachment": {"port_id": "`+foreign.ID+`"}}`); code != 400 || !strings.Contains(body, "not usable for instance "+bare) {
		t.Errorf("an administrator attaches a port of another project: %d %s", code, body)
	}
	if code, body := ask("boss", "POST", "servers/"+bare+"/os-interface", `{"interfaceAttachment": {"port_id": "`+given.ID+`"}}`); code != 200 {
		t.Errorf("an administrator attaches a port of the server's project: %d %s", code, body)
	}
	remove(bare)
	if l := left(); len(l) > 0 {
		t.Errorf("ports left: %v", l)
	}

	// Neutron deletes ports of a server. The server loses the interfaces of these ports at the event, or when it is unshelved. It keeps the other interfaces.
	extra := func() string {
		t.Helper()
		one, err := ports.Create(t.Context(), neutron, ports.CreateOpts{NetworkID: private.ID}).Extract()
		if err != nil {
			t.Fatal(err)
		}
		return one.ID
	}
	dropped, kept := extra(), extra()
	robbed := create(`[{"port": "` + dropped + `"}, {"port": "` + kept + `"}, {"uuid": "` + private.ID + `"}]`)
	wantInterfaces := func(n int) {
		t.Helper()
		_, body := ask("root", "GET", "servers/"+robbed+"/diagnostics", "")
		var is struct {
			NICs int `json:"num_nics"`
		}
		if err := json.Unmarshal([]byte(body), &is); err != nil || is.NICs != n || len(active(robbed).Server.Addresses["private"]) != n {
			t.Errorf("the guest has %d interfaces, want %d: %s, %+v", is.NICs, n, body, active(robbed))
		}
	}
	active(robbed)
	wantInterfaces(3)
	lose := func(port string) {
		t.Helper()
		if err := ports.Delete(t.Context(), neutron, port).ExtractErr(); err != nil {
			t.Fatal(err)
		}
	}
	told := func(port string) {
		t.Helper()
		event := `{"events": [{"name": "network-vif-deleted", "server_uuid": "` + robbed + `", "tag": "` + port + `"}]}`
		if code, body := ask("root", "POST", "os-server-external-events", event); code != 200 || !strings.Contains(body, `"code":200`) {
			t.Errorf("event: %d %s", code, body)
		}
	}
	told(kept) // the port still exists
	wantInterfaces(3)
	lose(dropped)
	told(dropped)
	told(dropped)
	wantInterfaces(2)
	act := func(body, status string) {
		t.Helper()
		if code, reply := ask("ada", "POST", "servers/"+robbed+"/action", body); code != 202 {
			t.Fatalf("%s: %d %s", body, code, reply)
		}
		o.poll("the server to be "+status, 60*time.Second, func() error {
			if _, body := ask("ada", "GET", "servers/"+robbed, ""); !strings.Contains(body, `"status":"`+status+`"`) {
				return errors.New(body)
			}
			return nil
		})
	}
	act(`{"shelve": null}`, "SHELVED_OFFLOADED")
	lose(kept)
	act(`{"unshelve": null}`, "ACTIVE")
	wantInterfaces(1)
	remove(robbed)
	if l := left(); len(l) > 0 {
		t.Errorf("ports left: %v", l)
	}

	// The conductor is killed while it makes ports. In the end each server has one port, and after the deletion of the servers no port is left.
	var ids []string
	for range 8 {
		ids = append(ids, create(`[{"uuid": "`+private.ID+`"}]`))
	}
	o.poll("the first port", 30*time.Second, func() error {
		if len(left()) == 0 {
			return errors.New("none")
		}
		return nil
	})
	o.procs["c-1"].Kill()
	o.start("conductor", "c-2")
	for _, id := range ids {
		if s := active(id); len(s.Server.Addresses["private"]) != 1 {
			t.Errorf("%+v", s)
		}
	}
	if l := left(); len(l) != len(ids) {
		t.Errorf("%d servers have the ports %v", len(ids), l)
	}
	for _, id := range ids {
		remove(id)
	}
	if l := left(); len(l) > 0 {
		t.Errorf("ports left: %v", l)
	}
	if err := networks.Delete(t.Context(), neutron, private.ID).ExtractErr(); err == nil {
		t.Error("the network is gone, although it has a port")
	}
}
