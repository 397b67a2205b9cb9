package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/google/uuid"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleFlavorCreate = "os_compute_api:os-flavor-manage:create"
	ruleFlavorUpdate = "os_compute_api:os-flavor-manage:update"
	ruleFlavorDelete = "os_compute_api:os-flavor-manage:delete"
	ruleFlavorAccess = "os_compute_api:os-flavor-access"
	ruleAddAccess    = "os_compute_api:os-flavor-access:add_tenant_access"
	ruleRemoveAccess = "os_compute_api:os-flavor-access:remove_tenant_access"
)

var flavorRules = []rule{
	{ruleFlavorCreate, "rule:context_is_admin", "Create a flavor", "POST", "/flavors"},
	{ruleFlavorUpdate, "rule:context_is_admin", "Change the description of a flavor", "PUT", "/flavors/{flavor_id}"},
	{ruleFlavorDelete, "rule:context_is_admin", "Delete a flavor", "DELETE", "/flavors/{flavor_id}"},
	{ruleFlavorAccess, "rule:context_is_admin", "List the projects that have access to a flavor", "GET", "/flavors/{flavor_id}/os-flavor-access"},
	{ruleAddAccess, "rule:context_is_admin", "Give a project access to a flavor", "POST", "/flavors/{flavor_id}/action (addTenantAccess)"},
	{ruleRemoveAccess, "rule:context_is_admin", "Remove a project's access to a flavor", "POST", "/flavors/{flavor_id}/action (removeTenantAccess)"},
}

func (s *server) flavorRoutes(all, withBody *api.Group) {
	api.HandleRoute(all, api.Route{Pattern: "GET /flavors", Summary: "List flavors", List: &flavors}, s.listFlavors)
	api.HandleRoute(all, api.Route{Pattern: "GET /flavors/detail", Summary: "List flavors with details", List: &flavors}, s.listFlavorDetails)
	api.HandleTarget(all, api.Route{Pattern: "GET /flavors/{id}", Summary: "Show a flavor", Errors: []int{notFound}, Query: noQuery}, s.flavorTarget(), s.showFlavor)
	api.HandleRoute(withBody, api.Route{
		Pattern: "POST /flavors", Rule: ruleFlavorCreate, Summary: "Create a flavor", Errors: []int{conflict}, Idempotency: s.cfg.Store.Replies(),
	}, s.createFlavor)
	api.HandleRoute(withBody, api.Route{
		Pattern: "PUT /flavors/{id}", Min: "2.55", Rule: ruleFlavorUpdate, Summary: "Change the description of a flavor", Errors: []int{notFound},
	}, s.updateFlavor)
	api.HandleRoute(all, api.Route{
		Pattern: "DELETE /flavors/{id}", Rule: ruleFlavorDelete, Summary: "Delete a flavor", Status: http.StatusAccepted, Errors: []int{notFound},
	}, s.deleteFlavor)
	api.HandleTarget(all, api.Route{
		Pattern: "GET /flavors/{id}/os-flavor-access", Rule: ruleFlavorAccess, Summary: "List the projects that have access to a flavor", Errors: []int{notFound}, Query: noQuery,
	}, s.flavorTarget(), s.showAccess)
	access := api.NewGroup(withBody, api.Route{Pattern: "/flavors/{id}/action", Errors: []int{notFound}})
	give := api.Route{Pattern: "POST", Action: "addTenantAccess", Rule: ruleAddAccess, Summary: "Give a project access to a flavor", Errors: []int{conflict}, Max: "2.6"}
	api.HandleTarget(access, give, s.flavorTarget(), s.addAccess)
	give.Min, give.Max = "2.7", ""
	api.HandleTarget(access, give, s.flavorTarget(), s.addPrivateAccess)
	api.HandleTarget(access, api.Route{
		Pattern: "POST", Action: "removeTenantAccess", Rule: ruleRemoveAccess, Summary: "Remove a project's access to a flavor",
	}, s.flavorTarget(), s.removeAccess)
}

// flavorTarget returns the target of a route whose path names a flavor. It finds only flavors that the client sees.
func (s *server) flavorTarget() api.Target[*store.Flavor] {
	return api.Target[*store.Flavor]{Load: func(ctx context.Context, r *http.Request) (*store.Flavor, error) {
		return s.cfg.Store.Flavor(ctx, s.viewer(ctx), r.PathValue("id"))
	}}
}

