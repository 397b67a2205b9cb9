package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/releasetest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
)

// TestUpgrade: three processes are replaced by those of the next release, and then by those of this release, while clients request greetings.
// The processes are stopped in one subtest and killed in the other. A request to a running process never fails, each accepted greeting is
// made, each operation of the next release has done the step of the next release, and no stored field is lost.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds programs: left out with -short")
	}
	this, next := releasetest.This(t, "./examples/hello"), releasetest.Next(t, "./examples/hello")
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("kill=%v", kill), func(t *testing.T) {
			t.Parallel()
			testUpgrade(t, this, next, kill)
		})
	}
}

// replaceable is a process of hello whose program can be replaced. The mutex in is locked during a replacement, and read-locked during
// each request to the process.
type replaceable struct {
	host, addr string
	in         sync.RWMutex
	cmd        *exec.Cmd
	log        logBuffer // the log of all programs that have run as this process
}

// logBuffer keeps the output of processes. It is safe for concurrent use.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// text returns the output.
func (b *logBuffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// count returns how many times the output has a text.
func (b *logBuffer) count(text string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.buf.String(), text)
}

func testUpgrade(t *testing.T, this, next string, kill bool) {
	t.Helper()
	bus, database, exchange := envtest.URL(t, testenv.AMQPVar), dbtest.MySQL(t), fmt.Sprintf("hello-upgrade-%d", rand.Uint32())
	processes := make([]*replaceable, 3)
	for i := range processes {
		host := fmt.Sprintf("h%d", i+1)
		p := &replaceable{host: host}
		p.cmd, p.addr = startLogged(t, &p.log, this, host, database, bus, exchange)
		processes[i] = p
	}
	requests := startRequests(t, processes)
	replace := func(p *replaceable, program string) {
		p.in.Lock()
		defer p.in.Unlock()
		if kill {
			_ = p.cmd.Process.Kill() // no error, because the process runs
		} else if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Errorf("%s: %v", p.host, err)
		}
		if err := p.cmd.Wait(); err != nil && !kill {
			t.Errorf("%s ended with %v", p.host, err)
		}
		p.cmd, p.addr = startLogged(t, &p.log, program, p.host, database, bus, exchange)
	}
	requests.awaitMore(t)
	count := func(text string) (n int) {
		for _, p := range processes {
			n += p.log.count(text)
		}
		return n
	}
	// The servers count the methods of the next release. The clients do not, because a killed client does not log the refusals of its last calls.
	for i, p := range processes {
		if n := count("next: served"); n > 0 {
			t.Errorf("%d calls used a method of the next release while only %d of %d processes had the method", n, i, len(processes))
		}
		replace(p, next)
		requests.awaitMore(t)
	}
	waittest.Until(t, "the method of the next release to be used", func() bool { return count("next: served") > 0 })
	used := 0
	for i, p := range processes {
		replace(p, this)
		requests.awaitMore(t)
		if n := count("next: served"); i == 0 {
			used = n
		} else if n > used {
			t.Errorf("%d calls used a method of the next release after %d processes of this release were back", n-used, i)
		}
	}
	places := requests.end()
	last := processes[0]
	replace(last, next) // this process ends the operations that only the next release knows
	if next := judgeUpgrade(t, database, last.addr, places); next == 0 {
		t.Error("no operation of the next release ran")
	}
	early, served := count("next: sent too early"), count("next: served")
	t.Logf("calls of methods of the next release: %d served, %d sent to a process that did not have the method", served, early)
	if early > 0 {
		t.Errorf("%d calls of methods of the next release were sent to a process that did not have the method, want 0", early)
	}
}

// requests are the requests of four clients for greetings.
type requests struct {
	stop    chan struct{}
	once    sync.Once // closes stop
	clients sync.WaitGroup
	mu      sync.Mutex
	places  []string // the paths of the accepted greetings
}

// startRequests starts the clients. A request to a process that is not being replaced must not fail. The clients end with the test, also if it fails before requests.end:
// a client that reports an error after the test would hide why it has failed.
func startRequests(t *testing.T, processes []*replaceable) *requests {
	t.Helper()
	r := &requests{stop: make(chan struct{})}
	t.Cleanup(func() { r.end() })
	for range 4 {
		r.clients.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-r.stop:
					return
				default:
				}
				p := processes[i%len(processes)]
				if !p.in.TryRLock() { // the process is being replaced
					continue
				}
				place, err := requestGreeting(p.addr)
				p.in.RUnlock()
				r.mu.Lock()
				if err == nil {
					r.places = append(r.places, place)
				} else {
					t.Errorf("%s: %v", p.host, err)
				}
				r.mu.Unlock()
				waittest.Spend(50*time.Millisecond, "the time between two requests of a client")
			}
		})
	}
	return r
}

