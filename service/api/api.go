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
// A handler returns a fault or a plain error; the package makes the status and
// the body of it. It is not a server: package service listens.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/internal/bodytime"
	"github.com/armature-go/armature/service/internal/outage"
)

// None is the body of a request that has none, or of a reply without one. A handler
// whose reply is of type any may return it, too, with a Status of its own.
type None = struct{}

// requestIDHeader carries the request's id in replies, and the client's own,
// which becomes the global one, in requests.
const requestIDHeader = "X-Openstack-Request-Id"

// Config configures a [Mux]. The zero value is usable.
type Config struct {
	// Authenticate says who asks: the user, project and roles of what it
	// returns are put into the context; its ids and trace are not used. It is called for
	// each request to a route that is not Public, with r.Pattern set. Its error is
	// the reply; a plain one is status 500, never an open door. Nil: nobody is known
	// and nobody is turned away. Identity headers are removed before: they are
	// never believed.
	Authenticate func(r *http.Request) (reqctx.Request, error)
	// Challenge is the WWW-Authenticate of replies of 401, such as
	// auth.Keystone's. Empty: none.
	Challenge string
	// Enforce says whether who asks may do what a [Route]'s Rule names, such as a
	// policy. Its error is the reply. Nil: the rules are not asked.
	Enforce func(ctx context.Context, rule string, target map[string]any) error
	// Microversions are the versions of the API. Nil: there are none.
	Microversions *Microversions
	// PublicURL begins the links of replies: the URL by which clients reach the service, such as
	// "https://api.example.org/volume". Set it behind a proxy or a load balancer. New panics if
	// it is not an http or https URL. Default: see [Base].
	PublicURL string
	// RequestIDHeaders are further names for the header with the request id,
	// which is always sent as x-openstack-request-id.
	RequestIDHeaders []string
	// FaultName is the key of an error body whose status has no name of its
	// own, such as 500. Default "fault".
	FaultName string
	// ErrorList makes error bodies those of the API-SIG, {"errors": [{"status": 404,
	// "code": "volume.not_found", ...}]}, and this the first part of their codes, such as
	// "volume". Default: {"itemNotFound": {"code": 404, "message": ...}}.
	ErrorList string
	// MaxBody is the longest request body in bytes. Default 114688.
	MaxBody int64
	// MaxDepth is how deep a body may be nested. Default 64.
	MaxDepth int
	// BodyTimeout is how long a client may take to send a body, from the end of the headers on,
	// before it is known who asks. Default 30 s; negative: no bound. A server of package service
	// has one of its own, service.HTTPConfig.BodyTimeout: the shorter one counts.
	BodyTimeout time.Duration
	// WriteTimeout is how long a client may take to read a reply. Default 60 s.
	WriteTimeout time.Duration
	// CORS are the origins of web pages that may use the API, see [CORS]. Nil: none.
	CORS *CORS
	// Gzip compresses replies of 1 KiB and more for clients that take it.
	Gzip bool
	// Inflight notes each request while it runs, unless it is nil.
	Inflight *service.Inflight
	// Observe is called after each request, unless it is nil, with the pattern of its
	// route, or "" if it had none.
	Observe func(ctx context.Context, o Observation)
	// Logger gets a line for each request (health probes at debug level) and
	// one for each reply of 500 and more. Its handler should be a
	// [reqctx.LogHandler], which adds the ids; the default is one around
	// slog.Default().
	Logger *slog.Logger
}

// Mux routes requests to handlers. Register them with [Handle] before it
// serves; then it is safe for concurrent use.
type Mux struct {
	cfg      Config
	mux      http.ServeMux
	versions *versioned
	routes   map[string]entry // by pattern
	all      []*route         // in the order in which they were added
	foreign  sync.Once        // the first request for an unknown host is logged
	handler  http.Handler

	readinessMu sync.Mutex
	readiness   outage.Log // of GET /readyz
	notReady    string     // why the last one failed
}

// Observation is one request that was answered.
type Observation struct {
	Method, Pattern string
	Status          int
	Took            time.Duration
	// Sent is how many bytes the reply had, before compression.
	Sent int64
}

