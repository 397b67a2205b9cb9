package api

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleHypervisors      = "os_compute_api:os-hypervisors:list"
	ruleHypervisorsDe    = "os_compute_api:os-hypervisors:list-detail"
	ruleHypervisor       = "os_compute_api:os-hypervisors:show"
	ruleHypervisorsSum   = "os_compute_api:os-hypervisors:statistics"
	ruleHypervisorUptime = "os_compute_api:os-hypervisors:uptime"
	ruleHypervisorSearch = "os_compute_api:os-hypervisors:search"
	ruleHypervisorHosted = "os_compute_api:os-hypervisors:servers"
)

var hypervisorRules = []rule{
	{ruleHypervisors, "rule:context_is_admin", "List hypervisors", "GET", "/os-hypervisors"},
	{ruleHypervisorsDe, "rule:context_is_admin", "List hypervisors with details", "GET", "/os-hypervisors/detail"},
	{ruleHypervisor, "rule:context_is_admin", "Show a hypervisor", "GET", "/os-hypervisors/{hypervisor_id}"},
	{ruleHypervisorsSum, "rule:context_is_admin", "Show the sums of all hypervisors", "GET", "/os-hypervisors/statistics"},
	{ruleHypervisorUptime, "rule:context_is_admin", "Show the uptime of a hypervisor", "GET", "/os-hypervisors/{hypervisor_id}/uptime"},
	{ruleHypervisorSearch, "rule:context_is_admin", "Find hypervisors by their host names", "GET", "/os-hypervisors/{hypervisor_hostname_pattern}/search"},
	{ruleHypervisorHosted, "rule:context_is_admin", "List the servers on hypervisors", "GET", "/os-hypervisors/{hypervisor_hostname_pattern}/servers"},
}

// Microversions that change hypervisors and services. Until lastNumbers the ids are numbers, and a path finds hypervisors by a part of their names. Since firstUUIDs the ids are UUIDs,
// and a filter finds hypervisors by a part of their names. After lastSums replies do not have the amounts of hypervisors.
const (
	lastNumbers = "2.52"
	firstUUIDs  = "2.53"
	lastSums    = "2.87"
)

// hypervisorPages has the parameters of lists from 2.33 to lastNumbers. The variable hypervisors has the parameters of lists since
// firstUUIDs. The handlers read all hosts from the database, and then select the page.
var (
	hypervisorPages = listing.Spec{MaxLimit: MaxLimit, Lenient: true}
	hypervisors     = listing.Spec{
		MaxLimit: MaxLimit, Filters: []listing.Filter{{Name: "hypervisor_hostname_pattern"}, {Name: "with_servers", Kind: listing.Boolean}},
	}
)

// withServers is the query of one hypervisor since firstUUIDs.
var withServers = []api.Schema{{JSON: `{"type": "object", "additionalProperties": false, "properties": {
	"with_servers": {"type": "array", "maxItems": 1, "items": ` + boolean{}.JSONSchema() + `}}}`}}

