package api_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// capture is a request to a real Nova (Zed), and its reply.
type capture struct {
	name    string // such as os-service-disable
	Request struct {
		Method, Path string
		Headers      map[string]string
		Body         json.RawMessage
	}
	Response struct {
		Status  int
		Headers [][2]string
		Body    any
	}
}

// capturesOf returns the captures of a microversion, in the order of the requests.
func capturesOf(t *testing.T, version string) (out []capture) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", "..", "..", "shared", "nova-api", "captures", version, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Skip("shared/nova-api is not beside this tree")
	}
	slices.Sort(files)
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var one capture
		if err := json.Unmarshal(raw, &one); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		_, one.name, _ = strings.Cut(strings.TrimSuffix(filepath.Base(file), ".json"), "-")
		out = append(out, one)
	}
	return out
}

// unreplayed has the captures that are not replayed, by the beginning of the name, with the reason.
var unreplayed = map[string]string{
	"aggregate": "nova-mini has no aggregates", "os-quota": "nova-mini has no quotas of projects", "quota-": "as os-quota", "error-403-quota-instances": "as os-quota; TestQuota has the text",
	"action-migrate": "nova-mini has no migration", "action-os-migrateLive": "as action-migrate", "action-evacuate": "as action-migrate", "server-show-after-live-migration": "as action-migrate",
	"server-migrations": "as action-migrate", "os-migrations": "as action-migrate", "action-injectNetworkInfo": "501: Nova accepts it without effect",
	"error-401": "the clients of this test have no tokens of Keystone", "error-400-bad-image": "without an image service each image exists; TestImages has the text",
	"error-404-route": "TestCaptures has it, with a reason for another text", "error-405-method": "as error-404-route", "error-415": "as error-404-route",
	"error-406": "the text names the highest version; TestCaptureOfVersion has it", "error-413": "Nova's server, and not Nova, answers with a text of its own",
}

// replayStates has the state of the server after the captures of actions.
var replayStates = map[string]string{
	"action-os-stop": store.Stopped, "action-os-start": store.Active, "action-pause": compute.VMPaused, "action-unpause": store.Active, "action-suspend": compute.VMSuspended, "action-resume": store.Active,
	"action-resize": store.Resized, "action-confirmResize": store.Active, "action-resize-back": store.Resized, "action-revertResize": store.Active, "action-rebuild": store.Active,
	"action-rescue": compute.VMRescued, "action-unrescue": store.Active, "action-shelve": compute.VMOffloaded, "action-unshelve": store.Active,
}

// replayedValues are the fields of a server whose values are compared, and not only their types.
var replayedValues = strings.Fields(`name status OS-EXT-STS:vm_state OS-EXT-STS:power_state OS-EXT-STS:task_state locked locked_reason config_drive progress OS-DCF:diskConfig metadata tags key_name addresses accessIPv4
	accessIPv6 OS-EXT-AZ:availability_zone host_status description OS-EXT-SRV-ATTR:hostname OS-EXT-SRV-ATTR:launch_index OS-EXT-SRV-ATTR:root_device_name OS-EXT-SRV-ATTR:kernel_id server_groups trusted_image_certificates`)

var isID = regexp.MustCompile(`^(req-)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$|^[0-9a-f]{32}$`)

// pairIDs adds the ids of a captured reply to a map: the values are those at the same places of nova-mini's reply. Items of lists are paired by their names.
func pairIDs(ids map[string]string, captured, got any) {
	switch captured := captured.(type) {
	case map[string]any:
		got, _ := got.(map[string]any)
		for name, v := range captured {
			pairIDs(ids, v, got[name])
		}
	case []any:
		got, _ := got.([]any)
		nameOf := func(v any) string {
			o, _ := v.(map[string]any)
			return fmt.Sprint(o["binary"], o["host"], o["hypervisor_hostname"], o["name"], o["action"])
		}
		for i, v := range captured {
			if at := slices.IndexFunc(got, func(one any) bool { return nameOf(one) == nameOf(v) }); at >= 0 {
				pairIDs(ids, v, got[at])
			} else if i < len(got) {
				pairIDs(ids, v, got[i])
			}
		}
	case string:
		if got, ok := got.(string); ok && isID.MatchString(captured) && ids[captured] == "" {
			ids[captured] = got
		}
	case float64:
		if got, ok := got.(float64); ok { // the numbers of hypervisors
			if key := fmt.Sprintf("/os-hypervisors/%.0f", captured); ids[key] == "" {
				ids[key] = fmt.Sprintf("/os-hypervisors/%.0f", got)
			}
		}
	}
}

