package api

import "github.com/armature-go/armature/service/api"

// Change describes a microversion of Nova.
type Change struct {
	// Version is the microversion, and What describes its change in Nova.
	Version, What string
	// Where lists the resources of nova-mini that the microversion changes, separated by blanks. A resource is the last name of its path (without
	// detail), such as tags for /servers/{id}/tags, or the name of an action. Empty: nova-mini does not have the changed part, or only values change.
	Where string
}

// Changes has all microversions after the first one; openapi --history prints them. The declarations of routes and types have the versions, too; a test
// compares Where with these declarations.
var Changes = []Change{
	{"2.2", "key pairs: type, and other statuses of replies", "os-keypairs"},
	{"2.3", "servers: more attributes for administrators", "servers"},
	{"2.4", "fixed IPs: reserved", ""},
	{"2.5", "servers: filter ip6 for members", "servers"},
	{"2.6", "remote consoles", "os-getRDPConsole os-getSPICEConsole os-getSerialConsole os-getVNCConsole remote-consoles"},
	{"2.7", "flavor access: refused for public flavors", "addTenantAccess"},
	{"2.8", "remote consoles: mks", "remote-consoles"},
	{"2.9", "servers: locked", "rebuild servers"},
	{"2.10", "key pairs: user_id, for administrators", "os-keypairs"},
	{"2.11", "services: forced_down", "disable disable-log-reason enable force-down os-services"},
	{"2.12", "virtual interfaces: net_id", ""},
	{"2.13", "server groups: project_id and user_id", "os-server-groups"},
	{"2.14", "evacuate: without onSharedStorage and adminPass", ""},
	{"2.15", "server groups: soft policies", "os-server-groups"},
	{"2.16", "servers: host_status", "servers"},
	{"2.17", "action trigger_crash_dump", "trigger_crash_dump"},
	{"2.18", "paths without a project", ""},
	{"2.19", "servers: description", "rebuild servers"},
	{"2.20", "volumes of shelved servers", ""},
	{"2.21", "instance actions of deleted servers", "os-instance-actions"},
	{"2.22", "live migrations: force their end", "force_complete"},
	{"2.23", "migrations of a server", "migrations"},
	{"2.24", "live migrations: abort", "migrations"},
	{"2.25", "live migrations: block_migration auto", ""},
	{"2.26", "tags of servers", "rebuild servers tags"},
	{"2.27", "header OpenStack-API-Version", ""},
	{"2.28", "hypervisors: cpu_info as an object", "os-hypervisors"},
	{"2.29", "evacuate: force", ""},
	{"2.30", "live migrations: force", ""},
	{"2.31", "console tokens of all types", "os-console-auth-tokens"},
	{"2.32", "new servers: tags of networks and disks", "servers"},
	{"2.33", "hypervisors: pages; new servers: no tags of disks", "os-hypervisors servers"},
	{"2.34", "live migrations: checked later", ""},
	{"2.35", "key pairs: pages", "os-keypairs"},
	{"2.36", "proxies to other services are removed", "add_interface images limits os-baremetal-nodes os-floating-ip-pools os-floating-ips os-networks os-security-group-rules os-security-groups os-snapshots os-tenant-networks os-volumes remove_interface"},
	{"2.37", "new servers: networks auto and none, and required", "servers"},
	{"2.38", "servers: an unknown status is refused", "servers"},
	{"2.39", "metadata of images is removed, and createImage and createBackup do not check the limit of metadata", "createBackup createImage limits metadata"},
	{"2.40", "usage: pages", "os-simple-tenant-usage"},
	{"2.41", "aggregates: uuid", ""},
	{"2.42", "new servers: tags of networks and disks again", "servers"},
	{"2.43", "hosts are removed", "os-hosts reboot shutdown startup"},
	{"2.44", "actions on addresses are removed", "addFixedIp addFloatingIp removeFixedIp removeFloatingIp"},
	{"2.45", "createImage and createBackup: image_id in the body", "createBackup createImage"},
	{"2.46", "header X-OpenStack-Request-ID", ""},
	{"2.47", "servers: the flavor as it was at the last boot", "rebuild servers"},
	{"2.48", "diagnostics: one form", "diagnostics"},
	{"2.49", "attached volumes and interfaces: tag", "os-interface os-volume_attachments"},
	{"2.50", "quota classes: server groups", ""},
	{"2.51", "instance actions: events for members; event volume-extended", "os-instance-actions os-server-external-events"},
	{"2.52", "new servers: tags", "servers"},
	{"2.53", "services and hypervisors: a UUID as id", "disable disable-log-reason enable force-down os-hypervisors os-services search servers uptime"},
	{"2.54", "rebuild: key_name", "rebuild"},
	{"2.55", "flavors: description", "flavors"},
	{"2.56", "migrate: host", ""},
	{"2.57", "personality is removed; rebuild: user_data", "limits rebuild servers"},
	{"2.58", "instance actions: pages and updated_at", "os-instance-actions"},
	{"2.59", "migrations: pages and uuid", ""},
	{"2.60", "volumes of several servers", ""},
	{"2.61", "flavors: extra_specs", "flavors"},
	{"2.62", "instance actions: host and hostId of events", "os-instance-actions"},
	{"2.63", "servers: trusted_image_certificates", "rebuild servers"},
	{"2.64", "server groups: policy and rules", "os-server-groups"},
	{"2.65", "live migrations: abort queued ones", ""},
	{"2.66", "filter changes-before", "os-instance-actions servers"},
	{"2.67", "new servers: volume_type", "servers"},
	{"2.68", "forced evacuate and live migration are removed", ""},
	{"2.69", "partial replies during an outage", ""},
	{"2.70", "volumes and interfaces of a server: tag", "os-interface"},
	{"2.71", "servers: server_groups", "rebuild servers"},
	{"2.72", "new servers: ports with resource requests", ""},
	{"2.73", "servers: locked_reason, and filter locked", "lock rebuild servers"},
	{"2.74", "new servers: host and hypervisor_hostname", "servers"},
	{"2.75", "unknown parameters are refused; PUT of a server shows all; swap 0", "flavors os-hypervisors os-keypairs os-simple-tenant-usage rebuild servers"},
	{"2.76", "event power-update", "os-server-external-events"},
	{"2.77", "unshelve: availability_zone", "unshelve"},
	{"2.78", "topology of a server", "topology"},
	{"2.79", "volumes of a server: delete_on_termination", "os-volume_attachments"},
	{"2.80", "migrations: user_id and project_id", ""},
	{"2.81", "aggregates: images", "images"},
	{"2.82", "event accelerator-request-bound", "os-server-external-events"},
	{"2.83", "servers: more filters for members", "servers"},
	{"2.84", "instance actions: details of events", "os-instance-actions"},
	{"2.85", "volumes of a server: PUT", "os-volume_attachments"},
	{"2.86", "extra specs are checked", "os-extra_specs"},
	{"2.87", "rescue of servers with a volume", ""},
	{"2.88", "hypervisors: usage is removed", "os-hypervisors statistics uptime"},
	{"2.89", "volumes of a server: attachment_id and bdm_uuid", ""},
	{"2.90", "servers: hostname for all, and in requests", "rebuild servers"},
	{"2.91", "unshelve: host, and no zone", "unshelve"},
	{"2.92", "key pairs: public_key is required", "os-keypairs"},
	{"2.93", "rebuild of servers with a volume; event volume-reimaged", "os-server-external-events"},
	{"2.94", "servers: a domain name as hostname", "rebuild servers"},
	{"2.95", "evacuate: the server is stopped", ""},
	{"2.96", "servers: pinned_availability_zone", "rebuild servers"},
	{"2.97", "shares of a server", "shares"},
	{"2.98", "servers: properties of the image", "rebuild servers"},
	{"2.99", "consoles: spice-direct", "remote-consoles"},
	{"2.100", "servers: scheduler_hints", "rebuild servers"},
	{"2.101", "volumes of a server: POST answers 202", ""},
	{"2.102", "flavors: name filter, without rxtx_factor and disabled; unknown parameters are refused", "flavors"},
	{"2.103", "volumes to boot from are removed", "action os-volumes_boot"},
	{"2.104", "servers: PUT changes pinned_availability_zone", "servers"},
}

// Described returns Changes in the form of component.Component.Changes.
func Described() []api.Change {
	out := make([]api.Change, len(Changes))
	for i, c := range Changes {
		v, _ := api.ParseVersion(c.Version) // a test compares each version with the one before it
		out[i] = api.Change{Version: v, Where: c.Where, What: c.What}
	}
	return out
}
