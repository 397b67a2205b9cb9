package api

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"github.com/armature-go/armature/fault"
)

// Schema is a JSON Schema (draft 2020-12) for a range of versions, such as "2.1" to "2.36".
type Schema struct {
	// Min and Max are the first and the last version to which the schema applies. Empty: the first and the last version of
	// the route.
	Min, Max string
	// JSON is the text of the schema, which must be an object. Beside the key pattern, the key x-pattern-error may give the text of the error
	// for a value that does not match; by default the error has the pattern. HandleRoute panics if JSON is not a valid schema, or if the
	// ranges of two schemas of a list overlap.
	JSON string
}

// rangeSchema is a valid Schema. The function schema compiles it at its first use, because most schemas are for versions that no client of the process
// uses, and a compiled schema takes many times the memory of its text.
type rangeSchema struct {
	span
	schema func() *schema
}

// schema is a compiled Schema.
type schema struct {
	compiled *jsonschema.Schema
	doc      map[string]any
	names    map[string]bool // the names of all properties, at any depth
}

// addNames adds the names of all properties in a part of a schema.
func addNames(names map[string]bool, part any) {
	switch part := part.(type) {
	case []any:
		for _, one := range part {
			addNames(names, one)
		}
	case map[string]any:
		properties, _ := part["properties"].(map[string]any)
		for name := range properties {
			names[name] = true
		}
		for _, one := range part {
			addNames(names, one)
		}
	}
}

// compiledTexts has the texts of the schemas that were compiled, as keys. A process may make the same API several times, for example to check its options
// first. The texts are constants of the program.
var compiledTexts sync.Map

// checkSchemas returns the schemas of a route. It panics on a programmer's error: a text is not a valid schema, or two
// schemas are for the same version.
func checkSchemas(what string, list []Schema) []rangeSchema {
	var out []rangeSchema
	for i, s := range list {
		name := fmt.Sprintf("%s, schema %d", what, i+1)
		compile := func() *schema {
			one, err := compileSchema(s.JSON)
			if err != nil {
				panic("api: " + name + ": " + err.Error())
			}
			return one
		}
		if _, ok := compiledTexts.Load(s.JSON); !ok {
			compile()
			compiledTexts.Store(s.JSON, true)
		}
		next := rangeSchema{newSpan(s.Min, s.Max), sync.OnceValue(compile)}
		for _, o := range out {
			if o.overlaps(next.span) {
				panic(fmt.Sprintf("api: %s: the versions %s overlap with %s", name, next.span, o.span))
			}
		}
		out = append(out, next)
	}
	return out
}

