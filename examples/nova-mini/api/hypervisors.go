package api

import (
	"context"
	"strconv"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleHypervisors   = "os_compute_api:os-hypervisors:list"
	ruleHypervisorsDe = "os_compute_api:os-hypervisors:list-detail"
	ruleHypervisor    = "os_compute_api:os-hypervisors:show"
)

var hypervisorRules = []rule{
	{ruleHypervisors, "rule:context_is_admin", "List hypervisors", "GET", "/os-hypervisors"},
	{ruleHypervisorsDe, "rule:context_is_admin", "List hypervisors with details", "GET", "/os-hypervisors/detail"},
	{ruleHypervisor, "rule:context_is_admin", "Show a hypervisor", "GET", "/os-hypervisors/{hypervisor_id}"},
}

func (s *server) hypervisorRoutes(all, _ *api.Group) {
	hypervisors := api.NewGroup(all, api.Route{Pattern: "/os-hypervisors"})
	api.HandleRoute(hypervisors, api.Route{Pattern: "GET", Rule: ruleHypervisors, Summary: "List hypervisors"}, s.listHypervisors)
	api.HandleRoute(hypervisors, api.Route{Pattern: "GET /detail", Rule: ruleHypervisorsDe, Summary: "List hypervisors with details"}, s.listHypervisorDetails)
	api.HandleRoute(hypervisors, api.Route{Pattern: "GET /{id}", Rule: ruleHypervisor, Summary: "Show a hypervisor", Errors: []int{notFound}}, s.showHypervisor)
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
