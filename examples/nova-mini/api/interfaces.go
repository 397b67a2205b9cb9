package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/groups"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/api"
)

// This file has what a server shows of its networks, and how a client changes its interfaces. Without a network service a server has none.

// The names of the rules, as in Nova.
const (
	ruleAddresses       = "os_compute_api:ips:index"
	ruleAddress         = "os_compute_api:ips:show"
	ruleServerGroups    = "os_compute_api:os-security-groups:list"
	ruleInterfaces      = "os_compute_api:os-attach-interfaces:list"
	ruleInterface       = "os_compute_api:os-attach-interfaces:show"
	ruleAttachInterface = "os_compute_api:os-attach-interfaces:create"
	ruleDetachInterface = "os_compute_api:os-attach-interfaces:delete"
)

var interfaceRules = []rule{
	{ruleAddresses, "rule:project_reader_or_admin", "List the addresses of a server", "GET", "/servers/{server_id}/ips"},
	{ruleAddress, "rule:project_reader_or_admin", "Show the addresses of a server in a network", "GET", "/servers/{server_id}/ips/{network_label}"},
	{ruleServerGroups, "rule:project_reader_or_admin", "List the security groups of a server", "GET", "/servers/{server_id}/os-security-groups"},
	{ruleInterfaces, "rule:project_reader_or_admin", "List the interfaces of a server", "GET", "/servers/{server_id}/os-interface"},
	{ruleInterface, "rule:project_reader_or_admin", "Show an interface of a server", "GET", "/servers/{server_id}/os-interface/{port_id}"},
	{ruleAttachInterface, "rule:project_member_or_admin", "Give a server an interface", "POST", "/servers/{server_id}/os-interface"},
	{ruleDetachInterface, "rule:project_member_or_admin", "Take an interface from a server", "DELETE", "/servers/{server_id}/os-interface/{port_id}"},
}

func (s *server) interfaceRoutes(all, withBody *api.Group) {
	parts := api.NewGroup(all, api.Route{Pattern: "/servers/{id}", Errors: []int{notFound}})
	t := s.target()
	api.HandleTarget(parts, api.Route{Pattern: "GET /ips", Rule: ruleAddresses, Summary: "List the addresses of a server", Query: noQuery}, t, s.listAddresses)
	api.HandleTarget(parts, api.Route{Pattern: "GET /ips/{network}", Rule: ruleAddress, Summary: "Show the addresses of a server in a network", Query: noQuery}, t, s.showAddresses)
	api.HandleTarget(parts, api.Route{Pattern: "GET /os-security-groups", Rule: ruleServerGroups, Summary: "List the security groups of a server", Query: noQuery}, t, s.listSecurityGroups)
	api.HandleTarget(parts, api.Route{Pattern: "GET /os-interface", Rule: ruleInterfaces, Summary: "List the interfaces of a server", Errors: []int{unavailable}, Query: noQuery}, t, s.listInterfaces)
	api.HandleTarget(parts, api.Route{Pattern: "GET /os-interface/{port}", Rule: ruleInterface, Summary: "Show an interface of a server", Errors: []int{unavailable}, Query: noQuery}, t, s.showInterface)
	api.HandleTarget(parts, api.Route{
		Pattern: "DELETE /os-interface/{port}", Rule: ruleDetachInterface, Summary: "Take an interface from a server", Status: http.StatusAccepted,
		Errors: []int{http.StatusBadRequest, conflict, http.StatusNotImplemented, unavailable},
	}, t, s.detachInterface)
	change := api.NewGroup(withBody, api.Route{Pattern: "/servers/{id}", Errors: []int{notFound, conflict, http.StatusNotImplemented, unavailable}})
	api.HandleTarget(change, api.Route{Pattern: "POST /os-interface", Rule: ruleAttachInterface, Summary: "Give a server an interface"}, t, s.attachInterface)
}

// addresses are the addresses of a server by the name of the network.
type addresses map[string][]address

type address struct {
	Version int    `json:"version" enum:"4,6"`
	Addr    string `json:"addr"`
	Type    string `json:"OS-EXT-IPS:type" enum:"fixed,floating"`
	MAC     string `json:"OS-EXT-IPS-MAC:mac_addr"`
}

