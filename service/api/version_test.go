package api_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

var volumeVersions = &api.Microversions{Service: "volume", Min: "3.0", Max: "3.70", Prefix: "/v3", Headers: []string{"X-OpenStack-Volume-API-Version"}}

const nameOnly = `{"type": "object", "required": ["disk"], "additionalProperties": false, "properties": {"disk": {"type": "object", "required": ["name"],
	"additionalProperties": false, "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 10}}}}}`

const nameAndSize = `{"type": "object", "required": ["disk"], "additionalProperties": false, "properties": {"disk": {"type": "object", "required": ["name", "size"],
	"additionalProperties": false, "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 10}, "size": {"type": "integer", "minimum": 1, "maximum": 100},
	"kind": {"enum": ["fast", "slow"]}, "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+$"}, "uniqueItems": true, "maxItems": 2},
	"meta": {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 1}, "ratio": {"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.5},
	"labels": {"type": "object", "patternProperties": {"^[a-z]{1,3}$": {"type": "string"}}, "additionalProperties": false}, "host": {"anyOf": [{"type": "null"}, {"type": "string", "minLength": 3}]}, "id": {"type": "string", "format": "uuid"}}}}}`

// loose is a body without constraints, so only the schema decides.
type loose struct {
	Disk disk `json:"disk"`
}

// versionedMux returns a Mux with routes of several versions.
func versionedMux(cfg api.Config) *api.Mux {
	cfg.Microversions = volumeVersions
	m, _ := newMux(cfg)
	say := func(what string) func(context.Context, *api.Request[api.None]) (map[string]string, error) {
		return func(_ context.Context, r *api.Request[api.None]) (map[string]string, error) {
			return map[string]string{"route": what, "version": r.Version.String()}, nil
		}
	}
	api.HandleRoute(m, api.Route{Pattern: "GET /v3/disks", Max: "3.9"}, say("old"))
	api.HandleRoute(m, api.Route{Pattern: "GET /v3/disks", Min: "3.10"}, say("new"))
	api.HandleRoute(m, api.Route{Pattern: "PUT /v3/disks", Min: "3.20", Max: "3.30"}, say("put"))
	api.HandleRoute(m, api.Route{Pattern: "GET /v3/late/{id}", Min: "3.50"}, say("late"))
	api.HandleRoute(m, api.Route{
		Pattern: "POST /v3/disks", Summary: "Create a disk", Status: http.StatusAccepted, Errors: []int{400, 409},
		Body: []api.Schema{{Max: "3.9", JSON: nameOnly}, {Min: "3.10", JSON: nameAndSize}}, NoEffect: []string{"disk.kind", "disk.ratio", "disk.labels", "disk.host", "disk.id"},
		Reply: []api.Schema{{JSON: nameAndSize}},
		Query: []api.Schema{{Min: "3.10", JSON: `{"type": "object", "additionalProperties": false, "properties": {"dry": {"type": "boolean"}, "tag": {"type": "array", "items": {"maxLength": 3}}, "n": {"type": "integer", "minimum": 1}}}`}},
	}, func(_ context.Context, r *api.Request[loose]) (loose, error) { return r.Body, nil })
	return m
}

