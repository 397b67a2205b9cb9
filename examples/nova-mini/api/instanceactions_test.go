package api_test

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/reqctx"
	ops "github.com/armature-go/armature/service/operation"
)

// TestInstanceActions: the actions on a server are listed by request, with their events. The fields depend on the version and the role. The list exists
// also after the deletion of the server.
func TestInstanceActions(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		ctx := t.Context()
		id := c.addActive("a")
		const other = "6f70656e737461636b20342065766572" // a client of another project
		at := "/servers/" + id + "/os-instance-actions"
		do := func(who, body string) (request string) {
			c.Helper()
			w := c.send("2.1", who, http.MethodPost, "/v2.1/servers/"+id+"/action", body)
			if w.Code != http.StatusAccepted {
				t.Fatalf("%s: %d %s", body, w.Code, w.Body)
			}
			return w.Header().Get("X-Openstack-Request-Id")
		}
		actions := func(version, query string) (out []item, links bool) {
			c.Helper()
			status, reply := c.askAt(version, "member", "GET", at+query, "")
			var got struct {
				InstanceActions []item
				Links           []item
			}
			if err := json.Unmarshal([]byte(reply), &got); err != nil || status != 200 {
				t.Fatalf("%s at %s: %d %s", query, version, status, reply)
			}
			return got.InstanceActions, got.Links != nil
		}
		lock := do("admin", `{"lock": null}`)
		pause := do("admin", `{"pause": null}`)
		// The host reports that the action has failed.
		op, err := c.store.Operations().Current(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		running, _ := c.askAt("2.84", "admin", "GET", at+"/"+pause, "")
		if running != 200 {
			t.Errorf("a running action: %d", running)
		}
		c.exec(`UPDATE operations SET state = 'failed', active = NULL, due_at = NULL, ended_at = updated_at, step_name = 'act', steps = '["act"]', events = 1, error = 'no power', error_code = 'Internal' WHERE id = ?`, op.ID)
		c.exec(`INSERT INTO operation_events (operation_id, seq, step, result, host, reporter, error_code, error, began_at, ended_at) VALUES (?, 0, 'act', 'failed', 'c1', 'n1', 'Internal', 'no power', ?, ?)`,
			op.ID, time.Now().UTC(), time.Now().UTC())
		reset := do("admin", `{"os-resetState": {"state": "active"}}`)

		list, links := actions("2.1", "?limit=1")
		if len(list) != 3 || links {
			t.Fatalf("%v, links %v", list, links)
		}
		for i, want := range []struct {
			action, request, message string
		}{{"resetState", reset, ""}, {"pause", pause, "Error"}, {"lock", lock, ""}} {
			if a := list[i]; a.text("action") != want.action || a.text("request_id") != want.request || a.text("message") != want.message || a.text("instance_uuid") != id ||
				a.text("user_id") != "root" || a.text("project_id") != "p1" || a["updated_at"] != nil {
				t.Errorf("action %d: %v, want %v", i, a, want)
			}
		}
		one, links := actions("2.58", "?limit=1")
		next, _ := actions("2.58", "?limit=1&marker="+reset)
		if len(one) != 1 || !links || one[0].text("updated_at") == "" || len(next) != 1 || next[0].text("action") != "pause" {
			t.Errorf("pages: %v, links %v, %v", one, links, next)
		}
		for query, want := range map[string]int{"?limit=0": 0, "?changes-since=2020-01-01T00:00:00Z": 3, "?changes-since=2220-01-01T00:00:00Z": 0, "?changes-before=2020-01-01T00:00:00Z": 0} {
			if got, _ := actions("2.66", query); len(got) != want {
				t.Errorf("%s: %v, want %d", query, got, want)
			}
		}
		for _, tt := range []struct {
			version, query, says string
		}{
			{"2.58", "?marker=none", "Marker none could not be found."},
			{"2.58", "?changes-before=2020-01-01T00:00:00Z", "changes-before"},
			{"2.66", "?changes-since=2021-01-01T00:00:00Z&changes-before=2020-01-01T00:00:00Z", "The value of changes-since must be less than or equal to changes-before."},
			{"2.58", "?what=1", "what"},
		} {
			if status, reply := c.askAt(tt.version, "member", "GET", at+tt.query, ""); status != 400 || !strings.Contains(reply, tt.says) {
				t.Errorf("%s at %s: %d %s", tt.query, tt.version, status, reply)
			}
		}

		for _, v := range []string{"", "v2.21", "v2.51", "v2.58", "v2.62", "v2.66", "v2.84"} {
			version := cmp.Or(strings.TrimPrefix(v, "v"), "2.1")
			for file, path := range map[string]string{
				"instance-actions-list-resp.json": at, "instance-actions-list-with-limit-resp.json": at + "?limit=1",
				"instance-actions-list-with-marker-resp.json": at + "?marker=" + reset, "instance-actions-list-with-changes-since.json": at + "?changes-since=2020-01-01T00:00:00Z",
				"instance-actions-list-with-changes-before.json": at + "?changes-before=2200-01-01T00:00:00Z",
				"instance-action-get-resp.json":                  at + "/" + pause, "instance-action-get-non-admin-resp.json": at + "/" + pause,
			} {
				sample, ok := readSample(t, filepath.Join(samplesRoot, "os-instance-actions", v, file))
				if !ok {
					continue
				}
				who := "admin"
				if strings.Contains(file, "non-admin") {
					who = "member"
				}
				status, reply := c.askAt(version, who, "GET", path, "")
				if status != 200 {
					t.Errorf("%s at %s: %d %s", path, version, status, reply)
				}
				const failed = "the sample's action has not failed"
				compareSample(t, v+"/"+file, sample, reply, map[string]string{
					"instanceActions[].message": failed, "instanceAction.message": failed, "instanceAction.events[].traceback": failed, "instanceAction.events[].details": failed,
				}, map[string]bool{})
			}
		}
		for _, tt := range []struct {
			version, who string
			keys         string // the keys of the event in the reply
		}{
			{"2.1", "member", ""},
			{"2.1", "admin", "event finish_time result start_time traceback"},
			{"2.51", "member", "event finish_time result start_time"},
			{"2.62", "member", "event finish_time hostId result start_time"},
			{"2.84", "member", "event finish_time hostId result start_time"},
			{"2.84", "admin", "details event finish_time host hostId result start_time traceback"},
		} {
			status, reply := c.askAt(tt.version, tt.who, "GET", at+"/"+pause, "")
			var got struct {
				InstanceAction struct {
					Message string
					Events  []map[string]any
				}
			}
			if err := json.Unmarshal([]byte(reply), &got); err != nil || status != 200 || got.InstanceAction.Message != "Error" {
				t.Fatalf("%s at %s: %d %s", tt.who, tt.version, status, reply)
			}
			if tt.keys == "" {
				if strings.Contains(reply, "events") {
					t.Errorf("%s at %s sees events: %s", tt.who, tt.version, reply)
				}
				continue
			}
			if len(got.InstanceAction.Events) != 1 {
				t.Fatalf("%s at %s: %s", tt.who, tt.version, reply)
			}
			e := got.InstanceAction.Events[0]
			if diff := gocmp.Diff(strings.Fields(tt.keys), slices.Sorted(maps.Keys(e))); diff != "" || e["event"] != "compute_pause_instance" || e["result"] != "Error" {
				t.Errorf("%s at %s: %v (-want +got):\n%s", tt.who, tt.version, e, diff)
			}
			if tt.who == "admin" && e["traceback"] != "no power" || tt.version == "2.84" && tt.who == "admin" && (e["host"] != "n1" || e["details"] != "Failed to pause instance "+id+".") {
				t.Errorf("%s at %s: %v", tt.who, tt.version, e)
			}
		}
		if status, reply := c.ask("member", "GET", at+"/req-none", ""); status != 404 || !strings.Contains(reply, "Action req-none not found") {
			t.Errorf("an action that does not exist: %d %s", status, reply)
		}
		for _, path := range []string{at, at + "/" + lock} {
			if status, _ := c.ask(other, "GET", path, ""); status != 404 {
				t.Errorf("%s by another project: %d", path, status)
			}
		}
		if err := db.Tx(ctx, c.db, func(ctx context.Context, tx *sqlx.Tx) error { return c.store.Remove(ctx, tx, id) }); err != nil {
			t.Fatal(err)
		}
		for version, want := range map[string]int{"2.20": 404, "2.21": 200} {
			for _, path := range []string{at, at + "/" + lock} {
				if status, reply := c.askAt(version, "member", "GET", path, ""); status != want {
					t.Errorf("%s of a deleted server at %s: %d %s, want %d", path, version, status, reply, want)
				}
				if status, _ := c.askAt(version, other, "GET", path, ""); status != 404 {
					t.Errorf("%s of a deleted server by another project: %d", path, status)
				}
			}
		}
	})
}