// replaced returns a text with nova-mini's ids.
func replaced(ids map[string]string, text string) string {
	for captured, own := range ids {
		text = strings.ReplaceAll(text, captured, own)
	}
	return text
}

// TestCapturesReplayed sends the requests of the captures in their order. The statuses, the texts of errors and the headers are those of Nova, and replies have Nova's
// names and types. No other service runs, so the test sets the state that a server has after each action.
func TestCapturesReplayed(t *testing.T) { //nolint:tparallel // the end of the test needs the subtests of all versions
	t.Parallel()
	var used sync.Map // the keys of unreplayed that were used
	for _, version := range []string{"2.1", "2.93"} {
		captures := capturesOf(t, version)
		t.Run(version, func(t *testing.T) {
			eachCloudOf(t, api.Rules(), nil, nil, func(c *cloud) { c.replay(captures, &used) }, func(cfg *api.Config) { cfg.DownAfter = time.Hour })
		})
	}
	for begin := range unreplayed {
		if _, ok := used.Load(begin); !ok {
			t.Errorf("no capture begins with %s", begin)
		}
	}
}

// answerAsFake starts a compute service that answers as Nova's fake driver.
func (c *cloud) answerAsFake(host string) {
	c.Helper()
	srv := rpc.NewServer(c.bus, rpc.ServerConfig{Interface: compute.Worker, Host: host, Logger: slog.New(slog.DiscardHandler)})
	rpc.Handle(srv, compute.ReadConsole, func(context.Context, *compute.ConsoleRequest) (*compute.ConsoleReply, error) {
		return &compute.ConsoleReply{Output: "FAKE CONSOLE OUTPUT\nANOTHER\nLAST LINE"}, nil
	})
	rpc.Handle(srv, compute.Diagnose, func(context.Context, *compute.DiagnoseRequest) (*compute.DiagnoseReply, error) {
		return &compute.DiagnoseReply{
			Driver: "kvm", Instance: compute.Instance{Power: compute.Running, Resources: compute.Resources{VCPUs: 1, MemoryMiB: 512}, Interfaces: []string{"p"}},
			Metrics: &compute.Metrics{CPUTime: time.Second, MemoryMiB: 100, DiskReadBytes: 1, DiskWriteBytes: 2, NetReceivedBytes: 3, NetSentBytes: 4},
		}, nil
	})
	if err := srv.Start(rpctest.Partial(c.Context())); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { _ = srv.Stop(context.Background()) })
}

