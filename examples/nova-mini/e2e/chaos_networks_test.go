package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
)

// networkChaos is a chaos run with a real Neutron. Its clients change the interfaces of their servers.
type networkChaos struct {
	*chaos

	beside  *openstack
	neutron *gophercloud.ServiceClient // of an administrator, because members do not see the hosts of ports
	at      *networks.Network

	mu    sync.Mutex
	given map[string]bool // the ports that clients have made
	count map[string]int  // accepted requests, by name
}

// networkStep is a change that clients make to a server, by method, path and body. In a path and a body, the texts PORT and ADDRESS stand for a random port of the server and one of its addresses,
// and NEW for a port that the client has made.
type networkStep struct{ name, method, path, body string }

// networkSteps are the changes of interfaces, and those actions that have an effect on interfaces.
var networkSteps = []networkStep{
	{"attach a network", "POST", "os-interface", `{"interfaceAttachment": {"net_id": "NETWORK"}}`},
	{"attach a port", "POST", "os-interface", `{"interfaceAttachment": {"port_id": "NEW"}}`},
	{"detach", "DELETE", "os-interface/PORT", ``},
	{"addFixedIp", "POST", "action", `{"addFixedIp": {"networkId": "NETWORK"}}`},
	{"removeFixedIp", "POST", "action", `{"removeFixedIp": {"address": "ADDRESS"}}`},
	{"reboot", "POST", "action", `{"reboot": {"type": "HARD"}}`},
	{"rebuild", "POST", "action", `{"rebuild": {"imageRef": "one"}}`},
	{"shelve", "POST", "action", `{"shelve": null}`},
}

// TestNetworkChaos: clients create servers with ports, and attach and detach interfaces, while the processes of nova-mini are killed. In the end each server, its guest and Neutron have the same
// ports; the ports of deleted servers are gone, and the ports that clients have made are left.
func TestNetworkChaos(t *testing.T) { //nolint:paralleltest // no other test may use the processor
	whole, err := time.ParseDuration(os.Getenv("ARMATURE_CHAOS"))
	if err != nil {
		t.Skip("run it with make chaos, which sets its duration in ARMATURE_CHAOS")
	}
	runNetworkChaos(t, chaosPlan{whole: whole / 3, every: 2 * time.Second, servers: int(whole / (4 * time.Second)), clients: 8, steps: 6})
}

func runNetworkChaos(t *testing.T, plan chaosPlan) {
	t.Helper()
	o, conf := besideOpenStack(t, openstackWith{neutron: true, hosts: []string{"node-1", "node-2"}})
	c := &networkChaos{chaos: newChaos(t, plan, chaosConf+"[DEFAULT]\nshelved_offload_time = 0\nreclaim_instance_interval = 0\n"+conf, envtest.URL(t, testenv.MySQLVar), envtest.URL(t, testenv.AMQPVar)), beside: o, given: map[string]bool{}, count: map[string]int{}}
	o.cloud = c.cloud
	project := o.ks.Project("p")
	scope := gophercloud.AuthScope{ProjectID: project}
	o.ks.Grant(o.ks.User("ada"), "admin", scope)
	c.token, c.neutron = o.ks.Token("ada", &scope), o.ks.Networks("ada", project)
	c.at = o.newNetwork(c.neutron, "private", "10.0.0.0/16")
	for host, service := range map[string]string{"api-1": "api", "conductor-1": "conductor", "conductor-2": "conductor", "scheduler-1": "scheduler", "node-1": "compute", "node-2": "compute"} {
		c.add(host, service)
	}
	c.hostsUp(c.tokenClient(0), 2)
	begin := time.Now()
	c.storm(nil, c.useNetworks)
	c.judgeNetworks(begin)
}

