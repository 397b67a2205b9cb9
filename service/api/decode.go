package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"reflect"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/armature-go/armature/fault"
)

// maxShown is the maximum length of a value of the request in an error text, in bytes.
const maxShown = 400

// decode reads the body of a route into p, which is a pointer. It validates the body by the route's schema for the version,
// or by the type of the body.
func (m *Mux) decode(rec *recorder, hr *http.Request, r *route, p any) error {
	raw, err := m.checkedBody(rec, hr)
	if err != nil {
		return err
	}
	s := schemaAt(r.body, rec.version)
	loose := s != nil || r.inShape.loose
	if s == nil {
		if s, err = r.inShape.schemaAt(rec.version); err != nil {
			return err
		}
	}
	instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return fault.New(fault.Invalid, "Malformed request body")
	}
	if err := s.validate(inBody, raw, instance); err != nil {
		return err
	}
	if loose {
		if name := s.useFieldNames(r.in, instance, rec.version); name != "" {
			return fault.New(fault.Invalid, "%s", unexpectedName(name))
		}
	}
	for _, rule := range r.inShape.rulesOf(r.inShape.usedRules(instance, rec.version)) {
		if err := m.enforceField(hr, rule); err != nil {
			return err
		}
	}
	if err := json.Unmarshal(raw, r.inShape.see(p, rec.version, allRules)); err != nil {
		return bodyError(raw, err)
	}
	return nil
}

// checkedBody returns the body after it has checked the body's size, content type and form. It reads the body once and
// stores it in rec.
func (m *Mux) checkedBody(rec *recorder, r *http.Request) ([]byte, error) {
	if rec.body != nil {
		return rec.body, nil
	}
	raw, err := m.readBody(rec, r)
	if err != nil {
		return nil, err
	}
	if len(raw) > 0 {
		if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
			return nil, WithStatus(http.StatusUnsupportedMediaType,
				fault.New(fault.Invalid, "The media type of the body must be application/json."))
		}
	}
	if err := scanBody(raw, m.cfg.MaxDepth); err != nil {
		return nil, err
	}
	rec.body = raw
	return raw, nil
}

// readBody reads the body, of at most MaxBody bytes. The method serve has set the deadline of the body.
func (m *Mux) readBody(rec *recorder, r *http.Request) ([]byte, error) {
	tooLarge := func() error {
		return WithStatus(http.StatusRequestEntityTooLarge, fault.New(fault.Invalid,
			"Request is too large. Larger than max_request_body_size (%d).", m.cfg.MaxBody))
	}
	if r.ContentLength > m.cfg.MaxBody {
		rec.Header().Set("Connection", "close") // the rest of the body is not read
		return nil, tooLarge()
	}
	// MaxBytesReader needs the server's own writer, because it tells that writer to close the connection.
	raw, err := io.ReadAll(http.MaxBytesReader(rec.ResponseWriter, r.Body, m.cfg.MaxBody))
	switch {
	case err == nil:
		return raw, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		rec.Header().Set("Connection", "close")
		return nil, WithStatus(http.StatusRequestTimeout, fault.New(fault.Invalid, "The body took too long."))
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, tooLarge()
	}
	return nil, fault.New(fault.Invalid, "Malformed request body: %w", err)
}

// bodyError turns an error of encoding/json into the error for the client.
func bodyError(raw []byte, err error) error {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		field := e.Field[strings.LastIndexByte(e.Field, '.')+1:]
		value, want := valueAt(raw, e.Offset), schemaType(e.Type)
		msg := fmt.Sprintf("%s is not of type '%s'", shortenText(pythonRepr(value)), want)
		if want == "integer" && strings.HasPrefix(e.Value, "number ") && !bytes.ContainsAny(value, ".eE") {
			msg = shortenText(pythonRepr(value)) + " is out of range"
		}
		if field != "" {
			msg = fmt.Sprintf("Invalid input for field/attribute %s. Value: %s. %s", field, shortenText(pythonStr(value)), msg)
		}
		return fieldError(field, msg)
	}
	if e, ok := errors.AsType[*fault.Error](err); ok { // from an UnmarshalJSON of the component
		return e
	}
	return fault.New(fault.Invalid, "Malformed request body")
}

// unexpectedName returns the text about a name that does not exist, in the words of Python's jsonschema.
func unexpectedName(name string) string {
	return "Additional properties are not allowed (" + quotePython(shortenText(name)) + " was unexpected)"
}

// valueAt returns the JSON value at the offset of an UnmarshalTypeError. The parameter offset is the end of a literal, or
// the start of an object or array.
func valueAt(raw []byte, offset int64) []byte {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	for {
		begin := dec.InputOffset()
		tok, err := dec.Token()
		if err != nil {
			return nil
		}
		end := dec.InputOffset()
		if end < offset {
			continue
		}
		if _, ok := tok.(json.Delim); ok {
			var rest json.RawMessage
			if json.NewDecoder(bytes.NewReader(raw[end-1:])).Decode(&rest) != nil {
				return nil
			}
			return rest
		}
		return bytes.TrimLeft(raw[begin:end], " \t\r\n:,")
	}
}

// shortenText cuts a text of the request to maxShown bytes, for an error.
func shortenText(s string) string {
	if len(s) > maxShown {
		return strings.ToValidUTF8(s[:maxShown], "") + "..."
	}
	return s
}

// schemaType returns the JSON Schema type of the values that can be decoded into the Go type t.
func schemaType(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return "integer"
	case reflect.Float32, reflect.Float64:
		return "number"
	case reflect.Slice, reflect.Array:
		return "array"
	default:
		return "object"
	}
}
