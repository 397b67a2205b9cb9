package api

import (
	"context"
	"maps"
	"slices"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleMetadata       = "os_compute_api:server-metadata:index"
	ruleMetadataShow   = "os_compute_api:server-metadata:show"
	ruleMetadataAdd    = "os_compute_api:server-metadata:create"
	ruleMetadataSet    = "os_compute_api:server-metadata:update_all"
	ruleMetadataUpdate = "os_compute_api:server-metadata:update"
	ruleMetadataDelete = "os_compute_api:server-metadata:delete"
)

var metadataRules = []rule{
	{ruleMetadata, "rule:project_reader_or_admin", "List the metadata of a server", "GET", "/servers/{server_id}/metadata"},
	{ruleMetadataShow, "rule:project_reader_or_admin", "Show a metadata item of a server", "GET", "/servers/{server_id}/metadata/{key}"},
	{ruleMetadataAdd, "rule:project_member_or_admin", "Add metadata items to a server", "POST", "/servers/{server_id}/metadata"},
	{ruleMetadataSet, "rule:project_member_or_admin", "Replace the metadata of a server", "PUT", "/servers/{server_id}/metadata"},
	{ruleMetadataUpdate, "rule:project_member_or_admin", "Set a metadata item of a server", "PUT", "/servers/{server_id}/metadata/{key}"},
	{ruleMetadataDelete, "rule:project_member_or_admin", "Delete a metadata item of a server", "DELETE", "/servers/{server_id}/metadata/{key}"},
}

func (s *server) metadataRoutes(all, withBody *api.Group) {
	const path = "/servers/{id}/metadata"
	reads := api.NewGroup(all, api.Route{Pattern: path, Errors: []int{notFound}})
	writes := api.NewGroup(withBody, api.Route{Pattern: path, Errors: []int{notFound, conflict}})
	t := s.target()
	api.HandleTarget(reads, api.Route{Pattern: "GET", Rule: ruleMetadata, Summary: "List the metadata of a server", Query: noQuery}, t, s.showMetadata)
	api.HandleTarget(reads, api.Route{Pattern: "GET /{key}", Rule: ruleMetadataShow, Summary: "Show a metadata item of a server", Query: noQuery}, t, s.showItem)
	api.HandleTarget(writes, api.Route{Pattern: "POST", Rule: ruleMetadataAdd, Summary: "Add metadata items to a server"}, t, s.addMetadata)
	api.HandleTarget(writes, api.Route{Pattern: "PUT", Rule: ruleMetadataSet, Summary: "Replace the metadata of a server"}, t, s.setMetadata)
	api.HandleTarget(writes, api.Route{Pattern: "PUT /{key}", Rule: ruleMetadataUpdate, Summary: "Set a metadata item of a server"}, t, s.setItem)
	api.HandleTarget(reads, api.Route{
		Pattern: "DELETE /{key}", Rule: ruleMetadataDelete, Summary: "Delete a metadata item of a server", Errors: []int{conflict},
	}, t, s.deleteItem)
}

type metadataBody struct {
	Metadata metadata `json:"metadata"`
}

type metadataItem struct {
	Meta oneItem `json:"meta"`
}

// oneItem is a body with one metadata item.
type oneItem map[string]string

// JSONSchema implements api.JSONSchemer.
func (oneItem) JSONSchema() string {
	schema := metadata(nil).JSONSchema()
	return schema[:len(schema)-1] + `, "minProperties": 1, "maxProperties": 1}`
}

// changeableStates are the values of vm_state in which Nova allows to change the metadata and the tags of a server.
var changeableStates = []string{store.Active, "paused", "suspended", store.Stopped}

// checkState returns Conflict, with Nova's text, if a server's vm_state does not allow a change of its metadata or tags. The parameter what is Nova's name of the change.
func checkState(srv *store.Server, what string) error {
	if !slices.Contains(changeableStates, srv.VMState) {
		return fault.New(fault.Conflict, "Cannot '%s' instance %s while it is in vm_state %s", what, srv.ID, srv.VMState)
	}
	return nil
}

// changeMetadata changes the metadata of a server. The parameter what is Nova's name of the change. Errors: Conflict if the server is locked, or its state does not allow the
// change; Denied if the server would have too many items.
func (s *server) changeMetadata(ctx context.Context, srv *store.Server, what string, change func(map[string]string) (map[string]string, error)) (metadataBody, error) {
	if err := s.checkLock(ctx, srv); err != nil {
		return metadataBody{}, err
	}
	now, err := s.cfg.Store.ChangeServer(ctx, srv.ID, func(srv *store.Server) (err error) {
		if err := checkState(srv, what); err != nil {
			return err
		}
		if srv.Metadata.V, err = change(srv.Metadata.V); err == nil && what != deleteMetadata { // a deletion is allowed even if the limit was lowered and the server still exceeds it
			err = s.tooManyItems(len(srv.Metadata.V))
		}
		return err
	})
	if err != nil {
		return metadataBody{}, err
	}
	return metadataBody{now.Metadata.V}, nil
}

// withItems returns a change that adds items.
func withItems(more map[string]string) func(map[string]string) (map[string]string, error) {
	return func(m map[string]string) (map[string]string, error) {
		out := map[string]string{}
		maps.Copy(out, m)
		maps.Copy(out, more)
		return out, nil
	}
}

func (s *server) showMetadata(_ context.Context, _ *api.Request[api.None], srv *store.Server) (metadataBody, error) {
	return metadataBody{srv.Metadata.V}, nil
}

func noItem() error { return fault.New(fault.NotFound, "Metadata item was not found") }

func (s *server) showItem(_ context.Context, r *api.Request[api.None], srv *store.Server) (metadataItem, error) {
	key := r.PathValue("key")
	value, ok := srv.Metadata.V[key]
	if !ok {
		return metadataItem{}, noItem()
	}
	return metadataItem{oneItem{key: value}}, nil
}

// Nova's names of the changes.
const (
	updateMetadata = "update metadata"
	deleteMetadata = "delete metadata"
)

func (s *server) addMetadata(ctx context.Context, r *api.Request[metadataBody], srv *store.Server) (metadataBody, error) {
	return s.changeMetadata(ctx, srv, updateMetadata, withItems(r.Body.Metadata))
}

func (s *server) setMetadata(ctx context.Context, r *api.Request[metadataBody], srv *store.Server) (metadataBody, error) {
	return s.changeMetadata(ctx, srv, updateMetadata, func(map[string]string) (map[string]string, error) { return r.Body.Metadata, nil })
}

func (s *server) setItem(ctx context.Context, r *api.Request[metadataItem], srv *store.Server) (metadataItem, error) {
	if _, ok := r.Body.Meta[r.PathValue("key")]; !ok {
		return metadataItem{}, fault.New(fault.Invalid, "Request body and URI mismatch")
	}
	_, err := s.changeMetadata(ctx, srv, updateMetadata, withItems(r.Body.Meta))
	return r.Body, err
}

func (s *server) deleteItem(ctx context.Context, r *api.Request[api.None], srv *store.Server) (api.None, error) {
	key := r.PathValue("key")
	if _, ok := srv.Metadata.V[key]; !ok {
		return api.None{}, noItem()
	}
	_, err := s.changeMetadata(ctx, srv, deleteMetadata, func(m map[string]string) (map[string]string, error) {
		delete(m, key)
		return m, nil
	})
	return api.None{}, err
}
