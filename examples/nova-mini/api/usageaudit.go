package api

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleAudits = "os_compute_api:os-instance-usage-audit-log:list"
	ruleAudit  = "os_compute_api:os-instance-usage-audit-log:show"
)

var auditRules = []rule{
	{ruleAudits, "rule:context_is_admin", "Show the log of the audits of usage in the last period", "GET", "/os-instance_usage_audit_log"},
	{ruleAudit, "rule:context_is_admin", "Show the log of the audits of usage in the last period before a time", "GET", "/os-instance_usage_audit_log/{before_timestamp}"},
}

// auditRoutes registers the routes of the log of the audits of usage. nova-mini has no such audits, so its log is that of a Nova with instance_usage_audit = false.
func (s *server) auditRoutes(all, _ *api.Group) {
	audits := api.NewGroup(all, api.Route{Pattern: "/os-instance_usage_audit_log"})
	api.HandleRoute(audits, api.Route{Pattern: "GET", Rule: ruleAudits, Query: noQuery, Summary: "Show the audits of usage in the last period"}, s.lastAudits)
	api.HandleRoute(audits, api.Route{Pattern: "GET /{before}", Rule: ruleAudit, Query: noQuery, Summary: "Show the audits of usage in the last period before a time"}, s.auditsBefore)
}

// AuditPeriod is a kind of periods that follow each other, such as months that begin on their first day. The zero value stands for these months.
type AuditPeriod struct {
	unit   string
	offset int
}

var auditPeriod = regexp.MustCompile(`^(hour|day|month|year)(?:@([0-9]{1,9}))?$`)

// ParseAuditPeriod parses a period in the form of Nova's option instance_usage_audit_period: hour, day, month or year, and optionally @ and a number. The number is the minute, the hour, the
// day or the month in which a period begins. Unlike Nova, it returns an error for a number that not all periods have: day 29, 30 and 31 of a month.
func ParseAuditPeriod(text string) (AuditPeriod, error) {
	m := auditPeriod.FindStringSubmatch(text)
	if m == nil {
		return AuditPeriod{}, fmt.Errorf("%q is not hour, day, month or year, with or without a begin such as in month@15", text)
	}
	p := AuditPeriod{unit: m[1]}
	if m[2] != "" {
		p.offset, _ = strconv.Atoi(m[2]) // at most nine digits
	}
	if most := map[string]int{"hour": 59, "day": 23, "month": 28, "year": 12}[p.unit]; p.offset > most {
		return AuditPeriod{}, fmt.Errorf("the begin %d of a period is too high: a %s has at most %d", p.offset, p.unit, most)
	}
	return p, nil
}

// lastBefore returns the begin and the end of the last period that has ended before a time.
func (p AuditPeriod) lastBefore(t time.Time) (begin, end time.Time) {
	t = t.UTC()
	y, m, d := t.Date()
	first := max(p.offset, 1) // of the days of a month, and of the months of a year
	at := map[string]func(back int) time.Time{
		"hour": func(back int) time.Time { return time.Date(y, m, d, t.Hour()-back, p.offset, 0, 0, time.UTC) },
		"day":  func(back int) time.Time { return time.Date(y, m, d-back, p.offset, 0, 0, 0, time.UTC) },
		"year": func(back int) time.Time { return time.Date(y-back, time.Month(first), 1, 0, 0, 0, 0, time.UTC) },
	}[p.unit]
	if at == nil {
		at = func(back int) time.Time { return time.Date(y, m-time.Month(back), first, 0, 0, 0, 0, time.UTC) }
	}
	if end = at(0); end.Before(t) {
		return at(1), end
	}
	return at(2), at(1)
}

type auditsReply struct {
	Log auditLog `json:"instance_usage_audit_logs"`
}

type auditsBeforeReply struct {
	Log auditLog `json:"instance_usage_audit_log"`
}

// auditLog is the log of the audits of usage in a period.
type auditLog struct {
	HostsNotRun []string `json:"hosts_not_run"`
	// Log has the results of the audits, by host.
	Log        struct{} `json:"log"`
	Hosts      int      `json:"num_hosts" min:"0"`
	Done       int      `json:"num_hosts_done" min:"0"`
	NotRun     int      `json:"num_hosts_not_run" min:"0"`
	Running    int      `json:"num_hosts_running" min:"0"`
	Status     string   `json:"overall_status"`
	Begin      string   `json:"period_beginning"`
	End        string   `json:"period_ending"`
	Errors     int      `json:"total_errors" min:"0"`
	TotalCount int      `json:"total_instances" min:"0"`
}

// auditLogOf returns the log of a period: no compute host has run an audit.
func (s *server) auditLogOf(ctx context.Context, begin, end time.Time) (auditLog, error) {
	const form = "2006-01-02 15:04:05"
	out := auditLog{HostsNotRun: []string{}, Begin: begin.Format(form), End: end.Format(form)}
	services, err := s.cfg.Store.Services(ctx, s.cfg.DownAfter)
	for i := range services {
		if v := &services[i]; v.Kind == store.ComputeBinary && !slices.Contains(out.HostsNotRun, v.Host) {
			out.HostsNotRun = append(out.HostsNotRun, v.Host)
		}
	}
	slices.Sort(out.HostsNotRun)
	out.Hosts, out.NotRun, out.Status = len(out.HostsNotRun), len(out.HostsNotRun), fmt.Sprintf("0 of %d hosts done. 0 errors.", len(out.HostsNotRun))
	if out.Hosts == 0 {
		out.Status = "ALL hosts done. 0 errors." // as in Nova
	}
	return out, err
}

func (s *server) lastAudits(ctx context.Context, _ *api.Request[api.None]) (out auditsReply, err error) {
	now, err := s.cfg.Store.Now(ctx)
	if err != nil {
		return out, err
	}
	begin, end := s.cfg.AuditPeriod.lastBefore(now)
	out.Log, err = s.auditLogOf(ctx, begin, end)
	return out, err
}

// auditTime matches the two forms of the times that Nova accepts in the path.
var auditTime = regexp.MustCompile(`^\d{4}-\d{1,2}-\d{1,2} \d{1,2}:\d{1,2}:\d{1,2}(\.\d{1,6})?$`)

func (s *server) auditsBefore(ctx context.Context, r *api.Request[api.None]) (out auditsBeforeReply, err error) {
	text := r.PathValue("before")
	normal := strings.Join(strings.Fields(text), " ")
	before, err := time.Parse("2006-1-2 15:4:5", normal)
	if err != nil || !auditTime.MatchString(normal) {
		return out, invalidTimestamp(text)
	}
	begin, end := s.cfg.AuditPeriod.lastBefore(before)
	if begin.Year() < 1 { // Nova answers 500
		return out, invalidTimestamp(text)
	}
	out.Log, err = s.auditLogOf(ctx, begin, end)
	return out, err
}

func invalidTimestamp(text string) error {
	return fault.New(fault.Invalid, "Invalid timestamp for date %s", text)
}
