package e2e_test

import (
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
)

// permissions returns the permissions in docs/operating.md for the broker user of one host. The result has three regular
// expressions: the permissions to configure, to write and to read.
func permissions(t *testing.T, exchange, host string) []string {
	t.Helper()
	guide, err := os.ReadFile("../../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^rabbitmqctl set_permissions .* node-1 '(.*)' '(.*)' '(.*)'$`).FindStringSubmatch(string(guide))
	if line == nil {
		t.Fatal("docs/operating.md has no permissions of a host's user")
	}
	var out []string
	for _, expr := range line[1:] {
		out = append(out, strings.NewReplacer("nova", exchange, "node-1", host).Replace(expr))
	}
	return out
}

// TestBrokerUsers: each host has its own broker user, with the permissions in docs/operating.md. With these permissions a host can
// build and destroy servers, but cannot read messages for another host.
func TestBrokerUsers(t *testing.T) {
	t.Parallel()
	scenario(t)
	broker := envtest.RabbitMQ(t)
	c := newCloudOn(t, "", envtest.URL(t, testenv.MySQLVar), broker.URL)
	as := func(user string) string {
		u, err := url.Parse(broker.URL)
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword(user, "secret")
		return u.String()
	}
	hosts := []string{"node-1", "node-2"}
	for _, host := range hosts {
		for _, args := range [][]string{{"add_user", host, "secret"}, append([]string{"set_permissions", "-p", "/", host}, permissions(t, c.exchange, host)...)} {
			if out, err := broker.Ctl(t.Context(), args...); err != nil {
				t.Fatalf("%v: %v: %s", args, err, out)
			}
		}
	}
	for _, s := range [][2]string{{"api", "api-1"}, {"conductor", "c-1"}, {"scheduler", "s-1"}} {
		c.start(s[0], s[1])
	}
	for _, host := range hosts {
		c.startWith("compute", host, "OS_DEFAULT__TRANSPORT_URL="+strings.Replace(as(host), "amqp://", "rabbit://", 1))
	}
	cl := c.client(c.procs["api-1"])
	c.hostsUp(cl, len(hosts))
	const n = 6
	for range n {
		if _, err := create(t.Context(), cl, "s", "1", nil); err != nil {
			t.Fatal(err)
		}
	}
	by := c.settled(cl, n, 60*time.Second)
	if len(by["ACTIVE"]) != n {
		t.Errorf("%d of %d servers are ACTIVE; faults: %v", len(by["ACTIVE"]), n, faults(by["ERROR"]))
	}
	for _, queue := range []string{c.exchange + ".compute.node-2", c.exchange + ".compute.node-2.calls", c.exchange + ".conductor", c.exchange + ".conductor.calls", c.exchange + ".compute.dlq"} {
		conn, err := amqp.Dial(as("node-1"))
		if err != nil {
			t.Fatal(err)
		}
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := ch.Get(queue, false); err == nil || !strings.Contains(err.Error(), "ACCESS_REFUSED") {
			t.Errorf("the user of node-1 reads %s: %v", queue, err)
		}
		_ = conn.Close()
	}
	for _, host := range hosts {
		for _, s := range []string{"ACCESS_REFUSED", "access to"} {
			if strings.Contains(c.procs[host].log.String(), s) {
				t.Errorf("the log of %s has %s", host, s)
			}
		}
	}
	c.deleteAll(cl, hosts)
}