func (s *server) hypervisorRoutes(all, _ *api.Group) {
	g := api.NewGroup(all, api.Route{Pattern: "/os-hypervisors"})
	one := api.NewGroup(g, api.Route{Errors: []int{notFound}})
	for _, v := range []struct {
		min, max string
		pages    *listing.Spec
		ids      hostIDs
	}{{"", "2.32", nil, hostNumbers}, {"2.33", lastNumbers, &hypervisorPages, hostNumbers}, {firstUUIDs, "", &hypervisors, hostUUIDs}} {
		l := hypervisorLists{s, v.ids, v.pages != nil}
		group := g
		if v.min == firstUUIDs { // 404 if the pattern matches no host
			group = one
		}
		api.HandleRoute(group, api.Route{Pattern: "GET", Min: v.min, Max: v.max, Rule: ruleHypervisors, Summary: "List hypervisors", List: v.pages}, l.list)
		api.HandleRoute(group, api.Route{Pattern: "GET /detail", Min: v.min, Max: v.max, Rule: ruleHypervisorsDe, Summary: "List hypervisors with details", List: v.pages}, l.listDetails)
	}
	const shown = "Show a hypervisor"
	api.HandleRoute(one, api.Route{Pattern: "GET /{id}", Max: lastNumbers, Rule: ruleHypervisor, Summary: shown}, s.showHypervisor(hostNumbers))
	api.HandleRoute(one, api.Route{Pattern: "GET /{id}", Min: firstUUIDs, Rule: ruleHypervisor, Summary: shown, Query: withServers}, s.showHypervisor(hostUUIDs))
	api.HandleRoute(one, api.Route{Pattern: "GET /{name}/search", Max: lastNumbers, Rule: ruleHypervisorSearch, Summary: "Find hypervisors by a part of their host names"}, s.searchHypervisors)
	api.HandleRoute(one, api.Route{Pattern: "GET /{name}/servers", Max: lastNumbers, Rule: ruleHypervisorHosted, Summary: "List the servers on hypervisors"}, s.listHosted)
	api.HandleRoute(g, api.Route{Pattern: "GET /statistics", Max: lastSums, Rule: ruleHypervisorsSum, Summary: "Show the sums of all hypervisors"}, s.sumHypervisors)
	uptime := api.Route{
		Pattern: "GET /{id}/uptime", Rule: ruleHypervisorUptime, Summary: "Show the uptime of a hypervisor, which no driver reports", Errors: []int{http.StatusNotImplemented},
	}
	uptime.Max = lastNumbers
	api.HandleRoute(one, uptime, s.showUptime(hostNumbers))
	uptime.Min, uptime.Max = firstUUIDs, lastSums
	api.HandleRoute(one, uptime, s.showUptime(hostUUIDs))
}

type hypervisorList[T any] struct {
	Hypervisors []T        `json:"hypervisors"`
	Links       []api.Link `json:"hypervisors_links,omitempty" since:"2.33"`
}

// foundHypervisors are hypervisors in a reply without pages.
type foundHypervisors[T any] struct {
	Hypervisors []T `json:"hypervisors"`
}

type oneHypervisor struct {
	Hypervisor hypervisorView `json:"hypervisor"`
}

type hypervisorName struct {
	ID       int    `json:"id" until:"2.52"`
	UUID     string `json:"uuid" name:"id" format:"uuid" since:"2.53"`
	Hostname string `json:"hypervisor_hostname"`
	State    string `json:"state" enum:"up,down"`
	Status   string `json:"status" enum:"enabled,disabled"`
}

type hypervisorBrief struct {
	hypervisorName

	// Servers and AnyServers are the servers on the host, if the client asks for them. Before 2.75 an empty list is left out.
	Servers    []hostedServer `json:"servers,omitempty" since:"2.53" until:"2.74"`
	AnyServers []hostedServer `json:"any_servers,omitzero" name:"servers" since:"2.75"`
}

type hostedServer struct {
	Name string `json:"name"`
	UUID string `json:"uuid" format:"uuid"`
}

// hypervisorHosting is a hypervisor in the list of the servers on hypervisors. Later versions have the parameter with_servers instead of this list.
type hypervisorHosting struct {
	hypervisorName

	Servers []hostedServer `json:"servers,omitempty"`
}

type hypervisorView struct {
	hypervisorBrief

	Type              string            `json:"hypervisor_type"`
	Version           int               `json:"hypervisor_version"`
	HostIP            string            `json:"host_ip" format:"ipv4"`
	Service           hypervisorService `json:"service"`
	hypervisorAmounts `until:"2.87"`
	CPUInfo           string     `json:"cpu_info" until:"2.27"`
	NoCPUInfo         struct{}   `json:"no_cpu_info" name:"cpu_info" since:"2.28" until:"2.87"` // no driver reports it
	Uptime            alwaysNull `json:"uptime" since:"2.88"`
}

