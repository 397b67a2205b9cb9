package api

import (
	"net/http"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/service/api"
)

// Statuses of errors. Those of an internal failure are not listed.
const (
	notFound    = http.StatusNotFound
	conflict    = http.StatusConflict
	unavailable = http.StatusServiceUnavailable
)

// routes registers all routes. Each is a route of Nova.
func (s *server) routes() {
	s.mux.Discover(api.Discovery{
		ID: "v2.1", Updated: "2013-07-23T11:33:21Z",
		Links:      []api.Link{{Rel: "describedby", Type: "text/html", Href: "http://docs.openstack.org/"}},
		MediaTypes: []api.MediaType{{Base: "application/json", Type: "application/vnd.openstack.compute+json;version=2.1"}},
	})
	all := api.NewGroup(s.mux, api.Route{
		Pattern: "/v2.1", Errors: []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotAcceptable},
	})
	withBody := api.NewGroup(all, api.Route{Errors: []int{http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType}})
	s.flavorRoutes(all, withBody)
	s.serverRoutes(all, withBody)
	s.actionRoutes(withBody)
	s.hostRoutes(all, withBody)
}

func (s *server) flavorRoutes(all, withBody *api.Group) {
	api.HandleRoute(all, api.Route{Pattern: "GET /flavors", Summary: "List flavors", List: &flavors}, s.listFlavors)
	api.HandleRoute(all, api.Route{Pattern: "GET /flavors/detail", Summary: "List flavors with details", List: &flavors}, s.listFlavorDetails)
	api.HandleTarget(all, api.Route{Pattern: "GET /flavors/{id}", Summary: "Show a flavor", Errors: []int{notFound}}, s.flavorTarget(), s.showFlavor)
	api.HandleRoute(withBody, api.Route{
		Pattern: "POST /flavors", Rule: ruleFlavorCreate, Summary: "Create a flavor", Errors: []int{conflict}, Idempotency: s.cfg.Store.Replies(),
	}, s.createFlavor)
	api.HandleRoute(all, api.Route{
		Pattern: "DELETE /flavors/{id}", Rule: ruleFlavorDelete, Summary: "Delete a flavor", Status: http.StatusAccepted, Errors: []int{notFound},
	}, s.deleteFlavor)
	api.HandleTarget(all, api.Route{
		Pattern: "GET /flavors/{id}/os-flavor-access", Rule: ruleFlavorAccess, Summary: "List the projects that have access to a flavor", Errors: []int{notFound},
	}, s.flavorTarget(), s.showAccess)
	access := api.NewGroup(withBody, api.Route{Pattern: "/flavors/{id}/action", Errors: []int{notFound}})
	api.HandleRoute(access, api.Route{
		Pattern: "POST", Action: "addTenantAccess", Rule: ruleAddAccess, Summary: "Give a project access to a flavor", Errors: []int{conflict},
	}, s.addAccess)
	api.HandleTarget(access, api.Route{
		Pattern: "POST", Action: "removeTenantAccess", Rule: ruleRemoveAccess, Summary: "Remove a project's access to a flavor",
	}, s.flavorTarget(), s.removeAccess)
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
		Pattern: "DELETE /servers/{id}", Rule: ruleDelete, Summary: "Delete a server", Errors: []int{notFound, unavailable},
	}, s.target(), s.deleteServer)
}

func (s *server) actionRoutes(withBody *api.Group) {
	actions := api.NewGroup(withBody, api.Route{Pattern: "/servers/{id}/action", Errors: []int{notFound, conflict, unavailable}})
	action := func(name, rule, summary string, status int) api.Route {
		return api.Route{Pattern: "POST", Action: name, Rule: rule, Summary: summary, Status: status}
	}
	const accepted = http.StatusAccepted
	t := s.target()
	api.HandleTarget(actions, action("os-start", ruleStart, "Start a server", accepted), t, s.actionHandler(compute.Start))
	api.HandleTarget(actions, action("os-stop", ruleStop, "Stop a server", accepted), t, s.actionHandler(compute.Stop))
	api.HandleTarget(actions, action("reboot", ruleReboot, "Reboot a server", accepted), t, s.reboot)
	api.HandleTarget(actions, action("resize", ruleResize, "Resize a server to another flavor", accepted), t, s.resize)
	api.HandleTarget(actions, action("confirmResize", ruleConfirmResize, "Confirm a resize", http.StatusNoContent), t, s.actionHandler(compute.ConfirmResize))
	api.HandleTarget(actions, action("revertResize", ruleRevertResize, "Revert a resize", accepted), t, s.actionHandler(compute.RevertResize))
	console := action("os-getConsoleOutput", ruleConsole, "Read the end of a server's console log", http.StatusOK)
	console.Errors = []int{http.StatusNotImplemented}
	api.HandleTarget(actions, console, t, s.console)
}

func (s *server) hostRoutes(all, withBody *api.Group) {
	api.HandleRoute(all, api.Route{Pattern: "GET /os-services", Rule: ruleServices, Summary: "List services", Query: serviceQuery}, s.listServices)
	services := api.NewGroup(withBody, api.Route{Pattern: "/os-services", Rule: ruleServiceUpdate, Errors: []int{notFound}})
	api.HandleRoute(services, api.Route{Pattern: "PUT /disable", Summary: "Disable a service: its host gets no more servers"}, s.disableService)
	api.HandleRoute(services, api.Route{Pattern: "PUT /disable-log-reason", Summary: "Disable a service with a reason"}, s.disableServiceFor)
	api.HandleRoute(services, api.Route{Pattern: "PUT /enable", Summary: "Enable a service"}, s.enableService)
	hypervisors := api.NewGroup(all, api.Route{Pattern: "/os-hypervisors"})
	api.HandleRoute(hypervisors, api.Route{Pattern: "GET", Rule: ruleHypervisors, Summary: "List hypervisors"}, s.listHypervisors)
	api.HandleRoute(hypervisors, api.Route{Pattern: "GET /detail", Rule: ruleHypervisorsDe, Summary: "List hypervisors with details"}, s.listHypervisorDetails)
	api.HandleRoute(hypervisors, api.Route{Pattern: "GET /{id}", Rule: ruleHypervisor, Summary: "Show a hypervisor", Errors: []int{notFound}}, s.showHypervisor)
}
