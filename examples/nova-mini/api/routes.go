package api

import (
	"net/http"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/service/api"
)

// failStatuses returns the error statuses of a route: those of every route, and more. The statuses of an internal failure are not
// listed.
func failStatuses(more ...int) []int {
	return append([]int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotAcceptable}, more...)
}

// failsOfBody is like failStatuses, for a route that reads a body.
func failsOfBody(more ...int) []int {
	return append(failStatuses(http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType), more...)
}

// routes registers all routes. Each is a route of Nova.
func (s *server) routes(mux *api.Mux) {
	mux.Discover(api.Discovery{
		ID: "v2.1", Updated: "2013-07-23T11:33:21Z",
		Links:      []api.Link{{Rel: "describedby", Type: "text/html", Href: "http://docs.openstack.org/"}},
		MediaTypes: []api.MediaType{{Base: "application/json", Type: "application/vnd.openstack.compute+json;version=2.1"}},
	})
	s.flavorRoutes(mux)
	s.serverRoutes(mux)
	s.actionRoutes(mux)
	s.hostRoutes(mux)
}

func (s *server) flavorRoutes(mux *api.Mux) {
	api.HandleRoute(mux, api.Route{
		Pattern: "GET /v2.1/flavors", Summary: "List flavors", Query: flavorQuery, Reply: pageSchema("flavors", flavorShort), Errors: failStatuses(),
	}, s.listFlavors)
	api.HandleRoute(mux, api.Route{
		Pattern: "GET /v2.1/flavors/detail", Summary: "List flavors with details", Query: flavorQuery, Reply: pageSchema("flavors", flavorLong), Errors: failStatuses(),
	}, s.listFlavorDetails)
	api.HandleRoute(mux, api.Route{
		Pattern: "GET /v2.1/flavors/{id}", Summary: "Show a flavor", Reply: flavorOne, Errors: failStatuses(http.StatusNotFound),
	}, s.showFlavor)
	api.HandleRoute(mux, api.Route{
		Pattern: "POST /v2.1/flavors", Rule: ruleFlavorCreate, Summary: "Create a flavor",
		Body: flavorCreate, Reply: flavorOne, Errors: failsOfBody(http.StatusConflict),
	}, s.createFlavor)
	api.HandleRoute(mux, api.Route{
		Pattern: "DELETE /v2.1/flavors/{id}", Rule: ruleFlavorDelete, Summary: "Delete a flavor",
		Status: http.StatusAccepted, Errors: failStatuses(http.StatusNotFound),
	}, s.deleteFlavor)
	api.HandleRoute(mux, api.Route{
		Pattern: "GET /v2.1/flavors/{id}/os-flavor-access", Rule: ruleFlavorAccess, Summary: "List the projects that have access to a flavor",
		Reply: accessList, Errors: failStatuses(http.StatusNotFound),
	}, s.showAccess)
	api.HandleRoute(mux, api.Route{
		Pattern: "POST /v2.1/flavors/{id}/action", Action: "addTenantAccess", Rule: ruleAddAccess, Summary: "Give a project access to a flavor",
		Body: accessBody("addTenantAccess"), Reply: accessList, Errors: failsOfBody(http.StatusNotFound, http.StatusConflict),
	}, s.addAccess)
	api.HandleRoute(mux, api.Route{
		Pattern: "POST /v2.1/flavors/{id}/action", Action: "removeTenantAccess", Rule: ruleRemoveAccess, Summary: "Remove a project's access to a flavor",
		Body: accessBody("removeTenantAccess"), Reply: accessList, Errors: failsOfBody(http.StatusNotFound),
	}, s.removeAccess)
}

