package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/armature-go/armature/internal/keystonetest"
)

// TestOperatingFile: the file of docs/operating.md, with the addresses and paths of the test, runs all
// services of one host side by side. `config validate --online` says beforehand what works and what does
// not, and exits with 1; a mistyped command line exits with 2.
func TestOperatingFile(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile("(?s)```ini\n(.*?)```").FindStringSubmatch(string(guide))[1]
	ks := keystonetest.Start(t)
	ks.Role("service")
	services := gophercloud.AuthScope{ProjectID: ks.Project("service")}
	ks.Grant(ks.User("nova"), "service", services)
	mine := gophercloud.AuthScope{ProjectID: ks.Project("p1")}
	ks.Grant(ks.User("ada"), "member", mine)

	c := newCloud(t, "")
	was, err := os.ReadFile(c.conf)
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(c.dir, "database-url")
	if err := os.WriteFile(secret, regexp.MustCompile(`(?m)^connection = (.*\n)`).FindSubmatch(was)[1], 0o600); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{
		"rabbit://nova:secret@127.0.0.1:5672/": strings.Replace(c.busURL, "amqp://", "rabbit://", 1),
		"/var/lib/nova-mini":                   filepath.Join(c.dir, "state"),
		"/run/nova-mini":                       c.dir,
		"/etc/nova-mini/database-url":          secret,
		"http://127.0.0.1:5000/":               ks.Endpoint,
		"password = secret":                    "password = " + keystonetest.Password,
		"http://127.0.0.1:4318":                "http://127.0.0.1:1",
	} {
		if strings.Count(text, from) != 1 {
			t.Fatalf("the file does not have %q:\n%s", from, text)
		}
		text = strings.Replace(text, from, to, 1)
	}
	env := append(os.Environ(), "OS_DEFAULT__CONTROL_EXCHANGE="+c.exchange, "OS_DEFAULT__OSAPI_COMPUTE_LISTEN_PORT=0")
	command := func(text string, args ...string) (string, int) {
		t.Helper()
		if err := os.WriteFile(c.conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := c.command(args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return string(out), exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		return string(out), 0
	}

	tried := []string{"[DEFAULT] transport_url", "[database] connection", "[keystone_authtoken] auth_url", "[DEFAULT] compute_driver"}
	for _, tt := range []struct{ from, to, fails, says string }{ // what is wrong, and the option that does not work
		{"", "", "none", ""},
		{"password = " + keystonetest.Password, "password = wrong", "[keystone_authtoken] auth_url", "password"},
		{ks.Endpoint, "http://127.0.0.1:1/", "[keystone_authtoken] auth_url", "connection refused"},
		{"debug = false", "compute_driver = /bin/true", "[DEFAULT] compute_driver", "it ended by itself"},
	} {
		out, code := command(strings.Replace(text, tt.from, tt.to, 1), "config", "validate", "--online")
		want := 0
		for _, option := range tried {
			line := "works: " + option
			if option == tt.fails {
				line, want = ": "+option+": ", 1
			}
			if !strings.Contains(out, line) {
				t.Errorf("%s: it does not print %q:\n%s", tt.to, line, out)
			}
		}
		if code != want || !strings.Contains(out, tt.says) {
			t.Errorf("%s: exit code %d, want %d with %q:\n%s", tt.to, code, want, tt.says, out)
		}
	}
	if out, code := command(text, "conducter"); code != 2 || !strings.Contains(out, "the nearest is conductor") {
		t.Errorf("a command that does not exist: exit code %d, want 2:\n%s", code, out)
	}
	if out, code := command(text, "config", "validate"); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}

	for _, service := range []string{"conductor", "scheduler", "compute"} {
		c.startWith(service, "controller-1", env...)
		c.procs[service] = c.procs["controller-1"]
	}
	cl := c.client(c.startWith("api", "controller-1", env...))
	for _, service := range []string{"conductor", "scheduler", "compute", "api"} {
		hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(c.dir, service+".sock"))
		}}}
		c.poll(service+" to be ready", 60*time.Second, func() error {
			r, err := hc.Get("http://localhost/readyz") //nolint:noctx // a socket of this machine
			if err != nil {
				return err
			}
			defer r.Body.Close()
			if body, _ := io.ReadAll(r.Body); r.StatusCode != http.StatusOK {
				return fmt.Errorf("%s: %s", r.Status, body)
			}
			return nil
		})
	}
	token := ks.Token("ada", &mine)
	ask := func(method, path, body string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, cl.Endpoint+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Auth-Token", token)
		r.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		raw, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(raw)
	}
	var made struct{ Server struct{ ID string } }
	if code, body := ask("POST", "servers", demo); code != http.StatusAccepted || json.Unmarshal([]byte(body), &made) != nil {
		t.Fatalf("%d %s", code, body)
	}
	c.poll("the server to be ACTIVE", 60*time.Second, func() error {
		if _, body := ask("GET", "servers/"+made.Server.ID, ""); !strings.Contains(body, `"status":"ACTIVE"`) {
			return errors.New(body)
		}
		return nil
	})
}
