package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// Route is what there is to know of a handler. Pattern is required.
type Route struct {
	// Pattern is one of [http.ServeMux] with a method, such as "GET /v1/volumes/{id}".
	Pattern string
	// Action is the only name in the body of what the handler is for, such as "extend" for
	// {"extend": {"new_size": 2}}: several handlers may have one pattern, each for an action
	// of its own. Who asks is found out first, then the action, and then its Rule is asked;
	// they are Public if all of the pattern are. Invalid: a body that is no object with one
	// name, or names an action that the version does not have. The body of a handler that
	// takes [None] may have anything under the name. Empty: the handler is for every body.
	Action string
	// Min and Max are the first and the last microversion that the handler is for, such
	// as "3.4". Empty: the first and the last of all. Several handlers may have one
	// pattern, each for versions of its own.
	Min, Max string
	// Body are what the body must be, each for a range of versions. Without one for the
	// version the body has to fit the handler's type, without further fields.
	Body []Schema
	// NoEffect names the properties of the body that its schemas take and the handler's type
	// has no field for, such as "volume.size", in an array "volumes[].size": clients may send
	// them, and they change nothing. Any other property without a field is a panic, unless its
	// schema takes one value only.
	NoEffect []string
	// Query are what the query must be: an object whose properties are the parameters.
	// One of type array has all values of a parameter that is given several times; one
	// of type integer, number or boolean has what the text stands for. Without one for
	// the version every query is taken.
	Query []Schema
	// Reply are what replies are. They stand in the OpenAPI document, with which package apitest
	// compares replies in tests.
	Reply []Schema
	// Status is that of a reply. Default 200, and 204 for a reply of [None].
	Status int
	// Errors are the statuses of errors that a client may have to deal with, for the
	// OpenAPI document.
	Errors []int
	// Public says that nobody has to say who they are.
	Public bool
	// Rule is the policy rule that [Config.Enforce] asks before the body is judged, with
	// the path's parameters as the target, or nil if it has none. What a rule has to
	// know of the thing itself, such as whose it is, the handler asks. Empty: it is not
	// asked. A rule without an Enforce is a panic.
	Rule string
	// Summary is a line for the OpenAPI document.
	Summary string
}

// route is a Route with its handler.
type route struct {
	Route
	span
	id                 string // in the OpenAPI document
	at                 string // file:line of the caller that registered it
	method, path       string
	params             []string // of the path
	body, query, reply []*schema
	in, out            reflect.Type
	serve              func(rec *recorder, r *http.Request)
}

// entry are the routes of one pattern, for different versions.
type entry []*route

func (e entry) at(v Version) *route {
	for _, r := range e {
		if r.has(v) {
			return r
		}
	}
	return nil
}

// action returns the route for an action in a version, or nil.
func (e entry) action(v Version, name string) *route {
	for _, r := range e {
		if r.Action == name && r.has(v) {
			return r
		}
	}
	return nil
}

// public reports whether nobody has to say who they are for any of the routes.
func (e entry) public() bool {
	for _, r := range e {
		if !r.Public {
			return false
		}
	}
	return true
}

// Request is what a handler gets. The embedded request has the rest of it:
// PathValue, URL.Query, Header.
type Request[B any] struct {
	*http.Request
	// Body is the decoded and validated body. It hides the raw one, which has
	// been read.
	Body B
	// Version is the microversion that the client asked for; zero without
	// [Config.Microversions], and under other paths.
	Version Version
	// Status is the reply's, for the handler to set. It is the route's at first; an
	// error has its own.
	Status int
	// ReplyHeader is the reply's header, for the handler to add to, such as
	// Location. It is sent with an error, too.
	ReplyHeader http.Header
}

// Accepted makes the reply a 202 whose Location is where the client can see how the
// work goes on.
func (r *Request[B]) Accepted(location string) {
	r.Status = http.StatusAccepted
	r.ReplyHeader.Set("Location", location)
}

// Validator is a request body that knows more about itself than its types. An
// error without a code is Invalid. It is called on a pointer to the body.
type Validator interface {
	Validate() error
}

