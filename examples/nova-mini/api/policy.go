package api

import (
	"context"
	"net/http"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/policy"
)

// The names of the rules, as in Nova.
const (
	ruleAdmin         = "context_is_admin"
	ruleCreate        = "os_compute_api:servers:create"
	ruleIndex         = "os_compute_api:servers:index"
	ruleDetail        = "os_compute_api:servers:detail"
	ruleAllTenants    = "os_compute_api:servers:index:get_all_tenants"
	ruleAllDetails    = "os_compute_api:servers:detail:get_all_tenants"
	ruleAllFilters    = "os_compute_api:servers:allow_all_filters"
	ruleExtended      = "os_compute_api:os-extended-server-attributes"
	ruleShow          = "os_compute_api:servers:show"
	ruleDelete        = "os_compute_api:servers:delete"
	ruleStart         = "os_compute_api:servers:start"
	ruleStop          = "os_compute_api:servers:stop"
	ruleReboot        = "os_compute_api:servers:reboot"
	ruleResize        = "os_compute_api:servers:resize"
	ruleConfirmResize = "os_compute_api:servers:confirm_resize"
	ruleRevertResize  = "os_compute_api:servers:revert_resize"
	ruleConsole       = "os_compute_api:os-console-output"
	ruleFlavorCreate  = "os_compute_api:os-flavor-manage:create"
	ruleFlavorDelete  = "os_compute_api:os-flavor-manage:delete"
	ruleFlavorAccess  = "os_compute_api:os-flavor-access"
	ruleAddAccess     = "os_compute_api:os-flavor-access:add_tenant_access"
	ruleRemoveAccess  = "os_compute_api:os-flavor-access:remove_tenant_access"
	ruleServices      = "os_compute_api:os-services:list"
	ruleServiceUpdate = "os_compute_api:os-services:update"
	ruleHypervisors   = "os_compute_api:os-hypervisors:list"
	ruleHypervisorsDe = "os_compute_api:os-hypervisors:list-detail"
	ruleHypervisor    = "os_compute_api:os-hypervisors:show"
)

// splitRules are rules that Nova 21.0.0 split. Policy files may still have such a rule. Then its check applies to each
// rule whose name begins with the older name and a colon.
var splitRules = []string{"os_compute_api:os-hypervisors", "os_compute_api:os-services"}

// olderName returns the older name of a rule, or nil if the rule had no other name.
func olderName(name string) *policy.Deprecated {
	for _, older := range splitRules {
		if strings.HasPrefix(name, older+":") {
			return &policy.Deprecated{Name: older, Reason: "The rule was split.", Since: "21.0.0"}
		}
	}
	return nil
}

// Rules returns the rules of the policy, with the default checks of Nova Zed.
func Rules() []policy.Rule {
	rules := []policy.Rule{
		{Name: ruleAdmin, Check: "role:admin", Description: "An administrator."},
		{Name: "project_member_api", Check: "role:member and project_id:%(project_id)s", Description: "A member of the project."},
		{Name: "project_reader_api", Check: "role:reader and project_id:%(project_id)s", Description: "A reader of the project."},
		{Name: "project_member_or_admin", Check: "rule:project_member_api or rule:context_is_admin", Description: "A member of the project, or an administrator."},
		{Name: "project_reader_or_admin", Check: "rule:project_reader_api or rule:context_is_admin", Description: "A reader of the project, or an administrator."},
	}
	const server, action = "/servers/{server_id}", "/servers/{server_id}/action"
	for _, r := range []struct{ name, check, what, method, path string }{
		{ruleCreate, "rule:project_member_or_admin", "Create a server", "POST", "/servers"},
		{ruleIndex, "rule:project_reader_or_admin", "List servers", "GET", "/servers"},
		{ruleDetail, "rule:project_reader_or_admin", "List servers with details", "GET", "/servers/detail"},
		{ruleAllTenants, "rule:context_is_admin", "List the servers of all projects", "GET", "/servers"},
		{ruleAllDetails, "rule:context_is_admin", "List the servers of all projects with details", "GET", "/servers/detail"},
		{ruleAllFilters, "rule:context_is_admin", "Filter servers by their host", "GET", "/servers"},
		{ruleShow, "rule:project_reader_or_admin", "Show a server", "GET", server},
		{ruleExtended, "rule:context_is_admin", "Show the host of a server", "GET", server},
		{ruleDelete, "rule:project_member_or_admin", "Delete a server", "DELETE", server},
		{ruleStart, "rule:project_member_or_admin", "Start a server", "POST", action + " (os-start)"},
		{ruleStop, "rule:project_member_or_admin", "Stop a server", "POST", action + " (os-stop)"},
		{ruleReboot, "rule:project_member_or_admin", "Reboot a server", "POST", action + " (reboot)"},
		{ruleResize, "rule:project_member_or_admin", "Resize a server", "POST", action + " (resize)"},
		{ruleConfirmResize, "rule:project_member_or_admin", "Confirm a resize", "POST", action + " (confirmResize)"},
		{ruleRevertResize, "rule:project_member_or_admin", "Revert a resize", "POST", action + " (revertResize)"},
		{ruleConsole, "rule:project_member_or_admin", "Read a server's console log", "POST", action + " (os-getConsoleOutput)"},
		{ruleFlavorCreate, "rule:context_is_admin", "Create a flavor", "POST", "/flavors"},
		{ruleFlavorDelete, "rule:context_is_admin", "Delete a flavor", "DELETE", "/flavors/{flavor_id}"},
		{ruleFlavorAccess, "rule:context_is_admin", "List the projects that have access to a flavor", "GET", "/flavors/{flavor_id}/os-flavor-access"},
		{ruleAddAccess, "rule:context_is_admin", "Give a project access to a flavor", "POST", "/flavors/{flavor_id}/action (addTenantAccess)"},
		{ruleRemoveAccess, "rule:context_is_admin", "Remove a project's access to a flavor", "POST", "/flavors/{flavor_id}/action (removeTenantAccess)"},
		{ruleServices, "rule:context_is_admin", "List services", "GET", "/os-services"},
		{ruleServiceUpdate, "rule:context_is_admin", "Enable or disable a service", "PUT", "/os-services/enable"},
		{ruleHypervisors, "rule:context_is_admin", "List hypervisors", "GET", "/os-hypervisors"},
		{ruleHypervisorsDe, "rule:context_is_admin", "List hypervisors with details", "GET", "/os-hypervisors/detail"},
		{ruleHypervisor, "rule:context_is_admin", "Show a hypervisor", "GET", "/os-hypervisors/{hypervisor_id}"},
	} {
		rules = append(rules, policy.Rule{
			Name: r.name, Check: r.check, Description: r.what + ".", Scopes: []string{"project"},
			Operations: []policy.Operation{{Method: r.method, Path: r.path}}, Deprecated: olderName(r.name),
		})
	}
	return rules
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

// flavorTarget is the flavor that the path names, if the client sees it.
func (s *server) flavorTarget() api.Target[*store.Flavor] {
	return api.Target[*store.Flavor]{Load: func(ctx context.Context, r *http.Request) (*store.Flavor, error) {
		return s.cfg.Store.Flavor(ctx, s.viewer(ctx), r.PathValue("id"))
	}}
}
