package api

import (
	"errors"
	"fmt"
	"iter"
	"reflect"
	"sync"
)

// encoding/json encodes the value of an interface by the value's own type, and does not know the tags for versions and callers. So a reply
// is refused if such a value has these tags; otherwise the reply could show a field that a rule forbids.

// maxReplyDepth is the maximum depth of a reply with values of interface types. encoding/json also stops at 1,000 pointers.
const maxReplyDepth = 1000

// hasInterface reports whether a type contains an interface type, at any depth.
func hasInterface(t reflect.Type, seen map[reflect.Type]bool) bool {
	if seen[t] {
		return false
	}
	seen[t] = true
	switch t.Kind() { //nolint:exhaustive // the others contain no types
	case reflect.Interface:
		return true
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		return hasInterface(t.Elem(), seen)
	case reflect.Struct:
		for f := range t.Fields() {
			if !isHidden(f) && hasInterface(f.Type, seen) {
				return true
			}
		}
	}
	return false
}

// dynamic has what checkInterfaces must know about the type of a value.
type dynamic struct {
	open       bool   // the type contains interface types
	field, tag string // see versionedField
}

// dynamics has the results of dynamicOf, by reflect.Type, so that each type is examined once.
var dynamics sync.Map

func dynamicOf(t reflect.Type) dynamic {
	if have, ok := dynamics.Load(t); ok {
		return have.(dynamic) //nolint:forcetypeassert // see dynamics
	}
	d := dynamic{open: hasInterface(t, map[reflect.Type]bool{})}
	d.field, d.tag = versionedField(t, map[reflect.Type]bool{})
	dynamics.Store(t, d)
	return d
}

// checkInterfaces returns an error if a value of an interface type in v has a field with a tag for versions or callers. The parameter path
// is the place of v in the reply.
func checkInterfaces(v reflect.Value, path string, depth int) error {
	if depth > maxReplyDepth {
		return errors.New(shortenText(path) + ": the reply is nested too deep, or contains itself")
	}
	if !v.IsValid() || !dynamicOf(v.Type()).open {
		return nil
	}
	if v.Kind() == reflect.Interface && !v.IsNil() {
		t := v.Elem().Type()
		if d := dynamicOf(t); d.field != "" {
			return fmt.Errorf("%[1]s has an interface type and holds a %[2]s, so the tag %[3]s of %[4]s has no effect: declare %[1]s as %[2]s, or as a slice of it or a pointer to it", path, t, d.tag, d.field)
		}
	}
	for name, inner := range partsOf(v) {
		if err := checkInterfaces(inner, path+name, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// partsOf returns the values that a value consists of, each with its place.
func partsOf(v reflect.Value) iter.Seq2[string, reflect.Value] {
	switch v.Kind() {
	case reflect.Slice, reflect.Array:
		return elementsOf(v, func(reflect.Value) string { return "[]" })
	case reflect.Map:
		return elementsOf(v, func(key reflect.Value) string { return "." + fmt.Sprint(key) })
	case reflect.Struct:
		return fieldsOf(v)
	default: // an interface or a pointer; of a nil one, the value is not valid
		return func(yield func(string, reflect.Value) bool) { yield("", v.Elem()) }
	}
}

// elementsOf returns the values of an array, a slice or a map.
func elementsOf(v reflect.Value, place func(key reflect.Value) string) iter.Seq2[string, reflect.Value] {
	return func(yield func(string, reflect.Value) bool) {
		for key, value := range v.Seq2() {
			if !yield(place(key), value) {
				return
			}
		}
	}
}

// fieldsOf returns the fields of a struct that are in its JSON.
func fieldsOf(v reflect.Value) iter.Seq2[string, reflect.Value] {
	return func(yield func(string, reflect.Value) bool) {
		for f, value := range v.Fields() {
			if !isHidden(f) && !yield("."+f.Name, value) {
				return
			}
		}
	}
}
