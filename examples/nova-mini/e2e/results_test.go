package e2e_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"
)

// plainCommands are the commands of docs/openstack-client.md that look like commands with a result, but do not print JSON, with the reason.
var plainCommands = map[string]string{
	"keypair create demo": "prints the private key", "console log show first": "prints the log", "console log show --lines 2 first": "prints the log", "server dump create first": "prints nothing",
	"server restore $(openstack server list --deleted --status SOFT_DELETED -f value -c ID)": "prints nothing",
}

// tableWants has a part of the output for some commands of the first table of docs/openstack-client.md. compareResult compares all results with the API.
var tableWants = map[string]string{
	"flavor list": "m1.tiny", "flavor show small": `"hw:cpu_policy": "shared"`, "flavor show small -f json": `"vcpus": 1`, "image list": "cirros",
	"keypair create demo": "BEGIN RSA PRIVATE KEY", "server show one": "cirros", "console log show first": "login:", "console log show --lines 2 first": "login:", "server event list first": "unrescue",
	"server group show apart": `"max_server_per_host": 2`, "hypervisor list": "node-1", "compute service list": "nova-conductor", "limits show --absolute": "maxTotalInstances",
	"server show -c id -c description -c tags -c properties first": "the first one", "availability zone list --compute": "nova",
}

// otherService is the effect of a command that changes only another service: the test checks nothing.
var otherService = []string{}

