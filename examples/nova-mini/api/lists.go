package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// This file defines the filters and sort keys of lists. Parameters that Nova does not have at microversion 2.1 are
// ignored, as in Nova. Parameters that Nova has are implemented, or refused by name.

// A filter adds the condition of one value of a parameter to a query.
type filter func(q *store.ServerQuery, value string) error

// serverFilters are all filters that Nova has at microversion 2.1. A nil filter is refused, because nova-mini does not have the
// attribute, or because Nova refuses the filter, too.
var serverFilters = map[string]filter{
	"uuid":              columnIs("id"),
	"project_id":        columnIs("project_id"),
	"tenant_id":         columnIs("project_id"),
	"user_id":           columnIs("user_id"),
	"image":             columnIs("image_ref"),
	"image_ref":         columnIs("image_ref"),
	"flavor":            columnIs("flavor_id"),
	"vm_state":          columnIs("vm_state"),
	"task_state":        columnIs("task_state"),
	"host":              columnIs("host"),
	"name":              matchesRegexp("name", nameOf),
	"display_name":      matchesRegexp("display_name", nameOf),
	"node":              matchesRegexp("node", func(s *store.Server) *string { return s.Host }),
	"power_state":       matchesRegexp("power_state", func(s *store.Server) *string { return new(strconv.Itoa(int(s.PowerState()))) }),
	"availability_zone": matchesRegexp("availability_zone", func(s *store.Server) *string { return new(zoneOf(s)) }),
	"created_at":        matchesRegexp("created_at", func(s *store.Server) *string { return new(formatSeconds(s.CreatedAt)) }),
	"launched_at":       matchesRegexp("launched_at", func(s *store.Server) *string { return (*string)(formatMicros(s.LaunchedAt)) }),
	"changes-since":     changedSince,
	"deleted":           isDeleted,
	"status":            hasStatus,

	"access_ip_v4": nil, "access_ip_v6": nil, "auto_disk_config": nil, "config_drive": nil, "description": nil, "display_description": nil,
	"hostname": nil, "ip": nil, "ip6": nil, "kernel_id": nil, "key_name": nil, "launch_index": nil, "locked_by": nil, "progress": nil,
	"ramdisk_id": nil, "reservation_id": nil, "root_device_name": nil, "soft_deleted": nil, "terminated_at": nil,
	// Nova refuses these.
	"block_device_mapping": nil, "info_cache": nil, "metadata": nil, "pci_devices": nil, "security_groups": nil, "services": nil, "system_metadata": nil,
}

// serverSorts maps the sort keys of servers to columns. Nova's other sort keys are refused, because nova-mini does not
// have their attributes.
var serverSorts = map[string]string{
	"created_at": "created_at", "updated_at": "updated_at", "launched_at": "launched_at", "display_name": "name", "uuid": "id",
	"host": "host", "node": "host", "image_ref": "image_ref", "instance_type_id": "flavor_id", "project_id": "project_id", "user_id": "user_id",
	"task_state": "task_state", "vm_state": "vm_state",
}

// flavorSorts maps the sort keys of flavors to columns.
var flavorSorts = map[string]string{
	"flavorid": "id", "name": "name", "memory_mb": "memory_mib", "root_gb": "disk_gib", "ephemeral_gb": "ephemeral_gib", "swap": "swap_mib",
	"vcpus": "vcpus", "is_public": "is_public", "rxtx_factor": "rxtx_factor",
}

// hostNames are the filters and sort keys that reveal the host of a server. Only administrators may use them.
var hostNames = []string{"host", "node"}

// filterNames returns the names of the filters that are not refused.
func filterNames() []string {
	return slices.Sorted(func(yield func(string) bool) {
		for name, f := range serverFilters {
			if f != nil && !yield(name) {
				return
			}
		}
	})
}

func columnIs(column string) filter {
	return func(q *store.ServerQuery, value string) error {
		q.Is = append(q.Is, store.Is{Column: column, Value: value})
		return nil
	}
}

func nameOf(s *store.Server) *string { return &s.Name }

