package api

import (
	"context"
	"encoding/json"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// This file has the routes for parts of a server that are always empty in nova-mini: volumes, the encrypted password and the topology.

// The names of the rules, as in Nova.
const (
	ruleShowSecret    = "os_compute_api:os-server-password:show"  //nolint:gosec // the name of a rule
	ruleClearSecret   = "os_compute_api:os-server-password:clear" //nolint:gosec // the name of a rule
	ruleTopology      = "compute:server:topology:index"
	ruleServerVolumes = "os_compute_api:os-volumes-attachments:index"
	ruleServerVolume  = "os_compute_api:os-volumes-attachments:show"
	ruleAttachVolume  = "os_compute_api:os-volumes-attachments:create"
	ruleChangeVolume  = "os_compute_api:os-volumes-attachments:update"
	ruleDetachVolume  = "os_compute_api:os-volumes-attachments:delete"
)

var partRules = []rule{
	{ruleShowSecret, "rule:project_reader_or_admin", "Show the encrypted password of a server", "GET", "/servers/{server_id}/os-server-password"},
	{ruleClearSecret, "rule:project_member_or_admin", "Clear the encrypted password of a server", "DELETE", "/servers/{server_id}/os-server-password"},
	{ruleTopology, "rule:project_reader_or_admin", "Show the topology of a server", "GET", "/servers/{server_id}/topology"},
	{ruleServerVolumes, "rule:project_reader_or_admin", "List the volumes of a server", "GET", "/servers/{server_id}/os-volume_attachments"},
	{ruleServerVolume, "rule:project_reader_or_admin", "Show a volume of a server", "GET", "/servers/{server_id}/os-volume_attachments/{volume_id}"},
	{ruleAttachVolume, "rule:project_member_or_admin", "Attach a volume to a server", "POST", "/servers/{server_id}/os-volume_attachments"},
	{ruleChangeVolume, "rule:project_member_or_admin", "Change a volume of a server", "PUT", "/servers/{server_id}/os-volume_attachments/{volume_id}"},
	{ruleDetachVolume, "rule:project_member_or_admin", "Detach a volume from a server", "DELETE", "/servers/{server_id}/os-volume_attachments/{volume_id}"},
}

func (s *server) partRoutes(all, withBody *api.Group) {
	parts := api.NewGroup(all, api.Route{Pattern: "/servers/{id}", Errors: []int{notFound}})
	t := s.target()
	api.HandleTarget(parts, api.Route{Pattern: "GET /os-server-password", Rule: ruleShowSecret, Summary: "Show the encrypted password of a server", Query: noQuery}, t, replyWith(passwordBody{}))
	api.HandleTarget(parts, api.Route{Pattern: "DELETE /os-server-password", Rule: ruleClearSecret, Summary: "Clear the encrypted password of a server"}, t, replyWith(api.None{}))
	api.HandleTarget(parts, api.Route{Pattern: "GET /topology", Min: "2.78", Rule: ruleTopology, Summary: "Show the topology of a server", Query: noQuery}, t,
		replyWith(topology{Nodes: alwaysEmptyList{}}))
	api.HandleTarget(parts, api.Route{Pattern: "GET /os-volume_attachments", Rule: ruleServerVolumes, Summary: "List the volumes of a server", Query: pagesByOffset}, t,
		replyWith(volumeList{alwaysEmptyList{}}))
	api.HandleTarget(parts, api.Route{Pattern: "GET /os-volume_attachments/{volume}", Rule: ruleServerVolume, Summary: "Show a volume of a server", Query: noQuery}, t,
		missingPart(func(srv *store.Server, volume string) error {
			return fault.New(fault.NotFound, "Instance %s is not attached to volume %s", srv.ID, volume)
		}, "volume"))
	api.HandleTarget(parts, api.Route{Pattern: "DELETE /os-volume_attachments/{volume}", Rule: ruleDetachVolume, Summary: "Detach a volume from a server"}, t,
		missingPart(func(_ *store.Server, volume string) error { return noVolume(volume) }, "volume"))
	change := api.NewGroup(withBody, api.Route{Pattern: "/servers/{id}/os-volume_attachments", Errors: []int{notFound}})
	api.HandleTarget(change, api.Route{Pattern: "POST", Rule: ruleAttachVolume, Summary: "Attach a volume to a server"}, t, refuseVolume[attachVolume])
	api.HandleTarget(change, api.Route{Pattern: "PUT /{volume}", Rule: ruleChangeVolume, Summary: "Change a volume of a server"}, t, refuseVolume[changeVolume])
}

// noVolume is Nova's error for a volume that does not exist. nova-mini has no volumes.
func noVolume(id string) error {
	return fault.New(fault.NotFound, "Volume %.255s could not be found.", id)
}

// attachVolume and changeVolume are the bodies of requests about a volume.
type (
	attachVolume struct {
		Volume attachedVolume `json:"volumeAttachment"`
	}
	changeVolume struct {
		Volume changedVolume `json:"volumeAttachment"`
	}
	attachedVolume struct {
		ID     string     `json:"volumeId" format:"uuid"`
		Device deviceName `json:"device,omitzero"`
		Tag    tag        `json:"tag,omitempty" since:"2.49"`
		Delete boolean    `json:"delete_on_termination,omitzero" since:"2.79"`
	}
	changedVolume struct {
		ID         string     `json:"volumeId" format:"uuid"`
		Device     deviceName `json:"device,omitzero" since:"2.85"`
		Tag        tag        `json:"tag,omitempty" since:"2.85"`
		Delete     boolean    `json:"delete_on_termination,omitzero" since:"2.85"`
		Server     string     `json:"serverId,omitempty" format:"uuid" since:"2.85"`
		Attachment string     `json:"id,omitempty" format:"uuid" since:"2.85"`
	}
)

// deviceName is the name of a disk in a guest, or null.
type deviceName struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (deviceName) JSONSchema() string {
	return `{"type": ["string", "null"], "pattern": "(^/dev/x{0,1}[a-z]{0,1}d{0,1})([a-z]+)[0-9]*$"}`
}

func (b attachVolume) volume() string { return b.Volume.ID }
func (b changeVolume) volume() string { return b.Volume.ID }

// refuseVolume refuses a request about a volume.
func refuseVolume[B interface{ volume() string }](_ context.Context, r *api.Request[B], _ *store.Server) (api.None, error) {
	return api.None{}, noVolume(r.Body.volume())
}

// pagesByOffset is the query of a list with the older form of pages: limit and offset.
var pagesByOffset = pagesWith("")

// pagesWith returns the query of a list with the older form of pages, and with more parameters. The text more has the properties of a JSON Schema.
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

// replyWith returns a handler that always returns the same reply.
func replyWith[R any](reply R) func(context.Context, *api.Request[api.None], *store.Server) (R, error) {
	return func(context.Context, *api.Request[api.None], *store.Server) (R, error) { return reply, nil }
}

// missingPart returns a handler for a part that no server has. The handler calls the function err with the value of the path's parameter, and
// returns the resulting error.
func missingPart(err func(srv *store.Server, name string) error, parameter string) func(context.Context, *api.Request[api.None], *store.Server) (api.None, error) {
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
