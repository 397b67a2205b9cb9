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
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/subnets"

	"github.com/armature-go/armature/fault"
)

// Allocate makes the ports that a server lacks, binds all of them on its host, and returns its interfaces with their ports. An interface may already have a port in s.Wanted, from an earlier
// call that has failed, or that was for another host. Allocate may be repeated: it finds the ports of an earlier
// call by the id of the server, and deletes a port that was made twice. An interface of a server that has run is left out if its port is deleted, or
// is no longer a port of the server, as in Nova. Errors: NotFound: a network or a port is gone; Conflict: a port or
// an address is in use; Exhausted: a network has no address left; Denied: the project has no port left; Invalid: Neutron refuses the request;
// ErrBindingFailed.
func (n *Neutron) Allocate(ctx context.Context, s Server) ([]Interface, error) {
	c, err := n.session.Client(ctx, "")
	if err != nil {
		return nil, err
	}
	list, err := n.portsOf(ctx, c, s.ID, s.Project)
	if err != nil {
		return nil, err
	}
	if s.Wanted.Interfaces, err = n.present(ctx, c, list, s); err != nil {
		return nil, err
	}
	used := map[string]bool{}
	var has []bound
	for i, one := range s.Wanted.Interfaces {
		got, err := n.ensure(ctx, c, s, one.Request, matchPort(list, used, s, i))
		if err != nil {
			return nil, err
		}
		used[got.ID] = true
		has = append(has, *got)
	}
	if err := n.releaseOthers(ctx, c, list, used, s); err != nil {
		return nil, err
	}
	all, err := n.describe(ctx, c, s.Host, has)
	if err != nil {
		return nil, err
	}
	out := slices.Clone(s.Wanted.Interfaces)
	for i := range out {
		all[i].Tag = out[i].Request.Tag
		out[i].Port = all[i]
	}
	return out, nil
}