// flavors has the filters and sort keys of lists of flavors. flavorQuery applies the filter is_public.
var flavors = listing.Spec{
	MaxLimit: MaxLimit, Lenient: true, StrictSince: strictSince, Default: listing.SortKey{Column: "id"},
	Filters: []listing.Filter{
		{Name: "minRam", Column: "memory_mib", Kind: listing.Integer, Operator: listing.AtLeast, Invalid: "Invalid minRam filter [%s]"},
		{Name: "minDisk", Column: "disk_gib", Kind: listing.Integer, Operator: listing.AtLeast, Invalid: "Invalid minDisk filter [%s]"},
		{Name: "is_public"},
		{Name: "name", Column: "name", Operator: listing.Regexp, Since: "2.102"},
	},
	Sorts: []listing.Sort{
		{Name: "flavorid", Column: "id"},
		{Name: "id", Column: "created_at"}, // in Nova the number of the flavor, which no reply has
		{Name: "created_at", Column: "created_at"},
		{Name: "updated_at", Column: "updated_at"},
		{Name: "disabled", Column: "disabled"},
		{Name: "vcpu_weight", Column: "vcpu_weight"},
		{Name: "name", Column: "name"},
		{Name: "memory_mb", Column: "memory_mib"},
		{Name: "root_gb", Column: "disk_gib"},
		{Name: "ephemeral_gb", Column: "ephemeral_gib"},
		{Name: "swap", Column: "swap_mib"},
		{Name: "vcpus", Column: "vcpus"},
		{Name: "is_public", Column: "is_public"},
		{Name: "description", Column: "description"},
		{Name: "rxtx_factor", Column: "rxtx_factor", Until: "2.101"},
	},
}

// viewer returns which flavors the client of a request sees.
func (s *server) viewer(ctx context.Context) store.FlavorViewer {
	return store.FlavorViewer{Project: reqctx.From(ctx).ProjectID, All: s.administrator(ctx)}
}

// flavorQuery returns the query for a list of flavors. The filter is_public is a text that stands for a boolean, or "none", which selects public
// and private flavors. Without this filter, as with is_public=true, the list has the public flavors, and the private flavors that the client's project
// may use.
func (s *server) flavorQuery(ctx context.Context, list listing.Query) (store.FlavorQuery, error) {
	q := store.FlavorQuery{For: s.viewer(ctx), Query: list, Public: new(true)}
	given := q.Take("is_public")
	if !q.For.All { // as in Nova, the filter is only for administrators, and other clients get the list without the filter
		given = nil
	}
	for _, c := range given { // the last one counts
		text := textOf(c)
		public, ok := parseTruth(text)
		switch q.Public = &public; {
		case strings.EqualFold(text, "none"):
			q.Public = nil
		case !ok:
			return q, fault.New(fault.Invalid, "Invalid is_public filter [%.100s]", text)
		}
	}
	return q, nil
}

// flavorID is the id of a flavor in a reply.
type flavorID string

// JSONSchema implements api.JSONSchemer.
func (flavorID) JSONSchema() string {
	return `{"type": "string", "pattern": "^[a-zA-Z0-9. _-]{1,255}$"}`
}

type flavorBrief struct {
	ID          flavorID   `json:"id"`
	Name        string     `json:"name" min:"1" max:"255"`
	Links       []api.Link `json:"links"`
	Description *string    `json:"description" since:"2.55"`
}

type oneFlavor struct {
	Flavor flavorView `json:"flavor"`
}

type flavorView struct {
	ID          flavorID   `json:"id"`
	Name        string     `json:"name" min:"1" max:"255"`
	RAM         int        `json:"ram" min:"0"`
	Disk        int        `json:"disk" min:"0"`
	Swap        swapMiB    `json:"swap" until:"2.74"`
	SwapMiB     int        `json:"swap_mib" name:"swap" min:"0" since:"2.75"`
	Ephemeral   int        `json:"OS-FLV-EXT-DATA:ephemeral" min:"0"`
	Disabled    bool       `json:"OS-FLV-DISABLED:disabled" until:"2.101"`
	VCPUs       int        `json:"vcpus" min:"0"`
	Public      bool       `json:"os-flavor-access:is_public"`
	RxTx        float64    `json:"rxtx_factor" until:"2.101"`
	Links       []api.Link `json:"links"`
	Description *string    `json:"description" since:"2.55"`
	ExtraSpecs  metadata   `json:"extra_specs" since:"2.61" rule:"os_compute_api:os-flavor-extra-specs:index"`
}

func viewFlavor(r *http.Request, f *store.Flavor) flavorView {
	return flavorView{
		ID: flavorID(f.ID), Name: f.Name, RAM: f.MemoryMiB, Disk: f.DiskGiB, Swap: swapMiB(f.SwapMiB), SwapMiB: f.SwapMiB, Ephemeral: f.EphemeralGiB,
		VCPUs: f.VCPUs, Public: f.Public, RxTx: f.RxTxFactor, Links: linksTo(r, "flavors", f.ID), Description: f.Description, ExtraSpecs: f.Specs(),
	}
}

