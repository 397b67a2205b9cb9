package e2e_test

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"

	"github.com/armature-go/armature/internal/compare"
)

// room makes a host large enough for all servers of a benchmark.
const room = "[driver_fake]\nvcpus = 100000\nmemory_mib = 100000000\ndisk_gib = 1000000\n"

// BenchmarkHosts compares one process with all services and 4 simulated hosts with one that has 1,000: servers until they are ACTIVE, and the start of the process until all
// hosts are up. The benchmark ignores -benchtime. Set the duration with -args -rounds and -slice.
func BenchmarkHosts(b *testing.B) {
	var creates, starts []compare.Contender
	for _, hosts := range []int{4, 1000} {
		name := fmt.Sprintf("%d hosts", hosts)
		begin := func(c *cloud, host, database string) *gophercloud.ServiceClient {
			p := c.startWith("", host, "OS_DEFAULT__TRANSPORT_URL=", "OS_DATABASE__CONNECTION=sqlite://"+database, "OS_DEFAULT__REPORT_INTERVAL=10", "OS_DEFAULT__SERVICE_DOWN_TIME=60")
			cl := c.client(p)
			c.hostsUp(cl, hosts)
			return cl
		}
		c := newCloud(b, room+fmt.Sprintf("hosts = %d\n", hosts))
		cl := begin(c, "all", c.dir+"/nova.db")
		creates = append(creates, compare.Contender{Name: name, Op: func() {
			s, err := create(b.Context(), cl, "b", "1", nil)
			if err != nil {
				b.Error(err)
				return
			}
			c.poll("server active", time.Minute, func() error {
				s, err := servers.Get(b.Context(), cl, s.ID).Extract()
				if err == nil && s.Status != "ACTIVE" {
					err = fmt.Errorf("server %s is %s", s.ID, s.Status)
				}
				return err
			})
		}})
		other := newCloud(b, room+fmt.Sprintf("hosts = %d\n", hosts)) // a process locks its hosts in the state path
		starts = append(starts, compare.Contender{Name: name, Op: func() {
			begin(other, "all", filepath.Join(b.TempDir(), "nova.db"))
			other.procs["all"].Kill()
		}})
	}
	w := compare.New()
	w.Row("create in one process until ACTIVE", 16, creates...)
	w.Row("start of one process until all hosts are up", 1, starts...)
}

// BenchmarkServers measures the number of servers that 8 concurrent clients can create per second in separate processes on RabbitMQ and MariaDB, from the POST until the
// server is ACTIVE. The hosts have room for all servers.
func BenchmarkServers(b *testing.B) {
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
