package api

import (
	"context"
	"encoding/json"
	"math"
	"net/http"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleCreate         = "os_compute_api:servers:create"
	ruleForcedHost     = "os_compute_api:servers:create:forced_host"
	ruleChosenHost     = "compute:servers:create:requested_destination"
	ruleNetworks       = "os_compute_api:servers:create:attach_network"
	ruleVolumes        = "os_compute_api:servers:create:attach_volume"
	ruleZeroDisk       = "os_compute_api:servers:create:zero_disk_flavor"
	ruleTrusted        = "os_compute_api:servers:create:trusted_certs"
	ruleTrustedRebuild = "os_compute_api:servers:rebuild:trusted_certs"
	ruleExternal       = "network:attach_external_network"
	ruleIndex          = "os_compute_api:servers:index"
	ruleDetail         = "os_compute_api:servers:detail"
	ruleAllTenants     = "os_compute_api:servers:index:get_all_tenants"
	ruleAllDetails     = "os_compute_api:servers:detail:get_all_tenants"
	ruleAllFilters     = "os_compute_api:servers:allow_all_filters"
	ruleShow           = "os_compute_api:servers:show"
	ruleExtended       = "os_compute_api:os-extended-server-attributes"
	ruleExtraSpecs     = "os_compute_api:servers:show:flavor-extra-specs"
	ruleHostStatus     = "os_compute_api:servers:show:host_status"
	ruleHostUnknown    = "os_compute_api:servers:show:host_status:unknown-only"
	ruleDelete         = "os_compute_api:servers:delete"
	ruleUpdate         = "os_compute_api:servers:update"
)

var serverRules = []rule{
	{ruleCreate, "rule:project_member_or_admin", "Create a server", "POST", "/servers"},
	{ruleForcedHost, "rule:context_is_admin", "Create a server on a host that the availability zone names", "POST", "/servers"},
	{ruleChosenHost, "rule:context_is_admin", "Create a server on a chosen host", "POST", "/servers"},
	{ruleNetworks, "rule:project_member_or_admin", "Create a server with networks", "POST", "/servers"},
	{ruleVolumes, "rule:project_member_or_admin", "Create a server with disks", "POST", "/servers"},
	{ruleZeroDisk, "rule:context_is_admin", "Create a server with a flavor whose disk is 0; the disk gets the size of the image", "POST", "/servers"},
	{ruleTrusted, "rule:project_member_or_admin", "Create a server with trusted image certificates", "POST", "/servers"},
	{ruleTrustedRebuild, "rule:project_member_or_admin", "Rebuild a server with trusted image certificates", "POST", "/servers/{server_id}/action (rebuild)"},
	{ruleExternal, "rule:context_is_admin", "Attach a server to an external network that is not shared", "POST", "/servers"},
	{ruleIndex, "rule:project_reader_or_admin", "List servers", "GET", "/servers"},
	{ruleDetail, "rule:project_reader_or_admin", "List servers with details", "GET", "/servers/detail"},
	{ruleAllTenants, "rule:context_is_admin", "List the servers of all projects", "GET", "/servers"},
	{ruleAllDetails, "rule:context_is_admin", "List the servers of all projects with details", "GET", "/servers/detail"},
	{ruleAllFilters, "rule:context_is_admin", "Filter servers by attributes that are for administrators", "GET", "/servers"},
	{ruleShow, "rule:project_reader_or_admin", "Show a server", "GET", "/servers/{server_id}"},
	{ruleExtended, "rule:context_is_admin", "Show the host of a server", "GET", "/servers/{server_id}"},
	{ruleExtraSpecs, "rule:project_reader_or_admin", "Show the extra specs of a server's flavor", "GET", "/servers/{server_id}"},
	{ruleHostStatus, "rule:context_is_admin", "Show the status of a server's host", "GET", "/servers/{server_id}"},
	{ruleHostUnknown, "rule:context_is_admin", "Show the status of a server's host if it is UNKNOWN, without the rule for every status", "GET", "/servers/{server_id}"},
	{ruleUpdate, "rule:project_member_or_admin", "Change a server", "PUT", "/servers/{server_id}"},
	{ruleDelete, "rule:project_member_or_admin", "Delete a server", "DELETE", "/servers/{server_id}"},
}

