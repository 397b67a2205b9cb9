package api

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/groups"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/rules"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

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

// viewSecurityGroup returns a security group with its rules for packets to a server. The parameter names has the groups to which rules refer, by id.
func viewSecurityGroup(g *groups.SecGroup, names map[string]ruleSource) fullGroup {
	v := fullGroup{ID: g.ID, Name: g.Name, Description: g.Description, TenantID: g.TenantID, Rules: []securityRule{}}
	for i := range g.Rules {
		r := &g.Rules[i]
		if r.Direction != "ingress" {
			continue
		}
		one := securityRule{ID: r.ID, Parent: g.ID, Group: names[r.RemoteGroupID], Range: ruleRange{r.RemoteIPPrefix}}
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

func (s *server) listSecurityGroups(ctx context.Context, r *api.Request[api.None], srv *store.Server) (securityGroupList, error) {
	out := securityGroupList{Groups: []fullGroup{}}
	if s.cfg.Network == nil || len(srv.Networks.V.Ports()) == 0 {
		return out, nil
	}
	list, err := s.cfg.Network.GroupsOf(ctx, tokenOf(r.Request), srv.ID)
	names := map[string]ruleSource{}
	for _, g := range list {
		names[g.ID] = ruleSource{g.Name, g.TenantID}
	}
	for i := range list {
		out.Groups = append(out.Groups, viewSecurityGroup(&list[i], names))
	}
	return out, err
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
		return fault.New(fault.NotFound, "Security group %s not found for project %s.", name, srv.ProjectID)
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
