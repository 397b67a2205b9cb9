package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
)

// clockVar is an environment variable of the program that moved builds. The value SECONDS@AFTER moves the clock of the process by SECONDS when
// AFTER seconds have passed since the start of the process.
const clockVar = "ARMATURE_TEST_CLOCK"

// The function moved builds the program with a time.Now that obeys clockVar. The rest of the program is unchanged. The monotonic clock is not changed,
// as when an administrator sets the date.
var moved = sync.OnceValues(func() (string, error) {
	out, err := exec.CommandContext(context.Background(), "go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	raw, err := os.ReadFile(filepath.Join(dir, "time.go"))
	if err != nil {
		return "", err
	}
	const now = "sec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(raw), now) != 1 {
		return "", errors.New("the source of time.Now differs from that of Go 1.26: this test must be adapted")
	}
	changed, added, overlay := filepath.Join(built, "time.go"), filepath.Join(built, "moved.go"), filepath.Join(built, "overlay.json")
	list, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(dir, "time.go"): changed, filepath.Join(dir, "moved.go"): added}})
	if err != nil {
		return "", err
	}
	for path, text := range map[string]string{
		changed: strings.Replace(string(raw), now, now+"\tsec += moved(mono)\n", 1),
		added: `package time

import (
	"sync"
	"syscall"
)

var movedTo = sync.OnceValues(func() (by, after int64) {
	v, _ := syscall.Getenv("` + clockVar + `")
	sign, n := int64(1), int64(0)
	for _, c := range v {
		switch {
		case c == '-':
			sign = -1
		case c == '@':
			by, sign, n = sign*n, 1, 0
		default:
			n = 10*n + int64(c-'0')
		}
	}
	return by, n * int64(Second)
})

func moved(mono int64) int64 {
	if by, after := movedTo(); mono-startNano >= after {
		return by
	}
	return 0
}
`,
		overlay: string(list),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	path := filepath.Join(built, "nova-mini-moved")
	return path, compile(path, "..", "-overlay", overlay)
})

// TestClocks: the clocks of a conductor, a scheduler, the API service and both compute services are set an hour forward or
// back while they work. Then the conductor with the right clock is killed. Every accepted server is built in time, and
// exactly the running services are up.
func TestClocks(t *testing.T) {
	t.Parallel()
	scenario(t)
	program, err := moved()
	if err != nil {
		t.Fatal(err)
	}
	c := newCloud(t, "task_retry_interval = 2\nservice_down_time = 10\n")
	c.program = program
	set := func(service, host, clock string) *process { return c.startWith(service, host, clockVar+"="+clock) }
	api := set("api", "api-1", "-3600@6")
	set("conductor", "right", "0@0")
	set("conductor", "late", "3600@5")
	set("scheduler", "s-1", "-3600@4")
	set("compute", "node-1", "3600@5")
	set("compute", "node-2", "-3600@7")
	cl := c.client(api)
	c.hostsUp(cl, 2)
	begin := time.Now()
	var ids []string
	build := func(n int) {
		t.Helper()
		for range n {
			s, err := create(t.Context(), cl, fmt.Sprintf("s%d", len(ids)), "1", map[string]string{"fake:spawn": "slow 300ms"})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, s.ID)
		}
	}
	// While the clocks move.
	for time.Since(begin) < 10*time.Second {
		build(1)
		c.settled(cl, len(ids), 30*time.Second)
	}
	for host, by := range map[string]time.Duration{"late": time.Hour, "node-2": -time.Hour, "api-1": -time.Hour} { // processes that log during this time
		shows := func(at time.Time) bool {
			return strings.Contains(c.procs[host].log.String(), "time="+at.UTC().Add(by).Format("2006-01-02T15"))
		}
		if !shows(time.Now()) && !shows(begin) {
			t.Errorf("the clock of %s was not changed by %v", host, by)
		}
	}
	// After the clocks have moved.
	build(6)
	c.procs["right"].Kill()
	build(6)
	by := c.settled(cl, len(ids), 60*time.Second)
	if n := len(by["ACTIVE"]); n != len(ids) {
		t.Errorf("%d of %d servers are ACTIVE; faults: %v", n, len(ids), faults(by["ERROR"]))
	}
	c.consistent(by["ACTIVE"])
	for _, id := range ids[:2] {
		if err := servers.Stop(t.Context(), cl, id).ExtractErr(); err != nil {
			t.Error(err)
		}
	}
	c.poll("two servers stopped", 30*time.Second, func() error {
		if off := c.settled(cl, len(ids), 30*time.Second)["SHUTOFF"]; len(off) != 2 {
			return fmt.Errorf("%d servers are stopped", len(off))
		}
		return nil
	})
	c.poll("only the killed conductor to be down", 30*time.Second, func() error {
		got := map[string]string{}
		for _, s := range c.services(cl) {
			got[s.Host] = s.State
		}
		want := map[string]string{"right": "down", "late": "up", "s-1": "up", "node-1": "up", "node-2": "up"}
		for host, state := range want {
			if got[host] != state {
				return fmt.Errorf("%v, want %v", got, want)
			}
		}
		return nil
	})
	c.deleteAll(cl, []string{"node-1", "node-2"})
}
