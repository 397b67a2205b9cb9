package api_test

import (
	"strings"
	"testing"
)

// TestBodies: nova-mini accepts bodies that Nova accepts, and refuses bodies that Nova refuses, with Nova's text. It also refuses bodies
// that use a feature that nova-mini does not have.
func TestBodies(t *testing.T) {
	t.Parallel()
	h := newAPI(t)
	const (
		servers  = "/v2.1/servers"
		flavors  = "/v2.1/flavors"
		services = "/v2.1/os-services/"
		action   = servers + "/" + activeID + "/action"
	)
	long := strings.Repeat("x", 256)
	server := func(more string) string {
		return `{"server": {"name": "x", "flavorRef": "none", "imageRef": "x"` + more + `}}`
	}
	// content is the error of a body that matches the schema: only its flavor does not exist.
	const content = "Flavor none could not be found."
	flavor := func(more string) string {
		return `{"flavor": {"name": "f", "ram": 1, "vcpus": 1, "disk": 0` + more + `}}`
	}
	for _, tt := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"POST", servers, server(``), 400, content},
		{"POST", servers, `{"server": {"name": "x", "flavorRef": 77, "imageRef": "x"}}`, 400, "Flavor 77 could not be found."},
		{"POST", servers, `{"server": {"name": "x", "flavorRef": "http://host/flavors/n\u006fne", "imageRef": "x"}}`, 400, content},
		{"POST", servers, `{"server": {"name": "x", "flavorRef": "", "imageRef": "x"}}`, 400, "Invalid input for field/attribute flavorRef. Value: . '' is too short"},
		{"POST", servers, `{"server": {"name": "", "flavorRef": "none", "imageRef": "x"}}`, 400, "Invalid input for field/attribute name. Value: . '' is too short"},
		{"POST", servers, `{"server": {"name": "` + long + `", "flavorRef": "none", "imageRef": "x"}}`, 400, "is too long"},
		{"POST", servers, `{"server": {"name": " ", "flavorRef": "none", "imageRef": "x"}}`, 400, "An invalid 'name' value was provided. The name must be: printable characters. Can not start or end with whitespace."},
		{"POST", servers, `{"server": {"name": "x ", "flavorRef": "none", "imageRef": "x"}}`, 400, "The name must be: printable characters."},
		{"POST", servers, `{"server": {"name": "a\tb", "flavorRef": "none", "imageRef": "x"}}`, 400, "The name must be: printable characters."},
		{"POST", servers, `{"server": {"name": "Ä b!", "flavorRef": "none", "imageRef": "x"}}`, 400, content},
		{"POST", servers, server(`, "min_count": 1, "max_count": "1"`), 400, content},
		{"POST", servers, server(`, "min_count": 0`), 400, "Invalid input for field/attribute min_count. Value: 0. 0 is less than the minimum of 1"},
		{"POST", servers, server(`, "networks": [{"uuid": "a", "fixed_ip": "10.0.0.1", "port": null}]`), 400, "Bad networks format: network uuid is not in proper format (a)"},
		{"POST", servers, server(`, "networks": [{"fixed_ip": "10.0.0"}]`), 400, "Invalid input for field/attribute fixed_ip. Value: 10.0.0."},
		{"POST", servers, server(`, "networks": "none"`), 400, "'none' is not of type 'array'"},
		{"POST", servers, server(`, "metadata": {"a b:c.d_e-f": ""}`), 400, content},
		{"POST", servers, server(`, "metadata": {"a$": ""}`), 400, "'a$' does not match any of the regexes: '^[a-zA-Z0-9-_:. ]{1,255}$'"},
		{"POST", servers, server(`, "metadata": {"a": "` + long + `"}`), 400, "is too long"},
		{"POST", servers, server(`, "metadata": {"a": 1}`), 400, "Invalid input for field/attribute a. Value: 1. 1 is not of type 'string'"},
		{"POST", servers, server(`, "availability_zone": "nova", "OS-DCF:diskConfig": "MANUAL", "config_drive": "False"`), 400, content},
		{"POST", servers, server(`, "config_drive": "perhaps"`), 400, "Invalid input for field/attribute config_drive. Value: perhaps. 'perhaps' is not one of [True, 'True'"},
		{"POST", servers, server(`, "user_data": "eA=="`), 400, content},
		{"POST", servers, `{"server": {"name": "x", "flavorRef": "none", "imageRef": "x"}, "os:scheduler_hints": {}}`, 400, content},

		{"POST", flavors, `{"flavor": {"name": "f"}}`, 400, "Invalid input for field/attribute flavor. Value: {'name': 'f'}. 'ram' is a required property"},
		{"POST", flavors, flavor(`, "id": " a"`), 400, "Invalid input for field/attribute id. Value:  a. ' a' does not match"},
		{"POST", flavors, flavor(`, "id": ` + strings.Repeat("7", 256)), 400, "Invalid input received: id has 256 characters, more than 255."},
		{"POST", flavors, flavor(`, "swap": "-1"`), 400, "Invalid input for field/attribute swap. Value: -1. '-1' does not match '^[0-9]*$'"},
		{"POST", flavors, flavor(`, "swap": -1`), 400, "Invalid input for field/attribute swap. Value: -1. -1 is less than the minimum of 0"},
		{"POST", flavors, flavor(`, "swap": 2147483648`), 400, "2147483648 is greater than the maximum of 2147483647"},
		{"POST", flavors, flavor(`, "swap": "2147483648"`), 400, "Invalid input received: swap must be <= 2147483647"},
		{"POST", flavors, flavor(`, "swap": "99999999999999999999"`), 400, "Invalid input received: swap must be <= 2147483647"},
		{"POST", flavors, flavor(`, "swap": 1e1`), 400, "Invalid input received: swap must be an integer"},
		{"POST", flavors, `{"flavor": {"name": "f", "ram": "0", "vcpus": 1, "disk": 0}}`, 400, "Invalid input received: ram must be >= 1"},
		{"POST", flavors, flavor(`, "rxtx_factor": 0`), 400, "0 is less than or equal to the minimum of 0"},
		{"POST", flavors, flavor(`, "rxtx_factor": "0.0"`), 400, "Invalid input received: 'rxtx_factor' argument must be a float between 0 and 3.40282e+38"},
		{"POST", flavors, flavor(`, "os-flavor-access:is_public": "perhaps"`), 400, "'perhaps' is not one of [True, 'True', 'TRUE'"},
		{"POST", flavors, flavor(`, "id": 7, "swap": "10", "rxtx_factor": "1.5", "os-flavor-access:is_public": "OFF"`), 200, `"id":"7","name":"f","ram":1,"disk":0,"swap":10,`},
		{"GET", flavors + "/7", "", 200, `"os-flavor-access:is_public":false,"rxtx_factor":1.5`},

		{"PUT", services + "disable", `{"host": "a b", "binary": "nova-compute"}`, 400, "Invalid input for field/attribute host. Value: a b. 'a b' does not match '^[a-zA-Z0-9-._]*$'"},
		{"PUT", services + "disable", `{"host": "a"}`, 400, "'binary' is a required property"},
		{"PUT", services + "disable-log-reason", `{"host": "node-1", "binary": "nova-compute"}`, 400, "Missing disabled reason field"},
		{"PUT", services + "disable-log-reason", `{"host": "node-1", "binary": "nova-compute", "disabled_reason": "r"}`, 200, `"disabled_reason":"r"`},
		{"PUT", services + "disable", `{"host": "node-1", "binary": "nova-compute", "disabled_reason": "r"}`, 200, `{"service":{"host":"node-1","binary":"nova-compute","status":"disabled"}}`},

		{"POST", action, `{"reboot": null}`, 400, "Invalid input for field/attribute reboot. Value: None. None is not of type 'object'"},
		{"POST", action, `{"reboot": {}}`, 400, "Invalid input for field/attribute reboot. Value: {}. 'type' is a required property"},
		{"POST", action, `{"resize": {"flavorRef": "none", "OS-DCF:diskConfig": "MANUAL"}}`, 400, content},
		{"POST", action, `{"resize": {"flavorRef": "2", "OS-DCF:diskConfig": "SOME"}}`, 400, "'SOME' is not one of ['AUTO', 'MANUAL']"},
		{"POST", action, `{"os-getConsoleOutput": {"length": "many"}}`, 400, "Invalid input for field/attribute length. Value: many. 'many' does not match '^-?[0-9]+$'"},
		{"POST", action, `{"os-getConsoleOutput": {"length": -2}}`, 400, "-2 is less than the minimum of -1"},
		{"POST", action, `{"os-stop": null, "os-start": null}`, 400, "Malformed request body"},

		{"GET", servers + "?limit=1&limit=x", "", 400, "Invalid input for query parameters limit. Value: x. 'x' does not match '^[0-9]*$'"},
		{"GET", servers + "?all_tenants=perhaps", "", 400, "Invalid input received: Unrecognized value 'perhaps', acceptable values are: '0', '1', 'f'"},
		{"GET", servers + "?all_tenants&surprise=1&limit=1", "", 200, `"servers_links":[{"rel":"next"`},
		{"GET", servers + "/detail?all_tenants=no&status=active&surprise=1", "", 200, activeID},
		{"GET", services[:len(services)-1] + "?binary=nova-compute&host=none", "", 200, `{"services":[]}`},
	} {
		status, _, got := ask(t, h, tt.method, tt.path, tt.body)
		if status != tt.status || !strings.Contains(got, tt.says) {
			t.Errorf("%s %s %.200s = %d %.300s\nwant %d %s", tt.method, tt.path, tt.body, status, got, tt.status, tt.says)
		}
	}
}
