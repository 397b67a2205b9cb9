package conductor

import (
	"context"
	"errors"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
)

// Networks are the network service. The methods are those of network.Neutron.
type Networks interface {
	// Allocate makes the ports of a server and binds them on its host. An error with network.ErrBindingFailed may not happen on another host.
	Allocate(ctx context.Context, s network.Server) ([]network.Interface, error)
	// Release deletes the ports of a server.
	Release(ctx context.Context, s network.Server) error
}

// networkTimeout bounds the requests to the network service for one server. They do not end with the step, because Neutron may make a port after the
// request has been given up.
const networkTimeout = time.Minute

// ownerOf returns a server for the network service.
func ownerOf(srv *store.Server) network.Server {
	return network.Server{ID: srv.ID, Project: srv.ProjectID, Host: *srv.Host, Wanted: *srv.Networks.V}
}

// allocate makes the ports of a server that has a host, and binds them there, before a compute service builds the server. It may be repeated. A deletion
// that has begun meanwhile may have released the ports before they were made, so they are released then. Errors: Unavailable, if this conductor has
// no network service, although the server has been created with one.
func (s *Service) allocate(ctx context.Context, srv *store.Server) error {
	if srv.Networks.V.Bound(*srv.Host) {
		return nil
	}
	if s.cfg.Network == nil {
		return noNetwork(srv.ID)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), networkTimeout)
	defer cancel()
	of := ownerOf(srv)
	list, err := s.cfg.Network.Allocate(ctx, of)
	if now, gone := s.cfg.Store.Server(ctx, srv.ID); errors.Is(gone, fault.NotFound) || gone == nil && now.Task() == store.Deleting {
		return errors.Join(operation.ErrStale, s.cfg.Network.Release(ctx, of))
	}
	if err != nil {
		return err
	}
	return s.cfg.Store.ChangePorts(ctx, srv.ID, func(now *store.Server) error {
		now.Networks.V.Interfaces, srv.Networks.V.Interfaces = list, list
		return nil
	})
}

// release deletes the ports of a server, before its host destroys it and it is gone, because a client may then delete the network.
func (s *Service) release(ctx context.Context, srv *store.Server) error {
	if srv.Networks.V == nil {
		return nil
	}
	if s.cfg.Network == nil {
		return noNetwork(srv.ID)
	}
	err := s.cfg.Network.Release(ctx, network.Server{ID: srv.ID, Project: srv.ProjectID, Wanted: *srv.Networks.V})
	if errors.Is(err, fault.Conflict) {
		err = operation.Permanent(err)
	}
	return err
}

func noNetwork(id string) error {
	return fault.New(fault.Unavailable, "server %s has ports, and this conductor has no section [neutron]", id)
}
