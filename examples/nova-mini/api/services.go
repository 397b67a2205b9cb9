package api

import (
	"context"

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
	{ruleServiceUpdate, "rule:context_is_admin", "Enable or disable a service", "PUT", "/os-services/enable"},
}

func (s *server) serviceRoutes(all, withBody *api.Group) {
	api.HandleRoute(all, api.Route{Pattern: "GET /os-services", Rule: ruleServices, Summary: "List services", Query: serviceQuery}, s.listServices)
	services := api.NewGroup(withBody, api.Route{Pattern: "/os-services", Rule: ruleServiceUpdate, Errors: []int{notFound}})
	api.HandleRoute(services, api.Route{Pattern: "PUT /disable", Summary: "Disable a service: its host gets no more servers"}, s.disableService)
	api.HandleRoute(services, api.Route{Pattern: "PUT /disable-log-reason", Summary: "Disable a service with a reason"}, s.disableServiceFor)
	api.HandleRoute(services, api.Route{Pattern: "PUT /enable", Summary: "Enable a service"}, s.enableService)
}

type serviceList struct {
	Services []serviceView `json:"services"`
}

type serviceView struct {
	ID             int     `json:"id"`
	Binary         string  `json:"binary"`
	Host           string  `json:"host"`
	Zone           string  `json:"zone" enum:"internal,nova"`
	Status         string  `json:"status" enum:"enabled,disabled"`
	State          string  `json:"state" enum:"up,down"`
	UpdatedAt      *micros `json:"updated_at"`
	DisabledReason *string `json:"disabled_reason"`
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

// serviceQuery is the query of a list of services, which has no pages at 2.1. Other parameters are ignored, as in Nova until 2.75.
var serviceQuery = []api.Schema{{JSON: `{"type": "object", "properties": {
	"host": {"type": "array", "items": {"type": "string"}}, "binary": {"type": "array", "items": {"type": "string"}}}}`}}

func (s *server) listServices(ctx context.Context, r *api.Request[api.None]) (out serviceList, err error) {
	list, err := s.cfg.Store.Services(ctx, s.cfg.DownAfter)
	if err != nil {
		return out, err
	}
	host, binary := r.URL.Query().Get("host"), r.URL.Query().Get("binary")
	out.Services = []serviceView{}
	for _, v := range list {
		if host != "" && v.Host != host || binary != "" && v.Kind != binary {
			continue
		}
		out.Services = append(out.Services, serviceView{
			ID: v.Number, Binary: v.Kind, Host: v.Host, Zone: zoneOfService(v), Status: serviceStatus(v.Disabled), State: serviceState(v.Up),
			UpdatedAt: formatMicros(&v.SeenAt), DisabledReason: textOrNil(v.DisabledReason),
		})
	}
	return out, nil
}

type setService struct {
	Host           string `json:"host" min:"1" max:"255" pattern:"^[a-zA-Z0-9-._]*$"`
	Binary         string `json:"binary" min:"1" max:"255"`
	DisabledReason string `json:"disabled_reason,omitempty" min:"1" max:"255"`
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

func (s *server) disableService(ctx context.Context, r *api.Request[setService]) (oneService, error) {
	return s.setService(ctx, &r.Body, true, "")
}

func (s *server) disableServiceFor(ctx context.Context, r *api.Request[setService]) (oneService, error) {
	if r.Body.DisabledReason == "" {
		return oneService{}, fault.New(fault.Invalid, "Missing disabled reason field")
	}
	return s.setService(ctx, &r.Body, true, r.Body.DisabledReason)
}

func (s *server) enableService(ctx context.Context, r *api.Request[setService]) (oneService, error) {
	return s.setService(ctx, &r.Body, false, "")
}

func (s *server) setService(ctx context.Context, b *setService, disabled bool, reason string) (oneService, error) {
	if err := s.cfg.Store.SetDisabled(ctx, b.Binary, b.Host, disabled, reason); err != nil {
		return oneService{}, err
	}
	return oneService{setView{Host: b.Host, Binary: b.Binary, Status: serviceStatus(disabled), DisabledReason: reason}}, nil
}
