package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"

	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/internal/goldentest"
	"github.com/armature-go/armature/service/api/apitest"
)

// printed runs a command and returns its output.
func printed(t *testing.T, args ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), &out, args...); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestOpenAPI: the printed document is equal to the golden file, and a third-party library accepts the document as OpenAPI 3.1.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	got := printed(t, "openapi", "--version", "2.1")
	goldentest.File(t, "the document", filepath.Join("testdata", "openapi-2.1.json"), string(got))
	doc, err := libopenapi.NewDocument(got)
	if err != nil {
		t.Fatal(err)
	}
	v, errs := validator.NewValidator(doc)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if _, bad := v.ValidateDocument(); len(bad) > 0 {
		for _, e := range bad {
			t.Errorf("%s: %s: %+v", e.Message, e.Reason, e.SchemaValidationErrors)
		}
	}
	changes := slices.DeleteFunc(slices.Clone(api.Changes), func(c api.Change) bool { return c.Where == "" }) // such a version has the document of the version before it
	if os.Getenv("ARMATURE_ACCEPT") == "" {                                                                   // make accept runs the rest
		changes = []api.Change{changes[0], changes[rand.N(len(changes))], changes[len(changes)-1]}
	}
	for _, c := range changes {
		version := c.Version
		if _, err := apitest.NewChecker(printed(t, "openapi", "--version", version)); err != nil {
			t.Errorf("version %s: %v", version, err)
		}
	}
	for _, version := range []string{"2.0", "2.105", "3.1", "two"} {
		if err := run(t.Context(), new(bytes.Buffer), "openapi", "--version", version); exitCode(err) != 1 {
			t.Errorf("version %s: %v", version, err)
		}
	}
}

// TestHistory: openapi --history prints each microversion with the description in the table Changes, and below it the changes that the routes and their types declare.
func TestHistory(t *testing.T) {
	t.Parallel()
	type row struct{ Version, Where, What string }
	var want, got []row
	declared := api.History()
	for _, c := range api.Changes {
		want = append(want, row{c.Version, c.Where, c.What})
		for len(declared) > 0 && declared[0].Version.String() == c.Version {
			want = append(want, row{c.Version, declared[0].Where, declared[0].What})
			declared = declared[1:]
		}
	}
	if len(declared) > 0 {
		t.Errorf("Changes does not have the version of %+v", declared[0])
	}
	if err := json.Unmarshal(printed(t, "openapi", "--history", "-o", "json"), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
	table := strings.Join(strings.Fields(string(printed(t, "openapi", "--history"))), " ") // without the columns' widths
	for _, part := range []string{
		"VERSION WHERE WHAT 2.2 os-keypairs key pairs: type, and other statuses of replies 2.2 ", " 2.4 fixed IPs: reserved 2.5 ",
		" 2.19 rebuild servers servers: description 2.19 ", " 2.19 GET /v2.1/servers/{id} reply: server.description is added ", " 2.101 volumes of a server: POST answers 202 2.102 ",
	} {
		if !strings.Contains(table, part) {
			t.Errorf("the table does not have %q: %s", part, table)
		}
	}
}

// actionNames are the names of the actions of servers that the first microversion has.
func actionNames() string {
	names := []string{"resetNetwork", "addFloatingIp", "removeFloatingIp", "evacuate", "migrate", "os-migrateLive"}
	for _, info := range compute.Actions {
		if info.Request == "" || info.Added != "" {
			continue
		}
		names = append(names, info.Request)
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), " ")
}

