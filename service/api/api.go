// Package api is the REST scaffold of a component: typed JSON handlers on the
// standard library's ServeMux, request ids, limits, an access log, and errors
// in the form that OpenStack's clients read.
//
//	mux := api.New(api.Config{})
//	mux.Health(app.Ready)
//	mux.Discover(api.Discovery{ID: "v1", Path: "/v1"})
//	api.Handle(mux, "POST /v1/volumes", func(ctx context.Context, r *api.Request[CreateVolume]) (Volume, error) {
//		r.Status = http.StatusAccepted
//		return volumes.Create(ctx, r.Body)
//	})
//	app.Add("http", service.HTTP(":8776", mux))
//
// A handler returns a fault or a plain error. The package derives the status and the body of the reply from the error. The status is
// that of [WithStatus], or otherwise that of the fault's code. Timeout and Unknown are 504 and not 503: OpenStack's clients repeat a
// request after 503, so 503 must mean that nothing was changed. For the methods GET and HEAD, Unknown is 503, because they change nothing.
//
// A private error (fault.IsPrivate), such as an error of the database, is a failure of the service. Its status is 503 if certainly
// nothing was executed, 504 if this is not known, and 500 for other errors.
//
// # Types of bodies
//
// The Go types of a handler's bodies define the JSON of the bodies: the type of each value, which fields exist in which
// microversion, and which callers may use the fields. From the types alone the package derives the schema by which a request is
// validated, the fields that are decoded and encoded, and the OpenAPI document.
//
// A field is required unless it has the option omitempty or omitzero. Only a pointer may be null. In a reply, a nil pointer with
// omitempty is left out, and so never null. A handler must not return a nil slice or map without omitempty, because encoding/json
// encodes it as null: package apitest reports this. An object has only the fields of its struct. A map must have values whose fields
// are the same in all versions. A time.Time has the format date-time. These tags say more:
//
//   - since:"2.19" and until:"2.46": the first and the last microversion of the field. Several fields may have the same name in
//     JSON, each in its own versions, for example when a field changes its type. Each further field has this name in a tag called
//     name, because go vet refuses the same name twice in the tag json:
//     `json:"flavor" until:"2.46"` and `json:"boot_flavor" name:"flavor" since:"2.47"`.
//   - rule:"volume:show_host": the policy rule of the callers who may use the field; the rule gets a nil target. A reply to other
//     callers does not have the field, and a request of other callers with the field is Denied. In a request the field is never
//     required. In the OpenAPI document the field has the key x-policy-rule. A type has at most 8 rules. If Enforce fails for a
//     reply with an error of status 499 or more, the status of the reply is 500, because the handler has run already.
//   - min:"1" and max:"255": the bounds of a number, of the number of characters of a string, or of the number of values of an
//     array or map.
//   - pattern:"^[a-z]+$": a regular expression (of package regexp) that matches a string.
//   - format:"uuid": a format of JSON Schema: date, date-time, email, hostname, ipv4, ipv6, regex, time, uri or uuid.
//   - enum:"fast,slow": the values of a string or an integer.
//   - doc:"...": a description for the OpenAPI document.
//
// The tags of a field do not restrict the elements of its array or map. To restrict these, and for values that the tags cannot
// describe, use a type with the method JSONSchema, see [JSONSchemer]. A type that has its own MarshalJSON or UnmarshalJSON, but not
// JSONSchema, may have any JSON. A value in a field of an interface type is encoded unchanged. If the value's type has tags that
// depend on the version or the caller, the reply is 500, because the tags have no effect there. The complete reply of a handler may
// be an interface.
//
// HandleRoute panics if tags contradict each other, do not fit the type of the field, or have no effect in the API.
//
// # Lists and objects
//
// The filters and sort keys of a list are data ([Route].List and package listing). The handler gets the client's selection in
// [Request].List, package db reads the selected rows, and [Request.NextPage] makes the link to the next page. [HandleTarget] loads
// the object that a path names, enforces the rule with the object, and hides objects of other projects. [Route].Idempotency keeps
// the reply of a POST, so that a client can repeat the request. [Mux.History] lists the changes of each microversion.
//
// The package has no server: package service listens.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/outage"
	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/internal/bodytime"
)

