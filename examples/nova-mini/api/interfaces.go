package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/operation"
)

// This file has the routes for the networks of a server: its addresses, security groups and interfaces. Without a network service a server has no interfaces.

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
	{ruleAttachInterface, "rule:project_member_or_admin", "Attach an interface to a server", "POST", "/servers/{server_id}/os-interface"},
	{ruleDetachInterface, "rule:project_member_or_admin", "Detach an interface from a server", "DELETE", "/servers/{server_id}/os-interface/{port_id}"},
}

func (s *server) interfaceRoutes(all, withBody *api.Group) {
	parts := api.NewGroup(all, api.Route{Pattern: "/servers/{id}", Errors: []int{notFound}})
	t := s.target()
	api.HandleTarget(parts, api.Route{Pattern: "GET /ips", Rule: ruleAddresses, Summary: "List the addresses of a server", Query: noQuery}, t, s.listAddresses)
	api.HandleTarget(parts, api.Route{Pattern: "GET /ips/{network}", Rule: ruleAddress, Summary: "Show the addresses of a server in a network", Query: noQuery}, t, s.showAddresses)
	api.HandleTarget(parts, api.Route{Pattern: "GET /os-security-groups", Rule: ruleServerGroups, Summary: "List the security groups of a server", Query: noQuery}, t, s.listServerGroups)
	api.HandleTarget(parts, api.Route{Pattern: "GET /os-interface", Rule: ruleInterfaces, Summary: "List the interfaces of a server", Errors: []int{unavailable}, Query: noQuery}, t, s.listInterfaces)
	api.HandleTarget(parts, api.Route{Pattern: "GET /os-interface/{port}", Rule: ruleInterface, Summary: "Show an interface of a server", Errors: []int{unavailable}, Query: noQuery}, t, s.showInterface)
	api.HandleTarget(parts, api.Route{
		Pattern: "DELETE /os-interface/{port}", Rule: ruleDetachInterface, Summary: "Detach an interface from a server", Status: http.StatusAccepted,
		Errors: []int{http.StatusBadRequest, conflict, http.StatusNotImplemented, unavailable},
	}, t, s.detachInterface)
	change := api.NewGroup(withBody, api.Route{Pattern: "/servers/{id}", Errors: []int{notFound, conflict, http.StatusNotImplemented, unavailable}})
	api.HandleTarget(change, api.Route{Pattern: "POST /os-interface", Rule: ruleAttachInterface, Summary: "Attach an interface to a server"}, t, s.attachInterface)
}

// addresses are the addresses of a server, by the name of the network.
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

// viewInterface returns the present state of a port, with the tag that is stored with the server.
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

// attachment is the request to attach an interface. If the body has no interface, the only network of the project is used.
type attachment struct {
	Interface struct {
		Network string       `json:"net_id,omitempty" format:"uuid"`
		Port    string       `json:"port_id,omitempty" format:"uuid"`
		IPs     []attachedIP `json:"fixed_ips,omitempty" min:"1" max:"1"`
		Tag     tag          `json:"tag,omitempty" since:"2.49"`
	} `json:"interfaceAttachment,omitzero"`
}

type attachedIP struct {
	IP ipAddress `json:"ip_address"`
}

