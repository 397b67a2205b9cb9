package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// timePattern matches the RFC 3339 times that time.Time accepts: with T and Z in upper case, and without a leap second.
const timePattern = `^[0-9-]{10}T[0-9:]{5}:[0-5][0-9](\.[0-9]+)?(Z|[+-][0-9:]{5})$`

// known has the schemas of types whose JSON cannot be derived from the Go type.
var known = map[reflect.Type]map[string]any{
	reflect.TypeFor[time.Time]():       {"type": "string", "format": "date-time", "pattern": timePattern},
	reflect.TypeFor[net.IP]():          {"type": "string"},
	reflect.TypeFor[json.Number]():     {"type": "number"},
	reflect.TypeFor[json.RawMessage](): {},
	reflect.TypeFor[[]byte]():          {"type": "string", "contentEncoding": "base64"},
}

// schemaAt returns the schema for a version. A field with the tag rule is not required. A schema is compiled when it is first used, and kept,
// because usually only a few of the versions are used.
func (s *shape) schemaAt(v Version) (*schema, error) {
	at := s.interval(v)
	if have, ok := s.schemas.Load(at); ok {
		return have.(*schema), nil //nolint:forcetypeassert // see schemas
	}
	out, err := s.compile(v)
	if err == nil {
		s.schemas.Store(at, out)
	}
	return out, err
}

// compile does what schemaAt does, but does not keep the schema.
func (s *shape) compile(v Version) (*schema, error) {
	text, err := json.Marshal(s.describe(s.of, v))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.of, err)
	}
	out, err := compileSchema(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.of, err)
	}
	return out, nil
}

// describe returns the schema of a type for a version.
func (s *shape) describe(t reflect.Type, v Version) map[string]any {
	if t.Kind() == reflect.Pointer {
		return orNull(s.describe(t.Elem(), v))
	}
	if own, ok := s.ownSchema[t]; ok {
		return maps.Clone(own)
	}
	switch kind := t.Kind(); kind {
	case reflect.Slice:
		return map[string]any{"type": "array", "items": s.describe(t.Elem(), v)}
	case reflect.Array:
		return map[string]any{"type": "array", "items": s.describe(t.Elem(), v), "minItems": t.Len(), "maxItems": t.Len()}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": s.describe(t.Elem(), v)}
	case reflect.Struct:
		return s.describeStruct(t, v)
	case reflect.Interface:
		return map[string]any{}
	default:
		out := map[string]any{"type": schemaType(t)}
		if low, high, ok := boundsOf(t); ok {
			out["minimum"], out["maximum"] = low, high
		}
		return out
	}
}

// boundsOf returns the bounds of an integer type of at most 32 bits, or of an unsigned type. For another type, such as int64, ok is false: a
// number that does not fit is detected when the value is decoded.
func boundsOf(t reflect.Type) (low int64, high uint64, ok bool) {
	switch t.Kind() { //nolint:exhaustive // the others are not integers
	case reflect.Int8, reflect.Int16, reflect.Int32:
		return -1 << (t.Bits() - 1), 1<<(t.Bits()-1) - 1, true
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return 0, 1<<t.Bits() - 1, true
	case reflect.Uint, reflect.Uint64, reflect.Uintptr:
		return 0, math.MaxUint64, true
	}
	return 0, 0, false
}

// describeStruct returns the schema of a struct for a version.
func (s *shape) describeStruct(t reflect.Type, v Version) map[string]any {
	properties, required := map[string]any{}, []string{}
	for _, p := range s.fields[t] {
		if !p.has(v) {
			continue
		}
		properties[p.name] = s.describeField(&p, v)
		if !p.optional && p.rule == "" {
			required = append(required, p.name)
		}
	}
	return map[string]any{"type": "object", "additionalProperties": false, "properties": properties, "required": required}
}

// describeField returns the schema of a field's value, with the constraints of its tags.
func (s *shape) describeField(p *property, v Version) map[string]any {
	t := p.Type
	if s.isReply && p.optional { // a nil field is missing from the reply, and never null
		t = structAt(t)
	}
	out := s.describe(t, v)
	if p.quoted {
		if out = map[string]any{"type": "string"}; t.Kind() == reflect.Pointer {
			out = orNull(out)
		}
	}
	if p.rule != "" {
		out["x-policy-rule"] = p.rule
	}
	for name, add := range constraints {
		if text, ok := p.Tag.Lookup(name); ok {
			_ = add(p, text, out) // the error is nil: learn refuses a type if a tag is wrong
		}
	}
	return out
}

// orNull returns a schema that also allows null.
func orNull(s map[string]any) map[string]any {
	text, ok := s["type"].(string)
	switch {
	case len(s) == 0: // any value, including null
	case ok && s["enum"] == nil && s["const"] == nil:
		s["type"] = []string{text, "null"}
	default:
		return map[string]any{"anyOf": []any{s, map[string]any{"type": "null"}}}
	}
	return s
}

