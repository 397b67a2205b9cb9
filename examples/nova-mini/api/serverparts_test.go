package api_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// step is a request about a server, and the expected reply.
type step struct {
	version, who, method, path, body string
	status                           int
	has                              string
}

// walk sends requests about a server, one after the other, and checks the replies.
func (c *cloud) walk(id string, steps []step) {
	c.Helper()
	for _, s := range steps {
		status, reply := c.askAt(s.version, s.who, s.method, "/servers/"+id+s.path, s.body)
		if has := strings.ReplaceAll(s.has, "ID", id); status != s.status || !strings.Contains(reply, has) {
			c.Errorf("%s %s: %s %s %.200s = %d %s; want %d %s", s.version, s.who, s.method, s.path, s.body, status, reply, s.status, has)
		}
	}
}

// launched creates an active server as the client "member", and returns the server's id.
func (c *cloud) launched() string {
	c.Helper()
	id := c.made("2.1", `{"server": {"name": "one", "flavorRef": "1", "imageRef": "70a599e0-31e7-49b7-b260-868f441e862b", "metadata": {"k": "v"}}}`).Server.ID
	c.launch(id, "n1")
	return id
}

// TestUpdateServer: PUT changes the given fields of a server, and no other field. Before 2.75, the reply has only some fields of the server.
func TestUpdateServer(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		id := c.launched()
		const gone = "Instance ID could not be found."
		c.walk(id, []step{
			{"2.1", "member", "PUT", "", `{"server": {"name": "two", "accessIPv4": "1.2.3.4"}}`, 200, `"name":"two"`},
			{"2.1", "member", "PUT", "", `{"server": {}}`, 200, `"accessIPv4":"1.2.3.4"`},
			{"2.1", "member", "PUT", "", `{}`, 400, "'server' is a required property"},
			{"2.1", "member", "PUT", "", `{"server": {"description": "x"}}`, 400, "'description' was unexpected"},
			{"2.19", "member", "PUT", "", `{"server": {"description": "x"}}`, 200, `"description":"x"`},
			{"2.19", "member", "PUT", "", `{"server": {"OS-DCF:diskConfig": "AUTO", "accessIPv6": "FE80::0001"}}`, 200, `"description":"x"`},
			{"2.19", "member", "PUT", "", `{"server": {"description": null}}`, 200, `"description":null`},
			{"2.19", "member", "PUT", "", `{"server": {"description": "a\tb"}}`, 400, "does not match"},
			{"2.19", "member", "GET", "", "", 200, `"accessIPv6":"fe80::1"`},
			{"2.19", "member", "GET", "", "", 200, `"OS-DCF:diskConfig":"AUTO"`},
			{"2.19", "member", "PUT", "", `{"server": {"name": " x"}}`, 400, "The name must be: printable characters."},
			{"2.19", "member", "PUT", "", `{"server": {"name": null}}`, 400, "None is not of type 'string'"},
			{"2.89", "member", "PUT", "", `{"server": {"hostname": "web"}}`, 400, "'hostname' was unexpected"},
			{"2.90", "member", "PUT", "", `{"server": {"hostname": "web"}}`, 200, `"OS-EXT-SRV-ATTR:hostname":"web"`},
			{"2.90", "member", "PUT", "", `{"server": {"hostname": "web.x"}}`, 400, "does not match"},
			{"2.94", "member", "PUT", "", `{"server": {"hostname": "web.x"}}`, 200, `"OS-EXT-SRV-ATTR:hostname":"web.x"`},
			{"2.103", "member", "PUT", "", `{"server": {"pinned_availability_zone": null}}`, 400, "'pinned_availability_zone' was unexpected"},
			{"2.104", "member", "PUT", "", `{"server": {"pinned_availability_zone": "other"}}`, 409, "Server can only be pinned to its current availability zone 'nova', but 'other' was requested."},
			{"2.104", "member", "PUT", "", `{"server": {"pinned_availability_zone": "nova"}}`, 200, `"pinned_availability_zone":"nova"`},
			{"2.104", "member", "PUT", "", `{"server": {"pinned_availability_zone": "nova"}}`, 200, `"pinned_availability_zone":"nova"`},
			{"2.104", "member", "PUT", "", `{"server": {"pinned_availability_zone": "other"}}`, 409, "Cannot change pinned availability zone directly. Unpin first by setting pinned_availability_zone to null."},
			{"2.104", "member", "PUT", "", `{"server": {"pinned_availability_zone": null}}`, 200, `"pinned_availability_zone":null`},
			{"2.1", "stranger", "PUT", "", `{"server": {"name": "mine"}}`, 404, gone},
			{"2.1", "admin", "PUT", "", `{"server": {"name": "three"}}`, 200, `"name":"three"`},
		})
		for version, wants := range map[string]bool{"2.1": false, "2.74": false, "2.75": true} {
			_, reply := c.askAt(version, "admin", "PUT", "/servers/"+id, `{"server": {}}`)
			for _, name := range []string{"OS-EXT-STS:vm_state", "OS-EXT-SRV-ATTR:host", "key_name", "config_drive", "OS-SRV-USG:launched_at"} {
				if strings.Contains(reply, `"`+name+`"`) != wants {
					c.Errorf("%s: %s is in the reply: %t: %s", version, name, !wants, reply)
				}
			}
		}
		if status, reply := c.ask("member", "PUT", "/servers/none", `{"server": {}}`); status != 404 || !strings.Contains(reply, "Instance none could not be found.") {
			c.Errorf("%d %s", status, reply)
		}
	})
}

