package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
)

// TestComponent: a component that armature writes passes its own tests, runs in one process, and runs as six processes on a broker and a
// server of a database. While clients create disks, each of the six is killed and started again. Then each is replaced by the next
// release, one after the other. docs/changing-a-component.md describes this release. Each request that the API has accepted takes
// effect.
func TestComponent(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short: it builds programs; make test runs it")
	}
	dir := filepath.Join(t.TempDir(), "disk")
	if code, out := armature(t, "new", "component", "disk", "--replace", clone(t), "--dir", dir, "--module", "example.org/cloud/disk"); code != 0 {
		t.Fatal(out)
	}
	goTool(t, dir, "vet", "./...")
	goTool(t, dir, "test", "./...")
	goTool(t, dir, "build", "-o", "this", ".")
	writeNextRelease(t, dir)
	goTool(t, dir, "build", "-o", "next", ".")
	t.Run("one process", func(t *testing.T) {
		t.Parallel()
		testOneProcess(t, filepath.Join(dir, "this"))
	})
	t.Run("six processes", func(t *testing.T) {
		t.Parallel()
		testSixProcesses(t, filepath.Join(dir, "this"), filepath.Join(dir, "next"))
	})
}

// heredocs matches the blocks of docs/changing-a-component.md that write or change files.
var heredocs = regexp.MustCompile("(?ms)^```sh\n((?:cat >|git apply).*?)^```$")

// writeNextRelease changes the component as docs/changing-a-component.md says. On that page the component has the name
// backup.
func writeNextRelease(t *testing.T, dir string) {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(clone(t), "docs/changing-a-component.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := heredocs.FindAllStringSubmatch(string(page), -1)
	if len(blocks) < 8 {
		t.Fatalf("the page has only %d blocks that change files", len(blocks))
	}
	for _, b := range blocks {
		commands, _, _ := strings.Cut(strings.NewReplacer("example.org/backup", "example.org/cloud/disk", "backup", "disk", "Backup", "Disk").Replace(b[1]), "go mod tidy")
		cmd := exec.CommandContext(t.Context(), "sh", "-euc", commands)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s\n%v: %s", commands, err, out)
		}
	}
	goTool(t, dir, "mod", "tidy")
	goTool(t, dir, "test", ".")
}

// process is a process of the component that a test replaces.
type process struct {
	t       *testing.T
	service string
	env     []string
	cmd     *exec.Cmd
	log     *syncBuffer
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start starts a program and waits until it is ready.
func (p *process) start(program string) {
	p.t.Helper()
	p.log = new(syncBuffer)
	var args []string
	if p.service != "" {
		args = []string{p.service}
	}
	p.cmd = exec.CommandContext(context.WithoutCancel(p.t.Context()), program, args...)
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = append(os.Environ(), p.env...), p.log, p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	log := p.log
	waittest.Until(p.t, p.service+" to start", func() bool { return strings.Contains(log.String(), "msg=ready") })
}

// end sends a signal and waits for the end. An orderly end has the exit code 0.
func (p *process) end(sig syscall.Signal) {
	p.t.Helper()
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(sig)
	err := p.cmd.Wait()
	if sig != syscall.SIGKILL && err != nil {
		p.t.Errorf("%s: %v\n%s", p.service, err, p.log)
	}
	p.cmd = nil
}

// disk is the resource of the component.
type disk struct{ ID, Status, Host string }

// request sends a request. The status is 0 if there was no answer.
func request(ctx context.Context, method, url, body string) (status int, d disk) {
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, d
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}).Do(r)
	if err != nil {
		return 0, d
	}
	defer res.Body.Close()
	_ = json.NewDecoder(res.Body).Decode(&d) // the reply of an error has no disk
	return res.StatusCode, d
}

func waitStatus(t *testing.T, url, want string) {
	t.Helper()
	var d disk
	waittest.Until(t, url+" to be "+want, func() bool {
		_, d = request(t.Context(), http.MethodGet, url, "")
		return d.Status == want
	})
}

// testOneProcess runs the component as its README.md says: in one process. After kill -9, the next process continues with
// the data.
func testOneProcess(t *testing.T, program string) {
	t.Helper()
	addr := envtest.FreeAddr(t)
	p := &process{t: t, env: []string{"OS_DEFAULT__STATE_PATH=" + t.TempDir(), "OS_DEFAULT__LISTEN=" + addr}}
	p.start(program)
	defer func() { p.end(syscall.SIGTERM) }()
	url := "http://" + addr + "/v1/disks"
	var made []string
	for range 5 {
		status, d := request(t.Context(), http.MethodPost, url, `{"name": "first", "size": 1}`)
		if status != http.StatusAccepted {
			t.Fatal(status)
		}
		made = append(made, d.ID)
	}
	p.end(syscall.SIGKILL)
	p.start(program)
	for _, id := range made {
		waitStatus(t, url+"/"+id, "available")
	}
}

