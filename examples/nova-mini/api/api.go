// Package api is nova-mini's API service. It implements a part of the Nova v2.1 REST API. For a request that changes something,
// it writes an operation to the database. Then it notifies a conductor, which does the work.
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

// Config configures the handler. Store, Client, Ready, Bus and Authenticate are required.
type Config struct {
	Store  *store.Store
	Client *rpc.Client
	// Ready reports whether the service can work. The health probes call it.
	Ready func(context.Context) error
	// Bus reports whether the other services can be reached. While Bus returns an error, a request that needs other
	// services is refused with Unavailable. Bus must not block.
	Bus func(context.Context) error
	// DownAfter is how long after its last heartbeat a service is shown as up.
	DownAfter time.Duration
	// Authenticate returns the identity of the client, see package auth. Challenge is the WWW-Authenticate header of
	// replies to clients without an identity. auth.None(Administrator) makes every client the administrator.
	Authenticate func(*http.Request) (reqctx.Request, error)
	Challenge    string
	// Policy decides what a client may do, by the rules of [Rules]. Default: the rules with their default checks.
	Policy *policy.Enforcer
	// PublicURL is the start of the links in replies. BodyTimeout limits how long a client may take to send a body. See
	// package service/api for both.
	PublicURL   string
	BodyTimeout time.Duration
	// CORS lists the origins of web pages that may use the API. Default: none.
	CORS []string
	// Inflight registers each request while it runs.
	Inflight *service.Inflight
	// Observe is called after each request. Nil: not called.
	Observe func(context.Context, api.Observation)
	Logger  *slog.Logger
}

// MaxLimit is the highest number of items on a page: Nova's default.
const MaxLimit = 1000

// Administrator is the identity of every client if clients are not authenticated.
var Administrator = reqctx.Request{UserID: "admin", ProjectID: "admin", Roles: []string{"admin", "member", "reader"}}

// The supported microversions: only the first.
const minVersion, maxVersion = "2.1", "2.1"

type server struct{ cfg Config }

// New returns the handler of the whole API. It panics if a required field of cfg is not set.
func New(cfg Config) http.Handler {
	for _, field := range []struct {
		name    string
		missing bool
	}{
		{"Store", cfg.Store == nil},
		{"Client", cfg.Client == nil},
		{"Ready", cfg.Ready == nil},
		{"Bus", cfg.Bus == nil},
		{"Authenticate", cfg.Authenticate == nil},
	} {
		if field.missing {
			panic("nova-mini/api: Config." + field.name + " is not set")
		}
	}
	mux := newMux(cfg)
	mux.Health(cfg.Ready)
	return mux
}

func newMux(cfg Config) *api.Mux {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Policy == nil {
		p, err := policy.New(Rules(), policy.Config{Logger: cfg.Logger})
		if err != nil {
			panic(err) // the rules are in the code
		}
		cfg.Policy = p
	}
	s := &server{cfg}
	var cors *api.CORS
	if len(cfg.CORS) > 0 {
		cors = &api.CORS{Origins: cfg.CORS}
	}
	mux := api.New(api.Config{
		CORS:             cors,
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

// checkBus returns Unavailable while the other services cannot be reached. Otherwise the request would only wait; with the error
// the client knows at once, and may retry. The cause is only in the log.
func (s *server) checkBus(ctx context.Context) error {
	if err := s.cfg.Bus(ctx); err != nil {
		return fault.WithUser(fault.New(fault.Unavailable, "other services cannot be reached: %w", err), "The service cannot accept this now: other services cannot be reached.")
	}
	return nil
}

// notifyConductor notifies a conductor that a server has an operation. If the notification is lost, the conductor finds
// the operation at its next poll.
func (s *server) notifyConductor(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := rpc.Cast(ctx, s.cfg.Client, compute.Notify, rpc.Any, &compute.NotifyRequest{ServerID: id}); err != nil {
		s.cfg.Logger.WarnContext(ctx, "conductor not notified, it finds the server by polling", "server", id, "error", err)
	}
}

// formatSeconds formats a time as Nova formats most times: in UTC, with seconds.
func formatSeconds(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// formatMicros formats a time as Nova formats the others: in UTC, with microseconds, without a zone.
func formatMicros(t *time.Time) *micros {
	if t == nil {
		return nil
	}
	return new(micros(t.UTC().Format("2006-01-02T15:04:05.000000")))
}
