package api_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/reqctx"
)

// addActive adds an active server of the project p1 on the host n1, and returns the server's ID.
func (c *cloud) addActive(name string) string {
	c.Helper()
	srv := &store.Server{ID: fmt.Sprintf("00000000-0000-4000-8000-%012x", name), Name: name, ProjectID: "p1", UserID: "u1", FlavorID: "1", VCPUs: 1, MemoryMiB: 512, DiskGiB: 1}
	if err := c.store.CreateServer(reqctx.With(c.Context(), people["member"]), srv); err != nil {
		c.Fatal(err)
	}
	c.exec(`UPDATE operations SET state = 'succeeded', active = NULL, due_at = NULL WHERE active = ?`, srv.ID)
	c.exec(`UPDATE servers SET vm_state = 'active', host = 'n1', launched_at = created_at WHERE id = ?`, srv.ID)
	return srv.ID
}

func (c *cloud) exec(query string, args ...any) {
	c.Helper()
	if _, err := c.db.ExecContext(c.Context(), query, args...); err != nil {
		c.Fatal(err)
	}
}

// act sends an action.
func (c *cloud) act(who, id, body string) (status int, reply string) {
	c.Helper()
	return c.ask(who, http.MethodPost, "/servers/"+id+"/action", body)
}

// wantAct sends an action. It fails the test unless the reply has the given status, and contains the text in the parameter says.
func (c *cloud) wantAct(who, id, body string, status int, says string) {
	c.Helper()
	if got, reply := c.act(who, id, body); got != status || !strings.Contains(reply, says) {
		c.Errorf("%s by %s = %d %s; want %d %s", body, who, got, reply, status, says)
	}
}

// bodies has a valid body for each action that needs a body.
var bodies = map[string]string{
	"rebuild": `{"imageRef": "208655eb-63a9-42b9-b006-4a93cb26dfa8"}`, "createImage": `{"name": "i"}`, "changePassword": `{"adminPass": "x"}`,
	"createBackup": `{"name": "b", "backup_type": "daily", "rotation": "1"}`, "os-getVNCConsole": `{"type": "novnc"}`, "os-getSPICEConsole": `{"type": "spice-html5"}`,
	"os-getSerialConsole": `{"type": "serial"}`, "reboot": `{"type": "HARD"}`, "resize": `{"flavorRef": "2"}`, "rescue": `{}`, "os-resetState": `{"state": "active"}`, "os-getConsoleOutput": `{}`,
	"addFixedIp": `{"networkId": "n"}`, "removeFixedIp": `{"address": "10.0.0.4"}`,
}

// body returns a valid body of an action.
func body(info compute.ActionInfo) string {
	in := bodies[info.Request]
	if in == "" {
		in = "null"
	}
	return `{"` + info.Request + `": ` + in + `}`
}

// TestLock: while a server is locked, members of its project can neither send actions nor delete the server; administrators can. A member can
// unlock a server that a member has locked. Only an administrator can unlock a server that an administrator has locked.
func TestLock(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		id := c.addActive("a")
		c.wantAct("stranger", id, `{"lock": null}`, 404, "could not be found")
		c.wantAct("member", id, `{"lock": null}`, 202, "")
		for _, info := range compute.Actions {
			if info.WhenLocked || info.Admin || info.Request == "" {
				continue
			}
			c.at = info.Added
			c.wantAct("member", id, body(info), 409, "Instance "+id+" is locked")
		}
		c.at = ""
		if status, reply := c.ask("member", "DELETE", "/servers/"+id, ""); status != 409 || !strings.Contains(reply, "Instance "+id+" is locked") {
			t.Errorf("deletion of a locked server: %d %s", status, reply)
		}
		if status, reply := c.ask("member", "PUT", "/servers/"+id+"/metadata", `{"metadata": {}}`); status != 409 || !strings.Contains(reply, "Instance "+id+" is locked") {
			t.Errorf("metadata of a locked server: %d %s", status, reply)
		}
		c.wantAct("admin", id, `{"os-stop": null}`, 202, "")
		c.wantAct("member", id, `{"unlock": null}`, 202, "")
		c.wantAct("member", id, `{"os-stop": null}`, 409, "task_state powering-off")

		other := c.addActive("b")
		c.wantAct("boss", other, `{"lock": null}`, 202, "") // an administrator of another project
		c.wantAct("member", other, `{"lock": null}`, 202, "")
		c.wantAct("member", other, `{"unlock": null}`, 403, "os_compute_api:os-lock-server:unlock:unlock_override")
		c.wantAct("member", other, `{"pause": null}`, 409, "is locked")
		c.wantAct("boss", other, `{"unlock": null}`, 202, "")
		c.wantAct("member", other, `{"pause": null}`, 202, "")
	})
}

