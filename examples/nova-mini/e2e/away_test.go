package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/keystonetest"
	"github.com/armature-go/armature/internal/testenv"
)

// need is a broker or a database, which a service of nova-mini needs at its start.
type need struct {
	name, env string // env is the variable of the test environment with the URL of the real broker or database
	part      string // the name of the part in the service
	option    string // the option as errors name it
	variable  string // the environment variable that sets the option
	path      string // the path of the URL, for a database
	scheme    string
}

var needs = []need{
	{"RabbitMQ", testenv.AMQPVar, "bus", "option transport_url", "OS_DEFAULT__TRANSPORT_URL", "", "rabbit"},
	{"NATS", testenv.NATSVar, "bus", "option transport_url", "OS_DEFAULT__TRANSPORT_URL", "", "nats"},
	{"MariaDB", testenv.MySQLVar, "database", "option connection of [database]", "OS_DATABASE__CONNECTION", "/e2e", "mysql"},
}

// url returns the URL of the real broker or database, with the name of the cloud's database.
func (n *need) url(c *cloud) *url.URL {
	c.Helper()
	u, err := url.Parse(envtest.URL(c, n.env))
	if err != nil {
		c.Fatal("the URL of the broker or database is not valid")
	}
	u.Scheme = n.scheme
	if n.path != "" {
		var name string
		if err := c.db.GetContext(c.Context(), &name, "SELECT DATABASE()"); err != nil {
			c.Fatal(err)
		}
		u.Path = "/" + name
	}
	return u
}

// TestAwayAtStart: a service waits if its broker or database is down at the start. During the wait, /readyz names the broker or
// database, and the log has one warning with the option. The service becomes ready when the broker or database is up.
func TestAwayAtStart(t *testing.T) {
	t.Parallel()
	scenario(t)
	for _, n := range needs {
		t.Run(n.name, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t, "")
			u := n.url(c)
			there := u.Host
			u.Host = envtest.DeadAddr(t)
			admin := envtest.DeadAddr(t)
			p := c.startWith("api", "api-1", n.variable+"="+u.String(), "OS_DEFAULT__ADMIN_LISTEN="+admin)
			ready := func() (int, string, error) {
				resp, err := http.Get("http://" + admin + "/readyz") //nolint:noctx // on loopback
				if err != nil {
					return 0, "", err
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				return resp.StatusCode, string(body), err
			}
			c.poll("the service to wait for "+n.part, 20*time.Second, func() error {
				status, body, err := ready()
				if err == nil && (status != http.StatusServiceUnavailable || !strings.Contains(body, n.part) || !strings.Contains(body, u.Host)) {
					err = fmt.Errorf("%d %s", status, body)
				}
				return err
			})
			c.poll("the warning in the log", 20*time.Second, func() error {
				select {
				case <-p.Done():
					c.Fatalf("the process ended: %v\n%s", p.Err(), p.log)
				default:
				}
				if !strings.Contains(p.log.String(), "waiting for a part to start") {
					return errors.New(p.log.String())
				}
				return nil
			})
			envtest.Forward(t, u.Host, there)
			c.poll("the service to be ready", 20*time.Second, func() error {
				status, body, err := ready()
				if err == nil && status != http.StatusOK {
					err = fmt.Errorf("%d %s", status, body)
				}
				return err
			})
			warned := 0
			for line := range strings.Lines(p.log.String()) {
				if strings.Contains(line, "level=WARN") && strings.Contains(line, u.Host) {
					warned++
					if !strings.Contains(line, n.option) {
						t.Errorf("the warning does not name the option: %s", line)
					}
				}
			}
			if warned != 1 {
				t.Errorf("%d warnings, want one:\n%s", warned, p.log)
			}
		})
	}
}

// TestRefusedLogin: if the broker or the database refuses the login, the program ends at once. The last line of the log names the
// option and the address, but not the password.
func TestRefusedLogin(t *testing.T) {
	t.Parallel()
	scenario(t)
	c := newCloud(t, "")
	const password = "hunter2hunter2"
	for _, n := range needs {
		t.Run(n.name, func(t *testing.T) {
			t.Parallel()
			u := n.url(c)
			u.User = url.UserPassword("armature", password)
			p := c.startWith("api", n.name, n.variable+"="+u.String())
			select {
			case <-p.Done():
			case <-time.After(20 * time.Second):
				t.Fatalf("the process does not end:\n%s", p.log)
			}
			lines := strings.Split(strings.TrimSpace(p.log.String()), "\n")
			last := lines[len(lines)-1]
			if p.ExitCode() != 1 || !strings.Contains(last, n.option) || !strings.Contains(last, u.Host) || strings.Contains(p.log.String(), password) {
				t.Errorf("exit code %d, and the last line is %q; want 1 and the option and the address, without the password", p.ExitCode(), last)
			}
		})
	}
}

// TestKeystoneAtStart: an API service waits for its Keystone, with one warning that names the option. If
// Keystone rejects the login, the service ends at once, and the last line of the log names the option.
func TestKeystoneAtStart(t *testing.T) {
	t.Parallel()
	scenario(t)
	ks := keystonetest.Start(t)
	ks.Role("service")
	ks.Grant(ks.User("nova"), "service", gophercloud.AuthScope{ProjectID: ks.Project("service")})
	c := newCloud(t, "")
	u, err := url.Parse(ks.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	there, dead := u.Host, envtest.DeadAddr(t)
	u.Host = dead
	env := func(auth, password string) []string {
		return []string{"OS_API__AUTH_STRATEGY=keystone", "OS_KEYSTONE_AUTHTOKEN__AUTH_URL=" + auth, "OS_KEYSTONE_AUTHTOKEN__USERNAME=nova", "OS_KEYSTONE_AUTHTOKEN__PASSWORD=" + password}
	}
	p := c.startWith("api", "api-1", env(u.String(), keystonetest.Password)...)
	c.poll("the service to wait for Keystone", 20*time.Second, func() error {
		if !strings.Contains(p.log.String(), "waiting for a part to start") {
			return errors.New(p.log.String())
		}
		return nil
	})
	if s := p.log.String(); strings.Contains(s, "msg=ready") || strings.Count(s, "level=WARN") != 1 || !strings.Contains(s, "option auth_url of [keystone_authtoken]") {
		t.Errorf("while Keystone cannot be reached the log is\n%s", s)
	}
	envtest.Forward(t, dead, there)
	c.client(p)

	const wrong = "hunter2hunter2"
	p = c.startWith("api", "api-2", env(ks.Endpoint, wrong)...)
	select {
	case <-p.Done():
	case <-time.After(20 * time.Second):
		t.Fatalf("the process does not end:\n%s", p.log)
	}
	lines := strings.Split(strings.TrimSpace(p.log.String()), "\n")
	if last := lines[len(lines)-1]; p.ExitCode() != 1 || !strings.Contains(last, "option auth_url of [keystone_authtoken]") || strings.Contains(p.log.String(), wrong) {
		t.Errorf("exit code %d, and the last line is %q; want 1 and the option, without the password", p.ExitCode(), last)
	}
}
