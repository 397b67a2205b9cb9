package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/armature-go/armature/service/api"
)

// This file has the JSON Schemas of requests and replies. They check requests, and the OpenAPI document shows them.
// Schemas of bodies and queries accept what Nova 2.1 accepts. If nova-mini has only a part of a feature, they accept only that
// part, such as one server for each request. Schemas of replies are exact.

// fields are the properties of an object, by name. A property whose name ends with "?" is optional.
type fields map[string]string

// exactObject is the schema of an object with these fields and no others.
func exactObject(f fields) string {
	var required, properties []string
	for _, name := range slices.Sorted(maps.Keys(f)) {
		plain, optional := strings.CutSuffix(name, "?")
		if !optional {
			required = append(required, fmt.Sprintf("%q", plain))
		}
		properties = append(properties, fmt.Sprintf("%q: %s", plain, f[name]))
	}
	return `{"type": "object", "additionalProperties": false, "required": [` + strings.Join(required, ", ") +
		`], "properties": {` + strings.Join(properties, ", ") + `}}`
}

func arrayOf(item string) string { return `{"type": "array", "items": ` + item + `}` }

func anyOf(schemas ...string) string { return `{"anyOf": [` + strings.Join(schemas, ", ") + `]}` }

// allVersions returns the schema for all microversions.
func allVersions(schema string) []api.Schema { return []api.Schema{{JSON: schema}} }

// pageSchema is the schema of a list that clients read in pages.
func pageSchema(name, item string) []api.Schema {
	return allVersions(exactObject(fields{name: arrayOf(item), name + "_links?": arrayOf(link)}))
}

// querySchema is the schema of a query with these parameters. A parameter may occur any number of times. Other parameters are
// ignored, as in Nova until microversion 2.75.
func querySchema(params fields) []api.Schema {
	var properties []string
	for _, name := range slices.Sorted(maps.Keys(params)) {
		properties = append(properties, fmt.Sprintf("%q: %s", name, arrayOf(params[name])))
	}
	return allVersions(`{"type": "object", "additionalProperties": true, "properties": {` + strings.Join(properties, ", ") + `}}`)
}

// oneOf is the schema of a text that is one of the keys of columns.
func oneOf(columns map[string]string) string {
	return fmt.Sprintf(`{"enum": ["%s"]}`, strings.Join(slices.Sorted(maps.Keys(columns)), `", "`))
}

// withFilters adds the filters of servers to the parameters of a query.
func withFilters(params fields) fields {
	for _, name := range filterNames() {
		params[name] = anything
	}
	return params
}

// Values.
const (
	anything  = `{"type": "string"}`
	null      = `{"type": "null"}`
	boolean   = `{"type": "boolean"}`
	amount    = `{"type": "integer", "minimum": 0}`
	integer   = `{"type": "integer"}`
	empty     = `{"const": ""}`
	uuidText  = `{"type": "string", "format": "uuid"}`
	upTo255   = `{"type": "string", "minLength": 1, "maxLength": 255}`
	optional  = `{"type": ["string", "null"]}`
	digits    = `{"type": "string", "pattern": "^[0-9]*$"}`
	seconds   = `{"type": "string", "format": "date-time", "pattern": "Z$"}`
	noMicros  = `{"type": ["string", "null"], "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{6}$"}`
	turned    = `{"enum": ["enabled", "disabled"]}`
	upOrDown  = `{"enum": ["up", "down"]}`
	manual    = `{"enum": ["MANUAL"]}`
	flavorIDs = `{"type": "string", "pattern": "^[a-zA-Z0-9. _-]{1,255}$"}`

	// nameText is a printable text without a space at either end.
	nameText = `{"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^([^\\p{C}\\p{Z}]([^\\p{C}\\p{Zl}\\p{Zp}]*[^\\p{C}\\p{Z}])?)?$"}`
	// labels is a server's metadata.
	labels = `{"type": "object", "additionalProperties": false, "patternProperties": {"^[a-zA-Z0-9-_:. ]{1,255}$": {"type": "string", "maxLength": 255}}}`
	// hostText is a host's name.
	hostText = `{"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[a-zA-Z0-9-._]*$"}`
	// reference is a flavor's id, or a link that ends with it.
	reference = `{"type": ["string", "integer"], "minLength": 1}`
	// yesOrNo has all values that Nova accepts as a boolean.
	yesOrNo = `{"enum": [true, "True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes", ` + no + `]}`
	no      = `false, "False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no"`
	// positive and natural are integers, or integers as text, up to MySQL's largest INT.
	positive = `{"type": ["integer", "string"], "pattern": "^[0-9]*$", "minLength": 1, "minimum": 1, "maximum": 2147483647}`
	natural  = `{"type": ["integer", "string"], "pattern": "^[0-9]*$", "minLength": 1, "minimum": 0, "maximum": 2147483647}`
)