// None is the type of the body of a request or a reply without a body. A handler whose reply has the type any may also return None,
// and set its own Status.
type None = struct{}

// requestIDHeader is the header with the request's id. In a reply it has the id that the Mux has made. In a request it has an id
// that the client has chosen, which becomes the global request id.
const requestIDHeader = "X-Openstack-Request-Id"

// Config configures a [Mux]. The zero value is usable.
type Config struct {
	// Authenticate returns the identity of the client. The user, project, domain, scope and roles of the result are put into the
	// context of the handler; the ids and the trace of the result are ignored. Authenticate is called for each request to a route that is not
	// Public, with r.Pattern set. If it returns an error, the request is refused with the status of the error; for a plain error
	// this is 500. Nil: requests have no identity, and no request is refused. In any case, the headers with which keystonemiddleware
	// passes an identity are removed from every request, because any client could send them.
	Authenticate func(r *http.Request) (reqctx.Request, error)
	// Challenge is the header WWW-Authenticate of replies with status 401, such as the result of
	// auth.Keystone's Challenge. Empty: the header is not sent.
	Challenge string
	// Enforce returns an error if the rule does not allow the client, whose identity is in ctx, to do what it requests, see
	// [Route].Rule. The request is then refused with the status of the error. The method Enforce of package policy fits. Nil: a
	// route must not have a Rule.
	Enforce func(ctx context.Context, rule string, target map[string]any) error
	// Rules are the names of all rules. HandleRoute panics for a route with another rule, such as a misspelled rule, because Enforce
	// would deny every request. Nil: the names are not checked.
	Rules []string
	// Microversions are the versions of the API. Nil: the API has no microversions.
	Microversions *Microversions
	// Rewrite returns the path by which a request is routed, and the id of the project that the client's path names, or "". It is
	// for clients that use another form of the API's paths. For example, /v3/PROJECT/volumes is routed as /v3/volumes. Both paths
	// are escaped. A client whose identity has another project is refused with 400. If only the returned path is under the Prefix of
	// Microversions, the request has the first version, and the reply has no version headers. Links to the next page have the
	// client's path. Rewrite must be safe for concurrent use. Nil: requests are routed by their paths.
	Rewrite func(path string) (routed, project string)
	// PublicURL is the URL by which clients reach the service, such as
	// "https://api.example.org/volume". The links in replies begin with it. Set it behind a proxy or a
	// load balancer. New panics if it is not an http or https URL. Default: see [Base].
	PublicURL string
	// RequestIDHeaders are further headers of replies that get the request id, besides
	// x-openstack-request-id, which every reply has.
	RequestIDHeaders []string
	// FaultName is the key of the error body for each status for which OpenStack has no key, such as 500. Default "fault".
	FaultName string
	// ErrorList selects the API-SIG's form of error bodies, {"errors": [{"status": 404,
	// "code": "volume.not_found", ...}]}. Its value is the first part of the codes, such as
	// "volume". Default: Nova's form, {"itemNotFound": {"code": 404, "message": ...}}.
	ErrorList string
	// MaxBody is the maximum size of a request body in bytes. A larger body is answered with 413.
	// Default 114688.
	MaxBody int64
	// MaxDepth is the maximum depth of nested objects and arrays in a body. Default 64.
	MaxDepth int
	// BodyTimeout is how long a client may take to send a body after the headers. The limit also holds before the client is
	// authenticated. A slower client gets 408. Default 30 s; negative: no limit. A server of package service has its own limit,
	// service.HTTPConfig.BodyTimeout: the shorter limit applies.
	BodyTimeout time.Duration
	// WriteTimeout is how long a client may take to read a reply. After that, its connection is closed.
	// Default 60 s.
	WriteTimeout time.Duration
	// CORS has the origins of web pages that may use the API. Nil: no web page may use it.
	CORS *CORS
	// Gzip compresses replies of 1 KiB or more for clients that accept gzip. Default false.
	Gzip bool
	// Inflight lists each request while it runs. Nil: requests are not listed.
	Inflight *service.Inflight
	// Observe is called after each request. It must be safe for concurrent use. Nil: no call.
	Observe func(ctx context.Context, o Observation)
	// Logger gets an INFO line for each request, with its status, as an access log. For a health probe the level of this line is
	// DEBUG. Logger also gets an ERROR line for each error that is answered with a status of 500 or more. For 501, which a client
	// can cause, the level is DEBUG. The Logger's handler should be a [reqctx.LogHandler], which adds the ids.
	// Default: a logger with such a handler around that of slog.Default().
	Logger *slog.Logger
}

