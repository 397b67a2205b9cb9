package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/hypervisors"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/api/apitest"
)

// The program under test is built once for tests, with the race detector, and once for benchmarks, without it.
var (
	raced = sync.OnceValues(func() (string, error) { return build("-race") })
	plain = sync.OnceValues(func() (string, error) { return build() })
	built string // the directory of the built programs

	// replies returns a checker for replies of microversion 2.1. All tests share the checker, because making one may take seconds on a busy machine.
	replies = sync.OnceValues(func() (*apitest.Checker, error) {
		doc, err := api.OpenAPI("2.1")
		if err != nil {
			return nil, err
		}
		return apitest.NewChecker(doc)
	})

	// sim builds the fake driver as a driver program with the name sim, and returns the directory of the program.
	sim = sync.OnceValues(func() (string, error) {
		dir := filepath.Join(built, "plugins")
		return dir, compile(filepath.Join(dir, "armature-compute-sim"), "../../drivers/fake/armature-compute-fake", "-race")
	})
)

func build(flags ...string) (string, error) {
	path := filepath.Join(built, "nova-mini"+strings.Join(flags, ""))
	return path, compile(path, "..", flags...)
}

func compile(path, pkg string, flags ...string) error {
	args := append([]string{"build", "-o", path}, flags...)
	out, err := exec.CommandContext(context.Background(), "go", append(args, pkg)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return err
}

// withSim returns lines of a configuration with which the compute services use the driver program sim.
func withSim(t testing.TB, options string) string {
	t.Helper()
	dir, err := sim()
	if err != nil {
		t.Fatal(err)
	}
	return "compute_driver = sim\nplugin_dir = " + dir + "\n[driver_sim]\n" + options
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "nova-mini-e2e-")
	if err != nil {
		panic(err)
	}
	built = dir
	code := m.Run()
	_ = os.RemoveAll(dir) // only a temporary directory
	os.Exit(code)
}

// cloud is a deployment: a database, a broker, and processes.
type cloud struct {
	testing.TB

	program             string // the path of the program; "": the test builds it
	dir, exchange, conf string
	db                  *sqlx.DB
	busURL              string

	mu    sync.Mutex
	procs map[string]*process
}

// process is a running process of nova-mini.
type process struct {
	*testenv.Process

	name  string
	admin string      // the admin address, in tests that set one
	url   chan string // receives the URL of the API
	log   *safeBuffer
}

// safeBuffer keeps the output of a process. It is safe for concurrent use.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// scenario skips a test that starts processes if -short is set. With -short, only tests that start no processes run, such as
// TestStatements.
func scenario(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes: skipped with -short")
	}
}

// noQuota is a configuration without quotas of a project. The previous release does not know these options.
const noQuota = "[quota]\ninstances = -1\ncores = -1\nram = -1\n[DEFAULT]\n"

// newCloud creates a database and a configuration file, as an operator would.
func newCloud(t testing.TB, extra string) *cloud {
	t.Helper()
	return newCloudOn(t, extra, envtest.URL(t, testenv.MySQLVar), envtest.URL(t, testenv.AMQPVar))
}

// configured returns the URL of a bus in the form of the option transport_url.
func configured(busURL string) string {
	if rest, ok := strings.CutPrefix(busURL, "amqp://"); ok {
		return "rabbit://" + rest
	}
	return busURL
}

// newCloudOn is like newCloud, with the URLs of the database server and of the bus. There are no quotas.
func newCloudOn(t testing.TB, extra, mysqlURL, busURL string) *cloud {
	t.Helper()
	return newCloudWith(t, "", noQuota+extra, mysqlURL, busURL)
}

// newCloudOf is like newCloud, with the path of a program.
func newCloudOf(t testing.TB, program, extra string) *cloud {
	t.Helper()
	return newCloudWith(t, program, extra, envtest.URL(t, testenv.MySQLVar), envtest.URL(t, testenv.AMQPVar))
}

