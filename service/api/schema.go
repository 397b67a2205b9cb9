package api

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"github.com/armature-go/armature/fault"
)

// Schema is a JSON Schema (draft 2020-12) that holds for a range of versions.
type Schema struct {
	// Min and Max are the first and the last version that it holds for. Empty: open.
	Min, Max string
	// JSON is its text.
	JSON string
}

// schema is a Schema that can be used.
type schema struct {
	span
	compiled *jsonschema.Schema
	doc      map[string]any
}

// compile makes schemas usable. It panics if one is no schema, or if two hold for the
// same version: programmers' errors.
func compile(what string, list []Schema) []*schema {
	var out []*schema
	for i, s := range list {
		name := fmt.Sprintf("%s, schema %d", what, i+1)
		doc, err := jsonschema.UnmarshalJSON(strings.NewReader(s.JSON))
		if err != nil {
			panic("api: " + name + ": " + err.Error())
		}
		object, ok := doc.(map[string]any)
		if !ok {
			panic("api: " + name + ": a schema is an object")
		}
		c := jsonschema.NewCompiler()
		c.DefaultDraft(jsonschema.Draft2020)
		c.AssertFormat()
		if err := c.AddResource("mem:///schema.json", doc); err != nil {
			panic("api: " + name + ": " + err.Error())
		}
		compiled, err := c.Compile("mem:///schema.json")
		if err != nil {
			panic("api: " + name + ": " + err.Error())
		}
		next := &schema{span: newSpan(s.Min, s.Max), compiled: compiled, doc: object}
		for _, o := range out {
			if o.overlaps(next.span) {
				panic(fmt.Sprintf("api: %s: versions %s overlap with %s", name, next.span, o.span))
			}
		}
		out = append(out, next)
	}
	return out
}

// at returns the schema that holds for a version, or nil.
func at(list []*schema, v Version) *schema {
	for _, s := range list {
		if s.has(v) {
			return s
		}
	}
	return nil
}

// What a value is, in errors.
const (
	inBody  = "field/attribute"
	inQuery = "query parameters"
)

// validate judges a value that was decoded with numbers as json.Number. raw is its text,
// and what says in errors what it is.
func (s *schema) validate(what string, raw []byte, v any) error {
	err := s.compiled.Validate(v)
	if err == nil {
		return nil
	}
	ve, ok := err.(*jsonschema.ValidationError) //nolint:errorlint // it is never wrapped
	if !ok {
		return fault.New(fault.Invalid, "Malformed request body: %w", err)
	}
	leaf := first(ve)
	value := lookup(raw, leaf.InstanceLocation)
	msg := s.explain(leaf, value)
	field := ""
	if n := len(leaf.InstanceLocation); n > 0 {
		field = leaf.InstanceLocation[n-1]
		if what == inQuery { // of a parameter that is given several times the name, not the index
			field = leaf.InstanceLocation[0]
		}
		msg = fmt.Sprintf("Invalid input for %s %s. Value: %s. %s", what, shorten(field), shorten(text(value)), msg)
	}
	return fieldError(field, msg)
}

// first returns the error to tell of the many that there may be, always the same for the
// same value: what is wrong with a property comes before what is wrong with the object
// around it, as in a Nova that validates one property after another.
func first(e *jsonschema.ValidationError) *jsonschema.ValidationError {
	var leaves []*jsonschema.ValidationError
	var walk func(*jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		switch e.ErrorKind.(type) {
		case *kind.Schema, *kind.Group, *kind.Reference, *kind.AllOf:
			for _, c := range e.Causes {
				walk(c)
			}
		default:
			leaves = append(leaves, e)
		}
	}
	walk(e)
	if len(leaves) == 0 {
		return e
	}
	return slices.MinFunc(leaves, func(a, b *jsonschema.ValidationError) int {
		p, q := a.InstanceLocation, b.InstanceLocation
		for i := range min(len(p), len(q)) {
			if c := strings.Compare(p[i], q[i]); c != 0 {
				return c
			}
		}
		return cmp.Or(cmp.Compare(len(q), len(p)), cmp.Compare(rank(a.ErrorKind), rank(b.ErrorKind)), strings.Compare(a.SchemaURL, b.SchemaURL))
	})
}

// rank orders the errors of one value.
func rank(k jsonschema.ErrorKind) int {
	switch k.(type) {
	case *kind.Type:
		return 0
	case *kind.Required:
		return 2
	case *kind.AdditionalProperties:
		return 3
	}
	return 1
}