// effects says what the API has after a command without a result: a path, and parts of the reply. A part that begins with ! must not be in the reply. {one} stands for
// the id of the server one.
var effects = map[string][]string{
	"flavor set --property hw:mem_page_size=small small":                          {"flavors/detail", `"hw:mem_page_size":"small"`},
	"flavor unset --property hw:mem_page_size small":                              {"flavors/detail", `"small"`, "!hw:mem_page_size"},
	"server set --property rack=7 --name first one":                               {"servers/{first}", `"metadata":{"rack":"7"}`},
	"server set --description 'the first one' --tag red --property shelf=8 first": {"servers/{first}", `"description":"the first one"`, `"tags":["red"]`, `"metadata":{"rack":"7","shelf":"8"}`},
	"server unset --description --tag red --property shelf first":                 {"servers/{first}", "!the first one", `"tags":[]`, `"metadata":{"rack":"7"}`},
	"server set --password secret first":                                          {"servers/{first}/os-instance-actions", `"action":"changePassword"`},
	"server set --state error first":                                              {"servers/{first}", `"status":"ERROR"`},
	"server set --state active first":                                             {"servers/{first}", `"status":"ACTIVE"`},
	"server stop one":                                                             {"servers/{one}", `"status":"SHUTOFF"`},
	"server stop first":                                                           {"servers/{first}", `"status":"SHUTOFF"`},
	"server start first":                                                          {"servers/{first}", `"status":"ACTIVE"`},
	"server reboot --wait first":                                                  {"servers/{first}/os-instance-actions", `"action":"reboot"`},
	"server pause first":                                                          {"servers/{first}", `"status":"PAUSED"`},
	"server unpause first":                                                        {"servers/{first}", `"status":"ACTIVE"`},
	"server suspend first":                                                        {"servers/{first}", `"status":"SUSPENDED"`},
	"server resume first":                                                         {"servers/{first}", `"status":"ACTIVE"`},
	"server lock first":                                                           {"servers/{first}", `"locked":true`},
	"server unlock first":                                                         {"servers/{first}", `"locked":false`},
	"server lock second":                                                          {"servers/{second}", `"locked":true`},
	"server rescue first":                                                         {"servers/{first}", `"status":"RESCUE"`},
	"server unrescue first":                                                       {"servers/{first}", `"status":"ACTIVE"`},
	"server dump create first":                                                    {"servers/{first}/os-instance-actions", `"action":"trigger_crash_dump"`},
	"server resize --flavor m1.small --wait first":                                {"servers/{first}", `"status":"VERIFY_RESIZE"`},
	"server resize confirm first":                                                 {"servers/{first}", `"status":"ACTIVE"`, `"original_name":"m1.small"`},
	"server resize --flavor m1.medium --wait first":                               {"servers/{first}", `"status":"VERIFY_RESIZE"`},
	"server resize revert first":                                                  {"servers/{first}", `"status":"ACTIVE"`, `"original_name":"m1.small"`},
	"server shelve first":                                                         {"servers/{first}", `"status":"SHELVED_OFFLOADED"`},
	"server unshelve first":                                                       {"servers/{first}", `"status":"ACTIVE"`},
	"server delete --wait first":                                                  {"servers", `!"first"`},
	"server delete --force --wait second third":                                   {"servers", `!"second"`, `!"third"`},
	"server delete --wait one two":                                                {"servers", `!"one"`, `!"two"`},
	"server delete --wait full many-1 many-2 many-3":                              {"servers", `!"full"`, `!"many-1"`, `!"many-2"`, `!"many-3"`},
	"server delete kept":                                                          {"servers/detail?deleted=true&status=SOFT_DELETED", `"kept"`},
	"server restore $(openstack server list --deleted --status SOFT_DELETED -f value -c ID)": {"servers/{kept}", `"status":"ACTIVE"`},
	"server delete --force --wait kept":  {"servers?deleted=true&status=SOFT_DELETED", `"servers":[]`},
	"server delete --wait two":           {"servers", `!"two"`},
	"server delete --wait one":           {"servers", `!"one"`},
	"server group delete apart":          {"os-server-groups", `!"apart"`},
	"keypair delete demo mine":           {"os-keypairs", `!"demo"`, `!"mine"`},
	"flavor delete small":                {"flavors", `!"small"`},
	"flavor delete hidden":               {"flavors?is_public=None", `!"hidden"`},
	"flavor set --project p hidden":      {"flavors/{hidden}/os-flavor-access", `"{p}"`, `"{demo}"`},
	"flavor unset --project demo hidden": {"flavors/{hidden}/os-flavor-access", `"{p}"`, `!"{demo}"`},
	"compute service set --disable --disable-reason work node-1 nova-compute": {"os-services?host=node-1", `"status":"disabled"`, `"disabled_reason":"work"`},
	"compute service set --enable node-1 nova-compute":                        {"os-services?host=node-1", `"status":"enabled"`},
	"compute service set --down node-1 nova-compute":                          {"os-services?host=node-1", `"forced_down":true`},
	"compute service set --up node-1 nova-compute":                            {"os-services?host=node-1", `"forced_down":false`},
	"server add port two spare":                                               {"servers/{two}/os-interface", `"port_id":"{spare}"`},
	"server remove port two spare":                                            {"servers/{two}/os-interface", `"interfaceAttachments":[]`},
	"server add network two private":                                          {"servers/{two}/os-interface", `"net_id":"{private}"`},
	"server remove network two private":                                       {"servers/{two}/os-interface", `"interfaceAttachments":[]`},
	"server add security group one web":                                       {"servers/{one}", `"security_groups":[{"name":"default"},{"name":"web"}]`},
	"server remove security group one web":                                    {"servers/{one}", `"security_groups":[{"name":"default"}]`},
	"port delete spare":                                                       otherService,
	"security group delete web":                                               otherService,
	"network delete private":                                                  otherService,
	"image delete snap daily":                                                 otherService,
}

// checkEffect fails the test if the API does not have what a command should have changed.
func (m *member) checkEffect(command string) {
	m.Helper()
	effect := effects[command]
	if effect == nil && plainCommands[command] == "" {
		m.Errorf("the test does not know the effect of %q", command)
	}
	if len(effect) == 0 {
		return
	}
	m.allIdle()
	fill := func(text string) string {
		return regexp.MustCompile(`\{\w+\}`).ReplaceAllStringFunc(text, func(name string) string { return m.idNamed(strings.Trim(name, "{}")) })
	}
	reply := compactJSON(m.shown(fill(effect[0])))
	for _, part := range effect[1:] {
		part, absent := strings.CutPrefix(part, "!")
		if strings.Contains(reply, fill(part)) == absent {
			m.Errorf("%s: the API has %s; in the reply: %s, want %v", command, reply, part, !absent)
		}
	}
}