type flavorPage[T any] struct {
	Flavors []T        `json:"flavors"`
	Links   []api.Link `json:"flavors_links,omitempty"`
}

func flavorList[T any](ctx context.Context, s *server, r *api.Request[api.None], view func(*store.Flavor) T) (flavorPage[T], error) {
	out := flavorPage[T]{Flavors: []T{}}
	q, err := s.flavorQuery(ctx, r.List)
	if err != nil {
		return out, err
	}
	list, err := s.cfg.Store.Flavors(ctx, q)
	for i := range list {
		out.Flavors = append(out.Flavors, view(&list[i]))
	}
	if n := len(list); n > 0 {
		out.Links = r.NextPage(n, list[n-1].ID)
	}
	return out, err
}

func (s *server) listFlavors(ctx context.Context, r *api.Request[api.None]) (flavorPage[flavorBrief], error) {
	return flavorList(ctx, s, r, func(f *store.Flavor) flavorBrief {
		return flavorBrief{ID: flavorID(f.ID), Name: f.Name, Links: linksTo(r.Request, "flavors", f.ID), Description: f.Description}
	})
}

func (s *server) listFlavorDetails(ctx context.Context, r *api.Request[api.None]) (flavorPage[flavorView], error) {
	return flavorList(ctx, s, r, func(f *store.Flavor) flavorView { return viewFlavor(r.Request, f) })
}

func (s *server) showFlavor(_ context.Context, r *api.Request[api.None], f *store.Flavor) (oneFlavor, error) {
	return oneFlavor{viewFlavor(r.Request, f)}, nil
}

type createFlavor struct {
	Flavor newFlavor `json:"flavor"`
}

// newFlavor is the body of a request to create a flavor.
type newFlavor struct {
	Name      name        `json:"name"`
	ID        newFlavorID `json:"id,omitzero"` // null or "auto" for a UUID
	RAM       positive    `json:"ram"`
	VCPUs     positive    `json:"vcpus"`
	Disk      natural     `json:"disk"`
	Swap      natural     `json:"swap,omitzero"`
	Ephemeral natural     `json:"OS-FLV-EXT-DATA:ephemeral,omitzero"`
	RxTx      factor      `json:"rxtx_factor,omitzero" until:"2.101"`
	Public    boolean     `json:"os-flavor-access:is_public,omitzero"`

	Description *longText `json:"description,omitempty" since:"2.55"`
}

// newFlavorID is the id of a new flavor: a text or, as in Nova, a number.
type newFlavorID struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (newFlavorID) JSONSchema() string {
	return `{"type": ["string", "number", "null"], "minLength": 1, "maxLength": 255, "pattern": "^[a-zA-Z0-9._-]([a-zA-Z0-9. _-]*[a-zA-Z0-9._-])?$"}`
}

// factor is a positive number, given as a number or as a text, see parseFactor.
type factor struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (factor) JSONSchema() string {
	return `{"type": ["number", "string"], "pattern": "^[0-9]+(\\.[0-9]+)?$", "exclusiveMinimum": 0, "maximum": 3.40282e+38}`
}

// flavor returns the flavor that a request creates. Errors: Invalid.
func (n *newFlavor) flavor() (*store.Flavor, error) {
	f := &store.Flavor{Name: string(n.Name), Description: (*string)(n.Description), Public: len(n.Public.RawMessage) == 0 || isTrue(plainText(n.Public.RawMessage))}
	for _, v := range []struct {
		name string
		raw  json.RawMessage
		low  int
		to   *int
	}{
		{"ram", n.RAM.RawMessage, 1, &f.MemoryMiB},
		{"vcpus", n.VCPUs.RawMessage, 1, &f.VCPUs},
		{"disk", n.Disk.RawMessage, 0, &f.DiskGiB},
		{"ephemeral", n.Ephemeral.RawMessage, 0, &f.EphemeralGiB},
		{"swap", n.Swap.RawMessage, 0, &f.SwapMiB},
	} {
		var err error
		if *v.to, err = parseWhole(v.name, v.raw, v.low); err != nil {
			return nil, err
		}
	}
	var err error
	if f.RxTxFactor, err = parseFactor(n.RxTx.RawMessage); err != nil {
		return nil, err
	}
	switch f.ID = plainText(n.ID.RawMessage); {
	case f.ID == "" || f.ID == "auto":
		f.ID = uuid.NewString()
	case len(f.ID) > 255: // the id is a number: the schema limits the length only of a text
		return nil, fault.New(fault.Invalid, "Invalid input received: id has %d characters, more than 255.", len(f.ID))
	}
	return f, nil
}

