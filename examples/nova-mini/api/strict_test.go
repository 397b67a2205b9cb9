package api_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	cmpdiff "github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"github.com/armature-go/armature/examples/nova-mini/store"
	restapi "github.com/armature-go/armature/service/api"
)

// published is Nova's published OpenAPI document.
type published struct {
	*testing.T

	doc     map[string]any
	schemas map[string]any // the schemas to which references lead
}

func readPublished(t *testing.T) *published {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "shared", "nova-api", "openapi", "compute-2.96.yaml"))
	if os.IsNotExist(err) {
		t.Skip("shared/nova-api is not beside this tree")
	}
	p := &published{T: t}
	if err == nil {
		err = yaml.Unmarshal(raw, &p.doc)
	}
	if err != nil {
		t.Fatal(err)
	}
	p.schemas = dig(p.doc, "components", "schemas")
	repair(p.doc)
	return p
}

// repair changes the parts of the published document that are not JSON Schema of draft 2020-12: the exclusiveMinimum of draft 4, and a
// regular expression in Python's syntax.
func repair(v any) {
	switch v := v.(type) {
	case []any:
		for _, one := range v {
			repair(one)
		}
	case map[string]any:
		if v["exclusiveMinimum"] == true {
			v["exclusiveMinimum"] = v["minimum"]
			delete(v, "minimum")
		}
		if v["pattern"] == `^(?! )[a-zA-Z0-9. _-]+(?<! )$` {
			v["pattern"] = `^[a-zA-Z0-9._-]([a-zA-Z0-9. _-]*[a-zA-Z0-9._-])?$`
		}
		for _, one := range v {
			repair(one)
		}
	}
}

// dig returns the object at a path of names.
func dig(v any, path ...string) map[string]any {
	out, _ := v.(map[string]any)
	for _, name := range path {
		out, _ = out[name].(map[string]any)
	}
	return out
}

// resolve returns the schema, or, if the schema is a reference, the schema to which it refers.
func (p *published) resolve(schema map[string]any) map[string]any {
	if ref, ok := schema["$ref"].(string); ok {
		return dig(p.schemas, ref[strings.LastIndexByte(ref, '/')+1:])
	}
	return schema
}

// versionedSchema is the schema of a request in a range of microversions.
type versionedSchema struct {
	version string // the first version of the range; empty: the document does not name it
	schema  map[string]any
}

// requests returns the schemas of an operation's request, in the order of their microversions. If the operation has several actions, the
// parameter action is the name of one of them. Otherwise action is empty.
func (p *published) requests(method, path, action string) (out []versionedSchema) {
	p.Helper()
	schema := p.resolve(dig(p.doc, "paths", path, strings.ToLower(method), "requestBody", "content", "application/json", "schema"))
	if action != "" {
		list, _ := schema["oneOf"].([]any)
		at := slices.IndexFunc(list, func(one any) bool { return dig(p.resolve(dig(one)), "x-openstack")["action-name"] == action })
		if at < 0 {
			p.Fatalf("%s %s has no action %s", method, path, action)
		}
		schema = p.resolve(dig(list[at]))
	}
	if schema == nil {
		p.Fatalf("%s %s has no request", method, path)
	}
	list, ok := schema["oneOf"].([]any)
	if !ok {
		list = []any{schema}
	}
	for _, one := range list {
		schema := p.resolve(dig(one))
		first, _ := dig(schema, "x-openstack")["min-ver"].(string)
		if first != "2.0" {
			out = append(out, versionedSchema{first, schema})
		}
	}
	return out
}

// wrongValues are values that most schemas refuse.
var wrongValues = []any{
	nil, true, 0, -1, 1.5, 1 << 40, "", " ", "x", "a\tb", "a,b", strings.Repeat("y", 64), strings.Repeat("z", 300), strings.Repeat("A", 65536+4),
	[]any{},
	[]any{1},
	[]any{""},
	[]any{[]any{}},
	map[string]any{},
	map[string]any{"surprise": 1},
	map[string]any{"k": 1},
	map[string]any{"k": strings.Repeat("v", 256)},
}

