package api

import (
	"context"
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleSpecs      = "os_compute_api:os-flavor-extra-specs:index"
	ruleSpecShow   = "os_compute_api:os-flavor-extra-specs:show"
	ruleSpecCreate = "os_compute_api:os-flavor-extra-specs:create"
	ruleSpecUpdate = "os_compute_api:os-flavor-extra-specs:update"
	ruleSpecDelete = "os_compute_api:os-flavor-extra-specs:delete"
)

var specRules = []rule{
	{ruleSpecs, "rule:project_reader_or_admin", "List the extra specs of a flavor", "GET", "/flavors/{flavor_id}/os-extra_specs"},
	{ruleSpecShow, "rule:project_reader_or_admin", "Show an extra spec of a flavor", "GET", "/flavors/{flavor_id}/os-extra_specs/{key}"},
	{ruleSpecCreate, "rule:context_is_admin", "Add extra specs to a flavor", "POST", "/flavors/{flavor_id}/os-extra_specs"},
	{ruleSpecUpdate, "rule:context_is_admin", "Change an extra spec of a flavor", "PUT", "/flavors/{flavor_id}/os-extra_specs/{key}"},
	{ruleSpecDelete, "rule:context_is_admin", "Remove an extra spec of a flavor", "DELETE", "/flavors/{flavor_id}/os-extra_specs/{key}"},
}

// specRoutes registers the routes of the extra specs of flavors. Since 2.86 the known names and their values are checked.
func (s *server) specRoutes(all, withBody *api.Group) {
	t := s.flavorTarget()
	read := api.NewGroup(all, api.Route{Pattern: "/flavors/{id}/os-extra_specs", Errors: []int{notFound}})
	write := api.NewGroup(withBody, api.Route{Pattern: "/flavors/{id}/os-extra_specs", Errors: []int{notFound}})
	// The target of the two rules for readers is the client's project, so the handlers enforce these rules.
	api.HandleRoute(read, api.Route{Pattern: "GET", Summary: "List the extra specs of a flavor", Query: noQuery}, s.listSpecs)
	api.HandleRoute(read, api.Route{Pattern: "GET /{key}", Summary: "Show an extra spec of a flavor", Query: noQuery}, s.showSpec)
	api.HandleTarget(read, api.Route{Pattern: "DELETE /{key}", Rule: ruleSpecDelete, Summary: "Remove an extra spec of a flavor", Status: 200}, t, s.deleteSpec)
	for _, v := range []struct {
		min, max string
		check    func(name, value string) error
	}{
		{"", "2.85", func(string, string) error { return nil }},
		{"2.86", "", checkSpec},
	} {
		api.HandleTarget(write, api.Route{Pattern: "POST", Min: v.min, Max: v.max, Rule: ruleSpecCreate, Summary: "Add extra specs to a flavor"}, t,
			func(ctx context.Context, r *api.Request[newSpecs], f *store.Flavor) (newSpecs, error) {
				return r.Body, s.setSpecs(ctx, f, r.Body.ExtraSpecs, v.check)
			})
		api.HandleTarget(write, api.Route{Pattern: "PUT /{key}", Min: v.min, Max: v.max, Rule: ruleSpecUpdate, Summary: "Change an extra spec of a flavor"}, t,
			func(ctx context.Context, r *api.Request[oneSpec], f *store.Flavor) (oneSpec, error) {
				if _, ok := r.Body[r.PathValue("key")]; !ok {
					return nil, fault.New(fault.Invalid, "Request body and URI mismatch")
				}
				return r.Body, s.setSpecs(ctx, f, specValues(r.Body), v.check)
			})
	}
}

// specValues are the extra specs in a request. A value is a text or a number.
type specValues map[string]json.RawMessage

// JSONSchema implements api.JSONSchemer.
func (specValues) JSONSchema() string {
	return `{"type": "object", "additionalProperties": false, "patternProperties": {"^[a-zA-Z0-9-_:. ]{1,255}$": {"type": ["string", "number"], "maxLength": 255}}}`
}

// oneSpec is a body with one extra spec.
type oneSpec map[string]json.RawMessage

// JSONSchema implements api.JSONSchemer.
func (oneSpec) JSONSchema() string {
	return `{"type": "object", "additionalProperties": false, "minProperties": 1, "maxProperties": 1,
		"patternProperties": {"^[a-zA-Z0-9-_:. ]{1,255}$": {"type": ["string", "number"], "maxLength": 255}}}`
}

type newSpecs struct {
	ExtraSpecs specValues `json:"extra_specs"`
}

type specList struct {
	ExtraSpecs metadata `json:"extra_specs"`
}

