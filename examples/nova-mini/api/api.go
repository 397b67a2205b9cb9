// Package api is nova-mini's door: the part of the Nova v2.1 REST API that it
// speaks. A request that changes something is written to the database; the
// conductor is woken and does the work.
package api

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/policy"
)

// Config configures the handler.
type Config struct {
	Store  *store.Store
	Client *rpc.Client
	// Ready says whether the service can work, for the health probes.
	Ready func(context.Context) error
	// Bus says whether the other services can be reached. While they cannot, a
	// request that needs them is refused. It does not block.
	Bus func(context.Context) error
	// DownAfter is how long a service may be silent and still be up.
	DownAfter time.Duration
	// Authenticate says who asks, see package auth; Challenge is for clients that do not
	// say. Required: auth.None makes every client the administrator.
	Authenticate func(*http.Request) (reqctx.Request, error)
	Challenge    string
	// Policy says who may do what, by [Rules]. Default: as they are.
	Policy *policy.Enforcer
	// PublicURL begins the links of replies, BodyTimeout bounds how long a client may take to
	// send a body: see package service/api.
	PublicURL   string
	BodyTimeout time.Duration
	// CORS are the origins of web pages that may use the API. Default: none.
	CORS []string
	// Inflight notes each request while it runs.
	Inflight *service.Inflight
	// Observe is called after each request, unless it is nil.
	Observe func(context.Context, api.Observation)
	Logger  *slog.Logger
}

// MaxLimit is how many items a page has at most, Nova's default.
const MaxLimit = 1000

// Administrator is who asks when nobody has to say who they are.
var Administrator = reqctx.Request{UserID: "admin", ProjectID: "admin", Roles: []string{"admin", "member", "reader"}}

// The microversions that are spoken: the first one only.
const minVersion, maxVersion = "2.1", "2.1"

type server struct{ cfg Config }

// New returns the handler of the whole API.
func New(cfg Config) http.Handler {
	mux := newMux(cfg)
	mux.Health(cfg.Ready)
	return mux
}

func newMux(cfg Config) *api.Mux {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Authenticate == nil {
		panic("nova-mini/api: Config.Authenticate is not set")
	}
	if cfg.Policy == nil {
		p, err := policy.New(Rules(), policy.Config{Logger: cfg.Logger})
		if err != nil {
			panic(err) // the rules are in the code
		}
		cfg.Policy = p
	}
	s := &server{cfg}
	var pages *api.CORS
	if len(cfg.CORS) > 0 {
		pages = &api.CORS{Origins: cfg.CORS}
	}
	mux := api.New(api.Config{
		CORS:             pages,
		PublicURL:        cfg.PublicURL,
		BodyTimeout:      cfg.BodyTimeout,
		RequestIDHeaders: []string{"x-compute-request-id"},
		FaultName:        "computeFault",
		Inflight:         cfg.Inflight,
		Observe:          cfg.Observe,
		Microversions: &api.Microversions{
			Service: "compute", Min: minVersion, Max: maxVersion, Prefix: "/v2.1", Headers: []string{"X-OpenStack-Nova-API-Version"},
		},
		Logger:       cfg.Logger,
		Authenticate: cfg.Authenticate, Challenge: cfg.Challenge, Enforce: cfg.Policy.Enforce,
	})
	s.routes(mux)
	return mux
}

// linksTo returns the two links that every resource has.
func linksTo(r *http.Request, kind, id string) []api.Link {
	return []api.Link{
		{Rel: "self", Href: api.Base(r) + "/v2.1/" + kind + "/" + url.PathEscape(id)},
		{Rel: "bookmark", Href: api.Base(r) + "/" + kind + "/" + url.PathEscape(id)},
	}
}

// pages are the rules of all lists. Parameters that are not known are ignored, as in
// Nova's first versions.
var pages = api.Pages{MaxLimit: MaxLimit, Lenient: true}

// able refuses what could not be done now: nothing is accepted that has to wait
// for a broken service. The client may send it again. Why is in the log.
func (s *server) able(ctx context.Context) error {
	if err := s.cfg.Bus(ctx); err != nil {
		return fault.WithUser(fault.New(fault.Unavailable, "other services cannot be reached: %w", err), "The service cannot accept this now: other services cannot be reached.")
	}
	return nil
}

// wake hints to the conductor that a server has work. Without the hint the work
// is found a little later.
func (s *server) wake(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := rpc.Cast(ctx, s.cfg.Client, compute.Wake, rpc.Any, &compute.WakeRequest{ServerID: id}); err != nil {
		s.cfg.Logger.WarnContext(ctx, "the conductor was not woken; it finds the server by polling", "server", id, "error", err)
	}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// micros is the other form in which Nova writes times.
func micros(t *time.Time) *string {
	if t == nil {
		return nil
	}
	out := t.UTC().Format("2006-01-02T15:04:05.000000")
	return &out
}
