package api_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// unlikePublished are the requests whose replies are not as Nova's published document says, with the reason. TestSamples compares all of them with Nova's samples, which are right
// where the two differ.
var unlikePublished = map[string]string{
	"POST /v2.1/flavors":       flavorFields,
	"GET /v2.1/flavors/detail": flavorFields,
	"GET /v2.1/flavors/{id}":   flavorFields,
	"PUT /v2.1/flavors/{id}":   flavorFields,
	"POST /v2.1/servers":       "the reply has one of two forms, and the document's form for several servers allows the form for one, too",
}

const flavorFields = "the document lacks the fields description (2.55) and OS-FLV-DISABLED:disabled"

// TestPublishedReplies: the replies at 2.96 are as Nova's published OpenAPI document says, except those of unlikePublished. A field that is null is not compared: the document has no
// null, as in the description of a server without one.
func TestPublishedReplies(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		p := readPublished(c.T)
		compiler := p.compiler()
		const version = "2.96"
		id := c.made(version, `{"server": {"name": "n", "flavorRef": "1", "imageRef": "x", "networks": "none"}}`).Server.ID
		c.exec(`UPDATE servers SET vm_state = 'active' WHERE id = ?`, id)
		for _, r := range []struct{ method, path, at, body string }{
			{"GET", "/v2.1/versions/{id}", "/", ""},
			{"GET", "/v2.1/extensions", "/extensions", ""},
			{"POST", "/v2.1/flavors", "/flavors", `{"flavor": {"id": "f", "name": "f", "ram": 64, "vcpus": 1, "disk": 1}}`},
			{"GET", "/v2.1/flavors", "/flavors", ""},
			{"GET", "/v2.1/flavors/detail", "/flavors/detail", ""},
			{"GET", "/v2.1/flavors/{id}", "/flavors/f", ""},
			{"PUT", "/v2.1/flavors/{id}", "/flavors/f", `{"flavor": {"description": "d"}}`},
			{"POST", "/v2.1/flavors/{flavor_id}/os-extra_specs", "/flavors/f/os-extra_specs", `{"extra_specs": {"hw:cpu_policy": "shared"}}`},
			{"GET", "/v2.1/flavors/{flavor_id}/os-extra_specs", "/flavors/f/os-extra_specs", ""},
			{"GET", "/v2.1/flavors/{flavor_id}/os-extra_specs/{id}", "/flavors/f/os-extra_specs/hw:cpu_policy", ""},
			{"PUT", "/v2.1/flavors/{flavor_id}/os-extra_specs/{id}", "/flavors/f/os-extra_specs/hw:cpu_policy", `{"hw:cpu_policy": "dedicated"}`},
			{"POST", "/v2.1/os-keypairs", "/os-keypairs", `{"keypair": {"name": "k", "public_key": "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDx8nkQv/zgGgB4rMYmIf+6A4l6Rr+o/6lHBQdW5aYd44bd8JttDCE/F/pNRr0lRE+PiqSPO8nDPHw0010JeMH9gYgnnFlyY3/OcJ02RhIPyyxYpv9FhY+2YiUkpwFOcLImyrxEsYXpD/0d3ac30bNH6Sw9JD9UZHYcpSxsIbECHw== user"}}`},
			{"GET", "/v2.1/os-keypairs", "/os-keypairs", ""},
			{"GET", "/v2.1/os-keypairs/{id}", "/os-keypairs/k", ""},
			{"POST", "/v2.1/os-server-groups", "/os-server-groups", `{"server_group": {"name": "g", "policy": "anti-affinity"}}`},
			{"GET", "/v2.1/os-server-groups", "/os-server-groups", ""},
			{"POST", "/v2.1/servers", "/servers", `{"server": {"name": "n", "flavorRef": "1", "imageRef": "x", "networks": "none"}}`},
			{"GET", "/v2.1/servers", "/servers", ""},
			{"GET", "/v2.1/servers/detail", "/servers/detail", ""},
			{"GET", "/v2.1/servers/{id}", "/servers/" + id, ""},
			{"PUT", "/v2.1/servers/{id}", "/servers/" + id, `{"server": {"description": "d"}}`},
			{"POST", "/v2.1/servers/{server_id}/metadata", "/servers/" + id + "/metadata", `{"metadata": {"a": "b"}}`},
			{"GET", "/v2.1/servers/{server_id}/metadata", "/servers/" + id + "/metadata", ""},
			{"GET", "/v2.1/servers/{server_id}/metadata/{id}", "/servers/" + id + "/metadata/a", ""},
			{"PUT", "/v2.1/servers/{server_id}/metadata/{id}", "/servers/" + id + "/metadata/a", `{"meta": {"a": "c"}}`},
			{"PUT", "/v2.1/servers/{server_id}/tags", "/servers/" + id + "/tags", `{"tags": ["t"]}`},
			{"GET", "/v2.1/servers/{server_id}/tags", "/servers/" + id + "/tags", ""},
			{"GET", "/v2.1/servers/{server_id}/ips", "/servers/" + id + "/ips", ""},
			{"GET", "/v2.1/servers/{server_id}/os-interface", "/servers/" + id + "/os-interface", ""},
			{"GET", "/v2.1/servers/{server_id}/os-instance-actions", "/servers/" + id + "/os-instance-actions", ""},
			{"GET", "/v2.1/servers/{server_id}/os-security-groups", "/servers/" + id + "/os-security-groups", ""},
			{"GET", "/v2.1/servers/{server_id}/os-server-password", "/servers/" + id + "/os-server-password", ""},
			{"GET", "/v2.1/servers/{server_id}/os-volume_attachments", "/servers/" + id + "/os-volume_attachments", ""},
			{"GET", "/v2.1/servers/{server_id}/topology", "/servers/" + id + "/topology", ""},
			{"GET", "/v2.1/limits", "/limits", ""},
			{"GET", "/v2.1/os-availability-zone", "/os-availability-zone", ""},
			{"GET", "/v2.1/os-availability-zone/detail", "/os-availability-zone/detail", ""},
			{"GET", "/v2.1/os-hypervisors", "/os-hypervisors", ""},
			{"GET", "/v2.1/os-hypervisors/detail", "/os-hypervisors/detail", ""},
			{"GET", "/v2.1/os-services", "/os-services", ""},
			{"GET", "/v2.1/os-simple-tenant-usage", "/os-simple-tenant-usage?detailed=1", ""},
			{"GET", "/v2.1/os-simple-tenant-usage/{id}", "/os-simple-tenant-usage/p", ""},
			{"GET", "/v2.1/os-instance_usage_audit_log", "/os-instance_usage_audit_log", ""},
		} {
			what := r.method + " " + r.path
			status, reply := c.askAt(version, "admin", r.method, r.at, r.body)
			if status >= http.StatusBadRequest {
				c.Errorf("%s: %d %s", what, status, reply)
				continue
			}
			err := p.checkReply(compiler, r.method, r.path, status, reply)
			reason, known := unlikePublished[what]
			switch {
			case err != nil && !known:
				c.Errorf("%s: %d %s: %v", what, status, reply, err)
			case err == nil && known:
				c.Errorf("%s is as the document says, and is listed: %s", what, reason)
			}
		}
	})
}