// request returns the request in the form for package network. An empty list means the only network of the project. Errors: Invalid, with Nova's text.
func (a *attachment) request() (out []network.Request, err error) {
	in := a.Interface
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

// checkAttach returns an error, with Nova's text, if the interfaces of a server cannot be changed now.
func (s *server) checkAttach(ctx context.Context, srv *store.Server, a compute.Action) error {
	if err := s.checkLock(ctx, srv); err != nil {
		return err
	}
	return store.CheckAction(srv, a)
}

func (s *server) attachInterface(ctx context.Context, r *api.Request[attachment], srv *store.Server) (out oneInterface, err error) {
	list, err := r.Body.request()
	if err == nil {
		err = s.checkAttach(ctx, srv, compute.AttachInterface)
	}
	if err != nil {
		return out, err
	}
	began := time.Now()
	list, err = s.checkAttachment(ctx, r, srv, list)
	if err != nil {
		s.recordRefused(ctx, srv, began, err)
		return out, err
	}
	got, err := s.changeInterface(ctx, srv, compute.AttachInterface, store.InterfaceData{Request: list[0], Project: srv.ProjectID})
	if err != nil {
		return out, err
	}
	v := viewInterface(srv, got)
	v.Tag = orNull(got.Tag)
	return oneInterface{v}, nil
}

// checkAttachment checks the request for an interface with the network service, and returns the request with its network.
func (s *server) checkAttachment(ctx context.Context, r *api.Request[attachment], srv *store.Server, list []network.Request) ([]network.Request, error) {
	none := fault.New(fault.Invalid, "No specific network was requested and none are available for project '%s'.", srv.ProjectID)
	if s.cfg.Network == nil {
		if len(list) > 0 {
			none = refuseNetworks(list, nil)
		}
		return nil, none
	}
	by := s.networkClient(r.Request)
	by.Project, by.Server = srv.ProjectID, srv.ID // the client may be an administrator of another project
	list, err := s.cfg.Network.Check(ctx, by, list, false, 1)
	switch {
	case errors.Is(err, network.ErrAmbiguous):
		err = fault.New(fault.Invalid, "%s", err)
	case err == nil && len(list) == 0:
		err = none
	}
	return list, err
}

// recordRefused records an attachment that was refused because of the network as an action that has failed, as Nova does. The attachment began at a time.
func (s *server) recordRefused(ctx context.Context, srv *store.Server, began time.Time, refused error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if err := s.cfg.Store.RecordAction(ctx, srv.ID, compute.AttachInterface, began, refused); err != nil {
		s.cfg.Logger.ErrorContext(ctx, "action not recorded", "server", srv.ID, "action", compute.AttachInterface, "error", err)
	}
}

const recordTimeout = 10 * time.Second

// changeInterface begins the operation that attaches or detaches an interface, and waits until it has ended, for at most Config.InterfaceWait, see endWait. It returns the port of the interface. The texts
// of errors are Nova's. If the client closes the connection, the change goes on.
func (s *server) changeInterface(ctx context.Context, srv *store.Server, a compute.Action, data store.InterfaceData) (*network.Port, error) {
	id, err := s.cfg.Store.BeginInterface(ctx, srv.ID, a, data)
	if err != nil {
		return nil, err
	}
	s.notifyConductor(ctx, srv.ID)
	limited, cancel := context.WithTimeout(ctx, s.cfg.InterfaceWait)
	defer cancel()
	got, err := s.cfg.Store.AwaitInterface(limited, id)
	switch {
	case err == nil:
		return got, nil
	case ctx.Err() != nil: // the client has gone
		return nil, err
	case limited.Err() != nil:
		if got = s.endWait(ctx, a, id); got != nil {
			return got, nil
		}
	}
	what := map[compute.Action][2]string{compute.AttachInterface: {"attach", "to"}, compute.DetachInterface: {"detach", "from"}}[a]
	switch fault.CodeOf(err) {
	case fault.Unimplemented:
		return nil, api.WithStatus(http.StatusNotImplemented, fault.New(fault.Unimplemented, "The driver of the host cannot %s interfaces.", what[0]))
	case fault.Exhausted:
		return nil, fault.New(fault.Invalid, "%w", err)
	case fault.Invalid, fault.NotFound, fault.Conflict, fault.Denied: // of the network service
		return nil, err
	case fault.Canceled:
		return nil, fault.New(fault.Conflict, "Cannot '%s' instance %s: the deletion of the instance or an operator has ended the change", a.Info().Name, srv.ID)
	default: // not for the client
	}
	s.cfg.Logger.ErrorContext(ctx, "interface not changed", "server", srv.ID, "action", a, "operation", id, "error", err)
	return nil, hideDetails(err, "Failed to "+what[0]+" network adapter device "+what[1]+" "+srv.ID)
}

// endWait decides about the change of an interface for which the client has waited too long. An attachment is canceled, and undone: after an error, the client expects no interface. A detachment goes on,
// because its answer, as in Nova, only says that it is accepted. endWait returns the port of the interface, or nil if the change is canceled or is being undone.
func (s *server) endWait(ctx context.Context, a compute.Action, id string) *network.Port {
	ops := s.cfg.Store.Operations()
	if a == compute.DetachInterface {
		if op, err := ops.Show(ctx, id); err == nil && op.State == operation.Running {
			return &network.Port{}
		}
	} else if err := ops.Cancel(ctx, id, fmt.Sprintf("it took longer than %v", s.cfg.InterfaceWait)); !errors.Is(err, fault.Precondition) {
		return nil
	}
	ended, got, err := s.cfg.Store.EndedInterface(ctx, id) // it may have ended at the last moment
	if !ended || err != nil {
		return nil
	}
	return got
}

// networkClient returns the client that has sent a request, in the form for package network.
func (s *server) networkClient(r *http.Request) network.Client {
	ctx := r.Context()
	return network.Client{Token: tokenOf(r), Project: reqctx.From(ctx).ProjectID, Admin: s.administrator(ctx), External: s.mux.Enforce(ctx, ruleExternal, nil) == nil}
}

func (s *server) detachInterface(ctx context.Context, r *api.Request[api.None], srv *store.Server) (api.None, error) {
	id := r.PathValue("port")
	if err := s.checkAttach(ctx, srv, compute.DetachInterface); err != nil {
		return api.None{}, err
	}
	i := srv.Networks.V.Index(id)
	if i < 0 || s.cfg.Network == nil {
		return api.None{}, network.NoPort(id)
	}
	_, err := s.changeInterface(ctx, srv, compute.DetachInterface, store.InterfaceData{Port: srv.Networks.V.Interfaces[i].Port, Project: srv.ProjectID})
	return api.None{}, err
}
