package api_test

import (
	"bytes"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/service/policy"
)

// TestPolicy checks which roles and scopes each rule allows.
func TestPolicy(t *testing.T) {
	t.Parallel()
	p, err := policy.New(api.Rules(), policy.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	own, other := policy.Credentials{UserID: "u", ProjectID: "p"}, policy.Credentials{UserID: "v", ProjectID: "q"}
	who := map[string]policy.Credentials{}
	for _, role := range []string{"admin", "member", "reader", "nothing"} {
		for scope, c := range map[string]policy.Credentials{
			"own": own, "other": other, "domain": {UserID: "u", DomainID: "d"}, "system": {UserID: "u", SystemScope: "all"},
		} {
			c.Roles = []string{role}
			who[role+" "+scope] = c
		}
	}
	const (
		admin  = "admin other, admin own"
		member = "admin other, admin own, member own"
		reader = "admin other, admin own, reader own"
		user   = "admin other, admin own, member own, nothing own, reader own"
		anyone = "admin other, admin own, member other, member own, nothing other, nothing own, reader other, reader own"
	)
	want := map[string]string{
		"os_compute_api:servers:create": member, "os_compute_api:servers:index": reader, "os_compute_api:servers:detail": reader,
		"os_compute_api:os-extended-server-attributes": admin, "os_compute_api:servers:show:host_status": admin,
		"os_compute_api:servers:show:flavor-extra-specs": reader, "os_compute_api:extensions": anyone,
		"os_compute_api:servers:create:forced_host": admin, "compute:servers:create:requested_destination": admin,
		"os_compute_api:servers:create:attach_network": member, "os_compute_api:servers:create:attach_volume": member,
		"os_compute_api:servers:create:trusted_certs": member, "os_compute_api:servers:rebuild:trusted_certs": member, "network:attach_external_network": admin,
		"os_compute_api:servers:show:host_status:unknown-only": admin,
		"os_compute_api:os-flavor-access":                      admin, "os_compute_api:os-flavor-access:add_tenant_access": admin,
		"os_compute_api:os-flavor-access:remove_tenant_access": admin,
		"os_compute_api:servers:detail:get_all_tenants":        admin, "os_compute_api:servers:allow_all_filters": admin,
		"os_compute_api:servers:index:get_all_tenants": admin, "os_compute_api:servers:show": reader, "os_compute_api:servers:delete": member,
		"os_compute_api:servers:start": member, "os_compute_api:servers:stop": member, "os_compute_api:servers:reboot": member, "os_compute_api:servers:resize": member,
		"os_compute_api:servers:confirm_resize": member, "os_compute_api:servers:revert_resize": member, "os_compute_api:os-console-output": member,
		"os_compute_api:servers:trigger_crash_dump": member,
		"os_compute_api:servers:rebuild":            member, "os_compute_api:servers:create_image": member, "os_compute_api:os-shelve:shelve": member, "os_compute_api:os-shelve:shelve_offload": admin,
		"os_compute_api:os-shelve:unshelve": member, "os_compute_api:os-admin-password": member, "os_compute_api:os-create-backup": member, "os_compute_api:os-remote-consoles": member,
		"os_compute_api:os-admin-actions:inject_network_info": admin, "os_compute_api:os-server-diagnostics": admin,
		"os_compute_api:os-instance-usage-audit-log:list": admin, "os_compute_api:os-instance-usage-audit-log:show": admin,
		"os_compute_api:os-simple-tenant-usage:list": admin, "os_compute_api:os-simple-tenant-usage:show": reader,
		"os_compute_api:os-server-groups:index": reader, "os_compute_api:os-server-groups:show": reader, "os_compute_api:os-server-groups:create": member,
		"os_compute_api:os-server-groups:delete": member, "os_compute_api:os-server-groups:index:all_projects": admin,
		"os_compute_api:os-instance-actions:list": reader, "os_compute_api:os-instance-actions:show": reader, "os_compute_api:os-instance-actions:events": admin,
		"os_compute_api:os-instance-actions:events:details": admin, "os_compute_api:os-shelve:unshelve_to_host": admin, "os_compute_api:os-pause-server:pause": member, "os_compute_api:os-pause-server:unpause": member, "os_compute_api:os-suspend-server:suspend": member,
		"os_compute_api:os-suspend-server:resume": member, "os_compute_api:os-rescue": member, "os_compute_api:os-unrescue": member,
		"os_compute_api:os-lock-server:lock": member, "os_compute_api:os-lock-server:unlock": member, "os_compute_api:os-lock-server:unlock:unlock_override": admin,
		"os_compute_api:os-admin-actions:reset_state": admin, "os_compute_api:os-deferred-delete:force": member, "os_compute_api:os-deferred-delete:restore": member,
		"os_compute_api:os-flavor-manage:create": admin, "os_compute_api:os-flavor-manage:delete": admin, "os_compute_api:os-services:list": admin,
		"os_compute_api:os-services:update": admin, "os_compute_api:os-hypervisors:list": admin, "os_compute_api:os-hypervisors:list-detail": admin,
		"os_compute_api:os-hypervisors:show": admin, "os_compute_api:os-hypervisors:statistics": admin, "os_compute_api:os-hypervisors:uptime": admin,
		"os_compute_api:os-hypervisors:search": admin, "os_compute_api:os-hypervisors:servers": admin,
		"os_compute_api:os-flavor-manage:update": admin, "os_compute_api:os-flavor-extra-specs:index": reader, "os_compute_api:os-flavor-extra-specs:show": reader,
		"os_compute_api:os-flavor-extra-specs:create": admin, "os_compute_api:os-flavor-extra-specs:update": admin, "os_compute_api:os-flavor-extra-specs:delete": admin,
		"os_compute_api:os-keypairs:index": user, "os_compute_api:os-keypairs:show": user, "os_compute_api:os-keypairs:create": user, "os_compute_api:os-keypairs:delete": user,
		"os_compute_api:limits": anyone, "os_compute_api:limits:other_project": admin, "os_compute_api:os-availability-zone:list": anyone, "os_compute_api:os-availability-zone:detail": admin,
		"os_compute_api:os-console-auth-tokens":           admin,
		"os_compute_api:server-metadata:index":            reader,
		"os_compute_api:server-metadata:show":             reader,
		"os_compute_api:os-server-tags:index":             reader,
		"os_compute_api:os-server-tags:show":              reader,
		"os_compute_api:ips:index":                        reader,
		"os_compute_api:ips:show":                         reader,
		"os_compute_api:os-server-password:show":          reader,
		"os_compute_api:os-security-groups:list":          reader,
		"os_compute_api:os-security-groups:get":           reader,
		"os_compute_api:os-security-groups:show":          reader,
		"os_compute_api:os-security-groups:add":           member,
		"os_compute_api:os-multinic:add":                  member,
		"os_compute_api:os-multinic:remove":               member,
		"os_compute_api:os-security-groups:remove":        member,
		"compute:server:topology:index":                   reader,
		"os_compute_api:os-volumes-attachments:index":     reader,
		"os_compute_api:os-volumes-attachments:show":      reader,
		"os_compute_api:os-volumes-attachments:create":    member,
		"os_compute_api:os-volumes-attachments:update":    member,
		"os_compute_api:os-volumes-attachments:delete":    member,
		"os_compute_api:os-attach-interfaces:list":        reader,
		"os_compute_api:servers:create:zero_disk_flavor":  admin,
		"os_compute_api:os-attach-interfaces:create":      member,
		"os_compute_api:os-attach-interfaces:delete":      member,
		"os_compute_api:os-server-external-events:create": admin,
		"os_compute_api:os-attach-interfaces:show":        reader,
		"os_compute_api:servers:update":                   member,
		"os_compute_api:server-metadata:create":           member,
		"os_compute_api:server-metadata:update_all":       member,
		"os_compute_api:server-metadata:update":           member,
		"os_compute_api:server-metadata:delete":           member,
		"os_compute_api:os-server-tags:update_all":        member,
		"os_compute_api:os-server-tags:update":            member,
		"os_compute_api:os-server-tags:delete_all":        member,
		"os_compute_api:os-server-tags:delete":            member,
		"os_compute_api:os-server-password:clear":         member,
		// The operations that nova-mini refuses.
		"compute:aggregates:images":                          admin,
		"os_compute_api:os-aggregates:add_host":              admin,
		"os_compute_api:os-aggregates:create":                admin,
		"os_compute_api:os-aggregates:delete":                admin,
		"os_compute_api:os-aggregates:index":                 admin,
		"os_compute_api:os-aggregates:remove_host":           admin,
		"os_compute_api:os-aggregates:set_metadata":          admin,
		"os_compute_api:os-aggregates:show":                  admin,
		"os_compute_api:os-aggregates:update":                admin,
		"os_compute_api:os-assisted-volume-snapshots:create": admin,
		"os_compute_api:os-assisted-volume-snapshots:delete": admin,
		"os_compute_api:os-baremetal-nodes:list":             admin,
		"os_compute_api:os-baremetal-nodes:show":             admin,
		"os_compute_api:os-evacuate":                         admin,
		"os_compute_api:os-floating-ip-pools":                anyone,
		"os_compute_api:os-floating-ips:add":                 member,
		"os_compute_api:os-floating-ips:create":              member,
		"os_compute_api:os-floating-ips:delete":              member,
		"os_compute_api:os-floating-ips:list":                reader,
		"os_compute_api:os-floating-ips:remove":              member,
		"os_compute_api:os-floating-ips:show":                reader,
		"os_compute_api:os-hosts:list":                       admin,
		"os_compute_api:os-hosts:reboot":                     admin,
		"os_compute_api:os-hosts:show":                       admin,
		"os_compute_api:os-hosts:shutdown":                   admin,
		"os_compute_api:os-hosts:start":                      admin,
		"os_compute_api:os-hosts:update":                     admin,
		"os_compute_api:os-migrate-server:migrate":           admin,
		"os_compute_api:os-migrate-server:migrate_live":      admin,
		"os_compute_api:os-migrations:index":                 admin,
		"os_compute_api:os-networks:list":                    reader,
		"os_compute_api:os-networks:show":                    reader,
		"os_compute_api:os-quota-class-sets:show":            admin,
		"os_compute_api:os-quota-class-sets:update":          admin,
		"os_compute_api:os-quota-sets:defaults":              anyone,
		"os_compute_api:os-quota-sets:delete":                admin,
		"os_compute_api:os-quota-sets:detail":                reader,
		"os_compute_api:os-quota-sets:show":                  reader,
		"os_compute_api:os-quota-sets:update":                admin,
		"os_compute_api:os-security-groups:create":           member,
		"os_compute_api:os-security-groups:delete":           member,
		"os_compute_api:os-security-groups:rule:create":      member,
		"os_compute_api:os-security-groups:rule:delete":      member,
		"os_compute_api:os-security-groups:update":           member,
		"os_compute_api:os-server-shares:create":             member,
		"os_compute_api:os-server-shares:delete":             member,
		"os_compute_api:os-server-shares:index":              reader,
		"os_compute_api:os-server-shares:show":               reader,
		"os_compute_api:os-services:delete":                  admin,
		"os_compute_api:os-tenant-networks:list":             reader,
		"os_compute_api:os-tenant-networks:show":             reader,
		"os_compute_api:os-volumes:create":                   member,
		"os_compute_api:os-volumes:delete":                   member,
		"os_compute_api:os-volumes:detail":                   reader,
		"os_compute_api:os-volumes:list":                     reader,
		"os_compute_api:os-volumes:show":                     reader,
		"os_compute_api:os-volumes:snapshots:create":         member,
		"os_compute_api:os-volumes:snapshots:delete":         member,
		"os_compute_api:os-volumes:snapshots:detail":         reader,
		"os_compute_api:os-volumes:snapshots:list":           reader,
		"os_compute_api:os-volumes:snapshots:show":           reader,
		"os_compute_api:servers:migrations:delete":           admin,
		"os_compute_api:servers:migrations:force_complete":   admin,
		"os_compute_api:servers:migrations:index":            admin,
		"os_compute_api:servers:migrations:show":             admin,
		// Rules that only other rules use have no scope.
		"context_is_admin":   "admin domain, admin other, admin own, admin system",
		"project_member_api": "member own", "project_reader_api": "reader own",
		"project_member_or_admin": "admin domain, admin other, admin own, admin system, member own",
		"project_reader_or_admin": "admin domain, admin other, admin own, admin system, reader own",
		"admin_api":               "admin domain, admin other, admin own, admin system",
		"admin_or_owner":          "admin domain, admin other, admin own, admin system, member own, nothing own, reader own",
		"service_api":             "", "service_or_admin": "admin domain, admin other, admin own, admin system",
		"project_manager_api":      "",
		"project_manager_or_admin": "admin domain, admin other, admin own, admin system",
	}
	target := map[string]any{"project_id": "p", "user_id": "u"}
	seen := map[string]bool{}
	for _, r := range api.Rules() {
		seen[r.Name] = true
		var may []string
		for _, name := range slices.Sorted(maps.Keys(who)) {
			if p.Check(who[name], r.Name, target) == nil {
				may = append(may, name)
			}
		}
		if got := strings.Join(may, ", "); got != want[r.Name] {
			t.Errorf("%s allows %s; want %s", r.Name, got, want[r.Name])
		}
		if r.Description == "" || len(r.Scopes) > 0 && len(r.Operations) == 0 {
			t.Errorf("rule %s has no description or operation", r.Name)
		}
	}
	for name := range want {
		if !seen[name] {
			t.Errorf("rule %s does not exist", name)
		}
	}
	var sample bytes.Buffer
	if err := policy.Sample(&sample, api.Rules()); err != nil || !strings.Contains(sample.String(), `#"os_compute_api:servers:create": "rule:project_member_or_admin"`) {
		t.Errorf("%s, %v", &sample, err)
	}
}

// TestOlderNames: a policy file of an older Nova has one rule for all operations on hypervisors, and one rule for those on services. Each of
// these rules applies to all rules into which Nova has split it.
func TestOlderNames(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "policy.yaml")
	text := "os_compute_api:os-hypervisors: 'role:operator'\nos_compute_api:os-services: 'role:operator'\nos_compute_api:os-services:update: 'role:chief'\nos_compute_api:os-instance-usage-audit-log: 'role:operator'\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := policy.New(api.Rules(), policy.Config{File: file, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for rule, want := range map[string]string{
		"os_compute_api:os-hypervisors:list": "operator", "os_compute_api:os-hypervisors:list-detail": "operator",
		"os_compute_api:os-hypervisors:show": "operator", "os_compute_api:os-services:list": "operator",
		"os_compute_api:os-services:update": "chief", "os_compute_api:os-instance-usage-audit-log:list": "operator", "os_compute_api:os-instance-usage-audit-log:show": "operator", "os_compute_api:servers:index:get_all_tenants": "admin",
	} {
		for _, role := range []string{"operator", "chief", "admin"} {
			err := p.Check(policy.Credentials{UserID: "u", ProjectID: "p", Roles: []string{role}}, rule, nil)
			if (err == nil) != (role == want) {
				t.Errorf("%s, role %s: %v; the rule allows %s", rule, role, err, want)
			}
		}
	}
}
