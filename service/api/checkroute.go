package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// checkRoute panics if a part of a route has no effect. No request would show such a programmer's error.
func (m *Mux) checkRoute(r *route) {
	for _, problem := range []string{m.unenforcedRule(r), m.unusedVersions(r), r.unusedIdempotency(), r.unusedSecret(), m.unusedFields(r.inShape), m.unusedFields(r.outShape), r.unusedBody(m.versions), wrongSchema("body", r.inShape), wrongSchema("reply", r.outShape)} {
		if problem != "" {
			panic("api: " + r.Pattern + ": " + problem + " (registered at " + r.at + ")")
		}
	}
}

// unenforcedRule returns an error text if the route has a rule that is never enforced, or "".
func (m *Mux) unenforcedRule(r *route) string {
	if m.cfg.Enforce != nil {
		return m.unknownRule(r)
	}
	if r.list != nil {
		if rules := r.list.rules(); len(rules) > 0 {
			return fmt.Sprintf("rule %s of the list is never enforced: Config.Enforce is nil", rules[0])
		}
	}
	if r.Rule == "" {
		return ""
	}
	return fmt.Sprintf("rule %s is never enforced: Config.Enforce is nil", r.Rule)
}

// unknownRule returns an error text if the route has a rule that does not exist, or "".
func (m *Mux) unknownRule(r *route) string {
	if m.cfg.Rules == nil {
		return ""
	}
	names := []string{r.Rule}
	if r.list != nil {
		names = append(names, r.list.rules()...)
	}
	for _, s := range []*shape{r.inShape, r.outShape} {
		if s != nil {
			names = append(names, s.rules...)
		}
	}
	for _, name := range names {
		if name != "" && !slices.Contains(m.cfg.Rules, name) {
			return fmt.Sprintf("rule %s does not exist: it is not one of Config.Rules, so that every request would be denied", name)
		}
	}
	return ""
}

// unusedSecret returns an error text if the route has a SecretPath and its path has no parameter, or "".
func (r *route) unusedSecret() string {
	if !r.SecretPath || len(r.params) > 0 {
		return ""
	}
	return "SecretPath is for a path with a parameter: this path has no secret"
}

// unusedIdempotency returns an error text if the route has an Idempotency, but its method does not need one, or "".
func (r *route) unusedIdempotency() string {
	if r.Idempotency == nil || r.method == http.MethodPost || r.method == http.MethodPatch {
		return ""
	}
	return "Idempotency is for POST and PATCH: other methods are idempotent without it"
}

// unusedFields returns an error text if a tag of a body's type has no effect in this API, or "".
func (m *Mux) unusedFields(s *shape) string {
	if s == nil {
		return ""
	}
	if len(s.rules) > 0 && m.cfg.Enforce == nil {
		return fmt.Sprintf("%s: the rule %s of a field is never enforced: Config.Enforce is nil", s.of, s.rules[0])
	}
	if m.versions == nil {
		return ""
	}
	all := span{m.versions.min, m.versions.max}
	for in, field := range s.spans {
		if !in.overlaps(all) {
			return fmt.Sprintf("%s: the versions %s are outside of the API's, %s", field, in, all)
		}
	}
	return ""
}

// wrongSchema returns an error text if the schema of a body's type cannot be used in a version, or "".
func wrongSchema(what string, s *shape) string {
	if s == nil {
		return ""
	}
	s.compiles.Do(func() { s.compileErr = s.compileEach() })
	if s.compileErr != nil {
		return "the schema of the " + what + ": " + s.compileErr.Error()
	}
	return ""
}