// Handle registers a handler of all versions for a pattern, see [HandleRoute].
func Handle[B, R any](m *Mux, pattern string, h func(ctx context.Context, r *Request[B]) (R, error)) {
	HandleRoute(m, Route{Pattern: pattern}, h)
}

// HandleRoute registers a typed handler. It panics on a route that is malformed, conflicts
// with another, such as one for the same pattern and version, or says something that would
// have no effect: a Rule without an Enforce, versions that the API does not have, a property
// of the body that no field takes (see [Route.NoEffect]). The panic names the caller's line.
//
// A request whose body type is [None] may have any body: it is not read. Every
// other must have one JSON value of type application/json (else 415) of at most
// MaxBody bytes (413), nested at most MaxDepth deep and without a name twice in an
// object, that keeps to the route's schema, or, without one, fits B (400 naming the
// field): fields that B does not have are refused.
//
// A pattern that has no handler for the version is 404, or 405 if another method of the
// path has one.
func HandleRoute[B, R any](m *Mux, def Route, h func(ctx context.Context, r *Request[B]) (R, error)) {
	var b B
	var rep R
	_, noBody := any(b).(None)
	_, noReply := any(rep).(None)
	if def.Status == 0 {
		if def.Status = http.StatusOK; noReply {
			def.Status = http.StatusNoContent
		}
	}
	r := &route{
		Route: def, span: newSpan(def.Min, def.Max), at: caller(), in: reflect.TypeFor[B](), out: reflect.TypeFor[R](),
		body: compile(def.Pattern+": body", def.Body), query: compile(def.Pattern+": query", def.Query), reply: compile(def.Pattern+": reply", def.Reply),
	}
	r.serve = func(rec *recorder, hr *http.Request) {
		req := &Request[B]{Request: hr, Version: rec.version, Status: def.Status, ReplyHeader: rec.Header()}
		if !noBody {
			if err := m.decode(rec, hr, at(r.body, rec.version), &req.Body); err != nil {
				m.fail(rec, hr, err)
				return
			}
		}
		reply, err := h(hr.Context(), req)
		_, none := any(reply).(None)
		switch {
		case err != nil:
			m.fail(rec, hr, err)
		case none:
			rec.WriteHeader(req.Status)
		default:
			m.reply(rec, hr, req.Status, reply)
		}
	}
	m.add(r)
}

func (m *Mux) add(r *route) {
	method, path, ok := strings.Cut(r.Pattern, " ")
	if !ok || strings.ToUpper(method) != method || !strings.Contains(path, "/") {
		panic(fmt.Sprintf("api: pattern %q is not a method and a path (registered at %s)", r.Pattern, r.at))
	}
	r.method, r.path, r.params = method, path, params(path)
	have := m.routes[r.Pattern]
	for _, o := range have {
		same := o.Action == r.Action || o.Action == "" || r.Action == ""
		if same && o.overlaps(r.span) {
			panic(fmt.Sprintf("api: %s: versions %s overlap with %s of another handler (registered at %s and at %s)", r.Pattern, r.span, o.span, o.at, r.at))
		}
	}
	if r.span != (span{}) && (m.versions == nil || !m.versions.under(path[strings.IndexByte(path, '/'):])) {
		panic(fmt.Sprintf("api: %s has versions, but its path has none (registered at %s)", r.Pattern, r.at))
	}
	m.check(r)
	r.id = m.operationID(r)
	m.routes[r.Pattern] = append(have, r)
	m.all = append(m.all, r)
	if have == nil {
		pattern := r.Pattern
		defer func() {
			if p := recover(); p != nil {
				panic(m.conflict(r, p))
			}
		}()
		m.mux.HandleFunc(pattern, func(w http.ResponseWriter, hr *http.Request) {
			m.dispatch(w.(*recorder), hr, m.routes[pattern], path) //nolint:forcetypeassert // ServeHTTP alone calls this
		})
	}
}