func addressesOf(srv *store.Server) addresses {
	out := addresses{}
	for _, p := range srv.Networks.V.Ports() {
		for _, a := range p.Addresses {
			out[p.NetworkName] = append(out[p.NetworkName], address{a.Version(), a.IP, "fixed", p.MAC})
		}
	}
	return out
}

// plainAddress is an address in the list of addresses.
type plainAddress struct {
	Version int    `json:"version" enum:"4,6"`
	Addr    string `json:"addr"`
}

type addressList struct {
	Addresses map[string][]plainAddress `json:"addresses"`
}

func plainAddresses(srv *store.Server) map[string][]plainAddress {
	out := map[string][]plainAddress{}
	for _, p := range srv.Networks.V.Ports() {
		for _, a := range p.Addresses {
			out[p.NetworkName] = append(out[p.NetworkName], plainAddress{a.Version(), a.IP})
		}
	}
	return out
}

func (s *server) listAddresses(_ context.Context, _ *api.Request[api.None], srv *store.Server) (addressList, error) {
	return addressList{plainAddresses(srv)}, nil
}

func (s *server) showAddresses(_ context.Context, r *api.Request[api.None], srv *store.Server) (map[string][]plainAddress, error) {
	name := r.PathValue("network")
	list := plainAddresses(srv)[name]
	if list == nil {
		return nil, fault.New(fault.NotFound, "Instance is not a member of specified network")
	}
	return map[string][]plainAddress{name: list}, nil
}

