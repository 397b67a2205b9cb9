package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/flavors"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"

	"github.com/armature-go/armature/internal/waittest"
)

// TestActions: an action leads to the right state of the server, even if the driver, the compute service or the conductor
// is killed during the action. The API rejects a second action on the server during the first, and an action that the
// server's state does not allow. A deletion ends an action.
func TestActions(t *testing.T) {
	t.Parallel()
	scenario(t)
	a := &actions{cloud: newCloud(t, withSim(t, "plugin_max_crashes = 1000\n"))}
	for _, s := range [][2]string{{"api", "api-1"}, {"conductor", "c-1"}, {"scheduler", "s-1"}, {"compute", "node-1"}, {"compute", "node-2"}} {
		a.start(s[0], s[1])
	}
	a.cl = a.client(a.procs["api-1"])
	a.hostsUp(a.cl, 2)
	for i := range 6 {
		a.ids = append(a.ids, a.create(fmt.Sprintf("s%d", i), map[string]string{"fake:power_off": "slow 300ms"}))
	}
	a.crash = a.create("crash", map[string]string{"fake:power_off": "crash 1; crash after 1"})
	a.broken = a.create("broken", map[string]string{"fake:power_off": "fail"})
	a.hangs = a.create("hangs", map[string]string{"fake:reboot": "hang"})
	a.norsz = a.create("norsz", map[string]string{"fake:resize": "fail exhausted"})
	a.rszcrash = a.create("rszcrash", map[string]string{"fake:resize": "crash 1; crash after 1"})
	crashes := map[string]string{}
	for _, method := range []string{"pause", "unpause", "suspend", "resume", "rescue", "unrescue", "snapshot", "set_password"} {
		crashes["fake:"+method] = "crash 1; crash after 1"
	}
	a.crashes = a.create("crashes", crashes)
	a.settled(a.cl, len(a.ids)+6, 60*time.Second)
	a.testStops()
	a.testRefusals()
	a.testStarts()
	a.testResizes()
	a.testKilledActions()
	a.testFailures()
	a.deleteAll(a.cl, []string{"node-1", "node-2"})
}

// actions is a cloud with the servers of TestActions.
type actions struct {
	*cloud

	cl                                    *gophercloud.ServiceClient
	ids                                   []string // the ids of servers without simulated faults
	crash, broken, hangs, norsz, rszcrash string   // the ids of servers with a simulated fault of the driver
	crashes                               string   // the id of a server whose driver dies before and after each of its calls
}

func (a *actions) create(name string, md map[string]string) string {
	a.Helper()
	s, err := create(a.Context(), a.cl, name, "1", md)
	if err != nil {
		a.Fatal(err)
	}
	return s.ID
}

func (a *actions) becomes(id, status string) {
	a.Helper()
	a.poll("server "+id+" to be "+status, 60*time.Second, func() error {
		got, err := servers.Get(a.Context(), a.cl, id).Extract()
		if err == nil && (got.Status != status || got.TaskState != "") {
			err = fmt.Errorf("the server is %s, task %q", got.Status, got.TaskState)
		}
		return err
	})
}

func (a *actions) refused(what string, err error, code int) {
	a.Helper()
	if !gophercloud.ResponseCodeIs(err, code) {
		a.Errorf("%s: %v, want %d", what, err, code)
	}
}

func (a *actions) resize(id, flavor string) error {
	return servers.Resize(a.Context(), a.cl, id, servers.ResizeOpts{FlavorRef: flavor}).ExtractErr()
}

func (a *actions) flavorOf(id, want string) {
	a.Helper()
	if got, err := servers.Get(a.Context(), a.cl, id).Extract(); err != nil || got.Flavor["id"] != want {
		a.Errorf("server %s has flavor %v, %v; want %s", id, got.Flavor, err, want)
	}
}

// testStops: each stopped server becomes SHUTOFF, although processes are killed during the stops. The API rejects a second action
// on a server during the first.
func (a *actions) testStops() {
	a.Helper()
	for _, id := range append(a.ids, a.crash) {
		if err := servers.Stop(a.Context(), a.cl, id).ExtractErr(); err != nil {
			a.Errorf("stop: %v", err)
		}
		a.refused("a second action", servers.Stop(a.Context(), a.cl, id).ExtractErr(), http.StatusConflict)
	}
	for _, p := range []string{"node-1", "c-1"} {
		a.procs[p].Kill()
	}
	a.start("compute", "node-1")
	a.start("conductor", "c-1")
	for _, id := range append(a.ids, a.crash) {
		a.becomes(id, "SHUTOFF")
	}
}