// TestResetState: only administrators can reset the state of a server. The reset ends the task, and a compute service that asks learns that the
// action is no longer wanted.
func TestResetState(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		id := c.addActive("a")
		c.wantAct("member", id, `{"os-resetState": {"state": "error"}}`, 403, "reset_state")
		c.wantAct("admin", id, `{"os-resetState": {"state": "gone"}}`, 400, "is not one of ['active', 'error']")
		c.wantAct("member", id, `{"pause": null}`, 202, "")
		op, err := c.store.Operations().Current(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		for _, state := range []string{store.Error, store.Active} {
			c.wantAct("admin", id, `{"os-resetState": {"state": "`+state+`"}}`, 202, "")
			if srv, err := c.store.Server(t.Context(), id); err != nil || srv.VMState != state || srv.Task() != "" {
				t.Errorf("after a reset to %s: %+v, %v", state, srv, err)
			}
		}
		if err := c.store.Operations().Wanted(t.Context(), op.Token, "n1"); err == nil {
			t.Error("the action is wanted after the reset")
		}
	})
}

// TestRefusedActions: an action is refused with Nova's text and without effect if the state of the server does not allow the action, the server
// has no host, or the driver of the host does not have the capability.
func TestRefusedActions(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		report := compute.HostReport{Host: "n1", Driver: "d", Resources: compute.Resources{VCPUs: 9, MemoryMiB: 9 << 10, DiskGiB: 99}}
		host := func() {
			c.Helper()
			if err := c.store.ReportHost(t.Context(), &report, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
				t.Fatal(err)
			}
		}
		host()
		id := c.addActive("a")
		for _, info := range compute.Actions {
			if len(info.From) == 0 || info.Request == "" {
				continue
			}
			c.exec(`UPDATE servers SET vm_state = 'building'`)
			says := "Cannot '" + info.Name + "' instance " + id + " while it is in vm_state building"
			if info.Action == compute.HardReboot {
				continue // a hard reboot has the same name in requests as the soft reboot
			}
			c.at = info.Added
			c.wantAct("admin", id, body(info), 409, says)
		}
		c.at = ""
		c.exec(`UPDATE servers SET vm_state = 'error', host = NULL`)
		c.wantAct("member", id, `{"os-stop": null}`, 409, "Instance "+id+" is not ready")
		c.exec(`UPDATE servers SET vm_state = 'active', host = 'n1'`)
		c.wantAct("member", id, `{"pause": null}`, 202, "") // the host has not reported its capabilities
		c.wantAct("member", id, `{"os-stop": null}`, 409, "Cannot 'stop' instance "+id+" while it is in task_state pausing")
		c.wantAct("admin", id, `{"os-resetState": {"state": "active"}}`, 202, "")
		report.Capabilities = append(report.Capabilities, compute.CapSuspend)
		host()
		c.wantAct("member", id, `{"pause": null}`, 501, "The requested functionality is not supported.")
		if srv, err := c.store.Server(t.Context(), id); err != nil || srv.Task() != "" {
			t.Errorf("after a refused action: %+v, %v", srv, err)
		}
		c.wantAct("member", id, `{"changePassword": {"adminPass": "x"}}`, 501, "Unable to set password on instance")
		backup := `{"createBackup": {"name": "b", "backup_type": "daily", "rotation": 1}}`
		for _, one := range []driver.Capability{"", compute.CapSnapshot} {
			report.Capabilities = append(report.Capabilities, one)
			host()
			c.wantAct("member", id, backup, 501, "The requested functionality is not supported.")
		}
		report.Capabilities = append(report.Capabilities, compute.CapRemoveImage)
		host()
		c.wantAct("member", id, backup, 202, "")
		c.wantAct("admin", id, `{"os-resetState": {"state": "active"}}`, 202, "")
		c.wantAct("member", id, `{"suspend": null}`, 202, "")
	})
}