// variants makes values for a schema, most of them wrong, and calls the function f with each value and the place in which the value is
// special. The parameter named before is the schema of the previous version: variants skips parts that are equal in both schemas. The
// parameter valid is a valid value. variants changes one place of this value at a time.
func (p *published) variants(schema, before map[string]any, valid any, at string, f func(at string, value any)) {
	if reflect.DeepEqual(schema, before) {
		return
	}
	for _, v := range wrongValues {
		f(at, v)
	}
	for _, kind := range []string{"oneOf", "anyOf"} {
		list, _ := schema[kind].([]any)
		for _, one := range list {
			p.variants(p.resolve(dig(one)), nil, nil, at, f)
		}
	}
	if items := dig(schema, "items"); items != nil {
		if n, ok := schema["maxItems"].(int); ok {
			f(at+" with too many items", tooMany(valid, n))
		}
		p.variants(p.resolve(items), dig(before, "items"), nil, at+"[]", func(at string, v any) { f(at, []any{v}) })
	}
	properties := dig(schema, "properties")
	if properties == nil {
		return
	}
	object, _ := valid.(map[string]any)
	with := func(name string, v any) map[string]any {
		out := maps.Clone(object)
		if out == nil {
			out = map[string]any{}
		}
		out[name] = v
		return out
	}
	f(at+".surprise", with("surprise", "x"))
	for name := range object {
		out := maps.Clone(object)
		delete(out, name)
		f(at+" without "+name, out)
	}
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		p.variants(p.resolve(dig(properties, name)), p.resolve(dig(before, "properties", name)), object[name], at+"."+name, func(at string, v any) { f(at, with(name, v)) })
	}
}

// tooMany returns a list of n+1 items: the first item of a valid list, or different texts.
func tooMany(valid any, n int) []any {
	out := make([]any, n+1)
	list, _ := valid.([]any)
	for i := range out {
		out[i] = strconv.Itoa(i)
		if len(list) > 0 {
			out[i] = list[0]
		}
	}
	return out
}

// strictRoute is an operation of which TestStrict tries wrong bodies.
type strictRoute struct {
	method, path string
	action       string // the name of the action, if the operation has several
	at           string // the URL
	from, before string // the versions of which the row speaks: from the first until before the second; empty: all
	valid        string // a body that the schema accepts
	schema       string // Nova's schema of the request, if the published document does not have it
}

// key names the operation, as notStrict does.
func (r *strictRoute) key() string {
	return strings.TrimSpace(r.method + " " + r.path + " " + r.action)
}

const (
	strictServer = "/v2.1/servers/" + activeID
	strictAction = strictServer + "/action"
	strictImage  = "208655eb-63a9-42b9-b006-4a93cb26dfa8"
)

