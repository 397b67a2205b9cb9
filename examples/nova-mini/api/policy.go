package api

import (
	"slices"
	"strings"

	"github.com/armature-go/armature/service/policy"
)

// ruleAdmin is the name of the rule that identifies administrators.
const ruleAdmin = "context_is_admin"

// rule is a policy rule that guards a route: the name and the check, as in Nova, the description of what the rule allows, and the route.
type rule struct{ name, check, what, method, path string }

// splitRules are the older names of rules that Nova 21.0.0 has split. If a policy file still has such a rule, its check
// applies to each rule whose name begins with the older name and a colon.
var splitRules = []string{"os_compute_api:os-hypervisors", "os_compute_api:os-services", "os_compute_api:os-instance-usage-audit-log"}

// olderName returns the older name of a rule, or nil if the rule had no other name.
func olderName(name string) *policy.Deprecated {
	for _, older := range splitRules {
		if strings.HasPrefix(name, older+":") {
			return &policy.Deprecated{Name: older, Reason: "The rule was split.", Since: "21.0.0"}
		}
	}
	return nil
}

// Rules returns the rules of the policy, with the default checks of Nova Zed. The first rules guard no route, but other rules and policy files refer to them.
func Rules() []policy.Rule {
	rules := []policy.Rule{
		{Name: ruleAdmin, Check: "role:admin", Description: "An administrator."},
		{Name: "admin_api", Check: "rule:context_is_admin", Description: "An administrator, in policies from before Nova 21.0.0."},
		{Name: "admin_or_owner", Check: "rule:context_is_admin or project_id:%(project_id)s", Description: "A user of the project, or an administrator, in policies from before Nova 21.0.0."},
		{Name: "service_api", Check: "role:service", Description: "Another service."},
		{Name: "service_or_admin", Check: "rule:service_api or rule:context_is_admin", Description: "Another service, or an administrator."},
		{Name: "project_manager_api", Check: "role:manager and project_id:%(project_id)s", Description: "A manager of the project."},
		{Name: "project_manager_or_admin", Check: "rule:project_manager_api or rule:context_is_admin", Description: "A manager of the project, or an administrator."},
		{Name: "project_member_api", Check: "role:member and project_id:%(project_id)s", Description: "A member of the project."},
		{Name: "project_reader_api", Check: "role:reader and project_id:%(project_id)s", Description: "A reader of the project."},
		{Name: "project_member_or_admin", Check: "rule:project_member_api or rule:context_is_admin", Description: "A member of the project, or an administrator."},
		{Name: "project_reader_or_admin", Check: "rule:project_reader_api or rule:context_is_admin", Description: "A reader of the project, or an administrator."},
	}
	for _, r := range slices.Concat(
		extensionRules,
		serverRules, metadataRules, tagRules, partRules, interfaceRules, securityGroupRules, eventRules,
		actionRules, consoleRules,
		diagnosticsRules,
		instanceActionRules,
		flavorRules,
		specRules,
		keyPairRules,
		limitRules,
		groupRules,
		usageRules,
		auditRules,
		zoneRules,
		serviceRules,
		hypervisorRules,
		refusedRules,
	) {
		rules = append(rules, policy.Rule{
			Name: r.name, Check: r.check, Description: r.what + ".", Scopes: []string{"project"},
			Operations: []policy.Operation{{Method: r.method, Path: r.path}}, Deprecated: olderName(r.name),
		})
	}
	return rules
}