var (
	link  = exactObject(fields{"rel": `{"enum": ["self", "bookmark", "next", "describedby"]}`, "href": `{"type": "string", "format": "uri"}`, "type?": anything})
	links = arrayOf(link)
)

// Flavors.
var (
	flavorQuery = querySchema(fields{
		"limit": digits, "marker": anything, "is_public": anything, "minRam": anything, "minDisk": anything,
		"sort_key": oneOf(flavorSorts), "sort_dir": `{"enum": ["asc", "desc"]}`,
	})
	flavorCreate = allVersions(exactObject(fields{"flavor": exactObject(fields{
		"name": nameText, "ram": positive, "vcpus": positive, "disk": natural, "swap?": natural, "OS-FLV-EXT-DATA:ephemeral?": natural,
		"id?":                         `{"type": ["string", "number", "null"], "minLength": 1, "maxLength": 255, "pattern": "^[a-zA-Z0-9._-]([a-zA-Z0-9. _-]*[a-zA-Z0-9._-])?$"}`,
		"rxtx_factor?":                `{"type": ["number", "string"], "pattern": "^[0-9]+(\\.[0-9]+)?$", "exclusiveMinimum": 0, "maximum": 3.40282e+38}`,
		"os-flavor-access:is_public?": yesOrNo,
	})}))
	flavorShort = exactObject(fields{"id": flavorIDs, "name": upTo255, "links": links})
	flavorLong  = exactObject(fields{
		"id": flavorIDs, "name": upTo255, "ram": amount, "vcpus": amount, "disk": amount, "OS-FLV-EXT-DATA:ephemeral": amount,
		"swap":                     `{"type": ["integer", "string"], "minimum": 1, "maxLength": 0}`, // "" if the flavor has no swap, as in Nova before microversion 2.75
		"OS-FLV-DISABLED:disabled": boolean, "os-flavor-access:is_public": boolean, "rxtx_factor": `{"type": "number"}`, "links": links,
	})
	flavorOne  = allVersions(exactObject(fields{"flavor": flavorLong}))
	accessList = allVersions(exactObject(fields{"flavor_access": arrayOf(exactObject(fields{"flavor_id": flavorIDs, "tenant_id": upTo255}))}))
)

// accessBody is the body of an action that changes which projects have access to a flavor.
func accessBody(action string) []api.Schema {
	return allVersions(exactObject(fields{action: exactObject(fields{"tenant": upTo255})}))
}