// strictRoutes are the operations with a body that both nova-mini and the published document have.
func strictRoutes() []strictRoute {
	services := "/v2.1/os-services/"
	list := []strictRoute{
		{method: "POST", path: "/v2.1/servers", before: "2.37", valid: `{"server": {"name": "x", "flavorRef": "1", "imageRef": "` + strictImage + `"}}`},
		{method: "POST", path: "/v2.1/servers", from: "2.37", valid: `{"server": {"name": "x", "flavorRef": "1", "imageRef": "` + strictImage + `", "networks": "none"}}`},
		{method: "PUT", path: "/v2.1/servers/{id}", at: strictServer, valid: `{"server": {"name": "s"}}`},
		{method: "POST", path: "/v2.1/servers/{server_id}/metadata", at: strictServer + "/metadata", valid: `{"metadata": {}}`},
		{method: "PUT", path: "/v2.1/servers/{server_id}/metadata", at: strictServer + "/metadata", valid: `{"metadata": {}}`},
		{method: "PUT", path: "/v2.1/servers/{server_id}/metadata/{id}", at: strictServer + "/metadata/k", valid: `{"meta": {"k": "v"}}`},
		{method: "PUT", path: "/v2.1/servers/{server_id}/tags", at: strictServer + "/tags", valid: `{"tags": []}`},
		{method: "PUT", path: "/v2.1/servers/{server_id}/tags/{id}", at: strictServer + "/tags/a", from: "2.26", valid: "null", schema: `{"type": "null"}`},
		{method: "POST", path: "/v2.1/servers/{server_id}/os-volume_attachments", at: strictServer + "/os-volume_attachments", valid: `{"volumeAttachment": {"volumeId": "` + strictImage + `"}}`},
		{method: "PUT", path: "/v2.1/servers/{server_id}/os-volume_attachments/{id}", at: strictServer + "/os-volume_attachments/" + strictImage, valid: `{"volumeAttachment": {"volumeId": "` + strictImage + `"}}`},
		{method: "POST", path: "/v2.1/images/{image_id}/metadata", at: "/v2.1/images/i/metadata", before: "2.39", valid: `{"metadata": {"k": "v"}}`},
		{method: "PUT", path: "/v2.1/images/{image_id}/metadata", at: "/v2.1/images/i/metadata", before: "2.39", valid: `{"metadata": {"k": "v"}}`},
		{method: "PUT", path: "/v2.1/images/{image_id}/metadata/{id}", at: "/v2.1/images/i/metadata/k", before: "2.39", valid: `{"meta": {"k": "v"}}`},
		{method: "POST", path: "/v2.1/servers/{server_id}/os-interface", at: strictServer + "/os-interface", valid: `{"interfaceAttachment": {"net_id": "` + strictImage + `"}}`},
		{method: "POST", path: "/v2.1/servers/{server_id}/remote-consoles", at: strictServer + "/remote-consoles", valid: `{"remote_console": {"protocol": "vnc", "type": "novnc"}}`},
		{method: "POST", path: "/v2.1/os-server-groups", before: "2.64", valid: `{"server_group": {"name": "x", "policies": ["affinity"]}}`},
		{method: "POST", path: "/v2.1/os-server-groups", from: "2.64", valid: `{"server_group": {"name": "x", "policy": "anti-affinity", "rules": {"max_server_per_host": 1}}}`},
		{method: "PUT", path: services + "{id}", before: "2.53", at: services + "enable", valid: `{"host": "node-1", "binary": "nova-compute"}`},
		{method: "PUT", path: services + "{id}", before: "2.53", at: services + "disable", valid: `{"host": "node-1", "binary": "nova-compute"}`},
		{method: "PUT", path: services + "{id}", before: "2.53", at: services + "disable-log-reason", valid: `{"host": "node-1", "binary": "nova-compute", "disabled_reason": "x"}`},
		{method: "PUT", path: services + "{id}", before: "2.53", at: services + "force-down", valid: `{"host": "node-1", "binary": "nova-compute", "forced_down": false}`},
		{method: "PUT", path: services + "{id}", from: "2.53", at: services + store.ServiceUUID(store.ComputeBinary, "node-1"), valid: `{"status": "enabled", "forced_down": false}`},
		{method: "POST", path: "/v2.1/flavors", valid: `{"flavor": {"name": "x", "ram": 64, "vcpus": 1, "disk": 0, "id": "x"}}`},
		{method: "PUT", path: "/v2.1/flavors/{id}", at: "/v2.1/flavors/1", from: "2.55", valid: `{"flavor": {"description": "x"}}`},
		{method: "POST", path: "/v2.1/flavors/{flavor_id}/os-extra_specs", at: "/v2.1/flavors/1/os-extra_specs", valid: `{"extra_specs": {}}`},
		{method: "PUT", path: "/v2.1/flavors/{flavor_id}/os-extra_specs/{id}", at: "/v2.1/flavors/1/os-extra_specs/k", valid: `{"k": "v"}`},
		{method: "POST", path: "/v2.1/flavors/{id}/action", action: "addTenantAccess", at: "/v2.1/flavors/1/action", valid: `{"addTenantAccess": {"tenant": "p"}}`},
		{method: "POST", path: "/v2.1/flavors/{id}/action", action: "removeTenantAccess", at: "/v2.1/flavors/1/action", valid: `{"removeTenantAccess": {"tenant": "p"}}`},
		{method: "POST", path: "/v2.1/os-keypairs", before: "2.92", valid: `{"keypair": {"name": "x"}}`},
		{method: "POST", path: "/v2.1/os-keypairs", from: "2.92", valid: `{"keypair": {"name": "x", "public_key": "x"}}`},
		{method: "POST", path: "/v2.1/os-server-external-events", valid: `{"events": [{"name": "network-changed", "server_uuid": "` + activeID + `"}]}`},
	}
	for _, a := range []struct{ name, from, before, valid string }{
		{name: "reboot", valid: `{"type": "SOFT"}`},
		{name: "resize", valid: `{"flavorRef": "2"}`},
		{name: "rebuild", valid: `{"imageRef": "` + strictImage + `"}`},
		{name: "createImage", valid: `{"name": "x"}`},
		{name: "createBackup", valid: `{"name": "x", "backup_type": "daily", "rotation": 1}`},
		{name: "os-resetState", valid: `{"state": "active"}`},
		{name: "changePassword", valid: `{"adminPass": "x"}`},
		{name: "os-getConsoleOutput", valid: `{"length": 1}`},
		{name: "os-getVNCConsole", before: "2.6", valid: `{"type": "novnc"}`},
		{name: "os-getSPICEConsole", before: "2.6", valid: `{"type": "spice-html5"}`},
		{name: "os-getSerialConsole", before: "2.6", valid: `{"type": "serial"}`},
		{name: "rescue", valid: `{"adminPass": "x"}`},
		{name: "lock", from: "2.73", valid: `{"locked_reason": "x"}`},
		{name: "unshelve", from: "2.77", before: "2.91", valid: `{"availability_zone": "nova"}`},
		{name: "unshelve", from: "2.91", valid: `{"host": "node-1"}`},
		{name: "trigger_crash_dump", from: "2.17", valid: `null`},
		{name: "addFixedIp", before: "2.44", valid: `{"networkId": 1}`},
		{name: "removeFixedIp", before: "2.44", valid: `{"address": "10.0.0.4"}`},
	} {
		list = append(list, strictRoute{method: "POST", path: "/v2.1/servers/{id}/action", action: a.name, at: strictAction, from: a.from, before: a.before, valid: `{"` + a.name + `": ` + a.valid + `}`})
	}
	return list
}

