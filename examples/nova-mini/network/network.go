// Package network uses OpenStack's network service, Neutron, for the network interfaces of servers.
package network

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/portsbinding"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/groups"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"
	"github.com/gophercloud/gophercloud/v2/pagination"

	"github.com/armature-go/armature/examples/nova-mini/session"
	"github.com/armature-go/armature/fault"
)

// Request is a network interface that a server is to have: in a network, or with a port that exists.
type Request struct {
	Network string `json:"network,omitempty"`
	Port    string `json:"port,omitempty"`
	// FixedIP is the address that the interface is to have. Empty: any.
	FixedIP string `json:"fixed_ip,omitempty"`
	Tag     string `json:"tag,omitempty"`
}

// Group is a security group.
type Group struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Interface is a network interface of a server: what was asked for, and the port.
type Interface struct {
	Request Request `json:"request"`
	// Port is zero until it is made.
	Port Port `json:"port,omitzero"`
}

// Wanted is what a server is to have of the network service, and what it has. It is stored with the server. Nil: nothing.
type Wanted struct {
	Interfaces []Interface `json:"interfaces,omitempty"`
	// Groups are the security groups of ports that are made. Empty: the default group of the project.
	Groups []Group `json:"groups,omitempty"`
}

// Given reports whether the port with an id was named by the client, and so outlives the server.
func (w *Wanted) Given(port string) bool {
	return slices.ContainsFunc(w.Interfaces, func(i Interface) bool { return i.Request.Port == port })
}

// Index returns the place of the interface with a port, or -1.
func (w *Wanted) Index(port string) int {
	if w == nil {
		return -1
	}
	return slices.IndexFunc(w.Interfaces, func(i Interface) bool { return i.Port.ID == port })
}

// Ports returns the ports that are made, in the order of the interfaces.
func (w *Wanted) Ports() (out []Port) {
	if w == nil {
		return nil
	}
	for _, i := range w.Interfaces {
		if i.Port.ID != "" {
			out = append(out, i.Port)
		}
	}
	return out
}

// Bound reports whether all interfaces have ports that are bound on a host.
func (w *Wanted) Bound(host string) bool {
	return w == nil || !slices.ContainsFunc(w.Interfaces, func(i Interface) bool { return i.Port.Host != host })
}

// Port is a port of a server. It is stored with the server, so that a server is shown without a request to Neutron.
type Port struct {
	ID          string    `json:"id"`
	Network     string    `json:"network"`
	NetworkName string    `json:"network_name"`
	MAC         string    `json:"mac"`
	Addresses   []Address `json:"addresses,omitempty"`
	Tag         string    `json:"tag,omitempty"`
	// Bridge is the name of the bridge on the host, if Neutron names one. Host is where the port is bound. It is empty while a port that the client has
	// named is about to be bound.
	Bridge string `json:"bridge,omitempty"`
	Host   string `json:"host,omitempty"`
	// Status is ACTIVE or DOWN. It is not stored.
	Status string `json:"-"`
}

// Address is an address of a port.
type Address struct {
	IP     string `json:"ip"`
	Subnet string `json:"subnet"`
}

// Version returns 4 or 6.
func (a Address) Version() int {
	if strings.Contains(a.IP, ":") {
		return 6
	}
	return 4
}

// Server says whose ports a method is about.
type Server struct {
	ID, Project string
	// Host is where the ports are bound.
	Host   string
	Wanted Wanted
}

// Neutron is the network service. It is safe for concurrent use. Its methods block until the service answers. Errors of all: Unavailable.
type Neutron struct{ session *session.Session }

// New returns the network service. It sends no request. Errors: those of [session.New].
func New(cfg session.Config) (*Neutron, error) {
	cfg.Type, cfg.Version = "network", "v2.0"
	s, err := session.New(cfg)
	return &Neutron{s}, err
}

// owner is the device_owner of the ports of servers. All hosts are in one availability zone.
const owner = "compute:nova"

