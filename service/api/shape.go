package api

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"unsafe"
)

// JSONSchemer is implemented by a type that describes its own JSON, such as a number that a client may also send as a text. JSONSchema
// returns a JSON Schema (draft 2020-12), which is an object. It must return the same schema at each call, also for the zero value.
// Fields within such a type cannot have the tags since, until and rule. A field of such a type cannot have the tags min, max, pattern,
// format and enum.
type JSONSchemer interface {
	JSONSchema() string
}

// maxRules is the maximum number of rules in the tags of one body. The number is limited because each set of rules that allow a caller
// needs a view, which is a Go type.
const maxRules = 8

// shape has what a Go type says about a body: which fields the body has in which version, who may see them, and their schemas.
type shape struct {
	of        reflect.Type
	isReply   bool
	spans     map[span]string // the versions of fields, each with the name of one field that has them
	edges     []Version       // sorted; in each of these versions, the fields differ from those of the previous version
	reach     map[span]bool   // the versions of each field, limited by those of the fields around it
	rules     []string        // the rules in the tags, sorted
	ownSchema map[reflect.Type]map[string]any
	fields    map[reflect.Type][]property // the fields of the struct types, with those of embedded structs
	depends   map[reflect.Type]bool       // the struct types with the tags since, until or rule, at any depth
	loose     bool                        // a struct describes its own JSON, so its schema may allow other names
	viewed    bool                        // encoding/json needs a view in every version, see needsView
	open      bool                        // the type contains an interface type, see checkInterfaces
	views     sync.Map                    // viewKey -> reflect.Type
	schemas   sync.Map                    // the result of interval -> *schema

	compiles   sync.Once // see wrongSchema
	compileErr error
}

// viewKey selects the fields of a view.
type viewKey struct {
	interval int    // the number of edges up to the version
	allowed  uint64 // one bit for each rule that allows the caller
}

// shapeKey is the type of a body, and whether the body is a reply.
type shapeKey struct {
	of      reflect.Type
	isReply bool
}

// shapes has all shapes, by shapeKey.
var shapes sync.Map

