package api_test

import (
	"strings"
	"testing"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/api"
)

// TestEventsWithoutNetworks: without a network service, an event of a network is refused for a server with ports. For a server without ports the event succeeds,
// as in Nova, because nothing is to be done. Other events are refused.
func TestEventsWithoutNetworks(t *testing.T) {
	t.Parallel()
	eachCloudOf(t, api.Rules(), nil, nil, func(c *cloud) {
		id := c.addActive("a")
		send := func(status int, name, has string) {
			body := `{"events": [{"name": "` + name + `", "server_uuid": "` + id + `", "tag": "x"}]}`
			if reply := c.want(status, "2.96", "admin", "POST", "/os-server-external-events", body); !strings.Contains(reply, has) {
				t.Errorf("%s: %s", name, reply)
			}
		}
		names := strings.Fields("network-changed network-vif-plugged network-vif-unplugged network-vif-deleted")
		for _, name := range names {
			send(200, name, `"code":200`)
		}
		send(207, "volume-extended", `"code":400`)
		if _, err := c.db.ExecContext(c.Context(), `UPDATE servers SET networks = ? WHERE id = ?`, db.JSONOf(ported("a", "10.0.0.1")), id); err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			send(207, name, `"code":400`)
		}
	})
}
