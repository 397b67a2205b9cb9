package store

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
)

// interfaces returns the network interfaces that a driver gives the server.
func (s *Server) interfaces() (out []compute.Interface) {
	for _, p := range s.Networks.V.Ports() {
		out = append(out, Interface(p))
	}
	return out
}

// Interface returns the network interface of a port.
func Interface(p network.Port) compute.Interface {
	where := p.Network
	if p.Bridge != "" {
		where = "bridge:" + p.Bridge
	}
	return compute.Interface{ID: p.ID, MAC: p.MAC, Network: where}
}

// ChangePorts changes the network interfaces of a server. It calls change with the server, without its task, and writes them. An error
// of change is returned, and nothing is changed. Errors: NotFound.
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
