package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleCreate     = "os_compute_api:servers:create"
	ruleIndex      = "os_compute_api:servers:index"
	ruleDetail     = "os_compute_api:servers:detail"
	ruleAllTenants = "os_compute_api:servers:index:get_all_tenants"
	ruleAllDetails = "os_compute_api:servers:detail:get_all_tenants"
	ruleAllFilters = "os_compute_api:servers:allow_all_filters"
	ruleShow       = "os_compute_api:servers:show"
	ruleExtended   = "os_compute_api:os-extended-server-attributes"
	ruleDelete     = "os_compute_api:servers:delete"
)

var serverRules = []rule{
	{ruleCreate, "rule:project_member_or_admin", "Create a server", "POST", "/servers"},
	{ruleIndex, "rule:project_reader_or_admin", "List servers", "GET", "/servers"},
	{ruleDetail, "rule:project_reader_or_admin", "List servers with details", "GET", "/servers/detail"},
	{ruleAllTenants, "rule:context_is_admin", "List the servers of all projects", "GET", "/servers"},
	{ruleAllDetails, "rule:context_is_admin", "List the servers of all projects with details", "GET", "/servers/detail"},
	{ruleAllFilters, "rule:context_is_admin", "Filter servers by their host", "GET", "/servers"},
	{ruleShow, "rule:project_reader_or_admin", "Show a server", "GET", "/servers/{server_id}"},
	{ruleExtended, "rule:context_is_admin", "Show the host of a server", "GET", "/servers/{server_id}"},
	{ruleDelete, "rule:project_member_or_admin", "Delete a server", "DELETE", "/servers/{server_id}"},
}

func (s *server) serverRoutes(all, withBody *api.Group) {
	api.HandleRoute(withBody, api.Route{
		Pattern: "POST /servers", Rule: ruleCreate, Summary: "Create a server", Status: http.StatusAccepted, Errors: []int{unavailable}, Idempotency: s.cfg.Store.Replies(),
	}, s.createServer)
	api.HandleRoute(all, api.Route{Pattern: "GET /servers", Rule: ruleIndex, Summary: "List servers", List: &servers}, s.listServers)
	api.HandleRoute(all, api.Route{
		Pattern: "GET /servers/detail", Rule: ruleDetail, Summary: "List servers with details", List: &servers,
	}, s.listServerDetails)
	api.HandleTarget(all, api.Route{
		Pattern: "GET /servers/{id}", Rule: ruleShow, Summary: "Show a server", Errors: []int{notFound},
	}, s.target(), s.showServer)
	api.HandleTarget(all, api.Route{
		Pattern: "DELETE /servers/{id}", Rule: ruleDelete, Summary: "Delete a server", Errors: []int{notFound, conflict, unavailable},
	}, s.target(), s.deleteServer)
}

// target is the server that the path names. A server of another project does not exist for a client whom the rule denies, as in Nova.
func (s *server) target() api.Target[*store.Server] {
	return api.Target[*store.Server]{
		Load: func(ctx context.Context, r *http.Request) (*store.Server, error) {
			return s.cfg.Store.Server(ctx, r.PathValue("id"))
		},
		Policy: func(srv *store.Server) map[string]any {
			return map[string]any{"project_id": srv.ProjectID, "user_id": srv.UserID}
		},
		Missing: func(r *http.Request) error { return store.NoServer(r.PathValue("id")) },
	}
}

// maxMetadata is the highest number of metadata items of a server: Nova's quota metadata_items.
const maxMetadata = 128

type createServer struct {
	Server newServer `json:"server"`
}

// newServer is the server that a client asks for. The last five fields have one value, or no effect: there are no networks yet.
type newServer struct {
	Name        name             `json:"name"`
	FlavorRef   reference        `json:"flavorRef"`
	ImageRef    string           `json:"imageRef,omitempty" max:"255"` // any text, because nova-mini has no images
	Metadata    metadata         `json:"metadata,omitempty"`
	KeyName     name             `json:"key_name,omitempty"`
	Zone        name             `json:"availability_zone,omitempty"`
	DiskConfig  string           `json:"OS-DCF:diskConfig,omitempty" enum:"MANUAL"`
	ConfigDrive alwaysFalse      `json:"config_drive,omitzero"`
	MinCount    alwaysOne        `json:"min_count,omitzero"`
	MaxCount    alwaysOne        `json:"max_count,omitzero"`
	Networks    []networkRequest `json:"networks,omitempty"`
}

type networkRequest struct {
	FixedIP ipAddress `json:"fixed_ip,omitempty"`
	Port    *string   `json:"port,omitempty" format:"uuid"`
	UUID    string    `json:"uuid,omitempty"`
}

// flavor returns the flavor that a reference names: a flavor's id, or a link to a flavor. Errors: Invalid, if the flavor
// does not exist or the client must not use it.
func (s *server) flavor(ctx context.Context, ref reference) (*store.Flavor, error) {
	id := plainText(ref.RawMessage)
	if i := strings.LastIndexByte(id, '/'); i >= 0 {
		id = id[i+1:]
	}
	f, err := s.cfg.Store.Flavor(ctx, s.viewer(ctx), id)
	if fault.CodeOf(err) == fault.NotFound && err != nil {
		err = fault.New(fault.Invalid, "%w", err)
	}
	return f, err
}

