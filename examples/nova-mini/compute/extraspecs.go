package compute

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// FlavorNeeds is what the extra specs of a flavor ask of the host of a server.
type FlavorNeeds struct {
	// Required and Forbidden are the traits that the host must have or must not have.
	Required, Forbidden []string
	// Conditions are the conditions on the capabilities and aggregates of the host, in the form of placement.Request.Specs.
	Conditions map[string]string
	// Refused is the first extra spec that no scheduler and no driver honors, such as "hw:numa_nodes = 2". No host is valid then. Empty: there is no such extra
	// spec.
	Refused string
}

// IsZero reports whether any host will do.
func (n *FlavorNeeds) IsZero() bool {
	return len(n.Required)+len(n.Forbidden)+len(n.Conditions) == 0 && n.Refused == ""
}

// The host capabilities. A flavor may use their names in capabilities:NAME or, as in Nova, without a scope.
const (
	HypervisorType     = "hypervisor_type"
	HypervisorHostname = "hypervisor_hostname"
	HypervisorHost     = "host"
)

// hideHypervisor is the older name of hw:hide_hypervisor_id. In Nova it has the same effect.
const hideHypervisor = "hide_hypervisor_id"

// refusedSpaces has the prefixes of the names of extra specs that change the guest or its host in Nova, and that no driver honors. Such an extra
// spec asks for nothing if its value in lower case is in the list off, or in the list that the map harmless has under its name.
var (
	refusedSpaces = strings.Fields(`hw: hw_rng: hw_video: os:secure_boot quota: accel: pci_passthrough:`)
	harmless      = map[string][]string{
		"hw:cpu_policy": {"shared"}, "hw:cpu_thread_policy": {"prefer"}, "hw:mem_page_size": {"small", "any"}, "hw:watchdog_action": {"disabled"}, "os:secure_boot": {"disabled"},
		"hw:emulator_threads_policy": {"share"}, "hw:pci_numa_affinity_policy": {"legacy", "preferred"}, "quota:cpu_shares_level": {"normal"},
	}
	off = strings.Fields(`false 0 off no f n`)
)

// NeedsOf returns what the extra specs of a flavor ask of a host. The second parameter is the resources of the server. As in Nova, a name without a scope is a condition
// on aggregates, and also on a host capability if one has this name. A name with a scope that Nova does not know asks for nothing.
func NeedsOf(specs map[string]string, has Resources) (out FlavorNeeds) {
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		value := specs[name]
		scope, rest, scoped := strings.Cut(name, ":")
		switch {
		case name == hideHypervisor && refusedSpec("hw:"+name, value):
			out.refuse(name, value)
		case !scoped:
			out.conditionWithoutScope(name, value)
		case scope == "capabilities", scope == "aggregate_instance_extra_specs":
			out.condition(name, value)
		case strings.HasPrefix(scope, "trait") && value == "required":
			out.Required = append(out.Required, rest)
		case strings.HasPrefix(scope, "trait") && value == "forbidden":
			out.Forbidden = append(out.Forbidden, rest)
		case strings.HasPrefix(scope, "resources") && !has.isAmount(scope, rest, value), refusedSpec(name, value):
			out.refuse(name, value)
		}
	}
	return out
}

func (n *FlavorNeeds) refuse(name, value string) {
	if n.Refused == "" {
		n.Refused = name + " = " + value
	}
}

func (n *FlavorNeeds) condition(name, value string) {
	if n.Conditions == nil {
		n.Conditions = map[string]string{}
	}
	n.Conditions[name] = value
}

// conditionWithoutScope adds a condition on aggregates and, if a host capability has this name, a condition on the capability. The scheduler checks a condition on aggregates
// only if an operator uses Nova's filter for aggregates.
func (n *FlavorNeeds) conditionWithoutScope(name, value string) {
	if slices.Contains([]string{HypervisorType, HypervisorHostname, HypervisorHost}, name) {
		n.condition("capabilities:"+name, value)
	}
	n.condition("aggregate_instance_extra_specs:"+name, value)
}

// isAmount reports whether an amount, as decimal text, is the one that r has of a resource class. For any other class the amount must be 0, and so must an amount in a
// numbered group, such as resources1, because such a group asks for more resources.
func (r Resources) isAmount(scope, class, text string) bool {
	want, err := strconv.Atoi(text)
	for _, a := range r.Amounts() {
		if scope == "resources" && a.Class == class {
			return err == nil && want == a.N
		}
	}
	return err == nil && want == 0
}

// refusedSpec reports whether an extra spec asks for something that no driver honors.
func refusedSpec(name, value string) bool {
	value = strings.ToLower(strings.TrimSpace(value))
	named := strings.HasPrefix(name, "accel:") || strings.HasPrefix(name, "pci_passthrough:") // the value is a name, also one such as "no"
	return slices.ContainsFunc(refusedSpaces, func(space string) bool { return strings.HasPrefix(name, space) }) &&
		(named || !slices.Contains(off, value)) && !slices.Contains(harmless[name], value)
}