// Mux routes requests to handlers. Register all handlers with [Handle] before the Mux serves. After that the Mux is safe for
// concurrent use.
type Mux struct {
	cfg        Config
	mux        http.ServeMux
	versions   *versioned
	routes     map[string]entry                        // the key is the pattern
	all        []*route                                // the routes in the order in which they were added
	secret     []string                                // the paths of the patterns of routes with SecretPath
	discovered []func(r *http.Request) versionDocument // the documents of Discover
	foreign    sync.Once                               // for the log line of the first request whose Host header is unknown, see Base
	handler    http.Handler

	readinessMu sync.Mutex
	readiness   outage.Log // for the log lines of GET /readyz
	notReady    string     // the reason of the last check, if it failed
}

// Observation describes one request that was answered.
type Observation struct {
	// Method is the method of the request, as the client has sent it. Pattern is the pattern of the route, such as "GET
	// /v1/volumes/{id}", or "" if the request has no route.
	Method, Pattern string
	// Path is the path of the request as in the log. If the client's path has a secret, Path is the path of a pattern, see
	// [Route].SecretPath.
	Path string
	// Status is the HTTP status of the reply, or 499 if the client did not wait for the reply.
	Status int
	// Took is the time from the end of the request's headers to the end of the reply.
	Took time.Duration
	// Sent is the size of the reply's body in bytes, before compression.
	Sent int64
}

// New returns a Mux without routes. It panics on a programmer's error: PublicURL or Microversions are malformed.
func New(cfg Config) *Mux {
	if cfg.FaultName == "" {
		cfg.FaultName = "fault"
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 114688
	}
	if cfg.MaxDepth == 0 {
		cfg.MaxDepth = 64
	}
	if cfg.BodyTimeout == 0 {
		cfg.BodyTimeout = 30 * time.Second
	}
	if cfg.WriteTimeout == 0 {
		cfg.WriteTimeout = time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(reqctx.LogHandler(slog.Default().Handler()))
	}
	cfg.PublicURL = mustPublicURL(cfg.PublicURL)
	m := &Mux{cfg: cfg, versions: newVersioned(cfg.Microversions), routes: make(map[string]entry)}
	m.handler = wrapHandler(cfg, http.HandlerFunc(m.serve))
	return m
}

// Enforce returns the error of [Config.Enforce]. It is for a handler whose work depends on what the client may do, such as a list
// that has more rows for some clients. Denied: the API has no Config.Enforce.
func (m *Mux) Enforce(ctx context.Context, rule string, target map[string]any) error {
	if m.cfg.Enforce == nil {
		return fault.New(fault.Denied, "rule %s is never enforced: Config.Enforce is nil", rule)
	}
	return m.cfg.Enforce(ctx, rule, target)
}

