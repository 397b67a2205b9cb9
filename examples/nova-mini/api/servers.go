package api

import (
	"context"
	"crypto/rand"
	"net/http"
	"strings"

	"github.com/google/uuid"

	"github.com/armature-go/armature/db"
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
	ruleExtraSpecs = "os_compute_api:servers:show:flavor-extra-specs"
	ruleHostStatus = "os_compute_api:servers:show:host_status"
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
	{ruleExtraSpecs, "rule:project_reader_or_admin", "Show the extra specs of a server's flavor", "GET", "/servers/{server_id}"},
	{ruleHostStatus, "rule:context_is_admin", "Show the status of a server's host", "GET", "/servers/{server_id}"},
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
	DiskConfig     string          `json:"OS-DCF:diskConfig" enum:"AUTO,MANUAL"`
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
		Metadata: db.JSONOf(map[string]string(in.Metadata)), BootFlavor: db.JSONOf(f.Boot()), ReservationID: newReservation(),
	}
	srv.Hostname = hostnameFor(srv.Name, srv.ID)
	if in.Zone != "" {
		srv.PinnedZone = new(string(in.Zone))
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

// newReservation returns an id of the servers that one request creates, in Nova's form.
func newReservation() string { return "r-" + strings.ToLower(rand.Text()[:8]) }

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
	var ids []string
	read := s.newLookups(ctx, &ids)
	return serverList(ctx, s, r, ruleAllDetails, func(v *store.Server) serverView {
		ids = append(ids, v.ID)
		return s.viewServer(r.Request, v, read)
	})
}

func (s *server) showServer(_ context.Context, r *api.Request[api.None], srv *store.Server) (oneServer, error) {
	return oneServer{s.viewOne(r.Request, srv)}, nil
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
