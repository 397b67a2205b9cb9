package api_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"github.com/armature-go/armature/examples/nova-mini/store"
	restapi "github.com/armature-go/armature/service/api"
)

// published is Nova's published OpenAPI document.
type published struct {
	*testing.T

	doc     map[string]any
	schemas map[string]any
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
	return p
}

// dig returns the object at a path of names.
func dig(v any, path ...string) map[string]any {
	out, _ := v.(map[string]any)
	for _, name := range path {
		out, _ = out[name].(map[string]any)
	}
	return out
}

// resolve returns a schema, or the one that it refers to.
func (p *published) resolve(schema map[string]any) map[string]any {
	if ref, ok := schema["$ref"].(string); ok {
		return dig(p.schemas, ref[strings.LastIndexByte(ref, '/')+1:])
	}
	return schema
}

// versionedSchema is the schema of a request in a range of microversions.
type versionedSchema struct {
	version string // the first one
	schema  map[string]any
}

// requests returns the schemas of the request of an operation, by microversion.
func (p *published) requests(method, path string) (out []versionedSchema) {
	p.Helper()
	schema := p.resolve(dig(p.doc, "paths", path, strings.ToLower(method), "requestBody", "content", "application/json", "schema"))
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

// wrongValues are values of which a schema refuses most.
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

// variants calls f with values for a schema, most of which are wrong, and with what is changed. It leaves out what is as in the schema of the version before.
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

// TestStrict: bodies that Nova's published schemas refuse are refused with 400, in each microversion, and have no effect. The schemas are those of
// 2.96; a field of a later version is refused as any other name.
func TestStrict(t *testing.T) {
	t.Parallel()
	p := readPublished(t)
	h := newAPI(t)
	accepted := map[string]string{ // what nova-mini accepts
		".server.imageRef":                  "the id of an image is any text, such as the name of its file",
		".os:scheduler_hints.group":         "Nova accepts a list since the document was published, and an empty one has no group",
		".OS-SCH-HNT:scheduler_hints.group": "as os:scheduler_hints",
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
	const server = "/v2.1/servers/" + activeID
	tried, count, created := 0, 0, 0
	every := 5 // make accept tries each body
	if os.Getenv("ARMATURE_ACCEPT") != "" {
		every = 1
	}
	_, before := send("2.96", "GET", server, "")
	for _, route := range []struct {
		method, path, at string
		valid            func(v restapi.Version) string
	}{
		{"POST", "/v2.1/servers", "/v2.1/servers", func(v restapi.Version) string {
			if v.AtLeast(2, 37) {
				return `{"server": {"name": "x", "flavorRef": "1", "imageRef": "208655eb-63a9-42b9-b006-4a93cb26dfa8", "networks": "none"}}`
			}
			return `{"server": {"name": "x", "flavorRef": "1", "imageRef": "208655eb-63a9-42b9-b006-4a93cb26dfa8"}}`
		}},
		{"POST", "/v2.1/os-server-groups", "/v2.1/os-server-groups", func(v restapi.Version) string {
			if v.AtLeast(2, 64) {
				return `{"server_group": {"name": "x", "policy": "anti-affinity", "rules": {"max_server_per_host": 1}}}`
			}
			return `{"server_group": {"name": "x", "policies": ["affinity"]}}`
		}},
		{"PUT", "/v2.1/os-services/{id}", "/v2.1/os-services/force-down", func(v restapi.Version) string {
			if v.AtLeast(2, 53) {
				return `{"status": "enabled", "forced_down": false}`
			}
			return `{"host": "node-1", "binary": "nova-compute", "forced_down": false}`
		}},
		{"PUT", "/v2.1/servers/{id}", server, func(restapi.Version) string { return `{"server": {"name": "s"}}` }},
		{"POST", "/v2.1/servers/{server_id}/metadata", server + "/metadata", func(restapi.Version) string { return `{"metadata": {}}` }},
		{"PUT", "/v2.1/servers/{server_id}/metadata", server + "/metadata", func(restapi.Version) string { return `{"metadata": {}}` }},
		{"PUT", "/v2.1/servers/{server_id}/metadata/{id}", server + "/metadata/k", func(restapi.Version) string { return `{"meta": {"k": "v"}}` }},
		{"PUT", "/v2.1/servers/{server_id}/tags", server + "/tags", func(restapi.Version) string { return `{"tags": []}` }},
	} {
		var last map[string]any
		list := p.requests(route.method, route.path)
		for i, s := range list {
			if s.version == "" {
				s.version = "2.26"
			}
			compiled := compile(t, s.schema)
			v, err := restapi.ParseVersion(s.version)
			if err != nil {
				t.Fatal(err)
			}
			url := route.at
			if route.path == "/v2.1/os-services/{id}" && v.AtLeast(2, 53) {
				url = "/v2.1/os-services/" + store.ServiceUUID(store.ComputeBinary, "node-1")
			}
			var valid any
			if err := json.Unmarshal([]byte(route.valid(v)), &valid); err != nil {
				t.Fatal(err)
			}
			if err := compiled.Validate(valid); err != nil {
				t.Fatalf("%s %s at %s: the valid body: %v", route.method, route.path, s.version, err)
			}
			try := func(at string, value any) {
				body := toJSON(t, value)
				instance, err := jsonschema.UnmarshalJSON(strings.NewReader(body))
				if err != nil || compiled.Validate(instance) == nil {
					return
				}
				if tried++; tried%every != 0 {
					return
				}
				count++
				status, reply := send(s.version, route.method, url, body)
				if status == http.StatusBadRequest {
					return
				}
				if accepted[at] != "" {
					used[at] = true
					created++
					return
				}
				t.Errorf("%s %s at %s: %s: %.200s = %d %.200s", route.method, route.path, s.version, at, body, status, reply)
			}
			p.variants(s.schema, last, valid, "", try)
			last = s.schema
			for _, later := range list[i+1:] { // their fields do not exist yet
				for name := range dig(later.schema, "properties", "server", "properties") {
					server := maps.Clone(dig(valid, "server"))
					if dig(s.schema, "properties", "server", "properties")[name] == nil {
						server[name] = "x"
						try(".server."+name, map[string]any{"server": server})
					}
				}
			}
		}
	}
	t.Logf("%d bodies were refused", count)
	if _, after := send("2.96", "GET", server, ""); after != before {
		t.Errorf("a refused body had an effect:\n%s\n%s", before, after)
	}
	var all struct{ Servers []item }
	if _, list := send("2.96", "GET", "/v2.1/servers", ""); json.Unmarshal([]byte(list), &all) != nil || len(all.Servers) != 2+created {
		t.Errorf("%d servers, want 2 and the %d that were accepted", len(all.Servers), created)
	}
	for at := range accepted {
		if !used[at] && every == 1 {
			t.Errorf("%s is not accepted", at)
		}
	}
	if _, list := send("2.96", "GET", "/v2.1/os-server-groups", ""); !strings.Contains(list, `"server_groups":[]`) {
		t.Errorf("a refused body has made a server group: %s", list)
	}
	if tried < 2000 {
		t.Errorf("only %d bodies", count)
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
