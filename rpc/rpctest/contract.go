package rpctest

import (
	"encoding"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/goldentest"
	"github.com/armature-go/armature/rpc"
)

// Contract compares the methods that rpc.Define has added to the interface with those in the file. The test fails if they
// differ or if the file does not exist. Commit the file when you publish the interface. With ARMATURE_UPDATE=1 in the
// environment, Contract writes the file, but only if each difference follows these rules:
//
//   - Within a major version, no method is removed, and neither its Since nor its
//     Delivery changes. No field of a request or a response is removed, and no field
//     changes its type.
//   - An addition needs a higher minor version of the interface. The Since of a new method is that version. The method
//     version_caps of package rpccaps is an exception: its Since is MAJOR.0, because a client calls it before it knows the
//     versions that the servers accept. An older server answers this call with ErrNoSuchMethod.
//
// After a change of the major version, these rules begin anew. Fields are compared by their names and types in JSON. A type
// with MarshalText counts as text. A type with MarshalJSON counts as any JSON, except time.Time, which counts as a time.
//
// The path of the file is relative to the directory of the test's package. Contract calls t.Fatal, so call it from the
// test's goroutine.
func Contract(t testing.TB, file string, i *rpc.Interface) {
	t.Helper()
	now := contract{Interface: i.Name, Version: i.Version, Methods: map[string]method{}}
	for _, m := range i.Methods() {
		now.Methods[m.Name] = method{m.Since, m.Delivery, shapeOf(m.Request, nil), shapeOf(m.Response, nil)}
	}
	text, err := json.MarshalIndent(now, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	goldentest.Contract(t, i.Name, file, string(text)+"\n", "", func(raw string) ([]string, error) {
		var old contract
		if err := json.Unmarshal([]byte(raw), &old); err != nil {
			return nil, err
		}
		return old.violations(now), nil
	})
}

type contract struct {
	Interface string            `json:"interface"`
	Version   rpc.Version       `json:"version"`
	Methods   map[string]method `json:"methods"`
}

type method struct {
	Since    rpc.Version  `json:"since"`
	Delivery rpc.Delivery `json:"delivery"`
	Request  any          `json:"request"`
	Response any          `json:"response"`
}

// askCaps is the name of the method that rpccaps.Define adds.
const askCaps = "version_caps"

// needsMajor is the remedy for a difference that is not allowed within a major version.
const needsMajor = ": this needs a new major version"

// violations lists the differences from old to now that break a rule of [Contract], each with its remedy.
func (old contract) violations(now contract) (list []string) {
	if old.Interface != now.Interface {
		return []string{fmt.Sprintf("the name of the interface was %s and is now %s: give each interface its own file", old.Interface, now.Interface)}
	}
	if now.Version.Major > old.Version.Major {
		return nil
	}
	if !now.Version.Accepts(old.Version) {
		return []string{fmt.Sprintf("the version went back from %s to %s: a published version must not become lower", old.Version, now.Version)}
	}
	hasAdditions := false
	for _, name := range slices.Sorted(maps.Keys(old.Methods)) {
		was := old.Methods[name]
		is, ok := now.Methods[name]
		if !ok {
			list = append(list, name+" was removed"+needsMajor)
			continue
		}
		if was.Since != is.Since {
			list = append(list, fmt.Sprintf("%s: Since was %s and is now %s", name, was.Since, is.Since)+needsMajor)
		}
		if was.Delivery != is.Delivery {
			list = append(list, fmt.Sprintf("%s: Delivery was %s and is now %s", name, was.Delivery, is.Delivery)+needsMajor)
		}
		for what, pair := range map[string][2]any{"request": {was.Request, is.Request}, "response": {was.Response, is.Response}} {
			changes, more := compareShapes(name+"'s "+what, pair[0], pair[1])
			for _, change := range changes {
				list = append(list, change+needsMajor)
			}
			hasAdditions = hasAdditions || more
		}
	}
	for _, name := range slices.Sorted(maps.Keys(now.Methods)) {
		if _, ok := old.Methods[name]; ok {
			continue
		}
		hasAdditions = true
		since := now.Methods[name].Since
		if name == askCaps && since == (rpc.Version{Major: now.Version.Major}) {
			continue
		}
		if old.Version.Accepts(since) {
			list = append(list, fmt.Sprintf("%s is new, but its Since is %s, and the published version is %s already: use a newer one", name, since, old.Version))
		}
	}
	if hasAdditions && now.Version == old.Version {
		list = append(list, fmt.Sprintf("an addition needs a higher minor version of the interface; the version is still %s", now.Version))
	}
	slices.Sort(list)
	return list
}

// compareShapes lists the changes from one shape to another, except added fields. The result hasAdditions reports whether
// fields were added.
func compareShapes(path string, was, is any) (changes []string, hasAdditions bool) {
	if x, ok := was.([]any); ok && len(x) == 1 {
		if y, ok := is.([]any); ok && len(y) == 1 {
			return compareShapes(path+"[]", x[0], y[0])
		}
	}
	a, aok := was.(map[string]any)
	b, bok := is.(map[string]any)
	if !aok || !bok {
		x, y := shapeText(was), shapeText(is)
		if x != y {
			changes = append(changes, fmt.Sprintf("%s was %s and is now %s", path, x, y))
		}
		return changes, false
	}
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if b[name] == nil {
			changes = append(changes, fmt.Sprintf("%s: the field %s was removed", path, name))
			continue
		}
		inner, more := compareShapes(path+"."+name, a[name], b[name])
		changes, hasAdditions = append(changes, inner...), hasAdditions || more
	}
	for name := range b {
		hasAdditions = hasAdditions || a[name] == nil
	}
	return changes, hasAdditions
}

