package api

import (
	"context"
	"fmt"
	"maps"
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

// servers are all filters and sort keys that Nova has. A filter is refused if Nova refuses the filter, too. A filter without a column is applied by
// serverQuery. Nova's sort keys that have no effect are refused.
var servers = listing.Spec{
	MaxLimit: MaxLimit, Lenient: true, StrictSince: strictSince,
	Default:          listing.SortKey{Column: "created_at", Desc: true},
	InvalidDirection: "Invalid input received: Unknown sort direction, must be 'desc' or 'asc'",
	Filters: slices.Concat([]listing.Filter{
		{Name: "uuid", Column: "id"},
		{Name: "project_id", Column: "project_id"},
		{Name: "tenant_id", Column: "project_id"},
		{Name: "user_id", Column: "user_id"},
		{Name: "image", Column: "image_ref"},
		{Name: "image_ref", Column: "image_ref"},
		{Name: "flavor", Column: "flavor_id"},
		{Name: "vm_state", Column: "vm_state"},
		{Name: "task_state", Column: "task_state"},
		{Name: "changes-since", Column: "updated_at", Kind: listing.Time, Operator: listing.AtLeast},
		{Name: "changes-before", Column: "updated_at", Kind: listing.Time, Operator: listing.AtMost, Since: "2.66"},
		{Name: "host", Column: "host", Rule: ruleAllFilters, Denied: hostFilter("host")},
		{Name: "node", Column: "host", Operator: listing.Regexp, Rule: ruleAllFilters, Denied: hostFilter("node")},
		{Name: "status", Operator: listing.In, Until: "2.37"},
		{Name: "status", Operator: listing.In, Since: "2.38", Values: append(store.Statuses(), store.StatusDeleted, "MIGRATING"), Invalid: "Invalid status value"},
		{Name: "locked", Column: "locked", Kind: listing.Boolean, Since: "2.73", Invalid: unrecognizedBool},
		{Name: "tags", Since: "2.26"},
		{Name: "tags-any", Since: "2.26"},
		{Name: "not-tags", Since: "2.26"},
		{Name: "not-tags-any", Since: "2.26"},
		{Name: "deleted"},
		{Name: "soft_deleted"},
		{Name: "all_tenants"},
	},
		regexpFilters("name", "name display_name"), regexpFilters("description", "description display_description"),
		regexpFilters("hostname", "hostname"), regexpFilters("key_name", "key_name"), regexpFilters("reservation_id", "reservation_id"),
		regexpFilters("access_ip_v4", "access_ip_v4"), regexpFilters("access_ip_v6", "access_ip_v6"),
		regexpFilters("", strings.Join(slices.Sorted(maps.Keys(textFilters)), " ")),
		refusedFilters("block_device_mapping info_cache metadata pci_devices security_groups services system_metadata"),
	),
	Sorts: append([]listing.Sort{
		{Name: "display_name", Column: "name"},
		{Name: "display_description", Column: "description"},
		{Name: "uuid", Column: "id"},
		{Name: "host", Column: "host", Rule: ruleAdmin, Denied: hostSort("host")},
		{Name: "node", Column: "host", Rule: ruleAdmin, Denied: hostSort("node")},
		{Name: "instance_type_id", Column: "flavor_id"},
		{Name: "locked", Column: "locked", Since: "2.73"},
	}, sameSorts(`created_at updated_at launched_at terminated_at image_ref project_id user_id task_state vm_state power_state availability_zone access_ip_v4 access_ip_v6
		auto_disk_config config_drive hostname kernel_id key_name launch_index locked_by progress ramdisk_id root_device_name`)...),
}

// regexpFilters returns filters with regular expressions for a column. Without a column they are applied by serverQuery.
func regexpFilters(column, names string) (out []listing.Filter) {
	for name := range strings.FieldsSeq(names) {
		out = append(out, listing.Filter{Name: name, Column: column, Operator: listing.Regexp})
	}
	return out
}

// sameSorts returns sort keys that have the names of their columns.
func sameSorts(names string) (out []listing.Sort) {
	for name := range strings.FieldsSeq(names) {
		out = append(out, listing.Sort{Name: name, Column: name})
	}
	return out
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

// shownTexts are the attributes of a server that are no columns with texts, for filters by regular expressions. nil does not match.
var shownTexts = map[string]func(*store.Server) *string{
	"power_state":       func(s *store.Server) *string { return new(strconv.Itoa(int(s.PowerState()))) },
	"availability_zone": func(s *store.Server) *string { return new(zoneOf(s)) },
	"created_at":        func(s *store.Server) *string { return new(formatSeconds(s.CreatedAt)) },
	"launched_at":       func(s *store.Server) *string { return (*string)(formatMicros(s.LaunchedAt)) },
	"terminated_at":     func(s *store.Server) *string { return (*string)(formatMicros(s.TerminatedAt)) },
	"root_device_name":  rootDeviceOf,
	"locked_by":         func(s *store.Server) *string { return textOrNil(s.LockedBy) },
	"launch_index":      func(s *store.Server) *string { return new(strconv.Itoa(s.LaunchIndex)) },
	"config_drive":      func(s *store.Server) *string { return new(configDrive(s)) },
	"auto_disk_config":  func(s *store.Server) *string { return new(map[bool]string{true: "1", false: "0"}[s.AutoDisk]) }, // as Nova's database has it
	"progress":          func(*store.Server) *string { return new("0") },
	"kernel_id":         func(*store.Server) *string { return new("") },
	"ramdisk_id":        func(*store.Server) *string { return new("") },
}

// textFilters say whether a server has a text that matches: one of shownTexts, or one of its addresses.
var textFilters = func() map[string]func(*store.Server, func(string) bool) bool {
	out := map[string]func(*store.Server, func(string) bool) bool{
		"ip":  func(s *store.Server, match func(string) bool) bool { return hasAddress(s, 4, match) },
		"ip6": func(s *store.Server, match func(string) bool) bool { return hasAddress(s, 6, match) },
	}
	for name, shown := range shownTexts {
		out[name] = func(s *store.Server, match func(string) bool) bool {
			text := shown(s)
			return text != nil && match(*text)
		}
	}
	return out
}()

// hasAddress reports whether a server has an address of a version for which match returns true.
func hasAddress(srv *store.Server, version int, match func(string) bool) bool {
	for _, list := range addressesOf(srv) {
		if slices.ContainsFunc(list, func(a address) bool { return a.Version == version && match(a.Addr) }) {
			return true
		}
	}
	return false
}

// tagFilters say which servers a filter with tags, separated by commas, selects. n is how many of the tags the server has.
var tagFilters = map[string]func(n, of int) bool{
	"tags":         func(n, of int) bool { return n == of },
	"tags-any":     func(n, _ int) bool { return n > 0 },
	"not-tags":     func(n, of int) bool { return n < of },
	"not-tags-any": func(n, _ int) bool { return n == 0 },
}

// countTags returns how many of the tags a server has.
func countTags(srv *store.Server, list []string) (n int) {
	for _, name := range list {
		if slices.Contains(srv.Tags.V, name) {
			n++
		}
	}
	return n
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
	if err := s.selectDeleted(ctx, &q); err != nil {
		return q, err
	}
	for name, selects := range tagFilters {
		for _, c := range q.Take(name) {
			list := strings.Split(textOf(c), ",")
			q.Keep = append(q.Keep, func(s *store.Server) bool { return selects(countTags(s, list), len(list)) })
		}
	}
	for name, matches := range textFilters {
		for _, c := range q.Take(name) {
			q.Keep = append(q.Keep, func(s *store.Server) bool { return matches(s, func(text string) bool { return c.Match(text) }) })
		}
	}
	return q, nil
}

// selectDeleted applies the filter deleted and the status DELETED, which are for administrators. As in Nova, a list of changes in a time has the servers that were
// deleted in it, too, for all clients. A text that is not a boolean counts as false.
func (s *server) selectDeleted(ctx context.Context, q *store.ServerQuery) error {
	truth := func(c listing.Condition) bool { return isTrue(textOf(c)) }
	given := q.Take("deleted")
	soft := q.Take("soft_deleted")
	if !s.administrator(ctx) { // as in Nova, the filters of other clients have no effect
		given, soft = nil, nil
	}
	deleted := slices.ContainsFunc(given, truth)
	q.SoftDeleted = slices.ContainsFunc(soft, truth)
	if len(q.Statuses) > 0 && !slices.ContainsFunc(q.Statuses, func(name string) bool { return !strings.EqualFold(name, store.StatusDeleted) }) {
		if !s.administrator(ctx) {
			return fault.New(fault.Denied, "Only administrators may list deleted instances")
		}
		deleted, q.Statuses = true, nil
		q.Keep = append(q.Keep, func(srv *store.Server) bool { return srv.VMState == store.Deleted }) // not those that are soft-deleted
	}
	q.Deleted = deleted
	q.Ever = !deleted && len(given) == 0 && len(q.Statuses) == 0 && slices.ContainsFunc(q.Conditions, func(c listing.Condition) bool { return strings.HasPrefix(c.Name, "changes-") })
	return nil
}

// textOf returns the value of a condition with one value.
func textOf(c listing.Condition) string { return fmt.Sprint(c.Values[0]) }

// unrecognizedBool is Nova's error for a text that is not a boolean.
const unrecognizedBool = "Invalid input received: Unrecognized value '%s', acceptable values are: '0', '1', 'f', 'false', 'n', 'no', 'off', 'on', 't', 'true', 'y', 'yes'"

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
		return own, fault.New(fault.Invalid, "%s", strings.ReplaceAll(unrecognizedBool, "%s", fmt.Sprintf("%.100s", text)))
	case ok && !all:
		return own, nil
	}
	return store.AllProjects(), s.mux.Enforce(ctx, allRule, nil)
}
