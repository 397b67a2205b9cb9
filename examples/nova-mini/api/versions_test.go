package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/examples/nova-mini/api"
)

// TestChanges: the table Changes has each microversion, with the resources that the routes and types change in this microversion.
func TestChanges(t *testing.T) {
	t.Parallel()
	got := map[string]map[string]bool{}
	for _, c := range api.History() {
		v := c.Version.String()
		if got[v] == nil {
			got[v] = map[string]bool{}
		}
		path, action, ok := strings.Cut(strings.TrimSuffix(c.Where, ")"), " (")
		name := action
		if !ok {
			for part := range strings.SplitSeq(path, "/") {
				if part != "detail" && !strings.HasPrefix(part, "{") {
					name = part
				}
			}
		}
		got[v][name] = true
	}
	var have, want []string
	for i, c := range api.Changes {
		if c.Version != fmt.Sprintf("2.%d", i+2) || c.What == "" {
			t.Errorf("row %d: %+v", i, c)
		}
		have = append(have, c.Version+" "+strings.Join(strings.Fields(c.Where), " "))
		want = append(want, c.Version+" "+strings.Join(slices.Sorted(maps.Keys(got[c.Version])), " "))
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("the column Where of Changes differs from the routes and their types (-routes +table):\n%s", diff)
	}
	if last := api.Changes[len(api.Changes)-1].Version; last != "2.104" {
		t.Errorf("the last version is %s", last)
	}
}

// TestVersionDocuments: clients without a token get the versions, as in Nova's samples, at the addresses that real clients use.
func TestVersionDocuments(t *testing.T) {
	t.Parallel()
	h := newAPI(t)
	get := func(path string) (status int, body string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody)
		r.Header.Set("X-Auth-Token", "any")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	for path, want := range map[string]string{
		"/": `{"versions":[{"id":"v2.0","status":"SUPPORTED","version":"","min_version":"","updated":"2011-01-21T11:33:21Z","links":[{"rel":"self","href":"http://localhost/v2/"}]},` +
			`{"id":"v2.1","status":"CURRENT","version":"2.104","min_version":"2.1","updated":"2013-07-23T11:33:21Z","links":[{"rel":"self","href":"http://localhost/v2.1/"}]}]}`,
		"/v2": `{"version":{"id":"v2.0","status":"SUPPORTED","version":"","min_version":"","updated":"2011-01-21T11:33:21Z",` +
			`"links":[{"rel":"self","href":"http://localhost/v2/"},{"rel":"describedby","href":"http://docs.openstack.org/","type":"text/html"}],` +
			`"media-types":[{"base":"application/json","type":"application/vnd.openstack.compute+json;version=2"}]}}`,
		"/v2.1/": `{"version":{"id":"v2.1","status":"CURRENT","version":"2.104","min_version":"2.1","updated":"2013-07-23T11:33:21Z",` +
			`"links":[{"rel":"self","href":"http://localhost/v2.1/"},{"rel":"describedby","href":"http://docs.openstack.org/","type":"text/html"}],` +
			`"media-types":[{"base":"application/json","type":"application/vnd.openstack.compute+json;version=2.1"}]}}`,
	} {
		for _, p := range []string{path, strings.TrimSuffix(path, "/") + "/"} {
			if status, body := get(p); status != 200 || body != want {
				t.Errorf("GET %s: %d %s\nwant %s", p, status, body, want)
			}
		}
	}
	dir := samplesOf(t, "versions")
	for path, file := range map[string]string{"/": "versions-get-resp.json", "/v2/": "v2-version-get-resp.json", "/v2.1/": "v21-version-get-resp.json"} {
		sample, ok := readSample(t, filepath.Join(dir, file))
		if _, body := get(path); ok {
			compareSample(t, path, sample, body, nil, map[string]bool{})
		}
	}
}