// testSixProcesses runs two processes of each service.
func testSixProcesses(t *testing.T, this, next string) {
	t.Helper()
	addrs := []string{envtest.FreeAddr(t), envtest.FreeAddr(t)}
	shared := []string{
		"OS_DEFAULT__TRANSPORT_URL=" + envtest.URL(t, testenv.AMQPVar), "OS_DEFAULT__CONTROL_EXCHANGE=armature-new", "OS_DATABASE__CONNECTION=" + dbtest.MySQL(t),
		"OS_API__AUTH_STRATEGY=noauth2", "OS_DEFAULT__REPORT_INTERVAL=0.5", "OS_DEFAULT__SERVICE_DOWN_TIME=3", "OS_DEFAULT__STATE_PATH=" + t.TempDir(),
	}
	sync := func(program string) {
		cmd := exec.CommandContext(t.Context(), program, "db", "sync")
		cmd.Env = append(os.Environ(), shared...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("db sync: %v\n%s", err, out)
		}
	}
	sync(this)
	var all []*process
	for i, addr := range addrs {
		for _, service := range []string{"conductor", "worker", "api"} {
			p := &process{t: t, service: service, env: append([]string{fmt.Sprintf("OS_DEFAULT__HOST=host-%d", i), "OS_DEFAULT__LISTEN=" + addr}, shared...)}
			p.start(this)
			all = append(all, p)
		}
	}
	t.Cleanup(func() {
		for _, p := range all {
			p.end(syscall.SIGTERM)
		}
	})
	clients := startClients(t, addrs)
	for _, p := range all { // each is killed, and comes back
		clients.work()
		p.end(syscall.SIGKILL)
		clients.work()
		p.start(this)
	}
	sync(next)
	var verified []string
	for i, p := range all { // and is replaced
		clients.work()
		p.end(syscall.SIGTERM)
		clients.work()
		p.env = append(p.env, "OS_QUOTA__DISKS=-1") // an option of the next release
		p.start(next)
		if i == 2 { // the API is of the next release, and half of the conductors and workers are not
			verified = verify(t, "http://"+addrs[0]+"/v1/disks")
		}
	}
	made := clients.stop()
	waittest.Until(t, "the verifications to succeed", func() bool {
		cmd := exec.CommandContext(t.Context(), next, "operation", "list", "--kind", "disk.verify", "--state", "succeeded", "-o", "json")
		cmd.Env = append(os.Environ(), shared...)
		out, err := cmd.Output()
		var list []any
		return err == nil && json.Unmarshal(out, &list) == nil && len(list) == len(verified)
	})
	for _, id := range made {
		if !slices.Contains(verified, id) { // a verified disk may have the status error: a replaced worker's driver in memory has lost its disks
			waitStatus(t, "http://"+addrs[0]+"/v1/disks/"+id, "available")
		}
	}
	t.Logf("%d disks, %d requests without an answer", len(made), clients.unanswered.Load())
	if len(made) < 30 {
		t.Errorf("only %d requests were accepted", len(made))
	}
}

// verify begins an operation of the next release on a disk of each host, and returns the IDs of these disks.
func verify(t *testing.T, url string) []string {
	t.Helper()
	hosts := map[string]string{} // the id of a disk, by host
	waittest.Until(t, "a disk on each host", func() bool {
		var page struct{ Disks []disk }
		if res, err := http.Get(url + "?status=available"); err == nil { //nolint:noctx // a question
			_ = json.NewDecoder(res.Body).Decode(&page) // an error has no disks
			_ = res.Body.Close()
		}
		for _, d := range page.Disks {
			hosts[d.Host] = d.ID
		}
		return len(hosts) == 2
	})
	for _, id := range hosts {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/"+id+"/verify", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("OpenStack-API-Version", "disk 1.1")
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if res.Body.Close(); res.StatusCode != http.StatusAccepted {
			t.Errorf("verify: %s", res.Status)
		}
	}
	return slices.Collect(maps.Values(hosts))
}

// clients create disks until they are stopped. Each client sends its requests to the two APIs in turn.
type clients struct {
	t          *testing.T
	accepted   atomic.Int64
	unanswered atomic.Int64
	stop       func() []string
}

func startClients(t *testing.T, addrs []string) *clients {
	t.Helper()
	c := &clients{t: t}
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var made []string
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				status, d := request(ctx, http.MethodPost, "http://"+addrs[n%2]+"/v1/disks", `{"name": "one", "size": 1}`)
				switch status {
				case http.StatusAccepted:
					c.accepted.Add(1)
					mu.Lock()
					made = append(made, d.ID)
					mu.Unlock()
				case 0, http.StatusServiceUnavailable:
					c.unanswered.Add(1)
				default:
					if ctx.Err() == nil {
						t.Errorf("a request ended with %d", status)
					}
				}
				waittest.Spend(20*time.Millisecond, "the time between two requests")
			}
		})
	}
	c.stop = func() []string {
		cancel()
		wg.Wait()
		return made
	}
	t.Cleanup(func() { c.stop() })
	return c
}

// work waits until three more requests are accepted.
func (c *clients) work() {
	c.t.Helper()
	want := c.accepted.Load() + 3
	waittest.Until(c.t, "requests to be accepted", func() bool { return c.accepted.Load() >= want })
}