// params returns the names of the parameters in a pattern's path.
func params(path string) []string {
	var out []string
	for part := range strings.SplitSeq(path, "/") {
		if name, ok := strings.CutPrefix(part, "{"); ok {
			if name = strings.TrimSuffix(strings.TrimSuffix(name, "}"), "..."); name != "$" {
				out = append(out, name)
			}
		}
	}
	return out
}

// dispatch serves a request whose pattern is known.
func (m *Mux) dispatch(rec *recorder, hr *http.Request, e entry, path string) {
	rec.routed, rec.pattern = true, hr.Pattern
	if rec.refusedVersion != nil { // who asks for a version that there is not learns nothing else
		m.fail(rec, hr, rec.refusedVersion)
		return
	}
	r := e.at(rec.version)
	if r == nil {
		if allow := m.methods(path, rec.version); len(allow) > 0 {
			rec.Header().Set("Allow", strings.Join(allow, ", "))
			m.fail(rec, hr, notAllowed(hr.Method))
			return
		}
		m.fail(rec, hr, fault.New(fault.NotFound, "The resource could not be found."))
		return
	}
	public := r.Public
	if r.Action != "" {
		public = e.public()
	}
	hr, err := m.identify(rec, hr, public)
	if err == nil && r.padded(hr) {
		err = fault.New(fault.NotFound, "The resource could not be found.")
	}
	if err == nil && r.Action != "" {
		r, err = m.choose(rec, hr, e)
	}
	if err == nil {
		err = m.permit(rec, hr, r)
	}
	if err != nil {
		m.fail(rec, hr, err)
		return
	}
	rec.route = r
	r.serve(rec, hr)
}

// choose returns the route of the action that the body names.
func (m *Mux) choose(rec *recorder, hr *http.Request, e entry) (*route, error) {
	raw, err := m.body(rec, hr)
	if err != nil {
		return nil, err
	}
	var body map[string]json.RawMessage
	if json.Unmarshal(raw, &body) != nil || len(body) != 1 {
		return nil, fault.New(fault.Invalid, "Malformed request body")
	}
	for name := range body {
		if r := e.action(rec.version, name); r != nil {
			return r, nil
		}
		err = fault.New(fault.Invalid, "There is no such action: %s", shorten(name))
	}
	return nil, err
}

// methods returns those that a path has in a version.
func (m *Mux) methods(path string, v Version) []string {
	var out []string
	for _, r := range m.all {
		if r.path == path && r.has(v) && !slices.Contains(out, r.method) {
			out = append(out, r.method)
		}
	}
	slices.Sort(out)
	return out
}

// identify finds out who asks.
func (m *Mux) identify(rec *recorder, hr *http.Request, public bool) (*http.Request, error) {
	if m.cfg.Authenticate == nil || public {
		return hr, nil
	}
	who, err := m.cfg.Authenticate(hr)
	if err != nil {
		return hr, err
	}
	who.ID, who.GlobalID, who.Traceparent = rec.req.ID, rec.req.GlobalID, rec.req.Traceparent
	rec.req = who
	return hr.WithContext(reqctx.With(hr.Context(), who)), nil
}

// permit finds out whether who asks may, and whether the query is right.
func (m *Mux) permit(rec *recorder, hr *http.Request, r *route) error {
	if r.Rule != "" && m.cfg.Enforce != nil {
		if err := m.cfg.Enforce(hr.Context(), r.Rule, r.target(hr)); err != nil {
			return err
		}
	}
	if s := at(r.query, rec.version); s != nil {
		return s.checkQuery(hr.URL.RawQuery)
	}
	return nil
}

// padded reports whether a parameter of the path ends with a blank. MySQL compares texts without the
// blanks at their ends, so such a name would find what has another one.
func (r *route) padded(hr *http.Request) bool {
	return slices.ContainsFunc(r.params, func(name string) bool { return strings.HasSuffix(hr.PathValue(name), " ") })
}

// target returns the values of the path's parameters, or nil if there are none.
func (r *route) target(hr *http.Request) map[string]any {
	if len(r.params) == 0 {
		return nil
	}
	out := make(map[string]any, len(r.params))
	for _, name := range r.params {
		out[name] = hr.PathValue(name)
	}
	return out
}
