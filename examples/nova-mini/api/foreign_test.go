package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// operation is a request to a route, or to one of the actions of a route.
type operation struct{ method, path, body string }

// objectBodies has valid bodies, by the name of the action or by the route.
var objectBodies = map[string]string{
	"reboot": `{"type": "SOFT"}`, "resize": `{"flavorRef": "2"}`, "rebuild": `{"imageRef": "x"}`, "createImage": `{"name": "i"}`, "os-resetState": `{"state": "error"}`,
	"changePassword": `{"adminPass": "x"}`, "createBackup": `{"name": "b", "backup_type": "daily", "rotation": 1}`, "os-getConsoleOutput": `{}`,
	"os-getVNCConsole": `{"type": "novnc"}`, "os-getSPICEConsole": `{"type": "spice-html5"}`, "os-getRDPConsole": `{"type": "rdp-html5"}`, "os-getSerialConsole": `{"type": "serial"}`,
	"addFixedIp": `{"networkId": "x"}`, "removeFixedIp": `{"address": "10.0.0.4"}`, "addSecurityGroup": `{"name": "x"}`, "removeSecurityGroup": `{"name": "x"}`, "addTenantAccess": `{"tenant": "p9"}`, "removeTenantAccess": `{"tenant": "p9"}`,

	"PUT /v2.1/servers/{id}": `{"server": {"name": "taken"}}`, "POST /v2.1/servers/{id}/metadata": `{"metadata": {"k": "taken"}}`, "PUT /v2.1/servers/{id}/metadata": `{"metadata": {"k": "taken"}}`,
	"PUT /v2.1/servers/{id}/metadata/{key}": `{"meta": {"k": "taken"}}`, "PUT /v2.1/servers/{id}/tags": `{"tags": ["taken"]}`, "POST /v2.1/servers/{id}/os-interface": `{"interfaceAttachment": {}}`,
	"POST /v2.1/servers/{id}/remote-consoles": `{"remote_console": {"protocol": "vnc", "type": "novnc"}}`, "POST /v2.1/servers/{id}/os-volume_attachments": `{"volumeAttachment": {"volumeId": "` + activeID + `"}}`,
	"PUT /v2.1/servers/{id}/os-volume_attachments/{volume}": `{"volumeAttachment": {"volumeId": "` + activeID + `"}}`,
}

// ofObjects returns all operations on one object, from the OpenAPI document of a version. The paths of these operations begin with
// prefix/{id}. In the results, the parameter id replaces {id}.
func ofObjects(t *testing.T, version, prefix, id string) (out []operation) {
	t.Helper()
	text, err := api.OpenAPI(version)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]struct {
			Body struct {
				Content map[string]struct {
					Schema struct{ OneOf []struct{ Title string } }
				}
			} `json:"requestBody"`
		}
	}
	if err := json.Unmarshal([]byte(toJSON(t, text)), &doc); err != nil {
		t.Fatal(err)
	}
	parts := strings.NewReplacer("{id}", id, "{key}", "k", "{tag}", "blue", "{network}", "private", "{port}", activeID, "{volume}", activeID, "{request_id}", "req-"+activeID)
	for path, methods := range doc.Paths {
		if !strings.HasPrefix(path, prefix+"/{id}") {
			continue
		}
		for name, op := range methods {
			method := strings.ToUpper(name)
			actions := op.Body.Content["application/json"].Schema.OneOf
			for _, a := range actions {
				body := objectBodies[a.Title]
				if body == "" {
					body = "null"
				}
				out = append(out, operation{method, parts.Replace(path), fmt.Sprintf(`{"%s": %s}`, a.Title, body)})
			}
			if len(actions) == 0 {
				out = append(out, operation{method, parts.Replace(path), objectBodies[method+" "+path]})
			}
		}
	}
	slices.SortFunc(out, func(a, b operation) int { return strings.Compare(a.path+a.method+a.body, b.path+b.method+b.body) })
	return out
}

// TestOtherProjects sends each operation on a server and on a server group, at old and new microversions, as clients who may not use the
// object. For members of another project the object does not exist, so the answer is 404, or 403 if the operation is for administrators. A
// reader of the project may only read. No request has an effect.
func TestOtherProjects(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		id := c.addActive("x")
		group := &store.ServerGroup{ID: "5a6fb4cb-0eab-4a5c-9f9d-6e3a1a2e6a51", Name: "g", ProjectID: "p1", UserID: "u1", Policy: "affinity"}
		if err := c.store.CreateServerGroup(c.Context(), group); err != nil {
			c.Fatal(err)
		}
		state := func() string {
			return c.want(200, "2.96", "admin", "GET", "/servers/"+id, "") + c.want(200, "2.96", "admin", "GET", "/os-server-groups/"+group.ID, "")
		}
		before, seen := state(), 0
		for _, version := range []string{"2.1", "2.35", "2.74", "2.104"} {
			for _, op := range slices.Concat(ofObjects(c.T, version, "/v2.1/servers", id), ofObjects(c.T, version, "/v2.1/os-server-groups", group.ID)) {
				path := strings.TrimPrefix(op.path, "/v2.1")
				status, reply := c.askAt(version, "stranger", op.method, path, op.body)
				if status == http.StatusGone { // Nova has removed the operation
					continue
				}
				if status != http.StatusNotFound && status != http.StatusForbidden {
					c.Errorf("a member of another project, at %s: %s %s %s = %d %.200s", version, op.method, path, op.body, status, reply)
				}
				if strings.Contains(reply, "Policy doesn't allow") != (status == http.StatusForbidden) {
					c.Errorf("a member of another project, at %s: %s %s %s = %d %.200s", version, op.method, path, op.body, status, reply)
				}
				if op.method == http.MethodGet {
					continue
				}
				if status, reply := c.askAt(version, "reader", op.method, path, op.body); status != http.StatusForbidden && !strings.Contains(reply, "The resource could not be found.") { // this text: the version does not have the action
					c.Errorf("a reader of the project, at %s: %s %s %s = %d %.200s", version, op.method, path, op.body, status, reply)
				}
				seen++
			}
		}
		if after := state(); after != before || seen < 150 {
			c.Errorf("%d operations; before and after:\n%s\n%s", seen, before, after)
		}
	})
}