// hypervisorAmounts are the amounts of a host, or the sums of all hosts.
type hypervisorAmounts struct {
	VCPUs           int64 `json:"vcpus" min:"0"`
	MemoryMB        int64 `json:"memory_mb" min:"0"`
	LocalGB         int64 `json:"local_gb" min:"0"`
	VCPUsUsed       int64 `json:"vcpus_used" min:"0"`
	MemoryMBUsed    int64 `json:"memory_mb_used" min:"0"`
	LocalGBUsed     int64 `json:"local_gb_used" min:"0"`
	FreeRAM         int64 `json:"free_ram_mb"`
	FreeDisk        int64 `json:"free_disk_gb"`
	CurrentWorkload int   `json:"current_workload" min:"0"`
	RunningVMs      int64 `json:"running_vms" min:"0"`
	DiskAvailable   int64 `json:"disk_available_least"`
}

type hypervisorService struct {
	ID             int     `json:"id" until:"2.52"`
	UUID           string  `json:"uuid" name:"id" format:"uuid" since:"2.53"`
	Host           string  `json:"host"`
	DisabledReason *string `json:"disabled_reason"`
}

func nameHypervisor(h *store.Host) hypervisorName {
	return hypervisorName{ID: h.ID, UUID: h.UUID(), Hostname: h.Hostname, State: serviceState(h.Service.Up), Status: serviceStatus(h.Service.Disabled)}
}

func briefHypervisor(h *store.Host, servers []hostedServer) hypervisorBrief {
	return hypervisorBrief{hypervisorName: nameHypervisor(h), Servers: servers, AnyServers: servers}
}

func viewHypervisor(h *store.Host, servers []hostedServer) hypervisorView {
	return hypervisorView{
		hypervisorBrief: briefHypervisor(h, servers), Type: h.Driver, Version: versionNumber(h.DriverVersion), HostIP: h.Address(),
		Service: hypervisorService{
			ID: h.Service.Number, UUID: store.ServiceUUID(store.ComputeBinary, h.Hostname), Host: h.Hostname, DisabledReason: textOrNil(h.Service.DisabledReason),
		},
		hypervisorAmounts: amountsOf(h),
	}
}

// versionNumber returns a version as a number, as Nova shows the version of a hypervisor: 1.2.3 is 1002003. A part that is missing is 0. So is a text that is not a
// version.
func versionNumber(text string) (out int) {
	parts := strings.Split(text, ".")
	for i := range 3 {
		n := 0
		if i < len(parts) {
			digits := strings.IndexFunc(parts[i]+" ", func(r rune) bool { return r < '0' || r > '9' })
			n, _ = strconv.Atoi(parts[i][:digits]) // without digits, n is 0
		}
		out = out*1000 + min(n, 999)
	}
	return out
}

func amountsOf(h *store.Host) hypervisorAmounts {
	cpu, ram, disk := h.Inventories[compute.VCPU], h.Inventories[compute.MemoryMB], h.Inventories[compute.DiskGB]
	return hypervisorAmounts{
		VCPUs: cpu.Total, MemoryMB: ram.Total, LocalGB: disk.Total,
		VCPUsUsed: cpu.Used, MemoryMBUsed: ram.Used, LocalGBUsed: disk.Used,
		FreeRAM: ram.Total - ram.Used, FreeDisk: disk.Total - disk.Used,
		RunningVMs: h.Consumers, DiskAvailable: disk.Total - disk.Used,
	}
}

func (s *server) hosts(ctx context.Context) ([]*store.Host, error) {
	return s.cfg.Store.Hosts(ctx, s.cfg.DownAfter)
}

// hypervisorLists handles lists of hypervisors for some microversions. The field ids is the form of ids, which are also the markers of pages. The field pages reports whether the versions
// have pages.
type hypervisorLists struct {
	*server

	ids   hostIDs
	pages bool
}

func (s hypervisorLists) list(ctx context.Context, r *api.Request[api.None]) (hypervisorList[hypervisorBrief], error) {
	return hypervisorsAs(ctx, s, r, briefHypervisor)
}

func (s hypervisorLists) listDetails(ctx context.Context, r *api.Request[api.None]) (hypervisorList[hypervisorView], error) {
	return hypervisorsAs(ctx, s, r, viewHypervisor)
}