type createdServer struct {
	Server createdView `json:"server"`
}

type createdView struct {
	ID             string          `json:"id" format:"uuid"`
	Links          []api.Link      `json:"links"`
	DiskConfig     string          `json:"OS-DCF:diskConfig" enum:"MANUAL"`
	SecurityGroups []securityGroup `json:"security_groups"`
	AdminPass      string          `json:"adminPass"`
}

type securityGroup struct {
	Name string `json:"name"`
}

func (s *server) createServer(ctx context.Context, r *api.Request[createServer]) (out createdServer, err error) {
	in := r.Body.Server
	switch {
	case in.KeyName != "": // nova-mini has no key pairs
		return out, fault.New(fault.Invalid, "Invalid key_name provided.")
	case len(in.Metadata) > maxMetadata:
		return out, fault.New(fault.Denied, "Maximum number of metadata items exceeds %d", maxMetadata)
	case in.Zone != "" && in.Zone != zone:
		return out, fault.New(fault.Invalid, "The requested availability zone is not available")
	}
	f, err := s.flavor(ctx, in.FlavorRef)
	if err != nil {
		return out, err
	}
	if err := s.checkBus(ctx); err != nil {
		return out, err
	}
	who := reqctx.From(ctx)
	need := f.Resources()
	srv := &store.Server{
		ID: uuid.NewString(), Name: string(in.Name), ProjectID: who.ProjectID, UserID: who.UserID, RequestID: who.ID,
		ImageRef: in.ImageRef, FlavorID: f.ID, VCPUs: need.VCPUs, MemoryMiB: need.MemoryMiB, DiskGiB: need.DiskGiB,
		Metadata: db.JSONOf(map[string]string(in.Metadata)),
	}
	l := linksTo(r.Request, "servers", srv.ID)
	r.ReplyHeader.Set("Location", l[0].Href)
	out.Server = createdView{
		ID: srv.ID, Links: l, DiskConfig: "MANUAL", SecurityGroups: []securityGroup{{"default"}},
		AdminPass: strings.ReplaceAll(uuid.NewString(), "-", "")[:12],
	}
	err = s.cfg.Store.InTx(ctx, func(ctx context.Context) error {
		if err := s.cfg.Store.CreateServer(ctx, srv); err != nil {
			return err
		}
		return r.Keep(ctx, out)
	})
	if err == nil {
		s.notifyConductor(ctx, srv.ID)
	}
	return out, err
}

type serverBrief struct {
	ID    string     `json:"id" format:"uuid"`
	Name  string     `json:"name" min:"1" max:"255"`
	Links []api.Link `json:"links"`
}

type oneServer struct {
	Server serverView `json:"server"`
}

type serverView struct {
	ID              string             `json:"id" format:"uuid"`
	Name            string             `json:"name" min:"1" max:"255"`
	Status          string             `json:"status" enum:"BUILD,ACTIVE,REBOOT,HARD_REBOOT,RESIZE,VERIFY_RESIZE,REVERT_RESIZE,SHUTOFF,PAUSED,SUSPENDED,RESCUE,REBUILD,SHELVED,SHELVED_OFFLOADED,ERROR"`
	TenantID        string             `json:"tenant_id"`
	UserID          string             `json:"user_id"`
	Metadata        metadata           `json:"metadata"`
	HostID          string             `json:"hostId" pattern:"^([0-9a-f]{56})?$"`
	Image           imageView          `json:"image"`
	Flavor          bookmark           `json:"flavor"`
	Created         string             `json:"created" format:"date-time" pattern:"Z$"`
	Updated         string             `json:"updated" format:"date-time" pattern:"Z$"`
	Addresses       struct{}           `json:"addresses"`
	AccessIPv4      alwaysEmpty        `json:"accessIPv4"`
	AccessIPv6      alwaysEmpty        `json:"accessIPv6"`
	Links           []api.Link         `json:"links"`
	DiskConfig      string             `json:"OS-DCF:diskConfig" enum:"MANUAL"`
	Progress        *int               `json:"progress,omitempty" min:"0"`
	Zone            string             `json:"OS-EXT-AZ:availability_zone" enum:",nova"`
	ConfigDrive     alwaysEmpty        `json:"config_drive"`
	KeyName         alwaysNull         `json:"key_name"`
	LaunchedAt      *micros            `json:"OS-SRV-USG:launched_at"`
	TerminatedAt    *micros            `json:"OS-SRV-USG:terminated_at"`
	TaskState       *string            `json:"OS-EXT-STS:task_state"`
	VMState         string             `json:"OS-EXT-STS:vm_state" enum:"building,active,stopped,resized,paused,suspended,rescued,shelved,shelved_offloaded,error"`
	PowerState      compute.PowerState `json:"OS-EXT-STS:power_state" enum:"0,1,3,4,6,7"`
	VolumesAttached alwaysEmptyList    `json:"os-extended-volumes:volumes_attached"`
	Fault           *faultView         `json:"fault,omitempty"`

	Host           *string `json:"OS-EXT-SRV-ATTR:host" rule:"os_compute_api:os-extended-server-attributes"`
	InstanceName   string  `json:"OS-EXT-SRV-ATTR:instance_name" rule:"os_compute_api:os-extended-server-attributes"`
	HypervisorHost *string `json:"OS-EXT-SRV-ATTR:hypervisor_hostname" rule:"os_compute_api:os-extended-server-attributes"`
}

