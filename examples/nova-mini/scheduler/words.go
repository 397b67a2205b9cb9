package scheduler

import (
	"fmt"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/placement"
)

// words says for administrators why each filter rejects a host.
var words = map[string]string{
	"aggregate_properties": "an aggregate of the host is for other properties of the image",
	"aggregate_specs":      "no aggregate of the host has the metadata that the flavor asks for",
	"aggregate_tenant":     "an aggregate of the host is for other projects",
	"aggregate_type":       "an aggregate of the host is for other flavors",
	"affinity":             "not the host of the server group",
	"anti_affinity":        "has a server of the same server group",
	"capabilities":         "does not have the capabilities in the extra specs of the flavor",
	"consumers":            "has max_instances_per_host servers",
	"different_host":       "has a server that the hint different_host names",
	"disabled":             "an operator has disabled the compute service",
	"down":                 "the compute service sends no heartbeats",
	"driver":               "the driver does not have a capability that the server needs",
	"extra_specs":          "no driver can do the extra specs of the flavor",
	"forced":               "not the host that the request asks for",
	"ignored":              "the request excludes the host",
	"platform":             "does not have the architecture, hypervisor or machine mode that the image asks for",
	"resources":            "too little of another resource is free",
	"same_host":            "has no server that the hint same_host names",
	"stale":                "the data about the host are too old",
	"tasks":                "too many builds and other tasks run there",
	"traits":               "does not have a trait that the flavor or the image asks for",
	"tried":                "a build of this server has failed there",
	"zone":                 "in another availability zone",
	placement.VCPU:         "too few VCPUs are free",
	placement.MemoryMB:     "too little memory is free",
	placement.DiskGB:       "too little disk space is free",
}

// InWords says why a filter rejects a host. It returns "" if the filter does not exist.
func InWords(filter string) string { return words[filter] }

// countInWords counts the feasible hosts of a decision, and the rejected ones by filter, with the words of the filter: "0 of 4 hosts: 3 MEMORY_MB (too
// little memory is free), 1 disabled (an operator has disabled the compute service)".
func countInWords(d *scheduler.Decision[*store.Host]) string {
	parts, all := make([]string, len(d.Counts)), d.Feasible
	for i, c := range d.Counts {
		all += c.Hosts
		parts[i] = fmt.Sprintf("%d %s", c.Hosts, c.Filter)
		if w := words[c.Filter]; w != "" {
			parts[i] += " (" + w + ")"
		}
	}
	if len(parts) == 0 {
		return d.Summary()
	}
	return fmt.Sprintf("%d of %d hosts: %s", d.Feasible, all, strings.Join(parts, ", "))
}