// TestMicroversions: a request gets the right version, and every reply has the version headers.
func TestMicroversions(t *testing.T) {
	t.Parallel()
	m := versionedMux(api.Config{})
	const h, old = "OpenStack-API-Version", "X-OpenStack-Volume-API-Version"
	for _, tt := range []struct {
		name, method, path string
		header             []string
		status             int
		version            string // the version in the reply's header
		says               string
	}{
		{"without a header", "GET", "/v3/disks", nil, 200, "3.0", `"route":"old"`},
		{"the version of another service", "GET", "/v3/disks", []string{h, "compute 2.53"}, 200, "3.0", `"version":"3.0"`},
		{"one of several services", "GET", "/v3/disks", []string{h, "compute 2.53, volume 3.10"}, 200, "3.10", `"route":"new"`},
		{"latest", "GET", "/v3/disks", []string{h, "volume latest"}, 200, "3.70", `"version":"3.70"`},
		{"the older header", "GET", "/v3/disks", []string{old, "3.12"}, 200, "3.12", `"version":"3.12"`},
		{"the newer header counts", "GET", "/v3/disks", []string{h, "volume 3.11", old, "3.12"}, 200, "3.11", `"version":"3.11"`},
		{"the last version of a header counts", "GET", "/v3/disks", []string{h, "volume 3.11, volume 3.12, compute 2.1"}, 200, "3.12", `"version":"3.12"`},
		{"the last of several headers counts", "GET", "/v3/disks", []string{h, "volume 3.11", h, "volume 3.12"}, 200, "3.12", `"version":"3.12"`},
		{"the last version of the older header counts", "GET", "/v3/disks", []string{old, "3.11,3.12"}, 200, "3.12", `"version":"3.12"`},
		{"the last of several older headers counts", "GET", "/v3/disks", []string{old, "3.11", old, "3.12"}, 200, "3.12", `"version":"3.12"`},
		{"case does not matter", "GET", "/v3/disks", []string{h, "Volume Latest"}, 200, "3.70", `"route":"new"`},
		{"malformed", "GET", "/v3/disks", []string{h, "volume three"}, 400, "3.0", "API Version String three is of invalid format. Must be of format MajorNum.MinorNum."},
		{"a leading zero", "GET", "/v3/disks", []string{h, "volume 3.01"}, 400, "3.0", "API Version String 3.01 is of invalid"},
		{"three parts", "GET", "/v3/disks", []string{h, "volume 3.1.2"}, 400, "3.0", "of invalid format"},
		{"a header without a version", "GET", "/v3/disks", []string{h, "volume"}, 200, "3.0", `"route":"old"`},
		{"too new", "GET", "/v3/disks", []string{h, "volume 3.71"}, 406, "3.71", "Version 3.71 is not supported by the API. Minimum is 3.0 and maximum is 3.70."},
		{"too old", "GET", "/v3/disks", []string{h, "volume 2.99"}, 406, "2.99", "Minimum is 3.0"},
		{"too new, and no such path", "GET", "/v3/nothing", []string{h, "volume 4.0"}, 406, "4.0", "Minimum is 3.0"},
		{"not in this version", "GET", "/v3/late/1", []string{h, "volume 3.49"}, 404, "3.49", "could not be found"},
		{"in this version", "GET", "/v3/late/1", []string{h, "volume 3.50"}, 200, "3.50", "late"},
		{"method not in this version", "PUT", "/v3/disks", []string{h, "volume 3.31"}, 404, "3.31", "could not be found"},
		{"no such path", "GET", "/v3/nothing", nil, 404, "3.0", "could not be found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := send(t, m, tt.method, tt.path, "", tt.header...)
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.says) {
				t.Errorf("%d %s, want %d with %s", w.Code, w.Body, tt.status, tt.says)
			}
			got := map[string][]string{h: w.Header().Values(h), old: w.Header().Values(old), "Vary": w.Header().Values("Vary")}
			want := map[string][]string{h: {"volume " + tt.version}, old: {tt.version}, "Vary": {h, old}}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
		})
	}
	w := send(t, m, "GET", "/disks/1", "", h, "volume 9.9")
	if w.Code != 200 || w.Header().Get(h) != "" {
		t.Errorf("a path without versions: %d, %q", w.Code, w.Header().Get(h))
	}
}

