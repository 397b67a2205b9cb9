// Package api is nova-mini's API service. It implements a part of the Nova v2.1 REST API. For a request that changes something,
// it writes an operation to the database. Then it notifies a conductor, which does the work.
package api

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/image"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/api"
)

// Config configures the handlers. Store, Client and Bus are required.
type Config struct {
	Store  *store.Store
	Client *rpc.Client
	// Bus reports whether the other services can be reached. While Bus returns an error, a request that needs other
	// services is refused with Unavailable. Bus must not block.
	Bus func(context.Context) error
	// Images are the images that servers boot from. Nil: any text is the reference of an image.
	Images image.Source
	// Network is the network service. Nil: no network exists.
	Network *network.Neutron
	// Consoles are the consoles of servers that clients may open. Default: none.
	Consoles Consoles
	// SoftDelete means that a deleted server can be restored for some time.
	SoftDelete bool
	// DownAfter is how long after its last heartbeat a service is shown as up.
	DownAfter time.Duration
	Logger    *slog.Logger
}

// MaxLimit is the highest number of items on a page: Nova's default.
const MaxLimit = 1000

// Administrator is the identity of every client if clients are not authenticated.
var Administrator = reqctx.Request{UserID: "admin", ProjectID: "admin", Roles: []string{"admin", "member", "reader"}}

// The supported microversions.
const minVersion, maxVersion = "2.1", "2.104"

type server struct {
	cfg Config
	mux *api.Mux
}

// HTTP returns cfg with the settings of the API that are Nova's.
func HTTP(cfg api.Config) api.Config {
	cfg.RequestIDHeaders = []string{"x-compute-request-id"}
	cfg.FaultName = "computeFault"
	cfg.Rewrite = rewritePath
	cfg.Microversions = &api.Microversions{
		Service: "compute", Min: minVersion, Max: maxVersion, Prefix: "/v2.1", Headers: []string{"X-OpenStack-Nova-API-Version"},
	}
	return cfg
}

// Register adds the whole API to a mux with the settings of [HTTP]. The policy of the mux has the rules of [Rules]. It panics if a required
// field of cfg is not set.
func Register(m *api.Mux, cfg Config) {
	for _, field := range []struct {
		name    string
		missing bool
	}{
		{"Store", cfg.Store == nil},
		{"Client", cfg.Client == nil},
		{"Bus", cfg.Bus == nil},
	} {
		if field.missing {
			panic("nova-mini/api: Config." + field.name + " is not set")
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	(&server{cfg, m}).routes()
}

// otherForms matches the other forms of the API's paths: with the id of a project, as in Nova, and under /v2.
var otherForms = regexp.MustCompile(`^(/v2(?:\.1)?)(?:/([0-9a-f-]+))?(/.+)$`)

// rewritePath returns a path in the form of the routes, and the project that the path names.
func rewritePath(path string) (routed, project string) {
	m := otherForms.FindStringSubmatch(path)
	if m == nil {
		return path, ""
	}
	return "/v2.1" + m[3], m[2]
}

// linker makes links in the form of the client's path: the beginnings of links to a resource of a version, and without one.
type linker struct{ self, bookmark string }

// newLinker returns the linker for the reply to a request.
func newLinker(r *http.Request) linker {
	version, project := "/v2.1", ""
	if path := api.RequestPath(r); path != r.URL.Path { // it was rewritten
		if m := otherForms.FindStringSubmatch(path); m != nil {
			version = m[1]
			if m[2] != "" {
				project = "/" + m[2]
			}
		}
	}
	base := api.Base(r)
	return linker{self: base + version + project + "/", bookmark: base + project + "/"}
}

// to returns the two links that every resource has.
func (l linker) to(kind, id string) []api.Link {
	id = url.PathEscape(id)
	return []api.Link{{Rel: "self", Href: l.self + kind + "/" + id}, {Rel: "bookmark", Href: l.bookmark + kind + "/" + id}}
}

// bookmarked returns a reference to a resource.
func (l linker) bookmarked(kind, id string) bookmark {
	return bookmark{ID: id, Links: []api.Link{{Rel: "bookmark", Href: l.bookmark + kind + "/" + url.PathEscape(id)}}}
}

// linksTo returns the links to one resource, see linker.
func linksTo(r *http.Request, kind, id string) []api.Link { return newLinker(r).to(kind, id) }

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
