package api

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// property is a field of a struct that is also in the struct's JSON.
type property struct {
	reflect.StructField
	span

	index    int    // of the field in the struct
	name     string // in JSON
	options  string // of the tag json
	optional bool   // the field may be missing
	flat     bool   // an embedded struct: JSON has its fields instead
	quoted   bool   // a number or a bool as a text
	rule     string // the policy rule of the callers who may use the field; "": all callers
}

// depends reports whether the field depends on the version or on the caller.
func (p *property) depends() bool { return p.span != (span{}) || p.rule != "" }

// versionTags are the tags that select the versions and the callers of a field.
var versionTags = []string{"since", "until", "rule", "name"}

// propertiesOf returns the fields of a struct that are also in its JSON, in their order.
func propertiesOf(t reflect.Type) ([]property, error) {
	var out []property
	for i := range t.NumField() {
		p := newProperty(i, t.Field(i))
		err := p.readVersionTags()
		if p.Tag.Get("json") == "-" || !p.IsExported() && !p.flat {
			if tag := firstTag(p.Tag, slices.Concat(versionTags, slices.Sorted(maps.Keys(constraints)))); tag != "" {
				return nil, fmt.Errorf("%s.%s has the tag %s, but JSON does not have the field: remove the tag, or export the field", t, p.Name, tag)
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s.%s: %w", t, p.Name, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// newProperty reads the tag json of a field, as encoding/json does.
func newProperty(index int, f reflect.StructField) property {
	p := property{StructField: f, index: index, name: f.Name, rule: f.Tag.Get("rule")}
	name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
	p.flat = f.Anonymous && name == "" && structAt(f.Type).Kind() == reflect.Struct
	if name != "" {
		p.name = name
	}
	p.options = options
	for option := range strings.SplitSeq(options, ",") {
		p.optional = p.optional || option == "omitempty" || option == "omitzero"
		p.quoted = p.quoted || option == "string"
	}
	return p
}

// readVersionTags reads the tags that select the versions and the callers of the field.
func (p *property) readVersionTags() (err error) {
	if p.span, err = parseSpan(p.Tag.Get("since"), p.Tag.Get("until")); err != nil {
		return fmt.Errorf("the tags since and until: %w", err)
	}
	if name, ok := p.Tag.Lookup("name"); ok {
		if p.name = name; name == "" || p.span == (span{}) {
			return errors.New("the tag name is for a field with since or until that shares its name with another field: write the name in the tag json")
		}
	}
	if _, ok := p.Tag.Lookup("rule"); ok && (p.rule == "" || p.flat) {
		return errors.New("the tag rule must be the name of a rule, and be on a field with a name in JSON")
	}
	return nil
}

// flatten replaces each embedded struct by its fields. The Name of such a field is its path, such as "Embedded.Field". Fields of an
// embedded pointer are optional, because the pointer may be nil.
func flatten(fields []property) []property {
	var out []property
	for _, f := range fields {
		if !f.flat {
			out = append(out, f)
			continue
		}
		inner, _ := propertiesOf(structAt(f.Type)) // learn has reported its errors
		for _, p := range flatten(inner) {
			p.Name, p.span = f.Name+"."+p.Name, f.intersect(p.span)
			p.optional = p.optional || f.Type.Kind() == reflect.Pointer
			out = append(out, p)
		}
	}
	return out
}

// firstTag returns the first of the names that is a tag of the field, or "".
func firstTag(tags reflect.StructTag, names []string) string {
	for _, name := range names {
		if _, ok := tags.Lookup(name); ok {
			return name
		}
	}
	return ""
}