// replay sends the requests of captures, and compares the replies. It adds the used reasons of unreplayed to the map used.
func (c *cloud) replay(captures []capture, used *sync.Map) {
	c.Helper()
	c.addHosts("compute-1", "compute-2", "compute-3", "compute-4")
	c.exec(`UPDATE members SET host = 'vm' WHERE host = 'c1'`)
	c.exec(`INSERT INTO members (kind, host, id, version, data, disabled, disabled_reason, forced_down, departed, joined_at, seen_at, created_at)
		SELECT 'nova-scheduler', host, 's1', version, data, disabled, disabled_reason, forced_down, departed, joined_at, seen_at, created_at FROM members WHERE host = 'vm'`)
	c.answerAsFake("compute-1")
	if err := c.store.CreateFlavor(c.Context(), &store.Flavor{ID: "cap-huge", Name: "huge", VCPUs: 64, MemoryMiB: 1, Public: true}); err != nil {
		c.Fatal(err)
	}
	ids := map[string]string{} // nova-mini's ids, by the captured ones
	done := 0
	var server, last string // the ids of the replayed server, and of the one that was created last
	for _, one := range captures {
		if begin := reasonFor(one.name, unreplayed); begin != "" {
			used.Store(begin, true)
			continue
		}
		done++
		c.beforeReplay(one.name, server, last)
		what := one.name
		if one.Response.Status != http.StatusOK {
			what += fmt.Sprint(", ", one.Response.Status)
		}
		w := c.sendCapture(&one, ids)
		if w.Code != one.Response.Status {
			c.Errorf("%s: %s %s = %d %s\nNova: %v", what, one.Request.Method, one.Request.Path, w.Code, w.Body, one.Response.Body)
			continue
		}
		c.compareHeaders(what, one.Response.Headers, w.Header())
		if one.Response.Body == nil {
			if w.Body.Len() > 0 {
				c.Errorf("%s: the reply has a body: %s", what, w.Body)
			}
		} else {
			c.compareCapture(what, one.Response.Body, w.Body.String(), ids)
		}
		if at := w.Header().Get("Location"); at != "" && strings.HasSuffix(one.Request.Path, "/servers") {
			last = filepath.Base(at)
			server = cmp.Or(server, last)
		}
		if strings.HasPrefix(one.name, "action-") && w.Code < 300 {
			c.exec(`UPDATE operations SET state = 'succeeded', active = NULL, due_at = NULL WHERE active = ?`, server)
		}
		if flavor := map[string]string{"action-resize": "2", "action-resize-back": "1", "action-revertResize": "2"}[one.name]; flavor != "" {
			c.exec(`UPDATE servers SET flavor_id = ? WHERE id = ?`, flavor, server)
		}
		if state := replayStates[one.name]; state != "" {
			host := "compute-1"
			c.exec(`UPDATE servers SET vm_state = ?, host = CASE WHEN ? THEN NULL ELSE ? END, resize = CASE WHEN ? THEN '{"running": true}' ELSE NULL END WHERE id = ?`, state, state == compute.VMOffloaded, host, state == store.Resized, server)
		}
	}
	if done < 110 {
		c.Errorf("only %d captures were replayed", done)
	}
}

// reasonFor returns the key of a map of reasons with which a name begins, or "".
func reasonFor(name string, reasons map[string]string) string {
	for begin := range reasons {
		if strings.HasPrefix(name, begin) {
			return begin
		}
	}
	return ""
}

// beforeReplay does what the other services do before a capture.
func (c *cloud) beforeReplay(name, server, last string) {
	c.Helper()
	change := func(f func(ctx context.Context, tx *sqlx.Tx) error) {
		if err := db.Tx(c.Context(), c.db, f); err != nil {
			c.Fatal(err)
		}
	}
	switch name {
	case "server-show-ACTIVE":
		c.launch(server, "compute-1")
		c.exec(`UPDATE servers SET created_at = ? WHERE id = ?`, time.Now().UTC().Add(-time.Hour), server) // before the others
	case "server-show-NoValidHost-fault":
		change(func(ctx context.Context, tx *sqlx.Tx) error {
			return c.store.FailCreate(ctx, tx, last, "No valid host was found. There are not enough hosts available.", "details")
		})
		c.exec(`UPDATE operations SET state = 'failed', active = NULL, due_at = NULL WHERE active = ?`, last)
	case "servers-deleted-as-admin":
		change(func(ctx context.Context, tx *sqlx.Tx) error { return c.store.Remove(ctx, tx, last) })
	case "server-show-after-delete-404":
		change(func(ctx context.Context, tx *sqlx.Tx) error { return c.store.Remove(ctx, tx, server) })
	}
}