// New returns a Mux without routes.
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
	m.handler = around(cfg, http.HandlerFunc(m.serve))
	return m
}

// Health registers GET /livez, which answers 200 while the process serves requests, and GET /readyz, which answers 503
// while ready, such as service.App's Ready, returns an error; ready has 5 s. Both need no authentication, so a client
// reads the text of the outermost [fault.Error] only, as in every reply. The log has the whole error under the id of the
// request: of errors in a row the first, each with another reason, and one a minute as WARN, the others as DEBUG.
func (m *Mux) Health(ready func(ctx context.Context) error) {
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

// noteReadiness logs the result of a readiness check, which load balancers ask for each second.
func (m *Mux) noteReadiness(ctx context.Context, err error) {
	m.readinessMu.Lock()
	defer m.readinessMu.Unlock()
	reason := fault.UserMessage(err) // the whole text differs each time, such as by a duration
	m.readiness.Note(ctx, m.cfg.Logger, slog.LevelWarn, "readiness check", err, reason != m.notReady)
	m.notReady = reason
}

// ServeHTTP answers one request. A panic in a handler is logged and answered
// with status 500.
func (m *Mux) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.handler.ServeHTTP(w, r) }

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
	strip(r.Header)
	h := w.Header()
	h.Set(requestIDHeader, rec.req.ID)
	for _, name := range m.cfg.RequestIDHeaders {
		h.Set(name, rec.req.ID)
	}
	if m.versions != nil && m.versions.under(r.URL.Path) {
		rec.version, rec.refusedVersion = m.versions.negotiate(r.Header, h)
	}
	r = r.WithContext(reqctx.With(m.withBase(r.Context()), rec.req))
	if m.cfg.Inflight != nil {
		defer m.cfg.Inflight.Begin(r.Context(), service.Work{Kind: "request", Name: r.Method, Resource: r.URL.Path})()
	}
	defer func() { //nolint:contextcheck // r has the context
		level, took := slog.LevelInfo, time.Since(begin)
		if rec.probe {
			level = slog.LevelDebug
		}
		ctx := reqctx.With(r.Context(), rec.req)
		m.cfg.Logger.LogAttrs(ctx, level, "request",
			slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", rec.status), slog.Int64("bytes", rec.bytes),
			slog.Duration("took", took), slog.String("client", r.RemoteAddr))
		if m.cfg.Observe != nil {
			m.cfg.Observe(ctx, Observation{Method: r.Method, Pattern: rec.pattern, Status: rec.status, Took: took, Sent: rec.bytes})
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

// traceparent is the form of W3C Trace Context, version 00.
var traceparent = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

func notAllowed(method string) error {
	return WithStatus(http.StatusMethodNotAllowed, fault.New(fault.Invalid, "The method %s is not allowed for this resource.", method))
}

// identity begins the names of headers by which services behind keystonemiddleware
// learn who asks. From outside they are lies.
var identity = []string{
	"X-Identity-Status", "X-User", "X-Project", "X-Domain", "X-Role", "X-Roles", "X-Tenant", "X-System-Scope", "X-Is-Admin-Project",
	"X-Service-Identity-Status", "X-Service-Project", "X-Service-User", "X-Service-Domain", "X-Service-Role", "X-Service-Catalog", "Openstack-System-Scope",
}

// strip removes identity headers.
func strip(h http.Header) {
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

// recorder is the ResponseWriter that handlers get. It keeps what the log line
// needs, and holds back the plain text with which ServeMux answers a request
// that it has no route for.
type recorder struct {
	http.ResponseWriter
	req            reqctx.Request
	version        Version
	refusedVersion error
	route          *route
	pattern        string
	body           []byte // the request's, once it has been read
	routed         bool   // a route of ours took the request
	probe          bool   // that route was a health probe
	refused        int    // the status that ServeMux would have sent
	status         int
	bytes          int64
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) WriteHeader(status int) {
	if !r.routed && status >= http.StatusBadRequest {
		r.refused = status
		return
	}
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

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