func (s *server) createFlavor(ctx context.Context, r *api.Request[createFlavor]) (out oneFlavor, err error) {
	f, err := r.Body.Flavor.flavor()
	if err != nil {
		return out, err
	}
	out = oneFlavor{viewFlavor(r.Request, f)}
	return out, s.cfg.Store.Tx(ctx, func(ctx context.Context) error {
		if err := s.cfg.Store.CreateFlavor(ctx, f); err != nil {
			return err
		}
		return r.Keep(ctx, out)
	})
}

type updateFlavor struct {
	Flavor struct {
		Description *longText `json:"description"`
	} `json:"flavor"`
}

func (s *server) updateFlavor(ctx context.Context, r *api.Request[updateFlavor]) (oneFlavor, error) {
	f, err := s.cfg.Store.DescribeFlavor(ctx, r.PathValue("id"), (*string)(r.Body.Flavor.Description))
	if err != nil {
		return oneFlavor{}, err
	}
	return oneFlavor{viewFlavor(r.Request, f)}, nil
}

func (s *server) deleteFlavor(ctx context.Context, r *api.Request[api.None]) (api.None, error) {
	return api.None{}, s.cfg.Store.DeleteFlavor(ctx, r.PathValue("id"))
}

type flavorAccess struct {
	Access []flavorTenant `json:"flavor_access"`
}

type flavorTenant struct {
	FlavorID flavorID `json:"flavor_id"`
	TenantID string   `json:"tenant_id" min:"1" max:"255"`
}

func (s *server) access(ctx context.Context, id string) (flavorAccess, error) {
	out := flavorAccess{Access: []flavorTenant{}}
	projects, err := s.cfg.Store.FlavorProjects(ctx, id)
	for _, p := range projects {
		out.Access = append(out.Access, flavorTenant{flavorID(id), p})
	}
	return out, err
}

func (s *server) showAccess(ctx context.Context, _ *api.Request[api.None], f *store.Flavor) (flavorAccess, error) {
	if f.Public {
		return flavorAccess{}, fault.New(fault.NotFound, "Access list not available for public flavors.")
	}
	return s.access(ctx, f.ID)
}

type tenantAccess struct {
	Tenant string `json:"tenant" min:"1" max:"255"`
}

type addAccess struct {
	Add tenantAccess `json:"addTenantAccess"`
}

type removeAccess struct {
	Remove tenantAccess `json:"removeTenantAccess"`
}

// checkProject returns Invalid, with Nova's text, if a project does not exist. As in Nova, the project is accepted if Keystone does not answer, or does not show the project to the client.
func (s *server) checkProject(r *http.Request, id string) error {
	if s.cfg.HasProject == nil {
		return nil
	}
	exists, err := s.cfg.HasProject(r.Context(), tokenOf(r), id)
	switch {
	case err != nil:
		s.cfg.Logger.WarnContext(r.Context(), "project accepted without a check", "project", id, "error", err)
	case !exists:
		return fault.New(fault.Invalid, "Project ID %s is not a valid project.", id)
	}
	return nil
}

func (s *server) addAccess(ctx context.Context, r *api.Request[addAccess], f *store.Flavor) (flavorAccess, error) {
	if err := s.checkProject(r.Request, r.Body.Add.Tenant); err != nil {
		return flavorAccess{}, err
	}
	return s.allow(ctx, f, r.Body.Add.Tenant)
}

func (s *server) allow(ctx context.Context, f *store.Flavor, project string) (flavorAccess, error) {
	if err := s.cfg.Store.AllowFlavor(ctx, f.ID, project); err != nil {
		return flavorAccess{}, err
	}
	return s.access(ctx, f.ID)
}

// addPrivateAccess is addAccess since microversion 2.7, which refuses public flavors.
func (s *server) addPrivateAccess(ctx context.Context, r *api.Request[addAccess], f *store.Flavor) (flavorAccess, error) {
	if err := s.checkProject(r.Request, r.Body.Add.Tenant); err != nil {
		return flavorAccess{}, err
	}
	if f.Public {
		return flavorAccess{}, fault.New(fault.Conflict, "Can not add access to a public flavor.")
	}
	return s.allow(ctx, f, r.Body.Add.Tenant)
}

func (s *server) removeAccess(ctx context.Context, r *api.Request[removeAccess], f *store.Flavor) (flavorAccess, error) {
	if err := s.cfg.Store.DenyFlavor(ctx, f.ID, r.Body.Remove.Tenant); err != nil {
		return flavorAccess{}, err
	}
	return s.access(ctx, f.ID)
}
