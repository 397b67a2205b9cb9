package api

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// useFieldNames renames the values of a decoded body to the names of the fields that encoding/json sets with these values. The
// names may differ by case. If a name differs only by case from a property of the schema, the schema has not checked the value, and
// useFieldNames returns the name. Otherwise it returns "".
func (s *schema) useFieldNames(t reflect.Type, value any, v Version) string {
	t = structAt(t)
	if at := reflect.PointerTo(t); at.Implements(jsonUnmarshaler) || at.Implements(textUnmarshaler) {
		return ""
	}
	list, _ := value.([]any)
	object, _ := value.(map[string]any)
	switch t.Kind() {
	case reflect.Struct:
		return s.useNamesOf(t, object, v)
	case reflect.Map:
		list = slices.Collect(maps.Values(object))
	case reflect.Slice, reflect.Array:
	default:
		return ""
	}
	for _, one := range list {
		if name := s.useFieldNames(t.Elem(), one, v); name != "" {
			return name
		}
	}
	return ""
}

// useNamesOf does what useFieldNames does, for a struct.
func (s *schema) useNamesOf(t reflect.Type, object map[string]any, v Version) string {
	fields := map[string]reflect.Type{}
	list, _ := propertiesOf(t) // learn has reported its errors
	for _, p := range flattenEmbedded(list) {
		if p.has(v) {
			fields[p.name] = p.Type
		}
	}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		one, field := object[name], sameName(fields, name)
		if field == "" {
			continue
		}
		if !s.names[name] && sameName(s.names, name) != "" {
			return name
		}
		delete(object, name)
		object[field] = one
		if inner := s.useFieldNames(fields[field], one, v); inner != "" {
			return inner
		}
	}
	return ""
}

// sameName returns the key that is equal to name. If no key is equal, it returns a key that differs only by case, or "".
func sameName[T any](keys map[string]T, name string) string {
	if _, ok := keys[name]; ok {
		return name
	}
	for key := range keys {
		if strings.EqualFold(key, name) {
			return key
		}
	}
	return ""
}
