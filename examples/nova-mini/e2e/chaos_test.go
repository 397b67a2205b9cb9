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

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
)

// hole is a proxy in front of a broker or a database. In the mode in which it swallows bytes, the proxy forwards nothing and closes
// no connection.
type hole struct {
	to string // the address of the broker or database
	l  net.Listener

	mu   sync.Mutex
	gate chan struct{} // closed while bytes are forwarded
}

// newHole returns a hole in front of the broker or database at a URL, and the URL of the hole.
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

// copy forwards the bytes of one direction, until one of the connections is closed.
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

// swallow makes the hole forward nothing for the duration d, and returns afterwards.
func (h *hole) swallow(d time.Duration) {
	h.mu.Lock()
	gate := make(chan struct{})
	h.gate = gate
	h.mu.Unlock()
	waittest.Spend(d, "the fault of the network")
	close(gate)
}

// chaosPlan is the plan of a chaos run. The field whole is the time for which the cloud is disturbed, and the field every is the interval at which
// a process is killed. The other fields are the numbers of servers, of clients, and of actions on each server.
type chaosPlan struct {
	whole, every            time.Duration
	servers, clients, steps int
}

// chaosLife is the time from the start of a guest that dies to its death.
const chaosLife = 5 * time.Second

// chaosServices are the services, by host name.
var chaosServices = map[string]string{
	"api-1": "api", "api-2": "api", "conductor-1": "conductor", "conductor-2": "conductor", "scheduler-1": "scheduler", "scheduler-2": "scheduler",
	"node-1": "compute", "node-2": "compute", "node-3": "compute", "node-4": "compute",
}

// chaos is a cloud whose processes are killed. It records the answers to the requests of the clients.
type chaos struct {
	*cloud
	chaosPlan

	seed  uint64
	rng   *rand.Rand // used only by the goroutine that kills
	urls  []string   // the URLs of the APIs
	ports map[string]string
	kills int
	// services are the services, by host name.
	services map[string]string
	token    string // of the clients; empty without Keystone

	mu       sync.Mutex
	accepted map[string]bool // ids of servers that must exist
	deleted  map[string]bool // ids of servers whose deletion was accepted
	chosen   map[compute.Action]int
	done     map[compute.Action]int // accepted actions

	killing sync.Mutex   // held while a process is killed and started again
	spared  string       // the host of a process that must not be killed now; guarded by killing
	all     atomic.Int64 // the number of accepted creations
	unknown atomic.Int64 // the number of creations without an answer, which may have created a server
}

// launch starts the process of a host.
func (c *chaos) launch(host string) {
	c.startWith(c.services[host], host, "OS_DEFAULT__OSAPI_COMPUTE_LISTEN_PORT="+c.ports[host])
}

// disturb kills a random process again and again until ctx ends. In between it calls each of the events once.
func (c *chaos) disturb(ctx context.Context, events []func()) {
	hosts := slices.Sorted(func(yield func(string) bool) {
		for h := range c.services {
			if !yield(h) {
				return
			}
		}
	})
	begin, next := time.Now(), 0
	var wg sync.WaitGroup
	defer wg.Wait()
	for tick := time.NewTicker(c.every); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		if next < len(events) && time.Since(begin) > c.whole*time.Duration(next+1)/time.Duration(len(events)+2) {
			wg.Go(events[next])
			next++
		}
		host := hosts[c.rng.IntN(len(hosts))]
		c.replace(host) //nolint:contextcheck // the process continues when ctx has ended
	}
}

// replace kills the process of a host with SIGKILL and starts it again, unless the host is spared.
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

// spare returns the process of a host. The process is not killed before the returned function is called.
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