// compactJSON returns a value as JSON without spaces.
func compactJSON(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

// object returns a value of a reply of the API, or of a printed result, that is an object.
func object(v any) map[string]any {
	o, _ := v.(map[string]any)
	return o
}

// listOf returns a value that is a list.
func listOf(v any) []any {
	l, _ := v.([]any)
	return l
}

// shown returns a part of a reply of the API, at the microversion of the commands.
func (m *member) shown(path string, names ...string) any {
	m.Helper()
	return m.shownAt(commandVersion, path, names...)
}

// shownAt is like shown, with a microversion.
func (m *member) shownAt(version, path string, names ...string) any {
	m.Helper()
	c := m.at(version)
	var reply any
	resp, err := c.Get(m.Context(), c.ServiceURL(path), &reply, nil)
	m.must(err)
	_ = resp.Body.Close()
	for _, name := range names {
		reply = object(reply)[name]
	}
	return reply
}

// idNamed returns the id of a project, a user, a server, a flavor, a network or a port.
func (m *member) idNamed(name string) string {
	m.Helper()
	if id := m.ids[name]; id != "" {
		return id
	}
	for _, of := range [][2]string{{"servers/detail", "servers"}, {"flavors?is_public=None", "flavors"}} {
		for _, one := range listOf(m.shown(of[0], of[1])) {
			if one := object(one); one["name"] == name {
				return fmt.Sprint(one["id"])
			}
		}
	}
	m.Fatalf("no object has the name %s", name)
	return ""
}

// shownBy says where the API has what commands print: the path, and the name of the list in the reply. The keys are the beginnings of the commands.
var shownBy = map[string][2]string{
	"flavor ": {"flavors/detail?is_public=None", "flavors"}, "server ": {"servers/detail", "servers"}, "server group ": {"os-server-groups", "server_groups"}, "keypair ": {"os-keypairs", "keypairs"},
	"compute service ": {"os-services", "services"}, "hypervisor list": {"os-hypervisors/detail", "hypervisors"},
}

const (
	createFull = "server create --image cirros --flavor m1.tiny --network none --property rack=7 --user-data ~/setup.sh --use-config-drive --availability-zone nova --password secret --wait full"
	createMany = "server create --image cirros --flavor m1.tiny --network none --min 2 --max 3 --wait many"
)

// special are the commands whose results compareResult does not find by shownBy. The keys are the beginnings of the commands.
var special = map[string]func(m *member, command string, rows []map[string]any){
	"limits show --absolute":  (*member).compareLimits,
	"hypervisor stats show":   (*member).compareStatistics,
	"usage list":              (*member).compareUsage,
	"usage show":              (*member).compareUsage,
	"image list":              (*member).compareImages,
	"server image create ":    (*member).compareSnapshot,
	"server backup create ":   (*member).compareSnapshot,
	"server list":             (*member).compareServers,
	"server volume list ":     (*member).compareVolumes,
	"server event list ":      (*member).compareEvents,
	"server event show ":      (*member).compareEvent,
	"server rebuild ":         (*member).compareRebuild,
	"server add fixed ip ":    (*member).compareAddress,
	"availability zone list ": (*member).compareZones,
	"console url show ":       (*member).compareConsole,
	"versions show":           (*member).compareVersions,
	createFull:                (*member).compareFull,
	createMany:                (*member).compareMany,
	"network create ":         (*member).keepID,
	"subnet create ":          (*member).keepID,
	"port create ":            (*member).keepID,
	"security group create ":  (*member).keepID,
}

// compareResult compares the JSON that a command has printed with what the API shows.
func (m *member) compareResult(command string, result any) {
	m.Helper()
	printed, isList := result.([]any)
	if !isList {
		printed = []any{result}
	}
	var rows []map[string]any
	for _, one := range printed {
		rows = append(rows, printedRow(one))
	}
	if len(rows) == 0 && !strings.HasPrefix(command, "server volume list ") { // nova-mini has no volumes
		m.Errorf("%s printed nothing", command)
		return
	}
	if begin := longestPrefix(maps.Keys(special), command); begin != "" {
		special[begin](m, command, rows)
		return
	}
	begin := longestPrefix(maps.Keys(shownBy), command)
	if begin == "" {
		m.Fatalf("the test does not know where the API has the result of %q: %v", command, result)
	}
	m.compareRows(command, rows, listOf(m.shown(shownBy[begin][0], shownBy[begin][1])), isList)
}

// longestPrefix returns the longest of the texts with which a command begins, or "".
func longestPrefix(texts func(yield func(string) bool), command string) (out string) {
	for one := range texts {
		if strings.HasPrefix(command, one) && len(one) > len(out) {
			out = one
		}
	}
	return out
}

// compareLimits compares the limits. Without Keystone, the command also asks nova-mini as the volume service, without a microversion.
func (m *member) compareLimits(command string, rows []map[string]any) {
	all := []map[string]any{object(m.shown("limits", "limits", "absolute"))}
	if m.ks == nil {
		all = append(all, object(m.shownAt("2.1", "limits", "limits", "absolute")))
	}
	var want, got []string
	for _, limits := range all {
		for name, v := range limits {
			want = append(want, fmt.Sprint(name, " ", v))
		}
	}
	for _, row := range rows {
		got = append(got, fmt.Sprint(row["name"], " ", row["value"]))
	}
	slices.Sort(want)
	if slices.Sort(got); !slices.Equal(got, want) {
		m.Errorf("%s: %q, the API has %q", command, got, want)
	}
}

func (m *member) compareStatistics(command string, rows []map[string]any) {
	for name, v := range object(m.shown("os-hypervisors/statistics", "hypervisor_statistics")) {
		if got := rows[0][name]; fmt.Sprint(got) != fmt.Sprint(v) {
			m.Errorf("%s: %s = %v, the API has %v", command, name, got, v)
		}
	}
}

// compareUsage compares the servers of a usage. The hours grow in the meantime: those that the command has printed are at most those of the API.
func (m *member) compareUsage(command string, rows []map[string]any) {
	end := time.Now().UTC().Add(time.Hour)
	times := fmt.Sprintf("start=%s&end=%s", end.Add(-48*time.Hour).Format("2006-01-02T15:04:05"), end.Format("2006-01-02T15:04:05"))
	var used []any
	if strings.HasPrefix(command, "usage show") {
		used = []any{m.shown("os-simple-tenant-usage/"+m.ids["p"]+"?"+times, "tenant_usage")}
	} else {
		used = listOf(m.shown("os-simple-tenant-usage?detailed=1&"+times, "tenant_usages"))
	}
	if len(rows) != len(used) {
		m.Fatalf("%s: %v, the API has %v", command, rows, used)
	}
	for _, of := range used {
		of := object(of)
		id := of["tenant_id"]
		i := slices.IndexFunc(rows, func(row map[string]any) bool { return row["project"] == id || m.ids[fmt.Sprint(row["project"])] == id })
		if i < 0 {
			m.Errorf("%s: %v, the API has %v", command, rows, of)
			continue
		}
		names := func(list any) (out []string) {
			for _, s := range listOf(list) {
				out = append(out, fmt.Sprint(object(s)["instance_id"]))
			}
			slices.Sort(out)
			return out
		}
		if printed, shown := names(rows[i]["servers"]), names(of["server_usages"]); len(shown) == 0 || !slices.Equal(printed, shown) {
			m.Errorf("%s: %v, the API has %v", command, rows[i], of)
		}
		for column, field := range map[string]string{"cpu_hours": "total_vcpus_usage", "ram_mb-hours": "total_memory_mb_usage", "disk_gb-hours": "total_local_gb_usage"} {
			hours, err := strconv.ParseFloat(fmt.Sprint(rows[i][column]), 64)
			if most, e := strconv.ParseFloat(fmt.Sprint(of[field]), 64); err != nil || e != nil || hours <= 0 || hours > most+0.01 {
				m.Errorf("%s: %s = %v, the API has %v", command, column, rows[i][column], of[field])
			}
		}
	}
}

func (m *member) compareImages(command string, rows []map[string]any) {
	var ids []string
	for _, row := range rows {
		ids = append(ids, fmt.Sprint(row["id"]))
		if m.glance != nil && row["status"] != "active" || row["name"] != "cirros" && row["name"] != "other" {
			m.Errorf("%s: %v", command, row)
		}
	}
	slices.Sort(ids)
	if want := slices.Sorted(slices.Values(m.images)); !slices.Equal(ids, want) {
		m.Errorf("%s: the ids %v, want %v", command, ids, want)
	}
}

// compareSnapshot compares an image of a server with the one of the image service.
func (m *member) compareSnapshot(command string, rows []map[string]any) {
	image, err := images.Get(m.Context(), m.glance, fmt.Sprint(rows[0]["id"])).Extract()
	m.must(err)
	server := command[strings.LastIndex(command, " ")+1:]
	if image.Name != rows[0]["name"] || image.Status != images.ImageStatusActive || !strings.Contains(command, "--name "+image.Name) || image.Properties["instance_uuid"] != m.idNamed(server) {
		m.Errorf("%s: %v, the image service has %+v", command, rows[0], image)
	}
}

func (m *member) compareEvents(command string, rows []map[string]any) {
	id := m.idNamed(command[strings.LastIndex(command, " ")+1:])
	m.compareRows(command, rows, listOf(m.shown("servers/"+id+"/os-instance-actions", "instanceActions")), true)
}

func (m *member) compareEvent(command string, rows []map[string]any) {
	row := rows[0]
	of := object(m.shown(fmt.Sprintf("servers/%s/os-instance-actions/%s", m.idNamed("first"), row["request_id"]), "instanceAction"))
	for _, name := range []string{"action", "instance_uuid", "message", "project_id", "request_id", "start_time", "user_id", "events"} {
		if v, ok := of[name]; !ok || compactJSON(row[name]) != compactJSON(v) {
			m.Errorf("%s: %s = %s, the API has %s", command, name, compactJSON(row[name]), compactJSON(v))
		}
	}
}

// compareVolumes: a server has no volumes.
func (m *member) compareVolumes(command string, rows []map[string]any) {
	id := m.idNamed(command[strings.LastIndex(command, " ")+1:])
	if shown := listOf(m.shown("servers/"+id+"/os-volume_attachments", "volumeAttachments")); len(rows) > 0 || len(shown) > 0 {
		m.Errorf("%s: %v, the API has %v", command, rows, shown)
	}
}

// compareFull compares a new server with each option of its command. Only the reply to the creation has the password.
func (m *member) compareFull(command string, rows []map[string]any) {
	list := listOf(m.shown("servers/detail?name=^full$", "servers"))
	m.compareRows(command, rows, list, true)
	if len(list) != 1 {
		return
	}
	of := object(list[0])
	data, err := base64.StdEncoding.DecodeString(fmt.Sprint(of["OS-EXT-SRV-ATTR:user_data"]))
	if err != nil || string(data) != setupScript || compactJSON(of["metadata"]) != `{"rack":"7"}` || of["config_drive"] != "True" || of["OS-EXT-AZ:availability_zone"] != "nova" || rows[0]["adminpass"] != "secret" {
		m.Errorf("%s: %v, the API has %v", command, rows[0], of)
	}
}

// compareMany: the command prints the first of three servers that one request has created.
func (m *member) compareMany(command string, rows []map[string]any) {
	list := listOf(m.shown("servers/detail?name=^many-[1-3]$", "servers"))
	m.compareRows(command, rows, list, false)
	for _, one := range list {
		if of := object(list[0])["OS-EXT-SRV-ATTR:reservation_id"]; of == "" || object(one)["OS-EXT-SRV-ATTR:reservation_id"] != of {
			m.Errorf("%s: the reservation of %v is not %v", command, one, of)
		}
	}
	if len(list) != 3 || rows[0]["name"] != "many-1" {
		m.Errorf("%s: %v, the API has %v", command, rows[0], list)
	}
}

// compareRebuild: the command prints the server as it was before the wait.
func (m *member) compareRebuild(command string, rows []map[string]any) {
	if row := rows[0]; row["status"] != "REBUILD" || row["id"] != m.idNamed(fmt.Sprint(row["name"])) {
		m.Errorf("%s: %v", command, row)
	}
}

func (m *member) compareAddress(command string, rows []map[string]any) {
	row := rows[0]
	for _, one := range listOf(m.shown("servers/"+fmt.Sprint(row["server_id"])+"/os-interface", "interfaceAttachments")) {
		one := object(one)
		if one["port_id"] == row["port_id"] && one["net_id"] == row["network_id"] && one["mac_addr"] == row["mac_address"] && reflect.DeepEqual(one["fixed_ips"], row["fixed_ips"]) {
			return
		}
	}
	m.Errorf("%s: the API does not have %v", command, row)
}

// compareZones compares the zones, and with --long their services.
func (m *member) compareZones(command string, rows []map[string]any) {
	var want, got []string
	for _, zone := range listOf(m.shown("os-availability-zone/detail", "availabilityZoneInfo")) {
		zone := object(zone)
		status := map[bool]string{true: "available", false: "not available"}[object(zone["zoneState"])["available"] == true]
		if !strings.Contains(command, "--long") {
			want = append(want, fmt.Sprint(zone["zoneName"], " ", status))
			continue
		}
		for host, services := range object(zone["hosts"]) {
			for service, of := range object(services) {
				if object(of)["available"] != true || object(of)["active"] != true {
					m.Errorf("%s: the service %s of %s is %v", command, service, host, of)
				}
				want = append(want, fmt.Sprint(zone["zoneName"], " ", status, " ", host, " ", service, " enabled :-)"))
			}
		}
	}
	for _, row := range rows {
		text := fmt.Sprint(row["zone_name"], " ", row["zone_status"])
		if strings.Contains(command, "--long") {
			status, _, _ := strings.Cut(fmt.Sprint(row["service_status"]), ") ")
			text += fmt.Sprint(" ", row["host_name"], " ", row["service_name"], " ", status, ")")
		}
		got = append(got, text)
	}
	slices.Sort(want)
	if slices.Sort(got); !slices.Equal(got, want) {
		m.Errorf("%s: %q, the API has %q", command, got, want)
	}
}

func (m *member) compareConsole(command string, rows []map[string]any) {
	row := rows[0]
	u, err := url.Parse(fmt.Sprint(row["url"]))
	if err != nil || row["protocol"] != "vnc" || row["type"] != "novnc" || !strings.HasPrefix(u.Query().Get("path"), "?token=") {
		m.Errorf("%s: %v, %v", command, row, err)
	}
}

// compareVersions compares the versions of the compute API. Other services may have more rows.
func (m *member) compareVersions(command string, rows []map[string]any) {
	c := m.at(commandVersion)
	var reply any
	resp, err := c.Get(m.Context(), m.compute+"/", &reply, nil)
	m.must(err)
	_ = resp.Body.Close()
	var want, got []string
	for _, v := range listOf(object(reply)["versions"]) {
		v := object(v)
		want = append(want, fmt.Sprint(strings.TrimPrefix(fmt.Sprint(v["id"]), "v"), v["status"], v["min_version"], v["version"]))
	}
	for _, row := range rows {
		if row["service_type"] != "compute" {
			continue
		}
		microversion := func(column string) any {
			if row[column] == nil {
				return ""
			}
			return row[column]
		}
		got = append(got, fmt.Sprint(row["version"], row["status"], microversion("min_microversion"), microversion("max_microversion")))
	}
	if len(want) == 0 || !slices.Equal(got, want) {
		m.Errorf("%s: %q, the API has %q", command, got, want)
	}
}

// keepID keeps the id of an object that another service has made, for later commands.
func (m *member) keepID(command string, rows []map[string]any) {
	name, id := fmt.Sprint(rows[0]["name"]), fmt.Sprint(rows[0]["id"])
	if len(id) != 36 || !strings.Contains(command, name) {
		m.Errorf("%s: %v", command, rows[0])
	}
	m.ids[name] = id
}

// printedRow returns a result of a command with the names of the API, such as hypervisor_hostname for Hypervisor Hostname.
func printedRow(v any) map[string]any {
	out := map[string]any{}
	for name, v := range object(v) {
		out[strings.ReplaceAll(strings.ToLower(name), " ", "_")] = v
	}
	return out
}

// comparedFields are the fields of the API that commands print with the same value. A command must print the first three, as far as an object has them.
var comparedFields = strings.Fields("id name status ram vcpus disk binary host zone state hypervisor_hostname fingerprint type policy action request_id user_id project_id key_name " +
	"description tags locked message start_time server_groups host_status config_drive")

// compareRows compares the rows that a command has printed with the objects that the API shows. If whole is set, each object has a row.
func (m *member) compareRows(command string, rows []map[string]any, objects []any, whole bool) {
	m.Helper()
	if whole && len(rows) != len(objects) {
		m.Errorf("%s: %d rows, the API has %d objects", command, len(rows), len(objects))
	}
	for _, row := range rows {
		var of map[string]any
		for _, key := range []string{"id", "request_id", "name"} { // names of deleted servers may be used again
			for _, o := range objects {
				o := object(o)
				if pair := object(o["keypair"]); pair != nil { // a list of key pairs has them in objects
					o = pair
				}
				if v, ok := o[key]; ok && of == nil && row[key] == v {
					of = o
				}
			}
		}
		if of == nil {
			m.Errorf("%s: the API does not have %v", command, row)
			continue
		}
		for i, name := range comparedFields {
			v, shown := of[name]
			printed, ok := row[name]
			must := i < 3 && !strings.Contains(command, " -c ") && (name != "status" || command != "hypervisor list") // this list has no status
			if shown && (ok || must) && compactJSON(printed) != compactJSON(v) && fmt.Sprint(printed) != fmt.Sprint(v) {
				m.Errorf("%s: %s = %v, the API has %v", command, name, printed, v)
			}
		}
		m.compareServer(command, row, of)
	}
}

// compareServer compares what a command prints of a server in another form than the API.
func (m *member) compareServer(command string, row, of map[string]any) {
	m.Helper()
	if _, ok := of["OS-EXT-STS:vm_state"]; !ok {
		return // the object is not a server
	}
	addresses := map[string]any{}
	for network, list := range object(of["addresses"]) {
		var all []any
		for _, one := range listOf(list) {
			all = append(all, object(one)["addr"])
		}
		addresses[network] = all
	}
	flavor, image := object(of["flavor"]), object(of["image"])
	for column, v := range map[string]any{
		"networks": addresses, "addresses": addresses, "properties": of["metadata"], "task_state": of["OS-EXT-STS:task_state"], "power_state": of["OS-EXT-STS:power_state"],
		"availability_zone": of["OS-EXT-AZ:availability_zone"], "host": of["OS-EXT-SRV-ATTR:host"], "image_id": image["id"], "security_groups": of["security_groups"],
		"os-ext-sts:vm_state": of["OS-EXT-STS:vm_state"], "os-ext-sts:task_state": of["OS-EXT-STS:task_state"], "os-ext-srv-attr:host": of["OS-EXT-SRV-ATTR:host"], "os-dcf:diskconfig": of["OS-DCF:diskConfig"],
	} {
		if column == "security_groups" && strings.HasPrefix(command, "server create ") {
			continue // the command also prints what only the reply to the creation has
		}
		if printed, ok := row[column]; ok && compactJSON(printed) != compactJSON(v) {
			m.Errorf("%s: %s = %v, the API has %v", command, column, printed, v)
		}
	}
	if printed, ok := row["flavor"]; ok && printed != flavor["original_name"] && object(printed)["original_name"] != flavor["original_name"] {
		m.Errorf("%s: the flavor is %v, the API has %v", command, printed, flavor)
	}
	if name, ok := row["image_name"]; ok && m.imageNamed(fmt.Sprint(name)) != image["id"] {
		m.Errorf("%s: the image is %v, the API has %v", command, name, image)
	}
}

// imageNamed returns the id of an image of the test.
func (m *member) imageNamed(name string) string {
	return map[string]string{"cirros": m.images[0], "other": m.images[len(m.images)-1]}[name]
}