// releaseOthers deletes those ports of a list of the server's ports that are not in used, except ports that a client has named or made.
func (n *Neutron) releaseOthers(ctx context.Context, c *gophercloud.ServiceClient, list []bound, used map[string]bool, s Server) error {
	for i := range list {
		if b := &list[i]; !used[b.ID] && !s.Wanted.Given(b.ID) && strings.HasPrefix(b.DeviceOwner, ownerPrefix) {
			if err := n.release(ctx, c, s.ID, b.ID, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// ReleaseOthers deletes the ports that nova-mini has made for a server and that are not in s.Wanted, such as one of a call of [Neutron.Attach] that was not answered. It may be repeated. Errors:
// Conflict if Neutron refuses the change.
func (n *Neutron) ReleaseOthers(ctx context.Context, s Server) error {
	c, err := n.session.Client(ctx, "")
	if err != nil {
		return err
	}
	list, err := n.portsOf(ctx, c, s.ID, s.Project)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, p := range s.Wanted.Ports() {
		used[p.ID] = true
	}
	return n.releaseOthers(ctx, c, list, used, s)
}

// present returns the interfaces of a server without those that it has lost since it ran.
func (n *Neutron) present(ctx context.Context, c *gophercloud.ServiceClient, list []bound, s Server) (out []Interface, err error) {
	if !s.Launched {
		return s.Wanted.Interfaces, nil
	}
	for _, one := range s.Wanted.Interfaces {
		has := one.Port.ID == "" // it has none yet
		if !has {
			if has, err = n.has(ctx, c, list, s.ID, one); err != nil {
				return nil, err
			}
		}
		if has {
			out = append(out, one)
		}
	}
	return out, nil
}

// has reports whether the server still has the port of an interface. The parameter list has the server's ports that are of the server's project. A port that the client has named may be of
// another project, so has reads that port.
func (n *Neutron) has(ctx context.Context, c *gophercloud.ServiceClient, list []bound, server string, one Interface) (bool, error) {
	if one.Request.Port == "" {
		return slices.ContainsFunc(list, func(b bound) bool { return b.ID == one.Port.ID }), nil
	}
	got, err := n.given(ctx, c, server, one.Request.Port)
	if errors.Is(err, fault.NotFound) || errors.Is(err, fault.Conflict) {
		return false, nil
	}
	return err == nil && got.DeviceID == server, err
}

// portsOf returns the ports of a server. Only those of its project count, because every project may write the id of the server into its ports.
func (n *Neutron) portsOf(ctx context.Context, c *gophercloud.ServiceClient, server, project string) ([]bound, error) {
	return n.list(ctx, c, ports.ListOpts{DeviceID: server, ProjectID: project})
}

// Attach adds a port to a server. The last interface of s.Wanted is the new one, without a port; the others are those that the server has. Attach may be repeated: it finds the port of an earlier
// call by the id of the server. After an error, the first result is the new port, or nil if Attach does not know whether Neutron has made one. The caller must then release this port with
// [Neutron.ReleasePort], or, for nil, with [Neutron.ReleaseOthers]. Errors: those of [Neutron.Allocate].
func (n *Neutron) Attach(ctx context.Context, s Server) (*Port, error) {
	c, err := n.session.Client(ctx, "")
	if err != nil {
		return nil, err
	}
	last := len(s.Wanted.Interfaces) - 1
	r := s.Wanted.Interfaces[last].Request
	list, err := n.portsOf(ctx, c, s.ID, s.Project)
	if err != nil {
		return nil, err
	}
	got, err := n.ensure(ctx, c, s, r, matchPort(list, nil, s, last))
	if got == nil {
		return nil, err
	}
	if err == nil {
		var all []Port
		if all, err = n.describe(ctx, c, s.Host, []bound{*got}); err == nil {
			all[0].Tag = r.Tag
			return &all[0], nil
		}
	}
	return new(got.shown()), err
}

// ensure returns the port of a request, bound on the host of the server. The parameter got is the port that exists already, or nil. If Neutron cannot
// bind the port, ensure returns the port and [ErrBindingFailed]; after other errors the first result is nil.
func (n *Neutron) ensure(ctx context.Context, c *gophercloud.ServiceClient, s Server, r Request, got *bound) (*bound, error) {
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
		err = fault.WithReason(fault.New(fault.Invalid, "Binding failed for port %s, please check neutron logs for more information.", got.ID), bindingReason, nil)
	}
	return got, err
}

// describe returns ports that are bound on a host with what is told the guest: their networks and subnets. It makes one request for all networks and one for all subnets. The ports have no
// tag yet. Errors: NotFound if a network no longer exists.
func (n *Neutron) describe(ctx context.Context, c *gophercloud.ServiceClient, host string, list []bound) ([]Port, error) {
	out := make([]Port, len(list))
	var ids []string
	var addresses []Address
	for i := range list {
		out[i] = list[i].shown()
		ids, addresses = append(ids, out[i].Network), append(addresses, out[i].Addresses...)
	}
	in, err := findObjects[struct {
		ID   string `json:"id"`
		Name string `json:"name"`
		MTU  int    `json:"mtu"`
	}](ctx, n, c, "networks", ids, "id", "name", "mtu")
	if err != nil {
		return nil, err
	}
	all, err := n.subnetsOf(ctx, c, addresses)
	if err != nil {
		return nil, err
	}
	for i := range out {
		p := &out[i]
		found := false
		for _, is := range in {
			if is.ID == p.Network {
				found, p.NetworkName, p.MTU = true, is.Name, is.MTU
			}
		}
		if !found {
			return nil, fault.New(fault.NotFound, "Network %s could not be found.", p.Network)
		}
		p.Subnets, p.Host = subnetsAt(all, p.Addresses), host
	}
	return out, nil
}

// subnetsOf returns the subnets of addresses. Each subnet that has an address exists, so it is an error if c does not see one.
func (n *Neutron) subnetsOf(ctx context.Context, c *gophercloud.ServiceClient, list []Address) (out []Subnet, _ error) {
	var ids []string
	for _, a := range list {
		ids = append(ids, a.Subnet)
	}
	all, err := findObjects[subnets.Subnet](ctx, n, c, "subnets", ids)
	for _, is := range all {
		one := Subnet{ID: is.ID, CIDR: is.CIDR, Gateway: is.GatewayIP, DHCP: is.EnableDHCP, IPv6Mode: is.IPv6AddressMode, DNS: is.DNSNameservers}
		for _, r := range is.HostRoutes {
			one.Routes = append(one.Routes, Route{r.DestinationCIDR, r.NextHop})
		}
		out = append(out, one)
	}
	for _, id := range ids {
		if err == nil && !slices.ContainsFunc(out, func(s Subnet) bool { return s.ID == id }) {
			err = fault.New(fault.Unavailable, "the network service does not list the subnet %s, in which a port has an address", id)
		}
	}
	return out, err
}

// subnetsAt returns those of the subnets in which the addresses are, in the order of the addresses, each once.
func subnetsAt(all []Subnet, list []Address) (out []Subnet) {
	for _, a := range list {
		i := slices.IndexFunc(all, func(s Subnet) bool { return s.ID == a.Subnet })
		if i >= 0 && !slices.ContainsFunc(out, func(s Subnet) bool { return s.ID == a.Subnet }) {
			out = append(out, all[i])
		}
	}
	return out
}

// given returns a port that the client has named.
func (n *Neutron) given(ctx context.Context, c *gophercloud.ServiceClient, server, id string) (*bound, error) {
	var got bound
	if err := ports.Get(ctx, c, id).ExtractInto(&got); err != nil {
		return nil, n.refused(ctx, c, err, Request{Port: id})
	}
	if got.DeviceID != "" && got.DeviceID != server {
		return nil, PortInUse(id)
	}
	return &got, nil
}

// matchPort returns the port that an earlier call has made for the interface i, or nil if no such port exists. It returns nil if the client has named the port.
func matchPort(list []bound, used map[string]bool, s Server, i int) *bound {
	r, known := s.Wanted.Interfaces[i].Request, s.Wanted.Interfaces[i].Port.ID
	if r.Port != "" {
		return nil
	}
	if j := slices.IndexFunc(list, func(b bound) bool { return b.ID == known && !used[b.ID] && b.NetworkID == r.Network }); j >= 0 {
		return &list[j]
	}
	for j := range list {
		b := &list[j]
		taken := used[b.ID] || s.Wanted.Given(b.ID) || s.Wanted.Index(b.ID) >= 0
		if !taken && strings.HasPrefix(b.DeviceOwner, ownerPrefix) && b.NetworkID == r.Network && (r.FixedIP == "" || slices.ContainsFunc(b.FixedIPs, func(ip ports.IP) bool { return sameIP(ip.IPAddress, r.FixedIP) })) {
			return b
		}
	}
	return nil
}

func sameIP(a, b string) bool { return net.ParseIP(a).Equal(net.ParseIP(b)) }

func (n *Neutron) create(ctx context.Context, c *gophercloud.ServiceClient, s Server, r Request) (*bound, error) {
	opts := ports.CreateOpts{NetworkID: r.Network, DeviceID: s.ID, DeviceOwner: ownerPrefix + s.Zone, ProjectID: s.Project, AdminStateUp: new(true)}
	if r.FixedIP != "" {
		opts.FixedIPs = []ports.IP{{IPAddress: r.FixedIP}}
	}
	if s.Wanted.Groups != nil {
		ids := make([]string, len(s.Wanted.Groups))
		for i, g := range s.Wanted.Groups {
			ids[i] = g.ID
		}
		opts.SecurityGroups = &ids
	}
	got := new(bound)
	err := ports.Create(ctx, c, portsbinding.CreateOptsExt{CreateOptsBuilder: opts, HostID: s.Host}).ExtractInto(got)
	return got, n.refused(ctx, c, err, r)
}

func (n *Neutron) bind(ctx context.Context, c *gophercloud.ServiceClient, s Server, id string) (*bound, error) {
	got := new(bound)
	opts := ports.UpdateOpts{DeviceID: &s.ID, DeviceOwner: new(ownerPrefix + s.Zone)}
	err := ports.Update(ctx, c, id, portsbinding.UpdateOptsExt{UpdateOptsBuilder: opts, HostID: &s.Host}).ExtractInto(got)
	return got, n.refused(ctx, c, err, Request{Port: id})
}

// refused returns Neutron's error for a request with its code. The texts are Nova's.
func (n *Neutron) refused(ctx context.Context, c *gophercloud.ServiceClient, err error, r Request) error {
	var reply gophercloud.ErrUnexpectedResponseCode
	if err == nil || !errors.As(err, &reply) {
		return n.session.Translate(ctx, c, err)
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
		return fault.WithReason(fault.New(fault.Conflict, "Fixed IP address %s is already in use.", r.FixedIP), addressReason, nil)
	case reply.Actual == http.StatusConflict:
		return fault.New(fault.Conflict, "The network service refuses the port: %s", kind)
	case reply.Actual == http.StatusBadRequest:
		return fault.New(fault.Invalid, "The network service refuses the port: %s", kind)
	}
	return n.session.Translate(ctx, c, err)
}

// Release deletes the ports that nova-mini has made for a server, and unbinds the ports that the client has named. It may be repeated. It tries all ports, and returns
// the first error. Errors: Conflict if Neutron refuses the change, such as for the parent port of a trunk.
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
	for _, one := range s.Wanted.Interfaces { // a port that the client has named may belong to another project, so it is not in list
		port := one.Request.Port
		if port == "" || slices.ContainsFunc(list, func(b bound) bool { return b.ID == port }) {
			continue
		}
		if e := n.ReleasePort(ctx, s.ID, port, true); err == nil {
			err = e
		}
	}
	return err
}

// ReleasePort is Release for one port. It deletes the port, or unbinds it if given is set. It does nothing if the port does not belong to the server.
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
		return n.session.Translate(ctx, c, err)
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
	return n.session.Translate(ctx, c, err)
}