// try calls the function f with clients of the APIs, in turn from the n-th API, until the answer is not a temporary failure. It returns the last error
// of f.
func (c *chaos) try(ctx context.Context, n int, f func(cl *gophercloud.ServiceClient) error) error {
	for i := n; ; i++ {
		err := f(c.tokenClient(i))
		status, answered := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err)
		if err == nil || answered && (status.Actual < 500 || status.Actual == http.StatusNotImplemented) {
			return err
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tokenClient returns a client of an API with the token of the run.
func (c *chaos) tokenClient(n int) *gophercloud.ServiceClient {
	cl := c.newClient(c.urls[n%len(c.urls)])
	if c.token != "" {
		cl.SetToken(c.token)
	}
	return cl
}

// use creates a server and does random actions on it. The guests of every fourth server die again and again. Every third server is deleted.
func (c *chaos) use(ctx context.Context, n int) {
	name := fmt.Sprintf("chaos-%d", n)
	var id string
	err := c.try(ctx, n, func(cl *gophercloud.ServiceClient) error {
		guest := map[string]string{"fake:spawn": "slow 300ms"}
		if n%4 == 0 {
			guest["fake:dies"] = chaosLife.String()
		}
		s, err := create(ctx, cl, name, "1", guest)
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
	rng := rand.New(rand.NewPCG(c.seed, uint64(n+1)))
	for range c.steps {
		is, err := c.idle(ctx, n, id)
		if err != nil {
			return
		}
		c.act(ctx, n, id, c.choose(rng, is), is)
	}
	if _, err := c.idle(ctx, n, id); err != nil || n%3 != 0 {
		return
	}
	c.mu.Lock()
	delete(c.accepted, id)
	c.mu.Unlock()
	c.act(ctx, n, id, compute.ForceDelete, chaosServer{})
}

// TestChaos: all services run on RabbitMQ and MariaDB. 16 clients create 300 servers and do all actions on them, while every process, the broker and
// the database are killed, and guests die. In the end no accepted server is lost, stuck, built twice or in ERROR, no host has an orphan, and the drivers agree with the API.
// The test runs only with `make chaos`.
func TestChaos(t *testing.T) { //nolint:paralleltest // no other test may use the processor
	whole, err := time.ParseDuration(os.Getenv("ARMATURE_CHAOS"))
	if err != nil {
		t.Skip("run it with make chaos, which sets its duration in ARMATURE_CHAOS")
	}
	broker, database := envtest.RabbitMQ(t), envtest.MariaDB(t)
	busHole, busURL := newHole(t, broker.URL)
	dbHole, dbURL := newHole(t, database.URL)
	c := newChaos(t, chaosPlan{whole: whole, every: 2 * time.Second, servers: 300, clients: 16, steps: 6}, chaosConf, dbURL, busURL)
	for host, service := range chaosServices {
		c.add(host, service)
	}
	c.hostsUp(c.client(c.procs["api-1"]), 4)
	restart := func(what string, kill func(), again func(context.Context) error) func() {
		return func() {
			t.Logf("the %s is killed, and down for 10 s", what)
			kill()
			waittest.Spend(10*time.Second, "the outage")
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
			waittest.Spend(20*time.Second, "the pause of the host")
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
	c.run(events)
	for _, info := range compute.Actions {
		if (info.Request != "" || info.Action == compute.SoftDelete) && chaosRefused[info.Action] == 0 && c.done[info.Action] == 0 {
			t.Errorf("the action %s was never accepted", info.Action)
		}
	}
}

// TestChaosInShort is a chaos run of a few seconds. Only processes of the services are killed.
func TestChaosInShort(t *testing.T) {
	t.Parallel()
	scenario(t)
	c := newChaos(t, chaosPlan{whole: 6 * time.Second, every: time.Second, servers: 10, clients: 5, steps: 4}, chaosConf, envtest.URL(t, testenv.MySQLVar), envtest.URL(t, testenv.AMQPVar))
	for host, service := range map[string]string{"api-1": "api", "conductor-1": "conductor", "scheduler-1": "scheduler", "node-1": "compute", "node-2": "compute"} {
		c.add(host, service)
	}
	c.hostsUp(c.client(c.procs["api-1"]), 2)
	c.run(nil)
}

// newChaos makes a cloud with a configuration and without processes.
func newChaos(t testing.TB, plan chaosPlan, conf, dbURL, busURL string) *chaos {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if _, err := fmt.Sscan(os.Getenv("ARMATURE_CHAOS_SEED"), &seed); err != nil && !errors.Is(err, io.EOF) && os.Getenv("ARMATURE_CHAOS_SEED") != "" {
		t.Fatal(err)
	}
	t.Logf("seed %d, %v", seed, plan.whole)
	return &chaos{
		cloud: newCloudWith(t, "", conf, dbURL, busURL), chaosPlan: plan, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)),
		ports: map[string]string{}, services: map[string]string{}, accepted: map[string]bool{}, deleted: map[string]bool{}, chosen: map[compute.Action]int{}, done: map[compute.Action]int{},
	}
}

// add starts a process.
func (c *chaos) add(host, service string) {
	c.Helper()
	c.services[host], c.ports[host] = service, "0"
	if service == "api" { // the same after every restart
		addr := envtest.FreeAddr(c.TB)
		_, c.ports[host], _ = net.SplitHostPort(addr)
		c.urls = append(c.urls, "http://"+addr)
	}
	c.launch(host)
}

// run lets clients use the cloud while it is disturbed, and judges the result.
func (c *chaos) run(events []func()) {
	c.Helper()
	c.addFlavor()
	begin := time.Now()
	c.storm(events, c.use)
	c.judge(begin)
}

// storm lets clients use the cloud while it is disturbed. It calls the function use with a context and the number of each server, evenly over the time, and returns when every call has returned.
func (c *chaos) storm(events []func(), use func(ctx context.Context, n int)) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), c.whole+2*time.Minute)
	defer cancel()
	calm, end := context.WithCancel(ctx)
	defer end()
	var disturbing, using sync.WaitGroup
	disturbing.Go(func() { c.disturb(calm, events) })
	begin := time.Now()
	for g := range c.clients {
		using.Go(func() {
			for n := g; n < c.servers; n += c.clients {
				select {
				case <-time.After(time.Until(begin.Add(c.whole * time.Duration(n) / time.Duration(c.servers)))):
				case <-ctx.Done():
					return
				}
				use(ctx, n)
			}
		})
	}
	waittest.Pass(c, c.whole, "the cloud is disturbed")
	end()
	disturbing.Wait()
	for host := range c.services { // start every process that has ended
		select {
		case <-c.procs[host].Done():
			c.launch(host)
		default:
		}
	}
	using.Wait()
}

// judge waits until no server has a task, and checks the result.
func (c *chaos) judge(begin time.Time) {
	c.Helper()
	cl := c.newClient(c.urls[0])
	_, stuck := c.awaitNoTasks(cl, softDeleted{}, 2*time.Minute)
	waittest.Pass(c, chaosLife, "the last guests die, and drivers remove the files of the last deleted servers")
	// The deaths are reported within a minute, the longest delay between two reports.
	list := c.everyServer(cl)
	for end := time.Now().Add(time.Minute); len(c.compare(list)) > 0 && time.Now().Before(end); list = c.everyServer(cl) {
		waittest.Pass(c, time.Second, "compute services report guests that have died")
	}
	_, late := c.awaitNoTasks(cl, softDeleted{}, time.Minute)
	stuck += late
	list = c.everyServer(cl)
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
	for host := range c.services {
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
	differ := c.compare(list)
	for _, text := range differ {
		c.Log(text)
	}
	accepted := c.all.Load()
	fmt.Printf("chaos: %v, %d SIGKILLs; %d servers accepted, %d of them deleted, %d creations without an answer; lost %d, stuck %d, doubled %d, orphaned %d, missing on their host %d, ERROR %d, with a driver that differs %d\n",
		time.Since(begin).Round(time.Second), c.kills, accepted, accepted-int64(len(c.accepted)), c.unknown.Load(), lost, stuck, doubled, orphaned, missing, broken, len(differ))
	if lost+stuck+doubled+orphaned+missing+broken+len(differ) > 0 || accepted != int64(c.servers) {
		c.Errorf("want %d servers accepted, and 0 lost, stuck, doubled, orphaned, missing, in ERROR or with a driver that differs", c.servers)
	}
	c.checkRest(cl, list)
	if out, err := c.command("placement", "audit", "--min-age", "0").CombinedOutput(); err != nil {
		c.Errorf("claims differ from the servers: %v\n%s", err, out)
	}
}