// compileEach compiles the schemas of a few versions that together have each field, and returns the first error.
func (s *shape) compileEach() error {
	var last Version // this version is in the range of each field without a last version
	if n := len(s.edges); n > 0 {
		last = s.edges[n-1]
	}
	ends := map[Version]bool{last: true}
	for in := range s.reach {
		if in.max != (Version{}) {
			ends[in.max] = true
		}
	}
	left := maps.Clone(s.reach)
	for _, v := range slices.SortedFunc(maps.Keys(ends), compareVersions) { // the end of a range is compiled only if no earlier compiled version is in the range
		needed := v == last
		for in := range left {
			needed = needed || in.max == v
		}
		if !needed {
			continue
		}
		if _, err := s.compile(v); err != nil {
			return err
		}
		maps.DeleteFunc(left, func(in span, _ bool) bool { return in.has(v) })
	}
	return nil
}

// unusedVersions returns an error text if no request can have the versions of the route, or of one of its schemas, or "".
func (m *Mux) unusedVersions(r *route) string {
	if m.versions != nil {
		all := span{m.versions.min, m.versions.max}
		if r.span != (span{}) && !r.overlaps(all) {
			return fmt.Sprintf("the versions %s are outside of the API's, %s", r.span, all)
		}
	}
	if m.versions != nil && r.list != nil {
		if text := r.list.outside(span{m.versions.min, m.versions.max}); text != "" {
			return text
		}
	}
	for _, of := range []struct {
		what string
		list []rangeSchema
	}{{"body", r.body}, {"query", r.query}, {"reply", r.reply}} {
		for i, s := range of.list {
			if s.span != (span{}) && !s.overlaps(r.span) {
				return fmt.Sprintf("%s, schema %d: the versions %s are outside of the route's, %s", of.what, i+1, s.span, r.span)
			}
		}
	}
	return ""
}

// unusedBody returns an error text if a schema of the body allows a property for which the handler's type has no field, or if NoEffect names
// anything else than such properties. Otherwise it returns "".
func (r *route) unusedBody(all *versioned) string {
	if len(r.body) > 0 && r.in == reflect.TypeFor[None]() && r.Action == "" {
		return "the body has a schema, but the handler takes None and never reads the body"
	}
	unused := slices.Clone(r.NoEffect)
	for i, s := range r.body {
		for _, v := range r.fieldVersions(s.intersect(r.span), all) {
			lost := map[string]bool{}
			doc := s.schema().doc
			(&effect{doc: doc, at: v, lost: lost}).walk(doc, r.in, "", 0)
			for _, path := range slices.Sorted(maps.Keys(lost)) {
				if !slices.Contains(r.NoEffect, path) {
					return fmt.Sprintf("body, schema %d: property %s is allowed%s, but %s has no field for it: add a field, or name the property in Route.NoEffect", i+1, path, inVersion(v), r.in)
				}
				unused = slices.DeleteFunc(unused, func(s string) bool { return s == path })
			}
		}
	}
	if len(unused) > 0 {
		return fmt.Sprintf("NoEffect has %s, but no schema of the body has such a property without a field", strings.Join(unused, ", "))
	}
	return ""
}

// fieldVersions returns the first version of a range, and the other versions of the range in which the fields of the body's type differ
// from those of the previous version.
func (r *route) fieldVersions(in span, all *versioned) []Version {
	if all != nil {
		in = in.intersect(span{all.min, all.max})
	}
	out := []Version{in.min}
	if r.inShape == nil {
		return out
	}
	for _, edge := range r.inShape.edges {
		if edge != in.min && in.has(edge) {
			out = append(out, edge)
		}
	}
	return out
}

// inVersion returns the part of an error text that names the version.
func inVersion(v Version) string {
	if v == (Version{}) {
		return ""
	}
	return " in version " + v.String()
}

// effect finds the properties of a schema for which a Go type has no field.
type effect struct {
	doc  map[string]any
	at   Version
	lost map[string]bool // the properties without a field, by path, such as "volume.size"
}

// maxRefs is the maximum depth to which a schema is followed, because a schema may refer to itself.
const maxRefs = 32

