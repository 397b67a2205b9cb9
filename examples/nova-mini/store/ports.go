package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/service/operation"
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

// AttachInterface and DetachInterface are the kinds of operations that change one interface of a server. The resource is the server's id, so that no other operation runs on the server meanwhile,
// except a deletion. As in Nova, such an operation has no task_state: other actions wait for its end, see whenFree.
var (
	AttachInterface = operation.Kind[InterfaceData]{Name: kindName(compute.AttachInterface), Timeout: interfaceTime}
	DetachInterface = operation.Kind[InterfaceData]{Name: kindName(compute.DetachInterface), Timeout: interfaceTime}
)

// interfaceTime limits the time of the change of an interface. Undoing the change may take the same time once more.
const interfaceTime = 10 * time.Minute

// InterfaceData are the data of the change of an interface.
type InterfaceData struct {
	// Request is the interface that the client wants, in an attachment.
	Request network.Request `json:"request,omitzero"`
	// Project is the server's project.
	Project string `json:"project"`
	// Port is the port of the interface. In an attachment it is empty until the port is made and bound.
	Port network.Port `json:"port,omitzero"`
	// Reserved means that the attachment has stored the interface, see ReservePort. Detached means that the guest does not have the interface of an attachment that is undone.
	Reserved bool `json:"reserved,omitempty"`
	// Deleted means that the network service has deleted the port of a detachment. No state of the server and no driver refuses such a detachment.
	Deleted  bool `json:"deleted,omitempty"`
	Detached bool `json:"detached,omitempty"`
}

// BeginInterface begins the operation of a kind that changes an interface of a server, and returns the id of the operation. It waits while another interface of the server is changed. Errors:
// NotFound; Conflict, with Nova's text, if the server's state does not allow the action, or the server has a task; ErrNotSupported.
func (s *Store) BeginInterface(ctx context.Context, id string, a compute.Action, data InterfaceData) (operationID string, err error) {
	kind := AttachInterface
	if a == compute.DetachInterface {
		kind = DetachInterface
	}
	err = s.whenFree(ctx, id, a, func() error {
		return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
			// The operation is written before the server is locked, in the same order as a runner locks them.
			if operationID, err = operation.Begin(ctx, s.ops, kind, id, &data); err != nil {
				return err
			}
			srv, err := s.lockServer(ctx, tx, id)
			switch {
			case err != nil:
				return err
			case data.Deleted && srv.Networks.V.Index(data.Port.ID) < 0:
				return errDetached
			case data.Deleted && srv.Host != nil:
				return nil
			}
			if err := checkState(srv, a.Info()); err != nil {
				return err
			}
			return s.checkCapability(ctx, tx, *srv.Host, compute.CapAttachInterface)
		})
	})
	if !errors.Is(err, operation.ErrBusy) {
		return operationID, err
	}
	srv, err := s.Server(ctx, id)
	if err != nil {
		return "", err
	}
	return "", cmp.Or(CheckAction(srv, a), interfacesBusy(id, a))
}

// errDetached means that a server no longer has the interface of a deleted port.
var errDetached = errors.New("the interface needs no detachment")

// DetachDeleted begins to detach the interface of a server whose port the network service has deleted. It does nothing if the server does not have the interface, is being deleted, or has no host: the server loses
// the interface when it gets a host again. Errors: NotFound; Conflict while another operation on the server runs.
func (s *Store) DetachDeleted(ctx context.Context, id, port string) error {
	srv, err := s.Server(ctx, id)
	if err != nil {
		return err
	}
	i := srv.Networks.V.Index(port)
	if i < 0 || srv.Host == nil || srv.Task() == Deleting {
		return nil
	}
	_, err = s.BeginInterface(ctx, id, compute.DetachInterface, InterfaceData{Port: srv.Networks.V.Interfaces[i].Port, Project: srv.ProjectID, Deleted: true})
	if errors.Is(err, errDetached) { // by another operation, for which BeginInterface has waited
		return nil
	}
	return err
}

func interfacesBusy(id string, a compute.Action) error {
	return fault.New(fault.Conflict, "Cannot '%s' instance %s while another operation on it begins or ends: try again", a.Info().Name, id)
}

// changesInterfaces reports whether operations of a kind change an interface of a server.
func changesInterfaces(kind string) bool {
	return kind == AttachInterface.Name || kind == DetachInterface.Name
}

// The time for which whenFree waits, and the interval at which it looks.
const (
	maxInterfaceWait   = 30 * time.Second
	interfaceWaitCheck = 50 * time.Millisecond
)