func (s *server) serverRoutes(all, withBody *api.Group) {
	create := api.Route{
		Pattern: "POST /servers", Max: "2.18", Rule: ruleCreate, Summary: "Create a server", Status: http.StatusAccepted, Errors: []int{http.StatusNotImplemented, unavailable}, Idempotency: s.cfg.Store.Replies(),
	}
	api.HandleRoute(withBody, create, s.createPlain)
	create.Min, create.Max = "2.19", ""
	api.HandleRoute(withBody, create, s.createServer)
	api.HandleRoute(all, api.Route{Pattern: "GET /servers", Rule: ruleIndex, Summary: "List servers", List: &servers}, s.listServers)
	api.HandleRoute(all, api.Route{
		Pattern: "GET /servers/detail", Rule: ruleDetail, Summary: "List servers with details", List: &servers,
	}, s.listServerDetails)
	api.HandleTarget(all, api.Route{
		Pattern: "GET /servers/{id}", Rule: ruleShow, Summary: "Show a server", Errors: []int{notFound}, Query: noQuery,
	}, s.target(), s.showServer)
	api.HandleTarget(withBody, api.Route{
		Pattern: "PUT /servers/{id}", Rule: ruleUpdate, Summary: "Change a server", Errors: []int{notFound, conflict},
	}, s.target(), s.updateServer)
	api.HandleTarget(all, api.Route{
		Pattern: "DELETE /servers/{id}", Rule: ruleDelete, Summary: "Delete a server", Errors: []int{notFound, conflict, unavailable},
	}, s.target(), s.deleteServer)
}

// target returns the target of a route whose path names a server. As in Nova, a client gets NotFound for a server of another project if the rule denies the request.
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

// checkFlavorDisks returns Denied, with Nova's text, if the flavor's disk is 0 and the client may not use such flavors. With such a flavor the disk of the server has
// the size of the image, and the claim on the host does not cover the disk. checkFlavorDisks returns Invalid if the disks together are larger than the database can store. No host
// has such disks.
func (s *server) checkFlavorDisks(ctx context.Context, f *store.Flavor) error {
	if f.Resources().DiskGiB > math.MaxInt32 {
		return fault.New(fault.Invalid, "Flavor %s has disks of more than %d GiB.", f.ID, math.MaxInt32)
	}
	if f.DiskGiB > 0 || s.mux.Enforce(ctx, ruleZeroDisk, nil) == nil {
		return nil
	}
	return fault.New(fault.Denied, "Only volume-backed servers are allowed for flavors with zero disk.")
}

// checkExtraDisks returns 501 for the flavor of a new server with an ephemeral or a swap disk, if no driver gives such disks to a guest.
func (s *server) checkExtraDisks(ctx context.Context, f *store.Flavor) error {
	if f.EphemeralGiB == 0 && f.SwapMiB == 0 {
		return nil
	}
	has, err := s.cfg.Store.HasCapability(ctx, compute.CapExtraDisks)
	if err == nil && !has {
		err = notSupported("Ephemeral and swap disks are not supported: choose a flavor without them.")
	}
	return err
}

// checkSameDisks returns 501 if a resize to a flavor would change the ephemeral or the swap disk of a server.
func checkSameDisks(srv *store.Server, f *store.Flavor) error {
	if now := srv.Flavor(); now.FlavorExtra() != (store.ExtraDisks{EphemeralGiB: f.EphemeralGiB, SwapMiB: f.SwapMiB}) {
		return notSupported("A resize cannot change ephemeral and swap disks: choose a flavor with the same ones.")
	}
	return nil
}

// flavor returns the flavor that a reference names. The reference is a flavor's id or a link to a flavor. Errors: Invalid if
// the flavor does not exist or the client may not use it.
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
	var out serverPage[T]
	q, err := s.serverQuery(ctx, r.Request, r.List, allRule)
	if err != nil {
		return out, err
	}
	list, err := s.cfg.Store.Servers(ctx, q)
	out.Servers = make([]T, 0, len(list))
	for i := range list {
		out.Servers = append(out.Servers, view(&list[i]))
	}
	if n := len(list); n > 0 {
		out.Links = r.NextPage(n, list[n-1].ID)
	}
	return out, err
}

func (s *server) listServers(ctx context.Context, r *api.Request[api.None]) (serverPage[serverBrief], error) {
	l := newLinker(r.Request)
	return serverList(ctx, s, r, ruleAllTenants, func(v *store.Server) serverBrief {
		return serverBrief{ID: v.ID, Name: v.Name, Links: l.to("servers", v.ID)}
	})
}

func (s *server) listServerDetails(ctx context.Context, r *api.Request[api.None]) (serverPage[serverView], error) {
	read := s.newLookups(r.Request)
	return serverList(ctx, s, r, ruleAllDetails, func(v *store.Server) serverView { return s.viewServer(ctx, v, read) })
}

func (s *server) showServer(_ context.Context, r *api.Request[api.None], srv *store.Server) (oneServer, error) {
	return oneServer{s.viewOne(r.Request, srv)}, nil
}

type updateServer struct {
	Server changedServer `json:"server"`
}

