package store

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
)

// interfaces returns the network interfaces of the server in the form for drivers.
func (s *Server) interfaces() (out []compute.Interface) {
	for _, p := range s.Networks.V.Ports() {
		out = append(out, Interface(p))
	}
	return out
}

// Interface returns the network interface of a port in the form for drivers. The field Network of the result is "bridge:NAME" if the
// port has a bridge, and otherwise the network's id.
func Interface(p network.Port) compute.Interface {
	where := p.Network
	if p.Bridge != "" {
		where = "bridge:" + p.Bridge
	}
	out := compute.Interface{ID: p.ID, MAC: p.MAC, Network: where, NetworkID: p.Network, MTU: p.MTU, Tag: p.Tag}
	for _, s := range p.Subnets {
		in := slices.IndexFunc(p.Addresses, func(a network.Address) bool { return a.Subnet == s.ID }) // as Nova, the guest is told the first address in each subnet
		_, bits, _ := strings.Cut(s.CIDR, "/")
		if in < 0 || bits == "" {
			continue
		}
		one := compute.GuestAddress{Prefix: p.Addresses[in].IP + "/" + bits, DHCP: s.DHCP, IPv6Mode: s.IPv6Mode, Gateway: s.Gateway, DNS: s.DNS}
		for _, r := range s.Routes {
			one.Routes = append(one.Routes, compute.Route(r))
		}
		out.Addresses = append(out.Addresses, one)
	}
	return out
}

// ChangePorts changes the network interfaces of a server. It calls the function change with the server, which has no TaskState, and
// writes Networks. If the function returns an error, ChangePorts writes nothing and returns that error. Other errors: NotFound.
func (s *Store) ChangePorts(ctx context.Context, id string, change func(*Server) error) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		srv, err := s.lockServer(ctx, tx, id)
		if err != nil {
			return err
		}
		if srv.Networks.V == nil {
			srv.Networks.V = new(network.Wanted)
		}
		if err := change(srv); err != nil {
			return err
		}
		_, err = db.Exec(ctx, tx, `UPDATE servers SET networks = ?, updated_at = ? WHERE id = ?`, srv.Networks, now, id)
		return err
	})
}