// notStrict are the operations with a body in the published document that TestStrict does not try, by the beginning of their keys, with the reason.
func notStrict() map[string]string {
	const server = "POST /v2.1/servers/{id}/action "
	out := map[string]string{
		server + "evacuate": absent, server + "migrate": absent, server + "os-migrateLive": absent, server + "addFloatingIp": absent, server + "removeFloatingIp": absent,
		server + "addSecurityGroup": "the document says null; Nova takes the name of a group, see TestServerParts", server + "removeSecurityGroup": "as addSecurityGroup",
		server + "resetNetwork": gone, server + "os-getRDPConsole": gone, server + "injectNetworkInfo": "501 for each body",
		"POST /v2.1/flavors/{id}/action create": "the document lists a second time what POST and PUT of flavors take", "POST /v2.1/flavors/{id}/action update": "as create",
		"POST /v2.1/flavors/{id}/action delete": "as create", "POST /v2.1/servers/{server_id}/consoles": gone,
		"PUT /v2.1/os-volumes_boot/": "the document lists the operations of servers for this path, which has only POST", "POST /v2.1/os-volumes_boot": "as PUT; nova-mini has no volumes",
		"POST /v2.1/servers/{server_id}/migrations/": absent,
	}
	for action := range strings.FieldsSeq("confirmResize revertResize os-start os-stop restore forceDelete unlock pause unpause unrescue shelve shelveOffload suspend resume") {
		out[server+action] = "the document says null, but Nova accepts any value, and Terraform sends an empty text"
	}
	for resource, reason := range map[string]string{
		"os-aggregates": absent, "os-assisted-volume-snapshots": absent, "os-hosts": absent, "os-quota-class-sets": absent, "os-quota-sets": absent,
		"os-agents": gone, "os-cells": gone, "os-certificates": gone, "os-cloudpipe": gone, "os-fixed-ips": gone, "os-floating-ip-dns": gone, "os-floating-ips-bulk": gone, "os-security-group-default-rules": gone,
		"os-baremetal-nodes": proxied, "os-floating-ips": proxied, "os-networks": proxied, "os-security-group-rules": proxied, "os-security-groups": proxied, "os-snapshots": proxied,
		"os-tenant-networks": proxied, "os-volumes": proxied,
	} {
		out["POST /v2.1/"+resource], out["PUT /v2.1/"+resource] = reason, reason
	}
	return out
}