// Health registers GET /livez and GET /readyz. GET /livez answers 200 while the process serves requests. GET /readyz answers 503
// while the function ready, such as service.App's Ready, returns an error. The context of ready ends after 5 s. Both routes need no
// authentication, so a reply has only the text for users of the outermost [fault.Error].
//
// The log has the complete error and the id of the request. Of consecutive errors, the first error, each error with a new reason,
// and one error a minute are logged as WARN, the others as DEBUG. Health panics if ready is nil.
func (m *Mux) Health(ready func(ctx context.Context) error) {
	if ready == nil {
		panic("api: Health needs a function, such as service.App's Ready")
	}
	type health struct {
		Status string `json:"status"`
		Reason string `json:"reason,omitempty"`
	}
	m.mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) {
		rec := w.(*recorder) //nolint:forcetypeassert // ServeHTTP alone calls this
		rec.routed, rec.probe, rec.pattern = true, true, r.Pattern
		m.reply(rec, r, http.StatusOK, health{Status: "ok"})
	})
	m.mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		rec := w.(*recorder) //nolint:forcetypeassert // ServeHTTP alone calls this
		rec.routed, rec.probe, rec.pattern = true, true, r.Pattern
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		if err := ready(ctx); err != nil {
			m.noteReadiness(reqctx.With(r.Context(), rec.req), err)
			out := health{Status: "unavailable"}
			if _, ok := errors.AsType[*fault.Error](err); ok {
				out.Reason = fault.UserMessage(err)
			}
			m.reply(rec, r, http.StatusServiceUnavailable, out)
			return
		}
		m.noteReadiness(reqctx.With(r.Context(), rec.req), nil)
		m.reply(rec, r, http.StatusOK, health{Status: "ok"})
	})
}

// noteReadiness logs the result of a readiness check. Load balancers ask every second, so most failures are logged as DEBUG.
func (m *Mux) noteReadiness(ctx context.Context, err error) {
	m.readinessMu.Lock()
	defer m.readinessMu.Unlock()
	reason := fault.UserMessage(err) // the complete text may differ each time, for example in a duration
	m.readiness.Note(ctx, m.cfg.Logger, slog.LevelWarn, "readiness check", err, reason != m.notReady)
	m.notReady = reason
}

// ServeHTTP answers one request. A panic in a handler is logged with its stack and answered
// with status 500, except http.ErrAbortHandler, which closes the connection.
func (m *Mux) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.handler.ServeHTTP(w, r) }

// serve answers a request: it sets the ids and the version, calls the handler of the route, and logs the request.
func (m *Mux) serve(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	bodytime.Limit(w, r, m.cfg.BodyTimeout)
	rec := &recorder{ResponseWriter: w, req: reqctx.Request{ID: reqctx.NewID()}}
	if id := r.Header.Get(requestIDHeader); reqctx.ValidID(id) {
		rec.req.GlobalID = id
	}
	if parent := r.Header.Get("Traceparent"); traceparent.MatchString(parent) {
		rec.req.Traceparent = parent
	}
	stripIdentity(r.Header)
	sent := r.URL.Path
	r = m.rewrite(rec, r)
	h := w.Header()
	h.Set(requestIDHeader, rec.req.ID)
	for _, name := range m.cfg.RequestIDHeaders {
		h.Set(name, rec.req.ID)
	}
	switch {
	case m.versions == nil || !m.versions.coversPath(r.URL.Path):
	case m.versions.coversPath(sent):
		rec.version, rec.refusedVersion = m.versions.negotiate(r.Header, h)
	default:
		rec.version = m.versions.min
	}
	r = r.WithContext(reqctx.With(m.withBase(r.Context()), rec.req))
	if m.cfg.Inflight != nil {
		defer m.cfg.Inflight.Begin(r.Context(), service.Work{Kind: "request", Name: r.Method, Resource: m.withoutSecret(sent, r.URL.Path)})()
	}
	defer func() { //nolint:contextcheck // r has the context
		level, took := slog.LevelInfo, time.Since(begin)
		if rec.probe {
			level = slog.LevelDebug
		}
		switch {
		case rec.secret:
			_, sent, _ = strings.Cut(rec.pattern, " ")
		case rec.pattern == "":
			sent = m.withoutSecret(sent, r.URL.Path)
		}
		ctx := reqctx.With(r.Context(), rec.req)
		m.cfg.Logger.LogAttrs(ctx, level, "request",
			slog.String("method", r.Method), slog.String("path", sent), slog.Int("status", rec.status), slog.Int64("bytes", rec.bytes),
			slog.Duration("took", took), slog.String("client", r.RemoteAddr))
		if m.cfg.Observe != nil {
			m.cfg.Observe(ctx, Observation{Method: r.Method, Pattern: rec.pattern, Path: sent, Status: rec.status, Took: took, Sent: rec.bytes})
		}
	}()
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			panic(p)
		default:
			m.fail(rec, r, fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
		}
	}()
	m.mux.ServeHTTP(rec, r)
	switch {
	case rec.refused == 0:
	case rec.refusedVersion != nil:
		m.fail(rec, r, rec.refusedVersion)
	case rec.refused == http.StatusNotFound:
		m.fail(rec, r, fault.New(fault.NotFound, "The resource could not be found."))
	case rec.refused == http.StatusMethodNotAllowed:
		m.fail(rec, r, notAllowed(r.Method))
	default:
		m.fail(rec, r, WithStatus(rec.refused, fault.New(fault.Invalid, "%s", http.StatusText(rec.refused))))
	}
}

