package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/drivers/acme"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/internal/waittest"
)

func TestMain(m *testing.M) {
	if os.Getenv("ARMATURE_DRIVER") != "" { // a tested service has started this binary as its driver
		driver.Serve(compute.Kind, acme.Open)
		return
	}
	goleak.VerifyTestMain(m)
}

// output keeps the output of the program. After each write, it sends a value on the channel named more.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, err := o.buf.Write(p)
	select {
	case o.more <- struct{}{}:
	default: // the channel is full: the reader will read this write together with the last one
	}
	return n, err
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// TestGreeting runs all services in one process, and then the commands that this process prints for its users, exactly as printed.
func TestGreeting(t *testing.T) { //nolint:paralleltest // the program sets the default logger
	admin := filepath.Join(t.TempDir(), "admin")
	t.Setenv("OS_DEFAULT__ADMIN_LISTEN", "unix:"+admin)
	t.Setenv("OS_DEFAULT__DEBUG", "true")
	out := &output{more: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var log string
	var err error
	wg.Go(func() {
		log, err = runLogged(ctx, out, "--port", "0", "--state-path", t.TempDir())
	})
	defer func() {
		cancel()
		wg.Wait()
		if err != nil {
			t.Errorf("nova-mini ended with %v", err)
		}
		if !strings.Contains(log, `part="conductor rpc"`) || strings.Contains(log, `part="operation rpc"`) || strings.Contains(log, `part="member rpc"`) {
			t.Errorf("the interfaces are not conductor, scheduler and compute:\n%s", log)
		}
	}()
	select {
	case <-out.more:
	case <-time.After(30 * time.Second):
		t.Fatal("nova-mini has printed nothing: it does not listen")
	}
	commands := regexp.MustCompile(`(?m)^  (.*)$`).FindAllString(out.String(), -1)
	if len(commands) != 5 {
		t.Fatalf("%d commands in %q, want 5", len(commands), out.String())
	}
	commands = commands[:3] // the other two are for OpenStack's own command: TestCommands of the root package runs them
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("curl is not installed: the printed commands need it")
		}
		t.Skip("curl is not installed")
	}
	// The last command is repeated until the server is built.
	script := strings.Join(commands, "\n") + "\nfor i in $(seq 100); do " + commands[2] + " | tee last | grep -q ACTIVE && break; sleep 0.1; done; cat last"
	sh := exec.CommandContext(t.Context(), "sh", "-eu", "-c", script)
	sh.Dir = t.TempDir()
	got, err := sh.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, got)
	}
	id := regexp.MustCompile(`^[0-9a-f-]{36}\n`).Find(got)
	if id == nil || strings.Count(string(got), `"name":"demo"`) < 3 || !strings.Contains(string(got), `"status":"ACTIVE"`) {
		t.Errorf("the commands print %s", got)
	}
	for path, parts := range map[string][]string{
		"readyz": {`"name": "database"`},
		"metrics": {
			`armature_service_loop_calls_total{loop="policy files"}`, `armature_api_requests_total{method="POST",route="/v2.1/servers",status="202"} 1`,
			`armature_rpc_server_requests_total{code="OK",interface="scheduler"`, `armature_driver_up{driver="fake",host="node-1"} 1`,
			`armature_operation_unknown{host="`, `armature_operation_ended_total{host=`, `armature_membership_members{kind="nova-compute",state="up"} 4`,
			`armature_scheduler_decisions_total{result="ok"} 1`, `armature_placement_claims_total{result="ok"} 1`, `armature_placement_capacity{class="VCPU"}`, `armature_placement_providers{state="enabled"} 4`, `go_sql_open_connections{db_name="nova-mini"}`, `go_build_info{`,
		},
		"debug/loops":    {`"name": "compute node-1 audit"`},
		"debug/loglevel": {`"DEBUG"`},
		"debug/report":   {"==== goroutines ====", "0 run here; 0 are unknown and wait for another process; 0 steps were not undone", "4 hosts, reports "},
		"debug/config":   {`"name": "compute_driver"`},
	} {
		// The scheduler reads its hosts periodically: it may not have read all of them when the first server is ACTIVE.
		waittest.Until(t, fmt.Sprint(path, " with ", parts), func() bool {
			got, err := exec.CommandContext(t.Context(), "curl", "-s", "--unix-socket", admin, "http://admin/"+path).Output()
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			return !slices.ContainsFunc(parts, func(want string) bool { return !strings.Contains(string(got), want) })
		})
	}
}

// TestTools checks the output of the commands about options and rules. The output has no password.
func TestTools(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	nova := filepath.Join(dir, "nova.conf")
	if err := os.WriteFile(nova, []byte("[DEFAULT]\nstrict = false\nauth_strategy = noauth2\nmy_ip = 10.0.0.1\ntransport_url = rabbit://u:hush@h/\nstate_path = /var/lib/nova\n[libvirt]\nvirt_type = kvm\n[database]\nconnection = mysql://u@h/nova\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte("os_compute_api:servers:start: 'role:admin'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"config sample":   "#compute_driver = fake",
		"config validate": "nova.conf:5",
		"policy sample":   `#"os_compute_api:servers:start": "rule:project_member_or_admin"`,
		"policy list":     "policy.yaml:1",
		"policy validate": "policy.yaml:1\n", // the number of lines is checked below
		"policy explain --rule os_compute_api:servers:start --token any":                        "allows\n", // every client is the administrator
		"policy explain --rule os_compute_api:servers:start --role member --project p":          "denies\n  no   role:admin\n",
		"policy explain --rule os_compute_api:servers:stop --role member --project p":           "allows",
		"policy explain --rule os_compute_api:servers:stop --role member --project p --owner q": "no   project_id:%(project_id)s",
	} {
		var out bytes.Buffer
		if err := run(t.Context(), &out, append(strings.Fields(args), "--config-file", nova)...); err != nil || !strings.Contains(out.String(), want) || strings.Contains(out.String(), "hush") {
			t.Errorf("%s: %v\n%s\nwant %s", args, err, &out, want)
		}
		if args == "policy validate" && strings.Count(out.String(), "\n") != 2 { // the head of the table, and one rule
			t.Errorf("%s prints rules that no file has:\n%s", args, &out)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte("os_compute_api:servers:stort: '!'\nos_compute_api:servers:stop: 'role:admin and'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := run(t.Context(), io.Discard, "policy", "validate", "--config-file", nova)
	for _, want := range []string{"policy.yaml:1: rule os_compute_api:servers:stort does not exist; the nearest is os_compute_api:servers:start", "policy.yaml:2: rule os_compute_api:servers:stop"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("policy validate of a wrong file: %v, want %q", err, want)
		}
	}
}