// compiler returns a compiler that knows the document as mem:///published.
func (p *published) compiler() *jsonschema.Compiler {
	p.Helper()
	dropExamples(p.doc)
	raw, err := json.Marshal(p.doc)
	if err != nil {
		p.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		p.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	if err := c.AddResource("mem:///published", doc); err != nil {
		p.Fatal(err)
	}
	return c
}

// dropExamples removes the examples, some of which are not lists, as JSON Schema wants them.
func dropExamples(v any) {
	switch v := v.(type) {
	case []any:
		for _, one := range v {
			dropExamples(one)
		}
	case map[string]any:
		if _, isList := v["examples"].([]any); !isList {
			delete(v, "examples")
		}
		for _, one := range v {
			dropExamples(one)
		}
	}
}

// dropNulls removes the fields that are null.
func dropNulls(v any) {
	switch v := v.(type) {
	case []any:
		for _, one := range v {
			dropNulls(one)
		}
	case map[string]any:
		maps.DeleteFunc(v, func(_ string, field any) bool { return field == nil })
		for _, one := range v {
			dropNulls(one)
		}
	}
}

// checkReply compares a reply with the document. If the document has no schema for the status of the reply, its schema for another successful reply is taken.
func (p *published) checkReply(c *jsonschema.Compiler, method, path string, status int, reply string) error {
	responses := dig(p.doc, "paths", path, strings.ToLower(method), "responses")
	code := strconv.Itoa(status)
	for other := range responses {
		if len(dig(responses, code, "content")) == 0 && other[0] == '2' {
			code = other
		}
	}
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	var place strings.Builder
	place.WriteString("mem:///published#")
	for _, step := range []string{"paths", path, strings.ToLower(method), "responses", code, "content", "application/json", "schema"} {
		place.WriteString("/" + url.PathEscape(escape.Replace(step)))
	}
	s, err := c.Compile(place.String())
	if err != nil {
		return err
	}
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(reply))
	if err != nil {
		return err
	}
	dropNulls(v)
	return s.Validate(v)
}