// shapeOf returns the shape of a type for a request or for a reply. It returns an error if tags are wrong.
func shapeOf(t reflect.Type, isReply bool) (*shape, error) {
	key := shapeKey{t, isReply}
	if s, ok := shapes.Load(key); ok {
		return s.(*shape), nil //nolint:forcetypeassert // see shapes
	}
	s := &shape{of: t, isReply: isReply, spans: map[span]string{}, reach: map[span]bool{}, ownSchema: map[reflect.Type]map[string]any{}, fields: map[reflect.Type][]property{}, depends: map[reflect.Type]bool{}}
	_, err := s.learn(t, map[reflect.Type]bool{})
	if err == nil {
		err = s.checkReach(t, span{})
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(s.edges, compareVersions)
	s.edges = slices.Compact(s.edges)
	s.open = isReply && hasInterface(t, map[reflect.Type]bool{})
	slices.Sort(s.rules)
	if s.rules = slices.Compact(s.rules); len(s.rules) > maxRules {
		return nil, fmt.Errorf("%s: its fields have %d rules, more than %d: use one rule for several fields", t, len(s.rules), maxRules)
	}
	got, _ := shapes.LoadOrStore(key, s)
	return got.(*shape), nil //nolint:forcetypeassert // see shapes
}

// learn reads the tags of a type, and of the types in it. It reports whether a field, at any depth, depends on the version or
// on the caller.
func (s *shape) learn(t reflect.Type, inside map[reflect.Type]bool) (bool, error) {
	if depends, ok := s.depends[t]; ok {
		return depends, nil
	}
	if _, ok := s.ownSchema[t]; ok {
		return false, nil
	}
	if own, ok, err := s.schemaOf(t); ok || err != nil {
		s.ownSchema[t], s.loose = own, s.loose || t.Kind() == reflect.Struct
		return false, errors.Join(err, refuseVersionedFields(t))
	}
	if inside[t] {
		return false, fmt.Errorf("%s contains itself: give it a method JSONSchema (api.JSONSchemer)", t)
	}
	inside[t] = true
	defer delete(inside, t)
	switch t.Kind() { //nolint:exhaustive // the others contain no type
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return s.learn(t.Elem(), inside)
	case reflect.Map:
		return false, s.learnMap(t, inside)
	case reflect.Struct:
		return s.learnStruct(t, inside)
	case reflect.Interface:
		if !s.isReply && t.NumMethod() > 0 {
			return false, fmt.Errorf("a request cannot be decoded into the interface %s: use a struct, or any", t)
		}
		return false, nil
	case reflect.Chan, reflect.Func, reflect.Complex64, reflect.Complex128, reflect.UnsafePointer:
		return false, fmt.Errorf("JSON cannot express the type %s", t)
	}
	return false, nil
}

// learnMap does what learn does, for a map.
func (s *shape) learnMap(t reflect.Type, inside map[reflect.Type]bool) error {
	if t.Key().Kind() != reflect.String && !s.isText(t.Key()) {
		return fmt.Errorf("%s: the names of an object must be strings", t)
	}
	depends, err := s.learn(t.Elem(), inside)
	if depends {
		err = fmt.Errorf("%s: the fields of %s differ between versions or callers, or it embeds a pointer to an unexported struct, which a map cannot express: use a struct, or a slice", t, t.Elem())
	}
	return err
}

// learnStruct does what learn does, for a struct.
func (s *shape) learnStruct(t reflect.Type, inside map[reflect.Type]bool) (bool, error) {
	fields, err := propertiesOf(t)
	if err != nil {
		return false, err
	}
	depends := false
	for _, f := range fields {
		inner, err := s.learn(f.Type, inside)
		if err != nil {
			return false, err
		}
		if inner && f.zero && hasIsZero(f.Type) {
			return false, fmt.Errorf("%s.%s: the option omitzero cannot use the method IsZero of %s, because its fields differ between versions or callers: use a pointer with omitempty", t, f.Name, f.Type)
		}
		if s.needsView(&f) {
			s.viewed, inner = true, true
		}
		depends = depends || inner || f.depends()
		if f.rule != "" {
			s.rules = append(s.rules, f.rule)
		}
		s.addSpan(t.String()+"."+f.Name, f.span)
		if err := f.checkConstraints(s); err != nil {
			return false, err
		}
	}
	s.depends[t] = depends
	s.fields[t] = flattenEmbedded(fields)
	return depends, checkNames(t, s.fields[t])
}

// needsView reports whether encoding/json can use the field only in a view, in every version. encoding/json does not know the tag that
// is called name, and cannot set an embedded pointer to an unexported struct.
func (s *shape) needsView(f *property) bool {
	_, renamed := f.Tag.Lookup("name")
	return renamed || f.flat && !f.IsExported() && f.Type.Kind() == reflect.Pointer && !s.isReply
}

// addSpan records the versions of a field.
func (s *shape) addSpan(field string, in span) {
	if in == (span{}) {
		return
	}
	s.spans[in] = field
	if in.min != (Version{}) {
		s.edges = append(s.edges, in.min)
	}
	if in.max != (Version{}) {
		s.edges = append(s.edges, Version{in.max.Major, in.max.Minor + 1})
	}
}

// checkReach records the versions of each field. It returns an error if a field is in no version, because its own versions and those
// of the fields around it exclude each other.
func (s *shape) checkReach(t reflect.Type, in span) error {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Array {
		t = t.Elem()
	}
	for _, f := range s.fields[t] { // no fields for a type that is not a struct, or that describes its own JSON
		at := in.intersect(f.span)
		if at.max != (Version{}) && at.max.before(at.min) {
			return fmt.Errorf("%s.%s: the field is in the versions %s, and the fields around it in %s: no version has the field", t, f.Name, f.span, in)
		}
		s.reach[at] = true
		if err := s.checkReach(f.Type, at); err != nil {
			return err
		}
	}
	return nil
}

// checkNames returns an error if two fields have the same name in a version, because encoding/json would then use none of them, or
// only the outer one.
func checkNames(t reflect.Type, fields []property) error {
	have := map[string][]property{}
	for _, f := range fields {
		for _, o := range have[f.name] {
			if o.overlaps(f.span) {
				return fmt.Errorf("%s: the fields %s and %s both have the name %q in the versions %s and %s: rename one, or separate them by since and until",
					t, o.Name, f.Name, f.name, o.span, f.span)
			}
		}
		have[f.name] = append(have[f.name], f)
	}
	return nil
}

var (
	jsonMarshaler   = reflect.TypeFor[json.Marshaler]()
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textMarshaler   = reflect.TypeFor[encoding.TextMarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	jsonSchemer     = reflect.TypeFor[JSONSchemer]()
	isZeroer        = reflect.TypeFor[interface{ IsZero() bool }]()
)

// isText reports whether a type encodes itself as a text in a reply, or decodes itself from a text in a request.
func (s *shape) isText(t reflect.Type) bool {
	if s.isReply {
		return t.Implements(textMarshaler)
	}
	return reflect.PointerTo(t).Implements(textUnmarshaler)
}

// schemaOf returns the schema of a type that encodes, decodes or describes itself. The second result reports whether t is such a type.
func (s *shape) schemaOf(t reflect.Type) (map[string]any, bool, error) {
	if t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface {
		return nil, false, nil
	}
	at := reflect.PointerTo(t)
	switch {
	case at.Implements(jsonSchemer):
		out, err := schemaOfMethod(t)
		return out, true, err
	case known[t] != nil:
		return known[t], true, nil
	case at.Implements(jsonMarshaler), at.Implements(jsonUnmarshaler):
		return map[string]any{}, true, nil
	case s.isText(t), s.isReply && s.isText(at):
		return map[string]any{"type": "string"}, true, nil
	case isBase64(t):
		return known[reflect.TypeFor[[]byte]()], true, nil
	}
	return nil, false, nil
}

// schemaOfMethod returns the schema that the method JSONSchema of a type returns.
func schemaOfMethod(t reflect.Type) (map[string]any, error) {
	text := textOfMethod(t)
	var out map[string]any
	if err := json.Unmarshal([]byte(text), &out); err != nil || out == nil {
		return nil, fmt.Errorf("%s: its method JSONSchema does not return an object in JSON: %q", t, shortenText(text))
	}
	if _, err := compileSchema(text); err != nil {
		return nil, fmt.Errorf("%s: its method JSONSchema: %w", t, err)
	}
	if t.Kind() == reflect.Struct && t.NumField() > 1 {
		for f := range t.Fields() {
			if f.Anonymous && reflect.PointerTo(structAt(f.Type)).Implements(jsonSchemer) && textOfMethod(structAt(f.Type)) == text {
				return nil, fmt.Errorf("%s: its method JSONSchema is that of the embedded %s, which does not describe the other fields: give it its own method, or the embedded type a name in JSON", t, f.Name)
			}
		}
	}
	return out, nil
}

// textOfMethod returns the result of the method JSONSchema of a type.
func textOfMethod(t reflect.Type) string {
	return reflect.New(t).Interface().(JSONSchemer).JSONSchema() //nolint:forcetypeassert // the callers have checked it
}

// isBase64 reports whether encoding/json uses base64 for a type. It does so for a slice of bytes, unless the bytes encode themselves.
func isBase64(t reflect.Type) bool {
	if t.Kind() != reflect.Slice || t.Elem().Kind() != reflect.Uint8 {
		return false
	}
	at := reflect.PointerTo(t.Elem())
	return !at.Implements(jsonMarshaler) && !at.Implements(textMarshaler)
}

// refuseVersionedFields returns an error if the type own, which encodes itself, has fields at any depth with tags that would have no
// effect.
func refuseVersionedFields(own reflect.Type) error {
	if field, tag := versionedField(own, map[reflect.Type]bool{}); field != "" {
		return fmt.Errorf("%s: the tag %s has no effect, because %s has its own method MarshalJSON, UnmarshalJSON or JSONSchema, perhaps from an embedded type", field, tag, own)
	}
	return nil
}

// versionedField returns a field of a type, at any depth, that has a tag for the version or the caller, and this tag. It returns "" if
// the type has no such field.
func versionedField(t reflect.Type, seen map[reflect.Type]bool) (field, tag string) {
	if seen[t] {
		return "", ""
	}
	seen[t] = true
	switch t.Kind() { //nolint:exhaustive // the others contain no fields
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		return versionedField(t.Elem(), seen)
	case reflect.Struct:
		for f := range t.Fields() {
			if tag := firstTag(f.Tag, versionTags); tag != "" {
				return t.String() + "." + f.Name, tag
			}
			if isHidden(f) {
				continue
			}
			if field, tag := versionedField(f.Type, seen); field != "" {
				return field, tag
			}
		}
	}
	return "", ""
}

// isHidden reports whether a field of a struct is not in the struct's JSON.
func isHidden(f reflect.StructField) bool {
	return f.Tag.Get("json") == "-" || !f.IsExported() && !f.Anonymous
}

// interval returns the number of edges up to a version. All versions between two edges have the same fields.
func (s *shape) interval(v Version) int {
	n, _ := slices.BinarySearchFunc(s.edges, v, func(edge, v Version) int {
		if v.before(edge) {
			return 1
		}
		return -1
	})
	return n
}

// allRules is the mask of a caller who may use each field.
const allRules = ^uint64(0)

// varies reports whether the fields differ between versions or callers.
func (s *shape) varies() bool { return s.viewed || len(s.edges) > 0 || len(s.rules) > 0 }

// allowedRules returns the mask of the rules for which enforce returns no error. If an error does not deny, such as Unavailable,
// allowedRules returns it with status 500, because the request has been executed.
func (s *shape) allowedRules(enforce func(rule string) error) (uint64, error) {
	var out uint64
	for i, rule := range s.rules {
		switch err := enforce(rule); {
		case err == nil:
			out |= 1 << i
		case statusOf(err) >= statusClientGone:
			return 0, WithStatus(http.StatusInternalServerError, fmt.Errorf("enforce rule %s of a field of the reply: %w", rule, err))
		}
	}
	return out, nil
}

// see returns a pointer to a view, which has only the fields that version v has and the caller may use. The parameter p is a pointer
// to a value of the shape's type. The result points to the same memory as p.
func (s *shape) see(p any, v Version, allowed uint64) any {
	if !s.varies() || s.showsAll(v, allowed) {
		return p
	}
	view := s.view(v, allowed)
	return reflect.NewAt(view, unsafe.Pointer(reflect.ValueOf(p).Pointer())).Interface() //nolint:gosec // a view has the same layout
}

// showsAll reports whether version v has all fields and the caller may use all of them, so that no view is needed.
func (s *shape) showsAll(v Version, allowed uint64) bool {
	if all := uint64(1)<<len(s.rules) - 1; s.viewed || allowed&all != all {
		return false
	}
	for in := range s.spans {
		if !in.has(v) {
			return false
		}
	}
	return true
}

// structAt returns t without pointers.
func structAt(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// view returns the Go type that has only the fields that version v has and the caller may use. Its layout in memory is that of the
// shape's type.
func (s *shape) view(v Version, allowed uint64) reflect.Type {
	allowed &= 1<<len(s.rules) - 1
	key := viewKey{s.interval(v), allowed}
	if t, ok := s.views.Load(key); ok {
		return t.(reflect.Type) //nolint:forcetypeassert // see views
	}
	t := s.build(s.of, v, allowed)
	s.views.Store(key, t)
	return t
}

// build returns the view of a type that is a part of the shape.
func (s *shape) build(t reflect.Type, v Version, allowed uint64) reflect.Type {
	switch t.Kind() { //nolint:exhaustive // learn refuses a map whose fields differ; the others contain no type
	case reflect.Pointer:
		return reflect.PointerTo(s.build(t.Elem(), v, allowed))
	case reflect.Slice:
		if elem := s.build(t.Elem(), v, allowed); elem != t.Elem() {
			return reflect.SliceOf(elem)
		}
	case reflect.Array:
		if elem := s.build(t.Elem(), v, allowed); elem != t.Elem() {
			return reflect.ArrayOf(t.Len(), elem)
		}
	case reflect.Struct:
		if s.depends[t] {
			return s.buildStruct(t, v, allowed)
		}
	}
	return t
}

// buildStruct does what build does, for a struct. The fields of other versions and callers stay in the memory, but are not in the
// JSON.
func (s *shape) buildStruct(t reflect.Type, v Version, allowed uint64) reflect.Type {
	fields := make([]reflect.StructField, t.NumField())
	for i := range fields { // each field is hidden, unless a property below replaces it
		fields[i] = reflect.StructField{Name: viewName(i), Type: t.Field(i).Type, Tag: `json:"-"`}
	}
	list, _ := propertiesOf(t) // learn has reported its errors
	for _, p := range list {
		if !p.has(v) || allowed&s.bit(p.rule) != s.bit(p.rule) {
			continue
		}
		f := reflect.StructField{Name: viewName(p.index), Tag: p.Tag}
		if p.flat { // reflect.StructOf refuses embedded types that have methods or are unexported
			f.Anonymous, f.Type = true, s.buildStruct(structAt(p.Type), v, allowed)
			if p.Type.Kind() == reflect.Pointer {
				f.Type = reflect.PointerTo(f.Type)
			}
		} else {
			f.Type, f.Tag = s.build(p.Type, v, allowed), reflect.StructTag(fmt.Sprintf("json:%q", p.name+","+p.options))
		}
		fields[p.index] = f
	}
	return reflect.StructOf(fields)
}

// viewName returns the name of a field of a view. The field's own name could be the name of another field of the view.
func viewName(index int) string { return "F" + strconv.Itoa(index) }

// bit returns the bit of a rule in a mask, or 0 for no rule.
func (s *shape) bit(rule string) uint64 {
	if rule == "" {
		return 0
	}
	return 1 << slices.Index(s.rules, rule)
}

// usedRules returns the mask of the rules of the fields that a decoded body has.
func (s *shape) usedRules(body any, v Version) uint64 {
	if len(s.rules) == 0 {
		return 0
	}
	return s.usedIn(s.of, body, v)
}

// usedIn does what usedRules does, for a part of the body.
func (s *shape) usedIn(t reflect.Type, value any, v Version) (used uint64) {
	t = structAt(t)
	switch t.Kind() { //nolint:exhaustive // the others have no rules
	case reflect.Slice, reflect.Array:
		list, _ := value.([]any)
		for _, one := range list {
			used |= s.usedIn(t.Elem(), one, v)
		}
	case reflect.Struct:
		object, _ := value.(map[string]any)
		for _, p := range s.fields[t] {
			if inner, ok := object[p.name]; ok && p.has(v) {
				used |= s.usedIn(p.Type, inner, v) | s.bit(p.rule)
			}
		}
	}
	return used
}

// rulesOf returns the rules in a mask.
func (s *shape) rulesOf(mask uint64) []string {
	var out []string
	for ; mask != 0; mask &= mask - 1 {
		out = append(out, s.rules[bits.TrailingZeros64(mask)])
	}
	return out
}
