// Package network uses OpenStack's network service, Neutron, for the network interfaces of servers.
package network

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/portsbinding"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/groups"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"

	"github.com/armature-go/armature/examples/nova-mini/session"
	"github.com/armature-go/armature/fault"
)

// Request is a network interface that a server is to have: in a network, or with a port that exists. It is stored with the server.
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

// Wanted is what a server is to have of the network service. It is stored with the server.
type Wanted struct {
	Requests []Request `json:"requests,omitempty"`
	// Groups are the security groups of ports that are made. Empty: the default group of the project.
	Groups []Group `json:"groups,omitempty"`
}

// Given reports whether the port with an id was named by the client, and so outlives the server.
func (w *Wanted) Given(port string) bool {
	return slices.ContainsFunc(w.Requests, func(r Request) bool { return r.Port == port })
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

// Bound reports whether all ports are bound on a host.
func Bound(list []Port, host string) bool {
	return !slices.ContainsFunc(list, func(p Port) bool { return p.Host != host })
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

// bound is a port as Neutron answers it to an administrator.
type bound struct {
	ports.Port
	portsbinding.PortsBindingExt
}

// Client is a client of this service. Admin reports whether the client may use networks of others that are not shared, and choose addresses in them.
type Client struct {
	Token, Project string
	Admin          bool
}

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
			return nil, fault.New(fault.Conflict, "Multiple possible networks found, use a Network ID to be more specific.")
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
			err = n.checkPort(ctx, c, project, &out[i], count)
		}
		if err != nil {
			return nil, err
		}
		if port := out[i].Port; port != "" && slices.ContainsFunc(out[:i], func(r Request) bool { return r.Port == port }) {
			return nil, fault.New(fault.Invalid, "Port ID already specified: %s", port)
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
			return nil, n.session.Translate(ctx, err)
		}
		some, err := networks.ExtractNetworks(pages)
		if err != nil {
			return nil, n.session.Translate(ctx, err)
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
		return n.session.Translate(ctx, err)
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
		err = fault.New(fault.Conflict, "Fixed IP address %s is already in use on instance %s.", r.FixedIP, list[0].DeviceID)
	}
	return err
}

func (n *Neutron) checkPort(ctx context.Context, c *gophercloud.ServiceClient, project string, r *Request, count int) error {
	is, err := ports.Get(ctx, c, r.Port).Extract()
	switch {
	case gophercloud.ResponseCodeIs(err, http.StatusNotFound):
		return NoPort(r.Port)
	case err != nil:
		return n.session.Translate(ctx, err)
	case is.ProjectID != project && is.TenantID != project:
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
		return n.session.Translate(ctx, err)
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
		return nil, n.session.Translate(ctx, err)
	}
	out, err := groups.ExtractGroups(pages)
	return out, n.session.Translate(ctx, err)
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
	var out []groups.SecGroup
	for _, id := range slices.Compact(ids) {
		g, err := groups.Get(ctx, c, id).Extract()
		if gophercloud.ResponseCodeIs(err, http.StatusNotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, n.session.Translate(ctx, err)
		}
		out = append(out, *g)
	}
	return out, nil
}

