package network

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/portsbinding"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"

	"github.com/armature-go/armature/fault"
)

// Allocate makes the ports that a server lacks, binds all of them on its host, and returns its interfaces with them. The ports that the interfaces have are those of
// an earlier call, which may have failed, or may have been for another host. Allocate may be repeated: a port that an earlier
// call has made is found by the id of the server, and a port that was made twice is deleted. Errors: NotFound: a network or a port is gone; Conflict: a port or
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
	used := map[string]bool{}
	out := slices.Clone(s.Wanted.Interfaces)
	for i := range out {
		got, err := n.ensure(ctx, c, s, out[i].Request, match(list, used, s, i))
		if err != nil {
			return nil, err
		}
		used[got.ID] = true
		out[i].Port = *got
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

// Attach makes or binds one more port for a server, for its only interface. With an error, the port is the one that was made and cannot be used, or nil if none is known: the caller calls
// [Neutron.Release] or [Neutron.ReleasePort]. Errors: those of [Neutron.Allocate].
func (n *Neutron) Attach(ctx context.Context, s Server) (*Port, error) {
	c, err := n.session.Client(ctx, "")
	if err != nil {
		return nil, err
	}
	return n.ensure(ctx, c, s, s.Wanted.Interfaces[0].Request, nil)
}

// ensure returns the port of a request, bound on the host of a server. got is the port if it has been made, or nil. With an error, ensure returns the port that was made, or nil.
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
		return new(got.shown()), fault.WithReason(fault.New(fault.Invalid, "Binding failed for port %s, please check neutron logs for more information.", got.ID), bindingReason, nil)
	}
	is, err := networks.Get(ctx, c, got.NetworkID).Extract()
	if err != nil {
		return new(got.shown()), n.refused(ctx, c, err, Request{Network: got.NetworkID})
	}
	p := got.shown()
	p.NetworkName, p.Tag, p.Host = is.Name, r.Tag, s.Host
	return &p, nil
}

// given returns a port that the client has named.
func (n *Neutron) given(ctx context.Context, c *gophercloud.ServiceClient, server, id string) (*bound, error) {
	var got bound
	if err := ports.Get(ctx, c, id).ExtractInto(&got); err != nil {
		return nil, n.refused(ctx, c, err, Request{Port: id})
	}
	if got.DeviceID != "" && got.DeviceID != server {
		return nil, inUse(id)
	}
	return &got, nil
}

// match returns the port that an earlier call has made for the i-th interface, or nil. It is nil for a port that the client has named.
func match(list []bound, used map[string]bool, s Server, i int) *bound {
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
	return got, n.refused(ctx, c, err, r)
}

func (n *Neutron) bind(ctx context.Context, c *gophercloud.ServiceClient, s Server, id string) (*bound, error) {
	got := new(bound)
	opts := ports.UpdateOpts{DeviceID: &s.ID, DeviceOwner: new(owner)}
	err := ports.Update(ctx, c, id, portsbinding.UpdateOptsExt{UpdateOptsBuilder: opts, HostID: &s.Host}).ExtractInto(got)
	return got, n.refused(ctx, c, err, Request{Port: id})
}

// refused gives an error of Neutron about a request its code. The texts are Nova's.
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
	for _, one := range s.Wanted.Interfaces { // a port that was named may be one of another project
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
