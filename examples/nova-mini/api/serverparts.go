package api

import (
	"context"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// This file has what a server without networks and volumes shows of them, and other parts that are always empty.

// The names of the rules, as in Nova.
const (
	ruleShowSecret    = "os_compute_api:os-server-password:show"  //nolint:gosec // the name of a rule
	ruleClearSecret   = "os_compute_api:os-server-password:clear" //nolint:gosec // the name of a rule
	ruleTopology      = "compute:server:topology:index"
	ruleServerVolumes = "os_compute_api:os-volumes-attachments:index"
	ruleServerVolume  = "os_compute_api:os-volumes-attachments:show"
)

var partRules = []rule{
	{ruleShowSecret, "rule:project_reader_or_admin", "Show the encrypted password of a server", "GET", "/servers/{server_id}/os-server-password"},
	{ruleClearSecret, "rule:project_member_or_admin", "Clear the encrypted password of a server", "DELETE", "/servers/{server_id}/os-server-password"},
	{ruleTopology, "rule:project_reader_or_admin", "Show the topology of a server", "GET", "/servers/{server_id}/topology"},
	{ruleServerVolumes, "rule:project_reader_or_admin", "List the volumes of a server", "GET", "/servers/{server_id}/os-volume_attachments"},
	{ruleServerVolume, "rule:project_reader_or_admin", "Show a volume of a server", "GET", "/servers/{server_id}/os-volume_attachments/{volume_id}"},
}

func (s *server) partRoutes(all, _ *api.Group) {
	parts := api.NewGroup(all, api.Route{Pattern: "/servers/{id}", Errors: []int{notFound}})
	t := s.target()
	api.HandleTarget(parts, api.Route{Pattern: "GET /os-server-password", Rule: ruleShowSecret, Summary: "Show the encrypted password of a server", Query: noQuery}, t, always(passwordBody{}))
	api.HandleTarget(parts, api.Route{Pattern: "DELETE /os-server-password", Rule: ruleClearSecret, Summary: "Clear the encrypted password of a server"}, t, always(api.None{}))
	api.HandleTarget(parts, api.Route{Pattern: "GET /topology", Min: "2.78", Rule: ruleTopology, Summary: "Show the topology of a server", Query: noQuery}, t,
		always(topology{Nodes: alwaysEmptyList{}}))
	api.HandleTarget(parts, api.Route{Pattern: "GET /os-volume_attachments", Rule: ruleServerVolumes, Summary: "List the volumes of a server", Query: pagesByOffset}, t,
		always(volumeList{alwaysEmptyList{}}))
	api.HandleTarget(parts, api.Route{Pattern: "GET /os-volume_attachments/{volume}", Rule: ruleServerVolume, Summary: "Show a volume of a server", Query: noQuery}, t,
		missing(func(srv *store.Server, volume string) error {
			return fault.New(fault.NotFound, "Instance %s is not attached to volume %s", srv.ID, volume)
		}, "volume"))
}

// pagesByOffset is the query of a list with the older form of pages.
var pagesByOffset = pagesWith("")

// pagesWith returns the query of a list with the older form of pages, and with more parameters as properties of a schema.
func pagesWith(more string) []api.Schema {
	properties := `{"limit": {"type": "array", "items": {"type": "string", "pattern": "^[0-9]+$"}}, "offset": {"type": "array", "items": {"type": "string", "pattern": "^[0-9]+$"}}`
	if more != "" {
		properties += ", " + more
	}
	return []api.Schema{
		{Max: "2.74", JSON: `{"type": "object", "properties": ` + properties + `}}`},
		{Min: strictSince, JSON: `{"type": "object", "additionalProperties": false, "properties": ` + properties + `}}`},
	}
}

// always returns a handler with one reply.
func always[R any](reply R) func(context.Context, *api.Request[api.None], *store.Server) (R, error) {
	return func(context.Context, *api.Request[api.None], *store.Server) (R, error) { return reply, nil }
}

// missing returns a handler for parts of which a server has none. err gets the value of the parameter in the path.
func missing(err func(srv *store.Server, name string) error, parameter string) func(context.Context, *api.Request[api.None], *store.Server) (api.None, error) {
	return func(_ context.Context, r *api.Request[api.None], srv *store.Server) (api.None, error) {
		return api.None{}, err(srv, r.PathValue(parameter))
	}
}

type passwordBody struct {
	Password alwaysEmpty `json:"password"`
}

type topology struct {
	Nodes    alwaysEmptyList `json:"nodes"`
	PageSize alwaysNull      `json:"pagesize_kb"`
}

type volumeList struct {
	Volumes alwaysEmptyList `json:"volumeAttachments"`
}