// constraints are the tags that restrict the value of a field, and the tag doc, which describes the value. The function of a tag adds the
// tag's keyword to the field's schema.
var constraints = map[string]func(p *property, text string, s map[string]any) error{
	"min": func(p *property, text string, s map[string]any) error { return addBound(p, s, text, 0) },
	"max": func(p *property, text string, s map[string]any) error { return addBound(p, s, text, 1) },
	"pattern": func(p *property, text string, s map[string]any) error {
		if _, err := regexp.Compile(text); err != nil {
			return err
		}
		return addKeyword(p, s, "pattern", text, "string")
	},
	"format": func(p *property, text string, s map[string]any) error {
		if !slices.Contains(formats, text) {
			return fmt.Errorf("the format must be one of %s", strings.Join(formats, ", "))
		}
		return addKeyword(p, s, "format", text, "string")
	},
	"enum": func(p *property, text string, s map[string]any) error {
		var values []any
		if text == "" {
			return errors.New("write the values, separated by commas")
		}
		for one := range strings.SplitSeq(text, ",") {
			if one != strings.TrimSpace(one) {
				return fmt.Errorf("the value %q begins or ends with a space: write the values without spaces", one)
			}
			var v any = one
			if schemaType(structAt(p.Type)) == "integer" {
				n, err := strconv.ParseInt(one, 10, 64)
				if err != nil {
					return err
				}
				v = n
			}
			if slices.Contains(values, v) {
				return fmt.Errorf("the value %q is given twice", one)
			}
			values = append(values, v)
		}
		if p.Type.Kind() == reflect.Pointer {
			values = append(values, nil)
		}
		return addKeyword(p, s, "enum", values, "string", "integer")
	},
	"doc": func(_ *property, text string, s map[string]any) error {
		s["description"] = text
		return nil
	},
}

// formats are the values of the tag format.
var formats = []string{"date", "date-time", "email", "hostname", "ipv4", "ipv6", "regex", "time", "uri", "uuid"}

// boundNames are the keywords of JSON Schema for the tags min and max, by the type of the value in JSON.
var boundNames = map[string][2]string{
	"string": {"minLength", "maxLength"}, "integer": {"minimum", "maximum"}, "number": {"minimum", "maximum"},
	"array": {"minItems", "maxItems"}, "object": {"minProperties", "maxProperties"},
}

// addBound adds the bound of a tag. The parameter called which selects the tag: 0 is min, and 1 is max.
func addBound(p *property, s map[string]any, text string, which int) error {
	kind := schemaType(structAt(p.Type))
	names, ok := boundNames[kind]
	n, err := strconv.ParseFloat(text, 64)
	switch {
	case !ok || structAt(p.Type).Kind() == reflect.Struct || structAt(p.Type).Kind() == reflect.Array:
		return fmt.Errorf("a value of type %s has no bounds", p.Type)
	case err != nil:
		return err
	case !json.Valid([]byte(text)):
		return errors.New("the bound must be a number in the form of JSON")
	case kind != "number" && (n != math.Trunc(n) || kind != "integer" && n < 0):
		return errors.New("the bound must be an integer, and the bound of a length must be not below 0")
	}
	s[names[which]] = json.Number(text)
	return nil
}

// addKeyword adds a keyword to the schema of a field. It returns an error if the value of the field has none of the types.
func addKeyword(p *property, s map[string]any, keyword string, value any, types ...string) error {
	if kind := schemaType(structAt(p.Type)); !slices.Contains(types, kind) {
		return fmt.Errorf("the field must be of type %s, and not %s", strings.Join(types, " or "), p.Type)
	}
	s[keyword] = value
	return nil
}

// checkConstraints returns an error if the tags of a field cannot be used with its type, or contradict one another.
func (p *property) checkConstraints(s *shape) error {
	out := map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(constraints)) {
		text, ok := p.Tag.Lookup(name)
		if !ok {
			continue
		}
		err := constraints[name](p, text, out)
		if _, own := s.ownSchema[structAt(p.Type)]; own && err == nil && name != "doc" {
			err = fmt.Errorf("%s describes its own JSON: write the restriction there", p.Type)
		}
		if p.flat || p.quoted {
			err = errors.New("an embedded struct cannot have this tag, and neither can a field with the option string of the tag json")
		}
		if err != nil {
			return fmt.Errorf("field %s: the tag %s:%q: %w", p.Name, name, text, err)
		}
	}
	return checkBounds(p.Name, out)
}

// checkBounds returns an error if a lower bound of a schema is above the upper bound.
func checkBounds(field string, s map[string]any) error {
	for _, names := range boundNames {
		low, okLow := s[names[0]].(json.Number)
		high, okHigh := s[names[1]].(json.Number)
		a, errA := low.Float64()
		b, errB := high.Float64()
		if okLow && okHigh && errA == nil && errB == nil && a > b {
			return fmt.Errorf("field %s: min %s is greater than max %s", field, low, high)
		}
	}
	return nil
}
