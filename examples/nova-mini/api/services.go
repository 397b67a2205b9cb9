package api

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleServices      = "os_compute_api:os-services:list"
	ruleServiceUpdate = "os_compute_api:os-services:update"
)

var serviceRules = []rule{
	{ruleServices, "rule:context_is_admin", "List services", "GET", "/os-services"},
	{ruleServiceUpdate, "rule:context_is_admin", "Change a service", "PUT", "/os-services/{service_id}"},
}

// serviceRoutes registers the routes of services. Until lastNumbers the path of a request to change a service names the change, and the body names the service. Since firstUUIDs the path
// names the service, and the body has the change.
func (s *server) serviceRoutes(all, withBody *api.Group) {
	api.HandleRoute(all, api.Route{Pattern: "GET /os-services", Rule: ruleServices, Summary: "List services", Query: queryOf("host", "binary")}, s.listServices)
	services := api.NewGroup(withBody, api.Route{Pattern: "/os-services", Rule: ruleServiceUpdate, Errors: []int{notFound}})
	api.HandleRoute(services, api.Route{Pattern: "PUT /disable", Max: lastNumbers, Summary: "Disable a service: its host gets no more servers"}, s.disableService)
	api.HandleRoute(services, api.Route{Pattern: "PUT /disable-log-reason", Max: lastNumbers, Summary: "Disable a service with a reason"}, s.disableServiceFor)
	api.HandleRoute(services, api.Route{Pattern: "PUT /enable", Max: lastNumbers, Summary: "Enable a service"}, s.enableService)
	api.HandleRoute(services, api.Route{
		Pattern: "PUT /force-down", Min: "2.11", Max: lastNumbers, Summary: "Treat a service as down in spite of its heartbeats, or undo this",
	}, s.forceDownService)
	for _, word := range []string{"disable", "disable-log-reason", "enable", "force-down"} { // the path /{id} has these words as ids, but the router prefers the paths above in all versions
		api.HandleRoute(services, api.Route{Pattern: "PUT /" + word, Min: firstUUIDs, Status: http.StatusBadRequest, Summary: "Refused: since " + firstUUIDs + " the path names a service"},
			func(context.Context, *api.Request[updateService]) (out updatedService, err error) {
				return out, checkUUID(word)
			})
	}
	api.HandleRoute(services, api.Route{Pattern: "PUT /{id}", Min: firstUUIDs, Summary: "Disable or enable a service, or treat it as down"}, s.updateService)
}

type serviceList struct {
	Services []serviceView `json:"services"`
}

type serviceView struct {
	ID             int     `json:"id" until:"2.52"`
	UUID           string  `json:"uuid" name:"id" format:"uuid" since:"2.53"`
	Binary         string  `json:"binary"`
	Host           string  `json:"host"`
	Zone           string  `json:"zone"`
	Status         string  `json:"status" enum:"enabled,disabled"`
	State          string  `json:"state" enum:"up,down"`
	UpdatedAt      *micros `json:"updated_at"`
	DisabledReason *string `json:"disabled_reason"`
	ForcedDown     bool    `json:"forced_down" since:"2.11"`
}

func viewService(v *store.Service, zone string) serviceView {
	return serviceView{
		ID: v.Number, UUID: v.UUID(), Binary: v.Kind, Host: v.Host, Zone: zone, Status: serviceStatus(v.Disabled), State: serviceState(v.Up),
		UpdatedAt: formatMicros(&v.SeenAt), DisabledReason: textOrNil(v.DisabledReason), ForcedDown: v.ForcedDown,
	}
}

func serviceStatus(disabled bool) string {
	if disabled {
		return "disabled"
	}
	return "enabled"
}