// specs returns the extra specs of the flavor that a path names.
func (s *server) specs(ctx context.Context, r *api.Request[api.None], rule string) (metadata, error) {
	if err := s.mux.Enforce(ctx, rule, nil); err != nil {
		return nil, err
	}
	f, err := s.flavorTarget().Load(ctx, r.Request)
	if err != nil {
		return nil, err
	}
	return f.Specs(), nil
}

func (s *server) listSpecs(ctx context.Context, r *api.Request[api.None]) (specList, error) {
	specs, err := s.specs(ctx, r, ruleSpecs)
	return specList{specs}, err
}

func (s *server) showSpec(ctx context.Context, r *api.Request[api.None]) (metadata, error) {
	specs, err := s.specs(ctx, r, ruleSpecShow)
	if err != nil {
		return nil, err
	}
	key := r.PathValue("key")
	value, ok := specs[key]
	if !ok {
		return nil, store.NoSpec(r.PathValue("id"), key)
	}
	return metadata{key: value}, nil
}

func (s *server) deleteSpec(ctx context.Context, r *api.Request[api.None], f *store.Flavor) (api.None, error) {
	return api.None{}, s.cfg.Store.DeleteSpec(ctx, f.ID, r.PathValue("key"))
}

func (s *server) setSpecs(ctx context.Context, f *store.Flavor, specs specValues, check func(name, value string) error) error {
	out := map[string]string{}
	for name, raw := range specs {
		out[name] = plainText(raw)
		if len(out[name]) > 255 && raw[0] != '"' { // a number; the schema has checked the length of a text
			return fault.New(fault.Invalid, "Invalid input received: extra_specs value has %d characters, more than 255.", len(out[name]))
		}
		if err := check(name, out[name]); err != nil {
			return err
		}
	}
	return s.cfg.Store.SetSpecs(ctx, f.ID, out)
}

// specChecks has the extra specs that Nova knows. The check of a value is a kind (any, bool, int, int>=MIN, int=MIN..MAX), an enumeration with its values
// separated by |, or a regular expression that begins with ^. In a name, # stands for a number, and [] for the optional name of a request
// group. The source is nova/api/validation/extra_specs of Nova at 00a0304.
var specChecks = []struct{ check, names string }{
	{"any", `accel:device_profile aggregate_instance_extra_specs:.+ vmware:hw_version vmware:storage_policy
		capabilities:(id|uuid|service_id|host|vcpus|memory_mb|local_gb|vcpus_used|memory_mb_used|local_gb_used|hypervisor_type|hypervisor_version)
		capabilities:(hypervisor_hostname|free_ram_mb|free_disk_gb|current_workload|running_vms|disk_available_least|host_ip|mapped|cpu_allocation_ratio)
		capabilities:(ram_allocation_ratio|disk_allocation_ratio|total_usable_ram_mb|total_usable_disk_gb|disk_mb_used|free_disk_mb|vcpus_total)
		capabilities:(num_instances|num_io_ops|failed_builds|aggregates|cell_uuid|updated)
		capabilities:(cpu_info|metrics|stats|numa_topology|supported_hv_specs|pci_device_pools|nodename|pci_stats|supported_instances|limits|instances)(:\w+)*`},
	{"bool", `hw:cpu_realtime hw:hide_hypervisor_id hw:locked_memory hw:boot_menu hw:vif_multiqueue_enabled hw:mem_encryption hw:pmu
		hw:virtio_packed_ring hw:ephemeral_encryption hw_rng:allowed hide_hypervisor_id`},
	{"int", `quota:cpu_quota quota:(cpu|memory|disk_io|vif)_reservation resources[]:(CUSTOM_[A-Z0-9_]+|VCPU|MEMORY_MB|DISK_GB|PCI_DEVICE|SRIOV_NET_VF|
		|NUMA_SOCKET|NUMA_CORE|NUMA_THREAD|NUMA_MEMORY_MB|IPV4_ADDRESS|VGPU|VGPU_DISPLAY_HEAD|NET_BW_EGR_KILOBIT_PER_SEC|NET_BW_IGR_KILOBIT_PER_SEC|
		|PCPU|MEM_ENCRYPTION_CONTEXT|FPGA|PGPU|NET_PACKET_RATE_KILOPACKET_PER_SEC|NET_PACKET_RATE_EGR_KILOPACKET_PER_SEC|NET_PACKET_RATE_IGR_KILOPACKET_PER_SEC)`},
	{"int>=0", `hw:serial_port_count hw_rng:rate_(bytes|period) hw_video:ram_max_mb quota:(cpu|memory|disk_io|vif)_(limit|shares_share)
		quota:cpu_(shares|period) quota:disk_(read|write|total)_(bytes|iops)_sec quota:vif_(inbound|outbound)_(average|peak|burst)`},
	{"int>=1", `hw:numa_nodes hw:numa_mem\.# hw:cpu_(max_)?(sockets|cores|threads)`},
	{"int=0..15", `hw:redirected_usb_ports`},
	{"dedicated|shared|mixed", `hw:cpu_policy`},
	{"prefer|isolate|require", `hw:cpu_thread_policy`},
	{"isolate|share", `hw:emulator_threads_policy`},
	{"required|preferred|legacy|socket", `hw:pci_numa_affinity_policy`},
	{"amd-sev|amd-sev-es|amd-sev-snp", `hw:mem_encryption_model`},
	{"tpm-tis|tpm-crb", `hw:tpm_model`},
	{"1.2|2.0", `hw:tpm_version`},
	{"user|host|deployment", `hw:tpm_secret_security`},
	{"none|pause|poweroff|reset|disabled", `hw:watchdog_action`},
	{"intel|smmuv3|virtio|auto", `hw:viommu_model`},
	{"sb16|es1370|pcspk|ac97|ich6|ich9|usb|virtio", `hw:sound_model`},
	{"none|nec-xhci|qemu-xhci", `hw:usb_model`},
	{"plain|luks|luksv2", `hw:ephemeral_encryption_format`},
	{"isolate|none", `group_policy`},
	{"disabled|required", `os:secure_boot`},
	{"custom|high|normal|low", `quota:(cpu|memory|disk_io|vif)_shares_level`},
	{"required|forbidden", `trait[]:[A-Z0-9_]+`},
	{`^(\^)?\d+((-\d+)?(,\^?\d+(-\d+)?)?)*`, `hw:cpu_realtime_mask`},
	{`^\^?\d+((-\d+)?(,\^?\d+(-\d+)?)?)*`, `hw:cpu_dedicated_mask hw:numa_cpus\.#`},
	{`^(large|small|any|\d+([kKMGT]i?)?(b|bit|B)?)`, `hw:mem_page_size`},
	{`^([a-zA-Z0-9_]+(,)?)+`, `hw:pmem`},
	{`^[^:]+:\d+(?:\s*,\s*[^:]+:\d+)*`, `pci_passthrough:alias`},
}

