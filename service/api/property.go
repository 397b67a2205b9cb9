package api

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"unicode"
)

// property is a field of a struct that is also in the struct's JSON.
type property struct {
	reflect.StructField
	span

	index    int    // the index of the field in the struct
	name     string // the name in JSON
	options  string // the options of the tag json
	optional bool   // the field may be missing
	zero     bool   // the field has the option omitzero
	flat     bool   // an embedded struct, whose fields are in the JSON in its place
	quoted   bool   // a number or a bool that is encoded as a text
	rule     string // the policy rule of the callers who may use the field; "": all callers
}

// depends reports whether the field depends on the version or on the caller.
func (p *property) depends() bool { return p.span != (span{}) || p.rule != "" }

// versionTags are the tags that select the versions and the callers of a field.
var versionTags = []string{"since", "until", "rule", "name"}

// propertiesOf returns the fields of a struct that are in its JSON, in their order.
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
		if err == nil {
			err = p.readOptions()
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

// readOptions reads the options of the tag json, and checks the name.
func (p *property) readOptions() error {
	if strings.ContainsFunc(p.name, isNoNameRune) {
		return fmt.Errorf("encoding/json refuses the name %q: use letters, digits and other characters than quotes, backslashes and commas", p.name)
	}
	list := strings.Split(p.options, ",")
	p.zero, p.quoted = slices.Contains(list, "omitzero"), slices.Contains(list, "string")
	p.optional = p.zero || slices.Contains(list, "omitempty")
	if p.quoted && !isQuotable(p.Type) {
		return fmt.Errorf("the option string of the tag json is for a string, a number or a bool, and not for %s", p.Type)
	}
	return nil
}

// isNoNameRune reports whether encoding/json ignores a tag's name if it has this character.
func isNoNameRune(r rune) bool {
	return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("!#$%&()*+-./:;<=>?@[]^_{|}~ ", r)
}

// isQuotable reports whether the option string of the tag json has an effect on a type.
func isQuotable(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer && t.Name() == "" {
		t = t.Elem()
	}
	at := reflect.PointerTo(t)
	return !slices.Contains([]string{"array", "object"}, schemaType(t)) && !at.Implements(jsonMarshaler) && !at.Implements(jsonUnmarshaler) &&
		!at.Implements(textMarshaler) && !at.Implements(textUnmarshaler)
}

// hasIsZero reports whether the option omitzero uses a method IsZero of the type.
func hasIsZero(t reflect.Type) bool {
	return t.Implements(isZeroer) || reflect.PointerTo(t).Implements(isZeroer)
}

// flattenEmbedded replaces each embedded struct with its fields. The Go name of such a field is then the name of the struct, a dot, and
// the name of the field. The fields of an embedded pointer are optional, because the pointer may be nil.
func flattenEmbedded(fields []property) []property {
	var out []property
	for _, f := range fields {
		if !f.flat {
			out = append(out, f)
			continue
		}
		inner, _ := propertiesOf(structAt(f.Type)) // learn has reported its errors
		for _, p := range flattenEmbedded(inner) {
			p.Name, p.span = f.Name+"."+p.Name, f.intersect(p.span)
			p.optional = p.optional || f.Type.Kind() == reflect.Pointer
			out = append(out, p)
		}
	}
	return out
}

// firstTag returns the first of the names that the field has as a tag, or "".
func firstTag(tags reflect.StructTag, names []string) string {
	for _, name := range names {
		if _, ok := tags.Lookup(name); ok {
			return name
		}
	}
	return ""
}
