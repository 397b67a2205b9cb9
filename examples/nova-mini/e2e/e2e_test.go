// Package e2e_test tests nova-mini as its users and operators use it: the real program as separate processes on a real
// RabbitMQ and MariaDB, with gophercloud, a third-party client.
package e2e_test

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/flavors"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/services"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
)

// TestCloud runs a deployment with two APIs, a conductor, two schedulers and three hosts: on RabbitMQ with built-in drivers,
// and on NATS with driver programs.
func TestCloud(t *testing.T) {
	t.Parallel()
	scenario(t)
	for name, env := range map[string]string{"RabbitMQ": testenv.AMQPVar, "NATS": testenv.NATSVar} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// The hosts have room for exactly 60 servers.
			extra := "[driver_fake]\nmemory_mib = 10240\n"
			if name == "NATS" {
				extra = withSim(t, "memory_mib = 10240\n")
			}
			testCloud(t, newCloudOn(t, extra, envtest.URL(t, testenv.MySQLVar), envtest.URL(t, env)))
		})
	}
}

// TestWatermill: a deployment works over the bus that uses watermill-amqp. At its start, each process logs the limits of this
// bus.
func TestWatermill(t *testing.T) {
	t.Parallel()
	scenario(t)
	c := newCloudOn(t, "", envtest.URL(t, testenv.MySQLVar), "watermill-"+envtest.URL(t, testenv.AMQPVar))
	api := c.start("api", "api-1")
	for service, host := range map[string]string{"conductor": "conductor-1", "scheduler": "scheduler-1", "compute": "node-1"} {
		c.start(service, host)
	}
	cl := c.client(api)
	c.hostsUp(cl, 1)
	const total = 5
	for i := range total {
		if _, err := create(t.Context(), cl, fmt.Sprintf("s%d", i), "1", nil); err != nil {
			t.Fatal(err)
		}
	}
	by := c.settled(cl, total, 60*time.Second)
	if n := len(by["ACTIVE"]); n != total {
		t.Fatalf("%d servers are ACTIVE, want %d; faults: %v", n, total, faults(by["ERROR"]))
	}
	if _, err := servers.ShowConsoleOutput(t.Context(), cl, by["ACTIVE"][0].ID, servers.ShowConsoleOutputOpts{}).Extract(); err != nil {
		t.Errorf("console log, which is a call to the host: %v", err)
	}
	c.deleteAll(cl, []string{"node-1"})
	for host, p := range c.procs {
		if n := strings.Count(p.log.String(), "watermill-amqp started: no error for servers that are down"); n != 1 {
			t.Errorf("%s: %d lines of the log name the limits of the bus, want 1", host, n)
		}
	}
}

func testCloud(t *testing.T, c *cloud) {
	t.Helper()
	hosts := []string{"node-1", "node-2", "node-3"}
	api1, api2 := c.start("api", "api-1"), c.start("api", "api-2")
	c.start("conductor", "conductor-1")
	c.start("scheduler", "scheduler-1")
	c.start("scheduler", "scheduler-2")
	for _, h := range hosts {
		c.start("compute", h)
	}
	cl := []*gophercloud.ServiceClient{c.client(api1), c.client(api2)}
	c.hostsUp(cl[0], len(hosts))

	// 8 concurrent clients create 60 servers. During this time a compute service is killed and started again.
	const total, clients = 60, 8
	var made atomic.Int64
	var once sync.Once
	var wg sync.WaitGroup
	for g := range clients {
		wg.Go(func() {
			for i := g; i < total; i += clients {
				md := map[string]string{"fake:spawn": fmt.Sprintf("slow %dms", 50+i*5)}
				if _, err := create(t.Context(), cl[g%2], fmt.Sprintf("s%d", i), "1", md); err != nil {
					t.Errorf("create: %v", err)
				}
				if made.Add(1) > total/2 {
					once.Do(func() {
						c.procs["node-2"].Kill()
						c.start("compute", "node-2")
					})
				}
			}
		})
	}
	wg.Wait()
	by := c.settled(cl[0], total, 90*time.Second)
	if n := len(by["ACTIVE"]); n != total {
		t.Errorf("%d servers are ACTIVE, want %d; faults: %v", n, total, faults(by["ERROR"]))
	}
	c.consistent(by["ACTIVE"])
	c.allUp(cl[1])
	c.deleteAll(cl[1], hosts)
}