// knownSpec is one name of specChecks, which may match several extra specs, and the check of their values.
type knownSpec struct {
	names *regexp.Regexp
	check string
}

// knownSpecs are the names of specChecks. knownSpaces matches names that begin with a namespace that Nova reserves: the part before the colon.
var knownSpecs, knownSpaces = func() (specs []knownSpec, spaces *regexp.Regexp) {
	var prefixes []string
	for _, row := range specChecks {
		for name := range strings.FieldsSeq(strings.ReplaceAll(row.names, "|\n\t\t|", "|")) {
			name = strings.NewReplacer("#", `\d+`, "[]", `([a-zA-Z0-9_-]{1,64})?`).Replace(name)
			specs = append(specs, knownSpec{regexp.MustCompile("^(?:" + name + ")$"), row.check})
			if prefix, _, ok := strings.Cut(name, ":"); ok {
				prefixes = append(prefixes, prefix)
			}
		}
	}
	return specs, regexp.MustCompile("^(?:" + strings.Join(prefixes, "|") + "):")
}()

// checkSpec checks an extra spec. A name in a namespace that Nova does not reserve may have any value. Errors: Invalid, with Nova's texts.
func checkSpec(name, value string) error {
	for _, known := range knownSpecs {
		if known.names.MatchString(name) {
			return checkSpecValue(known.check, value)
		}
	}
	if knownSpaces.MatchString(name) {
		return fault.New(fault.Invalid, "Validation failed; extra spec '%s' does not appear to be a valid extra spec.", name)
	}
	return nil
}

func checkSpecValue(check, value string) error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "Validation failed; '%s' "+format, append([]any{value}, args...)...)
	}
	switch {
	case check == "any":
		return nil
	case check == "bool":
		if _, ok := parseTruth(value); !ok {
			return bad("is not a valid boolean-like value.")
		}
		return nil
	case strings.HasPrefix(check, "int"):
		n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		low, high, _ := strings.Cut(strings.TrimLeft(check, "int>="), "..")
		least, lowErr := strconv.ParseInt(low, 10, 64)
		most, highErr := strconv.ParseInt(high, 10, 64)
		switch {
		case err != nil:
			return bad("is not a valid integer value.")
		case highErr == nil && n > most:
			return bad("is greater than the max value of '%d'.", most)
		case lowErr == nil && n < least:
			return bad("is less than the min value of '%d'.", least)
		}
		return nil
	case check[0] == '^':
		if ok, _ := regexp.MatchString("^(?:"+check[1:]+")$", value); !ok { // specChecks has valid expressions, see TestSpecChecks
			return bad("is not of the format '%s'.", check[1:])
		}
		return nil
	}
	values := strings.Split(check, "|")
	if slices.Contains(values, value) {
		return nil
	}
	return bad("is not one of: %s.", strings.Join(values, ", "))
}
