package api

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// This file has the operations of Nova that nova-mini refuses. Operations that Nova itself has removed are in removed.go.

// absent is the summary of such an operation in the OpenAPI document.
const absent = "Not in nova-mini"

// refusals is the table of the operations of Nova that nova-mini refuses with a sentence. As in Nova, the policy comes first. An operation with a server in its path also checks that the server
// exists. The source is nova/api/openstack/compute and nova/policies of Nova at 00a0304.
//
// The field max is the last microversion of the operations; empty: all versions have them. A line has the method, the path, after # the name of an action, the rule without os_compute_api:, and the
// check of the rule, which is one of refusedChecks. The check "has" means that an operation of nova-mini has the same rule. A first microversion may follow.
var refusals = []struct{ why, max, operations string }{
	{noProxy("network"), "2.35", `
		GET /os-networks os-networks:list reader
		GET /os-networks/{id} os-networks:show reader
		GET /os-tenant-networks os-tenant-networks:list reader
		GET /os-tenant-networks/{id} os-tenant-networks:show reader
		GET /os-floating-ip-pools os-floating-ip-pools any
		GET /os-floating-ips os-floating-ips:list reader
		POST /os-floating-ips os-floating-ips:create member
		GET /os-floating-ips/{id} os-floating-ips:show reader
		DELETE /os-floating-ips/{id} os-floating-ips:delete member
		POST /os-security-groups os-security-groups:create member
		PUT /os-security-groups/{id} os-security-groups:update member
		DELETE /os-security-groups/{id} os-security-groups:delete member
		POST /os-security-group-rules os-security-groups:rule:create member
		DELETE /os-security-group-rules/{id} os-security-groups:rule:delete member`},
	{noProxy("network"), "2.43", `
		POST /servers/{id}/action#addFloatingIp os-floating-ips:add member
		POST /servers/{id}/action#removeFloatingIp os-floating-ips:remove member`},
	{noProxy("volume"), "2.35", `
		GET /os-volumes os-volumes:list reader
		POST /os-volumes os-volumes:create member
		GET /os-volumes/detail os-volumes:detail reader
		GET /os-volumes/{id} os-volumes:show reader
		DELETE /os-volumes/{id} os-volumes:delete member
		GET /os-snapshots os-volumes:snapshots:list reader
		POST /os-snapshots os-volumes:snapshots:create member
		GET /os-snapshots/detail os-volumes:snapshots:detail reader
		GET /os-snapshots/{id} os-volumes:snapshots:show reader
		DELETE /os-snapshots/{id} os-volumes:snapshots:delete member`},
	{noProxy("baremetal"), "2.35", `
		GET /os-baremetal-nodes os-baremetal-nodes:list admin
		GET /os-baremetal-nodes/{id} os-baremetal-nodes:show admin`},
	{"nova-mini does not have os-volumes_boot, which is an older name of servers: send the request to /servers.", "2.102", `
		GET /os-volumes_boot servers:index has
		POST /os-volumes_boot servers:create has
		GET /os-volumes_boot/detail servers:detail has
		GET /os-volumes_boot/{id} servers:show has
		PUT /os-volumes_boot/{id} servers:update has
		DELETE /os-volumes_boot/{id} servers:delete has
		POST /os-volumes_boot/{id}/action servers:show has`},
	{"nova-mini has no shared file systems: the cloud has no share service.", "", `
		GET /servers/{id}/shares os-server-shares:index reader 2.97
		POST /servers/{id}/shares os-server-shares:create member 2.97
		GET /servers/{id}/shares/{share} os-server-shares:show reader 2.97
		DELETE /servers/{id}/shares/{share} os-server-shares:delete member 2.97`},
	{"nova-mini makes no snapshots of volumes: the cloud has no volume service.", "", `
		POST /os-assisted-volume-snapshots os-assisted-volume-snapshots:create service
		DELETE /os-assisted-volume-snapshots/{id} os-assisted-volume-snapshots:delete service`},
	{"nova-mini does not delete services: disable the service, and stop its process.", "", `
		DELETE /os-services/{id} os-services:delete admin`},
	{"nova-mini has no host aggregates: the configuration of a compute service has its availability zone.", "", `
		GET /os-aggregates os-aggregates:index admin
		POST /os-aggregates os-aggregates:create admin
		GET /os-aggregates/{id} os-aggregates:show admin
		PUT /os-aggregates/{id} os-aggregates:update admin
		DELETE /os-aggregates/{id} os-aggregates:delete admin
		POST /os-aggregates/{id}/action#add_host os-aggregates:add_host admin
		POST /os-aggregates/{id}/action#remove_host os-aggregates:remove_host admin
		POST /os-aggregates/{id}/action#set_metadata os-aggregates:set_metadata admin
		POST /os-aggregates/{id}/images compute:aggregates:images admin 2.81`},
	{"nova-mini has no operations on hosts: use os-services and os-hypervisors.", "2.42", `
		GET /os-hosts os-hosts:list admin
		GET /os-hosts/{id} os-hosts:show admin
		PUT /os-hosts/{id} os-hosts:update admin
		GET /os-hosts/{id}/reboot os-hosts:reboot admin
		GET /os-hosts/{id}/shutdown os-hosts:shutdown admin
		GET /os-hosts/{id}/startup os-hosts:start admin`},
	{"nova-mini has no requests for quotas: the options in the section quota are the limits of all projects, and /limits shows them.", "", `
		GET /os-quota-class-sets/{id} os-quota-class-sets:show admin
		PUT /os-quota-class-sets/{id} os-quota-class-sets:update admin
		GET /os-quota-sets/{project} os-quota-sets:show reader
		PUT /os-quota-sets/{project} os-quota-sets:update admin
		DELETE /os-quota-sets/{project} os-quota-sets:delete admin
		GET /os-quota-sets/{project}/detail os-quota-sets:detail reader
		GET /os-quota-sets/{project}/defaults os-quota-sets:defaults any`},
	{"nova-mini does not migrate servers.", "", `
		GET /os-migrations os-migrations:index manager
		GET /servers/{id}/migrations servers:migrations:index manager 2.23
		GET /servers/{id}/migrations/{migration} servers:migrations:show admin 2.23
		DELETE /servers/{id}/migrations/{migration} servers:migrations:delete manager 2.24
		POST /servers/{id}/migrations/{migration}/action#force_complete servers:migrations:force_complete manager 2.22
		POST /servers/{id}/action#evacuate os-evacuate admin
		POST /servers/{id}/action#migrate os-migrate-server:migrate manager
		POST /servers/{id}/action#os-migrateLive os-migrate-server:migrate_live manager`},
}

