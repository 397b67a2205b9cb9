package api_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// addHosts adds hosts with compute services that are up, and a conductor.
func (c *cloud) addHosts(names ...string) {
	c.Helper()
	for _, host := range names {
		if err := c.store.ReportHost(c.Context(), &compute.HostReport{Host: host, IP: "192.0.2.1", Driver: "fake", Resources: compute.Resources{VCPUs: 4, MemoryMiB: 4096, DiskGiB: 40}}, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
			c.Fatal(err)
		}
	}
	if _, err := c.db.ExecContext(c.Context(), `INSERT INTO members (kind, host, id, version, data, disabled, disabled_reason, forced_down, departed, joined_at, seen_at, created_at)
		VALUES (?, 'c1', 'c1', 1, '', FALSE, '', FALSE, FALSE, ?, ?, ?)`, store.ConductorBinary, time.Now().UTC(), time.Now().UTC(), time.Now().UTC()); err != nil {
		c.Fatal(err)
	}
}

// object returns a reply as an object.
func (c *cloud) object(reply string) (out map[string]any) {
	c.Helper()
	if err := json.Unmarshal([]byte(reply), &out); err != nil {
		c.Fatalf("%v: %s", err, reply)
	}
	return out
}

// idOf returns the id of the item in a list whose attribute has the given value.
func (c *cloud) idOf(version, path, list, attribute, value string) string {
	c.Helper()
	items, _ := c.object(c.want(200, version, "admin", "GET", path, ""))[list].([]any)
	for _, i := range items {
		if o, _ := i.(map[string]any); o[attribute] == value {
			return item(o).text("id")
		}
	}
	c.Fatalf("%s at %s has no %s", path, version, value)
	return ""
}

// captureOf returns the body of a reply that was captured from a real Nova.
func captureOf(t *testing.T, name string) any {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "shared", "nova-api", "captures", filepath.FromSlash(name)+".json"))
	if os.IsNotExist(err) {
		t.Skip("shared/nova-api is not beside this tree")
	}
	var out struct{ Response struct{ Body any } }
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Response.Body
}