// testRefusals: the API rejects an action that the server's state does not allow, and a malformed body.
func (a *actions) testRefusals() {
	a.Helper()
	a.refused("stop of a stopped server", servers.Stop(a.Context(), a.cl, a.ids[0]).ExtractErr(), http.StatusConflict)
	a.refused("soft reboot of a stopped server", servers.Reboot(a.Context(), a.cl, a.ids[0], servers.RebootOpts{Type: servers.SoftReboot}).ExtractErr(), http.StatusConflict)
	a.refused("start of a running server", servers.Start(a.Context(), a.cl, a.broken).ExtractErr(), http.StatusConflict)
	a.refused("stop of a server that does not exist", servers.Stop(a.Context(), a.cl, "11111111-2222-4333-8444-555555555555").ExtractErr(), http.StatusNotFound)
	for body, code := range map[string]int{
		`{}`: http.StatusBadRequest, `{"explode": null}`: http.StatusBadRequest, `{"os-stop": null, "os-start": null}`: http.StatusBadRequest,
		`{"reboot": {"type": "GENTLE"}}`: http.StatusBadRequest, `{"os-getConsoleOutput": {"length": "many"}}`: http.StatusBadRequest,
	} {
		resp, err := a.cl.Request(a.Context(), http.MethodPost, a.cl.ServiceURL("servers", a.ids[0], "action"), &gophercloud.RequestOpts{RawBody: strings.NewReader(body), MoreHeaders: map[string]string{"Content-Type": "application/json"}, OkCodes: []int{202}})
		if err == nil {
			resp.Body.Close()
		}
		a.refused(body, err, code)
	}
}

func (a *actions) testStarts() {
	a.Helper()
	if err := servers.Reboot(a.Context(), a.cl, a.ids[0], servers.RebootOpts{Type: servers.HardReboot}).ExtractErr(); err != nil {
		a.Errorf("hard reboot of a stopped server: %v", err)
	}
	a.becomes(a.ids[0], "ACTIVE")
	for _, id := range a.ids[1:] {
		if err := servers.Start(a.Context(), a.cl, id).ExtractErr(); err != nil {
			a.Errorf("start: %v", err)
		}
	}
	for _, id := range a.ids[1:] {
		a.becomes(id, "ACTIVE")
	}
}

// testResizes: a resize succeeds although a compute service and the conductor are killed during the resize. A confirmation keeps the new
// flavor, and a revert restores the old flavor. A resize that the driver cannot do leaves the server unchanged.
func (a *actions) testResizes() {
	a.Helper()
	huge, err := flavors.Create(a.Context(), a.cl, flavors.CreateOpts{Name: "huge", RAM: 1 << 20, VCPUs: 1, Disk: new(1)}).Extract()
	if err != nil {
		a.Fatal(err)
	}
	for what, err := range map[string]error{"no such flavor": a.resize(a.ids[0], "none"), "its own flavor": a.resize(a.ids[0], "1"), "more than the host has": a.resize(a.ids[0], huge.ID)} {
		a.refused(what, err, http.StatusBadRequest)
	}
	a.refused("confirm without a resize", servers.ConfirmResize(a.Context(), a.cl, a.ids[0]).ExtractErr(), http.StatusConflict)
	for _, id := range append(a.ids, a.norsz, a.rszcrash) {
		if err := a.resize(id, "2"); err != nil {
			a.Errorf("resize: %v", err)
		}
	}
	for _, p := range []string{"node-2", "c-1"} {
		a.procs[p].Kill()
	}
	a.start("compute", "node-2")
	a.start("conductor", "c-1")
	a.becomes(a.norsz, "ACTIVE")
	a.flavorOf(a.norsz, "1")
	for _, id := range append(a.ids, a.rszcrash) {
		a.becomes(id, "VERIFY_RESIZE")
		a.flavorOf(id, "2")
		a.refused("stop before the resize is confirmed", servers.Stop(a.Context(), a.cl, id).ExtractErr(), http.StatusConflict)
	}
	confirmErr, revertErr := servers.ConfirmResize(a.Context(), a.cl, a.ids[0]).ExtractErr(), servers.RevertResize(a.Context(), a.cl, a.ids[1]).ExtractErr()
	if confirmErr != nil || revertErr != nil {
		a.Errorf("confirm: %v; revert: %v", confirmErr, revertErr)
	}
	a.becomes(a.ids[0], "ACTIVE")
	a.becomes(a.ids[1], "ACTIVE")
	a.flavorOf(a.ids[0], "2")
	a.flavorOf(a.ids[1], "1")
}

