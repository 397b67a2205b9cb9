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
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"
)

// TestNetworks: servers get ports of a real Neutron, show their addresses, and leave none behind, also if the conductor is killed while it makes
// them.
func TestNetworks(t *testing.T) {
	t.Parallel()
	scenario(t)
	o := newOpenStack(t, openstackWith{neutron: true, hosts: []string{"node-1", "node-2"}})
	p := o.ks.Project("p")
	o.ks.Grant(o.ks.User("ada"), "member", gophercloud.AuthScope{ProjectID: p})
	o.ks.Grant(o.ks.User("root"), "admin", gophercloud.AuthScope{ProjectID: p})
	scope := gophercloud.AuthScope{ProjectID: p}
	tokens := map[string]string{"ada": o.ks.Token("ada", &scope), "root": o.ks.Token("root", &scope)}
	ask := func(user, method, path, body string) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), method, o.compute+"/v2.1/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Auth-Token", tokens[user])
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("OpenStack-API-Version", "compute 2.96")
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
		if networks != `"auto"` { // the end of the server releases it
			if code, body := ask("ada", "DELETE", "servers/"+id+"/os-interface/"+one.Interface.Port, ""); code != 202 || len(active(id).Server.Addresses["private"]) != 1 {
				t.Errorf("detach: %d %s", code, body)
			}
		}
		remove(id)
		if l := left(); len(l) > 0 {
			t.Errorf("%s: ports left: %v", networks, l)
		}
	}
	if code, body := ask("ada", "POST", "servers", `{"server": {"name": "s", "flavorRef": "1", "imageRef": "one", "networks": [{"uuid": "5a6fb4cb-0eab-4a5c-9f9d-6e3a1a2e6a51"}]}}`); code != 400 || !strings.Contains(body, "could not be found") {
		t.Errorf("a network that does not exist: %d %s", code, body)
	}

	// A server that has begun without a network gets one later, and leaves none. An address that is in use is refused.
	bare := create(`"none"`)
	active(bare)
	if code, body := ask("ada", "POST", "servers/"+bare+"/os-interface", "{}"); code != 200 || !strings.Contains(body, private.ID) {
		t.Errorf("attach to a server without networks: %d %s", code, body)
	}
	used := `{"server": {"name": "s", "flavorRef": "1", "imageRef": "one", "networks": [{"uuid": "` + private.ID + `", "fixed_ip": "` + given.FixedIPs[0].IPAddress + `"}]}}`
	if code, body := ask("ada", "POST", "servers", used); code != 400 || !strings.Contains(body, "is already in use") {
		t.Errorf("a used address: %d %s", code, body)
	}
	// An administrator of another project attaches for the project of the server.
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

	// The conductor is killed in the middle: each server has one port in the end, and none is left.
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
