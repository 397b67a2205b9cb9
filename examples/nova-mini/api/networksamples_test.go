package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/conductor"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/session"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// The network of a smallNeutron, its subnet and its security groups.
const (
	smallNetwork = "3cb9bc59-5699-4588-a4b1-b87f96708bc6" // of Nova's samples
	smallSubnet  = "f8a6e8f8-c2ec-497c-9f23-da9616de54ef"
	smallPort    = "ce531f90-199f-48c0-816c-13e38010b442"
	smallIP      = "192.168.1.3"
	smallDefault = "4e469db4-3b60-43c7-8dfa-2c60e2f27075" // the group default
)

// smallNeutron is a Keystone and a Neutron with one network, private, of each project, and the security groups default and test. Clients may read and change ports.
type smallNeutron struct {
	*network.Neutron

	mu    sync.Mutex
	ports map[string]map[string]any
}

func newSmallNeutron(t *testing.T) *smallNeutron {
	t.Helper()
	type object = map[string]any
	n := &smallNeutron{ports: map[string]map[string]any{}}
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	answer := func(pattern string, status int, reply func(r *http.Request, in object) any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			var in struct{ Port object }
			_ = json.NewDecoder(r.Body).Decode(&in) // a GET has no body
			n.mu.Lock()
			defer n.mu.Unlock()
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("X-Subject-Token", "token")
			out := reply(r, in.Port)
			if out == nil {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(out)
		})
	}
	matching := func(r *http.Request, list []object, names ...string) []object {
		return slices.DeleteFunc(list, func(o object) bool {
			return slices.ContainsFunc(names, func(name string) bool {
				want := r.URL.Query()[name]
				return len(want) > 0 && !slices.Contains(want, fmt.Sprint(o[name]))
			})
		})
	}
	answer("POST /v3/auth/tokens", http.StatusCreated, func(*http.Request, object) any {
		endpoint := object{"interface": "public", "region_id": "r", "url": srv.URL}
		return object{"token": object{"expires_at": "2100-01-01T00:00:00.000000Z", "catalog": []object{{"type": "network", "endpoints": []object{endpoint}}}}}
	})
	answer("GET /v2.0/quotas/{project}", http.StatusOK, func(*http.Request, object) any { return object{"quota": object{"port": -1}} })
	answer("GET /v2.0/networks", http.StatusOK, func(*http.Request, object) any {
		return object{"networks": []object{{"id": smallNetwork, "name": "private", "project_id": "p1", "subnets": []string{smallSubnet}}}}
	})
	answer("GET /v2.0/subnets", http.StatusOK, func(*http.Request, object) any {
		return object{"subnets": []object{{"id": smallSubnet, "network_id": smallNetwork, "cidr": "192.168.1.0/24"}}}
	})
	answer("GET /v2.0/security-groups", http.StatusOK, func(r *http.Request, _ object) any {
		of := func(id, name string) object {
			rule := object{"id": "r-" + id, "security_group_id": id, "direction": "ingress", "ethertype": "IPv4", "protocol": "tcp", "port_range_min": 22, "port_range_max": 22, "remote_ip_prefix": "10.0.0.0/24"}
			return object{"id": id, "name": name, "description": name, "project_id": "p1", "tenant_id": "p1", "security_group_rules": []object{rule}}
		}
		return object{"security_groups": matching(r, []object{of(smallDefault, "default"), of("75deae08-0807-4f7c-a693-b38cabdc9034", "test")}, "id")}
	})
	answer("GET /v2.0/ports", http.StatusOK, func(r *http.Request, _ object) any {
		list := matching(r, slices.AppendSeq([]object{}, maps.Values(n.ports)), "id", "device_id", "network_id")
		if r.URL.Query().Has("fixed_ips") { // asks whether an address is in use
			list = []object{}
		}
		return object{"ports": list}
	})
	answer("GET /v2.0/ports/{id}", http.StatusOK, func(r *http.Request, _ object) any {
		if p := n.ports[r.PathValue("id")]; p != nil {
			return object{"port": p}
		}
		return nil
	})
	answer("POST /v2.0/ports", http.StatusCreated, func(_ *http.Request, in object) any {
		p := object{
			"id": fmt.Sprintf("00000000-0000-4000-8000-%012d", len(n.ports)), "mac_address": "fa:16:3e:4c:2c:30", "status": "ACTIVE", "tenant_id": "p1", "project_id": "p1", "security_groups": []string{smallDefault},
			"fixed_ips": []object{{"subnet_id": smallSubnet, "ip_address": smallIP}},
		}
		maps.Copy(p, in)
		p["fixed_ips"] = []object{{"subnet_id": smallSubnet, "ip_address": smallIP}}
		n.ports[fmt.Sprint(p["id"])] = p
		return object{"port": p}
	})
	answer("PUT /v2.0/ports/{id}", http.StatusOK, func(r *http.Request, in object) any {
		p := n.ports[r.PathValue("id")]
		if ips, ok := in["fixed_ips"].([]any); ok {
			for _, ip := range ips {
				if ip := ip.(object); ip["ip_address"] == nil { //nolint:forcetypeassert // as gophercloud sends it
					ip["ip_address"] = "192.168.1.77"
				}
			}
		}
		maps.Copy(p, in)
		return object{"port": p}
	})
	answer("DELETE /v2.0/ports/{id}", http.StatusNoContent, func(r *http.Request, _ object) any {
		delete(n.ports, r.PathValue("id"))
		return object{}
	})
	var err error
	if n.Neutron, err = network.New(session.Config{AuthURL: srv.URL + "/v3", Username: "u", Password: "p"}); err != nil {
		t.Fatal(err)
	}
	return n
}

