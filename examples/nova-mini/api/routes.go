package api

import (
	"net/http"
	"strings"

	"github.com/armature-go/armature/service/api"
)

// HTTP statuses of errors, for the declarations of routes. Routes do not declare the statuses of internal failures.
const (
	notFound    = http.StatusNotFound
	conflict    = http.StatusConflict
	unavailable = http.StatusServiceUnavailable
)

// routes registers all routes. Each is a route of Nova. The routes of a resource are in the file of the resource. The group withBody is for
// routes whose requests have a body.
func (s *server) routes() {
	for _, v := range []api.Discovery{
		{ID: "v2.0", Path: "/v2", Status: "SUPPORTED", Updated: "2011-01-21T11:33:21Z"},
		{ID: "v2.1", Updated: "2013-07-23T11:33:21Z"},
	} {
		v.Links = []api.Link{{Rel: "describedby", Type: "text/html", Href: "http://docs.openstack.org/"}}
		media := strings.TrimSuffix(strings.TrimPrefix(v.ID, "v"), ".0")
		v.MediaTypes = []api.MediaType{{Base: "application/json", Type: "application/vnd.openstack.compute+json;version=" + media}}
		s.mux.Discover(v)
	}
	all := api.NewGroup(s.mux, api.Route{
		Pattern: "/v2.1", Errors: []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotAcceptable},
	})
	withBody := api.NewGroup(all, api.Route{Errors: []int{http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType}})
	for _, add := range []func(all, withBody *api.Group){
		s.extensionRoutes,
		s.flavorRoutes,
		s.specRoutes,
		s.keyPairRoutes,
		s.limitRoutes,
		s.groupRoutes,
		s.usageRoutes,
		s.auditRoutes,
		s.imageRoutes,
		s.zoneRoutes,
		s.serverRoutes,
		s.metadataRoutes,
		s.tagRoutes,
		s.partRoutes,
		s.interfaceRoutes,
		s.securityGroupRoutes,
		s.eventRoutes,
		s.actionRoutes,
		s.consoleRoutes,
		s.diagnosticsRoutes,
		s.instanceActionRoutes,
		s.serviceRoutes,
		s.hypervisorRoutes,
		s.refusedRoutes,
		s.removedRoutes,
	} {
		add(all, withBody)
	}
}