// TestRescuePassword: the reply of a rescue has the password of the request, or a generated password. The guest gets this password.
func TestRescuePassword(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		const image = "208655eb-63a9-42b9-b006-4a93cb26dfa8"
		c.wantAct("member", c.addActive("a"), `{"rescue": {"adminPass": "secret", "rescue_image_ref": "`+image+`"}}`, 200, `{"adminPass":"secret"}`)
		c.wantAct("member", c.addActive("b"), `{"rescue": null}`, 200, `{"adminPass":"`)
		c.wantAct("member", c.addActive("f"), `{"rescue": {"adminPass": ""}}`, 200, `{"adminPass":""}`)
		c.wantAct("member", c.addActive("g"), `{"rescue": {"adminPass": null}}`, 400, "adminPass")
		c.wantAct("member", c.addActive("c"), `{"rescue": {"rescue_image_ref": ""}}`, 400, "rescue_image_ref")
		var kept []string
		if err := c.db.SelectContext(c.Context(), &kept, `SELECT COALESCE(admin_pass, '') FROM servers ORDER BY name`); err != nil || len(kept) != 5 || kept[0] != "secret" || kept[1] == "" || kept[2] != "" || kept[3] != "" {
			t.Errorf("the passwords for the guests: %q, %v", kept, err)
		}
		// The state of the server is checked before the image.
		id := c.addActive("d")
		c.exec(`UPDATE servers SET vm_state = 'suspended' WHERE id = ?`, id)
		c.wantAct("member", id, `{"rescue": {"rescue_image_ref": "`+strings.Repeat("x", 200)+`"}}`, 409, "while it is in vm_state suspended")
	})
}