// bindingFailed is the binding:vif_type of a port that Neutron cannot bind on its host, such as because its agent is away.
const bindingFailed = "binding_failed"

// ErrBindingFailed means that Neutron cannot bind a port on a host. It may be able to do so on another one.
var ErrBindingFailed = fault.Sentinel(fault.Invalid, bindingReason, "Binding failed for a port, please check neutron logs for more information.")

const bindingReason = "BindingFailed"

// bound is a port as Neutron answers it to an administrator.
type bound struct {
	ports.Port
	portsbinding.PortsBindingExt
}

// Client is a client of this service. Admin reports whether the client may use networks of others that are not shared, and choose addresses in them.
type Client struct {
	Token string
	// Project is the project of the servers, also for a client of another one.
	Project string
	Admin   bool
	// Server is the server that gets an interface. Empty: servers are created.
	Server string
}

// What a client asks for cannot be had.
var (
	ErrAmbiguous    = fault.Sentinel(fault.Conflict, "NetworkAmbiguous", "Multiple possible networks found, use a Network ID to be more specific.")
	ErrAddressInUse = fault.Sentinel(fault.Conflict, addressReason, "Fixed IP address is already in use.")
)

const addressReason = "FixedIPAlreadyInUse"

// Check returns the requests of a client, with the network of each port, after it has checked them with the client's token: that the networks and
// ports exist, that they can be used by count servers, and that the project has ports left. If there is no request, or auto is set, the only network of
// the project is taken. With auto it is an error if the project has no network. The texts are Nova's. Errors: NotFound: a network or a port; Invalid; Conflict: more than one
// network, or a port or an address that is in use; Denied: the project has not enough ports left.
func (n *Neutron) Check(ctx context.Context, by Client, list []Request, auto bool, count int) ([]Request, error) {
	project := by.Project
	c, err := n.session.Client(ctx, by.Token)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		all, err := n.available(ctx, c, project)
		switch {
		case err != nil:
			return nil, err
		case len(all) > 1:
			return nil, ErrAmbiguous
		case len(all) == 0 && auto:
			return nil, fault.New(fault.Invalid, "Unable to automatically allocate a network for project %s", project)
		case len(all) == 0:
			return nil, nil
		}
		list = []Request{{Network: all[0].ID}}
	}
	if err := n.checkQuota(ctx, c, project, list, count); err != nil { // first, because it bounds the number of requests
		return nil, err
	}
	out := slices.Clone(list)
	for i := range out {
		if out[i].Port == "" {
			err = n.checkNetwork(ctx, c, by, &out[i], count)
		} else {
			err = n.checkPort(ctx, c, by, &out[i], count)
		}
		if err != nil {
			return nil, err
		}
		if port := out[i].Port; port != "" && slices.ContainsFunc(out[:i], func(r Request) bool { return r.Port == port }) {
			return nil, fault.New(fault.Invalid, "Port ID '%s' was specified twice: you cannot attach a port multiple times.", port)
		}
	}
	return out, nil
}

// available returns the networks of a project and the shared ones.
func (n *Neutron) available(ctx context.Context, c *gophercloud.ServiceClient, project string) ([]networks.Network, error) {
	var out []networks.Network
	for _, opts := range []networks.ListOpts{{ProjectID: project, Shared: new(false)}, {Shared: new(true)}} {
		pages, err := networks.List(c, opts).AllPages(ctx)
		if err != nil {
			return nil, n.session.Translate(ctx, c, err)
		}
		some, err := networks.ExtractNetworks(pages)
		if err != nil {
			return nil, n.session.Translate(ctx, c, err)
		}
		out = append(out, some...)
	}
	return out, nil
}