// compileSchema compiles the text of a schema.
func compileSchema(text string) (*schema, error) {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	object, ok := doc.(map[string]any)
	if !ok {
		return nil, errors.New("a schema must be an object")
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	compiling := true
	c.UseRegexpEngine(func(text string) (jsonschema.Regexp, error) {
		if compiling {
			return compilePattern(text)
		}
		return regexp.Compile(text) // a client's value of the format "regex"
	})
	if err := c.AddResource("mem:///schema.json", doc); err != nil {
		return nil, err
	}
	compiled, err := c.Compile("mem:///schema.json")
	compiling = false
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	addNames(names, doc)
	return &schema{compiled: compiled, doc: object, names: names}, nil
}

// patterns has the compiled patterns, by their texts, because the schemas of many versions have the same patterns. The
// texts come from the program, not from clients.
var patterns sync.Map // string -> *regexp.Regexp

// compilePattern returns the compiled pattern. It compiles each text only once.
func compilePattern(text string) (jsonschema.Regexp, error) {
	if have, ok := patterns.Load(text); ok {
		return have.(*regexp.Regexp), nil //nolint:forcetypeassert // see patterns
	}
	out, err := regexp.Compile(text)
	if err != nil {
		return nil, err
	}
	patterns.Store(text, out)
	return out, nil
}

// schemaAt returns the schema for a version, or nil if no schema is for the version.
func schemaAt(list []rangeSchema, v Version) *schema {
	for _, s := range list {
		if s.has(v) {
			return s.schema()
		}
	}
	return nil
}

// The errors of validate say with one of these texts where the wrong value is.
const (
	inBody  = "field/attribute"
	inQuery = "query parameters"
)

// validate checks a value v, which was decoded with numbers as json.Number. The parameter raw is the value's text, and
// what is inBody or inQuery. Invalid: the value does not fit the schema; the Meta of the error has the name of the field.
func (s *schema) validate(what string, raw []byte, v any) error {
	err := s.compiled.Validate(v)
	if err == nil {
		return nil
	}
	ve, ok := err.(*jsonschema.ValidationError) //nolint:errorlint // the compiler never wraps it
	if !ok {
		return fault.New(fault.Invalid, "validate %s: %w", what, err)
	}
	leaf := firstError(ve)
	value := valueAtPath(raw, leaf.InstanceLocation)
	msg := s.explain(leaf, value)
	field := ""
	if n := len(leaf.InstanceLocation); n > 0 {
		field = leaf.InstanceLocation[n-1]
		if what == inQuery { // a parameter that is given several times is a list: the error must have its name, and not an index
			field = leaf.InstanceLocation[0]
		}
		msg = fmt.Sprintf("Invalid input for %s %s. Value: %s. %s", what, shortenText(field), shortenText(pythonStr(value)), msg)
	}
	if _, ok := leaf.ErrorKind.(*kind.Pattern); ok {
		if own, ok := s.part(leaf.SchemaURL)["x-pattern-error"].(string); ok {
			msg = own
		}
	}
	return fieldError(field, msg)
}

// firstError chooses the error that the client gets, so that the same value always gets the same error. Errors are ordered
// by the path of their value. An error of a property comes before an error of the object around the property, as in Nova,
// which validates one property after another. Errors of the same value are ordered by errorRank.
func firstError(e *jsonschema.ValidationError) *jsonschema.ValidationError {
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
		return cmp.Or(cmp.Compare(len(q), len(p)), cmp.Compare(errorRank(a.ErrorKind), errorRank(b.ErrorKind)), strings.Compare(a.SchemaURL, b.SchemaURL))
	})
}