func hypervisorsAs[T any](ctx context.Context, s hypervisorLists, r *api.Request[api.None], view func(*store.Host, []hostedServer) T) (out hypervisorList[T], err error) {
	out.Hypervisors = []T{}
	hosts, err := s.hosts(ctx)
	if err != nil {
		return out, err
	}
	q := r.List
	wanted, patterns := q.Take("with_servers"), q.Take("hypervisor_hostname_pattern")
	switch {
	case len(patterns) > 0 && (r.URL.Query().Has("limit") || q.Marker != ""):
		return out, fault.New(fault.Invalid, "Paging over hypervisors with the hypervisor_hostname_pattern query parameter is not supported.")
	case len(patterns) > 0:
		hosts, err = hostsLike(hosts, textOf(patterns[0]))
	case s.pages:
		hosts, err = s.ids.page(hosts, &q)
	}
	if err != nil {
		return out, err
	}
	servers, err := s.hosted(ctx, hosts, len(wanted) > 0 && wanted[0].Values[0] == true)
	if err != nil {
		return out, err
	}
	for _, h := range hosts {
		out.Hypervisors = append(out.Hypervisors, view(h, servers[h.Hostname]))
	}
	if n := len(hosts); n > 0 && s.pages && len(patterns) == 0 {
		out.Links = r.NextPage(n, s.ids.of(hosts[n-1]))
	}
	return out, nil
}

// hostsLike returns the hosts whose names contain the parameter part, without regard to case. Errors: NotFound, with Nova's text, if no host matches.
func hostsLike(hosts []*store.Host, part string) ([]*store.Host, error) {
	out := slices.DeleteFunc(hosts, func(h *store.Host) bool { return !strings.Contains(strings.ToLower(h.Hostname), strings.ToLower(part)) })
	if len(out) == 0 {
		return nil, fault.New(fault.NotFound, "No hypervisor matching '%s' could be found.", part)
	}
	return out, nil
}

// hosted returns the servers on hosts, by host. If wanted is false, it returns an empty map.
func (s *server) hosted(ctx context.Context, hosts []*store.Host, wanted bool) (map[string][]hostedServer, error) {
	out := map[string][]hostedServer{}
	if !wanted {
		return out, nil
	}
	var names []string
	for _, h := range hosts {
		names = append(names, h.Hostname)
		out[h.Hostname] = []hostedServer{}
	}
	byHost, err := s.cfg.Store.ServersOn(ctx, names...)
	for host, servers := range byHost {
		for _, srv := range servers {
			out[host] = append(out[host], hostedServer{Name: srv.NameOnHost(), UUID: srv.ID})
		}
	}
	return out, err
}

// hostIDs is a form of the ids of hosts, with two functions. The function named of returns the id of a host in this form. The function
// named check returns an error for a text that does not have this form.
type hostIDs struct {
	of    func(*store.Host) string
	check func(id string) error
}

var (
	hostNumbers = hostIDs{func(h *store.Host) string { return strconv.Itoa(h.ID) }, func(string) error { return nil }}
	hostUUIDs   = hostIDs{(*store.Host).UUID, checkUUID}
)

// checkUUID returns Invalid, with Nova's text, if an id is not a UUID.
func checkUUID(id string) error {
	if uuid.Validate(id) != nil {
		return fault.New(fault.Invalid, "Invalid uuid %s", id)
	}
	return nil
}

// find returns the host with an id. Errors, with Nova's texts: NotFound; Invalid if the id does not have the form f.
func (f hostIDs) find(hosts []*store.Host, id string) (*store.Host, error) {
	if err := f.check(id); err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(hosts, func(h *store.Host) bool { return f.of(h) == strings.ToLower(id) }); i >= 0 {
		return hosts[i], nil
	}
	return nil, fault.New(fault.NotFound, "Hypervisor with ID '%s' could not be found.", id)
}

// page returns the page of hosts that q selects. Errors: Invalid, with Nova's text, if the marker does not exist.
func (f hostIDs) page(hosts []*store.Host, q *listing.Query) ([]*store.Host, error) {
	if q.Marker != "" {
		h, err := f.find(hosts, q.Marker)
		if err != nil {
			return nil, fault.New(fault.Invalid, "marker [%s] not found", q.Marker)
		}
		hosts = hosts[slices.Index(hosts, h)+1:]
	}
	return hosts[:min(len(hosts), q.Limit)], nil
}