// checkNetwork checks a network. The ports are made as an administrator, so what Neutron would refuse the client is refused here: networks of
// others that are only visible, such as external ones, and the choice of an address in shared ones.
func (n *Neutron) checkNetwork(ctx context.Context, c *gophercloud.ServiceClient, by Client, r *Request, count int) error {
	is, err := networks.Get(ctx, c, r.Network).Extract()
	switch {
	case gophercloud.ResponseCodeIs(err, http.StatusNotFound):
		return fault.New(fault.NotFound, "Network %s could not be found.", r.Network)
	case err != nil:
		return n.session.Translate(ctx, c, err)
	case !is.Shared && is.ProjectID != by.Project && !by.Admin:
		return fault.New(fault.Denied, "It is not allowed to create an interface on external network %s", r.Network)
	case r.FixedIP != "" && is.ProjectID != by.Project && !by.Admin:
		return fault.New(fault.Denied, "It is not allowed to choose an address in network %s, which another project owns", r.Network)
	case len(is.Subnets) == 0:
		return fault.New(fault.Invalid, "Network %s requires a subnet in order to boot instances on.", r.Network)
	case r.FixedIP == "":
		r.Network = is.ID
		return nil
	case count > 1:
		return fault.New(fault.Invalid, "max_count cannot be greater than 1 if an fixed_ip is specified.")
	}
	r.Network = is.ID
	list, err := n.list(ctx, c, ports.ListOpts{NetworkID: r.Network, FixedIPs: []ports.FixedIPOpts{{IPAddress: r.FixedIP}}})
	if err == nil && len(list) > 0 {
		err = fault.WithReason(fault.New(fault.Conflict, "Fixed IP address %s is already in use on instance %s.", r.FixedIP, list[0].DeviceID), addressReason, nil)
	}
	return err
}

func (n *Neutron) checkPort(ctx context.Context, c *gophercloud.ServiceClient, by Client, r *Request, count int) error {
	is, err := ports.Get(ctx, c, r.Port).Extract()
	switch {
	case gophercloud.ResponseCodeIs(err, http.StatusNotFound):
		return NoPort(r.Port)
	case err != nil:
		return n.session.Translate(ctx, c, err)
	case is.ProjectID != by.Project && is.TenantID != by.Project && by.Server != "":
		return fault.New(fault.Invalid, "Port %s not usable for instance %s.", r.Port, by.Server)
	case is.ProjectID != by.Project && is.TenantID != by.Project:
		return NoPort(r.Port)
	case is.DeviceID != "":
		return inUse(r.Port)
	case len(is.FixedIPs) == 0:
		return fault.New(fault.Invalid, "Port %s requires a FixedIP in order to be used.", r.Port)
	case count > 1:
		return fault.New(fault.Invalid, "Unable to launch multiple instances with a single configured port ID. Please launch your instance one by one with different ports.")
	}
	r.Port, r.Network = is.ID, is.NetworkID
	return nil
}

// NoPort returns NotFound for a port that does not exist, or that a client may not see.
func NoPort(id string) error { return fault.New(fault.NotFound, "Port id %s could not be found.", id) }

func inUse(port string) error { return fault.New(fault.Conflict, "Port %s is still in use.", port) }

// checkQuota returns Denied if a project may not have the ports. Neutron decides in the end, when it makes them.
func (n *Neutron) checkQuota(ctx context.Context, c *gophercloud.ServiceClient, project string, list []Request, count int) error {
	need := 0
	for _, r := range list {
		if r.Port == "" {
			need += count
		}
	}
	if need == 0 {
		return nil
	}
	var reply struct {
		Quota struct{ Port int }
	}
	// Neutron has the quota of the client's own project for each client.
	resp, err := c.Get(ctx, c.ServiceURL("quotas", project), &reply, nil) // it closes the body
	if err != nil {
		return n.session.Translate(ctx, c, err)
	}
	_ = resp.Body.Close()
	if reply.Quota.Port < 0 {
		return nil
	}
	have, err := n.list(ctx, c, ports.ListOpts{ProjectID: project})
	if err == nil && len(have)+need > reply.Quota.Port {
		err = fault.New(fault.Denied, "Maximum number of ports exceeded")
	}
	return err
}

