package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/membus"
	"github.com/armature-go/armature/scheduler/placement"
	restapi "github.com/armature-go/armature/service/api"
)

const (
	activeID = "65deae08-0807-4f7c-a693-b38cabdc9034"
	stopped  = "75deae08-0807-4f7c-a693-b38cabdc9034"
	image    = `"imageRef": "208655eb-63a9-42b9-b006-4a93cb26dfa8"`
)

// newAPI returns an API with an active and a stopped server in its database. No other service runs, because a refused request
// needs no other service. The host sends no heartbeats, so DownAfter is long: the status of the host must not change during a test.
func newAPI(t *testing.T) http.Handler {
	t.Helper()
	d, err := db.Open(t.Context(), db.Config{URL: dbtest.SQLite(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	s := store.New(d)
	if err := db.Migrate(t.Context(), d, store.Migrations()...); err != nil {
		t.Fatal(err)
	}
	host := compute.HostReport{Host: "node-1", Driver: "fake", Resources: compute.Resources{VCPUs: 8, MemoryMiB: 8192, DiskGiB: 80}}
	if err := s.ReportHost(t.Context(), &host, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{activeID, stopped} {
		srv := &store.Server{ID: id, Name: "s", ProjectID: "admin", UserID: "admin", FlavorID: "1", VCPUs: 1, MemoryMiB: 512, DiskGiB: 1}
		if err := s.CreateServer(t.Context(), srv); err != nil {
			t.Fatal(err)
		}
		claim := placement.Claim{Consumer: id, Allocations: []placement.Allocation{{Provider: "node-1", Resources: store.Need(srv.Need())}}}
		if err := s.Claims().Claim(t.Context(), claim); err != nil {
			t.Fatal(err)
		}
		err := db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
			_, err := tx.ExecContext(ctx, `UPDATE operations SET state = 'succeeded', active = NULL WHERE active = ?`, id)
			return errors.Join(err, s.Place(ctx, tx, id, "node-1"), s.Activate(ctx, tx, id))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.ExecContext(t.Context(), "UPDATE servers SET vm_state = ? WHERE id = ?", store.Stopped, stopped); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateFlavor(t.Context(), &store.Flavor{ID: "cap-2.1", Name: "cap.2.1", VCPUs: 1, MemoryMiB: 1}); err != nil {
		t.Fatal(err)
	}
	fine := func(context.Context) error { return nil }
	bus := membus.New()
	client := rpc.NewClient(bus, rpc.ClientConfig{Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() {
		client.Close()
		_ = bus.Close() // membus closes without error
	})
	return checked(t, handler(t, api.Config{Store: s, Client: client, Bus: fine, DownAfter: time.Hour, Logger: slog.New(slog.DiscardHandler)}, restapi.Config{}))
}

// ask returns the status, the name of the error and its message.
func ask(t *testing.T, h http.Handler, method, path, body string) (status int, name, message string) {
	t.Helper()
	typ := "application/json"
	if body == "hello" {
		typ = "text/plain"
	}
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", typ)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var got map[string]struct{ Message string }
	if err := json.Unmarshal(w.Body.Bytes(), &got); err == nil && w.Code >= 400 {
		for name, f := range got {
			return w.Code, name, f.Message
		}
	}
	return w.Code, "", w.Body.String()
}

// TestCaptures compares nova-mini's answers to refused requests with those of a real Nova (Zed, microversion 2.1). The names of
// the rows are the numbers of the captures.
func TestCaptures(t *testing.T) {
	t.Parallel()
	h := newAPI(t)
	const (
		servers = "/v2.1/servers"
		action  = servers + "/" + activeID + "/action"
		missing = servers + "/00000000-0000-0000-0000-000000000000"
		noBody  = "Malformed request body"
	)
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		message                  string
		// differs is the reason why nova-mini's answer (status and message) differs from Nova's.
		differs string
	}{
		{"008", "POST", "/v2.1/flavors", `{"flavor": {"name": "cap.2.1", "ram": 256, "vcpus": 2, "disk": 2, "id": "cap-2.1", "OS-FLV-EXT-DATA:ephemeral": 1, "swap": 64, "rxtx_factor": 1.0, "os-flavor-access:is_public": true}}`, 409, "Flavor with ID cap-2.1 already exists.", ""},
		{"017", "GET", "/v2.1/flavors/cap-2.2", "", 404, "Flavor cap-2.2 could not be found.", ""},
		{"030", "GET", servers + "?limit=-1", "", 400, "Invalid input for query parameters limit. Value: -1. '-1' does not match '^[0-9]*$'", ""},
		{"031", "GET", servers + "?marker=nope", "", 400, "marker [nope] not found", ""},
		{"049", "POST", action, `{"os-start": null}`, 409, "Cannot 'start' instance " + activeID + " while it is in vm_state active", ""},
		{"052", "POST", servers + "/" + stopped + "/action", `{"os-stop": null}`, 409, "Cannot 'stop' instance " + stopped + " while it is in vm_state stopped", ""},
		{"056", "POST", action, `{"reboot": {"type": "MEDIUM"}}`, 400, "Invalid input for field/attribute type. Value: MEDIUM. 'MEDIUM' is not one of ['HARD', 'Hard', 'hard', 'SOFT', 'Soft', 'soft']", ""},
		{"067", "POST", action, `{"os-getVNCConsole": {"type": "novnc"}}`, 400, "Unavailable console type novnc.", ""},
		{"077", "POST", action, `{"confirmResize": null}`, 409, "Cannot 'confirmResize' instance " + activeID + " while it is in vm_state active", ""},
		{"078", "POST", action, `{"resize": {"flavorRef": "no-such-flavor"}}`, 400, "Flavor no-such-flavor could not be found.", ""},
		{"091", "POST", action, `{"evacuate": {"onSharedStorage": false}}`, 501, "nova-mini does not migrate servers.", "nova-mini does not evacuate servers"},
		{"097", "POST", action, `{"nonsense": null}`, 400, "There is no such action: nonsense", ""},
		{"098", "POST", action, `{}`, 400, noBody, ""},
		{"132", "GET", missing, "", 404, "Instance 00000000-0000-0000-0000-000000000000 could not be found.", ""},
		{"133", "GET", servers + "/nope", "", 404, "Instance nope could not be found.", ""},
		{"134", "GET", "/v2.1/no-such-thing", "", 404, "The resource could not be found.", "Nova's text has HTML and its body no name"},
		{"135", "DELETE", missing, "", 404, "Instance 00000000-0000-0000-0000-000000000000 could not be found.", ""},
		{"136", "PATCH", servers, "", 405, "The method PATCH is not allowed for this resource.", "Nova answers 404, as if there was no such path; 405 says what is wrong"},
		{"137", "POST", servers, `{"server": {"name": "x"}}`, 400, "Invalid input for field/attribute server. Value: {'name': 'x'}. 'flavorRef' is a required property", ""},
		{"138", "POST", servers, `{"server": {"name": 5, ` + image + `, "flavorRef": "1"}}`, 400, "Invalid input for field/attribute name. Value: 5. 5 is not of type 'string'", ""},
		{"139", "POST", servers, `{"server": {"name": "x", ` + image + `, "flavorRef": "1", "surprise": 1}}`, 400, "Invalid input for field/attribute server. Value: {'name': 'x', 'imageRef': '208655eb-63a9-42b9-b006-4a93cb26dfa8', 'flavorRef': '1', 'surprise': 1}. Additional properties are not allowed ('surprise' was unexpected)", ""},
		{"140", "POST", servers, `{not json`, 400, noBody, ""},
		{"141", "POST", servers, `{}`, 400, "'server' is a required property", ""},
		{"143", "POST", servers, `{"server": {"name": "x", ` + image + `, "flavorRef": "nope"}}`, 400, "Flavor nope could not be found.", ""},
		{"144", "POST", servers, `{"server": {"name": "x", ` + image + `, "flavorRef": "1", "key_name": "nope"}}`, 400, "Invalid key_name provided.", ""},
		{"145", "POST", servers, `{"server": {"name": "x", ` + image + `, "flavorRef": "1", "availability_zone": "nope"}}`, 400, "The requested availability zone is not available", ""},
		{"146", "POST", servers, `hello`, 415, "The media type of the body must be application/json.", "Nova answers 400, Malformed request body; 415 says what is wrong with it"},
		{"152, 166", "GET", servers + "/85deae08-0807-4f7c-a693-b38cabdc9034", "", 404, "Instance 85deae08-0807-4f7c-a693-b38cabdc9034 could not be found.", ""},
		{"167", "DELETE", servers + "/85deae08-0807-4f7c-a693-b38cabdc9034", "", 404, "Instance 85deae08-0807-4f7c-a693-b38cabdc9034 could not be found.", ""},
		// Capture 142, an image that does not exist, is in TestImages: without an image service no reference is checked.
		// Capture 155, an invalid microversion, is in TestCaptureOfVersion.
	} {
		status, name, message := ask(t, h, tt.method, tt.path, tt.body)
		names := map[int]string{400: "badRequest", 404: "itemNotFound", 405: "badMethod", 409: "conflictingRequest", 415: "badMediaType", 501: "notImplemented"}
		if status != tt.status || name != names[tt.status] || message != tt.message {
			t.Errorf("%s: %s %s %s = %d %s: %s\nwant %d: %s (%s)", tt.name, tt.method, tt.path, tt.body, status, name, message, tt.status, tt.message, tt.differs)
		}
	}
}

// TestCaptureOfVersion: the errors for malformed and unsupported microversions are those of the captures.
func TestCaptureOfVersion(t *testing.T) {
	t.Parallel()
	h := newAPI(t)
	for version, want := range map[string]string{
		"abc":   `{"badRequest":{"code":400,"message":"API Version String abc is of invalid format. Must be of format MajorNum.MinorNum."}}`,
		"2.999": `{"computeFault":{"code":406,"message":"Version 2.999 is not supported by the API. Minimum is 2.1 and maximum is 2.104."}}`,
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2.1/servers", http.NoBody)
		r.Header.Set("OpenStack-API-Version", "compute "+version)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if diff := cmp.Diff(want, w.Body.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", version, diff)
		}
	}
}
