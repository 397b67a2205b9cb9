package conductor

import (
	"context"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/operation"
)

// interfaceLimit limits the time of one step of the change of an interface, because the client waits for the end of the change.
const interfaceLimit = time.Minute

// handleInterfaces registers the operations that attach and detach interfaces. At their end the database, the network service and the guest have the same interfaces, also if a step has failed.
// Only a deletion preempts these operations, and then releases all ports of the server.
func (s *Service) handleInterfaces() {
	type step = operation.Step[store.InterfaceData]
	operation.Handle(s.Runner, store.AttachInterface,
		step{Name: "port", Do: s.makePort, DoTx: s.keepPort, Undo: s.undoPort, Limit: interfaceLimit},
		step{Name: "attach", Do: s.attachToGuest, Undo: s.detachFromGuest, Limit: interfaceLimit})
	operation.Handle(s.Runner, store.DetachInterface,
		step{Name: "detach", Do: s.detachFromGuest, Undo: s.attachToGuest, Limit: interfaceLimit},
		step{Name: "port", Do: s.releasePort, DoTx: s.forgetPort, Limit: interfaceLimit})
}

// withPorts returns a server whose interfaces change. Errors: operation.ErrStale if the server is being deleted or does not exist; Unavailable without a network service.
func (s *Service) withPorts(ctx context.Context, id string) (*store.Server, error) {
	srv, err := s.cfg.Store.Server(ctx, id)
	switch {
	case errors.Is(err, fault.NotFound), err == nil && (srv.Task() == store.Deleting || srv.Host == nil):
		return nil, operation.ErrStale
	case err == nil && s.cfg.Network == nil:
		err = noNetwork(id)
	}
	return srv, err
}

// makePort makes the port of a new interface, or binds the port that the client has named.
func (s *Service) makePort(ctx context.Context, op *operation.Op, data *store.InterfaceData) error {
	srv, err := s.withPorts(ctx, op.Resource)
	if err != nil {
		return err
	}
	given := data.Request.Port
	if given != "" && srv.Networks.V.Index(given) >= 0 {
		return operation.Permanent(network.PortInUse(given))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), networkTimeout) // Neutron may make a port even if the request is canceled
	defer cancel()
	got, err := s.cfg.Network.Attach(ctx, withInterface(srv, data.Request))
	if _, gone := s.withPorts(ctx, op.Resource); errors.Is(gone, operation.ErrStale) { // the deletion may have looked for ports before Attach made this one
		return errors.Join(operation.ErrStale, s.undoPort(ctx, op, data))
	}
	if err != nil {
		return err
	}
	data.Port = *got
	return nil
}

// withInterface returns a server in the form that the network service needs, with a further interface.
func withInterface(srv *store.Server, r network.Request) network.Server {
	out := network.Server{ID: srv.ID, Project: srv.ProjectID, Host: *srv.Host, Zone: srv.Zone, Launched: true}
	if w := srv.Networks.V; w != nil {
		out.Wanted = *w
	}
	out.Wanted.Interfaces = append(append([]network.Interface(nil), out.Wanted.Interfaces...), network.Interface{Request: r})
	return out
}

func (s *Service) keepPort(ctx context.Context, _ *sqlx.Tx, op *operation.Op, data *store.InterfaceData) error {
	return s.cfg.Store.KeepPort(ctx, op.Resource, data)
}

// undoPort releases the port of a new interface, and removes the interface from the server.
func (s *Service) undoPort(ctx context.Context, op *operation.Op, data *store.InterfaceData) error {
	srv, err := s.cfg.Store.Server(ctx, op.Resource)
	if errors.Is(err, fault.NotFound) {
		srv, err = &store.Server{ID: op.Resource, ProjectID: data.Project}, nil
	}
	if err == nil && s.cfg.Network == nil {
		err = noNetwork(op.Resource)
	}
	if err != nil {
		return err
	}
	given, port := data.Request.Port, data.Port.ID
	switch {
	case port == "" && given != "" && srv.Networks.V.Index(given) >= 0: // the server had the port before
		return nil
	case port == "" && given == "":
		return s.cfg.Network.ReleaseOthers(ctx, withoutHost(srv))
	case port == "":
		port = given
	}
	if err := s.cfg.Network.ReleasePort(ctx, srv.ID, port, given != ""); err != nil {
		return err
	}
	return s.dropPort(ctx, srv.ID, port)
}

// withoutHost returns a server in the form that the network service needs to release ports.
func withoutHost(srv *store.Server) network.Server {
	out := network.Server{ID: srv.ID, Project: srv.ProjectID}
	if w := srv.Networks.V; w != nil {
		out.Wanted = *w
	}
	return out
}

// dropPort removes the interface of a port from a server, if the server exists.
func (s *Service) dropPort(ctx context.Context, id, port string) error {
	if err := s.cfg.Store.ForgetPort(ctx, id, port); err != nil && !errors.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

func (s *Service) attachToGuest(ctx context.Context, op *operation.Op, data *store.InterfaceData) error {
	return s.changeGuest(ctx, op, data, false)
}

func (s *Service) detachFromGuest(ctx context.Context, op *operation.Op, data *store.InterfaceData) error {
	err := s.changeGuest(ctx, op, data, true)
	if op.State == operation.Undoing && errors.Is(err, fault.Unimplemented) { // then the guest has no such interface
		return nil
	}
	return err
}

// changeGuest makes the compute service of the server's host attach an interface to the guest, or detach it. An error of the driver is permanent.
func (s *Service) changeGuest(ctx context.Context, op *operation.Op, data *store.InterfaceData, detach bool) error {
	srv, err := s.withPorts(ctx, op.Resource)
	if op.State == operation.Undoing && errors.Is(err, operation.ErrStale) { // the deletion of the server cleans up
		return nil
	}
	if err != nil {
		return err
	}
	_, err = rpc.Call(ctx, s.cfg.Client, compute.ChangeInterface, *srv.Host, &compute.InterfaceRequest{ServerID: srv.ID, Interface: store.Interface(data.Port), Detach: detach})
	switch code := fault.CodeOf(err); {
	case err == nil:
		return nil
	case code == fault.Unavailable, code == fault.Unknown, code == fault.Timeout, errors.Is(err, fault.ErrUnsupportedVersion), errors.Is(err, fault.ErrVersionCap):
		return err
	case code == fault.Unimplemented:
		return operation.Permanent(err)
	}
	return operation.Permanent(fault.New(fault.Internal, "host %s: %w", *srv.Host, err)) // the client must not see an error of the driver, whatever its code is
}

func (s *Service) releasePort(ctx context.Context, op *operation.Op, data *store.InterfaceData) error {
	srv, err := s.withPorts(ctx, op.Resource)
	if err != nil {
		return err
	}
	return s.cfg.Network.ReleasePort(ctx, srv.ID, data.Port.ID, srv.Networks.V.Given(data.Port.ID))
}

func (s *Service) forgetPort(ctx context.Context, _ *sqlx.Tx, op *operation.Op, data *store.InterfaceData) error {
	return s.dropPort(ctx, op.Resource, data.Port.ID)
}
