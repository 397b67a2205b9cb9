package api

import (
	"context"
	"encoding/json"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleUsages = "os_compute_api:os-simple-tenant-usage:list"
	ruleUsage  = "os_compute_api:os-simple-tenant-usage:show"
)

var usageRules = []rule{
	{ruleUsages, "rule:context_is_admin", "List the usage of all projects", "GET", "/os-simple-tenant-usage"},
	{ruleUsage, "rule:project_reader_or_admin", "Show the usage of a project", "GET", "/os-simple-tenant-usage/{tenant_id}"},
}

// usagesList and usageList have the parameters of the lists since 2.40, which have pages. The items of a page are servers, sorted by project and id.
var (
	usagesList = listing.Spec{
		MaxLimit: MaxLimit, Lenient: true, StrictSince: strictSince, Default: listing.SortKey{Column: "project_id"},
		Filters: []listing.Filter{{Name: "start"}, {Name: "end"}, {Name: "detailed"}},
	}
	usageList = listing.Spec{
		MaxLimit: MaxLimit, Lenient: true, StrictSince: strictSince, Default: listing.SortKey{Column: "project_id"}, Filters: []listing.Filter{{Name: "start"}, {Name: "end"}},
	}
)

func (s *server) usageRoutes(all, _ *api.Group) {
	usages := api.NewGroup(all, api.Route{Pattern: "/os-simple-tenant-usage"})
	const listed, shown = "List the usage of all projects", "Show the usage of a project"
	api.HandleRoute(usages, api.Route{Pattern: "GET", Max: "2.39", Rule: ruleUsages, Summary: listed, Query: queryOf("start", "end", "detailed")[:1]}, s.listUsages)
	api.HandleRoute(usages, api.Route{Pattern: "GET", Min: "2.40", Rule: ruleUsages, Summary: listed, List: &usagesList}, s.listUsages)
	api.HandleRoute(usages, api.Route{Pattern: "GET /{project}", Max: "2.39", Summary: shown, Query: queryOf("start", "end")[:1]}, s.showUsage)
	api.HandleRoute(usages, api.Route{Pattern: "GET /{project}", Min: "2.40", Summary: shown, List: &usageList}, s.showUsage)
}

type usagesReply struct {
	Usages []projectUsage `json:"tenant_usages"`
	Links  []api.Link     `json:"tenant_usages_links,omitempty" since:"2.40"`
}

type usageReply struct {
	Usage oneUsage   `json:"tenant_usage"`
	Links []api.Link `json:"tenant_usage_links,omitempty" since:"2.40"`
}

// projectUsage is the usage of a project in a period.
type projectUsage struct {
	TenantID string        `json:"tenant_id"`
	Servers  []serverUsage `json:"server_usages,omitempty"`
	DiskGB   float64       `json:"total_local_gb_usage"`
	VCPUs    float64       `json:"total_vcpus_usage"`
	MemoryMB float64       `json:"total_memory_mb_usage"`
	Hours    float64       `json:"total_hours"`
	Start    micros        `json:"start"`
	Stop     micros        `json:"stop"`
}

// oneUsage is the usage of a project, or an empty object for a project without servers.
type oneUsage struct{ *projectUsage }

// MarshalJSON returns the usage, or an empty object.
func (u oneUsage) MarshalJSON() ([]byte, error) {
	if u.projectUsage == nil {
		return []byte("{}"), nil
	}
	return json.Marshal(u.projectUsage)
}

// JSONSchema implements api.JSONSchemer.
func (oneUsage) JSONSchema() string {
	const number, whole, text, when = `{"type": "number", "minimum": 0}`, `{"type": "integer", "minimum": 0}`, `{"type": "string"}`, `{"type": "string", "minLength": 26, "maxLength": 26}`
	return `{"anyOf": [{"type": "object", "additionalProperties": false}, {"type": "object", "additionalProperties": false,
		"required": ["tenant_id", "server_usages", "total_local_gb_usage", "total_vcpus_usage", "total_memory_mb_usage", "total_hours", "start", "stop"], "properties": {
		"tenant_id": ` + text + `, "total_local_gb_usage": ` + number + `, "total_vcpus_usage": ` + number + `, "total_memory_mb_usage": ` + number + `, "total_hours": ` + number + `,
		"start": ` + when + `, "stop": ` + when + `, "server_usages": {"type": "array", "items": {"type": "object", "additionalProperties": false,
		"required": ["hours", "flavor", "instance_id", "name", "tenant_id", "memory_mb", "local_gb", "vcpus", "started_at", "ended_at", "state", "uptime"], "properties": {
		"hours": ` + number + `, "flavor": ` + text + `, "instance_id": {"type": "string", "format": "uuid"}, "name": ` + text + `, "tenant_id": ` + text + `, "memory_mb": ` + whole + `,
		"local_gb": ` + whole + `, "vcpus": ` + whole + `, "started_at": ` + when + `, "ended_at": {"type": ["string", "null"]}, "state": ` + text + `, "uptime": ` + whole + `}}}}}]}`
}

// serverUsage is the usage of a server in a period. Uptime is in seconds, and does not depend on the period.
type serverUsage struct {
	Hours     float64 `json:"hours" min:"0"`
	Flavor    string  `json:"flavor"`
	ID        string  `json:"instance_id" format:"uuid"`
	Name      string  `json:"name"`
	TenantID  string  `json:"tenant_id"`
	MemoryMB  int     `json:"memory_mb" min:"0"`
	DiskGB    int     `json:"local_gb" min:"0"`
	VCPUs     int     `json:"vcpus" min:"0"`
	StartedAt *micros `json:"started_at"`
	EndedAt   *micros `json:"ended_at"`
	State     string  `json:"state"`
	Uptime    int64   `json:"uptime" min:"0"`
}