// operations returns the operations with a body in the published document. An operation with several actions is there once for each.
func (p *published) operations() (out []string) {
	for path, methods := range dig(p.doc, "paths") {
		for method, op := range dig(methods) {
			body := dig(op, "requestBody", "content", "application/json", "schema")
			if body == nil {
				continue
			}
			key := strings.ToUpper(method) + " " + path
			list, _ := p.resolve(body)["oneOf"].([]any)
			actions := 0
			for _, one := range list {
				if name, ok := dig(p.resolve(dig(one)), "x-openstack")["action-name"].(string); ok {
					out = append(out, key+" "+name)
					actions++
				}
			}
			if actions == 0 {
				out = append(out, key)
			}
		}
	}
	slices.Sort(out)
	return out
}

// TestStrictIsWhole: TestStrict tries each operation with a body in the published document, or notStrict has the reason why it does not.
func TestStrictIsWhole(t *testing.T) {
	t.Parallel()
	tried, reasons, used := map[string]bool{}, notStrict(), map[string]bool{}
	for _, r := range strictRoutes() {
		tried[r.key()] = true
	}
	all := readPublished(t).operations()
	if len(all) < 90 {
		t.Errorf("only %d operations", len(all))
	}
	for _, op := range all {
		found := ""
		for begin := range reasons {
			if rest, ok := strings.CutPrefix(op, begin); ok && (rest == "" || strings.HasSuffix(begin, "/") || rest[0] == '/' || rest[0] == ' ') {
				found = begin
				used[begin] = true
			}
		}
		switch {
		case !tried[op] && found == "":
			t.Errorf("TestStrict does not try %s, and notStrict does not have it", op)
		case tried[op] && found != "":
			t.Errorf("TestStrict tries %s, and notStrict has it", op)
		}
	}
	for begin := range reasons {
		if path := strings.TrimPrefix(strings.TrimPrefix(begin, "PUT "), "POST "); !used[begin] && !used["POST "+path] && !used["PUT "+path] {
			t.Errorf("no operation begins with %s", begin)
		}
	}
}

// includes reports whether the row of a route applies to a version.
func (r *strictRoute) includes(t *testing.T, v restapi.Version) bool {
	t.Helper()
	least := func(limit string) bool {
		l, err := restapi.ParseVersion(limit)
		if err != nil {
			t.Fatal(err)
		}
		return v.AtLeast(l.Major, l.Minor)
	}
	return (r.from == "" || least(r.from)) && (r.before == "" || !least(r.before))
}

