package api

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// addressHandlers are the handlers of the actions that change the addresses of a server.
var addressHandlers = map[compute.Action]actionHandler{
	compute.AddFixedIP:    actionOf((*server).addFixedIP),
	compute.RemoveFixedIP: actionOf((*server).removeFixedIP),
}

type addFixedIP struct {
	Address struct {
		Network networkID `json:"networkId"`
	} `json:"addFixedIp"`
}

// networkID is the id of a network, as a text or, as in Nova, a number.
type networkID struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (networkID) JSONSchema() string {
	return `{"type": ["string", "number"], "minLength": 1, "maxLength": 36}`
}

type removeFixedIP struct {
	Address struct {
		IP ipAddress `json:"address"`
	} `json:"removeFixedIp"`
}

// addFixedIP adds an address to a port of a server. As in Nova, the state of the server does not matter, and the client needs Neutron's permission to change the port. Nova answers before
// it asks Neutron, so that its client does not learn of an error.
func (s *server) addFixedIP(ctx context.Context, r *api.Request[addFixedIP], srv *store.Server) (api.None, error) {
	if s.cfg.Network == nil {
		return api.None{}, network.NotInNetwork(srv.ID)
	}
	port, err := s.cfg.Network.AddAddress(ctx, tokenOf(r.Request), srv.ProjectID, srv.ID, plainText(r.Body.Address.Network.RawMessage))
	if errors.Is(err, fault.Exhausted) {
		err = fault.New(fault.Invalid, "%s", err)
	}
	return api.None{}, s.keepAddresses(ctx, srv.ID, port, err)
}

// removeFixedIP removes an address from a port of a server.
func (s *server) removeFixedIP(ctx context.Context, r *api.Request[removeFixedIP], srv *store.Server) (api.None, error) {
	ip := string(r.Body.Address.IP)
	if s.cfg.Network == nil {
		return api.None{}, network.NoAddress(srv.ID, ip)
	}
	port, err := s.cfg.Network.RemoveAddress(ctx, tokenOf(r.Request), srv.ProjectID, srv.ID, ip)
	return api.None{}, s.keepAddresses(ctx, srv.ID, port, err)
}

// keepAddresses stores the addresses of a port with a server, unless the change of the addresses has failed.
func (s *server) keepAddresses(ctx context.Context, id string, port *network.Port, failed error) error {
	if failed != nil {
		return failed
	}
	return s.cfg.Store.ChangePorts(ctx, id, func(now *store.Server) error {
		if i := now.Networks.V.Index(port.ID); i >= 0 {
			is := &now.Networks.V.Interfaces[i].Port
			is.Addresses, is.Subnets = port.Addresses, port.Subnets
		}
		return nil
	})
}