// withoutSecret returns the path for the log. It returns the path of a pattern with SecretPath if the request's path is equal to
// that pattern up to the first parameter. Otherwise it returns sent, which is the path that the client has sent. The parameter
// routed is the path by which the request is routed. The function withoutSecret is for requests without a route, such as a request with a slash
// at the end, and for requests whose route is not known yet.
func (m *Mux) withoutSecret(sent, routed string) string {
	routed = path.Clean(routed) // a path with an empty element, or with . or .., may also have a secret
	for _, pattern := range m.secret {
		if open, _, _ := strings.Cut(pattern, "{"); strings.HasPrefix(routed, open) {
			return pattern
		}
	}
	return sent
}

// traceparent is the form of the header in W3C Trace Context, version 00.
var traceparent = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// notAllowed returns the error for a method that the path does not have, with status 405.
func notAllowed(method string) error {
	return WithStatus(http.StatusMethodNotAllowed, fault.New(fault.Invalid, "The method %s is not allowed for this resource.", method))
}

// identity has the prefixes of the headers by which services behind keystonemiddleware get the client's identity. These headers are
// removed from requests, because any client could send them.
var identity = []string{
	"X-Identity-Status", "X-User", "X-Project", "X-Domain", "X-Role", "X-Roles", "X-Tenant", "X-System-Scope", "X-Is-Admin-Project",
	"X-Service-Identity-Status", "X-Service-Project", "X-Service-User", "X-Service-Domain", "X-Service-Role", "X-Service-Catalog", "Openstack-System-Scope",
}

// stripIdentity removes identity headers.
func stripIdentity(h http.Header) {
	for name := range h {
		if name[0] != 'X' && name[0] != 'O' {
			continue
		}
		for _, prefix := range identity {
			if strings.HasPrefix(name, prefix) {
				delete(h, name)
			}
		}
	}
}

// recorder is the ResponseWriter that handlers get. It records the facts for the log line. It drops the plain text with which
// ServeMux answers a request without a route, so that the Mux can answer with its own error body.
type recorder struct {
	http.ResponseWriter
	req            reqctx.Request
	version        Version
	refusedVersion error
	route          *route
	pattern        string
	list           listing.Query
	project        string // the project that the path names, see Config.Rewrite
	body           []byte // the body of the request; nil before it is read
	routed         bool   // the reply is from the Mux, and not from ServeMux
	probe          bool   // the route is a health probe
	secret         bool   // the path has a secret
	refused        int    // the status with which ServeMux refuses the request; 0: not refused
	status         int    // the status of the reply; 0 before it is sent
	bytes          int64  // size of the reply
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// WriteHeader records the status. It does not send the status with which ServeMux refuses a request. ServeMux redirects a path with an
// empty element, or with . or .., to another path. Such a request is refused with 404 instead: a client that has left out an id must
// not reach another resource.
func (r *recorder) WriteHeader(status int) {
	if !r.routed && status >= http.StatusMultipleChoices {
		if status < http.StatusBadRequest {
			r.Header().Del("Location")
			status = http.StatusNotFound
		}
		r.refused = status
		return
	}
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write counts the bytes. It drops the text with which ServeMux refuses a request.
func (r *recorder) Write(p []byte) (int, error) {
	if r.refused != 0 && !r.routed {
		return len(p), nil
	}
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}
