package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
)

// About is what an OpenAPI document says of the whole API.
type About struct {
	Title, Description, Version string
}

// OpenAPI returns the OpenAPI 3.1 document of the API in one microversion, or of all of
// it that has no versions. It is made of the routes: of their schemas, and where there
// are none of the types of their handlers. Health routes are not in it. It panics if a
// type cannot be described, a programmer's error.
func (m *Mux) OpenAPI(about About, v Version) map[string]any {
	paths := map[string]any{}
	for _, r := range m.all {
		if !r.has(v) {
			continue
		}
		path := openPath(r.path)
		item, _ := paths[path].(map[string]any)
		if item == nil {
			item = map[string]any{}
			paths[path] = item
		}
		item[strings.ToLower(r.method)] = m.operation(r, v)
	}
	info := map[string]any{"title": about.Title, "version": about.Version}
	if about.Description != "" {
		info["description"] = about.Description
	}
	doc := map[string]any{"openapi": "3.1.0", "info": info, "paths": paths, "components": map[string]any{"schemas": map[string]any{"Error": m.errorSchema()}}}
	if m.versions != nil && v != (Version{}) {
		info["x-openstack-microversion"] = v.String()
	}
	return doc
}

// openPath writes a pattern's path as OpenAPI does.
func openPath(path string) string {
	path = strings.ReplaceAll(strings.TrimSuffix(path, "{$}"), "...}", "}")
	return path[strings.IndexByte(path, '/'):]
}

func (m *Mux) operation(r *route, v Version) map[string]any {
	params := []any{}
	for _, name := range r.params {
		params = append(params, map[string]any{"name": name, "in": "path", "required": true, "schema": map[string]any{"type": "string"}})
	}
	if s := at(r.query, v); s != nil {
		params = append(params, s.parameters()...)
	}
	if m.versions != nil && m.versions.under(openPath(r.path)) {
		params = append(params, map[string]any{
			"name": versionHeader, "in": "header", "schema": map[string]any{"type": "string"}, "example": m.versions.Service + " " + v.String(),
		})
	}
	op := map[string]any{"operationId": operationID(r), "parameters": params, "responses": m.responses(r, v)}
	if r.Summary != "" {
		op["summary"] = r.Summary
	}
	if s := at(r.body, v); s != nil {
		op["requestBody"] = content(true, s.doc)
	} else if r.in != reflect.TypeFor[None]() {
		op["requestBody"] = content(true, infer(r.in))
	}
	return op
}

// operationID is a name for the operation, which versions of one share.
func operationID(r *route) string {
	words := []string{strings.ToLower(r.method)}
	for part := range strings.FieldsFuncSeq(r.path, func(c rune) bool { return strings.ContainsRune("/{}.$-_", c) }) {
		words = append(words, strings.ToUpper(part[:1])+part[1:])
	}
	return strings.Join(words, "")
}

func (m *Mux) responses(r *route, v Version) map[string]any {
	ok := map[string]any{"description": http.StatusText(r.Status)}
	switch s := at(r.reply, v); {
	case s != nil:
		ok["content"] = content(false, s.doc)["content"]
	case r.out != reflect.TypeFor[None]() && r.out.Kind() != reflect.Interface:
		ok["content"] = content(false, infer(r.out))["content"]
	}
	out := map[string]any{strconv.Itoa(r.Status): ok}
	failed := map[string]any{"$ref": "#/components/schemas/Error"}
	for _, status := range r.Errors {
		e := content(false, failed)
		e["description"] = http.StatusText(status)
		out[strconv.Itoa(status)] = e
	}
	e := content(false, failed)
	e["description"] = "An error"
	out["default"] = e
	return out
}

func content(required bool, schema any) map[string]any {
	out := map[string]any{"content": map[string]any{"application/json": map[string]any{"schema": schema}}}
	if required {
		out["required"] = true
	}
	return out
}

// parameters describes a query.
func (s *schema) parameters() []any {
	props, _ := s.doc["properties"].(map[string]any)
	required, _ := s.doc["required"].([]any)
	var out []any
	for _, name := range slices.Sorted(maps.Keys(props)) {
		p := map[string]any{"name": name, "in": "query", "schema": props[name]}
		if slices.Contains(required, any(name)) {
			p["required"] = true
		}
		if one, ok := props[name].(map[string]any); ok && one["type"] == "array" {
			p["style"], p["explode"] = "form", true
		}
		out = append(out, p)
	}
	return out
}

// infer describes a Go type.
func infer(t reflect.Type) any {
	s, err := jsonschema.ForType(t, &jsonschema.ForOptions{IgnoreInvalidTypes: true})
	if err != nil {
		panic(fmt.Sprintf("api: describe %s: %v", t, err))
	}
	raw, err := json.Marshal(s)
	var out any
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		panic(fmt.Sprintf("api: describe %s: %v", t, err))
	}
	return out
}

func (m *Mux) errorSchema() any {
	if m.cfg.ErrorList != "" {
		return infer(reflect.TypeFor[map[string][]errorItem]())
	}
	return infer(reflect.TypeFor[map[string]faultBody]())
}
