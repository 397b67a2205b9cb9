package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/reqctx"
)

// Route describes a handler. Pattern is required.
type Route struct {
	// Pattern is a pattern of [http.ServeMux] with a method, such as "GET /v1/volumes/{id}".
	Pattern string
	// Action restricts the handler to requests whose body is an object with only this name, such as "extend" for {"extend": {"new_size": 2}}.
	// Several handlers may have one pattern, each with its own action. A request is handled in this order: the client is authenticated, the
	// action is read, and the action's Rule is enforced. Only if all actions of the pattern are Public, the client is not authenticated. The
	// reply is 400 if the body is not an object with one name, or names an action that the version does not have. If the handler's body is
	// [None], the value under the name may be anything. Empty: the handler gets every body.
	Action string
	// Min and Max are the first and the last microversion of the handler, such
	// as "3.4". Empty: the first and the last version of the API. Several handlers may have one
	// pattern, each for its own range of versions.
	Min, Max string
	// Body are schemas of the body, each for a range of versions. They are for bodies that a Go type cannot describe. In a version without a
	// schema, the handler's type is the schema, see the package comment. If a name in a body differs only by case from a property of a schema,
	// the body is refused, unless another property has exactly this name.
	Body []Schema
	// NoEffect names properties of the body that a schema allows although the handler's type has no field for them. Clients may send such
	// properties, which change nothing. The form is "volume.size", and "volumes[].size" in an array. HandleRoute panics for any other property
	// without a field, unless the property's schema allows only one value.
	NoEffect []string
	// Query are the schemas of the query, each for a range of versions: an object whose properties are the parameters. If a property has the
	// type array, it has all values of a parameter that is given several times. If it has the type integer, number or boolean, it has the
	// parsed value. In a version without a schema, every query is accepted.
	Query []Schema
	// List declares the parameters of a list: its filters, sort keys and pages. They define the schema of the query, so Query must be nil. The
	// handler gets the client's selection in [Request].List.
	List *listing.Spec
	// Idempotency keeps the replies of requests with the header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header), for a POST or
	// PATCH. The handler must call [Request.Keep] in its transaction; otherwise the reply is 500. A repeated request with the same key, from
	// the same user of the same project, gets the same reply, and the handler is not called. The repeated request is authenticated, and the Rule is enforced, as
	// for each request. If a request with the key is running, the repeated request waits for its end. A failed request keeps nothing, so a
	// repeated request is executed.
	//
	// The reply is 422 if a later request with the same key has another method, path, query, version or body than the first request, or is from
	// a client who may see other fields of the reply. The reply is 400 if the key is malformed. Nil: a POST or PATCH with the header is answered with 400.
	Idempotency Replies
	// Reply are schemas of the reply, each for a range of versions, for replies that a Go type cannot describe. In a version without a schema,
	// the handler's type is the schema. The OpenAPI document has these schemas, and package apitest compares replies with that document in
	// tests. In production, replies are not checked.
	Reply []Schema
	// Status is the status of a reply without an error. Default 200, or 204 if the reply is [None]. An error status, such as 410, means that the handler
	// always returns an error: the OpenAPI document then has no other reply than Errors. With 404 the document leaves an Action out, because its versions do not have
	// the action.
	Status int
	// Statuses are other statuses that the handler may set for a reply with the same body, such as 207. They are only for the OpenAPI document.
	Statuses []int
	// Errors are the statuses of errors that a client should expect. They also include the statuses of replies without a body, such as 204, if
	// the handler sets such a Status. They are only for the OpenAPI document.
	Errors []int
	// Public means that clients need no authentication.
	Public bool
	// SecretPath means that the path of a request has a secret, such as a token. The log, Observe and Inflight then have the path of the
	// Pattern instead. The same holds for a request that no route matches, if its path begins like the path of the Pattern up to the first
	// parameter. HandleRoute panics if the Pattern has no parameter.
	SecretPath bool
	// Rule is the policy rule that [Config.Enforce] checks before the body is validated. The target has the parameters of the path; it is nil
	// if the path has none. If a rule depends on the object, for example on its owner, register the handler with [HandleTarget]. Empty: no rule
	// is enforced. HandleRoute panics for a Rule without a Config.Enforce.
	Rule string
	// Summary is one line about the route, for the OpenAPI document.
	Summary string
}

// route is a Route with its handler.
type route struct {
	Route
	span
	id                 string // operationId in the OpenAPI document
	at                 string // file:line of the call that registered the route
	method, path       string
	params             []string // the names of the path's parameters
	body, query, reply []rangeSchema
	list               *list // nil: the route has no List
	ruled              bool  // the handler enforces the Rule
	in, out            reflect.Type
	inShape, outShape  *shape // nil: no body, or a reply whose type is an interface
	serve              func(rec *recorder, r *http.Request)
}

