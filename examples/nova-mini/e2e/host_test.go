package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
)

// node is a compute service together with its admin address.
type node struct {
	*process

	c     *cloud
	admin string    // the admin address
	began time.Time // the time of the start
}

// startNode starts a compute service of host node-1 with a state path. An empty service means all services in one process.
func (c *cloud) startNode(service, name, state string, env ...string) *node {
	c.Helper()
	n := &node{c: c, admin: envtest.DeadAddr(c), began: time.Now()}
	n.process = c.startWith(service, name, append([]string{"OS_DEFAULT__HOST=node-1", "OS_DEFAULT__STATE_PATH=" + state, "OS_DEFAULT__ADMIN_LISTEN=" + n.admin}, env...)...)
	return n
}

// readyz returns the status and the text of /readyz at the admin address.
func (n *node) readyz() (int, string, error) {
	resp, err := http.Get("http://" + n.admin + "/readyz") //nolint:noctx // on loopback
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// ready waits until the process is ready, and returns how long that took since its start.
func (n *node) ready(limit time.Duration) time.Duration {
	n.c.Helper()
	n.c.poll(n.name+" to be ready", limit, func() error {
		status, body, err := n.readyz()
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
	return time.Since(n.began)
}

// refused waits until the process is not ready, and checks that both /readyz and the log name another process, the holder, as the owner of the host.
func (n *node) refused(holder *node) {
	n.c.Helper()
	want := fmt.Sprintf("process %d on machine ", holder.PID())
	n.c.poll(n.name+" to be refused", 20*time.Second, func() error {
		select {
		case <-n.Done():
			n.c.Fatalf("%s ended: %v\n%s", n.name, n.Err(), n.log)
		default:
		}
		status, body, err := n.readyz()
		if err == nil && (status != http.StatusServiceUnavailable || !strings.Contains(body, want)) {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
	for line := range strings.Lines(n.log.String()) {
		if strings.Contains(line, "level=WARN") && strings.Contains(line, want) && strings.Contains(line, "option") {
			return
		}
	}
	n.c.Errorf("the log of %s has no warning with %q and the option:\n%s", n.name, want, n.log)
}

// TestHostOfTwo: if several processes have the same host, only one of them owns the host. A second process with the same state path, on
// a clone of the machine, or with another state path is not ready, names the owner, and receives neither casts nor calls.
// A killed process owns the host at once after its restart. The process of a newly installed machine owns the host after an
// operator has removed the member of the old machine.
func TestHostOfTwo(t *testing.T) {
	t.Parallel()
	scenario(t)
	for name, env := range map[string]string{"RabbitMQ": testenv.AMQPVar, "NATS": testenv.NATSVar} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCloudOn(t, "", envtest.URL(t, testenv.MySQLVar), envtest.URL(t, env))
			down := "OS_DEFAULT__SERVICE_DOWN_TIME=600" // long, so that no step here depends on it
			for _, s := range [][2]string{{"conductor", "c-1"}, {"scheduler", "s-1"}} {
				c.startWith(s[0], s[1], down)
			}
			cl := c.client(c.startWith("api", "api-1", down))
			state, clone, fresh := filepath.Join(c.dir, "state"), filepath.Join(c.dir, "clone"), filepath.Join(c.dir, "fresh")
			first := c.startNode("compute", "first", state)
			first.ready(60 * time.Second)
			if err := os.CopyFS(clone, os.DirFS(state)); err != nil {
				t.Fatal(err)
			}
			others := []*node{c.startNode("compute", "same path", state), c.startNode("compute", "clone", clone), c.startNode("compute", "other path", fresh)}
			for _, n := range others {
				n.refused(first)
			}
			c.hostsUp(cl, 1)

			const total = 12
			for i := range total {
				if _, err := create(t.Context(), cl, fmt.Sprintf("s%d", i), "1", nil); err != nil {
					t.Fatal(err)
				}
			}
			by := c.settled(cl, total, 60*time.Second)
			if n := len(by["ACTIVE"]); n != total {
				t.Errorf("%d of %d servers are ACTIVE; faults: %v", n, total, faults(by["ERROR"]))
			}
			for _, s := range by["ACTIVE"] { // to read the console is a call to the host
				if err := servers.ShowConsoleOutput(t.Context(), cl, s.ID, servers.ShowConsoleOutputOpts{}).Err; err != nil {
					t.Errorf("the console of server %s: %v", s.ID, err)
				}
			}
			for dir, want := range map[string]int{state: total, clone: 0, fresh: 0} {
				if got, err := filepath.Glob(filepath.Join(dir, "instances", "node-1", "*.json")); len(got) != want || err != nil {
					t.Errorf("%s has %d servers, want %d", dir, len(got), want)
				}
			}
			for _, n := range others {
				if s := n.log.String(); strings.Contains(s, "step done") || strings.Contains(s, "no longer wanted") {
					t.Errorf("%s has received a message:\n%s", n.name, s)
				}
				n.Kill()
			}

			// A killed process owns the host at once after its restart, long before its member is down.
			first.Kill()
			again := c.startNode("compute", "again", state)
			t.Logf("ready again %v after the start", again.ready(30*time.Second))
			if strings.Contains(again.log.String(), "waiting for a part") {
				t.Errorf("the restarted service has waited:\n%s", again.log)
			}

			// A newly installed machine has another state path.
			again.Kill()
			installed := c.startNode("compute", "installed", filepath.Join(c.dir, "installed"))
			installed.refused(again)
			remove := func(flags ...string) (string, error) {
				cmd := c.command(append([]string{"member", "remove", "nova-compute", "node-1"}, flags...)...)
				cmd.Env = append(os.Environ(), down)
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			if out, err := remove(); err == nil || !strings.Contains(out, "is up") || !strings.Contains(out, "--force") {
				t.Errorf("member remove of a member that is up: %v %s", err, out)
			}
			if out, err := remove("--force"); err != nil {
				t.Errorf("member remove --force: %v %s", err, out)
			}
			installed.ready(30 * time.Second)

			// A process that is stopped releases its host at once.
			if err := installed.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			<-installed.Done()
			last := c.startNode("compute", "last", filepath.Join(c.dir, "last"))
			last.ready(30 * time.Second)
			if strings.Contains(last.log.String(), "waiting for a part") {
				t.Errorf("the last service has waited:\n%s", last.log)
			}
		})
	}
}

// TestHostReplaced: a process that is paused longer than service_down_time loses its host to a waiting process. After the
// pause, the first process receives no message and ends with exit code 1. The last line of its log names the new owner.
func TestHostReplaced(t *testing.T) {
	t.Parallel()
	scenario(t)
	for name, env := range map[string]string{"RabbitMQ": testenv.AMQPVar, "NATS": testenv.NATSVar} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCloudOn(t, "", envtest.URL(t, testenv.MySQLVar), envtest.URL(t, env))
			for _, s := range [][2]string{{"conductor", "c-1"}, {"scheduler", "s-1"}} {
				c.startWith(s[0], s[1], "OS_DEFAULT__SERVICE_DOWN_TIME=4")
			}
			cl := c.client(c.start("api", "api-1"))
			state, fresh := filepath.Join(c.dir, "state"), filepath.Join(c.dir, "fresh")
			first := c.startNode("compute", "first", state)
			first.ready(60 * time.Second)
			second := c.startNode("compute", "second", fresh)
			second.refused(first)
			if err := first.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			second.ready(60 * time.Second)
			if err := first.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			select {
			case <-first.Done():
			case <-time.After(60 * time.Second):
				t.Fatalf("the first process does not end:\n%s", first.log)
			}
			lines := strings.Split(strings.TrimSpace(first.log.String()), "\n")
			if last := lines[len(lines)-1]; first.ExitCode() != 1 || !strings.Contains(last, "option host") || !strings.Contains(last, fmt.Sprintf("process %d on machine", second.PID())) {
				t.Errorf("exit code %d, and the last line is %q; want 1, the option, and the process", first.ExitCode(), last)
			}
			c.hostsUp(cl, 1)
			const total = 4
			for i := range total {
				if _, err := create(t.Context(), cl, fmt.Sprintf("s%d", i), "1", nil); err != nil {
					t.Fatal(err)
				}
			}
			c.settled(cl, total, 60*time.Second)
			if got, err := filepath.Glob(filepath.Join(fresh, "instances", "node-1", "*.json")); len(got) != total || err != nil {
				t.Errorf("the second process has %d servers, want %d", len(got), total)
			}
		})
	}
}

// TestHostKeptInOutage: while the broker restarts, no process has consumers, but a waiting clone does not get the host.
func TestHostKeptInOutage(t *testing.T) {
	t.Parallel()
	scenario(t)
	broker := envtest.NATS(t)
	c := newCloudOn(t, "", envtest.URL(t, testenv.MySQLVar), broker.URL)
	for _, s := range [][2]string{{"conductor", "c-1"}, {"scheduler", "s-1"}} {
		c.startWith(s[0], s[1], "OS_DEFAULT__SERVICE_DOWN_TIME=600")
	}
	state, clone := filepath.Join(c.dir, "state"), filepath.Join(c.dir, "clone")
	first := c.startNode("compute", "first", state)
	first.ready(60 * time.Second)
	if err := os.CopyFS(clone, os.DirFS(state)); err != nil {
		t.Fatal(err)
	}
	second := c.startNode("compute", "second", clone)
	second.refused(first)
	broker.Kill()
	c.poll("the first process to be not ready", 30*time.Second, func() error {
		status, body, err := first.readyz()
		if err == nil && status != http.StatusServiceUnavailable {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
	if err := broker.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	first.ready(60 * time.Second)
	second.refused(first)
	get := func() (at time.Time) {
		if err := c.db.GetContext(t.Context(), &at, `SELECT seen_at FROM members WHERE kind = 'nova-compute'`); err != nil {
			t.Fatal(err)
		}
		return at
	}
	heartbeat := get()
	c.poll("a heartbeat of the first process", 30*time.Second, func() error {
		if at := get(); !at.After(heartbeat) {
			return fmt.Errorf("the last heartbeat was at %v", at)
		}
		return nil
	})
	second.refused(first)
}

// TestHostAllInOne: all services run in one process with a database file. A second process with the same state path is not
// ready and gives the reason. A process that replaces a killed one is ready.
func TestHostAllInOne(t *testing.T) {
	t.Parallel()
	scenario(t)
	c := newCloud(t, "")
	if err := os.WriteFile(c.conf, []byte("[DEFAULT]\nosapi_compute_listen_port = 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(c.dir, "state")
	first := c.startNode("", "first", state)
	first.ready(60 * time.Second)
	second := c.startNode("", "second", state)
	second.refused(first)
	first.Kill()
	second.ready(30 * time.Second)
	second.Kill()
	third := c.startNode("", "third", state)
	third.ready(30 * time.Second)
	if strings.Contains(third.log.String(), "waiting for a part") {
		t.Errorf("the third service has waited:\n%s", third.log)
	}
}

// TestFailingDriver: while a driver's Info fails, the service is not ready, logs the reason in one line, keeps running, and
// receives no message. It becomes ready when the driver answers.
func TestFailingDriver(t *testing.T) {
	t.Parallel()
	scenario(t)
	c := newCloud(t, withSim(t, "fault_info = fail 4\n"))
	for _, s := range [][2]string{{"conductor", "c-1"}, {"scheduler", "s-1"}} {
		c.start(s[0], s[1])
	}
	n := c.startNode("compute", "node-1", filepath.Join(c.dir, "state"))
	seen := false
	c.poll("the service to be not ready, then ready", 60*time.Second, func() error {
		status, body, err := n.readyz()
		if err == nil && status == http.StatusServiceUnavailable && strings.Contains(body, "read the resources of host node-1 from the driver") {
			seen = true
		}
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
	warned := 0
	for line := range strings.Lines(n.log.String()) {
		if strings.Contains(line, "read the resources of host") {
			warned++
			if !strings.Contains(line, "level=WARN") || !strings.Contains(line, "compute_driver") {
				t.Errorf("the line is %s", line)
			}
		}
	}
	if !seen || warned != 1 {
		t.Errorf("the service was not ready because of its driver: %v, with %d lines:\n%s", seen, warned, n.log)
	}
}

// TestSignalWhileDriverStarts: SIGTERM ends the service at once, even while a driver program starts. No process is left.
func TestSignalWhileDriverStarts(t *testing.T) {
	t.Parallel()
	scenario(t)
	plugins, temp := t.TempDir(), t.TempDir()
	ran := filepath.Join(temp, "ran")
	if err := os.WriteFile(filepath.Join(plugins, "armature-compute-slow"), []byte("#!/bin/sh\necho $$ > "+ran+"\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := newCloud(t, "compute_driver = slow\nplugin_dir = "+plugins+"\n")
	n := c.startNode("compute", "node-1", filepath.Join(c.dir, "state"), "TMPDIR="+temp)
	c.poll("the driver to start", 30*time.Second, func() error { _, err := os.Stat(ran); return err })
	began := time.Now()
	if err := n.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-n.Done():
	case <-time.After(20 * time.Second):
		t.Fatalf("the process does not end:\n%s", n.log)
	}
	if took := time.Since(began); n.ExitCode() != 0 || took > 5*time.Second {
		t.Errorf("exit code %d after %v; want 0 within 5 s:\n%s", n.ExitCode(), took, n.log)
	}
	if left, err := filepath.Glob(filepath.Join(temp, "driver-*")); len(left) > 0 || err != nil {
		t.Errorf("the driver's directories are left: %v", left)
	}
}
