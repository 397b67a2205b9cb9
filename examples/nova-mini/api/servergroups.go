package api

import (
	"cmp"
	"context"
	"encoding/json"
	"math"
	"net/http"
	"strconv"

	"github.com/google/uuid"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleGroups      = "os_compute_api:os-server-groups:index"
	ruleAllGroups   = "os_compute_api:os-server-groups:index:all_projects"
	ruleGroupShow   = "os_compute_api:os-server-groups:show"
	ruleGroupCreate = "os_compute_api:os-server-groups:create"
	ruleGroupDelete = "os_compute_api:os-server-groups:delete"
)

var groupRules = []rule{
	{ruleGroups, "rule:project_reader_or_admin", "List server groups", "GET", "/os-server-groups"},
	{ruleAllGroups, "rule:context_is_admin", "List the server groups of all projects", "GET", "/os-server-groups"},
	{ruleGroupShow, "rule:project_reader_or_admin", "Show a server group", "GET", "/os-server-groups/{server_group_id}"},
	{ruleGroupCreate, "rule:project_member_or_admin", "Create a server group", "POST", "/os-server-groups"},
	{ruleGroupDelete, "rule:project_member_or_admin", "Delete a server group", "DELETE", "/os-server-groups/{server_group_id}"},
}

func (s *server) groupRoutes(all, withBody *api.Group) {
	groups := api.NewGroup(all, api.Route{Pattern: "/os-server-groups"})
	target := api.Target[*store.ServerGroup]{
		Load: func(ctx context.Context, r *http.Request) (*store.ServerGroup, error) {
			return s.cfg.Store.ServerGroup(ctx, r.PathValue("id"), s.visibleMembers(ctx))
		},
		Policy: func(g *store.ServerGroup) map[string]any {
			return map[string]any{"project_id": g.ProjectID, "user_id": g.UserID}
		},
		Missing: func(r *http.Request) error { return store.NoServerGroup(r.PathValue("id")) },
	}
	api.HandleRoute(groups, api.Route{Pattern: "GET", Rule: ruleGroups, Summary: "List server groups", Query: groupQuery}, s.listGroups)
	api.HandleTarget(groups, api.Route{Pattern: "GET /{id}", Rule: ruleGroupShow, Summary: "Show a server group", Errors: []int{notFound}, Query: noQuery}, target, s.showGroup)
	api.HandleTarget(groups, api.Route{Pattern: "DELETE /{id}", Rule: ruleGroupDelete, Summary: "Delete a server group", Errors: []int{notFound}}, target, s.deleteGroup)
	api.HandleRoute(withBody, api.Route{Pattern: "POST /os-server-groups", Rule: ruleGroupCreate, Summary: "Create a server group", Status: http.StatusOK}, s.createGroup)
}

// groupQuery is the query of a list of server groups.
var groupQuery = pagesWith(`"all_projects": {"type": "array", "items": {"type": "string"}}`)

// serverGroup is a server group in replies. Before 2.64 the policy is in a list, and the group has metadata, which are always empty.
type serverGroup struct {
	ID        string     `json:"id" format:"uuid"`
	Name      string     `json:"name"`
	Policies  []string   `json:"policies" until:"2.63"`
	Metadata  struct{}   `json:"metadata" until:"2.63"`
	Policy    string     `json:"policy" enum:"affinity,anti-affinity,soft-affinity,soft-anti-affinity" since:"2.64"`
	Rules     groupLimit `json:"rules" since:"2.64"`
	Members   []string   `json:"members"`
	ProjectID string     `json:"project_id" since:"2.13"`
	UserID    string     `json:"user_id" since:"2.13"`
}

// groupLimit are the rules of a group in replies.
type groupLimit struct {
	MaxPerHost int `json:"max_server_per_host,omitempty" min:"1"`
}

type oneGroup struct {
	Group serverGroup `json:"server_group"`
}

type groupList struct {
	Groups []serverGroup `json:"server_groups"`
}

func viewGroup(g *store.ServerGroup) serverGroup {
	return serverGroup{
		ID: g.ID, Name: g.Name, Policies: []string{string(g.Policy)}, Policy: string(g.Policy), Rules: groupLimit{g.MaxPerHost},
		Members: append([]string{}, g.Members...), ProjectID: g.ProjectID, UserID: g.UserID,
	}
}

// visibleMembers returns the projects whose servers the client sees as members of a group: all projects for an administrator, and otherwise the client's own project.
func (s *server) visibleMembers(ctx context.Context) store.Projects {
	if s.administrator(ctx) {
		return store.AllProjects()
	}
	return store.OfProject(reqctx.From(ctx).ProjectID)
}

// listGroups lists the groups of the client's project. For administrators, the parameter all_projects selects all projects, with any value, as in Nova. For other clients it has no
// effect.
func (s *server) listGroups(ctx context.Context, r *api.Request[api.None]) (groupList, error) {
	out := groupList{Groups: []serverGroup{}}
	in := store.OfProject(reqctx.From(ctx).ProjectID)
	q := r.URL.Query()
	if q.Has("all_projects") && s.administrator(ctx) {
		if err := s.mux.Enforce(ctx, ruleAllGroups, nil); err != nil {
			return out, err
		}
		in = store.AllProjects()
	}
	limit, offset := pageOf(q)
	list, err := s.cfg.Store.ServerGroups(ctx, in, s.visibleMembers(ctx), limit, offset)
	for i := range list {
		out.Groups = append(out.Groups, viewGroup(&list[i]))
	}
	return out, err
}

func (s *server) showGroup(_ context.Context, _ *api.Request[api.None], g *store.ServerGroup) (oneGroup, error) {
	return oneGroup{viewGroup(g)}, nil
}