// whenFree calls the function begin, which begins the operation of an action on a server. It repeats the call while begin returns operation.ErrBusy because an interface of the server is being
// changed, or has just been changed. Nova's compute service makes actions wait in the same way. It must not be called in a transaction. Errors: Conflict after 30 s; those of begin, such as operation.ErrBusy because of
// another operation.
func (s *Store) whenFree(ctx context.Context, id string, a compute.Action, begin func() error) error {
	for end := time.Now().Add(maxInterfaceWait); ; {
		err := begin()
		if !errors.Is(err, operation.ErrBusy) {
			return err
		}
		switch op, readErr := s.ops.Current(ctx, id); {
		case readErr != nil && !errors.Is(readErr, fault.NotFound):
			return readErr
		case readErr == nil && !changesInterfaces(op.Kind):
			return err
		case time.Now().After(end):
			return fault.New(fault.Conflict, "Cannot '%s' instance %s while its interfaces are changed", a.Info().Name, id)
		}
		if !backoff.Sleep(ctx, interfaceWaitCheck) {
			return ctx.Err()
		}
	}
}

// AwaitInterface waits until an operation of BeginInterface has ended, and returns the port of the interface of an attachment. While the database is away, it goes on waiting. Errors: the error of the
// operation; that of ctx.
func (s *Store) AwaitInterface(ctx context.Context, operationID string) (*network.Port, error) {
	for delay := (backoff.Backoff{Min: 10 * time.Millisecond, Max: 200 * time.Millisecond}); ; {
		ended, got, err := s.EndedInterface(ctx, operationID)
		if ended || err != nil && fault.CodeOf(err) != fault.Unavailable {
			return got, err
		}
		if !backoff.Sleep(ctx, delay.Next()) {
			return nil, ctx.Err()
		}
	}
}

// EndedInterface is AwaitInterface without waiting. The result ended is false if the operation has not ended, or if that cannot be read. Errors: those of AwaitInterface; those of the database.
func (s *Store) EndedInterface(ctx context.Context, operationID string) (ended bool, port *network.Port, err error) {
	op, err := s.ops.Show(ctx, operationID)
	switch {
	case err != nil || !op.State.Ended():
		return false, nil, err
	case op.State != operation.Succeeded:
		var code fault.Code
		_ = code.UnmarshalText([]byte(op.ErrorCode)) // a code that only a later release knows becomes Internal
		return true, nil, fault.New(code, "%s", op.Error)
	}
	var data InterfaceData
	if err := json.Unmarshal(op.Data, &data); err != nil {
		return true, nil, fault.New(fault.Internal, "data of operation %s: %w", operationID, err)
	}
	return true, &data.Port, nil
}

// ReservePort stores that a server is about to have another interface, before its port is made: from then on a deletion of the server looks for its ports, and knows the port that the client has named.
// Errors: NotFound; Conflict if the server has the named port already, or if the interfaces that the server was created with are not made yet.
func (s *Store) ReservePort(ctx context.Context, id string, r network.Request) error {
	return s.ChangePorts(ctx, id, func(now *Server) error {
		w := now.Networks.V // ChangePorts writes it, also if it was nil
		switch {
		case len(w.Ports()) < len(w.Interfaces):
			return fault.New(fault.Conflict, "Cannot 'attach_interface' instance %s while its interfaces are made", id)
		case r.Port != "" && w.Index(r.Port) >= 0:
			return network.PortInUse(r.Port)
		case r.Port != "":
			w.Interfaces = append(w.Interfaces, network.Interface{Request: r, Port: network.Port{ID: r.Port, Network: r.Network}})
		}
		return nil
	})
}

// KeepPort stores the port of a new interface with a server. If the server has an interface with this port already, KeepPort updates the port. Errors: NotFound.
func (s *Store) KeepPort(ctx context.Context, id string, data *InterfaceData) error {
	return s.ChangePorts(ctx, id, func(now *Server) error {
		w := now.Networks.V
		if i := w.Index(data.Port.ID); i >= 0 {
			w.Interfaces[i].Port = data.Port
		} else {
			w.Interfaces = append(w.Interfaces, network.Interface{Request: data.Request, Port: data.Port})
		}
		return nil
	})
}

// ForgetPort removes the interface of a port from a server. Errors: NotFound.
func (s *Store) ForgetPort(ctx context.Context, id, port string) error {
	return s.ChangePorts(ctx, id, func(now *Server) error {
		if i := now.Networks.V.Index(port); i >= 0 {
			now.Networks.V.Interfaces = slices.Delete(now.Networks.V.Interfaces, i, i+1)
		}
		return nil
	})
}