// entry has the routes of one pattern, for different versions and actions.
type entry []*route

// routeAt returns the first route for a version, or nil.
func (e entry) routeAt(v Version) *route {
	for _, r := range e {
		if r.has(v) {
			return r
		}
	}
	return nil
}

// actionRoute returns the route for an action in a version, or nil.
func (e entry) actionRoute(v Version, name string) *route {
	for _, r := range e {
		if r.Action == name && r.has(v) {
			return r
		}
	}
	return nil
}

// allPublic reports whether all routes are Public.
func (e entry) allPublic() bool {
	for _, r := range e {
		if !r.Public {
			return false
		}
	}
	return true
}

// Request is the request that a handler gets. The embedded http.Request has the parameters of the path (PathValue), the query (URL.Query) and
// the headers.
type Request[B any] struct {
	*http.Request
	// Body is the decoded and validated body. It hides the Body of the embedded request, which has already been read.
	Body B
	// Version is the microversion that the client has requested. It is zero without [Config.Microversions], and on a path outside of
	// [Microversions].Prefix.
	Version Version
	// List is the client's selection, if the route has a List.
	List listing.Query
	// Status is the status of the reply. It begins as the route's Status, and the handler may change it. It has no effect if the handler
	// returns an error.
	Status int
	// ReplyHeader is the header of the reply. The handler may add to it, for example Location. It is also sent with an
	// error.
	ReplyHeader http.Header

	keeps  bool    // the route has an Idempotency
	keeper *keeper // nil: the request has no idempotency key
}

// Accepted sets the status of the reply to 202, and the header Location to a URL at which the client can read the progress of the work.
func (r *Request[B]) Accepted(location string) {
	r.Status = http.StatusAccepted
	r.ReplyHeader.Set("Location", location)
}

// Handle registers a handler for all versions of a pattern, see [HandleRoute].
func Handle[B, R any](to Router, pattern string, h func(ctx context.Context, r *Request[B]) (R, error)) {
	HandleRoute(to, Route{Pattern: pattern}, h)
}

// HandleRoute registers a typed handler. It must not be called while the Mux serves requests. It panics if the route is malformed, or conflicts
// with another route, such as a route with the same pattern and version. It also panics if a part of the route has no effect: a Rule without a
// Config.Enforce, versions that the API does not have, or a property of the body for which the type has no field (see [Route.NoEffect]). The
// text of the panic has the caller's line.
//
// If the body type B is [None], the request may have any body, which is not read. Otherwise the body must be one JSON value with the content
// type application/json, and have at most MaxBody bytes. The reply to another content type is 415, and to a larger body 413. The reply is 400,
// with the name of a wrong field, if the body
//
//   - does not fit the route's schema, or, without a schema, the type B, see the package's comment;
//   - is nested more than MaxDepth deep;
//   - has a number with an exponent of more than three digits;
//   - has an object with a name twice;
//   - is not valid UTF-8, or has half of a surrogate pair.
//
// If a pattern has no handler for the request's version, the reply is 404, as in Nova (VersionNotFoundForAPIMethod).
func HandleRoute[B, R any](to Router, def Route, h func(ctx context.Context, r *Request[B]) (R, error)) {
	m, def := to.expand(def)
	handleRoute(m, def, false, func(*http.Request) (None, error) { return None{}, nil }, func(ctx context.Context, r *Request[B], _ None) (R, error) { return h(ctx, r) })
}

// handleRoute registers a handler for the object that find returns. If ruled is true, find enforces the Rule.
func handleRoute[B, R, T any](m *Mux, def Route, ruled bool, find func(*http.Request) (T, error), h func(ctx context.Context, r *Request[B], obj T) (R, error)) {
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
		Route: def, ruled: ruled, span: newSpan(def.Min, def.Max), at: callerLine(), in: reflect.TypeFor[B](), out: reflect.TypeFor[R](),
		inShape: mustShape(def.Pattern+": body", reflect.TypeFor[B](), false), outShape: mustShape(def.Pattern+": reply", reflect.TypeFor[R](), true),
		body: checkSchemas(def.Pattern+": body", def.Body), query: checkSchemas(def.Pattern+": query", def.Query), reply: checkSchemas(def.Pattern+": reply", def.Reply),
	}
	r.addList()
	r.serve = func(rec *recorder, hr *http.Request) {
		req := &Request[B]{Request: hr, Version: rec.version, List: rec.list, Status: def.Status, ReplyHeader: rec.Header(), keeps: def.Idempotency != nil}
		var err error
		if !noBody {
			err = m.decode(rec, hr, r, &req.Body)
		}
		var obj T
		if err == nil {
			obj, err = find(hr)
		}
		if err != nil {
			m.fail(rec, hr, err)
			return
		}
		var answered bool
		if req.keeper, answered = m.beginKept(rec, hr, r); answered { //nolint:contextcheck // hr has the context
			return
		}
		reply, err := h(hr.Context(), req, obj)
		if req.keeper != nil {
			req.keeper.finish(err) //nolint:contextcheck // the request has the context
			return
		}
		_, none := any(reply).(None)
		m.answer(rec, hr, r, req.Status, none, &reply, err)
	}
	m.addRoute(r)
}

