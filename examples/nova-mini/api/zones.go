package api

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
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
	// Hosts has the services, by host and binary. It is nil in a list without details.
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

// hostZones are the availability zones of the compute hosts, by host.
type hostZones map[string]string

// of returns the zone of a service. The zone of a compute service is nova if the service has not reported a zone.
func (z hostZones) of(v *store.Service, internal string) string {
	if v.Kind != store.ComputeBinary {
		return internal
	}
	return cmp.Or(z[v.Host], store.DefaultZone)
}

// zones returns all services, with their availability zones.
func (s *server) zones(ctx context.Context) ([]store.Service, hostZones, error) {
	services, err := s.cfg.Store.Services(ctx, s.cfg.DownAfter)
	if err != nil {
		return nil, nil, err
	}
	zones, err := s.cfg.Store.Zones(ctx)
	return services, zones, err
}

// allZones returns the names of all zones, sorted: those with a service that is enabled, and the others.
func (s *server) allZones(services []store.Service, zones hostZones) (available, others []string) {
	state := map[string]bool{}
	for i := range services {
		name := zones.of(&services[i], s.cfg.InternalZone)
		state[name] = state[name] || !services[i].Disabled
	}
	for _, name := range slices.Sorted(maps.Keys(state)) {
		if state[name] {
			available = append(available, name)
		} else {
			others = append(others, name)
		}
	}
	return available, others
}

// checkZone returns Invalid, with Nova's text, if a zone is not available.
func (s *server) checkZone(ctx context.Context, name string) error {
	services, zones, err := s.zones(ctx)
	if err != nil {
		return err
	}
	if available, _ := s.allZones(services, zones); !slices.Contains(available, name) {
		return fault.New(fault.Invalid, "The requested availability zone is not available")
	}
	return nil
}

func (s *server) listZones(ctx context.Context, _ *api.Request[api.None]) (zoneList, error) {
	out := zoneList{Zones: []zoneView{}}
	services, zones, err := s.zones(ctx)
	if err != nil {
		return out, err
	}
	available, others := s.allZones(services, zones)
	for i, name := range append(available, others...) {
		if name != s.cfg.InternalZone {
			out.Zones = append(out.Zones, zoneView{Name: name, State: zoneState{i < len(available)}})
		}
	}
	return out, nil
}

func (s *server) listZoneDetails(ctx context.Context, _ *api.Request[api.None]) (zoneList, error) {
	out := zoneList{Zones: []zoneView{}}
	services, zones, err := s.zones(ctx)
	if err != nil {
		return out, err
	}
	hosts := map[string]map[string]map[string]zoneService{} // the outer key is the zone
	for i := range services {
		v := &services[i]
		if v.Disabled {
			continue
		}
		name := zones.of(v, s.cfg.InternalZone)
		if hosts[name] == nil {
			hosts[name] = map[string]map[string]zoneService{}
		}
		if hosts[name][v.Host] == nil {
			hosts[name][v.Host] = map[string]zoneService{}
		}
		hosts[name][v.Host][v.Kind] = zoneService{Available: v.Up, Active: true, UpdatedAt: formatMicros(&v.SeenAt)}
	}
	available, others := s.allZones(services, zones)
	for _, name := range available {
		out.Zones = append(out.Zones, zoneView{Name: name, State: zoneState{true}, Hosts: new(hosts[name])})
	}
	for _, name := range others {
		out.Zones = append(out.Zones, zoneView{Name: name})
	}
	return out, nil
}