// matchesRegexp filters by a regular expression. The function of returns the text of a server; the expression must match a part of
// this text. A nil text does not match.
func matchesRegexp(name string, of func(*store.Server) *string) filter {
	return func(q *store.ServerQuery, value string) error {
		re, err := regexp.Compile(value)
		if err != nil {
			return wrongQuery(name, value, fmt.Sprintf("'%.100s' is not a 'regex'", value))
		}
		if text := requiredLiteral(value); text != "" && (name == "name" || name == "display_name") {
			q.NameHas = append(q.NameHas, text)
		}
		q.Keep = append(q.Keep, func(s *store.Server) bool {
			got := of(s)
			return got != nil && re.MatchString(*got)
		})
		return nil
	}
}

// requiredLiteral returns a text that every match of a regular expression contains, or "" if it finds no such text. With the text the
// database can exclude rows before the expression is matched.
func requiredLiteral(expr string) (text string) {
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return ""
	}
	parts := []*syntax.Regexp{re}
	if re.Op == syntax.OpConcat {
		parts = re.Sub
	}
	for _, p := range parts {
		if p.Op == syntax.OpLiteral && p.Flags&syntax.FoldCase == 0 && len(p.Rune) > len([]rune(text)) {
			text = string(p.Rune)
		}
	}
	return text
}

// isoTimes are the accepted forms of ISO 8601. A time without a zone is in UTC.
var isoTimes = []string{
	time.RFC3339Nano, "2006-01-02T15:04:05.999999999Z0700", "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00",
	"2006-01-02 15:04:05.999999999", "2006-01-02T15:04Z07:00", "2006-01-02T15:04", "20060102T150405Z0700", "20060102T150405", time.DateOnly,
}

func changedSince(q *store.ServerQuery, value string) error {
	for _, form := range isoTimes {
		if t, err := time.Parse(form, value); err == nil {
			if t.After(q.ChangedSince) {
				q.ChangedSince = t.UTC()
			}
			return nil
		}
	}
	return wrongQuery("changes-since", value, fmt.Sprintf("'%.100s' is not a 'date-time'", value))
}

// isDeleted is the filter deleted. The database has no deleted servers, so a true value selects no server. A text that is not a
// boolean counts as false, as in Nova.
func isDeleted(q *store.ServerQuery, value string) error {
	q.Nothing = q.Nothing || isTrue(strings.TrimSpace(value))
	return nil
}

// hasStatus filters by the status that clients see. The server must have one of the given statuses. An unknown status
// selects no server.
func hasStatus(q *store.ServerQuery, value string) error {
	q.Statuses = append(q.Statuses, value)
	return nil
}

func wrongQuery(name, value, why string) error {
	return fault.New(fault.Invalid, "Invalid input for query parameters %s. Value: %.100s. %s", name, value, why)
}

// administrator reports whether the client is an administrator.
func (s *server) administrator(ctx context.Context) bool {
	return s.cfg.Policy.Enforce(ctx, ruleAdmin, nil) == nil
}

// viewer returns the client as a viewer of flavors.
func (s *server) viewer(ctx context.Context) store.FlavorViewer {
	return store.FlavorViewer{Project: reqctx.From(ctx).ProjectID, All: s.administrator(ctx)}
}

// serverQuery reads the parameters of a list of servers.
func (s *server) serverQuery(ctx context.Context, r *http.Request, allRule string) (q store.ServerQuery, err error) {
	values := r.URL.Query()
	if q.In, err = s.projects(ctx, values, allRule); err != nil {
		return q, err
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if err := s.filterServers(ctx, &q, name, values[name]); err != nil {
			return q, err
		}
	}
	if len(q.Statuses) > 0 && !slices.ContainsFunc(q.Statuses, func(name string) bool { return !strings.EqualFold(name, "deleted") }) && !s.administrator(ctx) {
		return q, fault.New(fault.Denied, "Only administrators may list deleted instances")
	}
	for _, key := range values["sort_key"] {
		if slices.Contains(hostNames, key) && !s.administrator(ctx) {
			return q, fault.New(fault.Denied, "Only administrators can sort servers by %s", key)
		}
	}
	q.Sort, err = sortKeys(values, serverSorts, "created_at", "desc")
	return q, err
}