// TestOperations: every route is in the document, with its parameters, body and replies.
func TestOperations(t *testing.T) {
	t.Parallel()
	const (
		head    = "OpenStack-API-Version"
		flavors = "is_public limit marker minDisk minRam sort_dir sort_key " + head
		servers = "access_ip_v4 access_ip_v6 all_tenants auto_disk_config availability_zone block_device_mapping changes-since config_drive created_at deleted description " +
			"display_description display_name flavor host hostname image image_ref info_cache ip ip6 kernel_id key_name launch_index launched_at limit locked_by marker metadata name node " +
			"pci_devices power_state progress project_id ramdisk_id reservation_id root_device_name security_groups services soft_deleted sort_dir sort_key status system_metadata task_state tenant_id terminated_at user_id uuid vm_state " + head
		reads        = "200 400 401 403 406"
		readsOne     = "200 400 401 403 404 406"
		updates      = "200 400 401 403 404 406 413 415"
		changes      = "200 400 401 403 404 406 409 413 415"
		changesImage = changes + " 503"
	)
	want := map[string][3]string{}
	for _, row := range [][4]string{ // operation, parameters, body, statuses
		{"get /", "", "", "200"},
		{"get /v2", "", "", "200 400 406"},
		{"get /v2.1", head, "", "200 400 406"},
		{"get /v2.1/", head, "", "200 400 406"},
		{"get /v2.1/extensions", head, "", reads},
		{"get /v2.1/extensions/{alias}", "alias " + head, "", readsOne},
		{"get /v2.1/flavors", flavors, "", reads},
		{"post /v2.1/flavors", head + " Idempotency-Key", "body", "200 400 401 403 406 409 413 415 422"},
		{"get /v2.1/flavors/detail", flavors, "", reads},
		{"delete /v2.1/flavors/{id}", "id " + head, "", "202 400 401 403 404 406"},
		{"get /v2.1/flavors/{id}", "id " + head, "", readsOne},
		{"post /v2.1/flavors/{id}/action", "id " + head, "addTenantAccess removeTenantAccess", "200 400 401 403 404 406 409 413 415"},
		{"get /v2.1/flavors/{id}/os-extra_specs", "id " + head, "", readsOne},
		{"post /v2.1/flavors/{id}/os-extra_specs", "id " + head, "body", updates},
		{"delete /v2.1/flavors/{id}/os-extra_specs/{key}", "id key " + head, "", readsOne},
		{"get /v2.1/flavors/{id}/os-extra_specs/{key}", "id key " + head, "", readsOne},
		{"put /v2.1/flavors/{id}/os-extra_specs/{key}", "id key " + head, "body", updates},
		{"get /v2.1/flavors/{id}/os-flavor-access", "id " + head, "", readsOne},
		{"get /v2.1/images", "changes-since limit marker minDisk minRam name server status type " + head, "", reads + " 503"},
		{"get /v2.1/images/detail", "changes-since limit marker minDisk minRam name server status type " + head, "", reads + " 503"},
		{"get /v2.1/images/{id}", "id " + head, "", readsOne + " 503"},
		{"delete /v2.1/images/{id}", "id " + head, "", "204 400 401 403 404 406 409 503"},
		{"get /v2.1/images/{id}/metadata", "id " + head, "", readsOne + " 503"},
		{"post /v2.1/images/{id}/metadata", "id " + head, "body", changesImage},
		{"put /v2.1/images/{id}/metadata", "id " + head, "body", changesImage},
		{"get /v2.1/images/{id}/metadata/{key}", "id key " + head, "", readsOne + " 503"},
		{"put /v2.1/images/{id}/metadata/{key}", "id key " + head, "body", changesImage},
		{"delete /v2.1/images/{id}/metadata/{key}", "id key " + head, "", "204 400 401 403 404 406 409 503"},
		{"get /v2.1/limits", "tenant_id " + head, "", reads},
		{"get /v2.1/os-availability-zone", head, "", reads},
		{"get /v2.1/os-availability-zone/detail", head, "", reads},
		{"get /v2.1/os-hypervisors", head, "", reads},
		{"get /v2.1/os-hypervisors/detail", head, "", reads},
		{"get /v2.1/os-hypervisors/{id}", "id " + head, "", readsOne},
		{"get /v2.1/os-hypervisors/statistics", head, "", reads},
		{"get /v2.1/os-hypervisors/{id}/uptime", "id " + head, "", readsOne + " 501"},
		{"get /v2.1/os-hypervisors/{name}/search", "name " + head, "", readsOne},
		{"get /v2.1/os-hypervisors/{name}/servers", "name " + head, "", readsOne},
		{"get /v2.1/os-keypairs", head, "", reads},
		{"post /v2.1/os-keypairs", head, "body", "200 400 401 403 406 409 413 415"},
		{"delete /v2.1/os-keypairs/{name}", "name " + head, "", "202 400 401 403 404 406"},
		{"get /v2.1/os-keypairs/{name}", "name " + head, "", readsOne},
		{"get /v2.1/os-console-auth-tokens/{token}", "token " + head, "", "204 400 401 403 406"},
		{"get /v2.1/os-server-groups", "all_projects limit offset " + head, "", reads},
		{"post /v2.1/os-server-groups", head, "body", "200 400 401 403 406 413 415"},
		{"get /v2.1/os-server-groups/{id}", "id " + head, "", readsOne},
		{"delete /v2.1/os-server-groups/{id}", "id " + head, "", "204 400 401 403 404 406"},
		{"get /v2.1/os-services", "binary host " + head, "", reads},
		{"put /v2.1/os-services/disable", head, "body", updates},
		{"put /v2.1/os-services/disable-log-reason", head, "body", updates},
		{"put /v2.1/os-services/enable", head, "body", updates},
		{"post /v2.1/os-aggregates/{id}/action", "id " + head, "add_host remove_host set_metadata", "400 401 403 406 413 415 501"},
		{"post /v2.1/os-baremetal-nodes/{id}/action", "id " + head, "add_interface remove_interface", "400 401 403 406 413 415"},
		{"get /v2.1/os-instance_usage_audit_log", head, "", reads},
		{"get /v2.1/os-instance_usage_audit_log/{before}", "before " + head, "", reads},
		{"get /v2.1/os-simple-tenant-usage", "detailed end start " + head, "", reads},
		{"get /v2.1/os-simple-tenant-usage/{project}", "project end start " + head, "", reads},
		{"get /v2.1/servers", servers, "", reads},
		{"post /v2.1/servers", head + " Idempotency-Key", "body", "202 400 401 403 406 413 415 422 501 503"},
		{"get /v2.1/servers/detail", servers, "", reads},
		{"delete /v2.1/servers/{id}", "id " + head, "", "204 400 401 403 404 406 409 503"},
		{"get /v2.1/servers/{id}", "id " + head, "", readsOne},
		{"put /v2.1/servers/{id}", "id " + head, "body", changes},
		{"get /v2.1/servers/{id}/metadata", "id " + head, "", readsOne},
		{"post /v2.1/servers/{id}/metadata", "id " + head, "body", changes},
		{"put /v2.1/servers/{id}/metadata", "id " + head, "body", changes},
		{"get /v2.1/servers/{id}/metadata/{key}", "id key " + head, "", readsOne},
		{"put /v2.1/servers/{id}/metadata/{key}", "id key " + head, "body", changes},
		{"delete /v2.1/servers/{id}/metadata/{key}", "id key " + head, "", "204 400 401 403 404 406 409"},
		{"get /v2.1/servers/{id}/ips", "id " + head, "", readsOne},
		{"get /v2.1/servers/{id}/ips/{network}", "id network " + head, "", readsOne},
		{"get /v2.1/servers/{id}/os-interface", "id " + head, "", readsOne + " 503"},
		{"get /v2.1/servers/{id}/os-interface/{port}", "id port " + head, "", readsOne + " 503"},
		{"delete /v2.1/servers/{id}/os-interface/{port}", "id port " + head, "", "202 400 401 403 404 406 409 501 503"},
		{"post /v2.1/servers/{id}/os-interface", "id " + head, "body", "200 400 401 403 404 406 409 413 415 501 503"},
		{"post /v2.1/os-server-external-events", head, "body", "200 207 400 401 403 406 413 415 503"},
		{"get /v2.1/os-security-groups", "all_tenants limit offset " + head, "", reads + " 503"},
		{"get /v2.1/os-security-groups/{id}", "id " + head, "", readsOne + " 503"},
		{"get /v2.1/servers/{id}/os-security-groups", "id " + head, "", readsOne},
		{"delete /v2.1/servers/{id}/os-server-password", "id " + head, "", "204 400 401 403 404 406"},
		{"get /v2.1/servers/{id}/os-server-password", "id " + head, "", readsOne},
		{"get /v2.1/servers/{id}/os-volume_attachments", "id limit offset " + head, "", readsOne},
		{"post /v2.1/servers/{id}/os-volume_attachments", "id " + head, "body", "204 400 401 403 404 406 413 415"},
		{"get /v2.1/servers/{id}/os-volume_attachments/{volume}", "id volume " + head, "", "204 400 401 403 404 406"},
		{"put /v2.1/servers/{id}/os-volume_attachments/{volume}", "id volume " + head, "body", "204 400 401 403 404 406 413 415"},
		{"delete /v2.1/servers/{id}/os-volume_attachments/{volume}", "id volume " + head, "", "204 400 401 403 404 406"},
		{"post /v2.1/servers/{id}/action", "id " + head, actionNames(), "200 202 204 400 401 403 404 406 409 410 413 415 501 503"},
		{"get /v2.1/servers/{id}/os-instance-actions", "id " + head, "", readsOne},
		{"get /v2.1/servers/{id}/os-instance-actions/{request_id}", "id request_id " + head, "", readsOne},
		{"get /v2.1/servers/{id}/diagnostics", "id " + head, "", "200 400 401 403 404 406 409 503"},
		{"get /v2/", "", "", "200 400 406"},
	} {
		want[row[0]] = [3]string{row[1], row[2], row[3]}
	}
	got := map[string][3]string{}
	removed, refused := 0, 0
	for path, ops := range parse(t, printed(t, "openapi")).Paths {
		for method, op := range ops {
			if op.Summary == "Removed from Nova" {
				if _, ok := op.Responses["410"]; !ok || op.RequestBody != nil {
					t.Errorf("%s %s: %+v", method, path, op)
				}
				removed++
				continue
			}
			if op.Summary == "Not in nova-mini" {
				_, missing := op.Responses["501"]
				_, wrong := op.Responses["400"] // Nova itself refuses some operations
				if !missing && !wrong || op.RequestBody != nil {
					t.Errorf("%s %s: %+v", method, path, op)
				}
				refused++
				continue
			}
			var row [3]string
			var params []string
			for _, p := range op.Parameters {
				params = append(params, p.Name)
			}
			row[0] = strings.Join(params, " ")
			if op.RequestBody != nil {
				row[1] = "body"
				if names := op.actions(); len(names) > 0 {
					row[1] = strings.Join(names, " ")
				}
			}
			statuses := slices.Sorted(maps.Keys(op.Responses))
			row[2] = strings.TrimSuffix(strings.Join(statuses, " "), " default")
			got[method+" "+path] = row
			if op.Summary == "" {
				t.Errorf("%s %s has no summary", method, path)
			}
		}
	}
	if removed != 48 || refused != 57 {
		t.Errorf("%d operations are removed, and %d are refused", removed, refused)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("operations (-want +got):\n%s", diff)
	}
}