// answer sends the result of a handler. The parameter p points to the reply.
func (m *Mux) answer(rec *recorder, hr *http.Request, r *route, status int, none bool, p any, err error) {
	switch {
	case err != nil:
		m.fail(rec, hr, err)
	case none:
		rec.WriteHeader(status)
	default:
		seen, err := m.visible(rec, hr, r.outShape, p)
		if err != nil {
			m.fail(rec, hr, fmt.Errorf("encode reply: %w", err))
			return
		}
		m.reply(rec, hr, status, seen)
	}
}

// addList adds the parameters of the route's List to the route's query. It panics if the List is wrong.
func (r *route) addList() {
	l, err := newList(r.List, r.span)
	if err == nil && l != nil && r.Query != nil {
		err = errors.New("the field Query must be nil, because List has the parameters of the query")
	}
	if err != nil {
		panic("api: " + r.Pattern + ": List: " + err.Error() + " (registered at " + r.at + ")")
	}
	if r.list = l; l != nil {
		r.query = checkSchemas(r.Pattern+": List", l.schemas(r.span))
	}
}

// mustShape returns the shape of the type of a body. It returns nil for None, and for a reply of an interface type. It panics on a programmer's
// error: the tags of the type are wrong.
func mustShape(what string, t reflect.Type, isReply bool) *shape {
	if t == reflect.TypeFor[None]() || isReply && t.Kind() == reflect.Interface {
		return nil
	}
	s, err := shapeOf(t, isReply)
	if err != nil {
		panic("api: " + what + ": " + err.Error() + " (registered at " + callerLine() + ")")
	}
	return s
}

// visible returns the reply that p points to, with only the fields that the version has and the caller may see. If s is nil, p points to a
// value of an interface type. It returns an error if the tags of the reply are wrong.
func (m *Mux) visible(rec *recorder, hr *http.Request, s *shape, p any) (any, error) {
	v := reflect.ValueOf(p).Elem()
	if s == nil {
		if v = v.Elem(); !v.IsValid() { // the value in the interface
			return p, nil
		}
		var err error
		if s, err = shapeOf(v.Type(), true); err != nil {
			return nil, err
		}
		if s.varies() {
			copied := reflect.New(v.Type())
			copied.Elem().Set(v)
			p = copied.Interface()
		}
	}
	if s.open {
		if err := checkInterfaces(v, v.Type().String(), 0); err != nil {
			return nil, err
		}
	}
	if !s.varies() {
		return p, nil
	}
	allowed, err := s.allowedRules(func(rule string) error { return m.enforceField(hr, rule) })
	if err != nil {
		return nil, err
	}
	return s.see(p, rec.version, allowed), nil
}

// enforceField returns an error if the caller may not use the fields that have the rule.
func (m *Mux) enforceField(hr *http.Request, rule string) error {
	if m.cfg.Enforce == nil {
		return fault.New(fault.Denied, "Policy doesn't allow %s to be performed.", rule)
	}
	return m.cfg.Enforce(hr.Context(), rule, nil)
}

// addRoute registers a route. It panics as the comment of HandleRoute says.
func (m *Mux) addRoute(r *route) {
	method, path, ok := strings.Cut(r.Pattern, " ")
	if !ok || strings.ToUpper(method) != method || !strings.Contains(path, "/") {
		panic(fmt.Sprintf("api: pattern %q is not a method and a path (registered at %s)", r.Pattern, r.at))
	}
	r.method, r.path, r.params = method, path, pathParams(path)
	have := m.routes[r.Pattern]
	for _, o := range have {
		same := o.Action == r.Action || o.Action == "" || r.Action == ""
		if same && o.overlaps(r.span) {
			panic(fmt.Sprintf("api: %s: the versions %s overlap with %s of another handler (registered at %s and at %s)", r.Pattern, r.span, o.span, o.at, r.at))
		}
	}
	if r.hasVersions() && (m.versions == nil || !m.versions.coversPath(path[strings.IndexByte(path, '/'):])) {
		panic(fmt.Sprintf("api: %s, or fields of its bodies or parameters of its list, have versions, but its path is not under the Prefix of Microversions (registered at %s)", r.Pattern, r.at))
	}
	m.checkRoute(r)
	r.id = m.operationID(r)
	m.routes[r.Pattern] = append(have, r)
	m.all = append(m.all, r)
	if r.SecretPath {
		m.secret = append(m.secret, path[strings.IndexByte(path, '/'):])
	}
	if have == nil {
		pattern := r.Pattern
		defer func() {
			if p := recover(); p != nil {
				panic(m.describeConflict(r, p))
			}
		}()
		m.mux.HandleFunc(pattern, func(w http.ResponseWriter, hr *http.Request) {
			m.dispatch(w.(*recorder), hr, m.routes[pattern]) //nolint:forcetypeassert // only ServeHTTP calls this
		})
	}
}

