package api

import (
	"context"
	"net/http"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleCreate     = "os_compute_api:servers:create"
	ruleForcedHost = "os_compute_api:servers:create:forced_host"
	ruleChosenHost = "compute:servers:create:requested_destination"
	ruleNetworks   = "os_compute_api:servers:create:attach_network"
	ruleVolumes    = "os_compute_api:servers:create:attach_volume"
	ruleTrusted    = "os_compute_api:servers:create:trusted_certs"
	ruleIndex      = "os_compute_api:servers:index"
	ruleDetail     = "os_compute_api:servers:detail"
	ruleAllTenants = "os_compute_api:servers:index:get_all_tenants"
	ruleAllDetails = "os_compute_api:servers:detail:get_all_tenants"
	ruleAllFilters = "os_compute_api:servers:allow_all_filters"
	ruleShow       = "os_compute_api:servers:show"
	ruleExtended   = "os_compute_api:os-extended-server-attributes"
	ruleExtraSpecs = "os_compute_api:servers:show:flavor-extra-specs"
	ruleHostStatus = "os_compute_api:servers:show:host_status"
	ruleDelete     = "os_compute_api:servers:delete"
)

var serverRules = []rule{
	{ruleCreate, "rule:project_member_or_admin", "Create a server", "POST", "/servers"},
	{ruleForcedHost, "rule:context_is_admin", "Create a server on a host that is part of its zone", "POST", "/servers"},
	{ruleChosenHost, "rule:context_is_admin", "Create a server on a chosen host", "POST", "/servers"},
	{ruleNetworks, "rule:project_member_or_admin", "Create a server with networks", "POST", "/servers"},
	{ruleVolumes, "rule:project_member_or_admin", "Create a server with disks", "POST", "/servers"},
	{ruleTrusted, "rule:project_member_or_admin", "Create a server with trusted image certificates", "POST", "/servers"},
	{ruleIndex, "rule:project_reader_or_admin", "List servers", "GET", "/servers"},
	{ruleDetail, "rule:project_reader_or_admin", "List servers with details", "GET", "/servers/detail"},
	{ruleAllTenants, "rule:context_is_admin", "List the servers of all projects", "GET", "/servers"},
	{ruleAllDetails, "rule:context_is_admin", "List the servers of all projects with details", "GET", "/servers/detail"},
	{ruleAllFilters, "rule:context_is_admin", "Filter servers by their host", "GET", "/servers"},
	{ruleShow, "rule:project_reader_or_admin", "Show a server", "GET", "/servers/{server_id}"},
	{ruleExtended, "rule:context_is_admin", "Show the host of a server", "GET", "/servers/{server_id}"},
	{ruleExtraSpecs, "rule:project_reader_or_admin", "Show the extra specs of a server's flavor", "GET", "/servers/{server_id}"},
	{ruleHostStatus, "rule:context_is_admin", "Show the status of a server's host", "GET", "/servers/{server_id}"},
	{ruleDelete, "rule:project_member_or_admin", "Delete a server", "DELETE", "/servers/{server_id}"},
}

func (s *server) serverRoutes(all, withBody *api.Group) {
	api.HandleRoute(withBody, api.Route{
		Pattern: "POST /servers", Rule: ruleCreate, Summary: "Create a server", Status: http.StatusAccepted, Errors: []int{unavailable}, Idempotency: s.cfg.Store.Replies(),
	}, s.createServer)
	api.HandleRoute(all, api.Route{Pattern: "GET /servers", Rule: ruleIndex, Summary: "List servers", List: &servers}, s.listServers)
	api.HandleRoute(all, api.Route{
		Pattern: "GET /servers/detail", Rule: ruleDetail, Summary: "List servers with details", List: &servers,
	}, s.listServerDetails)
	api.HandleTarget(all, api.Route{
		Pattern: "GET /servers/{id}", Rule: ruleShow, Summary: "Show a server", Errors: []int{notFound},
	}, s.target(), s.showServer)
	api.HandleTarget(all, api.Route{
		Pattern: "DELETE /servers/{id}", Rule: ruleDelete, Summary: "Delete a server", Errors: []int{notFound, conflict, unavailable},
	}, s.target(), s.deleteServer)
}

// target is the server that the path names. A server of another project does not exist for a client whom the rule denies, as in Nova.
func (s *server) target() api.Target[*store.Server] {
	return api.Target[*store.Server]{
		Load: func(ctx context.Context, r *http.Request) (*store.Server, error) {
			return s.cfg.Store.Server(ctx, r.PathValue("id"))
		},
		Policy: func(srv *store.Server) map[string]any {
			return map[string]any{"project_id": srv.ProjectID, "user_id": srv.UserID}
		},
		Missing: func(r *http.Request) error { return store.NoServer(r.PathValue("id")) },
	}
}

// flavor returns the flavor that a reference names: a flavor's id, or a link to a flavor. Errors: Invalid, if the flavor
// does not exist or the client must not use it.
func (s *server) flavor(ctx context.Context, ref reference) (*store.Flavor, error) {
	id := plainText(ref.RawMessage)
	if i := strings.LastIndexByte(id, '/'); i >= 0 {
		id = id[i+1:]
	}
	f, err := s.cfg.Store.Flavor(ctx, s.viewer(ctx), id)
	if fault.CodeOf(err) == fault.NotFound && err != nil {
		err = fault.New(fault.Invalid, "%w", err)
	}
	return f, err
}

type serverPage[T any] struct {
	Servers []T        `json:"servers"`
	Links   []api.Link `json:"servers_links,omitempty"`
}

func serverList[T any](ctx context.Context, s *server, r *api.Request[api.None], allRule string, view func(*store.Server) T) (serverPage[T], error) {
	out := serverPage[T]{Servers: []T{}}
	q, err := s.serverQuery(ctx, r.Request, r.List, allRule)
	if err != nil {
		return out, err
	}
	list, err := s.cfg.Store.Servers(ctx, q)
	for i := range list {
		out.Servers = append(out.Servers, view(&list[i]))
	}
	if n := len(list); n > 0 {
		out.Links = r.NextPage(n, list[n-1].ID)
	}
	return out, err
}

func (s *server) listServers(ctx context.Context, r *api.Request[api.None]) (serverPage[serverBrief], error) {
	return serverList(ctx, s, r, ruleAllTenants, func(v *store.Server) serverBrief {
		return serverBrief{ID: v.ID, Name: v.Name, Links: linksTo(r.Request, "servers", v.ID)}
	})
}

func (s *server) listServerDetails(ctx context.Context, r *api.Request[api.None]) (serverPage[serverView], error) {
	var ids []string
	read := s.newLookups(ctx, &ids)
	return serverList(ctx, s, r, ruleAllDetails, func(v *store.Server) serverView {
		ids = append(ids, v.ID)
		return s.viewServer(r.Request, v, read)
	})
}

func (s *server) showServer(_ context.Context, r *api.Request[api.None], srv *store.Server) (oneServer, error) {
	return oneServer{s.viewOne(r.Request, srv)}, nil
}

func (s *server) deleteServer(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
	if err := s.checkLock(ctx, srv); err != nil {
		return api.None{}, err
	}
	if err := s.checkBus(ctx); err != nil {
		return api.None{}, err
	}
	if err := s.cfg.Store.BeginDelete(ctx, srv.ID); err != nil {
		return api.None{}, err
	}
	s.notifyConductor(ctx, srv.ID)
	return api.None{}, nil // 204
}
