package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/flavors"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
)

// TestActions: an action is done once, also if its driver, compute service or conductor is killed meanwhile. It is refused
// in states that do not allow it. A deletion ends it.
func TestActions(t *testing.T) {
	t.Parallel()
	scenario(t)
	c := newCloud(t, withSim(t, "plugin_max_crashes = 1000\n"))
	for _, s := range [][2]string{{"api", "api-1"}, {"conductor", "c-1"}, {"scheduler", "s-1"}, {"compute", "node-1"}, {"compute", "node-2"}} {
		c.start(s[0], s[1])
	}
	cl := c.client(c.procs["api-1"])
	c.hostsUp(cl, 2)
	make1 := func(name string, md map[string]string) string {
		t.Helper()
		s, err := create(t.Context(), cl, name, "1", md)
		if err != nil {
			t.Fatal(err)
		}
		return s.ID
	}
	var ids []string
	for i := range 6 {
		ids = append(ids, make1(fmt.Sprintf("s%d", i), map[string]string{"fake:power_off": "slow 300ms"}))
	}
	crash := make1("crash", map[string]string{"fake:power_off": "crash 1; crash after 1"})
	broken := make1("broken", map[string]string{"fake:power_off": "fail"})
	hangs := make1("hangs", map[string]string{"fake:reboot": "hang"})
	norsz := make1("norsz", map[string]string{"fake:resize": "fail exhausted"})
	rszcrash := make1("rszcrash", map[string]string{"fake:resize": "crash 1; crash after 1"})
	c.settled(cl, len(ids)+5, 60*time.Second)
	becomes := func(id, status string) {
		t.Helper()
		c.poll("server "+id+" to be "+status, 60*time.Second, func() error {
			got, err := servers.Get(t.Context(), cl, id).Extract()
			if err == nil && (got.Status != status || got.TaskState != "") {
				err = fmt.Errorf("it is %s, task %q", got.Status, got.TaskState)
			}
			return err
		})
	}
	refused := func(what string, err error, code int) {
		t.Helper()
		if !gophercloud.ResponseCodeIs(err, code) {
			t.Errorf("%s: %v, want %d", what, err, code)
		}
	}

	for _, id := range append(ids, crash) {
		if err := servers.Stop(t.Context(), cl, id).ExtractErr(); err != nil {
			t.Errorf("stop: %v", err)
		}
		refused("a second action", servers.Stop(t.Context(), cl, id).ExtractErr(), http.StatusConflict)
	}
	for _, p := range []string{"node-1", "c-1"} {
		c.procs[p].Kill()
	}
	c.start("compute", "node-1")
	c.start("conductor", "c-1")
	for _, id := range append(ids, crash) {
		becomes(id, "SHUTOFF")
	}
	refused("stop of a stopped server", servers.Stop(t.Context(), cl, ids[0]).ExtractErr(), http.StatusConflict)
	refused("a soft reboot of one", servers.Reboot(t.Context(), cl, ids[0], servers.RebootOpts{Type: servers.SoftReboot}).ExtractErr(), http.StatusConflict)
	refused("start of one that runs", servers.Start(t.Context(), cl, broken).ExtractErr(), http.StatusConflict)
	refused("stop of nothing", servers.Stop(t.Context(), cl, "11111111-2222-4333-8444-555555555555").ExtractErr(), http.StatusNotFound)
	for body, code := range map[string]int{
		`{}`: http.StatusBadRequest, `{"explode": null}`: http.StatusBadRequest, `{"os-stop": null, "os-start": null}`: http.StatusBadRequest,
		`{"reboot": {"type": "GENTLE"}}`: http.StatusBadRequest, `{"os-getConsoleOutput": {"length": "many"}}`: http.StatusBadRequest,
	} {
		resp, err := cl.Request(t.Context(), http.MethodPost, cl.ServiceURL("servers", ids[0], "action"), &gophercloud.RequestOpts{RawBody: strings.NewReader(body), MoreHeaders: map[string]string{"Content-Type": "application/json"}, OkCodes: []int{202}})
		if err == nil {
			resp.Body.Close()
		}
		refused(body, err, code)
	}
	if err := servers.Reboot(t.Context(), cl, ids[0], servers.RebootOpts{Type: servers.HardReboot}).ExtractErr(); err != nil {
		t.Errorf("hard reboot of a stopped server: %v", err)
	}
	becomes(ids[0], "ACTIVE")
	for _, id := range ids[1:] {
		if err := servers.Start(t.Context(), cl, id).ExtractErr(); err != nil {
			t.Errorf("start: %v", err)
		}
	}
	for _, id := range ids[1:] {
		becomes(id, "ACTIVE")
	}

	// A resize is done once, whichever process is killed. It ends as the user decides. A resize that the driver cannot do
	// leaves the server unchanged.
	resize := func(id, flavor string) error {
		return servers.Resize(t.Context(), cl, id, servers.ResizeOpts{FlavorRef: flavor}).ExtractErr()
	}
	flavorOf := func(id, want string) {
		t.Helper()
		if got, err := servers.Get(t.Context(), cl, id).Extract(); err != nil || got.Flavor["id"] != want {
			t.Errorf("server %s has flavor %v, %v; want %s", id, got.Flavor, err, want)
		}
	}
	huge, err := flavors.Create(t.Context(), cl, flavors.CreateOpts{Name: "huge", RAM: 1 << 20, VCPUs: 1, Disk: new(1)}).Extract()
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"no such flavor": resize(ids[0], "none"), "its own flavor": resize(ids[0], "1"), "more than the host has": resize(ids[0], huge.ID)} {
		refused(what, err, http.StatusBadRequest)
	}
	refused("confirm of nothing", servers.ConfirmResize(t.Context(), cl, ids[0]).ExtractErr(), http.StatusConflict)
	for _, id := range append(ids, norsz, rszcrash) {
		if err := resize(id, "2"); err != nil {
			t.Errorf("resize: %v", err)
		}
	}
	for _, p := range []string{"node-2", "c-1"} {
		c.procs[p].Kill()
	}
	c.start("compute", "node-2")
	c.start("conductor", "c-1")
	becomes(norsz, "ACTIVE")
	flavorOf(norsz, "1")
	for _, id := range append(ids, rszcrash) {
		becomes(id, "VERIFY_RESIZE")
		flavorOf(id, "2")
		refused("stop before it is confirmed", servers.Stop(t.Context(), cl, id).ExtractErr(), http.StatusConflict)
	}
	end, left := servers.ConfirmResize(t.Context(), cl, ids[0]).ExtractErr(), servers.RevertResize(t.Context(), cl, ids[1]).ExtractErr()
	if end != nil || left != nil {
		t.Errorf("confirm: %v; revert: %v", end, left)
	}
	becomes(ids[0], "ACTIVE")
	becomes(ids[1], "ACTIVE")
	flavorOf(ids[0], "2")
	flavorOf(ids[1], "1")

	// An action that the driver cannot do leaves the server unchanged.
	if err := servers.Stop(t.Context(), cl, broken).ExtractErr(); err != nil {
		t.Error(err)
	}
	becomes(broken, "ACTIVE")
	// A deletion does not wait for an action that hangs: the compute service is killed meanwhile.
	if err := servers.Reboot(t.Context(), cl, hangs, servers.RebootOpts{Type: servers.HardReboot}).ExtractErr(); err != nil {
		t.Error(err)
	}
	got, err := servers.Get(t.Context(), cl, hangs).Extract()
	if err != nil || got.Status != "HARD_REBOOT" {
		t.Errorf("a server that reboots is %s, %v", got.Status, err)
	}
	host := got.Host
	if err := servers.Delete(t.Context(), cl, hangs).ExtractErr(); err != nil {
		t.Error(err)
	}
	c.procs[host].Kill()
	c.start("compute", host)
	c.deleteAll(cl, []string{"node-1", "node-2"})
}