// explain says what is wrong in the words of Python's jsonschema, which OpenStack's
// clients and their tests know.
func (s *schema) explain(e *jsonschema.ValidationError, raw []byte) string {
	got := shorten(repr(raw))
	switch k := e.ErrorKind.(type) {
	case *kind.Type:
		return got + " is not of type '" + strings.Join(k.Want, "', '") + "'"
	case *kind.Required:
		return "'" + k.Missing[0] + "' is a required property"
	case *kind.AdditionalProperties:
		names := slices.Sorted(slices.Values(k.Properties))
		verb, do := "was", "does"
		if len(names) > 1 {
			verb, do = "were", "do"
		}
		if patterns := s.patterns(e.SchemaURL); len(patterns) > 0 {
			return shorten("'"+strings.Join(names, "', '")+"'") + " " + do + " not match any of the regexes: '" + strings.Join(patterns, "', '") + "'"
		}
		return "Additional properties are not allowed (" + shorten("'"+strings.Join(names, "', '")+"'") + " " + verb + " unexpected)"
	case *kind.Enum:
		return got + " is not one of " + reprOf(k.Want)
	case *kind.Const:
		return reprOf(k.Want) + " was expected"
	case *kind.MinLength, *kind.MinItems:
		return got + " is too short"
	case *kind.MaxLength, *kind.MaxItems:
		return got + " is too long"
	case *kind.Minimum:
		return got + " is less than the minimum of " + decimal(k.Want)
	case *kind.Maximum:
		return got + " is greater than the maximum of " + decimal(k.Want)
	case *kind.ExclusiveMinimum:
		return got + " is less than or equal to the minimum of " + decimal(k.Want)
	case *kind.ExclusiveMaximum:
		return got + " is greater than or equal to the maximum of " + decimal(k.Want)
	case *kind.MultipleOf:
		return got + " is not a multiple of " + decimal(k.Want)
	case *kind.Pattern:
		return got + " does not match '" + k.Want + "'"
	case *kind.Format:
		return got + " is not a '" + k.Want + "'"
	case *kind.UniqueItems:
		return got + " has non-unique elements"
	case *kind.MinProperties:
		return got + " does not have enough properties"
	case *kind.MaxProperties:
		return got + " has too many properties"
	case *kind.AnyOf:
		return got + " is not valid under any of the given schemas"
	case *kind.OneOf:
		if len(k.Subschemas) == 0 {
			return got + " is not valid under any of the given schemas"
		}
		return got + " is valid under each of several schemas, and must be under one"
	case *kind.PropertyNames:
		return "'" + shorten(k.Property) + "' is not allowed as a name"
	case *kind.DependentRequired:
		return "'" + k.Missing[0] + "' is a dependency of '" + k.Prop + "'"
	}
	return got + " is not valid: " + strings.Join(e.ErrorKind.KeywordPath(), "/")
}

// patterns returns the names of the patternProperties of a part of the schema.
func (s *schema) patterns(location string) []string {
	_, pointer, _ := strings.Cut(location, "#")
	var part any = s.doc
	for step := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		if name, err := url.PathUnescape(step); err == nil {
			step = strings.NewReplacer("~1", "/", "~0", "~").Replace(name)
		}
		switch p := part.(type) {
		case map[string]any:
			if step != "" {
				part = p[step]
			}
		case []any:
			if i, err := strconv.Atoi(step); err == nil && i < len(p) {
				part = p[i]
			}
		}
	}
	object, _ := part.(map[string]any)
	patterns, _ := object["patternProperties"].(map[string]any)
	return slices.Sorted(maps.Keys(patterns))
}

// lookup returns the text of the value at a path, or of nothing.
func lookup(raw []byte, path []string) []byte {
	for _, step := range path {
		var list []json.RawMessage
		var object map[string]json.RawMessage
		if json.Unmarshal(raw, &object) == nil && object != nil {
			raw = object[step]
			continue
		}
		i, err := strconv.Atoi(step)
		if err != nil || json.Unmarshal(raw, &list) != nil || i >= len(list) {
			return nil
		}
		raw = list[i]
	}
	return raw
}

// text returns a value as Python's str: a string without its quotes.
func text(raw []byte) string {
	var s string
	if json.Unmarshal(raw, &s) == nil && bytes.HasPrefix(bytes.TrimSpace(raw), []byte{'"'}) {
		return s
	}
	return repr(raw)
}

func reprOf(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	return repr(raw)
}

// repr returns a value as Python's repr, with its names in their order.
func repr(raw []byte) string {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var out strings.Builder
	if writeRepr(&out, dec) != nil {
		return "?"
	}
	return out.String()
}

// writeRepr writes the next value.
func writeRepr(out *strings.Builder, dec *json.Decoder) error {
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	switch t := tok.(type) {
	case json.Delim:
		closing := map[json.Delim]string{'{': "}", '[': "]"}[t]
		out.WriteString(t.String())
		for i := 0; dec.More(); i++ {
			object := t == '{'
			switch {
			case i == 0:
			case object && i%2 == 1:
				out.WriteString(": ")
			default:
				out.WriteString(", ")
			}
			if err := writeRepr(out, dec); err != nil {
				return err
			}
			if out.Len() > 4*maxShown {
				return nil // it is cut anyway
			}
		}
		if _, err := dec.Token(); err != nil {
			return err
		}
		out.WriteString(closing)
	case string:
		quote := "'"
		if strings.Contains(t, "'") && !strings.Contains(t, `"`) {
			quote = `"`
		}
		esc := strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\t", `\t`, "\r", `\r`, quote, `\`+quote)
		out.WriteString(quote + esc.Replace(t) + quote)
	case json.Number:
		out.WriteString(t.String())
	case bool:
		if t {
			out.WriteString("True")
		} else {
			out.WriteString("False")
		}
	default:
		out.WriteString("None")
	}
	return nil
}

func decimal(r *big.Rat) string {
	if r.IsInt() {
		return r.Num().String()
	}
	f, _ := r.Float64()
	return strconv.FormatFloat(f, 'g', -1, 64)
}
