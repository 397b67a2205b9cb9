package api

import (
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/armature-go/armature/fault"
)

// parseQuery parses a query. Invalid: the query is malformed, or is not UTF-8.
func parseQuery(raw string) (url.Values, error) {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return nil, fault.New(fault.Invalid, "Malformed query: %w", err)
	}
	for name, values := range q {
		if !utf8.ValidString(name) || slices.ContainsFunc(values, func(v string) bool { return !utf8.ValidString(v) }) {
			return nil, fault.New(fault.Invalid, "Query string is not UTF-8 encoded")
		}
	}
	return q, nil
}

// checkQuery validates a query by the schema.
func (s *schema) checkQuery(raw string) error {
	q, err := parseQuery(raw)
	if err != nil {
		return err
	}
	props, _ := s.doc["properties"].(map[string]any)
	instance := make(map[string]any, len(q))
	for name, values := range q {
		prop, _ := props[name].(map[string]any)
		typ, _ := prop["type"].(string)
		if typ == "array" {
			list := make([]any, len(values))
			for i, v := range values {
				list[i] = v
			}
			instance[name] = list
			continue
		}
		if len(values) > 1 && prop != nil {
			return fieldError(name, "Invalid input for query parameters "+shortenText(name)+". It is given "+strconv.Itoa(len(values))+" times.")
		}
		instance[name] = parseParameter(typ, values[0])
	}
	rawInstance, err := json.Marshal(instance)
	if err != nil {
		return fault.New(fault.Invalid, "Malformed query: %w", err)
	}
	return s.validate(inQuery, rawInstance, instance)
}

// parseParameter returns the value of a parameter for a type of JSON Schema. If the text cannot be parsed, parseParameter
// returns the text, and the validation by the schema fails later.
func parseParameter(typ, text string) any {
	switch typ {
	case "integer", "number":
		if _, err := strconv.ParseFloat(text, 64); err == nil && json.Valid([]byte(text)) {
			return json.Number(text)
		}
	case "boolean":
		if b, err := strconv.ParseBool(text); err == nil {
			return b
		}
	}
	return text
}
