package network

import (
	"context"
	"errors"
	"slices"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/subnets"

	"github.com/armature-go/armature/fault"
)

// NotInNetwork returns NotFound, with Nova's text, for a server that has no port in a network, or for a network without a subnet.
func NotInNetwork(server string) error {
	return fault.New(fault.NotFound, "Network could not be found for instance %s.", server)
}

// NoAddress returns Invalid, with Nova's text, for a server that does not have an address.
func NoAddress(server, ip string) error {
	return fault.New(fault.Invalid, "Instance %s does not have fixed IP '%s'.", server, ip)
}

// AddAddress adds an address to a port that a server has in a network, with the rights of the client, and returns the port with its addresses and their subnets. Each call adds an address.
// As in Nova, the address is of the first subnet that has a free one. Errors: NotFound if the server has no port in the network, or the network no subnet; Exhausted if no subnet has a free
// address; Invalid or Conflict if Neutron refuses the address.
func (n *Neutron) AddAddress(ctx context.Context, token, project, server, network string) (*Port, error) {
	c, err := n.session.Client(ctx, token)
	if err != nil {
		return nil, err
	}
	in, err := n.subnetsIn(ctx, c, network)
	if err != nil {
		return nil, err
	}
	return untilUnchanged(ctx, n, server, func() (*Port, error) { return n.addAddress(ctx, c, project, server, network, in) })
}

// addAddress does what AddAddress does, with the subnets of the network. After errChanged it may be repeated.
func (n *Neutron) addAddress(ctx context.Context, c *gophercloud.ServiceClient, project, server, network string, in []subnets.Subnet) (*Port, error) {
	list, err := n.list(ctx, c, ports.ListOpts{DeviceID: server, ProjectID: project, NetworkID: network})
	if err != nil {
		return nil, err
	}
	err = NotInNetwork(server)
	for _, p := range list {
		for _, subnet := range in {
			var got *Port
			got, err = n.setAddresses(ctx, c, &p, append(slices.Clone(p.FixedIPs), ports.IP{SubnetID: subnet.ID}))
			if !errors.Is(err, fault.Exhausted) {
				return got, err
			}
		}
	}
	return nil, err
}

// subnetsIn returns the subnets of a network that c may see.
func (n *Neutron) subnetsIn(ctx context.Context, c *gophercloud.ServiceClient, network string) ([]subnets.Subnet, error) {
	pages, err := subnets.List(c, subnets.ListOpts{NetworkID: network}).AllPages(ctx)
	if err != nil {
		return nil, n.session.Translate(ctx, c, err)
	}
	out, err := subnets.ExtractSubnets(pages)
	return out, n.session.Translate(ctx, c, err)
}

// RemoveAddress removes an address from a port of a server, with the rights of the client, and returns the port with its other addresses and their subnets. Errors: Invalid if the server does
// not have the address, or if Neutron refuses the change; Conflict.
func (n *Neutron) RemoveAddress(ctx context.Context, token, project, server, ip string) (*Port, error) {
	c, err := n.session.Client(ctx, token)
	if err != nil {
		return nil, err
	}
	return untilUnchanged(ctx, n, server, func() (*Port, error) { return n.removeAddress(ctx, c, project, server, ip) })
}

// removeAddress does what RemoveAddress does. After errChanged it may be repeated.
func (n *Neutron) removeAddress(ctx context.Context, c *gophercloud.ServiceClient, project, server, ip string) (*Port, error) {
	list, err := n.portsOf(ctx, c, server, project)
	if err != nil {
		return nil, err
	}
	for i := range list {
		rest := slices.DeleteFunc(slices.Clone(list[i].FixedIPs), func(has ports.IP) bool { return sameIP(has.IPAddress, ip) })
		if len(rest) < len(list[i].FixedIPs) {
			return n.setAddresses(ctx, c, &list[i], rest)
		}
	}
	return nil, NoAddress(server, ip)
}

// setAddresses sets the addresses of a port, and returns the port as it is then. Errors: errChanged; those of refused.
func (n *Neutron) setAddresses(ctx context.Context, c *gophercloud.ServiceClient, p *bound, to []ports.IP) (*Port, error) {
	switch err := n.update(ctx, c, p, ports.UpdateOpts{FixedIPs: to}); {
	case errors.Is(err, errChanged):
		return nil, err
	case err != nil:
		return nil, n.refused(ctx, c, err, Request{Network: p.NetworkID})
	}
	out := p.shown()
	all, err := n.subnetsOf(ctx, c, out.Addresses)
	out.Subnets = subnetsAt(all, out.Addresses)
	return &out, err
}
