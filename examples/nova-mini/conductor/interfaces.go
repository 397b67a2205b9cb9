package conductor

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/operation"
)

// interfaceLimit limits the time of one step of the change of an interface, for which a client waits.
const interfaceLimit = time.Minute

// handleInterfaces registers the operations that attach and detach interfaces. At their end the database, the network service and the guest have the same interfaces, also if a step has failed.
// Only a deletion preempts these operations, and then releases all ports of the server.
func (s *Service) handleInterfaces() {
	type step = operation.Step[store.InterfaceData]
	operation.Handle(s.Runner, store.AttachInterface,
		step{Name: "reserve", DoTx: s.reservePort, UndoTx: s.unreservePort, Limit: interfaceLimit},
		step{Name: "port", Do: s.makePort, DoTx: s.keepPort, Undo: s.undoPort, Limit: interfaceLimit},
		step{Name: "attach", Do: s.castAttachment, Undo: s.undoAttachment, UndoTx: s.noteDetached, Limit: interfaceLimit})
	operation.Handle(s.Runner, store.DetachInterface,
		step{Name: "detach", Do: s.castDetachment, Undo: s.undoDetachment, Limit: interfaceLimit},
		// Without a limit, because the network service may have released the port although it has not answered: then the guest must not get the interface back.
		step{Name: "port", Do: s.releasePort, DoTx: s.forgetPort})
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

// reservePort stores that the server is about to have another interface, before its port is made.
func (s *Service) reservePort(ctx context.Context, _ *sqlx.Tx, op *operation.Op, data *store.InterfaceData) error {
	data.Reserved = true
	return s.cfg.Store.ReservePort(ctx, op.Resource, data.Request)
}

// unreservePort removes the interface of a port that the client has named. A port that was made stays with the server if the guest may have it, see undoPort.
func (s *Service) unreservePort(ctx context.Context, _ *sqlx.Tx, op *operation.Op, data *store.InterfaceData) error {
	if !data.Reserved || data.Request.Port == "" || mayBeInGuest(data) {
		return nil
	}
	return s.dropPort(ctx, op.Resource, data.Request.Port)
}

// makePort makes the port of a new interface, or binds the port that the client has named.
func (s *Service) makePort(ctx context.Context, op *operation.Op, data *store.InterfaceData) error {
	srv, err := s.withPorts(ctx, op.Resource)
	if err != nil {
		return err
	}
	// Otherwise the attachment could neither be done nor undone: its host could not be asked whether the guest has the interface.
	if since := compute.AttachInterface.Info().Since; !s.cfg.Client.Allows(compute.Worker, since) {
		return operation.Transient(fault.New(fault.Unavailable, "an interface cannot be attached before all compute services have version %v", since))
	}
	whole := context.WithoutCancel(ctx) // Neutron may make a port even if the request is canceled
	limited, cancel := context.WithTimeout(whole, networkTimeout)
	defer cancel()
	of := withInterface(srv, data.Request)
	got, err := s.cfg.Network.Attach(limited, of)
	if err == nil && data.Request.Port == "" { // a request that Neutron has not answered in time was repeated, and may have made two ports
		of.Wanted.Interfaces[len(of.Wanted.Interfaces)-1].Port = *got
		err = s.cfg.Network.ReleaseOthers(limited, of)
	}
	after, cancel := context.WithTimeout(whole, networkTimeout)
	defer cancel()
	if _, gone := s.withPorts(after, op.Resource); errors.Is(gone, operation.ErrStale) { // the deletion may have looked for ports before Attach made this one
		return errors.Join(operation.ErrStale, s.undoPort(after, op, data))
	}
	if err != nil {
		return err
	}
	data.Port = *got
	return nil
}

// withInterface returns a server in the form that the network service needs. The last interface is the new one, without a port.
func withInterface(srv *store.Server, r network.Request) network.Server {
	out := network.Server{ID: srv.ID, Project: srv.ProjectID, Host: *srv.Host, Zone: srv.Zone, Launched: true}
	if w := srv.Networks.V; w != nil {
		out.Wanted = *w
	}
	others := slices.DeleteFunc(slices.Clone(out.Wanted.Interfaces), func(one network.Interface) bool { return r.Port != "" && one.Port.ID == r.Port }) // the reserved one
	out.Wanted.Interfaces = append(others, network.Interface{Request: r})
	return out
}

func (s *Service) keepPort(ctx context.Context, _ *sqlx.Tx, op *operation.Op, data *store.InterfaceData) error {
	return s.cfg.Store.KeepPort(ctx, op.Resource, data)
}

// undoPort releases the port of a new interface, and removes the interface from the server. If the guest may have the interface, because its host does not answer, the port stays with the server, so that
// no other server gets its addresses: the client sees the interface, and can detach it.
func (s *Service) undoPort(ctx context.Context, op *operation.Op, data *store.InterfaceData) error {
	if mayBeInGuest(data) {
		s.cfg.Logger.WarnContext(ctx, "interface kept, because its host does not say whether the guest has it", "server", op.Resource, "port", data.Port.ID)
		return nil
	}
	srv, err := s.cfg.Store.Server(ctx, op.Resource)
	if errors.Is(err, fault.NotFound) {
		srv, err = &store.Server{ID: op.Resource, ProjectID: data.Project}, nil
	}
	if err == nil && s.cfg.Network == nil {
		err = noNetwork(op.Resource)
	}
	given, port := data.Request.Port != "", cmp.Or(data.Port.ID, data.Request.Port)
	switch {
	case err != nil:
		return err
	case port == "":
		return s.cfg.Network.ReleaseOthers(ctx, withoutHost(srv))
	case given && !data.Reserved: // the server had the port before
		return nil
	}
	if err := s.cfg.Network.ReleasePort(ctx, srv.ID, port, given); err != nil {
		return err
	}
	return s.dropPort(ctx, srv.ID, port)
}

// mayBeInGuest reports whether the guest may have the interface of an attachment that is undone: the port was made, so the compute service may have been asked.
func mayBeInGuest(data *store.InterfaceData) bool { return data.Port.ID != "" && !data.Detached }

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

func (s *Service) castAttachment(ctx context.Context, op *operation.Op, data *store.InterfaceData) error {
	return s.castInterface(ctx, op, data, compute.AttachInterface)
}

// undoAttachment detaches the interface from the guest.
func (s *Service) undoAttachment(ctx context.Context, op *operation.Op, data *store.InterfaceData) error {
	return s.castInterface(ctx, op, data, compute.DetachInterface)
}

// noteDetached runs after undoAttachment, in the transaction of the report.
func (s *Service) noteDetached(_ context.Context, _ *sqlx.Tx, _ *operation.Op, data *store.InterfaceData) error {
	data.Detached = true
	return nil
}

func (s *Service) castDetachment(ctx context.Context, op *operation.Op, data *store.InterfaceData) error {
	return s.castInterface(ctx, op, data, compute.DetachInterface)
}

// undoDetachment gives the interface back to the guest if the network service has refused to release the port. After any other error the guest may lack the interface: the client can detach it again.
func (s *Service) undoDetachment(ctx context.Context, op *operation.Op, data *store.InterfaceData) error {
	if fault.CodeOf(op.Err) == fault.Conflict {
		return s.castInterface(ctx, op, data, compute.AttachInterface)
	}
	return nil
}

// castInterface casts the request to attach the interface to the guest, or to detach it, to the compute service of the server's host. While the operation is undone, or after the
// network service has deleted the port, it is not an error that the host does not have the guest, or that the driver cannot change interfaces.
func (s *Service) castInterface(ctx context.Context, op *operation.Op, data *store.InterfaceData, a compute.Action) error {
	srv, err := s.withPorts(ctx, op.Resource)
	undoing := op.State == operation.Undoing
	switch {
	case undoing && errors.Is(err, operation.ErrStale):
		return nil // the deletion of the server cleans up
	case err != nil:
		return err
	}
	return s.waitForReport(op, *srv.Host, rpc.Cast(ctx, s.cfg.Client, a.Info().Method(), *srv.Host, &compute.ActRequest{
		ServerID: srv.ID, Action: a, Interface: new(store.Interface(data.Port)), IfPossible: undoing || data.Deleted, Token: op.Token, Generation: generationOf(op.Token),
	}))
}

func (s *Service) releasePort(ctx context.Context, op *operation.Op, data *store.InterfaceData) error {
	if data.Deleted {
		return nil
	}
	srv, err := s.withPorts(ctx, op.Resource)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), networkTimeout)
	defer cancel()
	return s.cfg.Network.ReleasePort(ctx, srv.ID, data.Port.ID, srv.Networks.V.Given(data.Port.ID))
}

func (s *Service) forgetPort(ctx context.Context, _ *sqlx.Tx, op *operation.Op, data *store.InterfaceData) error {
	return s.dropPort(ctx, op.Resource, data.Port.ID)
}
