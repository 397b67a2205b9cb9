package conductor

import (
	"context"
	"errors"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// allocate makes the ports of a server and binds them on its host. A deletion that has begun meanwhile may have released the ports before they were
// made, so they are released then.
func (s *Service) allocate(ctx context.Context, id string, have []network.Port) ([]network.Port, error) {
	srv, err := s.cfg.Store.Server(ctx, id)
	if err != nil || srv.Networks.V == nil || srv.Host == nil {
		return have, err
	}
	wanted := *srv.Networks.V
	out, err := s.cfg.Network.Allocate(ctx, network.Server{ID: id, Project: srv.ProjectID, Host: *srv.Host, Wanted: wanted}, have)
	if now, gone := s.cfg.Store.Server(ctx, id); errors.Is(gone, fault.NotFound) || gone == nil && now.Task() == store.Deleting {
		return out, errors.Join(operation.ErrStale, s.cfg.Network.Release(ctx, id, wanted))
	}
	return out, err
}

func (s *Service) allocateNew(ctx context.Context, op *operation.Op, data *store.CreateData) (err error) {
	data.Ports, err = s.allocate(ctx, op.Resource, data.Ports)
	return err
}

func (s *Service) keepNew(ctx context.Context, tx *sqlx.Tx, op *operation.Op, data *store.CreateData) error {
	return s.keepPorts(ctx, tx, op, data.Ports)
}

// keepPorts stores the ports of a server, so that it is shown with them.
func (s *Service) keepPorts(ctx context.Context, tx *sqlx.Tx, op *operation.Op, list []network.Port) error {
	if len(list) == 0 {
		return nil
	}
	return s.cfg.Store.KeepPorts(ctx, tx, op.Resource, list)
}

// allocateAgain binds the ports of a server that had no host.
func (s actor) allocateAgain(ctx context.Context, op *operation.Op, data *store.ActData) error {
	if data.Host == "" {
		return nil
	}
	srv, err := s.cfg.Store.Server(ctx, op.Resource)
	if err == nil {
		data.Ports, err = s.allocate(ctx, op.Resource, srv.Ports.V)
	}
	return err
}

func (s actor) keepAgain(ctx context.Context, tx *sqlx.Tx, op *operation.Op, data *store.ActData) error {
	return s.keepPorts(ctx, tx, op, data.Ports)
}

// releasePorts deletes the ports of a server that its host has destroyed, before the server is gone, because a client may then delete
// the network.
func (s *Service) releasePorts(ctx context.Context, op *operation.Op, _ *struct{}) error {
	srv, err := s.cfg.Store.Server(ctx, op.Resource)
	switch {
	case errors.Is(err, fault.NotFound), err == nil && srv.Networks.V == nil:
		return nil
	case err != nil:
		return err
	}
	return s.cfg.Network.Release(ctx, srv.ID, *srv.Networks.V)
}

// checkPorts returns Unavailable if a server has not got the ports that it is to have, because a conductor without the network service has begun its
// operation.
func (s *Service) checkPorts(srv *store.Server) error {
	if srv.Networks.V == nil || len(srv.Networks.V.Requests) <= len(srv.Ports.V) {
		return nil
	}
	return fault.New(fault.Unavailable, "server %s has no ports: a conductor has no section [neutron], although the API has one", srv.ID)
}
