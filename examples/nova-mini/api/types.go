package api

import (
	"bytes"
	"encoding/json"
)

// This file has types of values that occur in several bodies, and that a plain Go type cannot describe. The types accept the values that
// Nova 2.1 accepts.

// name is a printable text without a space at either end.
type name string

// JSONSchema implements api.JSONSchemer.
func (name) JSONSchema() string {
	return `{"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^([^\\p{C}\\p{Z}]([^\\p{C}\\p{Zl}\\p{Zp}]*[^\\p{C}\\p{Z}])?)?$",
		"x-pattern-error": "An invalid 'name' value was provided. The name must be: printable characters. Can not start or end with whitespace."}`
}

// description describes a server: a printable text of at most 255 characters.
type description string

// JSONSchema implements api.JSONSchemer.
func (description) JSONSchema() string {
	return `{"type": "string", "maxLength": 255, "pattern": "^[^\\p{C}\\p{Zl}\\p{Zp}]*$"}`
}

// longText is a printable text of at most 65,535 characters.
type longText string

// JSONSchema implements api.JSONSchemer.
func (longText) JSONSchema() string {
	return `{"type": "string", "maxLength": 65535, "pattern": "^[^\\p{C}\\p{Zl}\\p{Zp}]*$"}`
}

// metadata is the metadata of a server, or the extra specs of a flavor.
type metadata map[string]string

// JSONSchema implements api.JSONSchemer.
func (metadata) JSONSchema() string {
	return `{"type": "object", "additionalProperties": false, "patternProperties": {"^[a-zA-Z0-9-_:. ]{1,255}$": {"type": "string", "maxLength": 255}}}`
}

// reference is a flavor's id, as a text or a number, or a link that ends with the id.
type reference struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (reference) JSONSchema() string { return `{"type": ["string", "integer"], "minLength": 1}` }

// positive and natural are integers, given as numbers or as texts, up to MySQL's largest INT, see parseWhole. The least value is 1 for
// positive, and 0 for natural.
type (
	positive struct{ json.RawMessage }
	natural  struct{ json.RawMessage }
)

// JSONSchema implements api.JSONSchemer.
func (positive) JSONSchema() string {
	return `{"type": ["integer", "string"], "pattern": "^[0-9]*$", "minLength": 1, "minimum": 1, "maximum": 2147483647}`
}

// JSONSchema implements api.JSONSchemer.
func (natural) JSONSchema() string {
	return `{"type": ["integer", "string"], "pattern": "^[0-9]*$", "minLength": 1, "minimum": 0, "maximum": 2147483647}`
}

// boolean is any of the values that Nova accepts as a boolean.
type boolean struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (boolean) JSONSchema() string {
	return `{"enum": [true, "True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes",
		false, "False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no"]}`
}

// alwaysEmpty is an empty text, for an attribute that nova-mini does not have.
type alwaysEmpty string

// JSONSchema implements api.JSONSchemer.
func (alwaysEmpty) JSONSchema() string { return `{"const": ""}` }

// alwaysEmptyList is an array without values, for an attribute that nova-mini does not have.
type alwaysEmptyList []struct{}

// JSONSchema implements api.JSONSchemer.
func (alwaysEmptyList) JSONSchema() string { return `{"type": "array", "maxItems": 0}` }

// alwaysNull is null, for an attribute that nova-mini does not have.
type alwaysNull struct{}

// MarshalJSON returns null.
func (alwaysNull) MarshalJSON() ([]byte, error) { return []byte("null"), nil }

// JSONSchema implements api.JSONSchemer.
func (alwaysNull) JSONSchema() string { return `{"type": "null"}` }

// micros is a time with microseconds and without a zone, as Nova shows some times.
type micros string

// JSONSchema implements api.JSONSchemer.
func (micros) JSONSchema() string {
	return `{"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{6}$"}`
}

// ipAddress is an IPv4 or IPv6 address.
type ipAddress string

// JSONSchema implements api.JSONSchemer.
func (ipAddress) JSONSchema() string {
	return `{"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}`
}

// swapMiB is the size of a swap disk, or an empty text if the flavor has no swap disk, as in Nova before microversion 2.75.
type swapMiB int

// MarshalJSON returns the size, or an empty text.
func (s swapMiB) MarshalJSON() ([]byte, error) {
	if s == 0 {
		return []byte(`""`), nil
	}
	return json.Marshal(int(s))
}

// JSONSchema implements api.JSONSchemer.
func (swapMiB) JSONSchema() string {
	return `{"type": ["integer", "string"], "minimum": 1, "maxLength": 0}`
}

// imageView is a reference to an image, or an empty text for a server without an image.
type imageView struct{ *bookmark }

// MarshalJSON returns the reference, or an empty text.
func (v imageView) MarshalJSON() ([]byte, error) { return orEmptyText(v.bookmark) }

// JSONSchema implements api.JSONSchemer.
func (imageView) JSONSchema() string { return imageSchema("") }

// imagePropertiesView is an imageView that also has the properties of the image.
type imagePropertiesView struct{ *imageProperties }

type imageProperties struct {
	bookmark

	Properties shownProperties `json:"properties"`
}

// MarshalJSON returns the reference, or an empty text.
func (v imagePropertiesView) MarshalJSON() ([]byte, error) { return orEmptyText(v.imageProperties) }

// JSONSchema implements api.JSONSchemer.
func (imagePropertiesView) JSONSchema() string {
	return imageSchema(`, "properties": {"type": "object", "additionalProperties": {"type": "string"}}`)
}

// orEmptyText returns v as JSON, or an empty text for nil.
func orEmptyText[T any](v *T) ([]byte, error) {
	if v == nil {
		return []byte(`""`), nil
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // like the rest of the reply
	err := enc.Encode(v)
	return buf.Bytes(), err
}

func imageSchema(more string) string {
	return `{"anyOf": [{"const": ""}, {"type": "object", "additionalProperties": false, "required": ["id", "links"], "properties": {
		"id": {"type": "string"}, "links": {"type": "array", "items": {"type": "object", "required": ["rel", "href"], "additionalProperties": false, "properties": {
			"rel": {"enum": ["self", "bookmark", "next", "describedby"]}, "href": {"type": "string", "format": "uri"}, "type": {"type": "string"}}}}` + more + `}}]}`
}

// givenText is any text, even an empty one. RawMessage is nil if the client has not given one.
type givenText struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (givenText) JSONSchema() string { return `{"type": "string"}` }