// TestVersionsOfActions: the body and the reply of an action depend on the microversion.
func TestVersionsOfActions(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		const image = "208655eb-63a9-42b9-b006-4a93cb26dfa8"
		report := compute.HostReport{Host: "n1", Driver: "d", Resources: compute.Resources{VCPUs: 9, MemoryMiB: 9 << 10, DiskGiB: 99}}
		if err := c.store.ReportHost(t.Context(), &report, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
			t.Fatal(err)
		}
		id := c.addActive("a")
		offload := func() { c.exec(`UPDATE servers SET vm_state = 'shelved_offloaded', host = NULL WHERE id = ?`, id) }
		reset := func() {
			c.wantAct("admin", id, `{"os-resetState": {"state": "error"}}`, 202, "") // active does not end an unshelve
			c.wantAct("admin", id, `{"os-resetState": {"state": "active"}}`, 202, "")
			c.exec(`UPDATE servers SET host = 'n1' WHERE id = ?`, id)
		}
		for _, tt := range []struct {
			version, body string
			status        int
			says          string
		}{
			{"2.72", `{"lock": 1}`, 202, ""}, // any value
			{"2.73", `{"lock": {"locked_reason": ""}}`, 400, "locked_reason"},
			{"2.73", `{"lock": {"reason": "x"}}`, 400, "Additional properties are not allowed"},
			{"2.73", `{"lock": 1}`, 400, "lock"},
			{"2.73", `{"unlock": null}`, 202, ""},
			{"2.73", `{"lock": {"locked_reason": "hands off"}}`, 202, ""},
			{"2.44", `{"createImage": {"name": "i"}}`, 202, ""},
			{"2.45", `{"createImage": {"name": "i"}}`, 202, `{"image_id":"`},
			{"2.1", `{"createBackup": {"name": "b", "backup_type": "daily", "rotation": "1"}}`, 202, ""},
			{"2.45", `{"createBackup": {"name": "b", "backup_type": "daily", "rotation": 0, "metadata": {"k": "v"}}}`, 202, `{"image_id":"`},
			{"2.1", `{"createBackup": {"name": "b", "backup_type": "daily", "rotation": -1}}`, 400, "rotation"},
			{"2.1", `{"createBackup": {"name": "b", "backup_type": "daily", "rotation": 7.0}}`, 400, "rotation must be an integer"},
			{"2.45", `{"createBackup": {"name": "b", "backup_type": "daily", "rotation": 1e1}}`, 400, "rotation must be an integer"},
			{"2.45", `{"createBackup": {"name": "b", "backup_type": "daily", "rotation": "2147483648"}}`, 400, "rotation must be <= 2147483647"},
			{"2.45", `{"createBackup": {"name": "b", "backup_type": "daily", "rotation": "99999999999999999999"}}`, 400, "rotation must be <= 2147483647"},
			{"2.1", `{"os-getConsoleOutput": {"length": 1e1}}`, 400, "length must be an integer"},
			{"2.1", `{"createBackup": {"name": "b", "backup_type": "daily"}}`, 400, "rotation"},
			{"2.1", `{"createBackup": {"name": "b", "backup_type": 1, "rotation": 1}}`, 400, "backup_type"},
			{"2.1", `{"changePassword": {"adminPass": ""}}`, 202, ""},
			{"2.1", `{"changePassword": {"adminPass": null}}`, 400, "adminPass"},
			{"2.1", `{"changePassword": {}}`, 400, "adminPass"},
			{"2.1", `{"rebuild": {"imageRef": "` + image + `"}}`, 202, `"adminPass":"`},
			{"2.75", `{"rebuild": {"imageRef": "` + image + `", "adminPass": "secret", "name": "again", "metadata": {"a": "b"}}}`, 202, `"OS-EXT-STS:task_state":"rebuilding"`},
			{"2.1", `{"os-getSerialConsole": {"type": "serial"}}`, 400, "Unavailable console type serial."},
			{"2.5", `{"os-getVNCConsole": {"type": "xvpvnc"}}`, 400, "Unavailable console type xvpvnc."},
			{"2.6", `{"os-getVNCConsole": {"type": "novnc"}}`, 404, "The resource could not be found."},
			{"2.76", `{"unshelve": {"availability_zone": "x"}}`, 202, ""}, // any value
			{"2.77", `{"unshelve": {}}`, 400, "availability_zone"},
			{"2.77", `{"unshelve": {"availability_zone": "moon"}}`, 400, "The requested availability zone is not available"},
			{"2.77", `{"unshelve": {"availability_zone": "nova"}}`, 202, ""},
			{"2.91", `{"unshelve": {"availability_zone": null}}`, 202, ""},
			{"2.91", `{"unshelve": {"host": "moon"}}`, 400, "Compute host moon could not be found."},
			{"2.91", `{"unshelve": {"host": "n1"}}`, 202, ""},
			{"2.1", `{"rebuild": {"imageRef": "` + image + `", "description": "x"}}`, 400, "Additional properties are not allowed"},
			{"2.19", `{"rebuild": {"imageRef": "` + image + `", "description": "x"}}`, 202, `"description":"x"`},
			{"2.19", `{"rebuild": {"imageRef": "` + image + `"}}`, 202, `"description":"x"`},
			{"2.19", `{"rebuild": {"imageRef": "` + image + `", "description": null}}`, 202, `"description":null`},
			{"2.54", `{"rebuild": {"imageRef": "` + image + `", "key_name": "none"}}`, 400, "Invalid key_name provided."},
			{"2.54", `{"rebuild": {"imageRef": "` + image + `", "key_name": null}}`, 202, `"key_name":null`},
			{"2.57", `{"rebuild": {"imageRef": "` + image + `", "user_data": "?"}}`, 400, "user_data"},
			{"2.57", `{"rebuild": {"imageRef": "` + image + `", "user_data": "eA=="}}`, 202, `"user_data":"eA=="`},
			{"2.57", `{"rebuild": {"imageRef": "` + image + `"}}`, 202, `"user_data":"eA=="`},
			{"2.57", `{"rebuild": {"imageRef": "` + image + `", "user_data": null}}`, 202, `"user_data":null`},
			{"2.57", `{"rebuild": {"imageRef": "` + image + `", "personality": []}}`, 400, "personality"},
			{"2.63", `{"rebuild": {"imageRef": "` + image + `", "trusted_image_certificates": ["a"]}}`, 501, "not supported"},
			{"2.90", `{"rebuild": {"imageRef": "` + image + `", "hostname": "a.b"}}`, 400, "hostname"},
			{"2.94", `{"rebuild": {"imageRef": "` + image + `", "hostname": "a.b"}}`, 202, `"OS-EXT-SRV-ATTR:hostname":"a.b"`},
			{"2.1", `{"rebuild": {"imageRef": "` + image + `", "preserve_ephemeral": true}}`, 501, "preserved"},
			{"2.1", `{"rebuild": {"imageRef": "` + image + `", "OS-DCF:diskConfig": "AUTO", "accessIPv6": "fe80:0::1"}}`, 202, `"accessIPv6":"fe80::1"`},
			{"2.91", `{"unshelve": null}`, 202, ""},
		} {
			reset()
			if strings.Contains(tt.body, "unshelve") {
				offload()
			}
			if status, reply := c.askAt(tt.version, "admin", http.MethodPost, "/servers/"+id+"/action", tt.body); status != tt.status || !strings.Contains(reply, tt.says) {
				t.Errorf("%s at %s: %d %s; want %d %s", tt.body, tt.version, status, reply, tt.status, tt.says)
			}
			if strings.Contains(tt.body, "hands off") {
				if _, reply := c.askAt("2.73", "member", "GET", "/servers/"+id, ""); !strings.Contains(reply, `"locked":true`) || !strings.Contains(reply, `"locked_reason":"hands off"`) {
					t.Errorf("a locked server: %s", reply)
				}
			}
		}
		reset()
		if status, reply := c.askAt("2.91", "admin", http.MethodPost, "/servers/"+id+"/action", `{"unshelve": {"availability_zone": "nova"}}`); status != 409 || !strings.Contains(reply, "vm_state active") {
			t.Errorf("unshelve of an active server: %d %s", status, reply)
		}
		c.exec(`UPDATE servers SET vm_state = 'shelved' WHERE id = ?`, id)
		if status, reply := c.askAt("2.91", "admin", http.MethodPost, "/servers/"+id+"/action", `{"unshelve": {"availability_zone": "nova"}}`); status != 409 || !strings.Contains(reply, "must be SHELVED_OFFLOADED") {
			t.Errorf("unshelve of a server on its host in a zone: %d %s", status, reply)
		}
		for version, body := range map[string]string{
			"2.6": `{"remote_console": {"protocol": "vnc", "type": "novnc"}}`, "2.8": `{"remote_console": {"protocol": "mks", "type": "webmks"}}`,
			"2.99": `{"remote_console": {"protocol": "spice", "type": "spice-direct"}}`,
		} {
			if status, reply := c.askAt(version, "member", http.MethodPost, "/servers/"+id+"/remote-consoles", body); status != 400 || !strings.Contains(reply, "Unavailable console type ") {
				t.Errorf("%s at %s: %d %s", body, version, status, reply)
			}
		}
		if status, _ := c.askAt("2.5", "member", http.MethodPost, "/servers/"+id+"/remote-consoles", `{"remote_console": {"protocol": "vnc", "type": "novnc"}}`); status != 404 {
			t.Errorf("a console at 2.5: %d", status)
		}
	})
}

