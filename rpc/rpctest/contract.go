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

// UpdateVar is the environment variable that makes [Contract] write its file.
const UpdateVar = goldentest.UpdateVar

// Contract fails if the methods that rpc.Define has added to the interface
// are not those of the file, which was committed when they were promised:
//
//   - Within a major version nothing that was promised goes or changes: no method,
//     its since, its delivery, no field of a request or a response, and no type
//     of one.
//   - What is added needs a new minor version of the interface, and a new method
//     that version as its since.
//
// Run with ARMATURE_UPDATE=1 it writes the file, unless these rules are broken.
// Fields are compared as they stand in JSON. A type that encodes itself counts as
// what it says it is, text or anything.
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
	goldentest.Contract(t, i.Name, file, string(text)+"\n", ", which needs a new major version", func(raw string) ([]string, error) {
		var old contract
		if err := json.Unmarshal([]byte(raw), &old); err != nil {
			return nil, err
		}
		return old.broken(now), nil
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

// broken says what in now does not keep the old promise.
func (old contract) broken(now contract) (list []string) {
	if old.Interface != now.Interface {
		return []string{fmt.Sprintf("the interface was called %s and is called %s", old.Interface, now.Interface)}
	}
	if now.Version.Major > old.Version.Major {
		return nil
	}
	if !now.Version.Accepts(old.Version) {
		return []string{fmt.Sprintf("the version went back from %s to %s", old.Version, now.Version)}
	}
	grown := false
	for _, name := range slices.Sorted(maps.Keys(old.Methods)) {
		was := old.Methods[name]
		is, ok := now.Methods[name]
		if !ok {
			list = append(list, name+" is gone")
			continue
		}
		if was.Since != is.Since {
			list = append(list, fmt.Sprintf("%s was there since %s, now since %s", name, was.Since, is.Since))
		}
		if was.Delivery != is.Delivery {
			list = append(list, fmt.Sprintf("%s was %s, and is %s", name, was.Delivery, is.Delivery))
		}
		for what, pair := range map[string][2]any{"request": {was.Request, is.Request}, "response": {was.Response, is.Response}} {
			changed, more := compare(name+"'s "+what, pair[0], pair[1])
			list = append(list, changed...)
			grown = grown || more
		}
	}
	for _, name := range slices.Sorted(maps.Keys(now.Methods)) {
		if _, ok := old.Methods[name]; ok {
			continue
		}
		grown = true
		if since := now.Methods[name].Since; old.Version.Accepts(since) {
			list = append(list, fmt.Sprintf("%s is new, but says that it was there since %s, when the interface is at %s", name, since, old.Version))
		}
	}
	if grown && now.Version == old.Version {
		list = append(list, fmt.Sprintf("something was added, but the version is still %s: it needs a new minor version at least", now.Version))
	}
	slices.Sort(list)
	return list
}

// compare says what has changed in a shape, and whether something was added.
func compare(path string, was, is any) (changed []string, grown bool) {
	if x, ok := was.([]any); ok && len(x) == 1 {
		if y, ok := is.([]any); ok && len(y) == 1 {
			return compare(path+"[]", x[0], y[0])
		}
	}
	a, aok := was.(map[string]any)
	b, bok := is.(map[string]any)
	if !aok || !bok {
		x, y := plain(was), plain(is)
		if x != y {
			changed = append(changed, fmt.Sprintf("%s was %s, and is %s", path, x, y))
		}
		return changed, false
	}
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if b[name] == nil {
			changed = append(changed, fmt.Sprintf("%s has lost the field %s", path, name))
			continue
		}
		more, grew := compare(path+"."+name, a[name], b[name])
		changed, grown = append(changed, more...), grown || grew
	}
	for name := range b {
		grown = grown || a[name] == nil
	}
	return changed, grown
}

func plain(v any) string {
	text, _ := json.Marshal(v) // it came out of JSON, or goes into it
	return string(text)
}

// shapeOf describes the JSON of a type: the name of a scalar, a list of one
// shape, or an object of shapes by field ("*" for a map).
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
	case slices.Contains(above, t): // a type that holds itself, so many levels down from the top
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
