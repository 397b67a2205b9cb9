package api

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/groups"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/rules"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova. They are for the security groups of a project. The list of a server's groups is in interfaces.go.
const (
	ruleSecurityGroups = "os_compute_api:os-security-groups:get"
	ruleSecurityGroup  = "os_compute_api:os-security-groups:show"
)

var securityGroupRules = []rule{
	{ruleSecurityGroups, "rule:project_reader_or_admin", "List security groups", "GET", "/os-security-groups"},
	{ruleSecurityGroup, "rule:project_reader_or_admin", "Show a security group", "GET", "/os-security-groups/{security_group_id}"},
}

// securityGroupRoutes registers the two routes of Nova's proxy to Neutron that clients use to find a security group by its name, until 2.35. Neutron itself changes groups.
func (s *server) securityGroupRoutes(all, _ *api.Group) {
	g := api.NewGroup(all, api.Route{Pattern: "/os-security-groups", Max: "2.35", Errors: []int{unavailable}})
	api.HandleRoute(g, api.Route{Pattern: "GET", Rule: ruleSecurityGroups, Summary: "List security groups", Query: pagesWith(`"all_tenants": {"type": "array"}`)[:1]}, s.listSecurityGroups)
	api.HandleRoute(g, api.Route{Pattern: "GET /{id}", Summary: "Show a security group", Errors: []int{notFound}}, s.showSecurityGroup)
}

// groupsTimeout limits the time of the requests to Neutron for the security groups of the servers in a reply.
const groupsTimeout = 5 * time.Second

// portGroups are the names of the security groups of a server's ports. They are read from Neutron only when a reply is encoded that shows them.
type portGroups struct {
	*lookups

	of *store.Server
}

// list returns the security groups, as in Nova for each port, so that a group of two ports is there twice. If Neutron is away, list returns the last groups that nova-mini knows: those of
// the request that created the server, or of the last change of the groups.
func (p portGroups) list() (out []securityGroup) {
	ports := p.of.Networks.V.Ports()
	if len(ports) == 0 {
		return nil
	}
	if names := p.groups(); names != nil {
		for _, port := range ports {
			for _, name := range names[port.ID] {
				out = append(out, securityGroup{name})
			}
		}
		return out
	}
	w := p.of.Networks.V
	if w.Groups == nil && slices.ContainsFunc(ports, func(port network.Port) bool { return !w.Given(port.ID) }) { // Neutron gives the default group to ports that nova-mini makes
		return []securityGroup{{"default"}}
	}
	for _, g := range w.Groups {
		out = append(out, securityGroup{g.Name})
	}
	return out
}

// IsZero reports whether the ports have no group, so that the reply leaves the field out, as in Nova.
func (p portGroups) IsZero() bool { return len(p.list()) == 0 }

// MarshalJSON returns the list.
func (p portGroups) MarshalJSON() ([]byte, error) { return json.Marshal(p.list()) }

// JSONSchema implements api.JSONSchemer.
func (portGroups) JSONSchema() string {
	return `{"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"], "additionalProperties": false}}`
}

// groupNames returns the names of the security groups of the ports of servers, by the id of the port, or nil if Neutron does not return them.
func (s *server) groupNames(r *http.Request, servers []*store.Server) map[string][]string {
	if s.cfg.Network == nil {
		return nil
	}
	var ports []string
	for _, srv := range servers {
		for _, p := range srv.Networks.V.Ports() {
			ports = append(ports, p.ID)
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), groupsTimeout)
	defer cancel()
	names, err := s.cfg.Network.GroupNames(ctx, tokenOf(r), ports)
	if err != nil {
		s.cfg.Logger.WarnContext(ctx, "security groups not read", "ports", len(ports), "error", err)
		return nil
	}
	return names
}

type securityGroupList struct {
	Groups []fullGroup `json:"security_groups"`
}

type oneSecurityGroup struct {
	Group fullGroup `json:"security_group"`
}

type fullGroup struct {
	ID          string         `json:"id"`
	Name        string         `json:"name"`
	Description string         `json:"description"`
	TenantID    string         `json:"tenant_id"`
	Rules       []securityRule `json:"rules"`
}

// securityRule is a rule of a security group for packets to a server, in Nova's form.
type securityRule struct {
	ID       string     `json:"id"`
	Parent   string     `json:"parent_group_id"`
	Protocol *string    `json:"ip_protocol"`
	From     *int       `json:"from_port"`
	To       *int       `json:"to_port"`
	Group    ruleSource `json:"group"`
	Range    ruleRange  `json:"ip_range"`
}

// ruleSource is the security group of the sender of packets, and ruleRange is a range of sender addresses. A rule has one of the two.
type ruleSource struct {
	Name     string `json:"name,omitempty"`
	TenantID string `json:"tenant_id,omitempty"`
}

type ruleRange struct {
	CIDR string `json:"cidr,omitempty"`
}

