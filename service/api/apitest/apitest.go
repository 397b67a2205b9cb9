// Package apitest has helpers for tests of a REST API of package api. A [Checker] compares replies with the API's OpenAPI
// document, in a client's transport or around a handler.
//
//	c, err := apitest.NewChecker(mux.OpenAPI(about, version))
//	client := &http.Client{Transport: c.Transport(http.DefaultTransport)}
package apitest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Checker compares replies with an OpenAPI 3.1 document of one microversion. It is safe for concurrent use.
type Checker struct {
	operations []operation
	failure    *jsonschema.Schema // the schema of the body of an error
}

// operation is one method of one path in the document.
type operation struct {
	method   string
	segments []string
	replies  map[int]*jsonschema.Schema // by status; nil: a reply without a body
	optional map[int]bool               // the statuses of replies that may have no body
}

// NewChecker returns a checker for a document: the result of api.Mux.OpenAPI, or its JSON as []byte. It returns an error if
// the document does not have the form that package api writes.
func NewChecker(document any) (*Checker, error) {
	raw, isText := document.([]byte)
	if !isText {
		var err error
		if raw, err = json.Marshal(document); err != nil {
			return nil, fmt.Errorf("encode the document: %w", err)
		}
	}
	var doc struct {
		Paths map[string]map[string]struct {
			Responses map[string]struct {
				Content  map[string]any
				Optional bool `json:"x-body-optional"`
			}
		}
	}
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err := errors.Join(err, json.Unmarshal(raw, &doc)); err != nil {
		return nil, fmt.Errorf("read the document: %w", err)
	}
	if len(doc.Paths) == 0 {
		return nil, errors.New("the document has no paths")
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.AssertFormat()
	if err := compiler.AddResource(resource, parsed); err != nil {
		return nil, fmt.Errorf("read the document: %w", err)
	}
	c := &Checker{}
	if c.failure, err = compiler.Compile(pointer("components", "schemas", "Error")); err != nil {
		return nil, fmt.Errorf("schema of errors: %w", err)
	}
	for path, methods := range doc.Paths {
		for method, is := range methods {
			op := operation{method: strings.ToUpper(method), segments: split(path), replies: map[int]*jsonschema.Schema{}, optional: map[int]bool{}}
			for text, response := range is.Responses {
				status, err := strconv.Atoi(text)
				if err != nil { // default
					continue
				}
				op.replies[status], op.optional[status] = nil, response.Optional
				if response.Content == nil || status >= http.StatusBadRequest {
					continue
				}
				at := pointer("paths", path, method, "responses", text, "content", "application/json", "schema")
				if op.replies[status], err = compiler.Compile(at); err != nil {
					return nil, fmt.Errorf("%s %s, status %s: %w", op.method, path, text, err)
				}
			}
			c.operations = append(c.operations, op)
		}
	}
	// If several paths match a request, the path with more fixed segments is its route.
	slices.SortFunc(c.operations, func(a, b operation) int { return b.fixed() - a.fixed() })
	return c, nil
}

const resource = "mem:///openapi.json"

// pointer returns the address of a place in the document.
func pointer(place ...string) string {
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	out := []string{resource + "#"}
	for _, step := range place {
		out = append(out, url.PathEscape(escape.Replace(step)))
	}
	return strings.Join(out, "/")
}

// split returns the segments of a path.
func split(path string) []string { return strings.Split(strings.Trim(path, "/"), "/") }

// fixed returns the number of segments that are not parameters.
func (o *operation) fixed() (n int) {
	for _, s := range o.segments {
		if !strings.HasPrefix(s, "{") {
			n++
		}
	}
	return n
}

// matches reports whether a request is for the operation.
func (o *operation) matches(method string, segments []string) bool {
	return o.method == method && slices.EqualFunc(o.segments, segments, func(has, is string) bool {
		return has == is || strings.HasPrefix(has, "{") && is != ""
	})
}

// Check returns an error if a reply does not fit the document. A reply does not fit if the operation does not have its
// status, if its body does not fit the schema of the status, or if the body of an error does not fit the schema of errors.
// An error may have any status of 400 or more. On a path that the document does not have, only errors are checked. Health
// probes (/livez, /readyz), replies to HEAD, and replies with status 304 are not checked.
func (c *Checker) Check(method, path string, status int, body []byte) error {
	if method == http.MethodHead || status == http.StatusNotModified || path == "/livez" || path == "/readyz" {
		return nil
	}
	what := fmt.Sprintf("%s %s: the reply with status %d", method, path, status)
	if status >= http.StatusBadRequest {
		return compare(what, c.failure, body)
	}
	segments := split(path)
	i := slices.IndexFunc(c.operations, func(o operation) bool { return o.matches(method, segments) })
	if i < 0 {
		return nil
	}
	s, known := c.operations[i].replies[status]
	switch {
	case !known:
		return fmt.Errorf("%s is not in the document, which has the statuses %v", what, statuses(c.operations[i].replies))
	case s == nil && len(body) > 0:
		return fmt.Errorf("%s has a body, although the document describes none: %.200s", what, body)
	case s == nil || len(body) == 0 && c.operations[i].optional[status]:
		return nil
	}
	return compare(what, s, body)
}

// statuses returns the statuses of replies, sorted.
func statuses(of map[int]*jsonschema.Schema) (out []int) {
	for status := range of {
		out = append(out, status)
	}
	slices.Sort(out)
	return out
}

// compare returns an error if a body does not fit a schema.
func compare(what string, s *jsonschema.Schema, body []byte) error {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err == nil {
		err = s.Validate(v)
	}
	if err != nil {
		return fmt.Errorf("%s does not fit the document: %w: %.500s", what, err, body)
	}
	return nil
}

// Transport returns a transport that uses base. Its RoundTrip returns an error if the reply does not fit the document, see
// [Checker.Check]. It reads each complete reply into memory.
func (c *Checker) Transport(base http.RoundTripper) http.RoundTripper { return &transport{c, base} }

// transport is the result of Checker.Transport.
type transport struct {
	checker *Checker
	base    http.RoundTripper
}

// RoundTrip implements [http.RoundTripper].
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := t.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(res.Body)
	if closeErr := res.Body.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = t.checker.Check(r.Method, r.URL.Path, res.StatusCode, body)
	}
	if err != nil {
		return nil, err
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	return res, nil
}

// Handler returns a handler that answers as h does. If the reply does not fit the document, it answers with status 599 and
// the text of the error. It is for tests that call a handler without a server.
func (c *Checker) Handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if err := c.Check(r.Method, r.URL.Path, rec.Code, rec.Body.Bytes()); err != nil {
			http.Error(w, err.Error(), StatusWrong)
			return
		}
		maps.Copy(w.Header(), rec.Header())
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes()) // w is a test's recorder
	})
}

// StatusWrong is the status with which [Checker.Handler] answers if a reply does not fit the document. No API answers
// with this status.
const StatusWrong = 599
