package e2e_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/service/membership"
)

// TestVersionCaps: while a compute service of an earlier version is registered, an API sends no call that this service does not know. The
// API learns at SIGHUP that the service is registered, and at the next call that the service is gone. A compute service that finds no conductor
// logs one warning after 10 s, and works when a conductor is back.
func TestVersionCaps(t *testing.T) {
	t.Parallel()
	scenario(t)
	c := newCloud(t, "")
	front, conductor := c.start("api", "a-1"), c.start("conductor", "c-1")
	c.start("scheduler", "s-1")
	c.start("compute", "node-1")
	cl := c.client(front)
	c.hostsUp(cl, 1)
	srv, err := create(t.Context(), cl, "s", "1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if by := c.settled(cl, 1, 60*time.Second); len(by["ACTIVE"]) != 1 {
		t.Fatalf("servers: %v", by)
	}
	out, err := c.command("member", "list").CombinedOutput()
	for _, want := range []string{"compute 1.6", "conductor 1.7", "scheduler 1.2"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("member list: %v, without %q:\n%s", err, want, out)
		}
	}
	console := func() error { // a call to the host that needs version 1.1
		_, err := servers.ShowConsoleOutput(t.Context(), cl, srv.ID, servers.ShowConsoleOutputOpts{}).Extract()
		return err
	}
	if err := console(); err != nil {
		t.Errorf("the console while all hosts have 1.6: %v", err)
	}
	members := membership.New(membership.Config{DB: c.db})
	older := membership.Self{Kind: store.ComputeBinary, Host: "node-0", Version: 1, Interfaces: map[string][]string{"compute": {"1.0"}}}
	if err := members.Join(t.Context(), older); err != nil {
		t.Fatal(err)
	}
	if err := front.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	c.poll("the API to read its caps again", 5*time.Second, func() error {
		if console() == nil {
			return errors.New("the console was read")
		}
		if log := front.log.String(); !strings.Contains(log, "needs version 1.1, capped at 1.0") {
			return fmt.Errorf("the log of the API does not say why: %.300s", log[max(0, len(log)-300):])
		}
		return nil
	})
	if err := members.Leave(t.Context(), older.Kind, older.Host, ""); err != nil {
		t.Fatal(err)
	}
	c.poll("the console after the older host is gone", 3*time.Second, console)

	// An action that an older compute service does not know waits until all compute services know it.
	older.Interfaces["compute"] = []string{"1.4"}
	if err := members.Join(t.Context(), older); err != nil {
		t.Fatal(err)
	}
	c.poll("the conductor to read its caps again", 20*time.Second, func() error {
		if err := conductor.Signal(syscall.SIGHUP); err != nil {
			return err
		}
		if !strings.Contains(conductor.log.String(), "interface=compute versions=[1.4]") {
			return errors.New("the log of the conductor does not have these caps")
		}
		return nil
	})
	if err := servers.Pause(t.Context(), cl, srv.ID).ExtractErr(); err != nil {
		t.Fatal(err)
	}
	c.poll("the action to wait", 10*time.Second, func() error {
		var why string
		if err := c.db.GetContext(t.Context(), &why, `SELECT error FROM operations WHERE kind = 'server.pause'`); err != nil || !strings.Contains(why, "needs version 1.5, capped at 1.4") {
			return fmt.Errorf("the operation says %q, %w", why, err)
		}
		return nil
	})
	if got, err := servers.Get(t.Context(), cl, srv.ID).Extract(); err != nil || got.Status != "ACTIVE" || got.TaskState != "pausing" {
		t.Errorf("a server whose action waits: %+v, %v", got, err)
	}
	if err := members.Leave(t.Context(), older.Kind, older.Host, ""); err != nil {
		t.Fatal(err)
	}
	c.poll("the action after the older host is gone", 30*time.Second, func() error {
		got, err := servers.Get(t.Context(), cl, srv.ID).Extract()
		if err == nil && got.Status != "PAUSED" {
			err = fmt.Errorf("the server is %s", got.Status)
		}
		return err
	})

	if err := conductor.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-conductor.Done()
	alone := c.start("compute", "node-2")
	const unknown = "version caps not known, sending only the lowest version"
	c.poll("the compute service to give up waiting for its caps", 40*time.Second, func() error {
		if !strings.Contains(alone.log.String(), unknown) {
			return errors.New("the log of the compute service does not have the warning")
		}
		return nil
	})
	c.start("conductor", "c-2")
	c.hostsUp(cl, 2)
	if n := strings.Count(alone.log.String(), unknown); n != 1 {
		t.Errorf("the compute service has logged %d times that it does not know its caps, want once", n)
	}
	if !strings.Contains(alone.log.String(), "version caps known") {
		t.Error("the compute service has not logged that it knows its caps")
	}
}
