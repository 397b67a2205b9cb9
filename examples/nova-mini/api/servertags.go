package api

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleTags       = "os_compute_api:os-server-tags:index"
	ruleTagShow    = "os_compute_api:os-server-tags:show"
	ruleTagsSet    = "os_compute_api:os-server-tags:update_all"
	ruleTagAdd     = "os_compute_api:os-server-tags:update"
	ruleTagsDelete = "os_compute_api:os-server-tags:delete_all"
	ruleTagDelete  = "os_compute_api:os-server-tags:delete"
)

var tagRules = []rule{
	{ruleTags, "rule:project_reader_or_admin", "List the tags of a server", "GET", "/servers/{server_id}/tags"},
	{ruleTagShow, "rule:project_reader_or_admin", "Check whether a server has a tag", "GET", "/servers/{server_id}/tags/{tag}"},
	{ruleTagsSet, "rule:project_member_or_admin", "Replace the tags of a server", "PUT", "/servers/{server_id}/tags"},
	{ruleTagAdd, "rule:project_member_or_admin", "Add a tag to a server", "PUT", "/servers/{server_id}/tags/{tag}"},
	{ruleTagsDelete, "rule:project_member_or_admin", "Delete the tags of a server", "DELETE", "/servers/{server_id}/tags"},
	{ruleTagDelete, "rule:project_member_or_admin", "Delete a tag of a server", "DELETE", "/servers/{server_id}/tags/{tag}"},
}

func (s *server) tagRoutes(all, withBody *api.Group) {
	def := api.Route{Pattern: "/servers/{id}/tags", Min: "2.26", Errors: []int{notFound, conflict}}
	plain, bodies := api.NewGroup(all, def), api.NewGroup(withBody, def)
	t := s.target()
	api.HandleTarget(plain, api.Route{Pattern: "GET", Rule: ruleTags, Summary: "List the tags of a server", Query: noQuery}, t, s.listTags)
	api.HandleTarget(plain, api.Route{Pattern: "GET /{tag}", Rule: ruleTagShow, Summary: "Check whether a server has a tag", Query: noQuery}, t, s.showTag)
	api.HandleTarget(bodies, api.Route{Pattern: "PUT", Rule: ruleTagsSet, Summary: "Replace the tags of a server"}, t, s.setTags)
	api.HandleTarget(plain, api.Route{Pattern: "PUT /{tag}", Rule: ruleTagAdd, Summary: "Add a tag to a server", Status: http.StatusCreated, Errors: []int{http.StatusNoContent}}, t, s.addTag)
	api.HandleTarget(plain, api.Route{Pattern: "DELETE", Rule: ruleTagsDelete, Summary: "Delete the tags of a server"}, t, s.deleteTags)
	api.HandleTarget(plain, api.Route{Pattern: "DELETE /{tag}", Rule: ruleTagDelete, Summary: "Delete a tag of a server"}, t, s.deleteTag)
}

// maxTags is the maximum number of tags of a server, and maxTag is the maximum length of a tag, in characters.
const maxTags, maxTag = 50, 60

type tagsBody struct {
	Tags tags `json:"tags"`
}

// changeTags changes the tags of a server. The parameter what is Nova's name of the change. Errors: Conflict if the server's state does not allow the change.
func (s *server) changeTags(ctx context.Context, id, what string, change func([]string) ([]string, error)) (tagsBody, error) {
	srv, err := s.cfg.Store.ChangeServer(ctx, id, func(srv *store.Server) (err error) {
		if err := checkState(srv, what); err != nil {
			return err
		}
		if srv.Tags.V, err = change(srv.Tags.V); err == nil {
			srv.Tags.V = tags(srv.Tags.V).sorted()
		}
		return err
	})
	if err != nil {
		return tagsBody{}, err
	}
	return tagsBody{shownTags(srv)}, nil
}

// shownTags returns the tags of a server. The result is not nil.
func shownTags(srv *store.Server) []string {
	if srv.Tags.V == nil {
		return []string{}
	}
	return srv.Tags.V
}

func (s *server) listTags(_ context.Context, _ *api.Request[api.None], srv *store.Server) (tagsBody, error) {
	return tagsBody{shownTags(srv)}, nil
}

func (s *server) showTag(_ context.Context, r *api.Request[api.None], srv *store.Server) (api.None, error) {
	if name := r.PathValue("tag"); !slices.Contains(srv.Tags.V, name) {
		return api.None{}, fault.New(fault.NotFound, "Server %s has no tag '%s'", srv.ID, name)
	}
	return api.None{}, nil // 204
}

func (s *server) setTags(ctx context.Context, r *api.Request[tagsBody], srv *store.Server) (tagsBody, error) {
	return s.changeTags(ctx, srv.ID, "update tags", func([]string) ([]string, error) { return r.Body.Tags, nil })
}

// checkTag returns Invalid, with Nova's text, for a text that cannot be a tag.
func checkTag(name string) error {
	problem := ""
	switch {
	case strings.ContainsAny(name, ",/"):
		problem = "'" + name + "' does not match '^[^,/]*$'"
	case utf8.RuneCountInString(name) > maxTag:
		problem = "'" + name + "' is too long"
	}
	if problem == "" {
		return nil
	}
	return fault.New(fault.Invalid, "Tag '%s' is invalid. It must be a non empty string without characters '/' and ','. Validation error message: %s", name, problem)
}

func (s *server) addTag(ctx context.Context, r *api.Request[api.None], srv *store.Server) (api.None, error) {
	if err := refuseBody(r.Request); err != nil {
		return api.None{}, err
	}
	name := r.PathValue("tag")
	_, err := s.changeTags(ctx, srv.ID, "update tag", func(have []string) ([]string, error) {
		if err := checkTag(name); err != nil {
			return nil, err
		}
		switch {
		case len(have) >= maxTags:
			return nil, fault.New(fault.Invalid, "The number of tags exceeded the per-server limit %d", maxTags)
		case slices.Contains(have, name):
			r.Status = http.StatusNoContent
			return have, nil
		}
		return append(have, name), nil
	})
	if err == nil && r.Status == http.StatusCreated {
		r.ReplyHeader.Set("Location", linksTo(r.Request, "servers", srv.ID)[0].Href+"/tags/"+url.PathEscape(name))
	}
	return api.None{}, err
}

// refuseBody returns Invalid if a request has a body other than null.
func refuseBody(r *http.Request) error {
	const most = 64 // null with blanks around it
	raw, err := io.ReadAll(io.LimitReader(r.Body, most+1))
	if err != nil {
		return fault.New(fault.Invalid, "Malformed request body: %w", err)
	}
	if text := string(bytes.TrimSpace(raw)); len(raw) > most || text != "" && text != "null" {
		return fault.New(fault.Invalid, "The request must have no body, or null: it is not of type 'null'")
	}
	return nil
}

func (s *server) deleteTags(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
	_, err := s.changeTags(ctx, srv.ID, "delete tags", func([]string) ([]string, error) { return []string{}, nil })
	return api.None{}, err
}

func (s *server) deleteTag(ctx context.Context, r *api.Request[api.None], srv *store.Server) (api.None, error) {
	name := r.PathValue("tag")
	_, err := s.changeTags(ctx, srv.ID, "delete tag", func(have []string) ([]string, error) {
		i := slices.Index(have, name)
		if i < 0 {
			return nil, fault.New(fault.NotFound, "Instance %s has no tag '%s'", srv.ID, name)
		}
		return slices.Delete(slices.Clone(have), i, i+1), nil
	})
	return api.None{}, err
}
