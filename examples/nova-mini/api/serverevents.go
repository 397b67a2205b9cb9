package api

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// ruleEvents is the name of the rule, as in Nova.
const ruleEvents = "os_compute_api:os-server-external-events:create"

var eventRules = []rule{
	{ruleEvents, "role:service or rule:context_is_admin", "Tell what another service has done to servers", "POST", "/os-server-external-events"},
}

func (s *server) eventRoutes(_, withBody *api.Group) {
	api.HandleRoute(withBody, api.Route{
		Pattern: "POST /os-server-external-events", Rule: ruleEvents, Summary: "Tell what another service has done to servers", Statuses: []int{http.StatusMultiStatus}, Errors: []int{unavailable},
	}, s.createEvents)
}

// networkEvents are the events after which the ports of a server are read again. nova-mini refuses the others, which are about volumes, power and
// accelerators.
var networkEvents = []string{"network-changed", "network-vif-plugged", "network-vif-unplugged", "network-vif-deleted"}

type eventList struct {
	Events []event `json:"events" min:"1"`
}

// event is something that another service has done. The enumerations of the name are those of Nova's versions.
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

// handledEvent is an event with what became of it.
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

// createEvents handles each event by itself, so some may fail.
func (s *server) createEvents(ctx context.Context, r *api.Request[eventList]) (out handledEvents, err error) {
	read := map[string]int{} // by server: the status of reading its ports again
	for i := range r.Body.Events {
		e := &r.Body.Events[i]
		code, known := read[e.Server]
		switch {
		case !slices.Contains(networkEvents, e.name()):
			code = http.StatusBadRequest
		case !known:
			if code, err = s.readPorts(ctx, e.Server); err != nil {
				return out, err
			}
			read[e.Server] = code
		}
		one := handledEvent{Server: e.Server, Name: e.name(), Status: "completed", Tag: e.Tag, Code: code}
		if code != http.StatusOK {
			one.Status, r.Status = "failed", http.StatusMultiStatus
		}
		out.Events = append(out.Events, one)
	}
	return out, nil
}

// readPorts reads the ports of a server again, and returns Nova's code for the event that asks for it.
func (s *server) readPorts(ctx context.Context, id string) (code int, err error) {
	srv, err := s.cfg.Store.Server(ctx, id)
	switch {
	case errors.Is(err, fault.NotFound):
		return http.StatusNotFound, nil
	case err != nil:
		return 0, err
	case srv.Host == nil:
		return http.StatusUnprocessableEntity, nil
	case s.cfg.Network == nil || len(srv.Networks.V.Ports()) == 0:
		return http.StatusOK, nil
	}
	list, err := s.cfg.Network.Ports(ctx, "", id)
	if err != nil {
		return 0, err
	}
	return http.StatusOK, s.cfg.Store.ChangePorts(ctx, id, func(now *store.Server) error {
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