// TestPathForms: a client may write its project into the path, and may use /v2, whose version is always 2.1. Links in the reply have the form of the client's
// path.
func TestPathForms(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		const project = "6f70656e737461636b20342065766572"
		status, reply := c.askAt("2.96", project, "POST", "/"+project+"/servers", `{"server": {"name": "s", "flavorRef": "1", "imageRef": "x", "networks": "none"}}`)
		if status != 202 || !strings.Contains(reply, `"http://localhost/v2.1/`+project+`/servers/`) || !strings.Contains(reply, `"http://localhost/`+project+`/servers/`) {
			c.Errorf("%d %s", status, reply)
		}
		for _, tt := range []struct {
			who, path string
			status    int
			has, not  string
			header    string
		}{
			{project, "/v2.1/" + project + "/servers/detail?limit=1", 200, `"http://localhost/v2.1/` + project + `/servers/detail?limit=1\u0026marker=`, "", "compute 2.96"},
			{project, "/v2.1/servers/detail", 200, `"locked_reason":null`, project + "/servers", "compute 2.96"},
			{project, "/v2/" + project + "/servers/detail", 200, `"http://localhost/v2/` + project + `/servers/`, "locked", ""},
			{project, "/v2/servers/detail", 200, `"http://localhost/v2/servers/`, "locked", ""},
			{"member", "/v2.1/" + project + "/servers", 400, `"Malformed request URL: URL's project_id '` + project + `' doesn't match Context's project_id 'p1'"`, "", "compute 2.96"},
			{"admin", "/v2/" + project + "/servers", 400, `project_id 'p1'`, "", ""},
			{"admin", "/v2.1/" + project + "/nothing", 404, "", "", "compute 2.96"},
			{"admin", "/v2.1/no-project/servers", 404, "", "", "compute 2.96"},
		} {
			w := c.send("2.96", tt.who, "GET", tt.path, "")
			body := strings.ReplaceAll(w.Body.String(), "&", `\u0026`)
			if w.Code != tt.status || !strings.Contains(body, tt.has) || tt.not != "" && strings.Contains(body, tt.not) || w.Header().Get("OpenStack-API-Version") != tt.header {
				c.Errorf("%s: GET %s: %d %v %s; want %d %s and not %s", tt.who, tt.path, w.Code, w.Header(), body, tt.status, tt.has, tt.not)
			}
		}
	})
}

// TestExtensions: the extensions that clients look for are in the list, and all extensions of the list have Nova's names.
func TestExtensions(t *testing.T) {
	t.Parallel()
	h := newAPI(t)
	for alias, name := range map[string]string{"OS-SCH-HNT": "SchedulerHints", "os-admin-actions": "AdminActions", "os-hosts": "Hosts", "os-keypairs": "Keypairs", "os-used-limits": "UsedLimits"} {
		if status, _, body := ask(t, h, "GET", "/v2.1/extensions/"+alias, ""); status != 200 || !strings.Contains(body, `"alias":"`+alias+`","name":"`+name+`"`) {
			t.Errorf("%s: %d %s", alias, status, body)
		}
	}
	if status, _, body := ask(t, h, "GET", "/v2.1/extensions/none", ""); status != 404 {
		t.Errorf("none: %d %s", status, body)
	}
	_, _, list := ask(t, h, "GET", "/v2.1/extensions", "")
	sample, ok := readSample(t, filepath.Join(samplesOf(t, "extension-info"), "extensions-list-resp.json"))
	if !ok {
		return
	}
	compareSample(t, "list", sample, list, nil, map[string]bool{})
	for file, path := range map[string]string{"extensions-list-resp-v21-compatible.json": "", "extensions-get-resp.json": "/os-keypairs"} {
		_, _, reply := ask(t, h, "GET", "/v2.1/extensions"+path, "")
		if other, ok := readSample(t, filepath.Join(samplesOf(t, "extension-info"), file)); ok {
			compareSample(t, file, other, reply, nil, map[string]bool{})
		}
	}
	var ours, theirs struct {
		Extensions []struct{ Alias, Name string }
	}
	raw, err := json.Marshal(sample)
	if err := errors.Join(err, json.Unmarshal(raw, &theirs), json.Unmarshal([]byte(list), &ours)); err != nil || len(ours.Extensions) == 0 {
		t.Fatal(err)
	}
	for _, e := range ours.Extensions {
		if !slices.Contains(theirs.Extensions, e) {
			t.Errorf("Nova does not have the extension %v", e)
		}
	}
}

// TestUnknownParameters: each route for GET refuses unknown parameters from 2.102.
func TestUnknownParameters(t *testing.T) {
	t.Parallel()
	h := newAPI(t)
	text, err := api.OpenAPI("2.104")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]any
	}
	if err := json.Unmarshal([]byte(toJSON(t, text)), &doc); err != nil {
		t.Fatal(err)
	}
	tried := 0
	for path, methods := range doc.Paths {
		if methods["get"] == nil || !strings.HasPrefix(path, "/v2.1/") || path == "/v2.1/" {
			continue
		}
		tried++
		at := strings.NewReplacer("servers/{id}", "servers/"+activeID, "flavors/{id}", "flavors/1", "{id}", activeID, "{", "", "}", "").Replace(path)
		for _, version := range []string{"2.102", "2.104"} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, at+"?surprise=1", http.NoBody)
			r.Header.Set("OpenStack-API-Version", "compute "+version)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code == http.StatusGone || w.Code == http.StatusNotImplemented || strings.Contains(at, "os-volumes_boot") { // removed from Nova, or refused whatever the query is
				continue
			}
			if w.Code != 400 || !strings.Contains(w.Body.String(), "'surprise' was unexpected") {
				t.Errorf("%s: GET %s: %d %s", version, at, w.Code, w.Body)
			}
		}
	}
	if tried < 30 {
		t.Errorf("%d routes", tried)
	}
}