// TestServerMetadata: requests read and change the metadata of a server as in Nova.
func TestServerMetadata(t *testing.T) {
	t.Parallel()
	eachCloudLimited(t, store.Limits{store.Metadata: 128}, func(c *cloud) {
		id := c.launched()
		many := func(n int) string {
			var items []string
			for i := range n {
				items = append(items, fmt.Sprintf(`"k%d": "v"`, i))
			}
			return `{"metadata": {` + strings.Join(items, ", ") + `}}`
		}
		c.walk(id, []step{
			{"2.1", "member", "GET", "/metadata", "", 200, `{"metadata":{"k":"v"}}`},
			{"2.1", "member", "POST", "/metadata", `{"metadata": {"a": "b"}}`, 200, `{"metadata":{"a":"b","k":"v"}}`},
			{"2.1", "member", "GET", "/metadata/a", "", 200, `{"meta":{"a":"b"}}`},
			{"2.1", "member", "PUT", "/metadata/a", `{"meta": {"a": "c"}}`, 200, `{"meta":{"a":"c"}}`},
			{"2.1", "member", "PUT", "/metadata/a", `{"meta": {"x": "c"}}`, 400, "Request body and URI mismatch"},
			{"2.1", "member", "PUT", "/metadata/a", `{"meta": {"a": "c", "b": "d"}}`, 400, "has too many properties"},
			{"2.1", "member", "PUT", "/metadata/a", `{"meta": {}}`, 400, "does not have"},
			{"2.1", "member", "PUT", "/metadata/a", `{"meta": {"a": 1}}`, 400, "1 is not of type 'string'"},
			{"2.1", "member", "DELETE", "/metadata/a", "", 204, ""},
			{"2.1", "member", "DELETE", "/metadata/a", "", 404, "Metadata item was not found"},
			{"2.1", "member", "GET", "/metadata/a", "", 404, "Metadata item was not found"},
			{"2.1", "member", "PUT", "/metadata", `{"metadata": {"x": ""}}`, 200, `{"metadata":{"x":""}}`},
			{"2.1", "member", "POST", "/metadata", `{"metadata": {"": "b"}}`, 400, "does not match any of the regexes"},
			{"2.1", "member", "POST", "/metadata", `{}`, 400, "'metadata' is a required property"},
			{"2.1", "member", "POST", "/metadata", many(128), 403, "Maximum number of metadata items exceeds 128"},
			{"2.1", "member", "PUT", "/metadata", many(128), 200, ""},
			{"2.1", "member", "PUT", "/metadata", many(129), 403, "Maximum number of metadata items exceeds 128"},
			{"2.1", "member", "PUT", "/metadata/new", `{"meta": {"new": "1"}}`, 403, "Maximum number of metadata items exceeds 128"},
			{"2.1", "member", "PUT", "/metadata", `{"metadata": {}}`, 200, `{"metadata":{}}`},
			{"2.101", "member", "GET", "/metadata?x=1", "", 200, ""},
			{"2.102", "member", "GET", "/metadata?x=1", "", 400, "Additional properties are not allowed ('x' was unexpected)"},
			{"2.1", "stranger", "GET", "/metadata", "", 404, "Instance ID could not be found."},
			{"2.1", "stranger", "PUT", "/metadata", `{"metadata": {}}`, 404, "Instance ID could not be found."},
			{"2.1", "stranger", "DELETE", "/metadata/k", "", 404, "Instance ID could not be found."},
		})
		building := c.made("2.1", `{"server": {"name": "new", "flavorRef": "1", "imageRef": "x", "metadata": {"k": "v"}}}`).Server.ID
		c.walk(building, []step{
			{"2.1", "member", "POST", "/metadata", `{"metadata": {"a": "b"}}`, 409, "Cannot 'update metadata' instance ID while it is in vm_state building"},
			{"2.1", "member", "DELETE", "/metadata/k", "", 409, "Cannot 'delete metadata' instance ID while it is in vm_state building"},
		})
		c.walk(c.launched(), []step{
			{"2.1", "member", "POST", "/action", `{"os-stop": null}`, 202, ""},
			{"2.1", "member", "POST", "/metadata", `{"metadata": {"a": "b"}}`, 200, ""}, // as in Nova, with any task
		})
		if _, err := c.db.ExecContext(c.Context(), `UPDATE servers SET locked_by = 'owner' WHERE id = ?`, id); err != nil {
			c.Fatal(err)
		}
		c.walk(id, []step{
			{"2.1", "member", "PUT", "/metadata", `{"metadata": {"a": "b"}}`, 409, "Instance ID is locked"},
			{"2.1", "admin", "PUT", "/metadata", `{"metadata": {"a": "b"}}`, 200, ""},
			{"2.1", "member", "DELETE", "/metadata/a", "", 409, "Instance ID is locked"},
			{"2.1", "admin", "DELETE", "/metadata/a", "", 204, ""},
			{"2.73", "member", "GET", "", "", 200, `"locked":true`},
		})
		if _, err := c.db.ExecContext(c.Context(), `UPDATE servers SET vm_state = ?, locked_by = '' WHERE id = ?`, store.Error, id); err != nil {
			c.Fatal(err)
		}
		c.walk(id, []step{
			{"2.1", "member", "PUT", "/metadata/a", `{"meta": {"a": "b"}}`, 409, "Cannot 'update metadata' instance ID while it is in vm_state error"},
			{"2.1", "member", "GET", "/metadata", "", 200, `{"metadata":{}}`},
		})
	})
}

