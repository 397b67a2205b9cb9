package api

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/backoff"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

// ruleEvents is the name of the rule, as in Nova.
const ruleEvents = "os_compute_api:os-server-external-events:create"

var eventRules = []rule{
	{ruleEvents, "rule:service_or_admin", "Report events of another service about servers", "POST", "/os-server-external-events"},
}

func (s *server) eventRoutes(_, withBody *api.Group) {
	api.HandleRoute(withBody, api.Route{
		Pattern: "POST /os-server-external-events", Rule: ruleEvents, Summary: "Report events of another service about servers", Statuses: []int{http.StatusMultiStatus}, Errors: []int{unavailable},
	}, s.createEvents)
}

// networkEvents are the events after which the ports of a server are read again. nova-mini refuses the others, which are about volumes, power and
// accelerators. Without a network service, these events succeed for a server without ports, and are refused for a server with ports.
var networkEvents = []string{"network-changed", "network-vif-plugged", "network-vif-unplugged", vifDeleted}

// vifDeleted is the event after which the server loses the interface of a port.
const vifDeleted = "network-vif-deleted"

type eventList struct {
	Events []event `json:"events" min:"1"`
}

// event is an event that another service reports. The name exists once for each of Nova's versions that has added values to its enumeration.
type event struct {
	Server string `json:"server_uuid" format:"uuid"`
	Name   string `json:"name" until:"2.50" enum:"network-changed,network-vif-plugged,network-vif-unplugged,network-vif-deleted"`
	Name51 string `json:"name51" name:"name" since:"2.51" until:"2.75" enum:"network-changed,network-vif-plugged,network-vif-unplugged,network-vif-deleted,volume-extended"`
	Name76 string `json:"name76" name:"name" since:"2.76" until:"2.81" enum:"network-changed,network-vif-plugged,network-vif-unplugged,network-vif-deleted,volume-extended,power-update"`
	Name82 string `json:"name82" name:"name" since:"2.82" until:"2.92" enum:"network-changed,network-vif-plugged,network-vif-unplugged,network-vif-deleted,volume-extended,power-update,accelerator-request-bound"`
	Name93 string `json:"name93" name:"name" since:"2.93" enum:"network-changed,network-vif-plugged,network-vif-unplugged,network-vif-deleted,volume-extended,power-update,accelerator-request-bound,volume-reimaged"`
	Status string `json:"status,omitempty" enum:"failed,completed,in-progress"`
	Tag    string `json:"tag,omitempty" max:"255"`
}

func (e *event) name() string { return cmp.Or(e.Name, e.Name51, e.Name76, e.Name82, e.Name93) }

// handledEvent is an event with the result of handling it.
type handledEvent struct {
	Server string `json:"server_uuid"`
	Name   string `json:"name"`
	Status string `json:"status" enum:"failed,completed,in-progress"`
	Tag    string `json:"tag,omitempty"`
	Code   int    `json:"code"`
}

type handledEvents struct {
	Events []handledEvent `json:"events"`
}

// createEvents handles each event separately: some may fail while others succeed.
func (s *server) createEvents(ctx context.Context, r *api.Request[eventList]) (out handledEvents, err error) {
	read := map[string]*portsRead{} // the key is the server id
	for i := range r.Body.Events {
		e := &r.Body.Events[i]
		code, err := s.handleEvent(ctx, e, read)
		if err != nil {
			return out, err
		}
		one := handledEvent{Server: e.Server, Name: e.name(), Status: "completed", Tag: e.Tag, Code: code}
		if code != http.StatusOK {
			one.Status, r.Status = "failed", http.StatusMultiStatus
		}
		out.Events = append(out.Events, one)
	}
	return out, nil
}

// handleEvent returns Nova's code for an event. The parameter read has the ports that were read for earlier events; the key is the server id.
func (s *server) handleEvent(ctx context.Context, e *event, read map[string]*portsRead) (code int, err error) {
	if !slices.Contains(networkEvents, e.name()) {
		return http.StatusBadRequest, nil
	}
	now := read[e.Server]
	if now == nil {
		if now, err = s.readPorts(ctx, e.Server); err != nil {
			return 0, err
		}
		read[e.Server] = now
	}
	if s.cfg.Network != nil && now.code == http.StatusOK && e.name() == vifDeleted && e.Tag != "" && !now.has(e.Tag) {
		return s.detachDeleted(ctx, e.Server, e.Tag), nil
	}
	return now.code, nil
}

// portsRead are the present ports of a server in the network service, and Nova's code for the event that asks for them.
type portsRead struct {
	code int
	list []network.Port
}

// has reports whether the server has a port.
func (p *portsRead) has(id string) bool {
	return slices.ContainsFunc(p.list, func(one network.Port) bool { return one.ID == id })
}

// readPorts reads the ports of a server again.
func (s *server) readPorts(ctx context.Context, id string) (*portsRead, error) {
	srv, err := s.cfg.Store.Server(ctx, id)
	switch {
	case errors.Is(err, fault.NotFound):
		return &portsRead{code: http.StatusNotFound}, nil
	case err != nil:
		return nil, err
	case srv.Host == nil:
		return &portsRead{code: http.StatusUnprocessableEntity}, nil
	case len(srv.Networks.V.Ports()) == 0:
		return &portsRead{code: http.StatusOK}, nil
	case s.cfg.Network == nil:
		return &portsRead{code: http.StatusBadRequest}, nil
	}
	list, err := s.cfg.Network.Ports(ctx, "", id)
	if err != nil {
		return nil, err
	}
	return &portsRead{http.StatusOK, list}, s.cfg.Store.ChangePorts(ctx, id, func(now *store.Server) error {
		for i := range now.Networks.V.Interfaces {
			p := &now.Networks.V.Interfaces[i].Port
			if j := slices.IndexFunc(list, func(one network.Port) bool { return one.ID == p.ID }); j >= 0 {
				p.Addresses, p.MAC = list[j].Addresses, list[j].MAC
			} else {
				p.Addresses = nil
			}
		}
		return nil
	})
}

// detachDeleted begins to detach the interface of a server whose port the network service has deleted, and returns Nova's code for the event. A conductor does the work, as in Nova a compute service. The
// event waits for another operation on the server, for at most eventTimeout.
func (s *server) detachDeleted(ctx context.Context, id, port string) (code int) {
	limited, cancel := context.WithTimeout(reqctx.With(ctx, reqctx.Request{}), eventTimeout) // without the request, because no client has asked for the detachment
	defer cancel()
	for {
		err := s.cfg.Store.DetachDeleted(limited, id, port)
		switch {
		case err == nil:
			s.notifyConductor(ctx, id)
			return http.StatusOK
		case errors.Is(err, fault.NotFound): // the server is gone
			return http.StatusOK
		case !errors.Is(err, fault.Conflict) || !backoff.Sleep(limited, eventPause):
			s.cfg.Logger.WarnContext(ctx, "interface of a deleted port not detached", "server", id, "port", port, "error", err)
			return http.StatusServiceUnavailable
		}
	}
}

// eventTimeout is how long an event waits for another operation on its server, and eventPause is the interval at which it looks.
const (
	eventTimeout = 10 * time.Second
	eventPause   = 200 * time.Millisecond
)
