package api

import (
	"context"
	"strconv"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

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
		z := "internal"
		if v.Kind == store.ComputeBinary {
			z = zone
		}
		out.Services = append(out.Services, serviceView{
			ID: v.Number, Binary: v.Kind, Host: v.Host, Zone: z, Status: serviceStatus(v.Disabled), State: serviceState(v.Up),
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

type hypervisorList[T any] struct {
	Hypervisors []T `json:"hypervisors"`
}

type oneHypervisor struct {
	Hypervisor hypervisorView `json:"hypervisor"`
}

type hypervisorBrief struct {
	ID       int    `json:"id"`
	Hostname string `json:"hypervisor_hostname"`
	State    string `json:"state" enum:"up,down"`
	Status   string `json:"status" enum:"enabled,disabled"`
}

type hypervisorView struct {
	hypervisorBrief

	Type            string            `json:"hypervisor_type"`
	Version         int               `json:"hypervisor_version"`
	HostIP          string            `json:"host_ip" format:"ipv4"`
	Service         hypervisorService `json:"service"`
	VCPUs           int64             `json:"vcpus" min:"0"`
	MemoryMB        int64             `json:"memory_mb" min:"0"`
	LocalGB         int64             `json:"local_gb" min:"0"`
	VCPUsUsed       int64             `json:"vcpus_used" min:"0"`
	MemoryMBUsed    int64             `json:"memory_mb_used" min:"0"`
	LocalGBUsed     int64             `json:"local_gb_used" min:"0"`
	FreeRAM         int64             `json:"free_ram_mb"`
	FreeDisk        int64             `json:"free_disk_gb"`
	CurrentWorkload int               `json:"current_workload" min:"0"`
	RunningVMs      int64             `json:"running_vms" min:"0"`
	DiskAvailable   int64             `json:"disk_available_least"`
	CPUInfo         string            `json:"cpu_info"`
}

type hypervisorService struct {
	ID             int     `json:"id"`
	Host           string  `json:"host"`
	DisabledReason *string `json:"disabled_reason"`
}

func briefHypervisor(h *store.Host) hypervisorBrief {
	return hypervisorBrief{ID: h.ID, Hostname: h.Hostname, State: serviceState(h.Service.Up), Status: serviceStatus(h.Service.Disabled)}
}

func viewHypervisor(h *store.Host) hypervisorView {
	cpu, ram, disk := h.Inventories[compute.VCPU], h.Inventories[compute.MemoryMB], h.Inventories[compute.DiskGB]
	return hypervisorView{
		hypervisorBrief: briefHypervisor(h), Type: h.Driver, Version: 1000, HostIP: "127.0.0.1",
		Service: hypervisorService{ID: h.Service.Number, Host: h.Hostname, DisabledReason: textOrNil(h.Service.DisabledReason)},
		VCPUs:   cpu.Total, MemoryMB: ram.Total, LocalGB: disk.Total,
		VCPUsUsed: cpu.Used, MemoryMBUsed: ram.Used, LocalGBUsed: disk.Used,
		FreeRAM: ram.Total - ram.Used, FreeDisk: disk.Total - disk.Used,
		RunningVMs: h.Consumers, DiskAvailable: disk.Total - disk.Used, CPUInfo: "",
	}
}

func (s *server) hosts(ctx context.Context) ([]*store.Host, error) {
	return s.cfg.Store.Hosts(ctx, s.cfg.DownAfter)
}

func (s *server) listHypervisors(ctx context.Context, _ *api.Request[api.None]) (hypervisorList[hypervisorBrief], error) {
	return hypervisorsAs(ctx, s, briefHypervisor)
}

func (s *server) listHypervisorDetails(ctx context.Context, _ *api.Request[api.None]) (hypervisorList[hypervisorView], error) {
	return hypervisorsAs(ctx, s, viewHypervisor)
}

func hypervisorsAs[T any](ctx context.Context, s *server, view func(*store.Host) T) (hypervisorList[T], error) {
	hosts, err := s.hosts(ctx)
	out := hypervisorList[T]{Hypervisors: []T{}}
	for _, h := range hosts {
		out.Hypervisors = append(out.Hypervisors, view(h))
	}
	return out, err
}

func (s *server) showHypervisor(ctx context.Context, r *api.Request[api.None]) (out oneHypervisor, err error) {
	hosts, err := s.hosts(ctx)
	if err != nil {
		return out, err
	}
	for _, h := range hosts {
		if strconv.Itoa(h.ID) == r.PathValue("id") {
			return oneHypervisor{viewHypervisor(h)}, nil
		}
	}
	return out, fault.New(fault.NotFound, "Compute host %s could not be found.", r.PathValue("id"))
}