// TestServerTags: since 2.26, requests read and change the tags of a server as in Nova.
func TestServerTags(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		id := c.launched()
		var many []string
		for i := range 51 {
			many = append(many, fmt.Sprintf(`"t%d"`, i))
		}
		list := func(n int) string { return `{"tags": [` + strings.Join(many[:n], ", ") + `]}` }
		const invalid = "is invalid. It must be a non empty string without characters '/' and ','. Validation error message: "
		c.walk(id, []step{
			{"2.25", "member", "GET", "/tags", "", 404, ""},
			{"2.26", "member", "GET", "/tags", "", 200, `{"tags":[]}`},
			{"2.26", "member", "PUT", "/tags", `{"tags": ["b", "a", "b"]}`, 200, `{"tags":["a","b"]}`},
			{"2.26", "member", "PUT", "/tags/c", "", 201, ""},
			{"2.26", "member", "PUT", "/tags/c", "null", 204, ""},
			{"2.26", "member", "PUT", "/tags/d", `{"x": 1}`, 400, "is not of type 'null'"},
			{"2.26", "member", "GET", "/tags/c", "", 204, ""},
			{"2.26", "member", "GET", "/tags/d", "", 404, "Server ID has no tag 'd'"},
			{"2.26", "member", "GET", "", "", 200, `"tags":["a","b","c"]`},
			{"2.26", "member", "DELETE", "/tags/c", "", 204, ""},
			{"2.26", "member", "DELETE", "/tags/c", "", 404, "Instance ID has no tag 'c'"},
			{"2.26", "member", "PUT", "/tags/a,b", "", 400, "Tag 'a,b' " + invalid + "'a,b' does not match '^[^,/]*$'"},
			{"2.26", "member", "PUT", "/tags/a%2Fb", "", 400, "Tag 'a/b' " + invalid},
			{"2.26", "member", "PUT", "/tags/" + strings.Repeat("x", 61), "", 400, invalid + "'" + strings.Repeat("x", 61) + "' is too long"},
			{"2.26", "member", "PUT", "/tags", `{"tags": ["a/b"]}`, 400, "does not match"},
			{"2.26", "member", "PUT", "/tags", `{"tags": "a"}`, 400, "is not of type 'array'"},
			{"2.26", "member", "PUT", "/tags", list(51), 400, "is too long"},
			{"2.26", "member", "PUT", "/tags", list(50), 200, ""},
			{"2.26", "member", "PUT", "/tags/one-more", "", 400, "The number of tags exceeded the per-server limit 50"},
			{"2.26", "stranger", "PUT", "/tags/x", "", 404, "Instance ID could not be found."},
			{"2.26", "stranger", "DELETE", "/tags", "", 404, "Instance ID could not be found."},
			{"2.26", "member", "DELETE", "/tags", "", 204, ""},
			{"2.26", "member", "GET", "/tags", "", 200, `{"tags":[]}`},
		})
		w := c.send("2.26", "member", "PUT", "/v2.1/servers/"+id+"/tags/%C3%84%20b", "")
		if w.Code != 201 || w.Header().Get("Location") != "http://localhost/v2.1/servers/"+id+"/tags/%C3%84%20b" {
			c.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
		}
		building := c.made("2.1", `{"server": {"name": "new", "flavorRef": "1", "imageRef": "x"}}`).Server.ID
		c.walk(building, []step{
			{"2.26", "member", "PUT", "/tags", `{"tags": []}`, 409, "Cannot 'update tags' instance ID while it is in vm_state building"},
			{"2.26", "member", "PUT", "/tags/a", "", 409, "Cannot 'update tag' instance ID while it is in vm_state building"},
			{"2.26", "member", "DELETE", "/tags", "", 409, "Cannot 'delete tags' instance ID while it is in vm_state building"},
			{"2.26", "member", "DELETE", "/tags/a", "", 409, "Cannot 'delete tag' instance ID while it is in vm_state building"},
		})
	})
}