// period is the period of a report, from start to stop. The field now is the time of the report.
type period struct{ start, stop, now time.Time }

// periodTime matches the forms of Nova's times, which are in UTC.
var periodTime = regexp.MustCompile(`^\d{4}-\d{1,2}-\d{1,2}(T\d{1,2}:\d{1,2}:\d{1,2}(\.\d{1,6})?| \d{1,2}:\d{1,2}:\d{1,2}\.\d{1,6})$`)

// periodOf returns the period of a query. A missing start or end means now, and so does an end in the future. If a parameter has several values, the first one counts. Errors:
// Invalid, with Nova's texts.
func (s *server) periodOf(ctx context.Context, q url.Values) (p period, err error) {
	if p.now, err = s.cfg.Store.Now(ctx); err != nil {
		return p, err
	}
	p.start, p.stop = p.now, p.now.Add(time.Microsecond) // if both are missing, the end is after the start, because Nova reads the clock twice
	for name, to := range map[string]*time.Time{"start": &p.start, "end": &p.stop} {
		text := q.Get(name)
		if text == "" {
			continue
		}
		at, err := time.Parse("2006-1-2T15:4:5", strings.Replace(text, " ", "T", 1))
		if !periodTime.MatchString(text) || err != nil {
			return p, fault.New(fault.Invalid, "Invalid datetime string: Datetime is in invalid format")
		}
		*to = at
	}
	if !p.start.Before(p.stop) {
		return p, fault.New(fault.Invalid, "Invalid start time. The start time cannot occur after the end time.")
	}
	if p.stop.After(p.now) {
		p.stop = p.now
	}
	return p, nil
}

// hours returns the number of hours of the period in which the server existed.
func (p period) hours(u *store.ServerUsage) float64 {
	start, stop := p.start, p.stop
	if u.LaunchedAt.After(start) {
		start = u.LaunchedAt
	}
	if u.TerminatedAt != nil && u.TerminatedAt.Before(stop) {
		stop = *u.TerminatedAt
	}
	return max(stop.Sub(start).Hours(), 0)
}

// view returns the usage of a server in the period.
func (p period) view(u *store.ServerUsage) serverUsage {
	f := u.Flavor()
	out := serverUsage{
		Hours: p.hours(u), Flavor: f.Name, ID: u.ID, Name: u.Name, TenantID: u.ProjectID, MemoryMB: u.MemoryMiB, DiskGB: f.DiskGiB + f.EphemeralGiB, VCPUs: u.VCPUs,
		StartedAt: formatMicros(&u.LaunchedAt), EndedAt: formatMicros(u.TerminatedAt), State: u.VMState,
	}
	end := p.now
	if u.TerminatedAt != nil {
		end, out.State = *u.TerminatedAt, "terminated"
	}
	out.Uptime = int64(max(end.Sub(u.LaunchedAt), 0) / time.Second)
	return out
}

// usages returns the usage of projects in a period. It sums over the servers of a page. Before 2.40 the only page has at most MaxLimit servers, as in Nova.
func (s *server) usages(ctx context.Context, r *api.Request[api.None], in store.Projects, detailed bool) (out []projectUsage, links []api.Link, err error) {
	p, err := s.periodOf(ctx, r.URL.Query())
	if err != nil {
		return nil, nil, err
	}
	q := r.List
	for _, name := range []string{"start", "end", "detailed"} {
		q.Take(name)
	}
	pages := q.Sort != nil
	if !pages {
		q = listing.Query{Sort: []listing.SortKey{usageList.Default}, Limit: MaxLimit}
	}
	list, err := s.cfg.Store.Usages(ctx, in, p.start, p.stop, q)
	if err != nil {
		return nil, nil, err
	}
	for i := range list {
		u := p.view(&list[i])
		if len(out) == 0 || out[len(out)-1].TenantID != u.TenantID {
			out = append(out, projectUsage{TenantID: u.TenantID, Start: *formatMicros(&p.start), Stop: *formatMicros(&p.stop)})
		}
		sum := &out[len(out)-1]
		sum.DiskGB += float64(u.DiskGB) * u.Hours
		sum.VCPUs += float64(u.VCPUs) * u.Hours
		sum.MemoryMB += float64(u.MemoryMB) * u.Hours
		sum.Hours += u.Hours
		if detailed {
			sum.Servers = append(sum.Servers, u)
		}
	}
	if n := len(list); n > 0 && pages {
		links = r.NextPage(n, list[n-1].ID)
	}
	return out, links, nil
}

func (s *server) listUsages(ctx context.Context, r *api.Request[api.None]) (out usagesReply, err error) {
	out.Usages = []projectUsage{}
	list, links, err := s.usages(ctx, r, store.AllProjects(), r.URL.Query().Get("detailed") == "1")
	out.Usages, out.Links = append(out.Usages, list...), links
	return out, err
}

func (s *server) showUsage(ctx context.Context, r *api.Request[api.None]) (out usageReply, err error) {
	project := r.PathValue("project")
	if err := s.mux.Enforce(ctx, ruleUsage, map[string]any{"project_id": project}); err != nil {
		return out, err
	}
	list, links, err := s.usages(ctx, r, store.OfProject(project), true)
	if len(list) > 0 {
		out.Usage.projectUsage = &list[0]
	}
	out.Links = links
	return out, err
}