// showHypervisor returns the handler that shows a hypervisor by an id of the form ids.
func (s *server) showHypervisor(ids hostIDs) func(context.Context, *api.Request[api.None]) (oneHypervisor, error) {
	return func(ctx context.Context, r *api.Request[api.None]) (out oneHypervisor, err error) {
		hosts, err := s.hosts(ctx)
		if err != nil {
			return out, err
		}
		h, err := ids.find(hosts, r.PathValue("id"))
		if err != nil {
			return out, err
		}
		servers, err := s.hosted(ctx, []*store.Host{h}, isTrue(lastValue(r.URL.Query(), "with_servers")))
		out.Hypervisor = viewHypervisor(h, servers[h.Hostname])
		return out, err
	}
}

func (s *server) searchHypervisors(ctx context.Context, r *api.Request[api.None]) (out foundHypervisors[hypervisorBrief], err error) {
	hosts, err := s.hosts(ctx)
	if err == nil {
		hosts, err = hostsLike(hosts, r.PathValue("name"))
	}
	for _, h := range hosts {
		out.Hypervisors = append(out.Hypervisors, briefHypervisor(h, nil))
	}
	return out, err
}

func (s *server) listHosted(ctx context.Context, r *api.Request[api.None]) (out foundHypervisors[hypervisorHosting], err error) {
	hosts, err := s.hosts(ctx)
	if err == nil {
		hosts, err = hostsLike(hosts, r.PathValue("name"))
	}
	if err != nil {
		return out, err
	}
	servers, err := s.hosted(ctx, hosts, true)
	for _, h := range hosts {
		out.Hypervisors = append(out.Hypervisors, hypervisorHosting{nameHypervisor(h), servers[h.Hostname]})
	}
	return out, err
}

type hypervisorSums struct {
	Sums struct {
		Count int `json:"count" min:"0"`
		hypervisorAmounts
	} `json:"hypervisor_statistics"`
}

// sumHypervisors returns the sums over the hosts whose compute services are not disabled, as in Nova.
func (s *server) sumHypervisors(ctx context.Context, _ *api.Request[api.None]) (out hypervisorSums, err error) {
	hosts, err := s.hosts(ctx)
	sum := &out.Sums
	for _, h := range hosts {
		if h.Service.Disabled {
			continue
		}
		a := amountsOf(h)
		sum.Count++
		for _, f := range []struct {
			to *int64
			n  int64
		}{
			{&sum.VCPUs, a.VCPUs},
			{&sum.MemoryMB, a.MemoryMB},
			{&sum.LocalGB, a.LocalGB},
			{&sum.VCPUsUsed, a.VCPUsUsed},
			{&sum.MemoryMBUsed, a.MemoryMBUsed},
			{&sum.LocalGBUsed, a.LocalGBUsed},
			{&sum.FreeRAM, a.FreeRAM},
			{&sum.FreeDisk, a.FreeDisk},
			{&sum.RunningVMs, a.RunningVMs},
			{&sum.DiskAvailable, a.DiskAvailable},
		} {
			*f.to += f.n
		}
	}
	return out, err
}

// hypervisorUptime is Nova's reply for a driver that reports the uptime. It is only in the API document: no driver reports the uptime.
type hypervisorUptime struct {
	Hypervisor struct {
		hypervisorName

		Uptime string `json:"uptime"`
	} `json:"hypervisor"`
}

// showUptime returns a handler that refuses the uptime of a host, as Nova does for drivers that do not report it.
func (s *server) showUptime(ids hostIDs) func(context.Context, *api.Request[api.None]) (hypervisorUptime, error) {
	return func(ctx context.Context, r *api.Request[api.None]) (out hypervisorUptime, err error) {
		hosts, err := s.hosts(ctx)
		if err != nil {
			return out, err
		}
		h, err := ids.find(hosts, r.PathValue("id"))
		switch {
		case err != nil:
			return out, err
		case !h.Service.Up:
			return out, fault.New(fault.Invalid, "Compute service of %s is unavailable at this time.", h.Hostname)
		}
		return out, api.WithStatus(http.StatusNotImplemented, store.ErrNotSupported)
	}
}