// TestServiceVersions: before 2.53 the ids of services are numbers, and requests change a service by its names. From 2.53 the ids are UUIDs, and requests
// use them.
func TestServiceVersions(t *testing.T) {
	t.Parallel()
	samplesOf(t, "os-services")
	eachCloud(t, func(c *cloud) {
		c.addHosts("host1", "host2")
		const names = `"host": "host1", "binary": "nova-compute"`
		id := c.idOf("2.53", "/os-services?binary=nova-compute", "services", "host", "host1")
		conductor := c.idOf("2.53", "/os-services", "services", "binary", "nova-conductor")
		if uuid.Validate(id) != nil || id != c.idOf("2.104", "/os-services", "services", "host", "host1") || id == c.idOf("2.53", "/os-services", "services", "host", "host2") {
			c.Errorf("the UUID of the service is %s", id)
		}
		allowed := map[string]string{"services[].disabled_reason": "the sample's service is disabled", "service.disabled_reason": "as in lists"}
		for _, tt := range []struct{ version, method, path, file string }{
			{"2.1", "GET", "", "services-list-get"},
			{"2.11", "GET", "", "v2.11/services-list-get"},
			{"2.53", "GET", "", "v2.53/services-list-get"},
			{"2.1", "PUT", "/disable", "service-disable-put"},
			{"2.1", "PUT", "/disable-log-reason", "service-disable-log-put"},
			{"2.1", "PUT", "/enable", "service-enable-put"},
			{"2.11", "PUT", "/disable", "v2.11/service-disable-put"},
			{"2.11", "PUT", "/disable-log-reason", "v2.11/service-disable-log-put"},
			{"2.11", "PUT", "/enable", "v2.11/service-enable-put"},
			{"2.52", "PUT", "/force-down", "v2.11/service-force-down-put"},
			{"2.53", "PUT", "/" + id, "v2.53/service-disable-put"},
			{"2.53", "PUT", "/" + id, "v2.53/service-disable-log-put"},
			{"2.53", "PUT", "/" + id, "v2.53/service-force-down-put"},
			{"2.53", "PUT", "/" + id, "v2.53/service-enable-put"},
		} {
			request := ""
			if tt.method == "PUT" {
				request = "os-services/" + tt.file + "-req"
			}
			c.compareWith(allowed, tt.version, "admin", tt.method, "/os-services"+tt.path, request, "os-services/"+tt.file+"-resp", 200)
		}
		c.want(200, "2.53", "admin", "PUT", "/os-services/"+id, `{"forced_down": false}`)
		compareSample(c.T, "capture", captureOf(c.T, "2.93/120-os-service-disable"), c.want(200, "2.93", "admin", "PUT", "/os-services/"+id, `{"status": "disabled", "disabled_reason": "cap"}`), nil, map[string]bool{})

		state := func() string {
			for _, i := range c.object(c.want(200, "2.53", "admin", "GET", "/os-services?host=host1", ""))["services"].([]any) { //nolint:forcetypeassert // the reply was compared with the OpenAPI document
				o := item(i.(map[string]any)) //nolint:forcetypeassert // as above
				return o.text("status") + " " + o.text("state") + " " + o.text("forced_down")
			}
			return ""
		}
		for _, tt := range []struct{ version, path, body, want string }{
			{"2.53", "/" + id, `{"status": "enabled", "forced_down": "True"}`, "enabled down true"},
			{"2.53", "/" + strings.ToUpper(id), `{"forced_down": "no"}`, "enabled up false"},
			{"2.53", "/" + id, `{"status": "disabled", "forced_down": false}`, "disabled up false"},
			{"2.11", "/force-down", `{` + names + `, "forced_down": "1"}`, "disabled down true"},
			{"2.52", "/force-down", `{` + names + `, "forced_down": false}`, "disabled up false"},
			{"2.11", "/enable", `{` + names + `, "forced_down": true}`, "enabled up false"}, // as in Nova, the path decides, and not the body
		} {
			c.want(200, tt.version, "admin", "PUT", "/os-services"+tt.path, tt.body)
			if got := state(); got != tt.want {
				c.Errorf("%s %s at %s: %s, want %s", tt.path, tt.body, tt.version, got, tt.want)
			}
		}
		const only = "Updating a nova-conductor service is not supported. Only nova-compute services can be updated."
		for _, tt := range []struct {
			status              int
			version, path, body string
			says                string
		}{
			{400, "2.53", "/" + id, `{}`, "No updates were requested. Fields 'status' or 'forced_down' should be specified."},
			{400, "2.53", "/" + id, `{"disabled_reason": "x"}`, "No updates were requested."},
			{400, "2.53", "/" + id, `{"status": "enabled", "disabled_reason": "x"}`, "Specifying 'disabled_reason' with status 'enabled' is invalid."},
			{400, "2.53", "/" + id, `{"status": "up"}`, "status"},
			{400, "2.53", "/" + id, `{"forced_down": "maybe"}`, "forced_down"},
			{400, "2.53", "/1", `{"status": "enabled"}`, "Invalid uuid 1"},
			{400, "2.53", "/disable", `{"status": "enabled"}`, "Invalid uuid disable"},
			{400, "2.53", "/enable", `{}`, "Invalid uuid enable"},
			{400, "2.104", "/disable-log-reason", `{"status": "disabled", "disabled_reason": "x"}`, "Invalid uuid disable-log-reason"},
			{400, "2.53", "/force-down", `{"forced_down": true}`, "Invalid uuid force-down"},
			{400, "2.53", "/disable", `{` + names + `}`, "Additional properties are not allowed"}, // as in Nova, the body is checked first
			{404, "2.53", "/10000000-0000-4000-8000-000000000000", `{"status": "enabled"}`, "Service 10000000-0000-4000-8000-000000000000 could not be found."},
			{400, "2.53", "/" + conductor, `{"status": "disabled"}`, only},
			{400, "2.1", "/disable", `{"host": "c1", "binary": "nova-conductor"}`, only},
			{400, "2.11", "/force-down", `{"host": "c1", "binary": "nova-conductor", "forced_down": true}`, only},
			{400, "2.11", "/force-down", `{` + names + `}`, "Missing forced_down field"},
			{404, "2.11", "/force-down", `{"host": "h9", "binary": "nova-compute", "forced_down": true}`, "Could not find binary nova-compute on host h9."},
			{400, "2.10", "/enable", `{` + names + `, "forced_down": true}`, "forced_down"},
		} {
			if reply := c.want(tt.status, tt.version, "admin", "PUT", "/os-services"+tt.path, tt.body); !strings.Contains(reply, tt.says) {
				c.Errorf("%s %s: %s, want %s", tt.path, tt.body, reply, tt.says)
			}
		}
		if got := state(); got != "enabled up false" {
			c.Errorf("refused requests have an effect: %s", got)
		}
		c.want(403, "2.53", "member", "PUT", "/os-services/"+id, `{"status": "disabled"}`)
		c.want(403, "2.53", "member", "PUT", "/os-services/disable", `{"status": "disabled"}`)
		c.want(200, "2.74", "admin", "GET", "/os-services?x=1", "")
		c.want(400, "2.75", "admin", "GET", "/os-services?x=1", "")
	})
}