// projects returns the projects whose servers are listed: the client's project, or all projects if the client asks for all and
// the rule allows this.
func (s *server) projects(ctx context.Context, values url.Values, allRule string) (store.Projects, error) {
	all, err := allTenants(values)
	if err != nil || !all {
		return store.OfProject(reqctx.From(ctx).ProjectID), err
	}
	return store.AllProjects(), s.cfg.Policy.Enforce(ctx, allRule, nil)
}

// filterServers applies the filter that a parameter of a list names. A name that is not a filter has no effect, as in Nova before
// microversion 2.75. A name that begins with an underscore is refused.
func (s *server) filterServers(ctx context.Context, q *store.ServerQuery, name string, values []string) error {
	filter, known := serverFilters[name]
	switch {
	case !known && !strings.HasPrefix(name, "_"):
		return nil
	case filter == nil:
		return fault.New(fault.Invalid, "Invalid filter field: %.100s.", name)
	case slices.Contains(hostNames, name) && s.cfg.Policy.Enforce(ctx, ruleAllFilters, nil) != nil:
		return fault.New(fault.Invalid, "Invalid filter field: %s. Only administrators can filter servers by it.", name)
	}
	for _, value := range values {
		if err := filter(q, value); err != nil {
			return err
		}
	}
	return nil
}

// sortKeys reads the parameters sort_key and sort_dir. A key without a direction has the first given direction. key and dir are the
// defaults. The schema of the query has already checked the keys.
func sortKeys(q url.Values, columns map[string]string, key, dir string) ([]db.SortKey, error) {
	keys, dirs := q["sort_key"], q["sort_dir"]
	if len(dirs) > 0 {
		dir = dirs[0]
	}
	if len(keys) == 0 {
		keys = []string{key}
	}
	if len(dirs) > len(keys) {
		return nil, fault.New(fault.Invalid, "Invalid input received: Sort direction size exceeds sort key size")
	}
	if !slices.Contains(keys, key) {
		keys = append(slices.Clip(keys), key)
	}
	var out []db.SortKey
	for i, k := range keys {
		d := dir
		if i < len(dirs) {
			d = dirs[i]
		}
		if d != "asc" && d != "desc" {
			return nil, fault.New(fault.Invalid, "Invalid input received: Unknown sort direction, must be 'desc' or 'asc'")
		}
		out = append(out, db.SortKey{Column: columns[k], Desc: d == "desc"})
	}
	return out, nil
}

// flavorQuery reads the parameters of a list of flavors.
func (s *server) flavorQuery(ctx context.Context, r *http.Request) (q store.FlavorQuery, err error) {
	q.For = s.viewer(ctx)
	values := r.URL.Query()
	for _, v := range []struct {
		name string
		to   *int
	}{{"minRam", &q.MinMemoryMiB}, {"minDisk", &q.MinDiskGiB}} {
		for _, text := range values[v.name] {
			n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			if errors.Is(err, strconv.ErrSyntax) {
				return q, fault.New(fault.Invalid, "Invalid %s filter [%.100s]", v.name, text)
			}
			*v.to = max(*v.to, int(n)) // out of range: n is the nearest int
		}
	}
	if q.Public, err = isPublic(values["is_public"]); err != nil {
		return q, err
	}
	q.Sort, err = sortKeys(values, flavorSorts, "flavorid", "asc")
	return q, err
}

// isPublic reads a parameter whose text is a boolean, or "none" for both public and private flavors (nil). Without the
// parameter only public flavors are listed.
func isPublic(values []string) (*bool, error) {
	if len(values) == 0 {
		return new(true), nil
	}
	text := values[len(values)-1]
	switch got, ok := parseTruth(text); {
	case strings.EqualFold(text, "none"):
		return nil, nil //nolint:nilnil // nil selects both
	case ok:
		return &got, nil
	}
	return nil, fault.New(fault.Invalid, "Invalid is_public filter [%.100s]", text)
}