// send sends a request of a client until it is answered, and reads the reply into out unless out is nil. A conflict, or an object that is gone, may be the effect of an earlier attempt whose answer
// was lost.
func (c *networkChaos) send(ctx context.Context, n int, what, method string, path []string, body string, out any) error {
	err := c.try(ctx, n, func(cl *gophercloud.ServiceClient) error {
		var content any
		if body != "" {
			content = json.RawMessage(body)
		}
		return chaosRequest(ctx, cl, method, path, content, out)
	})
	if err == nil {
		c.mu.Lock()
		c.count[what]++
		c.mu.Unlock()
	} else if ctx.Err() == nil && !slices.ContainsFunc([]int{http.StatusBadRequest, http.StatusNotFound, http.StatusConflict}, func(status int) bool { return gophercloud.ResponseCodeIs(err, status) }) {
		c.Errorf("%s: %v", what, err)
	}
	return err
}

// portsOf returns the ports that a server shows, with their addresses.
func (c *networkChaos) portsOf(ctx context.Context, n int, id string) (out []chaosPort, err error) {
	var list struct {
		Ports []chaosPort `json:"interfaceAttachments"`
	}
	err = c.send(ctx, n, "list", "GET", []string{"servers", id, "os-interface"}, "", &list)
	return list.Ports, err
}

// chaosPort is an interface in a reply.
type chaosPort struct {
	ID  string `json:"port_id"`
	IPs []struct {
		Address string `json:"ip_address"`
	} `json:"fixed_ips"`
}

