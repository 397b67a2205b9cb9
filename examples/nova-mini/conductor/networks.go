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

// Networks is the network service. network.Neutron implements it.
type Networks interface {
	// Allocate makes the ports of a server and binds them on the server's host. After network.ErrBindingFailed another host may succeed.
	Allocate(ctx context.Context, s network.Server) ([]network.Interface, error)
	// Release deletes the ports of a server, and unbinds those that the client has named.
	Release(ctx context.Context, s network.Server) error
	// Attach makes and binds the port of the last interface, which is new. After an error the first result is the new port, or nil if that is not known. It may be repeated.
	Attach(ctx context.Context, s network.Server) (*network.Port, error)
	// ReleasePort is Release for one port. The parameter given says that the client has named the port.
	ReleasePort(ctx context.Context, server, port string, given bool) error
	// ReleaseOthers deletes the ports of the server that are not in s.Wanted and that no client has named.
	ReleaseOthers(ctx context.Context, s network.Server) error
}

// networkTimeout limits the time of the requests to the network service for one server. The requests go on after the end of the step, because Neutron may make a
// port even if the request is canceled.
const networkTimeout = time.Minute

// ownerOf returns a server in the form that the network service needs. The server must have a host.
func ownerOf(srv *store.Server) network.Server {
	return network.Server{ID: srv.ID, Project: srv.ProjectID, Host: *srv.Host, Zone: srv.Zone, Wanted: *srv.Networks.V, Launched: srv.LaunchedAt != nil}
}

// allocate makes the ports of a server and binds them on its host, before a compute service builds the server. It may be repeated. Errors: Unavailable if the
// server has ports to bind, and this conductor has no network service; those of Networks; operation.ErrStale if a deletion of the server has begun meanwhile. In
// the last case allocate releases the ports, because the deletion may have looked for ports before allocate made them.
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

// release deletes the ports of a server before the server is destroyed and removed: after that, clients expect that they can delete the network.
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