// sendCapture sends the request of a capture as its client.
func (c *cloud) sendCapture(one *capture, ids map[string]string) *httptest.ResponseRecorder {
	c.Helper()
	body := string(one.Request.Body)
	var text string
	if json.Unmarshal(one.Request.Body, &text) == nil && text != "" { // the body is no JSON
		body = text
	}
	who := "admin"
	if strings.HasPrefix(one.name, "user-") || strings.HasPrefix(one.name, "error-403") || one.name == "error-404-foreign-server" {
		who = "stranger"
	}
	if body == "null" {
		body = ""
	}
	if strings.Contains(one.name, "empty-") {
		body = "{}"
	}
	path := one.Request.Path
	if own := ids[strings.TrimPrefix(path, "/v2.1")]; own != "" { // the number of a hypervisor
		path = "/v2.1" + own
	}
	return c.send(strings.TrimPrefix(one.Request.Headers["OpenStack-API-Version"], "compute "), who, one.Request.Method, replaced(ids, path), replaced(ids, body))
}

// compareHeaders compares the headers of a reply with those that were captured. Values that differ in each reply, such as ids, are not compared.
func (c *cloud) compareHeaders(what string, captured [][2]string, got http.Header) {
	c.Helper()
	for _, h := range captured {
		name, value := h[0], h[1]
		have := strings.Join(got.Values(name), ", ")
		switch strings.ToLower(name) {
		case "vary":
			if !strings.Contains(have, value) {
				c.Errorf("%s: Vary is %q, in the capture %q", what, have, value)
			}
		case "content-type":
			if mime, _, _ := strings.Cut(value, ";"); mime == "application/json" && got.Get("Content-Length") != "0" && have != "" && !strings.HasPrefix(have, mime) {
				c.Errorf("%s: the Content-Type is %q, in the capture %q", what, have, value)
			}
		case "openstack-api-version", "x-openstack-nova-api-version":
			if have != value && what != "microversion-latest" {
				c.Errorf("%s: %s is %q, in the capture %q", what, name, have, value)
			}
		default:
			if have == "" {
				c.Errorf("%s: the header %s is missing", what, name)
			}
		}
	}
}

// compareCapture compares the body of a reply with a captured one. Errors must be equal.
func (c *cloud) compareCapture(what string, captured any, reply string, ids map[string]string) {
	c.Helper()
	var got any
	if err := json.Unmarshal([]byte(reply), &got); err != nil {
		c.Errorf("%s: %v: %s", what, err, reply)
		return
	}
	pairIDs(ids, captured, got)
	if strings.Contains(what, ", 4") {
		var want any
		if err := json.Unmarshal([]byte(replaced(ids, toJSON(c.T, captured))), &want); err != nil {
			c.Fatal(err)
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			c.Errorf("%s (-Nova +nova-mini):\n%s", what, diff)
		}
		return
	}
	allowed := replayDifferences
	if what == "server-diagnostics" {
		allowed = undiagnosed()
	}
	compareSample(c.T, what, captured, reply, allowed, map[string]bool{})
	want, _ := captured.(map[string]any)
	have, _ := got.(map[string]any)
	if server, ok := want["server"].(map[string]any); ok {
		own, _ := have["server"].(map[string]any)
		for _, field := range replayedValues {
			if v, ok := server[field]; ok && replayDifferences[field] == "" {
				if diff := gocmp.Diff(v, own[field]); diff != "" {
					c.Errorf("%s: %s (-Nova +nova-mini):\n%s", what, field, diff)
				}
			}
		}
	}
	if strings.Contains(what, "metadata") || strings.Contains(what, "extra-specs") || strings.Contains(what, "tags") {
		if diff := gocmp.Diff(captured, got); diff != "" {
			c.Errorf("%s (-Nova +nova-mini):\n%s", what, diff)
		}
	}
}

// replayDifferences has the places of replies that may differ from the captures, with the reason.
var replayDifferences = map[string]string{
	"-servers_links": "the captured cloud has more servers", "-tenant_usage_links": "as servers_links",
	"OS-EXT-STS:power_state":           "Nova's fake driver has its own power states: a paused server runs, and a rescued one does not",
	"OS-EXT-SRV-ATTR:root_device_name": "a driver chooses the name, and Nova's fake driver another one",
	"-fault":                           "the captured server has the fault of the refused console; nova-mini refuses it before it asks the host",
}