// Servers.
var (
	// Networks are accepted without effect, because servers have no network yet.
	networks = arrayOf(`{"type": "object", "additionalProperties": false, "properties": {` +
		`"fixed_ip": {"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}, "port": {"type": ["string", "null"], "format": "uuid"}, "uuid": ` + anything + `}}`)
	serverCreate = allVersions(exactObject(fields{"server": exactObject(fields{
		"name": nameText, "flavorRef": reference, "metadata?": labels, "networks?": networks,
		"imageRef?":  `{"type": "string", "maxLength": 255}`, // any text, because nova-mini has no images
		"key_name?":  nameText,
		"min_count?": oneServer, "max_count?": oneServer, "OS-DCF:diskConfig?": manual, "config_drive?": `{"enum": [` + no + `]}`,
		"availability_zone?": nameText,
	})}))
	oneServer   = `{"enum": [1, "1"]}`
	serverQuery = querySchema(withFilters(fields{
		"limit": digits, "marker": anything, "all_tenants": anything, "sort_key": oneOf(serverSorts), "sort_dir": anything,
	}))
	serverMade = allVersions(exactObject(fields{"server": exactObject(fields{
		"id": uuidText, "links": links, "OS-DCF:diskConfig": manual, "adminPass": anything, "security_groups": arrayOf(exactObject(fields{"name": anything})),
	})}))
	serverShort = exactObject(fields{"id": uuidText, "name": upTo255, "links": links})
	serverLong  = exactObject(fields{
		"id": uuidText, "name": upTo255, "tenant_id": anything, "user_id": anything, "metadata": labels, "links": links,
		"status":    `{"enum": ["BUILD", "ACTIVE", "REBOOT", "HARD_REBOOT", "RESIZE", "VERIFY_RESIZE", "REVERT_RESIZE", "SHUTOFF", "ERROR"]}`,
		"hostId":    `{"type": "string", "pattern": "^([0-9a-f]{56})?$"}`,
		"image":     anyOf(empty, exactObject(fields{"id": anything, "links": links})),
		"flavor":    exactObject(fields{"id": anything, "links": links}),
		"created":   seconds,
		"updated":   seconds,
		"fault?":    exactObject(fields{"code": integer, "created": seconds, "message": anything, "details?": anything}),
		"progress?": amount, "addresses": exactObject(nil), "accessIPv4": empty, "accessIPv6": empty, "config_drive": empty, "key_name": null,
		"OS-DCF:diskConfig": manual, "OS-EXT-AZ:availability_zone": `{"enum": ["", "` + zone + `"]}`,
		"OS-EXT-STS:vm_state":    `{"enum": ["building", "active", "stopped", "resized", "error"]}`,
		"OS-EXT-STS:task_state":  optional,
		"OS-EXT-STS:power_state": `{"enum": [0, 1, 3, 4, 6, 7]}`,
		"OS-SRV-USG:launched_at": noMicros, "OS-SRV-USG:terminated_at": noMicros,
		"OS-EXT-SRV-ATTR:host?": optional, "OS-EXT-SRV-ATTR:hypervisor_hostname?": optional, "OS-EXT-SRV-ATTR:instance_name?": anything,
		"os-extended-volumes:volumes_attached": `{"type": "array", "maxItems": 0}`,
	})
	serverOne = allVersions(exactObject(fields{"server": serverLong}))
)

// Actions.
var (
	rebootBody  = allVersions(exactObject(fields{"reboot": exactObject(fields{"type": `{"type": "string", "enum": ["HARD", "Hard", "hard", "SOFT", "Soft", "soft"]}`})}))
	resizeBody  = allVersions(exactObject(fields{"resize": exactObject(fields{"flavorRef": reference, "OS-DCF:diskConfig?": manual})}))
	consoleBody = allVersions(exactObject(fields{"os-getConsoleOutput": exactObject(fields{
		"length?": `{"type": ["integer", "string", "null"], "pattern": "^-?[0-9]+$", "minimum": -1}`, // -1 is all
	})}))
	consoleText = allVersions(exactObject(fields{"output": anything}))
)

// Services and hypervisors.
var (
	serviceQuery  = querySchema(fields{"host": anything, "binary": anything})
	serviceUpdate = allVersions(exactObject(fields{"host": hostText, "binary": upTo255, "disabled_reason?": upTo255}))
	serviceSet    = allVersions(exactObject(fields{"service": exactObject(fields{"host": anything, "binary": anything, "status": turned, "disabled_reason?": anything})}))
	serviceList   = allVersions(exactObject(fields{"services": arrayOf(exactObject(fields{
		"id": integer, "binary": anything, "host": anything, "zone": `{"enum": ["internal", "` + zone + `"]}`, "status": turned, "state": upOrDown,
		"updated_at": noMicros, "disabled_reason": optional,
	}))}))
	hypervisorShort = exactObject(fields{"id": integer, "hypervisor_hostname": anything, "state": upOrDown, "status": turned})
	hypervisorLong  = exactObject(fields{
		"id": integer, "hypervisor_hostname": anything, "state": upOrDown, "status": turned,
		"hypervisor_type": anything, "hypervisor_version": integer, "host_ip": `{"type": "string", "format": "ipv4"}`, "cpu_info": anything,
		"service": exactObject(fields{"id": integer, "host": anything, "disabled_reason": optional}),
		"vcpus":   amount, "memory_mb": amount, "local_gb": amount, "vcpus_used": amount, "memory_mb_used": amount, "local_gb_used": amount,
		"free_ram_mb": integer, "free_disk_gb": integer, "disk_available_least": integer, "current_workload": amount, "running_vms": amount,
	})
)