// errorRank orders the errors of the same value: firstError chooses the lowest rank.
func errorRank(k jsonschema.ErrorKind) int {
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

// explain returns the text of an error in the words of Python's jsonschema, which OpenStack's clients and their tests
// expect. The parameter raw is the text of the value.
func (s *schema) explain(e *jsonschema.ValidationError, raw []byte) string {
	got := shortenText(pythonRepr(raw))
	switch k := e.ErrorKind.(type) {
	case *kind.Type:
		return got + " is not of type '" + strings.Join(k.Want, "', '") + "'"
	case *kind.Required:
		return quotePython(k.Missing[0]) + " is a required property"
	case *kind.AdditionalProperties:
		names := slices.Sorted(slices.Values(k.Properties))
		for i, name := range names {
			names[i] = quotePython(name)
		}
		list := shortenText(strings.Join(names, ", "))
		verb, do := "was", "does"
		if len(names) > 1 {
			verb, do = "were", "do"
		}
		if patterns := s.patterns(e.SchemaURL); len(patterns) > 0 {
			return list + " " + do + " not match any of the regexes: '" + strings.Join(patterns, "', '") + "'"
		}
		return "Additional properties are not allowed (" + list + " " + verb + " unexpected)"
	case *kind.Enum:
		return got + " is not one of " + pythonReprOf(k.Want)
	case *kind.Const:
		return pythonReprOf(k.Want) + " was expected"
	case *kind.MinLength, *kind.MinItems:
		return got + " is too short"
	case *kind.MaxLength, *kind.MaxItems:
		return got + " is too long"
	case *kind.Minimum:
		return got + " is less than the minimum of " + formatBound(k.Want)
	case *kind.Maximum:
		return got + " is greater than the maximum of " + formatBound(k.Want)
	case *kind.ExclusiveMinimum:
		return got + " is less than or equal to the minimum of " + formatBound(k.Want)
	case *kind.ExclusiveMaximum:
		return got + " is greater than or equal to the maximum of " + formatBound(k.Want)
	case *kind.MultipleOf:
		return got + " is not a multiple of " + formatBound(k.Want)
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
		return quotePython(shortenText(k.Property)) + " is not allowed as a name"
	case *kind.DependentRequired:
		return quotePython(k.Missing[0]) + " is a dependency of " + quotePython(k.Prop)
	}
	return got + " is not valid: " + strings.Join(e.ErrorKind.KeywordPath(), "/")
}

// patterns returns the patternProperties of the part of the schema at a location.
func (s *schema) patterns(location string) []string {
	patterns, _ := s.part(location)["patternProperties"].(map[string]any)
	return slices.Sorted(maps.Keys(patterns))
}

// part returns the part of the schema at a location, which is a URL with a JSON Pointer.
func (s *schema) part(location string) map[string]any {
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
	return object
}

// valueAtPath returns the text of the value at a path, or nil if the path does not exist.
func valueAtPath(raw []byte, path []string) []byte {
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

// pythonStr formats a JSON value as Python's str does: a string has no quotes.
func pythonStr(raw []byte) string {
	var s string
	if json.Unmarshal(raw, &s) == nil && bytes.HasPrefix(bytes.TrimSpace(raw), []byte{'"'}) {
		return s
	}
	return pythonRepr(raw)
}

// pythonReprOf formats a Go value as Python's repr does, or returns "?" if JSON cannot express it.
func pythonReprOf(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	return pythonRepr(raw)
}

// pythonRepr formats a JSON value as Python's repr does. The names of an object keep the order of the text. The end of a
// long value may be missing, because an error shows only the beginning. It returns "?" if raw is not JSON.
func pythonRepr(raw []byte) string {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var out strings.Builder
	if writeRepr(&out, dec) != nil {
		return "?"
	}
	return out.String()
}

// writeRepr writes the next value of dec as Python's repr does.
func writeRepr(out *strings.Builder, dec *json.Decoder) error {
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	switch t := tok.(type) {
	case json.Delim:
		return writeReprItems(out, dec, t)
	case string:
		out.WriteString(quotePython(t))
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

// writeReprItems writes the rest of an object or array after the delimiter open. It may stop early if out is longer than
// an error shows.
func writeReprItems(out *strings.Builder, dec *json.Decoder, open json.Delim) error {
	closing := map[json.Delim]string{'{': "}", '[': "]"}[open]
	out.WriteString(open.String())
	for i := 0; dec.More(); i++ {
		switch { // the decoder returns the names and values of an object one after the other
		case i == 0:
		case open == '{' && i%2 == 1:
			out.WriteString(": ")
		default:
			out.WriteString(", ")
		}
		if err := writeRepr(out, dec); err != nil {
			return err
		}
		if out.Len() > 4*maxShown {
			return nil // the error shows less than this
		}
	}
	_, err := dec.Token()
	out.WriteString(closing)
	return err
}

// quotePython formats a string as Python's repr does: in single quotes, or in double quotes if the string has single
// quotes but no double quotes. Characters that cannot be printed, such as control characters, are escaped, so that no
// error contains them.
func quotePython(s string) string {
	quote := "'"
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		quote = `"`
	}
	var out strings.Builder
	out.WriteString(quote)
	for _, r := range s {
		switch {
		case r == '\n':
			out.WriteString(`\n`)
		case r == '\t':
			out.WriteString(`\t`)
		case r == '\r':
			out.WriteString(`\r`)
		case r == '\\' || string(r) == quote:
			out.WriteByte('\\')
			out.WriteRune(r)
		case unicode.IsPrint(r):
			out.WriteRune(r)
		case r <= 0xff:
			fmt.Fprintf(&out, `\x%02x`, r)
		case r <= 0xffff:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			fmt.Fprintf(&out, `\U%08x`, r)
		}
	}
	out.WriteString(quote)
	return out.String()
}

// formatBound formats a bound of a number as Python does: an integer has no decimal point.
func formatBound(r *big.Rat) string {
	if r.IsInt() {
		return r.Num().String()
	}
	f, _ := r.Float64()
	return strconv.FormatFloat(f, 'g', -1, 64)
}