func faults(list []servers.Server) (out []string) {
	for _, s := range list {
		out = append(out, s.Fault.Details)
	}
	return out
}

// services returns the services that the API shows to an operator.
func (c *cloud) services(cl *gophercloud.ServiceClient) []services.Service {
	c.Helper()
	pages, err := services.List(cl, nil).AllPages(c.Context())
	if err != nil {
		c.Fatal(err)
	}
	list, err := services.ExtractServices(pages)
	if err != nil {
		c.Fatal(err)
	}
	return list
}

// allUp checks that all services of testCloud are up.
func (c *cloud) allUp(cl *gophercloud.ServiceClient) {
	c.Helper()
	list := c.services(cl)
	got := map[string]int{}
	for _, s := range list {
		got[s.Binary+" "+s.State+" "+s.Status]++
	}
	want := map[string]int{"nova-conductor up enabled": 1, "nova-scheduler up enabled": 2, "nova-compute up enabled": 3}
	if !maps.Equal(got, want) {
		c.Errorf("services %v, want %v", got, want)
	}
}

// TestDrain: every process gets SIGTERM under load. Each exits with 0, and every accepted server is built after the
// processes have been started again.
func TestDrain(t *testing.T) {
	t.Parallel()
	scenario(t)
	c := newCloud(t, "")
	hosts := []string{"node-1", "node-2", "node-3"}
	all := []struct{ service, host string }{
		{"api", "api-1"},
		{"api", "api-2"},
		{"conductor", "conductor-1"},
		{"scheduler", "scheduler-1"},
		{"scheduler", "scheduler-2"},
		{"compute", "node-1"},
		{"compute", "node-2"},
		{"compute", "node-3"},
	}
	start := func() (clients []*gophercloud.ServiceClient) {
		for _, s := range all {
			c.start(s.service, s.host)
		}
		clients = append(clients, c.client(c.procs["api-1"]), c.client(c.procs["api-2"]))
		c.hostsUp(clients[0], len(hosts))
		return clients
	}
	cl := start()
	stop := make(chan struct{})
	var accepted, refused atomic.Int64
	var wg sync.WaitGroup
	enough := make(chan struct{}, 1000)
	for g := range 4 {
		wg.Go(func() {
			for accepted.Load() < 90 {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := create(t.Context(), cl[g%2], "d", "1", map[string]string{"fake:spawn": "slow 200ms"}); err != nil {
					refused.Add(1)
					select {
					case <-stop:
					case <-time.After(20 * time.Millisecond): // then the request is repeated, because the process may be up soon
					}
					continue
				}
				accepted.Add(1)
				enough <- struct{}{}
			}
		})
	}
	for range 20 {
		<-enough
	}
	for _, s := range all {
		if err := c.procs[s.host].Signal(syscall.SIGTERM); err != nil {
			t.Errorf("signal %s: %v", s.host, err)
		}
	}
	for _, s := range all {
		p := c.procs[s.host]
		select {
		case <-p.Done():
			if code := p.ExitCode(); code != 0 {
				t.Errorf("%s exited with %d:\n%s", s.host, code, p.log)
			}
		case <-time.After(60 * time.Second):
			t.Errorf("%s did not end", s.host)
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("%d accepted, %d refused", accepted.Load(), refused.Load())
	cl = start()
	by := c.settled(cl[0], int(accepted.Load()), 60*time.Second)
	if n := len(by["ACTIVE"]); n != int(accepted.Load()) {
		t.Errorf("%d of %d accepted servers are ACTIVE; faults: %v", n, accepted.Load(), faults(by["ERROR"]))
	}
	c.consistent(by["ACTIVE"])
	c.deleteAll(cl[1], hosts)
}

// TestReschedule: after a failed build the server is built on another host; at most three hosts are tried. If no host has
// room, the server is in ERROR, and the details of its fault have the rejection reasons with the number of hosts for each.
func TestReschedule(t *testing.T) {
	t.Parallel()
	scenario(t)
	c := newCloud(t, "")
	for _, s := range [][2]string{{"api", "api-1"}, {"conductor", "c-1"}, {"scheduler", "s-1"}, {"compute", "node-1"}, {"compute", "node-2"}, {"compute", "node-3"}, {"compute", "node-4"}} {
		c.start(s[0], s[1])
	}
	cl := c.client(c.procs["api-1"])
	c.hostsUp(cl, 4)
	must := func(name, flavor string, md map[string]string) string {
		s, err := create(t.Context(), cl, name, flavor, md)
		if err != nil {
			t.Fatal(err)
		}
		return s.ID
	}
	second := must("second", "1", map[string]string{"fake:spawn": "fail on node-1,node-2"})
	never := must("never", "1", map[string]string{"fake:spawn": "fail"})
	huge, err := flavors.Create(t.Context(), cl, flavors.CreateOpts{Name: "huge", RAM: 1 << 20, VCPUs: 1, Disk: new(1)}).Extract()
	if err != nil {
		t.Fatal(err)
	}
	c.settled(cl, 2, 30*time.Second)
	disable(t, cl, "node-4")
	none := must("none", huge.ID, nil)
	c.settled(cl, 3, 30*time.Second)
	for _, tt := range []struct{ id, status, says, details string }{
		{second, "ACTIVE", "", ""},
		{never, "ERROR", "Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures for instance " + never + ".", "tried [node-"},
		{none, "ERROR", "No valid host was found. There are not enough hosts available.", "No valid host was found. 0 of 4 hosts: 3 MEMORY_MB (too little memory is free), 1 disabled (an operator has disabled the compute service)"},
	} {
		s, err := servers.Get(t.Context(), cl, tt.id).Extract()
		if err != nil {
			t.Fatal(err)
		}
		if s.Status != tt.status || s.Fault.Message != tt.says || !strings.Contains(s.Fault.Details, tt.details) {
			t.Errorf("%s: status %s, fault %+v; want %s, %q, %q", s.Name, s.Status, s.Fault, tt.status, tt.says, tt.details)
		}
		if tt.status == "ACTIVE" && s.Host != "node-3" && s.Host != "node-4" {
			t.Errorf("%s is on %s", s.Name, s.Host)
		}
	}
	c.deleteAll(cl, nil)
}

// TestDriverCrashes: a driver program that dies during a build, before or after the effect, is restarted by its compute
// service, and the build succeeds on the same host. A server that the driver cannot build is built on another host.
func TestDriverCrashes(t *testing.T) {
	t.Parallel()
	scenario(t)
	c := newCloud(t, withSim(t, "plugin_max_crashes = 1000\n"))
	for _, s := range [][2]string{{"api", "api-1"}, {"conductor", "c-1"}, {"scheduler", "s-1"}, {"compute", "node-1"}, {"compute", "node-2"}} {
		c.start(s[0], s[1])
	}
	cl := c.client(c.procs["api-1"])
	c.hostsUp(cl, 2)
	kinds := []string{"crash 1", "crash after 1", "slow 100ms; crash 1", "crash 1 on node-1; fail Exhausted on node-1"}
	for i, how := range kinds {
		md := map[string]string{"fake:spawn": how}
		if i == 0 {
			md["fake:destroy"] = "crash 1"
		}
		if _, err := create(t.Context(), cl, how, "1", md); err != nil {
			t.Fatal(err)
		}
	}
	by := c.settled(cl, len(kinds), 60*time.Second)
	if n := len(by["ACTIVE"]); n != len(kinds) {
		t.Errorf("%d of %d servers are ACTIVE; faults: %v", n, len(kinds), faults(by["ERROR"]))
	}
	for _, s := range by["ACTIVE"] {
		if strings.Contains(s.Name, "Exhausted") && s.Host != "node-2" {
			t.Errorf("%s is on %s", s.Name, s.Host)
		}
	}
	c.consistent(by["ACTIVE"])
	c.deleteAll(cl, []string{"node-1", "node-2"})
}

// disable disables a compute service with the request of microversion 2.1, which gophercloud no longer supports.
func disable(t *testing.T, cl *gophercloud.ServiceClient, host string) {
	t.Helper()
	var out map[string]any
	resp, err := cl.Put(t.Context(), cl.Endpoint+"os-services/disable", map[string]string{"host": host, "binary": "nova-compute"}, &out,
		&gophercloud.RequestOpts{OkCodes: []int{http.StatusOK}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}
