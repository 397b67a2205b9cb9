package api

import (
	"net/http"
	"strings"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// errGone is the error for an operation that Nova had and has removed.
var errGone = api.WithStatus(http.StatusGone, fault.New(fault.NotFound, "This resource is no longer available. No forwarding address is given."))

// removed is the summary of such an operation in the OpenAPI document.
const removed = "Removed from Nova"

// removedPaths are the operations that Nova had and has removed: paths with their methods. Actions of servers are in gone. The source is
// nova/api/openstack/compute of Nova at 00a0304.
const removedPaths = `
	/os-agents GET,POST
	/os-agents/{id} PUT,DELETE
	/os-cells GET,POST
	/os-cells/capacities GET
	/os-cells/detail GET
	/os-cells/info GET
	/os-cells/sync_instances POST
	/os-cells/{id} GET,PUT,DELETE
	/os-cells/{id}/capacities GET
	/os-certificates POST
	/os-certificates/{id} GET
	/os-cloudpipe GET,POST
	/os-cloudpipe/{id} PUT
	/os-fixed-ips/{id} GET
	/os-fixed-ips/{id}/action POST
	/os-floating-ip-dns GET
	/os-floating-ip-dns/{id} PUT,DELETE
	/os-floating-ip-dns/{domain}/entries/{id} GET,PUT,DELETE
	/os-floating-ips-bulk GET,POST
	/os-floating-ips-bulk/{id} GET,PUT
	/os-fping GET
	/os-fping/{id} GET
	/os-networks POST
	/os-networks/add POST
	/os-networks/{id} DELETE
	/os-networks/{id}/action POST
	/os-security-group-default-rules GET,POST
	/os-security-group-default-rules/{id} GET,DELETE
	/os-tenant-networks POST
	/os-tenant-networks/{id} DELETE
	/servers/{id}/consoles GET,POST
	/servers/{id}/consoles/{console} GET,DELETE
	/servers/{id}/os-virtual-interfaces GET`

// removedOperations returns the methods and paths of removedPaths.
func removedOperations() (out [][2]string) {
	for line := range strings.Lines(removedPaths) {
		if path, methods, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			for method := range strings.SplitSeq(methods, ",") {
				out = append(out, [2]string{method, path})
			}
		}
	}
	return out
}

// removedRoutes registers the routes of the operations that Nova has removed.
func (s *server) removedRoutes(all, _ *api.Group) {
	for _, op := range removedOperations() {
		registerRefusal(all, api.Route{Pattern: op[0] + " " + op[1], Summary: removed, Errors: []int{http.StatusGone}}, errGone)
	}
}
