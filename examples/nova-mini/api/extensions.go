package api

import (
	"context"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// ruleExtensions is the name of the rule, as in Nova.
const ruleExtensions = "os_compute_api:extensions"

var extensionRules = []rule{
	{ruleExtensions, "@", "List the extensions of the API", "GET", "/extensions"},
}

func (s *server) extensionRoutes(all, _ *api.Group) {
	api.HandleRoute(all, api.Route{Pattern: "GET /extensions", Rule: ruleExtensions, Summary: "List the extensions of the API", Query: noQuery}, s.listExtensions)
	api.HandleRoute(all, api.Route{
		Pattern: "GET /extensions/{alias}", Rule: ruleExtensions, Summary: "Show an extension of the API", Errors: []int{notFound}, Query: noQuery,
	}, s.showExtension)
}

// noQuery is the query of a route without parameters. Since 2.102 all parameters are refused.
var noQuery = []api.Schema{{Min: "2.102", JSON: `{"type": "object", "additionalProperties": false}`}}

// extensions are the parts of the API that were extensions before 2.1. Clients look for the aliases. The names are Nova's.
var extensions = []extension{
	{Alias: "OS-DCF", Name: "DiskConfig", Description: "Who changes the partitions of a server's disk."},
	{Alias: "OS-EXT-AZ", Name: "ExtendedAvailabilityZone", Description: "The availability zone of a server."},
	{Alias: "OS-EXT-IMG-SIZE", Name: "ImageSize", Description: "The size of an image."},
	{Alias: "OS-EXT-IPS", Name: "ExtendedIps", Description: "The type of an address."},
	{Alias: "OS-EXT-IPS-MAC", Name: "ExtendedIpsMac", Description: "The MAC address of an address."},
	{Alias: "OS-EXT-SRV-ATTR", Name: "ExtendedServerAttributes", Description: "Attributes of a server for administrators."},
	{Alias: "OS-EXT-STS", Name: "ExtendedStatus", Description: "The states of a server."},
	{Alias: "OS-FLV-DISABLED", Name: "FlavorDisabled", Description: "Whether a flavor is disabled."},
	{Alias: "OS-FLV-EXT-DATA", Name: "FlavorExtraData", Description: "The ephemeral disk of a flavor."},
	{Alias: "OS-SCH-HNT", Name: "SchedulerHints", Description: "Hints of a new server for the scheduler."},
	{Alias: "OS-SRV-USG", Name: "ServerUsage", Description: "When a server was launched."},
	{Alias: "os-access-ips", Name: "AccessIPs", Description: "The addresses by which a server is reached."},
	{Alias: "os-admin-actions", Name: "AdminActions", Description: "Actions of administrators on servers."},
	{Alias: "os-admin-password", Name: "AdminPassword", Description: "Change of the password of a server's administrator."},
	{Alias: "os-attach-interfaces", Name: "AttachInterfaces", Description: "The interfaces of a server."},
	{Alias: "os-availability-zone", Name: "AvailabilityZone", Description: "Availability zones."},
	{Alias: "os-block-device-mapping", Name: "BlockDeviceMapping", Description: "The disks of a new server, in the older form."},
	{Alias: "os-block-device-mapping-v2-boot", Name: "BlockDeviceMappingV2Boot", Description: "The disks of a new server."},
	{Alias: "os-config-drive", Name: "ConfigDrive", Description: "A disk with the metadata of a server."},
	{Alias: "os-console-auth-tokens", Name: "ConsoleAuthTokens", Description: "Where a console token lets a client connect."},
	{Alias: "os-console-output", Name: "ConsoleOutput", Description: "The console log of a server."},
	{Alias: "os-consoles", Name: "Consoles", Description: "Consoles of an older kind. The list has it as in Nova; its operations answer 410."},
	{Alias: "os-create-backup", Name: "CreateBackup", Description: "Backups of a server."},
	{Alias: "os-deferred-delete", Name: "DeferredDelete", Description: "Soft deletion of a server."},
	{Alias: "os-extended-hypervisors", Name: "ExtendedHypervisors", Description: "More attributes of a hypervisor."},
	{Alias: "os-extended-rescue-with-image", Name: "ExtendedRescueWithImage", Description: "The image of a rescue."},
	{Alias: "os-extended-services", Name: "ExtendedServices", Description: "The reason why a service is disabled."},
	{Alias: "os-extended-status", Name: "ExtendedStatus", Description: "The states of a server."},
	{Alias: "os-extended-volumes", Name: "ExtendedVolumes", Description: "The volumes of a server."},
	{Alias: "os-flavor-access", Name: "FlavorAccess", Description: "The projects that may use a flavor."},
	{Alias: "os-flavor-extra-specs", Name: "FlavorExtraSpecs", Description: "The extra specs of a flavor."},
	{Alias: "os-flavor-manage", Name: "FlavorManage", Description: "Creation and deletion of flavors."},
	{Alias: "os-flavor-rxtx", Name: "FlavorRxtx", Description: "The factor of a flavor's bandwidth."},
	{Alias: "os-flavor-swap", Name: "FlavorSwap", Description: "The swap disk of a flavor."},
	{Alias: "os-hosts", Name: "Hosts", Description: "The hosts of the services. The list has it as in Nova; its operations are refused."},
	{Alias: "os-hypervisor-status", Name: "HypervisorStatus", Description: "The status of a hypervisor."},
	{Alias: "os-hypervisors", Name: "Hypervisors", Description: "The hosts of servers."},
	{Alias: "os-instance-actions", Name: "InstanceActions", Description: "The actions on a server."},
	{Alias: "os-instance_usage_audit_log", Name: "OSInstanceUsageAuditLog", Description: "The log of the audits of usage."},
	{Alias: "os-keypairs", Name: "Keypairs", Description: "Key pairs."},
	{Alias: "os-lock-server", Name: "LockServer", Description: "Lock and unlock of a server."},
	{Alias: "os-multiple-create", Name: "MultipleCreate", Description: "Several servers by one request."},
	{Alias: "os-pause-server", Name: "PauseServer", Description: "Pause and unpause of a server."},
	{Alias: "os-personality", Name: "Personality", Description: "Files of a new server."},
	{Alias: "os-rescue", Name: "Rescue", Description: "Rescue of a server."},
	{Alias: "os-server-diagnostics", Name: "ServerDiagnostics", Description: "What the driver reports about a server."},
	{Alias: "os-server-external-events", Name: "ServerExternalEvents", Description: "Events of other services."},
	{Alias: "os-server-groups", Name: "ServerGroups", Description: "Server groups."},
	{Alias: "os-server-list-multi-status", Name: "ServerListMultiStatus", Description: "Lists of servers with one of several statuses."},
	{Alias: "os-server-password", Name: "ServerPassword", Description: "The encrypted password of a server."},
	{Alias: "os-server-sort-keys", Name: "ServerSortKeys", Description: "The order of lists of servers."},
	{Alias: "os-server-start-stop", Name: "ServerStartStop", Description: "Start and stop of servers."},
	{Alias: "os-services", Name: "Services", Description: "The services."},
	{Alias: "os-shelve", Name: "Shelve", Description: "Shelving of a server."},
	{Alias: "os-simple-tenant-usage", Name: "SimpleTenantUsage", Description: "Reports of usage."},
	{Alias: "os-suspend-server", Name: "SuspendServer", Description: "Suspension of a server."},
	{Alias: "os-used-limits", Name: "UsedLimits", Description: "What a project uses of its limits."},
	{Alias: "os-used-limits-for-admin", Name: "UsedLimitsForAdmin", Description: "What another project uses of its limits."},
	{Alias: "os-user-data", Name: "UserData", Description: "The user data of a new server."},
}

type extension struct {
	Alias       string     `json:"alias"`
	Name        string     `json:"name"`
	Description string     `json:"description"`
	Namespace   string     `json:"namespace"`
	Updated     string     `json:"updated" format:"date-time"`
	Links       []api.Link `json:"links"`
}

// shown returns the extension with the values that are the same for all extensions, as in Nova.
func (e extension) shown() extension {
	e.Namespace, e.Updated, e.Links = "http://docs.openstack.org/compute/ext/fake_xml", "2014-12-03T00:00:00Z", []api.Link{}
	return e
}

type extensionList struct {
	Extensions []extension `json:"extensions"`
}

type oneExtension struct {
	Extension extension `json:"extension"`
}

func (s *server) listExtensions(context.Context, *api.Request[api.None]) (extensionList, error) {
	out := extensionList{Extensions: []extension{}}
	for _, e := range extensions {
		out.Extensions = append(out.Extensions, e.shown())
	}
	return out, nil
}

func (s *server) showExtension(_ context.Context, r *api.Request[api.None]) (oneExtension, error) {
	for _, e := range extensions {
		if e.Alias == r.PathValue("alias") {
			return oneExtension{e.shown()}, nil
		}
	}
	return oneExtension{}, fault.New(fault.NotFound, "The resource could not be found.")
}