// add adds a port of the project p1, of the server with the given id, or of none.
func (n *smallNeutron) add(id, server string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ports[id] = map[string]any{
		"id": id, "network_id": smallNetwork, "device_id": server, "mac_address": "fa:16:3e:4c:2c:30", "status": "ACTIVE", "tenant_id": "p1", "project_id": "p1", "security_groups": []string{smallDefault},
		"fixed_ips": []map[string]any{{"subnet_id": smallSubnet, "ip_address": smallIP}},
	}
}

// remove removes a port.
func (n *smallNeutron) remove(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.ports, id)
}

// TestNetworkSamples: requests and replies about the networks of a server have the names and types of Nova's samples.
func TestNetworkSamples(t *testing.T) {
	t.Parallel()
	samplesOf(t, ".")
	eachNetworkCloud(t, func(c *cloud, neutron *smallNeutron) {
		c.serveInterfaces(c.runConductor(neutron.Neutron))

		const attach = "os-attach-interfaces/"
		for i, tt := range []struct{ version, folder, request, show string }{
			{"2.1", "", "create-net_id-req", ""},
			{"2.1", "", "create-req", ""},
			{"2.49", "v2.49/", "create-req", ""},
			{"2.70", "v2.70/", "create-net_id-req", "v2.70/"},
			{"2.70", "v2.70/", "create-req", "v2.70/"},
		} {
			id := c.addActive(fmt.Sprint("s", i))
			neutron.add(smallPort, "")
			at := "/servers/" + id + "/os-interface"
			name := tt.folder + "attach-interfaces-" + tt.request
			c.compareWith(nil, tt.version, "member", "POST", at, attach+name, attach+tt.folder+"attach-interfaces-create-resp", 200)
			list := c.compareWith(nil, tt.version, "member", "GET", at, "", attach+tt.show+"attach-interfaces-list-resp", 200)
			port, _, _ := strings.Cut(list[strings.Index(list, `"port_id":"`)+len(`"port_id":"`):], `"`)
			c.compareWith(nil, tt.version, "member", "GET", at+"/"+port, "", attach+tt.show+"attach-interfaces-show-resp", 200)
			c.compareWith(nil, tt.version, "member", "GET", "/servers/"+id+"/ips", "", "server-ips/server-ips-resp", 200)
			c.compareWith(nil, tt.version, "member", "GET", "/servers/"+id+"/ips/private", "", "server-ips/server-ips-network-resp", 200)
			c.want(202, tt.version, "member", "DELETE", at+"/"+port, "")
			if reply := c.want(200, tt.version, "member", "GET", at, ""); !strings.Contains(reply, `"interfaceAttachments":[]`) {
				t.Errorf("%s: after the detachment: %s", name, reply)
			}
		}

		id := c.addActive("groups")
		neutron.add(smallPort, id)
		c.exec(`UPDATE servers SET networks = ? WHERE id = ?`, db.JSONOf(&network.Wanted{Interfaces: []network.Interface{{Port: network.Port{ID: smallPort, Network: smallNetwork, NetworkName: "private"}}}}), id)
		const groups, multinic = "os-security-groups/", "os-multinic/multinic-"
		servers := "/servers/" + id
		c.compareWith(nil, "2.1", "member", "GET", "/os-security-groups", "", groups+"security-groups-list-get-resp", 200)
		c.compareWith(nil, "2.1", "member", "GET", "/os-security-groups/"+smallDefault, "", groups+"security-groups-get-resp", 200)
		c.compareWith(nil, "2.1", "member", "GET", servers+"/os-security-groups", "", groups+"server-security-groups-list-resp", 200)
		has := func(what, want string) {
			c.Helper()
			if reply := c.want(200, "2.1", "member", "GET", servers+"/os-security-groups", ""); strings.Contains(reply, `"name":"test"`) != (want == "test") {
				t.Errorf("%s: %s", what, reply)
			}
		}
		c.compareWith(nil, "2.1", "member", "POST", servers+"/action", groups+"security-group-add-post-req", "", 202)
		has("added", "test")
		c.compareWith(nil, "2.1", "member", "POST", servers+"/action", groups+"security-group-remove-post-req", "", 202)
		has("removed", "")
		add := strings.ReplaceAll(sample(t, multinic+"add-fixed-ip-req.json"), "e1882e38-38c2-4239-ade7-35d644cb963a", smallNetwork)
		c.want(202, "2.1", "admin", "POST", servers+"/action", add)
		if reply := c.want(200, "2.1", "member", "GET", servers+"/ips", ""); !strings.Contains(reply, "192.168.1.77") {
			t.Errorf("the added address: %s", reply)
		}
		remove := strings.ReplaceAll(sample(t, multinic+"remove-fixed-ip-req.json"), "10.0.0.4", "192.168.1.77")
		c.want(202, "2.1", "admin", "POST", servers+"/action", remove)
		if reply := c.want(200, "2.1", "member", "GET", servers+"/ips", ""); strings.Contains(reply, "192.168.1.77") {
			t.Errorf("the removed address: %s", reply)
		}

		event := sample(t, "os-server-external-events/event-create-req.json", "test-event", "network-changed", "3df201cf-2451-44f2-8d25-a4ca826fc1f3", id)
		c.sameShape("event", sample(t, "os-server-external-events/event-create-resp.json"), c.want(200, "2.1", "admin", "POST", "/os-server-external-events", event))
		if reply := c.want(400, "2.1", "admin", "POST", "/os-server-external-events", sample(t, "os-server-external-events/event-create-req.json")); !strings.Contains(reply, "test-event") { // Nova refuses its own sample, too
			t.Errorf("an unknown event: %s", reply)
		}
	})
}