// TestChangedUserData: since 2.75 the reply to a change of a server has the user data, as a reply to GET.
func TestChangedUserData(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		id := c.made("2.1", `{"server": {"name": "s", "flavorRef": "1", "imageRef": "x", "user_data": "SGVsbG8="}}`).Server.ID
		const data = `"OS-EXT-SRV-ATTR:user_data":"SGVsbG8="`
		c.walk(id, []step{
			{"2.75", "admin", "GET", "", "", 200, data},
			{"2.75", "admin", "PUT", "", `{"server": {"name": "other"}}`, 200, data},
			{"2.75", "admin", "GET", "", "", 200, data},
		})
	})
}

// TestServerParts: a server without networks and volumes has Nova's replies about networks, volumes and similar parts.
func TestServerParts(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		id := c.launched()
		steps := []step{
			{"2.1", "member", "GET", "/ips", "", 200, `{"addresses":{}}`},
			{"2.1", "member", "GET", "/ips/private", "", 404, "Instance is not a member of specified network"},
			{"2.1", "member", "GET", "/os-server-password", "", 200, `{"password":""}`},
			{"2.1", "member", "DELETE", "/os-server-password", "", 204, ""},
			{"2.1", "member", "GET", "/os-security-groups", "", 200, `{"security_groups":[]}`},
			{"2.1", "member", "POST", "/action", `{"addSecurityGroup": {"name": "default"}}`, 404, "Security group default is not found for project "},
			{"2.96", "member", "POST", "/action", `{"removeSecurityGroup": {"name": "default"}}`, 404, "Security group default is not found for project "},
			{"2.1", "member", "POST", "/action", `{"addSecurityGroup": {"name": " "}}`, 400, "Security group name cannot be empty"},
			{"2.1", "member", "POST", "/action", `{"addSecurityGroup": {"name": ""}}`, 400, "name"},
			{"2.1", "member", "POST", "/action", `{"removeSecurityGroup": {}}`, 400, "name"},
			{"2.1", "member", "POST", "/action", `{"removeSecurityGroup": {"name": "default", "x": 1}}`, 400, "x"},
			{"2.1", "member", "POST", "/action", `{"addFixedIp": {"networkId": "` + id + `"}}`, 404, "Network could not be found for instance ID."},
			{"2.43", "member", "POST", "/action", `{"addFixedIp": {"networkId": 1}}`, 404, "Network could not be found for instance ID."},
			{"2.43", "member", "POST", "/action", `{"removeFixedIp": {"address": "10.0.0.4"}}`, 400, "Instance ID does not have fixed IP '10.0.0.4'."},
			{"2.44", "member", "POST", "/action", `{"addFixedIp": {"networkId": "1"}}`, 404, "The resource could not be found."},
			{"2.44", "member", "POST", "/action", `{"removeFixedIp": {"address": "10.0.0.4"}}`, 404, "The resource could not be found."},
			{"2.1", "member", "POST", "/action", `{"addFixedIp": {"networkId": ""}}`, 400, "networkId"},
			{"2.1", "member", "POST", "/action", `{"addFixedIp": {"networkId": "` + id + `0"}}`, 400, "networkId"},
			{"2.1", "member", "POST", "/action", `{"addFixedIp": {}}`, 400, "networkId"},
			{"2.1", "member", "POST", "/action", `{"removeFixedIp": {"address": "10.0.0"}}`, 400, "address"},
			{"2.1", "reader", "POST", "/action", `{"removeFixedIp": {"address": "10.0.0.4"}}`, 403, "os_compute_api:os-multinic:remove"},
			{"2.77", "member", "GET", "/topology", "", 404, ""},
			{"2.78", "member", "GET", "/topology", "", 200, `{"nodes":[],"pagesize_kb":null}`},
			{"2.1", "member", "GET", "/os-volume_attachments?limit=1&x=y", "", 200, `{"volumeAttachments":[]}`},
			{"2.75", "member", "GET", "/os-volume_attachments?x=y", "", 400, "('x' was unexpected)"},
			{"2.75", "member", "GET", "/os-volume_attachments?limit=a", "", 400, "does not match"},
			{"2.1", "member", "GET", "/os-volume_attachments/v", "", 404, "Instance ID is not attached to volume v"},
			{"2.1", "member", "DELETE", "/os-volume_attachments/v", "", 404, "Volume v could not be found."},
			{"2.1", "member", "POST", "/os-volume_attachments", `{"volumeAttachment": {"volumeId": "` + activeID + `", "device": "/dev/vdb"}}`, 404, "Volume " + activeID + " could not be found."},
			{"2.1", "member", "POST", "/os-volume_attachments", `{"volumeAttachment": {"volumeId": "v"}}`, 400, "'v' is not a 'uuid'"},
			{"2.1", "member", "POST", "/os-volume_attachments", `{"volumeAttachment": {"volumeId": "` + activeID + `", "device": "sda"}}`, 400, "does not match"},
			{"2.48", "member", "POST", "/os-volume_attachments", `{"volumeAttachment": {"volumeId": "` + activeID + `", "tag": "a"}}`, 400, "('tag' was unexpected)"},
			{"2.84", "member", "PUT", "/os-volume_attachments/v", `{"volumeAttachment": {"volumeId": "` + activeID + `", "device": null}}`, 400, "('device' was unexpected)"},
			{"2.85", "member", "PUT", "/os-volume_attachments/v", `{"volumeAttachment": {"volumeId": "` + activeID + `", "device": null, "delete_on_termination": true}}`, 404, "Volume " + activeID + " could not be found."},
			{"2.1", "member", "GET", "/os-interface", "", 200, `{"interfaceAttachments":[]}`},
			{"2.1", "member", "POST", "/os-interface", `{"interfaceAttachment": null}`, 400, "None is not of type 'object'"},
			{"2.1", "member", "POST", "/os-interface", `{"interfaceAttachment": {"net_id": "` + activeID + `", "fixed_ips": []}}`, 400, "[] is too short"},
			{"2.1", "member", "POST", "/os-interface", `{"interfaceAttachment": {"net_id": "` + activeID + `", "fixed_ips": [{"ip_address": "10.0.0.1"}, {"ip_address": "10.0.0.2"}]}}`, 400, "is too long"},
			{"2.1", "member", "GET", "/os-interface/p", "", 404, "Port id p could not be found."},
		}
		for _, s := range slices.Clone(steps) { // clients of other projects get 404
			if s.status < 300 {
				s.who, s.status, s.has = "stranger", 404, "Instance ID could not be found."
				steps = append(steps, s)
			}
			if s.method == "GET" && !strings.Contains(s.path, "?") {
				s.version, s.who, s.path, s.status, s.has = "2.102", "member", s.path+"?x=1", 400, "('x' was unexpected)"
				steps = append(steps, s)
			}
		}
		c.walk(id, steps)
		made := &store.Server{ID: "01234567-0000-4000-8000-000000000000", Name: "b", ProjectID: "p", UserID: "u", FlavorID: "1", Networks: db.JSONOf(ported("a", "10.0.0.1"))}
		if err := c.store.CreateServer(c.Context(), made); err != nil {
			c.Fatal(err)
		}
		c.walk(made.ID, []step{
			{"2.1", "admin", "GET", "", "", 200, `"addresses":{}`}, // as in Nova, while the server is built
			{"2.1", "admin", "GET", "/ips", "", 200, `{"addresses":{"a":[{"version":4,"addr":"10.0.0.1"}]}}`},
		})
	})
}