// refusedChecks are the checks of the rules in refusals, as in Nova.
var refusedChecks = map[string]string{
	"any": "@", "admin": "rule:context_is_admin", "reader": "rule:project_reader_or_admin", "member": "rule:project_member_or_admin",
	"manager": "rule:project_manager_or_admin", "service": "rule:service_or_admin",
}

func noProxy(service string) string {
	return "nova-mini has no proxy to the " + service + " service: send the request to the " + service + " service."
}

// baremetalPaths are the changes of bare metal nodes, which Nova itself refuses until 2.35: the command of Ironic that does the work, and the operation.
const baremetalPaths = `
	node-create POST /os-baremetal-nodes
	node-delete DELETE /os-baremetal-nodes/{id}
	port-create POST /os-baremetal-nodes/{id}/action#add_interface
	port-delete POST /os-baremetal-nodes/{id}/action#remove_interface`

// refusal is an operation that nova-mini refuses. The field check is empty if another operation has the same rule.
type refusal struct{ method, path, action, min, max, rule, check, why string }

// allRefusals returns the operations in refusals.
func allRefusals() (out []refusal) {
	for _, group := range refusals {
		for line := range strings.Lines(group.operations) {
			f := append(strings.Fields(line), "")
			if len(f) < 5 {
				continue
			}
			path, action, _ := strings.Cut(f[1], "#")
			rule := f[2]
			if !strings.HasPrefix(rule, "compute:") {
				rule = "os_compute_api:" + rule
			}
			out = append(out, refusal{method: f[0], path: path, action: action, min: f[4], max: group.max, rule: rule, check: refusedChecks[f[3]], why: group.why})
		}
	}
	return out
}

// refusedRules are the policy rules of the operations in refusals.
var refusedRules = func() (out []rule) {
	path := strings.NewReplacer("/servers/{id}", "/servers/{server_id}", "{project}", "{tenant_id}")
	for _, r := range allRefusals() {
		if r.check == "" || slices.ContainsFunc(out, func(o rule) bool { return o.name == r.rule }) {
			continue
		}
		at := path.Replace(r.path)
		if r.action != "" {
			at += " (" + r.action + ")"
		}
		out = append(out, rule{r.rule, r.check, "Get the answer that nova-mini does not have the operation", r.method, at})
	}
	return out
}()

// refusedRoutes registers the routes of the operations that nova-mini refuses.
func (s *server) refusedRoutes(all, withBody *api.Group) {
	for _, r := range allRefusals() {
		s.refuse(all, withBody, r)
	}
	for line := range strings.Lines(baremetalPaths) {
		if f := strings.Fields(line); len(f) == 3 {
			path, action, _ := strings.Cut(f[2], "#")
			def := api.Route{Pattern: f[1] + " " + path, Action: action, Max: "2.35", Summary: absent, Errors: []int{http.StatusBadRequest}}
			registerRefusal(groupFor(action, all, withBody), def, fault.New(fault.Invalid, "Command not supported. Please use Ironic command %s to perform this action.", f[0]))
		}
	}
}

// groupFor returns the group of a route. Only the body of an action is read.
func groupFor(action string, all, withBody *api.Group) *api.Group {
	if action != "" {
		return withBody
	}
	return all
}

// refuse registers the route of an operation that nova-mini refuses.
func (s *server) refuse(all, withBody *api.Group, r refusal) {
	g := groupFor(r.action, all, withBody)
	def := api.Route{
		Pattern: r.method + " " + r.path, Action: r.action, Min: r.min, Max: r.max, Summary: absent, Status: http.StatusNotImplemented, Errors: []int{http.StatusNotImplemented},
	}
	err := notSupported(r.why)
	if r.action != "" && r.max != "" { // otherwise the answer of the later versions is 400
		later, _ := api.ParseVersion(r.max)
		later.Minor++
		registerRefusal(g, api.Route{Pattern: def.Pattern, Action: r.action, Min: later.String(), Summary: "Removed", Errors: []int{http.StatusNotFound}}, errNoResource)
	}
	if strings.HasPrefix(r.path, "/servers/{id}") || strings.HasPrefix(r.path, "/os-volumes_boot/{id}") {
		def.Rule, def.Errors = r.rule, append(def.Errors, notFound)
		api.HandleTarget(g, def, s.target(), func(context.Context, *api.Request[api.None], *store.Server) (api.None, error) { return api.None{}, err })
		return
	}
	api.HandleRoute(g, def, func(ctx context.Context, q *api.Request[api.None]) (api.None, error) {
		var target map[string]any // nil: the rule is for the client's own project
		if project := q.PathValue("project"); project != "" {
			target = map[string]any{"project_id": project}
		}
		if denied := s.mux.Enforce(ctx, r.rule, target); denied != nil {
			return api.None{}, denied
		}
		return api.None{}, err
	})
}