// changedServer is a request to change a server. An attribute that the request leaves out stays.
type changedServer struct {
	Name        name             `json:"name,omitempty"`
	DiskConfig  string           `json:"OS-DCF:diskConfig,omitempty" enum:"AUTO,MANUAL"`
	AccessIPv4  string           `json:"accessIPv4,omitempty" format:"ipv4"`
	AccessIPv6  string           `json:"accessIPv6,omitempty" format:"ipv6"`
	Description givenDescription `json:"description,omitzero" since:"2.19"`
	Hostname    string           `json:"hostname,omitempty" min:"2" max:"63" pattern:"^[a-zA-Z0-9]+[a-zA-Z0-9-]*[a-zA-Z0-9]+$" since:"2.90" until:"2.93"`
	FQDN        string           `json:"fqdn,omitempty" name:"hostname" min:"1" max:"255" pattern:"^[a-zA-Z0-9-._]*$" since:"2.94"`
	PinnedZone  givenName        `json:"pinned_availability_zone,omitzero" since:"2.104"`
}

// givenDescription is a description, or null for none. RawMessage is nil if the client has left it out.
type givenDescription struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (givenDescription) JSONSchema() string {
	return strings.Replace(description("").JSONSchema(), `"string"`, `["string", "null"]`, 1)
}

// givenName is a text, or null for none. RawMessage is nil if the client has left it out.
type givenName struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (givenName) JSONSchema() string {
	return `{"oneOf": [{"type": "string", "minLength": 1, "maxLength": 255}, {"type": "null"}]}`
}

// textIn returns the text of a value, or nil for null.
func textIn(raw json.RawMessage) *string {
	if string(raw) == "null" {
		return nil
	}
	return new(plainText(raw))
}

// apply changes a server as the request says. Errors: Conflict, with Nova's text, if the server cannot be pinned to the zone.
func (c *changedServer) apply(srv *store.Server) error {
	for _, text := range []struct {
		to   *string
		from string
	}{{&srv.Name, string(c.Name)}, {&srv.AccessIPv4, c.AccessIPv4}, {&srv.AccessIPv6, normalIP(c.AccessIPv6)}, {&srv.Hostname, c.Hostname + c.FQDN}} {
		if text.from != "" {
			*text.to = text.from
		}
	}
	if c.DiskConfig != "" {
		srv.AutoDisk = c.DiskConfig == "AUTO"
	}
	if c.Description.RawMessage != nil {
		srv.Description = textIn(c.Description.RawMessage)
	}
	if c.PinnedZone.RawMessage == nil {
		return nil
	}
	wanted := textIn(c.PinnedZone.RawMessage)
	switch {
	case wanted == nil:
	case srv.PinnedZone != nil && *srv.PinnedZone != *wanted:
		return fault.New(fault.Conflict, "Cannot change pinned availability zone directly. Unpin first by setting pinned_availability_zone to null.")
	case srv.PinnedZone == nil && *wanted != srv.Zone:
		return fault.New(fault.Conflict, "Server can only be pinned to its current availability zone '%s', but '%s' was requested.", srv.Zone, *wanted)
	}
	srv.PinnedZone = wanted
	return nil
}

// updatedServer is the reply to PUT. Since 2.75 it has the attributes of GET.
type updatedServer struct {
	Server updatedView `json:"server"`
}

type updatedView struct {
	serverCore
	serverDetails  `since:"2.75"`
	serverUserData `since:"2.75"`
	serverGroups
}

func (s *server) updateServer(ctx context.Context, r *api.Request[updateServer], old *store.Server) (updatedServer, error) {
	srv, err := s.cfg.Store.ChangeServer(ctx, old.ID, r.Body.Server.apply)
	if err != nil {
		return updatedServer{}, err
	}
	srv.TaskState = old.TaskState
	v := s.viewOne(r.Request, srv)
	return updatedServer{updatedView{v.serverCore, v.serverDetails, v.serverUserData, v.serverGroups}}, nil
}

func (s *server) deleteServer(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
	return s.beginDelete(ctx, srv, s.cfg.SoftDelete)
}

// forceDelete deletes a server at once, without a soft deletion. The server may be soft-deleted already.
func (s *server) forceDelete(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
	return s.beginDelete(ctx, srv, false)
}

func (s *server) beginDelete(ctx context.Context, srv *store.Server, soft bool) (api.None, error) {
	if err := s.checkLock(ctx, srv); err != nil {
		return api.None{}, err
	}
	if err := s.checkBus(ctx); err != nil {
		return api.None{}, err
	}
	begin := s.cfg.Store.BeginDelete
	if soft {
		begin = s.cfg.Store.BeginSoftDelete
	}
	if err := begin(ctx, srv.ID); err != nil {
		return api.None{}, err
	}
	s.notifyConductor(ctx, srv.ID)
	return api.None{}, nil // 204
}