// securityGroupsOf returns the names of the security groups of a server's ports.
func securityGroupsOf(srv *store.Server) (out []securityGroup) {
	if len(srv.Networks.V.Ports()) == 0 {
		return nil
	}
	if srv.Networks.V != nil { // nil: all ports were attached later
		for _, g := range srv.Networks.V.Groups {
			out = append(out, securityGroup{g.Name})
		}
	}
	if out == nil {
		out = []securityGroup{{"default"}}
	}
	return out
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

// securityRule is a rule about packets to a server, in Nova's form.
type securityRule struct {
	ID       string     `json:"id"`
	Parent   string     `json:"parent_group_id"`
	Protocol *string    `json:"ip_protocol"`
	From     *int       `json:"from_port"`
	To       *int       `json:"to_port"`
	Group    ruleSource `json:"group"`
	Range    ruleRange  `json:"ip_range"`
}

// ruleSource is a security group from which packets come, and ruleRange a range of addresses. A rule has one of the two.
type ruleSource struct {
	Name     string `json:"name,omitempty"`
	TenantID string `json:"tenant_id,omitempty"`
}

type ruleRange struct {
	CIDR string `json:"cidr,omitempty"`
}

// viewSecurityGroup shows a security group with its rules for packets to a server. names has the groups to which rules refer.
func viewSecurityGroup(g *groups.SecGroup, names map[string]ruleSource) fullGroup {
	v := fullGroup{ID: g.ID, Name: g.Name, Description: g.Description, TenantID: g.TenantID, Rules: []securityRule{}}
	for i := range g.Rules {
		r := &g.Rules[i]
		if r.Direction != "ingress" {
			continue
		}
		one := securityRule{ID: r.ID, Parent: g.ID, Group: names[r.RemoteGroupID], Range: ruleRange{r.RemoteIPPrefix}}
		if r.RemoteGroupID == "" && r.RemoteIPPrefix == "" {
			one.Range.CIDR = "0.0.0.0/0" // Nova shows this also for IPv6
		}
		if r.Protocol != "" {
			from, to := r.PortRangeMin, r.PortRangeMax
			if from == 0 && to == 0 {
				if from, to = -1, -1; slices.Contains([]string{"tcp", "udp"}, strings.ToLower(r.Protocol)) {
					from, to = 1, 65535
				}
			}
			one.Protocol, one.From, one.To = &r.Protocol, &from, &to
		}
		v.Rules = append(v.Rules, one)
	}
	return v
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

type interfaceView struct {
	Network   string    `json:"net_id"`
	Port      string    `json:"port_id"`
	MAC       string    `json:"mac_addr"`
	State     string    `json:"port_state"`
	Addresses []fixedIP `json:"fixed_ips"`
	Tag       *string   `json:"tag" since:"2.70"`
}

type fixedIP struct {
	Subnet string `json:"subnet_id"`
	IP     string `json:"ip_address"`
}

// viewInterface shows a port as it is now, with the tag that is stored with the server.
func viewInterface(srv *store.Server, p *network.Port) interfaceView {
	v := interfaceView{Network: p.Network, Port: p.ID, MAC: p.MAC, State: p.Status, Addresses: []fixedIP{}}
	for _, a := range p.Addresses {
		v.Addresses = append(v.Addresses, fixedIP{a.Subnet, a.IP})
	}
	if i := srv.Networks.V.Index(p.ID); i >= 0 {
		v.Tag = orNull(srv.Networks.V.Interfaces[i].Port.Tag)
	}
	return v
}

type interfaceList struct {
	Interfaces []interfaceView `json:"interfaceAttachments"`
}

type oneInterface struct {
	Interface interfaceView `json:"interfaceAttachment"`
}

func (s *server) ports(r *http.Request, srv *store.Server) ([]network.Port, error) {
	if s.cfg.Network == nil {
		return nil, nil
	}
	return s.cfg.Network.Ports(r.Context(), tokenOf(r), srv.ID)
}

func (s *server) listInterfaces(_ context.Context, r *api.Request[api.None], srv *store.Server) (interfaceList, error) {
	out := interfaceList{Interfaces: []interfaceView{}}
	list, err := s.ports(r.Request, srv)
	for i := range list {
		out.Interfaces = append(out.Interfaces, viewInterface(srv, &list[i]))
	}
	return out, err
}

func (s *server) showInterface(_ context.Context, r *api.Request[api.None], srv *store.Server) (out oneInterface, err error) {
	return s.interfaceOf(r.Request, srv, r.PathValue("port"))
}

func (s *server) interfaceOf(r *http.Request, srv *store.Server, port string) (out oneInterface, err error) {
	list, err := s.ports(r, srv)
	if err != nil {
		return out, err
	}
	for i := range list {
		if list[i].ID == port {
			return oneInterface{viewInterface(srv, &list[i])}, nil
		}
	}
	return out, network.NoPort(port)
}

// attachment is the interface that a server gets. The body may be empty: then the only network of the project is taken.
type attachment struct {
	Interface *struct {
		Network string       `json:"net_id,omitempty" format:"uuid"`
		Port    string       `json:"port_id,omitempty" format:"uuid"`
		IPs     []attachedIP `json:"fixed_ips,omitempty"`
		Tag     tag          `json:"tag,omitempty" since:"2.49"`
	} `json:"interfaceAttachment,omitempty"`
}

type attachedIP struct {
	IP ipAddress `json:"ip_address"`
}

// request returns the request in the form of the network service. Errors: Invalid, with Nova's text.
func (a *attachment) request() (out []network.Request, err error) {
	in := a.Interface
	if in == nil {
		return nil, nil
	}
	one := network.Request{Network: in.Network, Port: in.Port, Tag: string(in.Tag)}
	if len(in.IPs) > 0 {
		one.FixedIP = string(in.IPs[0].IP)
	}
	switch {
	case one.Network != "" && one.Port != "":
		return nil, fault.New(fault.Invalid, "Must not input both network_id and port_id")
	case one.FixedIP != "" && one.Network == "":
		return nil, fault.New(fault.Invalid, "Must input network_id when request IP address")
	case one.Network == "" && one.Port == "":
		return nil, nil
	}
	return []network.Request{one}, nil
}

// attachStates are the values of vm_state in which Nova changes the interfaces of a server.
var attachStates = []string{compute.VMActive, compute.VMPaused, compute.VMStopped}

// checkAttach returns an error, with Nova's text, if the interfaces of a server cannot be changed now.
func (s *server) checkAttach(ctx context.Context, srv *store.Server, action string) error {
	if err := s.checkLock(ctx, srv); err != nil {
		return err
	}
	switch {
	case !slices.Contains(attachStates, srv.VMState):
		return fault.New(fault.Conflict, "Cannot '%s' instance %s while it is in vm_state %s", action, srv.ID, srv.VMState)
	case srv.Task() != "":
		return fault.New(fault.Conflict, "Cannot '%s' instance %s while it is in task_state %s", action, srv.ID, srv.Task())
	case srv.Host == nil:
		return store.NotReady(srv.ID)
	}
	return nil
}

// attachInterface gives a server an interface. What is done is stored before it is done, so a server's end also ends what was interrupted: first the
// request, if it names a port, because that port outlives the server, and otherwise that the server may have ports; then the port, before the host gets it.
func (s *server) attachInterface(ctx context.Context, r *api.Request[attachment], srv *store.Server) (out oneInterface, err error) {
	list, err := r.Body.request()
	if err != nil {
		return out, err
	}
	if err := s.checkAttach(ctx, srv, "attach_interface"); err != nil {
		return out, err
	}
	none := fault.New(fault.Invalid, "No specific network was requested and none are available for project '%s'.", srv.ProjectID)
	if s.cfg.Network == nil {
		if len(list) > 0 {
			none = without(list, nil)
		}
		return out, none
	}
	by := s.networkClient(r.Request)
	by.Project, by.Server = srv.ProjectID, srv.ID // the client may be an administrator of another project
	list, err = s.cfg.Network.Check(ctx, by, list, false, 1)
	switch {
	case errors.Is(err, network.ErrAmbiguous):
		err = fault.New(fault.Invalid, "%s", err)
	case err == nil && len(list) == 0:
		err = none
	}
	if err != nil {
		return out, err
	}
	// From here on the work goes on if the client gives up.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attachTimeout)
	defer cancel()
	got, err := s.attachPort(ctx, srv, list[0])
	if errors.Is(err, fault.Exhausted) {
		err = fault.New(fault.Invalid, "%s", err)
	}
	if err != nil {
		return out, err
	}
	v := viewInterface(srv, got)
	v.Tag = orNull(got.Tag)
	return oneInterface{v}, nil
}

// attachTimeout bounds an attachment, and a detachment.
const attachTimeout = 2 * time.Minute

// networkClient returns the client of a request for the network service.
func (s *server) networkClient(r *http.Request) network.Client {
	return network.Client{Token: tokenOf(r), Project: reqctx.From(r.Context()).ProjectID, Admin: s.administrator(r.Context())}
}

// attachPort makes or binds a port, and gives it to the host.
func (s *server) attachPort(ctx context.Context, srv *store.Server, r network.Request) (*network.Port, error) {
	of := network.Server{ID: srv.ID, Project: srv.ProjectID, Host: *srv.Host, Wanted: network.Wanted{Interfaces: []network.Interface{{Request: r}}}}
	if srv.Networks.V != nil {
		of.Wanted.Groups = srv.Networks.V.Groups
	}
	var err error
	if r.Port != "" {
		err = s.keepPort(ctx, srv.ID, r, network.Port{ID: r.Port, Network: r.Network})
	} else if srv.Networks.V == nil { // the end of the server looks for ports only then
		err = s.cfg.Store.ChangePorts(ctx, srv.ID, func(*store.Server) error { return nil })
	}
	if err != nil {
		return nil, err
	}
	got, err := s.cfg.Network.Attach(ctx, of)
	if err == nil {
		err = s.keepPort(ctx, srv.ID, r, *got)
	}
	if err != nil {
		if r.Port != "" {
			s.dropPort(ctx, srv, r.Port, true)
		} else if got != nil {
			s.dropPort(ctx, srv, got.ID, false)
		} // without an answer of Neutron the end of the server deletes the port, because it is not known as one of the client
		return nil, err
	}
	_, err = rpc.Call(ctx, s.cfg.Client, compute.ChangeInterface, *srv.Host, &compute.InterfaceRequest{ServerID: srv.ID, Interface: store.Interface(*got)})
	if err == nil {
		return got, nil
	}
	s.cfg.Logger.ErrorContext(ctx, "interface not attached", "server", srv.ID, "port", got.ID, "error", err)
	undo := compute.InterfaceRequest{ServerID: srv.ID, Interface: store.Interface(*got), Detach: true}
	if _, e := rpc.Call(ctx, s.cfg.Client, compute.ChangeInterface, *srv.Host, &undo); e == nil || errors.Is(e, fault.Unimplemented) || errors.Is(e, fault.NotFound) {
		s.dropPort(ctx, srv, got.ID, r.Port != "") // otherwise the guest may have it: the client sees it, and may detach it
	}
	if errors.Is(err, fault.Unimplemented) {
		return nil, api.WithStatus(http.StatusNotImplemented, fault.New(fault.Unimplemented, "The driver of the host cannot attach interfaces."))
	}
	return nil, hideDetails(err, "Failed to attach network adapter device to "+srv.ID)
}

// keepPort stores an interface with a server, or its port again.
func (s *server) keepPort(ctx context.Context, id string, r network.Request, p network.Port) error {
	return s.cfg.Store.ChangePorts(ctx, id, func(now *store.Server) error {
		w := now.Networks.V
		switch i := w.Index(p.ID); {
		case i >= 0:
			w.Interfaces[i].Port = p
		case len(w.Ports()) < len(w.Interfaces):
			return fault.New(fault.Conflict, "Cannot 'attach_interface' instance %s while its interfaces are made", id)
		default:
			w.Interfaces = append(w.Interfaces, network.Interface{Request: r, Port: p})
		}
		return nil
	})
}

// dropPort releases a port of a server, and forgets it. If that fails, the server keeps the port, and the end of the server releases it.
func (s *server) dropPort(ctx context.Context, srv *store.Server, id string, given bool) {
	err := s.cfg.Network.ReleasePort(ctx, srv.ID, id, given)
	if err == nil {
		err = s.forgetPort(ctx, srv.ID, id)
	}
	if err != nil && !errors.Is(err, fault.NotFound) { // otherwise the server is gone, and its port is released
		s.cfg.Logger.ErrorContext(ctx, "port not released", "server", srv.ID, "port", id, "error", err)
	}
}

func (s *server) forgetPort(ctx context.Context, id, port string) error {
	return s.cfg.Store.ChangePorts(ctx, id, func(now *store.Server) error {
		if i := now.Networks.V.Index(port); i >= 0 {
			now.Networks.V.Interfaces = slices.Delete(now.Networks.V.Interfaces, i, i+1)
		}
		return nil
	})
}

// detachInterface takes an interface from a server, and releases its port. It may be repeated if it was interrupted.
func (s *server) detachInterface(ctx context.Context, r *api.Request[api.None], srv *store.Server) (api.None, error) {
	id := r.PathValue("port")
	if err := s.checkAttach(ctx, srv, "detach_interface"); err != nil {
		return api.None{}, err
	}
	i := srv.Networks.V.Index(id)
	if i < 0 || s.cfg.Network == nil {
		return api.None{}, network.NoPort(id)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attachTimeout)
	defer cancel()
	_, err := rpc.Call(ctx, s.cfg.Client, compute.ChangeInterface, *srv.Host, &compute.InterfaceRequest{ServerID: srv.ID, Interface: store.Interface(srv.Networks.V.Interfaces[i].Port), Detach: true})
	switch {
	case errors.Is(err, fault.Unimplemented):
		return api.None{}, api.WithStatus(http.StatusNotImplemented, fault.New(fault.Unimplemented, "The driver of the host cannot detach interfaces."))
	case err != nil:
		s.cfg.Logger.ErrorContext(ctx, "interface not detached", "server", srv.ID, "error", err)
		return api.None{}, hideDetails(err, "Failed to detach network adapter device from "+srv.ID)
	}
	if err := s.cfg.Network.ReleasePort(ctx, srv.ID, id, srv.Networks.V.Given(id)); err != nil {
		return api.None{}, err
	}
	return api.None{}, s.forgetPort(ctx, srv.ID, id)
}
