package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/waittest"
)

// hole is a proxy in front of a broker or a database. While it swallows bytes, it forwards nothing and closes no
// connection.
type hole struct {
	to string
	l  net.Listener

	mu   sync.Mutex
	gate chan struct{} // closed while bytes are forwarded
}

// newHole returns a hole in front of the service at a URL, and the URL of the hole.
func newHole(t *testing.T, raw string) (*hole, string) {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hole{to: u.Host, l: l, gate: make(chan struct{})}
	close(h.gate)
	go func() { // ends with the listener
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := new(net.Dialer).DialContext(context.Background(), "tcp", h.to)
			if err != nil {
				_ = a.Close()
				continue
			}
			go h.copy(a, b)
			go h.copy(b, a)
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
	u.Host = l.Addr().String()
	return h, u.String()
}

func (h *hole) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		h.mu.Lock()
		gate := h.gate
		h.mu.Unlock()
		<-gate
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// swallow forwards nothing for a time.
func (h *hole) swallow(d time.Duration) {
	h.mu.Lock()
	gate := make(chan struct{})
	h.gate = gate
	h.mu.Unlock()
	waittest.Spend(d)
	close(gate)
}

// total is how many servers the clients create.
const total = 300

// chaosServices are the services, by host name.
var chaosServices = map[string]string{
	"api-1": "api", "api-2": "api", "conductor-1": "conductor", "conductor-2": "conductor", "scheduler-1": "scheduler", "scheduler-2": "scheduler",
	"node-1": "compute", "node-2": "compute", "node-3": "compute", "node-4": "compute",
}

// chaos is a cloud whose processes are killed, with a record of the answers that the clients got.
type chaos struct {
	*cloud

	rng   *rand.Rand // used only by the goroutine that kills
	urls  []string   // of the APIs
	ports map[string]string
	kills int

	mu       sync.Mutex
	accepted map[string]bool // ids of servers that must exist
	deleted  map[string]bool // ids of servers whose deletion was accepted

	killing sync.Mutex   // held while a process is killed and started again
	spared  string       // a host that is not killed now; guarded by killing
	all     atomic.Int64 // accepted creations
	unknown atomic.Int64 // creations without an answer, which may have created a server
}

func (c *chaos) launch(host string) {
	c.startWith(chaosServices[host], host, "OS_DEFAULT__OSAPI_COMPUTE_LISTEN_PORT="+c.ports[host])
}

// disturb kills a random process every 2 s until ctx ends. In between it calls each of the events once: kill the broker,
// kill the database, pause a host beyond its lease, swallow all bytes for 25 s.
func (c *chaos) disturb(ctx context.Context, whole time.Duration, events []func()) {
	hosts := slices.Sorted(func(yield func(string) bool) {
		for h := range chaosServices {
			if !yield(h) {
				return
			}
		}
	})
	begin, next := time.Now(), 0
	var wg sync.WaitGroup
	defer wg.Wait()
	for tick := time.NewTicker(2 * time.Second); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		if next < len(events) && time.Since(begin) > whole*time.Duration(next+1)/time.Duration(len(events)+2) {
			wg.Go(events[next])
			next++
		}
		host := hosts[c.rng.IntN(len(hosts))]
		c.replace(host) //nolint:contextcheck // the process continues when ctx has ended
	}
}

// replace kills a process with SIGKILL and starts it again, unless it is spared.
func (c *chaos) replace(host string) {
	c.killing.Lock()
	defer c.killing.Unlock()
	if host == c.spared {
		return
	}
	c.cloud.mu.Lock()
	p := c.procs[host]
	c.cloud.mu.Unlock()
	p.Kill()
	c.kills++
	c.launch(host)
}

// spare returns the process of a host, and protects it from being killed until the returned function is called.
func (c *chaos) spare(host string) (*process, func()) {
	c.killing.Lock()
	defer c.killing.Unlock()
	c.spared = host
	c.cloud.mu.Lock()
	defer c.cloud.mu.Unlock()
	return c.procs[host], func() {
		c.killing.Lock()
		defer c.killing.Unlock()
		c.spared = ""
	}
}