// walk compares the part of the schema at path with the Go type into which it is decoded.
func (e *effect) walk(schema any, t reflect.Type, path string, depth int) {
	s, ok := schema.(map[string]any)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if !ok || depth > maxRefs || reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return // a type with UnmarshalJSON gets the complete value
	}
	if ref, ok := s["$ref"].(string); ok {
		e.walk(e.resolveRef(ref), t, path, depth+1)
	}
	for _, key := range []string{"allOf", "anyOf", "oneOf"} {
		list, _ := s[key].([]any)
		for _, one := range list {
			e.walk(one, t, path, depth+1)
		}
	}
	properties, _ := s["properties"].(map[string]any)
	switch t.Kind() { //nolint:exhaustive // the others have no fields
	case reflect.Slice, reflect.Array:
		e.walk(s["items"], t.Elem(), path+"[]", depth+1)
	case reflect.Map:
		patterns, _ := s["patternProperties"].(map[string]any)
		e.walkValues(properties, t.Elem(), path, depth)
		e.walkValues(patterns, t.Elem(), path, depth)
		e.walk(s["additionalProperties"], t.Elem(), path, depth+1)
	case reflect.Struct:
		e.walkFields(properties, jsonFields(t, e.at), path, depth)
	}
}

// walkValues compares the properties of a map with the type of its values.
func (e *effect) walkValues(properties map[string]any, t reflect.Type, path string, depth int) {
	for name, p := range properties {
		e.walk(p, t, joinPath(path, name), depth+1)
	}
}

// walkFields compares the properties of a struct with its fields, and records the properties without a field.
func (e *effect) walkFields(properties map[string]any, fields map[string]reflect.Type, path string, depth int) {
	for name, p := range properties {
		if field, ok := fields[strings.ToLower(name)]; ok {
			e.walk(p, field, joinPath(path, name), depth+1)
		} else if !allowsOneValue(p) {
			e.lost[joinPath(path, name)] = true
		}
	}
}

// joinPath returns the path of a property.
func joinPath(path, name string) string { return strings.TrimPrefix(path+"."+name, ".") }

// resolveRef returns the part of the schema to which a reference points.
func (e *effect) resolveRef(ref string) any {
	var at any = e.doc
	for step := range strings.SplitSeq(strings.TrimPrefix(strings.TrimPrefix(ref, "#"), "/"), "/") {
		object, _ := at.(map[string]any)
		if step != "" {
			at = object[strings.NewReplacer("~1", "/", "~0", "~").Replace(step)]
		}
	}
	return at
}

// allowsOneValue reports whether a schema allows at most one value. Such a property needs no field, because its value is known.
func allowsOneValue(schema any) bool {
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

// jsonFields returns the types of a struct's fields in a version, by their names in JSON. The names are in lower case, because
// encoding/json ignores case.
func jsonFields(t reflect.Type, v Version) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	list, _ := propertiesOf(t) // learn has reported its errors
	for _, p := range flattenEmbedded(list) {
		if p.has(v) {
			out[strings.ToLower(p.name)] = p.Type
		}
	}
	return out
}

// callerLine returns the file and line of the code that has called this package.
func callerLine() string {
	pcs := make([]uintptr, 16)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for {
		f, more := frames.Next()
		if name := f.Function[strings.LastIndexByte(f.Function, '/')+1:]; !strings.HasPrefix(name, "api.") || !more || !strings.Contains(f.Function, "/service/api.") {
			return fmt.Sprintf("%s:%d", f.File, f.Line)
		}
	}
}

// registeredAt matches the lines of code in a panic of ServeMux. All of them are in this package, so they do not help the caller.
var registeredAt = regexp.MustCompile(` \(registered at [^)]*\)`)

// describeConflict returns the text of a panic of ServeMux, with the lines of the callers instead of lines in this package.
func (m *Mux) describeConflict(r *route, p any) string {
	text := registeredAt.ReplaceAllString(fmt.Sprint(p), "")
	for _, o := range m.all {
		if o.Pattern != r.Pattern && strings.Contains(text, o.Pattern) {
			return fmt.Sprintf("api: %s (registered at %s and at %s)", text, o.at, r.at)
		}
	}
	return fmt.Sprintf("api: %s (registered at %s)", text, r.at)
}
