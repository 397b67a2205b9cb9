package api

import (
	"context"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleZones       = "os_compute_api:os-availability-zone:list"
	ruleZoneDetails = "os_compute_api:os-availability-zone:detail"
)

var zoneRules = []rule{
	{ruleZones, "@", "List availability zones", "GET", "/os-availability-zone"},
	{ruleZoneDetails, "rule:context_is_admin", "List availability zones with their hosts", "GET", "/os-availability-zone/detail"},
}

func (s *server) zoneRoutes(all, _ *api.Group) {
	zones := api.NewGroup(all, api.Route{Pattern: "/os-availability-zone"})
	api.HandleRoute(zones, api.Route{Pattern: "GET", Rule: ruleZones, Summary: "List availability zones", Query: noQuery}, s.listZones)
	api.HandleRoute(zones, api.Route{Pattern: "GET /detail", Rule: ruleZoneDetails, Summary: "List availability zones with their hosts", Query: noQuery}, s.listZoneDetails)
}

type zoneList struct {
	Zones []zoneView `json:"availabilityZoneInfo"`
}

type zoneView struct {
	Name  string    `json:"zoneName"`
	State zoneState `json:"zoneState"`
	// Hosts has the services by their host and binary. It is nil in a list without details.
	Hosts *map[string]map[string]zoneService `json:"hosts"`
}

type zoneState struct {
	Available bool `json:"available"`
}

type zoneService struct {
	Available bool    `json:"available"`
	Active    bool    `json:"active"`
	UpdatedAt *micros `json:"updated_at"`
}

// internalZone is the zone of the services that are not on compute hosts, as in Nova. Clients see it in the list with details only.
const internalZone = "internal"

// zonesOf returns the services by their zone. A service that is disabled is in no zone, as in Nova.
func zonesOf(services []store.Service) map[string][]store.Service {
	out := map[string][]store.Service{}
	for _, v := range services {
		if !v.Disabled {
			out[zoneOfService(v)] = append(out[zoneOfService(v)], v)
		}
	}
	return out
}

// zoneOfService returns the zone of a service.
func zoneOfService(v store.Service) string {
	if v.Kind == store.ComputeBinary {
		return zone
	}
	return internalZone
}

func (s *server) listZones(ctx context.Context, _ *api.Request[api.None]) (zoneList, error) {
	out := zoneList{Zones: []zoneView{}}
	services, err := s.cfg.Store.Services(ctx, s.cfg.DownAfter)
	if err != nil {
		return out, err
	}
	disabled := false // whether there are compute services, and all are disabled
	for _, v := range services {
		disabled = disabled || v.Kind == store.ComputeBinary
	}
	available := len(zonesOf(services)[zone]) > 0
	if available || disabled {
		out.Zones = append(out.Zones, zoneView{Name: zone, State: zoneState{available}})
	}
	return out, nil
}

func (s *server) listZoneDetails(ctx context.Context, _ *api.Request[api.None]) (zoneList, error) {
	out := zoneList{Zones: []zoneView{}}
	services, err := s.cfg.Store.Services(ctx, s.cfg.DownAfter)
	if err != nil {
		return out, err
	}
	zones := zonesOf(services)
	for _, name := range []string{internalZone, zone} {
		if len(zones[name]) == 0 {
			continue
		}
		hosts := map[string]map[string]zoneService{}
		for _, v := range zones[name] {
			if hosts[v.Host] == nil {
				hosts[v.Host] = map[string]zoneService{}
			}
			hosts[v.Host][v.Kind] = zoneService{Available: v.Up, Active: true, UpdatedAt: formatMicros(&v.SeenAt)}
		}
		out.Zones = append(out.Zones, zoneView{Name: name, State: zoneState{true}, Hosts: &hosts})
	}
	return out, nil
}