// TestStrict: in each microversion, bodies that Nova's published schemas refuse are refused with 400, and have no effect. The schemas are those of
// 2.96. A field of a later version is refused like any unknown name.
func TestStrict(t *testing.T) {
	t.Parallel()
	p := readPublished(t)
	h := newAPI(t)
	accepted := map[string]string{ // places at which nova-mini accepts more than the schema, with the reason
		".server.imageRef":                  "the id of an image is any text, such as the name of its file",
		".os:scheduler_hints.group":         "Nova accepts a list since the document was published, and an empty one has no group",
		".OS-SCH-HNT:scheduler_hints.group": "as os:scheduler_hints",
	}
	unsent := map[string]string{ // the same, where an accepted body would begin an action
		".rebuild.imageRef":        accepted[".server.imageRef"],
		".rescue.rescue_image_ref": accepted[".server.imageRef"],
	}
	used := map[string]bool{}
	send := func(version, method, path, body string) (int, string) {
		r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("OpenStack-API-Version", "compute "+version)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	show := func() (out []string) { // all that a refused body could change, but the servers that the exceptions make
		for _, url := range []string{
			strictServer, strictServer + "/os-interface", strictServer + "/os-instance-actions", "/v2.1/os-server-groups", "/v2.1/os-services", "/v2.1/os-keypairs",
			"/v2.1/flavors/detail?is_public=none",
		} {
			status, reply := send("2.96", "GET", url, "")
			if status != http.StatusOK {
				t.Fatalf("GET %s = %d %s", url, status, reply)
			}
			out = append(out, url+": "+reply)
		}
		return out
	}
	tried, count, created := 0, 0, 0
	every := 10 // each tenth body is tried; make accept tries all
	if os.Getenv("ARMATURE_ACCEPT") != "" {
		every = 1
	}
	before := show()
	for _, route := range strictRoutes() {
		if route.at == "" {
			route.at = route.path
		}
		var last map[string]any
		rows := 0
		var list []versionedSchema
		if route.schema == "" {
			list = p.requests(route.method, route.path, route.action)
		} else {
			var own map[string]any
			if err := json.Unmarshal([]byte(route.schema), &own); err != nil {
				t.Fatal(err)
			}
			list = []versionedSchema{{route.from, own}}
		}
		for i, s := range list {
			s.version = cmp.Or(s.version, route.from, "2.1")
			v, err := restapi.ParseVersion(s.version)
			if err != nil {
				t.Fatal(err)
			}
			if !route.includes(t, v) {
				continue
			}
			rows++
			compiled := compile(t, s.schema)
			var valid any
			if err := json.Unmarshal([]byte(route.valid), &valid); err != nil {
				t.Fatal(err)
			}
			if err := compiled.Validate(valid); err != nil {
				t.Fatalf("%s %s %s at %s: the valid body: %v", route.method, route.path, route.action, s.version, err)
			}
			try := func(at string, value any) {
				body := toJSON(t, value)
				instance, err := jsonschema.UnmarshalJSON(strings.NewReader(body))
				if err != nil || compiled.Validate(instance) == nil || unsent[at] != "" {
					return
				}
				if tried++; tried%every != 0 {
					return
				}
				count++
				status, reply := send(s.version, route.method, route.at, body)
				if status == http.StatusBadRequest {
					return
				}
				if accepted[at] != "" {
					used[at] = true
					created++
					return
				}
				t.Errorf("%s %s %s at %s: %s: %.200s = %d %.200s", route.method, route.path, route.action, s.version, at, body, status, reply)
			}
			p.variants(s.schema, last, valid, "", try)
			last = s.schema
			for _, later := range list[i+1:] { // fields of later versions do not exist in this version
				for field := range dig(later.schema, "properties") {
					for name := range dig(later.schema, "properties", field, "properties") {
						if dig(s.schema, "properties", field, "properties")[name] == nil {
							object := maps.Clone(dig(valid, field))
							object[name] = "x"
							try("."+field+"."+name, map[string]any{field: object})
						}
					}
				}
			}
		}
		if rows == 0 {
			t.Errorf("%s %s %s: no schema from %q before %q", route.method, route.path, route.action, route.from, route.before)
		}
	}
	t.Logf("%d bodies were refused", count)
	if diff := cmpdiff.Diff(before, show()); diff != "" {
		t.Errorf("a refused body had an effect:\n%s", diff)
	}
	var all struct{ Servers []item }
	if _, list := send("2.96", "GET", "/v2.1/servers", ""); json.Unmarshal([]byte(list), &all) != nil || len(all.Servers) != 2+created {
		t.Errorf("%d servers, want 2 and the %d that were accepted", len(all.Servers), created)
	}
	for at := range accepted {
		if !used[at] && every == 1 {
			t.Errorf("nova-mini does not accept %s, so remove it from the list of exceptions", at)
		}
	}
	if tried < 4000 {
		t.Errorf("only %d bodies", tried)
	}
}

// compile compiles a schema of the published document.
func compile(t *testing.T, schema map[string]any) *jsonschema.Schema {
	t.Helper()
	raw, err := json.Marshal(schema)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	if err := c.AddResource("mem:///published.json", doc); err != nil {
		t.Fatal(err)
	}
	out, err := c.Compile("mem:///published.json")
	if err != nil {
		t.Fatal(err)
	}
	return out
}