func (s *server) deleteGroup(ctx context.Context, _ *api.Request[api.None], g *store.ServerGroup) (api.None, error) {
	return api.None{}, s.cfg.Store.DeleteServerGroup(ctx, g.ID)
}

type createGroup struct {
	Group newGroup `json:"server_group"`
}

// newGroup is a request to create a group. A group has one policy. Since 2.15 it may be a soft policy, and since 2.64 the policy is a text instead of a list.
type newGroup struct {
	Name       name          `json:"name"`
	Policies   hardPolicy    `json:"policies" until:"2.14"`
	Policies15 anyPolicy     `json:"policies15" name:"policies" since:"2.15" until:"2.63"`
	Policy     string        `json:"policy" enum:"anti-affinity,affinity,soft-anti-affinity,soft-affinity" since:"2.64"`
	Rules      newGroupRules `json:"rules,omitzero" since:"2.64"`
}

type newGroupRules struct {
	MaxPerHost positive `json:"max_server_per_host,omitzero"`
}

// hardPolicy is a list with one policy that the scheduler enforces. anyPolicy is a list with one policy, which may also be a soft policy.
type (
	hardPolicy []string
	anyPolicy  []string
)

const onePolicy = `{"type": "array", "minItems": 1, "maxItems": 1, "uniqueItems": true, "items": {"type": "string", "enum": [`

// JSONSchema implements api.JSONSchemer.
func (hardPolicy) JSONSchema() string { return onePolicy + `"anti-affinity", "affinity"]}}` }

// JSONSchema implements api.JSONSchemer.
func (anyPolicy) JSONSchema() string {
	return onePolicy + `"anti-affinity", "affinity", "soft-anti-affinity", "soft-affinity"]}}`
}

// policy returns the policy of the request, from the field of its version.
func (g *newGroup) policy() string {
	for _, list := range [][]string{g.Policies, g.Policies15} {
		if len(list) > 0 {
			return list[0]
		}
	}
	return g.Policy
}

func (s *server) createGroup(ctx context.Context, r *api.Request[createGroup]) (out oneGroup, err error) {
	in, who := &r.Body.Group, reqctx.From(ctx)
	g := &store.ServerGroup{ID: uuid.NewString(), Name: string(in.Name), ProjectID: who.ProjectID, UserID: who.UserID, Policy: placement.Policy(in.policy())}
	if in.Rules.MaxPerHost.RawMessage != nil {
		if g.Policy != placement.AntiAffinity {
			return out, fault.New(fault.Invalid, "Only anti-affinity policy supports rules.")
		}
		if g.MaxPerHost, err = parseWhole("max_server_per_host", in.Rules.MaxPerHost.RawMessage, 1); err != nil {
			return out, err
		}
	}
	err = s.cfg.Store.CreateServerGroup(ctx, g)
	return oneGroup{viewGroup(g)}, err
}

// hintedGroup returns the id of the group in the hint "group" of a new server, or nil without this hint. Errors: Invalid if the group does not exist or the client may not use
// it (with Nova's text), or if the hint has several groups.
func (s *server) hintedGroup(ctx context.Context, hint []any) (*string, error) {
	if len(hint) == 0 {
		return nil, nil //nolint:nilnil // no group
	}
	id, _ := hint[0].(string)
	if len(hint) > 1 {
		return nil, fault.New(fault.Invalid, "A server is in at most one server group, but the hint 'group' has %d.", len(hint))
	}
	g, err := s.cfg.Store.ServerGroup(ctx, id, store.OfProject("")) // without members
	if fault.CodeOf(err) == fault.NotFound && err != nil || err == nil && g.ProjectID != reqctx.From(ctx).ProjectID && !s.administrator(ctx) {
		err = fault.New(fault.Invalid, "%s", fault.From(store.NoServerGroup(id)).Msg)
	}
	return &id, err
}

// groupsView is the list of the groups of a server: one group or none. The database is read only when a reply that shows the list is encoded.
type groupsView struct {
	read func() (*store.ServerGroup, error)
	id   *string
}

// MarshalJSON reads from the database whether the group still exists.
func (v groupsView) MarshalJSON() ([]byte, error) {
	list := []string{}
	if v.id != nil {
		switch _, err := v.read(); {
		case err == nil:
			list = append(list, *v.id)
		case fault.CodeOf(err) != fault.NotFound:
			return nil, err
		}
	}
	return json.Marshal(list)
}

// JSONSchema implements api.JSONSchemer.
func (groupsView) JSONSchema() string {
	return `{"type": "array", "maxItems": 1, "items": {"type": "string", "format": "uuid"}}`
}

// groupsOf returns the groups of a server.
func (s *server) groupsOf(ctx context.Context, srv *store.Server) groupsView {
	return groupsView{func() (*store.ServerGroup, error) {
		return s.cfg.Store.ServerGroup(ctx, *srv.GroupID, store.OfProject(""))
	}, srv.GroupID}
}

// pageOf returns the limit and the offset of a list with the older form of pages. If a parameter has several values, the last one counts, as in Nova. Numbers may have any
// size: the limit is at most MaxLimit, and no list has as many objects as the offset math.MaxInt32.
func pageOf(q map[string][]string) (limit, offset int) {
	for name, to := range map[string]*int{"limit": &limit, "offset": &offset} {
		if list := q[name]; len(list) > 0 {
			n, err := strconv.Atoi(list[len(list)-1])
			if *to = min(n, math.MaxInt32); err != nil { // the schema has checked that it has only digits, so it is too large for an int
				*to = math.MaxInt32
			}
		}
	}
	return min(cmp.Or(limit, MaxLimit), MaxLimit), offset
}