// hasVersions reports whether the route, a field of its bodies or a parameter of its list is only in some versions.
func (r *route) hasVersions() bool {
	return r.span != (span{}) || r.list != nil && len(r.list.edges) > 0 || r.inShape != nil && len(r.inShape.edges) > 0 || r.outShape != nil && len(r.outShape.edges) > 0
}

// pathParams returns the names of the parameters in a pattern's path.
func pathParams(path string) []string {
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

// dispatch serves a request whose pattern has the routes in e.
func (m *Mux) dispatch(rec *recorder, hr *http.Request, e entry) {
	rec.routed, rec.pattern = true, hr.Pattern
	rec.secret = slices.ContainsFunc(e, func(r *route) bool { return r.SecretPath })
	if rec.refusedVersion != nil { // checked before authentication, so that a client with a wrong version learns nothing else
		m.fail(rec, hr, rec.refusedVersion)
		return
	}
	r := e.routeAt(rec.version)
	if r == nil {
		m.fail(rec, hr, fault.New(fault.NotFound, "The resource could not be found."))
		return
	}
	public := r.Public
	if r.Action != "" {
		public = e.allPublic()
	}
	hr, err := m.identify(rec, hr, public)
	if err == nil && r.hasPaddedParam(hr) {
		err = fault.New(fault.NotFound, "The resource could not be found.")
	}
	if err == nil && r.Action != "" {
		r, err = m.chooseAction(rec, hr, e)
	}
	if err == nil {
		err = m.checkPolicyAndQuery(rec, hr, r)
	}
	if err != nil {
		m.fail(rec, hr, err)
		return
	}
	rec.route = r
	r.serve(rec, hr)
}

// chooseAction returns the route of the action that the body names.
func (m *Mux) chooseAction(rec *recorder, hr *http.Request, e entry) (*route, error) {
	raw, err := m.checkedBody(rec, hr)
	if err != nil {
		return nil, err
	}
	var body map[string]json.RawMessage
	if json.Unmarshal(raw, &body) != nil || len(body) != 1 {
		return nil, fault.New(fault.Invalid, "Malformed request body")
	}
	for name := range body {
		if r := e.actionRoute(rec.version, name); r != nil {
			return r, nil
		}
		err = fault.New(fault.Invalid, "There is no such action: %s", shortenText(name))
	}
	return nil, err
}

// identify authenticates the client, and returns the request with the client's identity in its context.
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
	if err := rec.checkProject(); err != nil {
		return hr, err
	}
	return hr.WithContext(reqctx.With(hr.Context(), who)), nil
}

// checkPolicyAndQuery returns an error if the policy denies the request, or if the query does not fit the route's schema.
func (m *Mux) checkPolicyAndQuery(rec *recorder, hr *http.Request, r *route) error {
	if r.Rule != "" && !r.ruled && m.cfg.Enforce != nil {
		if err := m.cfg.Enforce(hr.Context(), r.Rule, r.policyTarget(hr)); err != nil {
			return err
		}
	}
	if r.list != nil {
		return m.readList(rec, hr, r.list, schemaAt(r.query, rec.version))
	}
	if s := schemaAt(r.query, rec.version); s != nil {
		return s.checkQuery(hr.URL.RawQuery)
	}
	return nil
}

// readList reads the query of a list into rec.
func (m *Mux) readList(rec *recorder, hr *http.Request, l *list, s *schema) error {
	q, err := parseQuery(hr.URL.RawQuery)
	if err == nil {
		err = s.checkQuery(hr.URL.RawQuery)
	}
	if err == nil {
		rec.list, err = l.read(hr.Context(), q, rec.version, m.cfg.Enforce)
	}
	return err
}

// hasPaddedParam reports whether a parameter of the path ends with a space. MySQL ignores spaces at the end when it compares texts, so such a
// name would find an object with another name.
func (r *route) hasPaddedParam(hr *http.Request) bool {
	return slices.ContainsFunc(r.params, func(name string) bool { return strings.HasSuffix(hr.PathValue(name), " ") })
}

// policyTarget returns the values of the path's parameters, or nil if the path has no parameters.
func (r *route) policyTarget(hr *http.Request) map[string]any {
	if len(r.params) == 0 {
		return nil
	}
	out := make(map[string]any, len(r.params))
	for _, name := range r.params {
		out[name] = hr.PathValue(name)
	}
	return out
}