// awaitMore waits until the processes have accepted 40 more requests: ten of each client.
func (r *requests) awaitMore(t *testing.T) {
	t.Helper()
	accepted := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.places)
	}
	before := accepted()
	waittest.Until(t, "40 more requests to be accepted", func() bool { return accepted() >= before+40 })
}

// end ends the clients, and returns the paths of the accepted greetings.
func (r *requests) end() []string {
	r.once.Do(func() { close(r.stop) })
	r.clients.Wait()
	return r.places
}

// TestUpgradeFromLast: three processes of the last release are replaced by those of this release, while clients request greetings. The test
// builds the last release, so it runs only in `make upgrade-test` and `make accept`.
func TestUpgradeFromLast(t *testing.T) {
	t.Parallel()
	if os.Getenv("ARMATURE_UPGRADE_ROUNDS") == "" {
		t.Skip("runs with make upgrade-test and make accept")
	}
	last, this := releasetest.Last(t, "./examples/hello"), releasetest.This(t, "./examples/hello")
	bus, database, exchange := envtest.URL(t, testenv.AMQPVar), dbtest.MySQL(t), fmt.Sprintf("hello-last-%d", rand.Uint32())
	processes := make([]*replaceable, 3)
	for i := range processes {
		p := &replaceable{host: fmt.Sprintf("h%d", i+1)}
		addr := envtest.FreeAddr(t)
		p.addr = "http://" + addr
		p.cmd = startWith(t, &p.log, last, p.host, addr, []string{ // options by their names in the last release
			"OS_DEFAULT__HOST=" + p.host, "OS_DEFAULT__LISTEN=" + addr, "OS_DEFAULT__CONNECTION=" + database, "OS_DEFAULT__TRANSPORT_URL=" + bus, "OS_DEFAULT__CONTROL_EXCHANGE=" + exchange,
		})
		processes[i] = p
	}
	requests := startRequests(t, processes)
	for _, p := range processes {
		requests.awaitMore(t)
		p.in.Lock()
		if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Errorf("%s: %v", p.host, err)
		}
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("%s ended with %v", p.host, err)
		}
		p.cmd, p.addr = startLogged(t, &p.log, this, p.host, database, bus, exchange)
		p.in.Unlock()
	}
	requests.awaitMore(t)
	judgeUpgrade(t, database, processes[0].addr, requests.end())
}

// judgeUpgrade waits until the greetings at all paths are made, and checks the operations. It returns the number of operations of the next
// release.
func judgeUpgrade(t *testing.T, database, addr string, places []string) (ofNext int) {
	t.Helper()
	for _, place := range places {
		waittest.Succeeds(t, place+" to be made", func() error {
			res, err := http.Get(addr + place) //nolint:noctx // a question
			if err != nil {
				return err
			}
			defer res.Body.Close()
			var g Greeting
			if err := json.NewDecoder(res.Body).Decode(&g); err != nil {
				return err
			}
			if g.Text != "Hello, Ada!" {
				return errors.New("not made yet")
			}
			return nil
		})
	}
	d, err := db.Open(t.Context(), db.Config{URL: database})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	waittest.Succeeds(t, "all operations to end", func() error { // a greeting is made before the last step
		var open int
		err := d.GetContext(t.Context(), &open, `SELECT COUNT(*) FROM operations WHERE active IS NOT NULL`)
		if err == nil && open > 0 {
			err = fmt.Errorf("%d have not ended", open)
		}
		return err
	})
	var counts struct {
		Failed, Next, Skipped, Lost int
	}
	err = d.GetContext(t.Context(), &counts, `SELECT
		COUNT(CASE WHEN state <> 'succeeded' THEN 1 END) AS failed,
		COUNT(CASE WHEN kind_version > 0 THEN 1 END) AS next,
		COUNT(CASE WHEN kind_version > 0 AND state = 'succeeded' AND NOT EXISTS (SELECT 1 FROM operation_events e WHERE e.operation_id = operations.id AND e.step = 'next') THEN 1 END) AS skipped,
		COUNT(CASE WHEN input LIKE '%"next"%' AND data <> 'null' AND data NOT LIKE '%"next":"kept"%' THEN 1 END) AS lost
		FROM operations`)
	t.Logf("%d greetings; operations: %+v", len(places), counts)
	if err != nil || counts.Failed+counts.Skipped+counts.Lost > 0 {
		t.Errorf("operations that have failed, have skipped the step of the next release, or have lost a field: %+v, %v; want 0", counts, err)
	}
	if len(places) < 20 {
		t.Errorf("only %d greetings", len(places))
	}
	return counts.Next
}

// requestGreeting sends one request for a greeting, and returns the path of the greeting.
func requestGreeting(addr string) (place string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, addr+"/v1/greetings", strings.NewReader(`{"name": "Ada"}`))
	if err != nil {
		return "", err
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusAccepted {
		text, _ := io.ReadAll(res.Body)
		return "", fmt.Errorf("%s: %s", res.Status, text)
	}
	return res.Header.Get("Location"), nil
}