// eachNetworkCloud is like eachCloud, with a network service and a host.
func eachNetworkCloud(t *testing.T, f func(c *cloud, n *smallNeutron), change ...func(*api.Config)) {
	t.Helper()
	var all sync.Map // the network service of each cloud, by its store
	eachCloudOf(t, api.Rules(), nil, nil, func(c *cloud) {
		c.Helper()
		n, _ := all.Load(c.store)
		c.addHost()
		f(c, n.(*smallNeutron)) //nolint:forcetypeassert // see all
	}, append(change, func(cfg *api.Config) {
		n := newSmallNeutron(t)
		all.Store(cfg.Store, n)
		cfg.Network = n.Neutron
	})...)
}

// serveInterfaces runs a compute service whose driver succeeds in changing interfaces, until the test ends. It reports to a conductor.
func (c *cloud) serveInterfaces(svc *conductor.Service) {
	c.Helper()
	srv := rpc.NewServer(c.bus, rpc.ServerConfig{Interface: compute.Worker, Host: "n1", Logger: slog.New(slog.DiscardHandler)})
	rpc.Handle(srv, compute.Act, func(ctx context.Context, r *compute.ActRequest) (*rpc.None, error) {
		return svc.EndStep(ctx, &compute.EndStepRequest{StepRequest: compute.StepRequest{Token: r.Token, Host: "n1"}})
	})
	if err := srv.Start(rpctest.Partial(c.Context())); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { _ = srv.Stop(context.Background()) })
}

// runConductor runs a conductor with a network service, until the test ends.
func (c *cloud) runConductor(n conductor.Networks) *conductor.Service {
	c.Helper()
	quiet := slog.New(slog.DiscardHandler)
	client := rpc.NewClient(c.bus, rpc.ClientConfig{Timeout: 2 * time.Second})
	c.Cleanup(func() { client.Close() })
	svc := conductor.New(conductor.Config{Store: c.store, Client: client, Network: n, Host: "c1", Poll: 10 * time.Millisecond, Logger: quiet})
	if err := svc.Runner.Start(c.Context()); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { _ = svc.Runner.Stop(context.Background()) })
	return svc
}

// compareWith sends a request with the body of a sample, and compares the reply with another sample, see compareSample. Both are paths without .json; "": no body, or the reply is not compared.
func (c *cloud) compareWith(allowed map[string]string, version, who, method, path, request, reply string, status int) string {
	c.Helper()
	body := ""
	if request != "" {
		body = sample(c.T, request+".json")
	}
	got := c.want(status, version, who, method, path, body)
	if reply != "" && !c.Failed() {
		want, ok := readSample(c.T, filepath.Join(samplesRoot, reply+".json"))
		if !ok {
			c.Fatalf("the sample %s does not exist", reply)
		}
		compareSample(c.T, version+" "+method+" "+path+" "+reply, want, got, allowed, map[string]bool{})
	}
	return got
}
