package e2e_test

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/armature-go/armature/examples/nova-mini/store"
)

// instances returns the ids of the servers that a host's driver has.
func (c *cloud) instances(host string) (ids []string) {
	c.Helper()
	files, err := filepath.Glob(filepath.Join(c.dir, "instances", host, "*.json"))
	if err != nil {
		c.Fatal(err)
	}
	for _, f := range files {
		ids = append(ids, strings.TrimSuffix(filepath.Base(f), ".json"))
	}
	return ids
}

// onHosts returns the host of each server that a driver has, by the server's id. A server on two hosts is an error.
func (c *cloud) onHosts() map[string]string {
	c.Helper()
	files, err := filepath.Glob(filepath.Join(c.dir, "instances", "*", "*.json"))
	if err != nil {
		c.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range files {
		id, host := strings.TrimSuffix(filepath.Base(f), ".json"), filepath.Base(filepath.Dir(f))
		if other, twice := out[id]; twice {
			c.Errorf("server %s is on %s and on %s", id, other, host)
		}
		out[id] = host
	}
	return out
}

// consistent checks that the API, the drivers and the claims place each server on the same host, and that no host is over its capacity.
func (c *cloud) consistent(active []servers.Server) {
	c.Helper()
	found := c.onHosts()
	for _, s := range active {
		if found[s.ID] != s.Host {
			c.Errorf("server %s is on %q, but the API says %q", s.ID, found[s.ID], s.Host)
		}
		delete(found, s.ID)
	}
	for id, host := range found {
		c.Errorf("host %s has server %s, which the API does not place there", host, id)
	}
	var bad []struct {
		Host, Class   string
		Used, Claimed int64
		Limit         float64
	}
	err := c.db.SelectContext(c.Context(), &bad, "SELECT i.provider AS host, i.class, i.used, COALESCE(SUM(a.amount), 0) AS claimed, i.capacity AS `limit`"+`
		FROM placement_inventories i LEFT JOIN placement_allocations a ON a.provider = i.provider AND a.class = i.class
		GROUP BY i.provider, i.class, i.used, i.capacity HAVING i.used <> claimed OR i.used > i.capacity`)
	if err != nil {
		c.Fatal(err)
	}
	for _, b := range bad {
		c.Errorf("host %s: %d %s used, %d claimed, capacity %v", b.Host, b.Used, b.Class, b.Claimed, b.Limit)
	}
	wrong, err := store.New(c.db).Audit(c.Context(), false, 0)
	for _, f := range wrong {
		c.Errorf("%s claim: %+v", f.Kind, f.Claim)
	}
	if err != nil {
		c.Error(err)
	}
}

// deleteAll deletes every server. It waits until the API, the drivers and the claims have no server any longer, and the queues
// are empty.
func (c *cloud) deleteAll(cl *gophercloud.ServiceClient, hosts []string) {
	c.Helper()
	pages, err := servers.List(cl, nil).AllPages(c.Context())
	if err != nil {
		c.Fatal(err)
	}
	list, err := servers.ExtractServers(pages)
	if err != nil {
		c.Fatal(err)
	}
	for _, s := range list {
		if err := servers.Delete(c.Context(), cl, s.ID).ExtractErr(); err != nil && !gophercloud.ResponseCodeIs(err, http.StatusNotFound) {
			c.Errorf("delete: %v", err)
		}
	}
	c.settled(cl, 0, 60*time.Second)
	if left := c.onHosts(); len(left) > 0 {
		c.Errorf("the drivers still have %v", left)
	}
	var claims int
	if err := c.db.GetContext(c.Context(), &claims, `SELECT COUNT(*) FROM placement_allocations`); err != nil || claims > 0 {
		c.Errorf("%d claims are left, error %v", claims, err)
	}
	c.consistent(nil)
	if strings.HasPrefix(c.busURL, "nats:") {
		c.streamsEmpty()
	} else {
		c.queuesEmpty(hosts)
	}
}

// queuesEmpty waits until the queues of RabbitMQ are empty.
func (c *cloud) queuesEmpty(hosts []string) {
	c.Helper()
	conn, err := amqp.Dial(c.busURL)
	if err != nil {
		c.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		c.Fatal(err)
	}
	names := []string{"compute", "conductor", "scheduler"}
	for _, h := range hosts {
		names = append(names, "compute."+h)
	}
	for _, name := range names {
		c.poll("queue "+name+" empty", 30*time.Second, func() error {
			q, err := ch.QueueDeclarePassive(c.exchange+"."+name, true, false, false, false, nil)
			if err == nil && q.Messages > 0 {
				err = fmt.Errorf("%d messages are left", q.Messages)
			}
			return err
		})
	}
}

// streamsEmpty waits until the streams of NATS are empty.
func (c *cloud) streamsEmpty() {
	c.Helper()
	conn, err := nats.Connect(c.busURL)
	if err != nil {
		c.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		c.Fatal(err)
	}
	c.poll("streams empty", 30*time.Second, func() error {
		list := js.ListStreams(c.Context())
		n := 0
		for s := range list.Info() {
			if len(s.Config.Subjects) == 0 || !strings.HasPrefix(s.Config.Subjects[0], c.exchange+".") {
				continue
			}
			if n++; s.State.Msgs > 0 {
				return fmt.Errorf("%d messages for %v", s.State.Msgs, s.Config.Subjects)
			}
		}
		if list.Err() == nil && n == 0 {
			return errors.New("no stream exists")
		}
		return list.Err()
	})
}