// testKilledActions: each action leads to the right state, although the conductor, the compute services and the drivers are killed between its
// steps. Then the API and the driver show the same state, and no server has a task.
func (a *actions) testKilledActions() {
	a.Helper()
	seed := time.Now().UnixNano()
	a.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(uint64(seed), 0))
	const image = "208655eb-63a9-42b9-b006-4a93cb26dfa8"
	ids := append(slices.Clone(a.ids[:2]), a.crashes)
	for _, step := range []struct{ body, status, power string }{
		{`{"pause": null}`, "PAUSED", "paused"},
		{`{"unpause": null}`, "ACTIVE", "running"},
		{`{"suspend": null}`, "SUSPENDED", "suspended"},
		{`{"resume": null}`, "ACTIVE", "running"},
		{`{"rescue": {}}`, "RESCUE", "running"},
		{`{"unrescue": null}`, "ACTIVE", "running"},
		{`{"rebuild": {"imageRef": "` + image + `"}}`, "ACTIVE", "running"},
		{`{"createImage": {"name": "copy"}}`, "ACTIVE", "running"},
		{`{"changePassword": {"adminPass": "secret"}}`, "ACTIVE", "running"},
		{`{"createBackup": {"name": "b", "backup_type": "daily", "rotation": 1}}`, "ACTIVE", "running"},
		{`{"createBackup": {"name": "b", "backup_type": "daily", "rotation": 0}}`, "ACTIVE", "running"},
		{`{"shelve": null}`, "SHELVED_OFFLOADED", ""},
		{`{"unshelve": null}`, "ACTIVE", "running"},
	} {
		for _, id := range ids {
			if err := a.ask(http.MethodPost, step.body, nil, "servers", id, "action"); err != nil {
				a.Errorf("%s: %v", step.body, err)
			}
		}
		for _, p := range [][2]string{{"conductor", "c-1"}, {"compute", "node-1"}, {"compute", "node-2"}} {
			waittest.Spend(time.Duration(rng.IntN(60))*time.Millisecond, "the work before the process is killed")
			a.procs[p[1]].Kill()
			a.start(p[0], p[1])
		}
		for _, id := range ids {
			a.becomes(id, step.status)
			if step.power == "" {
				continue
			}
			a.poll("the driver to agree after "+step.body, 30*time.Second, func() error { // repeated, because a call for another server may restart the driver
				var is struct{ State string }
				err := a.ask(http.MethodGet, "", &is, "servers", id, "diagnostics")
				if err == nil && !strings.EqualFold(is.State, step.power) {
					err = fmt.Errorf("the driver says %q, want %q", is.State, step.power)
				}
				return err
			})
		}
	}
	// The images of createImage stay. Those of the shelves and of the backups are removed from the hosts.
	a.poll("the removal of images", 90*time.Second, func() error {
		files, err := filepath.Glob(filepath.Join(a.dir, "instances", "*", "images", "*"))
		if err == nil && len(files) != len(ids) {
			err = fmt.Errorf("the hosts have %d images, want %d: %v", len(files), len(ids), files)
		}
		return err
	})
	for _, id := range ids {
		var past struct {
			InstanceActions []struct{ Action, Message string }
		}
		if err := a.ask(http.MethodGet, "", &past, "servers", id, "os-instance-actions"); err != nil || len(past.InstanceActions) < 13 {
			a.Errorf("actions on a server: %+v, %v", past, err)
		}
		for _, one := range past.InstanceActions {
			if one.Message != "" {
				a.Errorf("%s has failed: %s", one.Action, one.Message)
			}
		}
	}
}

// ask sends a request, and decodes the reply into out, which may be nil.
func (a *actions) ask(method, body string, out any, path ...string) error {
	a.Helper()
	opts := &gophercloud.RequestOpts{JSONResponse: out, OkCodes: []int{200, 202}, MoreHeaders: map[string]string{"Content-Type": "application/json"}}
	if body != "" {
		opts.RawBody = strings.NewReader(body)
	}
	if out == nil {
		opts.KeepResponseBody = true
	}
	resp, err := a.cl.Request(a.Context(), method, a.cl.ServiceURL(path...), opts)
	if err == nil && out == nil {
		err = resp.Body.Close()
	}
	return err
}

// testFailures: an action that the driver cannot do leaves the server unchanged. A deletion does not wait for an action that
// hangs; deleteAll checks that this server is deleted.
func (a *actions) testFailures() {
	a.Helper()
	if err := servers.Stop(a.Context(), a.cl, a.broken).ExtractErr(); err != nil {
		a.Error(err)
	}
	a.becomes(a.broken, "ACTIVE")
	// The reboot hangs, so only the deletion can end the reboot. The compute service is killed, too.
	if err := servers.Reboot(a.Context(), a.cl, a.hangs, servers.RebootOpts{Type: servers.HardReboot}).ExtractErr(); err != nil {
		a.Error(err)
	}
	got, err := servers.Get(a.Context(), a.cl, a.hangs).Extract()
	if err != nil || got.Status != "HARD_REBOOT" {
		a.Errorf("a server that reboots is %s, %v", got.Status, err)
	}
	host := got.Host
	if err := servers.Delete(a.Context(), a.cl, a.hangs).ExtractErr(); err != nil {
		a.Error(err)
	}
	a.procs[host].Kill()
	a.start("compute", host)
}