// try calls an API until the answer is not a temporary failure, and returns that answer. A nil error is a success.
func (c *chaos) try(ctx context.Context, n int, f func(cl *gophercloud.ServiceClient) error) error {
	for i := n; ; i++ {
		err := f(c.newClient(c.urls[i%len(c.urls)]))
		status, answered := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err)
		if err == nil || answered && status.Actual < 500 {
			return err
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// use creates a server, and stops, starts and reboots it. Every third server is deleted.
func (c *chaos) use(ctx context.Context, n int) {
	name := fmt.Sprintf("chaos-%d", n)
	var id string
	err := c.try(ctx, n, func(cl *gophercloud.ServiceClient) error {
		s, err := create(ctx, cl, name, "1", map[string]string{"fake:spawn": "slow 300ms"})
		if err == nil {
			id = s.ID
		} else if _, answered := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err); !answered && !errors.Is(err, syscall.ECONNREFUSED) {
			c.unknown.Add(1)
		}
		return err
	})
	if err != nil {
		if ctx.Err() == nil {
			c.Errorf("create %s: %v", name, err)
		}
		return
	}
	c.mu.Lock()
	c.accepted[id] = true
	c.mu.Unlock()
	c.all.Add(1)
	for _, act := range []func(cl *gophercloud.ServiceClient) error{
		func(cl *gophercloud.ServiceClient) error { return servers.Stop(ctx, cl, id).ExtractErr() },
		func(cl *gophercloud.ServiceClient) error { return servers.Start(ctx, cl, id).ExtractErr() },
		func(cl *gophercloud.ServiceClient) error {
			return servers.Reboot(ctx, cl, id, servers.RebootOpts{Type: servers.HardReboot}).ExtractErr()
		},
	} {
		if c.idle(ctx, n, id) != nil {
			return
		}
		// A conflict means that the answer to an earlier attempt was lost, or that the server is in ERROR.
		if err := c.try(ctx, n, act); err != nil && ctx.Err() == nil && !gophercloud.ResponseCodeIs(err, http.StatusConflict) {
			c.Errorf("act on %s: %v", name, err)
		}
	}
	if n%3 == 0 {
		if c.idle(ctx, n, id) != nil {
			return
		}
		c.mu.Lock()
		delete(c.accepted, id)
		c.mu.Unlock()
		err := c.try(ctx, n, func(cl *gophercloud.ServiceClient) error { return servers.Delete(ctx, cl, id).ExtractErr() })
		if err != nil && ctx.Err() == nil && !gophercloud.ResponseCodeIs(err, http.StatusNotFound) {
			c.Errorf("delete %s: %v", name, err)
		}
		if err == nil {
			c.mu.Lock()
			c.deleted[id] = true
			c.mu.Unlock()
		}
	}
}

// idle waits until a server has no task.
func (c *chaos) idle(ctx context.Context, n int, id string) error {
	for {
		var s *servers.Server
		err := c.try(ctx, n, func(cl *gophercloud.ServiceClient) (err error) {
			s, err = servers.Get(ctx, cl, id).Extract()
			return err
		})
		if err != nil || s.TaskState == "" && s.Status != "BUILD" {
			return err
		}
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// TestChaos: all services on RabbitMQ and MariaDB, 16 clients and 300 servers, while every process, the broker and the
// database are killed. No accepted server is lost, stuck, built twice or in ERROR, and no host has an orphan. The test runs
// with `make chaos`.
func TestChaos(t *testing.T) { //nolint:paralleltest // no other test may use the processor
	whole, err := time.ParseDuration(os.Getenv("ARMATURE_CHAOS"))
	if err != nil {
		t.Skip("run it with make chaos, which sets its duration in ARMATURE_CHAOS")
	}
	seed := uint64(time.Now().UnixNano())
	if _, err := fmt.Sscan(os.Getenv("ARMATURE_CHAOS_SEED"), &seed); err != nil && !errors.Is(err, io.EOF) && os.Getenv("ARMATURE_CHAOS_SEED") != "" {
		t.Fatal(err)
	}
	const clients = 16
	t.Logf("seed %d, %v", seed, whole)
	broker, database := envtest.RabbitMQ(t), envtest.MariaDB(t)
	busHole, busURL := newHole(t, broker.URL)
	dbHole, dbURL := newHole(t, database.URL)
	c := &chaos{
		cloud: newCloudOn(t, "[driver_fake]\nmemory_mib = 65536\nvcpus = 256\n", dbURL, busURL), rng: rand.New(rand.NewPCG(seed, 0)), ports: map[string]string{}, accepted: map[string]bool{}, deleted: map[string]bool{},
	}
	for host, service := range chaosServices {
		c.ports[host] = "0"
		if service == "api" { // the same after every restart
			addr := envtest.FreeAddr(t)
			_, c.ports[host], _ = net.SplitHostPort(addr)
			c.urls = append(c.urls, "http://"+addr)
		}
		c.launch(host)
	}
	c.hostsUp(c.client(c.procs["api-1"]), 4)

	restart := func(what string, kill func(), again func(context.Context) error) func() {
		return func() {
			t.Logf("the %s is killed, and down for 10 s", what)
			kill()
			waittest.Spend(10 * time.Second)
			if err := again(t.Context()); err != nil {
				t.Errorf("the %s does not start again: %v", what, err)
			}
		}
	}
	events := []func(){
		restart("broker", broker.Kill, broker.Restart),
		func() {
			t.Log("a host is paused for 20 s")
			p, end := c.spare("node-1")
			defer end()
			if err := p.Signal(syscall.SIGSTOP); err != nil {
				t.Errorf("pause: %v", err)
			}
			waittest.Spend(20 * time.Second)
			if err := p.Signal(syscall.SIGCONT); err != nil {
				t.Errorf("the process ended while it was paused: %v", err)
			}
		},
		restart("database", database.Kill, database.Restart),
		func() {
			t.Log("the broker and the database cannot be reached for 25 s; connections stay open")
			var wg sync.WaitGroup
			wg.Go(func() { busHole.swallow(25 * time.Second) })
			wg.Go(func() { dbHole.swallow(25 * time.Second) })
			wg.Wait()
		},
	}
	// The clients create their servers evenly over the time, and end when every server has had all its actions.
	ctx, cancel := context.WithTimeout(t.Context(), whole+2*time.Minute)
	defer cancel()
	calm, end := context.WithCancel(ctx)
	var disturbing, using sync.WaitGroup
	disturbing.Go(func() { c.disturb(calm, whole, events) })
	begin := time.Now()
	for g := range clients {
		using.Go(func() {
			for n := g; n < total; n += clients {
				select {
				case <-time.After(time.Until(begin.Add(whole * time.Duration(n) / total))):
				case <-ctx.Done():
					return
				}
				c.use(ctx, n)
			}
		})
	}
	waittest.Pass(t, whole, "the cloud is disturbed")
	end()
	disturbing.Wait()
	for host := range chaosServices { // start every process that has ended
		select {
		case <-c.procs[host].Done():
			c.launch(host)
		default:
		}
	}
	using.Wait()

	c.judge(begin)
}

// judge waits until no server has a task, and checks the result.
func (c *chaos) judge(begin time.Time) {
	c.Helper()
	cl := c.newClient(c.urls[0])
	list, stuck := c.awaitNoTasks(cl, 2*time.Minute)
	waittest.Pass(c, 3*time.Second, "drivers remove the files of the last deleted servers")
	lost, broken := 0, 0
	placed := map[string]string{}
	for id := range c.accepted {
		if !slices.ContainsFunc(list, func(s servers.Server) bool { return s.ID == id }) {
			c.Logf("lost: %s", id)
			lost++
		}
	}
	for _, s := range list {
		placed[s.ID] = s.Host
		if s.Status == "ERROR" {
			c.Logf("ERROR: %s: %+v", s.ID, s.Fault)
			broken++
		}
		if s.TaskState != "" || s.Status == "BUILD" {
			c.Logf("stuck: %s: %s, task %q, host %q", s.ID, s.Status, s.TaskState, s.Host)
		}
	}
	for _, s := range list {
		if c.deleted[s.ID] {
			c.Logf("lost: the deletion of %s", s.ID)
			lost++
		}
	}
	doubled, orphaned := 0, 0
	on := map[string][]string{}
	for host := range chaosServices {
		for _, id := range c.instances(host) {
			on[id] = append(on[id], host)
		}
	}
	for id, hosts := range on {
		if len(hosts) > 1 {
			c.Logf("doubled: %s on %v", id, hosts)
			doubled++
		}
		if !slices.Contains(hosts, placed[id]) {
			c.Logf("orphaned: %s on %v, placed on %q", id, hosts, placed[id])
			orphaned++
		}
	}
	missing := 0
	for id, host := range placed {
		if host != "" && !slices.Contains(on[id], host) {
			c.Logf("missing: %s is not on %s", id, host)
			missing++
		}
	}
	accepted := c.all.Load()
	fmt.Printf("chaos: %v, %d SIGKILLs; %d servers accepted, %d of them deleted, %d creations without an answer; lost %d, stuck %d, doubled %d, orphaned %d, missing on their host %d, ERROR %d\n",
		time.Since(begin).Round(time.Second), c.kills, accepted, accepted-int64(len(c.accepted)), c.unknown.Load(), lost, stuck, doubled, orphaned, missing, broken)
	if lost+stuck+doubled+orphaned+missing+broken > 0 || accepted != total {
		c.Errorf("want %d servers accepted, and 0 lost, stuck, doubled, orphaned, missing or in ERROR", total)
	}
	if out, err := c.command("placement", "audit", "--min-age", "0").CombinedOutput(); err != nil {
		c.Errorf("claims differ from the servers: %v\n%s", err, out)
	}
}