// TestSamplesOfParts: replies about the parts of a server, such as its metadata, have the names and types of Nova's samples. The sample requests are accepted.
func TestSamplesOfParts(t *testing.T) {
	t.Parallel()
	root := samplesOf(t, ".")
	allowed := map[string]string{
		"-addresses.private": "the sample's server has a network", "-security_groups": "the sample's server has a port", "pinned_availability_zone": "the sample's server has a zone",
		"description": "the sample's server has a description", "trusted_image_certificates": "the sample's server has certificates",
		"-image.properties.architecture": "the sample's image has properties", "-image.properties.auto_disk_config": "the sample's image has properties",
		"-scheduler_hints.same_host": "the sample's server has hints",
		"nodes":                      "the sample's server has a topology", "pagesize_kb": "the sample's server has a topology",
		"-metadata.My Server Name": "the sample's server has other metadata", "metadata.foo": "the sample's server has other metadata",
		"OS-EXT-SRV-ATTR:user_data": "the sample's server has user data", "-flavor.extra_specs.hw:numa_nodes": "the sample's flavor has extra specs", "server_groups": "the sample's server has a group",
	}
	eachCloud(t, func(c *cloud) {
		id := c.launched()
		compared, used := 0, map[string]bool{}
		try := func(version, method, path, request, reply string, status int) {
			body := ""
			if request != "" {
				raw, err := readSampleFile(filepath.Join(root, request))
				if os.IsNotExist(err) {
					return
				}
				if err != nil {
					c.Fatal(err)
				}
				body = string(raw)
			}
			sample, ok := readSample(c.T, filepath.Join(root, reply))
			if !ok {
				return
			}
			compared++
			got, text := c.askAt(version, samplePerson(sample), method, "/servers/"+id+path, body)
			if got != status {
				c.Errorf("%s: %s %s %s = %d %s", version, method, path, body, got, text)
				return
			}
			compareSample(c.T, version+" "+reply, sample, text, allowed, used)
		}
		const data, tags = "server-metadata/server-metadata-", "os-server-tags/v2.26/server-tags-"
		try("2.1", "PUT", "/metadata", data+"all-req.json", data+"all-resp.json", 200)
		try("2.1", "POST", "/metadata", data+"all-req.json", data+"all-resp.json", 200)
		try("2.1", "PUT", "/metadata/foo", data+"req.json", data+"resp.json", 200)
		try("2.26", "PUT", "/tags", tags+"put-all-req.json", tags+"put-all-resp.json", 200)
		try("2.26", "GET", "/tags", "", tags+"index-resp.json", 200)
		try("2.26", "GET", "", "", tags+"show-details-resp.json", 200)
		for _, state := range []string{"rescue", "unrescue"} {
			c.exec(`UPDATE servers SET vm_state = ? WHERE id = ?`, map[string]string{"rescue": compute.VMRescued, "unrescue": store.Active}[state], id)
			c.compareWith(allowed, "2.1", "member", "GET", "/servers/"+id, "", "os-rescue/server-get-resp-"+state, 200)
			c.compareWith(allowed, "2.87", "member", "GET", "/servers/"+id, "", "os-rescue/v2.87/server-get-resp-"+state, 200)
		}
		c.compareWith(allowed, "2.26", "member", "GET", "/servers/detail?tags-any=tag1", "", "os-server-tags/v2.26/servers-tags-details-resp", 200)
		c.compareWith(map[string]string{"nodes": "no driver reports a topology", "pagesize_kb": "as nodes"}, "2.78", "admin", "GET", "/servers/"+id+"/topology", "", "os-server-topology/v2.78/servers-topology-resp", 200)
		try("2.1", "GET", "/ips", "", "server-ips/server-ips-resp.json", 200)
		try("2.1", "GET", "/os-server-password", "", "os-server-password/get-password-resp.json", 200)
		try("2.78", "GET", "/topology", "", "os-server-topology/v2.78/servers-topology-resp-user.json", 200)
		for n := 1; n <= 104; n++ {
			folder := "servers"
			if n > 1 {
				folder += fmt.Sprintf("/v2.%d", n)
			}
			for _, name := range []string{"update", "put"} {
				try(fmt.Sprintf("2.%d", n), "PUT", "", folder+"/server-"+name+"-req.json", folder+"/server-"+name+"-resp.json", 200)
			}
		}
		if compared < 20 {
			c.Errorf("only %d samples were compared", compared)
		}
		for place := range allowed {
			if !used[place] {
				c.Errorf("the difference %s does not occur", place)
			}
		}
	})
}