func serviceState(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

// textOrNil returns a pointer to s, or nil if s is empty.
func textOrNil(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (s *server) listServices(ctx context.Context, r *api.Request[api.None]) (out serviceList, err error) {
	list, zones, err := s.zones(ctx)
	if err != nil {
		return out, err
	}
	q := r.URL.Query()
	host, binary := lastValue(q, "host"), lastValue(q, "binary")
	out.Services = []serviceView{}
	for i := range list {
		v := &list[i]
		if host != "" && v.Host != host || binary != "" && v.Kind != binary {
			continue
		}
		out.Services = append(out.Services, viewService(v, zones.of(v, s.cfg.InternalZone)))
	}
	return out, nil
}

// setService is the body of a request whose path names the change of a service. As in Nova, a field that does not belong to this change has no effect.
type setService struct {
	Host           string  `json:"host" min:"1" max:"255" pattern:"^[a-zA-Z0-9-._]*$"`
	Binary         string  `json:"binary" min:"1" max:"255"`
	DisabledReason string  `json:"disabled_reason,omitempty" min:"1" max:"255"`
	ForcedDown     boolean `json:"forced_down,omitzero" since:"2.11"`
}

// serviceChange is a change of a service. An empty status and a nil forcedDown change nothing.
type serviceChange struct {
	status, reason string
	forcedDown     *bool
}

type oneService struct {
	Service setView `json:"service"`
}

type setView struct {
	Host           string `json:"host"`
	Binary         string `json:"binary"`
	Status         string `json:"status" enum:"enabled,disabled"`
	DisabledReason string `json:"disabled_reason,omitempty"`
}

type oneForcedService struct {
	Service forcedView `json:"service"`
}

type forcedView struct {
	Host       string `json:"host"`
	Binary     string `json:"binary"`
	ForcedDown bool   `json:"forced_down"`
}

func (s *server) disableService(ctx context.Context, r *api.Request[setService]) (oneService, error) {
	return s.setService(ctx, &r.Body, serviceChange{status: "disabled"})
}

func (s *server) disableServiceFor(ctx context.Context, r *api.Request[setService]) (oneService, error) {
	if r.Body.DisabledReason == "" {
		return oneService{}, fault.New(fault.Invalid, "Missing disabled reason field")
	}
	return s.setService(ctx, &r.Body, serviceChange{status: "disabled", reason: r.Body.DisabledReason})
}

func (s *server) enableService(ctx context.Context, r *api.Request[setService]) (oneService, error) {
	return s.setService(ctx, &r.Body, serviceChange{status: "enabled"})
}

func (s *server) setService(ctx context.Context, b *setService, c serviceChange) (oneService, error) {
	err := s.changeService(ctx, b.Binary, b.Host, c)
	return oneService{setView{Host: b.Host, Binary: b.Binary, Status: c.status, DisabledReason: c.reason}}, err
}

func (s *server) forceDownService(ctx context.Context, r *api.Request[setService]) (oneForcedService, error) {
	b := &r.Body
	if b.ForcedDown.RawMessage == nil {
		return oneForcedService{}, fault.New(fault.Invalid, "Missing forced_down field")
	}
	down := isTrue(plainText(b.ForcedDown.RawMessage))
	return oneForcedService{forcedView{b.Host, b.Binary, down}}, s.changeService(ctx, b.Binary, b.Host, serviceChange{forcedDown: &down})
}

// changeService changes a compute service. Errors, with Nova's texts: NotFound; Invalid if the service is not a compute service.
func (s *server) changeService(ctx context.Context, binary, host string, c serviceChange) error {
	if binary != store.ComputeBinary {
		return fault.New(fault.Invalid, "Updating a %s service is not supported. Only nova-compute services can be updated.", binary)
	}
	if c.status != "" {
		if err := s.cfg.Store.SetDisabled(ctx, binary, host, c.status == "disabled", c.reason); err != nil {
			return err
		}
	}
	if c.forcedDown != nil {
		return s.cfg.Store.ForceDown(ctx, binary, host, *c.forcedDown)
	}
	return nil
}

type updateService struct {
	Status         string  `json:"status,omitempty" enum:"enabled,disabled"`
	DisabledReason string  `json:"disabled_reason,omitempty" min:"1" max:"255"`
	ForcedDown     boolean `json:"forced_down,omitzero"`
}

type updatedService struct {
	Service serviceView `json:"service"`
}

// updateService changes the service whose UUID is in the path.
func (s *server) updateService(ctx context.Context, r *api.Request[updateService]) (out updatedService, err error) {
	id, in := r.PathValue("id"), &r.Body
	if err := checkUUID(id); err != nil {
		return out, err
	}
	v, err := s.serviceByUUID(ctx, id)
	if err != nil {
		return out, err
	}
	c := serviceChange{status: in.Status, reason: in.DisabledReason}
	if in.ForcedDown.RawMessage != nil {
		c.forcedDown = new(isTrue(plainText(in.ForcedDown.RawMessage)))
	}
	switch {
	case v.Kind != store.ComputeBinary: // changeService returns the error
	case in.Status == "enabled" && in.DisabledReason != "":
		return out, fault.New(fault.Invalid, "Specifying 'disabled_reason' with status 'enabled' is invalid.")
	case in.Status == "" && c.forcedDown == nil:
		return out, fault.New(fault.Invalid, "No updates were requested. Fields 'status' or 'forced_down' should be specified.")
	}
	if err := s.changeService(ctx, v.Kind, v.Host, c); err != nil {
		return out, err
	}
	if v, err = s.serviceByUUID(ctx, id); err != nil {
		return out, err
	}
	zones, err := s.cfg.Store.Zones(ctx)
	out.Service = viewService(v, hostZones(zones).of(v, s.cfg.InternalZone))
	return out, err
}

// serviceByUUID returns the service with a UUID. Errors: NotFound, with Nova's text.
func (s *server) serviceByUUID(ctx context.Context, id string) (*store.Service, error) {
	list, err := s.cfg.Store.Services(ctx, s.cfg.DownAfter)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(list, func(v store.Service) bool { return v.UUID() == strings.ToLower(id) }); i >= 0 {
		return &list[i], nil
	}
	return nil, fault.New(fault.NotFound, "Service %s could not be found.", id)
}
