// Package api is the REST scaffold of a component: typed JSON handlers on the
// standard library's ServeMux, request ids, limits, an access log, and errors
// in the form that OpenStack's clients read.
//
//	mux := api.New(api.Config{})
//	mux.Health(app.Ready)
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
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
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
	// returns are put into the context; its ids are not used. It is called for
	// each routed request except those to the health routes, with r.Pattern
	// set, so that it can let public routes pass. Its error is the reply;
	// a plain one is status 500, never an open door. Nil: nobody is known
	// and nobody is turned away. Identity headers are never believed.
	Authenticate func(r *http.Request) (reqctx.Request, error)
	// RequestIDHeaders are further names for the header with the request id,
	// which is always sent as x-openstack-request-id.
	RequestIDHeaders []string
	// FaultName is the key of an error body whose status has no name of its
	// own, such as 500. Default "fault".
	FaultName string
	// MaxBody is the longest request body in bytes. Default 114688.
	MaxBody int64
	// BodyTimeout is how long a client may take to send a body. Default 30 s.
	BodyTimeout time.Duration
	// Logger gets a line for each request (health probes at debug level) and
	// one for each reply of 500 and more. Its handler should be a
	// [reqctx.LogHandler], which adds the ids; the default is one around
	// slog.Default().
	Logger *slog.Logger
}

// Mux routes requests to handlers. Register them with [Handle] before it
// serves; then it is safe for concurrent use.
type Mux struct {
	cfg Config
	mux http.ServeMux
}

// New returns a Mux without routes.
func New(cfg Config) *Mux {
	if cfg.FaultName == "" {
		cfg.FaultName = "fault"
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 114688
	}
	if cfg.BodyTimeout == 0 {
		cfg.BodyTimeout = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(reqctx.LogHandler(slog.Default().Handler()))
	}
	return &Mux{cfg: cfg}
}

// Request is what a handler gets. The embedded request has the rest of it:
// PathValue, URL.Query, Header.
type Request[B any] struct {
	*http.Request
	// Body is the decoded and validated body. It hides the raw one, which has
	// been read.
	Body B
	// Status is the reply's, for the handler to set. It is 200 at first, 204
	// for a reply of [None]; an error has its own.
	Status int
	// ReplyHeader is the reply's header, for the handler to add to, such as
	// Location. It is sent with an error, too.
	ReplyHeader http.Header
}

// Validator is a request body that knows more about itself than its types. An
// error without a code is Invalid. It is called on a pointer to the body.
type Validator interface {
	Validate() error
}

// Handle registers a typed handler for a pattern of [http.ServeMux], such as
// "GET /v1/volumes/{id}". It panics on a pattern that is malformed or conflicts
// with another.
//
// A request whose body type is [None] may have any body: it is not read. Every
// other must have one JSON value of type application/json (else 415) of at most
// MaxBody bytes (413), that fits B (400 naming the field): fields that B does
// not have are refused.
func Handle[B, R any](m *Mux, pattern string, h func(ctx context.Context, r *Request[B]) (R, error)) {
	var b B
	var rep R
	_, noBody := any(b).(None)
	_, noReply := any(rep).(None)
	m.mux.HandleFunc(pattern, func(w http.ResponseWriter, hr *http.Request) {
		rec := w.(*recorder) //nolint:forcetypeassert // ServeHTTP alone calls this
		hr, err := m.enter(rec, hr)
		if err != nil {
			m.fail(rec, hr, err)
			return
		}
		r := &Request[B]{Request: hr, Status: http.StatusOK, ReplyHeader: w.Header()}
		if noReply {
			r.Status = http.StatusNoContent
		}
		if !noBody {
			if err := m.decode(rec, hr, &r.Body); err != nil {
				m.fail(rec, hr, err)
				return
			}
		}
		reply, err := h(hr.Context(), r) //nolint:contextcheck // enter added to the request's own context
		_, none := any(reply).(None)
		switch {
		case err != nil:
			m.fail(rec, hr, err)
		case none:
			rec.WriteHeader(r.Status)
		default:
			m.reply(rec, hr, r.Status, reply)
		}
	})
}

// enter marks the request as routed and finds out who asks.
func (m *Mux) enter(rec *recorder, r *http.Request) (*http.Request, error) {
	rec.routed = true
	if m.cfg.Authenticate == nil {
		return r, nil
	}
	who, err := m.cfg.Authenticate(r)
	if err != nil {
		return r, err
	}
	who.ID, who.GlobalID, who.Traceparent = rec.req.ID, rec.req.GlobalID, rec.req.Traceparent
	rec.req = who
	return r.WithContext(reqctx.With(r.Context(), who)), nil
}

// Health registers GET /livez, which answers 200 while the process serves at
// all, and GET /readyz, which answers 503 with the reason while ready, such as
// service.App's Ready, returns an error; ready has 5 s. They ask for no authentication.
func (m *Mux) Health(ready func(ctx context.Context) error) {
	type health struct {
		Status string `json:"status"`
		Reason string `json:"reason,omitempty"`
	}
	m.mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) {
		rec := w.(*recorder) //nolint:forcetypeassert // ServeHTTP alone calls this
		rec.routed, rec.probe = true, true
		m.reply(rec, r, http.StatusOK, health{Status: "ok"})
	})
	m.mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		rec := w.(*recorder) //nolint:forcetypeassert // ServeHTTP alone calls this
		rec.routed, rec.probe = true, true
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		if err := ready(ctx); err != nil {
			m.reply(rec, r, http.StatusServiceUnavailable, health{"unavailable", err.Error()})
			return
		}
		m.reply(rec, r, http.StatusOK, health{Status: "ok"})
	})
}

// ServeHTTP answers one request. A panic in a handler is logged and answered
// with status 500.
func (m *Mux) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	rec := &recorder{ResponseWriter: w, req: reqctx.Request{ID: reqctx.NewID()}}
	if id := r.Header.Get(requestIDHeader); reqctx.ValidID(id) {
		rec.req.GlobalID = id
	}
	w.Header().Set(requestIDHeader, rec.req.ID)
	for _, name := range m.cfg.RequestIDHeaders {
		w.Header().Set(name, rec.req.ID)
	}
	r = r.WithContext(reqctx.With(r.Context(), rec.req))
	defer func() { //nolint:contextcheck // r has the context
		level := slog.LevelInfo
		if rec.probe {
			level = slog.LevelDebug
		}
		m.cfg.Logger.Log(reqctx.With(r.Context(), rec.req), level, "request",
			"method", r.Method, "path", r.URL.Path, "status", rec.status, "bytes", rec.bytes,
			"took", time.Since(begin), "client", r.RemoteAddr)
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
	switch rec.refused {
	case 0:
	case http.StatusNotFound:
		m.fail(rec, r, fault.New(fault.NotFound, "The resource could not be found."))
	case http.StatusMethodNotAllowed:
		m.fail(rec, r, WithStatus(rec.refused, fault.New(fault.Invalid,
			"The method %s is not allowed for this resource.", r.Method)))
	default:
		m.fail(rec, r, WithStatus(rec.refused, fault.New(fault.Invalid, "%s", http.StatusText(rec.refused))))
	}
}

// recorder is the ResponseWriter that handlers get. It keeps what the log line
// needs, and holds back the plain text with which ServeMux answers a request
// that it has no route for.
type recorder struct {
	http.ResponseWriter
	req     reqctx.Request
	routed  bool // a route of ours took the request
	probe   bool // that route was a health probe
	refused int  // the status that ServeMux would have sent
	status  int
	bytes   int64
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
