package e2e_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/waittest"
)

// TestAwayLongerThanBuildTimeout: during twelve builds the compute service, or the conductors, are killed or paused for
// longer than the build timeout. In the end every server is either ACTIVE, or in ERROR and removed from its host.
func TestAwayLongerThanBuildTimeout(t *testing.T) {
	t.Parallel()
	scenario(t)
	const timeout = 12 * time.Second // much longer than a build takes beside other tests
	for _, tt := range []struct {
		name    string
		victims [][2]string
		signal  syscall.Signal // SIGKILL: the processes are started again; SIGSTOP: the processes continue
		active  bool           // whether all servers must be ACTIVE in the end
	}{
		{"compute killed", [][2]string{{"compute", "node-1"}}, syscall.SIGKILL, false},
		{"compute paused", [][2]string{{"compute", "node-1"}}, syscall.SIGSTOP, false},
		{"conductors killed", [][2]string{{"conductor", "c-1"}, {"conductor", "c-2"}}, syscall.SIGKILL, true},
		{"conductors paused", [][2]string{{"conductor", "c-1"}, {"conductor", "c-2"}}, syscall.SIGSTOP, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t, fmt.Sprintf("instance_build_timeout = %d\n[driver_fake]\nvcpus = 100\nmemory_mib = 100000\ndisk_gib = 1000\n", int(timeout.Seconds())))
			for _, s := range [][2]string{{"conductor", "c-1"}, {"conductor", "c-2"}, {"scheduler", "s-1"}, {"compute", "node-1"}} {
				c.start(s[0], s[1])
			}
			cl := c.client(c.start("api", "api-1"))
			c.hostsUp(cl, 1)
			const total = 12
			for i := range total {
				if _, err := create(t.Context(), cl, fmt.Sprintf("s%d", i), "1", map[string]string{"fake:spawn": "slow 4s"}); err != nil {
					t.Fatal(err)
				}
			}
			c.poll("the servers to be built", 30*time.Second, func() error {
				var n int
				if err := c.db.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM operation_current WHERE kind = 'server.create' AND step = 'build'`); err != nil || n != total {
					return fmt.Errorf("%d servers are being built: %w", n, err)
				}
				return nil
			})
			waittest.Pass(t, time.Second, "until the driver is in the middle of Spawn")
			for _, v := range tt.victims {
				if err := c.procs[v[1]].Signal(tt.signal); err != nil {
					t.Fatal(err)
				}
			}
			waittest.Pass(t, timeout+4*time.Second, "services are down for longer than the build timeout, by the database's clock")
			for _, v := range tt.victims {
				if tt.signal == syscall.SIGKILL {
					<-c.procs[v[1]].Done()
					c.start(v[0], v[1])
				} else if err := c.procs[v[1]].Signal(syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
			}
			by := c.settled(cl, total, 90*time.Second)
			if tt.active && len(by["ACTIVE"]) != total {
				t.Errorf("%d of %d servers are ACTIVE; faults: %v", len(by["ACTIVE"]), total, faults(by["ERROR"]))
			}
			for _, s := range by["ERROR"] {
				if s.Host != "" {
					t.Errorf("server %s in ERROR is on %s", s.ID, s.Host)
				}
			}
			t.Logf("%d ACTIVE, %d ERROR", len(by["ACTIVE"]), len(by["ERROR"]))
			c.hostsUp(cl, 1)
			c.awaitServersOnHosts(len(by["ACTIVE"]))
			c.consistent(by["ACTIVE"])
		})
	}
}

// awaitServersOnHosts waits until exactly n servers are on the hosts.
func (c *cloud) awaitServersOnHosts(n int) {
	c.Helper()
	c.poll("the hosts to have only the ACTIVE servers", 90*time.Second, func() error {
		if got := len(c.onHosts()); got != n {
			return fmt.Errorf("the hosts have %d servers, want %d", got, n)
		}
		return nil
	})
}