// Groups returns the security groups that a client names, by name or id. Errors: NotFound; Conflict: several have the name.
func (n *Neutron) Groups(ctx context.Context, token, project string, names []string) ([]Group, error) {
	if len(names) == 0 {
		return nil, nil
	}
	c, err := n.session.Client(ctx, token)
	if err != nil {
		return nil, err
	}
	all, err := n.groups(ctx, c, groups.ListOpts{ProjectID: project})
	if err != nil {
		return nil, err
	}
	var out []Group
	for _, name := range names {
		var found []groups.SecGroup
		for _, g := range all {
			if g.ID == name {
				found = []groups.SecGroup{g}
				break
			}
			if g.Name == name {
				found = append(found, g)
			}
		}
		switch {
		case len(found) == 0:
			return nil, fault.New(fault.NotFound, "Security group %s not found for project %s.", name, project)
		case len(found) > 1:
			return nil, fault.New(fault.Conflict, "Multiple security groups found matching '%s'. Use an ID to be more specific.", name)
		case !slices.ContainsFunc(out, func(g Group) bool { return g.ID == found[0].ID }):
			out = append(out, Group{found[0].ID, found[0].Name})
		}
	}
	return out, nil
}

func (n *Neutron) groups(ctx context.Context, c *gophercloud.ServiceClient, opts groups.ListOpts) ([]groups.SecGroup, error) {
	pages, err := groups.List(c, opts).AllPages(ctx)
	if err != nil {
		return nil, n.session.Translate(ctx, c, err)
	}
	out, err := groups.ExtractGroups(pages)
	return out, n.session.Translate(ctx, c, err)
}

// GroupsOf returns the security groups of the ports of a server, with their rules.
func (n *Neutron) GroupsOf(ctx context.Context, token, server string) ([]groups.SecGroup, error) {
	c, err := n.session.Client(ctx, token)
	if err != nil {
		return nil, err
	}
	list, err := n.list(ctx, c, ports.ListOpts{DeviceID: server})
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, p := range list {
		ids = append(ids, p.SecurityGroups...)
	}
	slices.Sort(ids)
	if ids = slices.Compact(ids); len(ids) == 0 {
		return nil, nil
	}
	// The options of the client library have one id. A group that was deleted meanwhile is not in the reply.
	query := url.Values{"id": ids}
	pages, err := pagination.NewPager(c, c.ServiceURL("security-groups")+"?"+query.Encode(), func(r pagination.PageResult) pagination.Page {
		return groups.SecGroupPage{LinkedPageBase: pagination.LinkedPageBase{PageResult: r}}
	}).AllPages(ctx)
	if err != nil {
		return nil, n.session.Translate(ctx, c, err)
	}
	out, err := groups.ExtractGroups(pages)
	return out, n.session.Translate(ctx, c, err)
}

// list returns ports.
func (n *Neutron) list(ctx context.Context, c *gophercloud.ServiceClient, opts ports.ListOpts) (out []bound, err error) {
	pages, err := ports.List(c, opts).AllPages(ctx)
	if err == nil {
		err = ports.ExtractPortsInto(pages, &out)
	}
	return out, n.session.Translate(ctx, c, err)
}

// Ports returns the ports of a server as they are now, for a client of its project.
func (n *Neutron) Ports(ctx context.Context, token, server string) ([]Port, error) {
	c, err := n.session.Client(ctx, token)
	if err != nil {
		return nil, err
	}
	list, err := n.list(ctx, c, ports.ListOpts{DeviceID: server})
	if err != nil {
		return nil, err
	}
	out := make([]Port, len(list))
	for i := range list {
		out[i] = list[i].shown()
	}
	return out, nil
}

func (b *bound) shown() Port {
	out := Port{ID: b.ID, Network: b.NetworkID, MAC: b.MACAddress, Status: b.Status}
	out.Bridge, _ = b.VIFDetails["bridge_name"].(string)
	for _, ip := range b.FixedIPs {
		out.Addresses = append(out.Addresses, Address{ip.IPAddress, ip.SubnetID})
	}
	return out
}
