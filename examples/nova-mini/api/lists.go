package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/reqctx"
)

// This file declares the filters and sort keys of lists. Parameters that Nova does not have are ignored before microversion 2.75, as
// in Nova. Parameters that Nova has are implemented, or refused by name.

// strictSince is the microversion from which unknown parameters of servers are refused.
const strictSince = "2.75"

// servers are all filters and sort keys that Nova has at microversion 2.1. A filter is refused if nova-mini does not have the attribute,
// or if Nova refuses the filter, too. Nova's other sort keys are refused, because nova-mini does not have their attributes. A filter
// without a column is applied by serverQuery.
var servers = listing.Spec{
	MaxLimit: MaxLimit, Lenient: true, StrictSince: strictSince,
	Default:          listing.SortKey{Column: "created_at", Desc: true},
	InvalidDirection: "Invalid input received: Unknown sort direction, must be 'desc' or 'asc'",
	Filters: append([]listing.Filter{
		{Name: "uuid", Column: "id"},
		{Name: "project_id", Column: "project_id"},
		{Name: "tenant_id", Column: "project_id"},
		{Name: "user_id", Column: "user_id"},
		{Name: "image", Column: "image_ref"},
		{Name: "image_ref", Column: "image_ref"},
		{Name: "flavor", Column: "flavor_id"},
		{Name: "vm_state", Column: "vm_state"},
		{Name: "task_state", Column: "task_state"},
		{Name: "name", Column: "name", Operator: listing.Regexp},
		{Name: "display_name", Column: "name", Operator: listing.Regexp},
		{Name: "changes-since", Column: "updated_at", Kind: listing.Time, Operator: listing.AtLeast},
		{Name: "host", Column: "host", Rule: ruleAllFilters, Denied: hostFilter("host")},
		{Name: "node", Column: "host", Operator: listing.Regexp, Rule: ruleAllFilters, Denied: hostFilter("node")},
		{Name: "power_state", Operator: listing.Regexp},
		{Name: "availability_zone", Operator: listing.Regexp},
		{Name: "created_at", Operator: listing.Regexp},
		{Name: "launched_at", Operator: listing.Regexp},
		{Name: "status", Operator: listing.In},
		{Name: "deleted"},
		{Name: "all_tenants"},
	}, refusedFilters(`access_ip_v4 access_ip_v6 auto_disk_config config_drive description display_description hostname ip ip6 kernel_id key_name
		launch_index locked_by progress ramdisk_id reservation_id root_device_name soft_deleted terminated_at
		block_device_mapping info_cache metadata pci_devices security_groups services system_metadata`)...),
	Sorts: []listing.Sort{
		{Name: "created_at", Column: "created_at"},
		{Name: "updated_at", Column: "updated_at"},
		{Name: "launched_at", Column: "launched_at"},
		{Name: "display_name", Column: "name"},
		{Name: "uuid", Column: "id"},
		{Name: "host", Column: "host", Rule: ruleAdmin, Denied: hostSort("host")},
		{Name: "node", Column: "host", Rule: ruleAdmin, Denied: hostSort("node")},
		{Name: "image_ref", Column: "image_ref"},
		{Name: "instance_type_id", Column: "flavor_id"},
		{Name: "project_id", Column: "project_id"},
		{Name: "user_id", Column: "user_id"},
		{Name: "task_state", Column: "task_state"},
		{Name: "vm_state", Column: "vm_state"},
	},
}

// Only administrators may filter and sort by attributes that reveal the host of a server.
func hostFilter(name string) error {
	return fault.New(fault.Invalid, "Invalid filter field: %s. Only administrators can filter servers by it.", name)
}

func hostSort(name string) error {
	return fault.New(fault.Denied, "Only administrators can sort servers by %s", name)
}

func refusedFilters(names string) (out []listing.Filter) {
	for name := range strings.FieldsSeq(names) {
		out = append(out, listing.Filter{Name: name, Operator: listing.Refused})
	}
	return out
}

// shownTexts are the attributes of a server that are no columns, for filters by regular expressions. nil does not match.
var shownTexts = map[string]func(*store.Server) *string{
	"power_state":       func(s *store.Server) *string { return new(strconv.Itoa(int(s.PowerState()))) },
	"availability_zone": func(s *store.Server) *string { return new(zoneOf(s)) },
	"created_at":        func(s *store.Server) *string { return new(formatSeconds(s.CreatedAt)) },
	"launched_at":       func(s *store.Server) *string { return (*string)(formatMicros(s.LaunchedAt)) },
}

// administrator reports whether the client is an administrator.
func (s *server) administrator(ctx context.Context) bool {
	return s.mux.Enforce(ctx, ruleAdmin, nil) == nil
}

// serverQuery completes what a request for a list of servers selects.
func (s *server) serverQuery(ctx context.Context, r *http.Request, list listing.Query, allRule string) (q store.ServerQuery, err error) {
	q.Query = list
	if q.In, err = s.projects(ctx, q.Take("all_tenants"), allRule); err != nil {
		return q, err
	}
	for name := range r.URL.Query() {
		if strings.HasPrefix(name, "_") { // as in Nova
			return q, fault.New(fault.Invalid, "Invalid filter field: %.100s.", name)
		}
	}
	for _, c := range q.Take("status") {
		for _, v := range c.Values {
			q.Statuses = append(q.Statuses, fmt.Sprint(v))
		}
	}
	if len(q.Statuses) > 0 && !slices.ContainsFunc(q.Statuses, func(name string) bool { return !strings.EqualFold(name, "deleted") }) && !s.administrator(ctx) {
		return q, fault.New(fault.Denied, "Only administrators may list deleted instances")
	}
	// The database has no deleted servers, so a true value selects no server. A text that is not a boolean counts as false, as in Nova.
	q.Nothing = slices.ContainsFunc(q.Take("deleted"), func(c listing.Condition) bool { return isTrue(textOf(c)) })
	for name, shown := range shownTexts {
		for _, c := range q.Take(name) {
			q.Keep = append(q.Keep, func(s *store.Server) bool {
				text := shown(s)
				return text != nil && c.Match(*text)
			})
		}
	}
	return q, nil
}

// textOf returns the value of a condition with one value.
func textOf(c listing.Condition) string { return fmt.Sprint(c.Values[0]) }

// projects returns the projects whose servers are listed: the client's project, or all projects if the client asks for all and
// the rule allows this.
func (s *server) projects(ctx context.Context, allTenants []listing.Condition, allRule string) (store.Projects, error) {
	own := store.OfProject(reqctx.From(ctx).ProjectID)
	if len(allTenants) == 0 {
		return own, nil
	}
	text := textOf(allTenants[0])
	switch all, ok := parseTruth(text); {
	case !ok && strings.TrimSpace(text) != "": // without a value it is true
		return own, fault.New(fault.Invalid, "Invalid input received: Unrecognized value '%.100s', "+
			"acceptable values are: '0', '1', 'f', 'false', 'n', 'no', 'off', 'on', 't', 'true', 'y', 'yes'", text)
	case ok && !all:
		return own, nil
	}
	return store.AllProjects(), s.mux.Enforce(ctx, allRule, nil)
}