// TestSchemas: for a wrong body or query, the reply has an error in OpenStack's words, which depends on the
// version.
func TestSchemas(t *testing.T) {
	t.Parallel()
	m := versionedMux(api.Config{})
	for _, tt := range []struct {
		version, query, body string
		status               int
		says                 string
	}{
		{"3.0", "", `{"disk": {"name": "a"}}`, 202, ""},
		{"3.0", "", `{"disk": {"name": "a", "size": 1}}`, 400, "Invalid input for field/attribute disk. Value: {'name': 'a', 'size': 1}. Additional properties are not allowed ('size' was unexpected)"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1}}`, 202, ""},
		{"3.10", "", `{"disk": {"name": "a"}}`, 400, "Invalid input for field/attribute disk. Value: {'name': 'a'}. 'size' is a required property"},
		{"3.10", "", `{}`, 400, "'disk' is a required property"},
		{"3.10", "", `[]`, 400, "[] is not of type 'object'"},
		{"3.10", "", `{"disk": {"name": 5, "more": 1}}`, 400, "Invalid input for field/attribute name. Value: 5. 5 is not of type 'string'"},
		{"3.10", "", `{"disk": {"name": "", "size": 1}}`, 400, "Invalid input for field/attribute name. Value: . '' is too short"},
		{"3.10", "", `{"disk": {"name": "elevenchars", "size": 1}}`, 400, "'elevenchars' is too long"},
		{"3.10", "", `{"disk": {"name": "a", "size": 0}}`, 400, "Invalid input for field/attribute size. Value: 0. 0 is less than the minimum of 1"},
		{"3.10", "", `{"disk": {"name": "a", "size": 101}}`, 400, "101 is greater than the maximum of 100"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1.5}}`, 400, "1.5 is not of type 'integer'"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "kind": "dead"}}`, 400, "Invalid input for field/attribute kind. Value: dead. 'dead' is not one of ['fast', 'slow']"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "tags": ["a", "B"]}}`, 400, "Invalid input for field/attribute 1. Value: B. 'B' does not match '^[a-z]+$'"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "tags": ["a", "a"]}}`, 400, "['a', 'a'] has non-unique elements"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "tags": ["a", "b", "c"]}}`, 400, "['a', 'b', 'c'] is too long"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "meta": {"a": null}}}`, 400, "Invalid input for field/attribute a. Value: None. None is not of type 'string'"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "meta": {"a": "b", "c": "it's"}}}`, 400, `{'a': 'b', 'c': "it's"} has too many properties`},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "ratio": 0}}`, 400, "0 is less than or equal to the minimum of 0"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "ratio": 0.7}}`, 400, "0.7 is not a multiple of 0.5"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "host": "x"}}`, 400, "'x' is not valid under any of the given schemas"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "host": null}}`, 202, ""}, // the type has no field host
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "id": "x"}}`, 400, "'x' is not a 'uuid'"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1}, "disk": {"name": "b", "size": 1}}`, 400, "an object has the name 'disk' twice"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "n\u0061me": "b"}}`, 400, "an object has the name 'name' twice"},
		{"3.10", "", "{\"disk\": {\"name\": \"\xff\", \"size\": 1}}", 400, "not UTF-8"},
		{"3.10", "", `{"disk": {"name": "\ud83d\ude00", "size": 1}}`, 202, ""},
		{"3.10", "", `{"disk": {"name": "\\ud800", "size": 1}}`, 202, ""},
		{"3.10", "", `{"disk": {"name": "\ud800", "size": 1}}`, 400, "half of a surrogate pair"},
		{"3.10", "", `{"disk": {"name": "a\uDE00b", "size": 1}}`, 400, "half of a surrogate pair"},
		{"3.10", "", `{"disk": {"name": "\ud83d\ud83d\ude00", "size": 1}}`, 400, "half of a surrogate pair"},
		{"3.10", "", `{"disk": {"name": "\ud83d x", "size": 1}}`, 400, "half of a surrogate pair"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "meta": {"\udfff": "x"}}}`, 400, "half of a surrogate pair"},
		{"3.10", "", strings.Repeat(`{"disk":`, 10000), 400, "nested deeper than 64"},
		{"3.10", "", strings.Repeat(`[`, 10000), 400, "nested deeper than 64"},
		{"3.0", "?anything=goes", `{"disk": {"name": "a"}}`, 202, ""},
		{"3.10", "?dry=true&tag=a&tag=b&n=3", `{"disk": {"name": "a", "size": 1}}`, 202, ""},
		{"3.10", "?dry=perhaps", `{}`, 400, "Invalid input for query parameters dry. Value: perhaps. 'perhaps' is not of type 'boolean'"},
		{"3.10", "?n=0", `{}`, 400, "Invalid input for query parameters n. Value: 0. 0 is less than the minimum of 1"},
		{"3.10", "?n=1&n=2", `{}`, 400, "Invalid input for query parameters n. It is given 2 times."},
		{"3.10", "?tag=a&tag=long", `{}`, 400, "Invalid input for query parameters tag. Value: long. 'long' is too long"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "labels": {"a": "b"}}}`, 202, ""},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "labels": {"a": 1}}}`, 400, "Invalid input for field/attribute a. Value: 1. 1 is not of type 'string'"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "labels": {"A": "b"}}}`, 400, "Invalid input for field/attribute labels. Value: {'A': 'b'}. 'A' does not match any of the regexes: '^[a-z]{1,3}$'"},
		{"3.10", "", `{"disk": {"name": "a", "size": 1, "labels": {"B": "b", "A": "b"}}}`, 400, "'A', 'B' do not match any of the regexes"},
		{"3.10", "?surprise=1", `{}`, 400, "Additional properties are not allowed ('surprise' was unexpected)"},
		{"3.10", "?n=%zz", `{}`, 400, "Malformed query"},
	} {
		w := send(t, m, "POST", "/v3/disks"+tt.query, tt.body, "OpenStack-API-Version", "volume "+tt.version)
		if w.Code != tt.status || tt.says != "" && !strings.Contains(decodeFault(t, w.Body.Bytes()), tt.says) {
			t.Errorf("%s %s %.80s = %d %s, want %d with %s", tt.version, tt.query, tt.body, w.Code, w.Body, tt.status, tt.says)
		}
	}
}

// TestBadRoutes: a wrong route panics when it is registered.
func TestBadRoutes(t *testing.T) {
	t.Parallel()
	none := func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, nil }
	for _, tt := range []struct {
		name  string
		route api.Route
		says  string
	}{
		{"overlapping handlers", api.Route{Pattern: "GET /v3/disks", Min: "3.9", Max: "3.12"}, "overlap"},
		{"an action beside all bodies", api.Route{Pattern: "GET /v3/disks", Action: "x"}, "overlap"},
		{"overlapping schemas", api.Route{Pattern: "PUT /v3/x", Reply: []api.Schema{{Max: "3.5", JSON: `{}`}, {Min: "3.5", JSON: `{}`}}}, "PUT /v3/x: reply, schema 2: the versions 3.5 to the last overlap"},
		{"a range whose ends are exchanged", api.Route{Pattern: "PUT /v3/x", Min: "3.5", Max: "3.4"}, "the first version 3.5 is after the last version 3.4"},
		{"a malformed version", api.Route{Pattern: "PUT /v3/x", Min: "three"}, "API Version String three"},
		{"a schema that is not JSON", api.Route{Pattern: "PUT /v3/x", Reply: []api.Schema{{JSON: `{`}}}, "PUT /v3/x: reply, schema 1"},
		{"JSON that is not a schema", api.Route{Pattern: "PUT /v3/x", Query: []api.Schema{{JSON: `{"type": "thing"}`}}}, "PUT /v3/x: query, schema 1"},
		{"no method", api.Route{Pattern: "/v3/x"}, "not a method and a path"},
		{"versions outside of the prefix", api.Route{Pattern: "GET /other", Min: "3.5"}, "its path is not under the Prefix"},
		{"versions above the last one", api.Route{Pattern: "GET /v3/x", Min: "3.71"}, "GET /v3/x: the versions 3.71 to the last are outside of the API's, 3.0 to 3.70"},
		{"versions below the first one", api.Route{Pattern: "GET /v3/x", Max: "2.9"}, "are outside of the API's"},
		{"a schema for other versions", api.Route{Pattern: "PUT /v3/x", Max: "3.5", Reply: []api.Schema{{Min: "3.6", JSON: `{}`}}}, "reply, schema 1: the versions 3.6 to the last are outside of the route's"},
		{"a rule that is never enforced", api.Route{Pattern: "GET /v3/x", Rule: "x:get"}, "GET /v3/x: rule x:get is never enforced"},
		{"a body that is never read", api.Route{Pattern: "PUT /v3/x", Body: []api.Schema{{JSON: `{}`}}}, "never reads the body"},
		{"the same route twice", api.Route{Pattern: "GET /v3/disks"}, "registered at"},
		{"a pattern that conflicts", api.Route{Pattern: "GET /{a}/disks"}, "conflicts with"},
	} {
		func() {
			defer func() {
				got, _ := recover().(string)
				if !strings.Contains(got, tt.says) {
					t.Errorf("%s: panic %q, want %q", tt.name, got, tt.says)
				}
				if strings.Contains(got, "registered at") && !strings.Contains(got, "version_test.go:") || strings.Contains(got, "route.go") {
					t.Errorf("%s: panic %q does not name the caller's line", tt.name, got)
				}
			}()
			api.HandleRoute(versionedMux(api.Config{}), tt.route, none)
		}()
	}
}

// TestNoEffect: HandleRoute panics if a schema of the body has a property for which the handler's type has no field, unless the
// schema allows only one value for the property, or NoEffect names the property.
func TestNoEffect(t *testing.T) {
	t.Parallel()
	type part struct {
		Name string `json:"name"`
	}
	type body struct {
		part

		Size   *int            `json:"size,omitempty"`
		Parts  []part          `json:"parts"`
		Labels map[string]part `json:"labels"`
		Any    any             `json:"any"`
		Raw    json.RawMessage `json:"raw"`
		When   time.Time       `json:"when"`
	}
	h := func(context.Context, *api.Request[body]) (api.None, error) { return api.None{}, nil }
	for _, tt := range []struct {
		properties string
		noEffect   []string
		says       string // "": no panic
	}{
		{`"name": {}, "size": {}, "parts": {"items": {"properties": {"name": {}}}}, "labels": {"additionalProperties": {"properties": {"name": {}}}}`, nil, ""},
		{`"any": {"properties": {"x": {}}}, "raw": {"properties": {"x": {}}}, "when": {"properties": {"x": {}}}`, nil, ""},
		{`"lost": {"type": "string"}`, nil, "POST /x: body, schema 1: property lost is allowed"},
		{`"lost": {"type": "string"}`, []string{"lost"}, ""},
		{`"lost": true`, nil, "property lost is allowed"},
		{`"lost": false`, nil, ""},
		{`"lost": {"const": 1}`, nil, ""},
		{`"lost": {"enum": ["MANUAL"]}`, nil, ""},
		{`"lost": {"enum": ["a", "b"]}`, nil, "property lost is allowed"},
		{`"lost": {"type": "null"}`, nil, ""},
		{`"parts": {"items": {"properties": {"size": {}}}}`, nil, "property parts[].size is allowed"},
		{`"parts": {"items": {"properties": {"size": {}}}}`, []string{"parts[].size"}, ""},
		{`"labels": {"patternProperties": {"^a": {"properties": {"size": {}}}}}`, nil, "property labels.^a.size is allowed"},
		{`"part": {"$ref": "#/$defs/p"}`, nil, "property part is allowed"},
		{`"parts": {"items": {"$ref": "#/$defs/p"}}`, nil, "property parts[].deep is allowed"},
		{`"name": {}`, []string{"name"}, "NoEffect has name"},
		{`"name": {}`, []string{"gone"}, "NoEffect has gone"},
	} {
		func() {
			defer func() {
				got, _ := recover().(string)
				if tt.says == "" && got != "" || !strings.Contains(got, tt.says) {
					t.Errorf("%s: panic %q, want %q", tt.properties, got, tt.says)
				}
			}()
			m := api.New(api.Config{Logger: slog.New(slog.DiscardHandler)})
			api.HandleRoute(m, api.Route{Pattern: "POST /x", NoEffect: tt.noEffect, Body: []api.Schema{{
				JSON: `{"type": "object", "$defs": {"p": {"anyOf": [{"properties": {"deep": {}}}, {"$ref": "#"}]}}, "properties": {` + tt.properties + `}}`,
			}}}, h)
		}()
	}
}

// TestEnforce: a route's rule is enforced after the client is authenticated and before the body is read.
func TestEnforce(t *testing.T) {
	t.Parallel()
	var asked []any
	m, _ := newMux(api.Config{Enforce: func(_ context.Context, rule string, target map[string]any) error {
		asked = append(asked, rule, target["id"])
		return fault.New(fault.Denied, "Policy doesn't allow %s to be performed.", rule)
	}})
	api.HandleRoute(m, api.Route{Pattern: "PUT /disks/{id}", Rule: "disk:update"}, func(context.Context, *api.Request[create]) (api.None, error) {
		t.Error("the handler was called")
		return api.None{}, nil
	})
	wantFault(t, send(t, m, "PUT", "/disks/7", `not JSON`), 403, "forbidden", "Policy doesn't allow disk:update to be performed.")
	if diff := cmp.Diff([]any{"disk:update", "7"}, asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}