func (s *server) serverRoutes(mux *api.Mux) {
	api.HandleRoute(mux, api.Route{
		Pattern: "POST /v2.1/servers", Rule: ruleCreate, Summary: "Create a server",
		NoEffect: []string{"server.config_drive", "server.max_count", "server.min_count", "server.networks"}, // only values that mean false, 1 or no network are accepted
		Body:     serverCreate, Reply: serverMade, Status: http.StatusAccepted, Errors: failsOfBody(http.StatusServiceUnavailable),
	}, s.createServer)
	api.HandleRoute(mux, api.Route{
		Pattern: "GET /v2.1/servers", Rule: ruleIndex, Summary: "List servers",
		Query: serverQuery, Reply: pageSchema("servers", serverShort), Errors: failStatuses(),
	}, s.listServers)
	api.HandleRoute(mux, api.Route{
		Pattern: "GET /v2.1/servers/detail", Rule: ruleDetail, Summary: "List servers with details",
		Query: serverQuery, Reply: pageSchema("servers", serverLong), Errors: failStatuses(),
	}, s.listServerDetails)
	api.HandleRoute(mux, api.Route{
		Pattern: "GET /v2.1/servers/{id}", Summary: "Show a server", Reply: serverOne, Errors: failStatuses(http.StatusNotFound),
	}, s.showServer)
	api.HandleRoute(mux, api.Route{
		Pattern: "DELETE /v2.1/servers/{id}", Summary: "Delete a server",
		Status: http.StatusNoContent, Errors: failStatuses(http.StatusNotFound, http.StatusServiceUnavailable),
	}, s.deleteServer)
}

func (s *server) actionRoutes(mux *api.Mux) {
	action := func(name, summary string, status int, body []api.Schema) api.Route {
		return api.Route{
			Pattern: "POST /v2.1/servers/{id}/action", Action: name, Summary: summary, Body: body, Status: status,
			Errors: failsOfBody(http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable),
		}
	}
	const accepted = http.StatusAccepted
	api.HandleRoute(mux, action("os-start", "Start a server", accepted, nil), s.actionHandler(ruleStart, compute.Start))
	api.HandleRoute(mux, action("os-stop", "Stop a server", accepted, nil), s.actionHandler(ruleStop, compute.Stop))
	api.HandleRoute(mux, action("reboot", "Reboot a server", accepted, rebootBody), s.reboot)
	api.HandleRoute(mux, action("resize", "Resize a server to another flavor", accepted, resizeBody), s.resize)
	api.HandleRoute(mux, action("confirmResize", "Confirm a resize", http.StatusNoContent, nil), s.actionHandler(ruleConfirmResize, compute.ConfirmResize))
	api.HandleRoute(mux, action("revertResize", "Revert a resize", accepted, nil), s.actionHandler(ruleRevertResize, compute.RevertResize))
	console := action("os-getConsoleOutput", "Read the end of a server's console log", http.StatusOK, consoleBody)
	console.Reply = consoleText
	console.Errors = append(console.Errors, http.StatusNotImplemented)
	api.HandleRoute(mux, console, s.console)
}

func (s *server) hostRoutes(mux *api.Mux) {
	api.HandleRoute(mux, api.Route{
		Pattern: "GET /v2.1/os-services", Rule: ruleServices, Summary: "List services", Query: serviceQuery, Reply: serviceList, Errors: failStatuses(),
	}, s.listServices)
	update := func(name, summary string) api.Route {
		return api.Route{
			Pattern: "PUT /v2.1/os-services/" + name, Rule: ruleServiceUpdate, Summary: summary,
			Body: serviceUpdate, Reply: serviceSet, Errors: failsOfBody(http.StatusNotFound),
		}
	}
	api.HandleRoute(mux, update("disable", "Disable a service: its host gets no more servers"), s.disableService)
	api.HandleRoute(mux, update("disable-log-reason", "Disable a service with a reason"), s.disableServiceFor)
	api.HandleRoute(mux, update("enable", "Enable a service"), s.enableService)
	api.HandleRoute(mux, api.Route{
		Pattern: "GET /v2.1/os-hypervisors", Rule: ruleHypervisors, Summary: "List hypervisors",
		Reply: allVersions(exactObject(fields{"hypervisors": arrayOf(hypervisorShort)})), Errors: failStatuses(),
	}, s.listHypervisors)
	api.HandleRoute(mux, api.Route{
		Pattern: "GET /v2.1/os-hypervisors/detail", Rule: ruleHypervisorsDe, Summary: "List hypervisors with details",
		Reply: allVersions(exactObject(fields{"hypervisors": arrayOf(hypervisorLong)})), Errors: failStatuses(),
	}, s.listHypervisorDetails)
	api.HandleRoute(mux, api.Route{
		Pattern: "GET /v2.1/os-hypervisors/{id}", Rule: ruleHypervisor, Summary: "Show a hypervisor",
		Reply: allVersions(exactObject(fields{"hypervisor": hypervisorLong})), Errors: failStatuses(http.StatusNotFound),
	}, s.showHypervisor)
}