// TestBackupReplies: before 2.45, the reply to createBackup names the image in a header, if the image is kept. Until 2.38, the metadata of createBackup and createImage have the same
// limit as the metadata of a server.
func TestBackupReplies(t *testing.T) {
	t.Parallel()
	eachCloudLimited(t, store.Limits{store.Metadata: 1}, func(c *cloud) {
		id := c.addActive("a")
		for _, tt := range []struct {
			version, rotation, metadata string
			status                      int
			location                    bool
		}{
			{"2.1", "1", `{}`, 202, true},
			{"2.1", "0", `{}`, 202, false},
			{"2.38", "1", `{"a": "b", "c": "d"}`, 403, false},
			{"2.39", "1", `{"a": "b", "c": "d"}`, 202, true},
			{"2.45", "1", `{"a": "b", "c": "d"}`, 202, false},
		} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v2.1/servers/"+id+"/action",
				strings.NewReader(`{"createBackup": {"name": "b", "backup_type": "t", "rotation": `+tt.rotation+`, "metadata": `+tt.metadata+`}}`))
			r.Header.Set("X-Auth-Token", "member")
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("OpenStack-API-Version", "compute "+tt.version)
			w := httptest.NewRecorder()
			c.ServeHTTP(w, r)
			if at := w.Header().Get("Location"); w.Code != tt.status || (at != "") != tt.location || at != "" && !strings.Contains(at, "/images/") {
				t.Errorf("%+v: %d, Location %q, %s", tt, w.Code, at, w.Body)
			}
			c.wantAct("admin", id, `{"os-resetState": {"state": "active"}}`, 202, "")
		}
		c.want(403, "2.38", "member", "POST", "/servers/"+id+"/action", `{"createImage": {"name": "i", "metadata": {"a": "b", "c": "d"}}}`)
		c.want(202, "2.39", "member", "POST", "/servers/"+id+"/action", `{"createImage": {"name": "i", "metadata": {"a": "b", "c": "d"}}}`)
	})
}

// TestCrashDump: since 2.17, members of the project can begin the action trigger_crash_dump, which sends an NMI to the guest.
func TestCrashDump(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		id := c.addActive("a")
		const dump = `{"trigger_crash_dump": null}`
		path := "/servers/" + id + "/action"
		c.want(404, "2.16", "member", "POST", path, dump)
		c.want(400, "2.17", "member", "POST", path, `{"trigger_crash_dump": {}}`)
		c.want(403, "2.17", "reader", "POST", path, dump)
		c.want(202, "2.17", "member", "POST", path, dump)
		if reply := c.want(409, "2.17", "member", "POST", path, `{"pause": null}`); !strings.Contains(reply, "task_state triggering_crash_dump") {
			c.Error(reply)
		}
		c.exec(`UPDATE servers SET vm_state = 'stopped'`)
		if reply := c.want(409, "2.17", "member", "POST", path, dump); !strings.Contains(reply, "Cannot 'trigger_crash_dump' instance "+id+" while it is in vm_state stopped") {
			c.Error(reply)
		}
	})
}