// newPort makes a port that no server has, and returns its id.
func (c *networkChaos) newPort(ctx context.Context) string {
	p, err := ports.Create(ctx, c.neutron, ports.CreateOpts{NetworkID: c.at.ID}).Extract()
	if err != nil {
		if ctx.Err() == nil { // otherwise the time of the test has passed
			c.Errorf("make a port: %v", err)
		}
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.given[p.ID] = true
	return p.ID
}

// useNetworks creates a server with one or two interfaces and changes it. Every third server is deleted.
func (c *networkChaos) useNetworks(ctx context.Context, n int) {
	rng := rand.New(rand.NewPCG(c.seed, uint64(n+1)))
	list := `{"uuid": "` + c.at.ID + `"}`
	if n%2 == 0 {
		list += `, {"port": "` + c.newPort(ctx) + `"}`
	}
	var made struct{ Server struct{ ID string } }
	body := fmt.Sprintf(`{"server": {"name": "chaos-%d", "flavorRef": "1", "imageRef": "one", "networks": [%s]}}`, n, list)
	if err := c.send(ctx, n, "create", "POST", []string{"servers"}, body, &made); err != nil {
		return // also if the answer to an earlier attempt was lost, and its server has the port
	}
	id := made.Server.ID
	for range c.steps {
		is, err := c.idle(ctx, n, id)
		if err != nil {
			return
		}
		if is.VM == "shelved_offloaded" {
			_ = c.send(ctx, n, "unshelve", "POST", []string{"servers", id, "action"}, `{"unshelve": null}`, nil) // send reports an error
			continue
		}
		c.change(ctx, rng, n, id)
	}
	if _, err := c.idle(ctx, n, id); err == nil && n%3 == 0 {
		_ = c.send(ctx, n, "delete", "DELETE", []string{"servers", id}, "", nil) // send reports an error
	}
}

// change does a random step on a server.
func (c *networkChaos) change(ctx context.Context, rng *rand.Rand, n int, id string) {
	step := networkSteps[rng.IntN(len(networkSteps))]
	text := strings.NewReplacer("NETWORK", c.at.ID)
	if has, err := c.portsOf(ctx, n, id); err == nil && len(has) > 0 {
		p := has[rng.IntN(len(has))]
		address := "10.0.0.1" // a port may have lost its last address
		if len(p.IPs) > 0 {
			address = p.IPs[rng.IntN(len(p.IPs))].Address
		}
		text = strings.NewReplacer("NETWORK", c.at.ID, "PORT", p.ID, "ADDRESS", address)
	} else if strings.Contains(step.path+step.body, "PORT") || strings.Contains(step.body, "ADDRESS") {
		return
	}
	body := text.Replace(step.body)
	if strings.Contains(body, "NEW") {
		body = strings.ReplaceAll(body, "NEW", c.newPort(ctx))
	}
	_ = c.send(ctx, n, step.name, step.method, append([]string{"servers", id}, strings.Split(text.Replace(step.path), "/")...), body, nil) // send reports an error
}

// judgeNetworks waits until the ports of the servers, of the guests and of Neutron are the same.
func (c *networkChaos) judgeNetworks(begin time.Time) {
	c.Helper()
	_, stuck := c.awaitNoTasks(c.tokenClient(0), servers.ListOpts{}, 2*time.Minute)
	var differ []string
	for end := time.Now().Add(time.Minute); ; {
		if differ = c.compareNetworks(); len(differ) == 0 || time.Now().After(end) {
			break
		}
		waittest.Pass(c, time.Second, "nova-mini cleans up after interrupted changes")
	}
	for _, text := range differ {
		c.Error(text)
	}
	fmt.Printf("chaos of networks: %v, %d SIGKILLs, accepted %v; stuck %d, differences %d\n", time.Since(begin).Round(time.Second), c.kills, c.count, stuck, len(differ))
	if stuck > 0 {
		c.Errorf("%d servers are stuck", stuck)
	}
	for _, step := range networkSteps {
		if c.count[step.name] == 0 && c.servers > 50 {
			c.Errorf("%s was never accepted", step.name)
		}
	}
}

// compareNetworks returns a text for each port that is not the same for a server, its guest and Neutron.
func (c *networkChaos) compareNetworks() (differ []string) {
	c.Helper()
	ctx := c.Context()
	pages, err := ports.List(c.neutron, ports.ListOpts{NetworkID: c.at.ID}).AllPages(ctx)
	if err != nil {
		c.Fatal(err)
	}
	var all []struct {
		ID     string `json:"id"`
		Server string `json:"device_id"`
		Host   string `json:"binding:host_id"`
	}
	if err := ports.ExtractPortsInto(pages, &all); err != nil {
		c.Fatal(err)
	}
	list, _ := c.awaitNoTasks(c.tokenClient(0), servers.ListOpts{}, 0)
	in := map[string][]string{} // the ports in Neutron, by server
	given := maps.Clone(c.given)
	for _, p := range all {
		i := slices.IndexFunc(list, func(s servers.Server) bool { return s.ID == p.Server })
		switch {
		case p.Server == "" && !given[p.ID]:
			differ = append(differ, "the port "+p.ID+" is left without a server")
		case p.Server != "" && i < 0:
			differ = append(differ, "the port "+p.ID+" is left of the server "+p.Server)
		case p.Server != "" && list[i].Host != "" && p.Host != list[i].Host:
			differ = append(differ, fmt.Sprintf("the port %s of %s is bound on %q, and the server is on %q", p.ID, p.Server, p.Host, list[i].Host))
		}
		in[p.Server] = append(in[p.Server], p.ID)
		delete(given, p.ID)
	}
	for id := range given {
		differ = append(differ, "the port "+id+" of a client is gone")
	}
	for _, s := range list {
		if s.Status == "ERROR" {
			differ = append(differ, fmt.Sprintf("%s is in ERROR: %+v", s.ID, s.Fault))
		}
		var shown, guest []string
		has, err := c.portsOf(ctx, 0, s.ID)
		if err != nil {
			differ = append(differ, err.Error())
		}
		for _, p := range has {
			shown = append(shown, p.ID)
		}
		guest = shown
		if raw, err := os.ReadFile(filepath.Join(c.dir, "instances", s.Host, s.ID+".json")); s.Host != "" && err == nil {
			var is compute.Instance
			if err := json.Unmarshal(raw, &is); err != nil {
				c.Fatal(err)
			}
			guest = is.Interfaces
		} else if s.Host != "" {
			differ = append(differ, fmt.Sprintf("%s is missing on %s: %v", s.ID, s.Host, err))
		}
		slices.Sort(shown)
		if ids := slices.Sorted(slices.Values(in[s.ID])); !slices.Equal(shown, ids) || !slices.Equal(slices.Sorted(slices.Values(guest)), ids) {
			differ = append(differ, fmt.Sprintf("%s (%s on %q) shows the ports %v, the guest has %v, and Neutron has %v", s.ID, s.VmState, s.Host, shown, guest, ids))
		}
	}
	return differ
}