// TestInterfaceChanges: the client waits for the end of the change of an interface, and gets the error of the network service. It does not get the details of an error of the host. The change is an
// action with the time of its start and that of its end.
func TestInterfaceChanges(t *testing.T) {
	t.Parallel()
	const slow = 50 * time.Millisecond
	for _, tt := range []struct {
		failed error
		status int
		text   string
	}{
		{nil, 202, ""},
		{fault.New(fault.Internal, "secret bridge"), 500, "Unexpected API Error."},
		{fault.New(fault.NotFound, "Port id p1 could not be found."), 404, "Port id p1 could not be found."},
		{ops.Permanent(fault.New(fault.Unavailable, "secret host")), 503, "Failed to detach network adapter device from "},
		{fault.New(fault.Unimplemented, "secret"), 501, "The driver of the host cannot detach interfaces."},
		{fault.New(fault.Conflict, "the network service refuses to release port p1"), 409, "the network service refuses to release port p1"},
		{fault.New(fault.Exhausted, "No fixed IP addresses available for network: n"), 400, "No fixed IP addresses available for network: n"},
	} {
		eachCloudOf(t, api.Rules(), nil, nil, func(c *cloud) {
			runner := ops.NewRunner(ops.RunnerConfig{Store: c.store.Operations(), Host: "c", Poll: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
			ops.Handle(runner, store.DetachInterface, ops.Step[store.InterfaceData]{Name: "detach", Do: func(context.Context, *ops.Op, *store.InterfaceData) error {
				waittest.Spend(slow, "the work of the driver")
				return tt.failed
			}})
			if err := runner.Start(c.Context()); err != nil {
				t.Fatal(err)
			}
			c.Cleanup(func() { _ = runner.Stop(context.Background()) })
			id := c.addActive("a")
			if err := c.store.ChangePorts(c.Context(), id, func(s *store.Server) error {
				s.Networks.V = &network.Wanted{Interfaces: []network.Interface{{Port: network.Port{ID: "p1"}}}}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			got := c.send("2.1", "member", "DELETE", "/v2.1/servers/"+id+"/os-interface/p1", "")
			if body := got.Body.String(); got.Code != tt.status || !strings.Contains(body, tt.text) || strings.Contains(body, "secret") {
				t.Errorf("after %v: %d %s, want %d %s", tt.failed, got.Code, body, tt.status, tt.text)
			}
			past, err := c.store.PastAction(c.Context(), id, got.Header().Get("X-Openstack-Request-Id"))
			if err != nil || len(past.Events) != 1 || past.Failed != (tt.failed != nil) {
				t.Fatalf("the action after %v: %+v, %v", tt.failed, past, err)
			}
			if e := past.Events[0]; e.Finish.Sub(e.Start) < slow || !past.Start.Equal(e.Start) || past.Updated.Sub(past.Start) < slow || (e.Error != "") != (tt.failed != nil) {
				t.Errorf("the action from %v, changed at %v, with the event %+v", past.Start, past.Updated, e)
			}
		}, func(cfg *api.Config) { cfg.Network = new(network.Neutron) })
	}
}

// TestInterfaceActions: a change of the interfaces of a server is an action, also if it fails. A change that the state of the server does
// not allow is not recorded.
func TestInterfaceActions(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		id := c.launched()
		failed := c.send("2.1", "member", "POST", "/v2.1/servers/"+id+"/os-interface", `{"interfaceAttachment": {}}`)
		if failed.Code != 400 {
			t.Fatalf("attach without a network: %d %s", failed.Code, failed.Body)
		}
		if err := c.store.RecordAction(reqctx.With(c.Context(), reqctx.Request{ID: "req-detach"}), id, compute.DetachInterface, time.Now(), nil); err != nil {
			t.Fatal(err)
		}
		c.exec(`UPDATE servers SET vm_state = 'suspended'`)
		c.want(409, "2.1", "member", "POST", "/servers/"+id+"/os-interface", `{"interfaceAttachment": {}}`)
		past, err := c.store.PastActions(c.Context(), id, store.PastQuery{Limit: 10})
		if err != nil || len(past) != 3 || past[0].Name != "detach_interface" || past[0].Failed || past[1].Name != "attach_interface" || !past[1].Failed || past[2].Name != "create" {
			t.Errorf("%+v, %v", past, err)
		}
		if _, reply := c.askAt("2.84", "admin", "GET", "/servers/"+id+"/os-instance-actions/req-detach", ""); !strings.Contains(reply, `"event":"compute_detach_interface"`) || !strings.Contains(reply, `"result":"Success"`) {
			t.Errorf("the detachment: %s", reply)
		}
		request := failed.Header().Get("X-Openstack-Request-Id")
		_, reply := c.askAt("2.84", "admin", "GET", "/servers/"+id+"/os-instance-actions/"+request, "")
		for _, want := range []string{`"message":"Error"`, `"event":"compute_attach_interface"`, "No specific network was requested", `"details":"Failed to attach_interface instance ` + id} {
			if !strings.Contains(reply, want) {
				t.Errorf("%s\nlacks %s", reply, want)
			}
		}
	})
}
