package api

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// fastSchemas are those that the fast way is compared with the whole one on.
var fastSchemas = []string{
	`{"type": "object", "required": ["a"], "properties": {"a": {"type": "string", "minLength": 1, "maxLength": 3, "pattern": "^[a-zé]+$"}, "b": {"type": ["integer", "null"], "minimum": -2, "maximum": 300}}, "additionalProperties": false}`,
	`{"type": "object", "additionalProperties": {"type": "array", "items": {"enum": ["x", 1, null, true, 1.5, {"k": 1}]}, "minItems": 1, "maxItems": 2}, "maxProperties": 2, "minProperties": 1}`,
	`{"properties": {"n": {"type": "number"}, "i": {"type": "integer", "minimum": 1.5}, "f": {"type": "string", "format": "uuid"}, "any": true, "none": false}}`,
	`{"type": "array", "items": {"type": "object", "required": ["x", "y"], "properties": {"x": {"anyOf": [{"type": "string"}, {"type": "boolean"}]}, "y": {"type": "boolean"}}}, "uniqueItems": true}`,
	`{"type": "array", "uniqueItems": true, "maxItems": 9}`,
	`{"type": ["string", "boolean"], "maxLength": 2}`,
	`true`,
	`{"patternProperties": {"^[a-c]{1,2}$": {"type": "string", "maxLength": 2}, "b$": {"minLength": 1}}, "properties": {"b": {"type": "string"}, "k": {"type": "boolean"}}, "additionalProperties": false}`,
}

// FuzzFast: what the fast way accepts, the whole schema accepts.
func FuzzFast(f *testing.F) {
	for i, body := range []string{
		`{"a": "abc", "b": 7}`, `{"a": "éé", "b": null}`, `{"a": "\u0061"}`, `{"a": "abcd"}`, `{"a": "a", "c": 1}`, `{"b": 1}`, `{"a":"a","b":301}`,
		`{"p": ["x", 1]}`, `{"p": []}`, `{"p": ["x"], "q": [null], "r": [true]}`, `{"p": [1.5]}`, `{"p": [{"k": 1}]}`, `{"p": [1.0]}`,
		`{"n": 1e3, "i": 2}`, `{"i": 1}`, `{"f": "x"}`, `{"none": 1}`, `{"any": [1, {"z": []}]}`,
		`[{"x": "s", "y": true}, {"x": true, "y": false}]`, `[{"x": 1, "y": true}]`, `[{"y": true}]`, `[]`, `[0, -0]`, `[1, 2, 1]`, `["a", "\u0061"]`, `[1,]`, `[,]`,
		`{"a": "x", "k": true}`, `{"a": "xyz"}`, `{"b": ""}`, `{"cb": ""}`, `{"d": 1}`, `{"db": 1}`,
		`"ab"`, `"abc"`, `true`, ` null `, `12`, `-0`, `01`, `{}`, `{"a"}`, `{"a":}`, `{`, ``, `{"a":"a"} x`, `{,}`, `tru`, `9007199254740993`,
	} {
		for s := range fastSchemas {
			f.Add((s+i)%len(fastSchemas), []byte(body))
		}
	}
	var schemas []*schema
	for _, s := range fastSchemas {
		var doc any
		var err error
		if doc, err = jsonschema.UnmarshalJSON(bytes.NewReader([]byte(s))); err != nil {
			f.Fatal(err)
		}
		c := jsonschema.NewCompiler()
		c.AssertFormat()
		if err := c.AddResource("mem:///x", doc); err != nil {
			f.Fatal(err)
		}
		compiled, err := c.Compile("mem:///x")
		if err != nil {
			f.Fatal(err)
		}
		schemas = append(schemas, &schema{compiled: compiled, fast: newFast(doc)})
	}
	f.Fuzz(func(t *testing.T, which int, raw []byte) {
		s := schemas[uint(which)%uint(len(schemas))]
		if scan(raw, 64) != nil || !s.fast.accepts(raw) || !json.Valid(raw) {
			return
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		if err := s.compiled.Validate(v); err != nil {
			t.Errorf("%s is accepted, but: %v", raw, err)
		}
	})
}

// TestFastIsUsed: bodies of the usual kind need no decoding.
func TestFastIsUsed(t *testing.T) {
	t.Parallel()
	for i, body := range []string{`{"a": "abc", "b": -2}`, `{"p": ["x", null]}`, `{"n": 12, "any": [1, {"z": []}]}`, `[]`, `[1, -1, "1", null]`, `"ab"`, `[1]`, `{"a": "xy", "k": true, "db": 1}`} {
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader([]byte(fastSchemas[i])))
		if err != nil {
			t.Fatal(err)
		}
		if !newFast(doc).accepts([]byte(body)) {
			t.Errorf("%s by %s is not accepted", body, fastSchemas[i])
		}
	}
}
