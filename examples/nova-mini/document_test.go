package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/armature-go/armature/service/api/apitest"
)

// document has the parts of an OpenAPI document that the tests read.
type document struct {
	Paths map[string]map[string]operationDoc
}

type operationDoc struct {
	Summary     string
	Parameters  []struct{ Name, In string }
	RequestBody *struct {
		Content map[string]struct {
			Schema struct{ OneOf []struct{ Title string } }
		}
	}
	Responses map[string]struct {
		Content  map[string]any
		Optional bool `json:"x-body-optional"`
	}
}

// actions returns the names of the operation's actions, if it has any.
func (o operationDoc) actions() (names []string) {
	if o.RequestBody == nil {
		return nil
	}
	for _, one := range o.RequestBody.Content["application/json"].Schema.OneOf {
		names = append(names, one.Title)
	}
	slices.Sort(names)
	return names
}

func parse(t *testing.T, raw []byte) document {
	t.Helper()
	var doc document
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// runAll runs all services in one process until the test ends, and returns the URL of the API.
func runAll(t *testing.T, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	out := &output{more: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := run(ctx, out, append([]string{"--port", "0", "--state-path", dir}, args...)...); err != nil {
			t.Errorf("nova-mini ended with %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	select {
	case <-out.more:
	case <-time.After(30 * time.Second):
		t.Fatal("nova-mini has printed nothing: it does not listen")
	}
	return regexp.MustCompile(`http://\S+`).FindString(out.String())
}

// judge compares the replies of the API with the API's OpenAPI document.
type judge struct {
	*testing.T

	base     string
	doc      document
	compiler *jsonschema.Compiler
	client   *http.Client
	seen     map[string]bool // method, path and status, or method, path and action
}

func newJudge(t *testing.T, base string, raw []byte) *judge {
	t.Helper()
	j := &judge{T: t, base: base, doc: parse(t, raw), compiler: jsonschema.NewCompiler(), seen: map[string]bool{}}
	checker, err := apitest.NewChecker(raw)
	if err != nil {
		t.Fatal(err)
	}
	connections := &http.Transport{}
	j.client = &http.Client{Transport: checker.Transport(connections)}
	t.Cleanup(connections.CloseIdleConnections)
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	j.compiler.DefaultDraft(jsonschema.Draft2020)
	j.compiler.AssertFormat()
	if err := j.compiler.AddResource("mem:///openapi.json", parsed); err != nil {
		t.Fatal(err)
	}
	return j
}

// check validates a text with the schema at a place in the document.
func (j *judge) check(raw []byte, place ...string) error {
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	pointer := []string{"mem:///openapi.json#"}
	for _, step := range append(place, "content", "application/json", "schema") {
		pointer = append(pointer, url.PathEscape(escape.Replace(step)))
	}
	s, err := j.compiler.Compile(strings.Join(pointer, "/"))
	if err != nil {
		return err
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	return s.Validate(v)
}

// param is a parameter of a path.
var param = regexp.MustCompile(`\{\w+\}`)

// do sends a request, and checks the reply with the document. The values replace the parameters of the path, one after the other;
// a value that begins with ? is the query.
func (j *judge) do(want int, method, path, body string, values ...string) []byte {
	j.Helper()
	op, ok := j.doc.Paths[path][strings.ToLower(method)]
	if !ok {
		j.Fatalf("the document has no %s %s", method, path)
	}
	at := path
	for _, v := range values {
		if strings.HasPrefix(v, "?") {
			at += v
			j.checkQuery(op, v)
			continue
		}
		if place := param.FindStringIndex(at); place != nil {
			at = at[:place[0]] + url.PathEscape(v) + at[place[1]:]
		}
	}
	status, header, reply := j.send(method, at, body)
	what := fmt.Sprintf("%s %s %s = %d %.500s", method, at, body, status, reply)
	if status != want {
		j.Fatalf("%s, want %d", what, want)
	}
	if (body != "") != (op.RequestBody != nil) {
		j.Errorf("%s: the document has a body: %v", what, op.RequestBody != nil)
	}
	if body != "" && status < 400 {
		if err := j.check([]byte(body), "paths", path, strings.ToLower(method), "requestBody"); err != nil {
			j.Errorf("%s was accepted, but the document does not allow the body: %v", what, err)
		}
	}
	response, ok := op.Responses[strconv.Itoa(status)]
	switch {
	case !ok:
		j.Errorf("%s: the document does not have the status", what)
	case response.Content == nil:
		if len(reply) > 0 {
			j.Errorf("%s: the document has no body", what)
		}
	case len(reply) == 0 && response.Optional:
	case header.Get("Content-Type") != "application/json":
		j.Errorf("%s: the type is %s", what, header.Get("Content-Type"))
	default:
		if err := j.check(reply, "paths", path, strings.ToLower(method), "responses", strconv.Itoa(status)); err != nil {
			j.Errorf("%s: %v", what, err)
		}
	}
	j.saw(op, method, path, status, body)
	return reply
}

// saw records which operation, status and action were tested.
func (j *judge) saw(op operationDoc, method, path string, status int, body string) {
	j.seen[fmt.Sprintf("%s %s: %d", method, path, status)] = true
	var sent map[string]any
	if len(op.actions()) > 0 && status < 400 && json.Unmarshal([]byte(body), &sent) == nil {
		for name := range sent {
			j.seen[fmt.Sprintf("%s %s: %s", method, path, name)] = true
		}
	}
}

// checkQuery checks that the document has the parameters.
func (j *judge) checkQuery(op operationDoc, query string) {
	j.Helper()
	q, err := url.ParseQuery(query[1:])
	if err != nil {
		j.Fatal(err)
	}
	for name := range q {
		if !slices.ContainsFunc(op.Parameters, func(p struct{ Name, In string }) bool { return p.Name == name && p.In == "query" }) {
			j.Errorf("the document does not have the parameter %s", name)
		}
	}
}

func (j *judge) send(method, path, body string) (int, http.Header, []byte) {
	j.Helper()
	r, err := http.NewRequestWithContext(j.Context(), method, j.base+path, strings.NewReader(body))
	if err != nil {
		j.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set("OpenStack-API-Version", "compute 2.1")
	resp, err := j.client.Do(r)
	if err != nil {
		j.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		j.Fatal(err)
	}
	return resp.StatusCode, resp.Header, raw
}

// await reads a server until it has a status and no task.
func (j *judge) await(id, status string) {
	j.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(30 * time.Second)
	for {
		raw := j.do(200, "GET", "/v2.1/servers/{id}", "", id)
		var got struct {
			Server struct {
				Status string
				Task   *string `json:"OS-EXT-STS:task_state"`
			}
		}
		if err := json.Unmarshal(raw, &got); err != nil {
			j.Fatal(err)
		}
		if got.Server.Status == status && got.Server.Task == nil {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			j.Fatalf("the server is %s, want %s: %s", got.Server.Status, status, raw)
		}
	}
}

// missed returns the replies of the document that were not tested: the successful ones, and the errors that a test can cause.
func (j *judge) missed() (out []string) {
	for path, ops := range j.doc.Paths {
		for method, op := range ops {
			what := strings.ToUpper(method) + " " + path + ": "
			for status := range op.Responses {
				if ok := status[0] == '2' || status == "404" || status == "409" || status == "400" && op.RequestBody != nil; ok && !j.seen[what+status] {
					out = append(out, what+status)
				}
			}
			for _, name := range op.actions() {
				if !j.seen[what+name] {
					out = append(out, what+name)
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// imageChanges are requests that change images. The one that is built in cannot be changed: TestGlance changes images of an image service.
func (j *judge) imageChanges() {
	j.do(403, "DELETE", "/v2.1/images/{id}", "", "cirros")
	j.do(404, "DELETE", "/v2.1/images/{id}", "", "none")
	j.do(404, "DELETE", "/v2.1/images/{id}/metadata/{key}", "", "cirros", "none")
	for _, path := range []string{"/v2.1/images/{id}/metadata", "/v2.1/images/{id}/metadata/{key}"} {
		item, methods := `{"metadata": {"k": "v"}}`, []string{"POST", "PUT"}
		if strings.HasSuffix(path, "{key}") {
			item, methods = `{"meta": {"k": "v"}}`, []string{"PUT"}
		}
		for _, method := range methods {
			j.do(403, method, path, item, "cirros", "k")
			j.do(404, method, path, item, "none", "k")
			j.do(400, method, path, `{"meta": 1}`, "cirros", "k")
			j.seen[method+" "+path+": 200"], j.seen[method+" "+path+": 409"] = true, true
		}
	}
	for _, what := range []string{"DELETE /v2.1/images/{id}: 204", "DELETE /v2.1/images/{id}: 409", "DELETE /v2.1/images/{id}/metadata/{key}: 204", "DELETE /v2.1/images/{id}/metadata/{key}: 409", "GET /v2.1/images/{id}/metadata/{key}: 200"} {
		j.seen[what] = true
	}
}

// networks are requests about networks that a cloud without a network service refuses. TestNetworks of package e2e has the others.
func (j *judge) networks() {
	for _, what := range []string{
		"GET /v2.1/servers/{id}/ips/{network}: 200", "GET /v2.1/servers/{id}/os-interface/{port}: 200", "DELETE /v2.1/servers/{id}/os-interface/{port}: 202", "POST /v2.1/servers/{id}/os-interface: 200",
		"DELETE /v2.1/servers/{id}/os-interface/{port}: 409", "POST /v2.1/servers/{id}/os-interface: 409",
	} {
		j.seen[what] = true
	}
	const missing = "00000000-0000-0000-0000-000000000000"
	const events, event = "/v2.1/os-server-external-events", `{"events": [{"server_uuid": "` + missing + `", "name": "network-changed"}]}`
	j.do(400, "POST", events, `{"events": []}`)
	j.do(207, "POST", events, event)
	j.seen["POST "+events+": 200"] = true
}

// TestDocument: a real nova-mini behaves as its OpenAPI document says, and every operation of the document is tested.
func TestDocument(t *testing.T) { //nolint:paralleltest // the program sets the default logger
	j := newJudge(t, runAll(t), printed(t, "openapi"))
	for _, path := range []string{"/", "/v2", "/v2/", "/v2.1", "/v2.1/", "/v2.1/extensions"} {
		j.do(200, "GET", path, "")
	}
	j.do(200, "GET", "/v2.1/extensions/{alias}", "", "OS-SCH-HNT")
	j.do(404, "GET", "/v2.1/extensions/{alias}", "", "none")
	j.flavors()
	j.extraSpecs()
	j.keyPairs()
	j.servers()
	j.hosts()
	j.groups()
	j.usage()
	j.do(400, "GET", "/v2.1/os-console-auth-tokens/{token}", "", "none") // until 2.30, always
	j.seen["GET /v2.1/os-console-auth-tokens/{token}: 204"] = true
	j.seen["DELETE /v2.1/servers/{id}: 409"] = true // a locked server, and a client who is not an administrator: TestLock of package api
	// shelveOffload succeeds only with an option of its own, see package conductor. The others are always refused.
	for name := range strings.FieldsSeq("restore shelveOffload os-getVNCConsole os-getSPICEConsole os-getRDPConsole os-getSerialConsole injectNetworkInfo resetNetwork") {
		j.seen["POST /v2.1/servers/{id}/action: "+name] = true
	}
	j.do(200, "GET", "/v2.1/images/{id}", "", "cirros")
	j.do(404, "GET", "/v2.1/images/{id}", "", "none")
	j.do(200, "GET", "/v2.1/images/{id}/metadata", "", "cirros")
	j.do(404, "GET", "/v2.1/images/{id}/metadata/{key}", "", "cirros", "none")
	j.do(404, "GET", "/v2.1/images/{id}/metadata", "", "none")
	j.imageChanges()
	j.networks()
	for _, path := range []string{"/v2.1/images", "/v2.1/images/detail", "/v2.1/limits", "/v2.1/os-availability-zone", "/v2.1/os-availability-zone/detail"} {
		j.do(200, "GET", path, "")
	}
	for _, what := range j.missed() {
		t.Errorf("the document has a reply or an action that was not tested: %s", what)
	}
	// This test can fail: a reply that was not tested is reported, and so is a wrong reply.
	delete(j.seen, "DELETE /v2.1/servers/{id}: 204")
	delete(j.seen, "POST /v2.1/servers/{id}/action: reboot")
	if got := strings.Join(j.missed(), ", "); got != "DELETE /v2.1/servers/{id}: 204, POST /v2.1/servers/{id}/action: reboot" {
		t.Errorf("missed: %s", got)
	}
	err := j.check([]byte(`{"flavors": [{}]}`), "paths", "/v2.1/flavors", "get", "responses", "200")
	if _, ok := errors.AsType[*jsonschema.ValidationError](err); !ok {
		t.Errorf("a flavor without a name: %v", err)
	}
}

func (j *judge) extraSpecs() {
	j.Helper()
	const all, one = "/v2.1/flavors/{id}/os-extra_specs", "/v2.1/flavors/{id}/os-extra_specs/{key}"
	for _, id := range []string{"1", "none"} {
		status := map[string]int{"1": 200, "none": 404}[id]
		j.do(status, "POST", all, `{"extra_specs": {"a": "1", "b": 2}}`, id)
		j.do(status, "GET", all, "", id)
		j.do(status, "GET", one, "", id, "a")
		j.do(status, "PUT", one, `{"a": "2"}`, id, "a")
		j.do(status, "DELETE", one, "", id, "a")
	}
	j.do(400, "POST", all, `{}`, "1")
	j.do(400, "PUT", one, `{"b": "1"}`, "1", "a")
	j.do(404, "GET", one, "", "1", "a")
}

func (j *judge) keyPairs() {
	j.Helper()
	const all, one = "/v2.1/os-keypairs", "/v2.1/os-keypairs/{name}"
	j.do(200, "POST", all, `{"keypair": {"name": "k"}}`)
	j.do(409, "POST", all, `{"keypair": {"name": "k"}}`)
	j.do(400, "POST", all, `{"keypair": {"name": "m", "public_key": "x"}}`)
	j.do(200, "GET", all, "")
	j.do(200, "GET", one, "", "k")
	j.do(202, "DELETE", one, "", "k")
	j.do(404, "DELETE", one, "", "k")
	j.do(404, "GET", one, "", "k")
}

func (j *judge) flavors() {
	j.Helper()
	const flavor = `{"flavor": {"name": "f", "ram": 64, "vcpus": "1", "disk": 0, "swap": 512, "id": "f 1", "os-flavor-access:is_public": "no", "rxtx_factor": 1.5}}`
	j.do(200, "POST", "/v2.1/flavors", flavor)
	j.do(409, "POST", "/v2.1/flavors", flavor)
	j.do(400, "POST", "/v2.1/flavors", `{"flavor": {}}`)
	for _, path := range []string{"/v2.1/flavors", "/v2.1/flavors/detail"} {
		j.do(200, "GET", path, "", "?limit=2&marker=1")
		j.do(200, "GET", path, "")
		j.do(400, "GET", path, "", "?limit=few")
	}
	j.do(200, "GET", "/v2.1/flavors/{id}", "", "f 1")
	const action, add, remove = "/v2.1/flavors/{id}/action", `{"addTenantAccess": {"tenant": "p"}}`, `{"removeTenantAccess": {"tenant": "p"}}`
	j.do(200, "POST", action, add, "f 1")
	j.do(409, "POST", action, add, "f 1")
	j.do(400, "POST", action, `{"addTenantAccess": {}}`, "f 1")
	j.do(200, "GET", "/v2.1/flavors/{id}/os-flavor-access", "", "f 1")
	j.do(404, "GET", "/v2.1/flavors/{id}/os-flavor-access", "", "1")
	j.do(200, "POST", action, remove, "f 1")
	j.do(404, "POST", action, remove, "f 1")
	j.do(202, "DELETE", "/v2.1/flavors/{id}", "", "f 1")
	j.do(404, "DELETE", "/v2.1/flavors/{id}", "", "f 1")
	j.do(404, "GET", "/v2.1/flavors/{id}", "", "f 1")
}

func (j *judge) servers() {
	j.Helper()
	const action = "/v2.1/servers/{id}/action"
	j.do(400, "POST", "/v2.1/servers", `{}`)
	raw := j.do(202, "POST", "/v2.1/servers", `{"server": {"name": "s", "flavorRef": 1, "imageRef": "cirros", "min_count": 1, "max_count": "1", "metadata": {"a": "b"},
		"networks": [], "availability_zone": "nova", "OS-DCF:diskConfig": "AUTO", "config_drive": true, "user_data": "SGVsbG8=", "adminPass": "p"}}`)
	var made struct{ Server struct{ ID string } }
	if err := json.Unmarshal(raw, &made); err != nil {
		j.Fatal(err)
	}
	id := made.Server.ID
	j.await(id, "ACTIVE")
	if log := string(j.do(200, "POST", action, `{"os-getConsoleOutput": {}}`, id)); !strings.Contains(log, "config drive: host name s, 5 bytes of user data, password set: true, key set: false") {
		j.Errorf("the guest was told nothing: %s", log)
	}
	for _, path := range []string{"/v2.1/servers", "/v2.1/servers/detail"} {
		j.do(200, "GET", path, "", "?limit=1&all_tenants=True")
		j.do(200, "GET", path, "", "?marker="+id)
		j.do(400, "GET", path, "", "?marker=none")
		j.do(400, "GET", path, "", "?all_tenants=perhaps")
	}
	j.parts(id)
	for _, step := range []struct {
		body   string
		status int
		ends   string
	}{
		{`{"os-start": null}`, 409, ""},
		{`{"os-stop": null}`, 202, "SHUTOFF"},
		{`{"os-start": null}`, 202, "ACTIVE"},
		{`{"reboot": {"type": "Soft"}}`, 202, "ACTIVE"},
		{`{"reboot": {"type": "HARD"}}`, 202, "ACTIVE"},
		{`{"reboot": {"type": "MEDIUM"}}`, 400, ""},
		{`{"resize": {"flavorRef": "2", "OS-DCF:diskConfig": "MANUAL"}}`, 202, "VERIFY_RESIZE"},
		{`{"confirmResize": null}`, 204, "ACTIVE"},
		{`{"resize": {"flavorRef": "3"}}`, 202, "VERIFY_RESIZE"},
		{`{"revertResize": null}`, 202, "ACTIVE"},
		{`{"pause": null}`, 202, "PAUSED"},
		{`{"unpause": null}`, 202, "ACTIVE"},
		{`{"suspend": null}`, 202, "SUSPENDED"},
		{`{"resume": null}`, 202, "ACTIVE"},
		{`{"rescue": {"adminPass": "secret", "rescue_image_ref": "cirros"}}`, 200, "RESCUE"},
		{`{"rescue": null}`, 409, ""},
		{`{"unrescue": null}`, 202, "ACTIVE"},
		{`{"lock": null}`, 202, ""},
		{`{"unlock": null}`, 202, ""},
		{`{"os-resetState": {"state": "error"}}`, 202, "ERROR"},
		{`{"os-resetState": {"state": "gone"}}`, 400, ""},
		{`{"os-resetState": {"state": "active"}}`, 202, "ACTIVE"},
		{`{"restore": null}`, 409, ""},
		{`{"rebuild": {"imageRef": "cirros", "name": "again", "metadata": {"c": "d"}, "adminPass": "secret"}}`, 202, "ACTIVE"},
		{`{"rebuild": {"imageRef": "none"}}`, 400, ""},
		{`{"createImage": {"name": "copy", "metadata": {"a": "b"}}}`, 202, "ACTIVE"},
		{`{"shelve": null}`, 202, "SHELVED_OFFLOADED"},
		{`{"shelveOffload": null}`, 409, ""},
		{`{"unshelve": null}`, 202, "ACTIVE"},
		{`{"changePassword": {"adminPass": "secret"}}`, 202, "ACTIVE"},
		{`{"createBackup": {"name": "b", "backup_type": "daily", "rotation": 1}}`, 202, "ACTIVE"},
		{`{"os-getVNCConsole": {"type": "novnc"}}`, 400, ""},
		{`{"os-getSPICEConsole": {"type": "spice-html5"}}`, 400, ""},
		{`{"os-getRDPConsole": {"type": "rdp-html5"}}`, 400, ""},
		{`{"os-getSerialConsole": {"type": "serial"}}`, 400, ""},
		{`{"injectNetworkInfo": null}`, 501, ""},
		{`{"resetNetwork": null}`, 410, ""},
		{`{"os-getConsoleOutput": {"length": 10}}`, 200, ""},
		{`{"os-getConsoleOutput": {"length": "many"}}`, 400, ""},
	} {
		j.do(step.status, "POST", action, step.body, id)
		if step.ends != "" {
			j.await(id, step.ends)
		}
		if step.ends == "SHELVED_OFFLOADED" {
			j.do(409, "GET", "/v2.1/servers/{id}/diagnostics", "", id) // it is on no host
		}
	}
	const missing = "00000000-0000-0000-0000-000000000000"
	j.do(404, "POST", action, `{"os-stop": null}`, missing)
	j.do(404, "GET", "/v2.1/servers/{id}", "", missing)
	j.do(200, "GET", "/v2.1/servers/{id}/diagnostics", "", id)
	j.do(404, "GET", "/v2.1/servers/{id}/diagnostics", "", missing)
	const past = "/v2.1/servers/{id}/os-instance-actions"
	var done struct {
		InstanceActions []struct {
			Request string `json:"request_id"`
		}
	}
	if err := json.Unmarshal(j.do(200, "GET", past, "", id), &done); err != nil || len(done.InstanceActions) < 20 {
		j.Errorf("actions on a server: %+v, %v", done, err)
	}
	for _, a := range done.InstanceActions {
		j.do(200, "GET", past+"/{request_id}", "", id, a.Request)
	}
	j.do(404, "GET", past, "", missing)
	j.do(404, "GET", past+"/{request_id}", "", id, "req-none")
	j.do(404, "DELETE", "/v2.1/servers/{id}", "", missing)
	j.do(204, "DELETE", "/v2.1/servers/{id}", "", id)
	for i, body := range []string{`{"forceDelete": null}`, `{"forceDelete": ""}`} {
		j.do(202, "POST", action, body, j.create(fmt.Sprint("forced ", i)))
	}
	locked := j.create("locked")
	j.do(202, "POST", action, `{"lock": null}`, locked)
	j.do(204, "DELETE", "/v2.1/servers/{id}", "", locked) // by an administrator
}

// create returns the ID of a new server.
func (j *judge) create(name string) string {
	j.Helper()
	raw := j.do(202, "POST", "/v2.1/servers", `{"server": {"name": "`+name+`", "flavorRef": "1", "imageRef": "cirros"}}`)
	var made struct{ Server struct{ ID string } }
	if err := json.Unmarshal(raw, &made); err != nil {
		j.Fatal(err)
	}
	return made.Server.ID
}

// parts tests the parts of an active server.
func (j *judge) parts(id string) {
	j.Helper()
	const one, missing = "/v2.1/servers/{id}", "00000000-0000-0000-0000-000000000000"
	for _, r := range []struct {
		status             int
		method, path, body string
		more               []string
	}{
		{200, "PUT", "", `{"server": {"name": "t", "accessIPv4": "10.0.0.1"}}`, nil},
		{400, "PUT", "", `{}`, nil},
		{200, "GET", "/metadata", "", nil},
		{200, "POST", "/metadata", `{"metadata": {"x": "y"}}`, nil},
		{400, "POST", "/metadata", `{}`, nil},
		{200, "PUT", "/metadata", `{"metadata": {"x": "y"}}`, nil},
		{400, "PUT", "/metadata", `{}`, nil},
		{200, "GET", "/metadata/{key}", "", []string{"x"}},
		{200, "PUT", "/metadata/{key}", `{"meta": {"x": "z"}}`, []string{"x"}},
		{400, "PUT", "/metadata/{key}", `{}`, []string{"x"}},
		{204, "DELETE", "/metadata/{key}", "", []string{"x"}},
		{200, "GET", "/ips", "", nil},
		{404, "GET", "/ips/{network}", "", []string{"private"}},
		{200, "GET", "/os-interface", "", nil},
		{404, "GET", "/os-interface/{port}", "", []string{"p"}},
		{404, "DELETE", "/os-interface/{port}", "", []string{"p"}},
		{404, "POST", "/os-interface", `{"interfaceAttachment": {"net_id": "` + missing + `"}}`, nil},
		{400, "POST", "/os-interface", `{"interfaceAttachment": {"net": "x"}}`, nil},
		{200, "GET", "/os-security-groups", "", nil},
		{200, "GET", "/os-server-password", "", nil},
		{204, "DELETE", "/os-server-password", "", nil},
		{200, "GET", "/os-volume_attachments", "", nil},
		{404, "GET", "/os-volume_attachments/{volume}", "", []string{"v"}},
	} {
		j.do(r.status, r.method, one+r.path, r.body, append([]string{id}, r.more...)...)
		if r.status < 400 {
			j.do(404, r.method, one+r.path, r.body, append([]string{missing}, r.more...)...)
		}
	}
	for _, path := range []string{"", "/metadata", "/metadata/{key}"} { // a server that has no host yet, or that is about to have one, is not changed
		for _, method := range []string{"PUT", "POST", "DELETE"} {
			j.seen[method+" "+one+path+": 409"] = true // TestServerMetadata and TestUpdateServer have these
		}
	}
	for _, path := range []string{"/os-volume_attachments/{volume}"} {
		j.seen["GET "+one+path+": 204"] = true // a server has none of these
	}
}

func (j *judge) groups() {
	j.Helper()
	const all, one = "/v2.1/os-server-groups", "/v2.1/os-server-groups/{id}"
	var made struct {
		Group struct{ ID string } `json:"server_group"`
	}
	if err := json.Unmarshal(j.do(200, "POST", all, `{"server_group": {"name": "g", "policies": ["affinity"]}}`), &made); err != nil {
		j.Fatal(err)
	}
	j.do(400, "POST", all, `{"server_group": {"name": "g", "policies": []}}`)
	j.do(200, "GET", all, "")
	j.do(200, "GET", all, "", "?limit=1&offset=0&all_projects=1")
	j.do(200, "GET", one, "", made.Group.ID)
	j.do(204, "DELETE", one, "", made.Group.ID)
	j.do(404, "DELETE", one, "", made.Group.ID)
	j.do(404, "GET", one, "", made.Group.ID)
}

func (j *judge) usage() {
	j.Helper()
	const all, one = "/v2.1/os-simple-tenant-usage", "/v2.1/os-simple-tenant-usage/{project}"
	j.do(200, "GET", all, "", "?detailed=1&start=2026-01-02T00:00:00")
	j.do(400, "GET", all, "", "?start=x")
	j.do(200, "GET", one, "", "admin", "?start=2026-01-02T00:00:00&end=2099-01-01T00:00:00")
	j.do(200, "GET", one, "", "unused")
	j.do(400, "GET", one, "", "admin", "?end=x")
}

func (j *judge) hosts() {
	j.Helper()
	j.do(200, "GET", "/v2.1/os-services", "")
	j.do(200, "GET", "/v2.1/os-services", "", "?host=node-1&binary=nova-compute")
	for _, name := range []string{"disable", "disable-log-reason", "enable"} {
		path := "/v2.1/os-services/" + name
		j.do(200, "PUT", path, `{"host": "node-1", "binary": "nova-compute", "disabled_reason": "a test"}`)
		j.do(404, "PUT", path, `{"host": "nowhere", "binary": "nova-compute", "disabled_reason": "a test"}`)
		j.do(400, "PUT", path, `{"host": "node-1"}`)
	}
	j.do(200, "GET", "/v2.1/os-hypervisors", "")
	j.do(200, "GET", "/v2.1/os-hypervisors/detail", "")
	j.do(200, "GET", "/v2.1/os-hypervisors/{id}", "", "1")
	j.do(404, "GET", "/v2.1/os-hypervisors/{id}", "", "none")
	j.do(200, "GET", "/v2.1/os-hypervisors/statistics", "")
	j.do(501, "GET", "/v2.1/os-hypervisors/{id}/uptime", "", "1")
	j.do(404, "GET", "/v2.1/os-hypervisors/{id}/uptime", "", "none")
	j.seen["GET /v2.1/os-hypervisors/{id}/uptime: 200"] = true // no driver reports it
	for _, name := range []string{"search", "servers"} {
		path := "/v2.1/os-hypervisors/{name}/" + name
		j.do(200, "GET", path, "", "node")
		j.do(404, "GET", path, "", "nowhere")
	}
}
