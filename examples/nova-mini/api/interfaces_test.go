package api_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
)

// portOf returns the port of a server with at most one interface, or "".
func (c *cloud) portOf(id string) string {
	c.Helper()
	srv, err := c.store.Server(c.Context(), id)
	if err != nil {
		c.Fatal(err)
	}
	ports := srv.Networks.V.Ports()
	if len(ports) == 0 {
		return ""
	}
	if len(ports) > 1 {
		c.Errorf("the server has the ports %+v", ports)
	}
	return ports[0].ID
}

// addConnected adds an active server with the port smallPort.
func (c *cloud) addConnected(n *smallNeutron, name string) (id string) {
	c.Helper()
	id = c.addActive(name)
	n.add(smallPort, id)
	if err := c.store.ChangePorts(c.Context(), id, func(s *store.Server) error {
		s.Networks.V = &network.Wanted{Interfaces: []network.Interface{{Port: network.Port{ID: smallPort, Network: smallNetwork}}}}
		return nil
	}); err != nil {
		c.Fatal(err)
	}
	return id
}

// TestDeletedPort: at the event that a port was deleted, a conductor takes the interface from the server, also if no conductor runs at the time of the event. The event is no action of a client. The event
// waits for another operation on the server for a limited time.
func TestDeletedPort(t *testing.T) {
	t.Parallel()
	eachNetworkCloud(t, func(c *cloud, n *smallNeutron) {
		id := c.addConnected(n, "a")
		told := func(status int, has string) {
			c.Helper()
			event := `{"events": [{"name": "network-vif-deleted", "server_uuid": "` + id + `", "tag": "` + smallPort + `"}]}`
			if reply := c.want(status, "2.1", "admin", "POST", "/os-server-external-events", event); !strings.Contains(reply, has) {
				t.Errorf("the event: %s, want %s", reply, has)
			}
		}
		told(200, `"code":200`) // the port still exists
		if port := c.portOf(id); port != smallPort {
			t.Errorf("the server has the port %q", port)
		}
		n.remove(smallPort)
		if err := c.store.BeginAction(c.Context(), id, compute.Stop, store.ActData{}); err != nil {
			t.Fatal(err)
		}
		told(207, `"code":503`)
		if _, err := c.db.ExecContext(c.Context(), `DELETE FROM operations`); err != nil {
			t.Fatal(err)
		}
		told(200, `"code":200`)
		c.serveInterfaces(c.runConductor(n.Neutron))
		waittest.Until(c, "the detachment", func() bool { return c.portOf(id) == "" })
		told(200, `"code":200`)
		if reply := c.want(200, "2.1", "member", "GET", "/servers/"+id+"/os-instance-actions", ""); strings.Contains(reply, "detach_interface") {
			t.Errorf("the actions of the server: %s", reply)
		}
	}, func(cfg *api.Config) { cfg.InterfaceWait = 200 * time.Millisecond })
}

// TestInterfaceWait: without a conductor, a client waits for a limited time. Then its attachment is canceled, and undone when a conductor is back. A detachment is accepted, as in Nova, and is done when
// a conductor is back.
func TestInterfaceWait(t *testing.T) {
	t.Parallel()
	eachNetworkCloud(t, func(c *cloud, n *smallNeutron) {
		id := c.addConnected(n, "a")
		at := "/servers/" + id + "/os-interface"
		c.want(504, "2.1", "member", "POST", at, `{"interfaceAttachment": {"net_id": "`+smallNetwork+`"}}`)
		svc := c.runConductor(n.Neutron)
		c.serveInterfaces(svc)
		waittest.Until(c, "the end of the attachment", func() bool {
			_, err := c.store.Operations().Current(c.Context(), id)
			return errors.Is(err, fault.NotFound)
		})
		if port := c.portOf(id); port != smallPort {
			t.Errorf("after an attachment that was canceled, the server has the port %q", port)
		}
		if err := svc.Runner.Stop(c.Context()); err != nil {
			t.Fatal(err)
		}
		c.want(202, "2.1", "member", "DELETE", at+"/"+smallPort, "")
		if port := c.portOf(id); port != smallPort {
			t.Errorf("without a conductor, the server has the port %q", port)
		}
		c.runConductor(n.Neutron)
		waittest.Until(c, "the detachment", func() bool { return c.portOf(id) == "" })
	}, func(cfg *api.Config) { cfg.InterfaceWait = 200 * time.Millisecond })
}
