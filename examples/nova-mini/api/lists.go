package api

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

// This file declares the filters and sort keys of lists of servers. Parameters that Nova does not have are ignored before microversion 2.75, as
// in Nova.

// strictSince is the microversion from which unknown parameters of servers are refused.
const strictSince = "2.75"

// servers are all filters and sort keys that Nova has. A filter without a column is applied by serverQuery. Filters that a client may not use have no
// effect, as in Nova.
var servers = listing.Spec{
	MaxLimit: MaxLimit, Lenient: true, StrictSince: strictSince, IgnoreDenied: true,
	Default:          listing.SortKey{Column: "created_at", Desc: true},
	InvalidDirection: "Invalid input received: Unknown sort direction, must be 'desc' or 'asc'",
	Filters: forMembers(slices.Concat([]listing.Filter{
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
		{Name: "host", Column: "host"},
		{Name: "node", Column: "host", Operator: listing.Regexp},
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
		plainFilters(joinedFilters),
	)),
	Sorts: slices.Concat([]listing.Sort{
		{Name: "display_name", Column: "name"},
		{Name: "display_description", Column: "description"},
		{Name: "uuid", Column: "id"},
		{Name: "host", Column: "host", Rule: ruleAdmin, Denied: hostSort("host")},
		{Name: "node", Column: "host", Rule: ruleAdmin, Denied: hostSort("node")},
		{Name: "instance_type_id", Column: "flavor_id"},
		{Name: "locked", Until: "2.72"},
		{Name: "locked", Column: "locked", Since: "2.73"},
	}, ignoredSorts(`architecture cell_name cleaned default_ephemeral_device default_swap_device deleted deleted_at disable_terminate ephemeral_gb ephemeral_key_uuid id
		key_data launched_on memory_mb os_type reservation_id root_gb shutdown_terminate user_data vcpus vm_mode`), sameSorts(`created_at updated_at launched_at terminated_at image_ref project_id user_id task_state vm_state power_state availability_zone access_ip_v4 access_ip_v6
		auto_disk_config config_drive hostname kernel_id key_name launch_index locked_by progress ramdisk_id root_device_name`)),
}

// memberFilters are the filters that all clients may use. The value is the first microversion in which all clients may use the filter; "":
// always. Other filters are for administrators.
var memberFilters = func() map[string]string {
	out := map[string]string{}
	for since, names := range map[string]string{
		"":     "reservation_id name status image flavor ip changes-since changes-before all_tenants tags tags-any not-tags not-tags-any locked",
		"2.5":  "ip6",
		"2.83": "availability_zone config_drive key_name created_at launched_at terminated_at power_state task_state vm_state progress user_id",
		"2.90": "hostname",
	} {
		for name := range strings.FieldsSeq(names) {
			out[name] = since
		}
	}
	return out
}()

// forMembers adds the rule for administrators to the filters that are not memberFilters. A member filter of a later
// microversion becomes two filters: one with this rule for the earlier microversions, and one without it.
func forMembers(list []listing.Filter) (out []listing.Filter) {
	for _, f := range list {
		switch since, ok := memberFilters[f.Name]; {
		case !ok:
			f.Rule = ruleAllFilters
		case since != "":
			before, _ := api.ParseVersion(since) // TestListVersions tests the texts
			before.Minor--
			admins := f
			admins.Rule, admins.Until = ruleAllFilters, before.String()
			out, f.Since = append(out, admins), since
		}
		out = append(out, f)
	}
	return out
}

// joinedFilters are filters of Nova that Nova refuses. For clients that may not use them they have no effect.
const joinedFilters = "block_device_mapping info_cache metadata pci_devices security_groups services system_metadata"

// regexpFilters returns filters with regular expressions for a column. If the column is "", serverQuery applies the filters.
func regexpFilters(column, names string) (out []listing.Filter) {
	for name := range strings.FieldsSeq(names) {
		out = append(out, listing.Filter{Name: name, Column: column, Operator: listing.Regexp})
	}
	return out
}

// sameSorts returns sort keys with the same names as their columns.
func sameSorts(names string) (out []listing.Sort) {
	for name := range strings.FieldsSeq(names) {
		out = append(out, listing.Sort{Name: name, Column: name})
	}
	return out
}

// ignoredSorts returns sort keys without an effect, which Nova has until 2.74.
func ignoredSorts(names string) (out []listing.Sort) {
	for name := range strings.FieldsSeq(names) {
		out = append(out, listing.Sort{Name: name, Until: "2.74"})
	}
	return out
}

// hostSort returns the error for clients that sort servers by host but are not administrators.
func hostSort(name string) error {
	return fault.New(fault.Denied, "Only administrators can sort servers by %s", name)
}

// plainFilters returns filters that serverQuery applies.
func plainFilters(names string) (out []listing.Filter) {
	for name := range strings.FieldsSeq(names) {
		out = append(out, listing.Filter{Name: name})
	}
	return out
}

// shownTexts has the attributes of a server that are not text columns, as texts for filters with regular expressions. A nil text matches nothing.
var shownTexts = map[string]func(*store.Server) *string{
	"power_state":       func(s *store.Server) *string { return new(strconv.Itoa(int(s.PowerState()))) },
	"availability_zone": func(s *store.Server) *string { return &s.Zone },
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

// textFilters has a function for each filter that SQL cannot apply; the key is the name of the filter. The function reports whether one of
// shownTexts, or any address of the server, matches.
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

// hasAddress reports whether a server has an address of the IP version for which match returns true.
func hasAddress(srv *store.Server, version int, match func(string) bool) bool {
	for _, list := range addressesOf(srv) {
		if slices.ContainsFunc(list, func(a address) bool { return a.Version == version && match(a.Addr) }) {
			return true
		}
	}
	return false
}

// tagFilters has a function for each filter by tags; the key is the name of the filter. The function reports whether a server matches. The
// parameter n is how many of the filter's tags the server has. The parameter named of is how many tags the filter has.
var tagFilters = map[string]func(n, of int) bool{
	"tags":         func(n, of int) bool { return n == of },
	"tags-any":     func(n, _ int) bool { return n > 0 },
	"not-tags":     func(n, of int) bool { return n < of },
	"not-tags-any": func(n, _ int) bool { return n == 0 },
}

// countTags returns the number of tags in the list that a server has.
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

// serverQuery returns the query for a list of servers. It handles the filters that listing.Query does not.
func (s *server) serverQuery(ctx context.Context, r *http.Request, list listing.Query, allRule string) (q store.ServerQuery, err error) {
	q.Query = list
	if q.In, err = s.projects(ctx, q.Take("all_tenants"), allRule); err != nil {
		return q, err
	}
	if err := s.refuseFilters(ctx, r, &q); err != nil {
		return q, err
	}
	if q.In != store.AllProjects() { // the client's project counts, as in Nova
		q.Take("project_id")
		q.Take("tenant_id")
	}
	for _, c := range q.Take("status") {
		for _, v := range c.Values {
			q.Statuses = append(q.Statuses, fmt.Sprint(v))
		}
	}
	if q.Statuses != nil { // it replaces the state, as in Nova
		q.Take("vm_state")
	}
	if err := s.selectDeleted(ctx, &q); err != nil {
		return q, err
	}
	wholeSeconds(q.Conditions)
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

// wholeSeconds changes the conditions with changes-before, so that they include the whole second of their time. A client sees the time of a change, and the
// database of Nova stores this time, in whole seconds.
func wholeSeconds(conditions []listing.Condition) {
	for _, c := range conditions {
		if at, ok := c.Values[0].(time.Time); ok && c.Name == "changes-before" {
			c.Values[0] = at.Truncate(time.Second).Add(time.Second - time.Microsecond)
		}
	}
}

// refuseFilters returns Invalid, with Nova's text, for the filters that Nova refuses if the client may use all filters.
func (s *server) refuseFilters(ctx context.Context, r *http.Request, q *store.ServerQuery) error {
	refused := func(name string) error { return fault.New(fault.Invalid, "Invalid filter field: %.100s.", name) }
	for name := range strings.FieldsSeq(joinedFilters) {
		if len(q.Take(name)) > 0 {
			return refused(name)
		}
	}
	for name := range r.URL.Query() {
		if strings.HasPrefix(name, "_") && s.mux.Enforce(ctx, ruleAllFilters, nil) == nil {
			return refused(name)
		}
	}
	return nil
}

// selectDeleted applies the filter deleted and the status DELETED, which are for administrators. As in Nova, a list with changes-since or
// changes-before also has the deleted servers that match, for all clients. A text that is not a boolean counts as false.
func (s *server) selectDeleted(ctx context.Context, q *store.ServerQuery) error {
	truth := func(c listing.Condition) bool { return isTrue(textOf(c)) }
	given := q.Take("deleted")
	deleted := slices.ContainsFunc(given, truth)
	q.SoftDeleted = slices.ContainsFunc(q.Take("soft_deleted"), truth)
	if len(q.Statuses) > 0 && !slices.ContainsFunc(q.Statuses, func(name string) bool { return !strings.EqualFold(name, store.StatusDeleted) }) {
		if !s.administrator(ctx) {
			return fault.New(fault.Denied, "Only administrators may list deleted instances")
		}
		deleted, q.Statuses = true, nil
		q.Keep = append(q.Keep, func(srv *store.Server) bool { return srv.VMState == store.Deleted }) // without soft-deleted servers
	}
	q.Deleted = deleted
	q.Ever = !deleted && len(given) == 0 && len(q.Statuses) == 0 && slices.ContainsFunc(q.Conditions, func(c listing.Condition) bool { return strings.HasPrefix(c.Name, "changes-") })
	return nil
}

// textOf returns the value of a condition with one value.
func textOf(c listing.Condition) string { return fmt.Sprint(c.Values[0]) }

// lastValue returns the last value of a query parameter, or "" if the query does not have the parameter. If a client gives several values,
// the last one counts, as in Nova.
func lastValue(q url.Values, name string) string {
	if list := q[name]; len(list) > 0 {
		return list[len(list)-1]
	}
	return ""
}

// unrecognizedBool is Nova's error for a text that is not a boolean.
const unrecognizedBool = "Invalid input received: Unrecognized value '%s', acceptable values are: '0', '1', 'f', 'false', 'n', 'no', 'off', 'on', 't', 'true', 'y', 'yes'"

// projects returns the projects whose servers are listed: the client's project, or all projects if the client sets all_tenants. Errors: Denied
// if the rule does not allow all projects.
func (s *server) projects(ctx context.Context, allTenants []listing.Condition, allRule string) (store.Projects, error) {
	own := store.OfProject(reqctx.From(ctx).ProjectID)
	if len(allTenants) == 0 {
		return own, nil
	}
	text := textOf(allTenants[0])
	switch all, ok := parseTruth(text); {
	case !ok && strings.TrimSpace(text) != "": // an empty value means true
		return own, fault.New(fault.Invalid, "%s", strings.ReplaceAll(unrecognizedBool, "%s", fmt.Sprintf("%.100s", text)))
	case ok && !all:
		return own, nil
	}
	return store.AllProjects(), s.mux.Enforce(ctx, allRule, nil)
}
