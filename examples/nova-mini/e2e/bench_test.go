package e2e_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
)

// BenchmarkServers measures the number of servers that 8 concurrent clients can create per second, from the POST until the
// server is ACTIVE. The benchmark runs with all services in one process, with 4 and with 1,000 simulated hosts, and
// with separate processes on RabbitMQ and MariaDB. The hosts have room for all servers. The result should depend little on
// the number of hosts.
func BenchmarkServers(b *testing.B) {
	const room = "[driver_fake]\nvcpus = 100000\nmemory_mib = 100000000\ndisk_gib = 1000000\n"
	for _, hosts := range []int{4, 1000} {
		b.Run(fmt.Sprintf("one process, %d hosts", hosts), func(b *testing.B) {
			c := newCloud(b, room+fmt.Sprintf("hosts = %d\n", hosts))
			p := c.startWith("", "all", "OS_DEFAULT__TRANSPORT_URL=", "OS_DATABASE__CONNECTION=sqlite://"+c.dir+"/nova.db", "OS_DEFAULT__REPORT_INTERVAL=10", "OS_DEFAULT__SERVICE_DOWN_TIME=60")
			cl := c.client(p)
			c.hostsUp(cl, hosts)
			benchServers(b, c, cl, cl)
		})
	}
	b.Run("processes", func(b *testing.B) {
		c := newCloud(b, room)
		for _, s := range [][2]string{
			{"api", "api-1"},
			{"api", "api-2"},
			{"conductor", "c-1"},
			{"scheduler", "s-1"},
			{"scheduler", "s-2"},
			{"compute", "node-1"},
			{"compute", "node-2"},
			{"compute", "node-3"},
		} {
			c.start(s[0], s[1])
		}
		a, z := c.client(c.procs["api-1"]), c.client(c.procs["api-2"])
		c.hostsUp(a, 3)
		benchServers(b, c, a, z)
	})
}

// benchServers creates b.N servers with 8 goroutines, which share the clients.
func benchServers(b *testing.B, c *cloud, clients ...*gophercloud.ServiceClient) {
	b.Helper()
	ids := make(chan string, b.N)
	jobs := make(chan struct{}, b.N)
	for range b.N {
		jobs <- struct{}{}
	}
	close(jobs)
	each := func(f func(cl *gophercloud.ServiceClient)) {
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() { f(clients[g%len(clients)]) })
		}
		wg.Wait()
	}
	b.ResetTimer()
	each(func(cl *gophercloud.ServiceClient) {
		for range jobs {
			s, err := create(b.Context(), cl, "b", "1", nil)
			if err != nil {
				b.Errorf("create: %v", err)
				continue
			}
			ids <- s.ID
		}
	})
	close(ids)
	each(func(cl *gophercloud.ServiceClient) {
		for id := range ids {
			c.poll("server active", time.Minute, func() error {
				s, err := servers.Get(b.Context(), cl, id).Extract()
				if err == nil && s.Status != "ACTIVE" {
					err = fmt.Errorf("server %s is %s", id, s.Status)
				}
				return err
			})
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "servers/s")
	for _, p := range c.procs { // each run has its own cloud
		p.Kill()
	}
}