// list returns ports.
func (n *Neutron) list(ctx context.Context, c *gophercloud.ServiceClient, opts ports.ListOpts) (out []bound, err error) {
	pages, err := ports.List(c, opts).AllPages(ctx)
	if err == nil {
		err = ports.ExtractPortsInto(pages, &out)
	}
	return out, n.session.Translate(ctx, err)
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

// Allocate makes the ports that a server lacks, binds all of them on its host, and returns them in the order of the requests. have are the ports of
// an earlier call, in this order, which may have failed, or may have been for another host. Allocate may be repeated: a port that an earlier
// call has made is found by the id of the server, and a port that was made twice is deleted. Errors: NotFound: a network or a port is gone; Conflict: a port or
// an address is in use; Exhausted: a network has no address left; Denied: the project has no port left; Invalid: Neutron refuses the request, or
// cannot bind a port on the host.
func (n *Neutron) Allocate(ctx context.Context, s Server, have []Port) ([]Port, error) {
	c, err := n.session.Client(ctx, "")
	if err != nil {
		return nil, err
	}
	list, err := n.portsOf(ctx, c, s.ID, s.Project)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	out := make([]Port, 0, len(s.Wanted.Requests))
	for i, r := range s.Wanted.Requests {
		got, err := n.ensure(ctx, c, s, r, match(list, used, s, r, have, i))
		if err != nil {
			return nil, err
		}
		used[got.ID] = true
		out = append(out, *got)
	}
	for i := range list {
		if b := &list[i]; !used[b.ID] && !s.Wanted.Given(b.ID) && b.DeviceOwner == owner {
			if err := n.release(ctx, c, s.ID, b.ID, false); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// portsOf returns the ports of a server. Only those of its project count, because every project may write the id of the server into its ports.
func (n *Neutron) portsOf(ctx context.Context, c *gophercloud.ServiceClient, server, project string) ([]bound, error) {
	return n.list(ctx, c, ports.ListOpts{DeviceID: server, ProjectID: project})
}

// Attach makes or binds one more port for a server, for its only request. After an error the caller calls [Neutron.Release] or
// [Neutron.ReleasePort], because Neutron may have done it. Errors: those of [Neutron.Allocate].
func (n *Neutron) Attach(ctx context.Context, s Server) (*Port, error) {
	c, err := n.session.Client(ctx, "")
	if err != nil {
		return nil, err
	}
	return n.ensure(ctx, c, s, s.Wanted.Requests[0], nil)
}

// ensure returns the port of a request, bound on the host of a server. got is the port if it has been made, or nil.
func (n *Neutron) ensure(ctx context.Context, c *gophercloud.ServiceClient, s Server, r Request, got *bound) (*Port, error) {
	var err error
	if r.Port != "" {
		got, err = n.given(ctx, c, s.ID, r.Port)
	}
	if err == nil && got == nil {
		got, err = n.create(ctx, c, s, r)
	} else if err == nil && (got.HostID != s.Host || got.DeviceID != s.ID || got.VIFType == bindingFailed) {
		got, err = n.bind(ctx, c, s, got.ID)
	}
	if err != nil {
		return nil, err
	}
	if got.VIFType == bindingFailed {
		return nil, fault.New(fault.Invalid, "Binding failed for port %s, please check neutron logs for more information.", got.ID)
	}
	is, err := networks.Get(ctx, c, got.NetworkID).Extract()
	if err != nil {
		return nil, n.refused(ctx, err, Request{Network: got.NetworkID})
	}
	p := got.shown()
	p.NetworkName, p.Tag, p.Host = is.Name, r.Tag, s.Host
	return &p, nil
}

// given returns a port that the client has named.
func (n *Neutron) given(ctx context.Context, c *gophercloud.ServiceClient, server, id string) (*bound, error) {
	var got bound
	if err := ports.Get(ctx, c, id).ExtractInto(&got); err != nil {
		return nil, n.refused(ctx, err, Request{Port: id})
	}
	if got.DeviceID != "" && got.DeviceID != server {
		return nil, inUse(id)
	}
	return &got, nil
}

// match returns the port that an earlier call has made for the i-th request, or nil. It is nil for a port that the client has named.
func match(list []bound, used map[string]bool, s Server, r Request, have []Port, i int) *bound {
	if r.Port != "" {
		return nil
	}
	if i < len(have) {
		if j := slices.IndexFunc(list, func(b bound) bool { return b.ID == have[i].ID && !used[b.ID] && b.NetworkID == r.Network }); j >= 0 {
			return &list[j]
		}
	}
	for j := range list {
		b := &list[j]
		taken := used[b.ID] || s.Wanted.Given(b.ID) || slices.ContainsFunc(have, func(p Port) bool { return p.ID == b.ID })
		if !taken && b.DeviceOwner == owner && b.NetworkID == r.Network && (r.FixedIP == "" || slices.ContainsFunc(b.FixedIPs, func(ip ports.IP) bool { return sameIP(ip.IPAddress, r.FixedIP) })) {
			return b
		}
	}
	return nil
}

func sameIP(a, b string) bool { return net.ParseIP(a).Equal(net.ParseIP(b)) }

func (n *Neutron) create(ctx context.Context, c *gophercloud.ServiceClient, s Server, r Request) (*bound, error) {
	opts := ports.CreateOpts{NetworkID: r.Network, DeviceID: s.ID, DeviceOwner: owner, ProjectID: s.Project, AdminStateUp: new(true)}
	if r.FixedIP != "" {
		opts.FixedIPs = []ports.IP{{IPAddress: r.FixedIP}}
	}
	if len(s.Wanted.Groups) > 0 {
		ids := make([]string, len(s.Wanted.Groups))
		for i, g := range s.Wanted.Groups {
			ids[i] = g.ID
		}
		opts.SecurityGroups = &ids
	}
	got := new(bound)
	err := ports.Create(ctx, c, portsbinding.CreateOptsExt{CreateOptsBuilder: opts, HostID: s.Host}).ExtractInto(got)
	return got, n.refused(ctx, err, r)
}

func (n *Neutron) bind(ctx context.Context, c *gophercloud.ServiceClient, s Server, id string) (*bound, error) {
	got := new(bound)
	opts := ports.UpdateOpts{DeviceID: &s.ID, DeviceOwner: new(owner)}
	err := ports.Update(ctx, c, id, portsbinding.UpdateOptsExt{UpdateOptsBuilder: opts, HostID: &s.Host}).ExtractInto(got)
	return got, n.refused(ctx, err, Request{Port: id})
}

// refused gives an error of Neutron about a request its code. The texts are Nova's.
func (n *Neutron) refused(ctx context.Context, err error, r Request) error {
	var reply gophercloud.ErrUnexpectedResponseCode
	if err == nil || !errors.As(err, &reply) {
		return n.session.Translate(ctx, err)
	}
	kind := neutronError(reply.Body)
	switch {
	case reply.Actual == http.StatusNotFound && r.Port != "":
		return NoPort(r.Port)
	case reply.Actual == http.StatusNotFound:
		return fault.New(fault.NotFound, "Network %s could not be found.", r.Network)
	case kind == "OverQuota":
		return fault.New(fault.Denied, "Maximum number of ports exceeded")
	case kind == "IpAddressGenerationFailure":
		return fault.New(fault.Exhausted, "No fixed IP addresses available for network: %s", r.Network)
	case reply.Actual == http.StatusConflict && r.FixedIP != "":
		return fault.New(fault.Conflict, "Fixed IP address %s is already in use.", r.FixedIP)
	case reply.Actual == http.StatusConflict:
		return fault.New(fault.Conflict, "The network service refuses the port: %s", kind)
	case reply.Actual == http.StatusBadRequest:
		return fault.New(fault.Invalid, "The network service refuses the port: %s", kind)
	}
	return n.session.Translate(ctx, err)
}

// Release deletes the ports of a server, and frees those that its client has named. It may be repeated. It tries all ports, and returns the first
// error. Errors: Conflict: Neutron refuses it, such as for the parent of a trunk.
func (n *Neutron) Release(ctx context.Context, s Server) error {
	c, err := n.session.Client(ctx, "")
	if err != nil {
		return err
	}
	list, err := n.portsOf(ctx, c, s.ID, s.Project)
	for i := range list {
		if e := n.release(ctx, c, s.ID, list[i].ID, s.Wanted.Given(list[i].ID)); err == nil {
			err = e
		}
	}
	return err
}

// ReleasePort is Release for one port. It does nothing if another server has the port.
func (n *Neutron) ReleasePort(ctx context.Context, server, port string, given bool) error {
	c, err := n.session.Client(ctx, "")
	if err != nil {
		return err
	}
	is, err := ports.Get(ctx, c, port).Extract()
	switch {
	case gophercloud.ResponseCodeIs(err, http.StatusNotFound):
		return nil
	case err != nil:
		return n.session.Translate(ctx, err)
	case is.DeviceID != server:
		return nil
	}
	return n.release(ctx, c, server, port, given)
}

func (n *Neutron) release(ctx context.Context, c *gophercloud.ServiceClient, server, id string, given bool) error {
	var err error
	if given {
		opts := ports.UpdateOpts{DeviceID: new(""), DeviceOwner: new("")}
		err = ports.Update(ctx, c, id, portsbinding.UpdateOptsExt{UpdateOptsBuilder: opts, HostID: new("")}).Err
	} else {
		err = ports.Delete(ctx, c, id).ExtractErr()
	}
	var reply gophercloud.ErrUnexpectedResponseCode
	switch {
	case gophercloud.ResponseCodeIs(err, http.StatusNotFound):
		return nil
	case errors.As(err, &reply) && slices.Contains([]int{http.StatusBadRequest, http.StatusForbidden, http.StatusConflict}, reply.Actual):
		return fault.New(fault.Conflict, "the network service refuses to release port %s of server %s: %s", id, server, neutronError(reply.Body))
	}
	return n.session.Translate(ctx, err)
}