// viewSecurityGroups returns a list of security groups, each with its rules for packets to a server, by project and name. As in Nova, it leaves out a rule whose other group cannot be seen.
func viewSecurityGroups(list network.GroupList) []fullGroup {
	out := make([]fullGroup, 0, len(list.Groups))
	for i := range list.Groups {
		out = append(out, viewSecurityGroup(&list.Groups[i], list.Sources))
	}
	slices.SortFunc(out, func(a, b fullGroup) int {
		return cmp.Or(cmp.Compare(a.TenantID, b.TenantID), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func viewSecurityGroup(g *groups.SecGroup, sources map[string]groups.SecGroup) fullGroup {
	v := fullGroup{ID: g.ID, Name: g.Name, Description: g.Description, TenantID: g.TenantID, Rules: []securityRule{}}
	for i := range g.Rules {
		r := &g.Rules[i]
		source, visible := sources[r.RemoteGroupID]
		if r.Direction != "ingress" || r.RemoteGroupID != "" && !visible {
			continue
		}
		one := securityRule{ID: r.ID, Parent: g.ID, Group: ruleSource{source.Name, source.TenantID}, Range: ruleRange{r.RemoteIPPrefix}}
		if r.RemoteGroupID == "" && r.RemoteIPPrefix == "" {
			one.Range.CIDR = "0.0.0.0/0" // as in Nova, also for IPv6
		}
		if r.Protocol != "" {
			from, to := portRange(r)
			one.Protocol, one.From, one.To = &r.Protocol, &from, &to
		}
		v.Rules = append(v.Rules, one)
	}
	return v
}

// portRange returns the first and the last port of a rule with a protocol. If the rule has none, it returns what Nova shows for all ports.
func portRange(r *rules.SecGroupRule) (from, to int) {
	switch {
	case r.PortRangeMin != 0 || r.PortRangeMax != 0:
		return r.PortRangeMin, r.PortRangeMax
	case slices.Contains([]string{"tcp", "udp"}, strings.ToLower(r.Protocol)):
		return 1, 65535
	}
	return -1, -1
}

// listServerGroups lists the security groups of the ports of a server.
func (s *server) listServerGroups(ctx context.Context, r *api.Request[api.None], srv *store.Server) (securityGroupList, error) {
	if s.cfg.Network == nil || len(srv.Networks.V.Ports()) == 0 {
		return securityGroupList{Groups: []fullGroup{}}, nil
	}
	list, err := s.cfg.Network.GroupsOf(ctx, tokenOf(r.Request), srv.ID)
	return securityGroupList{viewSecurityGroups(list)}, err
}

// listSecurityGroups lists the security groups of the client's project. As in Nova, an administrator can list those of all projects, and a filter has no effect.
func (s *server) listSecurityGroups(ctx context.Context, r *api.Request[api.None]) (securityGroupList, error) {
	out := securityGroupList{Groups: []fullGroup{}}
	if s.cfg.Network == nil {
		return out, nil
	}
	project, q := reqctx.From(ctx).ProjectID, r.URL.Query()
	if q.Has("all_tenants") && s.administrator(ctx) {
		project = ""
	}
	limit, offset := pageOf(q)
	list, err := s.cfg.Network.ProjectGroups(ctx, tokenOf(r.Request), project)
	if err != nil {
		return out, err
	}
	views := viewSecurityGroups(list)
	first := min(offset, len(views))
	out.Groups = append(out.Groups, views[first:min(first+limit, len(views))]...)
	return out, nil
}

// showSecurityGroup shows a security group by its id. As in Nova, the rule is for the client's own project, and Neutron decides whether the client may see the group.
func (s *server) showSecurityGroup(ctx context.Context, r *api.Request[api.None]) (out oneSecurityGroup, _ error) {
	id := r.PathValue("id")
	err := s.mux.Enforce(ctx, ruleSecurityGroup, nil)
	switch {
	case err != nil:
		return out, err
	case uuid.Validate(id) != nil:
		return out, fault.New(fault.Invalid, "Security group id should be uuid")
	case s.cfg.Network == nil:
		return out, fault.New(fault.NotFound, "Security group %s does not exist", id)
	}
	list, err := s.cfg.Network.Group(ctx, tokenOf(r.Request), id)
	if err != nil {
		return out, err
	}
	return oneSecurityGroup{viewSecurityGroups(list)[0]}, nil
}

// groupHandlers are the handlers of the actions that change the security groups of a server.
var groupHandlers = map[compute.Action]actionHandler{
	compute.AddSecurityGroup:    actionOf((*server).addSecurityGroup),
	compute.RemoveSecurityGroup: actionOf((*server).removeSecurityGroup),
}

type addSecurityGroup struct {
	Group struct {
		Name string `json:"name" min:"1"`
	} `json:"addSecurityGroup"`
}

type removeSecurityGroup struct {
	Group struct {
		Name string `json:"name" min:"1"`
	} `json:"removeSecurityGroup"`
}

func (s *server) addSecurityGroup(ctx context.Context, r *api.Request[addSecurityGroup], srv *store.Server) (api.None, error) {
	return api.None{}, s.changeGroups(ctx, r.Request, srv, r.Body.Group.Name, (*network.Neutron).AddGroup)
}

func (s *server) removeSecurityGroup(ctx context.Context, r *api.Request[removeSecurityGroup], srv *store.Server) (api.None, error) {
	return api.None{}, s.changeGroups(ctx, r.Request, srv, r.Body.Group.Name, (*network.Neutron).RemoveGroup)
}

// changeGroups changes the security groups of the ports of a server, and stores them with the server. As in Nova, the state of the server does not matter, and the client needs Neutron's
// permission to change the ports.
func (s *server) changeGroups(ctx context.Context, r *http.Request, srv *store.Server, name string, change func(n *network.Neutron, ctx context.Context, token, project, server, name string) ([]network.Group, error)) error {
	if strings.TrimSpace(name) == "" {
		return fault.New(fault.Invalid, "Security group name cannot be empty")
	}
	if s.cfg.Network == nil {
		return network.NoGroup(name, srv.ProjectID)
	}
	list, err := change(s.cfg.Network, ctx, tokenOf(r), srv.ProjectID, srv.ID, name)
	if err != nil {
		return err
	}
	return s.cfg.Store.ChangePorts(ctx, srv.ID, func(now *store.Server) error {
		now.Networks.V.Groups = list
		return nil
	})
}
