package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/instanceactions"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
)

// TestGuests: a server whose guest dies is stopped, and clients see the stop: if the driver reports the death, if the compute service is dead at that time, and if the conductor dies during the stop.
func TestGuests(t *testing.T) {
	t.Parallel()
	scenario(t)
	for name, env := range map[string]string{"RabbitMQ": testenv.AMQPVar, "NATS": testenv.NATSVar} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			extra := ""
			if name == "NATS" {
				extra = withSim(t, "")
			}
			testGuests(t, newCloudOn(t, extra, envtest.URL(t, testenv.MySQLVar), envtest.URL(t, env)))
		})
	}
}

func testGuests(t *testing.T, c *cloud) {
	t.Helper()
	for _, s := range [][2]string{{"api", "api-1"}, {"conductor", "c-1"}, {"scheduler", "s-1"}, {"compute", "node-1"}} {
		c.start(s[0], s[1])
	}
	cl := c.client(c.procs["api-1"])
	c.hostsUp(cl, 1)
	add := func(name string, md map[string]string) string {
		t.Helper()
		s, err := create(t.Context(), cl, name, "1", md)
		if err != nil {
			t.Fatal(err)
		}
		return s.ID
	}
	dies := add("dies", map[string]string{"fake:dies": "2s"})
	c.stopped(cl, dies)

	// The guest dies while the compute service is dead. os-resetState does not hide the power state.
	lost := add("lost", nil)
	c.awaitServer(cl, lost, "ACTIVE", compute.Running)
	if err := servers.ResetState(t.Context(), cl, lost, servers.StateError).ExtractErr(); err != nil {
		t.Fatal(err)
	}
	c.awaitServer(cl, lost, "ERROR", compute.Running)
	if err := servers.ResetState(t.Context(), cl, lost, servers.StateActive).ExtractErr(); err != nil {
		t.Fatal(err)
	}
	c.procs["node-1"].Kill()
	path := filepath.Join(c.dir, "instances", "node-1", lost+".json")
	guest := map[string]any{}
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, &guest)
	}
	if err == nil {
		guest["power"] = compute.Shutdown
		raw, err = json.Marshal(guest)
	}
	if err == nil {
		err = os.WriteFile(path, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.start("compute", "node-1")
	c.stopped(cl, lost)

	// The conductor dies while it stops the server.
	slow := add("slow", map[string]string{"fake:dies": "1s", "fake:power_off": "slow 2s"})
	c.poll("the stop", 60*time.Second, func() error {
		got, err := servers.Get(t.Context(), cl, slow).Extract()
		if err == nil && got.TaskState != "powering-off" && got.Status != "SHUTOFF" {
			err = fmt.Errorf("the task is %q", got.TaskState)
		}
		return err
	})
	c.procs["c-1"].Kill()
	c.start("conductor", "c-1")
	c.stopped(cl, slow)

	if err := servers.Start(t.Context(), cl, lost).ExtractErr(); err != nil {
		t.Fatal(err)
	}
	c.awaitServer(cl, lost, "ACTIVE", compute.Running)
	c.deleteAll(cl, []string{"node-1"})
}

// awaitServer waits until a server without a task has a status and a power state.
func (c *cloud) awaitServer(cl *gophercloud.ServiceClient, id, status string, power compute.PowerState) {
	c.Helper()
	c.poll(fmt.Sprintf("the server %s to be %s with the power state %v", id, status, power), 90*time.Second, func() error {
		got, err := servers.Get(c.Context(), cl, id).Extract()
		if err == nil && (got.Status != status || got.TaskState != "" || int(got.PowerState) != int(power)) {
			err = fmt.Errorf("the server is %s with the power state %d, task %q, fault %q", got.Status, got.PowerState, got.TaskState, got.Fault.Details)
		}
		return err
	})
}

// stopped waits until a server whose guest has died is stopped, and checks that clients see one stop.
func (c *cloud) stopped(cl *gophercloud.ServiceClient, id string) {
	c.Helper()
	c.awaitServer(cl, id, "SHUTOFF", compute.Shutdown)
	pages, err := instanceactions.List(cl, id, nil).AllPages(c.Context())
	if err != nil {
		c.Fatal(err)
	}
	list, err := instanceactions.ExtractInstanceActions(pages)
	if err != nil {
		c.Fatal(err)
	}
	stops := 0
	for _, a := range list {
		if a.Action == "stop" {
			stops++
		}
	}
	if stops != 1 {
		c.Errorf("the actions on server %s are %+v, want one stop", id, list)
	}
}
