package api

import (
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// About is the info object of an OpenAPI document. Description may be empty.
type About struct {
	Title, Description, Version string
}

// OpenAPI returns the OpenAPI 3.1 document of the API in the microversion v. For an API without microversions, v must be the zero
// Version, and the document has all routes. The schemas of a route describe the route. If a body or a reply has no schema, its Go
// type in the handler describes it. All actions of one pattern are one operation. The routes of Health are not in the document.
// OpenAPI panics on a programmer's error: a type cannot be described.
func (m *Mux) OpenAPI(about About, v Version) map[string]any {
	paths := map[string]any{}
	for _, r := range m.all {
		if !r.has(v) {
			continue
		}
		path, method := openPath(r.path), strings.ToLower(r.method)
		item, _ := paths[path].(map[string]any)
		if item == nil {
			item = map[string]any{}
			paths[path] = item
		}
		if item[method] == nil {
			item[method] = m.operation(m.routes[r.Pattern].routesAt(v), v)
		}
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

// routesAt returns the routes that exist in a version: one route, or one for each action.
func (e entry) routesAt(v Version) entry {
	var out entry
	for _, r := range e {
		if r.has(v) {
			out = append(out, r)
		}
	}
	return out
}

// openPath returns the path of a pattern in OpenAPI's form.
func openPath(path string) string {
	path = strings.ReplaceAll(strings.TrimSuffix(path, "{$}"), "...}", "}")
	return path[strings.IndexByte(path, '/'):]
}

// operation describes the routes of one pattern in a version.
func (m *Mux) operation(e entry, v Version) map[string]any {
	first := e[0]
	params := []any{}
	for _, name := range first.params {
		params = append(params, map[string]any{"name": name, "in": "path", "required": true, "schema": map[string]any{"type": "string"}})
	}
	if s := schemaAt(first.query, v); s != nil {
		params = append(params, s.parameters()...)
	}
	if m.versions != nil && m.versions.coversPath(openPath(first.path)) {
		params = append(params, map[string]any{
			"name": versionHeader, "in": "header", "schema": map[string]any{"type": "string"}, "example": m.versions.Service + " " + v.String(),
		})
	}
	if slices.ContainsFunc(e, func(r *route) bool { return r.Idempotency != nil }) {
		params = append(params, map[string]any{
			"name": idempotencyHeader, "in": "header", "schema": map[string]any{"type": "string", "minLength": 1, "maxLength": maxIdempotencyKey},
			"description": "A new key for each request, such as a UUID. A repeated request with the same key gets the same reply, and is executed once.",
		})
	}
	op := map[string]any{"operationId": first.id, "parameters": params, "responses": describeReplies(e, v)}
	if first.Action != "" {
		op["summary"] = "One of the actions; the only name in the body selects it"
		op["requestBody"] = describeBodyOf(true, map[string]any{"oneOf": describeActions(e, v)})
		return op
	}
	if first.Summary != "" {
		op["summary"] = first.Summary
	}
	if body := first.describeBody(v); body != nil {
		op["requestBody"] = describeBodyOf(true, body)
	}
	return op
}

// describeActions describes the body of each action. It leaves out an action whose only status is 404: such a route refuses an action that the version does not have.
func describeActions(e entry, v Version) []any {
	var out []any
	for _, r := range e {
		if r.Status == http.StatusNotFound {
			continue
		}
		one := map[string]any{"title": r.Action}
		if r.Summary != "" {
			one["description"] = r.Summary
		}
		switch body, _ := r.describeBody(v).(map[string]any); {
		case body != nil:
			maps.Copy(one, body)
		default:
			one["type"], one["required"], one["additionalProperties"] = "object", []string{r.Action}, false
			one["properties"] = map[string]any{r.Action: map[string]any{}}
		}
		out = append(out, one)
	}
	return out
}

// describeBody returns the schema of the body, or nil if the handler does not read a body.
func (r *route) describeBody(v Version) any {
	if s := schemaAt(r.body, v); s != nil {
		return s.doc
	}
	return r.inShape.document(v)
}

// describeReply returns the schema of the reply, or nil if the reply has no body or its type is an interface.
func (r *route) describeReply(v Version) any {
	if s := schemaAt(r.reply, v); s != nil {
		return s.doc
	}
	return r.outShape.document(v)
}

// operationID returns a name for the operation that is unique in the document. Routes with the same pattern have the same name.
func (m *Mux) operationID(r *route) string {
	words := []string{strings.ToLower(r.method)}
	for part := range strings.FieldsFuncSeq(r.path, func(c rune) bool { return strings.ContainsRune("/{}.$-_", c) }) {
		words = append(words, strings.ToUpper(part[:1])+part[1:])
	}
	id := strings.Join(words, "")
	for n, out := 2, id; ; n++ {
		if !slices.ContainsFunc(m.all, func(o *route) bool { return o.id == out && o.Pattern != r.Pattern }) {
			return out
		}
		out = id + strconv.Itoa(n)
	}
}

// describeReplies describes the replies of the routes, by status.
func describeReplies(e entry, v Version) map[string]any {
	failed := describeBodyOf(false, map[string]any{"$ref": "#/components/schemas/Error"})
	failed["description"] = "An error"
	out := map[string]any{"default": failed}
	replies, empty := map[int][]any{}, map[int]bool{}
	for _, r := range e {
		describeErrors(out, r, failed)
		s := r.describeReply(v)
		for _, status := range append([]int{r.Status}, r.Statuses...) {
			if status >= http.StatusBadRequest { // the route always refuses, see Route.Errors
				continue
			}
			if list := replies[status]; s != nil {
				replies[status] = append(list, s)
			} else {
				replies[status], empty[status] = list, true
			}
		}
	}
	for status, list := range replies {
		out[strconv.Itoa(status)] = describeStatus(status, list, empty[status])
	}
	return out
}

// describeErrors adds the replies of Route.Errors to the replies out of an operation. The parameter failed describes an error.
func describeErrors(out map[string]any, r *route, failed map[string]any) {
	list := r.Errors
	if r.Idempotency != nil {
		list = append(slices.Clip(list), http.StatusUnprocessableEntity)
	}
	for _, status := range list {
		one := map[string]any{} // a reply without a body
		if status >= http.StatusBadRequest {
			one = maps.Clone(failed)
		}
		one["description"] = http.StatusText(status)
		out[strconv.Itoa(status)] = one
	}
}

// describeStatus describes the replies with a status. The parameter list has their schemas, and empty reports whether some of the
// replies have no body.
func describeStatus(status int, list []any, empty bool) map[string]any {
	one := map[string]any{}
	switch len(list) {
	case 0:
	case 1:
		one = describeBodyOf(false, list[0])
	default:
		one = describeBodyOf(false, map[string]any{"anyOf": list})
	}
	if empty && len(list) > 0 { // some actions have a body, and others have none
		one["x-body-optional"] = true
	}
	one["description"] = http.StatusText(status)
	return one
}

// describeBodyOf describes a body with the content type application/json.
func describeBodyOf(required bool, schema any) map[string]any {
	out := map[string]any{"content": map[string]any{"application/json": map[string]any{"schema": schema}}}
	if required {
		out["required"] = true
	}
	return out
}

// parameters describes the parameters of a query.
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

// document returns the schema for a version, for the OpenAPI document. It returns nil if s is nil.
func (s *shape) document(v Version) any {
	if s == nil {
		return nil
	}
	out, err := s.schemaAt(v)
	if err != nil {
		panic("api: " + err.Error())
	}
	return out.doc
}

// errorSchema returns the schema of the body of an error.
func (m *Mux) errorSchema() map[string]any {
	status := map[string]any{"type": "integer", "minimum": 400, "maximum": 599}
	if m.cfg.ErrorList == "" {
		return map[string]any{"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": map[string]any{
			"type": "object", "required": []any{"code", "message"}, "additionalProperties": false,
			"properties": map[string]any{"code": status, "message": map[string]any{"type": "string"}},
		}}
	}
	item, _ := mustShape("errors", reflect.TypeFor[errorItem](), true).document(Version{}).(map[string]any)
	item = maps.Clone(item) // requests and other documents use the same map
	if props, ok := item["properties"].(map[string]any); ok {
		props = maps.Clone(props)
		props["status"], item["properties"] = status, props
	}
	return map[string]any{"type": "object", "required": []any{"errors"}, "additionalProperties": false, "properties": map[string]any{
		"errors": map[string]any{"type": "array", "minItems": 1, "items": item},
	}}
}