// newCloudWith creates a cloud without processes. The parameter extra has more lines of the configuration.
func newCloudWith(t testing.TB, program, extra, mysqlURL, busURL string) *cloud {
	t.Helper()
	c := &cloud{TB: t, program: program, dir: t.TempDir(), busURL: strings.TrimPrefix(busURL, "watermill-"), exchange: "e2e-" + strings.ToLower(rand.Text()), procs: map[string]*process{}}
	name := "e2e_" + strings.ToLower(rand.Text())
	admin := c.open(mysqlURL + "mysql")
	if _, err := admin.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = admin.ExecContext(context.Background(), "DROP DATABASE "+name) // an error does not matter, because the database server is removed, too
		admin.Close()
	})
	c.conf = filepath.Join(c.dir, "nova.conf")
	conf := fmt.Sprintf(`[DEFAULT]
transport_url = %s
control_exchange = %s
state_path = %s
osapi_compute_listen_port = 0
report_interval = 1
service_down_time = 10
task_retry_interval = 3
debug = true
[api]
auth_strategy = noauth2
[DEFAULT]
%s
[database]
connection = %s%s
`, configured(busURL), c.exchange, c.dir, extra, mysqlURL, name)
	if err := os.WriteFile(c.conf, []byte(lastValues(conf)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.db = c.open(mysqlURL + name)
	t.Cleanup(func() { c.db.Close() })
	if out, err := c.command("db", "sync").CombinedOutput(); err != nil {
		t.Fatalf("db sync: %v: %s", err, out)
	}
	t.Cleanup(func() {
		for _, p := range c.procs {
			p.Kill()
		}
		if t.Failed() {
			c.dump()
		}
	})
	return c
}

// lastValues returns a configuration with only the last value of each option, so that a test may change an option of newCloud. Each option has one line.
func lastValues(conf string) string {
	section := ""
	last := map[string]int{} // the number of the last line of each option
	keys := map[int]string{}
	lines := strings.Split(conf, "\n")
	for i, line := range lines {
		name, _, isOption := strings.Cut(line, "=")
		switch {
		case strings.HasPrefix(line, "["):
			section = line
		case isOption && !strings.HasPrefix(line, "#"):
			keys[i] = section + strings.TrimSpace(name)
			last[keys[i]] = i
		}
	}
	var out []string
	for i, line := range lines {
		if key := keys[i]; key == "" || last[key] == i {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

// confOf writes a copy of the configuration for a release, with more lines of the section DEFAULT, and returns its path.
func (c *cloud) confOf(release, lines string) string {
	c.Helper()
	raw, err := os.ReadFile(c.conf)
	if err != nil {
		c.Fatal(err)
	}
	path := filepath.Join(c.dir, "nova-"+release+".conf")
	if err := os.WriteFile(path, []byte(lastValues(string(raw)+"[DEFAULT]\n"+lines)), 0o600); err != nil {
		c.Fatal(err)
	}
	return path
}

func (c *cloud) open(u string) *sqlx.DB {
	c.Helper()
	d, err := db.Open(c.Context(), db.Config{URL: u})
	if err != nil {
		c.Fatal(err)
	}
	return d
}

// command returns a command of the program, with the configuration of the cloud.
func (c *cloud) command(args ...string) *exec.Cmd {
	c.Helper()
	program := raced
	if _, ok := c.TB.(*testing.B); ok {
		program = plain
	}
	path, err := c.program, error(nil)
	if path == "" {
		path, err = program()
	}
	if err != nil {
		c.Fatal(err)
	}
	return exec.CommandContext(context.Background(), path, append(args, "--config-file", c.conf)...)
}

// start starts a service with the given host name.
func (c *cloud) start(service, host string) *process {
	c.Helper()
	return c.startWith(service, host)
}

// startWith is like start, with options in the environment. An empty service means all services in one process.
func (c *cloud) startWith(service, host string, env ...string) *process {
	c.Helper()
	var args []string
	if service != "" {
		args = append(args, service)
	}
	cmd := c.command(args...)
	cmd.Env = append(append(os.Environ(), "OS_DEFAULT__HOST="+host), env...)
	p := &process{name: host, url: make(chan string, 1), log: &safeBuffer{}}
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, p.log
	go func() { // ends with the process, which closes the pipe below
		in := bufio.NewScanner(r)
		for in.Scan() {
			if at, ok := strings.CutPrefix(in.Text(), "nova-mini listens on "); ok {
				p.url <- at
			}
		}
	}()
	proc, err := testenv.Start(cmd)
	if err != nil {
		c.Fatal(err)
	}
	p.Process = proc
	go func() { <-proc.Done(); w.Close() }()
	c.mu.Lock()
	c.procs[host] = p
	c.mu.Unlock()
	return p
}

// client waits until an API process listens and returns a client for it.
func (c *cloud) client(p *process) *gophercloud.ServiceClient {
	c.Helper()
	select {
	case u := <-p.url:
		return c.newClient(u)
	case <-p.Done():
		c.Fatalf("%s ended: %v\n%s", p.name, p.Err(), p.log)
	case <-time.After(30 * time.Second):
		c.Fatalf("%s does not listen\n%s", p.name, p.log)
	}
	return nil
}

// newClient returns a client of an API. In tests, but not in benchmarks, a reply that differs from the OpenAPI document is
// an error.
func (c *cloud) newClient(u string) *gophercloud.ServiceClient {
	c.Helper()
	p := &gophercloud.ProviderClient{TokenID: "none"}
	if _, ok := c.TB.(*testing.B); !ok {
		checker, err := replies()
		if err != nil {
			c.Fatal(err)
		}
		p.HTTPClient = http.Client{Transport: checker.Transport(http.DefaultTransport)}
	}
	return &gophercloud.ServiceClient{ProviderClient: p, Endpoint: u + "/v2.1/", Type: "compute"}
}

// poll calls f until f returns nil. After the time limit, poll fails the test with f's last error.
func (c *cloud) poll(what string, limit time.Duration, f func() error) {
	c.Helper()
	end := time.After(limit)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-end:
			c.Fatalf("%s: not within %v: %v", what, limit, err)
		case <-tick.C:
		}
	}
}

// dump logs rows of the database and the last lines of the processes' logs.
func (c *cloud) dump() {
	var rows []struct {
		ID, State string
		Task      *string
		Host      *string
		Fault     string
	}
	_ = c.db.Select(&rows, `SELECT s.id, s.vm_state AS state, o.step AS task, s.host, s.fault_message AS fault FROM servers s LEFT JOIN operation_current o ON o.resource = s.id`)
	for _, r := range rows {
		b, _ := json.Marshal(r) //nolint:errchkjson // plain fields
		c.Logf("server %s", b)
	}
	for _, name := range slices.Sorted(maps.Keys(c.procs)) {
		text := c.procs[name].log.String()
		if len(text) > 3000 {
			text = "..." + text[len(text)-3000:]
		}
		c.Logf("log of %s:\n%s", name, text)
	}
}

// hostsUp waits until exactly n hosts are up.
func (c *cloud) hostsUp(cl *gophercloud.ServiceClient, n int) {
	c.Helper()
	c.poll("hosts up", 60*time.Second, func() error {
		pages, err := hypervisors.List(cl, nil).AllPages(c.Context())
		if err != nil {
			return err
		}
		list, err := hypervisors.ExtractHypervisors(pages)
		if err != nil {
			return err
		}
		up := 0
		for _, h := range list {
			if h.State == "up" {
				up++
			}
		}
		if up != n {
			return fmt.Errorf("%d of %d hosts are up", up, n)
		}
		return nil
	})
}

func create(ctx context.Context, cl *gophercloud.ServiceClient, name, flavor string, md map[string]string) (*servers.Server, error) {
	return servers.Create(ctx, cl, servers.CreateOpts{Name: name, FlavorRef: flavor, ImageRef: "cirros", Metadata: md}, nil).Extract()
}

// settled waits until the cloud has exactly the wanted number of servers, and none of them is in BUILD. It returns the servers by status.
func (c *cloud) settled(cl *gophercloud.ServiceClient, want int, limit time.Duration) map[string][]servers.Server {
	c.Helper()
	var by map[string][]servers.Server
	c.poll(fmt.Sprintf("%d servers, none in BUILD", want), limit, func() error {
		pages, err := servers.List(cl, servers.ListOpts{Limit: 25}).AllPages(c.Context())
		if err != nil {
			return err
		}
		list, err := servers.ExtractServers(pages)
		if err != nil {
			return err
		}
		by = map[string][]servers.Server{}
		for _, s := range list {
			by[s.Status] = append(by[s.Status], s)
		}
		if len(list) != want || len(by["BUILD"]) > 0 {
			return fmt.Errorf("%d servers of %d, %d in BUILD, %d ACTIVE, %d ERROR", len(list), want, len(by["BUILD"]), len(by["ACTIVE"]), len(by["ERROR"]))
		}
		return nil
	})
	return by
}

// awaitNoTasks waits until none of the servers of a list has a task, or until the time limit has passed. It returns the servers, and the number of servers with a
// task.
func (c *cloud) awaitNoTasks(cl *gophercloud.ServiceClient, which servers.ListOptsBuilder, limit time.Duration) (list []servers.Server, stuck int) {
	c.Helper()
	for end := time.Now().Add(limit); ; {
		stuck = 0
		pages, err := servers.List(cl, which).AllPages(c.Context())
		if err == nil {
			list, err = servers.ExtractServers(pages)
		}
		for _, s := range list {
			if s.TaskState != "" || s.Status == "BUILD" {
				stuck++
			}
		}
		if err == nil && stuck == 0 || time.Now().After(end) {
			return list, stuck
		}
		waittest.Spend(500*time.Millisecond, "the time between two lists, which cost much")
	}
}