// TestHypervisorVersions: at each version, the replies about hypervisors, their pages and their servers have the form of Nova's samples and captures.
func TestHypervisorVersions(t *testing.T) {
	t.Parallel()
	dir := samplesOf(t, "os-hypervisors")
	eachCloud(t, func(c *cloud) {
		server := c.launched() // the server is on the host n1
		c.addHosts("n1", "fake-mini")
		number := c.idOf("2.1", "/os-hypervisors", "hypervisors", "hypervisor_hostname", "n1")
		id := c.idOf("2.53", "/os-hypervisors", "hypervisors", "hypervisor_hostname", "n1")
		other := c.idOf("2.53", "/os-hypervisors", "hypervisors", "hypervisor_hostname", "fake-mini")
		allowed := map[string]string{}
		for _, at := range []string{"-hypervisor.cpu_info", "-hypervisors[].cpu_info"} {
			for _, name := range []string{"arch", "model", "vendor", "features", "topology"} {
				allowed[at+"."+name] = "no driver reports the processor"
			}
		}
		for _, tt := range []struct{ version, path, file string }{
			{"2.1", "", "hypervisors-list-resp"},
			{"2.1", "/detail", "hypervisors-detail-resp"},
			{"2.1", "/" + number, "hypervisors-show-resp"},
			{"2.1", "/mini/search", "hypervisors-search-resp"},
			{"2.1", "/n1/servers", "hypervisors-with-servers-resp"},
			{"2.1", "/mini/servers", "hypervisors-without-servers-resp"},
			{"2.1", "/statistics", "hypervisors-statistics-resp"},
			{"2.28", "", "v2.28/hypervisors-list-resp"},
			{"2.28", "/mini/search", "v2.28/hypervisors-search-resp"},
			{"2.28", "/n1/servers", "v2.28/hypervisors-with-servers-resp"},
			{"2.28", "/mini/servers", "v2.28/hypervisors-without-servers-resp"},
			{"2.28", "/statistics", "v2.28/hypervisors-statistics-resp"},
			{"2.28", "/detail", "v2.28/hypervisors-detail-resp"},
			{"2.28", "/" + number, "v2.28/hypervisors-show-resp"},
			{"2.33", "?limit=1", "v2.33/hypervisors-list-resp"},
			{"2.33", "/detail?limit=1", "v2.33/hypervisors-detail-resp"},
			{"2.53", "?limit=1", "v2.53/hypervisors-list-resp"},
			{"2.53", "/detail?limit=1", "v2.53/hypervisors-detail-resp"},
			{"2.53", "/" + id, "v2.53/hypervisors-show-resp"},
			{"2.53", "/" + id + "?with_servers=true", "v2.53/hypervisors-show-with-servers-resp"},
			{"2.53", "?hypervisor_hostname_pattern=mini", "v2.53/hypervisors-search-resp"},
			{"2.53", "?hypervisor_hostname_pattern=n1&with_servers=True", "v2.53/hypervisors-with-servers-resp"},
			{"2.53", "?hypervisor_hostname_pattern=mini&with_servers=1", "v2.53/hypervisors-without-servers-resp"},
			{"2.53", "/detail?hypervisor_hostname_pattern=n1&with_servers=true", "v2.53/hypervisors-detail-with-servers-resp"},
			{"2.53", "/statistics", "v2.53/hypervisors-statistics-resp"},
			{"2.88", "?limit=1", "v2.88/hypervisors-list-resp"},
			{"2.88", "/detail?limit=1", "v2.88/hypervisors-detail-resp"},
			{"2.88", "?hypervisor_hostname_pattern=mini", "v2.88/hypervisors-search-resp"},
			{"2.88", "?hypervisor_hostname_pattern=n1&with_servers=True", "v2.88/hypervisors-with-servers-resp"},
			{"2.88", "/" + id, "v2.88/hypervisors-show-resp"},
			{"2.104", "/" + id + "?with_servers=on", "v2.88/hypervisors-show-with-servers-resp"},
			{"2.88", "/detail?hypervisor_hostname_pattern=N1&with_servers=true", "v2.88/hypervisors-detail-with-servers-resp"},
		} {
			want, ok := readSample(c.T, filepath.Join(dir, tt.file+".json"))
			if !ok {
				c.Fatal(tt.file)
			}
			compareSample(c.T, tt.version+" "+tt.path, want, c.want(200, tt.version, "admin", "GET", "/os-hypervisors"+tt.path, ""), allowed, map[string]bool{})
		}
		for version, name := range map[string]string{"2.1": "2.1/110-os-hypervisor-show", "2.93": "2.93/116-os-hypervisor-show"} {
			at := map[string]string{"2.1": number, "2.93": id}[version]
			compareSample(c.T, name, captureOf(c.T, name), c.want(200, version, "admin", "GET", "/os-hypervisors/"+at, ""), nil, map[string]bool{})
		}
		for _, tt := range []struct {
			status              int
			version, path, says string
		}{
			{501, "2.1", "/" + number + "/uptime", `{"notImplemented":{"code":501,"message":"The requested functionality is not supported."}}`}, // capture 111
			{501, "2.53", "/" + id + "/uptime", "The requested functionality is not supported."},
			{404, "2.88", "/" + id + "/uptime", "The resource could not be found."}, // capture 117
			{404, "2.88", "/statistics", ""},
			{404, "2.1", "/99", "Hypervisor with ID '99' could not be found."},
			{404, "2.52", "/" + id, "Hypervisor with ID '" + id + "' could not be found."},
			{400, "2.53", "/" + number, "Invalid uuid " + number},
			{400, "2.53", "/nope/uptime", "Invalid uuid nope"},
			{404, "2.53", "/" + server, "Hypervisor with ID '" + server + "' could not be found."},
			{404, "2.1", "/zz/search", "No hypervisor matching 'zz' could be found."},
			{404, "2.52", "/zz/servers", "No hypervisor matching 'zz' could be found."},
			{404, "2.53", "?hypervisor_hostname_pattern=zz", "No hypervisor matching 'zz' could be found."},
			{400, "2.53", "?hypervisor_hostname_pattern=n1&limit=1", "Paging over hypervisors with the hypervisor_hostname_pattern query parameter is not supported."},
			{400, "2.53", "/detail?hypervisor_hostname_pattern=n1&marker=" + id, "Paging over hypervisors"},
			{400, "2.33", "?marker=99", "marker [99] not found"},
			{400, "2.53", "?marker=" + server, "marker [" + server + "] not found"},
			{400, "2.53", "?with_servers=maybe", "with_servers"},
			{400, "2.53", "/" + id + "?with_servers=maybe", "with_servers"},
			{400, "2.53", "?x=1", "x"},
			{200, "2.52", "?x=1&with_servers=maybe", ""},
			{404, "2.53", "/n1/search", ""},
		} {
			if reply := c.want(tt.status, tt.version, "admin", "GET", "/os-hypervisors"+tt.path, ""); !strings.Contains(reply, tt.says) {
				c.Errorf("%s at %s: %s, want %s", tt.path, tt.version, reply, tt.says)
			}
		}
		for _, tt := range []struct{ version, marker string }{{"2.33", number}, {"2.53", id}} {
			reply := c.object(c.want(200, tt.version, "admin", "GET", "/os-hypervisors?limit=1&marker="+tt.marker, ""))
			list, _ := reply["hypervisors"].([]any)
			if len(list) != 1 || !strings.Contains(toJSON(c.T, list), `"fake-mini"`) || !strings.Contains(toJSON(c.T, reply["hypervisors_links"]), "marker=") {
				c.Errorf("the second page at %s: %v", tt.version, reply)
			}
		}
		has := func(version, host, more string, want bool) {
			c.Helper()
			if reply := c.want(200, version, "admin", "GET", "/os-hypervisors/"+host+more, ""); strings.Contains(reply, `"servers":`) != want {
				c.Errorf("%s%s at %s: %s", host, more, version, reply)
			}
		}
		has("2.53", id, "", false)
		has("2.53", id, "?with_servers=false", false)
		has("2.53", other, "?with_servers=true", false) // an empty list is shown since 2.75
		has("2.75", other, "?with_servers=true", true)
		if reply := c.want(200, "2.88", "admin", "GET", "/os-hypervisors/"+id+"?with_servers=1", ""); !strings.Contains(reply, `"servers":[{"name":"instance-`+server+`","uuid":"`+server+`"}]`) {
			c.Error(reply)
		}
		if err := c.store.ForceDown(c.Context(), store.ComputeBinary, "n1", true); err != nil {
			c.Fatal(err)
		}
		if reply := c.want(400, "2.1", "admin", "GET", "/os-hypervisors/"+number+"/uptime", ""); !strings.Contains(reply, "Compute service of n1 is unavailable at this time.") {
			c.Error(reply)
		}
		if err := c.store.SetDisabled(c.Context(), store.ComputeBinary, "n1", true, "x"); err != nil {
			c.Fatal(err)
		}
		if reply := c.want(200, "2.1", "admin", "GET", "/os-hypervisors/statistics", ""); !strings.Contains(reply, `"count":1,"vcpus":4,`) { // disabled hypervisors do not count
			c.Error(reply)
		}
		for _, path := range []string{"", "/detail", "/" + number, "/statistics", "/n1/search", "/n1/servers", "/" + number + "/uptime"} {
			c.want(403, "2.1", "member", "GET", "/os-hypervisors"+path, "")
		}
	})
}