type bookmark struct {
	ID    string     `json:"id"`
	Links []api.Link `json:"links"`
}

type faultView struct {
	Code    int    `json:"code"`
	Created string `json:"created" format:"date-time" pattern:"Z$"`
	Message string `json:"message"`
	Details string `json:"details,omitempty"`
}

// zone is the only availability zone. The name is Nova's default.
const zone = "nova"

// zoneOf returns the availability zone of a server, or "" while the server has no host.
func zoneOf(s *store.Server) string {
	if s.Host == nil {
		return ""
	}
	return zone
}

// progressing are the statuses of servers that are shown with a progress, as in Nova.
var progressing = []string{"ACTIVE", "BUILD", "REBUILD", "RESIZE", "VERIFY_RESIZE"}

// viewServer returns the attributes of a server.
func (s *server) viewServer(r *http.Request, srv *store.Server) serverView {
	marked := func(kind, id string) bookmark {
		return bookmark{ID: id, Links: linksTo(r, kind, id)[1:]}
	}
	v := serverView{
		ID: srv.ID, Name: srv.Name, Status: srv.Status(), TenantID: srv.ProjectID, UserID: srv.UserID, Metadata: srv.Metadata.V,
		Flavor: marked("flavors", srv.FlavorID), Created: formatSeconds(srv.CreatedAt), Updated: formatSeconds(srv.UpdatedAt),
		Links: linksTo(r, "servers", srv.ID), DiskConfig: "MANUAL",
		LaunchedAt: formatMicros(srv.LaunchedAt),
		TaskState:  srv.TaskState, VMState: srv.VMState, PowerState: srv.PowerState(), Zone: zoneOf(srv), VolumesAttached: alwaysEmptyList{}, Host: srv.Host, HypervisorHost: srv.Host,
	}
	if srv.ImageRef != "" {
		image := marked("images", srv.ImageRef)
		v.Image = imageView{&image}
	}
	if srv.Host != nil {
		sum := sha256.Sum224([]byte(srv.ProjectID + *srv.Host)) // distinguishes hosts without naming them, as in Nova
		v.HostID = hex.EncodeToString(sum[:])
	}
	if slices.Contains(progressing, v.Status) {
		v.Progress = new(int)
	}
	if v.Status == store.StatusError && srv.FaultAt != nil {
		v.Fault = &faultView{Code: srv.FaultCode, Created: formatSeconds(*srv.FaultAt), Message: srv.FaultMessage}
		if srv.FaultCode != http.StatusInternalServerError || s.administrator(r.Context()) { // as Nova
			v.Fault.Details = srv.FaultDetails
		}
	}
	return v
}

type serverPage[T any] struct {
	Servers []T        `json:"servers"`
	Links   []api.Link `json:"servers_links,omitempty"`
}

func serverList[T any](ctx context.Context, s *server, r *api.Request[api.None], allRule string, view func(*store.Server) T) (serverPage[T], error) {
	out := serverPage[T]{Servers: []T{}}
	q, err := s.serverQuery(ctx, r.Request, r.List, allRule)
	if err != nil {
		return out, err
	}
	list, err := s.cfg.Store.Servers(ctx, q)
	for i := range list {
		out.Servers = append(out.Servers, view(&list[i]))
	}
	if n := len(list); n > 0 {
		out.Links = r.NextPage(n, list[n-1].ID)
	}
	return out, err
}

func (s *server) listServers(ctx context.Context, r *api.Request[api.None]) (serverPage[serverBrief], error) {
	return serverList(ctx, s, r, ruleAllTenants, func(v *store.Server) serverBrief {
		return serverBrief{ID: v.ID, Name: v.Name, Links: linksTo(r.Request, "servers", v.ID)}
	})
}

func (s *server) listServerDetails(ctx context.Context, r *api.Request[api.None]) (serverPage[serverView], error) {
	return serverList(ctx, s, r, ruleAllDetails, func(v *store.Server) serverView { return s.viewServer(r.Request, v) })
}

func (s *server) showServer(_ context.Context, r *api.Request[api.None], srv *store.Server) (oneServer, error) {
	return oneServer{s.viewServer(r.Request, srv)}, nil
}

func (s *server) deleteServer(ctx context.Context, _ *api.Request[api.None], srv *store.Server) (api.None, error) {
	if err := s.checkLock(ctx, srv); err != nil {
		return api.None{}, err
	}
	if err := s.checkBus(ctx); err != nil {
		return api.None{}, err
	}
	if err := s.cfg.Store.BeginDelete(ctx, srv.ID); err != nil {
		return api.None{}, err
	}
	s.notifyConductor(ctx, srv.ID)
	return api.None{}, nil // 204
}
