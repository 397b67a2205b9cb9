package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// check panics if a route says something that would have no effect: programmers' errors, which
// a request would never show.
func (m *Mux) check(r *route) {
	fail := func(format string, args ...any) {
		panic("api: " + r.Pattern + ": " + fmt.Sprintf(format, args...) + " (registered at " + r.at + ")")
	}
	if r.Rule != "" && m.cfg.Enforce == nil {
		fail("rule %s would never be asked: Config.Enforce is nil", r.Rule)
	}
	if m.versions != nil {
		all := span{m.versions.min, m.versions.max}
		if r.span != (span{}) && !r.overlaps(all) {
			fail("versions %s are none of the API's, %s", r.span, all)
		}
	}
	for _, of := range []struct {
		what string
		list []*schema
	}{{"body", r.body}, {"query", r.query}, {"reply", r.reply}} {
		for i, s := range of.list {
			if s.span != (span{}) && !s.overlaps(r.span) {
				fail("%s, schema %d: versions %s are none of the route's, %s", of.what, i+1, s.span, r.span)
			}
		}
	}
	if len(r.body) > 0 && r.in == reflect.TypeFor[None]() && r.Action == "" {
		fail("the body has a schema, but the handler takes None and never reads it")
	}
	unused := slices.Clone(r.NoEffect)
	for i, s := range r.body {
		lost := map[string]bool{}
		(&effect{doc: s.doc, lost: lost}).object(s.doc, r.in, "", 0)
		for _, path := range slices.Sorted(maps.Keys(lost)) {
			if !slices.Contains(r.NoEffect, path) {
				fail("body, schema %d: property %s is taken, but %s has no field for it: add one, or name it in Route.NoEffect", i+1, path, r.in)
			}
			unused = slices.DeleteFunc(unused, func(s string) bool { return s == path })
		}
	}
	if len(unused) > 0 {
		fail("NoEffect names %s, which no schema of the body has without a field", strings.Join(unused, ", "))
	}
}

// effect finds the properties of a schema that a Go type has no field for.
type effect struct {
	doc  map[string]any
	lost map[string]bool // by path, such as "volume.size"
}

// maxRefs bounds how deep a schema is followed, which may refer to itself.
const maxRefs = 32

func (e *effect) object(schema any, t reflect.Type, path string, depth int) {
	s, ok := schema.(map[string]any)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if !ok || depth > maxRefs || reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return // it takes what it likes
	}
	if ref, ok := s["$ref"].(string); ok {
		e.object(e.resolve(ref), t, path, depth+1)
	}
	for _, key := range []string{"allOf", "anyOf", "oneOf"} {
		list, _ := s[key].([]any)
		for _, one := range list {
			e.object(one, t, path, depth+1)
		}
	}
	switch t.Kind() { //nolint:exhaustive // the others have no fields
	case reflect.Slice, reflect.Array:
		e.object(s["items"], t.Elem(), path+"[]", depth+1)
	case reflect.Map:
		for _, of := range []any{s["properties"], s["patternProperties"]} {
			properties, _ := of.(map[string]any)
			for name, p := range properties {
				e.object(p, t.Elem(), join(path, name), depth+1)
			}
		}
		e.object(s["additionalProperties"], t.Elem(), path, depth+1)
	case reflect.Struct:
		properties, _ := s["properties"].(map[string]any)
		fields := jsonFields(t)
		for name, p := range properties {
			if field, ok := fields[strings.ToLower(name)]; ok {
				e.object(p, field, join(path, name), depth+1)
			} else if !single(p) {
				e.lost[join(path, name)] = true
			}
		}
	}
}

func join(path, name string) string { return strings.TrimPrefix(path+"."+name, ".") }

// resolve follows a reference within the schema.
func (e *effect) resolve(ref string) any {
	var at any = e.doc
	for step := range strings.SplitSeq(strings.TrimPrefix(strings.TrimPrefix(ref, "#"), "/"), "/") {
		object, _ := at.(map[string]any)
		if step != "" {
			at = object[strings.NewReplacer("~1", "/", "~0", "~").Replace(step)]
		}
	}
	return at
}

// single reports whether a schema takes one value only, so that nothing is lost with it.
func single(schema any) bool {
	switch s := schema.(type) {
	case bool:
		return !s
	case map[string]any:
		values, isEnum := s["enum"].([]any)
		_, isConst := s["const"]
		return isConst || isEnum && len(values) <= 1 || s["type"] == "null"
	}
	return false
}

// jsonFields returns the types of a struct's fields by their names in JSON, in lower case: the
// decoder does not tell case.
func jsonFields(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported() && !f.Anonymous:
		case name != "":
			out[strings.ToLower(name)] = f.Type
		case !f.Anonymous:
			out[strings.ToLower(f.Name)] = f.Type
		}
	}
	return out
}

// caller returns the place outside of this package that called into it.
func caller() string {
	pcs := make([]uintptr, 16)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for {
		f, more := frames.Next()
		if name := f.Function[strings.LastIndexByte(f.Function, '/')+1:]; !strings.HasPrefix(name, "api.") || !more || !strings.Contains(f.Function, "/service/api.") {
			return fmt.Sprintf("%s:%d", f.File, f.Line)
		}
	}
}

// registeredAt is what ServeMux says of places, which are all in this package.
var registeredAt = regexp.MustCompile(` \(registered at [^)]*\)`)

// conflict makes the text of a panic of ServeMux one that names the callers' lines.
func (m *Mux) conflict(r *route, p any) string {
	text := registeredAt.ReplaceAllString(fmt.Sprint(p), "")
	for _, o := range m.all {
		if o.Pattern != r.Pattern && strings.Contains(text, o.Pattern) {
			return fmt.Sprintf("api: %s (registered at %s and at %s)", text, o.at, r.at)
		}
	}
	return fmt.Sprintf("api: %s (registered at %s)", text, r.at)
}
