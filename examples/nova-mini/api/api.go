// Package api is nova-mini's API service. It implements a part of the Nova v2.1 REST API. For a request that needs work on a
// host, it writes an operation to the database, and notifies a conductor, which runs the operation.
package api

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
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
	// Images is the source of the images that servers boot from. Nil: any text is accepted as the reference of an image.
	Images image.Source
	// Network is the network service. Nil: no network exists.
	Network *network.Neutron
	// HasProject reports whether a project exists, with the rights of the client that has the token. Nil: every id of a project is accepted.
	HasProject func(ctx context.Context, token, id string) (bool, error)
	// Consoles configures the consoles that clients may open. Default: clients may open no console.
	Consoles Consoles
	// InternalZone is the availability zone of the services that are not on compute hosts. Default: internal.
	InternalZone string
	// ScheduleZone is the availability zone of servers whose clients name none. Empty: any zone.
	ScheduleZone string
	// InstanceNames says how servers are named on their hosts.
	InstanceNames NameTemplate
	// Filters are the names of the scheduler's filters, see scheduler.Config. With these filters the API service checks the host of
	// a server that is to be resized, because the server stays on this host.
	Filters []string
	// AuditPeriod is the kind of the periods of the log of the audits of usage. Default: months.
	AuditPeriod AuditPeriod
	// InterfaceWait is the longest time for which a client waits until an interface is attached or detached. Default 2 minutes.
	InterfaceWait time.Duration
	// SoftDelete means that a deleted server can be restored for some time.
	SoftDelete bool
	// DownAfter is how long a service without heartbeats is shown as up, from its last heartbeat on.
	DownAfter time.Duration
	Logger    *slog.Logger
}

// MaxLimit is the maximum number of items on a page, which is Nova's default.
const MaxLimit = 1000

// Administrator is the identity of every client if clients are not authenticated.
var Administrator = reqctx.Request{UserID: "admin", ProjectID: "admin", Roles: []string{"admin", "member", "reader"}}

// The supported microversions.
const minVersion, maxVersion = "2.1", "2.104"

type server struct {
	cfg Config
	mux *api.Mux
}

// HTTP returns cfg with the settings of Nova's API.
func HTTP(cfg api.Config) api.Config {
	cfg.RequestIDHeaders = []string{"x-compute-request-id"}
	cfg.FaultName = "computeFault"
	cfg.Rewrite = rewritePath
	cfg.Microversions = &api.Microversions{
		Service: "compute", Min: minVersion, Max: maxVersion, Prefix: "/v2.1", Headers: []string{"X-OpenStack-Nova-API-Version"},
	}
	return cfg
}

// Register adds the whole API to a mux with the settings of [HTTP]. The policy of the mux has the rules of [Rules]. Register panics if a
// required field of cfg is not set.
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
	if cfg.InterfaceWait <= 0 {
		cfg.InterfaceWait = 2 * time.Minute
	}
	if cfg.InternalZone == "" {
		cfg.InternalZone = "internal"
	}
	(&server{cfg, m}).routes()
}

// otherForms matches the forms of the API's paths that are not the form of the routes: paths with the id of a project, as in Nova, and paths under /v2.
var otherForms = regexp.MustCompile(`^(/v2(?:\.1)?)(?:/([0-9a-f-]+))?(/.+)$`)

// rewritePath returns a path in the form of the routes, and the project that the path names.
func rewritePath(path string) (routed, project string) {
	m := otherForms.FindStringSubmatch(path)
	if m == nil {
		return path, ""
	}
	if id, ok := strings.CutPrefix(m[3], "/versions/"); ok { // as in Nova, the other form of the path of a version's document
		switch {
		case m[1] == "/v2", id == "v2.0":
			return "/v2/", ""
		case id == "v2.1":
			return "/v2.1/", ""
		}
	}
	return "/v2.1" + m[3], m[2]
}

// linker makes links that have the form of the client's path. The field self is the beginning of links with the API version. The field
// bookmark is the beginning of links without a version.
type linker struct{ self, bookmark string }

// newLinker returns the linker for the reply to a request.
func newLinker(r *http.Request) linker {
	version, project := "/v2.1", ""
	if path := api.RequestPath(r); path != r.URL.Path { // rewritePath has changed the path
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

// bookmarked returns a reference to a resource: its id and its bookmark link.
func (l linker) bookmarked(kind, id string) bookmark {
	return bookmark{ID: id, Links: []api.Link{{Rel: "bookmark", Href: l.bookmark + kind + "/" + url.PathEscape(id)}}}
}

// linksTo returns the links to one resource, see linker.
func linksTo(r *http.Request, kind, id string) []api.Link { return newLinker(r).to(kind, id) }

// checkBus returns Unavailable while the other services cannot be reached. Without this check the operation would begin and only wait;
// with the error the client learns this at once, and may retry. Only the log has the cause.
func (s *server) checkBus(ctx context.Context) error {
	if err := s.cfg.Bus(ctx); err != nil {
		return fault.WithUser(fault.New(fault.Unavailable, "other services cannot be reached: %w", err), "The service cannot accept the request now: other services cannot be reached.")
	}
	return nil
}

// notifyConductor notifies a conductor that a server has an operation. If the notification is lost, the conductor finds
// the operation at its next poll.
func (s *server) notifyConductor(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := rpc.Cast(ctx, s.cfg.Client, compute.Notify, rpc.Any, &compute.NotifyRequest{ServerID: id}); err != nil {
		s.cfg.Logger.WarnContext(ctx, "conductor not notified, the server waits for the next poll", "server", id, "error", err)
	}
}

// formatSeconds formats a time in Nova's form for most times: in UTC, with seconds.
func formatSeconds(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// formatMicros formats a time in Nova's form for the other times: in UTC, with microseconds, without a zone.
func formatMicros(t *time.Time) *micros {
	if t == nil {
		return nil
	}
	return new(micros(t.UTC().Format("2006-01-02T15:04:05.000000")))
}