// shapeText returns a shape as JSON.
func shapeText(v any) string {
	text, _ := json.Marshal(v) // v was decoded from JSON, or comes from shapeOf
	return string(text)
}

// shapeOf describes the JSON of a type: the name of a scalar, a list of one shape, or an object with the shape of each
// field ("*" for a map).
func shapeOf(t reflect.Type, above []reflect.Type) any {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch p := reflect.PointerTo(t); {
	case t == reflect.TypeFor[time.Time]():
		return "time"
	case t == reflect.TypeFor[json.RawMessage]():
		return "any"
	case p.Implements(reflect.TypeFor[json.Marshaler]()):
		return "any"
	case p.Implements(reflect.TypeFor[encoding.TextMarshaler]()):
		return "text"
	case slices.Contains(above, t): // a type that contains itself: the number is the depth of the outer occurrence; committed files have this text
		return "again " + strconv.Itoa(slices.Index(above, t))
	}
	above = append(slices.Clone(above), t)
	switch t.Kind() {
	case reflect.Bool:
		return "bool"
	case reflect.String:
		return "string"
	case reflect.Float32, reflect.Float64:
		return "number"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "int"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return "uint"
	case reflect.Slice, reflect.Array:
		if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8 {
			return "bytes"
		}
		return []any{shapeOf(t.Elem(), above)}
	case reflect.Map:
		return map[string]any{"*": shapeOf(t.Elem(), above)}
	case reflect.Struct:
		fields := map[string]any{}
		addFields(fields, t, above)
		return fields
	default:
		return "any"
	}
}

// addFields adds the shapes of the fields of struct t to out. As in encoding/json, the fields of an embedded struct without
// a name count as fields of t. Unexported fields, and fields with `json:"-"`, are left out.
func addFields(out map[string]any, t reflect.Type, above []reflect.Type) {
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		inner := f.Type
		for inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		switch {
		case name == "-" && options == "":
			continue
		case f.Anonymous && name == "" && inner.Kind() == reflect.Struct:
			addFields(out, inner, append(slices.Clone(above), inner))
			continue
		case !f.IsExported():
			continue
		case name == "":
			name = f.Name
		}
		out[name] = shapeOf(f.Type, above)
	}
}
